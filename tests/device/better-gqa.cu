/* The baseline of gqa_paged_decode_h32_kv4_d128_ps1 with fewer shuffles and exponentials: half a warp visits two tokens at a
 * time. The 16 partial logits of a lane (8 heads, 2 tokens) are added up so that each of the 16 lanes is left with one whole
 * logit, makes one exponential of it, and hands it to the others. */
#include "task.h"
#include <cuda_bf16.h>

enum {
	DIM = KM_AXIS_HEAD_DIM, HEADS = KM_AXIS_NUM_QO_HEADS, GROUPS = KM_AXIS_NUM_KV_HEADS, GROUP = HEADS / GROUPS,
	THREADS = 128, LANES = 16, PARTS = THREADS / LANES, OWN = DIM / LANES, PAIR = 2,
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

/* The sum over 2 * N lanes of x[i], in lane i. Steps are instances of this, so that all indices are known and x stays in registers. */
template <int N> __device__ static float scatter_sums(float *x, int lane)
{
	bool upper = lane & N;

	for (int i = 0; i < N; i++) {
		float mine = upper ? x[i + N] : x[i], other = upper ? x[i] : x[i + N];

		x[i] = mine + __shfl_xor_sync(~0u, other, N);
	}
	if constexpr (N > 1)
		return scatter_sums<N / 2>(x, lane);
	return x[0];
}

/* Lane 2h + j has the logit of head h for token j of the pair, with the largest so far and its own share of the sum. */
__device__ static void visit(const float (*q)[OWN], const float (*k)[OWN], const float (*v)[OWN], float scale, bool mine, int lane,
			     float *max, float *sum, float (*acc)[OWN])
{
	float s[GROUP * PAIR] = {}, logit, higher, old, p;

	for (int h = 0; h < GROUP; h++)
		for (int j = 0; j < PAIR; j++)
			for (int i = 0; i < OWN; i++)
				s[h * PAIR + j] += q[h][i] * k[j][i];
	logit = scatter_sums<LANES / 2>(s, lane);
	logit = mine ? logit * scale : -INFINITY;
	higher = fmaxf(*max, fmaxf(logit, __shfl_xor_sync(~0u, logit, 1)));
	old = __expf(*max - higher);
	p = __expf(logit - higher);
	*max = higher;
	*sum = *sum * old + p;
	for (int h = 0; h < GROUP; h++) {
		float keep = __shfl_sync(~0u, old, 2 * h, LANES), first = __shfl_sync(~0u, p, 2 * h, LANES),
		      second = __shfl_sync(~0u, p, 2 * h + 1, LANES);

		for (int i = 0; i < OWN; i++)
			acc[h][i] = acc[h][i] * keep + first * v[0][i] + second * v[1][i];
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
	float q[GROUP][OWN], acc[GROUP][OWN] = {}, max = -1e30f, sum = 0;

	for (int h = 0; h < GROUP; h++)
		unpack(*(const uint4 *)(a.q + ((int64_t)b * HEADS + group * GROUP + h) * DIM + lane * OWN), q[h]);
	/* All halves make the same number of turns, since both of a warp shuffle together. */
	for (int t = first; t < last; t += PARTS * PAIR) {
		float k[PAIR][OWN], v[PAIR][OWN];
		uint4 kbits[PAIR], vbits[PAIR];
		int at = t + half * PAIR;

		for (int j = 0; j < PAIR; j++) {
			int64_t page = ((int64_t)a.kv_indices[at + j < last ? at + j : t] * GROUPS + group) * DIM + lane * OWN;

			kbits[j] = *(const uint4 *)(a.k_cache + page);
			vbits[j] = *(const uint4 *)(a.v_cache + page);
		}
		for (int j = 0; j < PAIR; j++) {
			unpack(kbits[j], k[j]);
			unpack(vbits[j], v[j]);
		}
		visit(q, k, v, a.sm_scale, at + lane % PAIR < last, lane, &max, &sum, acc);
	}
	sum += __shfl_xor_sync(~0u, sum, 1);
	if (lane % PAIR == 0) {
		own[half][lane / PAIR].max = max;
		own[half][lane / PAIR].sum = sum;
	}
	for (int h = 0; h < GROUP; h++)
		for (int i = 0; i < OWN; i++)
			own[half][h].v[lane * OWN + i] = acc[h][i];
	__syncthreads();
	for (int h = 0; h < GROUP; h++) {
		struct part *to = &parts[(blockIdx.x * GROUP + h) * (int64_t)gridDim.y + blockIdx.y];
		float all, m, joined = join(&own[0][h], PARTS, GROUP, (int)threadIdx.x, &m, &all);

		to->v[threadIdx.x] = joined;
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
