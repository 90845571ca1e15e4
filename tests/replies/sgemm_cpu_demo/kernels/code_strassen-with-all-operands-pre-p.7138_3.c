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
#define KBLOCK 1024
#define KHALF 512
/* floats from row to row of an operand of A, and from operand to operand */
#define AS 528
#define PS (TB * 8 * AS + 144)

typedef float vz __attribute__((vector_size(L * 4)));
typedef float vza __attribute__((vector_size(L * 4), may_alias));
typedef float vzu __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef float vh __attribute__((vector_size(L * 2)));
typedef float vha __attribute__((vector_size(L * 2), may_alias));
typedef float vhu __attribute__((vector_size(L * 2), aligned(4), may_alias));
typedef int32_t i32a __attribute__((may_alias));

/* A local tile (rows W apart) that takes a product: c = acc, or c += g * acc. */
struct dst {
	float *c;
	float g;
	int add;
};

/*
 * What a tile requests on its way for each chunk of 16 k: 12 or 16 lines from nb on (step: 192 or 256 floats), one line of a0
 * and a1; if c is set a half of a row of a tile of C; if sb is set a row of the next strip in all four quadrants of B (right
 * and low are the distances).
 */
struct ahead {
	const float *nb, *a0, *a1, *c, *sb;
	int64_t ldc, ldb, right, low, step;
};

/* mr rows, nv full vectors and h (0 or 1) half vectors of columns; a: rows AS apart, b: [kc][(nv + h) * L]. */
static inline __attribute__((always_inline)) void tile(const int mr, const int nv, const int h, int64_t kc,
	const float *a, const float *b, const struct dst *d, int nd, const struct ahead *f)
{
	vz acc[RG][NV];
	vh ach[RG];
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
		const float *q = f->nb + ch * f->step;

#pragma GCC unroll 16
		for (int x = 0; x < 12; x++)
			__builtin_prefetch(q + 16 * x, 0, 2);
		if (f->step > 192) {
#pragma GCC unroll 16
			for (int x = 12; x < 16; x++)
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
		if (f->sb) {
			const float *p = f->sb + ch * f->ldb;

#pragma GCC unroll 16
			for (int x = 15; x < 48; x += 16) {
				__builtin_prefetch(p + x, 0, 2);
				__builtin_prefetch(p + x + f->right, 0, 2);
				__builtin_prefetch(p + x + f->low, 0, 2);
				__builtin_prefetch(p + x + f->low + f->right, 0, 2);
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
				float s = a[r * AS];

#pragma GCC unroll 16
				for (int v = 0; v < nv; v++)
					acc[r][v] += s * bv[v];
				if (h)
					ach[r] += s * bh;
			}
			a++;
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
			float s = a[r * AS];

#pragma GCC unroll 16
			for (int v = 0; v < nv; v++)
				acc[r][v] += s * bv[v];
			if (h)
				ach[r] += s * bh;
		}
		a++;
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
		rows_4(kind, kc, a + 4 * AS, b, e, nd, f);
	}
#endif
}

/* The power of two of the largest element of a row, and its inverse. */
static float row_scale(const float *p, int64_t K, float *inv)
{
	const i32a *x = (const i32a *)p;
	int32_t best = 0, e, f;
	float s;

	for (int64_t k = 0; k < K; k++) {
		int32_t y = x[k] & 0x7fffffff;

		best = y > best ? y : best;
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

/* One vector of the 7 left operands: u and l are the places in the upper and the lower row, k the distance of the halves. */
static inline __attribute__((always_inline)) void sums_a(float *p, const float *u, const float *l, int64_t k,
	float iu, float il)
{
	vz a11 = *(const vzu *)u * iu, a22 = *(const vzu *)(l + k) * il;
	vz a12 = *(const vzu *)(u + k) * iu, a21 = *(const vzu *)l * il;

	*(vzu *)p = a11 + a22;
	*(vzu *)(p + PS) = a21 + a22;
	*(vzu *)(p + 2 * PS) = a11;
	*(vzu *)(p + 3 * PS) = a22;
	*(vzu *)(p + 4 * PS) = a11 + a12;
	*(vzu *)(p + 5 * PS) = a21 - a11;
	*(vzu *)(p + 6 * PS) = a12 - a22;
}

/*
 * The 7 left operands of rows i .. i + 7 of both halves of A, scaled, each as 8 rows AS apart, PS floats apart;
 * sc: the scales of the 8 upper and the 8 lower rows. K - k >= L.
 */
static void pack_a7(float *ap, const float *A, int64_t lda, int64_t M, int64_t K, int64_t m, int64_t k, int64_t i, float *sc)
{
	const int64_t v = K - k;

	for (int r = 0; r < 8; r++) {
		float *p = ap + r * AS;
		const float *u, *l;
		float iu = 0, il = 0;
		int64_t o = 0;

		sc[r] = 0;
		sc[8 + r] = 0;
		if (i + r >= m) {
			for (int q = 0; q < 7; q++)
				memset(p + q * PS, 0, (size_t)k * sizeof(float));
			continue;
		}
		u = A + (i + r) * lda;
		l = u;
		sc[r] = row_scale(u, K, &iu);
		if (m + i + r < M) {
			l = A + (m + i + r) * lda;
			sc[8 + r] = row_scale(l, K, &il);
		}
		for (; o + L <= v; o += L) {
			__builtin_prefetch(u + lda + o);
			__builtin_prefetch(u + lda + k + o);
			__builtin_prefetch(l + lda + o);
			__builtin_prefetch(l + lda + k + o);
			sums_a(p + o, u + o, l + o, k, iu, il);
		}
		if (o < v) {
			o = v - L;
			sums_a(p + o, u + o, l + o, k, iu, il);
		}
		for (o = v; o < k; o++) {
			float a11 = u[o] * iu, a21 = l[o] * il;

			p[o] = a11;
			p[o + PS] = a21;
			p[o + 2 * PS] = a11;
			p[o + 3 * PS] = 0;
			p[o + 4 * PS] = a11;
			p[o + 5 * PS] = a21 - a11;
			p[o + 6 * PS] = 0;
		}
	}
}

/* The 7 right operands of columns j .. j + wide of both halves of B, each to [k][whole vectors], ss floats apart. */
static void pack_b7(float *bp, int64_t ss, const float *B, int64_t ldb, int64_t N, int64_t K,
	int64_t n, int64_t k, int64_t j, int wide)
{
	const int w = (wide + L - 1) / L * L;
	const int64_t right = N - n - j;
	const int wr = right < wide ? (right > 0 ? (int)right : 0) : wide;
	float tmp[4][W] __attribute__((aligned(64)));

	memset(tmp, 0, sizeof(tmp));
	for (int64_t r = 0; r < k; r++) {
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

/*
 * C (+)= A B by one Strassen level; M, N, K >= 256, K <= KBLOCK.
 * Quadrants of C: 0 upper left, 1 upper right, 2 lower left, 3 lower right.
 */
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
	const int64_t chunks = k >> 4;
	/* tiles that it takes to request the rows of A of a band */
	const int64_t want = (TB * 8 * lda + chunks * 16 - 1) / (chunks * 16);
	float *bp = ws, *ap = bp + 7 * strips * ss, *blk = ap + 7 * PS;
	float sc[TB][16];

	for (int64_t b = 0; b < bands; b++) {
		const int64_t t0 = (b * tiles + bands - 1) / bands, t1 = ((b + 1) * tiles + bands - 1) / bands;
		const int64_t step = t1 - t0 < TB ? 256 : 192;
		const int64_t late = strips - (want + 7 * (t1 - t0) - 1) / (7 * (t1 - t0));
		int64_t done = 0;

		for (int64_t t = t0; t < t1; t++)
			pack_a7(ap + (t - t0) * 8 * AS, A, lda, M, K, m, k, t * 8, sc[t - t0]);
		for (int64_t s = 0; s < strips; s++) {
			const int64_t j = s * W;
			const int wide = n - j < W ? (int)(n - j) : W;
			const int kind = (wide + HL - 1) / HL;
			const int64_t right = N - n - j;
			const int64_t wr = right < wide ? (right > 0 ? right : 0) : wide;
			const int more = b == 0 && s + 1 < strips;
			int64_t srow = 0;

			if (b == 0)
				pack_b7(bp + 7 * s * ss, ss, B, ldb, N, K, n, k, j, wide);
			for (int p = 0; p < 7; p++) {
				const float *bs = bp + (7 * s + p) * ss;
				const float *next = more ? bs + 7 * ss : s + 1 < strips || p < 6 ? bs + ss : bp;

				/* M3 and M6 go to the right half only */
				if (wr == 0 && (p == 2 || p == 5))
					continue;
				for (int64_t t = t0; t < t1; t++) {
					const int64_t i = t * 8;
					const float *a = ap + p * PS + (t - t0) * 8 * AS;
					struct ahead f = {next + (t - t0) * chunks * step, a, a, NULL, NULL, ldc, ldb, n, k * ldb, step};
					struct dst d[2];

					if (b + 1 < bands && s >= late && done < TB * 8 * lda) {
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
						srow += chunks;
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

/* C (+)= A B by the plain packed product, for small sizes; K <= KHALF. */
static void plain(int64_t M, int64_t N, int64_t K, const float *A, int64_t lda, const float *B, int64_t ldb,
	float *C, int64_t ldc, int add, float *ws)
{
	static const float ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
	const int64_t strips = (N + W - 1) / W, ss = strip_floats(K);
	float *bp = ws, *ap = bp + strips * ss, *blk = ap + 8 * AS;

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

		for (int r = 0; r < 8; r++)
			memcpy(ap + r * AS, A + (i + (r < rows ? r : rows - 1)) * lda, (size_t)K * sizeof(float));
		for (int64_t s = 0; s < strips; s++) {
			const int64_t j = s * W;
			const int wide = N - j < W ? (int)(N - j) : W;
			const struct ahead f = {bp + s * ss, ap, ap, C + i * ldc + j, NULL, ldc, 0, 0, 0, 192};
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
	int64_t x = 7 * ((half_columns(nb) + W - 1) / W) * strip_floats(k) + 7 * PS;
	int64_t y = (nb + W - 1) / W * strip_floats(kb) + 8 * AS + 16;

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

			if (M >= 256 && nn >= 256 && kk >= 256) {
				strassen(M, nn, kk, A, K, B, N, C, N, k0 > 0, ws);
			} else {
				for (int64_t k1 = 0; k1 < kk; k1 += KHALF)
					plain(M, nn, kk - k1 < KHALF ? kk - k1 : KHALF, A + k1, K, B + k1 * N, N, C, N,
						k0 > 0 || k1 > 0, ws);
			}
		}
	}
	return 0;
}
