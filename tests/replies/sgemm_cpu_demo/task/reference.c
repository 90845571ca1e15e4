/* Expected output of sgemm_cpu: C[i,:] = sum over k of A[i,k] B[k,:] in double precision, k in ascending order. */
#include "task.h"
#include "reference.h"

#pragma GCC optimize("O3")

void ref_inputs(const struct km_args *a, int set, uint64_t seed)
{
	(void)a, (void)set, (void)seed; /* plain random matrices */
}

/* A row of C is the unit of work. Where it is too short for its root mean square to say how large the terms were, all
 * of C is one unit. */
static int whole(const struct km_args *a)
{
	return a->N < 16;
}

int64_t ref_rows(const struct km_args *a)
{
	return whole(a) ? 1 : a->M;
}

static void one_row(const struct km_args *a, int64_t i, double *restrict c)
{
	const float *A = a->A + i * a->K;
	int64_t k = 0;

	for (int64_t j = 0; j < a->N; j++)
		c[j] = 0;
	for (; k + 4 <= a->K; k += 4) {
		const float *B = a->B + k * a->N, *B1 = B + a->N, *B2 = B1 + a->N, *B3 = B2 + a->N;
		double a0 = A[k], a1 = A[k + 1], a2 = A[k + 2], a3 = A[k + 3];

		for (int64_t j = 0; j < a->N; j++)
			c[j] = c[j] + a0 * B[j] + a1 * B1[j] + a2 * B2[j] + a3 * B3[j];
	}
	for (; k < a->K; k++)
		for (int64_t j = 0; j < a->N; j++)
			c[j] += (double)A[k] * a->B[k * a->N + j];
}

void ref_row(const struct km_args *a, int64_t row, double *const *expected)
{
	if (!whole(a)) {
		one_row(a, row, expected[0]);
		return;
	}
	for (int64_t i = 0; i < a->M; i++)
		one_row(a, i, expected[0] + i * a->N);
}

void ref_counts(const struct km_args *a, double *flops, double *bytes)
{
	double m = (double)a->M, n = (double)a->N, k = (double)a->K;

	*flops = 2 * m * n * k;
	*bytes = sizeof(float) * (m * k + k * n + m * n);
}
