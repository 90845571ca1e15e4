#include "task.h"
#include <string.h>

#ifdef __AVX512F__
#define L 16
#define MR 8
#else
#define L 8
#define MR 4
#endif
#define H (L / 2)
#define NV 3
#define KB 16 /* k per block of the inner loop */
#define AHEAD 8 /* rows of B prefetched ahead; at most KB */

typedef float vz __attribute__((vector_size(L * 4)));
typedef float vzu __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef float vh __attribute__((vector_size(L * 2)));
typedef float vhu __attribute__((vector_size(L * 2), aligned(4), may_alias));

/* What a tile prefetches for later. */
struct pf {
	const float *a0;    /* first row of A */
	const float *b;     /* next rows of the next strip of B */
	int64_t left;       /* rows of it that are still to be requested */
	int64_t chunk;      /* rows to request per tile */
	int64_t rows;       /* rows for this tile */
	int64_t d;          /* from this tile's rows of A to the next tile's, in floats */
	int64_t o1, o2, o3; /* offsets of further lines in a row of B */
};

/*
 * mr rows, nv full vectors of columns from b (row distance ldb), and a tail of one vector from t (row distance ldt):
 * h = 0 none, 1 a half vector, 2 a full vector, of which rest columns exist.
 */
static inline __attribute__((always_inline)) void tile(const int mr, const int nv, const int h, int64_t kc,
	const float *a, int64_t lda, const float *b, int64_t ldb, const float *t, int64_t ldt, int rest,
	float *c, int64_t ldc, const struct pf *pf)
{
	vz acc[MR][NV];
	vz tz[MR];
	vh th[MR];
	const float *ar[MR];
	const float *bq = pf->b;
	int64_t brows = pf->rows;
	const int64_t d = pf->d;
	const float *cq = c;
	const int64_t kend = (kc + KB - 1) / KB * KB;
	/* C is requested in the last blocks, so that it is still in L1 when it is stored */
	int64_t crow = kend / KB > mr + 2 ? mr + 2 - kend / KB : 0;
	int64_t k = 0;

#pragma GCC unroll 16
	for (int r = 0; r < mr; r++) {
		ar[r] = a + r * lda;
#pragma GCC unroll 16
		for (int v = 0; v < nv; v++)
			acc[r][v] = (vz){0};
		if (h == 1)
			th[r] = (vh){0};
		if (h == 2)
			tz[r] = (vz){0};
	}
	while (k < kc) {
		int64_t ke = k + KB < kc ? k + KB : kc;
		/* rows of this strip ahead, or at its end the first ones for the next tile */
		const int64_t ldp = nv ? ldb : ldt;
		int64_t pd = k + KB + AHEAD <= kc ? AHEAD * ldp : -k * ldp;
		/* the rows of A two blocks ahead, or at their end the first columns of the next tile's rows */
		int64_t pa = k + 2 * KB < kc ? k + 2 * KB : d + (k + 2 * KB - kend);

#pragma GCC unroll 16
		for (int r = 0; r < mr; r++)
			__builtin_prefetch(ar[r] + pa, 0, 3);
#pragma GCC unroll 16
		for (int r = 0; r < mr; r++)
			__builtin_prefetch(ar[r] + (k + d), 0, 2);
		if (brows > 0) {
			__builtin_prefetch(bq, 0, 2);
			__builtin_prefetch(bq + pf->o1, 0, 2);
			__builtin_prefetch(bq + pf->o2, 0, 2);
			__builtin_prefetch(bq + pf->o3, 0, 2);
			brows--;
			bq += ldb;
		}
		if (crow >= 0 && crow < mr) {
#pragma GCC unroll 16
			for (int v = 0; v < nv; v++)
				__builtin_prefetch(cq + v * L, 1, 3);
			if (h)
				__builtin_prefetch(cq + (nv * L + rest - 1), 1, 3);
			else
				__builtin_prefetch(cq + (nv * L - 1), 1, 3);
			cq += ldc;
		}
		crow++;
		for (; k < ke; k++) {
			vz bv[NV];
			vz bz = {0};
			vh bh = {0};

			if (nv) {
				const float *q = b + pd;

#pragma GCC unroll 16
				for (int x = 0; x < nv * L; x += 16)
					__builtin_prefetch(q + x, 0, 3);
				__builtin_prefetch(q + (h ? nv * L : nv * L - 1), 0, 3);
			} else {
				__builtin_prefetch(t + pd, 0, 3);
			}
#pragma GCC unroll 16
			for (int v = 0; v < nv; v++)
				bv[v] = *(const vzu *)(b + v * L);
			if (h == 1)
				bh = *(const vhu *)t;
			if (h == 2)
				bz = *(const vzu *)t;
#pragma GCC unroll 16
			for (int r = 0; r < mr; r++) {
				float s = ar[r][k];

#pragma GCC unroll 16
				for (int v = 0; v < nv; v++)
					acc[r][v] += s * bv[v];
				if (h == 1)
					th[r] += s * bh;
				if (h == 2)
					tz[r] += s * bz;
			}
			if (nv)
				b += ldb;
			if (h)
				t += ldt;
		}
	}
#pragma GCC unroll 16
	for (int r = 0; r < mr; r++) {
		float *cr = c + r * ldc;

#pragma GCC unroll 16
		for (int v = 0; v < nv; v++)
			*(vzu *)(cr + v * L) = acc[r][v];
		cr += nv * L;
		if (h == 1) {
			if (rest == H) {
				*(vhu *)cr = th[r];
			} else {
				float buf[H];

				*(vhu *)buf = th[r];
				memcpy(cr, buf, (size_t)rest * sizeof(float));
			}
		}
		if (h == 2) {
			if (rest == L) {
				*(vzu *)cr = tz[r];
			} else {
				float buf[L];

				*(vzu *)buf = tz[r];
				memcpy(cr, buf, (size_t)rest * sizeof(float));
			}
		}
	}
}

#define PARAMS int64_t kc, const float *a, int64_t lda, const float *b, int64_t ldb, const float *t, int64_t ldt, \
	int rest, float *c, int64_t ldc, struct pf *pf
#define ARGS kc, a, lda, b, ldb, t, ldt, rest, c, ldc, pf

/* Before a tile of mr rows at a, with m rows left from there on. */
static inline void plan(struct pf *pf, int64_t m, int mr, const float *a, int64_t lda)
{
	int64_t rem = m - mr;

	pf->rows = pf->left < pf->chunk ? pf->left : pf->chunk;
	if (rem >= mr)
		pf->d = mr * lda;
	else if (rem > 0)
		pf->d = rem * lda;
	else
		pf->d = pf->a0 - a;
}

/* After it. */
static inline void planned(struct pf *pf, int64_t ldb)
{
	pf->left -= pf->rows;
	if (pf->left > 0)
		pf->b += pf->rows * ldb;
}

#define DEF(R, V, T) \
static __attribute__((noinline)) void t_##R##_##V##_##T(PARAMS) \
{ \
	tile(R, V, T, ARGS); \
}

#define ONE(R, V, T) \
	do { \
		plan(pf, m, R, a, lda); \
		t_##R##_##V##_##T(ARGS); \
		planned(pf, ldb); \
		a += R * lda; \
		c += R * ldc; \
	} while (0)

#if MR == 8
#define DEF8(V, T) DEF(8, V, T)
#define ROWS8(V, T) \
	for (; m >= 8; m -= 8) \
		ONE(8, V, T);
#else
#define DEF8(V, T)
#define ROWS8(V, T)
#endif

/* All m rows of one strip. */
#define DEFSTRIP(V, T) \
DEF8(V, T) DEF(4, V, T) DEF(2, V, T) DEF(1, V, T) \
static __attribute__((noinline)) void strip_##V##_##T(int64_t m, PARAMS) \
{ \
	ROWS8(V, T) \
	for (; m >= 4; m -= 4) \
		ONE(4, V, T); \
	if (m >= 2) { \
		ONE(2, V, T); \
		m -= 2; \
	} \
	if (m) \
		ONE(1, V, T); \
}

DEFSTRIP(3, 0)
DEFSTRIP(2, 0)
DEFSTRIP(1, 0)
DEFSTRIP(2, 1)
DEFSTRIP(1, 1)
DEFSTRIP(0, 1)
DEFSTRIP(2, 2)
DEFSTRIP(1, 2)
DEFSTRIP(0, 2)

/* Request a strip of kc rows and nc columns. */
static void fetch(const float *b, int64_t ldb, int64_t kc, int nc)
{
	for (int64_t k = 0; k < kc; k++) {
		for (int j = 0; j < nc; j += 16)
			__builtin_prefetch(b + j);
		__builtin_prefetch(b + nc - 1);
		b += ldb;
	}
}

/* Let the tiles of the strip at column j request the strip behind it. */
static void plan_strip(struct pf *pf, const struct km_args *a, int64_t j, int64_t chunk)
{
	int64_t nj = j + NV * L;
	int64_t last;

	pf->a0 = a->A;
	pf->b = a->B;
	pf->left = 0;
	pf->chunk = chunk;
	pf->rows = 0;
	pf->d = 0;
	pf->o1 = pf->o2 = pf->o3 = 0;
	if (nj >= a->N)
		return;
	last = (a->N - nj < NV * L ? a->N - nj : NV * L) - 1;
	pf->b = a->B + nj;
	pf->left = a->K;
	pf->o1 = last < 16 ? last : 16;
	pf->o2 = last < 32 ? last : 32;
	pf->o3 = last;
}

size_t km_workspace(const struct km_args *a)
{
	return (size_t)(a->K > 0 ? a->K : 1) * L * sizeof(float);
}

int km_run(const struct km_args *a)
{
	const int64_t m = a->M, N = a->N, kc = a->K;
	const int64_t lda = a->K, ldb = a->N, ldc = a->N;
	const int64_t ntiles = m > 0 ? (m + MR - 1) / MR : 1;
	const int64_t chunk = (kc + ntiles - 1) / ntiles;
	const int few = chunk > kc / KB; /* too few tiles to request the whole next strip */
	struct pf pf;
	int64_t j = 0;

	for (; j + NV * L <= N; j += NV * L) {
		const float *b = a->B + j;

		if (j == 0 || few)
			fetch(b, ldb, kc, NV * L);
		plan_strip(&pf, a, j, chunk);
		strip_3_0(m, kc, a->A, lda, b, ldb, b, 0, 0, a->C + j, ldc, &pf);
	}
	if (j < N) {
		const float *b = a->B + j;
		int left = (int)(N - j);
		int nv = left / L;
		int rest = left % L;
		const float *t = b + nv * L;
		int64_t ldt = ldb;
		int h = 0;
		float *c = a->C + j;

		if (j == 0 || few)
			fetch(b, ldb, kc, left);
		plan_strip(&pf, a, j, chunk);
		if (rest) {
			h = rest <= H ? 1 : 2;
			if (rest != H) {
				int w = h * H;
				float *p = (float *)a->workspace;

				for (int64_t k = 0; k < kc; k++) {
					const float *s = t + k * ldb;
					float *d = p + k * w;
					int x = 0;

					for (; x < rest; x++)
						d[x] = s[x];
					for (; x < w; x++)
						d[x] = 0;
				}
				t = p;
				ldt = w;
			}
		} else {
			t = b;
		}
#define CALL(V, T) strip_##V##_##T(m, kc, a->A, lda, b, ldb, t, ldt, rest, c, ldc, &pf)
		switch (nv * 3 + h) {
		case 6: CALL(2, 0); break;
		case 3: CALL(1, 0); break;
		case 7: CALL(2, 1); break;
		case 4: CALL(1, 1); break;
		case 1: CALL(0, 1); break;
		case 8: CALL(2, 2); break;
		case 5: CALL(1, 2); break;
		default: CALL(0, 2); break;
		}
#undef CALL
	}
	return 0;
}
