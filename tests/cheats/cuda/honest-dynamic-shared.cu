/* Honest: more dynamic shared memory than without asking, asked for in km_init. */
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

/* Eight rows a block, all of them in shared memory. */
static __global__ void normalise(const uint16_t *x, const uint16_t *w, uint16_t *y, int64_t rows, float eps)
{
	extern __shared__ float row[];
	int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
	int64_t r = blockIdx.x * 8ll + warp;
	float *mine = row + warp * 4096, sum = 0;

	if (r >= rows)
		return;
	for (int i = lane; i < 4096; i += 32) {
		mine[i] = widen(x[r * 4096 + i]);
		sum += mine[i] * mine[i];
	}
	for (int d = 16; d; d /= 2)
		sum += __shfl_xor_sync(~0u, sum, d);
	sum = rsqrtf(sum / 4096 + eps);
	for (int i = lane; i < 4096; i += 32)
		y[r * 4096 + i] = narrow(mine[i] * sum * widen(w[i]));
}

int km_init(const struct km_args *a)
{
	(void)a;
	return (int)cudaFuncSetAttribute(normalise, cudaFuncAttributeMaxDynamicSharedMemorySize, 8 * 4096 * 4);
}

int km_run(const struct km_args *a)
{
	normalise<<<(unsigned)((a->batch_size + 7) / 8), 256, 8 * 4096 * 4, (cudaStream_t)a->stream>>>(a->hidden_states, a->weight, a->output, a->batch_size, a->eps);
	return (int)cudaGetLastError();
}
