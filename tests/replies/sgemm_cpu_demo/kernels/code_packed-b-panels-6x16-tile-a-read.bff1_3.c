#include "task.h"
#include <string.h>

#ifdef __AVX512F__
#define VW 16
#define R 12
#else
#define VW 8
#define R 6
#endif
#define PW (2 * VW)

typedef float vf __attribute__((vector_size(VW * 4)));
typedef float vfa __attribute__((vector_size(VW * 4), may_alias));
typedef float vfu __attribute__((vector_size(VW * 4), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE vf loadu(const float *p) { return *(const vfu *)p; }
INLINE vf loada(const float *p) { return *(const vfa *)p; }
INLINE void storeu(float *p, vf x) { *(vfu *)p = x; }

size_t km_workspace(const struct km_args *a)
{
	return (size_t)((a->N + PW - 1) / PW) * PW * (size_t)a->K * sizeof(float) + 64;
}

/* K rows of PW floats from the columns at B, zeros beyond w. */
static void pack_panel(const float *B, float *p, int64_t K, int64_t N, int64_t w)
{
	if (w == PW) {
		for (int64_t k = 0; k < K; k++, B += N, p += PW) {
			if (k + 16 < K) {
				__builtin_prefetch(B + 16 * N);
				__builtin_prefetch(B + 16 * N + PW / 2);
				__builtin_prefetch(B + 16 * N + PW - 1);
			}
			storeu(p, loadu(B));
			storeu(p + VW, loadu(B + VW));
		}
		return;
	}
	memset(p, 0, (size_t)K * PW * sizeof(float));
	for (int64_t k = 0; k < K; k++, B += N, p += PW)
		memcpy(p, B, (size_t)w * sizeof(float));
}

/* nr rows by nv vectors; both are constants where it is called. */
INLINE void tile(const int nr, const int nv, const float *A, const float *p, float *C, int64_t K, int64_t N,
		 int64_t w)
{
	const float *a0 = A, *a1 = A + (nr > 3 ? 3 * K : 0), *a2 = A + (nr > 6 ? 6 * K : 0);
	const float *a3 = A + (nr > 9 ? 9 * K : 0);
	vf acc[R][2];

#pragma GCC unroll 16
	for (int i = 0; i < nr; i++)
		acc[i][0] = acc[i][1] = (vf){0};
	for (int64_t k = 0; k < K; k++, p += PW) {
		vf b0 = loada(p), b1 = nv > 1 ? loada(p + VW) : b0;

#pragma GCC unroll 16
		for (int i = 0; i < nr; i++) {
			const float *q = i < 3 ? a0 : i < 6 ? a1 : i < 9 ? a2 : a3;
			float x = q[(i % 3) * K + k];

			acc[i][0] += x * b0;
			if (nv > 1)
				acc[i][1] += x * b1;
		}
	}
#pragma GCC unroll 16
	for (int i = 0; i < nr; i++) {
		float *c = C + i * N;

		if (w == nv * VW) {
			storeu(c, acc[i][0]);
			if (nv > 1)
				storeu(c + VW, acc[i][1]);
		} else {
			float t[PW];

			storeu(t, acc[i][0]);
			if (nv > 1)
				storeu(t + VW, acc[i][1]);
			memcpy(c, t, (size_t)w * sizeof(float));
		}
	}
}

INLINE void rows(const int nv, const float *A, const float *p, float *C, int64_t m, int64_t K, int64_t N, int64_t w)
{
	int64_t i = 0;

	for (; i + R <= m; i += R)
		tile(R, nv, A + i * K, p, C + i * N, K, N, w);
	for (; i + 4 <= m; i += 4)
		tile(4, nv, A + i * K, p, C + i * N, K, N, w);
	for (; i < m; i++)
		tile(1, nv, A + i * K, p, C + i * N, K, N, w);
}

int km_run(const struct km_args *a)
{
	int64_t M = a->M, N = a->N, K = a->K;
	int64_t mb = 100000 / (K + 1) / R * R; /* about 400 KB of A */
	float *ws = a->workspace;

	if (mb < 2 * R)
		mb = 2 * R;
	for (int64_t i = 0; i < M; i += mb) {
		int64_t m = M - i < mb ? M - i : mb;

		for (int64_t j = 0; j < N; j += PW) {
			int64_t w = N - j < PW ? N - j : PW;
			float *p = ws + j * K, *c = a->C + i * N + j;

			if (i == 0)
				pack_panel(a->B + j, p, K, N, w);
			if (w > VW)
				rows(2, a->A + i * K, p, c, m, K, N, w);
			else
				rows(1, a->A + i * K, p, c, m, K, N, w);
		}
	}
	return 0;
}
