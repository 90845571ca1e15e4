#include "task.h"
#include <string.h>

typedef float v8 __attribute__((vector_size(32)));
typedef float v8a __attribute__((vector_size(32), may_alias));
typedef float v8u __attribute__((vector_size(32), aligned(4), may_alias));

static inline v8 load8(const float *p) { return *(const v8u *)p; }
static inline v8 load_aligned8(const float *p) { return *(const v8a *)p; }
static inline void store8(float *p, v8 x) { *(v8u *)p = x; }

size_t km_workspace(const struct km_args *a)
{
	return (size_t)a->K * 16 * sizeof(float) + 64;
}

static void pack_panel(const float *B, float *p, int64_t K, int64_t N, int64_t w)
{
	if (w == 16) {
		for (int64_t k = 0; k < K; k++, B += N, p += 16) {
			if (k + 16 < K)
				__builtin_prefetch(B + 16 * N + 15);
			store8(p, load8(B));
			store8(p + 8, load8(B + 8));
		}
		return;
	}
	for (int64_t k = 0; k < K; k++, B += N, p += 16) {
		for (int64_t j = 0; j < w; j++)
			p[j] = B[j];
		for (int64_t j = w; j < 16; j++)
			p[j] = 0;
	}
}

static inline void put_row(float *c, v8 x, v8 y, int64_t w)
{
	if (w == 16) {
		store8(c, x);
		store8(c + 8, y);
	} else {
		float t[16];

		store8(t, x);
		store8(t + 8, y);
		memcpy(c, t, (size_t)w * sizeof(float));
	}
}

static void tile6(const float *A, const float *p, float *C, int64_t K, int64_t N, int64_t w)
{
	const float *a0 = A, *a3 = A + 3 * K;
	v8 c00 = {0}, c01 = {0}, c10 = {0}, c11 = {0}, c20 = {0}, c21 = {0};
	v8 c30 = {0}, c31 = {0}, c40 = {0}, c41 = {0}, c50 = {0}, c51 = {0};

	for (int64_t k = 0; k < K; k++, p += 16, a0++, a3++) {
		v8 b0 = load_aligned8(p), b1 = load_aligned8(p + 8);
		float x;

		x = a0[0];
		c00 += x * b0;
		c01 += x * b1;
		x = a0[K];
		c10 += x * b0;
		c11 += x * b1;
		x = a0[2 * K];
		c20 += x * b0;
		c21 += x * b1;
		x = a3[0];
		c30 += x * b0;
		c31 += x * b1;
		x = a3[K];
		c40 += x * b0;
		c41 += x * b1;
		x = a3[2 * K];
		c50 += x * b0;
		c51 += x * b1;
	}
	put_row(C, c00, c01, w);
	put_row(C + N, c10, c11, w);
	put_row(C + 2 * N, c20, c21, w);
	put_row(C + 3 * N, c30, c31, w);
	put_row(C + 4 * N, c40, c41, w);
	put_row(C + 5 * N, c50, c51, w);
}

static void tile1(const float *A, const float *p, float *C, int64_t K, int64_t w)
{
	v8 c0 = {0}, c1 = {0};

	for (int64_t k = 0; k < K; k++, p += 16) {
		float x = A[k];

		c0 += x * load_aligned8(p);
		c1 += x * load_aligned8(p + 8);
	}
	put_row(C, c0, c1, w);
}

int km_run(const struct km_args *a)
{
	int64_t M = a->M, N = a->N, K = a->K;
	float *p = a->workspace;

	for (int64_t j = 0; j < N; j += 16) {
		int64_t w = N - j < 16 ? N - j : 16, i = 0;

		pack_panel(a->B + j, p, K, N, w);
		for (; i + 6 <= M; i += 6)
			tile6(a->A + i * K, p, a->C + i * N + j, K, N, w);
		for (; i < M; i++)
			tile1(a->A + i * K, p, a->C + i * N + j, K, w);
	}
	return 0;
}
