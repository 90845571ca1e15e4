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
#define KBLOCK 1024
#define PANEL_FLOATS 102400
#define AHEAD 4

typedef float vz __attribute__((vector_size(L * 4)));
typedef float vza __attribute__((vector_size(L * 4), may_alias));
typedef float vzu __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef float vh __attribute__((vector_size(L * 2)));
typedef float vha __attribute__((vector_size(L * 2), may_alias));
typedef float vhu __attribute__((vector_size(L * 2), aligned(4), may_alias));

/*
 * What a tile does on its way, for each chunk of 16 k: requests a line of four rows of A from a0 on (if set), and in the
 * first cn chunks copies a row of W columns of B from cs to cd (rows ldb apart there, W apart here).
 */
struct ahead {
	const float *a0, *cs;
	float *cd;
	int64_t cn, ldb;
};

/* mr rows, nv full vectors and h (0 or 1) half vectors of columns; a: rows lda apart, b: [kc][W]. */
static inline __attribute__((always_inline)) void tile(const int mr, const int nv, const int h, int64_t kc,
	const float *a, int64_t lda, const float *b, float *c, int64_t ldc, int add, const struct ahead *f)
{
	vz acc[MR][NVMAX];
	vh ach[MR];
	const float *ar[MR];
	const float *f0 = f->a0, *cs = f->cs;
	float *cd = f->cd;
	const int64_t cn = f->cn, ldb = f->ldb;
	const int64_t chunks = kc >> 4;
	const int64_t lastcol = nv * L + h * HL - 1;
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
	for (int64_t ch = 0; ch < chunks; ch++) {
		if (f0) {
			__builtin_prefetch(f0, 0, 2);
			__builtin_prefetch(f0 + lda, 0, 2);
			__builtin_prefetch(f0 + 2 * lda, 0, 2);
			__builtin_prefetch(f0 + 3 * lda, 0, 2);
			f0 += 16;
		}
		if (ch < cn) {
			const float *q = cs + AHEAD * ldb;
			vz cv[NVMAX];

#pragma GCC unroll 16
			for (int x = 0; x < W; x += 16) {
				__builtin_prefetch(q + x);
				__builtin_prefetch(cd + AHEAD * W + x, 1);
			}
			__builtin_prefetch(q + W - 1);
#pragma GCC unroll 16
			for (int v = 0; v < NVMAX; v++)
				cv[v] = *(const vzu *)(cs + v * L);
#pragma GCC unroll 16
			for (int v = 0; v < NVMAX; v++)
				*(vza *)(cd + v * L) = cv[v];
			cs += ldb;
			cd += W;
		}
		if (ch < 4 * mr) {
			int64_t off = (ch & 3) * 16;

			if (off > lastcol)
				off = lastcol;
			__builtin_prefetch(c + (ch >> 2) * ldc + off, 1);
		}
#pragma GCC unroll 4
		for (int u = 0; u < 16; u++) {
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
			k++;
			b += W;
		}
	}
	for (; k < kc; k++) {
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
		b += W;
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

#define PARAMS int64_t kc, const float *a, int64_t lda, const float *b, float *c, int64_t ldc, int add, const struct ahead *f
#define ARGS kc, a, lda, b, c, ldc, add, f

#define DEF(R, V, H) \
static __attribute__((noinline)) void t_##R##_##V##_##H(PARAMS) \
{ \
	tile(R, V, H, ARGS); \
}
#define CASE(R, V, H) case R: t_##R##_##V##_##H(ARGS); break;

#if MR == 8
#define DEFTOP(V, H) DEF(7, V, H) DEF(8, V, H)
#define CASETOP(V, H) CASE(7, V, H) CASE(8, V, H)
#else
#define DEFTOP(V, H)
#define CASETOP(V, H)
#endif

#define DEFALL(V, H) \
DEF(1, V, H) DEF(2, V, H) DEF(3, V, H) DEF(4, V, H) DEF(5, V, H) DEF(6, V, H) DEFTOP(V, H) \
static void rows_##V##_##H(int mr, PARAMS) \
{ \
	switch (mr) { \
	CASE(1, V, H) CASE(2, V, H) CASE(3, V, H) CASE(4, V, H) CASE(5, V, H) CASE(6, V, H) CASETOP(V, H) \
	default: break; \
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

/*
 * kc rows and nc columns of B, row by row, to strips [kc][W], ss floats apart, the last one padded with zeros to whole
 * vectors. During the last quarter of the rows kc lines from pa on are requested.
 */
static __attribute__((noinline)) void pack_b(float *bp, const float *b, int64_t ldb, int64_t kc, int64_t nc, int64_t ss,
	const float *pa)
{
	const int64_t full = nc / W;
	const int rest = (int)(nc % W);
	const int w = (rest + L - 1) / L * L;
	const int64_t late = kc - kc / 4;

	for (int64_t k = 0; k < kc; k++) {
		const float *s = b + k * ldb;
		float *d = bp + k * W;

		if (k >= late) {
			__builtin_prefetch(pa, 0, 2);
			__builtin_prefetch(pa + 16, 0, 2);
			__builtin_prefetch(pa + 32, 0, 2);
			__builtin_prefetch(pa + 48, 0, 2);
			pa += 64;
		}
		for (int64_t t = 0; t < full; t++) {
#pragma GCC unroll 16
			for (int x = 0; x < W; x += 16) {
				__builtin_prefetch(s + 6 * ldb + x);
				__builtin_prefetch(d + 4 * W + x, 1);
			}
#pragma GCC unroll 16
			for (int v = 0; v < NVMAX; v++)
				*(vza *)(d + v * L) = *(const vzu *)(s + v * L);
			s += W;
			d += ss;
		}
		if (rest) {
			int j = 0;

			for (; j + HL <= rest; j += HL)
				*(vha *)(d + j) = *(const vhu *)(s + j);
			if (j < rest) {
				for (; j < rest; j++)
					d[j] = s[j];
				for (; j < w; j++)
					d[j] = 0;
			} else {
				for (; j < w; j += HL)
					*(vha *)(d + j) = (vh){0};
			}
		}
	}
}

/*
 * The copy of the panel that comes next: rows k0..k0+kc of B, strips s..s1; strip s goes to dst, its first k rows are done.
 * The first safe rows of the strip may be read W columns wide without leaving B.
 */
struct copy {
	const float *B;
	int64_t N, K, ss;
	int64_t k0, kc, s, s1, k, safe;
	float *dst;
};

/* begins strip s */
static void copy_begin(struct copy *q)
{
	const int64_t room = q->K * q->N - q->s * W - W;
	int64_t safe = room < 0 ? 0 : room / q->N + 1 - q->k0;
	const float *s = q->B + q->k0 * q->N + q->s * W;

	if (safe < 0)
		safe = 0;
	if (safe > q->kc)
		safe = q->kc;
	q->safe = safe;
	q->k = 0;
	for (int64_t r = 0; r < AHEAD && r < q->kc; r++) {
		for (int x = 0; x < W; x += 16)
			__builtin_prefetch(s + r * q->N + x);
		__builtin_prefetch(s + r * q->N + W - 1);
	}
}

/* copies what is left of strip s, never beyond its columns, and goes on to the next one */
static __attribute__((noinline)) void copy_rest(struct copy *q)
{
	const int64_t left = q->N - q->s * W;
	const int w = left < W ? (int)left : W;

	for (int64_t k = q->k; k < q->kc; k++) {
		const float *s = q->B + (q->k0 + k) * q->N + q->s * W;
		float *d = q->dst + k * W;

		for (int x = 0; x < W; x += 16) {
			__builtin_prefetch(s + 8 * q->N + x);
			__builtin_prefetch(d + 8 * W + x, 1);
		}
		if (w == W) {
#pragma GCC unroll 16
			for (int v = 0; v < NVMAX; v++)
				*(vza *)(d + v * L) = *(const vzu *)(s + v * L);
		} else {
			int j = 0;

			for (; j + HL <= w; j += HL)
				*(vha *)(d + j) = *(const vhu *)(s + j);
			for (; j < w; j++)
				d[j] = s[j];
			for (; j < W; j++)
				d[j] = 0;
		}
	}
	q->s++;
	q->dst += q->ss;
	if (q->s < q->s1)
		copy_begin(q);
}

/* gives a tile with that many chunks its share of the copy */
static inline void copy_take(struct copy *q, int64_t chunks, struct ahead *f)
{
	int64_t n;

	if (q->s >= q->s1 || chunks == 0)
		return;
	if (q->k >= q->safe) {
		copy_rest(q);
		if (q->s >= q->s1)
			return;
	}
	n = q->safe - q->k;
	if (n > chunks)
		n = chunks;
	if (n <= 0)
		return;
	f->cs = q->B + (q->k0 + q->k) * q->N + q->s * W;
	f->cd = q->dst + q->k * W;
	f->cn = n;
	q->k += n;
}

/* How the product is cut: k blocks of kstep, panels of columns, each a number of strips, ss floats from strip to strip. */
struct cut {
	int64_t kstep, strips, panels, ss, half;
};

static struct cut make_cut(int64_t N, int64_t K)
{
	struct cut u;
	int64_t blocks = (K + KBLOCK - 1) / KBLOCK;
	int64_t most, lines;

	if (blocks < 1)
		blocks = 1;
	u.kstep = (K + blocks - 1) / blocks;
	if (u.kstep < 1)
		u.kstep = 1;
	most = PANEL_FLOATS / (u.kstep * W);
	if (most < 1)
		most = 1;
	u.strips = (N + W - 1) / W;
	u.panels = (u.strips + most - 1) / most;
	if (u.panels < 1)
		u.panels = 1;
	/* the starts of the strips are 12 lines apart modulo 64 lines */
	lines = (u.kstep * W + 15) / 16;
	u.ss = (lines + ((12 - lines) & 63)) * 16;
	/* floats of one of the two buffers */
	u.half = (u.strips + u.panels - 1) / u.panels * u.ss;
	return u;
}

size_t km_workspace(const struct km_args *a)
{
	struct cut u = make_cut(a->N, a->K);

	return (size_t)(2 * u.half + 64) * sizeof(float);
}

int km_run(const struct km_args *ka)
{
	const int64_t M = ka->M, N = ka->N, K = ka->K;
	const int64_t tiles = (M + MR - 1) / MR;
	const int64_t low = tiles > 0 ? M / tiles : 0, more = tiles > 0 ? M % tiles : 0;
	const int h0 = (int)(low + (0 < more));
	const struct cut u = make_cut(N, K);
	const int64_t ss = u.ss;
	float *bp = (float *)ka->workspace;
	float *other = bp + u.half;

	if (M <= 0 || N <= 0)
		return 0;
	if (K <= 0) {
		memset(ka->C, 0, (size_t)(M * N) * sizeof(float));
		return 0;
	}
	for (int64_t p = 0; p < u.panels; p++) {
		const int64_t s0 = p * u.strips / u.panels, s1 = (p + 1) * u.strips / u.panels;
		const int64_t n0 = s0 * W, n1 = s1 * W < N ? s1 * W : N;

		for (int64_t k0 = 0; k0 < K; k0 += u.kstep) {
			const int64_t kc = K - k0 < u.kstep ? K - k0 : u.kstep;
			const int64_t chunks = kc >> 4;
			const int add = k0 > 0;
			const float *na0 = NULL;
			struct copy q = {ka->B, N, K, ss, 0, 0, 0, 0, 0, 0, other};
			int64_t i = 0;
			float *swap;

			if (p == 0 && k0 == 0)
				pack_b(bp, ka->B, N, kc, n1 - n0, ss, ka->A);
			/* what comes behind this panel: strips of B, and the first rows of A */
			if (k0 + kc < K) {
				q.k0 = k0 + kc;
				q.s = s0;
				q.s1 = s1;
				na0 = ka->A + k0 + kc;
			} else if (p + 1 < u.panels) {
				q.k0 = 0;
				q.s = s1;
				q.s1 = (p + 2) * u.strips / u.panels;
				na0 = ka->A;
			}
			if (q.s < q.s1) {
				q.kc = K - q.k0 < u.kstep ? K - q.k0 : u.kstep;
				copy_begin(&q);
			}
			for (int64_t t = 0; t < tiles; t++) {
				const int h = (int)(low + (t < more));
				const float *a = ka->A + i * K + k0;
				const float *na = NULL;
				int hn = 0;

				if (t + 1 < tiles) {
					na = a + h * K;
					hn = (int)(low + (t + 1 < more));
				} else if (na0) {
					na = na0;
					hn = h0;
				}
				for (int64_t s = s0; s < s1; s++) {
					const int64_t j = s * W;
					const int w = N - j < W ? (int)(N - j) : W;
					const int kind = (w + HL - 1) / HL;
					const float *b = bp + (s - s0) * ss;
					float *c = ka->C + i * N + j;
					const int64_t r4 = 4 * (s - s0);
					struct ahead f = {NULL, NULL, NULL, 0, N};

					if (r4 < hn)
						f.a0 = na + r4 * K;
					copy_take(&q, chunks, &f);
					if (w == kind * HL) {
						run_tile(kind, h, kc, a, K, b, c, N, add, &f);
					} else {
						float buf[MR * W] __attribute__((aligned(64)));

						run_tile(kind, h, kc, a, K, b, buf, W, 0, &f);
						for (int r = 0; r < h; r++) {
							float *cr = c + r * N;
							const float *o = buf + r * W;

							if (add) {
								for (int x = 0; x < w; x++)
									cr[x] += o[x];
							} else {
								memcpy(cr, o, (size_t)w * sizeof(float));
							}
						}
					}
				}
				i += h;
			}
			while (q.s < q.s1)
				copy_rest(&q);
			swap = bp;
			bp = other;
			other = swap;
		}
	}
	return 0;
}
