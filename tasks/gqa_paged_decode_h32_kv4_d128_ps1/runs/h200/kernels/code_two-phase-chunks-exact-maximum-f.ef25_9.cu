#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math.h>

namespace {

constexpr int DIM = KM_AXIS_HEAD_DIM, HEADS = KM_AXIS_NUM_QO_HEADS, GROUPS = KM_AXIS_NUM_KV_HEADS, GROUP = HEADS / GROUPS;
constexpr int TILE = 16, CHUNK = 8 * TILE;      /* tokens of a tile, and of the longest chunk */
constexpr int THREADS = 32 * GROUPS;
constexpr int RANGES = 395;                   /* three CTAs on each of 132 multiprocessors, but for the scout */
constexpr int MOST = 4096;                    /* ranges at most (bounds the workspace) */
constexpr int ROW_BYTES = GROUPS * DIM * 2;   /* bytes of one token in one cache */
constexpr float SKIP = 40.0f;                 /* weights below 2^-40 of the largest do not fetch V */
constexpr int BATCH = 8;                      /* partials in flight per warp of the combine kernel */
constexpr int JOINERS = 8;                    /* warps of a block of the combine kernel */
constexpr int CARVEOUT = 44;                  /* percent of shared memory, the same for both kernels: they share multiprocessors */
constexpr int SWEPT_ALL = 12288;              /* pages: a dense cache of at most so many is fetched into L2 in one sweep, keys and values, */
constexpr int SWEPT = 12288;                  /* and of a larger one the keys of so many pages */
constexpr int SWEPT_HALF = 5120;              /* the same if at least half of the pages are in use: what fits into the idle time at the start */

static_assert(DIM == 128 && GROUP == 8 && GROUPS == 4 && JOINERS == GROUP, "layout");

struct plan {
	int64_t tokens, ranges;
};

static plan make_plan(const km_args *a)
{
	int64_t total = a->num_kv_indices, tokens = (total + RANGES - 1) / RANGES;

	if (tokens < TILE)
		tokens = TILE;
	if (tokens > CHUNK)
		tokens = CHUNK;
	if (total > (int64_t)CHUNK * MOST)
		tokens = ((total + MOST - 1) / MOST + CHUNK - 1) / CHUNK * CHUNK;
	plan p;
	p.tokens = tokens;
	p.ranges = (total + tokens - 1) / tokens;
	return p;
}

__device__ __forceinline__ float ex2(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

/* Bring the translation of an address, and its line, close. */
__device__ __forceinline__ void touch(const void *p)
{
	asm volatile("prefetch.global.L2 [%0];" : : "l"(p));
}

__device__ __forceinline__ void load(uint4 &r, const char *p)
{
	asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
		     : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
		     : "l"(p));
}

__device__ __forceinline__ int load_int(const int32_t *p)
{
	int x;

	asm volatile("ld.global.nc.s32 %0, [%1];" : "=r"(x) : "l"(p));
	return x;
}

/* 8 bytes that another kernel has just written, unchanged unless `on`. */
__device__ __forceinline__ void load_pair_if(unsigned &x, unsigned &y, const void *p, int on)
{
	asm volatile("{\n"
		     "  .reg .pred p;\n"
		     "  setp.ne.b32 p, %3, 0;\n"
		     "  @p ld.global.cg.v2.u32 {%0, %1}, [%2];\n"
		     "}\n"
		     : "+r"(x), "+r"(y)
		     : "l"(p), "r"(on)
		     : "memory");
}

/* A range's share of the first pages of a cache, into L2. */
__device__ __forceinline__ void sweep(const uint16_t *cache, int rows, int share, int range)
{
	const int first = range * share;
	const char *p = (const char *)cache + (size_t)(unsigned)first * ROW_BYTES;

	for (int left = min(share, rows - first); left > 0; left -= 16, p += 16 * ROW_BYTES)
		asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" : : "l"(p), "r"(min(left, 16) * ROW_BYTES) : "memory");
}

/* Zeros unless `on`. */
__device__ __forceinline__ void load_if(uint4 &r, const char *p, unsigned on)
{
	r = make_uint4(0u, 0u, 0u, 0u);
	asm volatile("{\n"
		     "  .reg .pred p;\n"
		     "  setp.ne.b32 p, %5, 0;\n"
		     "  @p ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];\n"
		     "}\n"
		     : "+r"(r.x), "+r"(r.y), "+r"(r.z), "+r"(r.w)
		     : "l"(p), "r"(on));
}

__device__ __forceinline__ void mma(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
		     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
		     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ unsigned transpose(unsigned x)
{
	unsigned y;

	asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
	return y;
}

__device__ __forceinline__ unsigned pack(float lo, float hi)
{
	__nv_bfloat162 pair = __floats2bfloat162_rn(lo, hi);

	return *reinterpret_cast<unsigned *>(&pair);
}

__device__ __forceinline__ unsigned pack_half(float lo, float hi)
{
	__half2 pair = __floats2half2_rn(lo, hi);

	return *reinterpret_cast<unsigned *>(&pair);
}

__device__ __forceinline__ float2 unpack_half(unsigned x)
{
	return __half22float2(*reinterpret_cast<__half2 *>(&x));
}

/* The power of two by which a partial row with this largest element is divided, so that it fits half precision. */
__device__ __forceinline__ int shrink(float largest)
{
	return max((int)(__float_as_uint(largest) >> 23) - 127 - 13, -60);
}

/* Keys of tokens first + g (r[0..3]) and first + 8 + g (r[4..7]); `k` points at the lane's 16 bytes of page 0. */
__device__ __forceinline__ void load_keys(uint4 (&r)[8], const char *k, const int *page, int first, int last, int g)
{
	const char *lo = k + (size_t)(unsigned)page[min(first + g, last)] * ROW_BYTES;
	const char *hi = k + (size_t)(unsigned)page[min(first + 8 + g, last)] * ROW_BYTES;

#pragma unroll
	for (int j = 0; j < 4; j++)
		load(r[j], lo + 64 * j);
#pragma unroll
	for (int j = 0; j < 4; j++)
		load(r[4 + j], hi + 64 * j);
}

/* Values of all tokens of the last tile. */
__device__ __forceinline__ void load_values(uint4 (&r)[8], const char *v, const int *page, int first, int last, int c)
{
	const char *p0 = v + (size_t)(unsigned)page[min(first + 2 * c, last)] * ROW_BYTES;
	const char *p1 = v + (size_t)(unsigned)page[min(first + 2 * c + 1, last)] * ROW_BYTES;
	const char *p2 = v + (size_t)(unsigned)page[min(first + 2 * c + 8, last)] * ROW_BYTES;
	const char *p3 = v + (size_t)(unsigned)page[min(first + 2 * c + 9, last)] * ROW_BYTES;

	load(r[0], p0);
	load(r[1], p0 + 128);
	load(r[2], p1);
	load(r[3], p1 + 128);
	load(r[4], p2);
	load(r[5], p2 + 128);
	load(r[6], p3);
	load(r[7], p3 + 128);
}

/* The weights of a tile. */
__device__ __forceinline__ void weigh(unsigned (&weights)[2], const float (&s)[4], float m0, float m1, float &l0, float &l1)
{
	float e0 = ex2(s[0] - m0), e1 = ex2(s[1] - m1), e2 = ex2(s[2] - m0), e3 = ex2(s[3] - m1);

	l0 += e0 + e2;
	l1 += e1 + e3;
	weights[0] = transpose(pack(e0, e1));
	weights[1] = transpose(pack(e2, e3));
}

/* Decide which values of a whole tile are needed, start to load them, and make the weights. Returns whether any is needed. */
__device__ __forceinline__ bool prepare(uint4 (&r)[8], unsigned (&weights)[2], const float (&s)[4], float m0, float m1, float &l0, float &l1,
					const char *v, const int *page, int first, int c)
{
	float t0 = m0 - SKIP, t1 = m1 - SKIP;
	unsigned lo = __ballot_sync(~0u, s[0] > t0 || s[1] > t1);
	unsigned hi = __ballot_sync(~0u, s[2] > t0 || s[3] > t1);

	if ((lo | hi) == 0)
		return false;
	lo >>= 8 * c;
	hi >>= 8 * c;

	const char *p0 = v + (size_t)(unsigned)page[first + 2 * c] * ROW_BYTES;
	const char *p1 = v + (size_t)(unsigned)page[first + 2 * c + 1] * ROW_BYTES;
	const char *p2 = v + (size_t)(unsigned)page[first + 2 * c + 8] * ROW_BYTES;
	const char *p3 = v + (size_t)(unsigned)page[first + 2 * c + 9] * ROW_BYTES;

	load_if(r[0], p0, lo & 0x0fu);
	load_if(r[1], p0 + 128, lo & 0x0fu);
	load_if(r[2], p1, lo & 0xf0u);
	load_if(r[3], p1 + 128, lo & 0xf0u);
	load_if(r[4], p2, hi & 0x0fu);
	load_if(r[5], p2 + 128, hi & 0x0fu);
	load_if(r[6], p3, hi & 0xf0u);
	load_if(r[7], p3 + 128, hi & 0xf0u);
	weigh(weights, s, m0, m1, l0, l1);
	return true;
}

/* Four words of the low and the high half of the dimensions, of four tokens: two tiles of 16 dimensions. */
__device__ __forceinline__ void accumulate(float (&even)[4], float (&odd)[4], unsigned a0, unsigned b0, unsigned a1, unsigned b1, unsigned a2,
					   unsigned b2, unsigned a3, unsigned b3, const unsigned (&weights)[2])
{
	mma(even, __byte_perm(a0, a1, 0x5410), __byte_perm(b0, b1, 0x5410), __byte_perm(a2, a3, 0x5410), __byte_perm(b2, b3, 0x5410),
	    weights[0], weights[1]);
	mma(odd, __byte_perm(a0, a1, 0x7632), __byte_perm(b0, b1, 0x7632), __byte_perm(a2, a3, 0x7632), __byte_perm(b2, b3, 0x7632),
	    weights[0], weights[1]);
}

__device__ __forceinline__ void consume(float (&acc)[8][4], const uint4 (&r)[8], const unsigned (&weights)[2])
{
	accumulate(acc[0], acc[1], r[0].x, r[1].x, r[2].x, r[3].x, r[4].x, r[5].x, r[6].x, r[7].x, weights);
	accumulate(acc[2], acc[3], r[0].y, r[1].y, r[2].y, r[3].y, r[4].y, r[5].y, r[6].y, r[7].y, weights);
	accumulate(acc[4], acc[5], r[0].z, r[1].z, r[2].z, r[3].z, r[4].z, r[5].z, r[6].z, r[7].z, weights);
	accumulate(acc[6], acc[7], r[0].w, r[1].w, r[2].w, r[3].w, r[4].w, r[5].w, r[6].w, r[7].w, weights);
}

/*
 * One range of tokens a CTA, one key-value head a warp. A chunk has at most TILES tiles: the code is cold in every call, so that short ranges
 * get an instance without the code of tiles that they do not have. LONG: a range may hold more than one chunk of a sequence.
 * Unless LONG, block 0 is a scout: it runs through all of the code with page 0 and without waiting for indices, so that the instructions
 * come into L2 before the other blocks need them. Its result goes to a slot that nobody reads.
 */
template <int TILES, bool LONG>
__global__ void __launch_bounds__(THREADS, LONG ? 2 : 3)
attend(const uint16_t *q, const uint16_t *k_cache, const uint16_t *v_cache, const int32_t *indptr, const int32_t *indices, int batch, int total,
       int tokens, float scale, uint16_t *output, float *lse, uint16_t *parts, float4 *stats, unsigned *arrived, int cached, int swept, int share,
       int both)
{
	constexpr int SPAN = TILE * TILES, NUMBERS = (SPAN + 31) / 32;
	__shared__ int window[GROUPS][32 * NUMBERS];
	__shared__ int joined[GROUPS][2]; /* the sequences of which this range has a part */
	const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, c = lane & 3;
	const bool scout = !LONG && blockIdx.x == 0;
	const int range = LONG ? (int)blockIdx.x : scout ? (int)gridDim.x - 1 : (int)blockIdx.x - 1;
	const int t0 = range * tokens, t1 = !scout && total - t0 < tokens ? total : t0 + tokens;
	int *pages = window[warp];

	asm volatile("griddepcontrol.launch_dependents;");
	if (lane < 2)
		joined[warp][lane] = -1;

	/* The page numbers of the range, and at the same time the first sequence that ends behind its start. */
	int number[NUMBERS];
	if (!LONG) {
#pragma unroll
		for (int i = 0; i < NUMBERS; i++) {
			int t = t0 + lane + 32 * i;

			number[i] = 0;
			if (!scout)
				number[i] = load_int(indices + min(t, t1 - 1));
		}
	}
	int low = 0, high = scout ? 1 : batch;
	while (high - low > 64) {
		int mid = (low + high) >> 1;

		if (__ldg(indptr + mid + 1) <= t0)
			low = mid + 1;
		else
			high = mid;
	}
	int at0 = low + lane, at1 = at0 + 32;
	int end0 = 0x7fffffff, end1 = 0x7fffffff;
	if (!scout) {
		end0 = load_int(indptr + min(at0, high - 1) + 1);
		end1 = load_int(indptr + min(at1, high - 1) + 1);
	}

	/*
	 * While these are on their way: if nearly every page is in use, fetch pages in physical order into L2; and touch the first 64 MB of
	 * both caches, so that the translations of their addresses are there in time. Likewise all queries, and one address of each
	 * tensor that is written.
	 */
	if (warp == GROUPS - 1) {
		if (lane == 0) {
			sweep(k_cache, swept, share, range);
			if (both)
				sweep(v_cache, swept, share, range);
		}
		__syncwarp();
	} else if (warp < 2 && blockIdx.x < 132) {
		const size_t offset = (size_t)lane << 21;

		if (offset < (size_t)(unsigned)cached * ROW_BYTES)
			touch((const char *)(warp == 0 ? k_cache : v_cache) + offset);
		__syncwarp();
	} else if (warp == 2) {
		const unsigned lines = (unsigned)batch * (HEADS * DIM / 64), line = blockIdx.x + gridDim.x * (unsigned)lane;
		const void *p = parts + 2 * (size_t)range * (HEADS * DIM);

		if (line < lines)
			touch(q + (size_t)line * 64);
		if (lane == 1)
			p = stats + (size_t)range * HEADS;
		if (lane == 2)
			p = output + (size_t)(line < lines ? line : 0u) * 64;
		if (lane == 3)
			p = lse;
		if (lane == 4)
			p = arrived + min(range * 32, batch * GROUPS - 1);
		if (lane < 5)
			touch(p);
		__syncwarp();
	}
	if (at0 >= high)
		end0 = 0x7fffffff;
	if (at1 >= high)
		end1 = 0x7fffffff;
	int b = low + __popc(__ballot_sync(~0u, end0 <= t0)) + __popc(__ballot_sync(~0u, end1 <= t0));
	if (!LONG) {
#pragma unroll
		for (int i = 0; i < NUMBERS; i++)
			pages[lane + 32 * i] = number[i];
		__syncwarp();
	}

	const char *keys = (const char *)k_cache + warp * (DIM * 2) + c * 16;
	const char *values = (const char *)v_cache + warp * (DIM * 2) + g * 16;

#pragma unroll 1
	for (; b < batch; b++) {
		int begin = t0, end = t1 + 1;

		if (!scout) {
			begin = __ldg(indptr + b);
			end = __ldg(indptr + b + 1);
		}
		if (begin >= t1)
			break;
		const int from = max(begin, t0), to = min(end, t1);
		if (from >= to)
			continue;

		const char *row = (const char *)q + ((size_t)b * HEADS + warp * GROUP + g) * (DIM * 2) + c * 16;
		uint4 qf[4];
#pragma unroll
		for (int j = 0; j < 4; j++)
			load(qf[j], row + 64 * j);

		float acc[8][4];
#pragma unroll
		for (int j = 0; j < 8; j++) {
			acc[j][0] = 0.0f;
			acc[j][1] = 0.0f;
			acc[j][2] = 0.0f;
			acc[j][3] = 0.0f;
		}
		float m0 = -INFINITY, m1 = -INFINITY, l0 = 0.0f, l1 = 0.0f;
		int at = from;

#pragma unroll 1
		do {
			const int length = min(to - at, SPAN), last = length - 1;
			/* The tiles of the chunk are numbers skip .. TILES - 1; only the last one can be ragged. */
			const int skip = TILES == 1 ? 0 : TILES - (length + TILE - 1) / TILE, base = -skip * TILE;
			const int *page = LONG ? pages : pages + (at - t0);
			const float old0 = m0, old1 = m1;

			if (LONG) {
				__syncwarp();
				for (int i = lane; i < length; i += 32)
					pages[i] = __ldg(indices + at + i);
				__syncwarp();
			}

			/*
			 * Phase K: all logits of the chunk, in registers. The keys of tile u are in buf[u & 1]; behind those of the last tile come
			 * its values, so that memory does not idle between the phases. The values of tile u are in buf[(u + 1) & 1].
			 */
			float s[TILES][4];
			uint4 buf[2][8];

#pragma unroll
			for (int next = 0; next <= TILES; next++) {
				if (next == TILES)
					load_values(buf[next & 1], values, page, base + (TILES - 1) * TILE, last, c);
				else if (next >= skip)
					load_keys(buf[next & 1], keys, page, base + next * TILE, next == TILES - 1 ? last : 0x7fffffff, g);

				if (next > 0 && next > skip) {
					const int u = next > 0 ? next - 1 : 0;
					float x[4] = {0.0f, 0.0f, 0.0f, 0.0f}, y[4] = {0.0f, 0.0f, 0.0f, 0.0f};

#pragma unroll
					for (int j = 0; j < 4; j++) {
						const uint4 lo = buf[u & 1][j], hi = buf[u & 1][4 + j];

						mma(x, lo.x, hi.x, lo.y, hi.y, qf[j].x, qf[j].y);
						mma(y, lo.z, hi.z, lo.w, hi.w, qf[j].z, qf[j].w);
					}
					const bool in0 = u < TILES - 1 || base + u * TILE + g < length;
					const bool in1 = u < TILES - 1 || base + u * TILE + 8 + g < length;

					s[u][0] = in0 ? (x[0] + y[0]) * scale : -INFINITY;
					s[u][1] = in0 ? (x[1] + y[1]) * scale : -INFINITY;
					s[u][2] = in1 ? (x[2] + y[2]) * scale : -INFINITY;
					s[u][3] = in1 ? (x[3] + y[3]) * scale : -INFINITY;
					m0 = fmaxf(m0, fmaxf(s[u][0], s[u][2]));
					m1 = fmaxf(m1, fmaxf(s[u][1], s[u][3]));
				}
			}
#pragma unroll
			for (int o = 4; o < 32; o *= 2) {
				m0 = fmaxf(m0, __shfl_xor_sync(~0u, m0, o));
				m1 = fmaxf(m1, __shfl_xor_sync(~0u, m1, o));
			}

			/* What earlier chunks left is brought to the new maximum. */
			if (LONG) {
				const float f0 = ex2(old0 - m0), f1 = ex2(old1 - m1);

				l0 *= f0;
				l1 *= f1;
#pragma unroll
				for (int j = 0; j < 8; j++) {
					acc[j][0] *= f0;
					acc[j][1] *= f1;
					acc[j][2] *= f0;
					acc[j][3] *= f1;
				}
			}
			/* Phase V, from the last tile to the first: only rows that carry weight (but for the last tile), two tiles in flight. */
			unsigned weights[2][2];
			bool used[2] = {true, false};

			if (TILES >= 2 && TILES - 2 >= skip)
				used[1] = prepare(buf[(TILES + 1) & 1], weights[1], s[TILES >= 2 ? TILES - 2 : 0], m0, m1, l0, l1, values, page,
						  base + (TILES - 2) * TILE, c);
			weigh(weights[0], s[TILES - 1], m0, m1, l0, l1);

#pragma unroll
			for (int i = 0; i < TILES; i++) {
				const int u = TILES - 1 - i;

				if (used[i & 1])
					consume(acc, buf[(TILES + i) & 1], weights[i & 1]);
				used[i & 1] = false;
				if (u >= 2) {
					if (u - 2 >= skip)
						used[i & 1] = prepare(buf[(TILES + i) & 1], weights[i & 1], s[u >= 2 ? u - 2 : 0], m0, m1, l0, l1, values,
								      page, base + (u - 2) * TILE, c);
				}
			}
			at += SPAN;
		} while (LONG && at < to);

#pragma unroll
		for (int o = 4; o < 32; o *= 2) {
			l0 += __shfl_xor_sync(~0u, l0, o);
			l1 += __shfl_xor_sync(~0u, l1, o);
		}

		/*
		 * A whole sequence goes to the output, another to a slot: half precision, not yet divided by the sum, but every row divided by a
		 * power of two 2^e. With the sum divided likewise and e added to the maximum that is the same partial with another reference.
		 * At most two segments of a range are not whole: one that begins with it and one that begins later.
		 */
		const int head = warp * GROUP + 2 * c;
		const bool whole = begin >= t0 && end <= t1;

		if (whole) {
			const float r0 = 1.0f / l0, r1 = 1.0f / l1;
			uint16_t *to0 = output + (size_t)b * (HEADS * DIM) + head * DIM + 8 * g;
			uint16_t *to1 = to0 + DIM;

			*(uint4 *)to0 = make_uint4(pack(acc[0][0] * r0, acc[1][0] * r0), pack(acc[2][0] * r0, acc[3][0] * r0),
						   pack(acc[4][0] * r0, acc[5][0] * r0), pack(acc[6][0] * r0, acc[7][0] * r0));
			*(uint4 *)(to0 + 64) = make_uint4(pack(acc[0][2] * r0, acc[1][2] * r0), pack(acc[2][2] * r0, acc[3][2] * r0),
							  pack(acc[4][2] * r0, acc[5][2] * r0), pack(acc[6][2] * r0, acc[7][2] * r0));
			*(uint4 *)to1 = make_uint4(pack(acc[0][1] * r1, acc[1][1] * r1), pack(acc[2][1] * r1, acc[3][1] * r1),
						   pack(acc[4][1] * r1, acc[5][1] * r1), pack(acc[6][1] * r1, acc[7][1] * r1));
			*(uint4 *)(to1 + 64) = make_uint4(pack(acc[0][3] * r1, acc[1][3] * r1), pack(acc[2][3] * r1, acc[3][3] * r1),
							  pack(acc[4][3] * r1, acc[5][3] * r1), pack(acc[6][3] * r1, acc[7][3] * r1));
			if (g == 0)
				*(float2 *)(lse + (size_t)b * HEADS + head) = make_float2(m0 + log2f(l0), m1 + log2f(l1));
		} else {
			const size_t slot = 2 * (size_t)range + (from > t0 ? 1 : 0);
			float a0 = 0.0f, a1 = 0.0f;

#pragma unroll
			for (int j = 0; j < 8; j++) {
				a0 = fmaxf(a0, fmaxf(fabsf(acc[j][0]), fabsf(acc[j][2])));
				a1 = fmaxf(a1, fmaxf(fabsf(acc[j][1]), fabsf(acc[j][3])));
			}
#pragma unroll
			for (int o = 4; o < 32; o *= 2) {
				a0 = fmaxf(a0, __shfl_xor_sync(~0u, a0, o));
				a1 = fmaxf(a1, __shfl_xor_sync(~0u, a1, o));
			}
			const int e0 = shrink(a0), e1 = shrink(a1);
			const float r0 = __uint_as_float((unsigned)(127 - e0) << 23), r1 = __uint_as_float((unsigned)(127 - e1) << 23);
			uint16_t *to0 = parts + slot * (HEADS * DIM) + head * DIM + 8 * g;
			uint16_t *to1 = to0 + DIM;

			*(uint4 *)to0 = make_uint4(pack_half(acc[0][0] * r0, acc[1][0] * r0), pack_half(acc[2][0] * r0, acc[3][0] * r0),
						   pack_half(acc[4][0] * r0, acc[5][0] * r0), pack_half(acc[6][0] * r0, acc[7][0] * r0));
			*(uint4 *)(to0 + 64) = make_uint4(pack_half(acc[0][2] * r0, acc[1][2] * r0), pack_half(acc[2][2] * r0, acc[3][2] * r0),
							  pack_half(acc[4][2] * r0, acc[5][2] * r0), pack_half(acc[6][2] * r0, acc[7][2] * r0));
			*(uint4 *)to1 = make_uint4(pack_half(acc[0][1] * r1, acc[1][1] * r1), pack_half(acc[2][1] * r1, acc[3][1] * r1),
						   pack_half(acc[4][1] * r1, acc[5][1] * r1), pack_half(acc[6][1] * r1, acc[7][1] * r1));
			*(uint4 *)(to1 + 64) = make_uint4(pack_half(acc[0][3] * r1, acc[1][3] * r1), pack_half(acc[2][3] * r1, acc[3][3] * r1),
							  pack_half(acc[4][3] * r1, acc[5][3] * r1), pack_half(acc[6][3] * r1, acc[7][3] * r1));
			if (g == 0)
				stats[(slot * HEADS + head) / 2] = make_float4(m0 + (float)e0, l0 * r0, m1 + (float)e1, l1 * r1);
		}
		if (lane == 0 && !whole && !scout)
			joined[warp][from > t0 ? 1 : 0] = b;
		if (end >= t1)
			break;
	}

	/* Report the parts, both after one fence of every lane that has written. */
	__threadfence();
	__syncwarp();
	if (lane < 2) {
		const int of = joined[warp][lane];

		if (of >= 0)
			atomicAdd(arrived + (size_t)of * GROUPS + warp, 1u);
	}
}

/*
 * Joins the partial results of the sequences that cross a border of ranges, and writes those of empty ones. 1 << shift warps share a row
 * (b * HEADS + head); all rows of a block belong to one sequence and one key-value head, whose counter tells when all parts are there.
 * The code is run once without data before that, so that its instructions are in the caches when the last part arrives.
 */
__global__ void __launch_bounds__(32 * JOINERS, 4) combine(const int32_t *indptr, const uint2 *parts, const float2 *stats, unsigned *arrived,
							       int tokens, int shift,
							   uint16_t *output, float *lse)
{
	__shared__ float4 sums[JOINERS][32];
	__shared__ float2 tops[JOINERS];
	const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = 1 << shift, part = warp & (warps - 1);
	const int row = (int)blockIdx.x * (JOINERS >> shift) + (warp >> shift);
	const int b = row / HEADS, head = row % HEADS;
	const int from = __ldg(indptr + b), to = __ldg(indptr + b + 1);
	const int first = from / tokens, count = to > from ? (to - 1) / tokens - first + 1 : 0;
	const int odd = from > first * tokens ? 1 : 0;
	/* A lane has four dimensions: 8 bytes of a partial row. */
	uint16_t *out = output + (size_t)row * DIM + 4 * lane;

	/* Translations of what is read and written below, while attend runs. */
	if (warp == 0 && count != 1) {
		const size_t slot = (2 * (size_t)first + (size_t)odd) * HEADS + head;

		if (lane == 0)
			touch(out);
		if (lane == 1)
			touch(lse + row);
		if (lane == 2 && count > 1)
			touch(stats + slot);
		if (lane == 3 && count > 1)
			touch(parts + slot * (DIM / 4));
		__syncwarp();
	}

	if (count == 0) {
		if (part == 0) {
			*(uint2 *)out = make_uint2(0u, 0u);
			if (lane == 0)
				lse[row] = -INFINITY;
		}
	} else if (count > 1) {
		unsigned *counter = arrived + (size_t)b * GROUPS + head / GROUP;
		unsigned old = 0;
		int pass = 0;

		asm volatile("" : "+r"(pass));
#pragma unroll 1
		for (; pass < 2; pass++) {
			/* Pass 0 makes one turn that loads nothing, and its result is dropped. */
			const int stop = pass ? count : part + 1, valid = pass ? count : 0;

			if (pass) {
				if (threadIdx.x == 0) {
					unsigned seen;

					do {
						asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
					} while ((seen & 0xffffu) != (unsigned)count);
				}
				__syncthreads();
				if (threadIdx.x == 0)
					old = atomicAdd(counter, 0x10000u);
			}

			float m = -INFINITY, l = 0.0f;
			float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

#pragma unroll 1
			for (int k = part; k < stop; k += warps * BATCH) {
				/* Lane u of every eight holds the statistics of partial k + u * warps. */
				const int own = k + (lane & (BATCH - 1)) * warps;
				unsigned st0 = 0xff800000u, st1 = 0u; /* -inf and 0 */
				uint2 x[BATCH];

				load_pair_if(st0, st1, stats + (2 * (size_t)(first + own) + (size_t)(own == 0 ? odd : 0)) * HEADS + head,
					     own < valid ? 1 : 0);
#pragma unroll
				for (int u = 0; u < BATCH; u++) {
					const int i = k + u * warps;

					x[u] = make_uint2(0u, 0u);
					load_pair_if(x[u].x, x[u].y,
						     parts + ((2 * (size_t)(first + i) + (size_t)(i == 0 ? odd : 0)) * HEADS + head) * (DIM / 4) + lane,
						     i < valid ? 1 : 0);
				}
				const float2 st = make_float2(__uint_as_float(st0), __uint_as_float(st1));
				float top = st.x;
#pragma unroll
				for (int o = 1; o < BATCH; o *= 2)
					top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
				top = fmaxf(top, m);

				const float f = ex2(m - top), weight = ex2(st.x - top);
				float more = weight * st.y;
#pragma unroll
				for (int o = 1; o < BATCH; o *= 2)
					more += __shfl_xor_sync(~0u, more, o);
				l = l * f + more;
				sum.x *= f;
				sum.y *= f;
				sum.z *= f;
				sum.w *= f;
#pragma unroll
				for (int u = 0; u < BATCH; u++) {
					const float w = __shfl_sync(~0u, weight, u);

					const float2 lo = unpack_half(x[u].x), hi = unpack_half(x[u].y);

					sum.x += w * lo.x;
					sum.y += w * lo.y;
					sum.z += w * hi.x;
					sum.w += w * hi.y;
				}
				m = top;
			}
			sums[warp][lane] = sum;
			if (lane == 0)
				tops[warp] = make_float2(m, l);
			__syncthreads();
			if (part == 0) {
				float top = -INFINITY, all = 0.0f;
				float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

				for (int w = 0; w < warps; w++)
					top = fmaxf(top, tops[warp + w].x);
				for (int w = 0; w < warps; w++) {
					const float f = ex2(tops[warp + w].x - top);
					const float4 x = sums[warp + w][lane];

					all += f * tops[warp + w].y;
					v.x += f * x.x;
					v.y += f * x.y;
					v.z += f * x.z;
					v.w += f * x.w;
				}
				const float r = 1.0f / all, log = top + log2f(all);
				const uint2 result = make_uint2(pack(v.x * r, v.y * r), pack(v.z * r, v.w * r));

				if (pass) {
					*(uint2 *)out = result;
					if (lane == 0)
						lse[row] = log;
				}
			}
		}
		/* The last of the blocks that have seen the counter sets it back for the next call. */
		if (threadIdx.x == 0 && (old >> 16) == (unsigned)warps - 1u)
			*(volatile unsigned *)counter = 0u;
	}

	/* This grid does not end before attend has. */
	if (blockIdx.x == 0)
		asm volatile("griddepcontrol.wait;" ::: "memory");
}

template <int TILES, bool LONG>
static cudaError_t carve()
{
	return cudaFuncSetAttribute(attend<TILES, LONG>, cudaFuncAttributePreferredSharedMemoryCarveout, CARVEOUT);
}

template <int TILES, bool LONG>
static void start(const km_args *a, const plan &p, uint16_t *parts, float4 *stats, unsigned *arrived, int cached, int swept, int share,
		  int both)
{
	const float scale = a->sm_scale * 1.44269504088896f;

	attend<TILES, LONG><<<(unsigned)(p.ranges + (LONG ? 0 : 1)), THREADS, 0, (cudaStream_t)a->stream>>>(
		a->q, a->k_cache, a->v_cache, a->kv_indptr, a->kv_indices, (int)a->batch_size, (int)a->num_kv_indices, (int)p.tokens, scale,
		a->output, a->lse, parts, stats, arrived, cached, swept, share, both);
}

} /* namespace */

size_t km_workspace(const struct km_args *a)
{
	const plan p = make_plan(a);

	/* Two slots a range, and those of the scout; then a counter for every sequence and key-value head, zero between calls. */
	return (size_t)(2 * (p.ranges + 1)) * HEADS * (DIM * sizeof(uint16_t) + sizeof(float2)) +
	       (size_t)a->batch_size * GROUPS * sizeof(unsigned);
}

int km_init(const struct km_args *a)
{
	(void)a;
	cudaError_t error = carve<1, false>();

	if (error == cudaSuccess)
		error = carve<2, false>();
	if (error == cudaSuccess)
		error = carve<3, false>();
	if (error == cudaSuccess)
		error = carve<4, false>();
	if (error == cudaSuccess)
		error = carve<5, false>();
	if (error == cudaSuccess)
		error = carve<6, false>();
	if (error == cudaSuccess)
		error = carve<8, false>();
	if (error == cudaSuccess)
		error = carve<8, true>();
	if (error == cudaSuccess)
		error = cudaFuncSetAttribute(combine, cudaFuncAttributePreferredSharedMemoryCarveout, CARVEOUT);
	return (int)error;
}

int km_run(const struct km_args *a)
{
	cudaStream_t stream = (cudaStream_t)a->stream;
	const plan p = make_plan(a);
	uint16_t *parts = (uint16_t *)a->workspace;
	float4 *stats = (float4 *)(parts + (size_t)(2 * (p.ranges + 1)) * HEADS * DIM);
	unsigned *arrived = (unsigned *)((float2 *)stats + (size_t)(2 * (p.ranges + 1)) * HEADS);

	if (a->batch_size <= 0)
		return 0;
	if (p.ranges > 0) {
		/* Pages to sweep before the page numbers are known: worth it if nearly all are in use and all blocks run at once. */
		const int cached = (int)a->num_pages;
		int swept = 0, both = 0;

		if (p.ranges <= RANGES && a->num_kv_indices * 8 >= a->num_pages * 7) {
			both = a->num_pages <= SWEPT_ALL ? 1 : 0;
			swept = a->num_pages < SWEPT ? cached : SWEPT;
		} else if (p.ranges <= RANGES && a->num_kv_indices * 2 >= a->num_pages) {
			swept = a->num_pages < SWEPT_HALF ? cached : SWEPT_HALF;
		}
		const int share = (int)((swept + p.ranges - 1) / p.ranges);

		if (p.tokens <= 1 * TILE)
			start<1, false>(a, p, parts, stats, arrived, cached, swept, share, both);
		else if (p.tokens <= 2 * TILE)
			start<2, false>(a, p, parts, stats, arrived, cached, swept, share, both);
		else if (p.tokens <= 3 * TILE)
			start<3, false>(a, p, parts, stats, arrived, cached, swept, share, both);
		else if (p.tokens <= 4 * TILE)
			start<4, false>(a, p, parts, stats, arrived, cached, swept, share, both);
		else if (p.tokens <= 5 * TILE)
			start<5, false>(a, p, parts, stats, arrived, cached, swept, share, both);
		else if (p.tokens <= 6 * TILE)
			start<6, false>(a, p, parts, stats, arrived, cached, swept, share, both);
		else if (p.tokens <= 8 * TILE)
			start<8, false>(a, p, parts, stats, arrived, cached, swept, share, both);
		else
			start<8, true>(a, p, parts, stats, arrived, cached, swept, share, both);

		cudaError_t error = cudaGetLastError();
		if (error != cudaSuccess)
			return (int)error;
	}

	/* As many warps a row as keep all blocks resident at once: 8, 4, 2 or 1. */
	int shift = a->batch_size <= 16 ? 3 : a->batch_size <= 32 ? 2 : a->batch_size <= 64 ? 1 : 0;
	cudaLaunchConfig_t config = {};
	cudaLaunchAttribute attribute[1];

	attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attribute[0].val.programmaticStreamSerializationAllowed = 1;
	config.gridDim = dim3((unsigned)(a->batch_size * (HEADS / JOINERS)) << shift, 1, 1);
	config.blockDim = dim3(32 * JOINERS, 1, 1);
	config.dynamicSmemBytes = 0;
	config.stream = stream;
	config.attrs = attribute;
	config.numAttrs = p.ranges > 0 ? 1 : 0;

	const int32_t *indptr = a->kv_indptr;
	const uint2 *from = (const uint2 *)parts;
	const float2 *tops = (const float2 *)stats;
	int tokens = (int)p.tokens;
	uint16_t *output = a->output;
	float *lse = a->lse;
	cudaError_t error = cudaLaunchKernelEx(&config, combine, indptr, from, tops, arrived, tokens, shift, output, lse);
	if (error != cudaSuccess)
		return (int)error;
	return (int)cudaGetLastError();
}
