#include "task.h"
#include <string.h>

#ifdef __AVX512F__
#define L 16
#define MR 9
#define NVMAX 2
#else
#define L 8
#define MR 4
#define NVMAX 2
#endif
#define HL (L / 2)
#define W (L * NVMAX)
#define PANEL_FLOATS 163840
#define KOUT 2048
#define NOUT 2400
#define MOUT 2048
#define SMALL 1e-24
#define LARGE 1e24

typedef float vz __attribute__((vector_size(L * 4)));
typedef float vza __attribute__((vector_size(L * 4), may_alias));
typedef float vzu __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef float vh __attribute__((vector_size(L * 2)));
typedef float vha __attribute__((vector_size(L * 2), may_alias));
typedef float vhu __attribute__((vector_size(L * 2), aligned(4), may_alias));
typedef int vi __attribute__((vector_size(L * 4)));

#if L == 16
#define IDX(m) ((vi){0 ^ (m), 1 ^ (m), 2 ^ (m), 3 ^ (m), 4 ^ (m), 5 ^ (m), 6 ^ (m), 7 ^ (m), \
	8 ^ (m), 9 ^ (m), 10 ^ (m), 11 ^ (m), 12 ^ (m), 13 ^ (m), 14 ^ (m), 15 ^ (m)})
#else
#define IDX(m) ((vi){0 ^ (m), 1 ^ (m), 2 ^ (m), 3 ^ (m), 4 ^ (m), 5 ^ (m), 6 ^ (m), 7 ^ (m)})
#endif

/*
 * a0*b0 + a1*b1 = (a0 + b1)*(a1 + b0) - a0*a1 - b0*b1: a tile starts from -(xi + eta), the sums of the last two, and its
 * result is multiplied by inv, which takes the scaling of the rows of A back.
 */
struct job {
	int64_t kc;       /* even */
	const float *a;   /* scaled rows, lda apart */
	int64_t lda;
	const float *b;   /* [kc][(nv + h) * L] */
	const float *eta; /* of the columns */
	const float *xi;  /* of the rows */
	const float *inv;
	float one;        /* 1, which the compiler must not know */
	int add;
	float *c;
	int64_t ldc;
	/* requests for each chunk of 16 k: a line at a0, a1 (to read), w0, w1 (to write), four lines at pb, which moves by bstep */
	const float *a0, *a1, *w0, *w1, *pb;
	int64_t bstep;
};

/* mr rows, nv full vectors and h (0 or 1) half vectors of columns. */
static inline __attribute__((always_inline)) void tile(const int mr, const int nv, const int h, const struct job *g)
{
	vz acc[MR][NVMAX];
	vh ach[MR];
	const float *ar[MR];
	const float *f0 = g->a0, *f1 = g->a1, *w0 = g->w0, *w1 = g->w1, *fb = g->pb;
	const float *b = g->b;
	float *c = g->c;
	const int64_t bstep = g->bstep;
	const int64_t kc = g->kc;
	const int64_t ldc = g->ldc;
	const int64_t lastcol = nv * L + h * HL - 1;
	const float one = g->one;
	int64_t k = 0, ch = 0;

#pragma GCC unroll 16
	for (int r = 0; r < mr; r++) {
		const float x = g->xi[r];

		ar[r] = g->a + r * g->lda;
#pragma GCC unroll 16
		for (int v = 0; v < nv; v++)
			acc[r][v] = -(x + *(const vza *)(g->eta + v * L));
		if (h)
			ach[r] = -(x + *(const vha *)(g->eta + nv * L));
	}
	while (k < kc) {
		const int64_t ke = k + 16 < kc ? k + 16 : kc;

		__builtin_prefetch(f0);
		__builtin_prefetch(f1);
		__builtin_prefetch(w0, 1);
		__builtin_prefetch(w1, 1);
		f0 += 16;
		f1 += 16;
		w0 += 16;
		w1 += 16;
		__builtin_prefetch(fb);
		__builtin_prefetch(fb + 16);
		__builtin_prefetch(fb + 32);
		__builtin_prefetch(fb + 48);
		fb += bstep;
		if (ch < 4 * mr) {
			int64_t off = (ch & 3) * 16;

			if (off > lastcol)
				off = lastcol;
			__builtin_prefetch(c + (ch >> 2) * ldc + off, 1);
		}
		ch++;
		for (; k < ke; k += 2) {
			vz b0[NVMAX], b1[NVMAX];
			vh g0 = {0}, g1 = {0};

#pragma GCC unroll 16
			for (int v = 0; v < nv; v++) {
				b0[v] = *(const vza *)(b + v * L);
				b1[v] = *(const vza *)(b + (nv + h) * L + v * L);
			}
			if (h) {
				g0 = *(const vha *)(b + nv * L);
				g1 = *(const vha *)(b + (nv + h) * L + nv * L);
			}
#pragma GCC unroll 16
			for (int r = 0; r < mr; r++) {
				const float s0 = ar[r][k], s1 = ar[r][k + 1];
				vz t[NVMAX], u[NVMAX];

#pragma GCC unroll 16
				for (int v = 0; v < nv; v++)
					t[v] = s0 + b1[v];
#pragma GCC unroll 16
				for (int v = 0; v < nv; v++) {
					/* one addition in four goes to the FMA pipes */
					if ((r + v) & 1)
						u[v] = one * b0[v] + s1;
					else
						u[v] = s1 + b0[v];
				}
#pragma GCC unroll 16
				for (int v = 0; v < nv; v++)
					acc[r][v] += t[v] * u[v];
				if (h) {
					const vh t = s0 + g1;
					vh u;

					if ((r + nv) & 1)
						u = one * g0 + s1;
					else
						u = s1 + g0;
					ach[r] += t * u;
				}
			}
			b += 2 * (nv + h) * L;
		}
	}
	if (g->add) {
#pragma GCC unroll 16
		for (int r = 0; r < mr; r++) {
			const float q = g->inv[r];

#pragma GCC unroll 16
			for (int v = 0; v < nv; v++)
				*(vzu *)(c + r * ldc + v * L) = *(const vzu *)(c + r * ldc + v * L) + acc[r][v] * q;
			if (h)
				*(vhu *)(c + r * ldc + nv * L) = *(const vhu *)(c + r * ldc + nv * L) + ach[r] * q;
		}
	} else {
#pragma GCC unroll 16
		for (int r = 0; r < mr; r++) {
			const float q = g->inv[r];

#pragma GCC unroll 16
			for (int v = 0; v < nv; v++)
				*(vzu *)(c + r * ldc + v * L) = acc[r][v] * q;
			if (h)
				*(vhu *)(c + r * ldc + nv * L) = ach[r] * q;
		}
	}
}

#define DEF(R, V, H) \
static __attribute__((noinline, noclone)) void t_##R##_##V##_##H(const struct job *g) \
{ \
	tile(R, V, H, g); \
}
#define CASE(R, V, H) case R: t_##R##_##V##_##H(g); break;

#if MR == 9
#define DEFTOP(V, H) DEF(5, V, H) DEF(6, V, H) DEF(7, V, H) DEF(8, V, H) DEF(9, V, H)
#define CASETOP(V, H) CASE(5, V, H) CASE(6, V, H) CASE(7, V, H) CASE(8, V, H) CASE(9, V, H)
#else
#define DEFTOP(V, H)
#define CASETOP(V, H)
#endif

#define DEFALL(V, H) \
DEF(1, V, H) DEF(2, V, H) DEF(3, V, H) DEF(4, V, H) DEFTOP(V, H) \
static void rows_##V##_##H(int mr, const struct job *g) \
{ \
	switch (mr) { \
	CASE(1, V, H) CASE(2, V, H) CASE(3, V, H) CASE(4, V, H) CASETOP(V, H) \
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
static inline void run_tile(int kind, int mr, const struct job *g)
{
	switch (kind) {
#if NVMAX == 3
	case 6: rows_3_0(mr, g); break;
	case 5: rows_2_1(mr, g); break;
#endif
	case 4: rows_2_0(mr, g); break;
	case 3: rows_1_1(mr, g); break;
	case 2: rows_1_0(mr, g); break;
	default: rows_0_1(mr, g); break;
	}
}

static inline __attribute__((always_inline)) float hsum(vz s)
{
#if L == 16
	s += __builtin_shuffle(s, IDX(8));
#endif
	s += __builtin_shuffle(s, IDX(4));
	s += __builtin_shuffle(s, IDX(2));
	s += __builtin_shuffle(s, IDX(1));
	return s[0];
}

/* Two rows of B (or the last one and zeros) to the strips, their products to e, their squares to q and qh. */
static inline __attribute__((always_inline)) void pack_pair(const int two, const float *s0, const float *s1, int64_t far,
	int64_t full, int rest, int w, float *d, float *dr, int64_t ss, float *e, vz *q, vh *qh)
{
	for (int64_t t = 0; t < full; t++) {
#pragma GCC unroll 16
		for (int x = 0; x < W; x += 16) {
			__builtin_prefetch(s0 + far + x);
			__builtin_prefetch(s1 + far + x);
			__builtin_prefetch(d + 2 * W + x, 1);
			__builtin_prefetch(d + 3 * W + x, 1);
		}
#pragma GCC unroll 16
		for (int v = 0; v < NVMAX; v++) {
			const vz x = *(const vzu *)(s0 + v * L);
			vz y = {0};

			if (two)
				y = *(const vzu *)(s1 + v * L);
			*(vza *)(d + v * L) = x;
			*(vza *)(d + W + v * L) = y;
			q[0] += x * x;
			if (two) {
				q[1] += y * y;
				*(vza *)(e + v * L) += x * y;
			}
		}
		s0 += W;
		s1 += W;
		d += ss;
		e += W;
	}
	if (rest) {
		for (int x = 0; x < w; x += HL) {
			vh y0 = {0}, y1 = {0};

			__builtin_prefetch(s0 + far + x);
			__builtin_prefetch(s1 + far + x);
			__builtin_prefetch(dr + 2 * w + 2 * x, 1);
			if (x + HL <= rest) {
				y0 = *(const vhu *)(s0 + x);
				if (two)
					y1 = *(const vhu *)(s1 + x);
			} else {
				for (int j = x; j < rest; j++) {
					y0[j - x] = s0[j];
					if (two)
						y1[j - x] = s1[j];
				}
			}
			*(vha *)(dr + x) = y0;
			*(vha *)(dr + w + x) = y1;
			*(vha *)(e + x) += y0 * y1;
			*qh += y0 * y0 + y1 * y1;
		}
	}
}

/*
 * kb rows and nc columns of B, two rows at a time, to strips [kb, made even][W], ss floats apart, the last one narrower
 * (whole vectors) and padded with zeros; eta of all columns. In the last quarter of the rows kb lines from pa on are
 * requested. Returns the sum of the squares.
 */
static __attribute__((noinline)) double pack_b(float *bp, float *eta, const float *b, int64_t ldb, int64_t kb, int64_t nc,
	int64_t ss, const float *pa)
{
	const int64_t full = nc / W;
	const int rest = (int)(nc % W);
	const int w = (rest + L - 1) / L * L;
	const int64_t late = kb - kb / 4;
	const int64_t far = 2 * ldb * (1 + 512 / ldb);
	vz q[2] = {{0}, {0}};
	vh qh = {0};
	double sum;
	int64_t k = 0;

	memset(eta, 0, (size_t)(full * W + w) * sizeof(float));
	for (; k + 1 < kb; k += 2) {
		const float *s = b + k * ldb;

		if (k >= late) {
			for (int x = 0; x < 128; x += 16)
				__builtin_prefetch(pa + x, 0, 2);
			pa += 128;
		}
		pack_pair(1, s, s + ldb, far, full, rest, w, bp + k * W, bp + full * ss + k * w, ss, eta, q, &qh);
	}
	if (k < kb) {
		const float *s = b + k * ldb;

		pack_pair(0, s, s, far, full, rest, w, bp + k * W, bp + full * ss + k * w, ss, eta, q, &qh);
	}
	sum = (double)hsum(q[0]) + (double)hsum(q[1]);
	for (int x = 0; x < HL; x++)
		sum += (double)qh[x];
	return sum;
}

/*
 * Rows of A, scaled by powers of two to a mean square near ms, to d, whole vectors padded with zeros; xi and the inverse
 * scales. A row that cannot be scaled becomes zeros with an inverse of 0.
 */
static __attribute__((noinline)) void scale_rows(int rows, int64_t kb, const float *a, int64_t lda, float *d, int64_t ldd,
	double ms, float *xi, float *inv)
{
	for (int r = 0; r < rows; r++) {
		const float *s = a + r * lda;
		float *o = d + r * ldd;
		vz p0 = {0}, p1 = {0}, z0 = {0}, z1 = {0}, tail = {0};
		double sum;
		int64_t k = 0;

		for (; k + 2 * L <= kb; k += 2 * L) {
			const vz x = *(const vzu *)(s + k);
			const vz y = *(const vzu *)(s + k + L);

			p0 += x * x;
			p1 += y * y;
			z0 += x * __builtin_shuffle(x, IDX(1));
			z1 += y * __builtin_shuffle(y, IDX(1));
		}
		if (k + L <= kb) {
			const vz x = *(const vzu *)(s + k);

			p0 += x * x;
			z0 += x * __builtin_shuffle(x, IDX(1));
			k += L;
		}
		if (k < kb) {
			float tmp[L] __attribute__((aligned(64))) = {0};

			memcpy(tmp, s + k, (size_t)(kb - k) * sizeof(float));
			tail = *(const vza *)tmp;
			p1 += tail * tail;
			z1 += tail * __builtin_shuffle(tail, IDX(1));
		}
		sum = (double)hsum(p0 + p1);
		if (sum > SMALL * (double)kb && sum < LARGE * (double)kb) {
			const double ratio = ms * (double)kb / sum;
			uint64_t bits;
			uint32_t up, down;
			float scale, back;
			int e;

			memcpy(&bits, &ratio, sizeof(bits));
			/* half the exponent, rounded: the square root of the ratio to the nearest power of two */
			e = ((int)((bits >> 52) & 2047) - 1023 + 1) >> 1;
			up = (uint32_t)(127 + e) << 23;
			down = (uint32_t)(127 - e) << 23;
			memcpy(&scale, &up, sizeof(scale));
			memcpy(&back, &down, sizeof(back));
			for (k = 0; k + L <= kb; k += L)
				*(vza *)(o + k) = *(const vzu *)(s + k) * scale;
			if (k < kb)
				*(vza *)(o + k) = tail * scale;
			/* the neighbours' products of the unscaled row: the scale is a power of two and comes out of the sum */
			xi[r] = (float)(0.5 * (double)scale * (double)scale * (double)hsum(z0 + z1));
			inv[r] = back;
		} else {
			for (k = 0; k < kb; k += L)
				*(vza *)(o + k) = (vz){0};
			xi[r] = 0;
			inv[r] = 0;
		}
	}
}

/* The product for values that the scaling does not suit. */
static __attribute__((noinline)) void plain(int64_t m, int64_t n, int64_t kb, const float *a, int64_t lda, const float *b,
	int64_t ldb, float *c, int64_t ldc, int add)
{
	for (int64_t i = 0; i < m; i++) {
		float *restrict ci = c + i * ldc;

		if (!add)
			for (int64_t j = 0; j < n; j++)
				ci[j] = 0;
		for (int64_t k = 0; k < kb; k++) {
			const float *restrict bk = b + k * ldb;
			const float x = a[i * lda + k];

			for (int64_t j = 0; j < n; j++)
				ci[j] += x * bk[j];
		}
	}
}

/* Floats from strip to strip: kb rows of W, and so much more that the starts are 12 lines apart modulo 64 lines. */
static int64_t strip_floats(int64_t kb)
{
	int64_t lines = (kb * W + 15) / 16;

	return (lines + ((12 - lines) & 63)) * 16;
}

struct layout {
	int64_t ss;   /* floats from strip to strip of B */
	int64_t lds;  /* from row to row of the scaled A, an odd number of lines */
	int64_t a, eta, xi, inv, total;
};

static struct layout make_layout(const struct km_args *ka)
{
	struct layout y;
	int64_t kb = ka->K < KOUT ? ka->K : KOUT;
	int64_t nc = ka->N < NOUT ? ka->N : NOUT;
	int64_t mc = ka->M < MOUT ? ka->M : MOUT;
	int64_t strips = (nc + W - 1) / W;
	int64_t rows = (mc + 15) / 16 * 16 + 16;

	kb += kb & 1;
	y.ss = strip_floats(kb);
	y.lds = (((kb + 15) / 16) | 1) * 16;
	y.a = strips * y.ss;
	y.eta = y.a + rows * y.lds;
	y.xi = y.eta + (strips * W + 15) / 16 * 16;
	y.inv = y.xi + rows;
	y.total = y.inv + rows;
	return y;
}

size_t km_workspace(const struct km_args *a)
{
	return (size_t)(make_layout(a).total + 64) * sizeof(float);
}

int km_run(const struct km_args *ka)
{
	const int64_t M = ka->M, N = ka->N, K = ka->K;
	const struct layout y = make_layout(ka);
	float *const bp = (float *)ka->workspace;
	float *const as = bp + y.a;
	float *const eta = bp + y.eta;
	float *const xi = bp + y.xi;
	float *const inv = bp + y.inv;
	const float one = (float)(ka->workspace_bytes > 0);

	for (int64_t k0 = 0; k0 < K; k0 += KOUT) {
		const int64_t kb = K - k0 < KOUT ? K - k0 : KOUT;
		const int64_t kp = kb + (kb & 1);
		const int64_t chunks = kp >> 4;
		const int add = k0 > 0;
		int64_t most = PANEL_FLOATS / (kp * W);

		if (most < 1)
			most = 1;
		for (int64_t n0 = 0; n0 < N; n0 += NOUT) {
			const int64_t nc = N - n0 < NOUT ? N - n0 : NOUT;
			const int64_t strips = (nc + W - 1) / W;
			const int64_t panels = (strips + most - 1) / most;
			const float *B = ka->B + k0 * N + n0;
			const double ms = pack_b(bp, eta, B, N, kb, nc, y.ss, ka->A + k0) / ((double)kb * (double)nc);

			if (!(ms > SMALL && ms < LARGE)) {
				plain(M, nc, kb, ka->A + k0, K, B, N, ka->C + n0, N, add);
				continue;
			}
			for (int64_t m0 = 0; m0 < M; m0 += MOUT) {
				const int64_t mc = M - m0 < MOUT ? M - m0 : MOUT;
				const int64_t tiles = (mc + MR - 1) / MR;
				const int64_t low = mc / tiles, more = mc % tiles;
				const int h0 = (int)(low + (0 < more));
				const float *A = ka->A + m0 * K + k0;
				float *C = ka->C + m0 * N + n0;

				for (int64_t p = 0; p < panels; p++) {
					const int64_t p0 = p * strips / panels, p1 = (p + 1) * strips / panels;
					int64_t i = 0;

					for (int64_t t = 0; t < tiles; t++) {
						const int h = (int)(low + (t < more));
						const float *a = as + i * y.lds;
						const float *na = a, *nw = a, *nb = NULL;
						int64_t ldn = y.lds;
						int hn = 0;

						if (p == 0)
							scale_rows(h, kb, A + i * K, K, as + i * y.lds, y.lds, ms, xi + i, inv + i);
						/* the rows that come next, and the strips of B behind a panel */
						if (t + 1 < tiles) {
							hn = (int)(low + (t + 1 < more));
							nw = a + h * y.lds;
							if (p == 0) {
								na = A + (i + h) * K;
								ldn = K;
							} else {
								na = nw;
							}
						} else if (p + 1 < panels) {
							hn = h0;
							na = as;
							nw = as;
							nb = bp + p1 * y.ss;
						}
						for (int64_t s = p0; s < p1; s++) {
							const int64_t j = s * W;
							const int w = nc - j < W ? (int)(nc - j) : W;
							const int kind = (w + HL - 1) / HL;
							const int64_t r2 = 2 * (s - p0);
							float *c = C + i * N + j;
							struct job g;

							g.kc = kp;
							g.a = a;
							g.lda = y.lds;
							g.b = bp + s * y.ss;
							g.eta = eta + j;
							g.xi = xi + i;
							g.inv = inv + i;
							g.one = one;
							g.add = add;
							g.c = c;
							g.ldc = N;
							g.a0 = a;
							g.a1 = a;
							g.w0 = a;
							g.w1 = a;
							g.pb = g.b;
							g.bstep = 0;
							if (r2 < hn) {
								g.a0 = na + r2 * ldn;
								g.w0 = nw + r2 * y.lds;
								g.a1 = g.a0;
								g.w1 = g.w0;
								if (r2 + 1 < hn) {
									g.a1 += ldn;
									g.w1 += y.lds;
								}
							}
							if (nb) {
								g.pb = nb + (s - p0) * chunks * 64;
								g.bstep = 64;
							}
							if (w == kind * HL) {
								run_tile(kind, h, &g);
							} else {
								float buf[MR * W] __attribute__((aligned(64)));

								g.c = buf;
								g.ldc = W;
								g.add = 0;
								run_tile(kind, h, &g);
								for (int r = 0; r < h; r++) {
									float *cr = c + r * N;
									const float *q = buf + r * W;

									if (add) {
										for (int x = 0; x < w; x++)
											cr[x] += q[x];
									} else {
										memcpy(cr, q, (size_t)w * sizeof(float));
									}
								}
							}
						}
						i += h;
					}
				}
				for (int64_t i = 0; i < mc; i++) {
					if (inv[i] == 0)
						plain(1, nc, kb, A + i * K, K, B, N, C + i * N, N, 1);
				}
			}
		}
	}
	return 0;
}
