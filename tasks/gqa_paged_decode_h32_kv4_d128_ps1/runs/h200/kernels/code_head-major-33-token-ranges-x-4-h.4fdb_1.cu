#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>

enum {
	DIM = KM_AXIS_HEAD_DIM, HEADS = KM_AXIS_NUM_QO_HEADS, KVH = KM_AXIS_NUM_KV_HEADS, GROUP = HEADS / KVH,
	MAX_RANGES = 33, MIN_CHUNK = 80,
	WARPS = 8, THREADS = WARPS * 32, TILE = 16, STAGES = 3,
	ROW_BYTES = DIM * 2, PAGE_BYTES = KVH * ROW_BYTES,
	V_AT = TILE * ROW_BYTES, STAGE_BYTES = 2 * V_AT, RING_BYTES = STAGES * STAGE_BYTES,
	JOIN_AT = WARPS * RING_BYTES, PART = GROUP * DIM,
	ML_AT = JOIN_AT + WARPS * PART * 4, SMEM_BYTES = ML_AT + WARPS * GROUP * 8,
	SLOTS = 2 * MAX_RANGES * KVH,
	WS_ML = SLOTS * PART, WS_SOON = WS_ML + SLOTS * GROUP * 2, WS_WORDS = WS_SOON + MAX_RANGES * KVH + 28,
	BATCH = 8
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

__device__ __forceinline__ uint32_t load1(const uint32_t *p)
{
	uint32_t x;

	asm volatile("ld.volatile.global.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
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

__device__ __forceinline__ void store1(uint32_t *p, uint32_t x)
{
	asm volatile("st.volatile.global.u32 [%0], %1;" ::"l"(p), "r"(x) : "memory");
}

__device__ __forceinline__ void prefetch(const void *p)
{
	asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

/* ---------------------------------------------------------------- the walk over a range */

/* A piece [s, e) of sequence b inside the range, n tiles; j is this warp's next tile, counted from the piece's start. */
struct cursor {
	int b, s, e, n, j;
};

__device__ __forceinline__ void next_piece(cursor &c, const int32_t *indptr, int end)
{
	c.j -= c.n;
	c.b++;
	c.s = c.e;
	c.e = min(__ldg(indptr + c.b + 1), end);
	c.n = (c.e - c.s + TILE - 1) >> 4;
}

/* The page numbers of the warp's next tile (lane i and i + 16: token i) and how many tokens it has; 0 at the range's end. */
__device__ __forceinline__ int look(cursor &c, const int32_t *indptr, const int32_t *indices, int end, int lane, int *count)
{
	int page = 0, t;

	*count = 0;
	while (c.j >= c.n) {
		if (c.e >= end) {
			/* Everything is on its way: the combine may be launched. */
			asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
			return page;
		}
		next_piece(c, indptr, end);
	}
	t = c.s + c.j * TILE;
	*count = min((int)TILE, c.e - t);
	page = __ldg(indices + t + min(lane & 15, *count - 1));
	c.j += WARPS;
	return page;
}

/* Start the copies of a tile; k and v point to this lane's 16 bytes of page 0. Always one commit group. */
__device__ __forceinline__ void issue(uint32_t stage, const char *k, const char *v, int page, int count, int lane)
{
	if (count > 0) {
		const int half = lane >> 4, chunk = lane & 15;

#pragma unroll
		for (int i = 0; i < TILE / 2; i++) {
			const int row = 2 * i + half;
			const size_t off = (size_t)(unsigned)__shfl_sync(~0u, page, row) * PAGE_BYTES;
			const uint32_t dst = stage + row * ROW_BYTES + ((chunk ^ (row & 7)) << 4);
			const int bytes = row < count ? 16 : 0;

			copy16(dst, k + off, bytes);
			copy16(dst + V_AT, v + off, bytes);
		}
	}
	asm volatile("cp.async.commit_group;" ::: "memory");
}

/* ---------------------------------------------------------------- attend */

__global__ void __launch_bounds__(THREADS, 1)
attend(const uint16_t *__restrict__ q, const uint16_t *__restrict__ k_cache, const uint16_t *__restrict__ v_cache,
       const int32_t *__restrict__ indptr, const int32_t *__restrict__ indices, uint16_t *__restrict__ output, float *__restrict__ lse,
       uint32_t *work, int batch, int total, int chunk, float scale)
{
	extern __shared__ __align__(1024) unsigned char smem[];
	const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
	const int head = blockIdx.x & (KVH - 1), range = blockIdx.x / KVH;
	const int start = range * chunk, end = min(start + chunk, total);
	const uint32_t ring = (uint32_t)__cvta_generic_to_shared(smem) + warp * RING_BYTES;
	const char *k = (const char *)k_cache + head * ROW_BYTES + (lane & 15) * 16;
	const char *v = (const char *)v_cache + head * ROW_BYTES + (lane & 15) * 16;
	float *own = (float *)(smem + JOIN_AT);
	float2 *sums = (float2 *)(smem + ML_AT);

	/* The range's indices travel to the second-level cache while the sequence borders are read. */
	for (int i = start + tid * 32; i < end; i += THREADS * 32)
		prefetch(indices + i);
	if (tid == 0)
		prefetch(indices + end - 1);

	/* The first sequence that ends behind the range's start. */
	int b0 = 0;

	for (int base = 0; base < batch; base += THREADS) {
		const int i = base + tid;
		const int here = __syncthreads_count(i < batch && __ldg(indptr + i + 1) <= start);

		b0 += here;
		if (here < THREADS)
			break;
	}

	cursor c;

	c.b = b0;
	c.s = max(__ldg(indptr + b0), start);
	c.e = min(__ldg(indptr + b0 + 1), end);
	c.n = (c.e - c.s + TILE - 1) >> 4;
	c.j = warp;

	cursor in = c;
	int page, count;

	{
		int pages[STAGES], counts[STAGES];

#pragma unroll
		for (int i = 0; i < STAGES; i++)
			pages[i] = look(in, indptr, indices, end, lane, &counts[i]);
#pragma unroll
		for (int i = 0; i < STAGES; i++)
			issue(ring + i * STAGE_BYTES, k, v, pages[i], counts[i], lane);
		page = look(in, indptr, indices, end, lane, &count);
	}

	/* The queries of the range's first sequences, for later. */
	{
		const int b = b0 + (tid >> 4);

		if (b < batch && __ldg(indptr + b) < end)
			prefetch(q + ((size_t)b * HEADS + head * GROUP) * DIM + (tid & 15) * 64);
	}

	const int row0 = lane >> 2, pair = lane & 3;
	const uint32_t k_row = (lane & 15) * ROW_BYTES, k_chunk = lane >> 4;
	const uint32_t v_row = V_AT + ((lane & 7) + ((lane >> 4) << 3)) * ROW_BYTES, v_chunk = (lane >> 3) & 1;
	const uint32_t swizzle = lane & 7;
	int stage = 0;

	for (;;) {
		const bool had = c.j < c.n;
		float acc[8][4], m0 = -INFINITY, m1 = -INFINITY, l0 = 0, l1 = 0;

#pragma unroll
		for (int d = 0; d < 8; d++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				acc[d][i] = 0;

		if (had) {
			const uint32_t *from = (const uint32_t *)(q + ((size_t)c.b * HEADS + head * GROUP + row0) * DIM);
			uint32_t qf[16];

#pragma unroll
			for (int i = 0; i < 16; i++)
				qf[i] = __ldg(from + i * 4 + pair);

			do {
				const int valid = c.e - (c.s + c.j * TILE);
				const uint32_t at = ring + stage * STAGE_BYTES;
				float s[2][4] = {};
				uint32_t a[4];

				asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
				__syncwarp();
#pragma unroll
				for (int i = 0; i < 8; i++) {
					ldsm(a, at + k_row + (((2 * i + k_chunk) ^ swizzle) << 4));
					mma(s[i & 1], a, qf[2 * i], qf[2 * i + 1]);
				}

				float x0 = (s[0][0] + s[1][0]) * scale, x1 = (s[0][1] + s[1][1]) * scale;
				float x2 = (s[0][2] + s[1][2]) * scale, x3 = (s[0][3] + s[1][3]) * scale;

				if (row0 >= valid)
					x0 = x1 = -INFINITY;
				if (row0 + 8 >= valid)
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
				__syncwarp();
				issue(at, k, v, page, count, lane);
				if (count > 0)
					page = look(in, indptr, indices, end, lane, &count);
				stage = stage + 1 == STAGES ? 0 : stage + 1;
				c.j += WARPS;
			} while (c.j < c.n);
		}

		const bool last = c.e >= end;

		if (c.n > 0) {
			const int first = __ldg(indptr + c.b), behind = __ldg(indptr + c.b + 1);
			const bool whole = first >= start && behind <= end;

			/* Tell the combine that the first piece of this sequence comes soon. */
			if (tid == 0 && first >= start && behind > end)
				store1(work + WS_SOON + range * KVH + head, 1u);

#pragma unroll
			for (int o = 4; o < 32; o *= 2) {
				l0 += __shfl_xor_sync(~0u, l0, o);
				l1 += __shfl_xor_sync(~0u, l1, o);
			}
			if (had) {
				float *to = own + warp * PART + 2 * pair * DIM;

#pragma unroll
				for (int d = 0; d < 8; d++) {
					const int lo = (d * 16 + row0) ^ (pair * 8), hi = (d * 16 + 8 + row0) ^ (pair * 8);

					to[lo] = acc[d][0];
					to[DIM + lo] = acc[d][1];
					to[hi] = acc[d][2];
					to[DIM + hi] = acc[d][3];
				}
			}
			if (lane < 4) {
				sums[warp * GROUP + 2 * lane] = make_float2(m0, l0);
				sums[warp * GROUP + 2 * lane + 1] = make_float2(m1, l1);
			}
			__syncthreads();

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
				const size_t row = (size_t)c.b * HEADS + head * GROUP + warp;
				const float inv = 1.0f / l;

				*(uint2 *)(output + row * DIM + lane * 4) = make_uint2(pack(o.x * inv, o.y * inv), pack(o.z * inv, o.w * inv));
				if (lane == 0)
					lse[row] = m + log2f(l);
			} else {
				const int slot = (2 * range + (first >= start ? 1 : 0)) * KVH + head;

				store4(work + (size_t)slot * PART + warp * DIM + lane * 4, marked(o.x), marked(o.y), marked(o.z), marked(o.w));
				if (lane == 0)
					store2(work + WS_ML + (slot * GROUP + warp) * 2, marked(m), marked(l));
			}
			if (!last)
				__syncthreads();
		}
		if (last)
			break;
		next_piece(c, indptr, end);
	}
}

/* ---------------------------------------------------------------- combine */

__device__ __forceinline__ bool arrived(const uint4 &x)
{
	return x.x != 0 && x.y != 0 && x.z != 0 && x.w != 0;
}

/* Block: a sequence and a key-value head; a warp joins one query head, four elements a lane. */
__global__ void __launch_bounds__(THREADS, 4)
combine(const int32_t *__restrict__ indptr, uint16_t *__restrict__ output, float *__restrict__ lse, uint32_t *work, int chunk)
{
	const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
	const int b = blockIdx.x / KVH, head = blockIdx.x & (KVH - 1);
	const int from = __ldg(indptr + b), to = __ldg(indptr + b + 1);
	const size_t row = (size_t)b * HEADS + head * GROUP + warp;

	if (to <= from) {
		*(uint2 *)(output + row * DIM + lane * 4) = make_uint2(0, 0);
		if (lane == 0)
			lse[row] = -INFINITY;
	} else {
		const int r0 = from / chunk, pieces = (to - 1) / chunk - r0 + 1;

		if (pieces > 1) {
			/* Piece i is in slot 2 (r0 + i), but the first in 2 r0 + 1. */
			const int slot0 = 2 * r0 * KVH + head;
			uint32_t *parts = work + (size_t)slot0 * PART + warp * DIM + lane * 4;
			uint32_t *mls = work + WS_ML + (slot0 * GROUP + warp) * 2;
			uint4 x[BATCH];
			uint2 ml0, ml1;

			if (threadIdx.x == 0) {
				uint32_t *soon = work + WS_SOON + r0 * KVH + head;

				while (load1(soon) == 0)
					;
				store1(soon, 0u);
			}
			__syncthreads();

			uint32_t *mine = mls + (2 * lane + (lane == 0)) * KVH * GROUP * 2;
			uint32_t *more = mls + 2 * (lane + 32) * KVH * GROUP * 2;
			const bool one = lane < pieces, two = lane + 32 < pieces;

			for (;;) {
				ml0 = ml1 = make_uint2(1, 1);
				if (one)
					ml0 = load2(mine);
				if (two)
					ml1 = load2(more);
#pragma unroll
				for (int i = 0; i < BATCH; i++)
					if (i < pieces)
						x[i] = load4(parts + (2 * i + (i == 0)) * KVH * PART);
				if (__all_sync(~0u, ml0.x != 0 && ml0.y != 0 && ml1.x != 0 && ml1.y != 0))
					break;
			}
			if (one)
				store2(mine, 0, 0);
			if (two)
				store2(more, 0, 0);

			const float ma = one ? __uint_as_float(ml0.x) : -INFINITY, mb = two ? __uint_as_float(ml1.x) : -INFINITY;
			float m = fmaxf(ma, mb);

#pragma unroll
			for (int o = 1; o < 32; o *= 2)
				m = fmaxf(m, __shfl_xor_sync(~0u, m, o));

			const float wa = one ? ex2(ma - m) : 0, wb = two ? ex2(mb - m) : 0;
			float l = (one ? wa * __uint_as_float(ml0.y) : 0) + (two ? wb * __uint_as_float(ml1.y) : 0);

#pragma unroll
			for (int o = 1; o < 32; o *= 2)
				l += __shfl_xor_sync(~0u, l, o);

			float4 sum = make_float4(0, 0, 0, 0);

			for (int base = 0; base < pieces; base += BATCH) {
				if (base > 0) {
#pragma unroll
					for (int i = 0; i < BATCH; i++)
						if (base + i < pieces)
							x[i] = load4(parts + (size_t)(2 * (base + i)) * KVH * PART);
				}
#pragma unroll
				for (int i = 0; i < BATCH; i++)
					if (base + i < pieces) {
						const int piece = base + i;
						uint32_t *at = parts + (size_t)(2 * piece + (piece == 0)) * KVH * PART;
						const float weight = __shfl_sync(~0u, piece < 32 ? wa : wb, piece & 31);

						while (!arrived(x[i]))
							x[i] = load4(at);
						store4(at, 0, 0, 0, 0);
						sum.x += weight * __uint_as_float(x[i].x);
						sum.y += weight * __uint_as_float(x[i].y);
						sum.z += weight * __uint_as_float(x[i].z);
						sum.w += weight * __uint_as_float(x[i].w);
					}
			}

			const float inv = 1.0f / l;

			*(uint2 *)(output + row * DIM + lane * 4) = make_uint2(pack(sum.x * inv, sum.y * inv), pack(sum.z * inv, sum.w * inv));
			if (lane == 0)
				lse[row] = m + log2f(l);
		}
	}
	/* This grid must not end before the first one has. */
	asm volatile("griddepcontrol.wait;" ::: "memory");
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
	/* The same division of the first-level memory for both, so that they can share a multiprocessor. */
	error = cudaFuncSetAttribute((const void *)attend, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	if (error != cudaSuccess)
		return (int)error;
	error = cudaFuncSetAttribute((const void *)combine, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
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

	const int ranges = (int)((total + chunk - 1) / chunk);

	if (ranges > 0) {
		const float scale = (float)((double)a->sm_scale * 1.4426950408889634);

		attend<<<(unsigned)(ranges * KVH), THREADS, SMEM_BYTES, stream>>>(a->q, a->k_cache, a->v_cache, a->kv_indptr, a->kv_indices,
										  a->output, a->lse, work, batch, (int)total, (int)chunk, scale);

		cudaError_t error = cudaGetLastError();

		if (error != cudaSuccess)
			return (int)error;
	}

	cudaLaunchConfig_t config = {};
	cudaLaunchAttribute attribute[1];

	attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attribute[0].val.programmaticStreamSerializationAllowed = 1;
	config.gridDim = dim3((unsigned)(batch * KVH));
	config.blockDim = dim3(THREADS);
	config.dynamicSmemBytes = 0;
	config.stream = stream;
	config.attrs = attribute;
	config.numAttrs = ranges > 0 ? 1 : 0;

	cudaError_t error = cudaLaunchKernelEx(&config, combine, (const int32_t *)a->kv_indptr, (uint16_t *)a->output, (float *)a->lse, work, (int)chunk);

	if (error != cudaSuccess)
		return (int)error;
	return (int)cudaGetLastError();
}
