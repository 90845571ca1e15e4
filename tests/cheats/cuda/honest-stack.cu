/* Honest: every thread keeps a table of 4 KB on its stack, for which the driver takes a gigabyte of the device's memory at the first launch. */
#include "task.h"
#include <cuda_runtime.h>

enum { TABLE = 1024 };

static __device__ float widen(uint16_t h)
{
	return __uint_as_float((uint32_t)h << 16);
}

static __device__ uint16_t narrow(float f)
{
	uint32_t u = __float_as_uint(f);

	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* One block of 256 threads a row; where in the table a value lies depends on the row, so that it cannot be in registers. */
static __global__ void normalise(const uint16_t *x, const uint16_t *w, uint16_t *y, float eps)
{
	__shared__ float part[8];
	int64_t row = (int64_t)blockIdx.x * 4096;
	volatile float table[TABLE];
	unsigned first = blockIdx.x * 61 % TABLE;
	float sum = 0;

	for (unsigned i = 0; i < 16; i++) {
		float v = widen(x[row + i * 256 + threadIdx.x]);

		table[(first + i * 67) % TABLE] = v;
		sum += v * v;
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
	for (unsigned i = 0; i < 16; i++)
		y[row + i * 256 + threadIdx.x] = narrow(table[(first + i * 67) % TABLE] * sum * widen(w[i * 256 + threadIdx.x]));
}

int km_run(const struct km_args *a)
{
	normalise<<<(unsigned)a->batch_size, 256, 0, (cudaStream_t)a->stream>>>(a->hidden_states, a->weight, a->output, a->eps);
	return (int)cudaGetLastError();
}
