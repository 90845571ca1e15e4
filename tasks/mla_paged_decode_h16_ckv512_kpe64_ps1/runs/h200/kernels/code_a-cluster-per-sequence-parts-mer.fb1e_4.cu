#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>
#include <math.h>

enum {
	HEADS = KM_AXIS_NUM_QO_HEADS, CKV = KM_AXIS_HEAD_DIM_CKV, KPE = KM_AXIS_HEAD_DIM_KPE,
	TOKENS = 32, WARPS = 8, THREADS = 32 * WARPS,
	ROW = (CKV + KPE) * 2 + 16, /* bytes; an odd number of 16 B units, so ldmatrix has no conflicts */
	STAGE = TOKENS * ROW,
	STEPS = 9,          /* k16-steps of a warp: a quarter of 36 */
	RED_STRIDE = 40,    /* floats */
	P_ROW = 80,         /* bytes */
	V_STRIDE = CKV + 8, /* floats */
	UNITS = HEADS * CKV / 4,
	RED_AT = 0,
	P_AT = RED_AT + 4 * HEADS * RED_STRIDE * 4,
	SCALE_AT = P_AT + HEADS * P_ROW,
	MAX_AT = SCALE_AT + HEADS * 4,
	SUM_AT = MAX_AT + HEADS * 4,
	ROUNDED_AT = SUM_AT + HEADS * 4,
	RING_AT = ROUNDED_AT + HEADS * 4,
};

static_assert(RING_AT % 128 == 0, "alignment of the ring");
static_assert(HEADS * V_STRIDE * 4 <= STAGE, "the part fits in the ring");

__device__ __forceinline__ static unsigned load_word(const void *p)
{
	unsigned x;

	asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(x) : "l"(p));
	return x;
}

__device__ __forceinline__ static void prefetch(const void *p)
{
	asm volatile("prefetch.global.L2 [%0];" ::"l"(p) : "memory");
}

/* 16 bytes to shared memory; zeros if not `valid`. */
__device__ __forceinline__ static void copy_async(unsigned to, const void *from, bool valid)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

__device__ __forceinline__ static void copy_commit()
{
	asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int PENDING> __device__ __forceinline__ static void copy_wait()
{
	asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ static void load_matrix4(unsigned *to, unsigned at)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ static void load_matrix4_turned(unsigned *to, unsigned at)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ static void multiply_add(float *sum, const unsigned *a, const unsigned *b)
{
	asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
	    : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
	    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ static float power2(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

/* The largest of a warp's numbers (no NaN), by way of integers in the same order. */
__device__ __forceinline__ static float warp_max(float x)
{
	int i = __float_as_int(x);

	i = i >= 0 ? i : i ^ 0x7fffffff;
	i = __reduce_max_sync(0xffffffffu, i);
	i = i >= 0 ? i : i ^ 0x7fffffff;
	return __int_as_float(i);
}

__device__ __forceinline__ static float warp_sum(float x)
{
#pragma unroll
	for (int i = 16; i > 0; i /= 2)
		x += __shfl_xor_sync(0xffffffffu, x, i);
	return x;
}

__device__ __forceinline__ static void cluster_arrive()
{
	asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ static void cluster_wait()
{
	asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ static unsigned peer_address(unsigned at, int peer)
{
	unsigned to;

	asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(at), "r"(peer));
	return to;
}

__device__ __forceinline__ static float peer_float(unsigned at)
{
	float x;

	asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(at) : "memory");
	return x;
}

__device__ __forceinline__ static void peer_float4(float *x, unsigned at)
{
	asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
		     : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3]) : "r"(at) : "memory");
}

/* A cluster of N blocks has one sequence; S stages of 32 tokens. */
template <int N, int S>
static __global__ void __launch_bounds__(THREADS, 1) attend(const struct km_args a)
{
	extern __shared__ __align__(128) unsigned char shared[];
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
	const int rank = (int)(blockIdx.x % N), b = (int)(blockIdx.x / N);
	const unsigned base = (unsigned)__cvta_generic_to_shared(shared), ring = base + RING_AT;
	const int begin = (int)load_word(a.kv_indptr + b), end = (int)load_word(a.kv_indptr + b + 1);
	const uint16_t *const ckv = a.ckv_cache, *const kpe = a.kpe_cache;
	const int group = warp & 3, half = warp >> 2, row = lane >> 2, pair = (lane & 3) * 2;
	float *const red = (float *)(shared + RED_AT);
	__nv_bfloat16 *const weights = (__nv_bfloat16 *)(shared + P_AT);
	float *const rescale = (float *)(shared + SCALE_AT);

	/* Page numbers of this warp's four rows in eight tiles: lane i has row i % 4 of tile i / 4; and of the next eight tiles. */
	const int own = (lane >> 2) * TOKENS + 4 * warp + (lane & 3);
	int page = 0;

	{
		/* all blocks together bring kv_indices nearer, while kv_indptr is on its way */
		const int64_t at = ((int64_t)threadIdx.x * gridDim.x + blockIdx.x) * 8;

		if (at < a.num_kv_indices)
			prefetch(a.kv_indices + at);
	}
	if (N == 16 && a.batch_size == 1) {
		/* the only sequence has all tokens, as a rule; that is verified below */
		const int64_t low = a.num_kv_indices * rank / N, high = a.num_kv_indices * (rank + 1) / N;

		if (own < high - low)
			page = (int)load_word(a.kv_indices + low + own);
	}

	/* Q as the first operand, while kv_indptr is on its way */
	unsigned q[STEPS][4];
#pragma unroll
	for (int i = 0; i < STEPS; i++) {
		const int step = group * STEPS + i;
		const uint16_t *from;
		int stride;

		if (step < CKV / 16) {
			from = a.q_nope + ((int64_t)b * HEADS + row) * CKV + step * 16 + pair;
			stride = CKV;
		} else {
			from = a.q_pe + ((int64_t)b * HEADS + row) * KPE + (step - CKV / 16) * 16 + pair;
			stride = KPE;
		}
		q[i][0] = load_word(from);
		q[i][1] = load_word(from + 8 * stride);
		q[i][2] = load_word(from + 8);
		q[i][3] = load_word(from + 8 * stride + 8);
	}

	const int64_t length = (int64_t)end - begin;
	const int low = (int)(length * rank / N), high = (int)(length * (rank + 1) / N);
	const int count = high - low, tiles = (count + TOKENS - 1) / TOKENS;
	const int32_t *const index = a.kv_indices + (int64_t)begin + low;

	if (!(N == 16 && a.batch_size == 1 && begin == 0 && length == a.num_kv_indices))
		page = own < count ? (int)load_word(index + own) : 0;
	int next = own + 8 * TOKENS < count ? (int)load_word(index + own + 8 * TOKENS) : 0;

	auto issue = [&](int t) {
		if (t > 0 && (t & 7) == 0) {
			const int at = own + TOKENS * (t + 8);

			page = next;
			next = at < count ? (int)load_word(index + at) : 0;
		}
		const unsigned to = ring + (unsigned)(t % S) * STAGE + (unsigned)(4 * warp) * ROW;
		const int first = TOKENS * t + 4 * warp, source = (t & 7) * 4;
#pragma unroll
		for (int r = 0; r < 4; r++) {
			const int from = __shfl_sync(0xffffffffu, page, source + r);
			const uint16_t *p = ckv + (int64_t)from * CKV + lane * 8;
			const bool valid = first + r < count;

			copy_async(to + r * ROW + lane * 16, p, valid);
			copy_async(to + r * ROW + 512 + lane * 16, p + 256, valid);
		}
		const int r = lane >> 3;
		const int from = __shfl_sync(0xffffffffu, page, source + r);

		copy_async(to + r * ROW + CKV * 2 + (lane & 7) * 16, kpe + (int64_t)from * KPE + (lane & 7) * 8, first + r < count);
	};

#pragma unroll 1
	for (int t = 0; t < S; t++) {
		if (t < tiles)
			issue(t);
		copy_commit();
	}

	const float scale = a.sm_scale * 1.44269504f;
	const unsigned key_at = (unsigned)(16 * half + (lane & 7) + ((lane >> 4) << 3)) * ROW + (unsigned)(group * STEPS * 16 + ((lane >> 3) & 1) * 8) * 2;
	const unsigned value_at = (unsigned)(lane & 15) * ROW + (unsigned)(64 * warp + (lane >> 4) * 8) * 2;
	const unsigned weight_at = base + P_AT + (unsigned)(lane & 15) * P_ROW + (unsigned)(lane >> 4) * 16;
	float acc[8][4];
	float max[2] = { -INFINITY, -INFINITY }; /* of heads 2 * warp and 2 * warp + 1, base 2 */
	float sum[2] = { 0, 0 }, rounded[2] = { 0, 0 }; /* this lane's share, of the weights before and after rounding */

#pragma unroll
	for (int j = 0; j < 8; j++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			acc[j][i] = 0;

	/*
	 * Turn t: the weights of tile t, then its values and the logits of tile t + 1. Turn -1 has the logits of tile 0 only. Turn -2
	 * computes on whatever is in the ring and is thrown away: it fetches the instructions while the first tiles are on their way.
	 */
#pragma unroll 1
	for (int t = -2; t < tiles; t++) {
		__syncthreads(); /* logits of tile t are there, and all warps have left tile t - 1 */
		if (t > 0) {
			if (t + S - 1 < tiles)
				issue(t + S - 1); /* into the stage of tile t - 1 */
			copy_commit();
		}

		/* weights: two heads a warp, a token a lane */
		const bool valid = t >= 0 && TOKENS * t + lane < count;
#pragma unroll
		for (int i = 0; i < 2; i++) {
			const int head = 2 * warp + i;
			const float *from = red + head * RED_STRIDE + lane;
			float x = (from[0] + from[HEADS * RED_STRIDE]) + (from[2 * HEADS * RED_STRIDE] + from[3 * HEADS * RED_STRIDE]);

			x = valid ? x * scale : -INFINITY;
			const float top = fmaxf(max[i], warp_max(x));
			const float least = top == -INFINITY ? 0.0f : top; /* before the first token */
			const float p = power2(x - least), factor = power2(max[i] - least);
			const __nv_bfloat16 short_p = __float2bfloat16(p);

			max[i] = top;
			sum[i] = sum[i] * factor + p;
			rounded[i] = rounded[i] * factor + __bfloat162float(short_p);
			weights[head * (P_ROW / 2) + lane] = short_p;
			if (lane == 0)
				rescale[head] = factor;
		}
		if (t >= 0)
			copy_wait<S - 2>();
		else if (t == -1)
			copy_wait<S - 1>();
		__syncthreads(); /* weights of tile t and the rows of tile t + 1 are there */

		if (t != -1) {
			const unsigned old = ring + (unsigned)((t < 0 ? 0 : t) % S) * STAGE;

			/* values: 64 columns a warp */
			const float factor0 = rescale[row], factor1 = rescale[row + 8];
#pragma unroll
			for (int j = 0; j < 8; j++) {
				acc[j][0] *= factor0;
				acc[j][1] *= factor0;
				acc[j][2] *= factor1;
				acc[j][3] *= factor1;
			}
#pragma unroll
			for (int k = 0; k < 2; k++) {
				unsigned p[4];

				load_matrix4(p, weight_at + 32 * k);
#pragma unroll
				for (int j = 0; j < 4; j++) {
					unsigned v[4];

					load_matrix4_turned(v, old + value_at + (unsigned)(16 * k) * ROW + 32 * j);
					multiply_add(acc[2 * j], p, v);
					multiply_add(acc[2 * j + 1], p, v + 2);
				}
			}
		}
		if (t < 0) {
#pragma unroll
			for (int j = 0; j < 8; j++)
#pragma unroll
				for (int i = 0; i < 4; i++)
					acc[j][i] = 0;
		}

		if (t + 1 < tiles) {
			const unsigned tile = ring + (unsigned)((t < 0 ? 0 : t + 1) % S) * STAGE;

			/* partial logits: 16 heads, 16 tokens, 9 steps */
			float c[2][2][4];
#pragma unroll
			for (int i = 0; i < 2; i++)
#pragma unroll
				for (int j = 0; j < 2; j++)
#pragma unroll
					for (int k = 0; k < 4; k++)
						c[i][j][k] = 0;
#pragma unroll
			for (int i = 0; i < STEPS; i++) {
				unsigned key[4];

				load_matrix4(key, tile + key_at + 32 * i);
				multiply_add(c[i & 1][0], q[i], key);
				multiply_add(c[i & 1][1], q[i], key + 2);
			}
#pragma unroll
			for (int j = 0; j < 2; j++) {
				float *to = red + (group * HEADS + row) * RED_STRIDE + 16 * half + 8 * j + pair;

				*(float2 *)to = make_float2(c[0][j][0] + c[1][j][0], c[0][j][1] + c[1][j][1]);
				*(float2 *)(to + 8 * RED_STRIDE) = make_float2(c[0][j][2] + c[1][j][2], c[0][j][3] + c[1][j][3]);
			}
		}
	}
	copy_wait<0>();

	/* this block's part, into the front of the ring */
#pragma unroll
	for (int i = 0; i < 2; i++) {
		const float all = warp_sum(sum[i]), all_rounded = warp_sum(rounded[i]);

		if (lane == 0) {
			((float *)(shared + MAX_AT))[2 * warp + i] = max[i];
			((float *)(shared + SUM_AT))[2 * warp + i] = all;
			((float *)(shared + ROUNDED_AT))[2 * warp + i] = all_rounded;
		}
	}
	__syncthreads();
	{
		float *to = (float *)(shared + RING_AT) + row * V_STRIDE + 64 * warp + pair;

#pragma unroll
		for (int j = 0; j < 8; j++) {
			*(float2 *)(to + 8 * j) = make_float2(acc[j][0], acc[j][1]);
			*(float2 *)(to + 8 * V_STRIDE + 8 * j) = make_float2(acc[j][2], acc[j][3]);
		}
	}
	cluster_arrive();
	cluster_wait();

	unsigned peer[N];
#pragma unroll
	for (int i = 0; i < N; i++)
		peer[i] = peer_address(base, (rank + i) % N);

	for (int u = UNITS * rank / N + (int)threadIdx.x; u < UNITS * (rank + 1) / N; u += THREADS) {
		const int head = u / (CKV / 4), column = u % (CKV / 4) * 4;
		const unsigned v_at = RING_AT + (unsigned)(head * V_STRIDE + column) * 4;
		float m[N], s[N], v[N][4];

#pragma unroll
		for (int i = 0; i < N; i++) {
			m[i] = peer_float(peer[i] + MAX_AT + head * 4);
			s[i] = peer_float(peer[i] + ROUNDED_AT + head * 4);
		}
#pragma unroll
		for (int i = 0; i < N; i++)
			peer_float4(v[i], peer[i] + v_at);

		float top = -INFINITY;
#pragma unroll
		for (int i = 0; i < N; i++)
			top = fmaxf(top, m[i]);
		if (top == -INFINITY)
			top = 0;

		float total = 0, o[4] = { 0, 0, 0, 0 };
#pragma unroll
		for (int i = 0; i < N; i++) {
			const float w = power2(m[i] - top);

			total += w * s[i];
#pragma unroll
			for (int k = 0; k < 4; k++)
				o[k] += w * v[i][k];
		}
		const float inverse = total > 0 ? 1.0f / total : 0.0f;
		unsigned word[2];

#pragma unroll
		for (int k = 0; k < 2; k++)
			word[k] = (unsigned)__bfloat16_as_ushort(__float2bfloat16(o[2 * k] * inverse)) |
				  (unsigned)__bfloat16_as_ushort(__float2bfloat16(o[2 * k + 1] * inverse)) << 16;
		*(uint2 *)(a.output + ((int64_t)b * HEADS + head) * CKV + column) = make_uint2(word[0], word[1]);
	}
	if (rank == 0 && threadIdx.x >= THREADS - HEADS) {
		const int head = (int)threadIdx.x - (THREADS - HEADS);
		float m[N], s[N], top = -INFINITY, total = 0;

#pragma unroll
		for (int i = 0; i < N; i++) {
			m[i] = peer_float(peer[i] + MAX_AT + head * 4);
			s[i] = peer_float(peer[i] + SUM_AT + head * 4);
		}
#pragma unroll
		for (int i = 0; i < N; i++)
			top = fmaxf(top, m[i]);
		if (top == -INFINITY)
			top = 0;
#pragma unroll
		for (int i = 0; i < N; i++)
			total += power2(m[i] - top) * s[i];
		a.lse[(int64_t)b * HEADS + head] = total > 0 ? top + log2f(total) : -INFINITY;
	}
	/* no block leaves while another reads its part */
	__syncwarp();
	cluster_arrive();
	cluster_wait();
}

__device__ __forceinline__ static unsigned two_bf16(float x, float y)
{
	return (unsigned)__bfloat16_as_ushort(__float2bfloat16(x)) | (unsigned)__bfloat16_as_ushort(__float2bfloat16(y)) << 16;
}

/* The layout of attend_group's shared memory, and its limits. */
enum {
	MOST = 128,       /* sequences */
	GROUP_STAGES = 4,
	COUNT = MOST + 2, /* index of the number of members in the offsets */
	STATS_AT = SCALE_AT + HEADS * 4, /* of three slots and each head: maximum, sum of rounded weights, sum, nothing */
	MEMBER_AT = STATS_AT + 3 * HEADS * 16,
	BEGIN_AT = MEMBER_AT + MOST * 4,
	OFFSET_AT = BEGIN_AT + MOST * 4,
	GROUP_RING_AT = (OFFSET_AT + (MOST + 4) * 4 + 127) / 128 * 128,
	PART = HEADS * V_STRIDE * 4,
	PARTS_AT = GROUP_RING_AT + GROUP_STAGES * STAGE,
	GROUP_BYTES = PARTS_AT + 2 * PART,
};

static_assert(STATS_AT % 16 == 0 && PARTS_AT % 16 == 0, "alignment");
static_assert(GROUP_BYTES <= 232448, "shared memory of a block");
static_assert(4 * MOST * 4 <= 4 * HEADS * RED_STRIDE * 4, "the sort fits where the logits come later");

/*
 * A cluster of N blocks has some whole sequences, such that the clusters have about equally many tokens: the longest first, each
 * to the cluster with the fewest. A block has an equal share of its cluster's tokens, one after another. It writes a sequence
 * that lies in its share whole; of others it keeps a part: in slot 0 one that began in an earlier block, in slot 1 one that
 * begins here.
 */
template <int N>
static __global__ void __launch_bounds__(THREADS, 1) attend_group(const struct km_args a)
{
	constexpr int S = GROUP_STAGES;
	extern __shared__ __align__(128) unsigned char shared[];
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
	const int rank = (int)(blockIdx.x % N), self = (int)(blockIdx.x / N), clusters = (int)(gridDim.x / N);
	const int batch = (int)a.batch_size;
	const unsigned base = (unsigned)__cvta_generic_to_shared(shared), ring = base + GROUP_RING_AT;
	const uint16_t *const ckv = a.ckv_cache, *const kpe = a.kpe_cache;
	const int group = warp & 3, half = warp >> 2, row = lane >> 2, pair = (lane & 3) * 2;
	float *const red = (float *)(shared + RED_AT);
	__nv_bfloat16 *const weights = (__nv_bfloat16 *)(shared + P_AT);
	float *const rescale = (float *)(shared + SCALE_AT);
	float4 *const stats = (float4 *)(shared + STATS_AT);
	int *const member = (int *)(shared + MEMBER_AT), *const begins = (int *)(shared + BEGIN_AT);
	int *const offset = (int *)(shared + OFFSET_AT);

	/* who has which sequence */
	{
		int *const lengths = (int *)(shared + RED_AT), *const sorted_length = lengths + MOST;
		int *const sorted_seq = lengths + 2 * MOST, *const sorted_begin = lengths + 3 * MOST;
		const int i = (int)threadIdx.x;
		int begin = 0, end = 0;

		if (i < batch) {
			begin = (int)load_word(a.kv_indptr + i);
			end = (int)load_word(a.kv_indptr + i + 1);
		}
		{
			/* all blocks together bring kv_indices and Q nearer, while kv_indptr is on its way */
			const int64_t id = (int64_t)threadIdx.x * gridDim.x + blockIdx.x, all = (int64_t)THREADS * gridDim.x;

			if (id * 8 < a.num_kv_indices)
				prefetch(a.kv_indices + id * 8);
			for (int64_t at = id; at < (int64_t)batch * (HEADS * CKV / 16); at += all)
				prefetch(a.q_nope + at * 16);
			for (int64_t at = id; at < (int64_t)batch * (HEADS * KPE / 16); at += all)
				prefetch(a.q_pe + at * 16);
		}
		const int length = end - begin;

		if (i < batch)
			lengths[i] = length;
		__syncthreads();
		if (i < batch) {
			int at = 0;

#pragma unroll 8
			for (int j = 0; j < batch; j++) {
				const int other = lengths[j];

				at += other > length || (other == length && j < i);
			}
			sorted_length[at] = length;
			sorted_seq[at] = i;
			sorted_begin[at] = begin;
		}
		__syncthreads();
		if (warp == 0) {
			/* lane i has the tokens of cluster i so far, and below them i */
			unsigned key = lane < clusters ? (unsigned)sorted_length[lane] << 5 | (unsigned)lane : 0xffffffffu;
			int count = 1, total = sorted_length[self];

			if (lane == 0) {
				member[0] = sorted_seq[self];
				begins[0] = sorted_begin[self];
				offset[0] = 0;
				offset[1] = total;
			}
#pragma unroll 4
			for (int j = clusters; j < batch; j++) {
				const int more = sorted_length[j];
				const int to = (int)(__reduce_min_sync(0xffffffffu, key) & 31u);

				if (lane == to)
					key += (unsigned)more << 5;
				if (to == self) {
					total += more;
					if (lane == 0) {
						member[count] = sorted_seq[j];
						begins[count] = sorted_begin[j];
						offset[count + 1] = total;
					}
					count++;
				}
			}
			if (lane == 0)
				offset[COUNT] = count;
		}
		__syncthreads();
	}

	/* this block's share [low, high) of its cluster's tokens; empty sequences are the last members */
	const int members = offset[COUNT], all = offset[members];
	const int low = (int)((int64_t)all * rank / N), high = (int)((int64_t)all * (rank + 1) / N);
	int now = 0, tiles = 0; /* tiles begin anew with each sequence */

	while (now < members - 1 && offset[now + 1] <= low)
		now++;
	if (low < high)
		for (int j = now; j < members && offset[j] < high; j++)
			tiles += (min(offset[j + 1], high) - max(offset[j], low) + TOKENS - 1) / TOKENS;

	/* The page number of a row of a tile, or -1; tiles must not decrease from call to call of a lane. */
	int page_member = now, page_tile = 0;
	auto find_page = [&](int tile, int r) -> int {
		if (tile >= tiles)
			return -1;
		for (;;) {
			const int start = offset[page_member];
			const int from = max(start, low), to = min(offset[page_member + 1], high);
			const int n = (to - from + TOKENS - 1) / TOKENS;

			if (tile < page_tile + n) {
				const int at = from + TOKENS * (tile - page_tile) + r;

				return at < to ? (int)load_word(a.kv_indices + (int64_t)begins[page_member] + (at - start)) : -1;
			}
			page_tile += n;
			page_member++;
		}
	};

	/* Page numbers of this warp's four rows in eight tiles: lane i has row i % 4 of tile i / 4; and of the next eight tiles. */
	const int own_tile = lane >> 2, own_row = 4 * warp + (lane & 3);
	int page = find_page(own_tile, own_row);
	int next = find_page(own_tile + 8, own_row);

	/* Q as the first operand */
	unsigned q[STEPS][4];
	auto load_q = [&](int b) {
#pragma unroll
		for (int i = 0; i < STEPS; i++) {
			const int step = group * STEPS + i;
			const uint16_t *from;
			int stride;

			if (step < CKV / 16) {
				from = a.q_nope + ((int64_t)b * HEADS + row) * CKV + step * 16 + pair;
				stride = CKV;
			} else {
				from = a.q_pe + ((int64_t)b * HEADS + row) * KPE + (step - CKV / 16) * 16 + pair;
				stride = KPE;
			}
			q[i][0] = load_word(from);
			q[i][1] = load_word(from + 8 * stride);
			q[i][2] = load_word(from + 8);
			q[i][3] = load_word(from + 8 * stride + 8);
		}
	};

	load_q(member[now]);

	auto issue = [&](int t) {
		if (t > 0 && (t & 7) == 0) {
			page = next;
			next = find_page(t + 8 + own_tile, own_row);
			__syncwarp();
		}
		const unsigned to = ring + (unsigned)(t % S) * STAGE + (unsigned)(4 * warp) * ROW;
		const int source = (t & 7) * 4;
#pragma unroll
		for (int r = 0; r < 4; r++) {
			const int from = __shfl_sync(0xffffffffu, page, source + r);
			const bool valid = from >= 0;
			const uint16_t *p = ckv + (int64_t)(valid ? from : 0) * CKV + lane * 8;

			copy_async(to + r * ROW + lane * 16, p, valid);
			copy_async(to + r * ROW + 512 + lane * 16, p + 256, valid);
		}
		const int r = lane >> 3;
		const int from = __shfl_sync(0xffffffffu, page, source + r);
		const bool valid = from >= 0;

		copy_async(to + r * ROW + CKV * 2 + (lane & 7) * 16, kpe + (int64_t)(valid ? from : 0) * KPE + (lane & 7) * 8, valid);
	};

	__syncwarp();
#pragma unroll 1
	for (int t = 0; t < S; t++) {
		if (t < tiles)
			issue(t);
		copy_commit();
	}

	const float scale = a.sm_scale * 1.44269504f;
	const unsigned key_at = (unsigned)(16 * half + (lane & 7) + ((lane >> 4) << 3)) * ROW + (unsigned)(group * STEPS * 16 + ((lane >> 3) & 1) * 8) * 2;
	const unsigned value_at = (unsigned)(lane & 15) * ROW + (unsigned)(64 * warp + (lane >> 4) * 8) * 2;
	const unsigned weight_at = base + P_AT + (unsigned)(lane & 15) * P_ROW + (unsigned)(lane >> 4) * 16;
	float acc[8][4];
	float peak[2] = { -INFINITY, -INFINITY }; /* of heads 2 * warp and 2 * warp + 1, base 2 */
	float sum[2] = { 0, 0 }, rounded[2] = { 0, 0 }; /* this lane's share, of the weights before and after rounding */
	/* the sequence at work: its tokens here, its first tile and its last tile + 1 */
	int tokens = tiles > 0 ? min(offset[now + 1], high) - max(offset[now], low) : 0;
	int first_tile = 0, end_tile = (tokens + TOKENS - 1) / TOKENS;

#pragma unroll
	for (int j = 0; j < 8; j++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			acc[j][i] = 0;

	/*
	 * Turn t: the weights of tile t, then its values and the logits of tile t + 1. Turn -1 has the logits of tile 0 only. Turn -2
	 * computes on whatever is in the ring and is thrown away: it fetches the instructions while the first tiles are on their way.
	 */
#pragma unroll 1
	for (int t = -2; t < tiles; t++) {
		__syncthreads(); /* logits of tile t are there, and all warps have left tile t - 1 */
		if (t > 0) {
			if (t + S - 1 < tiles)
				issue(t + S - 1); /* into the stage of tile t - 1 */
			copy_commit();
		}

		/* weights: two heads a warp, a token a lane */
		const bool valid = t >= 0 && TOKENS * (t - first_tile) + lane < tokens;
#pragma unroll
		for (int i = 0; i < 2; i++) {
			const int head = 2 * warp + i;
			const float *from = red + head * RED_STRIDE + lane;
			float x = (from[0] + from[HEADS * RED_STRIDE]) + (from[2 * HEADS * RED_STRIDE] + from[3 * HEADS * RED_STRIDE]);

			x = valid ? x * scale : -INFINITY;
			const float top = fmaxf(peak[i], warp_max(x));
			const float least = top == -INFINITY ? 0.0f : top; /* before the first token */
			const float p = power2(x - least), factor = power2(peak[i] - least);
			const __nv_bfloat16 short_p = __float2bfloat16(p);

			peak[i] = top;
			sum[i] = sum[i] * factor + p;
			rounded[i] = rounded[i] * factor + __bfloat162float(short_p);
			weights[head * (P_ROW / 2) + lane] = short_p;
			if (lane == 0)
				rescale[head] = factor;
		}
		if (t >= 0)
			copy_wait<S - 2>();
		else if (t == -1)
			copy_wait<S - 1>();
		__syncthreads(); /* weights of tile t and the rows of tile t + 1 are there */

		if (t != -1) {
			const unsigned old = ring + (unsigned)((t < 0 ? 0 : t) % S) * STAGE;

			/* values: 64 columns a warp */
			const float factor0 = rescale[row], factor1 = rescale[row + 8];
#pragma unroll
			for (int j = 0; j < 8; j++) {
				acc[j][0] *= factor0;
				acc[j][1] *= factor0;
				acc[j][2] *= factor1;
				acc[j][3] *= factor1;
			}
#pragma unroll
			for (int k = 0; k < 2; k++) {
				unsigned p[4];

				load_matrix4(p, weight_at + 32 * k);
#pragma unroll
				for (int j = 0; j < 4; j++) {
					unsigned v[4];

					load_matrix4_turned(v, old + value_at + (unsigned)(16 * k) * ROW + 32 * j);
					multiply_add(acc[2 * j], p, v);
					multiply_add(acc[2 * j + 1], p, v + 2);
				}
			}
		}
		const bool ends = t >= 0 && t + 1 == end_tile;

		if (ends) {
			/* the sequence ends, or this block's share of it */
			const int b = member[now];
			const bool before = offset[now] < low, after = offset[now + 1] > high;
			const int slot = before ? 0 : after ? 1 : 2;

#pragma unroll
			for (int i = 0; i < 2; i++) {
				const float whole = warp_sum(sum[i]), whole_rounded = warp_sum(rounded[i]);

				if (lane == 0)
					stats[slot * HEADS + 2 * warp + i] = make_float4(peak[i], whole_rounded, whole, 0.0f);
				peak[i] = -INFINITY;
				sum[i] = 0;
				rounded[i] = 0;
			}
			if (slot == 2) {
				__syncthreads();
				const float sum0 = stats[2 * HEADS + row].y, sum1 = stats[2 * HEADS + row + 8].y;
				const float inverse0 = sum0 > 0 ? 1.0f / sum0 : 0.0f, inverse1 = sum1 > 0 ? 1.0f / sum1 : 0.0f;
				uint16_t *const to = a.output + ((int64_t)b * HEADS + row) * CKV + 64 * warp + pair;

#pragma unroll
				for (int j = 0; j < 8; j++) {
					*(unsigned *)(to + 8 * j) = two_bf16(acc[j][0] * inverse0, acc[j][1] * inverse0);
					*(unsigned *)(to + 8 * CKV + 8 * j) = two_bf16(acc[j][2] * inverse1, acc[j][3] * inverse1);
				}
				if (threadIdx.x < HEADS) {
					const float4 x = stats[2 * HEADS + threadIdx.x];

					a.lse[(int64_t)b * HEADS + threadIdx.x] = x.z > 0 ? x.x + log2f(x.z) : -INFINITY;
				}
			} else {
				float *const to = (float *)(shared + PARTS_AT + slot * PART) + row * V_STRIDE + 64 * warp + pair;

#pragma unroll
				for (int j = 0; j < 8; j++) {
					*(float2 *)(to + 8 * j) = make_float2(acc[j][0], acc[j][1]);
					*(float2 *)(to + 8 * V_STRIDE + 8 * j) = make_float2(acc[j][2], acc[j][3]);
				}
			}
			if (t + 1 < tiles) {
				now++;
				load_q(member[now]);
				tokens = min(offset[now + 1], high) - max(offset[now], low);
				first_tile = end_tile;
				end_tile += (tokens + TOKENS - 1) / TOKENS;
			}
		}
		if (t < 0 || ends) {
#pragma unroll
			for (int j = 0; j < 8; j++)
#pragma unroll
				for (int i = 0; i < 4; i++)
					acc[j][i] = 0;
		}

		if (t + 1 < tiles) {
			const unsigned tile = ring + (unsigned)((t < 0 ? 0 : t + 1) % S) * STAGE;

			/* partial logits: 16 heads, 16 tokens, 9 steps */
			float c[2][2][4];
#pragma unroll
			for (int i = 0; i < 2; i++)
#pragma unroll
				for (int j = 0; j < 2; j++)
#pragma unroll
					for (int k = 0; k < 4; k++)
						c[i][j][k] = 0;
#pragma unroll
			for (int i = 0; i < STEPS; i++) {
				unsigned key[4];

				load_matrix4(key, tile + key_at + 32 * i);
				multiply_add(c[i & 1][0], q[i], key);
				multiply_add(c[i & 1][1], q[i], key + 2);
			}
#pragma unroll
			for (int j = 0; j < 2; j++) {
				float *to = red + (group * HEADS + row) * RED_STRIDE + 16 * half + 8 * j + pair;

				*(float2 *)to = make_float2(c[0][j][0] + c[1][j][0], c[0][j][1] + c[1][j][1]);
				*(float2 *)(to + 8 * RED_STRIDE) = make_float2(c[0][j][2] + c[1][j][2], c[0][j][3] + c[1][j][3]);
			}
		}
	}
	copy_wait<0>();
	__syncwarp();
	cluster_arrive();
	cluster_wait();

	/* sequences that lie in several blocks, a slab of 256 units of four columns at a time */
	for (int slab = rank; slab < members * (UNITS / THREADS); slab += N) {
		const int j = slab / (UNITS / THREADS), unit = slab % (UNITS / THREADS) * THREADS + (int)threadIdx.x;
		const int head = unit / (CKV / 4), column = unit % (CKV / 4) * 4;
		const int from = offset[j], to = offset[j + 1];
		const int64_t line = (int64_t)member[j] * HEADS + head;

		if (from == to) {
			*(uint2 *)(a.output + line * CKV + column) = make_uint2(0, 0);
			if (column == 0)
				a.lse[line] = -INFINITY;
			continue;
		}
		/* the block of token x is the largest r with all * r / N <= x */
		const int r0 = (int)((((int64_t)from + 1) * N - 1) / all), r1 = (int)(((int64_t)to * N - 1) / all);

		if (r0 == r1)
			continue; /* written already */

		float top = -INFINITY, total = 0, total_rounded = 0, o[4] = { 0, 0, 0, 0 };

#pragma unroll 1
		for (int at = r0; at <= r1; at += 8) {
			float s[8][4], v[8][4];
			unsigned part[8];

#pragma unroll
			for (int i = 0; i < 8; i++) {
				const int r = at + ((i + rank) & 7);
				/* if there are fewer tokens than blocks, some have none */
				const bool there = r <= r1 && (int64_t)all * r / N < (int64_t)all * (r + 1) / N;
				const int who = there ? r : r0, slot = who == r0 ? 1 : 0;
				const unsigned peer = peer_address(base, who);

				part[i] = peer + PARTS_AT + (unsigned)(slot * PART);
				peer_float4(s[i], peer + STATS_AT + (unsigned)(slot * HEADS + head) * 16);
				if (!there)
					s[i][0] = -INFINITY;
			}
#pragma unroll
			for (int i = 0; i < 8; i++)
				peer_float4(v[i], part[i] + (unsigned)(head * V_STRIDE + column) * 4);

			float more = top;
#pragma unroll
			for (int i = 0; i < 8; i++)
				more = fmaxf(more, s[i][0]);
			const float least = more == -INFINITY ? 0.0f : more;
			const float factor = power2(top - least);

			top = more;
			total *= factor;
			total_rounded *= factor;
#pragma unroll
			for (int k = 0; k < 4; k++)
				o[k] *= factor;
#pragma unroll
			for (int i = 0; i < 8; i++) {
				const float w = power2(s[i][0] - least);

				total_rounded += w * s[i][1];
				total += w * s[i][2];
#pragma unroll
				for (int k = 0; k < 4; k++)
					o[k] += w * v[i][k];
			}
		}
		const float inverse = total_rounded > 0 ? 1.0f / total_rounded : 0.0f;

		*(uint2 *)(a.output + line * CKV + column) =
			make_uint2(two_bf16(o[0] * inverse, o[1] * inverse), two_bf16(o[2] * inverse, o[3] * inverse));
		if (column == 0)
			a.lse[line] = total > 0 ? top + log2f(total) : -INFINITY;
	}
	/* no block leaves while another reads its part */
	__syncwarp();
	cluster_arrive();
	cluster_wait();
}

template <int N> static void configure_group(const struct km_args *a, int clusters, cudaLaunchConfig_t *config, cudaLaunchAttribute *attribute)
{
	attribute->id = cudaLaunchAttributeClusterDimension;
	attribute->val.clusterDim.x = N;
	attribute->val.clusterDim.y = 1;
	attribute->val.clusterDim.z = 1;
	config->gridDim = dim3((unsigned)(clusters * N), 1, 1);
	config->blockDim = dim3(THREADS, 1, 1);
	config->dynamicSmemBytes = GROUP_BYTES;
	config->stream = (cudaStream_t)a->stream;
	config->attrs = attribute;
	config->numAttrs = 1;
}

/* Clusters of attend_group: as many as the device holds at once, but no more than sequences. */
template <int N> static int group_clusters(const struct km_args *a)
{
	cudaLaunchConfig_t config = {};
	cudaLaunchAttribute attribute = {};
	int clusters = 0;

	configure_group<N>(a, 1, &config, &attribute);
	if (cudaOccupancyMaxActiveClusters(&clusters, attend_group<N>, &config) != cudaSuccess) {
		(void)cudaGetLastError();
		return 0;
	}
	clusters = clusters < 32 ? clusters : 32;
	return clusters < a->batch_size ? clusters : (int)a->batch_size;
}

template <int N> static bool launched_group(const struct km_args *a, int clusters)
{
	cudaLaunchConfig_t config = {};
	cudaLaunchAttribute attribute = {};

	if (clusters <= 0)
		return false;
	configure_group<N>(a, clusters, &config, &attribute);
	if (cudaLaunchKernelEx(&config, attend_group<N>, *a) == cudaSuccess)
		return true;
	(void)cudaGetLastError();
	return false;
}

/* A block's tokens in units of the mean length, if the longest sequence has 3.5 of them. */
static float group_cost(const struct km_args *a, int clusters, int blocks)
{
	if (clusters <= 0)
		return INFINITY;
	return fmaxf(3.5f, (float)a->batch_size / (float)clusters) / (float)blocks;
}

template <int S> static constexpr int shared_bytes()
{
	return RING_AT + S * STAGE;
}

template <int N, int S> static void configure(const struct km_args *a, cudaLaunchConfig_t *config, cudaLaunchAttribute *attribute)
{
	attribute->id = cudaLaunchAttributeClusterDimension;
	attribute->val.clusterDim.x = N;
	attribute->val.clusterDim.y = 1;
	attribute->val.clusterDim.z = 1;
	config->gridDim = dim3((unsigned)(a->batch_size * N), 1, 1);
	config->blockDim = dim3(THREADS, 1, 1);
	config->dynamicSmemBytes = (size_t)shared_bytes<S>();
	config->stream = (cudaStream_t)a->stream;
	config->attrs = attribute;
	config->numAttrs = 1;
}

/* Whether the device holds a cluster for every sequence at once. */
template <int N, int S> static bool fits(const struct km_args *a)
{
	cudaLaunchConfig_t config = {};
	cudaLaunchAttribute attribute = {};
	int clusters = 0;

	if (a->batch_size * N > 132)
		return false;
	configure<N, S>(a, &config, &attribute);
	if (cudaOccupancyMaxActiveClusters(&clusters, attend<N, S>, &config) != cudaSuccess) {
		(void)cudaGetLastError();
		return false;
	}
	return clusters >= a->batch_size;
}

template <int N, int S> static int launch(const struct km_args *a)
{
	cudaLaunchConfig_t config = {};
	cudaLaunchAttribute attribute = {};

	configure<N, S>(a, &config, &attribute);
	return (int)cudaLaunchKernelEx(&config, attend<N, S>, *a);
}

template <int N, int S> static int prepare()
{
	return (int)cudaFuncSetAttribute(attend<N, S>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes<S>());
}

/* Launches clusters of N if the device holds them all at once. */
template <int N> static bool launched(const struct km_args *a)
{
	if (!fits<N, 5>(a))
		return false;
	if (launch<N, 5>(a) == 0)
		return true;
	(void)cudaGetLastError();
	return false;
}

template <int N> static int prepare_group()
{
	return (int)cudaFuncSetAttribute(attend_group<N>, cudaFuncAttributeMaxDynamicSharedMemorySize, GROUP_BYTES);
}

int km_init(const struct km_args *)
{
	int error = 0;

	error |= prepare<16, 5>();
	error |= prepare<8, 5>();
	error |= prepare<4, 5>();
	error |= prepare<2, 5>();
	error |= prepare<1, 5>();
	error |= prepare_group<16>();
	error |= prepare_group<8>();
	/* km_run takes smaller clusters if these fail */
	if (cudaFuncSetAttribute(attend<16, 5>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) != cudaSuccess)
		(void)cudaGetLastError();
	if (cudaFuncSetAttribute(attend_group<16>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) != cudaSuccess)
		(void)cudaGetLastError();
	return error;
}

int km_run(const struct km_args *a)
{
	if (a->batch_size <= 0)
		return 0;
	if (launched<16>(a))
		return 0;
	if (a->batch_size <= MOST && a->num_kv_indices < (1 << 26)) {
		const int clusters16 = group_clusters<16>(a), clusters8 = group_clusters<8>(a);

		if (group_cost(a, clusters16, 16) < group_cost(a, clusters8, 8) && launched_group<16>(a, clusters16))
			return 0;
		if (launched_group<8>(a, clusters8))
			return 0;
	}
	if (launched<8>(a) || launched<4>(a) || launched<2>(a))
		return 0;
	return launch<1, 5>(a);
}
