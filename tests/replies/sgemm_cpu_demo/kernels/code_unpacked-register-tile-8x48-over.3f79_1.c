#include "task.h"
#include <string.h>

#ifdef __AVX512F__
#define L 16
#define MR 8
#else
#define L 8
#define MR 4
#endif
#define H (L / 2)
#define NV 3

typedef float vz __attribute__((vector_size(L * 4)));
typedef float vzu __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef float vh __attribute__((vector_size(L * 2)));
typedef float vhu __attribute__((vector_size(L * 2), aligned(4), may_alias));

/*
 * mr rows, nv full vectors of columns from b (row distance ldb), and a tail of one vector from t (row distance ldt):
 * h = 0 none, 1 a half vector, 2 a full vector, of which rest columns exist.
 */
static inline __attribute__((always_inline)) void tile(const int mr, const int nv, const int h, int64_t kc,
	const float *a, int64_t lda, const float *b, int64_t ldb, const float *t, int64_t ldt, int rest,
	float *c, int64_t ldc)
{
	vz acc[MR][NV];
	vz tz[MR];
	vh th[MR];
	const float *ar[MR];

#pragma GCC unroll 16
	for (int r = 0; r < mr; r++) {
		ar[r] = a + r * lda;
#pragma GCC unroll 16
		for (int v = 0; v < nv; v++)
			acc[r][v] = (vz){0};
		if (h == 1)
			th[r] = (vh){0};
		if (h == 2)
			tz[r] = (vz){0};
	}
	for (int64_t k = 0; k < kc; k++) {
		vz bv[NV];
		vz bz = {0};
		vh bh = {0};

#pragma GCC unroll 16
		for (int v = 0; v < nv; v++)
			bv[v] = *(const vzu *)(b + v * L);
		if (h == 1)
			bh = *(const vhu *)t;
		if (h == 2)
			bz = *(const vzu *)t;
#pragma GCC unroll 16
		for (int r = 0; r < mr; r++) {
			float s = ar[r][k];

#pragma GCC unroll 16
			for (int v = 0; v < nv; v++)
				acc[r][v] += s * bv[v];
			if (h == 1)
				th[r] += s * bh;
			if (h == 2)
				tz[r] += s * bz;
		}
		if (nv)
			b += ldb;
		if (h)
			t += ldt;
	}
#pragma GCC unroll 16
	for (int r = 0; r < mr; r++) {
		float *cr = c + r * ldc;

#pragma GCC unroll 16
		for (int v = 0; v < nv; v++)
			*(vzu *)(cr + v * L) = acc[r][v];
		cr += nv * L;
		if (h == 1) {
			if (rest == H) {
				*(vhu *)cr = th[r];
			} else {
				float buf[H];

				*(vhu *)buf = th[r];
				memcpy(cr, buf, (size_t)rest * sizeof(float));
			}
		}
		if (h == 2) {
			if (rest == L) {
				*(vzu *)cr = tz[r];
			} else {
				float buf[L];

				*(vzu *)buf = tz[r];
				memcpy(cr, buf, (size_t)rest * sizeof(float));
			}
		}
	}
}

#define PARAMS int64_t kc, const float *a, int64_t lda, const float *b, int64_t ldb, const float *t, int64_t ldt, \
	int rest, float *c, int64_t ldc
#define ARGS kc, a, lda, b, ldb, t, ldt, rest, c, ldc

#define DEF(R, V, T) \
static __attribute__((noinline)) void t_##R##_##V##_##T(PARAMS) \
{ \
	tile(R, V, T, ARGS); \
}

#if MR == 8
#define DEF8(V, T) DEF(8, V, T)
#define ROWS8(V, T) \
	for (; m >= 8; m -= 8) { \
		t_8_##V##_##T(ARGS); \
		a += 8 * lda; \
		c += 8 * ldc; \
	}
#else
#define DEF8(V, T)
#define ROWS8(V, T)
#endif

/* All m rows of one strip. */
#define DEFSTRIP(V, T) \
DEF8(V, T) DEF(4, V, T) DEF(2, V, T) DEF(1, V, T) \
static __attribute__((noinline)) void strip_##V##_##T(int64_t m, PARAMS) \
{ \
	ROWS8(V, T) \
	for (; m >= 4; m -= 4) { \
		t_4_##V##_##T(ARGS); \
		a += 4 * lda; \
		c += 4 * ldc; \
	} \
	if (m >= 2) { \
		t_2_##V##_##T(ARGS); \
		a += 2 * lda; \
		c += 2 * ldc; \
		m -= 2; \
	} \
	if (m) \
		t_1_##V##_##T(ARGS); \
}

DEFSTRIP(3, 0)
DEFSTRIP(2, 0)
DEFSTRIP(1, 0)
DEFSTRIP(2, 1)
DEFSTRIP(1, 1)
DEFSTRIP(0, 1)
DEFSTRIP(2, 2)
DEFSTRIP(1, 2)
DEFSTRIP(0, 2)

/* Request a strip of kc rows and nc columns. */
static void fetch(const float *b, int64_t ldb, int64_t kc, int nc)
{
	for (int64_t k = 0; k < kc; k++) {
		for (int j = 0; j < nc; j += 16)
			__builtin_prefetch(b + j);
		__builtin_prefetch(b + nc - 1);
		b += ldb;
	}
}

size_t km_workspace(const struct km_args *a)
{
	return (size_t)(a->K > 0 ? a->K : 1) * L * sizeof(float);
}

int km_run(const struct km_args *a)
{
	const int64_t m = a->M, N = a->N, kc = a->K;
	const int64_t lda = a->K, ldb = a->N, ldc = a->N;
	int64_t j = 0;

	for (; j + NV * L <= N; j += NV * L) {
		const float *b = a->B + j;

		fetch(b, ldb, kc, NV * L);
		strip_3_0(m, kc, a->A, lda, b, ldb, b, 0, 0, a->C + j, ldc);
	}
	if (j < N) {
		const float *b = a->B + j;
		int left = (int)(N - j);
		int nv = left / L;
		int rest = left % L;
		const float *t = b + nv * L;
		int64_t ldt = ldb;
		int h = 0;
		float *c = a->C + j;

		fetch(b, ldb, kc, left);
		if (rest) {
			h = rest <= H ? 1 : 2;
			if (rest != H) {
				int w = h * H;
				float *p = (float *)a->workspace;

				for (int64_t k = 0; k < kc; k++) {
					const float *s = t + k * ldb;
					float *d = p + k * w;
					int x = 0;

					for (; x < rest; x++)
						d[x] = s[x];
					for (; x < w; x++)
						d[x] = 0;
				}
				t = p;
				ldt = w;
			}
		} else {
			t = b;
		}
#define CALL(V, T) strip_##V##_##T(m, kc, a->A, lda, b, ldb, t, ldt, rest, c, ldc)
		switch (nv * 3 + h) {
		case 6: CALL(2, 0); break;
		case 3: CALL(1, 0); break;
		case 7: CALL(2, 1); break;
		case 4: CALL(1, 1); break;
		case 1: CALL(0, 1); break;
		case 8: CALL(2, 2); break;
		case 5: CALL(1, 2); break;
		default: CALL(0, 2); break;
		}
#undef CALL
	}
	return 0;
}
