#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>

/* Flat split of tiles: sequence b has its first tile at indptr[b] / TILE + b in a row of tiles, in which no two sequences share one
 * and at most one stays empty after each; CTA i owns the tiles [i * tiles, (i + 1) * tiles), so none has more turns than that. The
 * tokens of a CTA are consecutive. Its warp w has the key-value head w.
 * S^T = K Q^T and O^T = V^T P^T by mma.m16n8k16 (tokens or dims as M, the 8 query heads of the group as N), operands loaded from
 * global memory straight into fragments. Sequences that several CTAs share leave partials, which a second kernel joins: rows of
 * fp16, scaled by a power of two of their own to use its range, with maximum and sum scaled alike. No word of them is zero, so the
 * second kernel sees in the words themselves what has arrived; it sets them to zero again.
 * With enough sequences there is no second kernel: all CTAs are resident at once, and those of a sequence share its heads to join.
 * If nearly all pages of the cache are in use, some are prefetched in their physical order while the indices are on their way.
 * A few short sequences take one launch instead: a cluster for each sequence and key-value head, joined in shared memory. */

enum {
	DIM = KM_AXIS_HEAD_DIM, HEADS = KM_AXIS_NUM_QO_HEADS, GROUPS = KM_AXIS_NUM_KV_HEADS, GROUP = HEADS / GROUPS,
	PAGE = GROUPS * DIM,   /* elements of a page */
	TILE = 16,             /* tokens of a tile */
	CTAS = 396,            /* three an SM */
	THREADS = 32 * GROUPS,
	SPLIT = GROUP,         /* CTAs of a cluster for short sequences, each of which finishes one head */
	SMALL_WARPS = 8,
	SLOTS = SPLIT * SMALL_WARPS,
	SMALL_BATCH = 4, SMALL_TOKENS = 2048,
	ALL_PAGES = 10240,     /* a dense cache up to this size is prefetched as a whole, */
	SOME_PAGES = 5120,     /* of a larger one this much */
	FEW_PAGES = 2048,      /* and this much if only most of it is in use */
	OWN_BATCH = 8,         /* from so many sequences on, attend joins the partials itself */
	DEPTH = 12,            /* partials in flight of half a warp that joins */
	ROOM = 330,            /* with fewer CTAs than this, the blocks that join are there from the start */
};

#define FULL 0xffffffffu
#define LOG2E 1.4426950408889634f

struct work {
	const uint16_t *q, *k, *v;
	const int *indptr, *indices;
	uint16_t *output;
	float *lse;
	uint16_t *part;        /* [slot][HEADS][DIM]: fp16, weighted sum of the values of a slot / 2^e */
	float2 *part_ml;       /* [slot][HEADS]: maximum (base 2) + e, sum / 2^e */
	int64_t elements;      /* of each cache */
	int batch, tokens, tiles; /* tiles of a CTA */
	int ahead, limit;      /* pages that a CTA prefetches, that all prefetch together */
	int early;             /* the blocks that join start long before there is anything to join */
	float scale;           /* sm_scale * log2(e) */
};

__device__ __forceinline__ void load16(uint32_t (&x)[4], const uint16_t *p)
{
	asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
		     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "l"(p));
}

__device__ __forceinline__ int load_index(const int *p)
{
	int x;

	asm volatile("ld.global.nc.s32 %0, [%1];" : "=r"(x) : "l"(p));
	return x;
}

__device__ __forceinline__ void prefetch(const void *p)
{
	asm volatile("prefetch.global.L2 [%0];" : : "l"(p));
}

__device__ __forceinline__ void prefetch_bulk(const void *p, unsigned bytes)
{
	asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" : : "l"(p), "r"(bytes) : "memory");
}

/* Visit the first 2 MB pages of a cache, so that their addresses are translated when the indices arrive. */
__device__ __forceinline__ void translate(const uint16_t *cache, int64_t elements, int lane)
{
	const int64_t at = (int64_t)lane << 20;

	if (at < elements)
		prefetch(cache + at);
}

__device__ __forceinline__ float exp2_fast(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

__device__ __forceinline__ void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
		     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
		     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t transpose(uint32_t x)
{
	uint32_t y;

	asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
	return y;
}

/* Two floats as bf16, the first in the low half. */
__device__ __forceinline__ uint32_t pack(float low, float high)
{
	uint32_t y;

	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
	return y;
}

/* Two floats as fp16, the first in the low half, not as the word zero: minus zeros instead. */
__device__ __forceinline__ uint32_t mark(float low, float high)
{
	uint32_t x;

	asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
	return x ? x : 0x80008000u;
}

__device__ __forceinline__ float2 unpack(uint32_t x)
{
	float2 y;

	asm("{\n\t.reg .b16 lo, hi;\n\tmov.b32 {lo, hi}, %2;\n\tcvt.f32.f16 %0, lo;\n\tcvt.f32.f16 %1, hi;\n\t}"
	    : "=f"(y.x), "=f"(y.y) : "r"(x));
	return y;
}

/* The e for which x / 2^e lies in [2^14, 2^15); never below -40. */
__device__ __forceinline__ int exponent(float x)
{
	return max((int)(__float_as_uint(x) >> 23) - 141, -40);
}

/* 2^-e */
__device__ __forceinline__ float inverse(int e)
{
	return __uint_as_float((uint32_t)(127 - e) << 23);
}

__device__ __forceinline__ float mark(float x)
{
	return x == 0 ? 1e-30f : x;
}

__device__ __forceinline__ void store4(void *p, uint32_t x, uint32_t y, uint32_t z, uint32_t w)
{
	asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" : : "l"(p), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}

__device__ __forceinline__ void store2(void *p, uint32_t x, uint32_t y)
{
	asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" : : "l"(p), "r"(x), "r"(y) : "memory");
}

__device__ __forceinline__ uint2 poll2(const void *p)
{
	uint2 x;

	asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(p) : "memory");
	return x;
}

__device__ __forceinline__ uint32_t poll1(const void *p)
{
	uint32_t x;

	asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
	return x;
}

__device__ __forceinline__ uint4 poll4(const void *p)
{
	uint4 x;

	asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
		     : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(p) : "memory");
	return x;
}

/* Rows g and g + 8 of the tile at t (segment up to stop); the window holds the indices from base on, one a lane. */
__device__ __forceinline__ void load_keys(uint32_t (&x)[4][4], uint32_t (&y)[4][4], const uint16_t *keys, int window, int base, int t,
					  int stop, int g)
{
	int p0 = __shfl_sync(FULL, window, min(t + g, stop - 1) - base);
	int p1 = __shfl_sync(FULL, window, min(t + g + 8, stop - 1) - base);
	const uint16_t *r0 = keys + (int64_t)p0 * PAGE, *r1 = keys + (int64_t)p1 * PAGE;

#pragma unroll
	for (int j = 0; j < 4; j++) {
		load16(x[j], r0 + 32 * j);
		load16(y[j], r1 + 32 * j);
	}
}

__device__ __forceinline__ void load_query(uint32_t (&x)[4][4], const uint16_t *queries, int b)
{
	const uint16_t *r = queries + (int64_t)b * (HEADS * DIM);

#pragma unroll
	for (int j = 0; j < 4; j++)
		load16(x[j], r + 32 * j);
}

/* The last sequence whose first tile is not after a tile: number, start, end. */
struct place {
	int b, from, to;
};

/* Sequence k starts at token e, which is where k - 1 ends. */
__device__ __forceinline__ void visit(struct place &x, int k, int e, int tile)
{
	const bool before = (int)((unsigned)e / TILE) + k <= tile;

	x.b += before ? 1 : 0;
	x.from = max(x.from, before ? e : 0);
	x.to = min(x.to, before ? 0x7fffffff : e);
}

/* What the lanes found together, and the token at which the tile starts. */
__device__ __forceinline__ int token(struct place &x, int tile)
{
	x.b = __reduce_add_sync(FULL, x.b);
	x.from = __reduce_max_sync(FULL, x.from);
	x.to = __reduce_min_sync(FULL, x.to);
	return min((tile - x.b) * TILE + (x.from & (TILE - 1)), x.to);
}

/* This CTA's share of the empty sequences; a warp has the heads of its group. */
__device__ __forceinline__ void clear_empty(const struct work &a, int warp, int lane)
{
#pragma unroll 1
	for (int b = (int)blockIdx.x; b < a.batch; b += (int)gridDim.x) {
		if (__ldg(a.indptr + b) >= __ldg(a.indptr + b + 1)) {
			const int64_t row = (int64_t)b * HEADS + warp * GROUP;
			uint4 *out = (uint4 *)(a.output + row * DIM);

#pragma unroll 1
			for (int i = lane; i < GROUP * DIM / 8; i += 32)
				out[i] = make_uint4(0, 0, 0, 0);
			if (lane < GROUP)
				a.lse[row + lane] = -INFINITY;
		}
	}
}

/* The n CTAs that share sequence b divide the heads of each group among their warps for this group; half a warp reads a partial.
 * Each word is asked for until it is there, by the one thread that sets it to zero again. All CTAs must be resident. */
__device__ __forceinline__ void join_share(const struct work &a, int b, int warp, int lane)
{
	const int from = __ldg(a.indptr + b), to = __ldg(a.indptr + b + 1);
	const unsigned tile = (unsigned)from / TILE + (unsigned)b, tiles = (unsigned)a.tiles;
	const int first = (int)(tile / tiles), last = (int)((tile + (unsigned)(to - from - 1) / TILE) / tiles), n = last - first + 1;
	const int half = lane >> 4, own = lane & 15;

	if (n <= 1)
		return;
#pragma unroll 1
	for (int h = (int)blockIdx.x - first; h < GROUP; h += n) {
		const int head = warp * GROUP + h;
		float m = -INFINITY, l = 0, v[8] = {0, 0, 0, 0, 0, 0, 0, 0};

#pragma unroll 1
		for (int k = first; k <= last; k += 2 * DEPTH) {
			const int count = min(last - k + 1, 2 * DEPTH);
			float2 *ml = a.part_ml + ((int64_t)(k + lane) + b) * HEADS + head;
			uint16_t *part = a.part + (((int64_t)(k + half) + b) * HEADS + head) * DIM + own * 8;
			/* What is not there: weight 0 and minus zeros. */
			uint2 stat = lane < count ? make_uint2(0, 0) : make_uint2(0xff800000u, 0x3f800000u);
			uint4 x[DEPTH];

#pragma unroll
			for (int u = 0; u < DEPTH; u++) {
				const uint32_t word = 2 * u + half < count ? 0 : 0x80008000u;

				x[u] = make_uint4(word, word, word, word);
			}
#pragma unroll 1
			for (;;) {
				if (stat.x == 0 || stat.y == 0)
					stat = poll2(ml);
#pragma unroll
				for (int u = 0; u < DEPTH; u++)
					if (x[u].x == 0 || x[u].y == 0 || x[u].z == 0 || x[u].w == 0)
						x[u] = poll4(part + u * (2 * HEADS * DIM));

				bool ready = stat.x != 0 && stat.y != 0;

#pragma unroll
				for (int u = 0; u < DEPTH; u++)
					ready = ready & (x[u].x != 0) & (x[u].y != 0) & (x[u].z != 0) & (x[u].w != 0);
				if (__all_sync(FULL, ready))
					break;
				__nanosleep(32);
			}

			/* As it was, for the next call. */
			if (lane < count)
				store2(ml, 0, 0);
#pragma unroll
			for (int u = 0; u < DEPTH; u++)
				if (2 * u + half < count)
					store4(part + u * (2 * HEADS * DIM), 0, 0, 0, 0);

			float top = __uint_as_float(stat.x);

#pragma unroll
			for (int o = 16; o > 0; o /= 2)
				top = fmaxf(top, __shfl_xor_sync(FULL, top, o));
			top = fmaxf(top, m);

			const float f = exp2_fast(m - top), weight = exp2_fast(__uint_as_float(stat.x) - top);

			m = top;
			l = l * f + weight * __uint_as_float(stat.y);
#pragma unroll
			for (int i = 0; i < 8; i++)
				v[i] *= f;
#pragma unroll
			for (int u = 0; u < DEPTH; u++) {
				const float w = __shfl_sync(FULL, weight, 2 * u + half);
				const float2 y0 = unpack(x[u].x), y1 = unpack(x[u].y), y2 = unpack(x[u].z), y3 = unpack(x[u].w);

				v[0] += w * y0.x;
				v[1] += w * y0.y;
				v[2] += w * y1.x;
				v[3] += w * y1.y;
				v[4] += w * y2.x;
				v[5] += w * y2.y;
				v[6] += w * y3.x;
				v[7] += w * y3.y;
			}
		}
#pragma unroll
		for (int o = 16; o > 0; o /= 2)
			l += __shfl_xor_sync(FULL, l, o);
#pragma unroll
		for (int i = 0; i < 8; i++)
			v[i] += __shfl_xor_sync(FULL, v[i], 16);

		const int64_t row = (int64_t)b * HEADS + head;
		const float r = 1.0f / l;

		if (half == 0)
			*(uint4 *)(a.output + row * DIM + own * 8) = make_uint4(pack(v[0] * r, v[1] * r), pack(v[2] * r, v[3] * r),
										  pack(v[4] * r, v[5] * r), pack(v[6] * r, v[7] * r));
		if (lane == 0)
			a.lse[row] = m + log2f(l);
	}
}

/* OWN: the CTAs join the partials themselves and write the empty sequences; otherwise a second kernel does. */
template <bool OWN>
static __global__ void __launch_bounds__(THREADS, 3) attend(const struct work a)
{
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = lane & 3;
	const int tile0 = (int)blockIdx.x * a.tiles, tile1 = tile0 + a.tiles;

	if (!OWN)
		asm volatile("griddepcontrol.launch_dependents;" ::: "memory");

	/* The ends of the first 64 sequences. */
	int e0 = 0x7fffffff, e1 = 0x7fffffff;

	if (1 + lane <= a.batch)
		e0 = load_index(a.indptr + 1 + lane);
	if (33 + lane <= a.batch)
		e1 = load_index(a.indptr + 33 + lane);

	/* Until they arrive: all indices and queries into the second-level cache, where a CTA finds what others have asked for; pages of
	 * a dense cache, whoever needs them; and translations. */
	if (warp < 2) {
		const int page = (int)blockIdx.x * a.ahead, n = min(a.ahead, a.limit - page);

		if (n > 0 && lane == 0)
			prefetch_bulk((warp == 0 ? a.k : a.v) + (int64_t)page * PAGE, (unsigned)n * (PAGE * 2));
	} else if (warp == 2) {
#pragma unroll 1
		for (int i = tile0 * TILE + lane * 8; i < min(tile1 * TILE, a.tokens); i += 32 * 8)
			prefetch(a.indices + i);
		translate(a.k, a.elements, lane);
	} else {
		translate(a.v, a.elements, lane);
		if (a.batch <= 128) {
#pragma unroll 1
			for (int i = (int)blockIdx.x * 32 + lane; i < a.batch * (HEADS * DIM / 16); i += (int)gridDim.x * 32)
				prefetch(a.q + i * 16);
		}
		if (lane == 0)
			prefetch(a.part + (int64_t)blockIdx.x * (HEADS * DIM));
		if (OWN) {
			/* Translations for the stores at the end. */
			if (lane == 1)
				prefetch(a.output);
			if (lane == 2)
				prefetch(a.lse);
			if (lane == 3)
				prefetch(a.part_ml + (int64_t)blockIdx.x * HEADS);
		}
	}

	/* The tokens of this CTA. */
	struct place x = {0, 0, 0x7fffffff}, y = x;

	visit(x, 1 + lane, e0, tile0);
	visit(y, 1 + lane, e0, tile1);
	visit(x, 33 + lane, e1, tile0);
	visit(y, 33 + lane, e1, tile1);
#pragma unroll 4
	for (int k0 = 65; k0 <= a.batch; k0 += 32) {
		int k = k0 + lane, e = 0x7fffffff;

		if (k <= a.batch)
			e = __ldg(a.indptr + k);
		visit(x, k, e, tile0);
		visit(y, k, e, tile1);
	}

	const int begin = min(a.tokens, token(x, tile0)), end = min(a.tokens, token(y, tile1));

	if (begin >= end) {
		if (OWN)
			clear_empty(a, warp, lane);
		return;
	}

	/* Two windows of indices: `older` starts at the tile before, `newer` at the present tile. */
	int older = load_index(a.indices + min(begin + lane, end - 1)), newer = older, older_base = begin;

	/* The sequence of token `begin`: its number, start and end; the one found may have ended just before. */
	int b = x.b, from = x.from, to = x.to;

	while (to <= begin) {
		b++;
		from = to;
		to = __ldg(a.indptr + b + 1);
	}

	const int b_first = b;
	const uint16_t *keys = a.k + warp * DIM + c * 8, *values = a.v + warp * DIM + g * 8;
	const uint16_t *queries = a.q + (warp * GROUP + g) * DIM + c * 8;
	int t = begin, stop = min(to, end);
	bool whole = from == begin && to <= end; /* the sequence lies wholly in this CTA's range */
	uint32_t kx[4][4], ky[4][4], q[4][4];
	float acc[8][4], m0 = -INFINITY, m1 = -INFINITY, l0 = 0, l1 = 0;

#pragma unroll
	for (int j = 0; j < 8; j++)
		acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0;
	load_keys(kx, ky, keys, newer, begin, t, stop, g);
	load_query(q, queries, b);
	if (OWN)
		clear_empty(a, warp, lane);

#pragma unroll 1
	for (;;) {
		/* Values of tokens 2c, 2c + 1, 2c + 8, 2c + 9: dims 8g.. and 64 + 8g... */
		uint32_t lo[4][4], hi[4][4];

#pragma unroll
		for (int r = 0; r < 4; r++) {
			int row = 2 * c + (r & 1) + (r >> 1) * 8;
			int p = __shfl_sync(FULL, older, min(t + row, stop - 1) - older_base);
			const uint16_t *v = values + (int64_t)p * PAGE;

			load16(lo[r], v);
			load16(hi[r], v + 64);
		}

		/* Logits: tokens g and g + 8, heads 2c and 2c + 1. */
		float s[4] = {0, 0, 0, 0}, s2[4] = {0, 0, 0, 0};

#pragma unroll
		for (int j = 0; j < 4; j++) {
			mma(s, kx[j][0], ky[j][0], kx[j][1], ky[j][1], q[j][0], q[j][1]);
			mma(s2, kx[j][2], ky[j][2], kx[j][3], ky[j][3], q[j][2], q[j][3]);
		}

		/* The next tile, its keys, and the window after it. */
		const bool ends = t + TILE >= stop;
		int next = t + TILE, next_stop = stop, next_b = b, newest = newer;
		bool next_whole = whole, more = true;

		if (ends) {
			next = stop;
			more = stop < end;
			if (more) {
				int e;

				do {
					next_b++;
					e = __ldg(a.indptr + next_b + 1);
				} while (e <= next);
				next_whole = e <= end;
				next_stop = min(e, end);
			}
		}
		if (more) {
			load_keys(kx, ky, keys, newer, t, next, next_stop, g);
			newest = load_index(a.indices + min(next + lane, end - 1));
			if (ends)
				load_query(q, queries, next_b);
		}

		/* Online softmax in base 2. */
		const bool in0 = t + g < stop, in1 = t + g + 8 < stop;

		s[0] = in0 ? (s[0] + s2[0]) * a.scale : -INFINITY;
		s[1] = in0 ? (s[1] + s2[1]) * a.scale : -INFINITY;
		s[2] = in1 ? (s[2] + s2[2]) * a.scale : -INFINITY;
		s[3] = in1 ? (s[3] + s2[3]) * a.scale : -INFINITY;

		float n0 = fmaxf(s[0], s[2]), n1 = fmaxf(s[1], s[3]);

#pragma unroll
		for (int o = 4; o <= 16; o *= 2) {
			n0 = fmaxf(n0, __shfl_xor_sync(FULL, n0, o));
			n1 = fmaxf(n1, __shfl_xor_sync(FULL, n1, o));
		}
		n0 = fmaxf(n0, m0);
		n1 = fmaxf(n1, m1);

		const float f0 = exp2_fast(m0 - n0), f1 = exp2_fast(m1 - n1);

		m0 = n0;
		m1 = n1;
		s[0] = exp2_fast(s[0] - n0);
		s[1] = exp2_fast(s[1] - n1);
		s[2] = exp2_fast(s[2] - n0);
		s[3] = exp2_fast(s[3] - n1);
		l0 = l0 * f0 + (s[0] + s[2]);
		l1 = l1 * f1 + (s[1] + s[3]);

		const uint32_t b0 = transpose(pack(s[0], s[1])), b1 = transpose(pack(s[2], s[3]));

#pragma unroll
		for (int j = 0; j < 8; j++) {
			acc[j][0] *= f0;
			acc[j][1] *= f1;
			acc[j][2] *= f0;
			acc[j][3] *= f1;
		}
#pragma unroll
		for (int j = 0; j < 8; j++) {
			const unsigned pick = j & 1 ? 0x7632u : 0x5410u;

			mma(acc[j], __byte_perm(lo[0][j / 2], lo[1][j / 2], pick), __byte_perm(hi[0][j / 2], hi[1][j / 2], pick),
			    __byte_perm(lo[2][j / 2], lo[3][j / 2], pick), __byte_perm(hi[2][j / 2], hi[3][j / 2], pick), b0, b1);
		}

		if (ends) {
			const int head = warp * GROUP + 2 * c;

#pragma unroll
			for (int o = 4; o <= 16; o *= 2) {
				l0 += __shfl_xor_sync(FULL, l0, o);
				l1 += __shfl_xor_sync(FULL, l1, o);
			}

			if (whole) {
				const float r0 = 1.0f / l0, r1 = 1.0f / l1;
				uint16_t *to0 = a.output + ((int64_t)b * HEADS + head) * DIM + 8 * g, *to1 = to0 + DIM;

				*(uint4 *)to0 = make_uint4(pack(acc[0][0] * r0, acc[1][0] * r0), pack(acc[2][0] * r0, acc[3][0] * r0),
							   pack(acc[4][0] * r0, acc[5][0] * r0), pack(acc[6][0] * r0, acc[7][0] * r0));
				*(uint4 *)(to0 + 64) = make_uint4(pack(acc[0][2] * r0, acc[1][2] * r0), pack(acc[2][2] * r0, acc[3][2] * r0),
								  pack(acc[4][2] * r0, acc[5][2] * r0), pack(acc[6][2] * r0, acc[7][2] * r0));
				*(uint4 *)to1 = make_uint4(pack(acc[0][1] * r1, acc[1][1] * r1), pack(acc[2][1] * r1, acc[3][1] * r1),
							   pack(acc[4][1] * r1, acc[5][1] * r1), pack(acc[6][1] * r1, acc[7][1] * r1));
				*(uint4 *)(to1 + 64) = make_uint4(pack(acc[0][3] * r1, acc[1][3] * r1), pack(acc[2][3] * r1, acc[3][3] * r1),
								  pack(acc[4][3] * r1, acc[5][3] * r1), pack(acc[6][3] * r1, acc[7][3] * r1));
				if (g == 0)
					*(float2 *)(a.lse + (int64_t)b * HEADS + head) = make_float2(m0 + log2f(l0), m1 + log2f(l1));
			} else {
				const int64_t at = ((int64_t)blockIdx.x + b) * HEADS + head;
				uint16_t *to0 = a.part + at * DIM + 8 * g, *to1 = to0 + DIM;
				float x0 = 0, x1 = 0;

#pragma unroll
				for (int j = 0; j < 8; j++) {
					x0 = fmaxf(x0, fmaxf(fabsf(acc[j][0]), fabsf(acc[j][2])));
					x1 = fmaxf(x1, fmaxf(fabsf(acc[j][1]), fabsf(acc[j][3])));
				}
#pragma unroll
				for (int o = 4; o <= 16; o *= 2) {
					x0 = fmaxf(x0, __shfl_xor_sync(FULL, x0, o));
					x1 = fmaxf(x1, __shfl_xor_sync(FULL, x1, o));
				}

				const int e0 = exponent(x0), e1 = exponent(x1);
				const float r0 = inverse(e0), r1 = inverse(e1);

				store4(to0, mark(acc[0][0] * r0, acc[1][0] * r0), mark(acc[2][0] * r0, acc[3][0] * r0),
				       mark(acc[4][0] * r0, acc[5][0] * r0), mark(acc[6][0] * r0, acc[7][0] * r0));
				store4(to0 + 64, mark(acc[0][2] * r0, acc[1][2] * r0), mark(acc[2][2] * r0, acc[3][2] * r0),
				       mark(acc[4][2] * r0, acc[5][2] * r0), mark(acc[6][2] * r0, acc[7][2] * r0));
				store4(to1, mark(acc[0][1] * r1, acc[1][1] * r1), mark(acc[2][1] * r1, acc[3][1] * r1),
				       mark(acc[4][1] * r1, acc[5][1] * r1), mark(acc[6][1] * r1, acc[7][1] * r1));
				store4(to1 + 64, mark(acc[0][3] * r1, acc[1][3] * r1), mark(acc[2][3] * r1, acc[3][3] * r1),
				       mark(acc[4][3] * r1, acc[5][3] * r1), mark(acc[6][3] * r1, acc[7][3] * r1));
				/* The sums are 1 or more before they are scaled. */
				if (g == 0)
					store4(a.part_ml + at, __float_as_uint(mark(m0 + (float)e0)), __float_as_uint(l0 * r0),
					       __float_as_uint(mark(m1 + (float)e1)), __float_as_uint(l1 * r1));
			}
			if (!more)
				break;
#pragma unroll
			for (int j = 0; j < 8; j++)
				acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0;
			m0 = m1 = -INFINITY;
			l0 = l1 = 0;
		}
		older = newer;
		older_base = t;
		newer = newest;
		t = next;
		stop = next_stop;
		b = next_b;
		whole = next_whole;
	}

	/* Only the first and the last sequence of the range can be shared with other CTAs. */
	if (OWN) {
		__syncwarp();
#pragma unroll 1
		for (int s = b_first;; s = b) {
			join_share(a, s, warp, lane);
			if (s == b)
				break;
		}
	}
}

/* Short sequences, cluster (group, b): warp w of CTA r takes the tiles w * SPLIT + r, + SLOTS, ... and pushes its partial of head i
 * into the shared memory of CTA i, which joins them. */
__device__ __forceinline__ uint32_t remote(const void *p, int rank)
{
	uint32_t x;

	asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(x) : "r"((uint32_t)__cvta_generic_to_shared(p)), "r"(rank));
	return x;
}

__device__ __forceinline__ void push4(uint32_t to, float x, float y, float z, float w)
{
	asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" : : "r"(to), "f"(x), "f"(y), "f"(z), "f"(w) : "memory");
}

__device__ __forceinline__ void push2(uint32_t to, float x, float y)
{
	asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" : : "r"(to), "f"(x), "f"(y) : "memory");
}

static __global__ void __cluster_dims__(SPLIT, 1, 1) __launch_bounds__(SMALL_WARPS * 32, 1) attend_small(const struct work a)
{
	__shared__ float4 parts[SLOTS][DIM / 4];
	__shared__ float4 sums[SMALL_WARPS][DIM / 4];
	__shared__ float2 stats[SLOTS];
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = lane & 3;
	const int rank = (int)blockIdx.x, group = (int)blockIdx.y, b = (int)blockIdx.z, slot = warp * SPLIT + rank;
	const int64_t row = (int64_t)b * HEADS + group * GROUP + rank;
	uint2 *out = (uint2 *)(a.output + row * DIM) + lane;
	int from = 0, to = a.tokens;

	/* Tell the others that this CTA runs, so that they may write to it. */
	asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
	if (warp == SMALL_WARPS - 1) {
		translate(a.k, a.elements, lane);
		translate(a.v, a.elements, lane);
		if (lane == 0)
			prefetch(out);
	}
	if (a.batch > 1) {
		from = __ldg(a.indptr + b);
		to = __ldg(a.indptr + b + 1);
	}

	const uint16_t *keys = a.k + group * DIM + c * 8, *values = a.v + group * DIM + g * 8;
	const uint16_t *queries = a.q + (group * GROUP + g) * DIM + c * 8;
	const int start = from + slot * TILE;
	uint32_t q[4][4];
	float acc[8][4], m0 = -INFINITY, m1 = -INFINITY, l0 = 0, l1 = 0;

#pragma unroll
	for (int j = 0; j < 8; j++)
		acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0;

	if (start < to) {
		int window = load_index(a.indices + min(start + lane, to - 1));

		load_query(q, queries, b);
#pragma unroll 1
		for (int t = start;;) {
			uint32_t kx[4][4], ky[4][4], lo[4][4], hi[4][4];

			load_keys(kx, ky, keys, window, t, t, to, g);
			/* Values of tokens 2c, 2c + 1, 2c + 8, 2c + 9: dims 8g.. and 64 + 8g... */
#pragma unroll
			for (int r = 0; r < 4; r++) {
				int p = __shfl_sync(FULL, window, min(t + 2 * c + (r & 1) + (r >> 1) * 8, to - 1) - t);
				const uint16_t *v = values + (int64_t)p * PAGE;

				load16(lo[r], v);
				load16(hi[r], v + 64);
			}

			const int next = t + SLOTS * TILE;

			if (next < to)
				window = load_index(a.indices + min(next + lane, to - 1));

			/* Logits: tokens g and g + 8, heads 2c and 2c + 1. */
			float s[4] = {0, 0, 0, 0}, s2[4] = {0, 0, 0, 0};

#pragma unroll
			for (int j = 0; j < 4; j++) {
				mma(s, kx[j][0], ky[j][0], kx[j][1], ky[j][1], q[j][0], q[j][1]);
				mma(s2, kx[j][2], ky[j][2], kx[j][3], ky[j][3], q[j][2], q[j][3]);
			}

			const bool in0 = t + g < to, in1 = t + g + 8 < to;

			s[0] = in0 ? (s[0] + s2[0]) * a.scale : -INFINITY;
			s[1] = in0 ? (s[1] + s2[1]) * a.scale : -INFINITY;
			s[2] = in1 ? (s[2] + s2[2]) * a.scale : -INFINITY;
			s[3] = in1 ? (s[3] + s2[3]) * a.scale : -INFINITY;

			float n0 = fmaxf(s[0], s[2]), n1 = fmaxf(s[1], s[3]);

#pragma unroll
			for (int o = 4; o <= 16; o *= 2) {
				n0 = fmaxf(n0, __shfl_xor_sync(FULL, n0, o));
				n1 = fmaxf(n1, __shfl_xor_sync(FULL, n1, o));
			}
			n0 = fmaxf(n0, m0);
			n1 = fmaxf(n1, m1);

			const float f0 = exp2_fast(m0 - n0), f1 = exp2_fast(m1 - n1);

			m0 = n0;
			m1 = n1;
			s[0] = exp2_fast(s[0] - n0);
			s[1] = exp2_fast(s[1] - n1);
			s[2] = exp2_fast(s[2] - n0);
			s[3] = exp2_fast(s[3] - n1);
			l0 = l0 * f0 + (s[0] + s[2]);
			l1 = l1 * f1 + (s[1] + s[3]);

			const uint32_t b0 = transpose(pack(s[0], s[1])), b1 = transpose(pack(s[2], s[3]));

#pragma unroll
			for (int j = 0; j < 8; j++) {
				const unsigned pick = j & 1 ? 0x7632u : 0x5410u;

				acc[j][0] *= f0;
				acc[j][1] *= f1;
				acc[j][2] *= f0;
				acc[j][3] *= f1;
				mma(acc[j], __byte_perm(lo[0][j / 2], lo[1][j / 2], pick), __byte_perm(hi[0][j / 2], hi[1][j / 2], pick),
				    __byte_perm(lo[2][j / 2], lo[3][j / 2], pick), __byte_perm(hi[2][j / 2], hi[3][j / 2], pick), b0, b1);
			}
			if (next >= to)
				break;
			t = next;
		}
#pragma unroll
		for (int o = 4; o <= 16; o *= 2) {
			l0 += __shfl_xor_sync(FULL, l0, o);
			l1 += __shfl_xor_sync(FULL, l1, o);
		}
	}

	asm volatile("barrier.cluster.wait;" ::: "memory");
	if (start < to) {
		const uint32_t to0 = remote(&parts[slot][2 * g], 2 * c), to1 = remote(&parts[slot][2 * g], 2 * c + 1);

		push4(to0, acc[0][0], acc[1][0], acc[2][0], acc[3][0]);
		push4(to0 + 16, acc[4][0], acc[5][0], acc[6][0], acc[7][0]);
		push4(to0 + 256, acc[0][2], acc[1][2], acc[2][2], acc[3][2]);
		push4(to0 + 272, acc[4][2], acc[5][2], acc[6][2], acc[7][2]);
		push4(to1, acc[0][1], acc[1][1], acc[2][1], acc[3][1]);
		push4(to1 + 16, acc[4][1], acc[5][1], acc[6][1], acc[7][1]);
		push4(to1 + 256, acc[0][3], acc[1][3], acc[2][3], acc[3][3]);
		push4(to1 + 272, acc[4][3], acc[5][3], acc[6][3], acc[7][3]);
		if (g == 0) {
			push2(remote(&stats[slot], 2 * c), m0, l0);
			push2(remote(&stats[slot], 2 * c + 1), m1, l1);
		}
	}
	/* From here on a CTA touches its own shared memory only. */
	asm volatile("barrier.cluster.arrive.release;" ::: "memory");
	asm volatile("barrier.cluster.wait.acquire;" ::: "memory");

	if (from >= to) {
		if (warp == 0) {
			*out = make_uint2(0, 0);
			if (lane == 0)
				a.lse[row] = -INFINITY;
		}
		return;
	}

	/* Slots 0 to n - 1 are filled; a lane has the statistics of two. */
	const int n = min((int)SLOTS, (to - from + TILE - 1) / TILE);
	float2 x0 = make_float2(-INFINITY, 0), x1 = x0;

	if (lane < n)
		x0 = stats[lane];
	if (lane + 32 < n)
		x1 = stats[lane + 32];

	float top = fmaxf(x0.x, x1.x);

#pragma unroll
	for (int o = 16; o > 0; o /= 2)
		top = fmaxf(top, __shfl_xor_sync(FULL, top, o));

	const float w0 = exp2_fast(x0.x - top), w1 = exp2_fast(x1.x - top);
	float l = w0 * x0.y + w1 * x1.y;
	float4 v = make_float4(0, 0, 0, 0);

#pragma unroll
	for (int o = 16; o > 0; o /= 2)
		l += __shfl_xor_sync(FULL, l, o);
#pragma unroll 4
	for (int i = warp; i < n; i += SMALL_WARPS) {
		const float w = __shfl_sync(FULL, i < 32 ? w0 : w1, i & 31);
		const float4 x = parts[i][lane];

		v.x += w * x.x;
		v.y += w * x.y;
		v.z += w * x.z;
		v.w += w * x.w;
	}
	sums[warp][lane] = v;
	__syncthreads();
	if (warp == 0) {
		const float r = 1.0f / l;

#pragma unroll
		for (int i = 1; i < SMALL_WARPS; i++) {
			const float4 x = sums[i][lane];

			v.x += x.x;
			v.y += x.y;
			v.z += x.z;
			v.w += x.w;
		}
		*out = make_uint2(pack(v.x * r, v.y * r), pack(v.z * r, v.w * r));
		if (lane == 0)
			a.lse[row] = top + log2f(l);
	}
}

/* Joins the partials of a sequence that several CTAs share: SHARE warps a row (b * HEADS + head), UNROLL slots at a time each.
 * All rows of a block are of the same sequence. All CTAs of attend run or are done when this starts, so it may wait for them. */
template <int WARPS, int SHARE, int UNROLL>
__device__ __forceinline__ void join(const struct work &a)
{
	__shared__ float4 sums[WARPS][32];
	__shared__ float2 stats[WARPS];
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, sub = warp % SHARE;
	const int row = (int)blockIdx.x * (WARPS / SHARE) + warp / SHARE, b = row / HEADS, head = row % HEADS;
	const int from = __ldg(a.indptr + b), to = __ldg(a.indptr + b + 1);
	uint2 *out = (uint2 *)(a.output + (int64_t)row * DIM) + lane;

	/* The translation of the address to be written. */
	if (threadIdx.x == 0)
		prefetch(out);
	if (from >= to) {
		if (sub == 0) {
			*out = make_uint2(0, 0);
			if (lane == 0)
				a.lse[row] = -INFINITY;
		}
		return;
	}

	const unsigned tile = (unsigned)from / TILE + (unsigned)b, tiles = (unsigned)a.tiles;
	const int first = (int)(tile / tiles), last = (int)((tile + (unsigned)(to - from - 1) / TILE) / tiles);

	if (first == last)
		return;

	const int64_t at = ((int64_t)first + sub + b) * HEADS + head;
	float2 *ml = a.part_ml + at;
	uint2 *part = (uint2 *)a.part + at * (DIM / 4) + lane;
	float m = -INFINITY, l = 0;
	float4 v = make_float4(0, 0, 0, 0);
	bool gate = a.early != 0;

#pragma unroll 1
	for (int k = first + sub; k <= last; k += SHARE * UNROLL) {
		uint2 stat[UNROLL], x[UNROLL];

#pragma unroll 1
		for (;;) {
			/* Where much may be missing, one word a slot is asked for until it is there. */
			if (gate && lane < UNROLL && k + lane * SHARE <= last) {
				while (poll1(ml + lane * SHARE * HEADS) == 0)
					__nanosleep(40);
			}
			__syncwarp();

			bool ready = true;

#pragma unroll
			for (int u = 0; u < UNROLL; u++) {
				stat[u] = make_uint2(0xff800000u, 0); /* minus infinity */
				x[u] = make_uint2(0, 0);
				if (k + u * SHARE <= last) {
					stat[u] = poll2(ml + u * SHARE * HEADS);
					x[u] = poll2(part + u * SHARE * HEADS * (DIM / 4));
				}
			}
#pragma unroll
			for (int u = 0; u < UNROLL; u++)
				if (k + u * SHARE <= last)
					ready = ready & (stat[u].x != 0) & (stat[u].y != 0) & (x[u].x != 0) & (x[u].y != 0);
			if (__all_sync(FULL, ready))
				break;
			gate = true;
		}

		/* As it was, for the next call. */
#pragma unroll
		for (int u = 0; u < UNROLL; u++) {
			if (k + u * SHARE <= last) {
				store2(part + u * SHARE * HEADS * (DIM / 4), 0, 0);
				if (lane == 0)
					store2(ml + u * SHARE * HEADS, 0, 0);
			}
		}

		float n = m, w;

#pragma unroll
		for (int u = 0; u < UNROLL; u++)
			n = fmaxf(n, __uint_as_float(stat[u].x));
		w = exp2_fast(m - n);
		m = n;
		l *= w;
		v.x *= w;
		v.y *= w;
		v.z *= w;
		v.w *= w;
#pragma unroll
		for (int u = 0; u < UNROLL; u++) {
			const float2 low = unpack(x[u].x), high = unpack(x[u].y);

			w = exp2_fast(__uint_as_float(stat[u].x) - n);
			l += w * __uint_as_float(stat[u].y);
			v.x += w * low.x;
			v.y += w * low.y;
			v.z += w * high.x;
			v.w += w * high.y;
		}
		ml += SHARE * UNROLL * HEADS;
		part += SHARE * UNROLL * HEADS * (DIM / 4);
	}
	sums[warp][lane] = v;
	if (lane == 0)
		stats[warp] = make_float2(m, l);
	__syncthreads();
	if (sub == 0) {
		float n = -INFINITY, total = 0;
		float4 y = make_float4(0, 0, 0, 0);

#pragma unroll
		for (int i = 0; i < SHARE; i++)
			n = fmaxf(n, stats[warp + i].x);
#pragma unroll
		for (int i = 0; i < SHARE; i++) {
			const float w = exp2_fast(stats[warp + i].x - n);
			const float4 x = sums[warp + i][lane];

			total += w * stats[warp + i].y;
			y.x += w * x.x;
			y.y += w * x.y;
			y.z += w * x.z;
			y.w += w * x.w;
		}

		const float r = 1.0f / total;

		*out = make_uint2(pack(y.x * r, y.y * r), pack(y.z * r, y.w * r));
		if (lane == 0)
			a.lse[row] = n + log2f(total);
	}
}

template <int WARPS, int SHARE, int UNROLL, int BLOCKS>
static __global__ void __launch_bounds__(WARPS * 32, BLOCKS) combine(const struct work a)
{
	join<WARPS, SHARE, UNROLL>(a);
	/* This grid must not end before the first one. */
	asm volatile("griddepcontrol.wait;" ::: "memory");
}

/* Tiles of all sequences, with those that stay empty. */
static int64_t row_of(const struct km_args *a)
{
	int64_t row = a->num_kv_indices / TILE + a->batch_size;

	return row < 1 ? 1 : row;
}

static int64_t tiles_of(const struct km_args *a)
{
	return (row_of(a) + CTAS - 1) / CTAS;
}

static int64_t ctas_of(const struct km_args *a)
{
	int64_t tiles = tiles_of(a);

	return (row_of(a) + tiles - 1) / tiles;
}

size_t km_workspace(const struct km_args *a)
{
	return (size_t)(ctas_of(a) + a->batch_size) * HEADS * (DIM * sizeof(uint16_t) + sizeof(float2));
}

/* CTAs of attend that the device holds at once. */
static int resident = 0;

int km_init(const struct km_args *a)
{
	int device = 0, sms = 0, blocks = 0;

	(void)a;
	if (cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
	    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, attend<true>, THREADS, 0) == cudaSuccess)
		resident = sms * blocks;
	return 0;
}

int km_run(const struct km_args *a)
{
	cudaStream_t stream = (cudaStream_t)a->stream;
	const int64_t ctas = ctas_of(a), slots = ctas + a->batch_size;
	struct work w;

	if (a->batch_size < 1)
		return 0;
	w.q = a->q;
	w.k = a->k_cache;
	w.v = a->v_cache;
	w.indptr = (const int *)a->kv_indptr;
	w.indices = (const int *)a->kv_indices;
	w.output = a->output;
	w.lse = a->lse;
	w.part = (uint16_t *)a->workspace;
	w.part_ml = (float2 *)((uint16_t *)a->workspace + slots * (HEADS * DIM));
	w.early = ctas < ROOM;
	w.elements = a->num_pages * PAGE;
	w.limit = 0;
	if (a->num_kv_indices * 10 >= a->num_pages * 9)
		w.limit = (int)(a->num_pages <= ALL_PAGES ? a->num_pages : SOME_PAGES);
	else if (a->num_kv_indices * 10 >= a->num_pages * 6)
		w.limit = (int)(a->num_pages <= FEW_PAGES ? a->num_pages : FEW_PAGES);
	w.ahead = (int)((w.limit + ctas - 1) / ctas);
	w.batch = (int)a->batch_size;
	w.tokens = (int)a->num_kv_indices;
	w.tiles = (int)tiles_of(a);
	w.scale = a->sm_scale * LOG2E;

	if (a->batch_size <= SMALL_BATCH && a->num_kv_indices <= SMALL_TOKENS) {
		attend_small<<<dim3(SPLIT, GROUPS, (unsigned)a->batch_size), SMALL_WARPS * 32, 0, stream>>>(w);
		return (int)cudaGetLastError();
	}

	if (a->batch_size >= OWN_BATCH && ctas <= resident) {
		attend<true><<<(unsigned)ctas, THREADS, 0, stream>>>(w);
		return (int)cudaGetLastError();
	}

	attend<false><<<(unsigned)ctas, THREADS, 0, stream>>>(w);

	cudaLaunchAttribute attribute[1];
	cudaLaunchConfig_t config = {};
	cudaError_t status;

	attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attribute[0].val.programmaticStreamSerializationAllowed = 1;
	config.dynamicSmemBytes = 0;
	config.stream = stream;
	config.attrs = attribute;
	config.numAttrs = 1;
	/* Up to 64 sequences all blocks are resident at once, and most as soon as one CTA of attend has left each multiprocessor. */
	if (a->batch_size <= 4) {
		config.gridDim = dim3((unsigned)(a->batch_size * HEADS));
		config.blockDim = dim3(16 * 32);
		status = cudaLaunchKernelEx(&config, combine<16, 16, 4, 2>, w);
	} else if (a->batch_size <= 16) {
		config.gridDim = dim3((unsigned)(a->batch_size * HEADS));
		config.blockDim = dim3(4 * 32);
		status = cudaLaunchKernelEx(&config, combine<4, 4, 6, 8>, w);
	} else if (a->batch_size <= 32) {
		config.gridDim = dim3((unsigned)(a->batch_size * HEADS));
		config.blockDim = dim3(4 * 32);
		status = cudaLaunchKernelEx(&config, combine<4, 4, 4, 9>, w);
	} else {
		config.gridDim = dim3((unsigned)(a->batch_size * (HEADS / 2)));
		config.blockDim = dim3(4 * 32);
		status = cudaLaunchKernelEx(&config, combine<4, 2, 6, 8>, w);
	}
	if (status != cudaSuccess)
		return (int)status;
	return (int)cudaGetLastError();
}
