#include "task.h"

typedef float v8 __attribute__((vector_size(32)));
typedef float v8u __attribute__((vector_size(32), aligned(4), may_alias));

static inline v8 load8(const float *p) { return *(const v8u *)p; }
static inline void store8(float *p, v8 x) { *(v8u *)p = x; }

/* One row of C (n columns) gets 8 rows of B; first: C is written without being read. */
static inline __attribute__((always_inline)) void row8(const float *ap, const float *b, float *c, int64_t N, int first)
{
	const float a0 = ap[0], a1 = ap[1], a2 = ap[2], a3 = ap[3];
	const float a4 = ap[4], a5 = ap[5], a6 = ap[6], a7 = ap[7];
	const float *b0 = b, *b1 = b + N, *b2 = b + 2 * N, *b3 = b + 3 * N;
	const float *b4 = b + 4 * N, *b5 = b + 5 * N, *b6 = b + 6 * N, *b7 = b + 7 * N;
	const v8 zero = {0};
	int64_t j = 0;

	for (; j + 8 <= N; j += 8) {
		v8 x = first ? zero : load8(c + j);

		x += a0 * load8(b0 + j);
		x += a1 * load8(b1 + j);
		x += a2 * load8(b2 + j);
		x += a3 * load8(b3 + j);
		x += a4 * load8(b4 + j);
		x += a5 * load8(b5 + j);
		x += a6 * load8(b6 + j);
		x += a7 * load8(b7 + j);
		store8(c + j, x);
	}
	for (; j < N; j++) {
		float x = first ? 0.0f : c[j];

		x += a0 * b0[j];
		x += a1 * b1[j];
		x += a2 * b2[j];
		x += a3 * b3[j];
		x += a4 * b4[j];
		x += a5 * b5[j];
		x += a6 * b6[j];
		x += a7 * b7[j];
		c[j] = x;
	}
}

/* Two rows of C get 8 rows of B: each vector of B is loaded once for both. */
static inline __attribute__((always_inline)) void row8x2(const float *ap, int64_t K, const float *b, float *c, int64_t N, int first)
{
	const float *aq = ap + K;
	float *d = c + N;
	const v8 zero = {0};
	float s[8], t[8];
	int64_t j = 0;

#pragma GCC unroll 8
	for (int p = 0; p < 8; p++) {
		s[p] = ap[p];
		t[p] = aq[p];
	}
	for (; j + 8 <= N; j += 8) {
		v8 x = first ? zero : load8(c + j);
		v8 y = first ? zero : load8(d + j);

#pragma GCC unroll 8
		for (int p = 0; p < 8; p++) {
			v8 w = load8(b + p * N + j);

			x += s[p] * w;
			y += t[p] * w;
		}
		store8(c + j, x);
		store8(d + j, y);
	}
	for (; j < N; j++) {
		float x = first ? 0.0f : c[j];
		float y = first ? 0.0f : d[j];

#pragma GCC unroll 8
		for (int p = 0; p < 8; p++) {
			float w = b[p * N + j];

			x += s[p] * w;
			y += t[p] * w;
		}
		c[j] = x;
		d[j] = y;
	}
}

static inline __attribute__((always_inline)) void row1(float s, const float *b, float *c, int64_t N, int first)
{
	const v8 zero = {0};
	int64_t j = 0;

	for (; j + 8 <= N; j += 8) {
		v8 x = first ? zero : load8(c + j);

		x += s * load8(b + j);
		store8(c + j, x);
	}
	for (; j < N; j++) {
		float x = first ? 0.0f : c[j];

		x += s * b[j];
		c[j] = x;
	}
}

int km_run(const struct km_args *a)
{
	const int64_t M = a->M, N = a->N, K = a->K;
	const float *A = a->A, *B = a->B;
	float *C = a->C;
	int64_t k = 0;

	if (K <= 0) {
		for (int64_t i = 0; i < M * N; i++)
			C[i] = 0.0f;
		return 0;
	}
	if (K >= 8) {
		int64_t i = 0;

		for (; i + 2 <= M; i += 2)
			row8x2(A + i * K, K, B, C + i * N, N, 1);
		for (; i < M; i++)
			row8(A + i * K, B, C + i * N, N, 1);
		k = 8;
	} else {
		for (int64_t i = 0; i < M; i++)
			row1(A[i * K], B, C + i * N, N, 1);
		k = 1;
	}
	for (; k + 8 <= K; k += 8) {
		int64_t i = 0;

		for (; i + 2 <= M; i += 2)
			row8x2(A + i * K + k, K, B + k * N, C + i * N, N, 0);
		for (; i < M; i++)
			row8(A + i * K + k, B + k * N, C + i * N, N, 0);
	}
	for (; k < K; k++)
		for (int64_t i = 0; i < M; i++)
			row1(A[i * K + k], B + k * N, C + i * N, N, 0);
	return 0;
}
