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
#define HL (L / 2)
#define W (L * NVMAX)
#define KCMAX 2048
#define SMALLEST 256
#define WS_FLOATS 15000000

typedef float vz __attribute__((vector_size(L * 4)));
typedef float vza __attribute__((vector_size(L * 4), may_alias));
typedef float vzu __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef float vh __attribute__((vector_size(L * 2)));
typedef float vha __attribute__((vector_size(L * 2), may_alias));
typedef float vhu __attribute__((vector_size(L * 2), aligned(4), may_alias));
typedef int32_t ia __attribute__((may_alias));

static const float ones8[8] = {1, 1, 1, 1, 1, 1, 1, 1};
static const float minus8[8] = {-1, -1, -1, -1, -1, -1, -1, -1};

/* What a tile prefetches for later. */
struct pf {
	const float *na;    /* the next tile's rows of A, nlda apart */
	int64_t nlda;
	int64_t off;        /* not 0: the next rows are sums of na and na + off, formed in rows s, lds apart */
	const float *s;
	int64_t lds;
	const float *b;     /* rows of B that are packed after this tile */
	const float *b2;    /* the second term of a sum, or NULL */
	int64_t ldb;
	int64_t rows;       /* how many of them */
	int64_t o1, o2, o3; /* offsets of further lines in such a row */
	int64_t pairs;      /* pairs of rows of A whose sums are formed after this tile */
	const float *p, *q; /* the first pair */
	int64_t ldp;
	const float *t;     /* its targets: t, t + tk, t + tsz, t + tsz + tk; rows ldt apart */
	int64_t tk, tsz, ldt;
};

/* Where a tile goes: target x takes what is summed up to k = ke[x]; f: a factor for each row. */
struct out {
	float *c[2];
	const float *f[2];
	int64_t ke[2];
	int64_t ldc;
	int add[2];
	int nt;
};

/* mr rows, nv full vectors and h (0 or 1) half vectors of columns; the strip's rows are (nv + h) * L floats apart. */
static inline __attribute__((always_inline)) void tile(const int mr, const int nv, const int h,
	const float *a, int64_t lda, const float *b, const struct out *o, const struct pf *pf)
{
	vz acc[MR][NVMAX];
	vh ach[MR];
	const float *ar[MR];
	const float *bq = pf->b, *bq2 = pf->b2;
	int64_t brows = pf->rows;
	const int64_t ldc = o->ldc;
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
#pragma GCC unroll 1
	for (int t = 0; t < o->nt; t++) {
		const int64_t kend = o->ke[t];
		const int both = t == 0 && o->nt == 2 && o->ke[1] == kend;
		const float *cq = o->c[t], *cq2 = o->c[1];
		float *c = o->c[t];
		const float *f = o->f[t];
		int crow = 0;

		while (k < kend) {
			int64_t ke = k + 16 < kend ? k + 16 : kend;
			const float *aq = pf->na + k;

#pragma GCC unroll 16
			for (int r = 0; r < mr; r++) {
				__builtin_prefetch(aq, 0, 2);
				aq += pf->nlda;
			}
			if (pf->off) {
				const float *x = pf->na + pf->off + k, *y = pf->s + k;

#pragma GCC unroll 1
				for (int r = 0; r < mr; r++) {
					__builtin_prefetch(x, 0, 2);
					__builtin_prefetch(y, 1, 2);
					x += pf->nlda;
					y += pf->lds;
				}
			}
			if (brows > 0) {
				__builtin_prefetch(bq, 0, 2);
				__builtin_prefetch(bq + pf->o1, 0, 2);
				__builtin_prefetch(bq + pf->o2, 0, 2);
				__builtin_prefetch(bq + pf->o3, 0, 2);
				bq += pf->ldb;
				if (bq2) {
					__builtin_prefetch(bq2, 0, 2);
					__builtin_prefetch(bq2 + pf->o1, 0, 2);
					__builtin_prefetch(bq2 + pf->o2, 0, 2);
					__builtin_prefetch(bq2 + pf->o3, 0, 2);
					bq2 += pf->ldb;
				}
				brows--;
			}
			for (int64_t x = 0; x < pf->pairs; x++) {
				const float *p = pf->p + x * pf->ldp + 2 * k;
				const float *q = pf->q + x * pf->ldp + 2 * k;
				const float *d = pf->t + x * pf->ldt + k;

				__builtin_prefetch(p, 0, 2);
				__builtin_prefetch(p + 16, 0, 2);
				__builtin_prefetch(q, 0, 2);
				__builtin_prefetch(q + 16, 0, 2);
				__builtin_prefetch(d, 1, 2);
				__builtin_prefetch(d + pf->tk, 1, 2);
				d += pf->tsz;
				__builtin_prefetch(d, 1, 2);
				__builtin_prefetch(d + pf->tk, 1, 2);
			}
			if (kend - k <= 96 && crow < mr) {
#pragma GCC unroll 1
				for (int y = 0; y < 2 && crow < mr; y++) {
#pragma GCC unroll 16
					for (int v = 0; v < nv; v++)
						__builtin_prefetch(cq + v * L, 1, 3);
					__builtin_prefetch(cq + (nv * L + h * HL - 1), 1, 3);
					cq += ldc;
					if (both) {
#pragma GCC unroll 16
						for (int v = 0; v < nv; v++)
							__builtin_prefetch(cq2 + v * L, 1, 3);
						__builtin_prefetch(cq2 + (nv * L + h * HL - 1), 1, 3);
						cq2 += ldc;
					}
					crow++;
				}
			}
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
		if (o->add[t]) {
#pragma GCC unroll 16
			for (int r = 0; r < mr; r++) {
				float s = f[r];

#pragma GCC unroll 16
				for (int v = 0; v < nv; v++) {
					vz x = *(const vzu *)(c + r * ldc + v * L);

					x += s * acc[r][v];
					*(vzu *)(c + r * ldc + v * L) = x;
				}
				if (h) {
					vh x = *(const vhu *)(c + r * ldc + nv * L);

					x += s * ach[r];
					*(vhu *)(c + r * ldc + nv * L) = x;
				}
			}
		} else {
#pragma GCC unroll 16
			for (int r = 0; r < mr; r++) {
				float s = f[r];

#pragma GCC unroll 16
				for (int v = 0; v < nv; v++)
					*(vzu *)(c + r * ldc + v * L) = s * acc[r][v];
				if (h)
					*(vhu *)(c + r * ldc + nv * L) = s * ach[r];
			}
		}
	}
}

#define PARAMS const float *a, int64_t lda, const float *b, const struct out *o, const struct pf *pf
#define ARGS a, lda, b, o, pf

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
		for (; j + HL <= nc; j += HL)
			*(vha *)(p + j) = *(const vhu *)(b + j);
		if (j < nc) {
			for (; j < nc; j++)
				p[j] = b[j];
			for (; j < w; j++)
				p[j] = 0;
		} else {
			for (; j < w; j += HL)
				*(vha *)(p + j) = (vh){0};
		}
		b += ldb;
		p += w;
	}
}

/* The same for the sum or difference of two blocks; nc is a multiple of half a vector, what is behind it is left alone. */
static inline __attribute__((always_inline)) void pack_two(float *p, const float *b, const float *b2, int64_t ldb, int64_t kc,
	const int nc, const int w, const int neg)
{
	for (int64_t k = 0; k < kc; k++) {
		int j = 0;

		if (k + 16 < kc) {
			const float *q = b + 16 * ldb, *q2 = b2 + 16 * ldb;

			for (int t = 0; t < nc; t += 16) {
				__builtin_prefetch(q + t);
				__builtin_prefetch(q2 + t);
			}
			__builtin_prefetch(q + nc - 1);
			__builtin_prefetch(q2 + nc - 1);
		}
		for (; j + L <= nc; j += L) {
			vz x = *(const vzu *)(b + j), y = *(const vzu *)(b2 + j);

			*(vza *)(p + j) = neg ? x - y : x + y;
		}
		if (j < nc) {
			vh x = *(const vhu *)(b + j), y = *(const vhu *)(b2 + j);

			*(vha *)(p + j) = neg ? x - y : x + y;
		}
		b += ldb;
		b2 += ldb;
		p += w;
	}
}

static __attribute__((noinline)) void pack_add(float *p, const float *b, const float *b2, int64_t ldb, int64_t kc, int nc, int w)
{
	if (nc == W)
		pack_two(p, b, b2, ldb, kc, W, W, 0);
	else
		pack_two(p, b, b2, ldb, kc, nc, w, 0);
}

static __attribute__((noinline)) void pack_sub(float *p, const float *b, const float *b2, int64_t ldb, int64_t kc, int nc, int w)
{
	if (nc == W)
		pack_two(p, b, b2, ldb, kc, W, W, 1);
	else
		pack_two(p, b, b2, ldb, kc, nc, w, 1);
}

static inline int kind_of(int nc)
{
	return (nc + HL - 1) / HL;
}

/* A factor of the product: rows x kc of A times kc x nc of B, and where it goes. The rows of B come in two segments: the
   first kseg rows from b[0] (or b[0] +- b2[0]), the others from b[1] (or b[1] +- b2[1]). */
struct panel {
	const float *a;
	int64_t lda, rows, kc, kseg;
	const float *b[2], *b2[2];
	int neg, nc;
	float *c[2];
	const float *f[2];
	int64_t fs[2]; /* 1: a factor for each row; 0: the same 8 for each tile */
	int64_t ke[2];
	int add[2];
	int nt;
};

/* Rows r0 .. r0 + rows of the panel's part of B into its strip. */
static void pack_rows(float *strip, const struct panel *p, int64_t ldb, int64_t r0, int64_t rows)
{
	const int nc = p->nc;
	const int w = nc == W ? W : (kind_of(nc) + 1) / 2 * L;

	while (rows > 0) {
		const int s = r0 >= p->kseg;
		const int64_t z = s ? r0 - p->kseg : r0;
		const int64_t n = !s && rows > p->kseg - r0 ? p->kseg - r0 : rows;
		float *d = strip + r0 * w;
		const float *b = p->b[s] + z * ldb;

		if (p->b2[s]) {
			const float *b2 = p->b2[s] + z * ldb;

			if (p->neg)
				pack_sub(d, b, b2, ldb, n, nc, w);
			else
				pack_add(d, b, b2, ldb, n, nc, w);
		} else if (nc == W) {
			pack_full(d, b, ldb, n);
		} else {
			pack_part(d, b, ldb, n, nc, w);
		}
		r0 += n;
		rows -= n;
	}
}

struct plan {
	int64_t M, N, K;
	const float *A, *B;
	float *C;
	int fast;
	int64_t nb, kstep;      /* classical: blocks of k */
	int64_t M2, N2, K2, ns; /* Strassen: the halves, strips in N2 */
	int64_t bufsz, lds, ld2, ssz, ssz2, fsz, total;
	float *S;               /* A21+A22, rows lds apart */
	float *S16;             /* rows of A11+A22 and then A21-A11, scaled, ld2 apart */
	float *S57;             /* rows of A11+A12 and then A22-A12, scaled, ld2 apart; ssz2 behind S16 */
	float *s0, *s1, *n0, *q3, *q4;
};

static void make_plan(struct plan *g, int64_t M, int64_t N, int64_t K)
{
	int64_t kmax = K < KCMAX ? K : KCMAX;

	if (kmax < 1)
		kmax = 1;
	g->M = M;
	g->N = N;
	g->K = K;
	g->fast = 0;
	g->nb = (K + KCMAX - 1) / KCMAX;
	if (g->nb < 1)
		g->nb = 1;
	g->kstep = (K + g->nb - 1) / g->nb;
	g->M2 = M / 2;
	g->K2 = K / 2;
	g->N2 = N / 2 / 8 * 8;
	g->ns = (g->N2 + W - 1) / W;
	if (M >= SMALLEST && N >= SMALLEST && K >= SMALLEST && g->K2 <= KCMAX) {
		g->bufsz = 2 * g->K2 * W > K * 16 ? 2 * g->K2 * W : K * 16;
		g->bufsz = (g->bufsz + 15) / 16 * 16;
		g->lds = (g->K2 + 15) / 16 * 16;
		if (g->lds % 256 == 0)
			g->lds += 16;
		g->ld2 = (2 * g->K2 + 15) / 16 * 16;
		if (g->ld2 % 256 == 0)
			g->ld2 += 16;
		g->ssz = g->M2 * g->lds;
		g->ssz2 = g->M2 * g->ld2;
		g->fsz = (g->M2 + 15) / 16 * 16;
		g->total = 2 * g->bufsz + g->ssz + 2 * g->ssz2 + 5 * g->fsz;
		if (g->total <= WS_FLOATS) {
			g->fast = 1;
			return;
		}
	}
	g->bufsz = kmax * W;
	g->lds = g->ld2 = g->ssz = g->ssz2 = g->fsz = 0;
	g->total = 2 * g->bufsz;
}

static int get_panel(const struct plan *g, int64_t idx, struct panel *p)
{
	const int64_t N = g->N, K = g->K;

	p->b[0] = p->b[1] = g->B;
	p->b2[0] = p->b2[1] = NULL;
	p->neg = 0;
	p->nt = 1;
	p->fs[0] = p->fs[1] = 0;
	p->f[0] = p->f[1] = ones8;
	p->add[0] = p->add[1] = 0;
	if (!g->fast) {
		int64_t j = idx / g->nb * W, k0 = idx % g->nb * g->kstep;
		int64_t kc = K - k0 < g->kstep ? K - k0 : g->kstep;

		if (j >= N)
			return 0;
		if (kc < 0)
			kc = 0;
		if (kc == 0)
			k0 = 0;
		p->a = g->A + k0;
		p->lda = K;
		p->rows = g->M;
		p->kc = p->kseg = p->ke[0] = p->ke[1] = kc;
		p->b[0] = g->B + k0 * N + j;
		p->nc = N - j < W ? (int)(N - j) : W;
		p->c[0] = p->c[1] = g->C + j;
		p->add[0] = idx % g->nb > 0;
		return 1;
	}
	if (idx < 5 * g->ns) {
		const int64_t M2 = g->M2, K2 = g->K2, N2 = g->N2;
		const int64_t j = idx % g->ns * W;
		const float *b11 = g->B + j, *b12 = b11 + N2, *b21 = b11 + K2 * N, *b22 = b21 + N2;
		float *c11 = g->C + j, *c12 = c11 + N2, *c21 = c11 + M2 * N, *c22 = c21 + N2;

		p->rows = M2;
		p->kc = p->kseg = p->ke[0] = p->ke[1] = K2;
		p->nc = N2 - j < W ? (int)(N2 - j) : W;
		p->nt = 2;
		switch ((int)(idx / g->ns)) {
		case 0: /* M2, without scales */
			p->a = g->S;
			p->lda = g->lds;
			p->b[0] = b11;
			p->c[0] = c21;
			p->c[1] = c22;
			p->f[1] = minus8;
			break;
		case 1: /* M1 to C11, M1 + M6 to C22 */
			p->a = g->S16;
			p->lda = g->ld2;
			p->kc = p->ke[1] = 2 * K2;
			p->b[0] = b11;
			p->b2[0] = b22;
			p->b[1] = b11;
			p->b2[1] = b12;
			p->c[0] = c11;
			p->f[0] = g->s0;
			p->fs[0] = 1;
			p->c[1] = c22;
			p->f[1] = g->s1;
			p->fs[1] = 1;
			p->add[1] = 1;
			break;
		case 2: /* M5 to C12, M5 - M7 to -C11 */
			p->a = g->S57;
			p->lda = g->ld2;
			p->kc = p->ke[1] = 2 * K2;
			p->b[0] = b22;
			p->b[1] = b21;
			p->b2[1] = b22;
			p->c[0] = c12;
			p->f[0] = g->s0;
			p->fs[0] = 1;
			p->c[1] = c11;
			p->f[1] = g->n0;
			p->fs[1] = 1;
			p->add[1] = 1;
			break;
		case 3: /* M3 */
			p->a = g->A;
			p->lda = K;
			p->b[0] = b12;
			p->b2[0] = b22;
			p->neg = 1;
			p->c[0] = c12;
			p->add[0] = 1;
			p->c[1] = c22;
			p->f[1] = g->q3;
			p->fs[1] = 1;
			p->add[1] = 1;
			break;
		default: /* M4 */
			p->a = g->A + M2 * K + K2;
			p->lda = K;
			p->b[0] = b21;
			p->b2[0] = b11;
			p->neg = 1;
			p->c[0] = c11;
			p->f[0] = g->q4;
			p->fs[0] = 1;
			p->add[0] = 1;
			p->c[1] = c21;
			p->add[1] = 1;
			break;
		}
		return 1;
	}
	if (idx == 5 * g->ns && 2 * g->N2 < N) {
		p->a = g->A;
		p->lda = K;
		p->rows = g->M;
		p->kc = p->kseg = p->ke[0] = p->ke[1] = K;
		p->b[0] = g->B + 2 * g->N2;
		p->nc = (int)(N - 2 * g->N2);
		p->c[0] = p->c[1] = g->C + 2 * g->N2;
		return 1;
	}
	return 0;
}

/* A power of two near the largest magnitude in a row, and its inverse. */
static void scale_of(const float *row, int64_t n, float *s, float *inv)
{
	const ia *x = (const ia *)row;
	int32_t m = 0, e;
	union {
		int32_t i;
		float f;
	} u;

	for (int64_t k = 0; k < n; k++) {
		int32_t y = x[k] & 0x7fffffff;

		m = y > m ? y : m;
	}
	e = m == 0 ? 127 : m >> 23;
	if (e < 67)
		e = 67;
	if (e > 187)
		e = 187;
	u.i = (int32_t)((uint32_t)e << 23);
	*s = u.f;
	u.i = (int32_t)((uint32_t)(254 - e) << 23);
	*inv = u.f;
}

/* A21 + A22 for rows i .. i + n of the halves, not scaled. */
static __attribute__((noinline)) void row_sums(const struct plan *g, int64_t i, int n)
{
	const int64_t K2 = g->K2, K = g->K;

	for (int r = 0; r < n; r++) {
		const float *q = g->A + (i + r + g->M2) * K;
		float *t = g->S + (i + r) * g->lds;
		int64_t k = 0;

		for (;;) {
			*(vzu *)(t + k) = *(const vzu *)(q + k) + *(const vzu *)(q + K2 + k);
			k += L;
			if (k >= K2)
				break;
			if (k > K2 - L)
				k = K2 - L;
		}
	}
}

/* The scales of rows i of the halves, what follows from them, and the other four sums, of scaled rows. */
static __attribute__((noinline)) void four_sums(const struct plan *g, int64_t i)
{
	const int64_t K2 = g->K2, K = g->K;
	const float *p = g->A + i * K, *q = g->A + (i + g->M2) * K;
	float *t = g->S16 + i * g->ld2, *u = g->S57 + i * g->ld2;
	float i0, i1, s0, s1;
	int64_t k = 0;

	scale_of(p, K, &s0, &i0);
	scale_of(q, K, &s1, &i1);
	g->s0[i] = s0;
	g->s1[i] = s1;
	g->n0[i] = -s0;
	g->q3[i] = s1 * i0;
	g->q4[i] = s0 * i1;
	for (;;) {
		vz x11 = i0 * *(const vzu *)(p + k), x12 = i0 * *(const vzu *)(p + K2 + k);
		vz x21 = i1 * *(const vzu *)(q + k), x22 = i1 * *(const vzu *)(q + K2 + k);

		*(vzu *)(t + k) = x11 + x22;
		*(vzu *)(t + K2 + k) = x21 - x11;
		*(vzu *)(u + k) = x11 + x12;
		*(vzu *)(u + K2 + k) = x22 - x12;
		k += L;
		if (k >= K2)
			break;
		if (k > K2 - L)
			k = K2 - L;
	}
}

size_t km_workspace(const struct km_args *a)
{
	struct plan g;

	make_plan(&g, a->M, a->N, a->K);
	return (size_t)g.total * sizeof(float);
}

int km_run(const struct km_args *ka)
{
	const int64_t M = ka->M, N = ka->N, K = ka->K;
	struct plan g;
	struct panel cur, nxt;
	float *strip, *other;
	int64_t pair = 0, idx = 0;

	if (M < 1 || N < 1)
		return 0;
	make_plan(&g, M, N, K);
	g.A = ka->A;
	g.B = ka->B;
	g.C = ka->C;
	strip = (float *)ka->workspace;
	other = strip + g.bufsz;
	g.S = strip + 2 * g.bufsz;
	g.S16 = g.S + g.ssz;
	g.S57 = g.S16 + g.ssz2;
	g.s0 = g.S57 + g.ssz2;
	g.s1 = g.s0 + g.fsz;
	g.n0 = g.s1 + g.fsz;
	g.q3 = g.n0 + g.fsz;
	g.q4 = g.q3 + g.fsz;

	if (g.fast) {
		/* request what the first tile's sums need */
		for (int r = 0; r < MR; r++) {
			const float *q = g.A + (g.M2 + r) * K;
			const float *t = g.S + r * g.lds;

			for (int64_t x = 0; x < K; x += 16)
				__builtin_prefetch(q + x, 0, 2);
			for (int64_t x = 0; x < g.K2; x += 16)
				__builtin_prefetch(t + x, 1, 2);
		}
	}
	if (!get_panel(&g, 0, &cur))
		return 0;
	/* the first panel; every later one is packed between the tiles of the panel before it */
	pack_rows(strip, &cur, N, 0, cur.kc);

	for (;;) {
		const int nc = cur.nc;
		const int kind = kind_of(nc);
		const int cols = kind * HL;
		const int64_t ntiles = (cur.rows + MR - 1) / MR;
		const int64_t low = cur.rows / ntiles, more = cur.rows % ntiles;
		const int has = get_panel(&g, idx + 1, &nxt);
		const int64_t nkc = has ? nxt.kc : 0;
		const int64_t chunk = (nkc + ntiles - 1) / ntiles;
		const int first = g.fast && idx == 0;
		const int side = g.fast && idx > 0 && idx < g.ns;
		const int64_t share = side ? (g.M2 + (g.ns - 1) * ntiles - 1) / ((g.ns - 1) * ntiles) : 0;
		int64_t done = 0, i = 0;
		float *swap;
		struct pf pf;

		memset(&pf, 0, sizeof(pf));
		pf.ldb = N;
		if (has) {
			pf.o1 = nxt.nc - 1 < 16 ? nxt.nc - 1 : 16;
			pf.o2 = nxt.nc - 1 < 32 ? nxt.nc - 1 : 32;
			pf.o3 = nxt.nc - 1;
		}
		pf.ldp = K;
		pf.tk = g.K2;
		pf.tsz = g.ssz2;
		pf.ldt = g.ld2;
		pf.lds = g.lds;

		for (int64_t t = 0; t < ntiles; t++) {
			const int mr = (int)(low + (t < more));
			const float *ap = cur.a + i * cur.lda;
			const int64_t rows = nkc - done < chunk ? nkc - done : chunk;
			struct out o;

			if (first)
				row_sums(&g, i, mr);
			pf.off = 0;
			if (t + 1 < ntiles) {
				if (first) {
					pf.na = g.A + (g.M2 + i + mr) * K;
					pf.nlda = K;
					pf.off = g.K2;
					pf.s = g.S + (i + mr) * g.lds;
				} else {
					pf.na = ap + mr * cur.lda;
					pf.nlda = cur.lda;
				}
			} else if (has) {
				pf.na = nxt.a;
				pf.nlda = nxt.lda;
			} else {
				pf.na = ap;
				pf.nlda = cur.lda;
			}
			pf.rows = rows;
			if (rows > 0) {
				const int s = done >= nxt.kseg;
				const int64_t z = s ? done - nxt.kseg : done;

				pf.b = nxt.b[s] + z * N;
				pf.b2 = nxt.b2[s] ? nxt.b2[s] + z * N : NULL;
			}
			pf.pairs = 0;
			if (side && pair < g.M2) {
				pf.pairs = g.M2 - pair < share ? g.M2 - pair : share;
				pf.p = g.A + pair * K;
				pf.q = g.A + (pair + g.M2) * K;
				pf.t = g.S16 + pair * g.ld2;
			}
			o.nt = cur.nt;
			o.ldc = N;
			for (int x = 0; x < 2; x++) {
				o.c[x] = cur.c[x] + i * N;
				o.f[x] = cur.f[x] + i * cur.fs[x];
				o.ke[x] = cur.ke[x];
				o.add[x] = cur.add[x];
			}

			if (nc == cols) {
				run_tile(kind, mr, ap, cur.lda, strip, &o, &pf);
			} else {
				float buf[MR * W] __attribute__((aligned(64)));
				float *c0 = o.c[0];

				o.c[0] = o.c[1] = buf;
				o.ldc = W;
				o.add[0] = 0;
				run_tile(kind, mr, ap, cur.lda, strip, &o, &pf);
				for (int r = 0; r < mr; r++) {
					float *c = c0 + r * N;
					const float *s = buf + r * W;

					if (cur.add[0]) {
						for (int x = 0; x < nc; x++)
							c[x] += s[x];
					} else {
						memcpy(c, s, (size_t)nc * sizeof(float));
					}
				}
			}
			if (rows > 0) {
				pack_rows(other, &nxt, N, done, rows);
				done += rows;
			}
			for (int64_t x = 0; x < pf.pairs; x++)
				four_sums(&g, pair++);
			i += mr;
		}
		if (g.fast && idx == g.ns - 1)
			while (pair < g.M2)
				four_sums(&g, pair++);
		if (!has)
			break;
		swap = strip;
		strip = other;
		other = swap;
		cur = nxt;
		idx++;
	}

	if (g.fast) {
		const int64_t n = 2 * g.N2;

		if (K & 1) {
			const float *restrict b = g.B + (K - 1) * N;

			for (int64_t i = 0; i < 2 * g.M2; i++) {
				float *restrict c = g.C + i * N;
				const float x = g.A[i * K + K - 1];

				for (int64_t j = 0; j < n; j++)
					c[j] += x * b[j];
			}
		}
		if (M & 1) {
			float *restrict c = g.C + (M - 1) * N;

			for (int64_t j = 0; j < n; j++)
				c[j] = 0;
			for (int64_t k = 0; k < K; k++) {
				const float *restrict b = g.B + k * N;
				const float x = g.A[(M - 1) * K + k];

				for (int64_t j = 0; j < n; j++)
					c[j] += x * b[j];
			}
		}
	}
	return 0;
}
