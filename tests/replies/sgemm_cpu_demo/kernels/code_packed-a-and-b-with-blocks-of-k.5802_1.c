#include "task.h"
#include <string.h>

typedef float v8 __attribute__((vector_size(32)));
typedef float v8u __attribute__((vector_size(32), aligned(4), may_alias));

#define MR 6
#define NR 16
#define A_FLOATS 163840 /* floats of packed A that shall stay in L2 */
#define B_BYTES ((int64_t)40 << 20) /* B is kept packed up to this size */

static inline v8 load8(const float *p) { return *(const v8u *)p; }
static inline void store8(float *p, v8 x) { *(v8u *)p = x; }

static int64_t rows_of_block(const struct km_args *a)
{
	int64_t k = a->K > 0 ? a->K : 1;
	int64_t m = A_FLOATS / k / MR * MR;
	int64_t all = (a->M + MR - 1) / MR * MR;

	if (m > 192)
		m = 192;
	if (m > all)
		m = all;
	return m < MR ? MR : m;
}

static int keeps_b(const struct km_args *a)
{
	return (a->N + NR - 1) / NR * NR * a->K * 4 <= B_BYTES;
}

static int64_t floats_of_a(const struct km_args *a)
{
	return (rows_of_block(a) * a->K + 15) / 16 * 16;
}

size_t km_workspace(const struct km_args *a)
{
	int64_t panels = keeps_b(a) ? (a->N + NR - 1) / NR : 1;

	return (size_t)(floats_of_a(a) + panels * NR * a->K + 64) * sizeof(float);
}

/* Six rows of A (rows of them valid), k-major. */
static void pack_a(const float *A, int64_t K, int64_t rows, float *restrict p)
{
	if (rows >= MR) {
		const float *a0 = A, *a1 = A + K, *a2 = A + 2 * K;
		const float *a3 = A + 3 * K, *a4 = A + 4 * K, *a5 = A + 5 * K;

		for (int64_t k = 0; k < K; k++, p += MR) {
			p[0] = a0[k];
			p[1] = a1[k];
			p[2] = a2[k];
			p[3] = a3[k];
			p[4] = a4[k];
			p[5] = a5[k];
		}
		return;
	}
	for (int64_t k = 0; k < K; k++, p += MR)
		for (int64_t r = 0; r < MR; r++)
			p[r] = r < rows ? A[r * K + k] : 0.0f;
}

/* Sixteen columns of B (cols of them valid), k-major. */
static void pack_b(const float *B, int64_t N, int64_t K, int64_t cols, float *restrict p)
{
	if (cols >= NR) {
		for (int64_t k = 0; k < K; k++, p += NR, B += N) {
			if (k + 16 < K)
				__builtin_prefetch(B + 16 * N);
			store8(p, load8(B));
			store8(p + 8, load8(B + 8));
		}
		return;
	}
	for (int64_t k = 0; k < K; k++, p += NR, B += N)
		for (int64_t c = 0; c < NR; c++)
			p[c] = c < cols ? B[c] : 0.0f;
}

static inline __attribute__((always_inline)) void tile(const float *ap, const float *bp, int64_t K, float *c, int64_t ldc)
{
	v8 x[MR], y[MR];

#pragma GCC unroll 6
	for (int r = 0; r < MR; r++) {
		x[r] = (v8){0};
		y[r] = (v8){0};
	}
	for (int64_t k = 0; k < K; k++, ap += MR, bp += NR) {
		v8 b0 = load8(bp), b1 = load8(bp + 8);

#pragma GCC unroll 6
		for (int r = 0; r < MR; r++) {
			x[r] += ap[r] * b0;
			y[r] += ap[r] * b1;
		}
	}
#pragma GCC unroll 6
	for (int r = 0; r < MR; r++) {
		store8(c + r * ldc, x[r]);
		store8(c + r * ldc + 8, y[r]);
	}
}

int km_run(const struct km_args *a)
{
	const int64_t M = a->M, N = a->N, K = a->K;
	const int64_t mb = rows_of_block(a);
	const int keep = keeps_b(a);
	float *pa = a->workspace;
	float *pb = pa + floats_of_a(a);

	for (int64_t ic = 0; ic < M; ic += mb) {
		int64_t m = M - ic < mb ? M - ic : mb;

		for (int64_t i = 0; i < m; i += MR)
			pack_a(a->A + (ic + i) * K, K, m - i, pa + i * K);
		for (int64_t j = 0; j < N; j += NR) {
			int64_t cols = N - j < NR ? N - j : NR;
			float *bp = keep ? pb + j * K : pb;

			if (ic == 0 || !keep)
				pack_b(a->B + j, N, K, cols, bp);
			for (int64_t i = 0; i < m; i += MR) {
				int64_t rows = m - i < MR ? m - i : MR;
				float *c = a->C + (ic + i) * N + j;

				if (rows == MR && cols == NR) {
					tile(pa + i * K, bp, K, c, N);
				} else {
					float t[MR * NR];

					tile(pa + i * K, bp, K, t, NR);
					for (int64_t r = 0; r < rows; r++)
						memcpy(c + r * N, t + r * NR, (size_t)cols * sizeof(float));
				}
			}
		}
	}
	return 0;
}
