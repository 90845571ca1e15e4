#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>

enum {
	HEADS = KM_AXIS_NUM_QO_HEADS, CKV = KM_AXIS_HEAD_DIM_CKV, KPE = KM_AXIS_HEAD_DIM_KPE, WIDTH = CKV + KPE,
	STRIDE = WIDTH + 8, /* 73 * 16 bytes: eight rows lie in different banks */
	TILE = 32, STAGES = 5, WARPS = 8, CONSUMERS = 32 * WARPS, PRODUCER_WARPS = 4, PRODUCERS = 32 * PRODUCER_WARPS,
	THREADS = CONSUMERS + PRODUCERS,
	KGROUPS = 4, STEPS = WIDTH / 16 / KGROUPS, /* 9 steps of 16 for each warp */
	OWN = CKV / WARPS, COLUMN_TILES = OWN / 8,
	CHUNKS = 132, LEAST = TILE, SLOTS = 2 * CHUNKS,
	RED_STRIDE = 40, P_STRIDE = 40, ROW_BYTES = 2 * WIDTH,
	PART = HEADS * CKV, UNITS = PART / 8, HEAD_UNITS = CKV / 8, /* units of 8 bf16 */
	AHEAD = 8, /* parts a thread joins: at most 8 of one unit, 4 of each of two, or 2 of each of four */
	META = (CHUNKS + 31) / 32,
	META_STRIDE = 160, /* of a slot: an entry for each pair of a joiner and a head in its slice, at most CHUNKS + HEADS - 1 */
	MOST_ALIGNED = 32, /* sequences: a lane each */
};

struct shared {
	uint16_t kv[STAGES][TILE][STRIDE];
	float red[KGROUPS][HEADS][RED_STRIDE];
	uint16_t p[HEADS][P_STRIDE];
	float4 joined[2 * CONSUMERS];
	float weight[HEADS][CHUNKS];
	float old[HEADS], inverse[HEADS];
	uint64_t full[STAGES], empty[STAGES];
};

/* At most one block a multiprocessor: all are resident at once, and may wait for each other. */
static int most_blocks = CHUNKS;

static int chunk_tokens(const struct km_args *a, int64_t blocks)
{
	int64_t c = (a->num_kv_indices + blocks - 1) / blocks;

	return c < LEAST ? (int)LEAST : (int)c;
}

__device__ static __forceinline__ unsigned shared_address(const void *p)
{
	return (unsigned)__cvta_generic_to_shared(p);
}

__device__ static __forceinline__ void barrier_init(unsigned bar, unsigned count)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

__device__ static __forceinline__ void barrier_wait(unsigned bar, unsigned parity)
{
	unsigned done;

	do {
		asm volatile("{\n\t.reg .pred p;\n\t"
			     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
			     "selp.u32 %0, 1, 0, p;\n\t}"
			     : "=r"(done) : "r"(bar), "r"(parity) : "memory");
	} while (!done);
}

__device__ static __forceinline__ void barrier_arrive(unsigned bar)
{
	asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

/* 16 bytes from global to shared memory. */
__device__ static __forceinline__ void copy_async(unsigned to, const void *from)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

/* An arrival once all earlier copies of this thread are there; it is one of those that the barrier was made for. */
__device__ static __forceinline__ void copies_arrive(unsigned bar)
{
	asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

/* Of the consumer warps. */
__device__ static __forceinline__ void consumers_sync()
{
	asm volatile("bar.sync 1, 256;" ::: "memory");
}

__device__ static __forceinline__ void load_matrix4(unsigned *to, unsigned row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row) : "memory");
}

__device__ static __forceinline__ void load_matrix4_turned(unsigned *to, unsigned row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row) : "memory");
}

__device__ static __forceinline__ void multiply_add(float *sum, const unsigned *a, unsigned b0, unsigned b1)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
		     : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ static __forceinline__ float power2(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

__device__ static __forceinline__ float minus_infinity()
{
	return __int_as_float((int)0xff800000u);
}

/* By way of integers in the same order. */
__device__ static __forceinline__ float warp_max(float x)
{
	int i = __float_as_int(x);

	i ^= (i >> 31) & 0x7fffffff;
	i = __reduce_max_sync(0xffffffffu, i);
	i ^= (i >> 31) & 0x7fffffff;
	return __int_as_float(i);
}

__device__ static __forceinline__ float warp_sum(float x)
{
#pragma unroll
	for (int d = 16; d > 0; d /= 2)
		x += __shfl_xor_sync(0xffffffffu, x, d);
	return x;
}

__device__ static __forceinline__ unsigned pack(float low, float high)
{
	__nv_bfloat162 x = __floats2bfloat162_rn(low, high);

	return *reinterpret_cast<unsigned *>(&x);
}

__device__ static __forceinline__ void add_weighted(float *sum, float w, unsigned two)
{
	sum[0] += w * __uint_as_float(two << 16);
	sum[1] += w * __uint_as_float(two & 0xffff0000u);
}

/* Parts and their maxima and sums are handed over word by word: a word is 0 until it is there, never 0 then, and set back to 0 by
 * its only reader. So neither fences nor counters are needed. */
__device__ static __forceinline__ unsigned mark(unsigned x, unsigned instead_of_zero)
{
	return x == 0 ? instead_of_zero : x;
}

__device__ static __forceinline__ bool missing(const uint4 &x)
{
	return min(min(x.x, x.y), min(x.z, x.w)) == 0u;
}

__device__ static __forceinline__ bool missing(const uint2 &x)
{
	return min(x.x, x.y) == 0u;
}

/* Loads what is still missing. */
__device__ static __forceinline__ void load_missing(uint4 &x, const uint4 *from)
{
	unsigned wanted = missing(x) ? 1u : 0u;

	asm volatile("{\n\t.reg .pred p;\n\t"
		     "setp.ne.u32 p, %5, 0;\n\t"
		     "@p ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
		     : "+r"(x.x), "+r"(x.y), "+r"(x.z), "+r"(x.w) : "l"(from), "r"(wanted) : "memory");
}

__device__ static __forceinline__ void load_missing(uint2 &x, const uint2 *from)
{
	unsigned wanted = missing(x) ? 1u : 0u;

	asm volatile("{\n\t.reg .pred p;\n\t"
		     "setp.ne.u32 p, %3, 0;\n\t"
		     "@p ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];\n\t}"
		     : "+r"(x.x), "+r"(x.y) : "l"(from), "r"(wanted) : "memory");
}

__device__ static __forceinline__ void store_two(void *to, unsigned x, unsigned y)
{
	asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(x), "r"(y) : "memory");
}

/* Part p of a sequence that begins in chunk `first`. */
__device__ static __forceinline__ int slot_of(int first, int p)
{
	return 2 * (first + p) + (p == 0 ? 1 : 0);
}

__device__ static __forceinline__ void prefetch(const void *p)
{
	asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

__device__ static __forceinline__ int load_early(const int32_t *p)
{
	int x;

	asm volatile("ld.global.nc.s32 %0, [%1];" : "=r"(x) : "l"(p)); /* stays in front of the prefetches */
	return x;
}

__device__ static __forceinline__ void make_barriers(unsigned full, unsigned empty)
{
	for (int i = 0; i < STAGES; i++) {
		barrier_init(full + 8 * i, PRODUCERS);
		barrier_init(empty + 8 * i, WARPS);
	}
	asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* Aligned (ALIGN, if there are pieces of few more tokens that do it): each sequence is cut into equal pieces, and a block has
 * one piece. Every warp finds by itself which one.
 *
 * Flat: block i has the flat tokens from i * chunk on, whatever their sequences. Only its first and its last sequence may be
 * shared with other blocks. Where the first ends within the chunk, the block leaves the join to the other sharers; so it joins a
 * slice of its last sequence at most.
 *
 * All blocks are resident at once (one an SM). Slots are all zero at entry and at exit. */
template <bool ALIGN>
static __global__ void __launch_bounds__(THREADS, 1)
attend(const struct km_args a, int chunk, uint2 *meta, uint16_t *parts)
{
	extern __shared__ __align__(128) unsigned char memory[];
	struct shared *s = reinterpret_cast<struct shared *>(memory);
	const int tid = (int)threadIdx.x;
	const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
	const int batch = (int)a.batch_size;
	const unsigned full = shared_address(s->full), empty = shared_address(s->empty);
	const unsigned kv = shared_address(s->kv);
	int c0 = (int)blockIdx.x * chunk;
	int n = min(chunk, (int)a.num_kv_indices - c0);
	int b = 0, begin = 0, end = 0; /* the first sequence of the block */
	int first = 0, count = 0; /* the first block of the last sequence, and how many there are */
	bool aligned = false;

	if constexpr (ALIGN) {
		const int i = (int)blockIdx.x, blocks = (int)gridDim.x;
		const int e0 = load_early(a.kv_indptr + min(lane, batch)); /* lanes without a sequence: length 0 */
		const int e1 = load_early(a.kv_indptr + min(lane + 1, batch));

		if (tid < 128) {
			int line = i + tid * blocks;

			if (line < batch * (PART / 64))
				prefetch(a.q_nope + (int64_t)line * 64);
		} else if (tid < 192) {
			int line = i + (tid - 128) * blocks;

			if (line < batch * (HEADS * KPE / 64))
				prefetch(a.q_pe + (int64_t)line * 64);
		} else if (tid < CONSUMERS) {
			int at = (c0 / 32 + tid - 192) * 32;

			if (at < min(c0 + chunk, (int)a.num_kv_indices))
				prefetch(a.kv_indices + at);
		} else if (tid == CONSUMERS) {
			make_barriers(full, empty);
		} else if (tid == CONSUMERS + 64) { /* the translations of the slots */
			prefetch(meta + (int64_t)i * 2 * META_STRIDE);
		} else if (tid == CONSUMERS + 96) {
			prefetch(parts + (int64_t)i * 2 * PART);
		}
		__syncthreads();

		/* The smallest piece of the candidates for which the blocks suffice; the same in all blocks. */
		constexpr int more[] = {0, 2, 4, 6, 8, 12, 16, 24, 32, 48};
		constexpr int candidates = sizeof(more) / sizeof(more[0]);
		const float length = (float)(e1 - e0) - 0.5f; /* so that rounding up is exact below 2^21 tokens */
		int pieces = 0;

#pragma unroll
		for (int k = candidates - 1; k >= 0; k--) {
			int m = __float2int_ru(length * __fdividef(1.0f, (float)(chunk + more[k]))); /* 1 to length, or 0 */

			if (__reduce_add_sync(0xffffffffu, m) <= blocks) {
				pieces = m;
				aligned = true;
			}
		}
		if (aligned) {
			int scan = pieces;

#pragma unroll
			for (int d = 1; d < 32; d *= 2) {
				int y = __shfl_up_sync(0xffffffffu, scan, d);

				if (lane >= d)
					scan += y;
			}
			b = __popc(__ballot_sync(0xffffffffu, scan <= i)); /* 32: nothing left for this block */
			begin = __shfl_sync(0xffffffffu, e0, b & 31);
			end = __shfl_sync(0xffffffffu, e1, b & 31);
			first = __shfl_sync(0xffffffffu, scan - pieces, b & 31);
			count = __shfl_sync(0xffffffffu, pieces, b & 31);
			n = 0;
			if (b < 32) {
				int rank = i - first;
				int least = (int)((unsigned)(end - begin) / (unsigned)count);
				int rest = end - begin - least * count;

				c0 = begin + least * rank + min(rank, rest);
				n = least + (rank < rest ? 1 : 0);
			}
		} else {
			n = max(n, 0);
			b = __popc(__ballot_sync(0xffffffffu, lane < batch && e1 <= c0));
			begin = __shfl_sync(0xffffffffu, e0, b & 31);
			end = __shfl_sync(0xffffffffu, e1, b & 31);
		}
	}

	const int tiles = (n + TILE - 1) / TILE;

	if (warp >= WARPS) {
		const int mine = warp - WARPS; /* rows mine, mine + 4, ... of each tile */
		int index[STAGES];

#pragma unroll
		for (int i = 0; i < STAGES; i++) {
			int at = i * TILE + lane;

			index[i] = at < n ? __ldg(a.kv_indices + c0 + at) : 0;
		}
		if constexpr (!ALIGN) {
			if (mine == 0 && lane == 0)
				make_barriers(full, empty);
			__syncthreads();
		}
		for (int base = 0, round = 0; base < tiles; base += STAGES, round++) {
#pragma unroll
			for (int i = 0; i < STAGES; i++) {
				int tile = base + i;

				if (tile < tiles) {
					int valid = min((int)TILE, n - tile * TILE);

					if (round > 0)
						barrier_wait(empty + 8 * i, (unsigned)(round - 1) & 1);
					__syncwarp();

					const unsigned to = kv + (unsigned)(i * TILE * STRIDE * 2);

#pragma unroll
					for (int r = 0; r < TILE / PRODUCER_WARPS; r++) {
						int row = r * PRODUCER_WARPS + mine;
						int64_t page = __shfl_sync(0xffffffffu, index[i], row);

						if (row < valid) {
							unsigned at_row = to + (unsigned)(row * STRIDE * 2 + lane * 16);
							const uint16_t *from = a.ckv_cache + page * CKV + lane * 8;

							copy_async(at_row, from);
							copy_async(at_row + 512, from + 256);
						}
					}
#pragma unroll
					for (int r = 0; r < TILE / PRODUCER_WARPS; r += 4) { /* four rows at once */
						int row = (r + lane / 8) * PRODUCER_WARPS + mine;
						int64_t page = __shfl_sync(0xffffffffu, index[i], row);

						if (row < valid)
							copy_async(to + (unsigned)(row * STRIDE * 2 + CKV * 2 + lane % 8 * 16),
								   a.kpe_cache + page * KPE + lane % 8 * 8);
					}
					copies_arrive(full + 8 * i);

					int at = (tile + STAGES) * TILE + lane;

					index[i] = at < n ? __ldg(a.kv_indices + c0 + at) : 0;
				}
			}
		}
		/* Empty sequences. */
		for (int e = (int)blockIdx.x + mine * (int)gridDim.x; e < batch; e += PRODUCER_WARPS * (int)gridDim.x) {
			if (__ldg(a.kv_indptr + e) < __ldg(a.kv_indptr + e + 1))
				continue;

			uint4 *to = reinterpret_cast<uint4 *>(a.output + (int64_t)e * PART);

			for (int i = lane; i < UNITS; i += 32)
				to[i] = make_uint4(0, 0, 0, 0);
			if (lane < HEADS)
				a.lse[(int64_t)e * HEADS + lane] = minus_infinity();
		}
		asm volatile("cp.async.wait_all;" ::: "memory");
		return;
	}

	/* Consumers. */
	int end0 = 0, end1 = 0;

	if constexpr (!ALIGN) {
		end0 = lane < batch ? __ldg(a.kv_indptr + lane + 1) : 0x7fffffff;
		end1 = lane + 32 < batch ? __ldg(a.kv_indptr + lane + 33) : 0x7fffffff;
		if (tid == 64) /* the translations of the slots */
			prefetch(meta + (int64_t)blockIdx.x * 2 * META_STRIDE);
		else if (tid == 96)
			prefetch(parts + (int64_t)blockIdx.x * 2 * PART);
	}
	if (tiles <= STAGES) { /* rows that no copy ever fills: values that are weighted with 0 must not be NaN */
		int valid = n - (tiles - 1) * TILE;

		for (int i = threadIdx.x; i < (TILE - valid) * (CKV / 8); i += CONSUMERS)
			*reinterpret_cast<uint4 *>(&s->kv[tiles - 1][valid + i / (CKV / 8)][i % (CKV / 8) * 8]) = make_uint4(0, 0, 0, 0);
	}
	if constexpr (!ALIGN)
		__syncthreads();
	if (n <= 0)
		return; /* no tokens at all */

	if constexpr (!ALIGN) {
		if (batch > 1) { /* else the queries need not wait for kv_indptr */
			int before = (end0 <= c0) + (end1 <= c0);

			for (int i = lane + 64; i < batch; i += 32)
				before += __ldg(a.kv_indptr + i + 1) <= c0;
			b = __reduce_add_sync(0xffffffffu, before);
		}
		begin = __ldg(a.kv_indptr + b);
		end = __ldg(a.kv_indptr + b + 1);
	}

	const int kgroup = warp % KGROUPS, half = warp / KGROUPS, g = lane / 4, t4 = lane % 4;
	const int head = 2 * warp; /* this one and the next in the softmax */
	const float scale = a.sm_scale * 1.44269504088896341f;
	const unsigned k_at = kv + (unsigned)(((half * 16 + lane / 16 * 8 + lane % 8) * STRIDE + kgroup * (STEPS * 16) + lane / 8 % 2 * 8) * 2);
	const unsigned v_at = kv + (unsigned)(((lane / 8 % 2 * 8 + lane % 8) * STRIDE + warp * OWN + lane / 16 * 8) * 2);
	const unsigned p_at = shared_address(s->p) + (unsigned)(((lane / 8 % 2 * 8 + lane % 8) * P_STRIDE + lane / 16 * 8) * 2);

	int joiners = count;

	for (;;) {
		unsigned q[STEPS][4];
		float acc[COLUMN_TILES][4];
		float max0 = minus_infinity(), max1 = minus_infinity(), sum0 = 0, sum1 = 0;

#pragma unroll
		for (int k = 0; k < STEPS; k++) {
			int step = kgroup * STEPS + k;
			bool left = step < CKV / 16;
			const uint16_t *row = left ? a.q_nope + ((int64_t)b * HEADS + g) * CKV + step * 16 + t4 * 2
						   : a.q_pe + ((int64_t)b * HEADS + g) * KPE + (step - CKV / 16) * 16 + t4 * 2;
			int below = left ? 8 * CKV : 8 * KPE;

			q[k][0] = __ldg(reinterpret_cast<const unsigned *>(row));
			q[k][1] = __ldg(reinterpret_cast<const unsigned *>(row + below));
			q[k][2] = __ldg(reinterpret_cast<const unsigned *>(row + 8));
			q[k][3] = __ldg(reinterpret_cast<const unsigned *>(row + below + 8));
		}

		const int lo = max(begin - c0, 0), hi = min(end - c0, n);
		const bool whole = begin >= c0 && end <= c0 + n;

		if (!aligned && !whole) {
			first = begin / chunk;
			count = (end - 1) / chunk - first + 1; /* 2 or more */
			/* else the last has other work */
			joiners = end % chunk == 0 || end == (int)a.num_kv_indices ? count : count - 1;
		}
		if (hi < n && b + 1 < batch) { /* another sequence follows: its queries */
			if (tid < PART / 64)
				prefetch(a.q_nope + (int64_t)(b + 1) * PART + tid * 64);
			else if (tid < PART / 64 + HEADS * KPE / 64)
				prefetch(a.q_pe + (int64_t)(b + 1) * (HEADS * KPE) + (tid - PART / 64) * 64);
		}
#pragma unroll
		for (int j = 0; j < COLUMN_TILES; j++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				acc[j][i] = 0;

		const int last = (hi - 1) / TILE;

		for (int t = lo / TILE; t <= last; t++) {
			const int stage = t % STAGES;
			const unsigned stage_at = (unsigned)(stage * TILE * STRIDE * 2);

			barrier_wait(full + 8 * stage, (unsigned)(t / STAGES) & 1);
			{
				float x[2][2][4]; /* even and odd steps, 8 tokens each */

#pragma unroll
				for (int i = 0; i < 16; i++)
					x[i / 8][i / 4 % 2][i % 4] = 0;
#pragma unroll
				for (int k = 0; k < STEPS; k++) {
					unsigned r[4];

					load_matrix4(r, k_at + stage_at + k * 32);
					multiply_add(x[k % 2][0], q[k], r[0], r[1]);
					multiply_add(x[k % 2][1], q[k], r[2], r[3]);
				}
#pragma unroll
				for (int j = 0; j < 2; j++) {
					int token = half * 16 + j * 8 + t4 * 2;

					*reinterpret_cast<float2 *>(&s->red[kgroup][g][token]) =
						make_float2(x[0][j][0] + x[1][j][0], x[0][j][1] + x[1][j][1]);
					*reinterpret_cast<float2 *>(&s->red[kgroup][g + 8][token]) =
						make_float2(x[0][j][2] + x[1][j][2], x[0][j][3] + x[1][j][3]);
				}
			}
			consumers_sync();
			{
				const int token = t * TILE + lane;
				const bool inside = token >= lo && token < hi;
				float x0 = (s->red[0][head][lane] + s->red[1][head][lane]) + (s->red[2][head][lane] + s->red[3][head][lane]);
				float x1 = (s->red[0][head + 1][lane] + s->red[1][head + 1][lane])
					   + (s->red[2][head + 1][lane] + s->red[3][head + 1][lane]);

				x0 = inside ? x0 * scale : minus_infinity();
				x1 = inside ? x1 * scale : minus_infinity();

				/* finite: each tile here has a token of the sequence */
				float new0 = fmaxf(max0, warp_max(x0)), new1 = fmaxf(max1, warp_max(x1));
				float p0 = power2(x0 - new0), p1 = power2(x1 - new1);
				float old0 = power2(max0 - new0), old1 = power2(max1 - new1);

				s->p[head][lane] = __bfloat16_as_ushort(__float2bfloat16(p0));
				s->p[head + 1][lane] = __bfloat16_as_ushort(__float2bfloat16(p1));
				if (lane == 0) {
					s->old[head] = old0;
					s->old[head + 1] = old1;
				}
				sum0 = sum0 * old0 + p0;
				sum1 = sum1 * old1 + p1;
				max0 = new0;
				max1 = new1;
			}
			consumers_sync();
			{
				unsigned p[2][4];
				const float upper = s->old[g], lower = s->old[g + 8];

				load_matrix4(p[0], p_at);
				load_matrix4(p[1], p_at + 32);
#pragma unroll
				for (int j = 0; j < COLUMN_TILES; j++) {
					acc[j][0] *= upper;
					acc[j][1] *= upper;
					acc[j][2] *= lower;
					acc[j][3] *= lower;
				}
#pragma unroll
				for (int k = 0; k < 2; k++)
#pragma unroll
					for (int j = 0; j < COLUMN_TILES; j += 2) {
						unsigned r[4];

						load_matrix4_turned(r, v_at + stage_at + k * (16 * STRIDE * 2) + j * 16);
						multiply_add(acc[j], p[k], r[0], r[1]);
						multiply_add(acc[j + 1], p[k], r[2], r[3]);
					}
			}
			if (hi >= min((t + 1) * (int)TILE, n)) { /* no later sequence needs this tile */
				__syncwarp();
				if (lane == 0)
					barrier_arrive(empty + 8 * stage);
			}
		}

		sum0 = warp_sum(sum0);
		sum1 = warp_sum(sum1);

		const int slot = 2 * (int)blockIdx.x + (begin >= c0 ? 1 : 0);

		if (lane == 0) {
			s->inverse[head] = 1.0f / sum0;
			s->inverse[head + 1] = 1.0f / sum1;
			if (whole) {
				a.lse[(int64_t)b * HEADS + head] = max0 + log2f(sum0);
				a.lse[(int64_t)b * HEADS + head + 1] = max1 + log2f(sum1);
			}
		}
		if (!whole) { /* for each joiner with units of the head: at most 10 */
			const int h = head + lane / 16;
			const int r = (int)((unsigned)((h * HEAD_UNITS + 1) * joiners - 1) / UNITS) + lane % 16;
			const int last_r = (int)((unsigned)((h + 1) * HEAD_UNITS * joiners - 1) / UNITS);

			if (r <= last_r)
				store_two(meta + slot * META_STRIDE + r + h, mark(__float_as_uint(lane < 16 ? max0 : max1), 0x80000000u),
					  __float_as_uint(lane < 16 ? sum0 : sum1));
		}
		consumers_sync();
		{
			const float upper = s->inverse[g], lower = s->inverse[g + 8];
			const bool odd = t4 % 2 != 0;
			const unsigned zero = whole ? 0u : 0x80000000u;
			uint16_t *to = (whole ? a.output + (int64_t)b * PART : parts + (int64_t)slot * PART)
				       + g * CKV + warp * OWN + (odd ? 8 + 2 * (t4 - 1) : 2 * t4);

			/* neighbours exchange, so that four lanes write 32 bytes in a row */
#pragma unroll
			for (int j = 0; j < COLUMN_TILES; j += 2) {
				unsigned x = mark(pack(acc[j][0] * upper, acc[j][1] * upper), zero);
				unsigned y = mark(pack(acc[j + 1][0] * upper, acc[j + 1][1] * upper), zero);
				unsigned z = __shfl_xor_sync(0xffffffffu, odd ? x : y, 1);

				store_two(to + 8 * j, odd ? z : x, odd ? y : z);
				x = mark(pack(acc[j][2] * lower, acc[j][3] * lower), zero);
				y = mark(pack(acc[j + 1][2] * lower, acc[j + 1][3] * lower), zero);
				z = __shfl_xor_sync(0xffffffffu, odd ? x : y, 1);
				store_two(to + 8 * CKV + 8 * j, odd ? z : x, odd ? y : z);
			}
		}
		if (hi >= n) {
			if (whole)
				return;
			break;
		}
		do {
			b++;
			begin = end;
			end = __ldg(a.kv_indptr + b + 1);
		} while (end <= begin);
	}

	/* The last sequence of the chunk is shared: its part is there; join a slice of it. */
	const int rank = (int)blockIdx.x - first;
	const int u0 = UNITS * rank / joiners, u1 = UNITS * (rank + 1) / joiners, units = u1 - u0;
	/* Units a thread: four of 2 parts (one joiner, two sharers), two of at most 4 parts, or one, perhaps of several groups. */
	const int shift = units > 2 * CONSUMERS ? 1 : units > CONSUMERS ? 2 : 3;
	const int low = (1 << shift) - 1;
	const bool few = shift < 3;
	const int groups = few ? 1 : CONSUMERS / units;
	const int group = few ? 0 : tid / units;
	const int unit = u0 + tid - group * units;
	const int limit = group < groups ? u1 : 0;
	uint4 *const from = reinterpret_cast<uint4 *>(parts);
	const int head_end = (u1 - 1) / HEAD_UNITS;
	int h = u0 / HEAD_UNITS + warp;
	uint4 v[AHEAD];
	uint2 m[META];

#pragma unroll
	for (int k = 0; k < AHEAD; k++) {
		int u = unit + (few ? (k >> shift) * CONSUMERS : 0);
		int p = few ? k & low : group + k * groups;
		unsigned x = u < limit && p < count ? 0u : 1u; /* 1: not wanted */

		v[k] = make_uint4(x, x, x, x);
	}
#pragma unroll
	for (int k = 0; k < META; k++)
		m[k] = lane + 32 * k < count ? make_uint2(0u, 0u) : make_uint2(0xff800000u, 0x3f800000u); /* else weight 0 */
	for (;;) { /* until all is there; a warp together */
		bool waiting = false;

#pragma unroll
		for (int k = 0; k < AHEAD; k++) {
			int u = unit + (few ? (k >> shift) * CONSUMERS : 0);
			int p = few ? k & low : group + k * groups;

			load_missing(v[k], from + (int64_t)slot_of(first, p) * UNITS + u);
		}
		if (h <= head_end) {
			bool lacking = false;

#pragma unroll
			for (int k = 0; k < META; k++)
				load_missing(m[k], meta + slot_of(first, lane + 32 * k) * META_STRIDE + rank + h);
#pragma unroll
			for (int k = 0; k < META; k++)
				lacking |= missing(m[k]);
			if (!__any_sync(0xffffffffu, lacking)) {
				float w[META];
				float most = minus_infinity(), total = 0;

#pragma unroll
				for (int k = 0; k < META; k++)
					most = fmaxf(most, __uint_as_float(m[k].x));
				most = warp_max(most);
#pragma unroll
				for (int k = 0; k < META; k++) {
					w[k] = power2(__uint_as_float(m[k].x) - most) * __uint_as_float(m[k].y);
					total += w[k];
				}
				total = warp_sum(total);

				const float inverse = 1.0f / total;

#pragma unroll
				for (int k = 0; k < META; k++)
					if (lane + 32 * k < count) {
						s->weight[h][lane + 32 * k] = w[k] * inverse;
						store_two(meta + slot_of(first, lane + 32 * k) * META_STRIDE + rank + h, 0u, 0u);
						m[k] = make_uint2(0u, 0u);
					}
				if (lane == 0 && h * HEAD_UNITS >= u0) /* the head begins in this slice */
					a.lse[(int64_t)b * HEADS + h] = most + log2f(total);
				h += WARPS;
			}
		}
#pragma unroll
		for (int k = 0; k < AHEAD; k++)
			waiting |= missing(v[k]);
		if (!__any_sync(0xffffffffu, waiting) && h > head_end)
			break;
	}
#pragma unroll
	for (int k = 0; k < AHEAD; k++) { /* as it was at entry */
		int u = unit + (few ? (k >> shift) * CONSUMERS : 0);
		int p = few ? k & low : group + k * groups;

		if (u < limit && p < count)
			from[(int64_t)slot_of(first, p) * UNITS + u] = make_uint4(0u, 0u, 0u, 0u);
	}
	consumers_sync();

	uint16_t *out = a.output + (int64_t)b * PART;
	float sum[8];

#pragma unroll
	for (int i = 0; i < 8; i++)
		sum[i] = 0;
#pragma unroll
	for (int k = 0; k < AHEAD; k++) {
		int u = unit + (few ? (k >> shift) * CONSUMERS : 0);
		int p = few ? k & low : group + k * groups;

		if (u < limit && p < count) {
			float w = s->weight[u / HEAD_UNITS][p];

			add_weighted(sum, w, v[k].x);
			add_weighted(sum + 2, w, v[k].y);
			add_weighted(sum + 4, w, v[k].z);
			add_weighted(sum + 6, w, v[k].w);
		}
		if (few && (k & low) == low) { /* the unit is complete */
			if (u < limit)
				*reinterpret_cast<uint4 *>(out + u * 8) = make_uint4(pack(sum[0], sum[1]), pack(sum[2], sum[3]),
										     pack(sum[4], sum[5]), pack(sum[6], sum[7]));
#pragma unroll
			for (int i = 0; i < 8; i++)
				sum[i] = 0;
		}
	}
	if (groups > 1) {
		s->joined[2 * tid] = make_float4(sum[0], sum[1], sum[2], sum[3]);
		s->joined[2 * tid + 1] = make_float4(sum[4], sum[5], sum[6], sum[7]);
		consumers_sync();

		const float2 *pairs = reinterpret_cast<const float2 *>(s->joined);

		for (int o = tid; o < units * 4; o += CONSUMERS) {
			float x = 0, y = 0;

#pragma unroll 8
			for (int i = 0; i < groups; i++) {
				float2 two = pairs[i * units * 4 + o];

				x += two.x;
				y += two.y;
			}
			*reinterpret_cast<unsigned *>(out + u0 * 8 + o * 2) = pack(x, y);
		}
	} else if (!few && unit < limit) {
		*reinterpret_cast<uint4 *>(out + unit * 8) = make_uint4(pack(sum[0], sum[1]), pack(sum[2], sum[3]),
									pack(sum[4], sum[5]), pack(sum[6], sum[7]));
	}
}

size_t km_workspace(const struct km_args *)
{
	return (size_t)SLOTS * (META_STRIDE * sizeof(uint2) + PART * sizeof(uint16_t));
}

int km_init(const struct km_args *)
{
	int device = 0, count = 0, error;

	if (cudaGetDevice(&device) == cudaSuccess
	    && cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess && count > 0)
		most_blocks = count < (int)CHUNKS ? count : (int)CHUNKS;
	error = (int)cudaFuncSetAttribute(attend<true>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(struct shared));
	if (error == 0)
		error = (int)cudaFuncSetAttribute(attend<false>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(struct shared));
	return error;
}

int km_run(const struct km_args *a)
{
	uint2 *meta = (uint2 *)a->workspace;
	uint16_t *parts = (uint16_t *)(meta + (size_t)SLOTS * META_STRIDE);
	cudaStream_t stream = (cudaStream_t)a->stream;

	if (a->batch_size <= 0)
		return 0;
	if (a->batch_size >= 2 && a->batch_size <= MOST_ALIGNED) {
		int64_t blocks = (a->num_kv_indices + LEAST - 1) / LEAST + a->batch_size;

		if (blocks > most_blocks)
			blocks = most_blocks;
		attend<true><<<dim3((unsigned)blocks), dim3(THREADS), sizeof(struct shared), stream>>>(*a, chunk_tokens(a, blocks), meta, parts);
	} else {
		int chunk = chunk_tokens(a, most_blocks);
		unsigned blocks = (unsigned)((a->num_kv_indices + chunk - 1) / chunk);

		if (blocks == 0)
			blocks = 1; /* every sequence is empty */
		attend<false><<<dim3(blocks), dim3(THREADS), sizeof(struct shared), stream>>>(*a, chunk, meta, parts);
	}
	return (int)cudaGetLastError();
}
