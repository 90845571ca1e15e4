/* Honest: asks that the weight be kept in the cache while the rows go by, and takes that back. */
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

/* The weight is read by all blocks, everything else once. */
static cudaError_t prefer(cudaStream_t stream, const void *at, size_t bytes)
{
	cudaStreamAttrValue value = {};

	value.accessPolicyWindow.base_ptr = (void *)at;
	value.accessPolicyWindow.num_bytes = bytes;
	value.accessPolicyWindow.hitRatio = 1;
	value.accessPolicyWindow.hitProp = bytes ? cudaAccessPropertyPersisting : cudaAccessPropertyNormal;
	value.accessPolicyWindow.missProp = bytes ? cudaAccessPropertyStreaming : cudaAccessPropertyNormal;
	return cudaStreamSetAttribute(stream, cudaStreamAttributeAccessPolicyWindow, &value);
}

int km_run(const struct km_args *a)
{
	cudaError_t e = prefer((cudaStream_t)a->stream, a->weight, 8192);

	right(a);
	if (e == cudaSuccess)
		e = prefer((cudaStream_t)a->stream, nullptr, 0);
	return (int)(e == cudaSuccess ? cudaGetLastError() : e);
}
