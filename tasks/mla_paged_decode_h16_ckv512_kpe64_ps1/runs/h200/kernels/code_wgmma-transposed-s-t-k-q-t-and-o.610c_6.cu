#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

constexpr int HEADS = 16, CKV = 512, KPE = 64;
constexpr int CHUNKS = 132, LEAST = 32; /* most pieces of the flat token list, fewest tokens in one */
constexpr int CONSUMERS = 256, PRODUCERS = 128, THREADS = CONSUMERS + PRODUCERS;
constexpr int ROWS = 64, LAST_ROWS = 32, ROUND = 2 * ROWS + LAST_ROWS; /* tokens of the three stages */
constexpr int BLOCKS = (CKV + KPE) / 64; /* blocks of 64 columns, rows of 128 bytes, swizzled */
constexpr int BIG = BLOCKS * ROWS * 128, SMALL = BLOCKS * LAST_ROWS * 128;
constexpr int Q_BLOCK = HEADS * 128;
constexpr int AT_Q = 2 * BIG + SMALL;
constexpr int AT_P = AT_Q + BLOCKS * Q_BLOCK;
constexpr int AT_S = AT_P + HEADS * 128;
constexpr int S_STRIDE = ROWS + 4, S_HALF = HEADS * S_STRIDE;
constexpr int AT_FACTOR = AT_S + 2 * S_HALF * 4;
constexpr int AT_BARRIER = AT_FACTOR + HEADS * 4; /* full[3], empty[3] */
constexpr int SHARED_BYTES = AT_BARRIER + 64;
constexpr int PART = HEADS * CKV / 4; /* of a part: 4 halves each, in units of a power of two for each warp */
constexpr int WARPS = CONSUMERS / 32;
constexpr int JOIN_THREADS = 256;

static_assert(AT_Q % 1024 == 0 && AT_P % 1024 == 0 && AT_S % 16 == 0 && AT_BARRIER % 8 == 0, "alignment");
static_assert(SHARED_BYTES + 1024 + 16384 <= 233472, "a block of each kernel on a multiprocessor");

static __device__ __forceinline__ uint32_t shared_address(const void *p)
{
	return (uint32_t)__cvta_generic_to_shared(p);
}

static __device__ __forceinline__ float power2(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

static __device__ __forceinline__ uint32_t pack_halves(float x, float y)
{
	const __half2 h = __floats2half2_rn(x, y);

	return *reinterpret_cast<const uint32_t *>(&h);
}

static __device__ __forceinline__ void add_part(float4 &v, uint2 p, float w0, float w1)
{
	const float2 lo = __half22float2(*reinterpret_cast<const __half2 *>(&p.x));
	const float2 hi = __half22float2(*reinterpret_cast<const __half2 *>(&p.y));

	v.x += w0 * lo.x;
	v.y += w1 * lo.y;
	v.z += w0 * hi.x;
	v.w += w1 * hi.y;
}

/* barriers */

static __device__ __forceinline__ void mbar_init(uint32_t bar, uint32_t count)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

static __device__ __forceinline__ void mbar_wait(uint32_t bar, uint32_t parity)
{
	uint32_t done;

	do {
		asm volatile("{\n\t.reg .pred p;\n\t"
			     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
			     "selp.u32 %0, 1, 0, p;\n\t}"
			     : "=r"(done) : "r"(bar), "r"(parity) : "memory");
	} while (!done);
}

static __device__ __forceinline__ void mbar_arrive(uint32_t bar)
{
	asm volatile("{\n\t.reg .b64 state;\n\tmbarrier.arrive.shared::cta.b64 state, [%0];\n\t}" ::"r"(bar) : "memory");
}

/* An arrival once all earlier copies of this thread are complete. */
static __device__ __forceinline__ void mbar_arrive_copies(uint32_t bar)
{
	asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

static __device__ __forceinline__ void consumers_sync()
{
	asm volatile("bar.sync 1, 256;" ::: "memory");
}

static __device__ __forceinline__ void proxy_fence()
{
	asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* copies */

static __device__ __forceinline__ void copy_long(uint32_t to, const void *from, int bytes)
{
	asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

static __device__ __forceinline__ void copy_short(uint32_t to, const void *from, int bytes)
{
	asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

static __device__ __forceinline__ void copies_wait()
{
	asm volatile("cp.async.wait_all;" ::: "memory");
}

/* Translates an address ahead of its use; the line itself is of no interest. */
static __device__ __forceinline__ void touch(const void *p)
{
	asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

/* wgmma */

/* 128-byte swizzle; groups of 8 rows are 1024 bytes apart, in either orientation. */
static __device__ __forceinline__ uint64_t descriptor(uint32_t address)
{
	return (uint64_t)((address & 0x3FFFFu) >> 4) | ((uint64_t)64 << 16) | ((uint64_t)64 << 32) | ((uint64_t)1 << 62);
}

/* 64 x 16 sums += 64 x 16 times 16 x 16; TURNED: the first operand has its 64 rows contiguous. */
template <int TURNED> static __device__ __forceinline__ void wgmma(float (&d)[8], uint64_t a, uint64_t b)
{
	asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %10, 0;\n\t"
		     "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
		     "{%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, p, 1, 1, %11, 0;\n\t}"
		     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
		     : "l"(a), "l"(b), "r"(1), "n"(TURNED));
}

static __device__ __forceinline__ void wgmma_fence()
{
	asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void wgmma_finish()
{
	asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
	asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

/* No use of these registers moves across. */
static __device__ __forceinline__ void keep(float (&d)[8])
{
	asm volatile("" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])::"memory");
}

/* producer */

/* Rows 4 i + warp of a tile; lane i < 16 holds the page of row 4 i + warp. Zeros up to the next multiple of 16 rows. */
template <int STAGE>
static __device__ __forceinline__ void fill(uint32_t base, const char *ckv, const char *kpe, int page, int rows, int warp, int lane)
{
	constexpr int BLOCK = (STAGE == 2 ? LAST_ROWS : ROWS) * 128;
	const uint32_t to = base + STAGE * BIG;
	const int some = (rows + 15) / 16 * 4;

	for (int i = 0; i < some; i += 4) {
#pragma unroll
		for (int u = 0; u < 4; u++) {
			const int row = 4 * (i + u) + warp, bytes = row < rows ? 16 : 0;
			const int64_t from = __shfl_sync(0xFFFFFFFFu, page, i + u);
			const char *src = ckv + from * (CKV * 2) + lane * 16;
			const uint32_t dst = to + (lane >> 3) * BLOCK + row * 128 + (((lane & 7) ^ (row & 7)) << 4);

			copy_long(dst, src, bytes);
			copy_long(dst + 4 * BLOCK, src + 512, bytes);
		}
		{
			const int row = 4 * (i + (lane >> 3)) + warp, bytes = row < rows ? 16 : 0;
			const int64_t from = __shfl_sync(0xFFFFFFFFu, page, i + (lane >> 3));

			copy_short(to + 8 * BLOCK + row * 128 + (((lane & 7) ^ (row & 7)) << 4), kpe + from * (KPE * 2) + (lane & 7) * 16, bytes);
		}
	}
	mbar_arrive_copies(base + AT_BARRIER + 8 * STAGE);
}

static __device__ __forceinline__ int page_of(const int32_t *indices, int start, int rows, int end, int row)
{
	return row < rows && start + row < end ? indices[start + row] : 0;
}

static __device__ __forceinline__ void produce(const km_args &a, uint32_t base, int t0, int t1, int page0, int page1, int page2)
{
	const int warp = (threadIdx.x - CONSUMERS) / 32, lane = threadIdx.x % 32;
	const int mine = 4 * (lane & 15) + warp;
	const char *ckv = (const char *)a.ckv_cache, *kpe = (const char *)a.kpe_cache;
	const int32_t *indices = a.kv_indices;
	const uint32_t empty = base + AT_BARRIER + 24;

	for (int start = t0, round = 0; start < t1; start += ROUND, round++) {
		const int next = start + ROUND, left = t1 - start;
		const int next0 = page_of(indices, next, ROWS, t1, mine);
		const int next1 = page_of(indices, next + ROWS, ROWS, t1, mine);
		const int next2 = page_of(indices, next + 2 * ROWS, LAST_ROWS, t1, mine);
		const uint32_t parity = (uint32_t)(round - 1) & 1u;

		if (round)
			mbar_wait(empty, parity);
		__syncwarp();
		fill<0>(base, ckv, kpe, page0, left < ROWS ? left : ROWS, warp, lane);
		if (left > ROWS) {
			if (round)
				mbar_wait(empty + 8, parity);
			__syncwarp();
			fill<1>(base, ckv, kpe, page1, left - ROWS < ROWS ? left - ROWS : ROWS, warp, lane);
		}
		if (left > 2 * ROWS) {
			if (round)
				mbar_wait(empty + 16, parity);
			__syncwarp();
			fill<2>(base, ckv, kpe, page2, left - 2 * ROWS < LAST_ROWS ? left - 2 * ROWS : LAST_ROWS, warp, lane);
		}
		page0 = next0;
		page1 = next1;
		page2 = next2;
	}
	copies_wait();
}

/* consumers */

/* `more`: the next sequence comes later, so its queries are fetched into the second-level cache. */
static __device__ __forceinline__ void ask_queries(const km_args &a, uint32_t base, int b, bool more)
{
	const uint16_t *nope = a.q_nope + (int64_t)b * HEADS * CKV, *pe = a.q_pe + (int64_t)b * HEADS * KPE;

#pragma unroll
	for (int u = 0; u < 5; u++) {
		const int i = (int)threadIdx.x + u * CONSUMERS;

		if (i < HEADS * (CKV + KPE) / 8) {
			const int row = i / 72, c = i % 72;
			const void *src = c < 64 ? (const void *)(nope + row * CKV + c * 8) : (const void *)(pe + row * KPE + (c - 64) * 8);

			copy_short(base + AT_Q + (c >> 3) * Q_BLOCK + row * 128 + (((c & 7) ^ (row & 7)) << 4), src, 16);
		}
	}
	if (more && threadIdx.x < HEADS * (CKV + KPE) * 2 / 128) {
		const int i = (int)threadIdx.x;
		const uint16_t *line = i < HEADS * CKV / 64 ? nope + HEADS * CKV + i * 64 : pe + HEADS * KPE + (i - HEADS * CKV / 64) * 64;

		asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
	}
}

static __device__ __forceinline__ void await_queries()
{
	copies_wait();
	proxy_fence();
	consumers_sync();
}

static __device__ __forceinline__ void consume(const km_args &a, char *memory, uint32_t base, int t0, int t1, uint2 *parts, float2 *meta, float *scales)
{
	const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, group = tid / 128, quarter = warp & 3;
	const int batch = (int)a.batch_size;
	const int32_t *indptr = a.kv_indptr;
	const float scale = a.sm_scale * 1.44269504088896f;
	float *logits = (float *)(memory + AT_S);
	float *factor = (float *)(memory + AT_FACTOR);
	const uint32_t full = base + AT_BARRIER, empty = full + 24;
	float acc[4][8], top[2], sum[2];
	int b = 0, seq_end;

	/* the sequence of the first token: as many sequences end at or before it */
	if (batch > 1) {
		for (int at = 0; at < batch; at += 128) {
			int end[4], count = 0;

	#pragma unroll
			for (int u = 0; u < 4; u++) {
				const int j = at + 32 * u + lane;

				end[u] = j < batch ? indptr[j + 1] : 0x7FFFFFFF;
			}
	#pragma unroll
			for (int u = 0; u < 4; u++)
				count += __popc(__ballot_sync(0xFFFFFFFFu, end[u] <= t0));
			b += count;
			if (count < 128)
				break;
		}
		if (b >= batch)
			b = batch - 1;
		seq_end = indptr[b + 1];
		if (seq_end <= t0)
			seq_end = t1; /* not for a valid kv_indptr */
	} else {
		seq_end = t1; /* all of it, known without a look at indptr */
	}
	ask_queries(a, base, b, seq_end < t1 && b + 1 < batch);
	/* the workspace is translated while the rows are on their way, not when the part is written */
	if (lane == 0 && warp < 3) {
		const int64_t slot = (int64_t)blockIdx.x + b;

		touch(warp == 0 ? (const void *)(parts + slot * PART) : warp == 1 ? (const void *)(meta + slot * HEADS) : (const void *)(scales + slot * WARPS));
	}
	await_queries();

#pragma unroll
	for (int mt = 0; mt < 4; mt++)
#pragma unroll
		for (int i = 0; i < 8; i++)
			acc[mt][i] = 0.0f;
	top[0] = top[1] = -INFINITY;
	sum[0] = sum[1] = 0.0f;

	int stage = 0;
	uint32_t parity = 0;

	for (int start = t0; start < t1;) {
		const int most = stage == 2 ? LAST_ROWS : ROWS;
		const int rows = t1 - start < most ? t1 - start : most;
		const int block = most * 128;
		const uint32_t kv = base + stage * BIG;
		int low = 0;

		mbar_wait(full + 8 * stage, parity);
		__syncwarp();
		proxy_fence();
		for (;;) {
			const int high = seq_end - start < rows ? seq_end - start : rows;

			/* logits, transposed: tokens x heads, of the columns of this group */
			float s[8];
			uint64_t da = descriptor(kv + group * 4 * block), dq = descriptor(base + AT_Q + group * 4 * Q_BLOCK);
			const uint64_t ea = descriptor(kv + 8 * block) + (uint64_t)(4 * group);
			const uint64_t eq = descriptor(base + AT_Q + 8 * Q_BLOCK) + (uint64_t)(4 * group);

#pragma unroll
			for (int i = 0; i < 8; i++)
				s[i] = 0.0f;
			keep(s);
			wgmma_fence();
#pragma unroll 1
			for (int kk = 0; kk < 4; kk++) {
#pragma unroll
				for (int u = 0; u < 4; u++)
					wgmma<0>(s, da + 2 * u, dq + 2 * u);
				da += (uint64_t)(block >> 4);
				dq += (uint64_t)(Q_BLOCK >> 4);
			}
			/* half of the last block each */
#pragma unroll
			for (int u = 0; u < 2; u++)
				wgmma<0>(s, ea + 2 * u, eq + 2 * u);
			wgmma_finish();
			keep(s);
			{
				float *to = logits + group * S_HALF + 2 * (lane & 3) * S_STRIDE + 16 * quarter + (lane >> 2);

#pragma unroll
				for (int j = 0; j < 2; j++) {
					to[8 * j * S_STRIDE] = s[4 * j];
					to[(8 * j + 1) * S_STRIDE] = s[4 * j + 1];
					to[8 * j * S_STRIDE + 8] = s[4 * j + 2];
					to[(8 * j + 1) * S_STRIDE + 8] = s[4 * j + 3];
				}
			}
			consumers_sync();

			/* two heads a warp, two tokens a lane */
			{
				const bool in0 = 2 * lane >= low && 2 * lane < high, in1 = 2 * lane + 1 >= low && 2 * lane + 1 < high;
				float x[2][2], most_here[2];

#pragma unroll
				for (int i = 0; i < 2; i++) {
					const float *from = logits + (2 * warp + i) * S_STRIDE + 2 * lane;
					const float2 u = *(const float2 *)from, v = *(const float2 *)(from + S_HALF);

					x[i][0] = in0 ? (u.x + v.x) * scale : -INFINITY;
					x[i][1] = in1 ? (u.y + v.y) * scale : -INFINITY;
					most_here[i] = fmaxf(x[i][0], x[i][1]);
				}
#pragma unroll
				for (int step = 16; step; step >>= 1)
#pragma unroll
					for (int i = 0; i < 2; i++)
						most_here[i] = fmaxf(most_here[i], __shfl_xor_sync(0xFFFFFFFFu, most_here[i], step));
#pragma unroll
				for (int i = 0; i < 2; i++) {
					const int head = 2 * warp + i;
					const float now = fmaxf(top[i], most_here[i]), zero = now == -INFINITY ? 0.0f : now;
					const float f = power2(top[i] - zero);
					const float p0 = power2(x[i][0] - zero), p1 = power2(x[i][1] - zero);

					top[i] = now;
					sum[i] = sum[i] * f + (p0 + p1);
					*(__nv_bfloat162 *)(memory + AT_P + head * 128 + (((lane >> 2) ^ (head & 7)) << 4) + (lane & 3) * 4) =
						__floats2bfloat162_rn(p0, p1);
					if (lane == 0)
						factor[head] = f;
				}
			}
			proxy_fence();
			consumers_sync();

			/* The sequence ends here: the next one's queries come during the products and the writing of the part. All have read
			 * the old ones. */
			const int done = start + high;
			int next_b = b, next_end = seq_end;

			if (done >= seq_end && done < t1) {
				do {
					next_b++;
					next_end = next_b < batch ? indptr[next_b + 1] : t1;
				} while (next_b < batch && next_end <= done);
				if (next_b < batch)
					ask_queries(a, base, next_b, next_end < t1 && next_b + 1 < batch);
			}

			/* output, transposed: 256 columns of this group x heads */
			{
				const float2 f0 = *(const float2 *)(factor + 2 * (lane & 3)), f1 = *(const float2 *)(factor + 8 + 2 * (lane & 3));

#pragma unroll
				for (int mt = 0; mt < 4; mt++) {
					acc[mt][0] *= f0.x;
					acc[mt][1] *= f0.y;
					acc[mt][2] *= f0.x;
					acc[mt][3] *= f0.y;
					acc[mt][4] *= f1.x;
					acc[mt][5] *= f1.y;
					acc[mt][6] *= f1.x;
					acc[mt][7] *= f1.y;
					keep(acc[mt]);
				}
			}
			{
				const int first = low / 16, last = (high + 15) / 16;
				const uint64_t step = (uint64_t)(block >> 4);
				uint64_t dv = descriptor(kv + 4 * group * block + first * 2048), dp = descriptor(base + AT_P + first * 32);

				wgmma_fence();
				for (int ks = first; ks < last; ks++) {
#pragma unroll
					for (int mt = 0; mt < 4; mt++)
						wgmma<1>(acc[mt], dv + (uint64_t)mt * step, dp);
					dv += 2048 >> 4;
					dp += 32 >> 4;
				}
				wgmma_finish();
#pragma unroll
				for (int mt = 0; mt < 4; mt++)
					keep(acc[mt]);
			}

			if (done < seq_end && done < t1)
				break; /* goes on in the next tile */

			/* a part is complete */
			{
				const int64_t slot = (int64_t)blockIdx.x + b;
				uint2 *to = parts + slot * PART + tid;
				uint32_t bits = 0;

#pragma unroll
				for (int mt = 0; mt < 4; mt++)
#pragma unroll
					for (int i = 0; i < 8; i++)
						bits = max(bits, __float_as_uint(fabsf(acc[mt][i])));
				bits = __reduce_max_sync(0xFFFFFFFFu, bits);

				/* the largest becomes 2^14 to 2^15 */
				const uint32_t e = max(bits >> 23, 15u);
				const float up = __uint_as_float((268u - e) << 23);

				if (lane == 0)
					scales[slot * WARPS + warp] = __uint_as_float((e - 14u) << 23);
#pragma unroll
				for (int mt = 0; mt < 4; mt++)
#pragma unroll
					for (int j = 0; j < 2; j++)
						to[(2 * mt + j) * 256] = make_uint2(pack_halves(acc[mt][4 * j] * up, acc[mt][4 * j + 1] * up),
										    pack_halves(acc[mt][4 * j + 2] * up, acc[mt][4 * j + 3] * up));
#pragma unroll
				for (int i = 0; i < 2; i++) {
					float total = sum[i];

#pragma unroll
					for (int step = 16; step; step >>= 1)
						total += __shfl_xor_sync(0xFFFFFFFFu, total, step);
					if (lane == 0)
						meta[slot * HEADS + 2 * warp + i] = make_float2(top[i], total);
				}
			}
			if (done >= t1)
				return;
			b = next_b;
			seq_end = next_end;
			if (b >= batch)
				return; /* not for a valid kv_indptr */
			await_queries();
#pragma unroll
			for (int mt = 0; mt < 4; mt++)
#pragma unroll
				for (int i = 0; i < 8; i++)
					acc[mt][i] = 0.0f;
			top[0] = top[1] = -INFINITY;
			sum[0] = sum[1] = 0.0f;
			low = high;
			if (low == rows)
				break;
		}
		__syncwarp();
		if (lane == 0)
			mbar_arrive(empty + 8 * stage);
		start += most;
		if (++stage == 3) {
			stage = 0;
			parity ^= 1u;
		}
	}
}

/* The bound of 512 threads is for 128 registers at most, so that a block of join_parts is there as well. */
static __global__ void __launch_bounds__(512, 1) attend(const __grid_constant__ km_args a, uint2 *parts, float2 *meta, float *scales,
								    int chunk)
{
	extern __shared__ __align__(1024) char memory[];
	const uint32_t base = shared_address(memory);
	const int total = (int)a.num_kv_indices, t0 = (int)blockIdx.x * chunk, t1 = total - t0 < chunk ? total : t0 + chunk;

	int page0 = 0, page1 = 0, page2 = 0;

	/* the first thing asked for */
	if (threadIdx.x >= CONSUMERS) {
		const int mine = 4 * (threadIdx.x & 15) + (threadIdx.x - CONSUMERS) / 32;

		page0 = page_of(a.kv_indices, t0, ROWS, t1, mine);
		page1 = page_of(a.kv_indices, t0 + ROWS, ROWS, t1, mine);
		page2 = page_of(a.kv_indices, t0 + 2 * ROWS, LAST_ROWS, t1, mine);
	}
	if (threadIdx.x == 0) {
		for (int i = 0; i < 3; i++) {
			mbar_init(base + AT_BARRIER + 8 * i, PRODUCERS);
			mbar_init(base + AT_BARRIER + 24 + 8 * i, CONSUMERS / 32);
		}
	}
	__syncthreads();
	asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
	if (threadIdx.x >= CONSUMERS)
		produce(a, base, t0, t1, page0, page1, page2);
	else
		consume(a, memory, base, t0, t1, parts, meta, scales);
}

/* A block joins the parts of one sequence for SLICES << shift of the 2048 fours of numbers; the other bits of the thread are parts.
 * With more than one slice, shift is 8. */
template <int SLICES>
static __global__ void __launch_bounds__(JOIN_THREADS, 4) join_parts(const uint2 *parts, const float2 *meta, const float *scales, const int32_t *indptr,
								  __nv_bfloat16 *output, float *lse, int chunk, int shift)
{
	constexpr int EARLY = 8 / SLICES, AHEAD = SLICES > 1 ? 2 : 8, KINDS = SLICES > 1 ? 2 : 1, TURNS = (CHUNKS + 15) / 16;
	__shared__ __align__(16) float weight[CHUNKS * HEADS];
	__shared__ __align__(16) float red[2][16][HEADS];
	__shared__ float4 sums[JOIN_THREADS];
	const int b = blockIdx.x, t = threadIdx.x, width = 1 << shift, y = t >> shift, ys = JOIN_THREADS >> shift;
	const int from = indptr[b], to = indptr[b + 1];
	const int first = from / chunk, n = to > from ? (to - 1) / chunk - first + 1 : 0;
	const int at = (int)blockIdx.y * SLICES * width + (t & (width - 1));
	const int64_t slot = (int64_t)first + b;
	const int q = at >> 8, who = at & 255, lane = at & 31;
	const int column = 256 * (who >> 7) + 16 * ((who >> 5) & 3) + ((lane >> 2) & 6);

	/* This block is there before the parts are. Elements that the same thread writes again, so that the outputs are translated. */
	if (t == 0)
		*(uint32_t *)(output + ((int64_t)b * HEADS + (q & 1) * 8 + 2 * (lane & 3)) * CKV + column + 64 * (q >> 1)) = 0u;
	if (blockIdx.y == 0 && t < HEADS)
		lse[(int64_t)b * HEADS + t] = 0.0f;
	/* and the workspace */
	if (n > 0 && (t & 31) == 0 && t < 96)
		touch(t == 0 ? (const void *)(parts + slot * PART + at) : t == 32 ? (const void *)(meta + slot * HEADS) : (const void *)(scales + slot * WARPS));

	asm volatile("griddepcontrol.wait;" ::: "memory");
	parts += slot * PART + at;
	meta += slot * HEADS;
	scales += slot * WARPS + (who >> 5);

	const int h = t & 15, l = t >> 4;
	float2 of[TURNS];
	uint2 early[EARLY][SLICES];
	float unit[EARLY];

#pragma unroll
	for (int k = 0; k < TURNS; k++) {
		of[k] = make_float2(-INFINITY, 0.0f);
		if (l + 16 * k < n)
			of[k] = meta[(l + 16 * k) * HEADS + h];
	}
#pragma unroll
	for (int u = 0; u < EARLY; u++) {
		const int i = y + u * ys;

		unit[u] = 0.0f;
#pragma unroll
		for (int s = 0; s < SLICES; s++)
			early[u][s] = make_uint2(0u, 0u);
		if (i < n) {
			unit[u] = scales[i * WARPS];
#pragma unroll
			for (int s = 0; s < SLICES; s++)
				early[u][s] = parts[(int64_t)i * PART + 256 * s];
		}
	}

	/* weights of the parts */
	float most = -INFINITY, total = 0.0f;

#pragma unroll
	for (int k = 0; k < TURNS; k++)
		most = fmaxf(most, of[k].x);
	red[0][l][h] = most;
	__syncthreads();
#pragma unroll
	for (int j = 0; j < 16; j++)
		most = fmaxf(most, red[0][j][h]);
#pragma unroll
	for (int k = 0; k < TURNS; k++) {
		if (l + 16 * k < n) {
			const float e = power2(of[k].x - most);

			weight[(l + 16 * k) * HEADS + h] = e;
			total += e * of[k].y;
		}
	}
	red[1][l][h] = total;
	__syncthreads();

	float4 v[SLICES];

#pragma unroll
	for (int s = 0; s < SLICES; s++)
		v[s] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
	for (int u = 0; u < EARLY; u++) {
		const int i = y + u * ys;

		if (i < n) {
#pragma unroll
			for (int s = 0; s < SLICES; s++) {
				const float2 w = *(const float2 *)(weight + i * HEADS + ((q + s) & 1) * 8 + 2 * (lane & 3));

				add_part(v[s], early[u][s], w.x * unit[u], w.y * unit[u]);
			}
		}
	}
	/* the rest, AHEAD parts at a time: one way to the second-level cache and back for all of them */
#pragma unroll 1
	for (int i0 = y + EARLY * ys; i0 < n; i0 += AHEAD * ys) {
		uint2 p[AHEAD][SLICES];
		float one[AHEAD];

#pragma unroll
		for (int u = 0; u < AHEAD; u++) {
			const int i = i0 + u * ys;

			one[u] = 0.0f;
#pragma unroll
			for (int s = 0; s < SLICES; s++)
				p[u][s] = make_uint2(0u, 0u);
			if (i < n) {
				one[u] = scales[i * WARPS];
#pragma unroll
				for (int s = 0; s < SLICES; s++)
					p[u][s] = parts[(int64_t)i * PART + 256 * s];
			}
		}
#pragma unroll
		for (int u = 0; u < AHEAD; u++) {
			const int i = i0 + u * ys;

			if (i < n) {
#pragma unroll
				for (int s = 0; s < SLICES; s++) {
					const float2 w = *(const float2 *)(weight + i * HEADS + ((q + s) & 1) * 8 + 2 * (lane & 3));

					add_part(v[s], p[u][s], w.x * one[u], w.y * one[u]);
				}
			}
		}
	}
	if (SLICES == 1 && ys > 1) {
		sums[t] = v[0];
		__syncthreads();
		if (t < width) {
			for (int j = 1; j < ys; j++) {
				const float4 p = sums[t + j * width];

				v[0].x += p.x;
				v[0].y += p.y;
				v[0].z += p.z;
				v[0].w += p.w;
			}
		}
	}
	if ((t & ~31) < width) { /* whole warps */
		const bool odd = (lane & 4) != 0;
		float2 r[KINDS];

#pragma unroll
		for (int k = 0; k < KINDS; k++) {
			float total0 = 0.0f, total1 = 0.0f;

#pragma unroll
			for (int j = 0; j < 16; j++) {
				const float2 one = *(const float2 *)&red[1][j][((q + k) & 1) * 8 + 2 * (lane & 3)];

				total0 += one.x;
				total1 += one.y;
			}
			r[k].x = total0 > 0.0f ? 1.0f / total0 : 0.0f;
			r[k].y = total1 > 0.0f ? 1.0f / total1 : 0.0f;
		}
#pragma unroll
		for (int s = 0; s < SLICES; s++) {
			const float r0 = r[s % KINDS].x, r1 = r[s % KINDS].y;
			const float a0 = v[s].x * r0, a1 = v[s].y * r1, a2 = v[s].z * r0, a3 = v[s].w * r1;
			const float got0 = __shfl_xor_sync(0xFFFFFFFFu, odd ? a0 : a1, 4);
			const float got1 = __shfl_xor_sync(0xFFFFFFFFu, odd ? a2 : a3, 4);
			const int head = ((q + s) & 1) * 8 + 2 * (lane & 3) + (odd ? 1 : 0);

			if (t < width) {
				__nv_bfloat16 *out = output + ((int64_t)b * HEADS + head) * CKV + column + 64 * ((q + s) >> 1);

				*(__nv_bfloat162 *)out = odd ? __floats2bfloat162_rn(got0, a1) : __floats2bfloat162_rn(a0, got0);
				*(__nv_bfloat162 *)(out + 8) = odd ? __floats2bfloat162_rn(got1, a3) : __floats2bfloat162_rn(a2, got1);
			}
		}
	}
	if (blockIdx.y == 0 && t < HEADS) {
		float all = 0.0f;

#pragma unroll
		for (int j = 0; j < 16; j++)
			all += red[1][j][t];
		lse[(int64_t)b * HEADS + t] = all > 0.0f ? most + log2f(all) : -INFINITY;
	}
}

static int chunk_tokens(const struct km_args *a)
{
	const int64_t c = (a->num_kv_indices + CHUNKS - 1) / CHUNKS;

	return c < LEAST ? LEAST : (int)c;
}

static int chunk_count(const struct km_args *a)
{
	const int64_t c = chunk_tokens(a);

	return (int)((a->num_kv_indices + c - 1) / c);
}

size_t km_workspace(const struct km_args *a)
{
	return ((size_t)chunk_count(a) + (size_t)a->batch_size) * (PART * sizeof(uint2) + HEADS * sizeof(float2) + WARPS * sizeof(float));
}

int km_init(const struct km_args *)
{
	cudaError_t e = cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES);

	if (e == cudaSuccess)
		e = cudaFuncSetAttribute(attend, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	if (e == cudaSuccess)
		e = cudaFuncSetAttribute(join_parts<1>, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	if (e == cudaSuccess)
		e = cudaFuncSetAttribute(join_parts<4>, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	return (int)e;
}

int km_run(const struct km_args *a)
{
	cudaStream_t stream = (cudaStream_t)a->stream;
	const int chunk = chunk_tokens(a), chunks = chunk_count(a);
	const int64_t batch = a->batch_size;

	if (batch <= 0)
		return 0;

	uint2 *parts = (uint2 *)a->workspace;
	float2 *meta = (float2 *)(parts + ((int64_t)chunks + batch) * PART);
	float *scales = (float *)(meta + ((int64_t)chunks + batch) * HEADS);

	if (chunks > 0) {
		attend<<<(unsigned)chunks, THREADS, SHARED_BYTES, stream>>>(*a, parts, meta, scales, chunk);
		const cudaError_t e = cudaGetLastError();

		if (e != cudaSuccess)
			return (int)e;
	}

	/* no more blocks than multiprocessors if possible: each waits beside a block of attend */
	const bool wide = batch * (PART >> 8) > 132;
	int shift = 8;

	while (shift > 4 && batch * (PART >> shift) * 2 <= 132)
		shift--;

	void (*join)(const uint2 *, const float2 *, const float *, const int32_t *, __nv_bfloat16 *, float *, int, int) = join_parts<1>;

	if (wide)
		join = join_parts<4>;

	cudaLaunchConfig_t config = {};
	cudaLaunchAttribute attribute[1];

	attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attribute[0].val.programmaticStreamSerializationAllowed = 1;
	config.gridDim = dim3((unsigned)batch, (unsigned)(PART >> shift) / (wide ? 4u : 1u));
	config.blockDim = dim3(JOIN_THREADS);
	config.dynamicSmemBytes = 0;
	config.stream = stream;
	config.attrs = attribute;
	config.numAttrs = chunks > 0 ? 1 : 0;
	return (int)cudaLaunchKernelEx(&config, join, (const uint2 *)parts, (const float2 *)meta, (const float *)scales,
				       (const int32_t *)a->kv_indptr, (__nv_bfloat16 *)a->output, (float *)a->lse, chunk, shift);
}
