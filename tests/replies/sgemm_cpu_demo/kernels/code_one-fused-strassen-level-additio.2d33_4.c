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
#define NB 6
#define GROUP_FLOATS (704 * 256)

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

/* Where a product goes: C = or += g * s[row] * product. */
struct dst {
	float *c;
	int64_t rows, cols;
	const float *s;
	float g;
	int add;
};

/* Rows of A whose scales a product computes on its way; dist: from the left to the right half of a row. */
struct fresh {
	const float *A;
	int64_t M, K, dist;
	float *s, *inv;
};

/* (X + ga Y) (P + gb Q), m x k times k x n, to nd places. */
struct prod {
	int64_t m, n, k;
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

/* What a tile requests on its way: per 16 k a line of each a and b and two lines of w; in the first steps, rows of c. */
struct ahead {
	const float *a[4];
	const float *b[NB];
	const float *w;
	const float *c[2];
	int64_t adist, ldc, bn, wn;
};

static const float ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};

static inline __attribute__((always_inline)) void tile(const int mr, const int nv, const int h, int64_t kc,
	const float *a, const float *b, const struct dst *d, int nd, int64_t ldc, const struct ahead *f)
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

		__builtin_prefetch(f->a[0] + o);
		__builtin_prefetch(f->a[1] + o);
		__builtin_prefetch(f->a[2] + o);
		__builtin_prefetch(f->a[3] + o);
		if (f->adist) {
			__builtin_prefetch(f->a[0] + o + f->adist);
			__builtin_prefetch(f->a[1] + o + f->adist);
		}
		if (o < f->bn) {
			__builtin_prefetch(f->b[0] + o);
			__builtin_prefetch(f->b[1] + o);
			__builtin_prefetch(f->b[2] + o);
			__builtin_prefetch(f->b[3] + o);
			__builtin_prefetch(f->b[4] + o);
			__builtin_prefetch(f->b[5] + o);
		}
		if (o < f->wn) {
			__builtin_prefetch(f->w + 2 * o, 1);
			__builtin_prefetch(f->w + 2 * o + 16, 1);
		}
		if (ch < 2 * mr) {
			const int64_t odd = ch & 1;
			const int64_t x = (ch >> 1) * f->ldc + odd * 32;
			const int64_t y = (ch >> 1) * f->ldc + 16 + odd * 31;

			__builtin_prefetch(f->c[0] + x, 1);
			__builtin_prefetch(f->c[0] + y, 1);
			__builtin_prefetch(f->c[1] + x, 1);
			__builtin_prefetch(f->c[1] + y, 1);
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
	for (int t = 0; t < nd; t++) {
		float *c = d[t].c;
		const float *s = d[t].s;
		float g = d[t].g;

		if (d[t].add) {
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
		} else {
#pragma GCC unroll 16
			for (int r = 0; r < mr; r++) {
				float x = g * s[r];

#pragma GCC unroll 16
				for (int v = 0; v < nv; v++)
					*(vzu *)(c + r * ldc + v * L) = x * acc[r][v];
				if (h)
					*(vhu *)(c + r * ldc + nv * L) = x * ach[r];
			}
		}
	}
}

#define PARAMS int64_t kc, const float *a, const float *b, const struct dst *d, int nd, int64_t ldc, const struct ahead *f
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

/* Rows i .. i + h of X + g Y, columns k0 .. k0 + kc, to p [h][AS]. */
static void pack_a(float *p, const struct quad *X, const struct quad *Y, float g, int64_t lda,
	int64_t i, int h, int64_t k0, int64_t kc)
{
	for (int r = 0; r < h; r++) {
		const int64_t rr = i + r;
		const float *x = X->p, *y = X->p;
		float *o = p + r * AS;
		float xs = 0, ys = 0;
		int64_t vx = 0, vy = 0, k = 0;

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

/* Runs J with its B in bp, and packs the B of nx (or NULL) to bq meanwhile. */
static void run_job(const struct job *J, const struct job *nx, const float *bp, float *bq, float *at,
	int64_t lda, int64_t ldb)
{
	const int64_t ldc = ldb;
	const struct prod *pr = J->pr;
	const struct quad *X = &pr->X, *Y = &pr->Y;
	const int64_t m = pr->m, n = pr->n, k0 = J->k0, kc = J->kc, s0 = J->s0, s1 = J->s1;
	const int nd = pr->nd;
	const int64_t tiles = (m + MR - 1) / MR;
	const int64_t low = m / tiles, more = m % tiles;
	const int64_t seg = kc / 16 * 16;
	int64_t ncols = 0, parts = 0, nj0 = 0, bn = 0;
	int two = 0;
	int64_t i = 0;

	if (nx) {
		nj0 = nx->s0 * W;
		ncols = nx->j1 - nj0;
		two = nx->pr->gb != 0;
		if (seg > 0) {
			parts = (ncols + seg - 1) / seg;
			bn = ncols + 15 < seg ? ncols + 15 : seg;
		}
	}
	for (int64_t t = 0; t < tiles; t++) {
		const int h = (int)(low + (t < more));
		const struct prod *ap = pr;
		int64_t n0 = 0, n1 = 0, per = 0, crow, cpart = 0, arow = i + h, ak = k0;
		int cq = 0;

		if (nx) {
			n0 = nx->kc * t / tiles;
			n1 = nx->kc * (t + 1) / tiles;
			per = ((n1 - n0) * parts * (1 + two) + (s1 - s0) - 1) / (s1 - s0);
			if (per > NB)
				per = NB;
		}
		crow = n0;
		/* whose rows of A come next */
		if (t + 1 == tiles) {
			ap = nx ? nx->pr : NULL;
			arow = 0;
			ak = nx ? nx->k0 : 0;
		}
		if (pr->F.A && J->gr == 0 && k0 == 0)
			some_scales(&pr->F, i, h);
		pack_a(at, X, Y, pr->ga, lda, i, h, k0, kc);
		for (int64_t s = s0; s < s1; s++) {
			int64_t j = s * W;
			int w = n - j < W ? (int)(n - j) : W;
			int kind = (w + HL - 1) / HL;
			int full = 1;
			struct dst d[2];
			struct ahead f = {{at, at, at, at}, {at, at, at, at, at, at}, at, {at, at}, 0, ldc, 0, 0};
			const float *b = bp + (j - s0 * W) * kc;

			/* two of the rows of the next tile */
			if (ap) {
				f.adist = ap->F.A ? ap->F.dist : 0;
				for (int z = 0; z < 2; z++) {
					int64_t r = 2 * (s - s0) + z;
					int64_t rr = arow + r;

					if (r < MR) {
						if (rr < ap->X.rows)
							f.a[z] = ap->X.p + ak + rr * lda;
						if (ap->ga != 0 && rr < ap->Y.rows)
							f.a[2 + z] = ap->Y.p + ak + rr * lda;
					}
				}
			}
			/* rows of the next B, and the place that they go to */
			if (nx) {
				int64_t wj = nj0 + (s - s0) * W;

				for (int z = 0; z < per && crow < n1; z++) {
					const struct quad *q = cq ? &nx->pr->Q : &nx->pr->P;
					int64_t row = nx->k0 + crow;
					int64_t start = cpart * seg;

					if (start > ncols - seg)
						start = ncols > seg ? ncols - seg : 0;
					if (row < q->rows)
						f.b[z] = q->p + row * ldb + nj0 + start;
					f.bn = bn;
					if (++cpart == parts) {
						cpart = 0;
						if (++cq > two) {
							cq = 0;
							crow++;
						}
					}
				}
				if (wj < nx->j1) {
					int64_t ww = nx->j1 - wj < W ? (nx->j1 - wj + L - 1) / L * L : W;

					f.w = bq + (wj - nj0) * nx->kc + n0 * ww;
					f.wn = (n1 - n0) * ww / 2;
				}
			}
			for (int z = 0; z < nd; z++) {
				d[z] = pr->to[z];
				d[z].c += i * ldc + j;
				d[z].s += i;
				d[z].rows -= i;
				d[z].cols -= j;
				if (k0 > 0)
					d[z].add = 1;
				if (d[z].rows < h || d[z].cols < kind * HL)
					full = 0;
			}
			f.c[0] = d[0].c;
			f.c[1] = d[nd - 1].c;
			if (full) {
				run_tile(kind, h, kc, at, b, d, nd, ldc, &f);
			} else {
				float buf[MR * W] __attribute__((aligned(64)));
				struct dst e = {buf, MR, W, ones, 1, 0};

				run_tile(kind, h, kc, at, b, &e, 1, W, &f);
				for (int z = 0; z < nd; z++) {
					int hh = d[z].rows < h ? (int)d[z].rows : h;
					int ww = d[z].cols < w ? (int)d[z].cols : w;

					for (int r = 0; r < hh; r++) {
						float *c = d[z].c + r * ldc;
						const float *q = buf + r * W;
						float g = d[z].g * d[z].s[r];
						int x = 0;

						if (d[z].add) {
							for (; x + HL <= ww; x += HL)
								*(vhu *)(c + x) = *(const vhu *)(c + x) + g * *(const vhu *)(q + x);
							for (; x < ww; x++)
								c[x] += g * q[x];
						} else {
							for (; x + HL <= ww; x += HL)
								*(vhu *)(c + x) = g * *(const vhu *)(q + x);
							for (; x < ww; x++)
								c[x] = g * q[x];
						}
					}
				}
			}
		}
		if (n1 > n0)
			pack_b(bq, &nx->pr->P, &nx->pr->Q, nx->pr->gb, ldb, nj0, nx->j1, nx->k0, nx->kc, n0, n1, 0);
		i += h;
	}
}

static void run_all(const struct prod *ps, int count, float *bp, float *bq, float *at, int64_t lda, int64_t ldb)
{
	struct job J, Q;

	job_open(&J, ps, 0, 0);
	pack_b(bp, &ps->P, &ps->Q, ps->gb, ldb, J.s0 * W, J.j1, J.k0, J.kc, 0, J.kc, 1);
	for (;;) {
		int go = job_next(&Q, &J, ps + count);
		float *x;

		run_job(&J, go ? &Q : NULL, bp, bq, at, lda, ldb);
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

size_t km_workspace(const struct km_args *a)
{
	return (2 * (size_t)BP_FLOATS + AT_FLOATS + 2 * (size_t)a->M + 32) * sizeof(float);
}

int km_run(const struct km_args *a)
{
	const int64_t M = a->M, N = a->N, K = a->K;
	float *bp = (float *)a->workspace;
	float *bq = bp + BP_FLOATS;
	float *at = bq + BP_FLOATS;
	float *s = at + AT_FLOATS;
	float *inv = s + M;

	if (M < 256 || N < 256 || K < 256) {
		const struct quad A0 = {a->A, M, K, inv};
		const struct quad B0 = {a->B, K, N, NULL};
		const struct prod ps[1] = {
			{M, N, K, A0, A0, 0, B0, B0, 0, {{a->C, M, N, s, 1, 0}}, 1, {a->A, M, K, 0, s, inv}},
		};

		run_all(ps, 1, bp, bq, at, K, N);
	} else {
		const int64_t m = (M + 1) / 2, n = ((N + 1) / 2 + HL - 1) / HL * HL, k = (K + 1) / 2;
		const struct quad A11 = {a->A, m, k, inv};
		const struct quad A12 = {a->A + k, m, K - k, inv};
		const struct quad A21 = {a->A + m * K, M - m, k, inv + m};
		const struct quad A22 = {a->A + m * K + k, M - m, K - k, inv + m};
		const struct quad B11 = {a->B, k, n, NULL};
		const struct quad B12 = {a->B + n, k, N - n, NULL};
		const struct quad B21 = {a->B + k * N, K - k, n, NULL};
		const struct quad B22 = {a->B + k * N + n, K - k, N - n, NULL};
		float *C11 = a->C, *C12 = a->C + n, *C21 = a->C + m * N, *C22 = a->C + m * N + n;

#define TO11(g, add) {C11, m, n, s, g, add}
#define TO12(g, add) {C12, m, N - n, s, g, add}
#define TO21(g, add) {C21, M - m, n, s + m, g, add}
#define TO22(g, add) {C22, M - m, N - n, s + m, g, add}
		/* M2 first (one quadrant of B, the scales of the lower rows), then M1 (the scales of the upper rows) */
		const struct prod ps[7] = {
			{M - m, n, k, A21, A22, 1, B11, B11, 0, {TO21(1, 0), TO22(-1, 0)}, 2,
				{a->A + m * K, M - m, K, k, s + m, inv + m}},
			{m, n, k, A11, A22, 1, B11, B22, 1, {TO11(1, 0), TO22(1, 1)}, 2,
				{a->A, m, K, k, s, inv}},
			{m, N - n, k, A11, A11, 0, B12, B22, -1, {TO12(1, 0), TO22(1, 1)}, 2,
				{NULL, 0, 0, 0, NULL, NULL}},
			{m, n, k, A22, A22, 0, B21, B11, -1, {TO11(1, 1), TO21(1, 1)}, 2,
				{NULL, 0, 0, 0, NULL, NULL}},
			{m, n, k, A11, A12, 1, B22, B22, 0, {TO11(-1, 1), TO12(1, 1)}, 2,
				{NULL, 0, 0, 0, NULL, NULL}},
			{M - m, N - n, k, A21, A11, -1, B11, B12, 1, {TO22(1, 1)}, 1,
				{NULL, 0, 0, 0, NULL, NULL}},
			{m, n, k, A12, A22, -1, B21, B22, 1, {TO11(1, 1)}, 1,
				{NULL, 0, 0, 0, NULL, NULL}},
		};

		run_all(ps, 7, bp, bq, at, K, N);
	}
	return 0;
}
