/* Split over the tokens: one block takes a piece of one sequence for one key-value head and its eight query heads. Half a warp
 * visits a token, 16 bytes of key and value a lane, with a running softmax for every head; a second kernel joins the pieces. */
#include "task.h"
#include <cuda_bf16.h>

enum {
	DIM = KM_AXIS_HEAD_DIM, HEADS = KM_AXIS_NUM_QO_HEADS, GROUPS = KM_AXIS_NUM_KV_HEADS, GROUP = HEADS / GROUPS,
	THREADS = 128, LANES = 16, PARTS = THREADS / LANES, OWN = DIM / LANES,
	BLOCKS = 528, TOKENS = 16, /* as many blocks, if each has as many tokens */
};

/* Of some tokens: the largest logit, the sum of exp(logit - max), and that sum weighted with the values. */
struct part {
	float max, sum, v[DIM];
};

static int pieces(const struct km_args *a)
{
	int64_t most = BLOCKS / (a->batch_size * GROUPS), useful = a->num_kv_indices / (a->batch_size * TOKENS);

	most = useful < most ? useful : most;
	return most < 1 ? 1 : (int)most;
}

__device__ static void unpack(uint4 bits, float *x)
{
	__nv_bfloat162 pairs[OWN / 2];

	memcpy(pairs, &bits, sizeof(bits));
	for (int i = 0; i < OWN / 2; i++) {
		float2 pair = __bfloat1622float2(pairs[i]);

		x[2 * i] = pair.x;
		x[2 * i + 1] = pair.y;
	}
}

/* Visit one token with half a warp; it counts only if `mine`. */
__device__ static void visit(const float (*q)[OWN], const float *k, const float *v, float scale, bool mine, float *max, float *sum,
			     float (*acc)[OWN])
{
	for (int h = 0; h < GROUP; h++) {
		float s = 0, p, old, higher;

		for (int i = 0; i < OWN; i++)
			s += q[h][i] * k[i];
		for (int offset = LANES / 2; offset > 0; offset /= 2)
			s += __shfl_xor_sync(~0u, s, offset);
		s = mine ? s * scale : -INFINITY;
		higher = fmaxf(max[h], s);
		old = __expf(max[h] - higher);
		p = __expf(s - higher);
		max[h] = higher;
		sum[h] = sum[h] * old + p;
		for (int i = 0; i < OWN; i++)
			acc[h][i] = acc[h][i] * old + p * v[i];
	}
}

/* Element d of some parts together. */
__device__ static float join(const struct part *parts, int count, int stride, int d, float *max, float *sum)
{
	float v = 0;

	*max = -INFINITY;
	*sum = 0;
	for (int i = 0; i < count; i++)
		*max = fmaxf(*max, parts[i * stride].max);
	for (int i = 0; i < count; i++) {
		float weight = parts[i * stride].sum > 0 ? __expf(parts[i * stride].max - *max) : 0;

		*sum += weight * parts[i * stride].sum;
		v += weight * parts[i * stride].v[d];
	}
	return v;
}

/* Block (b * GROUPS + group, piece); its result for head h of the group is parts[((b * GROUPS + group) * GROUP + h) * pieces + piece]. */
__global__ void __launch_bounds__(THREADS) attend(struct km_args a, struct part *parts)
{
	__shared__ struct part own[PARTS][GROUP];
	int b = blockIdx.x / GROUPS, group = blockIdx.x % GROUPS, half = threadIdx.x / LANES, lane = threadIdx.x % LANES;
	int from = a.kv_indptr[b], length = a.kv_indptr[b + 1] - from;
	int first = from + (int)((int64_t)length * blockIdx.y / gridDim.y), last = from + (int)((int64_t)length * (blockIdx.y + 1) / gridDim.y);
	float q[GROUP][OWN], acc[GROUP][OWN] = {}, max[GROUP], sum[GROUP] = {};

	for (int h = 0; h < GROUP; h++) {
		unpack(*(const uint4 *)(a.q + ((int64_t)b * HEADS + group * GROUP + h) * DIM + lane * OWN), q[h]);
		max[h] = -1e30f;
	}
	/* All halves make the same number of turns, since both of a warp shuffle together. */
	for (int t = first; t < last; t += PARTS) {
		bool mine = t + half < last;
		int64_t at = ((int64_t)a.kv_indices[mine ? t + half : t] * GROUPS + group) * DIM + lane * OWN;
		uint4 kbits = *(const uint4 *)(a.k_cache + at), vbits = *(const uint4 *)(a.v_cache + at);
		float k[OWN], v[OWN];

		unpack(kbits, k);
		unpack(vbits, v);
		visit(q, k, v, a.sm_scale, mine, max, sum, acc);
	}
	for (int h = 0; h < GROUP; h++) {
		own[half][h].max = max[h];
		own[half][h].sum = sum[h];
		for (int i = 0; i < OWN; i++)
			own[half][h].v[lane * OWN + i] = acc[h][i];
	}
	__syncthreads();
	for (int h = 0; h < GROUP; h++) {
		struct part *to = &parts[(blockIdx.x * GROUP + h) * (int64_t)gridDim.y + blockIdx.y];
		float all, m, v = join(&own[0][h], PARTS, GROUP, (int)threadIdx.x, &m, &all);

		to->v[threadIdx.x] = v;
		if (threadIdx.x == 0) {
			to->max = m;
			to->sum = all;
		}
	}
}

__global__ void __launch_bounds__(DIM) finish(const struct part *parts, int count, __nv_bfloat16 *output, float *lse)
{
	float max, sum, v = join(parts + blockIdx.x * (int64_t)count, count, 1, (int)threadIdx.x, &max, &sum);

	output[blockIdx.x * (int64_t)DIM + threadIdx.x] = __float2bfloat16(sum > 0 ? v / sum : 0);
	if (threadIdx.x == 0)
		lse[blockIdx.x] = sum > 0 ? (max + logf(sum)) * 1.44269504f : -INFINITY;
}

size_t km_workspace(const struct km_args *a)
{
	return (size_t)(a->batch_size * HEADS * pieces(a)) * sizeof(struct part);
}

int km_run(const struct km_args *a)
{
	cudaStream_t stream = (cudaStream_t)a->stream;
	struct part *parts = (struct part *)a->workspace;

	attend<<<dim3((unsigned)(a->batch_size * GROUPS), (unsigned)pieces(a)), THREADS, 0, stream>>>(*a, parts);
	finish<<<(unsigned)(a->batch_size * HEADS), DIM, 0, stream>>>(parts, pieces(a), (__nv_bfloat16 *)a->output, a->lse);
	return (int)cudaGetLastError();
}
