/* Honest: B is packed into the workspace in strips of sixteen columns; a tile of 6 x 16 sums stays in registers. */
#include "task.h"

enum { MR = 6, NR = 16 };

typedef float lane __attribute__((vector_size(32), aligned(4)));

static int64_t strips(const struct km_args *a)
{
	return (a->N + NR - 1) / NR;
}

size_t km_workspace(const struct km_args *a)
{
	return (size_t)(strips(a) * a->K * NR) * sizeof(float);
}

/* Strip s of B as K rows of NR floats, filled up with zeros. */
static void pack(const struct km_args *a, int64_t s, float *restrict to)
{
	for (int64_t k = 0; k < a->K; k++)
		for (int64_t j = 0; j < NR; j++)
			to[k * NR + j] = s * NR + j < a->N ? a->B[k * a->N + s * NR + j] : 0;
}

/* rows x NR sums for rows i .. i + rows - 1 of C and one strip. */
static inline __attribute__((always_inline)) void tile(const struct km_args *a, int64_t i, int64_t s, const float *b,
						       int rows)
{
	lane sum[MR][2] = { 0 };
	float out[NR];

	for (int64_t k = 0; k < a->K; k++) {
		lane b0 = *(const lane *)(b + k * NR), b1 = *(const lane *)(b + k * NR + 8);

		for (int r = 0; r < rows; r++) {
			float x = a->A[(i + r) * a->K + k];

			sum[r][0] += x * b0;
			sum[r][1] += x * b1;
		}
	}
	for (int r = 0; r < rows; r++) {
		*(lane *)out = sum[r][0];
		*(lane *)(out + 8) = sum[r][1];
		for (int64_t j = 0; j < NR && s * NR + j < a->N; j++)
			a->C[(i + r) * a->N + s * NR + j] = out[j];
	}
}

int km_run(const struct km_args *a)
{
	float *b = a->workspace;

	for (int64_t s = 0; s < strips(a); s++) {
		int64_t i = 0;

		pack(a, s, b + s * a->K * NR);
		for (; i + MR <= a->M; i += MR)
			tile(a, i, s, b + s * a->K * NR, MR);
		for (; i < a->M; i++)
			tile(a, i, s, b + s * a->K * NR, 1);
	}
	return 0;
}
