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
	/* Floats of a partial result: values [head][dim / 32][dim % 8][dim / 8 % 4], maxima, sums, and 32 words of which the first GROUPS
	 * count the heads of a group whose result is there and has not been taken yet; all are zero between calls. */
	READY = HEADS * DIM + 2 * HEADS, SLOT = READY + 32,
	JOIN_WARPS = 8, JOIN_DEPTH = 5,
	SWEEP_DENSE = 24, /* pages that a block may prefetch unseen */
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

/* Let the second kernel begin; it waits for each partial result by itself. */
__device__ __forceinline__ void launch_dependents()
{
	asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

__device__ __forceinline__ void store_release(unsigned *to, unsigned x)
{
	asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(x) : "memory");
}

__device__ __forceinline__ unsigned load_acquire(const unsigned *from)
{
	unsigned x;

	asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(from) : "memory");
	return x;
}

__device__ __forceinline__ void count_down(unsigned *x)
{
	asm volatile("red.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(x), "r"(0xffffffffu) : "memory");
}

/* From the second-level cache, not before what is written above. */
__device__ __forceinline__ float load_part(const float *from)
{
	float x;

	asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(x) : "l"(from) : "memory");
	return x;
}

__device__ __forceinline__ float4 load_part4(const float4 *from)
{
	float4 x;

	asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "l"(from) : "memory");
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

__device__ __forceinline__ void prefetch_bulk(const void *x, unsigned bytes)
{
	asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(x), "r"(bytes) : "memory");
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
static __global__ void __launch_bounds__(THREADS, 2) attend(const struct km_args a, int chunk, int half, int sweep, float *parts)
{
	extern __shared__ __align__(1024) unsigned char ring[];
	const int lane = (int)threadIdx.x & 31, warp = __shfl_sync(~0u, (int)threadIdx.x >> 5, 0);
	const int w = warp & (GROUPS - 1);
	const bool second = warp >= GROUPS;
	const int g = lane >> 2, c = lane & 3, hi = lane >> 4;
	const int total = (int)a.num_kv_indices, batch = (int)a.batch_size;
	const int start = (int)blockIdx.x * chunk;

	if (start >= total)
		return;

	const int finish = total - start < chunk ? total : start + chunk;
	const int middle = finish - start < half ? finish : start + half;
	const int begin = second ? middle : start, end = second ? finish : middle, last = end - 1;

	/* A second part without tokens: nobody waits for it. */
	if (begin >= end)
		return;

	const int tiles = (end - begin + TILE - 1) / TILE;

	/* The second kernel is to be there when the last tiles arrive, and not to poll for long before. */
	if (tiles <= STAGES)
		launch_dependents();

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
		probe[j] = load_now(a.kv_indptr + min(j * 32 + lane, batch));

	/* While the indices are on their way, if most pages are in use: */
	if (sweep > 0 && warp < 2) {
		/* have the addresses of the first 64 MB of a cache translated, */
		const char *cache = (const char *)(warp ? a.v_cache : a.k_cache);
		const int64_t size = a.num_pages * PAGE, step = (int64_t)lane << 21, off = step + (int64_t)((blockIdx.x & 15) << 10);

		if (step < size + (1 << 21))
			prefetch(cache + (off < size - PAGE ? off : size - PAGE));
	} else if (sweep > 0 && warp == 2) {
		/* begin to fetch pages in their physical order, */
		if (lane < 8) {
			const char *cache = (const char *)(lane & 1 ? a.v_cache : a.k_cache);
			const int64_t origin = (int64_t)blockIdx.x * sweep, rest = a.num_pages - origin;
			const int count = rest < sweep ? (int)rest : sweep;

			if (count > 0) {
				const int low = count * (lane >> 1) / 4, high = count * ((lane >> 1) + 1) / 4;

				if (low < high)
					prefetch_bulk(cache + (origin + low) * PAGE, (unsigned)((high - low) * PAGE));
			}
		}
	} else if (batch > 16 && warp == 3 && lane == 0) {
		/* and bring this block's share of all queries, so that none waits in line behind the pages. */
		const int64_t bytes = (int64_t)batch * HEADS * ROW;
		const int64_t share = (bytes / 1024 + gridDim.x - 1) / gridDim.x * 1024, low = share * blockIdx.x;

		if (share <= 32 * 1024 && low < bytes)
			prefetch_bulk((const char *)a.q + low, (unsigned)(bytes - low < share ? bytes - low : share));
	}

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

	int b = 0, from = 0, to = 0;
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
	/* indptr[i], if the probes have all of it. */
	auto probed = [&](int i) {
		const int x = i < 64 ? (i < 32 ? probe[0] : probe[1]) : (i < 96 ? probe[2] : probe[3]);

		return __shfl_sync(~0u, x, i & 31);
	};
	/* q is asked for behind the first tile rather than behind all, unless its sequence takes long to find. */
	const bool few = batch < 128;
	const int turn = few ? 0 : STAGES - 1;

#pragma unroll 1
	for (int f = 0; f < STAGES; f++) {
		fill(f, base + (unsigned)(f * STAGE));
		if (f == turn) {
			/* The sequence of the first token: the last one that begins at it or before it. */
			if (few) {
				b = -1;
#pragma unroll
				for (int j = 0; j < 4; j++)
					b += __popc(__ballot_sync(~0u, j * 32 + lane < batch && probe[j] <= begin));
				from = probed(b);
				to = probed(b + 1);
			} else {
				int size = batch;

				while (size > 1) {
					const int step = (size + 31) / 32, at = lane * step;
					const bool before = at < size && __ldg(a.kv_indptr + b + min(at, size - 1)) <= begin;
					const int skip = (__popc(__ballot_sync(~0u, before)) - 1) * step;

					b += skip;
					size = min(step, size - skip);
				}
				from = __ldg(a.kv_indptr + b);
				to = __ldg(a.kv_indptr + b + 1);
			}
			load_q();
			prefetch_q();
		}
	}

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
						__syncwarp();
						if (lane == 0)
							store_release((unsigned *)(slot + READY) + w, GROUP);
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
		if (tile + STAGES == tiles - 1)
			launch_dependents();
		at = at == base + (STAGES - 1) * STAGE ? base : at + STAGE;
	}
}

/* 1 << shift warps for a sequence and a head: join the partial results of a sequence that several blocks share, or write those of an empty
 * one. All blocks have room beside those of the first kernel, for the sizes that occur most. They begin when all blocks of that run, take
 * each partial result as soon as it is marked ready, and count its mark down to zero: one for each head of the group. */
static __global__ void __launch_bounds__(JOIN_WARPS * 32, 4) join_parts(const int32_t *indptr, float *parts, int chunk, int shift,
								     int rows, uint16_t *output, float *lse)
{
	__shared__ float4 value[JOIN_WARPS][DIM / 4];
	__shared__ float top[JOIN_WARPS], sum[JOIN_WARPS];
	const int lane = (int)threadIdx.x & 31, w = (int)threadIdx.x >> 5;
	const int member = w & ((1 << shift) - 1);
	const int row = (int)blockIdx.x * (JOIN_WARPS >> shift) + (w >> shift);
	const int b = row / HEADS, h = row % HEADS;
	int from = 0, to = 0;

	if (row < rows) {
		from = load_now(indptr + b);
		to = load_now(indptr + b + 1);
	}

	const int first = from / chunk, last = to > from ? (to - 1) / chunk : first;

	if (row < rows && member == 0 && lane == 0) {
		prefetch(output + (int64_t)row * DIM);
		prefetch(lse + row);
	}

	float m = -INFINITY, l = 0;
	float4 v = make_float4(0, 0, 0, 0);

	if (first < last) {
		/* Up to 32 partial results at a time: j, j + (1 << shift), ...; a lane has the maximum and the sum of one. */
#pragma unroll 1
		for (int j = first + member; j <= last; j += 32 << shift) {
			const int count = min(32, ((last - j) >> shift) + 1);
			float mm = -INFINITY, ll = 0, f = 0;

			if (lane < count) {
				const int k = j + (lane << shift);
				float *slot = parts + (int64_t)(2 * k + (k == first ? 1 : 0)) * SLOT;
				unsigned *ready = (unsigned *)(slot + READY) + h / GROUP;

				while (load_acquire(ready) == 0)
					__nanosleep(32);
				mm = load_part(slot + HEADS * DIM + h);
				ll = load_part(slot + HEADS * DIM + HEADS + h);
				count_down(ready);
			}
			__syncwarp();
#pragma unroll 1
			for (int i = 0; i < count; i += JOIN_DEPTH) {
				float4 x[JOIN_DEPTH];

#pragma unroll
				for (int u = 0; u < JOIN_DEPTH; u++) {
					const int k = j + ((i + u) << shift);

					x[u] = make_float4(0, 0, 0, 0);
					if (i + u < count)
						x[u] = load_part4((const float4 *)(parts + (int64_t)(2 * k + (k == first ? 1 : 0)) * SLOT +
									       h * DIM) + lane);
				}
				if (i == 0) {
					float higher = mm, all;

#pragma unroll
					for (int offset = 16; offset > 0; offset /= 2)
						higher = fmaxf(higher, __shfl_xor_sync(~0u, higher, offset));
					higher = fmaxf(higher, m);
					f = exp2_fast(mm - higher);
					all = f * ll;
#pragma unroll
					for (int offset = 16; offset > 0; offset /= 2)
						all += __shfl_xor_sync(~0u, all, offset);

					const float old = exp2_fast(m - higher);

					m = higher;
					l = l * old + all;
					v.x *= old;
					v.y *= old;
					v.z *= old;
					v.w *= old;
				}
#pragma unroll
				for (int u = 0; u < JOIN_DEPTH; u++) {
					const float y = __shfl_sync(~0u, f, (i + u) & 31); /* beyond the last, x is 0 */

					v.x += y * x[u].x;
					v.y += y * x[u].y;
					v.z += y * x[u].z;
					v.w += y * x[u].w;
				}
			}
		}
	}
	if (shift > 0) {
		value[w][lane] = v;
		if (lane == 0) {
			top[w] = m;
			sum[w] = l;
		}
		__syncthreads();
		if (member == 0 && first < last) {
			const int beyond = w + (1 << shift);
			float higher = m;

			for (int i = w + 1; i < beyond; i++)
				higher = fmaxf(higher, top[i]);

			const float old = exp2_fast(m - higher);

			m = higher;
			l *= old;
			v.x *= old;
			v.y *= old;
			v.z *= old;
			v.w *= old;
			for (int i = w + 1; i < beyond; i++) {
				const float y = exp2_fast(top[i] - higher);
				const float4 x = value[i][lane];

				l += y * sum[i];
				v.x += y * x.x;
				v.y += y * x.y;
				v.z += y * x.z;
				v.w += y * x.w;
			}
		}
	}
	if (member == 0 && row < rows && (first < last || to <= from)) {
		/* The dimensions that this lane holds: every eighth of 32. */
		uint16_t *x = output + (int64_t)row * DIM + (lane >> 3) * 32 + (lane & 7);
		const float r = first < last ? 1.0f / l : 0;

		x[0] = __bfloat16_as_ushort(__float2bfloat16(v.x * r));
		x[8] = __bfloat16_as_ushort(__float2bfloat16(v.y * r));
		x[16] = __bfloat16_as_ushort(__float2bfloat16(v.z * r));
		x[24] = __bfloat16_as_ushort(__float2bfloat16(v.w * r));
		if (lane == 0)
			lse[row] = first < last ? m + log2f(l) : -INFINITY;
	}
	/* Not to end before the first kernel does. */
	asm volatile("griddepcontrol.wait;" ::: "memory");
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
	const int chunk = chunk_of(a), ranges = ranges_of(a);
	const int half = ((chunk + 1) / 2 + TILE - 1) / TILE * TILE; /* whole tiles */
	const int64_t rows = a->batch_size * HEADS;
	/* At most two blocks of joining warps beside a block of the first kernel, so that all of them can wait there. */
	const int shift = rows <= 2 * RANGES ? 3 : rows <= 4 * RANGES ? 2 : rows <= 8 * RANGES ? 1 : 0;
	const int64_t each = JOIN_WARPS >> shift;
	/* Pages that a block prefetches before it knows the indices, if nearly all will be needed: as many as the memory has idle time for. */
	const int64_t slice = (a->num_pages + ranges - 1) / ranges;
	const int64_t most = a->num_kv_indices * 10 >= a->num_pages * 9 ? SWEEP_DENSE : 0;
	const int sweep = (int)(slice < most ? slice : most);
	cudaLaunchAttribute attribute[1];
	cudaLaunchConfig_t config = {};
	cudaError_t error;

	if (a->batch_size < 1)
		return 0;
	attend<<<(unsigned)ranges, THREADS, SHARED, stream>>>(*a, chunk, half, sweep, parts);
	error = cudaGetLastError();
	if (error != cudaSuccess)
		return (int)error;

	attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attribute[0].val.programmaticStreamSerializationAllowed = 1;
	config.gridDim = dim3((unsigned)((rows + each - 1) / each));
	config.blockDim = dim3((unsigned)(JOIN_WARPS * 32));
	config.dynamicSmemBytes = 0;
	config.stream = stream;
	config.attrs = attribute;
	config.numAttrs = 1;
	error = cudaLaunchKernelEx(&config, join_parts, a->kv_indptr, parts, chunk, shift, (int)rows, a->output, a->lse);
	if (error != cudaSuccess)
		return (int)error;
	return (int)cudaGetLastError();
}
