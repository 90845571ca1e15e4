#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>

constexpr int DIM = KM_AXIS_HEAD_DIM, HEADS = KM_AXIS_NUM_QO_HEADS, GROUPS = KM_AXIS_NUM_KV_HEADS, GROUP = HEADS / GROUPS;
constexpr int TILE = 32;                        /* tokens of a stage */
constexpr int STAGES = 3;
constexpr int PAGE_BYTES = GROUPS * DIM * 2;    /* 1024: one token of K or of V, all heads */
constexpr int ROW = PAGE_BYTES + 16;            /* stride in shared memory, free of conflicts for ldmatrix */
constexpr int PLANE = TILE * ROW;               /* K or V of a stage */
constexpr int STAGE_BYTES = 2 * PLANE;
constexpr int SMEM_BYTES = STAGES * STAGE_BYTES + 128;
constexpr int CONSUMERS = GROUPS;               /* warps */
constexpr int THREADS = (CONSUMERS + 2) * 32;
constexpr int MAX_CTAS = 132, MIN_TOKENS = 16;
constexpr int SLOT = HEADS * DIM;               /* floats of a partial result */
constexpr int AHEAD = 16;                       /* pages a CTA asks for by physical address if nearly all are in use */
constexpr int RING = STAGES * TILE;             /* tokens that a CTA's producers ask for at once */
constexpr int SPACING_BITS = 16;                /* binary places of the distance between the CTAs' first such pages */

static_assert(PAGE_BYTES == 32 * 32, "a sector a lane");
static_assert(GROUP == 8 && DIM == 128 && GROUPS == 4, "shapes");

/* ---- small wrappers ---- */

__device__ __forceinline__ static void bar_init(uint32_t bar, uint32_t count)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(bar), "r"(count) : "memory");
}

__device__ __forceinline__ static void bar_expect(uint32_t bar, uint32_t bytes)
{
	asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(bar), "r"(bytes) : "memory");
}

__device__ __forceinline__ static void bar_arrive(uint32_t bar)
{
	asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(bar) : "memory");
}

__device__ __forceinline__ static bool bar_try(uint32_t bar, uint32_t parity)
{
	uint32_t done;

	asm volatile("{\n\t.reg .pred p;\n\t"
		     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
		     "selp.u32 %0, 1, 0, p;\n\t}"
		     : "=r"(done) : "r"(bar), "r"(parity) : "memory");
	return done != 0;
}

__device__ __forceinline__ static void bar_wait(uint32_t bar, uint32_t parity)
{
	while (!bar_try(bar, parity)) {
	}
	__syncwarp();
}

__device__ __forceinline__ static void bulk_copy(uint32_t dst, const void *src, uint32_t bytes, uint32_t bar)
{
	asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
		     :: "r"(dst), "l"((uint64_t)__cvta_generic_to_global(src)), "r"(bytes), "r"(bar) : "memory");
}

/* Ask for a sector in L2, and so for the translation of its address, past the copy engine. Nothing waits for it. */
__device__ __forceinline__ static void touch(const void *at)
{
	asm volatile("prefetch.global.L2 [%0];" :: "l"((uint64_t)__cvta_generic_to_global(at)));
}

/* A read-only load that is issued where it stands; `x` keeps its value unless `wanted`. */
__device__ __forceinline__ static void load_if(int &x, const int32_t *at, bool wanted)
{
	asm volatile("{\n\t.reg .pred p;\n\t"
		     "setp.ne.s32 p, %2, 0;\n\t"
		     "@p ld.global.nc.s32 %0, [%1];\n\t}"
		     : "+r"(x) : "l"((uint64_t)__cvta_generic_to_global(at)), "r"(wanted ? 1 : 0));
}

__device__ __forceinline__ static void ldsm(uint32_t *a, uint32_t at)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(at));
}

__device__ __forceinline__ static void ldsm_trans(uint32_t *a, uint32_t at)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(at));
}

__device__ __forceinline__ static void mma(float *d, const uint32_t *a, uint32_t b0, uint32_t b1)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
		     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ static uint32_t transpose(uint32_t x)
{
	uint32_t y;

	asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
	return y;
}

__device__ __forceinline__ static uint32_t pack(float low, float high)
{
	uint32_t r;

	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
	return r;
}

__device__ __forceinline__ static float ex2(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

__device__ __forceinline__ static float minus_inf()
{
	return __int_as_float((int)0xff800000u);
}

/* Partial results travel through the workspace without flags: a word there is zero until it is written, a written word never is
 * (+0 goes as -0), and its only reader sets it back to zero. So each word says for itself whether it has arrived. */
__device__ __forceinline__ static uint32_t mark(float x)
{
	uint32_t bits = __float_as_uint(x);

	return bits == 0 ? 0x80000000u : bits;
}

__device__ __forceinline__ static bool arrived(float x)
{
	return __float_as_uint(x) != 0;
}

__device__ __forceinline__ static void put(float *at, float x)
{
	asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" :: "l"((uint64_t)__cvta_generic_to_global(at)), "r"(mark(x)) : "memory");
}

__device__ __forceinline__ static void put4(void *at, float x, float y, float z, float w)
{
	asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};"
		     :: "l"((uint64_t)__cvta_generic_to_global(at)), "r"(mark(x)), "r"(mark(y)), "r"(mark(z)), "r"(mark(w)) : "memory");
}

__device__ __forceinline__ static float2 get2(const void *at)
{
	float2 r;

	asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];"
		     : "=f"(r.x), "=f"(r.y) : "l"((uint64_t)__cvta_generic_to_global(at)) : "memory");
	return r;
}

__device__ __forceinline__ static float4 get4(const void *at)
{
	float4 r;

	asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
		     : "=f"(r.x), "=f"(r.y), "=f"(r.z), "=f"(r.w) : "l"((uint64_t)__cvta_generic_to_global(at)) : "memory");
	return r;
}

__device__ __forceinline__ static void clear2(void *at)
{
	asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %1};" :: "l"((uint64_t)__cvta_generic_to_global(at)), "r"(0u) : "memory");
}

__device__ __forceinline__ static void clear4(void *at)
{
	asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %1, %1, %1};"
		     :: "l"((uint64_t)__cvta_generic_to_global(at)), "r"(0u) : "memory");
}

/* The eight query rows of (b, warp) as B operands: register 2 ks + j is q[g][16 ks + 8 j + 2 c], +1. */
__device__ __forceinline__ static void load_q(uint32_t *qf, const uint16_t *q, int b, int warp, int lane)
{
	const uint32_t *row = (const uint32_t *)(q + ((int64_t)b * HEADS + warp * GROUP + (lane >> 2)) * DIM) + (lane & 3);

#pragma unroll
	for (int i = 0; i < 16; i++)
		qf[i] = __ldg(row + 4 * i);
}

__device__ __forceinline__ static void prefetch_q(const uint16_t *q, int b, int warp, int lane)
{
	if (lane < 16) {
		const unsigned char *at = (const unsigned char *)(q + ((int64_t)b * HEADS + warp * GROUP) * DIM) + lane * 128;

		asm volatile("prefetch.global.L2 [%0];" :: "l"((uint64_t)__cvta_generic_to_global(at)));
	}
}

/* ---- CTA i: tokens [i chunk, min(total, (i + 1) chunk)) ---- */

__global__ void __launch_bounds__(THREADS, 1)
attend(const uint16_t *q, const unsigned char *k_cache, const unsigned char *v_cache, const int32_t *indptr, const int32_t *indices,
       int64_t cache_bytes, int ahead, int64_t spacing, int batch, int total, int chunk, float sm_scale, uint16_t *output, float *lse,
       float *part_acc, float2 *part_ml)
{
	extern __shared__ __align__(128) unsigned char smem[];
	const uint32_t base = (uint32_t)__cvta_generic_to_shared(smem);
	const uint32_t full = base + STAGES * STAGE_BYTES;      /* K: full + 8 stage, V: full + 8 (STAGES + stage) */
	const uint32_t empty = full + 8 * 2 * STAGES;
	const int warp = (int)threadIdx.x >> 5, lane = (int)threadIdx.x & 31;
	const int begin = (int)blockIdx.x * chunk;
	const int end = total - begin < chunk ? total : begin + chunk;
	const int tiles = (end - begin + TILE - 1) / TILE;
	int page[STAGES];

#pragma unroll
	for (int st = 0; st < STAGES; st++)
		page[st] = 0;
	if (warp >= CONSUMERS) {
#pragma unroll
		for (int st = 0; st < STAGES; st++) {
			int t = begin + st * TILE + lane;

			load_if(page[st], indices + t, t < end);
		}
		__syncwarp();
	}
	if (threadIdx.x == 0) {
		for (int st = 0; st < STAGES; st++) {
			bar_init(full + 8 * st, 1);
			bar_init(full + 8 * (STAGES + st), 1);
			bar_init(empty + 8 * st, CONSUMERS);
		}
		asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
		asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
	}
	__syncthreads();
	asm volatile("griddepcontrol.launch_dependents;" ::: "memory");

	if (warp >= CONSUMERS) {
		/* Producers: the first one copies keys, the second one values; lane = token of the stage. */
		const bool values = warp > CONSUMERS;
		const unsigned char *cache = values ? v_cache : k_cache;
		const uint32_t dst = base + (values ? PLANE : 0) + lane * ROW;
		const uint32_t bars = full + (values ? 8 * STAGES : 0);
		uint32_t parity = 1;

		/* Have the address translations of the cache's first 64 MB fetched meanwhile. */
		{
			const int64_t at = ((int64_t)lane << 21) + (int64_t)blockIdx.x * 4096;

			if (at < cache_bytes)
				asm volatile("prefetch.global.L2 [%0];" :: "l"((uint64_t)__cvta_generic_to_global(cache + at)));
		}

		for (int s0 = 0; s0 < tiles; s0 += STAGES) {
#pragma unroll
			for (int st = 0; st < STAGES; st++) {
				int s = s0 + st;

				if (s < tiles) {
					int left = end - begin - s * TILE;
					int count = left < TILE ? left : TILE;
					int t = begin + (s + STAGES) * TILE + lane;

					bar_wait(empty + 8 * st, parity);
					if (lane == 0)
						bar_expect(bars + 8 * st, (uint32_t)(count * PAGE_BYTES));
					__syncwarp();
					if (lane < count)
						bulk_copy(dst + st * STAGE_BYTES, cache + (int64_t)page[st] * PAGE_BYTES, PAGE_BYTES,
							  bars + 8 * st);
					__syncwarp();
					if (t < end)
						page[st] = __ldg(indices + t);
				}
			}
			parity ^= 1;
		}
		return;
	}

	/* Consumers: warp = key-value head. */
	const int g = lane >> 2, c = lane & 3;
	const float scale = sm_scale * 1.44269504088896340736f;
	const uint32_t k_at = base + warp * (DIM * 2) + 16 * (lane >> 4);
	const uint32_t v_at = base + PLANE + warp * (DIM * 2) + 16 * ((lane >> 3) & 1);
	const int k_row = lane & 15, v_row = (lane & 7) + ((lane >> 4) << 3);
	int b = 0;

	/* All query rows are needed by someone: ask for those that this CTA would need if all sequences were of one length. */
	{
		int guess = (int)(__fdividef((float)begin, (float)total) * (float)batch);

		guess = max(0, min(guess, batch - 1));
		prefetch_q(q, guess, warp, lane);
		/* And for the translations that the stores at the end need: slots of partial results, output and lse. */
		if (warp == 0 && lane < 5) {
			const void *at = part_acc + (int64_t)(2 * (int)blockIdx.x + (lane & 1)) * SLOT;

			if (lane == 2)
				at = part_ml + 2 * (int)blockIdx.x * HEADS;
			if (lane == 3)
				at = output + (int64_t)guess * HEADS * DIM;
			if (lane == 4)
				at = lse + (int64_t)guess * HEADS;
			touch(at);
		}
		__syncwarp();
	}

	/* While the indices are on their way: if nearly every page is in use, any page is needed by some CTA, so have a share of the
	 * caches brought into L2. If the indices are in order, these are the pages that this CTA's ring asks for when it turns first.
	 * A warp asks for a whole page at once. */
	for (int j = warp; j < ahead; j += CONSUMERS) {
		const int64_t at = ((((int64_t)blockIdx.x * spacing) >> SPACING_BITS) + RING + j) * PAGE_BYTES + 32 * lane;

		if (at < cache_bytes) {
			touch(k_cache + at);
			touch(v_cache + at);
		}
	}
	__syncwarp();

	/* The sequence of the first token: as many as end at or before it. */
	for (int j = 0; batch > 1 && j < batch; j += 128) {
		int ends[4], ended = 0;

#pragma unroll
		for (int u = 0; u < 4; u++) {
			int at = j + 32 * u + lane;

			ends[u] = 0x7fffffff;
			if (at < batch)
				ends[u] = __ldg(indptr + at + 1);
		}
#pragma unroll
		for (int u = 0; u < 4; u++)
			ended += ends[u] <= begin ? 1 : 0;
		ended = __reduce_add_sync(0xffffffffu, ended);
		b += ended;
		if (ended < 128)
			break;
	}
	b = b < batch ? b : batch - 1;

	int seq_from = __ldg(indptr + b), seq_to = __ldg(indptr + b + 1);
	uint32_t qf[16];
	float acc[8][4], m0 = minus_inf(), m1 = minus_inf(), l0 = 0, l1 = 0;

	load_q(qf, q, b, warp, lane);
	if (seq_to < end && b + 1 < batch)
		prefetch_q(q, b + 1, warp, lane);
#pragma unroll
	for (int dt = 0; dt < 8; dt++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			acc[dt][i] = 0;

	int stage = 0;
	uint32_t parity = 0;

	for (int s = 0; s < tiles; s++) {
		const int first = begin + s * TILE;
		const int count = end - first < TILE ? end - first : TILE;
		const uint32_t offset = (uint32_t)(stage * STAGE_BYTES);
		uint32_t ka[2], va[2];
		int lo = 0;

#pragma unroll
		for (int h = 0; h < 2; h++) {
			/* Rows past the last copied one are never read. */
			ka[h] = k_at + offset + (uint32_t)(min(k_row + 16 * h, count - 1) * ROW);
			va[h] = v_at + offset + (uint32_t)(min(v_row + 16 * h, count - 1) * ROW);
		}
		bar_wait(full + 8 * stage, parity);
		for (;;) {
			/* Tokens [lo, hi) of the tile belong to sequence b. */
			const int hi = min(count, seq_to - first);
			float part[2][2][4], x[2][4];

#pragma unroll
			for (int h = 0; h < 2; h++)
#pragma unroll
				for (int i = 0; i < 4; i++)
					part[h][0][i] = part[h][1][i] = 0;
#pragma unroll
			for (int ks = 0; ks < 8; ks++)
#pragma unroll
				for (int h = 0; h < 2; h++) {
					uint32_t a[4];

					ldsm(a, ka[h] + 32 * ks);
					mma(part[h][ks & 1], a, qf[2 * ks], qf[2 * ks + 1]);
				}
#pragma unroll
			for (int h = 0; h < 2; h++)
#pragma unroll
				for (int i = 0; i < 4; i++) {
					int token = 16 * h + g + 8 * (i >> 1);
					bool mine = (unsigned)(token - lo) < (unsigned)(hi - lo);

					x[h][i] = mine ? (part[h][0][i] + part[h][1][i]) * scale : minus_inf();
				}

			float n0 = fmaxf(fmaxf(x[0][0], x[0][2]), fmaxf(x[1][0], x[1][2]));
			float n1 = fmaxf(fmaxf(x[0][1], x[0][3]), fmaxf(x[1][1], x[1][3]));

#pragma unroll
			for (int o = 4; o <= 16; o *= 2) {
				n0 = fmaxf(n0, __shfl_xor_sync(0xffffffffu, n0, o));
				n1 = fmaxf(n1, __shfl_xor_sync(0xffffffffu, n1, o));
			}
			n0 = fmaxf(n0, m0);
			n1 = fmaxf(n1, m1);

			const float old0 = ex2(m0 - n0), old1 = ex2(m1 - n1);
			uint32_t p[2][2];
			float sum0 = 0, sum1 = 0;

			m0 = n0;
			m1 = n1;
#pragma unroll
			for (int h = 0; h < 2; h++) {
				float p0 = ex2(x[h][0] - n0), p1 = ex2(x[h][1] - n1);
				float p2 = ex2(x[h][2] - n0), p3 = ex2(x[h][3] - n1);

				sum0 += p0 + p2;
				sum1 += p1 + p3;
				p[h][0] = transpose(pack(p0, p1));
				p[h][1] = transpose(pack(p2, p3));
			}
			l0 = l0 * old0 + sum0;
			l1 = l1 * old1 + sum1;
#pragma unroll
			for (int dt = 0; dt < 8; dt++) {
				acc[dt][0] *= old0;
				acc[dt][1] *= old1;
				acc[dt][2] *= old0;
				acc[dt][3] *= old1;
			}

			bar_wait(full + 8 * (STAGES + stage), parity);
#pragma unroll
			for (int h = 0; h < 2; h++)
#pragma unroll
				for (int dt = 0; dt < 8; dt++) {
					uint32_t a[4];

					ldsm_trans(a, va[h] + 32 * dt);
					mma(acc[dt], a, p[h][0], p[h][1]);
				}
			if (hi >= count) {
				__syncwarp();
				if (lane == 0)
					bar_arrive(empty + 8 * stage);
				__syncwarp();
			}

			const int stop = min(seq_to, end);

			if (first + hi >= stop) {
				/* The sequence, or this CTA's piece of it, is complete. */
#pragma unroll
				for (int o = 4; o <= 16; o *= 2) {
					l0 += __shfl_xor_sync(0xffffffffu, l0, o);
					l1 += __shfl_xor_sync(0xffffffffu, l1, o);
				}
				if (seq_from >= begin && seq_to <= end) {
					const float r0 = 1.0f / l0, r1 = 1.0f / l1;
					uint32_t *to = (uint32_t *)(output + ((int64_t)b * HEADS + warp * GROUP + g) * DIM) + c;

#pragma unroll
					for (int dt = 0; dt < 8; dt++) {
						to[8 * dt] = transpose(pack(acc[dt][0] * r0, acc[dt][1] * r1));
						to[8 * dt + 4] = transpose(pack(acc[dt][2] * r0, acc[dt][3] * r1));
					}
					if (lane < 4) {
						float *at = lse + (int64_t)b * HEADS + warp * GROUP + 2 * lane;

						at[0] = m0 + log2f(l0);
						at[1] = m1 + log2f(l1);
					}
				} else {
					const int slot = 2 * (int)blockIdx.x + (seq_from >= begin ? 1 : 0);
					float *to = part_acc + (int64_t)slot * SLOT + (warp * GROUP + 2 * c) * DIM + g;

#pragma unroll
					for (int dt = 0; dt < 8; dt++) {
						put(to + 16 * dt, acc[dt][0]);
						put(to + DIM + 16 * dt, acc[dt][1]);
						put(to + 16 * dt + 8, acc[dt][2]);
						put(to + DIM + 16 * dt + 8, acc[dt][3]);
					}
					if (lane < 4)
						put4(part_ml + slot * HEADS + warp * GROUP + 2 * lane, m0, l0, m1, l1);
				}
				__syncwarp();
				if (stop < end) {
					do {
						b++;
						seq_from = seq_to;
						seq_to = __ldg(indptr + b + 1);
					} while (seq_to <= seq_from && b + 1 < batch);
					load_q(qf, q, b, warp, lane);
					if (seq_to < end && b + 1 < batch)
						prefetch_q(q, b + 1, warp, lane);
					m0 = m1 = minus_inf();
					l0 = l1 = 0;
#pragma unroll
					for (int dt = 0; dt < 8; dt++)
#pragma unroll
						for (int i = 0; i < 4; i++)
							acc[dt][i] = 0;
				}
			}
			lo = hi;
			if (lo >= count)
				break;
		}
		if (++stage == STAGES) {
			stage = 0;
			parity ^= 1;
		}
	}
}

/* ---- join the pieces of the sequences that several CTAs share; fill in the empty ones ---- */

/* A block for HB heads of a sequence; W warps share its pieces, U of them in flight a warp. It runs beside the first kernel, all
 * CTAs of which have started when this one does, and takes each piece as it arrives. */
template <int W, int HB, int U>
__global__ void __launch_bounds__(W * 32)
combine(const int32_t *indptr, float *part_acc, float2 *part_ml, int chunk, uint16_t *output, float *lse)
{
	static_assert(W >= HB, "a warp for each head at the end");
	__shared__ float4 own_v[W][HB][32];
	__shared__ float2 own_ml[W][HB];
	constexpr int PER = HEADS / HB;
	const int warp = (int)threadIdx.x >> 5, lane = (int)threadIdx.x & 31;
	const int b = (int)blockIdx.x / PER, head = ((int)blockIdx.x % PER) * HB;

	/* The stores at the very end shall find their translations. */
	if (warp == 0 && lane < 2) {
		const int64_t row = (int64_t)b * HEADS + head;

		touch(lane == 0 ? (const void *)(output + row * DIM) : (const void *)(lse + row));
	}

	const int from = __ldg(indptr + b), to = __ldg(indptr + b + 1);
	const int first = from / chunk, last = (to - 1) / chunk;

	if (to <= from) {
		if (warp < HB) {
			int64_t row = (int64_t)b * HEADS + head + warp;

			*(uint2 *)(output + row * DIM + lane * 4) = make_uint2(0, 0);
			if (lane == 0)
				lse[row] = minus_inf();
		}
	} else if (first != last) {
		const int count = last - first + 1;
		float m[HB], l[HB];
		float4 v[HB];

#pragma unroll
		for (int h = 0; h < HB; h++) {
			m[h] = minus_inf();
			l[h] = 0;
			v[h] = make_float4(0, 0, 0, 0);
		}
		for (int i0 = warp; i0 < count; i0 += W * U) {
			float2 ml[U][HB];
			float4 x[U][HB];
			float *at[U];
			float2 *at_ml[U];

#pragma unroll
			for (int u = 0; u < U; u++) {
				int i = i0 + u * W;
				int slot = 2 * (first + i) + (i == 0 ? 1 : 0);

				at[u] = part_acc + (int64_t)slot * SLOT + head * DIM + lane * 4;
				at_ml[u] = part_ml + slot * HEADS + head;
				/* Only the maxima are polled: the translations of the vectors are fetched meanwhile. */
				if (lane == 0 && i0 + u * W < count)
					touch(at[u]);
#pragma unroll
				for (int h = 0; h < HB; h++) {
					ml[u][h] = make_float2(minus_inf(), 0);
					x[u][h] = make_float4(0, 0, 0, 0);
				}
			}
			/* Poll the maxima and sums, which are written last: one sector a piece. */
			for (;;) {
				bool ready = true;

#pragma unroll
				for (int u = 0; u < U; u++)
					if (i0 + u * W < count) {
#pragma unroll
						for (int h = 0; h < HB; h++)
							ml[u][h] = get2(at_ml[u] + h);
					}
#pragma unroll
				for (int u = 0; u < U; u++)
					if (i0 + u * W < count) {
#pragma unroll
						for (int h = 0; h < HB; h++)
							ready = ready && arrived(ml[u][h].x) && arrived(ml[u][h].y);
					}
				if (__all_sync(0xffffffffu, ready))
					break;
				__nanosleep(32);
			}
			/* The rest is there as a rule; each word is checked all the same. */
			for (;;) {
				bool ready = true;

#pragma unroll
				for (int u = 0; u < U; u++)
					if (i0 + u * W < count) {
#pragma unroll
						for (int h = 0; h < HB; h++)
							x[u][h] = get4(at[u] + h * DIM);
					}
#pragma unroll
				for (int u = 0; u < U; u++)
					if (i0 + u * W < count) {
#pragma unroll
						for (int h = 0; h < HB; h++)
							ready = ready && arrived(x[u][h].x) && arrived(x[u][h].y) && arrived(x[u][h].z) &&
								arrived(x[u][h].w);
					}
				if (__all_sync(0xffffffffu, ready))
					break;
			}
			/* Back to zero for the next call: nobody else reads these words. */
#pragma unroll
			for (int u = 0; u < U; u++)
				if (i0 + u * W < count) {
#pragma unroll
					for (int h = 0; h < HB; h++) {
						clear4(at[u] + h * DIM);
						if (lane == 0)
							clear2(at_ml[u] + h);
					}
				}
			__syncwarp();
#pragma unroll
			for (int h = 0; h < HB; h++) {
				float higher = m[h], old;

#pragma unroll
				for (int u = 0; u < U; u++)
					higher = fmaxf(higher, ml[u][h].x);
				old = ex2(m[h] - higher);
				m[h] = higher;
				l[h] *= old;
				v[h].x *= old;
				v[h].y *= old;
				v[h].z *= old;
				v[h].w *= old;
#pragma unroll
				for (int u = 0; u < U; u++) {
					float weight = ex2(ml[u][h].x - higher);

					l[h] += weight * ml[u][h].y;
					v[h].x += weight * x[u][h].x;
					v[h].y += weight * x[u][h].y;
					v[h].z += weight * x[u][h].z;
					v[h].w += weight * x[u][h].w;
				}
			}
		}
#pragma unroll
		for (int h = 0; h < HB; h++) {
			own_v[warp][h][lane] = v[h];
			if (lane == 0)
				own_ml[warp][h] = make_float2(m[h], l[h]);
		}
		__syncthreads();
		if (warp < HB) {
			int64_t row = (int64_t)b * HEADS + head + warp;
			float all = minus_inf(), sum = 0;
			float4 y = make_float4(0, 0, 0, 0);

#pragma unroll
			for (int w = 0; w < W; w++)
				all = fmaxf(all, own_ml[w][warp].x);
#pragma unroll
			for (int w = 0; w < W; w++) {
				float2 ml = own_ml[w][warp];
				float4 x = own_v[w][warp][lane];
				float weight = ex2(ml.x - all);

				sum += weight * ml.y;
				y.x += weight * x.x;
				y.y += weight * x.y;
				y.z += weight * x.z;
				y.w += weight * x.w;
			}

			float r = 1.0f / sum;

			*(uint2 *)(output + row * DIM + lane * 4) = make_uint2(pack(y.x * r, y.y * r), pack(y.z * r, y.w * r));
			if (lane == 0)
				lse[row] = all + log2f(sum);
		}
	}
	/* This grid must not end before the first one has: what follows in the stream waits only for this one. */
	if (blockIdx.x == gridDim.x - 1)
		asm volatile("griddepcontrol.wait;" ::: "memory");
}

/* ---- host ---- */

static int chunk_of(const struct km_args *a)
{
	int64_t chunk = (a->num_kv_indices + MAX_CTAS - 1) / MAX_CTAS;

	return (int)(chunk < MIN_TOKENS ? MIN_TOKENS : chunk);
}

static int ctas_of(const struct km_args *a)
{
	int64_t chunk = chunk_of(a);

	return (int)((a->num_kv_indices + chunk - 1) / chunk);
}

/* Pages that each CTA asks for before it knows the indices: none unless at least nine tenths of all are in use, and none if all its
 * copies are under way at once, when there is nothing to run ahead of. */
static int ahead_of(const struct km_args *a, int ctas)
{
	int64_t share;

	if (ctas < 1 || chunk_of(a) <= RING || a->num_kv_indices * 10 < a->num_pages * 9)
		return 0;
	share = a->num_pages / ctas - RING;
	return (int)(share < 0 ? 0 : share < AHEAD ? share : AHEAD);
}

size_t km_workspace(const struct km_args *a)
{
	size_t slots = 2 * (size_t)ctas_of(a);

	return slots * (SLOT * sizeof(float) + HEADS * sizeof(float2)) + 256;
}

int km_init(const struct km_args *a)
{
	cudaError_t e;

	(void)a;
	e = cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, SMEM_BYTES);
	if (e != cudaSuccess)
		return (int)e;
	/* The same division of shared memory, so that blocks of the second kernel can wait beside the first. */
	cudaFuncSetAttribute(attend, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	cudaFuncSetAttribute(combine<8, 1, 5>, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	cudaFuncSetAttribute(combine<4, 1, 4>, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	cudaFuncSetAttribute(combine<2, 2, 3>, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	(void)cudaGetLastError();
	return 0;
}

int km_run(const struct km_args *a)
{
	cudaStream_t stream = (cudaStream_t)a->stream;
	const int batch = (int)a->batch_size, total = (int)a->num_kv_indices, chunk = chunk_of(a), ctas = ctas_of(a);
	const int ahead = ahead_of(a, ctas);
	const int64_t spacing = ctas > 0 ? (a->num_pages << SPACING_BITS) / ctas : 0;
	float *part_acc = (float *)a->workspace;
	float2 *part_ml = (float2 *)((unsigned char *)a->workspace + 2 * (size_t)ctas * SLOT * sizeof(float));
	cudaLaunchConfig_t config = {};
	cudaLaunchAttribute attribute[1] = {};
	cudaError_t e;

	if (batch < 1)
		return 0;
	if (ctas > 0)
		attend<<<(unsigned)ctas, THREADS, SMEM_BYTES, stream>>>(a->q, (const unsigned char *)a->k_cache,
									 (const unsigned char *)a->v_cache, a->kv_indptr, a->kv_indices,
									 a->num_pages * (int64_t)PAGE_BYTES, ahead, spacing, batch, total, chunk,
									 a->sm_scale, a->output, a->lse, part_acc, part_ml);
	attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attribute[0].val.programmaticStreamSerializationAllowed = 1;
	config.dynamicSmemBytes = 0;
	config.stream = stream;
	config.attrs = attribute;
	config.numAttrs = ctas > 0 ? 1 : 0;
	if (batch <= 11) {
		config.gridDim = dim3((unsigned)(batch * HEADS));
		config.blockDim = dim3(8 * 32);
		e = cudaLaunchKernelEx(&config, combine<8, 1, 5>, a->kv_indptr, part_acc, part_ml, chunk, a->output, a->lse);
	} else if (batch <= 24) {
		config.gridDim = dim3((unsigned)(batch * HEADS));
		config.blockDim = dim3(4 * 32);
		e = cudaLaunchKernelEx(&config, combine<4, 1, 4>, a->kv_indptr, part_acc, part_ml, chunk, a->output, a->lse);
	} else {
		config.gridDim = dim3((unsigned)(batch * (HEADS / 2)));
		config.blockDim = dim3(2 * 32);
		e = cudaLaunchKernelEx(&config, combine<2, 2, 3>, a->kv_indptr, part_acc, part_ml, chunk, a->output, a->lse);
	}
	if (e != cudaSuccess)
		return (int)e;
	return (int)cudaGetLastError();
}
