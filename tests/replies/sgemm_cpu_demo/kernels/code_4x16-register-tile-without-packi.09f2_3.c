#include "task.h"

#define KB 224

typedef float v8 __attribute__((vector_size(32)));
typedef float v8u __attribute__((vector_size(32), aligned(4), may_alias));

static inline v8 load8(const float *p) { return *(const v8u *)p; }
static inline void store8(float *p, v8 x) { *(v8u *)p = x; }

/* C = (first ? 0 : C) + A[., 0..kn) B[0..kn, .) */
static inline __attribute__((always_inline)) void tile(const float *A, const float *B, float *C,
	int64_t N, int64_t K, int64_t kn, int first, const int R, const int V)
{
	v8 acc[6][2];

#pragma GCC unroll 6
	for (int r = 0; r < R; r++) {
#pragma GCC unroll 2
		for (int v = 0; v < V; v++)
			acc[r][v] = (v8){0};
	}
	if (!first) {
#pragma GCC unroll 6
		for (int r = 0; r < R; r++) {
#pragma GCC unroll 2
			for (int v = 0; v < V; v++)
				acc[r][v] = load8(C + r * N + 8 * v);
		}
	}
	for (int64_t k = 0; k < kn; k++) {
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
	float *C = a->C;
	int64_t k = 0;

	do {
		const int64_t kn = K - k < KB ? K - k : KB;
		const int first = k == 0;
		const float *A = a->A + k, *B = a->B + k * N;
		int64_t j = 0;

		for (; j + 16 <= N; j += 16) {
			int64_t i = 0;

			for (; i + 6 <= M; i += 6)
				tile(A + i * K, B + j, C + i * N + j, N, K, kn, first, 6, 2);
			for (; i + 4 <= M; i += 4)
				tile(A + i * K, B + j, C + i * N + j, N, K, kn, first, 4, 2);
			for (; i < M; i++)
				tile(A + i * K, B + j, C + i * N + j, N, K, kn, first, 1, 2);
		}
		for (; j + 8 <= N; j += 8) {
			int64_t i = 0;

			for (; i + 6 <= M; i += 6)
				tile(A + i * K, B + j, C + i * N + j, N, K, kn, first, 6, 1);
			for (; i < M; i++)
				tile(A + i * K, B + j, C + i * N + j, N, K, kn, first, 1, 1);
		}
		for (; j < N; j++) {
			for (int64_t i = 0; i < M; i++) {
				float s = first ? 0.0f : C[i * N + j];

				for (int64_t l = 0; l < kn; l++)
					s += A[i * K + l] * B[l * N + j];
				C[i * N + j] = s;
			}
		}
		k += KB;
	} while (k < K);
	return 0;
}
