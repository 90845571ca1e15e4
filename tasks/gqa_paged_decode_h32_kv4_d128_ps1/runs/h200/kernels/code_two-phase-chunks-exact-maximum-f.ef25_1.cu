#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>
#include <math.h>

namespace {

constexpr int DIM = KM_AXIS_HEAD_DIM, HEADS = KM_AXIS_NUM_QO_HEADS, GROUPS = KM_AXIS_NUM_KV_HEADS, GROUP = HEADS / GROUPS;
constexpr int TILE = 16, TILES = 8, CHUNK = TILE * TILES;
constexpr int THREADS = 32 * GROUPS;
constexpr int RANGES = 396;                   /* three CTAs on each of 132 multiprocessors */
constexpr int MOST = 4096;                    /* ranges at most (bounds the workspace) */
constexpr int ROW_BYTES = GROUPS * DIM * 2;   /* bytes of one token in one cache */
constexpr float SKIP = 40.0f;                 /* weights below 2^-40 of the largest do not fetch V */
constexpr int BATCH = 8;                      /* partials in flight per warp of the combine kernel */

static_assert(DIM == 128 && GROUP == 8 && GROUPS == 4, "layout");

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

__device__ __forceinline__ void load(uint4 &r, const char *p)
{
	asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
		     : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
		     : "l"(p));
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

/* Decide which values of a tile are needed, start to load them, and make the weights. Returns whether any is needed. */
__device__ __forceinline__ bool prepare(uint4 (&r)[8], unsigned (&weights)[2], const float (&s)[4], float m0, float m1, float &l0, float &l1,
					const char *v, const int *page, int first, int last, int c)
{
	float t0 = m0 - SKIP, t1 = m1 - SKIP;
	unsigned lo = __ballot_sync(~0u, s[0] > t0 || s[1] > t1);
	unsigned hi = __ballot_sync(~0u, s[2] > t0 || s[3] > t1);

	if ((lo | hi) == 0)
		return false;
	lo >>= 8 * c;
	hi >>= 8 * c;

	const char *p0 = v + (size_t)(unsigned)page[min(first + 2 * c, last)] * ROW_BYTES;
	const char *p1 = v + (size_t)(unsigned)page[min(first + 2 * c + 1, last)] * ROW_BYTES;
	const char *p2 = v + (size_t)(unsigned)page[min(first + 2 * c + 8, last)] * ROW_BYTES;
	const char *p3 = v + (size_t)(unsigned)page[min(first + 2 * c + 9, last)] * ROW_BYTES;

	load_if(r[0], p0, lo & 0x0fu);
	load_if(r[1], p0 + 128, lo & 0x0fu);
	load_if(r[2], p1, lo & 0xf0u);
	load_if(r[3], p1 + 128, lo & 0xf0u);
	load_if(r[4], p2, hi & 0x0fu);
	load_if(r[5], p2 + 128, hi & 0x0fu);
	load_if(r[6], p3, hi & 0xf0u);
	load_if(r[7], p3 + 128, hi & 0xf0u);

	float e0 = ex2(s[0] - m0), e1 = ex2(s[1] - m1), e2 = ex2(s[2] - m0), e3 = ex2(s[3] - m1);

	l0 += e0 + e2;
	l1 += e1 + e3;
	weights[0] = transpose(pack(e0, e1));
	weights[1] = transpose(pack(e2, e3));
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

/* One range of tokens a CTA, one key-value head a warp. LONG: a range may hold more than one chunk of a sequence. */
template <bool LONG>
__global__ void __launch_bounds__(THREADS, LONG ? 2 : 3)
attend(const uint16_t *q, const uint16_t *k_cache, const uint16_t *v_cache, const int32_t *indptr, const int32_t *indices, int batch, int total,
       int tokens, float scale, uint16_t *output, float *lse, float4 *parts, float4 *stats)
{
	__shared__ int window[GROUPS][CHUNK];
	const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, c = lane & 3;
	const int t0 = (int)blockIdx.x * tokens, t1 = total - t0 < tokens ? total : t0 + tokens;
	int *pages = window[warp];

	asm volatile("griddepcontrol.launch_dependents;");

	/* The page numbers of the range, and at the same time the first sequence that ends behind its start. */
	int number[CHUNK / 32];
	if (!LONG) {
#pragma unroll
		for (int i = 0; i < CHUNK / 32; i++) {
			int t = t0 + lane + 32 * i;

			number[i] = t < t1 ? __ldg(indices + t) : 0;
		}
	}
	int low = 0, high = batch;
	while (high - low > 64) {
		int mid = (low + high) >> 1;

		if (__ldg(indptr + mid + 1) <= t0)
			low = mid + 1;
		else
			high = mid;
	}
	int at0 = low + lane, at1 = at0 + 32;
	int end0 = at0 < high ? __ldg(indptr + at0 + 1) : 0x7fffffff;
	int end1 = at1 < high ? __ldg(indptr + at1 + 1) : 0x7fffffff;
	int b = low + __popc(__ballot_sync(~0u, end0 <= t0)) + __popc(__ballot_sync(~0u, end1 <= t0));
	if (!LONG) {
#pragma unroll
		for (int i = 0; i < CHUNK / 32; i++)
			pages[lane + 32 * i] = number[i];
		__syncwarp();
	}

	const char *keys = (const char *)k_cache + warp * (DIM * 2) + c * 16;
	const char *values = (const char *)v_cache + warp * (DIM * 2) + g * 16;

#pragma unroll 1
	for (; b < batch; b++) {
		const int begin = __ldg(indptr + b), end = __ldg(indptr + b + 1);

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
			const int length = min(to - at, CHUNK), last = length - 1;
			const int *page = LONG ? pages : pages + (at - t0);
			const float old0 = m0, old1 = m1;

			if (LONG) {
				__syncwarp();
				for (int i = lane; i < length; i += 32)
					pages[i] = __ldg(indices + at + i);
				__syncwarp();
			}

			/* Phase K: all logits of the chunk, in registers. */
			float s[TILES][4];
			{
				uint4 kb[2][8];

				load_keys(kb[0], keys, page, 0, last, g);
#pragma unroll
				for (int t = 0; t < TILES; t++) {
					if (t * TILE < length) {
						if (t + 1 < TILES && (t + 1) * TILE < length)
							load_keys(kb[(t + 1) & 1], keys, page, (t + 1) * TILE, last, g);

						float x[4] = {0.0f, 0.0f, 0.0f, 0.0f}, y[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
						for (int j = 0; j < 4; j++) {
							const uint4 lo = kb[t & 1][j], hi = kb[t & 1][4 + j];

							mma(x, lo.x, hi.x, lo.y, hi.y, qf[j].x, qf[j].y);
							mma(y, lo.z, hi.z, lo.w, hi.w, qf[j].z, qf[j].w);
						}
						const bool in0 = t * TILE + g < length, in1 = t * TILE + 8 + g < length;

						s[t][0] = in0 ? (x[0] + y[0]) * scale : -INFINITY;
						s[t][1] = in0 ? (x[1] + y[1]) * scale : -INFINITY;
						s[t][2] = in1 ? (x[2] + y[2]) * scale : -INFINITY;
						s[t][3] = in1 ? (x[3] + y[3]) * scale : -INFINITY;
						m0 = fmaxf(m0, fmaxf(s[t][0], s[t][2]));
						m1 = fmaxf(m1, fmaxf(s[t][1], s[t][3]));
					}
				}
			}
#pragma unroll
			for (int o = 4; o < 32; o *= 2) {
				m0 = fmaxf(m0, __shfl_xor_sync(~0u, m0, o));
				m1 = fmaxf(m1, __shfl_xor_sync(~0u, m1, o));
			}

			/* Phase V: only rows that carry weight, two tiles in flight. */
			uint4 vb[2][8];
			unsigned weights[2][2];
			bool used[2];

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
			used[0] = prepare(vb[0], weights[0], s[0], m0, m1, l0, l1, values, page, 0, last, c);
			used[1] = false;
			if (TILE < length)
				used[1] = prepare(vb[1], weights[1], s[1], m0, m1, l0, l1, values, page, TILE, last, c);
#pragma unroll
			for (int t = 0; t < TILES; t++) {
				if (used[t & 1])
					consume(acc, vb[t & 1], weights[t & 1]);
				used[t & 1] = false;
				if (t + 2 < TILES) {
					if ((t + 2) * TILE < length)
						used[t & 1] = prepare(vb[t & 1], weights[t & 1], s[t + 2 < TILES ? t + 2 : 0], m0, m1, l0, l1,
								      values, page, (t + 2) * TILE, last, c);
				}
			}
			at += CHUNK;
		} while (LONG && at < to);

#pragma unroll
		for (int o = 4; o < 32; o *= 2) {
			l0 += __shfl_xor_sync(~0u, l0, o);
			l1 += __shfl_xor_sync(~0u, l1, o);
		}

		const int head = warp * GROUP + 2 * c;
		if (begin >= t0 && end <= t1) {
			const float r0 = 1.0f / l0, r1 = 1.0f / l1;
			uint16_t *to0 = output + ((size_t)b * HEADS + head) * DIM + 8 * g, *to1 = to0 + DIM;

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
			/* At most two segments of a range are not whole: one that begins with it and one that begins later. */
			const size_t slot = 2 * (size_t)blockIdx.x + (from > t0 ? 1 : 0);
			float4 *to0 = parts + (slot * HEADS + head) * (DIM / 4) + g, *to1 = to0 + DIM / 4;

			to0[0] = make_float4(acc[0][0], acc[1][0], acc[2][0], acc[3][0]);
			to0[8] = make_float4(acc[4][0], acc[5][0], acc[6][0], acc[7][0]);
			to0[16] = make_float4(acc[0][2], acc[1][2], acc[2][2], acc[3][2]);
			to0[24] = make_float4(acc[4][2], acc[5][2], acc[6][2], acc[7][2]);
			to1[0] = make_float4(acc[0][1], acc[1][1], acc[2][1], acc[3][1]);
			to1[8] = make_float4(acc[4][1], acc[5][1], acc[6][1], acc[7][1]);
			to1[16] = make_float4(acc[0][3], acc[1][3], acc[2][3], acc[3][3]);
			to1[24] = make_float4(acc[4][3], acc[5][3], acc[6][3], acc[7][3]);
			if (g == 0)
				stats[(slot * HEADS + head) / 2] = make_float4(m0, l0, m1, l1);
		}
		if (end >= t1)
			break;
	}
}

/* Block b * HEADS + head joins the partial results of a sequence that crosses a border of ranges, or writes that of an empty one. */
__global__ void __launch_bounds__(256) combine(const int32_t *indptr, const float4 *parts, const float2 *stats, int tokens, uint16_t *output,
					       float *lse)
{
	__shared__ float4 sums[8][32];
	__shared__ float2 tops[8];
	const int b = (int)(blockIdx.x / HEADS), head = (int)(blockIdx.x % HEADS);
	const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = (int)(blockDim.x >> 5);
	const int from = __ldg(indptr + b), to = __ldg(indptr + b + 1);
	const int first = from / tokens, count = to > from ? (to - 1) / tokens - first + 1 : 0;
	const int odd = from > first * tokens ? 1 : 0;
	/* The four dimensions that float4 `lane` of a partial row holds. */
	const int d = (lane >> 4) * 64 + (lane & 7) * 8 + ((lane >> 3) & 1) * 4;
	uint16_t *out = output + (size_t)blockIdx.x * DIM + d;

	asm volatile("griddepcontrol.wait;" ::: "memory");

	if (count == 0) {
		if (warp == 0) {
			*(uint2 *)out = make_uint2(0u, 0u);
			if (lane == 0)
				lse[blockIdx.x] = -INFINITY;
		}
		return;
	}
	if (count == 1)
		return;

	float m = -INFINITY, l = 0.0f;
	float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

#pragma unroll 1
	for (int k = warp; k < count; k += warps * BATCH) {
		float2 st[BATCH];
		float4 x[BATCH];

#pragma unroll
		for (int u = 0; u < BATCH; u++) {
			const int i = k + u * warps;

			st[u] = make_float2(-INFINITY, 0.0f);
			x[u] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
			if (i < count) {
				const size_t row = (2 * (size_t)(first + i) + (size_t)(i == 0 ? odd : 0)) * HEADS + head;

				st[u] = __ldcg(stats + row);
				x[u] = __ldcg(parts + row * (DIM / 4) + lane);
			}
		}
		float top = m;
#pragma unroll
		for (int u = 0; u < BATCH; u++)
			top = fmaxf(top, st[u].x);
		const float f = ex2(m - top);

		l *= f;
		sum.x *= f;
		sum.y *= f;
		sum.z *= f;
		sum.w *= f;
#pragma unroll
		for (int u = 0; u < BATCH; u++) {
			const float w = ex2(st[u].x - top);

			l += w * st[u].y;
			sum.x += w * x[u].x;
			sum.y += w * x[u].y;
			sum.z += w * x[u].z;
			sum.w += w * x[u].w;
		}
		m = top;
	}
	sums[warp][lane] = sum;
	if (lane == 0)
		tops[warp] = make_float2(m, l);
	__syncthreads();
	if (warp != 0)
		return;

	float top = -INFINITY, all = 0.0f;
	float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

	for (int w = 0; w < warps; w++)
		top = fmaxf(top, tops[w].x);
	for (int w = 0; w < warps; w++) {
		const float f = ex2(tops[w].x - top);
		const float4 x = sums[w][lane];

		all += f * tops[w].y;
		v.x += f * x.x;
		v.y += f * x.y;
		v.z += f * x.z;
		v.w += f * x.w;
	}
	const float r = 1.0f / all;

	*(uint2 *)out = make_uint2(pack(v.x * r, v.y * r), pack(v.z * r, v.w * r));
	if (lane == 0)
		lse[blockIdx.x] = top + log2f(all);
}

} /* namespace */

size_t km_workspace(const struct km_args *a)
{
	const plan p = make_plan(a);

	return (size_t)(2 * p.ranges) * HEADS * (DIM * sizeof(float) + sizeof(float2));
}

int km_run(const struct km_args *a)
{
	cudaStream_t stream = (cudaStream_t)a->stream;
	const plan p = make_plan(a);
	float4 *parts = (float4 *)a->workspace;
	float4 *stats = parts + (size_t)(2 * p.ranges) * HEADS * (DIM / 4);
	const float scale = a->sm_scale * 1.44269504088896f;

	if (a->batch_size <= 0)
		return 0;
	if (p.ranges > 0) {
		if (p.tokens <= CHUNK)
			attend<false><<<(unsigned)p.ranges, THREADS, 0, stream>>>(a->q, a->k_cache, a->v_cache, a->kv_indptr, a->kv_indices,
										 (int)a->batch_size, (int)a->num_kv_indices, (int)p.tokens, scale,
										 a->output, a->lse, parts, stats);
		else
			attend<true><<<(unsigned)p.ranges, THREADS, 0, stream>>>(a->q, a->k_cache, a->v_cache, a->kv_indptr, a->kv_indices,
										(int)a->batch_size, (int)a->num_kv_indices, (int)p.tokens, scale,
										a->output, a->lse, parts, stats);
		cudaError_t error = cudaGetLastError();
		if (error != cudaSuccess)
			return (int)error;
	}

	cudaLaunchConfig_t config = {};
	cudaLaunchAttribute attribute[1];

	attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attribute[0].val.programmaticStreamSerializationAllowed = 1;
	config.gridDim = dim3((unsigned)(a->batch_size * HEADS), 1, 1);
	config.blockDim = dim3(a->batch_size <= 16 ? 256u : 128u, 1, 1);
	config.dynamicSmemBytes = 0;
	config.stream = stream;
	config.attrs = attribute;
	config.numAttrs = p.ranges > 0 ? 1 : 0;

	const int32_t *indptr = a->kv_indptr;
	const float4 *from = parts;
	const float2 *tops = (const float2 *)stats;
	int tokens = (int)p.tokens;
	uint16_t *output = a->output;
	float *lse = a->lse;
	cudaError_t error = cudaLaunchKernelEx(&config, combine, indptr, from, tops, tokens, output, lse);
	if (error != cudaSuccess)
		return (int)error;
	return (int)cudaGetLastError();
}
