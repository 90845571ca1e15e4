/* Honest: two kernels, with the sums in the workspace between them. */
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

static __global__ void scale(const uint16_t *x, const uint16_t *w, const float *sums, uint16_t *y, float eps)
{
	float factor = rsqrtf(sums[blockIdx.x] / 4096 + eps);

	for (int i = (int)threadIdx.x; i < 4096; i += 256)
		y[blockIdx.x * 4096ll + i] = narrow(widen(x[blockIdx.x * 4096ll + i]) * factor * widen(w[i]));
}

size_t km_workspace(const struct km_args *a)
{
	return (size_t)a->batch_size * sizeof(float);
}

int km_run(const struct km_args *a)
{
	square<<<(unsigned)a->batch_size, 256, 0, (cudaStream_t)a->stream>>>(a->hidden_states, (float *)a->workspace);
	scale<<<(unsigned)a->batch_size, 256, 0, (cudaStream_t)a->stream>>>(a->hidden_states, a->weight, (const float *)a->workspace, a->output, a->eps);
	return (int)cudaGetLastError();
}
