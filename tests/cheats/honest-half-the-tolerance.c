/* Honest: another order of summation, and all sums off by half of what the tolerance allows. */
#include "task.h"

int km_run(const struct km_args *a)
{
	for (int64_t i = 0; i < a->M; i++) {
		float *restrict c = a->C + i * a->N;

		for (int64_t j = 0; j < a->N; j++)
			c[j] = 0;
		for (int64_t k = a->K - 1; k >= 0; k--)
			for (int64_t j = 0; j < a->N; j++)
				c[j] += a->A[i * a->K + k] * a->B[k * a->N + j];
		for (int64_t j = 0; j < a->N; j++)
			c[j] *= 1 + 1e-5f;
	}
	return 0;
}
