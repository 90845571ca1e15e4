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
#define KHMAX 512
#define SA (KHMAX + 16)
#define OS ((int64_t)MR * SA)	/* from one A operand of a block to the next */
#define BS (7 * OS)		/* from one block to the next */
#define KCMAX 512
#define GROUP_FLOATS (704 * 256)
#define MAX_WORK ((int64_t)60 * 1000 * 1000)

typedef float vz __attribute__((vector_size(L * 4)));
typedef float vza __attribute__((vector_size(L * 4), may_alias));
typedef float vzu __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef float vh __attribute__((vector_size(L * 2)));
typedef float vha __attribute__((vector_size(L * 2), may_alias));
typedef float vhu __attribute__((vector_size(L * 2), aligned(4), may_alias));
typedef int32_t i32a __attribute__((may_alias));

#define INLINE static inline __attribute__((always_inline))

/* One tile position: operands, destinations, and what to request on the way. */
struct pos {
	const float *a;		/* [7][MR][SA] */
	const float *b;		/* [7][kp][width] */
	int64_t bop;		/* floats from one B operand to the next */
	int64_t kq, k7q;	/* steps of 4 k, for all products and for P7 */
	int64_t nd;		/* floats from this block of A operands to the next one */
	float *c[4];		/* C11, C12, C21, C22 */
	int64_t ldc;
	const float *s, *s2;	/* scales of the upper and the lower rows */
	float *u;		/* 3 tiles [MR][W] */
	const float *q[4];	/* rows of A to request */
	int64_t qs;
	const float *bs[4];	/* rows of B to request */
	int64_t ldb;
	const float *bd;	/* where their sums will go */
	int64_t bdop, bdw;
	int64_t cb;		/* number of such rows, less 1 */
	int left;		/* the right quadrants are empty here */
};

#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define EACHU(X, u) X(0, u) X(1, u) X(2, u) X(3, u) X(4, u) X(5, u) X(6, u) X(7, u)

#define ROWF(r, u) \
	if ((r) < mr) { \
		const float x_ = a[(r) * sa + (u)]; \
		if (nv > 0) \
			acc[r][0] += x_ * b0_; \
		if (nv > 1) \
			acc[r][1] += x_ * b1_; \
		if (nv > 2) \
			acc[r][2] += x_ * b2_; \
		if (h) \
			ach[r] += x_ * bh_; \
	}

#define STEP(u) \
	{ \
		vz b0_ = {0}, b1_ = {0}, b2_ = {0}; \
		vh bh_ = {0}; \
		if (nv > 0) \
			b0_ = *(const vza *)(b + (u) * w); \
		if (nv > 1) \
			b1_ = *(const vza *)(b + (u) * w + L); \
		if (nv > 2) \
			b2_ = *(const vza *)(b + (u) * w + 2 * L); \
		if (h) \
			bh_ = *(const vha *)(b + (u) * w + nv * L); \
		EACHU(ROWF, u) \
		(void)b0_; (void)b1_; (void)b2_; (void)bh_; \
	}

#define ZERO(r) \
	acc[r][0] = (vz){0}; \
	acc[r][1] = (vz){0}; \
	acc[r][2] = (vz){0}; \
	ach[r] = (vh){0};

/* acc += product number sg; left: steps of 4 k */
INLINE void seg(const int mr, const int nv, const int h, vz (*acc)[3], vh *ach, const struct pos *p,
	const int sg, int64_t left)
{
	const int64_t sa = SA;
	const int w = (nv + h) * L;
	const float *a = p->a + sg * OS;
	const float *b = p->b + sg * p->bop;

	for (int64_t ch = 0; left > 0; ch++) {
		int64_t t = left < 4 ? left : 4;
		const int64_t x = ch < p->cb ? ch : p->cb;
		const float *an = a + p->nd;
		const float *z = p->bd + sg * p->bdop + x * p->bdw;

		left -= t;
#define PFA(r) if ((r) < mr) __builtin_prefetch(an + (r) * SA);
		EACH(PFA)
#undef PFA
		__builtin_prefetch(z);
		if (W > 16) {
			__builtin_prefetch(z + 16);
			__builtin_prefetch(z + 32);
		}
		if (sg < 4) {
			const float *y = p->bs[sg < 4 ? sg : 0] + x * p->ldb;

			__builtin_prefetch(y);
			if (W > 16) {
				__builtin_prefetch(y + 16);
				__builtin_prefetch(y + 32);
			}
			__builtin_prefetch(y + W - 1);
		}
		if (sg >= 3) {
			const float *q = p->q[sg >= 3 ? sg - 3 : 0] + ch * 16;
			const int64_t qs = p->qs;

#define PFQ(r) if ((r) < mr) __builtin_prefetch(q + (r) * qs);
			EACH(PFQ)
#undef PFQ
		}
		if (sg == 0 || sg == 2 || sg == 4 || sg == 5) {
			const int ci = sg == 0 ? 0 : sg == 2 ? 2 : sg == 4 ? 3 : 1;
			const int64_t row = ch < mr - 1 ? ch : mr - 1;
			const float *c = p->c[ci] + row * p->ldc;

			__builtin_prefetch(c, 1);
			if (nv * L + h * HL > 16)
				__builtin_prefetch(c + 16, 1);
			if (nv * L + h * HL > 32)
				__builtin_prefetch(c + 32, 1);
			__builtin_prefetch(c + nv * L + h * HL - 1, 1);
		}
		do {
			STEP(0)
			STEP(1)
			STEP(2)
			STEP(3)
			a += 4;
			b += 4 * w;
		} while (--t);
	}
}

/* o[r] = acc, rows W apart, aligned */
INLINE void dump(const int mr, const int nv, const int h, vz (*acc)[3], vh *ach, float *o)
{
#define DUMP(r) \
	if ((r) < mr) { \
		if (nv > 0) \
			*(vza *)(o + (r) * W) = acc[r][0]; \
		if (nv > 1) \
			*(vza *)(o + (r) * W + L) = acc[r][1]; \
		if (nv > 2) \
			*(vza *)(o + (r) * W + 2 * L) = acc[r][2]; \
		if (h) \
			*(vha *)(o + (r) * W + nv * L) = ach[r]; \
	}
	EACH(DUMP)
#undef DUMP
}

/* acc = o, or acc += o */
INLINE void fetch(const int mr, const int nv, const int h, vz (*acc)[3], vh *ach, const float *o, const int add)
{
#define FETCH(r) \
	if ((r) < mr) { \
		if (nv > 0) { \
			vz t_ = *(const vza *)(o + (r) * W); \
			acc[r][0] = add ? acc[r][0] + t_ : t_; \
		} \
		if (nv > 1) { \
			vz t_ = *(const vza *)(o + (r) * W + L); \
			acc[r][1] = add ? acc[r][1] + t_ : t_; \
		} \
		if (nv > 2) { \
			vz t_ = *(const vza *)(o + (r) * W + 2 * L); \
			acc[r][2] = add ? acc[r][2] + t_ : t_; \
		} \
		if (h) { \
			vh t_ = *(const vha *)(o + (r) * W + nv * L); \
			ach[r] = add ? ach[r] + t_ : t_; \
		} \
	}
	EACH(FETCH)
#undef FETCH
}

/* C = s[row] * acc */
INLINE void put(const int mr, const int nv, const int h, vz (*acc)[3], vh *ach, float *c, int64_t ldc, const float *s)
{
#define PUT(r) \
	if ((r) < mr) { \
		const float g_ = s[r]; \
		float *c_ = c + (r) * ldc; \
		if (nv > 0) \
			*(vzu *)(c_) = g_ * acc[r][0]; \
		if (nv > 1) \
			*(vzu *)(c_ + L) = g_ * acc[r][1]; \
		if (nv > 2) \
			*(vzu *)(c_ + 2 * L) = g_ * acc[r][2]; \
		if (h) \
			*(vhu *)(c_ + nv * L) = g_ * ach[r]; \
	}
	EACH(PUT)
#undef PUT
}

/* C = s[row] * (acc + o) */
INLINE void put_sum(const int mr, const int nv, const int h, vz (*acc)[3], vh *ach, const float *o,
	float *c, int64_t ldc, const float *s)
{
#define PUTS(r) \
	if ((r) < mr) { \
		const float g_ = s[r]; \
		float *c_ = c + (r) * ldc; \
		if (nv > 0) \
			*(vzu *)(c_) = g_ * (acc[r][0] + *(const vza *)(o + (r) * W)); \
		if (nv > 1) \
			*(vzu *)(c_ + L) = g_ * (acc[r][1] + *(const vza *)(o + (r) * W + L)); \
		if (nv > 2) \
			*(vzu *)(c_ + 2 * L) = g_ * (acc[r][2] + *(const vza *)(o + (r) * W + 2 * L)); \
		if (h) \
			*(vhu *)(c_ + nv * L) = g_ * (ach[r] + *(const vha *)(o + (r) * W + nv * L)); \
	}
	EACH(PUTS)
#undef PUTS
}

/* All 7 products of one position. */
INLINE void chain(const int mr, const int nv, const int h, const struct pos *p)
{
	vz acc[8][3];
	vh ach[8];
	float *u1 = p->u, *u2 = u1 + MR * W, *u3 = u2 + MR * W;

	EACH(ZERO)
	seg(mr, nv, h, acc, ach, p, 0, p->kq);			/* P1 = A11 B11 */
	dump(mr, nv, h, acc, ach, u1);
	seg(mr, nv, h, acc, ach, p, 1, p->kq);			/* P2 = A12 B21 */
	put(mr, nv, h, acc, ach, p->c[0], p->ldc, p->s);

	fetch(mr, nv, h, acc, ach, u1, 0);
	seg(mr, nv, h, acc, ach, p, 2, p->kq);			/* P6 = S2 T2 */
	dump(mr, nv, h, acc, ach, u2);
	seg(mr, nv, h, acc, ach, p, 3, p->k7q);			/* P7 = S3 T3 */
	dump(mr, nv, h, acc, ach, u3);
	seg(mr, nv, h, acc, ach, p, 4, p->kq);			/* Q4 = A22 N4 */
	put(mr, nv, h, acc, ach, p->c[2], p->ldc, p->s2);
	if (p->left)
		return;

	EACH(ZERO)
	seg(mr, nv, h, acc, ach, p, 5, p->kq);			/* P5 = S1 T1 */
	put_sum(mr, nv, h, acc, ach, u3, p->c[3], p->ldc, p->s2);
	fetch(mr, nv, h, acc, ach, u2, 1);
	seg(mr, nv, h, acc, ach, p, 6, p->kq);			/* P3 = S4 B22 */
	put(mr, nv, h, acc, ach, p->c[1], p->ldc, p->s);
}

#define DEFC(V, H) \
static __attribute__((noinline)) void chain_##V##_##H(const struct pos *p) \
{ \
	chain(MR, V, H, p); \
} \
static __attribute__((noinline)) void chain_less_##V##_##H(const struct pos *p) \
{ \
	chain(MR - 1, V, H, p); \
}

#if NVMAX == 3
DEFC(3, 0)
DEFC(2, 1)
#endif
DEFC(2, 0)
DEFC(1, 1)
DEFC(1, 0)
DEFC(0, 1)

#define CALLC(V, H) \
	if (rows == MR) \
		chain_##V##_##H(p); \
	else \
		chain_less_##V##_##H(p); \
	break;

/* kind: the number of half vectors; rows: MR or MR - 1 */
static void run_chain(int kind, int rows, const struct pos *p)
{
	switch (kind) {
#if NVMAX == 3
	case 6: CALLC(3, 0)
	case 5: CALLC(2, 1)
#endif
	case 4: CALLC(2, 0)
	case 3: CALLC(1, 1)
	case 2: CALLC(1, 0)
	default: CALLC(0, 1)
	}
}

/* s: the power of two of the largest element of a row, inv: its inverse */
static inline void row_scale(const float *p, int64_t K, float *s, float *inv)
{
	const i32a *x = (const i32a *)p;
	int32_t best = 0, e, f;

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
	memcpy(s, &e, sizeof(e));
	memcpy(inv, &f, sizeof(f));
}

/* The 7 A operands of rows i .. i + h of the quadrants, and the scales of these rows. */
static __attribute__((noinline)) void form_a(float *d, const float *A, int64_t M, int64_t K, int64_t m, int64_t k,
	int64_t kp, int64_t i, int h, float *s, float *s2)
{
	const int64_t kr = K - k;

	for (int r = 0; r < h; r++) {
		const float *x = A + (i + r) * K, *y = x;
		float *o = d + (int64_t)r * SA;
		float g, f = 0;
		int64_t c = 0;

		row_scale(x, K, s + i + r, &g);
		s2[i + r] = 1;
		if (m + i + r < M) {
			y = A + (m + i + r) * K;
			row_scale(y, K, s2 + i + r, &f);
		}
		for (;;) {
			if (c + L > kr) {
				if (c >= kr)
					break;
				c = kr - L;
			}
			vz x11 = g * *(const vzu *)(x + c);
			vz x12 = g * *(const vzu *)(x + k + c);
			vz x21 = f * *(const vzu *)(y + c);
			vz x22 = f * *(const vzu *)(y + k + c);
			vz s1 = x21 + x22;
			vz t2 = s1 - x11;

			*(vzu *)(o + c) = x11;
			*(vzu *)(o + OS + c) = x12;
			*(vzu *)(o + 2 * OS + c) = t2;
			*(vzu *)(o + 3 * OS + c) = x11 - x21;
			*(vzu *)(o + 4 * OS + c) = x22;
			*(vzu *)(o + 5 * OS + c) = s1;
			*(vzu *)(o + 6 * OS + c) = x12 - t2;
			c += L;
		}
		/* the right quadrants end here; perhaps one more column on the left, then zeros */
		for (c = kr; c < kp; c++) {
			float x11 = 0, x21 = 0;

			if (c < k) {
				x11 = g * x[c];
				x21 = f * y[c];
			}
			o[c] = x11;
			o[OS + c] = 0;
			o[2 * OS + c] = x21 - x11;
			o[3 * OS + c] = x11 - x21;
			o[4 * OS + c] = 0;
			o[5 * OS + c] = x21;
			o[6 * OS + c] = x11 - x21;
		}
	}
}

/* Rows r0 .. r1 of the 7 B operands of columns j .. j + w of the quadrants; rows of d are pw apart, operands op. */
static __attribute__((noinline)) void form_b(float *d, int64_t op, int64_t pw, const float *B, int64_t K, int64_t N,
	int64_t k, int64_t n, int64_t j, int64_t w, int64_t r0, int64_t r1, int ahead)
{
	int64_t wr = N - n - j;

	if (wr > w)
		wr = w;
	if (wr < 0)
		wr = 0;
	for (int64_t r = r0; r < r1; r++) {
		float z[4][W] __attribute__((aligned(64)));
		const float *x11 = z[0], *x12 = z[1], *x21 = z[2], *x22 = z[3];
		float *o = d + r * pw;
		int64_t t = 0;

		if (ahead) {
			if (k + r + 6 < K) {
				const float *y = B + (r + 6) * N + j;

				for (int64_t e = 0; e < W; e += 16) {
					__builtin_prefetch(y + e);
					__builtin_prefetch(y + n + e);
					__builtin_prefetch(y + k * N + e);
					__builtin_prefetch(y + k * N + n + e);
				}
				__builtin_prefetch(y + W - 1);
				__builtin_prefetch(y + n + W - 1);
				__builtin_prefetch(y + k * N + W - 1);
				__builtin_prefetch(y + k * N + n + W - 1);
			}
			if (r + 8 < r1)
				for (int v = 0; v < 7; v++)
					for (int64_t e = 0; e < W; e += 16)
						__builtin_prefetch(o + v * op + 8 * pw + e, 1);
		}
		if (wr == w && k + r < K) {
			x11 = B + r * N + j;
			x12 = x11 + n;
			x21 = x11 + k * N;
			x22 = x21 + n;
		} else {
			memset(z, 0, sizeof(z));
			if (r < k) {
				const float *y = B + r * N + j;

				memcpy(z[0], y, (size_t)w * sizeof(float));
				if (wr > 0)
					memcpy(z[1], y + n, (size_t)wr * sizeof(float));
				if (k + r < K) {
					memcpy(z[2], y + k * N, (size_t)w * sizeof(float));
					if (wr > 0)
						memcpy(z[3], y + k * N + n, (size_t)wr * sizeof(float));
				}
			}
		}
		for (; t + L <= w; t += L) {
			vz b11 = *(const vzu *)(x11 + t), b12 = *(const vzu *)(x12 + t);
			vz b21 = *(const vzu *)(x21 + t), b22 = *(const vzu *)(x22 + t);
			vz t1 = b12 - b11;
			vz t2 = b22 - t1;

			*(vza *)(o + t) = b11;
			*(vza *)(o + op + t) = b21;
			*(vza *)(o + 2 * op + t) = t2;
			*(vza *)(o + 3 * op + t) = b22 - b12;
			*(vza *)(o + 4 * op + t) = b21 - t2;
			*(vza *)(o + 5 * op + t) = t1;
			*(vza *)(o + 6 * op + t) = b22;
		}
		if (t < w) {
			vh b11 = *(const vhu *)(x11 + t), b12 = *(const vhu *)(x12 + t);
			vh b21 = *(const vhu *)(x21 + t), b22 = *(const vhu *)(x22 + t);
			vh t1 = b12 - b11;
			vh t2 = b22 - t1;

			*(vha *)(o + t) = b11;
			*(vha *)(o + op + t) = b21;
			*(vha *)(o + 2 * op + t) = t2;
			*(vha *)(o + 3 * op + t) = b22 - b12;
			*(vha *)(o + 4 * op + t) = b21 - t2;
			*(vha *)(o + 5 * op + t) = t1;
			*(vha *)(o + 6 * op + t) = b22;
		}
	}
}

/* Sizes of the Winograd form. */
struct plan {
	int64_t m, n, k, kp, tiles, bset, floats;
};

/* Returns 1 if the Winograd form is to be used. */
static int make_plan(const struct km_args *a, struct plan *q)
{
	if (a->M < 256 || a->N < 256 || a->K < 256 || (a->K + 1) / 2 > KHMAX || a->M > 1000000)
		return 0;
	q->m = (a->M + 1) / 2;
	q->n = ((a->N + 1) / 2 + HL - 1) / HL * HL;
	q->k = (a->K + 1) / 2;
	q->kp = (q->k + 3) / 4 * 4;
	q->tiles = (q->m + MR - 1) / MR;
	q->bset = 7 * q->kp * W;
	q->floats = q->tiles * BS + 2 * q->bset + 7 * MR * W + 2 * (q->m + 16) + 256;
	return q->floats * (int64_t)sizeof(float) < MAX_WORK;
}

static void winograd(const struct km_args *arg, const struct plan *pl)
{
	const int64_t M = arg->M, N = arg->N, K = arg->K;
	const int64_t m = pl->m, n = pl->n, k = pl->k, kp = pl->kp, tiles = pl->tiles;
	const int64_t low = m / tiles, more = m % tiles;
	const int64_t strips = (n + W - 1) / W;
	const float *A = arg->A, *B = arg->B;
	float *C = arg->C;
	float *aop = (float *)arg->workspace;
	float *set0 = aop + tiles * BS;
	float *set1 = set0 + pl->bset;
	float *u = set1 + pl->bset;
	float *cbuf = u + 3 * MR * W;
	float *s = cbuf + 4 * MR * W;
	float *s2 = s + m + 16;
	struct pos p;

	/* the first block of A operands: ask for its memory, and for its sources */
	for (int64_t r = 0; r < 7 * MR; r++)
		for (int64_t c = 0; c < kp; c += 16)
			__builtin_prefetch(aop + r * SA + c, 1);
	form_b(set0, kp * W, W, B, K, N, k, n, 0, W, 0, kp, 1);
	form_a(aop, A, M, K, m, k, kp, 0, (int)(low + (0 < more)), s, s2);

	p.u = u;
	p.kq = kp / 4;
	p.ldb = N;
	for (int64_t st = 0; st < strips; st++) {
		const int64_t j = st * W;
		const int64_t w = n - j < W ? n - j : W;
		const int64_t pw = (w + L - 1) / L * L;
		const int kind = (int)(w / HL);
		const int next = st + 1 < strips;
		const int64_t jn = j + W;
		const int64_t wn = next ? (n - jn < W ? n - jn : W) : 0;
		const int64_t pwn = (wn + L - 1) / L * L;
		float *b = st & 1 ? set1 : set0;
		float *bn = st & 1 ? set0 : set1;
		int64_t wr = N - n - j;
		int64_t i = 0, r0 = 0;

		if (wr > w)
			wr = w;
		if (wr < 0)
			wr = 0;
		p.left = wr == 0;
		p.k7q = p.left ? 0 : p.kq;
		p.b = b;
		p.bop = kp * pw;
		for (int64_t t = 0; t < tiles; t++) {
			const int h = (int)(low + (t < more));
			const int64_t r1 = (t + 1) * kp / tiles;
			float *blk = aop + t * BS;
			int64_t hl = M - m - i;
			int full;

			if (hl > h)
				hl = h;
			if (hl < 0)
				hl = 0;
			full = hl == h && (p.left || wr == w);
			p.a = blk;
			p.nd = t + 1 < tiles ? BS : -t * BS;
			p.s = s + i;
			p.s2 = s2 + i;
			if (st == 0 && t + 1 < tiles) {
				p.q[0] = A + (i + h) * K;
				p.q[1] = p.q[0] + k;
				p.q[2] = p.q[0] + m * K;
				p.q[3] = p.q[2] + k;
				p.qs = K;
				if (m + i + h >= M) {
					p.q[2] = p.q[0];
					p.q[3] = p.q[1];
				}
			} else {
				for (int z = 0; z < 4; z++)
					p.q[z] = blk + (z + 3) * OS;
				p.qs = SA;
			}
			if (next && k + r0 < K) {
				p.bs[0] = B + r0 * N + jn;
				p.bs[1] = p.bs[0] + n;
				p.bs[2] = p.bs[0] + k * N;
				p.bs[3] = p.bs[2] + n;
				p.bd = bn + r0 * pwn;
				p.bdop = kp * pwn;
				p.bdw = pwn;
				p.cb = r1 - r0 - 1;
				if (p.cb > K - 1 - k - r0)
					p.cb = K - 1 - k - r0;
				if (p.cb < 0)
					p.cb = 0;
			} else {
				for (int z = 0; z < 4; z++)
					p.bs[z] = b;
				p.bd = b;
				p.bdop = 0;
				p.bdw = 0;
				p.cb = 0;
			}
			if (full) {
				p.c[0] = C + i * N + j;
				p.c[2] = C + (m + i) * N + j;
				/* not written if the right quadrants are empty here */
				p.c[1] = p.left ? p.c[0] : p.c[0] + n;
				p.c[3] = p.left ? p.c[2] : p.c[2] + n;
				p.ldc = N;
				run_chain(kind, h, &p);
			} else {
				for (int z = 0; z < 4; z++)
					p.c[z] = cbuf + z * MR * W;
				p.ldc = W;
				run_chain(kind, h, &p);
				for (int z = 0; z < 4; z++) {
					const int64_t rows = z < 2 ? h : hl;
					const int64_t cols = z & 1 ? wr : w;
					float *c = C + (i + (z < 2 ? 0 : m)) * N + j + (z & 1 ? n : 0);

					if (cols > 0)
						for (int64_t r = 0; r < rows; r++)
							memcpy(c + r * N, cbuf + z * MR * W + r * W,
								(size_t)cols * sizeof(float));
				}
			}
			if (next)
				form_b(bn, kp * pwn, pwn, B, K, N, k, n, jn, wn, r0, r1, 0);
			i += h;
			if (st == 0 && t + 1 < tiles)
				form_a(blk + BS, A, M, K, m, k, kp, i, (int)(low + (t + 1 < more)), s, s2);
			r0 = r1;
		}
	}
}

/* ---- the plain product, for all other sizes ---- */

INLINE void ptile(const int mr, const int nv, const int h, int64_t kc, const float *a, int64_t sa, const float *b,
	float *c, int64_t ldc, int add)
{
	const int w = (nv + h) * L;
	vz acc[8][3];
	vh ach[8];
	int64_t k = 0;

	EACH(ZERO)
	for (; k + 4 <= kc; k += 4) {
		STEP(0)
		STEP(1)
		STEP(2)
		STEP(3)
		a += 4;
		b += 4 * w;
	}
	for (; k < kc; k++) {
		STEP(0)
		a += 1;
		b += w;
	}
#define PADD(r) \
	if ((r) < mr) { \
		float *c_ = c + (r) * ldc; \
		if (nv > 0) \
			acc[r][0] += *(const vzu *)(c_); \
		if (nv > 1) \
			acc[r][1] += *(const vzu *)(c_ + L); \
		if (nv > 2) \
			acc[r][2] += *(const vzu *)(c_ + 2 * L); \
		if (h) \
			ach[r] += *(const vhu *)(c_ + nv * L); \
	}
#define PSTORE(r) \
	if ((r) < mr) { \
		float *c_ = c + (r) * ldc; \
		if (nv > 0) \
			*(vzu *)(c_) = acc[r][0]; \
		if (nv > 1) \
			*(vzu *)(c_ + L) = acc[r][1]; \
		if (nv > 2) \
			*(vzu *)(c_ + 2 * L) = acc[r][2]; \
		if (h) \
			*(vhu *)(c_ + nv * L) = ach[r]; \
	}
	if (add) {
		EACH(PADD)
	}
	EACH(PSTORE)
}

#define PARAMS int64_t kc, const float *a, int64_t sa, const float *b, float *c, int64_t ldc, int add
#define ARGS kc, a, sa, b, c, ldc, add

#define DEF(R, V, H) \
static __attribute__((noinline)) void t_##R##_##V##_##H(PARAMS) \
{ \
	ptile(R, V, H, ARGS); \
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
static void run_tile(int kind, int mr, PARAMS)
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

/* Columns j0 .. j1 (j0 a multiple of W) of rows k0 .. k0 + kc of B to strips [kc][W], the last one narrower. */
static void pack_plain(float *p, const float *B, int64_t ldb, int64_t j0, int64_t j1, int64_t k0, int64_t kc)
{
	for (int64_t k = 0; k < kc; k++) {
		const float *x = B + (k0 + k) * ldb;
		float *d = p + k * W;
		int64_t j = j0;

		for (; j + W <= j1; j += W) {
#pragma GCC unroll 16
			for (int v = 0; v < NVMAX; v++)
				*(vza *)(d + v * L) = *(const vzu *)(x + j + v * L);
			d += W * kc;
		}
		if (j < j1) {
			int64_t wide = j1 - j;
			int64_t pw = (wide + L - 1) / L * L;

			d = p + (j - j0) * kc + k * pw;
			memcpy(d, x + j, (size_t)wide * sizeof(float));
			for (int64_t t = wide; t < pw; t++)
				d[t] = 0;
		}
	}
}

static void plain(const struct km_args *arg)
{
	const int64_t M = arg->M, N = arg->N, K = arg->K;
	float *bp = (float *)arg->workspace;
	float *buf = bp + GROUP_FLOATS;
	const int64_t blocks = (K + KCMAX - 1) / KCMAX;
	const int64_t kstep = blocks < 1 ? 1 : (K + blocks - 1) / blocks;
	const int64_t strips = (N + W - 1) / W;
	const int64_t tiles = (M + MR - 1) / MR;
	int64_t most = GROUP_FLOATS / (kstep * W);
	int64_t groups, low, more;

	if (M < 1 || N < 1)
		return;
	low = M / tiles;
	more = M % tiles;
	if (most < 1)
		most = 1;
	groups = (strips + most - 1) / most;
	for (int64_t gr = 0; gr < groups; gr++) {
		const int64_t t0 = gr * strips / groups, t1 = (gr + 1) * strips / groups;
		const int64_t j0 = t0 * W, j1 = t1 * W < N ? t1 * W : N;

		for (int64_t k0 = 0; k0 < K; k0 += kstep) {
			const int64_t kc = K - k0 < kstep ? K - k0 : kstep;
			int64_t i = 0;

			pack_plain(bp, arg->B, N, j0, j1, k0, kc);
			for (int64_t t = 0; t < tiles; t++) {
				const int h = (int)(low + (t < more));
				const float *a = arg->A + i * K + k0;

				for (int64_t j = j0; j < j1; j += W) {
					const int wide = j1 - j < W ? (int)(j1 - j) : W;
					const int kind = (wide + HL - 1) / HL;
					const float *b = bp + (j - j0) * kc;
					float *c = arg->C + i * N + j;

					if (wide == kind * HL) {
						run_tile(kind, h, kc, a, K, b, c, N, k0 > 0);
					} else {
						run_tile(kind, h, kc, a, K, b, buf, W, 0);
						for (int r = 0; r < h; r++)
							for (int x = 0; x < wide; x++) {
								float y = buf[r * W + x];

								if (k0 > 0)
									y += c[r * N + x];
								c[r * N + x] = y;
							}
					}
				}
				i += h;
			}
		}
	}
}

size_t km_workspace(const struct km_args *a)
{
	struct plan q;

	if (make_plan(a, &q))
		return (size_t)q.floats * sizeof(float);
	return ((size_t)GROUP_FLOATS + MR * W + 64) * sizeof(float);
}

int km_run(const struct km_args *a)
{
	struct plan q;

	if (make_plan(a, &q))
		winograd(a, &q);
	else
		plain(a);
	return 0;
}
