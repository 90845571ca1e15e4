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
#define GROUP_FLOATS (704 * 256)

typedef float vz __attribute__((vector_size(L * 4)));
typedef float vza __attribute__((vector_size(L * 4), may_alias));
typedef float vzu __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef float vh __attribute__((vector_size(L * 2)));
typedef float vha __attribute__((vector_size(L * 2), may_alias));
typedef float vhu __attribute__((vector_size(L * 2), aligned(4), may_alias));
typedef float v8 __attribute__((vector_size(32)));
typedef float v8u __attribute__((vector_size(32), aligned(4), may_alias));
typedef int i8 __attribute__((vector_size(32)));
typedef int i8u __attribute__((vector_size(32), aligned(4), may_alias));

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

/* What a tile requests on its way: per 16 k a line of each a (and adist behind it) and b; in the first steps, rows of c. */
struct ahead {
	const float *a[4];
	const float *b[2];
	const float *c[2];
	int64_t adist, ldc;
};

/* The first product computes the row scales: rows i and second + i of A; dist: from the left to the right half of a row. */
struct fresh {
	const float *A;
	int64_t M, K, second, dist;
	float *s, *inv;
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
		__builtin_prefetch(f->a[0] + o + f->adist);
		__builtin_prefetch(f->a[1] + o + f->adist);
		__builtin_prefetch(f->a[2] + o + f->adist);
		__builtin_prefetch(f->a[3] + o + f->adist);
		__builtin_prefetch(f->b[0] + o);
		__builtin_prefetch(f->b[1] + o);
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
				float s = a[r];

#pragma GCC unroll 16
				for (int v = 0; v < nv; v++)
					acc[r][v] += s * bv[v];
				if (h)
					ach[r] += s * bh;
			}
			a += mr;
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
			float s = a[r];

#pragma GCC unroll 16
			for (int v = 0; v < nv; v++)
				acc[r][v] += s * bv[v];
			if (h)
				ach[r] += s * bh;
		}
		a += mr;
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

/* Rows i .. i + h of X + g Y, columns k0 .. k0 + kc, to p [kc][h]. Writes up to 8 floats beyond the end of p. */
static void pack_a(float *p, const struct quad *X, const struct quad *Y, float g, int64_t lda,
	int64_t i, int h, int64_t k0, int64_t kc)
{
	const i8 lo = {0, 8, 1, 9, 4, 12, 5, 13}, hi = {2, 10, 3, 11, 6, 14, 7, 15};
	const i8 dl = {0, 1, 8, 9, 4, 5, 12, 13}, dh = {2, 3, 10, 11, 6, 7, 14, 15};
	const i8 ql = {0, 1, 2, 3, 8, 9, 10, 11}, qh = {4, 5, 6, 7, 12, 13, 14, 15};
	const float *x[8], *y[8];
	float xs[8], ys[8];
	int64_t vx = X->cols - k0, vy = Y->cols - k0;
	int64_t vk = vx < vy ? vx : vy;
	int64_t k = 0;

	if (vk > kc)
		vk = kc;
	for (int r = 0; r < 8; r++) {
		int64_t rr = i + (r < h ? r : h - 1);

		x[r] = X->p + k0;
		y[r] = Y->p + k0;
		xs[r] = 0;
		ys[r] = 0;
		if (rr < X->rows) {
			x[r] += rr * lda;
			xs[r] = X->s[rr];
		}
		if (rr < Y->rows) {
			y[r] += rr * lda;
			ys[r] = g * Y->s[rr];
		}
	}
	for (; k + 8 <= vk; k += 8) {
		float *o = p + k * h;
#define ROW(r) (*(const v8u *)(x[r] + k) * xs[r] + *(const v8u *)(y[r] + k) * ys[r])
		v8 r0 = ROW(0), r1 = ROW(1), r2 = ROW(2), r3 = ROW(3);
		v8 r4 = ROW(4), r5 = ROW(5), r6 = ROW(6), r7 = ROW(7);
#undef ROW
		v8 t0 = __builtin_shuffle(r0, r1, lo), t1 = __builtin_shuffle(r0, r1, hi);
		v8 t2 = __builtin_shuffle(r2, r3, lo), t3 = __builtin_shuffle(r2, r3, hi);
		v8 t4 = __builtin_shuffle(r4, r5, lo), t5 = __builtin_shuffle(r4, r5, hi);
		v8 t6 = __builtin_shuffle(r6, r7, lo), t7 = __builtin_shuffle(r6, r7, hi);
		v8 s0 = __builtin_shuffle(t0, t2, dl), s1 = __builtin_shuffle(t0, t2, dh);
		v8 s2 = __builtin_shuffle(t1, t3, dl), s3 = __builtin_shuffle(t1, t3, dh);
		v8 s4 = __builtin_shuffle(t4, t6, dl), s5 = __builtin_shuffle(t4, t6, dh);
		v8 s6 = __builtin_shuffle(t5, t7, dl), s7 = __builtin_shuffle(t5, t7, dh);

		/* in this order: with h < 8 each store overwrites what the one before wrote too much */
		*(v8u *)(o) = __builtin_shuffle(s0, s4, ql);
		*(v8u *)(o + h) = __builtin_shuffle(s1, s5, ql);
		*(v8u *)(o + 2 * h) = __builtin_shuffle(s2, s6, ql);
		*(v8u *)(o + 3 * h) = __builtin_shuffle(s3, s7, ql);
		*(v8u *)(o + 4 * h) = __builtin_shuffle(s0, s4, qh);
		*(v8u *)(o + 5 * h) = __builtin_shuffle(s1, s5, qh);
		*(v8u *)(o + 6 * h) = __builtin_shuffle(s2, s6, qh);
		*(v8u *)(o + 7 * h) = __builtin_shuffle(s3, s7, qh);
	}
	for (; k < kc; k++) {
		for (int r = 0; r < h; r++) {
			float z = 0;

			if (k < vx)
				z += x[r][k] * xs[r];
			if (k < vy)
				z += y[r][k] * ys[r];
			p[k * h + r] = z;
		}
	}
}

/* Columns j0 .. j1 (j0 a multiple of W), rows k0 .. k0 + kc of X + g Y to strips [kc][W], the last one of n narrower. */
static void pack_b(float *p, const struct quad *X, const struct quad *Y, float g, int64_t ldb,
	int64_t j0, int64_t j1, int64_t k0, int64_t kc)
{
	int64_t cx = X->cols, cy = Y->cols;
	int64_t cv = cx < cy ? cx : cy;

	for (int64_t k = 0; k < kc; k++) {
		const float *x = X->p, *y = Y->p;
		float gx = 0, gy = 0;
		int64_t j = j0;
		float *d = p + k * W;

		if (k0 + k < X->rows) {
			x += (k0 + k) * ldb;
			gx = 1;
		}
		if (k0 + k < Y->rows) {
			y += (k0 + k) * ldb;
			gy = g;
		}
		for (; j + W <= j1 && j + W <= cv; j += W) {
#pragma GCC unroll 16
			for (int t = 0; t < W; t += 16) {
				__builtin_prefetch(x + j + t + 2 * ldb);
				__builtin_prefetch(y + j + t + 2 * ldb);
			}
#pragma GCC unroll 16
			for (int v = 0; v < NVMAX; v++)
				*(vza *)(d + v * L) = *(const vzu *)(x + j + v * L) * gx + *(const vzu *)(y + j + v * L) * gy;
			d += W * kc;
		}
		for (; j < j1; j += W) {
			int wide = j1 - j < W ? (int)(j1 - j) : W;
			int w = (wide + L - 1) / L * L;
			int t = 0;

			d = p + (j - j0) * kc + k * w;
			for (; t + HL <= wide && j + t + HL <= cv; t += HL)
				*(vha *)(d + t) = *(const vhu *)(x + j + t) * gx + *(const vhu *)(y + j + t) * gy;
			for (; t < w; t++) {
				float z = 0;

				if (t < wide) {
					if (j + t < cx)
						z += x[j + t] * gx;
					if (j + t < cy)
						z += y[j + t] * gy;
				}
				d[t] = z;
			}
		}
	}
}

/* s: the power of two of the largest element of each row, inv: its inverse */
static void row_scales(const float *A, int64_t M, int64_t K, float *s, float *inv)
{
	const i8 mask = {0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff};

	for (int64_t i = 0; i < M; i++) {
		const float *p = A + i * K;
		i8 m0 = {0}, m1 = {0};
		int32_t best = 0, e, f;
		int64_t k = 0;

		for (; k + 16 <= K; k += 16) {
			i8 x = *(const i8u *)(p + k) & mask;
			i8 y = *(const i8u *)(p + k + 8) & mask;
			i8 gx = x > m0, gy = y > m1;

			m0 = (x & gx) | (m0 & ~gx);
			m1 = (y & gy) | (m1 & ~gy);
		}
		i8 gm = m0 > m1;

		m0 = (m0 & gm) | (m1 & ~gm);
		for (int t = 0; t < 8; t++)
			if (m0[t] > best)
				best = m0[t];
		for (; k < K; k++) {
			int32_t x;

			memcpy(&x, p + k, sizeof(x));
			x &= 0x7fffffff;
			if (x > best)
				best = x;
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

/* Row scales of rows i .. i + h of A, as far as there are such rows. */
static void some_scales(const struct fresh *F, int64_t i, int64_t h)
{
	if (i + h > F->M)
		h = F->M - i;
	if (h > 0)
		row_scales(F->A + i * F->K, h, F->K, F->s + i, F->inv + i);
}

/* (X + ga Y) (P + gb Q), m x k times k x n, to nd places; F: scales to compute, or NULL; R: a part of B to request, or NULL. */
static void product(int64_t m, int64_t n, int64_t k, const struct quad *X, const struct quad *Y, float ga,
	const struct quad *P, const struct quad *Q, float gb, const struct dst *to, int nd,
	int64_t lda, int64_t ldb, float *bp, float *at, const struct fresh *F, const struct quad *R)
{
	const int64_t ldc = ldb;
	int64_t blocks = (k + KCMAX - 1) / KCMAX;
	int64_t kstep = blocks < 1 ? 1 : (k + blocks - 1) / blocks;
	int64_t strips = (n + W - 1) / W;
	int64_t most = GROUP_FLOATS / (kstep * W);
	int64_t groups, tiles = (m + MR - 1) / MR;
	int64_t low = m / tiles, more = m % tiles;
	int64_t seg = kstep / 16 * 16, parts = 1, id = 0;
	const int64_t adist = F ? F->dist : 0;

	if (most < 1)
		most = 1;
	groups = (strips + most - 1) / most;
	if (R && seg > 0)
		parts = (R->cols + seg - 1) / seg;
	for (int64_t gr = 0; gr < groups; gr++) {
		int64_t s0 = gr * strips / groups, s1 = (gr + 1) * strips / groups;
		int64_t j1 = s1 * W < n ? s1 * W : n;

		for (int64_t k0 = 0; k0 < k; k0 += kstep) {
			int64_t kc = k - k0 < kstep ? k - k0 : kstep;
			int64_t i = 0;

			pack_b(bp, P, Q, gb, ldb, s0 * W, j1, k0, kc);
			for (int64_t t = 0; t < tiles; t++) {
				int h = (int)(low + (t < more));

				if (F && gr == 0 && k0 == 0) {
					some_scales(F, i, h);
					if (F->second > 0)
						some_scales(F, F->second + i, h);
				}
				pack_a(at, X, Y, ga, lda, i, h, k0, kc);
				for (int64_t s = s0; s < s1; s++) {
					int64_t j = s * W;
					int w = n - j < W ? (int)(n - j) : W;
					int kind = (w + HL - 1) / HL;
					int full = 1;
					struct dst d[2];
					struct ahead f = {{at, at, at, at}, {at, at}, {at, at}, adist, ldc};
					const float *b = bp + (j - s0 * W) * kc;

					/* two of the rows of the next tile */
					for (int z = 0; z < 2; z++) {
						int64_t r = 2 * (s - s0) + z;
						int64_t rr = i + h + r;

						if (t + 1 < tiles && r < MR) {
							if (rr < X->rows)
								f.a[z] = X->p + k0 + rr * lda;
							if (ga != 0 && rr < Y->rows)
								f.a[2 + z] = Y->p + k0 - adist + rr * lda;
						}
						if (R && seg > 0) {
							int64_t row = id / parts, part = id % parts;

							if (row < R->rows)
								f.b[z] = R->p + row * ldb + part * seg;
							id++;
						}
					}
					for (int z = 0; z < nd; z++) {
						d[z] = to[z];
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
				i += h;
			}
		}
	}
}

#define BP_FLOATS (GROUP_FLOATS > KCMAX * W ? GROUP_FLOATS : KCMAX * W)
#define AT_FLOATS (KCMAX * 8 + 32)

size_t km_workspace(const struct km_args *a)
{
	return ((size_t)BP_FLOATS + AT_FLOATS + 2 * (size_t)a->M + 32) * sizeof(float);
}

int km_run(const struct km_args *a)
{
	const int64_t M = a->M, N = a->N, K = a->K;
	float *bp = (float *)a->workspace;
	float *at = bp + BP_FLOATS;
	float *s = at + AT_FLOATS;
	float *inv = s + M;

	if (M < 256 || N < 256 || K < 256) {
		const struct fresh F = {a->A, M, K, 0, 0, s, inv};
		struct quad A0 = {a->A, M, K, inv};
		struct quad B0 = {a->B, K, N, NULL};
		struct dst d = {a->C, M, N, s, 1, 0};

		product(M, N, K, &A0, &A0, 0, &B0, &B0, 0, &d, 1, K, N, bp, at, &F, NULL);
	} else {
		const int64_t m = (M + 1) / 2, n = ((N + 1) / 2 + HL - 1) / HL * HL, k = (K + 1) / 2;
		const struct fresh F = {a->A, M, K, m, k, s, inv};
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
		{
			const struct dst d[2] = {TO11(1, 0), TO22(1, 0)};

			product(m, n, k, &A11, &A22, 1, &B11, &B22, 1, d, 2, K, N, bp, at, &F, &B12);
		}
		{
			const struct dst d[2] = {TO21(1, 0), TO22(-1, 1)};

			product(M - m, n, k, &A21, &A22, 1, &B11, &B11, 0, d, 2, K, N, bp, at, NULL, &B21);
		}
		{
			const struct dst d[2] = {TO12(1, 0), TO22(1, 1)};

			product(m, N - n, k, &A11, &A11, 0, &B12, &B22, -1, d, 2, K, N, bp, at, NULL, NULL);
		}
		{
			const struct dst d[2] = {TO11(1, 1), TO21(1, 1)};

			product(m, n, k, &A22, &A22, 0, &B21, &B11, -1, d, 2, K, N, bp, at, NULL, NULL);
		}
		{
			const struct dst d[2] = {TO11(-1, 1), TO12(1, 1)};

			product(m, n, k, &A11, &A12, 1, &B22, &B22, 0, d, 2, K, N, bp, at, NULL, NULL);
		}
		{
			const struct dst d[1] = {TO22(1, 1)};

			product(M - m, N - n, k, &A21, &A11, -1, &B11, &B12, 1, d, 1, K, N, bp, at, NULL, NULL);
		}
		{
			const struct dst d[1] = {TO11(1, 1)};

			product(m, n, k, &A12, &A22, -1, &B21, &B22, 1, d, 1, K, N, bp, at, NULL, NULL);
		}
	}
	return 0;
}
