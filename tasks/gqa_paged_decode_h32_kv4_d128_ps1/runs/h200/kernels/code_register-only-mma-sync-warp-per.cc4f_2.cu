#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>

/* Flat split: CTA i owns the tokens [i * chunk, (i + 1) * chunk) of all sequences in a row, its warp w the key-value head w.
 * S^T = K Q^T and O^T = V^T P^T by mma.m16n8k16 (tokens or dims as M, the 8 query heads of the group as N), operands loaded from
 * global memory straight into fragments; the tile after the next is on its way into the second-level cache. Sequences that
 * several CTAs share leave partials and count them; a second kernel, resident beside the first, joins those that are complete. */

enum {
	DIM = KM_AXIS_HEAD_DIM, HEADS = KM_AXIS_NUM_QO_HEADS, GROUPS = KM_AXIS_NUM_KV_HEADS, GROUP = HEADS / GROUPS,
	PAGE = GROUPS * DIM,   /* elements of a page */
	TILE = 16,             /* tokens of a tile */
	CTAS = 264,            /* about two an SM; three fit, and beside two there is room for blocks of the join */
	THREADS = 32 * GROUPS,
};

#define FULL 0xffffffffu
#define LOG2E 1.4426950408889634f

struct work {
	const uint16_t *q, *k, *v;
	const int *indptr, *indices;
	uint16_t *output;
	float *lse;
	float *acc;            /* [slot][HEADS][DIM] */
	float2 *ml;            /* [slot][HEADS]: maximum (base 2), sum */
	unsigned *counters;    /* [batch][GROUPS]: partials written, and from bit 16 on warps that saw them all; 0 between calls */
	int64_t elements;      /* of each cache */
	int batch, tokens, chunk;
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

	asm volatile("ld.global.nc.L2::256B.s32 %0, [%1];" : "=r"(x) : "l"(p));
	return x;
}

__device__ __forceinline__ void prefetch(const void *p)
{
	asm volatile("prefetch.global.L2 [%0];" : : "l"(p));
}

__device__ __forceinline__ unsigned load_acquire(const unsigned *p)
{
	unsigned x;

	asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
	return x;
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

/* Into the second-level cache: this warp's 256 bytes of a page, of K in the lower half of the lanes, of V in the upper. */
__device__ __forceinline__ void fetch_ahead(const struct work &a, int page, int warp, int lane)
{
	const uint16_t *p = (lane < TILE ? a.k : a.v) + (int64_t)page * PAGE + warp * DIM;

	prefetch(p);
	prefetch(p + DIM / 2);
}

__device__ __forceinline__ void load_query(uint32_t (&x)[4][4], const uint16_t *queries, int b)
{
	const uint16_t *r = queries + (int64_t)b * (HEADS * DIM);

#pragma unroll
	for (int j = 0; j < 4; j++)
		load16(x[j], r + 32 * j);
}

static __global__ void __launch_bounds__(THREADS, 3) attend(const struct work a)
{
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = lane & 3;
	const int begin = (int)blockIdx.x * a.chunk, end = min(a.tokens, begin + a.chunk);

	asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
	if (begin >= end)
		return;

	/* Two windows of indices: `older` starts at the tile before, `newer` at the present tile. */
	int older = load_index(a.indices + min(begin + lane, end - 1)), newer = older, older_base = begin;
	/* The page of token t + 2 * TILE + lane % TILE, to be fetched ahead. */
	int far = load_index(a.indices + min(begin + 2 * TILE + (lane & (TILE - 1)), end - 1));

	/* Address translation: visit the 2 MB pages of the caches, and the partial's place, while the indices are on their way. */
	{
		const int64_t at = ((int64_t)((warp & 1) * 32 + lane) << 20) + (blockIdx.x & 7) * 64;

		if (at < a.elements)
			prefetch((warp < 2 ? a.k : a.v) + at);
		if (lane == 0)
			prefetch(a.acc + ((int64_t)blockIdx.x * HEADS + warp * GROUP) * DIM);
	}

	/* The sequence of token `begin`: its number, start and end. */
	int b = 0, from = 0, to = 0x7fffffff;

#pragma unroll 4
	for (int k0 = 1; k0 <= a.batch; k0 += 32) {
		int k = k0 + lane, e = 0x7fffffff;

		if (k <= a.batch)
			e = __ldg(a.indptr + k);
		b += e <= begin ? 1 : 0;
		from = max(from, e <= begin ? e : 0);
		to = min(to, e <= begin ? 0x7fffffff : e);
	}
	b = __reduce_add_sync(FULL, b);
	from = __reduce_max_sync(FULL, from);
	to = __reduce_min_sync(FULL, to);

	const uint16_t *keys = a.k + warp * DIM + c * 8, *values = a.v + warp * DIM + g * 8;
	const uint16_t *queries = a.q + (warp * GROUP + g) * DIM + c * 8;
	int t = begin, stop = min(to, end);
	bool whole = from == begin && to <= end; /* the sequence lies wholly in this CTA's range */
	const int opened = whole ? -1 : b; /* the first sequence, if it leaves a partial */
	uint32_t kx[4][4], ky[4][4], q[4][4];
	float acc[8][4], m0 = -INFINITY, m1 = -INFINITY, l0 = 0, l1 = 0;

#pragma unroll
	for (int j = 0; j < 8; j++)
		acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0;
	load_keys(kx, ky, keys, newer, begin, t, stop, g);
	load_query(q, queries, b);

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

		/* What comes later, into the second-level cache; all tokens up to end are this warp's, whatever their sequence. */
		if (t == begin) {
			int p = __shfl_sync(FULL, newer, TILE + (lane & (TILE - 1)));

			if (t + TILE + (lane & (TILE - 1)) < end)
				fetch_ahead(a, p, warp, lane);
		}
		if (t + 2 * TILE + (lane & (TILE - 1)) < end)
			fetch_ahead(a, far, warp, lane);

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
			far = load_index(a.indices + min(next + 2 * TILE + (lane & (TILE - 1)), end - 1));
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
				float *to0 = a.acc + at * DIM + 8 * g, *to1 = to0 + DIM;

				*(float4 *)to0 = make_float4(acc[0][0], acc[1][0], acc[2][0], acc[3][0]);
				*(float4 *)(to0 + 4) = make_float4(acc[4][0], acc[5][0], acc[6][0], acc[7][0]);
				*(float4 *)(to0 + 64) = make_float4(acc[0][2], acc[1][2], acc[2][2], acc[3][2]);
				*(float4 *)(to0 + 68) = make_float4(acc[4][2], acc[5][2], acc[6][2], acc[7][2]);
				*(float4 *)to1 = make_float4(acc[0][1], acc[1][1], acc[2][1], acc[3][1]);
				*(float4 *)(to1 + 4) = make_float4(acc[4][1], acc[5][1], acc[6][1], acc[7][1]);
				*(float4 *)(to1 + 64) = make_float4(acc[0][3], acc[1][3], acc[2][3], acc[3][3]);
				*(float4 *)(to1 + 68) = make_float4(acc[4][3], acc[5][3], acc[6][3], acc[7][3]);
				if (g == 0)
					*(float4 *)(a.ml + at) = make_float4(m0, l0, m1, l1);
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

	/* Count the partials: only the first and the last sequence of a range can have left one. */
	if (opened >= 0 || !whole) {
		__threadfence();
		__syncwarp();
		if (lane == 0) {
			if (opened >= 0)
				atomicAdd(a.counters + opened * GROUPS + warp, 1u);
			if (!whole && b != opened)
				atomicAdd(a.counters + b * GROUPS + warp, 1u);
		}
	}
}

/* Slots 0 to n - 1 of those that `stride` float4 separate; zeros past them. */
template <int UNROLL>
__device__ __forceinline__ void load_parts(float4 (&x)[UNROLL], const float4 *part, int stride, int n)
{
#pragma unroll
	for (int u = 0; u < UNROLL; u++) {
		x[u] = make_float4(0, 0, 0, 0);
		if (u < n)
			x[u] = __ldcg(part + u * stride);
	}
}

/* Joins the partials of a sequence that several CTAs share: SHARE warps a row (b * HEADS + head), each with every SHARE-th slot.
 * It runs beside `attend` and waits for the counters, not for the end of that kernel. */
template <int WARPS, int SHARE, int UNROLL, int BLOCKS>
static __global__ void __launch_bounds__(WARPS * 32, BLOCKS) combine(const struct work a)
{
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, sub = warp % SHARE;
	const int row = (int)blockIdx.x * (WARPS / SHARE) + warp / SHARE, b = row / HEADS, head = row % HEADS;
	const int from = __ldg(a.indptr + b), to = __ldg(a.indptr + b + 1);
	const int first = (int)((unsigned)from / (unsigned)a.chunk), last = (int)((unsigned)(to - 1) / (unsigned)a.chunk);
	uint2 *out = (uint2 *)(a.output + (int64_t)row * DIM) + lane;

	/* All warps of a block have the same sequence, so they take the same branch. */
	if (from >= to) {
		if (sub == 0) {
			*out = make_uint2(0, 0);
			if (lane == 0)
				a.lse[row] = -INFINITY;
		}
	} else if (first != last) {
		constexpr int STRIDE = SHARE * HEADS;
		const int count = last - first + 1, mine = (count - sub + SHARE - 1) / SHARE;
		const int64_t at = ((int64_t)first + sub + b) * HEADS + head;
		const float2 *ml = a.ml + at + lane * STRIDE;
		const float4 *part = (const float4 *)a.acc + at * (DIM / 4) + lane;
		unsigned *counter = a.counters + b * GROUPS + head / GROUP;
		float m = -INFINITY, l = 0;
		float4 v = make_float4(0, 0, 0, 0);
		bool reset = false;

		if (lane == 0) {
			if (sub == 0)
				prefetch(out);
			while ((int)(load_acquire(counter) & 0xffffu) != count)
				__nanosleep(20);
			reset = atomicAdd(counter, 0x10000u) >> 16 == GROUP * SHARE - 1;
		}
		__syncwarp();

#pragma unroll 1
		for (int k = 0; k < mine; k += 32) {
			const int n = min(32, mine - k);
			float2 stat = make_float2(-INFINITY, 0);
			float4 x[UNROLL];

			/* A lane has the statistics of one slot. */
			if (lane < n)
				stat = __ldcg(ml);
			load_parts(x, part, STRIDE * (DIM / 4), n);

			float top = stat.x;

#pragma unroll
			for (int o = 16; o > 0; o /= 2)
				top = fmaxf(top, __shfl_xor_sync(FULL, top, o));
			top = fmaxf(top, m);

			const float f = exp2_fast(m - top), w = exp2_fast(stat.x - top);

			m = top;
			l = l * f + w * stat.y;
			v.x *= f;
			v.y *= f;
			v.z *= f;
			v.w *= f;
#pragma unroll 1
			for (int u0 = 0;;) {
#pragma unroll
				for (int u = 0; u < UNROLL; u++) {
					const float y = __shfl_sync(FULL, w, (u0 + u) & 31);

					v.x += y * x[u].x;
					v.y += y * x[u].y;
					v.z += y * x[u].z;
					v.w += y * x[u].w;
				}
				u0 += UNROLL;
				if (u0 >= n)
					break;
				load_parts(x, part + (int64_t)u0 * (STRIDE * (DIM / 4)), STRIDE * (DIM / 4), n - u0);
			}
			ml += 32 * STRIDE;
			part += (int64_t)32 * (STRIDE * (DIM / 4));
		}
#pragma unroll
		for (int o = 16; o > 0; o /= 2)
			l += __shfl_xor_sync(FULL, l, o);

		if constexpr (SHARE > 1) {
			__shared__ float4 sums[WARPS][32];
			__shared__ float2 stats[WARPS];

			sums[warp][lane] = v;
			if (lane == 0)
				stats[warp] = make_float2(m, l);
			__syncthreads();
			if (sub == 0) {
				float top = -INFINITY;

#pragma unroll
				for (int i = 0; i < SHARE; i++)
					top = fmaxf(top, stats[warp + i].x);
				m = top;
				l = 0;
				v = make_float4(0, 0, 0, 0);
#pragma unroll
				for (int i = 0; i < SHARE; i++) {
					const float2 stat = stats[warp + i];
					const float w = exp2_fast(stat.x - top);
					const float4 x = sums[warp + i][lane];

					l += w * stat.y;
					v.x += w * x.x;
					v.y += w * x.y;
					v.z += w * x.z;
					v.w += w * x.w;
				}
			}
		}
		if (sub == 0) {
			const float r = 1.0f / l;

			*out = make_uint2(pack(v.x * r, v.y * r), pack(v.z * r, v.w * r));
			if (lane == 0)
				a.lse[row] = m + log2f(l);
		}
		/* The last warp to see the counter full sets it back for the next call. */
		if (reset)
			*counter = 0;
	}
	/* This kernel must not end before the other. */
	if (blockIdx.x == 0)
		asm volatile("griddepcontrol.wait;" ::: "memory");
}

static int64_t chunk_of(const struct km_args *a)
{
	/* Whole tiles, to the nearest: at most 1.5 * CTAS ranges, which are all resident at once. */
	int64_t tiles = (a->num_kv_indices + CTAS * TILE / 2) / (CTAS * TILE);

	return (tiles < 1 ? 1 : tiles) * TILE;
}

static int64_t ctas_of(const struct km_args *a)
{
	int64_t chunk = chunk_of(a), ctas = (a->num_kv_indices + chunk - 1) / chunk;

	return ctas < 1 ? 1 : ctas;
}

size_t km_workspace(const struct km_args *a)
{
	return (size_t)(ctas_of(a) + a->batch_size) * HEADS * (DIM * sizeof(float) + sizeof(float2)) +
	       (size_t)a->batch_size * GROUPS * sizeof(unsigned);
}

/* The same division of shared memory and first-level cache for all, so that an SM can hold blocks of both kernels. */
template <typename F>
static int prepare(F *kernel)
{
	return (int)cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 25);
}

int km_init(const struct km_args *a)
{
	int status = prepare(attend);

	(void)a;
	status = status ? status : prepare(combine<8, 8, 5, 4>);
	status = status ? status : prepare(combine<4, 4, 4, 12>);
	status = status ? status : prepare(combine<4, 2, 4, 12>);
	status = status ? status : prepare(combine<4, 1, 5, 12>);
	return status;
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
	w.acc = (float *)a->workspace;
	w.ml = (float2 *)((float *)a->workspace + slots * (HEADS * DIM));
	w.counters = (unsigned *)(w.ml + slots * HEADS);
	w.elements = a->num_pages * PAGE;
	w.batch = (int)a->batch_size;
	w.tokens = (int)a->num_kv_indices;
	w.chunk = (int)chunk_of(a);
	w.scale = a->sm_scale * LOG2E;

	attend<<<(unsigned)ctas, THREADS, 0, stream>>>(w);

	cudaLaunchAttribute attribute[1];
	cudaLaunchConfig_t config = {};
	cudaError_t status;

	attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attribute[0].val.programmaticStreamSerializationAllowed = 1;
	config.dynamicSmemBytes = 0;
	config.stream = stream;
	config.attrs = attribute;
	config.numAttrs = 1;
	/* Few enough blocks that they are resident together with attend's: 512 of four warps for 16, 32 and 64 sequences. */
	if (a->batch_size <= 8) {
		config.gridDim = dim3((unsigned)(a->batch_size * HEADS));
		config.blockDim = dim3(8 * 32);
		status = cudaLaunchKernelEx(&config, combine<8, 8, 5, 4>, w);
	} else if (a->batch_size <= 16) {
		config.gridDim = dim3((unsigned)(a->batch_size * HEADS));
		config.blockDim = dim3(4 * 32);
		status = cudaLaunchKernelEx(&config, combine<4, 4, 4, 12>, w);
	} else if (a->batch_size <= 32) {
		config.gridDim = dim3((unsigned)(a->batch_size * HEADS / 2));
		config.blockDim = dim3(4 * 32);
		status = cudaLaunchKernelEx(&config, combine<4, 2, 4, 12>, w);
	} else {
		config.gridDim = dim3((unsigned)(a->batch_size * HEADS / 4));
		config.blockDim = dim3(4 * 32);
		status = cudaLaunchKernelEx(&config, combine<4, 1, 5, 12>, w);
	}
	if (status != cudaSuccess)
		return (int)status;
	return (int)cudaGetLastError();
}
