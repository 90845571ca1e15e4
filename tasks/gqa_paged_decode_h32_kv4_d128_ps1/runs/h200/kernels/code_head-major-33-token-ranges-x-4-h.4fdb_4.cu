#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>

enum {
	DIM = KM_AXIS_HEAD_DIM, HEADS = KM_AXIS_NUM_QO_HEADS, KVH = KM_AXIS_NUM_KV_HEADS, GROUP = HEADS / KVH,
	MAX_RANGES = 33, MIN_CHUNK = 80,
	WARPS = 8, THREADS = WARPS * 32, BLOCK = THREADS + 32, /* eight warps that compute and one that warms the caches */
	TILE = 16, STAGES = 3, STEP = WARPS * TILE,
	ROW_BYTES = DIM * 2, PAGE_BYTES = KVH * ROW_BYTES,
	V_AT = TILE * ROW_BYTES, STAGE_BYTES = 2 * V_AT, RING_BYTES = STAGES * STAGE_BYTES,
	JOIN_AT = WARPS * RING_BYTES, PART = GROUP * DIM,
	ML_AT = JOIN_AT + WARPS * PART * 4, INDEX_AT = ML_AT + WARPS * GROUP * 8, INDEX_BYTES = TILE * 4,
	SMEM_BYTES = INDEX_AT + WARPS * STAGES * INDEX_BYTES,
	SLOTS = MAX_RANGES * KVH, /* a range leaves at most one partial result: of the sequence that goes on behind its end */
	WS_ML = SLOTS * PART, WS_WORDS = WS_ML + SLOTS * GROUP * 2,
	BATCH = 8,
	SWEEP_BYTES = 2048, SWEEP_DENSE = 8192, SWEEP_HALF = 2048 /* pages of each cache fetched before the indices are known */
};

/* ---------------------------------------------------------------- small helpers */

__device__ __forceinline__ float ex2(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

__device__ __forceinline__ void copy16(uint32_t dst, const void *src, int bytes)
{
	asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
}

__device__ __forceinline__ void copy4(uint32_t dst, const void *src)
{
	asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(dst), "l"(src) : "memory");
}

__device__ __forceinline__ uint32_t load_now(const void *p)
{
	uint32_t x;

	asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(x) : "l"(p));
	return x;
}

__device__ __forceinline__ void ldsm(uint32_t *r, uint32_t at)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ void ldsm_trans(uint32_t *r, uint32_t at)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ void mma(float *c, const uint32_t *a, uint32_t b0, uint32_t b1)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
		     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t pack(float lo, float hi)
{
	__nv_bfloat162 pair = __floats2bfloat162_rn(lo, hi);
	uint32_t bits;

	memcpy(&bits, &pair, sizeof(bits));
	return bits;
}

__device__ __forceinline__ uint32_t turn(uint32_t x)
{
	uint32_t y;

	asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
	return y;
}

/* A word that says by itself that it has arrived: never zero. */
__device__ __forceinline__ uint32_t marked(float x)
{
	uint32_t bits = __float_as_uint(x);

	return bits ? bits : 0x80000000u;
}

__device__ __forceinline__ uint4 load4(const uint32_t *p)
{
	uint4 x;

	asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(p) : "memory");
	return x;
}

__device__ __forceinline__ uint2 load2(const uint32_t *p)
{
	uint2 x;

	asm volatile("ld.volatile.global.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(p) : "memory");
	return x;
}

__device__ __forceinline__ void store4(uint32_t *p, uint32_t x, uint32_t y, uint32_t z, uint32_t w)
{
	asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}

__device__ __forceinline__ void store2(uint32_t *p, uint32_t x, uint32_t y)
{
	asm volatile("st.volatile.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(x), "r"(y) : "memory");
}

__device__ __forceinline__ void prefetch(const void *p)
{
	asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

__device__ __forceinline__ void prefetch_bulk(const void *p, uint32_t bytes)
{
	asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
}

/* A barrier of the eight computing warps. */
__device__ __forceinline__ void meet(void)
{
	static_assert((int)THREADS == 256, "threads of the barrier");
	asm volatile("bar.sync 1, 256;" ::: "memory");
}

__device__ __forceinline__ bool arrived(const uint4 &x, const uint2 &y)
{
	return x.x != 0 && x.y != 0 && x.z != 0 && x.w != 0 && y.x != 0 && y.y != 0;
}

/* ---------------------------------------------------------------- the walk over a range */

/*
 * A range is walked from its end to its start; `at` counts from its last token, whose index is at `top`, and `count` is its length.
 * The page numbers of the tile from `at` on (lane i and i + 16: token i); one of the range's pages behind its end.
 */
__device__ __forceinline__ int look(const int32_t *top, int at, int count, int lane)
{
	return __ldg(top - min(at + (lane & 15), count - 1));
}

/* Half a warp copies eight rows: their pages, from the lanes that hold them, or from shared memory. */
__device__ __forceinline__ void spread(int page, uint32_t *own, int lane)
{
#pragma unroll
	for (int i = 0; i < TILE / 2; i++)
		own[i] = (uint32_t)__shfl_sync(~0u, page, (lane >> 4) * 8 + i);
}

__device__ __forceinline__ void recall(uint32_t at, uint32_t *own, int lane)
{
	at += (lane >> 4) * 32;
	asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
		     : "=r"(own[0]), "=r"(own[1]), "=r"(own[2]), "=r"(own[3]) : "r"(at) : "memory");
	asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
		     : "=r"(own[4]), "=r"(own[5]), "=r"(own[6]), "=r"(own[7]) : "r"(at + 16) : "memory");
}

/*
 * Start the copies of the tile at `at`, and of the page numbers of the tile that will follow it in this stage: they are there when
 * this tile is. k and v point to this lane's 16 bytes of page 0. Always one commit group; no copies behind the range.
 */
__device__ __forceinline__ void issue(uint32_t stage, uint32_t index, const char *k, const char *v, const uint32_t *own, const int32_t *top, int at,
				      int count, int lane)
{
	if (at < count) {
		const int half = lane >> 4, chunk = lane & 15, next = at + STAGES * STEP;

#pragma unroll
		for (int i = 0; i < TILE / 2; i++) {
			const int row = half * 8 + i;
			const size_t off = (size_t)own[i] * PAGE_BYTES;
			const uint32_t dst = stage + row * ROW_BYTES + ((chunk ^ i) << 4);
			const int bytes = at + row < count ? 16 : 0;

			copy16(dst, k + off, bytes);
			copy16(dst + V_AT, v + off, bytes);
		}
		if (next < count && lane < TILE)
			copy4(index + lane * 4, top - min(next + lane, count - 1));
	}
	asm volatile("cp.async.commit_group;" ::: "memory");
}

/* This lane's part of the queries of a sequence. */
__device__ __forceinline__ void load_q(uint32_t *to, const uint16_t *q, int b)
{
	const uint32_t *from = (const uint32_t *)(q + (size_t)b * HEADS * DIM);

#pragma unroll
	for (int i = 0; i < 16; i++)
		to[i] = load_now(from + i * 4);
}

/* ---------------------------------------------------------------- the ninth warp */

__device__ __forceinline__ void warm(const uint16_t *q, const uint16_t *k_cache, const uint16_t *v_cache, const int32_t *indptr, uint16_t *output, float *lse,
				     uint32_t *work, int batch, int pages, int sweep, int slot, int lane)
{
	const char *k = (const char *)k_cache, *v = (const char *)v_cache;
	const size_t bytes = (size_t)pages * PAGE_BYTES;
	const int pieces = (sweep + 1) / 2;

	/* Address translations of the caches, of the outputs and of the partial results. */
	for (size_t at = (size_t)lane << 21; at < bytes; at += (size_t)32 << 21) {
		prefetch(k + at);
		prefetch(v + at);
	}
	if (lane == 0)
		prefetch(output);
	if (lane == 1)
		prefetch(output + (size_t)batch * HEADS * DIM - 1);
	if (lane == 2)
		prefetch(lse);
	if (lane == 3)
		prefetch(work + (size_t)slot * PART);
	if (lane == 4)
		prefetch(work + WS_ML);

	/* All queries; a line of 64 elements a lane. */
	for (int i = (int)(blockIdx.x * 32) + lane; i < batch * (HEADS * DIM / 64); i += (int)(gridDim.x * 32))
		prefetch(q + (size_t)i * 64);

	/* If most pages are in use, fetch some by address while their numbers are still on the way: all blocks sweep together. */
	for (int p = blockIdx.x + gridDim.x * lane; p < pieces; p += gridDim.x * 32) {
		const size_t at = (size_t)p * SWEEP_BYTES;
		const uint32_t size = 2 * p + 2 <= sweep ? SWEEP_BYTES : PAGE_BYTES;

		prefetch_bulk(k + at, size);
		prefetch_bulk(v + at, size);
	}

	/* Empty sequences. */
	for (int base = blockIdx.x * 32; base < batch; base += gridDim.x * 32) {
		const int i = base + lane;
		unsigned empty = __ballot_sync(~0u, i < batch && __ldg(indptr + min(i, batch - 1) + 1) <= __ldg(indptr + min(i, batch - 1)));

		while (empty) {
			const size_t b = (size_t)(base + __ffs((int)empty) - 1);
			uint4 *to = (uint4 *)(output + b * HEADS * DIM);

			empty &= empty - 1;
			for (int j = lane; j < HEADS * DIM / 8; j += 32)
				to[j] = make_uint4(0, 0, 0, 0);
			lse[b * HEADS + lane] = -INFINITY;
		}
	}
}

/* ---------------------------------------------------------------- attend */

__global__ void __launch_bounds__(BLOCK, 1)
attend(const uint16_t *__restrict__ q, const uint16_t *__restrict__ k_cache, const uint16_t *__restrict__ v_cache,
       const int32_t *__restrict__ indptr, const int32_t *__restrict__ indices, uint16_t *__restrict__ output, float *__restrict__ lse,
       uint32_t *work, int batch, int total, int chunk, float scale, int pages, int sweep)
{
	extern __shared__ __align__(1024) unsigned char smem[];
	const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
	const int head = blockIdx.x & (KVH - 1), range = blockIdx.x / KVH;
	const int start = range * chunk, end = min(start + chunk, total), count = end - start;
	const int32_t *top = indices + (end - 1);
	const uint32_t ring = (uint32_t)__cvta_generic_to_shared(smem) + warp * RING_BYTES;
	const uint32_t index = (uint32_t)__cvta_generic_to_shared(smem) + INDEX_AT + warp * (STAGES * INDEX_BYTES);
	const char *k = (const char *)k_cache + head * ROW_BYTES + (lane & 15) * 16;
	const char *v = (const char *)v_cache + head * ROW_BYTES + (lane & 15) * 16;
	float *own = (float *)(smem + JOIN_AT);
	float2 *sums = (float2 *)(smem + ML_AT);

	if (warp == WARPS) {
		warm(q, k_cache, v_cache, indptr, output, lse, work, batch, pages, sweep, range * KVH + head, lane);
		return;
	}
	if (start >= end)
		return;

	/*
	 * Tiles are counted from the range's end down, whatever the sequence borders are, so that the copies wait for nothing but the
	 * indices. A tile with a border in it is visited once for each of its sequences. The sequence that goes on behind the range
	 * comes first, so that its partial result is out early; the one that starts before the range comes last.
	 */
	const int row0 = lane >> 2, pair = lane & 3;
	const uint16_t *own_q = q + (size_t)(head * GROUP + row0) * DIM + pair * 2;
	int tile = warp * TILE, b = 0, from, to, below, behind[4];
	uint32_t qf[16], qn[16] = {};

	{
		int first[STAGES];
		uint32_t pages8[TILE / 2];

#pragma unroll
		for (int i = 0; i < STAGES; i++)
			first[i] = look(top, tile + i * STEP, count, lane);
#pragma unroll
		for (int u = 0; u < 4; u++) {
			const int i = u * 32 + lane;

			behind[u] = i < batch ? __ldg(indptr + i + 1) : 0x7fffffff;
		}

		/* Borders and later indices travel to the second-level cache meanwhile. */
		if (tid * 32 <= batch)
			prefetch(indptr + tid * 32);
		for (int i = STAGES * STEP + tid * 32; i < count; i += THREADS * 32)
			prefetch(top - i);
		if (tid == 0)
			prefetch(indices + start);

		spread(first[0], pages8, lane);
		issue(ring, index, k, v, pages8, top, tile, count, lane);

		/* The sequence of the range's last token, its borders and queries: asked for before the queue of copies is long. */
		for (int base = 128;; base += 128) {
			int here = 0;

#pragma unroll
			for (int u = 0; u < 4; u++)
				here += __popc(__ballot_sync(~0u, behind[u] < end));
			b += here;
			if (here < 128 || base >= batch)
				break;
#pragma unroll
			for (int u = 0; u < 4; u++) {
				const int i = base + u * 32 + lane;

				behind[u] = i < batch ? __ldg(indptr + i + 1) : 0x7fffffff;
			}
		}
		from = (int)load_now(indptr + b);
		to = (int)load_now(indptr + b + 1);
		below = (int)load_now(indptr + max(b - 1, 0));
		load_q(qf, own_q, b);

		spread(first[1], pages8, lane);
		issue(ring + STAGE_BYTES, index + INDEX_BYTES, k, v, pages8, top, tile + STEP, count, lane);
		if (from > start && b > 0)
			load_q(qn, own_q, b - 1);
#pragma unroll
		for (int i = 2; i < STAGES; i++) {
			spread(first[i], pages8, lane);
			issue(ring + i * STAGE_BYTES, index + i * INDEX_BYTES, k, v, pages8, top, tile + i * STEP, count, lane);
		}
	}

	/* The piece [s, e) of sequence b inside the range, counted from the range's end. */
	int s = 0, e = end - max(from, start);

	const uint32_t k_row = (lane & 15) * ROW_BYTES, k_chunk = lane >> 4;
	const uint32_t v_row = V_AT + ((lane & 7) + ((lane >> 4) << 3)) * ROW_BYTES, v_chunk = (lane >> 3) & 1;
	const uint32_t swizzle = lane & 7;
	int stage = 0;

	/* The end of a sequence that starts before the range; joined when all else is done. */
	bool joins = false;
	float jm = -INFINITY, jl = 0;
	float4 jo = make_float4(0, 0, 0, 0);

	for (;;) {
		/* This warp's tile ends behind s: the ones before are done. */
		const bool had = s < e && tile < e;
		float acc[8][4], m0 = -INFINITY, m1 = -INFINITY, l0 = 0, l1 = 0;

#pragma unroll
		for (int d = 0; d < 8; d++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				acc[d][i] = 0;

		if (had) {
			do {
				const int lo = s - tile, hi = e - tile;
				const uint32_t at = ring + stage * STAGE_BYTES;
				float dot[2][4] = {};
				uint32_t a[4], next[TILE / 2];

				asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
				__syncwarp();
#pragma unroll
				for (int i = 0; i < 8; i++) {
					ldsm(a, at + k_row + (((2 * i + k_chunk) ^ swizzle) << 4));
					mma(dot[i & 1], a, qf[2 * i], qf[2 * i + 1]);
				}

				float x0 = (dot[0][0] + dot[1][0]) * scale, x1 = (dot[0][1] + dot[1][1]) * scale;
				float x2 = (dot[0][2] + dot[1][2]) * scale, x3 = (dot[0][3] + dot[1][3]) * scale;

				if (row0 < lo || row0 >= hi)
					x0 = x1 = -INFINITY;
				if (row0 + 8 < lo || row0 + 8 >= hi)
					x2 = x3 = -INFINITY;

				float n0 = fmaxf(x0, x2), n1 = fmaxf(x1, x3);

#pragma unroll
				for (int o = 4; o < 32; o *= 2) {
					n0 = fmaxf(n0, __shfl_xor_sync(~0u, n0, o));
					n1 = fmaxf(n1, __shfl_xor_sync(~0u, n1, o));
				}
				n0 = fmaxf(n0, m0);
				n1 = fmaxf(n1, m1);

				const float old0 = ex2(m0 - n0), old1 = ex2(m1 - n1);

				x0 = ex2(x0 - n0);
				x1 = ex2(x1 - n1);
				x2 = ex2(x2 - n0);
				x3 = ex2(x3 - n1);
				m0 = n0;
				m1 = n1;
				l0 = l0 * old0 + (x0 + x2);
				l1 = l1 * old1 + (x1 + x3);

				recall(index + stage * INDEX_BYTES, next, lane);

				const uint32_t p0 = turn(pack(x0, x1)), p1 = turn(pack(x2, x3));

#pragma unroll
				for (int d = 0; d < 8; d++) {
					acc[d][0] *= old0;
					acc[d][1] *= old1;
					acc[d][2] *= old0;
					acc[d][3] *= old1;
					ldsm_trans(a, at + v_row + (((2 * d + v_chunk) ^ swizzle) << 4));
					mma(acc[d], a, p0, p1);
				}
				/* The rest of the tile belongs to the sequences that follow. */
				if (tile + TILE > e && e < count)
					break;
				__syncwarp();
				issue(at, index + stage * INDEX_BYTES, k, v, next, top, tile + STAGES * STEP, count, lane);
				stage = stage + 1 == STAGES ? 0 : stage + 1;
				tile += STEP;
			} while (tile < e);
		}

		const bool last = from <= start || b == 0;

		if (s < e) {
			const bool whole = from >= start && to <= end;

#pragma unroll
			for (int o = 4; o < 32; o *= 2) {
				l0 += __shfl_xor_sync(~0u, l0, o);
				l1 += __shfl_xor_sync(~0u, l1, o);
			}
			if (had) {
				float *mine = own + warp * PART + 2 * pair * DIM;

#pragma unroll
				for (int d = 0; d < 8; d++) {
					const int lo = (d * 16 + row0) ^ (pair * 8), hi = (d * 16 + 8 + row0) ^ (pair * 8);

					mine[lo] = acc[d][0];
					mine[DIM + lo] = acc[d][1];
					mine[hi] = acc[d][2];
					mine[DIM + hi] = acc[d][3];
				}
			}
			if (lane < 4) {
				sums[warp * GROUP + 2 * lane] = make_float2(m0, l0);
				sums[warp * GROUP + 2 * lane + 1] = make_float2(m1, l1);
			}
			meet();

			/* Warp w joins query head w of the group. */
			float2 ml[WARPS];
			float m = -INFINITY, l = 0;
			float4 o = make_float4(0, 0, 0, 0);

#pragma unroll
			for (int u = 0; u < WARPS; u++) {
				ml[u] = sums[u * GROUP + warp];
				m = fmaxf(m, ml[u].x);
			}
#pragma unroll
			for (int u = 0; u < WARPS; u++)
				if (ml[u].x != -INFINITY) {
					const float weight = ex2(ml[u].x - m);
					const float4 x = *(const float4 *)(own + u * PART + warp * DIM + ((lane * 4) ^ (((warp >> 1) & 3) * 8)));

					l += weight * ml[u].y;
					o.x += weight * x.x;
					o.y += weight * x.y;
					o.z += weight * x.z;
					o.w += weight * x.w;
				}
			if (whole) {
				const size_t row = (size_t)b * HEADS + head * GROUP + warp;
				const float inv = 1.0f / l;

				*(uint2 *)(output + row * DIM + lane * 4) = make_uint2(pack(o.x * inv, o.y * inv), pack(o.z * inv, o.w * inv));
				if (lane == 0)
					lse[row] = m + log2f(l);
			} else if (to <= end) {
				joins = true;
				jm = m;
				jl = l;
				jo = o;
			} else {
				const int slot = range * KVH + head;

				store4(work + (size_t)slot * PART + warp * DIM + lane * 4, marked(o.x), marked(o.y), marked(o.z), marked(o.w));
				if (lane == 0)
					store2(work + WS_ML + (slot * GROUP + warp) * 2, marked(m), marked(l));
			}
			if (!last)
				meet();
		}
		if (last)
			break;
		b--;
		to = from;
		from = below;
		s = e;
		e = end - max(from, start);
#pragma unroll
		for (int i = 0; i < 16; i++)
			qf[i] = qn[i];
		/* What the next sequence will need: the queue of copies makes every load slow. */
		if (from > start && b > 0) {
			below = (int)load_now(indptr + b - 1);
			load_q(qn, own_q, b - 1);
		}
	}

	/* Only ranges of lower number are waited for, and this range's own partial result is out already. Warp w: query head w. */
	if (joins) {
		for (int base = from / chunk; base < range; base += BATCH) {
			uint4 x[BATCH];
			uint2 y[BATCH];

#pragma unroll
			for (int i = 0; i < BATCH; i++)
				if (base + i < range) {
					const int slot = (base + i) * KVH + head;

					x[i] = load4(work + (size_t)slot * PART + warp * DIM + lane * 4);
					y[i] = load2(work + WS_ML + (slot * GROUP + warp) * 2);
				}
#pragma unroll
			for (int i = 0; i < BATCH; i++)
				if (base + i < range) {
					const int slot = (base + i) * KVH + head;
					uint32_t *at = work + (size_t)slot * PART + warp * DIM + lane * 4;
					uint32_t *ml = work + WS_ML + (slot * GROUP + warp) * 2;

					while (!__all_sync(~0u, arrived(x[i], y[i]))) {
						x[i] = load4(at);
						y[i] = load2(ml);
					}
					/* Zero again for the next call. */
					store4(at, 0, 0, 0, 0);
					if (lane == 0)
						store2(ml, 0, 0);

					const float mi = __uint_as_float(y[i].x), m = fmaxf(jm, mi);
					const float old = ex2(jm - m), weight = ex2(mi - m);

					jm = m;
					jl = jl * old + weight * __uint_as_float(y[i].y);
					jo.x = jo.x * old + weight * __uint_as_float(x[i].x);
					jo.y = jo.y * old + weight * __uint_as_float(x[i].y);
					jo.z = jo.z * old + weight * __uint_as_float(x[i].z);
					jo.w = jo.w * old + weight * __uint_as_float(x[i].w);
				}
		}

		const size_t row = (size_t)b * HEADS + head * GROUP + warp;
		const float inv = 1.0f / jl;

		*(uint2 *)(output + row * DIM + lane * 4) = make_uint2(pack(jo.x * inv, jo.y * inv), pack(jo.z * inv, jo.w * inv));
		if (lane == 0)
			lse[row] = jm + log2f(jl);
	}
}

/* ---------------------------------------------------------------- host */

size_t km_workspace(const struct km_args *a)
{
	(void)a;
	return (size_t)WS_WORDS * 4;
}

int km_init(const struct km_args *a)
{
	cudaError_t error;

	(void)a;
	error = cudaFuncSetAttribute((const void *)attend, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)SMEM_BYTES);
	if (error != cudaSuccess)
		return (int)error;
	error = cudaFuncSetAttribute((const void *)attend, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	return (int)error;
}

int km_run(const struct km_args *a)
{
	cudaStream_t stream = (cudaStream_t)a->stream;
	const int batch = (int)a->batch_size;
	const int64_t total = a->num_kv_indices;
	int64_t chunk = (total + MAX_RANGES - 1) / MAX_RANGES;
	uint32_t *work = (uint32_t *)a->workspace;

	if (batch <= 0)
		return 0;
	if (chunk < MIN_CHUNK)
		chunk = MIN_CHUNK;

	/* One block an SM at most: all are resident, and each waits only for blocks of lower number. */
	const int ranges = total > 0 ? (int)((total + chunk - 1) / chunk) : 1;
	const float scale = (float)((double)a->sm_scale * 1.4426950408889634);
	int64_t sweep = 0;

	if (total * 10 >= a->num_pages * 9)
		sweep = SWEEP_DENSE;
	else if (total * 2 >= a->num_pages)
		sweep = SWEEP_HALF;
	if (sweep > a->num_pages)
		sweep = a->num_pages;

	attend<<<(unsigned)(ranges * KVH), BLOCK, SMEM_BYTES, stream>>>(a->q, a->k_cache, a->v_cache, a->kv_indptr, a->kv_indices, a->output, a->lse,
									work, batch, (int)total, (int)chunk, scale, (int)a->num_pages, (int)sweep);
	return (int)cudaGetLastError();
}
