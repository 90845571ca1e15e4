#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>

enum {
	HEADS = KM_AXIS_NUM_QO_HEADS, CKV = KM_AXIS_HEAD_DIM_CKV, KPE = KM_AXIS_HEAD_DIM_KPE, WIDTH = CKV + KPE,
	STRIDE = WIDTH + 8, /* 73 * 16 bytes: eight rows lie in different banks */
	TILE = 32, STAGES = 5, WARPS = 8, CONSUMERS = 32 * WARPS, PRODUCERS = 4, THREADS = CONSUMERS + 32 * PRODUCERS,
	ROWS_EACH = TILE / PRODUCERS, /* rows of a tile that a producer warp copies */
	KGROUPS = 4, STEPS = WIDTH / 16 / KGROUPS, /* 9 steps of 16 for each warp */
	OWN = CKV / WARPS, COLUMN_TILES = OWN / 8,
	CHUNKS = 132, LEAST = 32, SLOTS = 2 * CHUNKS,
	RED_STRIDE = 40, P_STRIDE = 40,
	OUT_STRIDE = OWN + 8, PART = HEADS * CKV,
};

struct shared {
	uint16_t kv[STAGES][TILE][STRIDE];
	float red[KGROUPS][HEADS][RED_STRIDE];
	uint16_t p[HEADS][P_STRIDE];
	uint16_t q[HEADS][STRIDE]; /* of the next sequence, while the current one's are in registers */
	uint16_t out[WARPS][8][OUT_STRIDE]; /* each warp's own, 144 bytes a row */
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

/* 16 bytes to shared memory. */
__device__ static __forceinline__ void copy_async(unsigned to, const void *from)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

/* Arrives when all earlier copies of this thread are there. */
__device__ static __forceinline__ void copy_arrive(unsigned bar)
{
	asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

__device__ static __forceinline__ void copy_wait_all()
{
	asm volatile("cp.async.wait_all;" ::: "memory");
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

/* Lane i gives the address of row i % 8 of matrix i / 8. */
__device__ static __forceinline__ void store_matrix4(unsigned row, const unsigned *from)
{
	asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
		     ::"r"(row), "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3]) : "memory");
}

__device__ static __forceinline__ unsigned pack_bf16(float low, float high)
{
	unsigned x;

	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
	return x;
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

/* The queries of sequence b, by all consumers: 4 or 5 copies a thread. */
__device__ static __forceinline__ void load_queries(unsigned to, const uint16_t *q_nope, const uint16_t *q_pe, int b)
{
	const int x = (int)threadIdx.x;
	const uint16_t *left = q_nope + (int64_t)b * PART + x * 8;
	const unsigned at = to + (unsigned)((x / (CKV / 8) * STRIDE + x % (CKV / 8) * 8) * 2);

#pragma unroll
	for (int i = 0; i < HEADS * CKV / 8 / CONSUMERS; i++)
		copy_async(at + (unsigned)(i * (CONSUMERS * 8 / CKV) * STRIDE * 2), left + i * CONSUMERS * 8);
	if (x < HEADS * KPE / 8)
		copy_async(to + (unsigned)((x / (KPE / 8) * STRIDE + CKV + x % (KPE / 8) * 8) * 2),
			   q_pe + (int64_t)b * (HEADS * KPE) + x * 8);
}

/* Block i has the flat tokens from i * chunk on, whatever their sequences. */
static __global__ void __launch_bounds__(THREADS, 1) attend(const struct km_args a, int chunk, float2 *meta, uint16_t *parts)
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
		const int mine = (warp - WARPS) * ROWS_EACH; /* this warp's first row of each tile */
		int index[STAGES];

#pragma unroll
		for (int i = 0; i < STAGES; i++) {
			int at = i * TILE + mine + lane % ROWS_EACH;

			index[i] = at < n ? __ldg(a.kv_indices + c0 + at) : 0;
		}
		if (warp == WARPS && lane == 0) {
			for (int i = 0; i < STAGES; i++) {
				barrier_init(full + 8 * i, 32 * PRODUCERS);
				barrier_init(empty + 8 * i, WARPS);
			}
			asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
		}
		__syncthreads();
		asm volatile("griddepcontrol.launch_dependents;" ::: "memory");

		const uint16_t *left = a.ckv_cache + lane * 8;
		const uint16_t *right = a.kpe_cache + lane % 8 * 8;
		const unsigned left_at = kv + (unsigned)(mine * STRIDE * 2 + lane * 16);
		const unsigned right_at = kv + (unsigned)((mine + lane / 8) * STRIDE * 2 + CKV * 2 + lane % 8 * 16);

		for (int base = 0, round = 0; base < tiles; base += STAGES, round++) {
#pragma unroll
			for (int i = 0; i < STAGES; i++) {
				int tile = base + i;

				if (tile < tiles) {
					const int valid = n - tile * TILE - mine; /* rows of this warp, if less than ROWS_EACH */
					const unsigned stage_at = (unsigned)(i * TILE * STRIDE * 2);

					if (round > 0)
						barrier_wait(empty + 8 * i, (unsigned)(round - 1) & 1);
					__syncwarp();
#pragma unroll
					for (int r = 0; r < ROWS_EACH; r++) {
						int64_t page = __shfl_sync(0xffffffffu, index[i], r);

						if (r < valid) {
							unsigned to = left_at + stage_at + (unsigned)(r * STRIDE * 2);
							const uint16_t *from = left + page * CKV;

							copy_async(to, from);
							copy_async(to + CKV, from + CKV / 2);
						}
					}
#pragma unroll
					for (int r = 0; r < ROWS_EACH; r += 4) {
						int64_t page = __shfl_sync(0xffffffffu, index[i], r + lane / 8);

						if (r + lane / 8 < valid)
							copy_async(right_at + stage_at + (unsigned)(r * STRIDE * 2), right + page * KPE);
					}
					copy_arrive(full + 8 * i);

					int at = (tile + STAGES) * TILE + mine + lane % ROWS_EACH;

					index[i] = at < n ? __ldg(a.kv_indices + c0 + at) : 0;
				}
			}
		}
		copy_wait_all();
		return;
	}

	/* Consumers. */
	int end0 = lane < batch ? __ldg(a.kv_indptr + lane + 1) : 0x7fffffff;
	int end1 = lane + 32 < batch ? __ldg(a.kv_indptr + lane + 33) : 0x7fffffff;

	if (tiles <= STAGES) { /* rows that no copy ever fills: values that are weighted with 0 must not be NaN */
		int valid = n - (tiles - 1) * TILE;

		for (int i = threadIdx.x; i < (TILE - valid) * (CKV / 8); i += CONSUMERS)
			*reinterpret_cast<uint4 *>(&s->kv[tiles - 1][valid + i / (CKV / 8)][i % (CKV / 8) * 8]) = make_uint4(0, 0, 0, 0);
	}
	__syncthreads();
	asm volatile("griddepcontrol.launch_dependents;" ::: "memory");

	int b = 0;

	if (batch > 1) {
		int before = (end0 <= c0) + (end1 <= c0);

		for (int i = lane + 64; i < batch; i += 32)
			before += __ldg(a.kv_indptr + i + 1) <= c0;
		b = __reduce_add_sync(0xffffffffu, before);
	}

	const unsigned queries = shared_address(s->q);

	load_queries(queries, a.q_nope, a.q_pe, b);

	int begin = __ldg(a.kv_indptr + b), end = __ldg(a.kv_indptr + b + 1);

	const int kgroup = warp % KGROUPS, half = warp / KGROUPS, g = lane / 4, t4 = lane % 4;
	const int head = 2 * warp; /* this one and the next in the softmax */
	const float scale = a.sm_scale * 1.44269504088896341f;
	const unsigned q_at = queries + (unsigned)(((lane / 8 % 2 * 8 + lane % 8) * STRIDE + kgroup * (STEPS * 16) + lane / 16 * 8) * 2);
	const unsigned k_at = kv + (unsigned)(((half * 16 + lane / 16 * 8 + lane % 8) * STRIDE + kgroup * (STEPS * 16) + lane / 8 % 2 * 8) * 2);
	const unsigned v_at = kv + (unsigned)(((lane / 8 % 2 * 8 + lane % 8) * STRIDE + warp * OWN + lane / 16 * 8) * 2);
	const unsigned p_at = shared_address(s->p) + (unsigned)(((lane / 8 % 2 * 8 + lane % 8) * P_STRIDE + lane / 16 * 8) * 2);

	const unsigned out_at = shared_address(s->out[warp]) + (unsigned)(lane % 8 * (OUT_STRIDE * 2) + lane / 8 * 16);

	for (;;) {
		const int lo = max(begin - c0, 0), hi = min(end - c0, n);
		unsigned q[STEPS][4];
		float acc[COLUMN_TILES][4];
		float max0 = minus_infinity(), max1 = minus_infinity(), sum0 = 0, sum1 = 0;

		copy_wait_all();
		consumers_sync(); /* the queries of all threads are there */
#pragma unroll
		for (int k = 0; k < STEPS; k++)
			load_matrix4(q[k], q_at + k * 32);
#pragma unroll
		for (int j = 0; j < COLUMN_TILES; j++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				acc[j][i] = 0;

		consumers_sync(); /* all have read the queries */

		/* The next sequence with tokens, if this chunk reaches into it: its queries come while this one is worked on. */
		int next = b, next_end = end;

		if (hi < n) {
			do {
				next++;
				next_end = __ldg(a.kv_indptr + next + 1);
			} while (next_end <= end);
			load_queries(queries, a.q_nope, a.q_pe, next);
		}

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

		const bool whole = begin >= c0 && end <= c0 + n;
		const int slot = 2 * (int)blockIdx.x + (begin >= c0 ? 1 : 0);

		if (lane == 0) {
			s->inverse[head] = 1.0f / sum0;
			s->inverse[head + 1] = 1.0f / sum1;
			if (whole) {
				a.lse[(int64_t)b * HEADS + head] = max0 + log2f(sum0);
				a.lse[(int64_t)b * HEADS + head + 1] = max1 + log2f(sum1);
			} else {
				*reinterpret_cast<float4 *>(meta + slot * HEADS + head) = make_float4(max0, sum0, max1, sum1);
			}
		}
		consumers_sync();

		/* The normalised values: the result of a whole sequence, or a part, in the same layout. */
		uint16_t *to = (whole ? a.output + (int64_t)b * PART : parts + (int64_t)slot * PART) + warp * OWN;

#pragma unroll
		for (int h = 0; h < 2; h++) {
			const float factor = s->inverse[g + 8 * h];
			unsigned w[COLUMN_TILES];

#pragma unroll
			for (int j = 0; j < COLUMN_TILES; j++)
				w[j] = pack_bf16(acc[j][2 * h] * factor, acc[j][2 * h + 1] * factor);
			__syncwarp();
			store_matrix4(out_at, w);
			store_matrix4(out_at + 64, w + 4);
			__syncwarp();
#pragma unroll
			for (int i = 0; i < 2; i++) {
				const int row = 4 * i + lane / 8, at = lane % 8 * 8;

				*reinterpret_cast<uint4 *>(to + (8 * h + row) * CKV + at) = *reinterpret_cast<const uint4 *>(&s->out[warp][row][at]);
			}
		}
		if (hi >= n)
			break;
		b = next;
		begin = end;
		end = next_end;
	}
}

__device__ static __forceinline__ void add_weighted(float *sum, float w, const uint4 &v)
{
	const unsigned x[4] = {v.x, v.y, v.z, v.w};

#pragma unroll
	for (int i = 0; i < 4; i++) {
		sum[2 * i] += w * __uint_as_float(x[i] << 16);
		sum[2 * i + 1] += w * __uint_as_float(x[i] & 0xffff0000u);
	}
}

/* A block joins COLUMNS columns of ROWS heads of one sequence; GROUPS groups of threads share the parts. */
template <int COLUMNS, int GROUPS, int ROWS, int AHEAD>
static __global__ void __launch_bounds__(COLUMNS / 8 * GROUPS * ROWS)
join_parts(const int32_t *indptr, int chunk, const float2 *meta, const uint16_t *parts, uint16_t *output, float *lse)
{
	constexpr int LANES = COLUMNS / 8, SPLIT = CKV / COLUMNS, TEAM = LANES * GROUPS, META = (CHUNKS + 31) / 32;
	constexpr int FOLD = LANES < 32 ? 32 / LANES : 1; /* groups of a warp */
	constexpr int OTHERS = GROUPS / FOLD;

	static_assert(TEAM % 32 == 0 && GROUPS % FOLD == 0 && HEADS % ROWS == 0, "whole warps, one sequence");
	static_assert(ROWS == 1 || (GROUPS == 1 && SPLIT == 1), "either rows or groups");
	static_assert(OTHERS == 1 || COLUMNS / 2 <= TEAM, "two columns a thread at the end");

	__shared__ float weight[ROWS][META * 32];
	__shared__ __align__(16) float other[OTHERS][OTHERS > 1 ? COLUMNS : 4];
	const int piece = (int)(blockIdx.x % SPLIT);
	const int member = (int)threadIdx.x % TEAM, sub = (int)threadIdx.x / TEAM;
	const int64_t row = (int64_t)(blockIdx.x / SPLIT) * ROWS + sub;
	const int head = (int)(row % HEADS);
	const int64_t b = row / HEADS;
	const int lane = member % LANES, group = member / LANES;
	const int start = __ldg(indptr + b), end = __ldg(indptr + b + 1);
	const int first = start / chunk;
	const int count = end > start ? (end - 1) / chunk - first + 1 : 0;
	uint16_t *to = output + row * CKV + piece * COLUMNS;

	asm volatile("griddepcontrol.wait;" ::: "memory");
	if (count == 1)
		return; /* written already */
	if (count == 0) {
		if (group == 0)
			*reinterpret_cast<uint4 *>(to + lane * 8) = make_uint4(0, 0, 0, 0);
		if (piece == 0 && member == 0)
			lse[row] = minus_infinity();
		return;
	}

	const uint16_t *from = parts + (int64_t)head * CKV + piece * COLUMNS + lane * 8;
	uint4 v[AHEAD];
	float2 m[META];
	float sum[8];

	if (member < 32) {
#pragma unroll
		for (int k = 0; k < META; k++) {
			int p = member + 32 * k;
			int slot = 2 * (first + p) + (p == 0 ? 1 : 0);

			m[k] = make_float2(minus_infinity(), 0);
			if (p < count)
				m[k] = __ldcg(meta + slot * HEADS + head);
		}
	}
#pragma unroll
	for (int k = 0; k < AHEAD; k++) {
		int p = group + k * GROUPS;
		int slot = 2 * (first + p) + (p == 0 ? 1 : 0);

		v[k] = make_uint4(0, 0, 0, 0);
		if (p < count)
			v[k] = __ldcg(reinterpret_cast<const uint4 *>(from + (int64_t)slot * PART));
	}
#pragma unroll
	for (int i = 0; i < 8; i++)
		sum[i] = 0;
	if (member < 32) {
		float most = minus_infinity(), total = 0;

#pragma unroll
		for (int k = 0; k < META; k++)
			most = fmaxf(most, m[k].x);
		most = warp_max(most);
#pragma unroll
		for (int k = 0; k < META; k++) {
			m[k].x = power2(m[k].x - most) * m[k].y;
			total += m[k].x;
		}
		total = warp_sum(total);

		float inverse = 1.0f / total;

#pragma unroll
		for (int k = 0; k < META; k++)
			weight[sub][member + 32 * k] = m[k].x * inverse;
		if (piece == 0 && member == 0)
			lse[row] = most + log2f(total);
	}
	__syncthreads();
	for (int base = 0;;) {
#pragma unroll
		for (int k = 0; k < AHEAD; k++) {
			int p = base + group + k * GROUPS;
			float w = p < count ? weight[sub][p] : 0.0f;

			add_weighted(sum, w, v[k]);
		}
		base += AHEAD * GROUPS;
		if (base >= count)
			break;
#pragma unroll
		for (int k = 0; k < AHEAD; k++) {
			int p = base + group + k * GROUPS; /* never 0 here */

			v[k] = make_uint4(0, 0, 0, 0);
			if (p < count)
				v[k] = __ldcg(reinterpret_cast<const uint4 *>(from + (int64_t)(2 * (first + p)) * PART));
		}
	}
	if constexpr (FOLD > 1) {
#pragma unroll
		for (int d = LANES; d < 32; d *= 2)
#pragma unroll
			for (int i = 0; i < 8; i++)
				sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], d);
	}
	if constexpr (OTHERS > 1) {
		if (group % FOLD == 0) {
			float4 *mine = reinterpret_cast<float4 *>(&other[group / FOLD][lane * 8]);

			mine[0] = make_float4(sum[0], sum[1], sum[2], sum[3]);
			mine[1] = make_float4(sum[4], sum[5], sum[6], sum[7]);
		}
		__syncthreads();
		if (member < COLUMNS / 2) {
			float x = 0, y = 0;

#pragma unroll
			for (int i = 0; i < OTHERS; i++) {
				float2 o = *reinterpret_cast<const float2 *>(&other[i][member * 2]);

				x += o.x;
				y += o.y;
			}
			*reinterpret_cast<unsigned *>(to + member * 2) = pack_bf16(x, y);
		}
	} else {
		if (group == 0)
			*reinterpret_cast<uint4 *>(to + lane * 8) =
				make_uint4(pack_bf16(sum[0], sum[1]), pack_bf16(sum[2], sum[3]), pack_bf16(sum[4], sum[5]), pack_bf16(sum[6], sum[7]));
	}
}

template <int COLUMNS, int GROUPS, int ROWS, int AHEAD>
static cudaError_t launch_join(const struct km_args *a, int chunk, const float2 *meta, const uint16_t *parts)
{
	cudaLaunchConfig_t config = {};
	cudaLaunchAttribute attribute[1];

	attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attribute[0].val.programmaticStreamSerializationAllowed = 1;
	config.gridDim = dim3((unsigned)(a->batch_size * (HEADS / ROWS) * (CKV / COLUMNS)));
	config.blockDim = dim3(COLUMNS / 8 * GROUPS * ROWS);
	config.dynamicSmemBytes = 0;
	config.stream = (cudaStream_t)a->stream;
	config.attrs = attribute;
	config.numAttrs = 1;
	return cudaLaunchKernelEx(&config, join_parts<COLUMNS, GROUPS, ROWS, AHEAD>, (const int32_t *)a->kv_indptr, chunk, meta, parts,
				  (uint16_t *)a->output, (float *)a->lse);
}

size_t km_workspace(const struct km_args *)
{
	return (size_t)SLOTS * HEADS * (CKV * sizeof(uint16_t) + sizeof(float2));
}

int km_init(const struct km_args *)
{
	return (int)cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(struct shared));
}

int km_run(const struct km_args *a)
{
	cudaStream_t stream = (cudaStream_t)a->stream;
	uint16_t *parts = (uint16_t *)a->workspace;
	float2 *meta = (float2 *)(parts + (size_t)SLOTS * PART);
	int chunk = chunk_tokens(a);
	unsigned blocks = (unsigned)((a->num_kv_indices + chunk - 1) / chunk);
	cudaError_t error;

	if (a->batch_size <= 0)
		return 0;
	if (blocks > 0)
		attend<<<blocks, THREADS, sizeof(struct shared), stream>>>(*a, chunk, meta, parts);
	if (a->batch_size <= 4)
		error = launch_join<64, 32, 1, 4>(a, chunk, meta, parts);
	else if (a->batch_size < 32)
		error = launch_join<256, 4, 1, 4>(a, chunk, meta, parts);
	else
		error = launch_join<512, 1, 4, 4>(a, chunk, meta, parts);
	if (error != cudaSuccess)
		return (int)error;
	return (int)cudaGetLastError();
}
