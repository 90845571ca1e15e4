#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>

enum {
	DIM = KM_AXIS_HEAD_DIM, HEADS = KM_AXIS_NUM_QO_HEADS, GROUPS = KM_AXIS_NUM_KV_HEADS, GROUP = HEADS / GROUPS,
	WARPS = 2 * GROUPS, THREADS = WARPS * 32, /* warps w and w + 4 have key-value head w */
	TILE = 16, STAGES = 3, RANGES = 132,
	ROW = DIM * 2, PAGE = GROUPS * ROW, /* bytes */
	HALF = TILE * ROW, STAGE = 2 * HALF, RING = STAGES * STAGE, /* bytes */
	DEPOSIT = 9 * 32 * 16, SHARED = WARPS * RING + GROUPS * DEPOSIT, /* bytes */
	/* Floats of a partial result: values [head][dim / 32][dim % 8][dim / 8 % 4], maxima, sums. */
	SLOT = HEADS * DIM + 2 * HEADS,
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

__device__ __forceinline__ void prefetch(const void *x)
{
	asm volatile("prefetch.global.L2 [%0];" ::"l"(x));
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

/* Block i takes the tokens [i * chunk, (i + 1) * chunk) of the flat list: warps 0 to 3 the first `half` of them, warps 4 to 7 the others.
 * A sequence that goes on from the first part into the second is joined in shared memory. A sequence that lies in the block is finished
 * here; another one leaves a partial result in slot 2i, if it began before the block, or in slot 2i + 1. */
static __global__ void __launch_bounds__(THREADS, 1) attend(const struct km_args a, int chunk, int half, float *parts)
{
	extern __shared__ __align__(1024) unsigned char ring[];
	const int lane = (int)threadIdx.x & 31, warp = __shfl_sync(~0u, (int)threadIdx.x >> 5, 0);
	const int w = warp & (GROUPS - 1);
	const bool second = warp >= GROUPS;
	const int g = lane >> 2, c = lane & 3, hi = lane >> 4;
	const int total = (int)a.num_kv_indices, batch = (int)a.batch_size;
	const int start = (int)blockIdx.x * chunk;

	asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
	if (start >= total)
		return;

	const int finish = total - start < chunk ? total : start + chunk;
	const int middle = finish - start < half ? finish : start + half;
	const int begin = second ? middle : start, end = second ? finish : middle, last = end - 1;

	/* A second part without tokens: nobody waits for it. */
	if (begin >= end)
		return;

	const int tiles = (end - begin + TILE - 1) / TILE;
	const unsigned base = (unsigned)__cvta_generic_to_shared(ring) + (unsigned)(warp * RING);
	float4 *deposit = (float4 *)(ring + WARPS * RING + w * DEPOSIT) + lane;
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

#pragma unroll 1
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
		if (to < end)
			prefetch((const char *)(a.q + ((int64_t)(b + 1) * HEADS + w * GROUP) * DIM) + lane * 64);
	};

	load_q();
	prefetch_q();
	/* Have the addresses of the results translated before they are needed. */
	if (lane == 0)
		prefetch(parts + (int64_t)(2 * (int)blockIdx.x) * SLOT + w * GROUP * DIM);
	if (lane == 1)
		prefetch(a.output + ((int64_t)b * HEADS + w * GROUP) * DIM);

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
				/* The sequence ends, or this warp's part of it. */
				l0 = sum_of_rows(l0);
				l1 = sum_of_rows(l1);
				if (second && from < begin) {
					/* It began in the first part, whose warp joins the two. */
#pragma unroll
					for (int mt = 0; mt < 8; mt++)
						deposit[mt * 32] = make_float4(acc[mt][0], acc[mt][1], acc[mt][2], acc[mt][3]);
					deposit[8 * 32] = make_float4(m0, m1, l0, l1);
					__threadfence_block();
					__syncwarp();
					asm volatile("bar.arrive %0, 64;" ::"r"(1 + w) : "memory");
				} else {
					if (to > end && end < finish) {
						/* It goes on in the second part. */
						__syncwarp();
						asm volatile("bar.sync %0, 64;" ::"r"(1 + w) : "memory");

						const float4 y = deposit[8 * 32];
						const float h0 = fmaxf(m0, y.x), h1 = fmaxf(m1, y.y);
						const float u0 = exp2_fast(m0 - h0), u1 = exp2_fast(m1 - h1);
						const float z0 = exp2_fast(y.x - h0), z1 = exp2_fast(y.y - h1);

						m0 = h0;
						m1 = h1;
						l0 = l0 * u0 + y.z * z0;
						l1 = l1 * u1 + y.w * z1;
#pragma unroll
						for (int mt = 0; mt < 8; mt++) {
							const float4 x = deposit[mt * 32];

							acc[mt][0] = acc[mt][0] * u0 + x.x * z0;
							acc[mt][1] = acc[mt][1] * u1 + x.y * z1;
							acc[mt][2] = acc[mt][2] * u0 + x.z * z0;
							acc[mt][3] = acc[mt][3] * u1 + x.w * z1;
						}
					}
					if (from >= start && to <= finish) {
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
						float *slot = parts + (int64_t)(2 * (int)blockIdx.x + (from >= start ? 1 : 0)) * SLOT;
						float4 *x = (float4 *)(slot + (w * GROUP + 2 * c) * DIM) + g;

						/* Whole lines: eight lanes write 128 bytes of a head. */
#pragma unroll
						for (int j = 0; j < 4; j++) {
							x[8 * j] = make_float4(acc[2 * j][0], acc[2 * j][2], acc[2 * j + 1][0],
									       acc[2 * j + 1][2]);
							x[8 * j + DIM / 4] = make_float4(acc[2 * j][1], acc[2 * j][3], acc[2 * j + 1][1],
											 acc[2 * j + 1][3]);
						}
						if (g == 0) {
							float *y = slot + HEADS * DIM + w * GROUP + 2 * c;

							y[0] = m0;
							y[1] = m1;
							y[HEADS] = l0;
							y[HEADS + 1] = l1;
						}
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
static __global__ void __launch_bounds__(JOIN_WARPS * 32, 4) join_parts(const int32_t *indptr, const float *parts, int chunk, uint16_t *output,
								     float *lse)
{
	extern __shared__ float4 value[]; /* [warps][DIM / 4], and then a maximum and a sum a warp */
	const int b = (int)blockIdx.x / HEADS, h = (int)blockIdx.x % HEADS;
	const int lane = (int)threadIdx.x & 31, w = (int)threadIdx.x >> 5, warps = (int)blockDim.x >> 5;
	float *top = (float *)(value + warps * (DIM / 4)), *sum = top + warps;
	const int from = load_now(indptr + b), to = load_now(indptr + b + 1);
	const int first = from / chunk, last = (to - 1) / chunk;
	const int64_t row = (int64_t)blockIdx.x;

	if (threadIdx.x == 0) {
		prefetch(output + row * DIM);
		prefetch(lse + row);
		if (first < last)
			prefetch(parts + (int64_t)(2 * last) * SLOT + h * DIM);
	}
	asm volatile("griddepcontrol.wait;" ::: "memory");
	if (to <= from) {
		for (int d = (int)threadIdx.x; d < DIM; d += (int)blockDim.x)
			output[row * DIM + d] = 0;
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
	value[w * (DIM / 4) + lane] = v;
	if (lane == 0) {
		top[w] = m;
		sum[w] = l;
	}
	__syncthreads();

	float higher = -INFINITY, all = 0;

	for (int i = 0; i < warps; i++)
		higher = fmaxf(higher, top[i]);
	for (int i = 0; i < warps; i++)
		all += exp2_fast(top[i] - higher) * sum[i];
	for (int d = (int)threadIdx.x; d < DIM; d += (int)blockDim.x) {
		/* Where a partial result has dimension d. */
		const float *x = (const float *)value + (d & ~31) + (d & 7) * 4 + ((d >> 3) & 3);
		float y = 0;

		for (int i = 0; i < warps; i++)
			y += exp2_fast(top[i] - higher) * x[i * DIM];
		output[row * DIM + d] = __bfloat16_as_ushort(__float2bfloat16(y / all));
	}
	if (threadIdx.x == 0)
		lse[row] = higher + log2f(all);
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
	const int half = ((chunk + 1) / 2 + TILE - 1) / TILE * TILE; /* whole tiles */
	const int64_t rows = a->batch_size * HEADS;
	/* Few enough threads that the blocks can wait beside those of the first kernel. */
	const unsigned warps = rows <= 2 * RANGES ? (unsigned)JOIN_WARPS : rows <= 8 * RANGES ? 4u : 2u;
	cudaLaunchAttribute attribute[1];
	cudaLaunchConfig_t config = {};
	cudaError_t error;

	if (a->batch_size < 1)
		return 0;
	attend<<<(unsigned)ranges, THREADS, SHARED, stream>>>(*a, chunk, half, parts);
	error = cudaGetLastError();
	if (error != cudaSuccess)
		return (int)error;

	attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attribute[0].val.programmaticStreamSerializationAllowed = 1;
	config.gridDim = dim3((unsigned)rows);
	config.blockDim = dim3(warps * 32);
	config.dynamicSmemBytes = warps * (DIM + 2) * sizeof(float);
	config.stream = stream;
	config.attrs = attribute;
	config.numAttrs = 1;
	error = cudaLaunchKernelEx(&config, join_parts, a->kv_indptr, joined, chunk, a->output, a->lse);
	if (error != cudaSuccess)
		return (int)error;
	return (int)cudaGetLastError();
}
