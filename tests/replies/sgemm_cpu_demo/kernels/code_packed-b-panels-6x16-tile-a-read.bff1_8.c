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
#define AHEAD 24

typedef float vf __attribute__((vector_size(VW * 4)));
typedef float vfa __attribute__((vector_size(VW * 4), may_alias));
typedef float vfu __attribute__((vector_size(VW * 4), aligned(4), may_alias));
typedef float v8 __attribute__((vector_size(32)));
typedef float v8u __attribute__((vector_size(32), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE vf loadu(const float *p) { return *(const vfu *)p; }
INLINE vf loada(const float *p) { return *(const vfa *)p; }
INLINE void storeu(float *p, vf x) { *(vfu *)p = x; }

size_t km_workspace(const struct km_args *a)
{
	return (size_t)a->K * PW * sizeof(float) + 64;
}

/* K rows of PW floats from the w columns at B, zeros beyond. */
static void pack_panel(const float *B, float *p, int64_t K, int64_t N, int64_t w)
{
	if (w < PW)
		memset(p, 0, (size_t)K * PW * sizeof(float));
	for (int64_t k = 0; k < K; k++, B += N, p += PW)
		memcpy(p, B, (size_t)w * sizeof(float));
}

/*
 * nr rows by nv vectors; pk: take the panel from B and fill p with it. These are constants where it is called.
 * q: prefetched line by line, one line for each k.
 */
INLINE void tile(const int nr, const int nv, const int pk, const float *A, const float *B, float *p, float *C,
		 int64_t K, int64_t N, int64_t w, const float *q)
{
	const float *a0 = A, *a1 = A + (nr > 3 ? 3 * K : 0), *a2 = A + (nr > 6 ? 6 * K : 0);
	const float *a3 = A + (nr > 9 ? 9 * K : 0);
	vf acc[R][2];

#pragma GCC unroll 16
	for (int i = 0; i < nr; i++) {
		acc[i][0] = acc[i][1] = (vf){0};
		__builtin_prefetch(C + i * N, 1);
		__builtin_prefetch(C + i * N + w / 2, 1);
		__builtin_prefetch(C + i * N + w - 1, 1);
	}
	for (int64_t k = 0; k < K; k++, p += PW) {
		vf b0, b1;

		if (pk) {
			b0 = loadu(B);
			b1 = loadu(B + VW);
			storeu(p, b0);
			storeu(p + VW, b1);
			if (k + AHEAD < K) {
				__builtin_prefetch(B + AHEAD * N);
				__builtin_prefetch(B + AHEAD * N + PW / 2);
				__builtin_prefetch(B + AHEAD * N + PW - 1);
			}
			B += N;
		} else {
			b0 = loada(p);
			b1 = nv > 1 ? loada(p + VW) : b0;
		}
		if (nr == R) {
			__builtin_prefetch(q, 0, 2);
			q += 16;
		}
#pragma GCC unroll 16
		for (int i = 0; i < nr; i++) {
			const float *r = i < 3 ? a0 : i < 6 ? a1 : i < 9 ? a2 : a3;
			float x = r[(i % 3) * K + k];

			acc[i][0] += x * b0;
			if (nv > 1)
				acc[i][1] += x * b1;
		}
	}
#pragma GCC unroll 16
	for (int i = 0; i < nr; i++) {
		float *c = C + i * N;

		if (pk || w == nv * VW) {
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

/* nr rows by at most 8 columns. */
INLINE void half(const int nr, const float *A, const float *p, float *C, int64_t K, int64_t N, int64_t w,
		 const float *q)
{
	const float *a0 = A, *a1 = A + (nr > 3 ? 3 * K : 0), *a2 = A + (nr > 6 ? 6 * K : 0);
	const float *a3 = A + (nr > 9 ? 9 * K : 0);
	v8 acc[R];

#pragma GCC unroll 16
	for (int i = 0; i < nr; i++) {
		acc[i] = (v8){0};
		__builtin_prefetch(C + i * N, 1);
	}
	for (int64_t k = 0; k < K; k++, p += PW) {
		v8 b = *(const v8u *)p;

		if (nr == R) {
			__builtin_prefetch(q, 0, 2);
			q += 16;
		}
#pragma GCC unroll 16
		for (int i = 0; i < nr; i++) {
			const float *r = i < 3 ? a0 : i < 6 ? a1 : i < 9 ? a2 : a3;

			acc[i] += r[(i % 3) * K + k] * b;
		}
	}
#pragma GCC unroll 16
	for (int i = 0; i < nr; i++) {
		float *c = C + i * N;

		if (w == 8) {
			*(v8u *)c = acc[i];
		} else {
			float t[8];

			*(v8u *)t = acc[i];
			memcpy(c, t, (size_t)w * sizeof(float));
		}
	}
}

/* What follows a panel: its columns of B, to be requested in shares, or NULL. */
struct ahead {
	const float *b;
	int64_t last;
};

/* All rows; B: NULL, or where the first tile takes a full panel from (nv is 2 and M at least R then). */
INLINE void rows(const int nv, const float *A, const float *B, float *p, float *C, int64_t M, int64_t K, int64_t N,
		 int64_t w, struct ahead h)
{
	int64_t share = h.b ? (K * R + M - 1) / M + 1 : 0, kb = 0;
	int64_t i = 0;

	for (; i + R <= M; i += R) {
		/* R * K floats are fewer than K lines; after the last tile comes the first of the next panel */
		const float *q = i + 2 * R <= M ? A + (i + R) * K : A;

		for (int64_t e = kb + share; kb < e && kb < K; kb++) {
			__builtin_prefetch(h.b + kb * N, 0, 2);
			__builtin_prefetch(h.b + kb * N + h.last / 2, 0, 2);
			__builtin_prefetch(h.b + kb * N + h.last, 0, 2);
		}
		if (nv == 2 && i == 0 && B)
			tile(R, 2, 1, A, B, p, C, K, N, w, q);
		else
			tile(R, nv, 0, A + i * K, NULL, p, C + i * N, K, N, w, q);
	}
	for (; i + 4 <= M; i += 4)
		tile(4, nv, 0, A + i * K, NULL, p, C + i * N, K, N, w, p);
	for (; i < M; i++)
		tile(1, nv, 0, A + i * K, NULL, p, C + i * N, K, N, w, p);
}

static void half_rows(const float *A, const float *p, float *C, int64_t M, int64_t K, int64_t N, int64_t w)
{
	int64_t i = 0;

	for (; i + R <= M; i += R)
		half(R, A + i * K, p, C + i * N, K, N, w, i + 2 * R <= M ? A + (i + R) * K : A);
	for (; i + 4 <= M; i += 4)
		half(4, A + i * K, p, C + i * N, K, N, w, p);
	for (; i < M; i++)
		half(1, A + i * K, p, C + i * N, K, N, w, p);
}

int km_run(const struct km_args *a)
{
	int64_t M = a->M, N = a->N, K = a->K;
	float *p = a->workspace;

	for (int64_t j = 0; j < N; j += PW) {
		int64_t w = N - j < PW ? N - j : PW, next = N - j - PW;
		const float *src = NULL;
		float *c = a->C + j;
		struct ahead h = { NULL, 0 };

		if (next > 0) {
			h.b = a->B + j + PW;
			h.last = next < PW ? next - 1 : PW - 1;
		}
		if (w == PW && M >= R)
			src = a->B + j;
		else
			pack_panel(a->B + j, p, K, N, w);
		if (w > VW + 8 || (VW == 8 && w > VW)) {
			rows(2, a->A, src, p, c, M, K, N, w, h);
		} else if (w > 8) {
			rows(1, a->A, NULL, p, c, M, K, N, w < VW ? w : VW, h);
			if (w > VW)
				half_rows(a->A, p + VW, c + VW, M, K, N, w - VW);
		} else {
			half_rows(a->A, p, c, M, K, N, w);
		}
	}
	return 0;
}
