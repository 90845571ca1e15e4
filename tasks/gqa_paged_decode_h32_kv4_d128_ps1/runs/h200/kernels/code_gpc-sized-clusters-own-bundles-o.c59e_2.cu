#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>

enum {
	DIM = 128, HEADS = 32, KVH = 4, WARPS = 5, THREADS = WARPS * 32,
	TILE = 16, STAGES = 5, ROW = 1040, HALF = TILE * ROW, STAGE = 2 * HALF,
	VROW = 132, MAXB = 512, IDX = 4096, AHEAD = 4 /* pages a lane prefetches */
};

struct slot_t {
	float v[HEADS][VROW];
	float m[HEADS], l[HEADS];
};

struct smem_t {
	unsigned char ring[STAGES][STAGE];
	slot_t slot[2];
	int idx[IDX];
	int ptr[MAXB + 4];
	int order[MAXB];
	int bundle[MAXB];
	int off[MAXB + 4];
	unsigned long long full[STAGES], empty[STAGES];
};

static_assert(sizeof(smem_t) + 128 <= 232448, "shared memory");

static __device__ __forceinline__ uint32_t saddr(const void *p)
{
	return (uint32_t)__cvta_generic_to_shared(p);
}

static __device__ __forceinline__ void bar_wait(uint32_t bar, uint32_t parity)
{
	uint32_t done;

	do {
		asm volatile("{\n\t.reg .pred p;\n\t"
			     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
			     "selp.u32 %0, 1, 0, p;\n\t}"
			     : "=r"(done) : "r"(bar), "r"(parity) : "memory");
	} while (!done);
}

static __device__ __forceinline__ float ex2(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

static __device__ __forceinline__ uint32_t pack(float lo, float hi)
{
	uint32_t r;

	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
	return r;
}

static __device__ __forceinline__ uint32_t transpose8(uint32_t x)
{
	uint32_t r;

	asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(x));
	return r;
}

static __device__ __forceinline__ void mma(float *c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
		     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
		     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ uint32_t map_rank(uint32_t addr, uint32_t rank)
{
	uint32_t r;

	asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(addr), "r"(rank));
	return r;
}

static __device__ __forceinline__ float ld_remote(uint32_t addr)
{
	float r;

	asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(r) : "r"(addr) : "memory");
	return r;
}

static __device__ __forceinline__ float4 ld_remote4(uint32_t addr)
{
	float4 r;

	asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
		     : "=f"(r.x), "=f"(r.y), "=f"(r.z), "=f"(r.w) : "r"(addr) : "memory");
	return r;
}

/* The first piece of the bundle at or after k that has tokens in [start, end), or kb. */
static __device__ __forceinline__ int next_seg(const int *off, int k, int kb, int start, int end)
{
	for (; k < kb; k++) {
		int lo = max(off[k], start), hi = min(off[k + 1], end);

		if (lo < hi)
			return k;
		if (off[k] >= end)
			return kb;
	}
	return kb;
}

static __device__ __forceinline__ void load_q(uint32_t *r, const uint16_t *q, int64_t b, int warp, int lane)
{
	const uint32_t *p = (const uint32_t *)(q + (b * HEADS + warp * 8 + (lane >> 2)) * DIM) + (lane & 3);

#pragma unroll
	for (int i = 0; i < 16; i++)
		r[i] = __ldg(p + i * 4);
}

/* Sequences b0 .. b0 + nb - 1, nb <= MAXB. */
static __global__ void __launch_bounds__(THREADS, 1) attend(struct km_args a, int b0, int nb, int cs)
{
	extern __shared__ __align__(128) unsigned char raw[];
	smem_t &s = *(smem_t *)raw;
	const int tid = (int)threadIdx.x, warp = tid >> 5, lane = tid & 31;
	const int rank = (int)blockIdx.x % cs, cluster = (int)blockIdx.x / cs, clusters = (int)gridDim.x / cs;
	const int32_t *indptr = a.kv_indptr + b0;

	/* A single sequence has all the tokens: no need to wait for kv_indptr. */
	int own = 0;

	if (tid <= nb)
		own = a.batch_size == 1 ? (tid ? (int)a.num_kv_indices : 0) : __ldg(indptr + tid);
	{ /* indices and queries into L2 while kv_indptr is on its way */
		int64_t g = (int64_t)blockIdx.x * THREADS + tid;

		if (g * 32 < a.num_kv_indices)
			asm volatile("prefetch.global.L2 [%0];" :: "l"(a.kv_indices + g * 32));
		if (g < (int64_t)nb * (HEADS * DIM / 64))
			asm volatile("prefetch.global.L2 [%0];" :: "l"(a.q + (int64_t)b0 * HEADS * DIM + g * 64));
	}
	if (warp == KVH) {
		/* The caches are known before the indices: a dense one is fetched in part into L2, spread evenly, while DRAM is idle;
		 * of a sparse one only the translations are warmed. Every cluster touches all of it. */
		const unsigned np = (unsigned)a.num_pages;
		const unsigned step = max(np / (gridDim.x * 16u), 1u);
		const unsigned id = ((unsigned)(lane & 15) * (unsigned)cs + (unsigned)rank) * (unsigned)clusters + (unsigned)cluster;
		const uint64_t first = (uint64_t)id * step;
		const bool dense = a.num_kv_indices * 10 >= a.num_pages * 6;
		const unsigned bytes = dense ? min(step, (unsigned)AHEAD) * 1024u : 32u;
		const unsigned char *cache = (const unsigned char *)(lane < 16 ? a.k_cache : a.v_cache);

		if (first < np)
			asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" :: "l"(cache + first * 1024), "r"(bytes) : "memory");
	} else if (warp == KVH - 1 && lane < 2) { /* translations of the outputs */
		const void *to = lane ? (const void *)(a.lse + (int64_t)b0 * HEADS) : (const void *)(a.output + (int64_t)b0 * HEADS * DIM);

		asm volatile("prefetch.global.L2 [%0];" :: "l"(to));
	}
	if (tid == 0) {
		for (int i = 0; i < STAGES; i++) {
			asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(saddr(&s.full[i])), "r"(1) : "memory");
			asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(saddr(&s.empty[i])), "r"(4) : "memory");
		}
		asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
	}
	if (tid <= nb)
		s.ptr[tid] = own;
	for (int i = tid + THREADS; i <= nb; i += THREADS)
		s.ptr[i] = __ldg(indptr + i);
	__syncthreads();

	/* Rank the lengths. */
	for (int b = tid; b < nb; b += THREADS) {
		int from = s.ptr[b], length = s.ptr[b + 1] - from, r = 0, prev = s.ptr[0];

#pragma unroll 8
		for (int i = 0; i < nb; i++) {
			int cur = s.ptr[i + 1], other = cur - prev;

			prev = cur;
			r += (other > length || (other == length && i < b)) ? 1 : 0;
		}
		s.order[r] = b;
	}
	__syncthreads();

	/* Longest first, each to the cluster with the least so far; lane c keeps load * 32 + c. After 32 sequences, `clusters` of them
	 * at a time: the longest to the cluster with the least. Every warp computes and writes the same. */
	int kb = 1, total = 0;
	{
		const int greedy = min(nb, 32);
		uint32_t weight = 0, key = ~0u;
		int seq = 0;

		if (lane < nb) {
			seq = s.order[lane];
			weight = (uint32_t)max(s.ptr[seq + 1] - s.ptr[seq], 1) << 5;
		}
		if (lane < clusters)
			key = weight | (uint32_t)lane;
		if (lane == cluster)
			s.bundle[0] = seq;
#pragma unroll 4
		for (int i = clusters; i < greedy; i++) {
			const int b = __shfl_sync(~0u, seq, i);
			const uint32_t w = __shfl_sync(~0u, weight, i);
			const int owner = (int)(__reduce_min_sync(~0u, key) & 31u);

			if (lane == owner)
				key += w;
			if (owner == cluster) {
				if (lane == 0)
					s.bundle[kb] = b;
				kb++;
			}
		}
		for (int base = greedy; base < nb; base += clusters) {
			int pos = 0, b = -1;

#pragma unroll
			for (int j = 0; j < 16; j++)
				pos += __shfl_sync(~0u, key, j) < key ? 1 : 0;
			if (lane < clusters && base + pos < nb) {
				b = s.order[base + pos];
				key += (uint32_t)max(s.ptr[b + 1] - s.ptr[b], 1) << 5;
			}
			b = __shfl_sync(~0u, b, cluster);
			if (b >= 0) {
				if (lane == 0)
					s.bundle[kb] = b;
				kb++;
			}
		}
		__syncwarp();
	}

	/* Every warp writes the same offsets. */
	for (int k0 = 0; k0 < kb; k0 += 32) {
		int k = k0 + lane, len = 0, sum;

		if (k < kb) {
			int b = s.bundle[k];

			len = s.ptr[b + 1] - s.ptr[b];
		}
		sum = len;
#pragma unroll
		for (int o = 1; o < 32; o *= 2) {
			int up = __shfl_up_sync(~0u, sum, o);

			if (lane >= o)
				sum += up;
		}
		if (k < kb)
			s.off[k] = total + sum - len;
		total += __shfl_sync(~0u, sum, 31);
	}
	if (lane == 0)
		s.off[kb] = total;
	__syncwarp();

	const int chunk = max((total + cs - 1) / cs, 1);
	const int start = min(rank * chunk, total), end = min(start + chunk, total);
	const int kfirst = next_seg(s.off, 0, kb, start, end);

	if (warp == KVH) {
		/* Producer: the indices of the range, then the pages. */
		for (int k = kfirst; k < kb; k = next_seg(s.off, k + 1, kb, start, end)) {
			int lo = max(s.off[k], start), hi = min(s.off[k + 1], end);
			const int32_t *src = a.kv_indices + s.ptr[s.bundle[k]] - s.off[k];

			for (int t = lo + lane; t < hi && t - start < IDX; t += 32)
				asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(saddr(&s.idx[t - start])), "l"(src + t) : "memory");
		}
		asm volatile("cp.async.wait_all;" ::: "memory");
		__syncwarp();

		const unsigned char *cache = (const unsigned char *)(lane < TILE ? a.k_cache : a.v_cache);
		const int token = lane & (TILE - 1);
		const uint32_t place = (uint32_t)((lane < TILE ? 0 : HALF) + token * ROW);
		int stage = 0;
		uint32_t parity = 1;

		for (int k = kfirst; k < kb; k = next_seg(s.off, k + 1, kb, start, end)) {
			int lo = max(s.off[k], start), hi = min(s.off[k + 1], end);
			const int32_t *src = a.kv_indices + s.ptr[s.bundle[k]] - s.off[k];
			int t0 = lo + token, page = 0;

			if (t0 < hi)
				page = t0 - start < IDX ? s.idx[t0 - start] : __ldg(src + t0);
			for (int t = lo; t < hi; t += TILE) {
				int n = min((int)TILE, hi - t), tn = t + TILE + token, following = 0;
				uint32_t full = saddr(&s.full[stage]);

				if (tn < hi)
					following = tn - start < IDX ? s.idx[tn - start] : __ldg(src + tn);
				bar_wait(saddr(&s.empty[stage]), parity);
				if (lane == 0)
					asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(full), "r"(n * 2048) : "memory");
				__syncwarp();
				if (token < n)
					asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
						     :: "r"(saddr(s.ring[stage]) + place), "l"(cache + (int64_t)page * 1024), "r"(1024), "r"(full)
						     : "memory");
				page = following;
				if (++stage == STAGES) {
					stage = 0;
					parity ^= 1;
				}
			}
		}
		__syncwarp();
	} else {
		const float scale = a.sm_scale * 1.4426950408889634f;
		const uint32_t kplace = (uint32_t)((lane & 15) * ROW + warp * 256 + (lane >> 4) * 16);
		const int vtoken = (lane & 7) + ((lane >> 4) << 3);
		const uint32_t vplace = (uint32_t)(HALF + warp * 256 + ((lane >> 3) & 1) * 16);
		const int row = lane >> 2, col = (lane & 3) * 2;
		uint32_t q[16], qnext[16];
		int stage = 0, knext;
		uint32_t parity = 0;

#pragma unroll
		for (int i = 0; i < 16; i++)
			qnext[i] = 0;
		if (kfirst < kb)
			load_q(qnext, a.q, (int64_t)b0 + s.bundle[kfirst], warp, lane);
		for (int k = kfirst; k < kb; k = knext) {
			const int lo = max(s.off[k], start), hi = min(s.off[k + 1], end);
			const int64_t b = (int64_t)b0 + s.bundle[k];
			float acc[8][4], m0 = -INFINITY, m1 = -INFINITY, l0 = 0, l1 = 0;

#pragma unroll
			for (int i = 0; i < 16; i++)
				q[i] = qnext[i];
			knext = next_seg(s.off, k + 1, kb, start, end);
			if (knext < kb)
				load_q(qnext, a.q, (int64_t)b0 + s.bundle[knext], warp, lane);
#pragma unroll
			for (int i = 0; i < 8; i++)
				acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = 0;

			for (int t = lo; t < hi; t += TILE) {
				const int n = min((int)TILE, hi - t);
				const uint32_t base = saddr(s.ring[stage]);
				float c[4] = {0, 0, 0, 0}, d[4] = {0, 0, 0, 0};

				bar_wait(saddr(&s.full[stage]), parity);
#pragma unroll
				for (int i = 0; i < 8; i++) {
					uint32_t a0, a1, a2, a3;

					asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
						     : "=r"(a0), "=r"(a1), "=r"(a2), "=r"(a3) : "r"(base + kplace + i * 32) : "memory");
					mma((i & 1) ? d : c, a0, a1, a2, a3, q[2 * i], q[2 * i + 1]);
				}
				/* c: tokens row and row + 8, heads col and col + 1 */
				float s0 = row < n ? (c[0] + d[0]) * scale : -INFINITY;
				float s1 = row < n ? (c[1] + d[1]) * scale : -INFINITY;
				float s2 = row + 8 < n ? (c[2] + d[2]) * scale : -INFINITY;
				float s3 = row + 8 < n ? (c[3] + d[3]) * scale : -INFINITY;
				float x0 = fmaxf(s0, s2), x1 = fmaxf(s1, s3);

#pragma unroll
				for (int o = 4; o < 32; o *= 2) {
					x0 = fmaxf(x0, __shfl_xor_sync(~0u, x0, o));
					x1 = fmaxf(x1, __shfl_xor_sync(~0u, x1, o));
				}
				x0 = fmaxf(x0, m0);
				x1 = fmaxf(x1, m1);
				const float f0 = ex2(m0 - x0), f1 = ex2(m1 - x1);

				m0 = x0;
				m1 = x1;
				s0 = ex2(s0 - x0);
				s1 = ex2(s1 - x1);
				s2 = ex2(s2 - x0);
				s3 = ex2(s3 - x1);
				l0 = l0 * f0 + (s0 + s2);
				l1 = l1 * f1 + (s1 + s3);
				const uint32_t p0 = transpose8(pack(s0, s1)), p1 = transpose8(pack(s2, s3));
				const uint32_t vbase = base + vplace + (uint32_t)(min(vtoken, n - 1) * ROW);

#pragma unroll
				for (int i = 0; i < 8; i++) {
					uint32_t a0, a1, a2, a3;

					asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
						     : "=r"(a0), "=r"(a1), "=r"(a2), "=r"(a3) : "r"(vbase + i * 32) : "memory");
					acc[i][0] *= f0;
					acc[i][1] *= f1;
					acc[i][2] *= f0;
					acc[i][3] *= f1;
					mma(acc[i], a0, a1, a2, a3, p0, p1);
				}
				__syncwarp();
				if (lane == 0)
					asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(saddr(&s.empty[stage])) : "memory");
				if (++stage == STAGES) {
					stage = 0;
					parity ^= 1;
				}
			}
#pragma unroll
			for (int o = 4; o < 32; o *= 2) {
				l0 += __shfl_xor_sync(~0u, l0, o);
				l1 += __shfl_xor_sync(~0u, l1, o);
			}
			if (s.off[k] >= start && s.off[k + 1] <= end) {
				/* the whole sequence */
				const float r0 = 1.0f / l0, r1 = 1.0f / l1;
				uint32_t *to = (uint32_t *)(a.output + (b * HEADS + warp * 8 + row) * DIM) + (lane & 3);

#pragma unroll
				for (int i = 0; i < 8; i++) {
					uint32_t y0 = transpose8(pack(acc[i][0] * r0, acc[i][1] * r1));
					uint32_t y1 = transpose8(pack(acc[i][2] * r0, acc[i][3] * r1));

					to[i * 8] = y0;
					to[i * 8 + 4] = y1;
				}
				if (row == 0) {
					a.lse[b * HEADS + warp * 8 + col] = m0 + log2f(l0);
					a.lse[b * HEADS + warp * 8 + col + 1] = m1 + log2f(l1);
				}
			} else {
				slot_t &to = s.slot[s.off[k] < start ? 0 : 1];
				const int h = warp * 8 + col;

#pragma unroll
				for (int i = 0; i < 8; i++) {
					to.v[h][i * 16 + row] = acc[i][0];
					to.v[h + 1][i * 16 + row] = acc[i][1];
					to.v[h][i * 16 + row + 8] = acc[i][2];
					to.v[h + 1][i * 16 + row + 8] = acc[i][3];
				}
				if (row == 0) {
					to.m[h] = m0;
					to.m[h + 1] = m1;
					to.l[h] = l0;
					to.l[h + 1] = l1;
				}
			}
		}
	}

	asm volatile("barrier.cluster.arrive.release;" ::: "memory");
	if (rank == 0) { /* empty sequences, while the others come */
		for (int k = 0; k < kb; k++) {
			if (s.off[k + 1] > s.off[k])
				continue;
			const int64_t b = (int64_t)b0 + s.bundle[k];
			uint32_t *to = (uint32_t *)(a.output + b * HEADS * DIM);

			for (int i = tid; i < HEADS * DIM / 2; i += THREADS)
				to[i] = 0;
			if (tid < HEADS)
				a.lse[b * HEADS + tid] = -INFINITY;
		}
	}
	asm volatile("barrier.cluster.wait.acquire;" ::: "memory");

	/* Join the sequences that this CTA shares: at most its first and its last. */
	for (int k = kfirst; k < kb; k = next_seg(s.off, k + 1, kb, start, end)) {
		const int o0 = s.off[k], o1 = s.off[k + 1];

		if (o0 >= start && o1 <= end)
			continue;
		const int r0 = o0 / chunk, r1 = (o1 - 1) / chunk, count = r1 - r0 + 1;
		const int hfirst = (rank - r0) * HEADS / count, hlast = (rank - r0 + 1) * HEADS / count;
		const int64_t b = (int64_t)b0 + s.bundle[k];

		for (int h = hfirst + warp; h < hlast; h += WARPS) {
			float m = -INFINITY, l = 0, top, w;

			if (lane < count) { /* the first sharer has it in its last slot, the others in their first */
				m = ld_remote(map_rank(saddr(&s.slot[lane == 0 ? 1 : 0].m[h]), (uint32_t)(r0 + lane)));
				l = ld_remote(map_rank(saddr(&s.slot[lane == 0 ? 1 : 0].l[h]), (uint32_t)(r0 + lane)));
			}
			float4 sum = make_float4(0, 0, 0, 0);

			top = m;
#pragma unroll
			for (int o = 16; o > 0; o /= 2)
				top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
			w = ex2(m - top);
			l *= w;
#pragma unroll
			for (int o = 16; o > 0; o /= 2)
				l += __shfl_xor_sync(~0u, l, o);
#pragma unroll 8
			for (int i = 0; i < count; i++) {
				float4 v = ld_remote4(map_rank(saddr(&s.slot[i == 0 ? 1 : 0].v[h][lane * 4]), (uint32_t)(r0 + i)));
				float wi = __shfl_sync(~0u, w, i);

				sum.x += wi * v.x;
				sum.y += wi * v.y;
				sum.z += wi * v.z;
				sum.w += wi * v.w;
			}
			const float inv = 1.0f / l;
			uint2 y;

			y.x = pack(sum.x * inv, sum.y * inv);
			y.y = pack(sum.z * inv, sum.w * inv);
			*(uint2 *)(a.output + (b * HEADS + h) * DIM + lane * 4) = y;
			if (lane == 0)
				a.lse[b * HEADS + h] = top + log2f(l);
		}
	}
	asm volatile("barrier.cluster.arrive.release;" ::: "memory");
	asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

static int chosen_size = 0, chosen_count = 0;

static void configure(cudaLaunchConfig_t *config, cudaLaunchAttribute *attribute, int size, int count, cudaStream_t stream)
{
	attribute->id = cudaLaunchAttributeClusterDimension;
	attribute->val.clusterDim.x = (unsigned)size;
	attribute->val.clusterDim.y = 1;
	attribute->val.clusterDim.z = 1;
	config->gridDim = dim3((unsigned)(size * count));
	config->blockDim = dim3(THREADS);
	config->dynamicSmemBytes = sizeof(smem_t);
	config->stream = stream;
	config->attrs = attribute;
	config->numAttrs = 1;
}

int km_init(const struct km_args *a)
{
	int active = 0;

	(void)a;
	if (chosen_size)
		return 0;
	cudaError_t e = cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(smem_t));

	if (e != cudaSuccess)
		return (int)e;
	e = cudaFuncSetAttribute(attend, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
	if (e == cudaSuccess) {
		cudaLaunchConfig_t config = {};
		cudaLaunchAttribute attribute = {};

		configure(&config, &attribute, 16, 8, 0);
		e = cudaOccupancyMaxActiveClusters(&active, attend, &config);
	}
	if (e == cudaSuccess && active >= 8) {
		chosen_count = 8;
		chosen_size = 16;
		return 0;
	}
	(void)cudaGetLastError();
	{
		cudaLaunchConfig_t config = {};
		cudaLaunchAttribute attribute = {};

		active = 0;
		configure(&config, &attribute, 8, 16, 0);
		e = cudaOccupancyMaxActiveClusters(&active, attend, &config);
	}
	(void)cudaGetLastError();
	chosen_count = e == cudaSuccess && active >= 1 && active < 16 ? active : 16;
	chosen_size = 8;
	return 0;
}

int km_run(const struct km_args *a)
{
	if (!chosen_size) {
		int e = km_init(a);

		if (e)
			return e;
	}
	for (int64_t b0 = 0; b0 < a->batch_size; b0 += MAXB) {
		int nb = (int)(a->batch_size - b0 < MAXB ? a->batch_size - b0 : MAXB);
		int count = chosen_count < nb ? chosen_count : nb;
		cudaLaunchConfig_t config = {};
		cudaLaunchAttribute attribute = {};

		configure(&config, &attribute, chosen_size, count, (cudaStream_t)a->stream);
		cudaError_t e = cudaLaunchKernelEx(&config, attend, *a, (int)b0, nb, chosen_size);

		if (e != cudaSuccess)
			return (int)e;
	}
	return (int)cudaGetLastError();
}
