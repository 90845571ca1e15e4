#include "task.h"
#include <cuda_runtime.h>

enum {
	DIM = KM_AXIS_HEAD_DIM,
	HEADS = KM_AXIS_NUM_QO_HEADS,
	GROUPS = KM_AXIS_NUM_KV_HEADS,
	GROUP = HEADS / GROUPS,
	PAGE = GROUPS * DIM,          /* elements of a page */
	PAGE_BYTES = PAGE * 2,
	RANGES = 132,
	WARPS = 5,
	THREADS = WARPS * 32,
	TILE = 16,
	PITCH = PAGE_BYTES + 16,      /* 1040: rows of a stage */
	STAGE = TILE * PITCH,         /* 16640 */
	QPITCH = DIM * 2 + 16,        /* 272 */
	QBUF = HEADS * QPITCH,        /* 8704 */
	JPITCH = (DIM + 4) * 4,       /* 528 */
	JHEAD = GROUP * JPITCH,       /* 4224: eight heads of one warp */
	Q_AT = WARPS * 2 * STAGE,     /* 166400 */
	J_AT = Q_AT + 2 * QBUF,       /* 183808 */
	M_AT = J_AT + WARPS * JHEAD,  /* 204928 */
	BAR_AT = M_AT + 2 * WARPS * HEADS * 4, /* 206208 */
	RED_AT = BAR_AT + WARPS * 16, /* 206288 */
	SHARED = RED_AT + 64,         /* 206352 */
	SLOTS = 2 * RANGES,
};

#define LOWEST (-3e38f)

#ifdef __maxnreg__
#define ATTEND_BOUNDS __maxnreg__(216)
#else
#define ATTEND_BOUNDS __launch_bounds__(THREADS, 1)
#endif

__device__ __forceinline__ int load_int(const int *p)
{
	int x;

	asm volatile("ld.global.nc.s32 %0, [%1];" : "=r"(x) : "l"(p));
	return x;
}

/* A word of the parts: zero as long as attend has not written it. */
__device__ __forceinline__ float poll(const float *p)
{
	float x;

	asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(x) : "l"(p) : "memory");
	return x;
}

__device__ __forceinline__ float4 poll4(const float *p)
{
	float4 x;

	asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
		     : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
		     : "l"(p)
		     : "memory");
	return x;
}

__device__ __forceinline__ bool there(float x)
{
	return __float_as_uint(x) != 0;
}

/* The same value with other bits than zero's: -0 for 0. */
__device__ __forceinline__ float mark(float x)
{
	return there(x) ? x : __uint_as_float(0x80000000u);
}

__device__ __forceinline__ float exp2_fast(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

__device__ __forceinline__ uint32_t pack(float low, float high)
{
	uint32_t d;

	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
	return d;
}

__device__ __forceinline__ void bar_init(uint32_t bar)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void bar_expect(uint32_t bar, uint32_t bytes)
{
	asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

__device__ __forceinline__ void bar_wait(uint32_t bar, uint32_t parity)
{
	uint32_t ok;

	do {
		asm volatile("{\n\t.reg .pred p;\n\t"
			     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
			     "selp.u32 %0, 1, 0, p;\n\t}"
			     : "=r"(ok)
			     : "r"(bar), "r"(parity)
			     : "memory");
	} while (!ok);
	__syncwarp();
}

__device__ __forceinline__ void bulk_page(uint32_t dst, const uint16_t *src, uint32_t bar)
{
	asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst), "l"(src),
		     "r"((uint32_t)PAGE_BYTES), "r"(bar)
		     : "memory");
}

__device__ __forceinline__ void copy16(uint32_t dst, const void *src)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}

__device__ __forceinline__ void ldsm(uint32_t (&x)[4], uint32_t at)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
		     : "r"(at)
		     : "memory");
}

__device__ __forceinline__ void ldsm_trans(uint32_t (&x)[4], uint32_t at)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
		     : "r"(at)
		     : "memory");
}

__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
		     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t transpose(uint32_t x)
{
	uint32_t y;

	asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
	return y;
}

/* O^T of eight heads of a warp: rows of a head, pitch 132 floats (no bank conflicts). */
__device__ __forceinline__ void dump(unsigned char *to, const float (&acc)[8][4], int lane)
{
	float *p = (float *)(to + (lane & 3) * 2 * JPITCH) + (lane >> 2);

#pragma unroll
	for (int i = 0; i < 8; i++) {
		p[i * 16] = acc[i][0];
		p[i * 16 + JPITCH / 4] = acc[i][1];
		p[i * 16 + 8] = acc[i][2];
		p[i * 16 + 8 + JPITCH / 4] = acc[i][3];
	}
}

/* CTA i takes the flat tokens [i * chunk, + chunk). Slot 2 i holds the part of a sequence that began before, slot 2 i + 1 that of one
 * that begins here and goes on behind. parts: [SLOTS][HEADS][DIM], then [SLOTS][2][HEADS] of maximum (log2) and sum. All parts are
 * zero before and after a call; no word that attend writes there is zero, so combine sees each arrive, and clears it. */
static __global__ void ATTEND_BOUNDS attend(const uint16_t *q, const uint16_t *k_cache, const uint16_t *v_cache, const int *indptr,
					    const int *indices, int batch, int total, int chunk, float scale, uint16_t *output,
					    float *lse, float *parts, unsigned regions)
{
	extern __shared__ __align__(128) unsigned char smem[];
	const int tid = (int)threadIdx.x, warp = tid >> 5, lane = tid & 31, row = lane & 15;
	const int start = (int)blockIdx.x * chunk, n = min(chunk, total - start), tiles = (n + TILE - 1) / TILE;
	const uint32_t base = (uint32_t)__cvta_generic_to_shared(smem);
	const uint32_t kst = base + warp * 2 * STAGE, vst = kst + STAGE;
	const uint32_t bark = base + BAR_AT + warp * 16, barv = bark + 8;
	float *const ms = (float *)(smem + M_AT), *const ls = ms + WARPS * HEADS;
	int *const red = (int *)(smem + RED_AT);
	int tile = warp;

	asm volatile("griddepcontrol.launch_dependents;" ::: "memory");

	/* All first loads at once; out of range they repeat the last token. */
	const int page = load_int(indices + start + min(tile * TILE + row, n - 1));
	int next = load_int(indices + start + min((tile + WARPS) * TILE + row, n - 1));
	const int bound = load_int(indptr + min(tid, batch));

	/* While the indices are on their way: q into L2, since its loads would queue behind all pages, and address translations. */
	if (warp == WARPS - 1) {
		if (lane == 0) {
#pragma unroll 1
			for (int i = (int)blockIdx.x; i < batch; i += (int)gridDim.x)
				asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(q + (int64_t)i * (HEADS * DIM)),
					     "r"((uint32_t)(HEADS * DIM * 2))
					     : "memory");
		}
	} else if (warp == WARPS - 2) {
		if (lane < 16) {
			const unsigned region = ((blockIdx.x >> 3) * 8 + (lane & 7)) % regions;

			asm volatile("prefetch.global.L2 [%0];" ::"l"((lane < 8 ? k_cache : v_cache) + ((int64_t)region << 20)) : "memory");
		}
	} else if (warp == WARPS - 3) {
		/* Translations of what is written at the end. */
		if (lane < 4) {
			const int some = min((int)blockIdx.x, batch - 1);
			const void *at = parts + (int64_t)blockIdx.x * (2 * HEADS * DIM);

			if (lane == 1)
				at = parts + (int64_t)SLOTS * HEADS * DIM + blockIdx.x * (4 * HEADS);
			else if (lane == 2)
				at = output + (int64_t)some * (HEADS * DIM);
			else if (lane == 3)
				at = lse + (int64_t)some * HEADS;
			asm volatile("prefetch.global.L2 [%0];" ::"l"(at) : "memory");
		}
	}
	__syncwarp();

	if (lane == 0) {
		bar_init(bark);
		bar_init(barv);
		asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
		asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
	}
	__syncwarp();

	/* Lanes 0 to 15 fetch K rows, the others V rows. */
	const uint16_t *const cache = lane < 16 ? k_cache : v_cache;
	const uint32_t dst = (lane < 16 ? kst : vst) + row * PITCH, bar = lane < 16 ? bark : barv;
	const int rows = min((int)TILE, n - tile * TILE);

	if (rows > 0) {
		if (lane == 0) {
			bar_expect(bark, (uint32_t)(rows * PAGE_BYTES));
			bar_expect(barv, (uint32_t)(rows * PAGE_BYTES));
		}
		__syncwarp();
		if (row < rows)
			bulk_page(dst, cache + (int64_t)page * PAGE, bar);
		__syncwarp();
		/* A partial first tile is the last of the range: V rows behind it must be finite. */
		unsigned char *const clear = smem + warp * 2 * STAGE + STAGE + rows * PITCH;

		for (int i = lane; i < (TILE - rows) * (PAGE_BYTES / 16); i += 32)
			*(uint4 *)(clear + (i >> 6) * PITCH + (i & 63) * 16) = make_uint4(0, 0, 0, 0);
		__syncwarp();
	}

	/* The sequence of the first token, while the copies fly. */
	int b, from = (int)0x80000000, to = 0x7fffffff;
	{
		int count = 0;

		if (tid <= batch) {
			if (bound <= start) {
				count = 1;
				from = bound;
			} else {
				to = bound;
			}
		}
		for (int i = tid + THREADS; i <= batch; i += THREADS) {
			const int x = __ldg(indptr + i);

			if (x <= start) {
				count++;
				from = max(from, x);
			} else {
				to = min(to, x);
			}
		}
		count = __reduce_add_sync(~0u, count);
		from = __reduce_max_sync(~0u, from);
		to = __reduce_min_sync(~0u, to);
		if (lane == 0) {
			red[warp * 3] = count;
			red[warp * 3 + 1] = from;
			red[warp * 3 + 2] = to;
		}
		__syncthreads();
		count = 0;
#pragma unroll
		for (int w = 0; w < WARPS; w++) {
			count += red[w * 3];
			from = max(from, red[w * 3 + 1]);
			to = min(to, red[w * 3 + 2]);
		}
		b = max(count - 1, 0);
	}

	auto load_q = [&](int sequence, int buffer) {
		const uint16_t *src = q + (int64_t)sequence * (HEADS * DIM);

		for (int i = tid; i < HEADS * DIM / 8; i += THREADS)
			copy16(base + Q_AT + buffer * QBUF + (i >> 4) * QPITCH + (i & 15) * 16, src + i * 8);
	};

	const uint32_t ka = kst + (lane & 15) * PITCH + (lane >> 4) * 16;
	const uint32_t va = vst + ((lane & 7) + ((lane >> 4) << 3)) * PITCH + ((lane >> 3) & 1) * 16;
	const uint32_t qa0 = base + Q_AT + (lane & 7) * QPITCH + (lane >> 3) * 16;
	uint32_t parity = 0;
	int buffer = 0;
	/* The first turn is a rehearsal while the first copies fly: it brings the code into the caches; what it computes is dropped. */
	int warm = 1;

	asm volatile("" : "+r"(warm));
	load_q(b, 0);
	asm volatile("cp.async.commit_group;" ::: "memory");

#pragma unroll 1
	for (;;) {
		const bool last = warm || to >= start + n;
		int nb = b, nto = to;

		if (!last) {
			do {
				nb++;
				nto = __ldg(indptr + nb + 1);
			} while (nto <= to && nb + 1 < batch);
			load_q(nb, buffer ^ 1);
		}
		asm volatile("cp.async.commit_group;" ::: "memory");

		const int lo = max(from - start, 0), hi = warm ? 0x7fffffff : min(to - start, n);
		const uint32_t qa = qa0 + buffer * QBUF;
		float acc[GROUPS][8][4], m[GROUPS][2], l[GROUPS][2];
		bool mine = false;

#pragma unroll
		for (int h = 0; h < GROUPS; h++) {
#pragma unroll
			for (int i = 0; i < 8; i++) {
				acc[h][i][0] = 0;
				acc[h][i][1] = 0;
				acc[h][i][2] = 0;
				acc[h][i][3] = 0;
			}
			m[h][0] = LOWEST;
			m[h][1] = LOWEST;
			l[h][0] = 0;
			l[h][1] = 0;
		}

#pragma unroll 1
		while (tile * TILE < hi) {
			int dry = warm;

			asm volatile("" : "+r"(dry)); /* one copy of the loop for both cases */

			const int at = tile * TILE;
			const bool done = !dry && hi >= min(at + TILE, n);
			const int more = done ? min((int)TILE, n - (tile + WARPS) * TILE) : 0; /* rows to refill, if positive */
			float s[GROUPS][4];
			uint32_t p[GROUPS][2];

			mine = true;
#pragma unroll
			for (int h = 0; h < GROUPS; h++) {
				s[h][0] = 0;
				s[h][1] = 0;
				s[h][2] = 0;
				s[h][3] = 0;
			}
			if (!dry)
				bar_wait(bark, parity);
#pragma unroll
			for (int i = 0; i < 4; i++) {
#pragma unroll
				for (int h = 0; h < GROUPS; h++) {
					uint32_t x[4], y[4], z[4];

					ldsm(x, qa + h * (GROUP * QPITCH) + i * 64);
					ldsm(y, ka + h * (DIM * 2) + i * 64);
					ldsm(z, ka + h * (DIM * 2) + i * 64 + 32);
					mma(s[h], y, x[0], x[1]);
					mma(s[h], z, x[2], x[3]);
				}
			}
			__syncwarp();
			if (more > 0) {
				if (lane == 0)
					bar_expect(bark, (uint32_t)(more * PAGE_BYTES));
				__syncwarp();
				if (lane < more)
					bulk_page(dst, k_cache + (int64_t)next * PAGE, bark);
				__syncwarp();
			}

			/* Tokens down the rows: lane / 4 and 8 more; heads 2 (lane % 4) and the next. */
			const int token = at + (lane >> 2);
			const bool has0 = token >= lo && token < hi, has1 = token + 8 >= lo && token + 8 < hi;
			const float none = __int_as_float((int)0xff800000u);

#pragma unroll
			for (int h = 0; h < GROUPS; h++) {
				float s0 = has0 ? s[h][0] * scale : none, s1 = has0 ? s[h][1] * scale : none;
				float s2 = has1 ? s[h][2] * scale : none, s3 = has1 ? s[h][3] * scale : none;
				float x0 = fmaxf(s0, s2), x1 = fmaxf(s1, s3);

#pragma unroll
				for (int offset = 4; offset < 32; offset *= 2) {
					x0 = fmaxf(x0, __shfl_xor_sync(~0u, x0, offset));
					x1 = fmaxf(x1, __shfl_xor_sync(~0u, x1, offset));
				}
				x0 = fmaxf(x0, m[h][0]);
				x1 = fmaxf(x1, m[h][1]);

				const float c0 = exp2_fast(m[h][0] - x0), c1 = exp2_fast(m[h][1] - x1);

				m[h][0] = x0;
				m[h][1] = x1;
				s0 = exp2_fast(s0 - x0);
				s1 = exp2_fast(s1 - x1);
				s2 = exp2_fast(s2 - x0);
				s3 = exp2_fast(s3 - x1);
				l[h][0] = l[h][0] * c0 + (s0 + s2);
				l[h][1] = l[h][1] * c1 + (s1 + s3);
				p[h][0] = transpose(pack(s0, s1));
				p[h][1] = transpose(pack(s2, s3));
#pragma unroll
				for (int i = 0; i < 8; i++) {
					acc[h][i][0] *= c0;
					acc[h][i][1] *= c1;
					acc[h][i][2] *= c0;
					acc[h][i][3] *= c1;
				}
			}

			if (!dry)
				bar_wait(barv, parity);
#pragma unroll
			for (int h = 0; h < GROUPS; h++) {
#pragma unroll
				for (int i = 0; i < 8; i++) {
					uint32_t x[4];

					ldsm_trans(x, va + h * (DIM * 2) + i * 32);
					mma(acc[h][i], x, p[h][0], p[h][1]);
				}
			}
			__syncwarp();
			if (!done)
				break; /* the next segment needs the rest of this tile, or all of it */
			if (more > 0) {
				if (lane == 0)
					bar_expect(barv, (uint32_t)(more * PAGE_BYTES));
				__syncwarp();
				if (lane >= 16 && row < more)
					bulk_page(dst, v_cache + (int64_t)next * PAGE, barv);
				__syncwarp();
				next = load_int(indices + start + min((tile + 2 * WARPS) * TILE + row, n - 1));
			}
			tile += WARPS;
			parity ^= 1;
		}

		/* Join the warps. */
		const bool whole = from >= start && to <= start + n;
		const int slot = 2 * (int)blockIdx.x + (from >= start ? 1 : 0);
		float weight[WARPS];
		unsigned active = 0;

#pragma unroll
		for (int h = 0; h < GROUPS; h++) {
#pragma unroll
			for (int j = 0; j < 2; j++) {
#pragma unroll
				for (int offset = 4; offset < 32; offset *= 2)
					l[h][j] += __shfl_xor_sync(~0u, l[h][j], offset);
				if (lane < 4) {
					ms[warp * HEADS + h * GROUP + 2 * lane + j] = m[h][j];
					ls[warp * HEADS + h * GROUP + 2 * lane + j] = l[h][j];
				}
			}
		}
		__syncwarp();

		/* Lane h: the warps' weights for head h. */
		auto weigh = [&]() {
			float mm[WARPS], ll[WARPS], top = LOWEST, sum = 0;

#pragma unroll
			for (int w = 0; w < WARPS; w++) {
				mm[w] = ms[w * HEADS + lane];
				ll[w] = ls[w * HEADS + lane];
				top = fmaxf(top, mm[w]);
			}
#pragma unroll
			for (int w = 0; w < WARPS; w++) {
				const bool some = ll[w] != 0;

				active |= (__any_sync(~0u, some) ? 1u : 0u) << w;
				weight[w] = some ? exp2_fast(mm[w] - top) : 0;
				sum += weight[w] * ll[w];
			}
			if (whole) {
				const float inverse = 1 / sum;

#pragma unroll
				for (int w = 0; w < WARPS; w++)
					weight[w] *= inverse;
				if (warp == 0 && !warm)
					lse[(int64_t)b * HEADS + lane] = top + log2f(sum);
			} else if (warp == 0 && !warm) {
				float *const to_ml = parts + (int64_t)SLOTS * HEADS * DIM + slot * (2 * HEADS) + lane;

				to_ml[0] = mark(top);
				to_ml[HEADS] = mark(sum);
			}
		};
		auto gather = [&](const unsigned char *at, int stride, int h) {
			float4 x = make_float4(0, 0, 0, 0);

#pragma unroll
			for (int w = 0; w < WARPS; w++) {
				const float c = __shfl_sync(~0u, weight[w], h);
				float4 v = make_float4(0, 0, 0, 0);

				if (active >> w & 1)
					v = *(const float4 *)(at + w * stride);
				x.x += c * v.x;
				x.y += c * v.y;
				x.z += c * v.z;
				x.w += c * v.w;
			}
			return x;
		};
		auto put = [&](int h, float4 x) {
			if (whole)
				*(uint2 *)(output + ((int64_t)b * HEADS + h) * DIM + lane * 4) = make_uint2(pack(x.x, x.y), pack(x.z, x.w));
			else
				*(float4 *)(parts + ((int64_t)slot * HEADS + h) * DIM + lane * 4) =
					make_float4(mark(x.x), mark(x.y), mark(x.z), mark(x.w));
		};

		if (last) {
			/* No copy is in flight: every warp has its own stages for all heads; in the rehearsal it has not. */
			if (mine) {
				unsigned char *const dump_to = smem + (warm ? J_AT + warp * JHEAD : warp * 2 * STAGE);
				const int dump_step = warm ? 0 : (int)JHEAD;

#pragma unroll
				for (int h = 0; h < GROUPS; h++)
					dump(dump_to + h * dump_step, acc[h], lane);
			}
			__syncthreads();
			weigh();
#pragma unroll 1
			for (int i = 0; i < 2; i++) {
				float4 x[4];

#pragma unroll
				for (int u = 0; u < 4; u++) {
					const int h = min(warp + WARPS * (4 * i + u), HEADS - 1);

					x[u] = gather(smem + (h >> 3) * JHEAD + (h & 7) * JPITCH + lane * 16, 2 * STAGE, h);
				}
#pragma unroll
				for (int u = 0; u < 4; u++) {
					const int h = warp + WARPS * (4 * i + u);

					if (h < HEADS && !warm)
						put(h, x[u]);
				}
			}
			if (!warm)
				return;
			asm volatile("cp.async.wait_group 0;" ::: "memory"); /* q of the first segment */
			__syncthreads();
			warm = 0;
			continue;
		}
#pragma unroll
		for (int h = 0; h < GROUPS; h++) {
			if (mine)
				dump(smem + J_AT + warp * JHEAD, acc[h], lane);
			__syncthreads();
			if (h == 0)
				weigh();
#pragma unroll 1
			for (int i = warp; i < GROUP; i += WARPS)
				put(h * GROUP + i, gather(smem + J_AT + i * JPITCH + lane * 16, JHEAD, h * GROUP + i));
			if (h == GROUPS - 1)
				asm volatile("cp.async.wait_group 0;" ::: "memory"); /* q of the next segment */
			__syncthreads();
		}
		b = nb;
		from = to;
		to = nto;
		buffer ^= 1;
	}
}

/* SPLIT warps join the slots of one row (sequence, head) as they arrive; rows that attend writes are left alone. */
template <int SPLIT>
__device__ __forceinline__ void join(const int *indptr, int chunk, float *parts, uint16_t *output, float *lse)
{
	constexpr int ROWS = SPLIT < 4 ? 4 / SPLIT : 1;
	static_assert(SPLIT == 1 || ROWS == 1, "a block joins one row, or a warp does");
	const int warp = (int)threadIdx.x >> 5, lane = (int)threadIdx.x & 31, piece = warp % SPLIT;
	const int64_t row = (int64_t)blockIdx.x * ROWS + warp / SPLIT;
	const int b = (int)(row / HEADS), h = (int)(row % HEADS);
	const int from = __ldg(indptr + b), to = __ldg(indptr + b + 1);
	const int first = (int)((unsigned)from / (unsigned)chunk), last = to > from ? (int)((unsigned)(to - 1) / (unsigned)chunk) : first;
	uint2 *const out = (uint2 *)(output + row * DIM + lane * 4);

	if (to <= from) {
		if (piece == 0) {
			*out = make_uint2(0, 0);
			if (lane == 0)
				lse[row] = __int_as_float((int)0xff800000u);
		}
		return;
	}
	if (first == last)
		return;

	float *const ml = parts + (int64_t)SLOTS * HEADS * DIM + h;
	float *const values = parts + (int64_t)h * DIM + lane * 4;
	float top = LOWEST, sum = 0;
	float4 x = make_float4(0, 0, 0, 0);

#pragma unroll 1
	for (int i = first + piece; i <= last; i += 4 * SPLIT) {
		float mm[4], ll[4];
		float4 v[4];

#pragma unroll 1
		for (;;) {
			bool good = true;

#pragma unroll
			for (int u = 0; u < 4; u++) {
				const int at = i + u * SPLIT, slot = 2 * at + (at == first ? 1 : 0);

				mm[u] = LOWEST;
				ll[u] = 1;
				v[u] = make_float4(1, 1, 1, 1);
				if (at <= last) {
					mm[u] = poll(ml + slot * (2 * HEADS));
					ll[u] = poll(ml + slot * (2 * HEADS) + HEADS);
					v[u] = poll4(values + (int64_t)slot * (HEADS * DIM));
				}
			}
#pragma unroll
			for (int u = 0; u < 4; u++)
				good = good && there(mm[u]) && there(ll[u]) && there(v[u].x) && there(v[u].y) && there(v[u].z) && there(v[u].w);
			if (__all_sync(~0u, good))
				break;

			/* Not all is there: look at one word only, for a while. */
			const float *const gate = ml + (2 * i + (i == first ? 1 : 0)) * (2 * HEADS) + HEADS;

			do {
				__nanosleep(64);
			} while (!there(poll(gate)));
			__syncwarp();
		}
		/* Nobody else reads these: zero for the next call. */
#pragma unroll
		for (int u = 0; u < 4; u++) {
			const int at = i + u * SPLIT, slot = 2 * at + (at == first ? 1 : 0);

			if (at <= last) {
				*(float4 *)(values + (int64_t)slot * (HEADS * DIM)) = make_float4(0, 0, 0, 0);
				if (lane < 2)
					ml[slot * (2 * HEADS) + lane * HEADS] = 0;
			}
		}
#pragma unroll
		for (int u = 0; u < 4; u++) {
			const bool some = i + u * SPLIT <= last;
			const float mu = some ? mm[u] : LOWEST, lu = some ? ll[u] : 0;
			const float higher = fmaxf(top, mu), c = exp2_fast(top - higher), w = some ? exp2_fast(mu - higher) : 0;

			top = higher;
			sum = sum * c + lu * w;
			x.x = x.x * c + v[u].x * w;
			x.y = x.y * c + v[u].y * w;
			x.z = x.z * c + v[u].z * w;
			x.w = x.w * c + v[u].w * w;
		}
	}
	if constexpr (SPLIT > 1) {
		__shared__ float4 sv[SPLIT][32];
		__shared__ float sm[SPLIT], sl[SPLIT];

		sv[piece][lane] = x;
		if (lane == 0) {
			sm[piece] = top;
			sl[piece] = sum;
		}
		__syncthreads();
		if (piece != 0)
			return;
		top = LOWEST;
#pragma unroll
		for (int w = 0; w < SPLIT; w++)
			top = fmaxf(top, sm[w]);
		sum = 0;
		x = make_float4(0, 0, 0, 0);
#pragma unroll 4
		for (int w = 0; w < SPLIT; w++) {
			const float c = exp2_fast(sm[w] - top);
			const float4 y = sv[w][lane];

			sum += c * sl[w];
			x.x += c * y.x;
			x.y += c * y.y;
			x.z += c * y.z;
			x.w += c * y.w;
		}
	}

	const float inverse = 1 / sum;

	*out = make_uint2(pack(x.x * inverse, x.y * inverse), pack(x.z * inverse, x.w * inverse));
	if (lane == 0)
		lse[row] = top + log2f(sum);
}

template <int SPLIT>
static __global__ void __launch_bounds__(SPLIT < 4 ? 128 : SPLIT * 32)
	combine(const int *indptr, int chunk, float *parts, uint16_t *output, float *lse)
{
	join<SPLIT>(indptr, chunk, parts, output, lse);
	/* This grid does not end before attend has. */
	if (blockIdx.x == 0)
		asm volatile("griddepcontrol.wait;" ::: "memory");
}

size_t km_workspace(const struct km_args *a)
{
	(void)a;
	return (size_t)SLOTS * (HEADS * DIM + 2 * HEADS) * sizeof(float);
}

int km_init(const struct km_args *a)
{
	(void)a;
	cudaError_t e = cudaFuncSetAttribute((const void *)attend, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)SHARED);

	if (e != cudaSuccess)
		return (int)e;
	/* The same division of the first-level cache, so that both kernels can share a multiprocessor. */
	cudaFuncSetAttribute((const void *)attend, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	cudaFuncSetAttribute((const void *)combine<1>, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	cudaFuncSetAttribute((const void *)combine<4>, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	cudaFuncSetAttribute((const void *)combine<16>, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	return 0;
}

int km_run(const struct km_args *a)
{
	cudaStream_t stream = (cudaStream_t)a->stream;
	const int batch = (int)a->batch_size, total = (int)a->num_kv_indices;
	float *parts = (float *)a->workspace;
	int chunk = (int)((a->num_kv_indices + RANGES - 1) / RANGES);

	if (batch <= 0)
		return 0;
	if (chunk < TILE)
		chunk = TILE;
	if (total > 0)
		attend<<<(unsigned)((total - 1) / chunk + 1), THREADS, SHARED, stream>>>(
			a->q, a->k_cache, a->v_cache, (const int *)a->kv_indptr, (const int *)a->kv_indices, batch, total, chunk,
			a->sm_scale * 1.4426950408889634f, a->output, a->lse, parts,
			(unsigned)((a->num_pages * PAGE_BYTES + (1 << 21) - 1) >> 21));

	cudaLaunchConfig_t config = {};
	cudaLaunchAttribute attribute[1] = {};
	cudaError_t e;

	attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attribute[0].val.programmaticStreamSerializationAllowed = 1;
	config.dynamicSmemBytes = 0;
	config.stream = stream;
	config.attrs = attribute;
	config.numAttrs = total > 0 ? 1 : 0;
	if (batch <= 4) {
		config.gridDim = dim3((unsigned)(batch * HEADS));
		config.blockDim = dim3(512);
		e = cudaLaunchKernelEx(&config, combine<16>, (const int *)a->kv_indptr, chunk, parts, a->output, a->lse);
	} else if (batch <= 32) {
		config.gridDim = dim3((unsigned)(batch * HEADS));
		config.blockDim = dim3(128);
		e = cudaLaunchKernelEx(&config, combine<4>, (const int *)a->kv_indptr, chunk, parts, a->output, a->lse);
	} else {
		config.gridDim = dim3((unsigned)(batch * HEADS / 4));
		config.blockDim = dim3(128);
		e = cudaLaunchKernelEx(&config, combine<1>, (const int *)a->kv_indptr, chunk, parts, a->output, a->lse);
	}
	if (e != cudaSuccess)
		return (int)e;
	return (int)cudaGetLastError();
}
