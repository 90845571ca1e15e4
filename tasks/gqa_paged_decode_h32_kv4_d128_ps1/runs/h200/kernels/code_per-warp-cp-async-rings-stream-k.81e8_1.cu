#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>

enum {
	DIM = KM_AXIS_HEAD_DIM, HEADS = KM_AXIS_NUM_QO_HEADS, GROUPS = KM_AXIS_NUM_KV_HEADS, GROUP = HEADS / GROUPS,
	WARPS = GROUPS, THREADS = WARPS * 32, /* warp w has key-value head w */
	TILE = 16, STAGES = 3, RANGES = 264,
	ROW = DIM * 2, PAGE = GROUPS * ROW, /* bytes */
	HALF = TILE * ROW, STAGE = 2 * HALF, RING = STAGES * STAGE, SHARED = WARPS * RING, /* bytes */
	SLOT = HEADS * DIM + 2 * HEADS, /* floats of a partial result: values [head][dim], maxima, sums */
	JOIN_WARPS = 8, JOIN_DEPTH = 5,
};

__device__ __forceinline__ void copy16(unsigned to, const char *from, unsigned bytes)
{
	asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ void commit_group()
{
	asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> __device__ __forceinline__ void wait_groups()
{
	asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* A load that stays where it is written. */
__device__ __forceinline__ int load_now(const int32_t *from)
{
	int x;

	asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(x) : "l"(from));
	return x;
}

__device__ __forceinline__ void load_matrices(unsigned (&r)[4], unsigned at)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ void load_matrices_trans(unsigned (&r)[4], unsigned at)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
		     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ unsigned transpose(unsigned x)
{
	unsigned y;

	asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
	return y;
}

/* x in the low half. */
__device__ __forceinline__ unsigned pack(float x, float y)
{
	__nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
	unsigned bits;

	memcpy(&bits, &pair, sizeof(bits));
	return bits;
}

__device__ __forceinline__ float exp2_fast(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

/* Over the lanes that differ in lane / 4. */
__device__ __forceinline__ float max_of_rows(float x)
{
	x = fmaxf(x, __shfl_xor_sync(~0u, x, 4));
	x = fmaxf(x, __shfl_xor_sync(~0u, x, 8));
	return fmaxf(x, __shfl_xor_sync(~0u, x, 16));
}

__device__ __forceinline__ float sum_of_rows(float x)
{
	x += __shfl_xor_sync(~0u, x, 4);
	x += __shfl_xor_sync(~0u, x, 8);
	return x + __shfl_xor_sync(~0u, x, 16);
}

/* Block i takes the tokens [i * chunk, (i + 1) * chunk) of the flat list. A sequence that lies in the block is finished here; another one
 * leaves a partial result in slot 2i, if it began before the block, or in slot 2i + 1. */
static __global__ void __launch_bounds__(THREADS, 2) attend(const struct km_args a, int chunk, float *parts)
{
	extern __shared__ __align__(1024) unsigned char ring[];
	const int lane = (int)threadIdx.x & 31, w = __shfl_sync(~0u, (int)threadIdx.x >> 5, 0);
	const int g = lane >> 2, c = lane & 3, hi = lane >> 4;
	const int total = (int)a.num_kv_indices, batch = (int)a.batch_size;
	const int begin = (int)blockIdx.x * chunk;

	asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
	if (begin >= total)
		return;

	const int end = total - begin < chunk ? total : begin + chunk, last = end - 1;
	const int tiles = (end - begin + TILE - 1) / TILE;
	const unsigned base = (unsigned)__cvta_generic_to_shared(ring) + (unsigned)(w * RING);
	const char *k_from = (const char *)a.k_cache + w * ROW + (lane & 15) * 16;
	const char *v_from = (const char *)a.v_cache + w * ROW + (lane & 15) * 16;

	/* Swizzle: chunk j of row r lies at chunk j ^ (r & 7). */
	const unsigned put = (unsigned)(hi * ROW + (((lane & 15) ^ hi) * 16));
	const unsigned k_get = (unsigned)((lane & 15) * ROW + ((hi ^ (lane & 7)) * 16));
	const unsigned v_get = (unsigned)(((lane & 7) + 8 * hi) * ROW + ((((lane >> 3) & 1) ^ (lane & 7)) * 16));

	int page = load_now(a.kv_indices + min(begin + lane, last));
	int ahead = load_now(a.kv_indices + min(begin + 32 + lane, last));
	int probe[4];

#pragma unroll
	for (int j = 0; j < 4; j++)
		probe[j] = load_now(a.kv_indptr + min(j * 32 + lane, batch - 1));

	/* Tiles are filled in order; tile f takes its pages from half f % 2 of a batch of 32. */
	auto fill = [&](int f, unsigned to) {
		if (f < tiles) {
			const int left = end - begin - f * TILE;
			int64_t offset[8];

			if (f > 0 && (f & 1) == 0) {
				page = ahead;
				ahead = load_now(a.kv_indices + min(begin + (f / 2 + 1) * 32 + lane, last));
			}
#pragma unroll
			for (int i = 0; i < 8; i++)
				offset[i] = (int64_t)__shfl_sync(~0u, page, (f & 1) * TILE + 2 * i + hi) * PAGE;
#pragma unroll
			for (int i = 0; i < 8; i++)
				copy16(to + (put ^ (unsigned)((i & 3) * 32)) + (unsigned)(i * 2 * ROW), k_from + offset[i],
				       2 * i + hi < left ? 16u : 0u);
			commit_group();
#pragma unroll
			for (int i = 0; i < 8; i++)
				copy16(to + HALF + (put ^ (unsigned)((i & 3) * 32)) + (unsigned)(i * 2 * ROW), v_from + offset[i],
				       2 * i + hi < left ? 16u : 0u);
			commit_group();
		} else {
			commit_group();
			commit_group();
		}
	};

#pragma unroll
	for (int f = 0; f < STAGES; f++)
		fill(f, base + (unsigned)(f * STAGE));

	/* The sequence of the first token: the last one that begins at it or before it. */
	int b = 0;

	if (batch > 1 && batch <= 128) {
		b = -1;
#pragma unroll
		for (int j = 0; j < 4; j++)
			b += __popc(__ballot_sync(~0u, j * 32 + lane < batch && probe[j] <= begin));
	} else if (batch > 128) {
		int size = batch;

		while (size > 1) {
			const int step = (size + 31) / 32, at = lane * step;
			const bool before = at < size && __ldg(a.kv_indptr + b + min(at, size - 1)) <= begin;
			const int skip = (__popc(__ballot_sync(~0u, before)) - 1) * step;

			b += skip;
			size = min(step, size - skip);
		}
	}

	int from = __ldg(a.kv_indptr + b), to = __ldg(a.kv_indptr + b + 1);
	unsigned q[16];

	auto load_q = [&]() {
		const unsigned *x = (const unsigned *)(a.q + ((int64_t)b * HEADS + w * GROUP + g) * DIM) + c;

#pragma unroll
		for (int i = 0; i < 16; i++)
			q[i] = __ldg(x + 4 * i);
	};
	/* Bring the next sequence's q nearer, if it will be needed here. */
	auto prefetch_q = [&]() {
		if (to < end) {
			const char *x = (const char *)(a.q + ((int64_t)(b + 1) * HEADS + w * GROUP) * DIM) + lane * 64;

			asm volatile("prefetch.global.L2 [%0];" ::"l"(x));
		}
	};

	load_q();
	prefetch_q();

	const float scale = a.sm_scale * 1.4426950408889634f;
	float acc[8][4], m0 = -INFINITY, m1 = -INFINITY, l0 = 0, l1 = 0;

#pragma unroll
	for (int i = 0; i < 8; i++)
#pragma unroll
		for (int j = 0; j < 4; j++)
			acc[i][j] = 0;

	unsigned at = base;

#pragma unroll 1
	for (int tile = 0; tile < tiles; tile++) {
		const int t0 = begin + tile * TILE, t1 = end - t0 < TILE ? end : t0 + TILE;
		int pos = t0;

		wait_groups<2 * STAGES - 1>();
		__syncwarp();
		/* Once for every sequence that has tokens in this tile: [pos, stop). */
#pragma unroll 1
		for (;;) {
			const int stop = min(to, t1);
			float s[4] = {0, 0, 0, 0}, r[4] = {0, 0, 0, 0};

#pragma unroll
			for (int ks = 0; ks < 8; ks += 2) {
				unsigned x[4], y[4];

				load_matrices(x, at + (k_get ^ (unsigned)(ks * 32)));
				load_matrices(y, at + (k_get ^ (unsigned)(ks * 32 + 32)));
				multiply(s, x, q[2 * ks], q[2 * ks + 1]);
				multiply(r, y, q[2 * ks + 2], q[2 * ks + 3]);
			}
#pragma unroll
			for (int i = 0; i < 4; i++)
				s[i] = (s[i] + r[i]) * scale;
			if (pos > t0 || stop < t0 + TILE) {
				if (t0 + g < pos || t0 + g >= stop)
					s[0] = s[1] = -INFINITY;
				if (t0 + g + 8 < pos || t0 + g + 8 >= stop)
					s[2] = s[3] = -INFINITY;
			}

			const float n0 = fmaxf(m0, max_of_rows(fmaxf(s[0], s[2]))), n1 = fmaxf(m1, max_of_rows(fmaxf(s[1], s[3])));
			const float f0 = exp2_fast(m0 - n0), f1 = exp2_fast(m1 - n1);
			const float p0 = exp2_fast(s[0] - n0), p1 = exp2_fast(s[1] - n1);
			const float p2 = exp2_fast(s[2] - n0), p3 = exp2_fast(s[3] - n1);

			m0 = n0;
			m1 = n1;
			l0 = l0 * f0 + (p0 + p2);
			l1 = l1 * f1 + (p1 + p3);

			const unsigned b0 = transpose(pack(p0, p1)), b1 = transpose(pack(p2, p3));

#pragma unroll
			for (int i = 0; i < 8; i++) {
				acc[i][0] *= f0;
				acc[i][1] *= f1;
				acc[i][2] *= f0;
				acc[i][3] *= f1;
			}
			wait_groups<2 * STAGES - 2>();
			__syncwarp();
#pragma unroll
			for (int mt = 0; mt < 8; mt++) {
				unsigned x[4];

				load_matrices_trans(x, at + HALF + (v_get ^ (unsigned)(mt * 32)));
				multiply(acc[mt], x, b0, b1);
			}
			pos = stop;
			if (pos == to || pos == end) {
				/* The sequence ends, or this block's part of it. */
				l0 = sum_of_rows(l0);
				l1 = sum_of_rows(l1);
				if (from >= begin && to <= end) {
					unsigned *x = (unsigned *)(a.output + ((int64_t)b * HEADS + w * GROUP + g) * DIM) + c;
					const float r0 = 1.0f / l0, r1 = 1.0f / l1;

#pragma unroll
					for (int mt = 0; mt < 8; mt++) {
						x[8 * mt] = transpose(pack(acc[mt][0] * r0, acc[mt][1] * r1));
						x[8 * mt + 4] = transpose(pack(acc[mt][2] * r0, acc[mt][3] * r1));
					}
					if (g == 0) {
						float *y = a.lse + (int64_t)b * HEADS + w * GROUP + 2 * c;

						y[0] = m0 + log2f(l0);
						y[1] = m1 + log2f(l1);
					}
				} else {
					float *slot = parts + (int64_t)(2 * (int)blockIdx.x + (from >= begin ? 1 : 0)) * SLOT;
					float *x = slot + (w * GROUP + 2 * c) * DIM + g;

#pragma unroll
					for (int mt = 0; mt < 8; mt++) {
						x[16 * mt] = acc[mt][0];
						x[16 * mt + DIM] = acc[mt][1];
						x[16 * mt + 8] = acc[mt][2];
						x[16 * mt + 8 + DIM] = acc[mt][3];
					}
					if (g == 0) {
						float *y = slot + HEADS * DIM + w * GROUP + 2 * c;

						y[0] = m0;
						y[1] = m1;
						y[HEADS] = l0;
						y[HEADS + 1] = l1;
					}
				}
				if (pos == end)
					break;
				/* On to the sequence that holds token pos; there is one, since pos < end. */
				do {
					b++;
					from = to;
					to = __ldg(a.kv_indptr + b + 1);
				} while (to <= pos);
				load_q();
				prefetch_q();
				m0 = m1 = -INFINITY;
				l0 = l1 = 0;
#pragma unroll
				for (int i = 0; i < 8; i++)
#pragma unroll
					for (int j = 0; j < 4; j++)
						acc[i][j] = 0;
			}
			if (pos == t1)
				break;
		}
		__syncwarp();
		fill(tile + STAGES, at);
		at = at == base + (STAGES - 1) * STAGE ? base : at + STAGE;
	}
}

/* One block for a sequence and a head: join the partial results of a sequence that several blocks share, or write those of an empty one. */
static __global__ void __launch_bounds__(JOIN_WARPS * 32) join_parts(const int32_t *indptr, const float *parts, int chunk, uint16_t *output,
								     float *lse)
{
	__shared__ float top[JOIN_WARPS], sum[JOIN_WARPS];
	__shared__ float4 value[JOIN_WARPS][DIM / 4];
	const int b = (int)blockIdx.x / HEADS, h = (int)blockIdx.x % HEADS;
	const int lane = (int)threadIdx.x & 31, w = (int)threadIdx.x >> 5, warps = (int)blockDim.x >> 5;
	const int from = load_now(indptr + b), to = load_now(indptr + b + 1);
	const int first = from / chunk, last = (to - 1) / chunk;
	const int64_t row = (int64_t)blockIdx.x;

	asm volatile("griddepcontrol.wait;" ::: "memory");
	if (to <= from) {
		if (threadIdx.x < DIM)
			output[row * DIM + threadIdx.x] = 0;
		if (threadIdx.x == 0)
			lse[row] = -INFINITY;
		return;
	}
	if (first == last)
		return;

	float m = -INFINITY, l = 0;
	float4 v = make_float4(0, 0, 0, 0);

#pragma unroll 1
	for (int j = first + w; j <= last; j += warps * JOIN_DEPTH) {
		float mm[JOIN_DEPTH], ll[JOIN_DEPTH], higher = m, f;
		float4 vv[JOIN_DEPTH];

#pragma unroll
		for (int u = 0; u < JOIN_DEPTH; u++) {
			const int k = j + u * warps;

			mm[u] = -INFINITY;
			ll[u] = 0;
			vv[u] = make_float4(0, 0, 0, 0);
			if (k <= last) {
				const float *slot = parts + (int64_t)(2 * k + (k == first ? 1 : 0)) * SLOT;

				mm[u] = __ldcg(slot + HEADS * DIM + h);
				ll[u] = __ldcg(slot + HEADS * DIM + HEADS + h);
				vv[u] = __ldcg((const float4 *)(slot + h * DIM) + lane);
			}
		}
#pragma unroll
		for (int u = 0; u < JOIN_DEPTH; u++)
			higher = fmaxf(higher, mm[u]);
		f = exp2_fast(m - higher);
		m = higher;
		l *= f;
		v.x *= f;
		v.y *= f;
		v.z *= f;
		v.w *= f;
#pragma unroll
		for (int u = 0; u < JOIN_DEPTH; u++) {
			f = exp2_fast(mm[u] - higher);
			l += f * ll[u];
			v.x += f * vv[u].x;
			v.y += f * vv[u].y;
			v.z += f * vv[u].z;
			v.w += f * vv[u].w;
		}
	}
	value[w][lane] = v;
	if (lane == 0) {
		top[w] = m;
		sum[w] = l;
	}
	__syncthreads();
	if (threadIdx.x < DIM) {
		float higher = -INFINITY, all = 0, x = 0;

		for (int i = 0; i < warps; i++)
			higher = fmaxf(higher, top[i]);
		for (int i = 0; i < warps; i++) {
			const float f = exp2_fast(top[i] - higher);

			all += f * sum[i];
			x += f * ((const float *)value[i])[threadIdx.x];
		}
		output[row * DIM + threadIdx.x] = __bfloat16_as_ushort(__float2bfloat16(x / all));
		if (threadIdx.x == 0)
			lse[row] = higher + log2f(all);
	}
}

static int chunk_of(const struct km_args *a)
{
	int64_t chunk = (a->num_kv_indices + RANGES - 1) / RANGES;

	return chunk < TILE ? (int)TILE : (int)chunk;
}

static int ranges_of(const struct km_args *a)
{
	int64_t chunk = chunk_of(a), ranges = (a->num_kv_indices + chunk - 1) / chunk;

	return ranges < 1 ? 1 : (int)ranges;
}

size_t km_workspace(const struct km_args *a)
{
	return (size_t)ranges_of(a) * 2 * SLOT * sizeof(float);
}

int km_init(const struct km_args *a)
{
	cudaError_t error = cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)SHARED);

	(void)a;
	if (error != cudaSuccess)
		return (int)error;
	/* The same division of the first-level cache for both, so that the second kernel can start beside the first one. */
	error = cudaFuncSetAttribute(attend, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	if (error != cudaSuccess)
		return (int)error;
	return (int)cudaFuncSetAttribute(join_parts, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
}

int km_run(const struct km_args *a)
{
	cudaStream_t stream = (cudaStream_t)a->stream;
	float *parts = (float *)a->workspace;
	const float *joined = parts;
	const int chunk = chunk_of(a), ranges = ranges_of(a);
	cudaLaunchAttribute attribute[1];
	cudaLaunchConfig_t config = {};
	cudaError_t error;

	if (a->batch_size < 1)
		return 0;
	attend<<<(unsigned)ranges, THREADS, SHARED, stream>>>(*a, chunk, parts);
	error = cudaGetLastError();
	if (error != cudaSuccess)
		return (int)error;

	attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attribute[0].val.programmaticStreamSerializationAllowed = 1;
	config.gridDim = dim3((unsigned)(a->batch_size * HEADS));
	config.blockDim = dim3(a->batch_size * HEADS <= 1056 ? JOIN_WARPS * 32 : 128);
	config.dynamicSmemBytes = 0;
	config.stream = stream;
	config.attrs = attribute;
	config.numAttrs = 1;
	error = cudaLaunchKernelEx(&config, join_parts, a->kv_indptr, joined, chunk, a->output, a->lse);
	if (error != cudaSuccess)
		return (int)error;
	return (int)cudaGetLastError();
}
