/* One block a row: 16-byte loads, the row stays in registers between the sum of squares and the scaling. */
#include "task.h"
#include <cuda_bf16.h>

enum { THREADS = 256, WARPS = THREADS / 32, VECTOR = 8, VECTORS = KM_AXIS_HIDDEN_SIZE / (THREADS * VECTOR) };

/* Eight numbers, moved as 16 bytes. */
union vector {
	uint4 bits;
	__nv_bfloat162 pairs[VECTOR / 2];

	__device__ vector() {}
};

__global__ void __launch_bounds__(THREADS) normalise(const uint4 *x, const uint4 *weight, uint4 *y, float eps)
{
	__shared__ float sums[WARPS];
	vector row[VECTORS];
	float sum = 0, scale;

	x += (int64_t)blockIdx.x * THREADS * VECTORS;
	y += (int64_t)blockIdx.x * THREADS * VECTORS;
	for (int v = 0; v < VECTORS; v++)
		row[v].bits = x[v * THREADS + threadIdx.x];
	for (int v = 0; v < VECTORS; v++)
		for (int i = 0; i < VECTOR / 2; i++) {
			float2 p = __bfloat1622float2(row[v].pairs[i]);

			sum += p.x * p.x + p.y * p.y;
		}
	for (int offset = 16; offset > 0; offset /= 2)
		sum += __shfl_xor_sync(~0u, sum, offset);
	if (threadIdx.x % 32 == 0)
		sums[threadIdx.x / 32] = sum;
	__syncthreads();
	sum = 0;
	for (int w = 0; w < WARPS; w++)
		sum += sums[w];
	scale = 1 / sqrtf(sum / KM_AXIS_HIDDEN_SIZE + eps);
	for (int v = 0; v < VECTORS; v++) {
		vector w, out;

		w.bits = weight[v * THREADS + threadIdx.x];
		for (int i = 0; i < VECTOR / 2; i++) {
			float2 p = __bfloat1622float2(row[v].pairs[i]), s = __bfloat1622float2(w.pairs[i]);

			out.pairs[i] = __floats2bfloat162_rn(p.x * scale * s.x, p.y * scale * s.y);
		}
		y[v * THREADS + threadIdx.x] = out.bits;
	}
}

int km_run(const struct km_args *a)
{
	normalise<<<(unsigned)a->batch_size, THREADS, 0, (cudaStream_t)a->stream>>>((const uint4 *)a->hidden_states,
		(const uint4 *)a->weight, (uint4 *)a->output, a->eps);
	return (int)cudaGetLastError();
}
