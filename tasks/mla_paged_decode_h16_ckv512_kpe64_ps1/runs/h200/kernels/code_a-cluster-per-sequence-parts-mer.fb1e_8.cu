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
	CLUSTERS = 8, SLOTS = 8, /* of a call whose clusters share out their blocks */
	WIDE = 8,           /* clusters of a call that spreads its only sequence; its workspace, in bytes: */
	COUNTER_STRIDE = 128,
	OUT_AT = 16 * COUNTER_STRIDE,
	STATS_AT = OUT_AT + WIDE * UNITS * 16,
	LSE_AT = STATS_AT + WIDE * UNITS * 8,
	SPACE = LSE_AT + WIDE * HEADS * 8,
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

/* Stores that happen only if `go`; what they store is computed in any case. */
__device__ __forceinline__ static void store_words(void *to, unsigned x, unsigned y, int go)
{
	asm volatile("{ .reg .pred p; setp.ne.s32 p, %3, 0; @p st.global.v2.b32 [%0], {%1, %2}; }" ::"l"(to), "r"(x), "r"(y), "r"(go) : "memory");
}

__device__ __forceinline__ static void store_float(float *to, float x, int go)
{
	asm volatile("{ .reg .pred p; setp.ne.s32 p, %2, 0; @p st.global.f32 [%0], %1; }" ::"l"(to), "f"(x), "r"(go) : "memory");
}

__device__ __forceinline__ static void store_float2(void *to, float x, float y, int go)
{
	asm volatile("{ .reg .pred p; setp.ne.s32 p, %3, 0; @p st.global.cg.v2.f32 [%0], {%1, %2}; }" ::"l"(to), "f"(x), "f"(y), "r"(go) : "memory");
}

__device__ __forceinline__ static void store_float4(void *to, const float *x, int go)
{
	asm volatile("{ .reg .pred p; setp.ne.s32 p, %5, 0; @p st.global.cg.v4.f32 [%0], {%1, %2, %3, %4}; }"
		     ::"l"(to), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]), "r"(go) : "memory");
}

/* Counts up to `most` and then from zero again; releases what this block wrote, acquires what the earlier ones did. */
__device__ __forceinline__ static unsigned count_up(void *counter, unsigned most)
{
	unsigned before;

	asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(most) : "memory");
	return before;
}

/*
 * S stages of 32 tokens. CHUNK 0: a cluster of N blocks has one sequence. Otherwise each of CLUSTERS clusters has up to SLOTS sequences,
 * long and short ones, and shares out its blocks by their lengths; a block has a piece of one sequence. The join then takes CHUNK
 * parts at a time. SPREAD above 1: all that many clusters, each in a GPC of its own, have the only sequence; what each has joined goes
 * through the workspace, and for each slice of the output the last cluster to come joins them.
 */
template <int N, int S, int CHUNK = 0, int SPREAD = 1>
static __global__ void __launch_bounds__(THREADS, 1) attend(const struct km_args a)
{
	static_assert(SPREAD == 1 || (SPREAD == WIDE && CHUNK == 0), "clusters of a spread sequence");
	extern __shared__ __align__(128) unsigned char shared[];
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
	const int rank = (int)(blockIdx.x % N), place = (int)(blockIdx.x / N), asked = CHUNK ? (int)threadIdx.x : SPREAD > 1 ? 0 : place;
	const unsigned base = (unsigned)__cvta_generic_to_shared(shared), ring = base + RING_AT;
	const int shares = N * SPREAD, share = SPREAD > 1 ? (int)blockIdx.x : rank; /* without CHUNK: the pieces of a sequence */
	const bool alone = !CHUNK && (SPREAD > 1 || (N == 16 && a.batch_size == 1));
	unsigned char *const space = (unsigned char *)a.workspace;
	int b = SPREAD > 1 ? 0 : place, begin = 0, end = 0;
	int lead = 0, members = N; /* the blocks lead .. lead + members - 1 of the cluster have this sequence */
	int low = 0, count = 0;

	if (!CHUNK || asked < (int)a.batch_size) {
		begin = (int)load_word(a.kv_indptr + asked);
		end = (int)load_word(a.kv_indptr + asked + 1);
	}
	const uint16_t *const ckv = a.ckv_cache, *const kpe = a.kpe_cache;
	const int group = warp & 3, half = warp >> 2, row = lane >> 2, pair = (lane & 3) * 2;
	float *const red = (float *)(shared + RED_AT);
	__nv_bfloat16 *const weights = (__nv_bfloat16 *)(shared + P_AT);
	float *const rescale = (float *)(shared + SCALE_AT);

	/* Page numbers of this warp's four rows in eight tiles: lane i has row i % 4 of tile i / 4; and of the next eight tiles. */
	const int own = (lane >> 2) * TOKENS + 4 * warp + (lane & 3);
	int page = 0;

	if (SPREAD == 1) {
		/* all blocks together bring kv_indices nearer, while kv_indptr is on its way */
		const int64_t at = ((int64_t)threadIdx.x * gridDim.x + blockIdx.x) * 8;

		if (at < a.num_kv_indices)
			prefetch(a.kv_indices + at);
	}
	if (CHUNK) {
		int *const lengths = (int *)(shared + RED_AT), *const slots = lengths + THREADS;
		const int self = (int)threadIdx.x, batch = (int)a.batch_size, own_length = end - begin;

		lengths[self] = self < batch ? own_length : -1;
		if (self < SLOTS)
			slots[4 * self] = -1;
		__syncthreads();
		if (self < batch) {
			int at = 0; /* place in the order of falling lengths */

#pragma unroll 4
			for (int j = 0; j < batch; j += 4) {
				const int4 other = *(const int4 *)(lengths + j);

				at += other.x > own_length || (other.x == own_length && j < self);
				at += other.y > own_length || (other.y == own_length && j + 1 < self);
				at += other.z > own_length || (other.z == own_length && j + 2 < self);
				at += other.w > own_length || (other.w == own_length && j + 3 < self);
			}
			/* dealt out to and fro, so that all clusters have about as much */
			const int turn = at / CLUSTERS, spot = at % CLUSTERS;

			if (((turn & 1) ? CLUSTERS - 1 - spot : spot) == place)
				*(int4 *)(slots + 4 * turn) = make_int4(self, begin, end, 0);
		}
		__syncthreads();

		/* the blocks of each sequence: what is surely needed, then one at a time where a block has most */
		const int4 slot = *(const int4 *)(slots + 4 * (lane & (SLOTS - 1)));
		const bool used = lane < SLOTS && slot.x >= 0;
		const int tokens = used ? slot.z - slot.y : 0;
		const int total = __reduce_add_sync(0xffffffffu, tokens);
		const int most = (batch + CLUSTERS - 1) / CLUSTERS;
		const float quota = total > 0 ? (float)tokens * __fdividef((float)(N - most), (float)total) : 0.0f;
		int blocks = (int)quota;

		if (blocks < 1)
			blocks = 1;
		if (!used)
			blocks = 0;
#pragma unroll 1
		for (int left = N - (int)__reduce_add_sync(0xffffffffu, blocks); left > 0; left--) {
			const int key = used ? (__float_as_int(__fdividef((float)tokens, (float)blocks)) & ~31) | lane : -1;
			const int winner = __reduce_max_sync(0xffffffffu, key) & 31;

			blocks += lane == winner;
		}
		int until = blocks; /* inclusive sums */
#pragma unroll
		for (int i = 1; i < SLOTS; i *= 2) {
			const int before = __shfl_up_sync(0xffffffffu, until, i);

			if (lane >= i)
				until += before;
		}
		const int mine = __popc(__ballot_sync(0xffffffffu, lane < SLOTS && until <= rank));

		members = __shfl_sync(0xffffffffu, blocks, mine);
		lead = __shfl_sync(0xffffffffu, until - blocks, mine);
		b = __shfl_sync(0xffffffffu, slot.x, mine);
		begin = __shfl_sync(0xffffffffu, slot.y, mine);
		end = __shfl_sync(0xffffffffu, slot.z, mine);

		const unsigned each = (unsigned)(end - begin) / (unsigned)members;
		const int more = (end - begin) - (int)each * members, r = rank - lead;

		low = (int)each * r + (r < more ? r : more);
		count = (int)each + (r < more);
		page = own < count ? (int)load_word(a.kv_indices + (int64_t)begin + low + own) : 0;
	}
	if (alone) {
		/* the only sequence has all tokens, as a rule; that is verified below */
		const int64_t from = a.num_kv_indices * share / shares, to = a.num_kv_indices * (share + 1) / shares;

		if (own < to - from)
			page = (int)load_word(a.kv_indices + from + own);
	}

	if (SPREAD > 1 && warp == WARPS - 1) {
		/* what the join of the clusters touches */
		const int first = UNITS * rank / N;

		if (lane == 31)
			prefetch(space + rank * COUNTER_STRIDE);
		prefetch(space + OUT_AT + ((lane >> 2) * UNITS + first) * 16 + (lane & 3) * 128);
		if (lane < 16)
			prefetch(space + STATS_AT + ((lane >> 1) * UNITS + first) * 8 + (lane & 1) * 128);
	}

	/* Q into shared memory, as a part of the first group of copies; no more than five 16-byte copies a thread */
	const unsigned q_at = ring + (unsigned)S * STAGE;
	{
		const uint16_t *const nope = a.q_nope + (int64_t)b * HEADS * CKV, *const pe = a.q_pe + (int64_t)b * HEADS * KPE;

#pragma unroll
		for (int i = 0; i < HEADS * CKV / 8 / THREADS; i++) {
			const int u = (int)threadIdx.x + THREADS * i;

			copy_async(q_at + (unsigned)(u >> 6) * ROW + (unsigned)(u & 63) * 16, nope + u * 8, true);
		}
		if (threadIdx.x < HEADS * KPE / 8) {
			const int u = (int)threadIdx.x;

			copy_async(q_at + (unsigned)(u >> 3) * ROW + CKV * 2 + (unsigned)(u & 7) * 16, pe + u * 8, true);
		}
	}

	const int64_t length = (int64_t)end - begin;

	if (!CHUNK) {
		low = (int)(length * share / shares);
		count = (int)(length * (share + 1) / shares) - low;
	}
	const int tiles = (count + TOKENS - 1) / TOKENS;
	const int32_t *const index = a.kv_indices + (int64_t)begin + low;

	if (!CHUNK && !(alone && begin == 0 && length == a.num_kv_indices))
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
	const unsigned query_at = q_at + (unsigned)(lane & 15) * ROW + (unsigned)(group * STEPS * 16 + (lane >> 4) * 8) * 2;
	unsigned q[STEPS][4]; /* the first operand, from turn -1 on */
#pragma unroll
	for (int i = 0; i < STEPS; i++)
#pragma unroll
		for (int j = 0; j < 4; j++)
			q[i][j] = 0;

	/*
	 * Pass 0 is dry: one turn, the sums and the join on whatever lies in this block's shared memory, and nothing is stored. It fetches
	 * the instructions while the first tiles are on their way. It reads no other block's memory and waits for no copy.
	 */
#pragma unroll 1
	for (int pass = 0; pass < 2; pass++) {
		const int stop = pass ? tiles : -1, mask = -pass;
		const int slice_end = pass ? UNITS * (rank + 1) / N : UNITS * rank / N + 32;
		float acc[8][4];
		float max[2] = { -INFINITY, -INFINITY }; /* of heads 2 * warp and 2 * warp + 1, base 2 */
		float sum[2] = { 0, 0 }, rounded[2] = { 0, 0 }; /* this lane's share, of the weights before and after rounding */

#pragma unroll
		for (int j = 0; j < 8; j++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				acc[j][i] = 0;

		/* Turn t: the weights of tile t, then its values and the logits of tile t + 1. Turn -1 has the logits of tile 0 only. */
#pragma unroll 1
		for (int t = pass ? -1 : -2; t < stop; t++) {
			__syncthreads(); /* logits of tile t are there, and all warps have left tile t - 1 */

			/* the logits first, so that they do not queue behind the copies */
			float logit[2];
#pragma unroll
			for (int i = 0; i < 2; i++) {
				const float *from = red + (2 * warp + i) * RED_STRIDE + lane;

				logit[i] = (from[0] + from[HEADS * RED_STRIDE]) + (from[2 * HEADS * RED_STRIDE] + from[3 * HEADS * RED_STRIDE]);
			}
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
				const float x = valid ? logit[i] * scale : -INFINITY;
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
			if (t == -1) {
#pragma unroll
				for (int i = 0; i < STEPS; i++)
					load_matrix4(q[i], query_at + 32 * i);
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
		if (pass)
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
		if (pass) { /* tiles are on their way into the ring before */
			float *to = (float *)(shared + RING_AT) + row * V_STRIDE + 64 * warp + pair;

#pragma unroll
			for (int j = 0; j < 8; j++) {
				*(float2 *)(to + 8 * j) = make_float2(acc[j][0], acc[j][1]);
				*(float2 *)(to + 8 * V_STRIDE + 8 * j) = make_float2(acc[j][2], acc[j][3]);
			}
		}
		if (pass) {
			cluster_arrive();
			cluster_wait();
		}

		if constexpr (CHUNK > 0) {
			const int mine = rank - lead;
			const int until = pass ? UNITS * (mine + 1) / members : UNITS * mine / members + 32;

#pragma unroll 1
			for (int u = UNITS * mine / members + (int)threadIdx.x; u < until; u += THREADS) {
				const int head = u / (CKV / 4), column = u % (CKV / 4) * 4;
				const unsigned v_at = RING_AT + (unsigned)(head * V_STRIDE + column) * 4;
				float top = -INFINITY, total = 0, o[4] = { 0, 0, 0, 0 };

#pragma unroll 1
				for (int first = 0; first < members; first += CHUNK) {
					float m[CHUNK], s[CHUNK], v[CHUNK][4];

#pragma unroll
					for (int i = 0; i < CHUNK; i++) {
						m[i] = -INFINITY;
						s[i] = 0;
						v[i][0] = v[i][1] = v[i][2] = v[i][3] = 0;
						if (first + i < members) {
							int from = mine + first + i;

							from -= from >= members ? members : 0;
							const unsigned peer = peer_address(base, rank + ((lead + from - rank) & mask));

							m[i] = peer_float(peer + MAX_AT + head * 4);
							s[i] = peer_float(peer + ROUNDED_AT + head * 4);
							peer_float4(v[i], peer + v_at);
						}
					}
					float now = top;

#pragma unroll
					for (int i = 0; i < CHUNK; i++)
						now = fmaxf(now, m[i]);
					const float least = now == -INFINITY ? 0.0f : now, factor = power2(top - least);

					top = now;
					total *= factor;
#pragma unroll
					for (int j = 0; j < 4; j++)
						o[j] *= factor;
#pragma unroll
					for (int i = 0; i < CHUNK; i++) {
						const float w = power2(m[i] - least);

						total += w * s[i];
#pragma unroll
						for (int j = 0; j < 4; j++)
							o[j] += w * v[i][j];
					}
				}
				const float inverse = total > 0 ? 1.0f / total : 0.0f;
				unsigned word[2];

#pragma unroll
				for (int j = 0; j < 2; j++)
					word[j] = (unsigned)__bfloat16_as_ushort(__float2bfloat16(o[2 * j] * inverse)) |
						  (unsigned)__bfloat16_as_ushort(__float2bfloat16(o[2 * j + 1] * inverse)) << 16;
				store_words(a.output + ((int64_t)b * HEADS + head) * CKV + column, word[0], word[1], pass);
			}
			if (mine == 0 && threadIdx.x >= THREADS - HEADS) {
				const int head = (int)threadIdx.x - (THREADS - HEADS);
				float top = -INFINITY, total = 0;

#pragma unroll 4
				for (int i = 0; i < members; i++)
					top = fmaxf(top, peer_float(peer_address(base, rank + ((lead + i - rank) & mask)) + MAX_AT + head * 4));
				if (top == -INFINITY)
					top = 0;
#pragma unroll 4
				for (int i = 0; i < members; i++) {
					const unsigned peer = peer_address(base, rank + ((lead + i - rank) & mask));

					total += power2(peer_float(peer + MAX_AT + head * 4) - top) * peer_float(peer + SUM_AT + head * 4);
				}
				store_float(a.lse + (int64_t)b * HEADS + head, total > 0 ? top + log2f(total) : -INFINITY, pass);
			}
		} else {
			unsigned peer[N];
#pragma unroll
			for (int i = 0; i < N; i++)
				peer[i] = peer_address(base, rank + (((rank + i) % N - rank) & mask));

#pragma unroll 1
			for (int u = UNITS * rank / N + (int)threadIdx.x; u < slice_end; u += THREADS) {
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
				if constexpr (SPREAD > 1) {
					store_float4((float4 *)(space + OUT_AT) + place * UNITS + u, o, pass);
					store_float2((float2 *)(space + STATS_AT) + place * UNITS + u, total > 0 ? top : -INFINITY, total, pass);
				} else {
					const float inverse = total > 0 ? 1.0f / total : 0.0f;
					unsigned word[2];

#pragma unroll
					for (int k = 0; k < 2; k++)
						word[k] = (unsigned)__bfloat16_as_ushort(__float2bfloat16(o[2 * k] * inverse)) |
							  (unsigned)__bfloat16_as_ushort(__float2bfloat16(o[2 * k + 1] * inverse)) << 16;
					store_words(a.output + ((int64_t)b * HEADS + head) * CKV + column, word[0], word[1], pass);
				}
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
				if constexpr (SPREAD > 1)
					store_float2((float2 *)(space + LSE_AT) + place * HEADS + head, total > 0 ? top : -INFINITY, total, pass);
				else
					store_float(a.lse + (int64_t)b * HEADS + head, total > 0 ? top + log2f(total) : -INFINITY, pass);
			}
		}
		/* no block leaves while another reads its part */
		if (pass) {
			__syncwarp();
			cluster_arrive();
		}
		if constexpr (SPREAD > 1) {
			/* the last of the clusters to have this slice joins them all; the counter is then zero again */
			int last = !pass;

			__syncthreads();
			if (pass && threadIdx.x == 0)
				last = count_up(space + rank * COUNTER_STRIDE, SPREAD - 1) == SPREAD - 1;
			if (__syncthreads_or(last)) {
#pragma unroll 1
				for (int u = UNITS * rank / N + (int)threadIdx.x; u < slice_end; u += THREADS) {
					float4 v[SPREAD];
					float2 s[SPREAD];

#pragma unroll
					for (int i = 0; i < SPREAD; i++) {
						s[i] = __ldcg((const float2 *)(space + STATS_AT) + i * UNITS + u);
						v[i] = __ldcg((const float4 *)(space + OUT_AT) + i * UNITS + u);
					}
					float top = -INFINITY, total = 0, o[4] = { 0, 0, 0, 0 };

#pragma unroll
					for (int i = 0; i < SPREAD; i++)
						top = fmaxf(top, s[i].x);
					if (top == -INFINITY)
						top = 0;
#pragma unroll
					for (int i = 0; i < SPREAD; i++) {
						const float w = power2(s[i].x - top);

						total += w * s[i].y;
						o[0] += w * v[i].x;
						o[1] += w * v[i].y;
						o[2] += w * v[i].z;
						o[3] += w * v[i].w;
					}
					const float inverse = total > 0 ? 1.0f / total : 0.0f;
					unsigned word[2];

#pragma unroll
					for (int k = 0; k < 2; k++)
						word[k] = (unsigned)__bfloat16_as_ushort(__float2bfloat16(o[2 * k] * inverse)) |
							  (unsigned)__bfloat16_as_ushort(__float2bfloat16(o[2 * k + 1] * inverse)) << 16;
					store_words(a.output + (int64_t)u * 4, word[0], word[1], pass);
				}
				if (rank == 0 && threadIdx.x >= THREADS - HEADS) {
					const int head = (int)threadIdx.x - (THREADS - HEADS);
					float2 s[SPREAD];
					float top = -INFINITY, total = 0;

#pragma unroll
					for (int i = 0; i < SPREAD; i++)
						s[i] = __ldcg((const float2 *)(space + LSE_AT) + i * HEADS + head);
#pragma unroll
					for (int i = 0; i < SPREAD; i++)
						top = fmaxf(top, s[i].x);
					if (top == -INFINITY)
						top = 0;
#pragma unroll
					for (int i = 0; i < SPREAD; i++)
						total += power2(s[i].x - top) * s[i].y;
					store_float(a.lse + head, total > 0 ? top + log2f(total) : -INFINITY, pass);
				}
			}
			__syncwarp();
		}
		if (pass)
			cluster_wait();
	}
}

template <int S> static constexpr int shared_bytes()
{
	return RING_AT + S * STAGE + HEADS * ROW; /* Q behind the ring */
}

template <int N, int S> static void configure(int64_t clusters, void *stream, cudaLaunchConfig_t *config, cudaLaunchAttribute *attribute)
{
	attribute->id = cudaLaunchAttributeClusterDimension;
	attribute->val.clusterDim.x = N;
	attribute->val.clusterDim.y = 1;
	attribute->val.clusterDim.z = 1;
	config->gridDim = dim3((unsigned)(clusters * N), 1, 1);
	config->blockDim = dim3(THREADS, 1, 1);
	config->dynamicSmemBytes = (size_t)shared_bytes<S>();
	config->stream = (cudaStream_t)stream;
	config->attrs = attribute;
	config->numAttrs = 1;
}

/* Whether the device holds all clusters at once. */
template <int N, int S, int CHUNK, int SPREAD> static bool fits(int64_t clusters, void *stream)
{
	cudaLaunchConfig_t config = {};
	cudaLaunchAttribute attribute = {};
	int active = 0;

	if (clusters * N > 132)
		return false;
	configure<N, S>(clusters, stream, &config, &attribute);
	if (cudaOccupancyMaxActiveClusters(&active, attend<N, S, CHUNK, SPREAD>, &config) != cudaSuccess) {
		(void)cudaGetLastError();
		return false;
	}
	return active >= clusters;
}

template <int N, int S, int CHUNK, int SPREAD = 1> static int launch(const struct km_args *a, int64_t clusters)
{
	cudaLaunchConfig_t config = {};
	cudaLaunchAttribute attribute = {};

	configure<N, S>(clusters, a->stream, &config, &attribute);
	return (int)cudaLaunchKernelEx(&config, attend<N, S, CHUNK, SPREAD>, *a);
}

template <int N, int S, int CHUNK = 0, int SPREAD = 1> static int prepare()
{
	return (int)cudaFuncSetAttribute(attend<N, S, CHUNK, SPREAD>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes<S>());
}

/* Clusters of more than 8 blocks; where that is refused, km_run takes smaller ones. */
template <int N, int S, int CHUNK = 0, int SPREAD = 1> static void allow_large()
{
	if (cudaFuncSetAttribute(attend<N, S, CHUNK, SPREAD>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) != cudaSuccess)
		(void)cudaGetLastError();
}

/* Launches clusters of N if the device holds them all at once. */
template <int N, int CHUNK = 0, int SPREAD = 1> static bool launched(const struct km_args *a)
{
	const int64_t clusters = SPREAD > 1 ? (int64_t)SPREAD : CHUNK ? (int64_t)CLUSTERS : a->batch_size;

	if (!fits<N, 5, CHUNK, SPREAD>(clusters, a->stream))
		return false;
	if (launch<N, 5, CHUNK, SPREAD>(a, clusters) == 0)
		return true;
	(void)cudaGetLastError();
	return false;
}

/* Whether the only sequence is worth more than one cluster. */
static bool wide(const struct km_args *a)
{
	return a->batch_size == 1 && a->num_kv_indices > 16 * TOKENS;
}

size_t km_workspace(const struct km_args *a)
{
	return wide(a) ? (size_t)SPACE : 0;
}

int km_init(const struct km_args *)
{
	int error = 0;

	error |= prepare<16, 5>();
	error |= prepare<8, 5>();
	error |= prepare<7, 5>();
	error |= prepare<6, 5>();
	error |= prepare<4, 5>();
	error |= prepare<2, 5>();
	error |= prepare<1, 5>();
	error |= prepare<16, 5, 8>();
	error |= prepare<14, 5, 8>();
	error |= prepare<16, 5, 4>();
	error |= prepare<16, 5, 0, WIDE>();
	error |= prepare<14, 5, 0, WIDE>();
	error |= prepare<8, 5, 0, WIDE>();
	allow_large<16, 5, 0, WIDE>();
	allow_large<14, 5, 0, WIDE>();
	allow_large<16, 5>();
	allow_large<16, 5, 8>();
	allow_large<14, 5, 8>();
	allow_large<16, 5, 4>();
	return error;
}

int km_run(const struct km_args *a)
{
	if (a->batch_size <= 0)
		return 0;
	if (wide(a) && a->workspace && a->workspace_bytes >= (size_t)SPACE) {
		if (launched<16, 0, WIDE>(a) || launched<14, 0, WIDE>(a) || launched<8, 0, WIDE>(a))
			return 0;
	}
	if (a->batch_size > CLUSTERS && a->batch_size <= 2 * CLUSTERS) {
		if (launched<16, 8>(a) || launched<14, 8>(a))
			return 0;
	} else if (a->batch_size > 2 * CLUSTERS && a->batch_size <= CLUSTERS * SLOTS) {
		if (launched<16, 4>(a))
			return 0;
	}
	if (launched<16>(a) || launched<8>(a) || launched<7>(a) || launched<6>(a) || launched<4>(a) || launched<2>(a))
		return 0;
	return launch<1, 5, 0>(a, a->batch_size);
}
