/* Honest: four kernels and a copy, each with what the one before has left in the workspace. */
#include "task.h"
#include <cuda_runtime.h>

static __device__ float widen(uint16_t h)
{
	return __uint_as_float((uint32_t)h << 16);
}

static __device__ uint16_t narrow(float f)
{
	uint32_t u = __float_as_uint(f);

	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* The sum of squares of a row. */
static __global__ void square(const uint16_t *x, float *sums)
{
	__shared__ float part[8];
	float sum = 0;

	for (int i = (int)threadIdx.x; i < 4096; i += 256) {
		float v = widen(x[blockIdx.x * 4096ll + i]);

		sum += v * v;
	}
	for (int d = 16; d; d /= 2)
		sum += __shfl_xor_sync(~0u, sum, d);
	if (threadIdx.x % 32 == 0)
		part[threadIdx.x / 32] = sum;
	__syncthreads();
	if (threadIdx.x == 0)
		sums[blockIdx.x] = part[0] + part[1] + part[2] + part[3] + part[4] + part[5] + part[6] + part[7];
}

static __global__ void scale(const uint16_t *x, const uint16_t *w, const float *sums, uint16_t *y)
{
	float factor = sums[blockIdx.x];

	for (int i = (int)threadIdx.x; i < 4096; i += 256)
		y[blockIdx.x * 4096ll + i] = narrow(widen(x[blockIdx.x * 4096ll + i]) * factor * widen(w[i]));
}

static __global__ void mean(float *sums, int64_t rows, float eps)
{
	int64_t i = blockIdx.x * 256ll + threadIdx.x;

	if (i < rows)
		sums[i] = sums[i] / 4096 + eps;
}

static __global__ void root(const float *sums, float *factors, int64_t rows)
{
	int64_t i = blockIdx.x * 256ll + threadIdx.x;

	if (i < rows)
		factors[i] = rsqrtf(sums[i]);
}

/* Sums, and factors behind them. */
size_t km_workspace(const struct km_args *a)
{
	return (size_t)a->batch_size * 2 * sizeof(float);
}

int km_run(const struct km_args *a)
{
	unsigned rows = (unsigned)a->batch_size;
	float *sums = (float *)a->workspace, *factors = sums + rows;
	cudaStream_t s = (cudaStream_t)a->stream;

	square<<<rows, 256, 0, s>>>(a->hidden_states, factors);
	cudaMemcpyAsync(sums, factors, rows * sizeof(float), cudaMemcpyDeviceToDevice, s);
	mean<<<(rows + 255) / 256, 256, 0, s>>>(sums, rows, a->eps);
	root<<<(rows + 255) / 256, 256, 0, s>>>(sums, factors, rows);
	scale<<<rows, 256, 0, s>>>(a->hidden_states, a->weight, factors, a->output);
	return (int)cudaGetLastError();
}
