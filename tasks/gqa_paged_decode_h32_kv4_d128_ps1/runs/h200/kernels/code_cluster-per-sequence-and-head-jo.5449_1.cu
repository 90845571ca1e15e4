#include "task.h"
#include <cuda_runtime.h>
#include <math.h>

enum {
	HEADS = KM_AXIS_NUM_QO_HEADS, KVH = KM_AXIS_NUM_KV_HEADS, DIM = KM_AXIS_HEAD_DIM, GROUP = HEADS / KVH,
	THREADS = 128, WARPS = THREADS / 32, TILE = 16, STEP = WARPS * TILE, PITCH = DIM + 4,
	UNITS_ALL = GROUP * DIM / 4, /* float4 pieces of the output of one (sequence, kv head): 256 */
	ROW_BYTES = DIM * 2, PAGE_BYTES = KVH * ROW_BYTES
};

static_assert(GROUP == 8 && DIM == 128 && KVH == 4 && KM_AXIS_PAGE_SIZE == 1, "layout");

/* 16 bytes of read-only data that are used once; the row of a head is 256 bytes, aligned. */
static __device__ __forceinline__ uint4 fetch(const char *p)
{
	uint4 v;

	asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
		     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
	return v;
}

/* From shared memory; volatile, so that it is not hoisted out of the loop into registers. */
static __device__ __forceinline__ uint4 shared_fetch(unsigned address)
{
	uint4 v;

	asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
		     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
	return v;
}

static __device__ __forceinline__ void mma(float *d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
		     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
		     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ unsigned transpose(unsigned x)
{
	unsigned y;

	asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
	return y;
}

static __device__ __forceinline__ float ex2(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

/* Two bf16 in a word, `low` in the low half. */
static __device__ __forceinline__ unsigned pack(float low, float high)
{
	unsigned y;

	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
	return y;
}

static __device__ __forceinline__ unsigned word(const uint4 &v, int i)
{
	return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* Weight of a part with maximum m when the whole has the maximum all; a part without tokens has none. */
static __device__ __forceinline__ float weigh(float m, float all)
{
	return m == -INFINITY ? 0.0f : ex2(m - all);
}

static __device__ __forceinline__ unsigned shared_address(const void *p)
{
	return (unsigned)__cvta_generic_to_shared(p);
}

static __device__ __forceinline__ unsigned remote(unsigned address, unsigned rank)
{
	unsigned y;

	asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(y) : "r"(address), "r"(rank));
	return y;
}

/* Keys of tokens g and g + 8 of a tile; lane i (and i + 16) has the page of its token i. */
static __device__ __forceinline__ void load_k(uint4 *k, const char *base, int page, int g)
{
	const char *x = base + (size_t)(unsigned)__shfl_sync(~0u, page, g) * PAGE_BYTES;
	const char *y = base + (size_t)(unsigned)__shfl_sync(~0u, page, g + 8) * PAGE_BYTES;

#pragma unroll
	for (int j = 0; j < 4; j++)
		k[j] = fetch(x + 64 * j);
#pragma unroll
	for (int j = 0; j < 4; j++)
		k[4 + j] = fetch(y + 64 * j);
}

/* Values of tokens 2c, 2c + 1, 2c + 8, 2c + 9: low half of the row in v[0..3], high half in v[4..7]. */
static __device__ __forceinline__ void load_v(uint4 *v, const char *base, int page, int c)
{
#pragma unroll
	for (int i = 0; i < 4; i++) {
		const char *x = base + (size_t)(unsigned)__shfl_sync(~0u, page, 2 * c + (i & 1) + (i >> 1) * 8) * PAGE_BYTES;

		v[i] = fetch(x);
		v[4 + i] = fetch(x + 128);
	}
}

/* Write four neighbouring elements, and lse with the first of a head. */
static __device__ __forceinline__ void put(uint16_t *output, float *lse, size_t row, int d4, float4 o, float max, float sum)
{
	float inv = sum > 0 ? 1.0f / sum : 0.0f;
	uint2 bits;

	bits.x = pack(o.x * inv, o.y * inv);
	bits.y = pack(o.z * inv, o.w * inv);
	*(uint2 *)(output + row * DIM + 4 * d4) = bits;
	if (d4 == 0)
		lse[row] = sum > 0 ? max + log2f(sum) : -INFINITY;
}

/* Page of token `at + lane % 16`, clamped to the range's last token. */
static __device__ __forceinline__ int page_of(const int32_t *indices, int at, int last, int lane)
{
	return __ldg(indices + min(at + (lane & 15), last - 1));
}

template <int CL>
static __global__ void __launch_bounds__(THREADS, 4) attend(const __grid_constant__ struct km_args a)
{
	constexpr int UNITS = UNITS_ALL / CL; /* float4 pieces that a rank writes */
	constexpr int SPAN = UNITS < DIM / 4 ? UNITS : DIM / 4; /* pieces of one head within a rank */

	__shared__ uint4 qs[THREADS];
	__shared__ __align__(16) float stage[WARPS][GROUP][PITCH];
	__shared__ float4 wml[WARPS][GROUP / 2]; /* max, sum, max, sum of two heads */
	__shared__ float4 recv[CL > 1 ? UNITS_ALL : 1]; /* [source rank][UNITS], written by the peers */
	__shared__ float2 recvml[CL][GROUP];

	const int tid = (int)threadIdx.x, warp = tid >> 5, lane = tid & 31, g = lane >> 2, c = lane & 3;
	const unsigned rank = blockIdx.x % CL, owned = blockIdx.x / CL, b = owned / KVH;
	const int head = (int)(owned % KVH);
	const int32_t *indices = a.kv_indices;

	/* Tell the peers that this CTA runs; waited for only before the join. */
	if (CL > 1)
		asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");

	/* Warp j fetches fragment j of q, for all warps. */
	const uint4 qv = fetch((const char *)(a.q + ((size_t)b * HEADS + head * GROUP + g) * DIM + 32 * warp + 8 * c));
	const int begin = __ldg(a.kv_indptr + b), end = __ldg(a.kv_indptr + b + 1);

	/* With one sequence the range is known without waiting for kv_indptr; it is compared below. */
	int from = 0, to = (int)a.num_kv_indices;

	if (a.batch_size != 1) {
		from = begin;
		to = end;
	}

	int last = from + (int)((int64_t)(to - from) * (rank + 1) / CL);
	int t = from + (int)((int64_t)(to - from) * rank / CL) + warp * TILE;
	int cur = 0, nxt = 0;

	if (t < last) {
		cur = page_of(indices, t, last, lane);
		nxt = page_of(indices, t + STEP, last, lane);
	}
	qs[tid] = qv;
	__syncthreads();
	if (from != begin || to != end) {
		last = begin + (int)((int64_t)(end - begin) * (rank + 1) / CL);
		t = begin + (int)((int64_t)(end - begin) * rank / CL) + warp * TILE;
		if (t < last) {
			cur = page_of(indices, t, last, lane);
			nxt = page_of(indices, t + STEP, last, lane);
		}
	}

	const char *kbase = (const char *)a.k_cache + head * ROW_BYTES + c * 16;
	const char *vbase = (const char *)a.v_cache + head * ROW_BYTES + g * 16;
	const unsigned qaddr = shared_address(&qs[lane]);
	const float scale = a.sm_scale * 1.4426950408889634f;
	float acc[8][4], m0 = -INFINITY, m1 = -INFINITY, l0 = 0, l1 = 0;

#pragma unroll
	for (int j = 0; j < 8; j++) {
		acc[j][0] = 0;
		acc[j][1] = 0;
		acc[j][2] = 0;
		acc[j][3] = 0;
	}

	if (t < last) {
		uint4 k[8], v[8];

		load_k(k, kbase, cur, g);
#pragma unroll 1
		for (;;) {
			float s[4] = {0, 0, 0, 0}, s2[4] = {0, 0, 0, 0};
			const bool more = t + STEP < last;

			load_v(v, vbase, cur, c);
			const int later = page_of(indices, t + 2 * STEP, last, lane);

			/* S^T = K Q^T: tokens g, g + 8 and heads 2c, 2c + 1 in this lane. */
#pragma unroll
			for (int j = 0; j < 4; j++) {
				const uint4 qf = shared_fetch(qaddr + 512 * j);

				mma(s, k[j].x, k[4 + j].x, k[j].y, k[4 + j].y, qf.x, qf.y);
				mma(s2, k[j].z, k[4 + j].z, k[j].w, k[4 + j].w, qf.z, qf.w);
			}
			if (more)
				load_k(k, kbase, nxt, g);

#pragma unroll
			for (int i = 0; i < 4; i++)
				s[i] = (s[i] + s2[i]) * scale;
			if (t + g >= last) {
				s[0] = -INFINITY;
				s[1] = -INFINITY;
			}
			if (t + g + 8 >= last) {
				s[2] = -INFINITY;
				s[3] = -INFINITY;
			}

			float n0 = fmaxf(s[0], s[2]), n1 = fmaxf(s[1], s[3]);

#pragma unroll
			for (int o = 4; o < 32; o *= 2) {
				n0 = fmaxf(n0, __shfl_xor_sync(~0u, n0, o));
				n1 = fmaxf(n1, __shfl_xor_sync(~0u, n1, o));
			}
			n0 = fmaxf(n0, m0);
			n1 = fmaxf(n1, m1);

			const float f0 = ex2(m0 - n0), f1 = ex2(m1 - n1);

			m0 = n0;
			m1 = n1;
			s[0] = ex2(s[0] - n0);
			s[1] = ex2(s[1] - n1);
			s[2] = ex2(s[2] - n0);
			s[3] = ex2(s[3] - n1);
			l0 = l0 * f0 + (s[0] + s[2]);
			l1 = l1 * f1 + (s[1] + s[3]);

			const unsigned b0 = transpose(pack(s[0], s[1])), b1 = transpose(pack(s[2], s[3]));

#pragma unroll
			for (int j = 0; j < 8; j++) {
				acc[j][0] *= f0;
				acc[j][1] *= f1;
				acc[j][2] *= f0;
				acc[j][3] *= f1;
			}

			/* O^T += V^T P^T: m-tile j has dims 8g + 2j (rows g) and 8g + 2j + 1 (rows g + 8), from j = 4 on of the high half. */
#pragma unroll
			for (int j = 0; j < 8; j++) {
				const int from_half = j < 4 ? 0 : 4;
				const unsigned x0 = word(v[from_half], j & 3), x1 = word(v[from_half + 1], j & 3);
				const unsigned x2 = word(v[from_half + 2], j & 3), x3 = word(v[from_half + 3], j & 3);

				mma(acc[j], __byte_perm(x0, x1, 0x5410), __byte_perm(x0, x1, 0x7632),
				    __byte_perm(x2, x3, 0x5410), __byte_perm(x2, x3, 0x7632), b0, b1);
			}
			if (!more)
				break;
			t += STEP;
			cur = nxt;
			nxt = later;
		}
	}

	/* Join the warps. */
#pragma unroll
	for (int o = 4; o < 32; o *= 2) {
		l0 += __shfl_xor_sync(~0u, l0, o);
		l1 += __shfl_xor_sync(~0u, l1, o);
	}
	if (lane < 4)
		wml[warp][c] = make_float4(m0, l0, m1, l1);
#pragma unroll
	for (int i = 0; i < 4; i++) { /* dims 8g, 8g + 4, 64 + 8g, 64 + 8g + 4 */
		const int d = 8 * g + (i & 1) * 4 + (i >> 1) * 64;

		*(float4 *)&stage[warp][2 * c][d] = make_float4(acc[2 * i][0], acc[2 * i][2], acc[2 * i + 1][0], acc[2 * i + 1][2]);
		*(float4 *)&stage[warp][2 * c + 1][d] = make_float4(acc[2 * i][1], acc[2 * i][3], acc[2 * i + 1][1], acc[2 * i + 1][3]);
	}
	__syncthreads();
	if (CL > 1)
		asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");

#pragma unroll
	for (int i = 0; i < UNITS_ALL / THREADS; i++) {
		const int u = tid + i * THREADS, h = u / (DIM / 4), d4 = u % (DIM / 4);
		float2 ml[WARPS];
		float max = -INFINITY, sum = 0;
		float4 o = make_float4(0, 0, 0, 0);

#pragma unroll
		for (int w = 0; w < WARPS; w++) {
			ml[w] = ((const float2 *)&wml[w][0])[h];
			max = fmaxf(max, ml[w].x);
		}
#pragma unroll
		for (int w = 0; w < WARPS; w++) {
			const float weight = weigh(ml[w].x, max);
			const float4 x = *(const float4 *)&stage[w][h][4 * d4];

			sum += weight * ml[w].y;
			o.x += weight * x.x;
			o.y += weight * x.y;
			o.z += weight * x.z;
			o.w += weight * x.w;
		}
		if (CL == 1) {
			put(a.output, a.lse, (size_t)b * HEADS + head * GROUP + h, d4, o, max, sum);
		} else {
			/* Push the piece to the rank that writes it. */
			const unsigned owner = (unsigned)(u / UNITS);
			const unsigned at = remote(shared_address(&recv[0]) + (unsigned)(rank * UNITS + u % UNITS) * 16u, owner);

			asm volatile("st.shared::cluster.v4.f32 [%0], {%1,%2,%3,%4};"
				     :: "r"(at), "f"(o.x), "f"(o.y), "f"(o.z), "f"(o.w) : "memory");
			if (u % SPAN == 0) {
				const unsigned to_ml = remote(shared_address(&recvml[0][0]) + (unsigned)(rank * GROUP + h) * 8u, owner);

				asm volatile("st.shared::cluster.v2.f32 [%0], {%1,%2};" :: "r"(to_ml), "f"(max), "f"(sum) : "memory");
			}
		}
	}
	if (CL == 1)
		return;

	asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
	asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");

	/* All pieces of this rank's slice are here now, and no peer touches this CTA any more. */
	if (tid < UNITS) {
		const int u = (int)rank * UNITS + tid, h = (u / (DIM / 4)) % GROUP, d4 = u % (DIM / 4);
		float2 ml[CL];
		float max = -INFINITY, sum = 0;
		float4 o = make_float4(0, 0, 0, 0);

#pragma unroll
		for (int r = 0; r < CL; r++) {
			ml[r] = recvml[r][h];
			max = fmaxf(max, ml[r].x);
		}
#pragma unroll
		for (int r = 0; r < CL; r++) {
			const float weight = weigh(ml[r].x, max);
			const float4 x = recv[(CL > 1 ? r * UNITS + tid : 0)];

			sum += weight * ml[r].y;
			o.x += weight * x.x;
			o.y += weight * x.y;
			o.z += weight * x.z;
			o.w += weight * x.w;
		}
		put(a.output, a.lse, (size_t)b * HEADS + head * GROUP + h, d4, o, max, sum);
	}
}

template <int CL>
static int launch(const struct km_args *a)
{
	cudaLaunchConfig_t config = {};
	cudaLaunchAttribute attribute[1] = {};

	config.gridDim = dim3((unsigned)(a->batch_size * KVH * CL), 1, 1);
	config.blockDim = dim3(THREADS, 1, 1);
	config.dynamicSmemBytes = 0;
	config.stream = (cudaStream_t)a->stream;
	attribute[0].id = cudaLaunchAttributeClusterDimension;
	attribute[0].val.clusterDim.x = CL;
	attribute[0].val.clusterDim.y = 1;
	attribute[0].val.clusterDim.z = 1;
	config.attrs = attribute;
	config.numAttrs = CL > 1 ? 1 : 0;
	return (int)cudaLaunchKernelEx(&config, attend<CL>, *a);
}

int km_init(const struct km_args *a)
{
	(void)a;
	/* Clusters of 16 have to be allowed; without them km_run takes 8. */
	if (cudaFuncSetAttribute(attend<16>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) != cudaSuccess)
		(void)cudaGetLastError();
	return 0;
}

int km_run(const struct km_args *a)
{
	const int64_t owned = a->batch_size * KVH;

	if (a->batch_size <= 0)
		return 0;
	if (a->batch_size <= 4) {
		if (launch<16>(a) == 0)
			return 0;
		(void)cudaGetLastError();
	}
	if (owned * 8 <= 1056)
		return launch<8>(a);
	if (owned * 4 <= 1056)
		return launch<4>(a);
	if (owned * 2 <= 1056)
		return launch<2>(a);
	return launch<1>(a);
}
