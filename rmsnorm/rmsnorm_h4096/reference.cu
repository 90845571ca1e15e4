/* Inputs and expected output of rmsnorm_h4096. A row is one row of the matrix; it is computed in double precision by one
 * block, whose threads' sums are added in a fixed order. */
#include "task.h"
#include "reference_cuda.h"

#include <cuda_bf16.h>

enum { THREADS = 256 };

/* One row in eight is made so small that eps matters, whatever its value is; one in eight of these is all zero. */
__global__ void shrink_rows(__nv_bfloat16 *x, int64_t n, uint64_t seed)
{
	uint64_t draw = ref_random(seed, blockIdx.x);
	float factor = (draw >> 8) % 8 ? 0x1p-9f : 0.0f;

	if (draw % 8)
		return;
	for (int64_t i = threadIdx.x; i < n; i += THREADS)
		x[blockIdx.x * n + i] = __float2bfloat16(__bfloat162float(x[blockIdx.x * n + i]) * factor);
}

int ref_inputs(const struct km_args *a, int, uint64_t seed, void *stream)
{
	shrink_rows<<<(unsigned)a->batch_size, THREADS, 0, (cudaStream_t)stream>>>((__nv_bfloat16 *)a->hidden_states, a->hidden_size, seed);
	return (int)cudaGetLastError();
}

int64_t ref_rows(const struct km_args *a)
{
	return a->batch_size;
}

__global__ void normalise(const __nv_bfloat16 *x, const __nv_bfloat16 *weight, double eps, int64_t n, const int64_t *rows, double *expected)
{
	__shared__ double sums[THREADS];
	double sum = 0, scale;

	x += rows[blockIdx.x] * n;
	expected += blockIdx.x * n;
	for (int64_t i = threadIdx.x; i < n; i += THREADS) {
		double xi = (double)__bfloat162float(x[i]);

		sum += xi * xi;
	}
	sums[threadIdx.x] = sum;
	for (int half = THREADS / 2; half > 0; half /= 2) {
		__syncthreads();
		if ((int)threadIdx.x < half)
			sums[threadIdx.x] += sums[threadIdx.x + half];
	}
	__syncthreads();
	scale = 1 / sqrt(sums[0] / (double)n + eps);
	for (int64_t i = threadIdx.x; i < n; i += THREADS)
		expected[i] = (double)__bfloat162float(x[i]) * scale * (double)__bfloat162float(weight[i]);
}

int ref_expected(const struct km_args *a, const int64_t *rows, int64_t count, double *const *expected, void *stream)
{
	normalise<<<(unsigned)count, THREADS, 0, (cudaStream_t)stream>>>((const __nv_bfloat16 *)a->hidden_states,
		(const __nv_bfloat16 *)a->weight, (double)a->eps, a->hidden_size, rows, expected[0]);
	return (int)cudaGetLastError();
}

void ref_counts(const struct km_args *a, double *flops, double *bytes)
{
	double elements = (double)a->batch_size * (double)a->hidden_size;

	*flops = 4 * elements;
	*bytes = sizeof(__nv_bfloat16) * (2 * elements + (double)a->hidden_size);
}
