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
#define KCMAX 512
#define AS (KCMAX + 16)
#define LAG 4
#define GROUP_FLOATS (704 * 256)
#define T_MAX 10000000

typedef float vz __attribute__((vector_size(L * 4)));
typedef float vza __attribute__((vector_size(L * 4), may_alias));
typedef float vzu __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef float vh __attribute__((vector_size(L * 2)));
typedef float vha __attribute__((vector_size(L * 2), may_alias));
typedef float vhu __attribute__((vector_size(L * 2), aligned(4), may_alias));
typedef int32_t ia __attribute__((may_alias));

/* A quadrant of an input, and for A the factors of its rows. */
struct quad {
	const float *p;
	int64_t rows, cols;
	const float *s;
};

/* What happens to a product P: T = g P, T += g P, C = s (T + g P), C = s g P, C += s g P. */
enum { T_SET, T_ADD, C_LAST, C_SET, C_ADD };

/* Where a product goes: t: tiles [MR][W] in the workspace, c: a quadrant of C, s: factors of its rows. */
struct dst {
	float *t, *c;
	int64_t rows, cols;
	const float *s;
	float g;
	int mode;
};

/* Rows of A whose scales a product computes on its way; dist: from the left to the right half of a row. */
struct fresh {
	const float *A;
	int64_t M, K, dist;
	float *s, *inv;
};

/* (X + ga Y) (P + gb Q), m x k times k x n, to nd places; ts: tiles in a row of the workspace's tiles. */
struct prod {
	int64_t m, n, k, ts;
	struct quad X, Y;
	float ga;
	struct quad P, Q;
	float gb;
	struct dst to[2];
	int nd;
	struct fresh F;
};

/* A part of a product with one packed piece of B: strips s0 .. s1 (columns up to j1), k0 .. k0 + kc. */
struct job {
	const struct prod *pr;
	int64_t gr, groups, s0, s1, j1, k0, kc;
};

/* The packed rows of A of this row of tiles and of the next one; ready: at is filled already. */
struct state {
	float *at, *at2;
	int ready;
};

/*
 * What a tile does on its way, per 16 k:
 * pa: request a line of each p (and adist behind the first two);
 * an: rows aw = axs ax + ays ay;
 * bn: one row of W of bw = bx + bg by, LAG chunks after it was requested; pn: rows to request;
 * t, c: targets to request.
 */
struct side {
	const float *p[4];
	const float *ax[2], *ay[2];
	float *aw[2];
	float axs[2], ays[2];
	const float *bx, *by;
	float *bw;
	const float *t[2];
	const float *c;
	int64_t adist, ldb, bn, pn;
	int pa, an;
	float bg;
};

static inline __attribute__((always_inline)) void tile(const int mr, const int nv, const int h, int64_t kc,
	const float *a, const float *b, const struct dst *d, int nd, int64_t ldc, const struct side *f)
{
	vz acc[MR][NVMAX];
	vh ach[MR];
	const int64_t chunks = kc >> 4;
	const int64_t rest = kc & 15;

#pragma GCC unroll 16
	for (int r = 0; r < mr; r++) {
#pragma GCC unroll 16
		for (int v = 0; v < nv; v++)
			acc[r][v] = (vz){0};
		if (h)
			ach[r] = (vh){0};
	}
	for (int64_t ch = 0; ch < chunks; ch++) {
		const int64_t o = ch * 16;

		if (f->pa) {
			__builtin_prefetch(f->p[0] + o);
			__builtin_prefetch(f->p[1] + o);
			__builtin_prefetch(f->p[2] + o);
			__builtin_prefetch(f->p[3] + o);
			__builtin_prefetch(f->p[0] + o + f->adist);
			__builtin_prefetch(f->p[1] + o + f->adist);
		}
		if (f->an > 0) {
			const float *x = f->ax[0] + o, *y = f->ay[0] + o;
			float *w = f->aw[0] + o;

#pragma GCC unroll 16
			for (int u = 0; u < 16; u += L)
				*(vzu *)(w + u) = *(const vzu *)(x + u) * f->axs[0] + *(const vzu *)(y + u) * f->ays[0];
			__builtin_prefetch(x + 64);
			__builtin_prefetch(y + 64);
		}
		if (f->an > 1) {
			const float *x = f->ax[1] + o, *y = f->ay[1] + o;
			float *w = f->aw[1] + o;

#pragma GCC unroll 16
			for (int u = 0; u < 16; u += L)
				*(vzu *)(w + u) = *(const vzu *)(x + u) * f->axs[1] + *(const vzu *)(y + u) * f->ays[1];
			__builtin_prefetch(x + 64);
			__builtin_prefetch(y + 64);
		}
		if (ch < f->pn) {
			const float *x = f->bx + ch * f->ldb, *y = f->by + ch * f->ldb;
			const float *w = f->bw + ch * W;

#pragma GCC unroll 16
			for (int u = 0; u < W; u += 16) {
				__builtin_prefetch(x + u);
				__builtin_prefetch(y + u);
				__builtin_prefetch(w + u, 1);
			}
			__builtin_prefetch(x + W - 1);
			__builtin_prefetch(y + W - 1);
		}
		if ((uint64_t)(ch - LAG) < (uint64_t)f->bn) {
			const float *x = f->bx + (ch - LAG) * f->ldb, *y = f->by + (ch - LAG) * f->ldb;
			float *w = f->bw + (ch - LAG) * W;

#pragma GCC unroll 16
			for (int v = 0; v < NVMAX; v++)
				*(vza *)(w + v * L) = *(const vzu *)(x + v * L) + *(const vzu *)(y + v * L) * f->bg;
		}
		if (ch < MR * W / 32) {
			__builtin_prefetch(f->t[0] + 2 * o, 1);
			__builtin_prefetch(f->t[0] + 2 * o + 16, 1);
			__builtin_prefetch(f->t[1] + 2 * o, 1);
			__builtin_prefetch(f->t[1] + 2 * o + 16, 1);
		}
		if (ch < 2 * mr) {
			const int64_t odd = ch & 1;

			__builtin_prefetch(f->c + (ch >> 1) * ldc + odd * 32, 1);
			__builtin_prefetch(f->c + (ch >> 1) * ldc + 16 + odd * 31, 1);
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
				float s = a[r * AS];

#pragma GCC unroll 16
				for (int v = 0; v < nv; v++)
					acc[r][v] += s * bv[v];
				if (h)
					ach[r] += s * bh;
			}
			a += 1;
			b += (nv + h) * L;
		}
	}
	for (int64_t k = 0; k < rest; k++) {
		vz bv[NVMAX];
		vh bh = {0};

#pragma GCC unroll 16
		for (int v = 0; v < nv; v++)
			bv[v] = *(const vza *)(b + v * L);
		if (h)
			bh = *(const vha *)(b + nv * L);
#pragma GCC unroll 16
		for (int r = 0; r < mr; r++) {
			float s = a[r * AS];

#pragma GCC unroll 16
			for (int v = 0; v < nv; v++)
				acc[r][v] += s * bv[v];
			if (h)
				ach[r] += s * bh;
		}
		a += 1;
		b += (nv + h) * L;
	}
	for (int z = 0; z < nd; z++) {
		float *c = d[z].c;
		float *t = d[z].t;
		const float *s = d[z].s;
		const float g = d[z].g;

		switch (d[z].mode) {
		case T_SET:
#pragma GCC unroll 16
			for (int r = 0; r < mr; r++) {
#pragma GCC unroll 16
				for (int v = 0; v < nv; v++)
					*(vza *)(t + r * W + v * L) = g * acc[r][v];
				if (h)
					*(vha *)(t + r * W + nv * L) = g * ach[r];
			}
			break;
		case T_ADD:
#pragma GCC unroll 16
			for (int r = 0; r < mr; r++) {
#pragma GCC unroll 16
				for (int v = 0; v < nv; v++)
					*(vza *)(t + r * W + v * L) = *(const vza *)(t + r * W + v * L) + g * acc[r][v];
				if (h)
					*(vha *)(t + r * W + nv * L) = *(const vha *)(t + r * W + nv * L) + g * ach[r];
			}
			break;
		case C_LAST:
#pragma GCC unroll 16
			for (int r = 0; r < mr; r++) {
				float x = s[r];

#pragma GCC unroll 16
				for (int v = 0; v < nv; v++)
					*(vzu *)(c + r * ldc + v * L) = x * (*(const vza *)(t + r * W + v * L) + g * acc[r][v]);
				if (h)
					*(vhu *)(c + r * ldc + nv * L) = x * (*(const vha *)(t + r * W + nv * L) + g * ach[r]);
			}
			break;
		case C_SET:
#pragma GCC unroll 16
			for (int r = 0; r < mr; r++) {
				float x = g * s[r];

#pragma GCC unroll 16
				for (int v = 0; v < nv; v++)
					*(vzu *)(c + r * ldc + v * L) = x * acc[r][v];
				if (h)
					*(vhu *)(c + r * ldc + nv * L) = x * ach[r];
			}
			break;
		default:
#pragma GCC unroll 16
			for (int r = 0; r < mr; r++) {
				float x = g * s[r];

#pragma GCC unroll 16
				for (int v = 0; v < nv; v++) {
					float *q = c + r * ldc + v * L;

					*(vzu *)q = *(const vzu *)q + x * acc[r][v];
				}
				if (h) {
					float *q = c + r * ldc + nv * L;

					*(vhu *)q = *(const vhu *)q + x * ach[r];
				}
			}
			break;
		}
	}
}

#define PARAMS int64_t kc, const float *a, const float *b, const struct dst *d, int nd, int64_t ldc, const struct side *f
#define ARGS kc, a, b, d, nd, ldc, f

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

/* A tile of h rows and wide columns (a multiple of HL) from buf [MR][W] to d, whose part of C may be smaller. */
static void apply(const struct dst *d, int h, int wide, const float *buf, int64_t ldc)
{
	for (int r = 0; r < h; r++) {
		const float *q = buf + r * W;
		const float g = d->g;

		if (d->mode == T_SET || d->mode == T_ADD) {
			float *t = d->t + r * W;

			for (int x = 0; x < wide; x += HL) {
				if (d->mode == T_SET)
					*(vha *)(t + x) = g * *(const vha *)(q + x);
				else
					*(vha *)(t + x) = *(const vha *)(t + x) + g * *(const vha *)(q + x);
			}
		} else if (r < d->rows) {
			int ww = d->cols < wide ? (int)d->cols : wide;
			float *c = d->c + r * ldc;
			const float s = d->s[r];
			int x = 0;

			if (d->mode == C_LAST) {
				const float *t = d->t + r * W;

				for (; x + HL <= ww; x += HL)
					*(vhu *)(c + x) = s * (*(const vha *)(t + x) + g * *(const vha *)(q + x));
				for (; x < ww; x++)
					c[x] = s * (t[x] + g * q[x]);
			} else if (d->mode == C_SET) {
				for (; x + HL <= ww; x += HL)
					*(vhu *)(c + x) = (s * g) * *(const vha *)(q + x);
				for (; x < ww; x++)
					c[x] = (s * g) * q[x];
			} else {
				for (; x + HL <= ww; x += HL)
					*(vhu *)(c + x) = *(const vhu *)(c + x) + (s * g) * *(const vha *)(q + x);
				for (; x < ww; x++)
					c[x] += (s * g) * q[x];
			}
		}
	}
}

/* Row rr of X + g Y, columns k0 + from .. k0 + kc, to o[from .. kc]. */
static void pack_row(float *o, const struct quad *X, const struct quad *Y, float g, int64_t lda,
	int64_t rr, int64_t k0, int64_t kc, int64_t from)
{
	const float *x = X->p, *y = X->p;
	float xs = 0, ys = 0;
	int64_t vx = 0, vy = 0, k = from;

	if (rr < X->rows && X->cols > k0) {
		x = X->p + rr * lda + k0;
		xs = X->s[rr];
		vx = X->cols - k0 < kc ? X->cols - k0 : kc;
	}
	if (g != 0 && rr < Y->rows && Y->cols > k0) {
		y = Y->p + rr * lda + k0;
		ys = g * Y->s[rr];
		vy = Y->cols - k0 < kc ? Y->cols - k0 : kc;
	}
	if (vy == 0) {
		for (; k + L <= vx; k += L)
			*(vzu *)(o + k) = *(const vzu *)(x + k) * xs;
		if (k < vx && vx >= L) {
			k = vx - L;
			*(vzu *)(o + k) = *(const vzu *)(x + k) * xs;
			k = vx;
		}
	} else {
		const int64_t both = vx < vy ? vx : vy;

		for (; k + L <= both; k += L)
			*(vzu *)(o + k) = *(const vzu *)(x + k) * xs + *(const vzu *)(y + k) * ys;
		if (k < both && both >= L) {
			k = both - L;
			*(vzu *)(o + k) = *(const vzu *)(x + k) * xs + *(const vzu *)(y + k) * ys;
			k = both;
		}
	}
	for (; k < kc; k++) {
		float z = 0;

		if (k < vx)
			z += x[k] * xs;
		if (k < vy)
			z += y[k] * ys;
		o[k] = z;
	}
}

/*
 * Columns j0 .. j1 (j0 a multiple of W), rows k0 + from .. k0 + to of X + g Y, to strips [kc][W], the last one of n
 * narrower. far: request rows ahead, for the pack that nothing has prepared.
 */
static void pack_b(float *p, const struct quad *X, const struct quad *Y, float g, int64_t ldb,
	int64_t j0, int64_t j1, int64_t k0, int64_t kc, int64_t from, int64_t to, int far)
{
	const int two = g != 0;
	const int64_t cx = X->cols, cy = two ? Y->cols : 0;
	const int64_t cv = two && cy < cx ? cy : cx;

	for (int64_t k = from; k < to; k++) {
		const float *x = X->p, *y = Y->p;
		float gx = 0, gy = 0;
		int64_t j = j0;
		float *d = p + k * W;

		if (k0 + k < X->rows) {
			x += (k0 + k) * ldb;
			gx = 1;
		}
		if (two && k0 + k < Y->rows) {
			y += (k0 + k) * ldb;
			gy = g;
		}
		if (far) {
			for (int64_t t = j0; t < j1; t += 16) {
				__builtin_prefetch(x + t + 4 * ldb);
				if (two)
					__builtin_prefetch(y + t + 4 * ldb);
			}
		}
		if (two) {
			for (; j + W <= j1 && j + W <= cv; j += W) {
#pragma GCC unroll 16
				for (int v = 0; v < NVMAX; v++)
					*(vza *)(d + v * L) = *(const vzu *)(x + j + v * L) * gx + *(const vzu *)(y + j + v * L) * gy;
				d += W * kc;
			}
		} else {
			for (; j + W <= j1 && j + W <= cv; j += W) {
#pragma GCC unroll 16
				for (int v = 0; v < NVMAX; v++)
					*(vza *)(d + v * L) = *(const vzu *)(x + j + v * L) * gx;
				d += W * kc;
			}
		}
		for (; j < j1; j += W) {
			int wide = j1 - j < W ? (int)(j1 - j) : W;
			int w = (wide + L - 1) / L * L;

			d = p + (j - j0) * kc + k * w;
			for (int t = 0; t < wide; t += HL) {
				const int64_t c = j + t;
				const int whole = t + HL <= wide;

				if (whole && c + HL <= cx && c + HL <= cy) {
					*(vha *)(d + t) = *(const vhu *)(x + c) * gx + *(const vhu *)(y + c) * gy;
				} else if (whole && c + HL <= cx && c >= cy) {
					*(vha *)(d + t) = *(const vhu *)(x + c) * gx;
				} else if (whole && c + HL <= cy && c >= cx) {
					*(vha *)(d + t) = *(const vhu *)(y + c) * gy;
				} else {
					for (int u = 0; u < HL; u++) {
						float z = 0;

						if (t + u < wide) {
							if (c + u < cx)
								z += x[c + u] * gx;
							if (c + u < cy)
								z += y[c + u] * gy;
						}
						d[t + u] = z;
					}
				}
			}
		}
	}
}

/* s: the power of two of the largest element of each row, inv: its inverse */
static void row_scales(const float *A, int64_t rows, int64_t K, float *s, float *inv)
{
	for (int64_t i = 0; i < rows; i++) {
		const ia *p = (const ia *)(A + i * K);
		int32_t best = 0, e, f;

		for (int64_t k = 0; k < K; k++) {
			int32_t x = p[k] & 0x7fffffff;

			best = x > best ? x : best;
		}
		e = best >> 23;
		if (e < 1)
			e = 127;
		if (e > 253)
			e = 253;
		f = (254 - e) << 23;
		e <<= 23;
		memcpy(s + i, &e, sizeof(e));
		memcpy(inv + i, &f, sizeof(f));
	}
}

/* Row scales of rows i .. i + h, as far as there are such rows. */
static void some_scales(const struct fresh *F, int64_t i, int64_t h)
{
	if (i + h > F->M)
		h = F->M - i;
	if (h > 0)
		row_scales(F->A + i * F->K, h, F->K, F->s + i, F->inv + i);
}

static void job_open(struct job *J, const struct prod *pr, int64_t gr, int64_t k0)
{
	int64_t blocks = (pr->k + KCMAX - 1) / KCMAX;
	int64_t kstep = blocks < 1 ? 1 : (pr->k + blocks - 1) / blocks;
	int64_t strips = (pr->n + W - 1) / W;
	int64_t most = GROUP_FLOATS / (kstep * W);

	if (most < 1)
		most = 1;
	J->pr = pr;
	J->gr = gr;
	J->groups = (strips + most - 1) / most;
	J->s0 = gr * strips / J->groups;
	J->s1 = (gr + 1) * strips / J->groups;
	J->j1 = J->s1 * W < pr->n ? J->s1 * W : pr->n;
	J->k0 = k0;
	J->kc = pr->k - k0 < kstep ? pr->k - k0 : kstep;
}

/* The job after J to Q; 0: there is none. */
static int job_next(struct job *Q, const struct job *J, const struct prod *end)
{
	if (J->k0 + J->kc < J->pr->k)
		job_open(Q, J->pr, J->gr, J->k0 + J->kc);
	else if (J->gr + 1 < J->groups)
		job_open(Q, J->pr, J->gr + 1, 0);
	else if (J->pr + 1 < end)
		job_open(Q, J->pr + 1, 0, 0);
	else
		return 0;
	return 1;
}

/* Runs J with its B in bp, and forms the B of nx (or NULL) in bq meanwhile. */
static void run_job(const struct job *J, const struct job *nx, const float *bp, float *bq, struct state *st,
	int64_t lda, int64_t ldb)
{
	const int64_t ldc = ldb;
	const struct prod *pr = J->pr;
	const int64_t m = pr->m, n = pr->n, k0 = J->k0, kc = J->kc, s0 = J->s0, s1 = J->s1;
	const int nd = pr->nd;
	const int first = k0 == 0, last = k0 + kc >= pr->k;
	const int64_t tiles = (m + MR - 1) / MR;
	const int64_t low = m / tiles, more = m % tiles;
	const int64_t ns = s1 - s0, chunks = kc / 16, c16 = chunks * 16;
	const struct quad *P = NULL, *Q = NULL;
	float gb = 0;
	int64_t nj0 = 0, nj1 = 0, nk0 = 0, nkc = 0, nstr = 0, nin = 0, nrows = 0;
	int64_t i = 0;

	if (nx) {
		int64_t lim;

		P = &nx->pr->P;
		Q = &nx->pr->Q;
		gb = nx->pr->gb;
		nj0 = nx->s0 * W;
		nj1 = nx->j1;
		nk0 = nx->k0;
		nkc = nx->kc;
		nstr = nx->s1 - nx->s0;
		lim = P->cols < nj1 ? P->cols : nj1;
		nrows = P->rows - nk0;
		if (gb != 0) {
			if (Q->cols < lim)
				lim = Q->cols;
			if (Q->rows - nk0 < nrows)
				nrows = Q->rows - nk0;
		}
		/* whole strips that the tiles can form on their way, and rows that both quadrants have */
		nin = lim > nj0 ? (lim - nj0) / W : 0;
		if (nin > ns)
			nin = ns;
	}
	for (int64_t t = 0; t < tiles; t++) {
		const int h = (int)(low + (t < more));
		const struct prod *ap = pr;
		float *at;
		int64_t n0 = 0, n1 = 0, nb = 0, arow = i + h, ak = k0, akc = kc;
		int h2 = (int)(low + (t + 1 < more));
		int pre = 0;
		struct side f;

		/* rows n0 .. n1 of the next B are due, n0 .. nb of them inside the tiles */
		if (nx) {
			n0 = nkc * t / tiles;
			n1 = nkc * (t + 1) / tiles;
			nb = n1 < nrows ? n1 : nrows;
			if (nb > n0 + chunks - LAG)
				nb = n0 + chunks - LAG;
			if (nb < n0)
				nb = n0;
		}
		/* whose rows of A come next */
		if (t + 1 == tiles) {
			ap = nx ? nx->pr : NULL;
			arow = 0;
			ak = nk0;
			akc = nkc;
			if (ap) {
				int64_t t2 = (ap->m + MR - 1) / MR;

				h2 = (int)(ap->m / t2 + (ap->m % t2 > 0));
			}
		}
		if (ap && !ap->F.A && 2 * ns >= h2)
			pre = 1;
		if (pr->F.A && J->gr == 0 && k0 == 0)
			some_scales(&pr->F, i, h);
		if (!st->ready)
			for (int r = 0; r < h; r++)
				pack_row(st->at + r * AS, &pr->X, &pr->Y, pr->ga, lda, i + r, k0, kc, 0);
		at = st->at;
		memset(&f, 0, sizeof(f));
		f.ldb = ldb;
		f.bg = gb;
		for (int64_t s = s0; s < s1; s++) {
			int64_t j = s * W;
			int w = n - j < W ? (int)(n - j) : W;
			int kind = (w + HL - 1) / HL;
			int full = 1;
			struct dst d[2];
			const float *b = bp + (j - s0 * W) * kc;

			f.p[0] = f.p[1] = f.p[2] = f.p[3] = at;
			f.t[0] = f.t[1] = at;
			f.c = NULL;
			f.bx = f.by = at;
			f.bw = st->at2;
			f.bn = f.pn = 0;
			f.an = 0;
			f.pa = 0;
			f.adist = 0;
			/* two of the rows of the next row of tiles */
			if (ap) {
				for (int z = 0; z < 2; z++) {
					int64_t r = 2 * (s - s0) + z;
					int64_t rr = arow + r;
					const int inx = rr < ap->X.rows;
					const int iny = ap->ga != 0 && rr < ap->Y.rows;

					if (r >= h2)
						continue;
					if (!pre) {
						f.pa = 1;
						f.adist = ap->F.A ? ap->F.dist : 0;
						if (inx)
							f.p[z] = ap->X.p + ak + rr * lda;
						if (iny)
							f.p[2 + z] = ap->Y.p + ak + rr * lda;
					} else {
						float *o = st->at2 + r * AS;
						int64_t from = 0;

						if (akc == kc && inx && ap->X.cols - ak >= c16
							&& (ap->ga == 0 || (iny && ap->Y.cols - ak >= c16))) {
							const int e = f.an++;

							f.ax[e] = ap->X.p + rr * lda + ak;
							f.axs[e] = ap->X.s[rr];
							f.ay[e] = f.ax[e];
							f.ays[e] = 0;
							if (iny) {
								f.ay[e] = ap->Y.p + rr * lda + ak;
								f.ays[e] = ap->ga * ap->Y.s[rr];
							}
							f.aw[e] = o;
							from = c16;
						}
						if (from < akc)
							pack_row(o, &ap->X, &ap->Y, ap->ga, lda, rr, ak, akc, from);
					}
				}
			}
			/* rows of one strip of the next B */
			if (nb > n0 && s - s0 < nstr) {
				const int64_t z = s - s0;

				f.bx = P->p + (nk0 + n0) * ldb + nj0 + z * W;
				f.by = gb != 0 ? Q->p + (nk0 + n0) * ldb + nj0 + z * W : f.bx;
				f.bw = bq + z * W * nkc + n0 * W;
				f.pn = nb - n0;
				f.bn = z < nin ? nb - n0 : 0;
			}
			for (int z = 0; z < nd; z++) {
				d[z] = pr->to[z];
				if (d[z].t) {
					d[z].t += (t * pr->ts + s) * (MR * W);
					f.t[z] = d[z].t;
				}
				d[z].c += i * ldc + j;
				d[z].s += i;
				d[z].rows -= i;
				d[z].cols -= j;
				if (d[z].mode == T_SET && !first)
					d[z].mode = T_ADD;
				else if (d[z].mode == C_LAST && !last)
					d[z].mode = T_ADD;
				else if (d[z].mode == C_SET && !first)
					d[z].mode = C_ADD;
				if (d[z].mode >= C_LAST) {
					f.c = d[z].c;
					if (d[z].rows < h || d[z].cols < kind * HL)
						full = 0;
				}
			}
			if (!f.c)
				f.c = f.t[0];
			if (full) {
				run_tile(kind, h, kc, at, b, d, nd, ldc, &f);
			} else {
				float buf[MR * W] __attribute__((aligned(64)));
				struct dst e = {buf, buf, MR, W, NULL, 1, T_SET};

				run_tile(kind, h, kc, at, b, &e, 1, ldc, &f);
				for (int z = 0; z < nd; z++)
					apply(&d[z], h, kind * HL, buf, ldc);
			}
		}
		/* what the tiles have left out of the next B */
		if (nx) {
			if (nb > n0 && nj0 + nin * W < nj1)
				pack_b(bq + nin * W * nkc, P, Q, gb, ldb, nj0 + nin * W, nj1, nk0, nkc, n0, nb, 0);
			if (n1 > nb)
				pack_b(bq, P, Q, gb, ldb, nj0, nj1, nk0, nkc, nb, n1, 0);
		}
		st->at = st->at2;
		st->at2 = at;
		st->ready = pre;
		i += h;
	}
}

static void run_all(const struct prod *ps, int count, float *bp, float *bq, struct state *st, int64_t lda, int64_t ldb)
{
	struct job J, Q;

	job_open(&J, ps, 0, 0);
	pack_b(bp, &ps->P, &ps->Q, ps->gb, ldb, J.s0 * W, J.j1, J.k0, J.kc, 0, J.kc, 1);
	for (;;) {
		int go = job_next(&Q, &J, ps + count);
		float *x;

		run_job(&J, go ? &Q : NULL, bp, bq, st, lda, ldb);
		if (!go)
			break;
		J = Q;
		x = bp;
		bp = bq;
		bq = x;
	}
}

#define BP_FLOATS (GROUP_FLOATS > KCMAX * W ? GROUP_FLOATS : KCMAX * W)
#define AT_FLOATS (AS * 8 + 32)

/* Half the columns, rounded so that the right half begins at a half vector. */
static int64_t half_n(int64_t N)
{
	return ((N + 1) / 2 + HL - 1) / HL * HL;
}

/* Floats of the tiles of one quadrant of C in the workspace; 0: the plain product is computed. */
static int64_t quad_floats(int64_t M, int64_t N, int64_t K)
{
	int64_t q;

	if (M < 256 || N < 256 || K < 256)
		return 0;
	q = (((M + 1) / 2 + MR - 1) / MR) * ((half_n(N) + W - 1) / W) * (MR * W);
	return 4 * q > T_MAX ? 0 : q;
}

size_t km_workspace(const struct km_args *a)
{
	return (2 * (size_t)BP_FLOATS + 2 * AT_FLOATS + 4 * (size_t)quad_floats(a->M, a->N, a->K)
		+ 2 * (size_t)a->M + 64) * sizeof(float);
}

int km_run(const struct km_args *a)
{
	const int64_t M = a->M, N = a->N, K = a->K;
	const int64_t q = quad_floats(M, N, K);
	float *bp = (float *)a->workspace;
	float *bq = bp + BP_FLOATS;
	float *at = bq + BP_FLOATS;
	float *T11 = at + 2 * AT_FLOATS;
	float *T12 = T11 + q, *T21 = T12 + q, *T22 = T21 + q;
	float *s = T22 + q;
	float *inv = s + M;
	struct state st = {at, at + AT_FLOATS, 0};

	if (q == 0) {
		const struct quad A0 = {a->A, M, K, inv};
		const struct quad B0 = {a->B, K, N, NULL};
		const struct prod ps[1] = {
			{M, N, K, 0, A0, A0, 0, B0, B0, 0, {{NULL, a->C, M, N, s, 1, C_SET}}, 1, {a->A, M, K, 0, s, inv}},
		};

		run_all(ps, 1, bp, bq, &st, K, N);
	} else {
		const int64_t m = (M + 1) / 2, n = half_n(N), k = (K + 1) / 2, ts = (n + W - 1) / W;
		const struct quad A11 = {a->A, m, k, inv};
		const struct quad A12 = {a->A + k, m, K - k, inv};
		const struct quad A21 = {a->A + m * K, M - m, k, inv + m};
		const struct quad A22 = {a->A + m * K + k, M - m, K - k, inv + m};
		const struct quad B11 = {a->B, k, n, NULL};
		const struct quad B12 = {a->B + n, k, N - n, NULL};
		const struct quad B21 = {a->B + k * N, K - k, n, NULL};
		const struct quad B22 = {a->B + k * N + n, K - k, N - n, NULL};
		float *C11 = a->C, *C12 = a->C + n, *C21 = a->C + m * N, *C22 = a->C + m * N + n;

#define TO11(g, mode) {T11, C11, m, n, s, g, mode}
#define TO12(g, mode) {T12, C12, m, N - n, s, g, mode}
#define TO21(g, mode) {T21, C21, M - m, n, s + m, g, mode}
#define TO22(g, mode) {T22, C22, M - m, N - n, s + m, g, mode}
#define OLD {NULL, 0, 0, 0, NULL, NULL}
		/*
		 * M2 first (one quadrant of B, the scales of the lower rows), then M1 (the scales of the upper rows).
		 * All have the same m, so that their tiles match.
		 */
		const struct prod ps[7] = {
			{m, n, k, ts, A21, A22, 1, B11, B11, 0, {TO21(1, T_SET), TO22(-1, T_SET)}, 2,
				{a->A + m * K, M - m, K, k, s + m, inv + m}},
			{m, n, k, ts, A11, A22, 1, B11, B22, 1, {TO11(1, T_SET), TO22(1, T_ADD)}, 2,
				{a->A, m, K, k, s, inv}},
			{m, N - n, k, ts, A11, A11, 0, B12, B22, -1, {TO12(1, T_SET), TO22(1, T_ADD)}, 2, OLD},
			{m, n, k, ts, A22, A22, 0, B21, B11, -1, {TO11(1, T_ADD), TO21(1, C_LAST)}, 2, OLD},
			{m, n, k, ts, A11, A12, 1, B22, B22, 0, {TO11(-1, T_ADD), TO12(1, C_LAST)}, 2, OLD},
			{m, N - n, k, ts, A21, A11, -1, B11, B12, 1, {TO22(1, C_LAST)}, 1, OLD},
			{m, n, k, ts, A12, A22, -1, B21, B22, 1, {TO11(1, C_LAST)}, 1, OLD},
		};

		run_all(ps, 7, bp, bq, &st, K, N);
	}
	return 0;
}
