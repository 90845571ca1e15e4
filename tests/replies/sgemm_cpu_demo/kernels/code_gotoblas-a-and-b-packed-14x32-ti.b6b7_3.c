#include "task.h"
#include <string.h>

#ifdef __AVX512F__
#define L 16
#define MR 14
#else
#define L 8
#define MR 6
#endif
#define NV 2
#define W (L * NV)
#define KCMAX 336
#define MCMAX 2016
#define NCMAX 8192
#define GROUP_BYTES 655360
#define CHUNK 8

typedef float vz __attribute__((vector_size(L * 4)));
typedef float vza __attribute__((vector_size(L * 4), may_alias));
typedef float vzu __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef float vh __attribute__((vector_size(L * 2)));
typedef float vha __attribute__((vector_size(L * 2), may_alias));
typedef float vhu __attribute__((vector_size(L * 2), aligned(4), may_alias));
typedef float v8 __attribute__((vector_size(32)));
typedef float v8u __attribute__((vector_size(32), aligned(4), may_alias));
typedef int i8 __attribute__((vector_size(32)));

/*
 * What a tile requests on its way: CHUNK floats each of two rows from a0 and a1 on for each chunk of k, and if b is set,
 * W floats from b on, in rows ldb apart, and W floats from d on, a row for each k.
 */
struct ahead {
	const float *a0, *a1, *b, *d;
	int64_t ldb;
};

/* mr rows, nv full vectors and h (0 or 1) half vectors of columns; a: [kc][mr], b: [kc][(nv + h) * L]. */
static inline __attribute__((always_inline)) void tile(const int mr, const int nv, const int h, int64_t kc,
	const float *a, const float *b, float *c, int64_t ldc, int add, const struct ahead *f)
{
	vz acc[MR][NV];
	vh ach[MR];
	const float *f0 = f->a0, *f1 = f->a1, *fb = f->b, *fd = f->d;
	const int64_t fld = f->ldb;
	const float *pc = c;
	const int64_t chunks = kc / CHUNK;
	const int64_t rest = kc % CHUNK;

#pragma GCC unroll 16
	for (int r = 0; r < mr; r++) {
#pragma GCC unroll 16
		for (int v = 0; v < nv; v++)
			acc[r][v] = (vz){0};
		if (h)
			ach[r] = (vh){0};
	}
	for (int64_t ch = 0; ch < chunks; ch++) {
		__builtin_prefetch(f0);
		__builtin_prefetch(f1);
		f0 += CHUNK;
		f1 += CHUNK;
		if (ch < mr) {
			__builtin_prefetch(pc, 1);
			if (nv == 2)
				__builtin_prefetch(pc + L, 1);
			__builtin_prefetch(pc + nv * L + h * (L / 2) - 1, 1);
			pc += ldc;
		}
		if (fb) {
			for (int u = 0; u < CHUNK; u++) {
				__builtin_prefetch(fb + W / 2 - 1);
				__builtin_prefetch(fb + W - 1);
				__builtin_prefetch(fd, 1);
				if (W > 16)
					__builtin_prefetch(fd + W / 2, 1);
				fb += fld;
				fd += W;
			}
		}
#pragma GCC unroll 4
		for (int u = 0; u < CHUNK; u++) {
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
			a += mr;
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
		a += mr;
		b += (nv + h) * L;
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

#define PARAMS int64_t kc, const float *a, const float *b, float *c, int64_t ldc, int add, const struct ahead *f
#define ARGS kc, a, b, c, ldc, add, f

#define DEF(R, V, H) \
static __attribute__((noinline)) void t_##R##_##V##_##H(PARAMS) \
{ \
	tile(R, V, H, ARGS); \
}
#define CASE(R, V, H) case R: t_##R##_##V##_##H(ARGS); break;

#if MR == 14
#define DEFTOP(V, H) DEF(7, V, H) DEF(8, V, H) DEF(9, V, H) DEF(10, V, H) DEF(11, V, H) DEF(12, V, H) DEF(13, V, H) DEF(14, V, H)
#define CASETOP(V, H) CASE(7, V, H) CASE(8, V, H) CASE(9, V, H) CASE(10, V, H) CASE(11, V, H) CASE(12, V, H) CASE(13, V, H) \
	CASE(14, V, H)
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

DEFALL(2, 0)
DEFALL(1, 1)
DEFALL(1, 0)
DEFALL(0, 1)

/* kind: the number of half vectors */
static inline void run_tile(int kind, int mr, PARAMS)
{
	switch (kind) {
	case 4: rows_2_0(mr, ARGS); break;
	case 3: rows_1_1(mr, ARGS); break;
	case 2: rows_1_0(mr, ARGS); break;
	default: rows_0_1(mr, ARGS); break;
	}
}

/* Transpose 8 x 8 from rows lda apart to rows ldp apart. */
static inline __attribute__((always_inline)) void transpose8(const float *a, int64_t lda, float *p, int64_t ldp)
{
	const i8 lo = {0, 8, 1, 9, 4, 12, 5, 13}, hi = {2, 10, 3, 11, 6, 14, 7, 15};
	const i8 dl = {0, 1, 8, 9, 4, 5, 12, 13}, dh = {2, 3, 10, 11, 6, 7, 14, 15};
	const i8 ql = {0, 1, 2, 3, 8, 9, 10, 11}, qh = {4, 5, 6, 7, 12, 13, 14, 15};
	v8 r0 = *(const v8u *)(a), r1 = *(const v8u *)(a + lda);
	v8 r2 = *(const v8u *)(a + 2 * lda), r3 = *(const v8u *)(a + 3 * lda);
	v8 r4 = *(const v8u *)(a + 4 * lda), r5 = *(const v8u *)(a + 5 * lda);
	v8 r6 = *(const v8u *)(a + 6 * lda), r7 = *(const v8u *)(a + 7 * lda);
	v8 t0 = __builtin_shuffle(r0, r1, lo), t1 = __builtin_shuffle(r0, r1, hi);
	v8 t2 = __builtin_shuffle(r2, r3, lo), t3 = __builtin_shuffle(r2, r3, hi);
	v8 t4 = __builtin_shuffle(r4, r5, lo), t5 = __builtin_shuffle(r4, r5, hi);
	v8 t6 = __builtin_shuffle(r6, r7, lo), t7 = __builtin_shuffle(r6, r7, hi);
	v8 s0 = __builtin_shuffle(t0, t2, dl), s1 = __builtin_shuffle(t0, t2, dh);
	v8 s2 = __builtin_shuffle(t1, t3, dl), s3 = __builtin_shuffle(t1, t3, dh);
	v8 s4 = __builtin_shuffle(t4, t6, dl), s5 = __builtin_shuffle(t4, t6, dh);
	v8 s6 = __builtin_shuffle(t5, t7, dl), s7 = __builtin_shuffle(t5, t7, dh);

	*(v8u *)(p) = __builtin_shuffle(s0, s4, ql);
	*(v8u *)(p + ldp) = __builtin_shuffle(s1, s5, ql);
	*(v8u *)(p + 2 * ldp) = __builtin_shuffle(s2, s6, ql);
	*(v8u *)(p + 3 * ldp) = __builtin_shuffle(s3, s7, ql);
	*(v8u *)(p + 4 * ldp) = __builtin_shuffle(s0, s4, qh);
	*(v8u *)(p + 5 * ldp) = __builtin_shuffle(s1, s5, qh);
	*(v8u *)(p + 6 * ldp) = __builtin_shuffle(s2, s6, qh);
	*(v8u *)(p + 7 * ldp) = __builtin_shuffle(s3, s7, qh);
}

/* h rows of A, kc columns, to p [kc][h]; ahead: the number of rows below them to request (0 or at most h). */
static void pack_a(float *p, const float *a, int64_t lda, int64_t kc, int h, int ahead)
{
	int64_t k = 0;

	if (h >= 8) {
		for (; k + 8 <= kc; k += 8) {
			if ((k & 8) == 0)
				for (int r = 0; r < ahead; r++)
					__builtin_prefetch(a + (h + r) * lda + k);
			transpose8(a + k, lda, p + k * h, h);
			if (h > 8)
				transpose8(a + (h - 8) * lda + k, lda, p + k * h + h - 8, h);
		}
	}
	for (; k < kc; k++)
		for (int r = 0; r < h; r++)
			p[k * h + r] = a[r * lda + k];
}

/* One micro-panel of B: kc rows of cols (at most W) columns, to [kc][W], or narrower and padded with zeros if cols < W. */
static void pack_panel(float *p, const float *b, int64_t ldb, int64_t kc, int cols)
{
	if (cols == W) {
		for (int64_t k = 0; k < kc; k++) {
			__builtin_prefetch(b + 12 * ldb);
			__builtin_prefetch(b + 12 * ldb + W - 1);
			__builtin_prefetch(p + 12 * W, 1);
#if L == 16
			__builtin_prefetch(b + 12 * ldb + W / 2 - 1);
			__builtin_prefetch(p + 12 * W + L, 1);
#endif
#pragma GCC unroll 16
			for (int v = 0; v < NV; v++)
				*(vza *)(p + v * L) = *(const vzu *)(b + v * L);
			b += ldb;
			p += W;
		}
	} else {
		int w = (cols + L / 2 - 1) / (L / 2);

		w = (w + 1) / 2 * L;
		for (int64_t k = 0; k < kc; k++) {
			int j = 0;

			for (; j + L / 2 <= cols; j += L / 2)
				*(vha *)(p + j) = *(const vhu *)(b + j);
			if (j < cols) {
				for (; j < cols; j++)
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
}

static int64_t k_step(int64_t K)
{
	int64_t blocks = (K + KCMAX - 1) / KCMAX;

	return blocks < 1 ? 1 : (K + blocks - 1) / blocks;
}

static int64_t b_floats(int64_t N, int64_t kstep)
{
	int64_t n = N < NCMAX ? (N + W - 1) / W * W : NCMAX;

	return n * kstep;
}

size_t km_workspace(const struct km_args *a)
{
	int64_t kstep = k_step(a->K);
	int64_t m = a->M < MCMAX ? a->M : MCMAX;

	return (size_t)(b_floats(a->N, kstep) + (m + 16) * kstep) * sizeof(float);
}

int km_run(const struct km_args *a)
{
	const int64_t M = a->M, N = a->N, K = a->K;
	const int64_t kstep = k_step(K);
	float *bp = (float *)a->workspace;
	float *ap = bp + b_floats(N, kstep);
	int64_t most = GROUP_BYTES / (kstep * W * (int64_t)sizeof(float));

	if (most < 1)
		most = 1;
	for (int64_t n0 = 0; n0 < N; n0 += NCMAX) {
		int64_t nc = N - n0 < NCMAX ? N - n0 : NCMAX;
		int64_t panels = (nc + W - 1) / W;
		int64_t groups = (panels + most - 1) / most;

		for (int64_t k0 = 0; k0 < K; k0 += kstep) {
			int64_t kc = K - k0 < kstep ? K - k0 : kstep;
			int add = k0 > 0;
			const float *bk = a->B + k0 * N + n0;

			for (int64_t m0 = 0; m0 < M; m0 += MCMAX) {
				int64_t mc = M - m0 < MCMAX ? M - m0 : MCMAX;
				int64_t tiles = (mc + MR - 1) / MR;
				int64_t low = mc / tiles, more = mc % tiles;
				int h0 = (int)(low + (0 < more));

				for (int64_t g = 0; g < groups; g++) {
					int64_t p0 = g * panels / groups, p1 = (g + 1) * panels / groups;
					int64_t i = 0;

					for (int64_t t = 0; t < tiles; t++) {
						int h = (int)(low + (t < more));
						float *at = ap + i * kc;
						int fresh = m0 == 0 && t == 0;
						int last = t + 1 == tiles && g + 1 == groups && m0 + mc == M && k0 + kc < K;
						/* what the next row tile reads: hn rows, nld apart */
						const float *na = at;
						int64_t nld = 0;
						int hn = 0;

						if (t + 1 < tiles) {
							hn = (int)(low + (t + 1 < more));
							if (g == 0) {
								na = a->A + (m0 + i + h) * K + k0;
								nld = K;
							} else {
								na = at + h * kc;
								nld = kc;
							}
						} else if (g + 1 < groups) {
							hn = h0;
							na = ap;
							nld = kc;
						} else if (last && m0 == 0) {
							hn = h0;
							na = a->A + k0 + kc;
							nld = K;
						}
						if (g == 0)
							pack_a(at, a->A + (m0 + i) * K + k0, K, kc, h, 0);
						for (int64_t q = p0; q < p1; q++) {
							int64_t j = q * W;
							int w = nc - j < W ? (int)(nc - j) : W;
							int kind = (w + L / 2 - 1) / (L / 2);
							float *bt = bp + j * kc;
							float *c = a->C + (m0 + i) * N + n0 + j;
							int64_t r2 = 2 * (q - p0);
							struct ahead f = {at, at, NULL, bt, N};

							if (r2 < hn) {
								f.a0 = na + r2 * nld;
								f.a1 = r2 + 1 < hn ? f.a0 + nld : f.a0;
							}
							if (fresh) {
								pack_panel(bt, bk + j, N, kc, w);
								if (q + 1 < panels) {
									f.b = bk + j + W;
									f.d = bt + kc * W;
								}
							} else if (last && q + 1 == p1) {
								f.b = bk + kc * N;
								f.d = bp;
							}
							if (w == kind * (L / 2)) {
								run_tile(kind, h, kc, at, bt, c, N, add, &f);
							} else {
								float buf[MR * W] __attribute__((aligned(64)));

								run_tile(kind, h, kc, at, bt, buf, W, 0, &f);
								for (int r = 0; r < h; r++) {
									float *cr = c + r * N;
									const float *s = buf + r * W;

									if (add) {
										for (int x = 0; x < w; x++)
											cr[x] += s[x];
									} else {
										memcpy(cr, s, (size_t)w * sizeof(float));
									}
								}
							}
						}
						i += h;
					}
				}
			}
		}
	}
	return 0;
}
