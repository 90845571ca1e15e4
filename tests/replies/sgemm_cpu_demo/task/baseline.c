/* The row-major loop i-k-j: the inner loop runs along rows of B and C, so that the compiler can vectorise it. */
#include "task.h"

int km_run(const struct km_args *a)
{
	for (int64_t i = 0; i < a->M; i++) {
		float *restrict c = a->C + i * a->N;

		for (int64_t j = 0; j < a->N; j++)
			c[j] = 0;
		for (int64_t k = 0; k < a->K; k++) {
			const float *restrict b = a->B + k * a->N;
			float x = a->A[i * a->K + k];

			for (int64_t j = 0; j < a->N; j++)
				c[j] += x * b[j];
		}
	}
	return 0;
}
