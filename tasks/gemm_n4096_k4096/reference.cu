/* Inputs and expected output of gemm_n4096_k4096. A row is one row of C; products of halves are exact in double precision,
 * and each element is one running sum over k in ascending order. */
#include "task.h"
#include "reference_cuda.h"

#include <cuda_fp16.h>

enum { TILE = 32, SIDE = 16, PAD = TILE + 1 };

__global__ void scale(__half *x, int64_t n, float factor)
{
	for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
		x[i] = __float2half(__half2float(x[i]) * factor);
}

/* Where rows have scales of their own or heavy tails, C could pass the largest half, 65504: there A is divided by 16. */
int ref_inputs(const struct km_args *a, int set, uint64_t, void *stream)
{
	if (set == REF_ROW_SCALED || set == REF_STUDENT_T3)
		scale<<<1024, 256, 0, (cudaStream_t)stream>>>((__half *)a->A, a->M * a->K, 0x1p-4f);
	return (int)cudaGetLastError();
}

int64_t ref_rows(const struct km_args *a)
{
	return a->M;
}

/* A tile of 32 rows of the list and 32 columns of C, 2 x 2 elements a thread. */
__global__ void __launch_bounds__(SIDE * SIDE) multiply(const __half *A, const __half *B, int64_t N, int64_t K, const int64_t *rows,
							int64_t count, double *C)
{
	__shared__ double left[TILE][PAD], right[TILE][PAD]; /* [k][row], [k][column] */
	int64_t first = blockIdx.y * (int64_t)TILE, column = blockIdx.x * (int64_t)TILE;
	int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
	double sum[2][2] = {};

	for (int64_t k = 0; k < K; k += TILE) {
		for (int i = threadIdx.x; i < TILE * TILE; i += SIDE * SIDE) {
			int64_t r = i / TILE, at = i % TILE, row = first + r < count ? rows[first + r] : rows[first];

			left[at][r] = (double)__half2float(A[row * K + k + at]);
			right[at][r] = (double)__half2float(B[(column + r) * K + k + at]);
		}
		__syncthreads();
		for (int at = 0; at < TILE; at++)
			for (int i = 0; i < 2; i++)
				for (int j = 0; j < 2; j++)
					sum[i][j] = fma(left[at][y + SIDE * i], right[at][x + SIDE * j], sum[i][j]);
		__syncthreads();
	}
	for (int i = 0; i < 2; i++)
		for (int j = 0; j < 2; j++)
			if (first + y + SIDE * i < count)
				C[(first + y + SIDE * i) * N + column + x + SIDE * j] = sum[i][j];
}

int ref_expected(const struct km_args *a, const int64_t *rows, int64_t count, double *const *expected, void *stream)
{
	dim3 grid((unsigned)(a->N / TILE), (unsigned)((count + TILE - 1) / TILE));

	multiply<<<grid, SIDE * SIDE, 0, (cudaStream_t)stream>>>((const __half *)a->A, (const __half *)a->B, a->N, a->K, rows, count, expected[0]);
	return (int)cudaGetLastError();
}

void ref_counts(const struct km_args *a, double *flops, double *bytes)
{
	double m = (double)a->M, n = (double)a->N, k = (double)a->K;

	*flops = 2 * m * n * k;
	*bytes = sizeof(__half) * (m * k + n * k + m * n);
}
