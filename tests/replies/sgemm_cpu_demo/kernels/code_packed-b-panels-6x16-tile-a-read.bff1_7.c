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
#define AHEAD 28

typedef float vf __attribute__((vector_size(VW * 4)));
typedef float vfa __attribute__((vector_size(VW * 4), may_alias));
typedef float vfu __attribute__((vector_size(VW * 4), aligned(4), may_alias));
typedef float v8 __attribute__((vector_size(32)));
typedef float v8u __attribute__((vector_size(32), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE vf loadu(const float *p) { return *(const vfu *)p; }
INLINE vf loada(const float *p) { return *(const vfa *)p; }
INLINE void storeu(float *p, vf x) { *(vfu *)p = x; }

/* What the tiles of one panel prefetch: streams of K steps, or the next rows of A. */
struct ahead {
	const float *q[5];
	int64_t step[5];
	int64_t left; /* rows of A from the block's start to the end, or 0 */
	const float *b; /* with left: the columns of B for the next panel, or NULL */
	int64_t last; /* the last of these columns */
};

size_t km_workspace(const struct km_args *a)
{
	return (size_t)((a->N + PW - 1) / PW) * PW * (size_t)a->K * sizeof(float) + 64;
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
 * q and step: what to prefetch.
 */
INLINE void tile(const int nr, const int nv, const int pk, const float *A, const float *B, float *p, float *C,
		 int64_t K, int64_t N, int64_t w, const float *q, int64_t step)
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
			q += step;
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
INLINE void half(const int nr, const float *A, const float *p, float *C, int64_t K, int64_t N, int64_t w)
{
	const float *a0 = A, *a1 = A + (nr > 3 ? 3 * K : 0), *a2 = A + (nr > 6 ? 6 * K : 0);
	const float *a3 = A + (nr > 9 ? 9 * K : 0);
	v8 acc[R];

#pragma GCC unroll 16
	for (int i = 0; i < nr; i++)
		acc[i] = (v8){0};
	for (int64_t k = 0; k < K; k++, p += PW) {
		v8 b = *(const v8u *)p;

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

/* B: NULL, or where the first tile takes a full panel from (nv is 2 and m at least R then). */
INLINE void rows(const int nv, const float *A, const float *B, float *p, float *C, int64_t m, int64_t K, int64_t N,
		 int64_t w, const struct ahead *h)
{
	int64_t share = h->b ? (K * R + m - 1) / m : 0, kb = 0; /* rows of the next panel per tile */
	int64_t i = 0;

	for (int t = 0; i + R <= m; i += R, t++) {
		const float *q = p;
		int64_t step = 0;

		if (i + 2 * R <= h->left) {
			q = A + (i + R) * K; /* R * K floats are fewer than K lines */
			step = 16;
		} else if (t < 5 && h->q[t]) {
			q = h->q[t];
			step = h->step[t];
		}
		if (h->b && t > 0) {
			for (int64_t e = kb + share; kb < e && kb < K; kb++) {
				__builtin_prefetch(h->b + kb * N, 0, 2);
				__builtin_prefetch(h->b + kb * N + h->last / 2, 0, 2);
				__builtin_prefetch(h->b + kb * N + h->last, 0, 2);
			}
		}
		if (nv == 2 && t == 0 && B)
			tile(R, 2, 1, A, B, p, C, K, N, w, q, step);
		else
			tile(R, nv, 0, A + i * K, NULL, p, C + i * N, K, N, w, q, step);
	}
	for (; i + 4 <= m; i += 4)
		tile(4, nv, 0, A + i * K, NULL, p, C + i * N, K, N, w, p, 0);
	for (; i < m; i++)
		tile(1, nv, 0, A + i * K, NULL, p, C + i * N, K, N, w, p, 0);
}

static void half_rows(const float *A, const float *p, float *C, int64_t m, int64_t K, int64_t N, int64_t w)
{
	int64_t i = 0;

	for (; i + R <= m; i += R)
		half(R, A + i * K, p, C + i * N, K, N, w);
	for (; i + 4 <= m; i += 4)
		half(4, A + i * K, p, C + i * N, K, N, w);
	for (; i < m; i++)
		half(1, A + i * K, p, C + i * N, K, N, w);
}

int km_run(const struct km_args *a)
{
	int64_t M = a->M, N = a->N, K = a->K;
	int64_t mb = 100000 / (K + 1) / R * R; /* about 400 KB of A */
	int64_t nb;
	float *ws = a->workspace;

	if (mb < 2 * R)
		mb = 2 * R;
	nb = (M + mb - 1) / mb;
	if (nb == 3 && (M + 1) / 2 * K <= 125000)
		nb = 2;
	if (nb > 1)
		mb = ((M + nb - 1) / nb + R - 1) / R * R;
	for (int64_t i = 0; i < M; i += mb) {
		int64_t m = M - i < mb ? M - i : mb;
		const float *A = a->A + i * K;

		for (int64_t j = 0; j < N; j += PW) {
			int64_t w = N - j < PW ? N - j : PW, next = N - j - PW;
			int64_t last = next < PW ? next - 1 : PW - 1;
			float *p = ws + j * K, *c = a->C + i * N + j;
			const float *src = NULL;
			struct ahead h = { { NULL }, { 0 }, 0, NULL, 0 };

			if (j == 0) {
				h.left = M - i;
				if (i == 0 && next > 0) {
					h.b = a->B + PW;
					h.last = last;
				}
			} else if (next > 0) {
				const float *pn = p + PW * K, *b = a->B + j + PW;
				int n = 0;

				if (i == 0) {
					h.q[0] = b;
					h.q[1] = b + last;
					h.q[2] = b + last / 2;
					h.step[0] = h.step[1] = h.step[2] = N;
					n = 3;
				}
				for (int s = 0; s < PW / 16; s++, n++) {
					h.q[n] = pn + 16 * K * s;
					h.step[n] = 16;
				}
			}
			if (i == 0) {
				if (w == PW && m >= R)
					src = a->B + j;
				else
					pack_panel(a->B + j, p, K, N, w);
			}
			if (w > VW + 8 || (VW == 8 && w > VW)) {
				rows(2, A, src, p, c, m, K, N, w, &h);
			} else if (w > 8) {
				rows(1, A, NULL, p, c, m, K, N, w < VW ? w : VW, &h);
				if (w > VW)
					half_rows(A, p + VW, c + VW, m, K, N, w - VW);
			} else {
				half_rows(A, p, c, m, K, N, w);
			}
		}
	}
	return 0;
}
