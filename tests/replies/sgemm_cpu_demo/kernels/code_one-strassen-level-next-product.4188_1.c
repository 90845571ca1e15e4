#include "task.h"
#include <string.h>

#ifdef __AVX512F__
#define L 16
#define MR 8
#else
#define L 8
#define MR 4
#endif
#define NV 3
#define W (L * NV)
#define KB 16 /* k per chunk */
#define LEAST 64
#define MOST_BYTES ((int64_t)60 << 20)

typedef float vz __attribute__((vector_size(L * 4)));
typedef float vza __attribute__((vector_size(L * 4), may_alias));
typedef float vzu __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef float vh __attribute__((vector_size(L * 2)));
typedef float vhu __attribute__((vector_size(L * 2), aligned(4), may_alias));
typedef float v8u __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t bits __attribute__((may_alias));

/* ---------- plain tiles: left-over rows and columns, small sizes ---------- */

static inline __attribute__((always_inline)) void ptile(const int mr, const int nv, const int h, int64_t kc,
	const float *a, int64_t lda, const float *b, int64_t ldb, float *c, int64_t ldc)
{
	vz acc[MR][NV];
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
		vz bv[NV];
		vh bh = {0};

		if (k + 8 < kc) {
			const float *q = b + 8 * ldb;

#pragma GCC unroll 16
			for (int x = 0; x < nv * L + h * (L / 2); x += 16)
				__builtin_prefetch(q + x);
			__builtin_prefetch(q + (nv * L + h * (L / 2) - 1));
		}
#pragma GCC unroll 16
		for (int v = 0; v < nv; v++)
			bv[v] = *(const vzu *)(b + v * L);
		if (h)
			bh = *(const vhu *)(b + nv * L);
#pragma GCC unroll 16
		for (int r = 0; r < mr; r++) {
			float s = ar[r][k];

#pragma GCC unroll 16
			for (int v = 0; v < nv; v++)
				acc[r][v] += s * bv[v];
			if (h)
				ach[r] += s * bh;
		}
		b += ldb;
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

#define PPARAMS int64_t kc, const float *a, int64_t lda, const float *b, int64_t ldb, float *c, int64_t ldc
#define PARGS kc, a, lda, b, ldb, c, ldc

#define DEFP(R, V, H) \
static __attribute__((noinline)) void p_##R##_##V##_##H(PPARAMS) \
{ \
	ptile(R, V, H, PARGS); \
}
#if MR == 8
#define DEFP8(V, H) DEFP(8, V, H)
#define CASE8(V, H) case 8: p_8_##V##_##H(PARGS); break;
#else
#define DEFP8(V, H)
#define CASE8(V, H)
#endif
#define DEFPALL(V, H) \
DEFP8(V, H) DEFP(4, V, H) DEFP(2, V, H) DEFP(1, V, H) \
static void prows_##V##_##H(int mr, PPARAMS) \
{ \
	switch (mr) { \
	CASE8(V, H) \
	case 4: p_4_##V##_##H(PARGS); break; \
	case 2: p_2_##V##_##H(PARGS); break; \
	default: p_1_##V##_##H(PARGS); break; \
	} \
}
DEFPALL(3, 0)
DEFPALL(2, 0)
DEFPALL(1, 0)
#if L == 16
DEFPALL(0, 1)
#endif

/* width: a multiple of L, or 8 */
static inline void run_plain(int width, int mr, PPARAMS)
{
	switch (width / 8) {
#if L == 16
	case 6: prows_3_0(mr, PARGS); break;
	case 4: prows_2_0(mr, PARGS); break;
	case 2: prows_1_0(mr, PARGS); break;
	default: prows_0_1(mr, PARGS); break;
#else
	case 3: prows_3_0(mr, PARGS); break;
	case 2: prows_2_0(mr, PARGS); break;
	default: prows_1_0(mr, PARGS); break;
#endif
	}
}

/* C = A B; ws holds K * W floats. */
static void plain(int64_t M, int64_t N, int64_t K, const float *A, int64_t lda, const float *B, int64_t ldb,
	float *C, int64_t ldc, float *ws)
{
	for (int64_t j = 0; j < N; j += W) {
		int nc = N - j < W ? (int)(N - j) : W;
		int width = nc <= 8 ? 8 : (nc + L - 1) / L * L;
		const float *b = B + j;
		int64_t lb = ldb;
		int64_t i = 0;

		if (nc < W) {
			for (int64_t k = 0; k < K; k++) {
				const float *x = B + k * ldb + j;
				float *d = ws + k * width;
				int t = 0;

				for (; t < nc; t++)
					d[t] = x[t];
				for (; t < width; t++)
					d[t] = 0;
			}
			b = ws;
			lb = width;
		}
		while (i < M) {
			int64_t rem = M - i;
			int mr = rem >= MR ? MR : rem >= 4 ? 4 : rem >= 2 ? 2 : 1;
			const float *a = A + i * lda;
			float *c = C + i * ldc + j;

			if (nc == width) {
				run_plain(width, mr, K, a, lda, b, lb, c, ldc);
			} else {
				float buf[MR * W] __attribute__((aligned(64)));

				run_plain(width, mr, K, a, lda, b, lb, buf, W);
				for (int r = 0; r < mr; r++)
					memcpy(c + r * ldc, buf + r * W, (size_t)nc * sizeof(float));
			}
			i += mr;
		}
	}
}

/* ---------- one Strassen level ---------- */

/* Work done at the chunk boundaries of a tile. */
struct side {
	/* rows of the next product's B operand: b0, or b0 + sg * b1 */
	const float *b0, *b1;
	float *bd;
	int64_t ldb;
	int64_t brows; /* in this tile */
	int64_t brem;  /* left in the strip */
	int bw;        /* width */
	int two;
	float sg;
	/* A: 0 nothing, 1 request lines, 2 sums f0 * x + f1 * y of MR rows */
	int amode;
	int64_t aper;
	const float *ap;
	int64_t alines;
	const float *x, *y;
	float *d;
	int64_t ldx, ldd, len, nvec, row, vec;
	float f0[8], f1[8];
};

/* Where a tile goes: C = f C + g acc, or g acc. */
struct out {
	int n;
	int add[2];
	float *c[2];
	float g[2][8], f[2][8];
};

static inline __attribute__((always_inline)) void side_b(struct side *s)
{
	const float *x = s->b0;
	const float *y = s->b1;
	float *d = s->bd;
	int64_t po = s->brem > 4 ? 4 * s->ldb : 0;
	int64_t pd = s->brem > 4 ? 4 * W : 0;

	if (s->bw == W) {
#pragma GCC unroll 16
		for (int t = 0; t < W; t += 16) {
			__builtin_prefetch(x + po + t);
			__builtin_prefetch(d + pd + t, 1);
		}
		__builtin_prefetch(x + po + (W - 1));
		if (s->two) {
			float sg = s->sg;

#pragma GCC unroll 16
			for (int t = 0; t < W; t += 16)
				__builtin_prefetch(y + po + t);
			__builtin_prefetch(y + po + (W - 1));
#pragma GCC unroll 16
			for (int v = 0; v < NV; v++)
				*(vza *)(d + v * L) = *(const vzu *)(x + v * L) + sg * *(const vzu *)(y + v * L);
		} else {
#pragma GCC unroll 16
			for (int v = 0; v < NV; v++)
				*(vza *)(d + v * L) = *(const vzu *)(x + v * L);
		}
	} else {
		int w = s->bw;

		__builtin_prefetch(x + po);
		__builtin_prefetch(x + po + (w - 1));
		if (s->two) {
			float sg = s->sg;

			__builtin_prefetch(y + po);
			__builtin_prefetch(y + po + (w - 1));
			for (int t = 0; t < w; t += 8)
				*(v8u *)(d + t) = *(const v8u *)(x + t) + sg * *(const v8u *)(y + t);
		} else {
			for (int t = 0; t < w; t += 8)
				*(v8u *)(d + t) = *(const v8u *)(x + t);
		}
	}
	s->b0 = x + s->ldb;
	if (s->two)
		s->b1 = y + s->ldb;
	s->bd = d + W;
	s->brows--;
	s->brem--;
}

/* 16 floats of the A sum. */
static inline __attribute__((always_inline)) void side_a(struct side *s)
{
	int64_t r = s->row;
	int64_t pos = s->vec * 16;
	const float *x, *y;
	float *d;
	float f0 = s->f0[r], f1 = s->f1[r];

	if (pos > s->len - 16)
		pos = s->len - 16;
	x = s->x + r * s->ldx + pos;
	y = s->y + r * s->ldx + pos;
	d = s->d + r * s->ldd + pos;
	if (s->vec + 6 < s->nvec) {
		__builtin_prefetch(x + 80);
		__builtin_prefetch(y + 80);
	}
#pragma GCC unroll 16
	for (int v = 0; v < 16; v += L)
		*(vzu *)(d + v) = f0 * *(const vzu *)(x + v) + f1 * *(const vzu *)(y + v);
	if (++s->vec == s->nvec) {
		s->vec = 0;
		s->row = r + 1;
	}
}

/* MR rows of A against a packed strip (rows W apart). */
static inline __attribute__((always_inline)) void stile(const int nv, const int h, int64_t kc, const float *a, int64_t lda,
	const float *b, int64_t ldc, struct side *s, const struct out *o)
{
	vz acc[MR][NV];
	vh ach[MR];
	const float *ar[MR];
	int64_t chunks = (kc + KB - 1) / KB;
	/* C is requested in the last chunks */
	int64_t crow = chunks > MR + 2 ? MR + 2 - chunks : 0;
	int64_t k = 0;

#pragma GCC unroll 16
	for (int r = 0; r < MR; r++) {
		ar[r] = a + r * lda;
#pragma GCC unroll 16
		for (int v = 0; v < nv; v++)
			acc[r][v] = (vz){0};
		if (h)
			ach[r] = (vh){0};
	}
	while (k < kc) {
		int64_t ke = k + KB < kc ? k + KB : kc;

		if (s->brows > 0)
			side_b(s);
		if (s->amode == 2) {
			for (int64_t x = s->aper; x > 0 && s->row < MR; x--)
				side_a(s);
		} else if (s->amode == 1) {
			for (int64_t x = s->aper; x > 0 && s->alines > 0; x--) {
				__builtin_prefetch(s->ap, 0, 2);
				s->ap += 16;
				s->alines--;
			}
		}
		if (crow >= 0 && crow < MR) {
			for (int t = 0; t < o->n; t++) {
				const float *q = o->c[t] + crow * ldc;

#pragma GCC unroll 16
				for (int v = 0; v < nv; v++)
					__builtin_prefetch(q + v * L, 1);
				__builtin_prefetch(q + (nv * L + h * (L / 2) - 1), 1);
			}
		}
		crow++;
		for (; k < ke; k++) {
			vz bv[NV];
			vh bh = {0};

#pragma GCC unroll 16
			for (int v = 0; v < nv; v++)
				bv[v] = *(const vza *)(b + v * L);
			if (h)
				bh = *(const vhu *)(b + nv * L);
#pragma GCC unroll 16
			for (int r = 0; r < MR; r++) {
				float x = ar[r][k];

#pragma GCC unroll 16
				for (int v = 0; v < nv; v++)
					acc[r][v] += x * bv[v];
				if (h)
					ach[r] += x * bh;
			}
			b += W;
		}
	}
	for (int t = 0; t < o->n; t++) {
		float *c = o->c[t];
		const float *g = o->g[t];
		const float *f = o->f[t];

		if (o->add[t]) {
#pragma GCC unroll 16
			for (int r = 0; r < MR; r++) {
				float *cr = c + r * ldc;

#pragma GCC unroll 16
				for (int v = 0; v < nv; v++)
					*(vzu *)(cr + v * L) = f[r] * *(const vzu *)(cr + v * L) + g[r] * acc[r][v];
				if (h)
					*(vhu *)(cr + nv * L) = f[r] * *(const vhu *)(cr + nv * L) + g[r] * ach[r];
			}
		} else {
#pragma GCC unroll 16
			for (int r = 0; r < MR; r++) {
				float *cr = c + r * ldc;

#pragma GCC unroll 16
				for (int v = 0; v < nv; v++)
					*(vzu *)(cr + v * L) = g[r] * acc[r][v];
				if (h)
					*(vhu *)(cr + nv * L) = g[r] * ach[r];
			}
		}
	}
}

#define SPARAMS int64_t kc, const float *a, int64_t lda, const float *b, int64_t ldc, struct side *s, const struct out *o
#define SARGS kc, a, lda, b, ldc, s, o
#define DEFS(V, H) \
static __attribute__((noinline)) void s_##V##_##H(SPARAMS) \
{ \
	stile(V, H, SARGS); \
}
DEFS(3, 0)
DEFS(2, 0)
DEFS(1, 0)
#if L == 16
DEFS(2, 1)
DEFS(1, 1)
DEFS(0, 1)
#endif

/* w: a multiple of 8 */
static inline void run_stile(int w, SPARAMS)
{
	switch (w / 8) {
#if L == 16
	case 6: s_3_0(SARGS); break;
	case 5: s_2_1(SARGS); break;
	case 4: s_2_0(SARGS); break;
	case 3: s_1_1(SARGS); break;
	case 2: s_1_0(SARGS); break;
	default: s_0_1(SARGS); break;
#else
	case 3: s_3_0(SARGS); break;
	case 2: s_2_0(SARGS); break;
	default: s_1_0(SARGS); break;
#endif
	}
}

/* Quadrants: 0 = 11, 1 = 12, 2 = 21, 3 = 22; -1 none. */
struct prod {
	int ax, ay, as;
	int bx, by, bs;
	int n;
	struct {
		int quad, sign, add, last;
	} t[2];
};

static const struct prod products[7] = {
	{ 0, -1, 1, 1, 3, -1, 2, { { 1, 1, 0, 0 }, { 3, 1, 0, 0 } } },  /* P3 */
	{ 3, -1, 1, 2, 0, -1, 2, { { 0, 1, 0, 0 }, { 2, 1, 0, 0 } } },  /* P4 */
	{ 0, 3, 1, 0, 3, 1, 2, { { 0, 1, 1, 0 }, { 3, 1, 1, 0 } } },    /* P1 */
	{ 2, 3, 1, 0, -1, 1, 2, { { 2, 1, 1, 1 }, { 3, -1, 1, 0 } } },  /* P2 */
	{ 0, 1, 1, 3, -1, 1, 2, { { 0, -1, 1, 0 }, { 1, 1, 1, 1 } } },  /* P5 */
	{ 2, 0, -1, 0, 1, 1, 1, { { 3, 1, 1, 1 }, { 0, 0, 0, 0 } } },   /* P6 */
	{ 1, 3, -1, 2, 3, 1, 1, { { 0, 1, 1, 1 }, { 0, 0, 0, 0 } } },   /* P7 */
};

struct plan {
	int use;
	int64_t m, n, k;
	int64_t strips;
	int64_t bsize;  /* floats of a B operand */
	int64_t ldd;    /* row distance of an A sum */
	int64_t asize;
	int64_t floats; /* of the workspace */
};

static struct plan make_plan(int64_t M, int64_t N, int64_t K)
{
	struct plan p;
	int64_t least = (K > 0 ? K : 1) * W;

	p.m = M / 2 / 8 * 8;
	p.n = N / 2 / 8 * 8;
	p.k = K / 2;
	p.strips = (p.n + W - 1) / W;
	p.bsize = (p.strips * p.k * W + 15) / 16 * 16;
	p.ldd = (p.k + 15) / 16 * 16 + 16;
	p.asize = MR * p.ldd;
	p.floats = 2 * p.bsize + 2 * p.asize + 4 * p.m;
	p.use = p.m >= LEAST && p.n >= LEAST && p.k >= LEAST && p.floats * 4 <= MOST_BYTES;
	if (!p.use || p.floats < least)
		p.floats = least;
	return p;
}

size_t km_workspace(const struct km_args *a)
{
	struct plan p = make_plan(a->M, a->N, a->K);

	return (size_t)p.floats * sizeof(float);
}

/* The power of two of the largest magnitude of a row, and its inverse. */
static void row_scale(const float *x, int64_t n, float *sc, float *inv)
{
	const bits *u = (const bits *)x;
	int32_t most = 0;
	int32_t e;
	int32_t w;

	for (int64_t t = 0; t < n; t++) {
		int32_t v = u[t] & 0x7fffffff;

		most = v > most ? v : most;
	}
	e = most >> 23;
	if (e < 27)
		e = 27;
	if (e > 227)
		e = 227;
	if (most == 0)
		e = 127;
	w = e << 23;
	memcpy(sc, &w, 4);
	w = (254 - e) << 23;
	memcpy(inv, &w, 4);
}

int km_run(const struct km_args *args)
{
	const int64_t M = args->M, N = args->N, K = args->K;
	const float *A = args->A;
	const float *B = args->B;
	float *C = args->C;
	float *ws = (float *)args->workspace;
	const struct plan pl = make_plan(M, N, K);
	const int64_t m = pl.m, n = pl.n, k = pl.k;
	const int64_t chunks = (k + KB - 1) / KB;
	float *bbuf[2], *abuf[2];
	float *sc, *inv;
	int ab = 0;
	struct side s;
	struct out o;

	if (!pl.use) {
		plain(M, N, K, A, K, B, N, C, N, ws);
		return 0;
	}
	bbuf[0] = ws;
	bbuf[1] = ws + pl.bsize;
	abuf[0] = ws + 2 * pl.bsize;
	abuf[1] = abuf[0] + pl.asize;
	sc = abuf[1] + pl.asize;
	inv = sc + 2 * m;
	memset(&s, 0, sizeof s);
	memset(&o, 0, sizeof o);
	s.ldb = N;
	s.ldx = K;
	s.ldd = pl.ldd;
	s.len = k;
	s.nvec = (k + 15) / 16;

	/* the first B operand, in long runs of rows */
	{
		const struct prod *P = &products[0];
		const float *x = B + (P->bx >> 1) * k * N + (P->bx & 1) * n;
		const float *y = B + (P->by >> 1) * k * N + (P->by & 1) * n;
		const float sg = (float)P->bs;

		for (int64_t q = 0; q < k; q++) {
			if (q + 4 < k) {
				for (int64_t t = 0; t < n; t += 16) {
					__builtin_prefetch(x + 4 * N + t);
					__builtin_prefetch(y + 4 * N + t);
				}
			}
			for (int64_t t = 0; t < pl.strips; t++) {
				float *d = bbuf[0] + (t * k + q) * W;
				int64_t j = t * W;
				int64_t w = n - j < W ? n - j : W;

				for (int64_t c = 0; c < w; c += 8)
					*(v8u *)(d + c) = *(const v8u *)(x + j + c) + sg * *(const v8u *)(y + j + c);
			}
			x += N;
			y += N;
		}
	}

	for (int p = 0; p < 7; p++) {
		const struct prod *P = &products[p];
		const struct prod *next = p < 6 ? &products[p + 1] : NULL;
		const float *bcur = bbuf[p & 1];
		float *bnext = bbuf[(p + 1) & 1];
		const float *nx = B;
		const float *ny = B;
		int64_t bt = 0, bq = 0;
		int64_t rows_left = next ? pl.strips * k : 0;
		int64_t tiles_left = m / MR * pl.strips;

		s.two = 0;
		s.sg = 0;
		s.brows = 0;
		s.b0 = s.b1 = B;
		if (next) {
			nx = B + (next->bx >> 1) * k * N + (next->bx & 1) * n;
			if (next->by >= 0) {
				ny = B + (next->by >> 1) * k * N + (next->by & 1) * n;
				s.two = 1;
				s.sg = (float)next->bs;
			}
		}
		for (int64_t i = 0; i < m; i += MR) {
			const float *ap = abuf[ab];
			int64_t lda = pl.ldd;
			const struct prod *np = i + MR < m ? P : next;
			int64_t ni = i + MR < m ? i + MR : 0;
			int64_t work = 0;

			if (P->ay < 0) {
				int64_t r0 = (P->ax >> 1) * m + i;

				for (int r = 0; r < MR; r++)
					row_scale(A + (r0 + r) * K, K, sc + r0 + r, inv + r0 + r);
				ap = A + r0 * K + (P->ax & 1) * k;
				lda = K;
			}
			o.n = P->n;
			for (int t = 0; t < P->n; t++) {
				int64_t cr = (P->t[t].quad >> 1) * m + i;

				o.add[t] = P->t[t].add;
				for (int r = 0; r < MR; r++) {
					float f = P->t[t].last ? sc[cr + r] : 1.0f;
					float g = (float)P->t[t].sign * f;

					if (P->ay < 0)
						g *= inv[(P->ax >> 1) * m + i + r];
					o.f[t][r] = f;
					o.g[t][r] = g;
				}
			}
			s.amode = 0;
			if (np && np->ay < 0) {
				s.amode = 1;
				s.ap = A + ((np->ax >> 1) * m + ni) * K;
				s.alines = work = (MR * K + 15) / 16;
			} else if (np) {
				s.amode = 2;
				s.x = A + ((np->ax >> 1) * m + ni) * K + (np->ax & 1) * k;
				s.y = A + ((np->ay >> 1) * m + ni) * K + (np->ay & 1) * k;
				s.d = abuf[ab ^ 1];
				s.row = 0;
				s.vec = 0;
				for (int r = 0; r < MR; r++) {
					s.f0[r] = inv[(np->ax >> 1) * m + ni + r];
					s.f1[r] = (float)np->as * inv[(np->ay >> 1) * m + ni + r];
				}
				work = MR * s.nvec;
			}
			s.aper = (work + pl.strips * chunks - 1) / (pl.strips * chunks);

			for (int64_t t = 0; t < pl.strips; t++) {
				int w = n - t * W < W ? (int)(n - t * W) : W;
				int64_t per = 0;

				for (int x = 0; x < P->n; x++)
					o.c[x] = C + ((P->t[x].quad >> 1) * m + i) * N + (P->t[x].quad & 1) * n + t * W;
				if (rows_left > 0) {
					per = (rows_left + tiles_left - 1) / tiles_left;
					if (per > chunks)
						per = chunks;
					if (per > k - bq)
						per = k - bq;
					s.b0 = nx + bq * N + bt * W;
					s.b1 = s.two ? ny + bq * N + bt * W : s.b0;
					s.bd = bnext + (bt * k + bq) * W;
					s.bw = n - bt * W < W ? (int)(n - bt * W) : W;
					s.brem = k - bq;
				}
				s.brows = per;
				run_stile(w, k, ap, lda, bcur + t * k * W, N, &s, &o);
				tiles_left--;
				if (per > 0) {
					rows_left -= per;
					bq += per;
					if (bq == k) {
						bq = 0;
						bt++;
					}
				}
			}
			if (s.amode == 2) {
				while (s.row < MR)
					side_a(&s);
				ab ^= 1;
			}
		}
		/* what did not fit into the tiles */
		while (rows_left > 0) {
			s.b0 = nx + bq * N + bt * W;
			s.b1 = s.two ? ny + bq * N + bt * W : s.b0;
			s.bd = bnext + (bt * k + bq) * W;
			s.bw = n - bt * W < W ? (int)(n - bt * W) : W;
			s.brem = k - bq;
			s.brows = 1;
			side_b(&s);
			rows_left--;
			bq++;
			if (bq == k) {
				bq = 0;
				bt++;
			}
		}
	}

	if (K > 2 * k) {
		const float *b = B + (K - 1) * N;

		for (int64_t i = 0; i < 2 * m; i++) {
			float x = A[i * K + K - 1];
			float *c = C + i * N;

			for (int64_t j = 0; j < 2 * n; j++)
				c[j] += x * b[j];
		}
	}
	if (N > 2 * n)
		plain(2 * m, N - 2 * n, K, A, K, B + 2 * n, N, C + 2 * n, N, ws);
	if (M > 2 * m)
		plain(M - 2 * m, N, K, A + 2 * m * K, K, B, N, C + 2 * m * N, N, ws);
	return 0;
}
