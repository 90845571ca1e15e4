#include "task.h"
#include <string.h>

#ifdef __AVX512F__
#define L 16
#define RG 8
#else
#define L 8
#define RG 4
#endif
#define NV 3
#define HL (L / 2)
#define W (L * NV)
#define TB 4
#define NBLOCK 1280
#define KBLOCK 1344

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

/* A local tile (rows W apart) that takes a product: c = acc, or c += g * acc. */
struct dst {
	float *c;
	float g;
	int add;
};

/*
 * What a tile does on its way for each chunk of 16 k: requests 12 lines from nb on if nb is set, one line of a0 and a1; if c
 * is set a half of a row of a tile of C. If sb is set, two rows of the next strip of B for each three chunks: their parts in
 * all four quadrants (right and low are the distances) are requested 6 rows ahead, as are the lines of the 7 operands at pd
 * (ss floats apart), and the first rows of them (at most nrow) are packed there.
 */
struct ahead {
	const float *nb, *a0, *a1, *c, *sb;
	int64_t ldc, ldb, right, low;
	float *pd;
	int64_t ss, nrow;
};

/* mr rows, nv full vectors and h (0 or 1) half vectors of columns; a: [kc][8], b: [kc][(nv + h) * L]. */
static inline __attribute__((always_inline)) void tile(const int mr, const int nv, const int h, int64_t kc,
	const float *a, const float *b, const struct dst *d, int nd, const struct ahead *f)
{
	vz acc[RG][NV];
	vh ach[RG];
	const int64_t chunks = kc >> 4;
	const int64_t rest = kc & 15;
	int64_t row = 0;
	int phase = 0;

#pragma GCC unroll 16
	for (int r = 0; r < mr; r++) {
#pragma GCC unroll 16
		for (int v = 0; v < nv; v++)
			acc[r][v] = (vz){0};
		if (h)
			ach[r] = (vh){0};
	}
	for (int64_t ch = 0; ch < chunks; ch++) {
		if (f->nb) {
			const float *q = f->nb + ch * 192;

#pragma GCC unroll 16
			for (int x = 0; x < 12; x++)
				__builtin_prefetch(q + 16 * x, 0, 2);
		}
		__builtin_prefetch(f->a0 + ch * 16, 0, 2);
		__builtin_prefetch(f->a1 + ch * 16, 0, 2);
		if (f->c && ch < 16) {
			const float *p = f->c + (ch >> 1) * f->ldc;
			const int64_t odd = ch & 1;

			__builtin_prefetch(p + odd * 32, 1);
			__builtin_prefetch(p + 16 + odd * 31, 1);
		}
		if (nv == NV && f->sb) {
			const int64_t ss = f->ss;

			if (phase == 0) {
				const float *p = f->sb + (row + 6) * f->ldb;

				for (int z = 0; z < 2; z++) {
#pragma GCC unroll 16
					for (int x = 15; x < 48; x += 16) {
						__builtin_prefetch(p + x);
						__builtin_prefetch(p + x + f->right);
						__builtin_prefetch(p + x + f->low);
						__builtin_prefetch(p + x + f->low + f->right);
					}
					p += f->ldb;
				}
			} else {
				float *d = f->pd + (row + 6 + phase - 1) * W;

				for (int z = 0; z < 7; z++) {
#pragma GCC unroll 16
					for (int x = 0; x < W; x += 16)
						__builtin_prefetch(d + x, 1);
					d += ss;
				}
			}
			if (phase < 2) {
				if (row < f->nrow) {
					const float *x11 = f->sb + row * f->ldb, *x12 = x11 + f->right;
					const float *x21 = x11 + f->low, *x22 = x21 + f->right;
					float *d = f->pd + row * W;

#pragma GCC unroll 16
					for (int v = 0; v < NV; v++) {
						float *p = d + v * L;
						vz b11 = *(const vzu *)(x11 + v * L), b22 = *(const vzu *)(x22 + v * L);
						vz b12, b21;

						*(vza *)p = b11 + b22;
						*(vza *)(p + ss) = b11;
						*(vza *)(p + 4 * ss) = b22;
						b12 = *(const vzu *)(x12 + v * L);
						*(vza *)(p + 2 * ss) = b12 - b22;
						*(vza *)(p + 5 * ss) = b11 + b12;
						b21 = *(const vzu *)(x21 + v * L);
						*(vza *)(p + 3 * ss) = b21 - b11;
						*(vza *)(p + 6 * ss) = b21 + b22;
					}
				}
				row++;
				phase++;
			} else {
				phase = 0;
			}
		}
#pragma GCC unroll 4
		for (int u = 0; u < 16; u++) {
			vz bv[NV];
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
			a += 8;
			b += (nv + h) * L;
		}
	}
	for (int64_t k = 0; k < rest; k++) {
		vz bv[NV];
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
		a += 8;
		b += (nv + h) * L;
	}
	for (int t = 0; t < nd; t++) {
		float *c = d[t].c;
		float g = d[t].g;

		if (d[t].add) {
#pragma GCC unroll 16
			for (int r = 0; r < mr; r++) {
#pragma GCC unroll 16
				for (int v = 0; v < nv; v++) {
					float *q = c + r * W + v * L;

					*(vza *)q = *(const vza *)q + g * acc[r][v];
				}
				if (h) {
					float *q = c + r * W + nv * L;

					*(vha *)q = *(const vha *)q + g * ach[r];
				}
			}
		} else {
#pragma GCC unroll 16
			for (int r = 0; r < mr; r++) {
#pragma GCC unroll 16
				for (int v = 0; v < nv; v++)
					*(vza *)(c + r * W + v * L) = acc[r][v];
				if (h)
					*(vha *)(c + r * W + nv * L) = ach[r];
			}
		}
	}
}

#define PARAMS int64_t kc, const float *a, const float *b, const struct dst *d, int nd, const struct ahead *f
#define ARGS kc, a, b, d, nd, f

#define DEF(R, V, H) \
static __attribute__((noinline)) void t_##R##_##V##_##H(PARAMS) \
{ \
	tile(R, V, H, ARGS); \
}
#define DEFROWS(R) \
DEF(R, 0, 1) DEF(R, 1, 0) DEF(R, 1, 1) DEF(R, 2, 0) DEF(R, 2, 1) DEF(R, 3, 0) \
static void rows_##R(int kind, PARAMS) \
{ \
	switch (kind) { \
	case 6: t_##R##_3_0(ARGS); break; \
	case 5: t_##R##_2_1(ARGS); break; \
	case 4: t_##R##_2_0(ARGS); break; \
	case 3: t_##R##_1_1(ARGS); break; \
	case 2: t_##R##_1_0(ARGS); break; \
	default: t_##R##_0_1(ARGS); break; \
	} \
}

DEFROWS(4)
#if RG == 8
DEFROWS(8)
#endif

/* kind: the number of half vectors; rows: 1 to 8 of the tile are wanted */
static void run_tile(int kind, int rows, PARAMS)
{
#if RG == 8
	if (rows > 4)
		rows_8(kind, ARGS);
	else
		rows_4(kind, ARGS);
#else
	rows_4(kind, ARGS);
	if (rows > 4) {
		struct dst e[2];

		for (int t = 0; t < nd; t++) {
			e[t] = d[t];
			e[t].c += 4 * W;
		}
		rows_4(kind, kc, a + 4, b, e, nd, f);
	}
#endif
}

/* x[c] = the 8 rows' element o + c */
static inline __attribute__((always_inline)) void transpose8(const float *const *a, int64_t o, v8 *x)
{
	const i8 lo = {0, 8, 1, 9, 4, 12, 5, 13}, hi = {2, 10, 3, 11, 6, 14, 7, 15};
	const i8 dl = {0, 1, 8, 9, 4, 5, 12, 13}, dh = {2, 3, 10, 11, 6, 7, 14, 15};
	const i8 ql = {0, 1, 2, 3, 8, 9, 10, 11}, qh = {4, 5, 6, 7, 12, 13, 14, 15};
	v8 r0 = *(const v8u *)(a[0] + o), r1 = *(const v8u *)(a[1] + o);
	v8 r2 = *(const v8u *)(a[2] + o), r3 = *(const v8u *)(a[3] + o);
	v8 r4 = *(const v8u *)(a[4] + o), r5 = *(const v8u *)(a[5] + o);
	v8 r6 = *(const v8u *)(a[6] + o), r7 = *(const v8u *)(a[7] + o);
	v8 t0 = __builtin_shuffle(r0, r1, lo), t1 = __builtin_shuffle(r0, r1, hi);
	v8 t2 = __builtin_shuffle(r2, r3, lo), t3 = __builtin_shuffle(r2, r3, hi);
	v8 t4 = __builtin_shuffle(r4, r5, lo), t5 = __builtin_shuffle(r4, r5, hi);
	v8 t6 = __builtin_shuffle(r6, r7, lo), t7 = __builtin_shuffle(r6, r7, hi);
	v8 s0 = __builtin_shuffle(t0, t2, dl), s1 = __builtin_shuffle(t0, t2, dh);
	v8 s2 = __builtin_shuffle(t1, t3, dl), s3 = __builtin_shuffle(t1, t3, dh);
	v8 s4 = __builtin_shuffle(t4, t6, dl), s5 = __builtin_shuffle(t4, t6, dh);
	v8 s6 = __builtin_shuffle(t5, t7, dl), s7 = __builtin_shuffle(t5, t7, dh);

	x[0] = __builtin_shuffle(s0, s4, ql);
	x[1] = __builtin_shuffle(s1, s5, ql);
	x[2] = __builtin_shuffle(s2, s6, ql);
	x[3] = __builtin_shuffle(s3, s7, ql);
	x[4] = __builtin_shuffle(s0, s4, qh);
	x[5] = __builtin_shuffle(s1, s5, qh);
	x[6] = __builtin_shuffle(s2, s6, qh);
	x[7] = __builtin_shuffle(s3, s7, qh);
}

/* The power of two of the largest element of a row, and its inverse. */
static float row_scale(const float *p, int64_t K, float *inv)
{
	const i8 mask = {0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff};
	i8 m0 = {0}, m1 = {0}, gm;
	int32_t best = 0, e, f;
	int64_t k = 0;
	float s;

	for (; k + 16 <= K; k += 16) {
		i8 x = *(const i8u *)(p + k) & mask;
		i8 y = *(const i8u *)(p + k + 8) & mask;
		i8 gx = x > m0, gy = y > m1;

		m0 = (x & gx) | (m0 & ~gx);
		m1 = (y & gy) | (m1 & ~gy);
	}
	gm = m0 > m1;
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
	memcpy(inv, &f, sizeof(f));
	memcpy(&s, &e, sizeof(e));
	return s;
}

/*
 * The 7 left operands of rows i .. i + 7 of both halves of A, scaled, each to [k][8], pstride floats apart;
 * sc: the scales of the 8 upper and the 8 lower rows.
 */
static void pack_a7(float *ap, int64_t pstride, const float *A, int64_t lda, int64_t M, int64_t K,
	int64_t m, int64_t k, int64_t i, float *sc)
{
	const float *u[8], *l[8];
	float inv[16] __attribute__((aligned(64)));
	const int64_t v = K - k;
	int64_t o = 0;
	v8 su, sl;

	for (int r = 0; r < 8; r++) {
		u[r] = A;
		l[r] = A;
		sc[r] = 0;
		sc[8 + r] = 0;
		inv[r] = 0;
		inv[8 + r] = 0;
		if (i + r < m) {
			u[r] = A + (i + r) * lda;
			sc[r] = row_scale(u[r], K, inv + r);
		}
		if (m + i + r < M) {
			l[r] = A + (m + i + r) * lda;
			sc[8 + r] = row_scale(l[r], K, inv + 8 + r);
		}
	}
	su = *(const v8u *)inv;
	sl = *(const v8u *)(inv + 8);
	for (; o + 8 <= v; o += 8) {
		v8 x11[8], x22[8], y[8];

		/* one quadrant after the other, so that at most three blocks are alive */
		transpose8(u, o, x11);
#pragma GCC unroll 16
		for (int c = 0; c < 8; c++) {
			x11[c] *= su;
			*(v8u *)(ap + (o + c) * 8 + 2 * pstride) = x11[c];
		}
		transpose8(l, k + o, x22);
#pragma GCC unroll 16
		for (int c = 0; c < 8; c++) {
			float *p = ap + (o + c) * 8;

			x22[c] *= sl;
			*(v8u *)(p + 3 * pstride) = x22[c];
			*(v8u *)p = x11[c] + x22[c];
		}
		transpose8(u, k + o, y);
#pragma GCC unroll 16
		for (int c = 0; c < 8; c++) {
			float *p = ap + (o + c) * 8;

			y[c] *= su;
			*(v8u *)(p + 4 * pstride) = x11[c] + y[c];
			*(v8u *)(p + 6 * pstride) = y[c] - x22[c];
		}
		transpose8(l, o, y);
#pragma GCC unroll 16
		for (int c = 0; c < 8; c++) {
			float *p = ap + (o + c) * 8;

			y[c] *= sl;
			*(v8u *)(p + pstride) = y[c] + x22[c];
			*(v8u *)(p + 5 * pstride) = y[c] - x11[c];
		}
	}
	for (; o < k; o++) {
		for (int r = 0; r < 8; r++) {
			float *p = ap + o * 8 + r;
			float a11 = u[r][o] * inv[r], a21 = l[r][o] * inv[8 + r];
			float a12 = o < v ? u[r][k + o] * inv[r] : 0, a22 = o < v ? l[r][k + o] * inv[8 + r] : 0;

			p[0] = a11 + a22;
			p[pstride] = a21 + a22;
			p[2 * pstride] = a11;
			p[3 * pstride] = a22;
			p[4 * pstride] = a11 + a12;
			p[5 * pstride] = a21 - a11;
			p[6 * pstride] = a12 - a22;
		}
	}
}

/* The 7 right operands of columns j .. j + wide of both halves of B, each to [k][whole vectors], ss floats apart, from row r0 on. */
static void pack_b7(float *bp, int64_t ss, const float *B, int64_t ldb, int64_t N, int64_t K,
	int64_t n, int64_t k, int64_t j, int wide, int64_t r0)
{
	const int w = (wide + L - 1) / L * L;
	const int64_t right = N - n - j;
	const int wr = right < wide ? (right > 0 ? (int)right : 0) : wide;
	float tmp[4][W] __attribute__((aligned(64)));

	memset(tmp, 0, sizeof(tmp));
	for (int64_t r = r0; r < k; r++) {
		const float *x11 = B + r * ldb + j, *x12 = x11 + n, *x21 = x11 + k * ldb, *x22 = x21 + n;
		float *d = bp + r * w;

		if (wide == W && wr == W && r + k < K) {
#pragma GCC unroll 16
			for (int x = 15; x < W; x += 16) {
				__builtin_prefetch(x11 + 6 * ldb + x);
				__builtin_prefetch(x12 + 6 * ldb + x);
				__builtin_prefetch(x21 + 6 * ldb + x);
				__builtin_prefetch(x22 + 6 * ldb + x);
			}
			for (int p = 0; p < 7; p++) {
#pragma GCC unroll 16
				for (int x = 0; x < W; x += 16)
					__builtin_prefetch(d + p * ss + 4 * W + x, 1);
			}
		} else {
			memcpy(tmp[0], x11, (size_t)wide * sizeof(float));
			if (wr > 0)
				memcpy(tmp[1], x12, (size_t)wr * sizeof(float));
			if (r + k < K) {
				memcpy(tmp[2], x21, (size_t)wide * sizeof(float));
				if (wr > 0)
					memcpy(tmp[3], x22, (size_t)wr * sizeof(float));
			} else {
				memset(tmp[2], 0, sizeof(tmp[2]));
				memset(tmp[3], 0, sizeof(tmp[3]));
			}
			x11 = tmp[0];
			x12 = tmp[1];
			x21 = tmp[2];
			x22 = tmp[3];
		}
		for (int c = 0; c < w; c += L) {
			vz b11 = *(const vzu *)(x11 + c), b12 = *(const vzu *)(x12 + c);
			vz b21 = *(const vzu *)(x21 + c), b22 = *(const vzu *)(x22 + c);

			*(vza *)(d + c) = b11 + b22;
			*(vza *)(d + ss + c) = b11;
			*(vza *)(d + 2 * ss + c) = b12 - b22;
			*(vza *)(d + 3 * ss + c) = b21 - b11;
			*(vza *)(d + 4 * ss + c) = b22;
			*(vza *)(d + 5 * ss + c) = b11 + b12;
			*(vza *)(d + 6 * ss + c) = b21 + b22;
		}
	}
}

/* A local tile times the scales of its rows to C, or added to C. */
static void write_out(const float *blk, float *C, int64_t ldc, int64_t rows, int64_t cols, const float *sc, int add)
{
	for (int64_t r = 0; r < rows; r++) {
		const float *q = blk + r * W;
		float *c = C + r * ldc;
		const float s = sc[r];
		int64_t x = 0;

		if (add) {
			for (; x + HL <= cols; x += HL)
				*(vhu *)(c + x) = *(const vhu *)(c + x) + s * *(const vha *)(q + x);
			for (; x < cols; x++)
				c[x] += s * q[x];
		} else {
			for (; x + L <= cols; x += L)
				*(vzu *)(c + x) = s * *(const vza *)(q + x);
			for (; x + HL <= cols; x += HL)
				*(vhu *)(c + x) = s * *(const vha *)(q + x);
			for (; x < cols; x++)
				c[x] = s * q[x];
		}
	}
}

/* Floats from strip to strip: kb rows of W, and so much more that the starts are 12 lines apart modulo 64 lines. */
static int64_t strip_floats(int64_t kb)
{
	int64_t lines = (kb * W + 15) / 16;

	return (lines + ((12 - lines) & 63)) * 16;
}

static int64_t half_columns(int64_t N)
{
	return ((N + 1) / 2 + HL - 1) / HL * HL;
}

/* C (+)= A B by one Strassen level; M, N, K >= 256. Quadrants of C: 0 upper left, 1 upper right, 2 lower left, 3 lower right. */
static void strassen(int64_t M, int64_t N, int64_t K, const float *A, int64_t lda, const float *B, int64_t ldb,
	float *C, int64_t ldc, int add, float *ws)
{
	static const struct {
		int nd, q0, add0, q1, add1;
		float g0, g1;
	} plan[7] = {
		{2, 0, 0, 3, 0, 1, 1},
		{2, 2, 0, 3, 1, 1, -1},
		{2, 1, 0, 3, 1, 1, 1},
		{2, 0, 1, 2, 1, 1, 1},
		{2, 0, 1, 1, 1, -1, 1},
		{1, 3, 1, 3, 1, 1, 1},
		{1, 0, 1, 0, 1, 1, 1},
	};
	const int64_t m = (M + 1) / 2, n = half_columns(N), k = (K + 1) / 2;
	const int64_t strips = (n + W - 1) / W, ss = strip_floats(k);
	const int64_t tiles = (m + 7) / 8, bands = (tiles + TB - 1) / TB;
	const int64_t chunks = k >> 4, pstride = TB * k * 8;
	float *bp = ws, *ap = bp + 7 * strips * ss, *blk = ap + 7 * pstride;
	float sc[TB][16];
	int64_t ready = 0;

	for (int64_t b = 0; b < bands; b++) {
		const int64_t t0 = (b * tiles + bands - 1) / bands, t1 = ((b + 1) * tiles + bands - 1) / bands;
		int64_t done = 0;

		for (int64_t t = t0; t < t1; t++)
			pack_a7(ap + (t - t0) * k * 8, pstride, A, lda, M, K, m, k, t * 8, sc[t - t0]);
		for (int64_t s = 0; s < strips; s++) {
			const int64_t j = s * W;
			const int wide = n - j < W ? (int)(n - j) : W;
			const int kind = (wide + HL - 1) / HL;
			const int64_t right = N - n - j;
			const int64_t wr = right < wide ? (right > 0 ? right : 0) : wide;
			const int more = b == 0 && s + 1 < strips;
			/* rows of the next strip that can be packed in the product loops, and how many are done by a tile */
			const int64_t good = more && j + 2 * W <= n && j + 2 * W <= N - n ? K - k : 0;
			const int64_t step = chunks / 3 * 2 + chunks % 3;
			int64_t srow = 0;

			if (b == 0)
				pack_b7(bp + 7 * s * ss, ss, B, ldb, N, K, n, k, j, wide, ready);
			for (int p = 0; p < 7; p++) {
				const float *bs = bp + (7 * s + p) * ss;
				const float *next = more ? NULL : s + 1 < strips || p < 6 ? bs + ss : bp;

				/* M3 and M6 go to the right half only */
				if (wr == 0 && (p == 2 || p == 5))
					continue;
				for (int64_t t = t0; t < t1; t++) {
					const int64_t i = t * 8;
					const float *a = ap + p * pstride + (t - t0) * k * 8;
					struct ahead f = {next ? next + (t - t0) * chunks * 192 : NULL, a, a, NULL, NULL,
						ldc, ldb, n, k * ldb, NULL, ss, 0};
					struct dst d[2];

					if (b + 1 < bands && done < TB * 8 * lda) {
						f.a0 = A + t1 * 8 * lda + done;
						f.a1 = A + (m + t1 * 8) * lda + done;
						done += chunks * 16;
					}
					if (p >= 3) {
						const int q = p - 3;

						f.c = C + (i + (q >= 2 ? m : 0)) * ldc + j + ((q & 1) ? n : 0);
					}
					if (more && srow < k) {
						f.sb = B + srow * ldb + j + W;
						f.pd = bp + 7 * (s + 1) * ss + srow * W;
						f.nrow = good > srow ? good - srow : 0;
						srow += step;
					}
					d[0].c = blk + (plan[p].q0 * TB + (t - t0)) * 8 * W;
					d[0].g = plan[p].g0;
					d[0].add = plan[p].add0;
					d[1].c = blk + (plan[p].q1 * TB + (t - t0)) * 8 * W;
					d[1].g = plan[p].g1;
					d[1].add = plan[p].add1;
					run_tile(kind, m - i < 8 ? (int)(m - i) : 8, k, a, bs, d, plan[p].nd, &f);
				}
			}
			ready = srow < good ? srow : good;
			for (int q = 0; q < 4; q++) {
				for (int64_t t = t0; t < t1; t++) {
					const int64_t i = t * 8;
					int64_t rows = q >= 2 ? M - m - i : m - i;

					if (rows > 8)
						rows = 8;
					write_out(blk + (q * TB + (t - t0)) * 8 * W,
						C + (i + (q >= 2 ? m : 0)) * ldc + j + ((q & 1) ? n : 0), ldc,
						rows, (q & 1) ? wr : wide, sc[t - t0] + (q >= 2 ? 8 : 0), add);
				}
			}
		}
	}
}

/* C (+)= A B by the plain packed product, for small sizes. */
static void plain(int64_t M, int64_t N, int64_t K, const float *A, int64_t lda, const float *B, int64_t ldb,
	float *C, int64_t ldc, int add, float *ws)
{
	static const float ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
	const int64_t strips = (N + W - 1) / W, ss = strip_floats(K);
	float *bp = ws, *ap = bp + strips * ss, *blk = ap + (8 * K + 15) / 16 * 16;

	for (int64_t k = 0; k < K; k++) {
		for (int64_t s = 0; s < strips; s++) {
			const int64_t j = s * W;
			const int wide = N - j < W ? (int)(N - j) : W;
			const int w = (wide + L - 1) / L * L;
			const float *x = B + k * ldb + j;
			float *d = bp + s * ss + k * w;

			if (wide == W) {
#pragma GCC unroll 16
				for (int v = 0; v < NV; v++)
					*(vza *)(d + v * L) = *(const vzu *)(x + v * L);
			} else {
				memcpy(d, x, (size_t)wide * sizeof(float));
				for (int c = wide; c < w; c++)
					d[c] = 0;
			}
		}
	}
	for (int64_t i = 0; i < M; i += 8) {
		const int rows = M - i < 8 ? (int)(M - i) : 8;
		const float *a[8];
		int64_t o = 0;

		for (int r = 0; r < 8; r++)
			a[r] = A + (i + (r < rows ? r : rows - 1)) * lda;
		for (; o + 8 <= K; o += 8) {
			v8 x[8];

			transpose8(a, o, x);
#pragma GCC unroll 16
			for (int c = 0; c < 8; c++)
				*(v8u *)(ap + (o + c) * 8) = x[c];
		}
		for (; o < K; o++)
			for (int r = 0; r < 8; r++)
				ap[o * 8 + r] = a[r][o];
		for (int64_t s = 0; s < strips; s++) {
			const int64_t j = s * W;
			const int wide = N - j < W ? (int)(N - j) : W;
			const struct ahead f = {bp + s * ss, ap, ap, C + i * ldc + j, NULL, ldc, 0, 0, 0, NULL, 0, 0};
			const struct dst d = {blk, 1, 0};

			run_tile((wide + HL - 1) / HL, rows, K, ap, bp + s * ss, &d, 1, &f);
			write_out(blk, C + i * ldc + j, ldc, rows, wide, ones, add);
		}
	}
}

static int64_t block_of(int64_t x, int64_t most, int64_t unit)
{
	int64_t blocks = (x + most - 1) / most;

	if (blocks < 1)
		blocks = 1;
	x = (x + blocks - 1) / blocks;
	return (x + unit - 1) / unit * unit;
}

size_t km_workspace(const struct km_args *a)
{
	int64_t nb = block_of(a->N, NBLOCK, 16), kb = block_of(a->K, KBLOCK, 16);
	int64_t k = (kb + 1) / 2;
	int64_t x = 7 * ((half_columns(nb) + W - 1) / W) * strip_floats(k) + 7 * TB * k * 8;
	int64_t y = (nb + W - 1) / W * strip_floats(kb) + 8 * kb + 16;

	/* the strips of a last, shorter block may be padded by some lines more */
	x += 7 * ((half_columns(nb) + W - 1) / W) * 1024;
	y += (nb + W - 1) / W * 1024;
	return (size_t)((x > y ? x : y) + 4 * TB * 8 * W + 64) * sizeof(float);
}

int km_run(const struct km_args *a)
{
	const int64_t M = a->M, N = a->N, K = a->K;
	const int64_t nb = block_of(N, NBLOCK, 16), kb = block_of(K, KBLOCK, 16);
	float *ws = (float *)a->workspace;

	for (int64_t n0 = 0; n0 < N; n0 += nb) {
		const int64_t nn = N - n0 < nb ? N - n0 : nb;

		for (int64_t k0 = 0; k0 < K; k0 += kb) {
			const int64_t kk = K - k0 < kb ? K - k0 : kb;
			const float *A = a->A + k0, *B = a->B + k0 * N + n0;
			float *C = a->C + n0;

			if (M >= 256 && nn >= 256 && kk >= 256)
				strassen(M, nn, kk, A, K, B, N, C, N, k0 > 0, ws);
			else
				plain(M, nn, kk, A, K, B, N, C, N, k0 > 0, ws);
		}
	}
	return 0;
}
