#include "task.h"
#include <string.h>

typedef float v8 __attribute__((vector_size(32)));
typedef float v8u __attribute__((vector_size(32), aligned(4), may_alias));

static inline v8 load8(const float *p) { return *(const v8u *)p; }
static inline void store8(float *p, v8 x) { *(v8u *)p = x; }

size_t km_workspace(const struct km_args *a)
{
	return (size_t)a->K * 16 * sizeof(float) + 64;
}

static void pack_panel(const float *B, float *p, int64_t K, int64_t N, int64_t w)
{
	if (w == 16) {
		for (int64_t k = 0; k < K; k++, B += N, p += 16) {
			__builtin_prefetch(B + 8 * N);
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
	v8 acc[6][2];

#pragma GCC unroll 6
	for (int i = 0; i < 6; i++)
		acc[i][0] = acc[i][1] = (v8){0};
	for (int64_t k = 0; k < K; k++, p += 16) {
		v8 b0 = load_aligned8(p), b1 = load_aligned8(p + 8);

#pragma GCC unroll 6
		for (int i = 0; i < 6; i++) {
			float x = A[i * K + k];

			acc[i][0] += x * b0;
			acc[i][1] += x * b1;
		}
	}
#pragma GCC unroll 6
	for (int i = 0; i < 6; i++)
		put_row(C + i * N, acc[i][0], acc[i][1], w);
}

static void tile1(const float *A, const float *p, float *C, int64_t K, int64_t N, int64_t w)
{
	v8 c0 = {0}, c1 = {0};

	(void)N;
	for (int64_t k = 0; k < K; k++, p += 16) {
		c0 += A[k] * load8(p);
		c1 += A[k] * load8(p + 8);
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
			tile1(a->A + i * K, p, a->C + i * N + j, K, N, w);
	}
	return 0;
}
