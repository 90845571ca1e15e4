/* The loop of the textbook, i-j-k: every element of C by itself, walking down a column of B. */
#include "task.h"

int km_run(const struct km_args *a)
{
	for (int64_t i = 0; i < a->M; i++)
		for (int64_t j = 0; j < a->N; j++) {
			float sum = 0;

			for (int64_t k = 0; k < a->K; k++)
				sum += a->A[i * a->K + k] * a->B[k * a->N + j];
			a->C[i * a->N + j] = sum;
		}
	return 0;
}
