#include "task.h"
#include <string.h>

#ifdef __AVX512F__
#define L 16
#define MR 8
#define NVMAX 3
#else
#define L 8
#define MR 6
#define NVMAX 2
#endif
#define W (L * NVMAX)
#define KCMAX 2048

typedef float vz __attribute__((vector_size(L * 4)));
typedef float vza __attribute__((vector_size(L * 4), may_alias));
typedef float vzu __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef float vh __attribute__((vector_size(L * 2)));
typedef float vha __attribute__((vector_size(L * 2), may_alias));
typedef float vhu __attribute__((vector_size(L * 2), aligned(4), may_alias));

/* mr rows, nv full vectors and h (0 or 1) half vectors of columns; the strip's rows are (nv + h) * L floats apart. */
static inline __attribute__((always_inline)) void tile(const int mr, const int nv, const int h, int64_t kc,
	const float *a, int64_t lda, const float *b, float *c, int64_t ldc, int add)
{
	vz acc[MR][NVMAX];
	vh ach[MR];
	const float *ar[MR];

#pragma GCC unroll 16
	for (int r = 0; r < mr; r++) {
		ar[r] = a + r * lda;
#pragma GCC unroll 16
		for (int v = 0; v < nv; v++)
			acc[r][v] = (vz){0};
		if (h)
			ach[r] = (vh){0};
	}
	for (int64_t k = 0; k < kc; k++) {
		vz bv[NVMAX];
		vh bh = {0};

#pragma GCC unroll 16
		for (int v = 0; v < nv; v++)
			bv[v] = *(const vza *)(b + v * L);
		if (h)
			bh = *(const vha *)(b + nv * L);
#pragma GCC unroll 16
		for (int r = 0; r < mr; r++) {
			float s = ar[r][k];

#pragma GCC unroll 16
			for (int v = 0; v < nv; v++)
				acc[r][v] += s * bv[v];
			if (h)
				ach[r] += s * bh;
		}
		b += (nv + h) * L;
	}
	if (add) {
#pragma GCC unroll 16
		for (int r = 0; r < mr; r++) {
#pragma GCC unroll 16
			for (int v = 0; v < nv; v++)
				acc[r][v] += *(const vzu *)(c + r * ldc + v * L);
			if (h)
				ach[r] += *(const vhu *)(c + r * ldc + nv * L);
		}
	}
#pragma GCC unroll 16
	for (int r = 0; r < mr; r++) {
#pragma GCC unroll 16
		for (int v = 0; v < nv; v++)
			*(vzu *)(c + r * ldc + v * L) = acc[r][v];
		if (h)
			*(vhu *)(c + r * ldc + nv * L) = ach[r];
	}
}

#define PARAMS int64_t kc, const float *a, int64_t lda, const float *b, float *c, int64_t ldc, int add
#define ARGS kc, a, lda, b, c, ldc, add

#define DEF(R, NV, H) \
static __attribute__((noinline)) void t_##R##_##NV##_##H(PARAMS) \
{ \
	tile(R, NV, H, ARGS); \
}

#ifdef __AVX512F__
#define DEFALL(NV, H) \
DEF(1, NV, H) DEF(2, NV, H) DEF(3, NV, H) DEF(4, NV, H) DEF(5, NV, H) DEF(6, NV, H) DEF(7, NV, H) DEF(8, NV, H) \
static void rows_##NV##_##H(int mr, PARAMS) \
{ \
	switch (mr) { \
	case 8: t_8_##NV##_##H(ARGS); break; \
	case 7: t_7_##NV##_##H(ARGS); break; \
	case 6: t_6_##NV##_##H(ARGS); break; \
	case 5: t_5_##NV##_##H(ARGS); break; \
	case 4: t_4_##NV##_##H(ARGS); break; \
	case 3: t_3_##NV##_##H(ARGS); break; \
	case 2: t_2_##NV##_##H(ARGS); break; \
	default: t_1_##NV##_##H(ARGS); break; \
	} \
}
DEFALL(3, 0)
DEFALL(2, 1)
DEFALL(2, 0)
DEFALL(1, 1)
DEFALL(1, 0)
DEFALL(0, 1)

static inline void run_tile(int kind, int mr, PARAMS)
{
	switch (kind) {
	case 6: rows_3_0(mr, ARGS); break;
	case 5: rows_2_1(mr, ARGS); break;
	case 4: rows_2_0(mr, ARGS); break;
	case 3: rows_1_1(mr, ARGS); break;
	case 2: rows_1_0(mr, ARGS); break;
	default: rows_0_1(mr, ARGS); break;
	}
}
#else
#define DEFALL(NV, H) \
DEF(1, NV, H) DEF(2, NV, H) DEF(3, NV, H) DEF(4, NV, H) DEF(5, NV, H) DEF(6, NV, H) \
static void rows_##NV##_##H(int mr, PARAMS) \
{ \
	switch (mr) { \
	case 6: t_6_##NV##_##H(ARGS); break; \
	case 5: t_5_##NV##_##H(ARGS); break; \
	case 4: t_4_##NV##_##H(ARGS); break; \
	case 3: t_3_##NV##_##H(ARGS); break; \
	case 2: t_2_##NV##_##H(ARGS); break; \
	default: t_1_##NV##_##H(ARGS); break; \
	} \
}
DEFALL(2, 0)
DEFALL(1, 1)
DEFALL(1, 0)
DEFALL(0, 1)

static inline void run_tile(int kind, int mr, PARAMS)
{
	switch (kind) {
	case 4: rows_2_0(mr, ARGS); break;
	case 3: rows_1_1(mr, ARGS); break;
	case 2: rows_1_0(mr, ARGS); break;
	default: rows_0_1(mr, ARGS); break;
	}
}
#endif

/* A full strip of W columns: kc rows of B into p. */
static void pack_full(float *p, const float *b, int64_t ldb, int64_t kc)
{
	for (int64_t k = 0; k < kc; k++) {
		if (k + 16 < kc) {
			const float *q = b + 16 * ldb;

#pragma GCC unroll 16
			for (int t = 0; t < W; t += 16)
				__builtin_prefetch(q + t);
			__builtin_prefetch(q + W - 1);
		}
#pragma GCC unroll 16
		for (int v = 0; v < NVMAX; v++)
			*(vza *)(p + v * L) = *(const vzu *)(b + v * L);
		b += ldb;
		p += W;
	}
}

/* nc < W columns, padded with zeros to w floats a row. */
static void pack_part(float *p, const float *b, int64_t ldb, int64_t kc, int nc, int w)
{
	for (int64_t k = 0; k < kc; k++) {
		int j = 0;

		if (k + 16 < kc) {
			const float *q = b + 16 * ldb;

			for (int t = 0; t < nc; t += 16)
				__builtin_prefetch(q + t);
			__builtin_prefetch(q + nc - 1);
		}
		for (; j + L / 2 <= nc; j += L / 2)
			*(vha *)(p + j) = *(const vhu *)(b + j);
		if (j < nc) {
			for (; j < nc; j++)
				p[j] = b[j];
			for (; j < w; j++)
				p[j] = 0;
		} else {
			for (; j < w; j += L / 2)
				*(vha *)(p + j) = (vh){0};
		}
		b += ldb;
		p += w;
	}
}

size_t km_workspace(const struct km_args *a)
{
	int64_t k = a->K < KCMAX ? a->K : KCMAX;

	if (k < 1)
		k = 1;
	return (size_t)k * W * sizeof(float);
}

int km_run(const struct km_args *a)
{
	const int64_t M = a->M, N = a->N, K = a->K;
	float *strip = (float *)a->workspace;
	int64_t nb = (K + KCMAX - 1) / KCMAX;
	int64_t kstep;

	if (nb < 1)
		nb = 1;
	kstep = (K + nb - 1) / nb;
	for (int64_t j = 0; j < N; j += W) {
		int nc = N - j < W ? (int)(N - j) : W;
		int kind = (nc + L / 2 - 1) / (L / 2);
		int cols = kind * (L / 2);

		for (int64_t bk = 0; bk < nb; bk++) {
			int64_t k0 = bk * kstep;
			int64_t kc = K - k0 < kstep ? K - k0 : kstep;
			int add = bk > 0;

			if (kc < 0)
				kc = 0;
			if (nc == W)
				pack_full(strip, a->B + k0 * N + j, N, kc);
			else
				pack_part(strip, a->B + k0 * N + j, N, kc, nc, (kind + 1) / 2 * L);
			for (int64_t i = 0; i < M; i += MR) {
				int mr = M - i < MR ? (int)(M - i) : MR;
				const float *ap = a->A + i * K + k0;
				float *cp = a->C + i * N + j;

				if (nc == cols) {
					run_tile(kind, mr, kc, ap, K, strip, cp, N, add);
				} else {
					float buf[MR * W] __attribute__((aligned(64)));

					run_tile(kind, mr, kc, ap, K, strip, buf, W, 0);
					for (int r = 0; r < mr; r++) {
						float *c = cp + r * N;
						const float *s = buf + r * W;

						if (add) {
							for (int t = 0; t < nc; t++)
								c[t] += s[t];
						} else {
							memcpy(c, s, (size_t)nc * sizeof(float));
						}
					}
				}
			}
		}
	}
	return 0;
}
