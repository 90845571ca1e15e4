#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>

enum {
	DIM = 128, HEADS = 32, KVH = 4, MOVERS = 4, WARPS = KVH + MOVERS, THREADS = WARPS * 32,
	TILE = 16, PART = TILE / MOVERS, STAGES = 5, ROW = 1040, HALF = TILE * ROW, STAGE = 2 * HALF,
	ENTRIES = 48 /* at least ceil(32 / n) * n for n <= 16 */, MAXB = 512, IDX = 2048
};

/* What the other sharers of a sequence send: entry (head - first own head) * sharers + sharer. */
struct recv_t {
	float v[ENTRIES][DIM];
	float2 ml[ENTRIES];
};

struct smem_t {
	unsigned char ring[STAGES][STAGE];
	recv_t recv[2]; /* 0: of the sequence that began before this CTA, 1: of the one that begins here and goes on */
	int idx[IDX];
	int ptr[MAXB + 4];
	int bundle[MAXB];
	int off[MAXB + 4];
	unsigned long long full[STAGES], empty[STAGES], joined[2];
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

static __device__ __forceinline__ void send4(uint32_t to, float x, float y, float z, float w, uint32_t bar)
{
	asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];"
		     :: "r"(to), "r"(__float_as_uint(x)), "r"(__float_as_uint(y)), "r"(__float_as_uint(z)), "r"(__float_as_uint(w)), "r"(bar)
		     : "memory");
}

static __device__ __forceinline__ void send2(uint32_t to, float x, float y, uint32_t bar)
{
	asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1,%2}, [%3];"
		     :: "r"(to), "r"(__float_as_uint(x)), "r"(__float_as_uint(y)), "r"(bar) : "memory");
}

static __device__ __forceinline__ void bar_wait_cluster(uint32_t bar, uint32_t parity)
{
	uint32_t done;

	do {
		asm volatile("{\n\t.reg .pred p;\n\t"
			     "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n\t"
			     "selp.u32 %0, 1, 0, p;\n\t}"
			     : "=r"(done) : "r"(bar), "r"(parity) : "memory");
	} while (!done);
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

/* Sequences b0 .. b0 + nb - 1, nb <= MAXB. 1 << sh clusters share a bundle, each with its own key-value heads. The first `ahead`
 * pages of every `stride` go into L2 before the indices are known. */
static __global__ void __launch_bounds__(THREADS, 1) attend(struct km_args a, int b0, int nb, int cs, int sh, int stride, int ahead)
{
	extern __shared__ __align__(128) unsigned char raw[];
	smem_t &s = *(smem_t *)raw;
	const int tid = (int)threadIdx.x, warp = tid >> 5, lane = tid & 31;
	uint32_t crank, cid, cnum;

	asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(crank));
	asm("mov.u32 %0, %%clusterid.x;" : "=r"(cid));
	asm("mov.u32 %0, %%nclusterid.x;" : "=r"(cnum));
	const int rank = (int)crank, cluster = (int)cid >> sh, clusters = (int)cnum >> sh;
	const int nh = KVH >> sh, h0 = ((int)cid & ((1 << sh) - 1)) * nh, lg = 5 - sh; /* own key-value heads; log2 of own query heads */
	const int32_t *indptr = a.kv_indptr + b0;

	int first = 0;

	/* Kept in a register until all that follows has been issued. */
	if (tid <= nb)
		asm volatile("ld.global.nc.s32 %0, [%1];" : "=r"(first) : "l"(indptr + tid));
	{ /* indices and queries into L2 while kv_indptr is on its way, some of each by every CTA for the translations */
		const int64_t sector = (int64_t)tid * gridDim.x + blockIdx.x, sectors = (a.num_kv_indices + 7) >> 3;
		const int64_t at = tid == 0 && sector >= sectors ? sectors - 1 : sector;

		if (at >= 0 && at < sectors)
			asm volatile("prefetch.global.L2 [%0];" :: "l"(a.kv_indices + at * 8));
		if (sector < (int64_t)nb * (HEADS * DIM / 32))
			asm volatile("prefetch.global.L2 [%0];" :: "l"(a.q + (int64_t)b0 * HEADS * DIM + sector * 32));
	}
	if (warp == 7) {
		/* A dense cache: pages by their physical place, since device memory is idle until the indices are here. */
		const int left = ahead - (lane >> 1) * 2;

		if (left > 0) {
			const unsigned char *cache = (const unsigned char *)((lane & 1) ? a.v_cache : a.k_cache);
			const int64_t page = (int64_t)blockIdx.x * stride + (lane >> 1) * 2;

			asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" :: "l"(cache + page * 1024), "r"(min(left, 2) * 1024) : "memory");
		}
	} else if (warp == 6 && a.num_pages > 0) {
		/* translations of the caches */
		const int64_t page = (a.num_pages * (lane * 16 + (rank & 15))) >> 9;

		asm volatile("prefetch.global.L2 [%0];" :: "l"(a.k_cache + page * (KVH * DIM)));
		asm volatile("prefetch.global.L2 [%0];" :: "l"(a.v_cache + page * (KVH * DIM)));
	} else if (warp == 5) {
		/* and of the outputs */
		if (lane < 8)
			asm volatile("prefetch.global.L2 [%0];" :: "l"(a.output + (int64_t)b0 * HEADS * DIM + (int64_t)lane * nb * (HEADS * DIM / 8)));
		else if (lane == 8)
			asm volatile("prefetch.global.L2 [%0];" :: "l"(a.lse + (int64_t)b0 * HEADS));
	}
	if (tid == 0) {
		for (int i = 0; i < STAGES; i++) {
			asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(saddr(&s.full[i])), "r"((int)MOVERS) : "memory");
			asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(saddr(&s.empty[i])), "r"(nh) : "memory");
		}
		for (int i = 0; i < 2; i++)
			asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(saddr(&s.joined[i])), "r"(1) : "memory");
		asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
	}
	__syncwarp();
	/* Waited for before the first piece is sent: by then all CTAs of the cluster run and have initialised their barriers. */
	asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
	if (tid <= nb)
		s.ptr[tid] = first;
	for (int i = tid + THREADS; i <= nb; i += THREADS)
		s.ptr[i] = __ldg(indptr + i);
	__syncthreads();

	/* Rank the lengths, four lanes a sequence; keep the own bundle. */
	for (int base = 0; base < nb; base += THREADS / 4) {
		const int b = base + (tid >> 2);
		const int length = b < nb ? s.ptr[b + 1] - s.ptr[b] : 0;
		int r = 0;

#pragma unroll 4
		for (int i = tid & 3; i < nb; i += 4) {
			int other = s.ptr[i + 1] - s.ptr[i];

			r += (other > length || (other == length && i < b)) ? 1 : 0;
		}
		__syncwarp();
		r += __shfl_xor_sync(~0u, r, 1);
		r += __shfl_xor_sync(~0u, r, 2);
		if (b < nb && (tid & 3) == 0) {
			int round = r / (2 * clusters), pos = r - round * 2 * clusters;
			int owner = pos < clusters ? pos : 2 * clusters - 1 - pos;

			if (owner == cluster)
				s.bundle[2 * round + (pos >= clusters ? 1 : 0)] = b;
		}
	}
	__syncthreads();

	const int rem = nb % (2 * clusters);
	const int kb = 2 * (nb / (2 * clusters)) + (cluster < rem ? 1 : 0) + (2 * clusters - 1 - cluster < rem ? 1 : 0);
	int total = 0;

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

	if (warp >= KVH) {
		/* Producers, four tokens of every stage each: the indices of the range, then the pages. */
		const int mover = warp - KVH;

		for (int k = kfirst; k < kb; k = next_seg(s.off, k + 1, kb, start, end)) {
			int lo = max(s.off[k], start), hi = min(s.off[k + 1], end);
			const int32_t *src = a.kv_indices + s.ptr[s.bundle[k]] - s.off[k];

			for (int t = lo + mover * 32 + lane; t < hi && t - start < IDX; t += MOVERS * 32)
				asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(saddr(&s.idx[t - start])), "l"(src + t) : "memory");
		}
		asm volatile("cp.async.wait_all;" ::: "memory");
		asm volatile("bar.sync 1, %0;" :: "n"(MOVERS * 32) : "memory");

		const bool isk = (lane & PART) == 0;
		const unsigned char *cache = (const unsigned char *)(isk ? a.k_cache : a.v_cache) + h0 * 256;
		const int bytes = nh * 256; /* of a row */
		const int token = mover * PART + (lane & (PART - 1));
		const uint32_t place = (uint32_t)((isk ? 0 : HALF) + token * ROW + h0 * 256);
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
				int mine = min(max(n - mover * PART, 0), (int)PART);
				uint32_t full = saddr(&s.full[stage]);

				if (tn < hi)
					following = tn - start < IDX ? s.idx[tn - start] : __ldg(src + tn);
				bar_wait(saddr(&s.empty[stage]), parity);
				if (lane == 0)
					asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(full), "r"(mine * 2 * bytes) : "memory");
				__syncwarp();
				if (lane < 2 * PART && token < n)
					asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
						     :: "r"(saddr(s.ring[stage]) + place), "l"(cache + (int64_t)page * 1024), "r"(bytes), "r"(full)
						     : "memory");
				__syncwarp();
				page = following;
				if (++stage == STAGES) {
					stage = 0;
					parity ^= 1;
				}
			}
		}
		__syncwarp();
		asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
	} else {
		const float scale = a.sm_scale * 1.4426950408889634f;
		const uint32_t kplace = (uint32_t)((lane & 15) * ROW + warp * 256 + (lane >> 4) * 16);
		const int vtoken = (lane & 7) + ((lane >> 4) << 3);
		const uint32_t vplace = (uint32_t)(HALF + warp * 256 + ((lane >> 3) & 1) * 16);
		const int row = lane >> 2, col = (lane & 3) * 2;
		uint32_t q[16], qnext[16];
		const int kown = warp >= h0 && warp < h0 + nh ? kfirst : kb; /* a warp whose head is another cluster's has no piece */
		int stage = 0, knext;
		uint32_t parity = 0;

#pragma unroll
		for (int i = 0; i < 16; i++)
			qnext[i] = 0;
		if (kown < kb)
			load_q(qnext, a.q, (int64_t)b0 + s.bundle[kown], warp, lane);
		asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
		for (int k = kown; k < kb; k = knext) {
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
				/* Each head goes to the sharer that joins it, with its bytes counted there. */
				const int o0 = s.off[k], o1 = s.off[k + 1];
				const int r0 = o0 / chunk, count = (o1 - 1) / chunk - r0 + 1;

#pragma unroll
				for (int e = 0; e < 2; e++) {
					const int h = (warp - h0) * 8 + col + e, owner = ((h + 1) * count - 1) >> lg;
					const int entry = (h - (owner << lg) / count) * count + (rank - r0);
					recv_t &r = s.recv[owner == 0 ? 1 : 0];
					const uint32_t to = map_rank(saddr(r.v[entry]), (uint32_t)(r0 + owner));
					const uint32_t bar = map_rank(saddr(&s.joined[owner == 0 ? 1 : 0]), (uint32_t)(r0 + owner));

					if (row == 0)
						send2(map_rank(saddr(&r.ml[entry]), (uint32_t)(r0 + owner)), e ? m1 : m0, e ? l1 : l0, bar);
#pragma unroll
					for (int j = 0; j < 4; j++)
						send4(to + (uint32_t)(j * 128 + (row ^ j) * 16), acc[2 * j][e], acc[2 * j][2 + e],
						      acc[2 * j + 1][e], acc[2 * j + 1][2 + e], bar);
				}
				__syncwarp();
			}
		}
	}

	if (rank == 0) { /* empty sequences */
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
	__syncwarp();

	/* Join the sequences that this CTA shares: at most its first and its last. */
	for (int k = kfirst; k < kb; k = next_seg(s.off, k + 1, kb, start, end)) {
		const int o0 = s.off[k], o1 = s.off[k + 1];

		if (o0 >= start && o1 <= end)
			continue;
		const int r0 = o0 / chunk, r1 = (o1 - 1) / chunk, count = r1 - r0 + 1;
		const int hfirst = ((rank - r0) << lg) / count, hlast = ((rank - r0 + 1) << lg) / count;
		const int64_t b = (int64_t)b0 + s.bundle[k];
		const int own = rank == r0 ? 1 : 0;
		const uint32_t bar = saddr(&s.joined[own]);

		if (warp == KVH && lane == 0)
			asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
				     :: "r"(bar), "r"((hlast - hfirst) * count * (DIM * 4 + 8)) : "memory");
		__syncwarp();
		bar_wait_cluster(bar, 0);
		__syncwarp();
		const recv_t &from = s.recv[own];
		/* this lane's elements lane * 4 + e, in the senders' order */
		const int j = lane >> 3, at = j * 32 + (lane & 1) * 16 + ((lane >> 2) & 1) * 2 + ((lane >> 1) & 1);

		for (int h = hfirst + warp; h < hlast; h += WARPS) {
			float m = -INFINITY, l = 0, top, w;

			const int e0 = (h - hfirst) * count;

			if (lane < count) {
				const float2 ml = from.ml[e0 + lane];

				m = ml.x;
				l = ml.y;
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
#pragma unroll 4
			for (int i = 0; i < count; i++) {
				const float *v = from.v[e0 + i] + at;
				float wi = __shfl_sync(~0u, w, i);

				sum.x += wi * v[(0 ^ j) * 4];
				sum.y += wi * v[(1 ^ j) * 4];
				sum.z += wi * v[(2 ^ j) * 4];
				sum.w += wi * v[(3 ^ j) * 4];
			}
			const float inv = 1.0f / l;
			uint2 y;

			y.x = pack(sum.x * inv, sum.y * inv);
			y.y = pack(sum.z * inv, sum.w * inv);
			*(uint2 *)(a.output + (b * HEADS + h0 * 8 + h) * DIM + lane * 4) = y;
			if (lane == 0)
				a.lse[b * HEADS + h0 * 8 + h] = top + log2f(l);
		}
	}
	/* Nobody else touches this CTA's shared memory once all that it waited for has come: no barrier before leaving. */
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

		/* Few sequences: several clusters share each, with fewer heads. */
		int sh = nb * 4 <= chosen_count ? 2 : nb * 2 <= chosen_count ? 1 : 0;
		int64_t most = a->num_pages / ((int64_t)chosen_size * (count << sh));
		int ahead = a->num_kv_indices * 10 >= a->num_pages * 9 ? 32 : a->num_kv_indices * 2 >= a->num_pages ? 16 : 0;
		int stride = (int)most;

		if (b0 > 0)
			ahead = 0;
		if (ahead > most)
			ahead = stride;
		configure(&config, &attribute, chosen_size, count << sh, (cudaStream_t)a->stream);
		cudaError_t e = cudaLaunchKernelEx(&config, attend, *a, (int)b0, nb, chosen_size, sh, stride, ahead);

		if (e != cudaSuccess)
			return (int)e;
	}
	return (int)cudaGetLastError();
}
