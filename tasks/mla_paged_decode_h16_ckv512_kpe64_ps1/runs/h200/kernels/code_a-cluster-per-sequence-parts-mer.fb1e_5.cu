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

/*
 * A cluster of N blocks has one sequence; S stages of 32 tokens. SORTED: more clusters than the device holds at once; the longest
 * sequences come first (no more than THREADS sequences).
 */
template <int N, int S, bool SORTED = false>
static __global__ void __launch_bounds__(THREADS, 1) attend(const struct km_args a)
{
	extern __shared__ __align__(128) unsigned char shared[];
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
	const int rank = (int)(blockIdx.x % N), place = (int)(blockIdx.x / N), asked = SORTED ? (int)threadIdx.x : place;
	const unsigned base = (unsigned)__cvta_generic_to_shared(shared), ring = base + RING_AT;
	int b = place, begin = 0, end = 0;

	if (!SORTED || asked < (int)a.batch_size) {
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

	{
		/* all blocks of the first wave together bring kv_indices nearer, while kv_indptr is on its way */
		const unsigned wide = SORTED && gridDim.x > 128 ? 128 : gridDim.x;
		const int64_t at = ((int64_t)threadIdx.x * wide + blockIdx.x) * 8;

		if (blockIdx.x < wide && at < a.num_kv_indices)
			prefetch(a.kv_indices + at);
	}
	if (SORTED) {
		/* this cluster takes the sequence that has `place` before it in the order of falling lengths */
		int *const lengths = (int *)(shared + RED_AT), *const found = lengths + THREADS;
		const int self = (int)threadIdx.x, batch = (int)a.batch_size, own_length = end - begin;

		lengths[self] = self < batch ? own_length : -1;
		__syncthreads();
		if (self < batch) {
			int at = 0;

#pragma unroll 4
			for (int j = 0; j < batch; j += 4) {
				const int4 other = *(const int4 *)(lengths + j);

				at += other.x > own_length || (other.x == own_length && j < self);
				at += other.y > own_length || (other.y == own_length && j + 1 < self);
				at += other.z > own_length || (other.z == own_length && j + 2 < self);
				at += other.w > own_length || (other.w == own_length && j + 3 < self);
			}
			if (at == place) {
				found[0] = self;
				found[1] = begin;
				found[2] = end;
			}
		}
		__syncthreads();
		b = found[0];
		begin = found[1];
		end = found[2];
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

template <int N, int S, bool SORTED = false> static int launch(const struct km_args *a)
{
	cudaLaunchConfig_t config = {};
	cudaLaunchAttribute attribute = {};

	configure<N, S>(a, &config, &attribute);
	return (int)cudaLaunchKernelEx(&config, attend<N, S, SORTED>, *a);
}

template <int N, int S, bool SORTED = false> static int prepare()
{
	return (int)cudaFuncSetAttribute(attend<N, S, SORTED>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes<S>());
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
	error |= prepare<4, 5, true>();
	error |= prepare<2, 5, true>();
	if (cudaFuncSetAttribute(attend<16, 5>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) != cudaSuccess)
		(void)cudaGetLastError(); /* km_run takes smaller clusters then */
	return error;
}

int km_run(const struct km_args *a)
{
	if (a->batch_size <= 0)
		return 0;
	if (launched<16>(a) || launched<8>(a) || launched<7>(a) || launched<6>(a) || launched<4>(a))
		return 0;
	if (a->batch_size <= THREADS) {
		/* more waves than one, the longest sequences first */
		if (a->batch_size <= 96) {
			if (launch<4, 5, true>(a) == 0)
				return 0;
			(void)cudaGetLastError();
		}
		if (launch<2, 5, true>(a) == 0)
			return 0;
		(void)cudaGetLastError();
	}
	if (launched<2>(a))
		return 0;
	return launch<1, 5>(a);
}
