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

/* What a tile prefetches for later. */
struct pf {
	const float *b;     /* rows of B that are packed in the next tile */
	int64_t ldb;
	int64_t rows;       /* how many of them */
	int64_t o1, o2, o3; /* offsets of further lines in such a row */
	int64_t d;          /* from this tile's rows of A to the next tile's, in floats */
	int64_t c_first;    /* minus the number of blocks before the first prefetch of C */
	const float *xb;    /* rows of B, W floats each, to copy in this tile ... */
	float *xp;          /* ... to here, one in each block */
	int64_t xrows;      /* how many of them */
};

/* mr rows, nv full vectors and h (0 or 1) half vectors of columns; the strip's rows are (nv + h) * L floats apart. */
static inline __attribute__((always_inline)) void tile(const int mr, const int nv, const int h, int64_t kc,
	const float *a, int64_t lda, const float *b, float *c, int64_t ldc, int add, const struct pf *pf)
{
	vz acc[MR][NVMAX];
	vh ach[MR];
	const float *ar[MR];
	const float *bq = pf->b;
	int64_t brows = pf->rows;
	const int64_t d = pf->d;
	const float *cq = c;
	int64_t crow = pf->c_first;
	const float *xb = pf->xb;
	float *xp = pf->xp;
	int64_t xrows = pf->xrows;
	int64_t k = 0;

#pragma GCC unroll 16
	for (int r = 0; r < mr; r++) {
		ar[r] = a + r * lda;
#pragma GCC unroll 16
		for (int v = 0; v < nv; v++)
			acc[r][v] = (vz){0};
		if (h)
			ach[r] = (vh){0};
	}
	while (k < kc) {
		int64_t ke = k + 16 < kc ? k + 16 : kc;

#pragma GCC unroll 16
		for (int r = 0; r < mr; r++)
			__builtin_prefetch(ar[r] + (k + d), 0, 2);
		if (brows > 0) {
			__builtin_prefetch(bq, 0, 2);
			__builtin_prefetch(bq + pf->o1, 0, 2);
			__builtin_prefetch(bq + pf->o2, 0, 2);
			__builtin_prefetch(bq + pf->o3, 0, 2);
			brows--;
			bq += pf->ldb;
		}
		if (xrows > 0) {
#pragma GCC unroll 16
			for (int v = 0; v < NVMAX; v++)
				*(vza *)(xp + v * L) = *(const vzu *)(xb + v * L);
			xb += pf->ldb;
			xp += W;
			xrows--;
		}
		if (crow >= 0 && crow < mr) {
#pragma GCC unroll 16
			for (int v = 0; v < nv; v++)
				__builtin_prefetch(cq + v * L, 1, 3);
			__builtin_prefetch(cq + (nv * L + h * (L / 2) - 1), 1, 3);
			cq += ldc;
		}
		crow++;
		for (; k < ke; k++) {
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

#define PARAMS int64_t kc, const float *a, int64_t lda, const float *b, float *c, int64_t ldc, int add, const struct pf *pf
#define ARGS kc, a, lda, b, c, ldc, add, pf

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

static inline int kind_of(int nc)
{
	return (nc + L / 2 - 1) / (L / 2);
}

/* Rows r0 .. r0 + rows of a panel whose first element in B is b; strip is the panel's buffer. */
static void pack_rows(float *strip, const float *b, int64_t ldb, int64_t r0, int64_t rows, int nc)
{
	if (nc == W) {
		pack_full(strip + r0 * W, b + r0 * ldb, ldb, rows);
	} else {
		int w = (kind_of(nc) + 1) / 2 * L;

		pack_part(strip + r0 * w, b + r0 * ldb, ldb, rows, nc, w);
	}
}

size_t km_workspace(const struct km_args *a)
{
	int64_t k = a->K < KCMAX ? a->K : KCMAX;

	if (k < 1)
		k = 1;
	return (size_t)k * W * sizeof(float) * 2;
}

int km_run(const struct km_args *a)
{
	const int64_t M = a->M, N = a->N, K = a->K;
	int64_t kmax = K < KCMAX ? K : KCMAX;
	float *strip = (float *)a->workspace;
	float *other;
	int64_t nb = (K + KCMAX - 1) / KCMAX;
	int64_t kstep;
	const int64_t ntiles = (M + MR - 1) / MR;

	if (M < 1 || N < 1)
		return 0;
	if (kmax < 1)
		kmax = 1;
	other = strip + kmax * W;
	if (nb < 1)
		nb = 1;
	kstep = (K + nb - 1) / nb;

	/* the first panel; every later one is packed inside the tiles of the panel before it */
	pack_rows(strip, a->B, N, 0, K < kstep ? K : kstep, N < W ? (int)N : W);

	for (int64_t j = 0; j < N; j += W) {
		int nc = N - j < W ? (int)(N - j) : W;
		int kind = kind_of(nc);
		int cols = kind * (L / 2);

		for (int64_t bk = 0; bk < nb; bk++) {
			int64_t k0 = bk * kstep;
			int64_t kc = K - k0 < kstep ? K - k0 : kstep;
			int add = bk > 0;
			/* the next panel */
			int64_t nj = j, nk0 = k0 + kstep, nkc = 0, chunk, done = 0, asked = 0;
			int64_t blocks;
			int nnc = nc;
			const float *nbp = a->B;
			float *swap;
			struct pf pf;

			if (kc < 0)
				kc = 0;
			if (bk + 1 == nb) {
				nj = j + W;
				nk0 = 0;
			}
			if (nj < N) {
				nnc = N - nj < W ? (int)(N - nj) : W;
				nkc = K - nk0 < kstep ? K - nk0 : kstep;
				if (nkc < 0)
					nkc = 0;
				if (nkc > 0)
					nbp = a->B + nk0 * N + nj;
			}
			/* each tile requests the rows that the next tile copies, one row in a block of 16 k */
			blocks = (kc + 15) / 16;
			chunk = ntiles > 1 ? (nkc + ntiles - 2) / (ntiles - 1) : 0;
			if (chunk > blocks)
				chunk = blocks;
			pf.c_first = blocks > MR + 2 ? MR + 2 - blocks : 0;
			pf.ldb = N;
			pf.o1 = nnc - 1 < 16 ? nnc - 1 : 16;
			pf.o2 = nnc - 1 < 32 ? nnc - 1 : 32;
			pf.o3 = nnc - 1;

			for (int64_t i = 0; i < M; i += MR) {
				int mr = M - i < MR ? (int)(M - i) : MR;
				const float *ap = a->A + i * K + k0;
				float *cp = a->C + i * N + j;
				int64_t rows = asked - done;
				int64_t ask = nkc - asked < chunk ? nkc - asked : chunk;

				pf.rows = ask;
				pf.b = ask > 0 ? nbp + asked * N : nbp;
				pf.xrows = nnc == W ? rows : 0;
				pf.xb = rows > 0 ? nbp + done * N : nbp;
				pf.xp = rows > 0 ? other + done * W : other;
				if (i + mr >= M)
					pf.d = -i * K;
				else if (i + MR + mr <= M)
					pf.d = MR * K;
				else
					pf.d = (M - mr - i) * K;

				if (nc == cols) {
					run_tile(kind, mr, kc, ap, K, strip, cp, N, add, &pf);
				} else {
					float buf[MR * W] __attribute__((aligned(64)));

					run_tile(kind, mr, kc, ap, K, strip, buf, W, 0, &pf);
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
				if (rows > 0) {
					if (nnc != W)
						pack_rows(other, nbp, N, done, rows, nnc);
					done += rows;
				}
				asked += ask;
			}
			if (done < nkc)
				pack_rows(other, nbp, N, done, nkc - done, nnc);
			swap = strip;
			strip = other;
			other = swap;
		}
	}
	return 0;
}
