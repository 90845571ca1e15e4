#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>

enum {
	HEADS = KM_AXIS_NUM_QO_HEADS, CKV = KM_AXIS_HEAD_DIM_CKV, KPE = KM_AXIS_HEAD_DIM_KPE, WIDTH = CKV + KPE,
	STRIDE = WIDTH + 8, /* 73 * 16 bytes: eight rows lie in different banks */
	TILE = 32, STAGES = 5, WARPS = 8, CONSUMERS = 32 * WARPS,
	PRODUCERS = 4, THREADS = CONSUMERS + 32 * PRODUCERS,
	ROWS = TILE / PRODUCERS, GROUP = 32 / ROWS, /* rows of a tile for each producer warp; tiles whose pages its lanes hold */
	KGROUPS = 4, STEPS = WIDTH / 16 / KGROUPS, /* 9 steps of 16 for each warp */
	OWN = CKV / WARPS, COLUMN_TILES = OWN / 8,
	CHUNKS = 132, LEAST = 16, SLOTS = 2 * CHUNKS,
	RED_STRIDE = 40, P_STRIDE = 40,
};

struct shared {
	uint16_t kv[STAGES][TILE][STRIDE];
	float red[KGROUPS][HEADS][RED_STRIDE];
	uint16_t p[HEADS][P_STRIDE];
	float old[HEADS], inverse[HEADS];
	uint64_t full[STAGES], empty[STAGES];
};

static int chunk_tokens(const struct km_args *a)
{
	int64_t c = (a->num_kv_indices + CHUNKS - 1) / CHUNKS;

	return c < LEAST ? (int)LEAST : (int)c;
}

__device__ static __forceinline__ unsigned shared_address(const void *p)
{
	return (unsigned)__cvta_generic_to_shared(p);
}

__device__ static __forceinline__ void barrier_init(unsigned bar, unsigned count)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

__device__ static __forceinline__ void barrier_wait(unsigned bar, unsigned parity)
{
	unsigned done;

	do {
		asm volatile("{\n\t.reg .pred p;\n\t"
			     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
			     "selp.u32 %0, 1, 0, p;\n\t}"
			     : "=r"(done) : "r"(bar), "r"(parity) : "memory");
	} while (!done);
}

__device__ static __forceinline__ void barrier_arrive(unsigned bar)
{
	asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

/* Arrives when all copies that this thread has begun are done. */
__device__ static __forceinline__ void barrier_arrive_copies(unsigned bar)
{
	asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

/* 16 bytes to shared memory; unless ALL, zeros if not `there`. */
template <bool ALL> __device__ static __forceinline__ void copy_async(unsigned to, const void *from, bool there)
{
	if (ALL)
		asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
	else
		asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

/* The rows of a tile that belong to a producer warp; lane first + r has the page of row r. */
template <bool ALL>
__device__ static __forceinline__ void copy_rows(unsigned to, unsigned to_kpe, const uint16_t *ckv, const uint16_t *kpe, int pages, int first,
						 int valid, int lane)
{
#pragma unroll
	for (int r = 0; r < ROWS; r++) {
		const int64_t page = __shfl_sync(0xffffffffu, pages, first + r);
		const uint16_t *from = ckv + page * CKV;

		copy_async<ALL>(to + r * (STRIDE * 2), from, r < valid);
		copy_async<ALL>(to + r * (STRIDE * 2) + CKV, from + CKV / 2, r < valid);
	}
#pragma unroll
	for (int r = 0; r < ROWS; r += 4) {
		const int mine = r + lane / 8;
		const int64_t page = __shfl_sync(0xffffffffu, pages, first + mine);

		copy_async<ALL>(to_kpe + r * (STRIDE * 2), kpe + page * KPE, mine < valid);
	}
}

/* Of the consumer warps. */
__device__ static __forceinline__ void consumers_sync()
{
	asm volatile("bar.sync 1, 256;" ::: "memory");
}

__device__ static __forceinline__ void load_matrix4(unsigned *to, unsigned row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row) : "memory");
}

__device__ static __forceinline__ void load_matrix4_turned(unsigned *to, unsigned row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row) : "memory");
}

__device__ static __forceinline__ void multiply_add(float *sum, const unsigned *a, unsigned b0, unsigned b1)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
		     : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ static __forceinline__ float power2(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

__device__ static __forceinline__ float minus_infinity()
{
	return __int_as_float((int)0xff800000u);
}

/* By way of integers in the same order. */
__device__ static __forceinline__ float warp_max(float x)
{
	int i = __float_as_int(x);

	i ^= (i >> 31) & 0x7fffffff;
	i = __reduce_max_sync(0xffffffffu, i);
	i ^= (i >> 31) & 0x7fffffff;
	return __int_as_float(i);
}

__device__ static __forceinline__ float warp_sum(float x)
{
#pragma unroll
	for (int d = 16; d > 0; d /= 2)
		x += __shfl_xor_sync(0xffffffffu, x, d);
	return x;
}

/* Block i has the flat tokens from i * chunk on, whatever their sequences. */
static __global__ void __launch_bounds__(THREADS, 1) attend(const struct km_args a, int chunk, float2 *meta, float *parts)
{
	extern __shared__ __align__(128) unsigned char memory[];
	struct shared *s = reinterpret_cast<struct shared *>(memory);
	const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
	const int c0 = (int)blockIdx.x * chunk;
	const int n = min(chunk, (int)a.num_kv_indices - c0);
	const int tiles = (n + TILE - 1) / TILE;
	const int batch = (int)a.batch_size;
	const unsigned full = shared_address(s->full), empty = shared_address(s->empty);
	const unsigned kv = shared_address(s->kv);

	if (warp >= WARPS) {
		const int row = (warp - WARPS) * ROWS;
		int at = lane / ROWS * TILE + row + lane % ROWS;
		int pages = at < n ? __ldg(a.kv_indices + c0 + at) : 0;
		int next = at + GROUP * TILE < n ? __ldg(a.kv_indices + c0 + at + GROUP * TILE) : 0;

		if (warp == WARPS && lane == 0) {
			for (int i = 0; i < STAGES; i++) {
				barrier_init(full + 8 * i, 32 * PRODUCERS);
				barrier_init(empty + 8 * i, WARPS);
			}
			asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
		}
		__syncthreads();
		asm volatile("griddepcontrol.launch_dependents;" ::: "memory");

		const unsigned to = kv + (unsigned)((row * STRIDE + lane * 8) * 2);
		const unsigned to_kpe = kv + (unsigned)(((row + lane / 8) * STRIDE + CKV + lane % 8 * 8) * 2);
		const uint16_t *ckv = a.ckv_cache + lane * 8;
		const uint16_t *kpe = a.kpe_cache + lane % 8 * 8;
		int stage = 0;
		unsigned parity = 1; /* of the round before */

#pragma unroll 1
		for (int t = 0; t < tiles; t++) {
			const unsigned offset = (unsigned)(stage * (TILE * STRIDE * 2));
			const int first = t % GROUP * ROWS;
			const int valid = n - t * TILE - row;

			if (t >= STAGES)
				barrier_wait(empty + 8 * stage, parity);
			if (valid >= ROWS)
				copy_rows<true>(to + offset, to_kpe + offset, ckv, kpe, pages, first, valid, lane);
			else /* zeros to the rest: values that are weighted with 0 must not be NaN */
				copy_rows<false>(to + offset, to_kpe + offset, ckv, kpe, pages, first, valid, lane);
			barrier_arrive_copies(full + 8 * stage);
			if (t % GROUP == GROUP - 1) {
				pages = next;
				at += GROUP * TILE;
				next = at + GROUP * TILE < n ? __ldg(a.kv_indices + c0 + at + GROUP * TILE) : 0;
			}
			if (++stage == STAGES) {
				stage = 0;
				parity ^= 1;
			}
		}
		asm volatile("cp.async.wait_all;" ::: "memory");
		return;
	}

	/* Consumers. */
	int end0 = lane < batch ? __ldg(a.kv_indptr + lane + 1) : 0x7fffffff;
	int end1 = lane + 32 < batch ? __ldg(a.kv_indptr + lane + 33) : 0x7fffffff;

	__syncthreads();
	asm volatile("griddepcontrol.launch_dependents;" ::: "memory");

	int b = 0, begin = 0, end = (int)a.num_kv_indices;

	if (batch > 1) { /* otherwise the queries need not wait for kv_indptr */
		int before = (end0 <= c0) + (end1 <= c0);

		for (int i = lane + 64; i < batch; i += 32)
			before += __ldg(a.kv_indptr + i + 1) <= c0;
		b = __reduce_add_sync(0xffffffffu, before);
		begin = __ldg(a.kv_indptr + b);
		end = __ldg(a.kv_indptr + b + 1);
	}

	const int kgroup = warp % KGROUPS, half = warp / KGROUPS, g = lane / 4, t4 = lane % 4;
	const int head = 2 * warp; /* this one and the next in the softmax */
	const float scale = a.sm_scale * 1.44269504088896341f;
	const unsigned k_at = kv + (unsigned)(((half * 16 + lane / 16 * 8 + lane % 8) * STRIDE + kgroup * (STEPS * 16) + lane / 8 % 2 * 8) * 2);
	const unsigned v_at = kv + (unsigned)(((lane / 8 % 2 * 8 + lane % 8) * STRIDE + warp * OWN + lane / 16 * 8) * 2);
	const unsigned p_at = shared_address(s->p) + (unsigned)(((lane / 8 % 2 * 8 + lane % 8) * P_STRIDE + lane / 16 * 8) * 2);

	for (;;) {
		const int lo = max(begin - c0, 0), hi = min(end - c0, n);
		unsigned q[STEPS][4];
		float acc[COLUMN_TILES][4];
		float max0 = minus_infinity(), max1 = minus_infinity(), sum0 = 0, sum1 = 0;

#pragma unroll
		for (int k = 0; k < STEPS; k++) {
			int step = kgroup * STEPS + k;
			bool left = step < CKV / 16;
			const uint16_t *row = left ? a.q_nope + ((int64_t)b * HEADS + g) * CKV + step * 16 + t4 * 2
						   : a.q_pe + ((int64_t)b * HEADS + g) * KPE + (step - CKV / 16) * 16 + t4 * 2;
			int below = left ? 8 * CKV : 8 * KPE;

			q[k][0] = __ldg(reinterpret_cast<const unsigned *>(row));
			q[k][1] = __ldg(reinterpret_cast<const unsigned *>(row + below));
			q[k][2] = __ldg(reinterpret_cast<const unsigned *>(row + 8));
			q[k][3] = __ldg(reinterpret_cast<const unsigned *>(row + below + 8));
		}
#pragma unroll
		for (int j = 0; j < COLUMN_TILES; j++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				acc[j][i] = 0;

		const int last = (hi - 1) / TILE;

		for (int t = lo / TILE; t <= last; t++) {
			const int stage = t % STAGES;
			const unsigned stage_at = (unsigned)(stage * TILE * STRIDE * 2);

			barrier_wait(full + 8 * stage, (unsigned)(t / STAGES) & 1);
			{
				float x[2][2][4]; /* even and odd steps, 8 tokens each */

#pragma unroll
				for (int i = 0; i < 16; i++)
					x[i / 8][i / 4 % 2][i % 4] = 0;
#pragma unroll
				for (int k = 0; k < STEPS; k++) {
					unsigned r[4];

					load_matrix4(r, k_at + stage_at + k * 32);
					multiply_add(x[k % 2][0], q[k], r[0], r[1]);
					multiply_add(x[k % 2][1], q[k], r[2], r[3]);
				}
#pragma unroll
				for (int j = 0; j < 2; j++) {
					int token = half * 16 + j * 8 + t4 * 2;

					*reinterpret_cast<float2 *>(&s->red[kgroup][g][token]) =
						make_float2(x[0][j][0] + x[1][j][0], x[0][j][1] + x[1][j][1]);
					*reinterpret_cast<float2 *>(&s->red[kgroup][g + 8][token]) =
						make_float2(x[0][j][2] + x[1][j][2], x[0][j][3] + x[1][j][3]);
				}
			}
			consumers_sync();
			{
				const int token = t * TILE + lane;
				const bool inside = token >= lo && token < hi;
				float x0 = (s->red[0][head][lane] + s->red[1][head][lane]) + (s->red[2][head][lane] + s->red[3][head][lane]);
				float x1 = (s->red[0][head + 1][lane] + s->red[1][head + 1][lane])
					   + (s->red[2][head + 1][lane] + s->red[3][head + 1][lane]);

				x0 = inside ? x0 * scale : minus_infinity();
				x1 = inside ? x1 * scale : minus_infinity();

				/* finite: each tile here has a token of the sequence */
				float new0 = fmaxf(max0, warp_max(x0)), new1 = fmaxf(max1, warp_max(x1));
				float p0 = power2(x0 - new0), p1 = power2(x1 - new1);
				float old0 = power2(max0 - new0), old1 = power2(max1 - new1);

				s->p[head][lane] = __bfloat16_as_ushort(__float2bfloat16(p0));
				s->p[head + 1][lane] = __bfloat16_as_ushort(__float2bfloat16(p1));
				if (lane == 0) {
					s->old[head] = old0;
					s->old[head + 1] = old1;
				}
				sum0 = sum0 * old0 + p0;
				sum1 = sum1 * old1 + p1;
				max0 = new0;
				max1 = new1;
			}
			consumers_sync();
			{
				unsigned p[2][4];
				const float upper = s->old[g], lower = s->old[g + 8];

				load_matrix4(p[0], p_at);
				load_matrix4(p[1], p_at + 32);
#pragma unroll
				for (int j = 0; j < COLUMN_TILES; j++) {
					acc[j][0] *= upper;
					acc[j][1] *= upper;
					acc[j][2] *= lower;
					acc[j][3] *= lower;
				}
#pragma unroll
				for (int k = 0; k < 2; k++)
#pragma unroll
					for (int j = 0; j < COLUMN_TILES; j += 2) {
						unsigned r[4];

						load_matrix4_turned(r, v_at + stage_at + k * (16 * STRIDE * 2) + j * 16);
						multiply_add(acc[j], p[k], r[0], r[1]);
						multiply_add(acc[j + 1], p[k], r[2], r[3]);
					}
			}
			if (hi >= min((t + 1) * (int)TILE, n)) { /* no later sequence needs this tile */
				__syncwarp();
				if (lane == 0)
					barrier_arrive(empty + 8 * stage);
			}
		}

		sum0 = warp_sum(sum0);
		sum1 = warp_sum(sum1);
		if (begin >= c0 && end <= c0 + n) { /* the whole sequence */
			if (lane == 0) {
				s->inverse[head] = 1.0f / sum0;
				s->inverse[head + 1] = 1.0f / sum1;
				a.lse[(int64_t)b * HEADS + head] = max0 + log2f(sum0);
				a.lse[(int64_t)b * HEADS + head + 1] = max1 + log2f(sum1);
			}
			consumers_sync();

			const float upper = s->inverse[g], lower = s->inverse[g + 8];
			uint16_t *to = a.output + ((int64_t)b * HEADS + g) * CKV + warp * OWN + t4 * 2;

#pragma unroll
			for (int j = 0; j < COLUMN_TILES; j++) {
				*reinterpret_cast<__nv_bfloat162 *>(to + 8 * j) = __floats2bfloat162_rn(acc[j][0] * upper, acc[j][1] * upper);
				*reinterpret_cast<__nv_bfloat162 *>(to + 8 * CKV + 8 * j) = __floats2bfloat162_rn(acc[j][2] * lower, acc[j][3] * lower);
			}
		} else {
			const int slot = 2 * (int)blockIdx.x + (begin >= c0 ? 1 : 0);
			float *to = parts + ((int64_t)slot * HEADS + g) * CKV + warp * OWN + t4 * 2;

#pragma unroll
			for (int j = 0; j < COLUMN_TILES; j++) {
				*reinterpret_cast<float2 *>(to + 8 * j) = make_float2(acc[j][0], acc[j][1]);
				*reinterpret_cast<float2 *>(to + 8 * CKV + 8 * j) = make_float2(acc[j][2], acc[j][3]);
			}
			if (lane == 0) {
				meta[slot * HEADS + head] = make_float2(max0, sum0);
				meta[slot * HEADS + head + 1] = make_float2(max1, sum1);
			}
		}
		if (hi >= n)
			break;
		do {
			b++;
			begin = end;
			end = __ldg(a.kv_indptr + b + 1);
		} while (end <= begin);
	}
}

/* A block joins COLUMNS columns of one head of one sequence; GROUPS groups of threads share the parts. */
template <int COLUMNS, int GROUPS, int AHEAD>
static __global__ void __launch_bounds__(COLUMNS / 4 * GROUPS)
join_parts(const int32_t *indptr, int chunk, const float2 *meta, const float *parts, uint16_t *output, float *lse)
{
	constexpr int LANES = COLUMNS / 4, SPLIT = CKV / COLUMNS, META = (CHUNKS + 31) / 32;
	__shared__ float weight[META * 32];
	__shared__ float4 other[GROUPS][LANES];
	const int piece = (int)(blockIdx.x % SPLIT);
	const int64_t row = blockIdx.x / SPLIT;
	const int head = (int)(row % HEADS);
	const int64_t b = row / HEADS;
	const int lane = (int)threadIdx.x % LANES, group = (int)threadIdx.x / LANES;
	const int start = indptr[b], end = indptr[b + 1];
	const int first = start / chunk;
	const int count = end > start ? (end - 1) / chunk - first + 1 : 0;
	uint16_t *to = output + row * CKV + piece * COLUMNS + lane * 4;

	asm volatile("griddepcontrol.wait;" ::: "memory");
	if (count == 1)
		return; /* written already */
	if (count == 0) {
		if (group == 0)
			*reinterpret_cast<uint2 *>(to) = make_uint2(0, 0);
		if (piece == 0 && threadIdx.x == 0)
			lse[row] = minus_infinity();
		return;
	}

	const float *from = parts + (int64_t)head * CKV + piece * COLUMNS + lane * 4;
	float4 v[AHEAD];
	float4 sum = make_float4(0, 0, 0, 0);

#pragma unroll
	for (int k = 0; k < AHEAD; k++) {
		int p = group + k * GROUPS;
		int slot = 2 * (first + p) + (p == 0 ? 1 : 0);

		v[k] = make_float4(0, 0, 0, 0);
		if (p < count)
			v[k] = *reinterpret_cast<const float4 *>(from + (int64_t)slot * (HEADS * CKV));
	}
	if (threadIdx.x < 32) {
		float2 m[META];
		float most = minus_infinity(), total = 0;

#pragma unroll
		for (int k = 0; k < META; k++) {
			int p = (int)threadIdx.x + 32 * k;
			int slot = 2 * (first + p) + (p == 0 ? 1 : 0);

			m[k] = make_float2(minus_infinity(), 0);
			if (p < count)
				m[k] = meta[slot * HEADS + head];
		}
#pragma unroll
		for (int k = 0; k < META; k++)
			most = fmaxf(most, m[k].x);
		most = warp_max(most);
#pragma unroll
		for (int k = 0; k < META; k++) {
			m[k].x = power2(m[k].x - most);
			total += m[k].x * m[k].y;
		}
		total = warp_sum(total);

		float inverse = 1.0f / total;

#pragma unroll
		for (int k = 0; k < META; k++)
			weight[threadIdx.x + 32 * k] = m[k].x * inverse;
		if (piece == 0 && threadIdx.x == 0)
			lse[row] = most + log2f(total);
	}
	__syncthreads();
	for (int base = group;;) {
#pragma unroll
		for (int k = 0; k < AHEAD; k++) {
			int p = base + k * GROUPS;
			float w = p < count ? weight[p] : 0.0f;

			sum.x += w * v[k].x;
			sum.y += w * v[k].y;
			sum.z += w * v[k].z;
			sum.w += w * v[k].w;
		}
		base += AHEAD * GROUPS;
		if (base >= count)
			break;
#pragma unroll
		for (int k = 0; k < AHEAD; k++) {
			int p = base + k * GROUPS; /* never 0 here */

			v[k] = make_float4(0, 0, 0, 0);
			if (p < count)
				v[k] = *reinterpret_cast<const float4 *>(from + (int64_t)(2 * (first + p)) * (HEADS * CKV));
		}
	}
	if (GROUPS > 1) {
		other[group][lane] = sum;
		__syncthreads();
		if (group == 0) {
#pragma unroll
			for (int i = 1; i < GROUPS; i++) {
				float4 x = other[i][lane];

				sum.x += x.x;
				sum.y += x.y;
				sum.z += x.z;
				sum.w += x.w;
			}
		}
	}
	if (group == 0) {
		__nv_bfloat162 *pair = reinterpret_cast<__nv_bfloat162 *>(to);

		pair[0] = __floats2bfloat162_rn(sum.x, sum.y);
		pair[1] = __floats2bfloat162_rn(sum.z, sum.w);
	}
}

template <int COLUMNS, int GROUPS, int AHEAD>
static cudaError_t launch_join(const struct km_args *a, int chunk, const float2 *meta, const float *parts)
{
	cudaLaunchConfig_t config = {};
	cudaLaunchAttribute attribute[1];

	attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attribute[0].val.programmaticStreamSerializationAllowed = 1;
	config.gridDim = dim3((unsigned)(a->batch_size * HEADS * (CKV / COLUMNS)));
	config.blockDim = dim3(COLUMNS / 4 * GROUPS);
	config.dynamicSmemBytes = 0;
	config.stream = (cudaStream_t)a->stream;
	config.attrs = attribute;
	config.numAttrs = 1;
	return cudaLaunchKernelEx(&config, join_parts<COLUMNS, GROUPS, AHEAD>, (const int32_t *)a->kv_indptr, chunk, meta, parts,
				  (uint16_t *)a->output, (float *)a->lse);
}

size_t km_workspace(const struct km_args *)
{
	return (size_t)SLOTS * HEADS * (CKV * sizeof(float) + sizeof(float2));
}

int km_init(const struct km_args *)
{
	return (int)cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(struct shared));
}

int km_run(const struct km_args *a)
{
	cudaStream_t stream = (cudaStream_t)a->stream;
	float *parts = (float *)a->workspace;
	float2 *meta = (float2 *)(parts + (size_t)SLOTS * HEADS * CKV);
	int chunk = chunk_tokens(a);
	unsigned blocks = (unsigned)((a->num_kv_indices + chunk - 1) / chunk);
	cudaError_t error;

	if (a->batch_size <= 0)
		return 0;
	if (blocks > 0)
		attend<<<blocks, THREADS, sizeof(struct shared), stream>>>(*a, chunk, meta, parts);
	if (a->batch_size <= 4)
		error = launch_join<64, 16, 8>(a, chunk, meta, parts);
	else if (a->batch_size < 32)
		error = launch_join<256, 4, 4>(a, chunk, meta, parts);
	else
		error = launch_join<512, 1, 4>(a, chunk, meta, parts);
	if (error != cudaSuccess)
		return (int)error;
	return (int)cudaGetLastError();
}
