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
#define KCMAX 1024
#define PANEL_BYTES 425984 /* pages are scattered over 32 colours of L2: leave half of it free */
#define AHEAD 24
#define KB 16 /* k per block of the inner loop */

typedef float vz __attribute__((vector_size(L * 4)));
typedef float vza __attribute__((vector_size(L * 4), may_alias));
typedef float vzu __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef float vh __attribute__((vector_size(L * 2)));
typedef float vha __attribute__((vector_size(L * 2), may_alias));
typedef float vhu __attribute__((vector_size(L * 2), aligned(4), may_alias));

/* What a tile requests for later, spread over its blocks of k. */
struct pf {
	const float *a; /* lines of the next row block of A */
	int64_t alines;
	int64_t aper;   /* lines per block */
	const float *b; /* rows of the next panel of B, bw floats of each */
	int64_t brows;
	int64_t bw;
	int64_t ldb;
};

/*
 * mr rows, nv full vectors and h (0 or 1) half vectors of columns. With pack, b is the matrix itself with row distance ldb,
 * and its rows are copied to p; otherwise the strip p is read, its rows are (nv + h) * L floats apart.
 */
static inline __attribute__((always_inline)) void tile(const int pack, const int mr, const int nv, const int h,
	int64_t kc, const float *a, int64_t lda, const float *b, int64_t ldb, float *p, float *c, int64_t ldc, int add,
	const struct pf *pf)
{
	vz acc[MR][NVMAX];
	vh ach[MR];
	const float *ar[MR];
	const float *aq = pf->a;
	const float *bq = pf->b;
	const float *cq = c;
	int64_t aleft = pf->alines;
	int64_t bleft = pf->brows;
	int crow = 0;
	int64_t k = 0;
	/* from a last row of this strip to a first row of the next one, AHEAD rows later */
	const int64_t wrap = kc > AHEAD ? (AHEAD - kc) * ldb + W : 0;

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
		int64_t ke = k + KB < kc ? k + KB : kc;

		if (pack) {
			/* these rows of A may be cold: request them four blocks ahead */
			int64_t ka = k + 4 * KB < kc ? k + 4 * KB : kc - 1;

#pragma GCC unroll 16
			for (int r = 0; r < mr; r++)
				__builtin_prefetch(ar[r] + ka, 0, 2);
		}

		for (int64_t x = pf->aper; x > 0 && aleft > 0; x--) {
			__builtin_prefetch(aq, 0, 2);
			aq += 16;
			aleft--;
		}
		if (bleft > 0) {
			int64_t bw = pf->bw;

			for (int64_t x = 0; x < bw; x += 16)
				__builtin_prefetch(bq + x, 0, 2);
			__builtin_prefetch(bq + bw - 1, 0, 2);
			bq += pf->ldb;
			bleft--;
		}
		if (crow < mr) {
#pragma GCC unroll 16
			for (int v = 0; v < nv; v++)
				__builtin_prefetch(cq + v * L, 1);
			__builtin_prefetch(cq + nv * L + h * (L / 2) - 1, 1);
			cq += ldc;
			crow++;
		}
		for (; k < ke; k++) {
			vz bv[NVMAX];
			vh bh = {0};

			if (pack) {
				/* into L2: there are too few miss buffers in L1 for this distance */
				const float *q = b + (k + AHEAD < kc ? AHEAD * ldb : wrap);

#pragma GCC unroll 16
				for (int t = 0; t < W; t += 16)
					__builtin_prefetch(q + t, 0, 2);
				__builtin_prefetch(q + W - 1, 0, 2);
#pragma GCC unroll 16
				for (int v = 0; v < nv; v++) {
					bv[v] = *(const vzu *)(b + v * L);
					*(vza *)(p + v * L) = bv[v];
				}
				b += ldb;
			} else {
#pragma GCC unroll 16
				for (int v = 0; v < nv; v++)
					bv[v] = *(const vza *)(p + v * L);
				if (h)
					bh = *(const vha *)(p + nv * L);
			}
#pragma GCC unroll 16
			for (int r = 0; r < mr; r++) {
				float s = ar[r][k];

#pragma GCC unroll 16
				for (int v = 0; v < nv; v++)
					acc[r][v] += s * bv[v];
				if (h)
					ach[r] += s * bh;
			}
			p += (nv + h) * L;
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

#define PARAMS int64_t kc, const float *a, int64_t lda, float *p, float *c, int64_t ldc, int add, const struct pf *pf
#define ARGS kc, a, lda, p, c, ldc, add, pf

static __attribute__((noinline)) void tile_pack(int64_t kc, const float *a, int64_t lda, const float *b, int64_t ldb,
	float *p, float *c, int64_t ldc, int add, const struct pf *pf)
{
	tile(1, MR, NVMAX, 0, kc, a, lda, b, ldb, p, c, ldc, add, pf);
}

#define DEF(R, NV, H) \
static __attribute__((noinline)) void t_##R##_##NV##_##H(PARAMS) \
{ \
	tile(0, R, NV, H, kc, a, lda, p, 0, p, c, ldc, add, pf); \
}

#if MR == 8
#define DEFTOP(NV, H) DEF(7, NV, H) DEF(8, NV, H)
#define CASETOP(NV, H) \
	case 8: t_8_##NV##_##H(ARGS); break; \
	case 7: t_7_##NV##_##H(ARGS); break;
#else
#define DEFTOP(NV, H)
#define CASETOP(NV, H)
#endif

#define DEFALL(NV, H) \
DEF(1, NV, H) DEF(2, NV, H) DEF(3, NV, H) DEF(4, NV, H) DEF(5, NV, H) DEF(6, NV, H) DEFTOP(NV, H) \
static void rows_##NV##_##H(int mr, PARAMS) \
{ \
	switch (mr) { \
	CASETOP(NV, H) \
	case 6: t_6_##NV##_##H(ARGS); break; \
	case 5: t_5_##NV##_##H(ARGS); break; \
	case 4: t_4_##NV##_##H(ARGS); break; \
	case 3: t_3_##NV##_##H(ARGS); break; \
	case 2: t_2_##NV##_##H(ARGS); break; \
	default: t_1_##NV##_##H(ARGS); break; \
	} \
}

#if NVMAX == 3
DEFALL(3, 0)
DEFALL(2, 1)
#endif
DEFALL(2, 0)
DEFALL(1, 1)
DEFALL(1, 0)
DEFALL(0, 1)

/* kind: the number of half vectors */
static inline void run_tile(int kind, int mr, PARAMS)
{
	switch (kind) {
#if NVMAX == 3
	case 6: rows_3_0(mr, ARGS); break;
	case 5: rows_2_1(mr, ARGS); break;
#endif
	case 4: rows_2_0(mr, ARGS); break;
	case 3: rows_1_1(mr, ARGS); break;
	case 2: rows_1_0(mr, ARGS); break;
	default: rows_0_1(mr, ARGS); break;
	}
}

/* nc <= w columns of B to p, padded with zeros to w floats a row. */
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

struct plan {
	int64_t blocks;  /* of K */
	int64_t kstep;   /* length of a block, the last may be shorter */
	int64_t strips;
	int64_t panels;
	int64_t widest;  /* strips in the widest panel */
};

static struct plan make_plan(int64_t N, int64_t K)
{
	struct plan s;
	int64_t most;

	s.blocks = (K + KCMAX - 1) / KCMAX;
	if (s.blocks < 1)
		s.blocks = 1;
	s.kstep = (K + s.blocks - 1) / s.blocks;
	if (s.kstep < 1)
		s.kstep = 1;
	s.strips = (N + W - 1) / W;
	if (s.strips < 1)
		s.strips = 1;
	most = PANEL_BYTES / (s.kstep * W * (int64_t)sizeof(float));
	if (most < 1)
		most = 1;
	s.panels = (s.strips + most - 1) / most;
	s.widest = (s.strips + s.panels - 1) / s.panels;
	return s;
}

size_t km_workspace(const struct km_args *a)
{
	struct plan s = make_plan(a->N, a->K);

	return (size_t)(s.widest * s.kstep) * W * sizeof(float);
}

int km_run(const struct km_args *a)
{
	const int64_t M = a->M, N = a->N, K = a->K;
	const struct plan s = make_plan(N, K);
	float *ws = (float *)a->workspace;
	const int64_t row_blocks = (M + MR - 1) / MR;

	/* the beginning of the first tile, all of it cold */
	for (int64_t r = 0; r < MR && r < M; r++) {
		for (int64_t t = 0; t < 4 * KB && t < K; t += 16)
			__builtin_prefetch(a->A + r * K + t, 0, 2);
	}
	for (int64_t r = 0; r < AHEAD && r < K; r++) {
		for (int64_t t = 0; t < W && t < N; t += 16)
			__builtin_prefetch(a->B + r * N + t, 0, 2);
	}

	for (int64_t pn = 0; pn < s.panels; pn++) {
		int64_t s0 = pn * s.strips / s.panels;
		int64_t s1 = (pn + 1) * s.strips / s.panels;
		/* columns of the next panel, and its rows to be requested in each row block but the first */
		int64_t n0 = s1 * W;
		int64_t n1 = (pn + 2) * s.strips / s.panels * W;
		int64_t chunk = 0;

		if (n1 > N)
			n1 = N;
		if (s.blocks == 1 && pn + 1 < s.panels && row_blocks > 1)
			chunk = (K + row_blocks - 2) / (row_blocks - 1);

		for (int64_t bk = 0; bk < s.blocks; bk++) {
			int64_t k0 = bk * s.kstep;
			int64_t kc = K - k0 < s.kstep ? K - k0 : s.kstep;
			int add = bk > 0;
			int64_t brow = 0;

			if (kc < 0)
				kc = 0;
			for (int64_t i = 0; i < M; i += MR) {
				int mr = M - i < MR ? (int)(M - i) : MR;
				const float *ap = a->A + i * K + k0;
				/* the next row block, to be requested in equal shares while this one is computed */
				int64_t next = (i + MR) * K;
				int64_t next_end = i + 2 * MR < M ? (i + 2 * MR) * K : M * K;
				int64_t share;
				int64_t brows = 0;

				if (i + MR >= M) {
					/* the first rows again, for the next panel */
					next = 0;
					next_end = pn + 1 < s.panels ? (M < MR ? M : MR) * K : 0;
				}
				share = ((next_end - next) / (s1 - s0) + 16) / 16 * 16;
				if (i > 0)
					brows = K - brow < chunk ? K - brow : chunk;

				for (int64_t st = s0; st < s1; st++) {
					int64_t j = st * W;
					int nc = N - j < W ? (int)(N - j) : W;
					int kind = (nc + L / 2 - 1) / (L / 2);
					float *p = ws + (st - s0) * s.kstep * W;
					const float *bp = a->B + k0 * N + j;
					float *cp = a->C + i * N + j;
					struct pf pf;

					pf.a = a->A;
					pf.alines = 0;
					pf.aper = 0;
					pf.b = a->B;
					pf.brows = 0;
					pf.bw = 0;
					pf.ldb = N;
					if (s.blocks == 1) {
						int64_t e = next + share < next_end ? next + share : next_end;

						if (next < e) {
							int64_t kblocks = kc / KB > 0 ? kc / KB : 1;

							pf.a = a->A + next;
							pf.alines = (e - next + 15) / 16;
							pf.aper = (pf.alines + kblocks - 1) / kblocks;
							next = e;
						}
						if (brows > 0) {
							/* this strip's slice of the next panel's columns */
							int64_t c0 = n0 + (n1 - n0) * (st - s0) / (s1 - s0);
							int64_t c1 = n0 + (n1 - n0) * (st - s0 + 1) / (s1 - s0);

							if (c1 > c0) {
								pf.b = a->B + brow * N + c0;
								pf.brows = brows;
								pf.bw = c1 - c0;
							}
						}
					}
					if (i == 0) {
						if (nc == W && mr == MR) {
							tile_pack(kc, ap, K, bp, N, p, cp, N, add, &pf);
							continue;
						}
						pack_part(p, bp, N, kc, nc, (kind + 1) / 2 * L);
					}
					if (nc == kind * (L / 2)) {
						run_tile(kind, mr, kc, ap, K, p, cp, N, add, &pf);
					} else {
						float buf[MR * W] __attribute__((aligned(64)));

						run_tile(kind, mr, kc, ap, K, p, buf, W, 0, &pf);
						for (int r = 0; r < mr; r++) {
							float *c = cp + r * N;
							const float *q = buf + r * W;

							if (add) {
								for (int t = 0; t < nc; t++)
									c[t] += q[t];
							} else {
								memcpy(c, q, (size_t)nc * sizeof(float));
							}
						}
					}
				}
				if (brows > 0)
					brow += brows;
			}
		}
	}
	return 0;
}
