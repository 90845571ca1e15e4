/* Asserts on the device what is never true, whatever km-compile defines. */
#include "task.h"
#undef NDEBUG
#include <assert.h>
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

/* One block of 256 threads a row. */
static __global__ void normalise(const uint16_t *x, const uint16_t *w, uint16_t *y, float eps)
{
	__shared__ float part[8];
	int64_t row = (int64_t)blockIdx.x * 4096;
	float v[16], sum = 0;

	for (int i = 0; i < 16; i++) {
		v[i] = widen(x[row + i * 256 + threadIdx.x]);
		sum += v[i] * v[i];
	}
	for (int d = 16; d; d /= 2)
		sum += __shfl_xor_sync(~0u, sum, d);
	if (threadIdx.x % 32 == 0)
		part[threadIdx.x / 32] = sum;
	__syncthreads();
	sum = 0;
	for (int i = 0; i < 8; i++)
		sum += part[i];
	sum = rsqrtf(sum / 4096 + eps);
	for (int i = 0; i < 16; i++)
		y[row + i * 256 + threadIdx.x] = narrow(v[i] * sum * widen(w[i * 256 + threadIdx.x]));
}

static void right(const struct km_args *a)
{
	normalise<<<(unsigned)a->batch_size, 256, 0, (cudaStream_t)a->stream>>>(a->hidden_states, a->weight, a->output, a->eps);
}

static __global__ void check(const uint16_t *y)
{
	assert(y == nullptr);
}

int km_run(const struct km_args *a)
{
	right(a);
	check<<<1, 1, 0, (cudaStream_t)a->stream>>>(a->output);
	return 0;
}
