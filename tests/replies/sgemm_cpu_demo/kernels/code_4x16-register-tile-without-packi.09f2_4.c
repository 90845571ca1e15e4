#include "task.h"

typedef float v8 __attribute__((vector_size(32)));
typedef float v8u __attribute__((vector_size(32), aligned(4), may_alias));

static inline v8 load8(const float *p) { return *(const v8u *)p; }
static inline void store8(float *p, v8 x) { *(v8u *)p = x; }

static inline __attribute__((always_inline)) void tile(const float *A, const float *B, float *C,
	int64_t N, int64_t K, const int R, const int V)
{
	v8 acc[6][2];

#pragma GCC unroll 6
	for (int r = 0; r < R; r++) {
#pragma GCC unroll 2
		for (int v = 0; v < V; v++)
			acc[r][v] = (v8){0};
	}
#pragma GCC unroll 4
	for (int64_t k = 0; k < K; k++) {
		const float *b = B + k * N;
		v8 bv[2];

#pragma GCC unroll 2
		for (int v = 0; v < V; v++)
			bv[v] = load8(b + 8 * v);
#pragma GCC unroll 6
		for (int r = 0; r < R; r++) {
			float x = A[r * K + k];

#pragma GCC unroll 2
			for (int v = 0; v < V; v++)
				acc[r][v] += x * bv[v];
		}
	}
#pragma GCC unroll 6
	for (int r = 0; r < R; r++) {
#pragma GCC unroll 2
		for (int v = 0; v < V; v++)
			store8(C + r * N + 8 * v, acc[r][v]);
	}
}

int km_run(const struct km_args *a)
{
	const int64_t M = a->M, N = a->N, K = a->K;
	const float *A = a->A, *B = a->B;
	float *C = a->C;
	int64_t j = 0;

	for (; j + 16 <= N; j += 16) {
		int64_t i = 0;

		for (; i + 6 <= M; i += 6)
			tile(A + i * K, B + j, C + i * N + j, N, K, 6, 2);
		for (; i + 4 <= M; i += 4)
			tile(A + i * K, B + j, C + i * N + j, N, K, 4, 2);
		for (; i < M; i++)
			tile(A + i * K, B + j, C + i * N + j, N, K, 1, 2);
	}
	for (; j + 8 <= N; j += 8) {
		int64_t i = 0;

		for (; i + 6 <= M; i += 6)
			tile(A + i * K, B + j, C + i * N + j, N, K, 6, 1);
		for (; i < M; i++)
			tile(A + i * K, B + j, C + i * N + j, N, K, 1, 1);
	}
	for (; j < N; j++) {
		for (int64_t i = 0; i < M; i++) {
			float s = 0;

			for (int64_t k = 0; k < K; k++)
				s += A[i * K + k] * B[k * N + j];
			C[i * N + j] = s;
		}
	}
	return 0;
}
