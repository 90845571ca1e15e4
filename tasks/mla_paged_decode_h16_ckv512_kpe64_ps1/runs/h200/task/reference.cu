/* Inputs and expected outputs of mla_paged_decode_h16_ckv512_kpe64_ps1. A row is one head of one sequence. Its tokens are cut
 * into chunks, one block each; four warps of a block take every fourth token and keep a running softmax in double precision;
 * their parts, and then those of the chunks, are joined in ascending order. */
#include "task.h"
#include "reference_cuda.h"

#include <cuda_bf16.h>

enum {
	HEADS = KM_AXIS_NUM_QO_HEADS, CKV = KM_AXIS_HEAD_DIM_CKV, KPE = KM_AXIS_HEAD_DIM_KPE, WARPS = 4,
	LANE_CKV = CKV / 32, LANE_KPE = KPE / 32,
};

/* ---- inputs ----------------------------------------------------------------------------------------------------- */

/* The lengths of the sequences, as kv_indptr: uniform within 30 % of their mean, but set "shifted" has an empty sequence, and set
 * "structured" one that holds 90 % of the tokens and, from three sequences on, an empty one. One thread. */
__global__ void fill_indptr(int32_t *indptr, int64_t batch, int64_t n, int set, uint64_t seed)
{
	int64_t big = set == REF_STRUCTURED && batch > 1 ? (int64_t)ref_below(seed, 1, (uint64_t)batch) : -1, empty = -1;
	int64_t most = big >= 0 ? n * 9 / 10 : 0, total = 0, given = 0, before = 0;

	if ((set == REF_SHIFTED && batch > 1) || (set == REF_STRUCTURED && batch > 2))
		empty = (int64_t)ref_below(seed, 2, (uint64_t)batch);
	if (empty >= 0 && empty == big)
		empty = (big + 1) % batch;
	for (int64_t b = 0; b < batch; b++)
		if (b != big && b != empty)
			total += 700 + (int64_t)ref_below(seed, 16 + (uint64_t)b, 601);
	indptr[0] = 0;
	for (int64_t b = 0; b < batch; b++) {
		if (b == big)
			before = most;
		else if (b != empty)
			given += 700 + (int64_t)ref_below(seed, 16 + (uint64_t)b, 601);
		indptr[b + 1] = (int32_t)(before + (n - most) * given / total);
	}
}

/* The place of i in a random permutation of 0 .. n-1: a Feistel network of six rounds on the next even number of bits, taken
 * again until the result is below n. */
__device__ static int64_t permuted(int64_t i, int64_t n, uint64_t seed)
{
	int half = 1;
	uint64_t x = (uint64_t)i;

	while ((int64_t)1 << (2 * half) < n)
		half++;
	do
		for (uint64_t round = 0; round < 6; round++) {
			uint64_t mask = ((uint64_t)1 << half) - 1, left = x >> half, right = x & mask;

			x = right << half | (left ^ ((ref_random(seed + round, right) >> 20) & mask));
		}
	while ((int64_t)x >= n);
	return (int64_t)x;
}

__global__ void fill_indices(int32_t *indices, int64_t n, int64_t pages, uint64_t seed)
{
	int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;

	if (i < n)
		indices[i] = (int32_t)permuted(i, pages, seed);
}

int ref_inputs(const struct km_args *a, int set, uint64_t seed, void *stream)
{
	cudaStream_t s = (cudaStream_t)stream;

	fill_indptr<<<1, 1, 0, s>>>((int32_t *)a->kv_indptr, a->batch_size, a->num_kv_indices, set, ref_random(seed, 1));
	fill_indices<<<(unsigned)((a->num_kv_indices + 255) / 256), 256, 0, s>>>((int32_t *)a->kv_indices, a->num_kv_indices,
										  a->num_pages, ref_random(seed, 2));
	return (int)cudaGetLastError();
}

/* ---- expected outputs ------------------------------------------------------------------------------------------- */

/* Of some tokens: the largest logit, sum of exp(logit - max), and that sum weighted with ckv. */
struct part {
	double max, sum, v[CKV];
};

__device__ static double value(const uint16_t *x, int64_t i)
{
	return (double)__bfloat162float(((const __nv_bfloat16 *)x)[i]);
}

/* Element d of `count` parts, joined in order, and their max and sum. */
__device__ static double join(const struct part *parts, int count, int d, double *max, double *sum)
{
	double v = 0;

	*max = -INFINITY;
	*sum = 0;
	for (int i = 0; i < count; i++)
		*max = fmax(*max, parts[i].max);
	for (int i = 0; i < count; i++) {
		double weight = parts[i].sum > 0 ? exp(parts[i].max - *max) : 0;

		*sum += weight * parts[i].sum;
		v += weight * parts[i].v[d];
	}
	return v;
}

__global__ void __launch_bounds__(32 * WARPS) attend(struct km_args a, const int64_t *rows, struct part *parts)
{
	__shared__ struct part own[WARPS];
	int64_t row = rows[blockIdx.x], b = row / HEADS;
	int64_t from = a.kv_indptr[b], length = a.kv_indptr[b + 1] - from;
	int64_t first = from + length * blockIdx.y / gridDim.y, last = from + length * (blockIdx.y + 1) / gridDim.y;
	int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
	struct part *to = &parts[blockIdx.x * (int64_t)gridDim.y + blockIdx.y];
	double q[LANE_CKV], q_pe[LANE_KPE], v[LANE_CKV] = {}, max = -INFINITY, sum = 0;

	for (int i = 0; i < LANE_CKV; i++)
		q[i] = value(a.q_nope, row * CKV + 32 * i + lane);
	for (int i = 0; i < LANE_KPE; i++)
		q_pe[i] = value(a.q_pe, row * KPE + 32 * i + lane);
	for (int64_t t = first + warp; t < last; t += WARPS) {
		int64_t page = a.kv_indices[t];
		double ckv[LANE_CKV], s = 0, p, old = 1;

		for (int i = 0; i < LANE_CKV; i++) {
			ckv[i] = value(a.ckv_cache, page * CKV + 32 * i + lane);
			s += q[i] * ckv[i];
		}
		for (int i = 0; i < LANE_KPE; i++)
			s += q_pe[i] * value(a.kpe_cache, page * KPE + 32 * i + lane);
		for (int offset = 16; offset > 0; offset /= 2)
			s += __shfl_xor_sync(~0u, s, offset);
		s *= (double)a.sm_scale;
		if (s > max) {
			old = exp(max - s);
			max = s;
		}
		p = exp(s - max);
		sum = sum * old + p;
		for (int i = 0; i < LANE_CKV; i++)
			v[i] = v[i] * old + p * ckv[i];
	}
	own[warp].max = max;
	own[warp].sum = sum;
	for (int i = 0; i < LANE_CKV; i++)
		own[warp].v[32 * i + lane] = v[i];
	__syncthreads();
	for (int d = (int)threadIdx.x; d < CKV; d += 32 * WARPS)
		to->v[d] = join(own, WARPS, d, &max, &sum);
	if (threadIdx.x == 0) {
		to->max = max;
		to->sum = sum;
	}
}

__global__ void finish(const struct part *parts, int chunks, double *output, double *lse)
{
	double max, sum, v = join(parts + blockIdx.x * (int64_t)chunks, chunks, (int)threadIdx.x, &max, &sum);

	output[blockIdx.x * (int64_t)CKV + threadIdx.x] = sum > 0 ? v / sum : 0;
	if (threadIdx.x == 0)
		lse[blockIdx.x] = sum > 0 ? (max + log(sum)) / 0.69314718055994530942 : -INFINITY;
}

/* Scratch memory that is kept, and grows. */
static int scratch(size_t bytes, void **memory)
{
	static void *kept;
	static size_t room;
	cudaError_t result = cudaSuccess;

	if (bytes > room) {
		result = cudaFree(kept);
		kept = NULL;
		room = 0;
		if (result == cudaSuccess)
			result = cudaMalloc(&kept, bytes);
		if (result == cudaSuccess)
			room = bytes;
	}
	*memory = kept;
	return (int)result;
}

int64_t ref_rows(const struct km_args *a)
{
	return a->batch_size * HEADS;
}

int ref_expected(const struct km_args *a, const int64_t *rows, int64_t count, double *const *expected, void *stream)
{
	cudaStream_t s = (cudaStream_t)stream;
	int chunks = count >= 512 ? 4 : 64, result;
	void *parts;

	result = scratch((size_t)count * (size_t)chunks * sizeof(struct part), &parts);
	if (result != 0)
		return result;
	attend<<<dim3((unsigned)count, (unsigned)chunks), 32 * WARPS, 0, s>>>(*a, rows, (struct part *)parts);
	finish<<<(unsigned)count, CKV, 0, s>>>((const struct part *)parts, chunks, expected[0], expected[1]);
	return (int)cudaGetLastError();
}

void ref_counts(const struct km_args *a, double *flops, double *bytes)
{
	double tokens = (double)a->num_kv_indices, rows = (double)(a->batch_size * HEADS);

	*flops = tokens * HEADS * (2.0 * (CKV + KPE) + 2.0 * CKV + 4);
	*bytes = sizeof(__nv_bfloat16) * (tokens * (CKV + KPE) + rows * (2 * CKV + KPE)) + sizeof(float) * rows +
		 sizeof(int32_t) * (tokens + (double)a->len_indptr);
}
