/* Honest: CUB's scan, sort and block reduction. Rows are worked on in the order of a sort, whose memory comes from the workspace. */
#include "task.h"
#include <cub/cub.cuh>
#include <cuda_runtime.h>

enum { THREADS = 256 };

static __device__ float widen(uint16_t h)
{
	return __uint_as_float((uint32_t)h << 16);
}

static __device__ uint16_t narrow(float f)
{
	uint32_t u = __float_as_uint(f);

	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* Parts of the workspace, each at a multiple of 256 bytes. */
struct parts {
	uint32_t *ones, *numbers, *keys, *sorted, *order;
	void *rest;
	size_t rest_bytes, bytes;
};

static size_t scan_bytes(int rows)
{
	size_t bytes = 0;

	cub::DeviceScan::ExclusiveSum(nullptr, bytes, (const uint32_t *)nullptr, (uint32_t *)nullptr, rows);
	return bytes;
}

static size_t sort_bytes(int rows)
{
	size_t bytes = 0;

	cub::DeviceRadixSort::SortPairs(nullptr, bytes, (const uint32_t *)nullptr, (uint32_t *)nullptr, (const uint32_t *)nullptr,
					(uint32_t *)nullptr, rows);
	return bytes;
}

static parts divide(void *workspace, int rows)
{
	size_t step = ((size_t)rows * sizeof(uint32_t) + 255) / 256 * 256, scan = scan_bytes(rows), sort = sort_bytes(rows);
	char *at = (char *)workspace;
	parts p = {};

	p.ones = (uint32_t *)at;
	p.numbers = (uint32_t *)(at + step);
	p.keys = (uint32_t *)(at + 2 * step);
	p.sorted = (uint32_t *)(at + 3 * step);
	p.order = (uint32_t *)(at + 4 * step);
	p.rest = at + 5 * step;
	p.rest_bytes = scan > sort ? scan : sort;
	p.bytes = 5 * step + p.rest_bytes;
	return p;
}

static __global__ void fill(uint32_t *ones, uint32_t *keys, int rows)
{
	int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);

	if (i < rows) {
		ones[i] = 1;
		keys[i] = (uint32_t)i * 2654435761u;
	}
}

static __global__ void normalise(const uint32_t *order, const uint16_t *x, const uint16_t *w, uint16_t *y, float eps)
{
	typedef cub::BlockReduce<float, THREADS> reduce;
	__shared__ typename reduce::TempStorage storage;
	__shared__ float scale;
	int64_t row = (int64_t)order[blockIdx.x] * 4096;
	float v[16], sum = 0;

	for (int i = 0; i < 16; i++) {
		v[i] = widen(x[row + i * THREADS + threadIdx.x]);
		sum += v[i] * v[i];
	}
	sum = reduce(storage).Sum(sum);
	if (threadIdx.x == 0)
		scale = rsqrtf(sum / 4096 + eps);
	__syncthreads();
	for (int i = 0; i < 16; i++)
		y[row + i * THREADS + threadIdx.x] = narrow(v[i] * scale * widen(w[i * THREADS + threadIdx.x]));
}

size_t km_workspace(const struct km_args *a)
{
	return divide(nullptr, (int)a->batch_size).bytes;
}

int km_run(const struct km_args *a)
{
	cudaStream_t stream = (cudaStream_t)a->stream;
	int rows = (int)a->batch_size;
	parts p = divide(a->workspace, rows);
	cudaError_t e;

	fill<<<(unsigned)(rows + THREADS - 1) / THREADS, THREADS, 0, stream>>>(p.ones, p.keys, rows);
	e = cub::DeviceScan::ExclusiveSum(p.rest, p.rest_bytes, p.ones, p.numbers, rows, stream);
	if (e == cudaSuccess)
		e = cub::DeviceRadixSort::SortPairs(p.rest, p.rest_bytes, p.keys, p.sorted, p.numbers, p.order, rows, 0, 32, stream);
	if (e != cudaSuccess)
		return (int)e;
	normalise<<<(unsigned)rows, THREADS, 0, stream>>>(p.order, a->hidden_states, a->weight, a->output, a->eps);
	return (int)cudaGetLastError();
}
