#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>

enum {
	HEADS = KM_AXIS_NUM_QO_HEADS, CKV = KM_AXIS_HEAD_DIM_CKV, KPE = KM_AXIS_HEAD_DIM_KPE,
	STRIDE = CKV + KPE + 8, /* halves; 73 pieces of 16 bytes, odd: eight rows lie in different banks */
	TOKENS = 32, STAGES = 5, WARPS = 8, THREADS = 32 * WARPS, OWN = CKV / WARPS,
	RED = TOKENS /* octets of tokens are turned by the head */, PSTRIDE = TOKENS + 8, MAX_CHUNKS = 132, LEAST = 32,
	JOIN_THREADS = 256, JOIN_AHEAD = 5, JOIN_WEIGHTS = 160,
};

struct __align__(128) shared {
	uint16_t kv[STAGES][TOKENS][STRIDE];
	float red[2][WARPS][HEADS][RED];
	__nv_bfloat16 p[2][HEADS][PSTRIDE];
	float old[2][HEADS];
	float fin[2][HEADS];
};

__device__ static __forceinline__ unsigned shared_address(const void *p)
{
	return (unsigned)__cvta_generic_to_shared(p);
}

/* 16 bytes to shared memory; zeros if not `valid`. */
__device__ static __forceinline__ void copy_async(unsigned to, const void *from, bool valid)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

__device__ static __forceinline__ void copy_commit()
{
	asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int PENDING> __device__ static __forceinline__ void copy_wait()
{
	asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ static __forceinline__ void load_matrix4(unsigned *to, unsigned address)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(address));
}

__device__ static __forceinline__ void load_matrix4_turned(unsigned *to, unsigned address)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(address));
}

__device__ static __forceinline__ void multiply_add(float *sum, const unsigned *a, const unsigned *b)
{
	asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
	    : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
	    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ static __forceinline__ float exp2_fast(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

/* The largest of a warp's numbers (no NaN), by way of integers of the same order. */
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
	for (int d = 16; d > 0; d >>= 1)
		x += __shfl_xor_sync(0xffffffffu, x, d);
	return x;
}

/* This warp's four rows of a tile of which the first `valid` rows are there; lane l has the page of row 4 * warp + l / 8. An
 * instruction takes 512 bytes of one row: one translation, whole rows of the memory. */
__device__ static __forceinline__ void copy_tile(unsigned stage, int page, int valid, const uint16_t *ckv, const uint16_t *kpe, int warp, int lane)
{
	if (valid > 0) {
		const uint16_t *from = ckv + 8 * lane;
		unsigned to = stage + 2 * (4 * warp * STRIDE + 8 * lane);

#pragma unroll
		for (int i = 0; i < 4; i++) {
			int64_t at = __shfl_sync(0xffffffffu, page, 8 * i);
			bool there = 4 * warp + i < valid;

			copy_async(to + 2 * i * STRIDE, from + at * CKV, there);
			copy_async(to + 2 * (i * STRIDE + CKV / 2), from + at * CKV + CKV / 2, there);
		}
		int row = 4 * warp + (lane >> 3), column = 8 * (lane & 7);

		copy_async(stage + 2 * (row * STRIDE + CKV + column), kpe + (int64_t)page * KPE + column, row < valid);
	}
	copy_commit();
}

/* A load that stays where it is written: in front of the copies that follow. */
__device__ static __forceinline__ unsigned load_here(const void *p)
{
	unsigned x;

	asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(x) : "l"(p));
	return x;
}

/* Four words in each lane of a quad: lane i gets word i of the lanes 0 to 3. */
__device__ static __forceinline__ void turn_quad(unsigned *w, int lane)
{
	bool odd = lane & 1, high = lane & 2;
	unsigned x = __shfl_xor_sync(0xffffffffu, odd ? w[0] : w[1], 1);
	unsigned y = __shfl_xor_sync(0xffffffffu, odd ? w[2] : w[3], 1);

	w[0] = odd ? x : w[0];
	w[1] = odd ? w[1] : x;
	w[2] = odd ? y : w[2];
	w[3] = odd ? w[3] : y;
	x = __shfl_xor_sync(0xffffffffu, high ? w[0] : w[2], 2);
	y = __shfl_xor_sync(0xffffffffu, high ? w[1] : w[3], 2);
	w[0] = high ? x : w[0];
	w[2] = high ? w[2] : x;
	w[1] = high ? y : w[1];
	w[3] = high ? w[3] : y;
}

__device__ static __forceinline__ unsigned pack(float x, float y)
{
	__nv_bfloat162 b = __floats2bfloat162_rn(x, y);

	return *(unsigned *)&b;
}

__device__ static __forceinline__ float4 unpack(uint2 x)
{
	return make_float4(__uint_as_float(x.x << 16), __uint_as_float(x.x & 0xffff0000u),
			   __uint_as_float(x.y << 16), __uint_as_float(x.y & 0xffff0000u));
}

/* Q fragments of this warp's columns: four steps of ckv and one of kpe. */
__device__ static __forceinline__ void load_q(unsigned (*q)[4], const uint16_t *q_nope, const uint16_t *q_pe, int seq, int warp, int lane)
{
	const uint16_t *n = q_nope + ((int64_t)seq * HEADS + (lane >> 2)) * CKV + OWN * warp + 2 * (lane & 3);
	const uint16_t *r = q_pe + ((int64_t)seq * HEADS + (lane >> 2)) * KPE + 16 * (warp & 3) + 2 * (lane & 3);

#pragma unroll
	for (int k = 0; k < 4; k++) {
		q[k][0] = load_here((n + 16 * k));
		q[k][1] = load_here((n + 16 * k + 8 * CKV));
		q[k][2] = load_here((n + 16 * k + 8));
		q[k][3] = load_here((n + 16 * k + 8 * CKV + 8));
	}
	q[4][0] = load_here(r);
	q[4][1] = load_here((r + 8 * KPE));
	q[4][2] = load_here((r + 8));
	q[4][3] = load_here((r + 8 * KPE + 8));
}

/* Partial logits of this warp's columns for the 32 tokens of a tile. */
__device__ static __forceinline__ void find_partial(float (*red)[RED], unsigned stage, const unsigned (*q)[4], int warp, int lane)
{
	float s[4][4];
	int half = warp >> 2;
	unsigned at = stage + 2 * (((lane >> 4) * 8 + (lane & 7)) * STRIDE + ((lane >> 3) & 1) * 8);
	unsigned first = at + 2 * (16 * half * STRIDE), second = at + 2 * (16 * (1 - half) * STRIDE);
	unsigned b[4];

#pragma unroll
	for (int j = 0; j < 4; j++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			s[j][i] = 0;
#pragma unroll
	for (int k = 0; k < 4; k++) {
		load_matrix4(b, first + 2 * (OWN * warp + 16 * k));
		multiply_add(s[0], q[k], b);
		multiply_add(s[1], q[k], b + 2);
		load_matrix4(b, second + 2 * (OWN * warp + 16 * k));
		multiply_add(s[2], q[k], b);
		multiply_add(s[3], q[k], b + 2);
	}
	load_matrix4(b, first + 2 * (CKV + 16 * (warp & 3)));
	multiply_add(s[0], q[4], b);
	multiply_add(s[1], q[4], b + 2);
#pragma unroll
	for (int j = 0; j < 4; j++) {
		int token = ((j < 2 ? 16 * half : 16 - 16 * half) + 8 * (j & 1) + 2 * (lane & 3)) ^ (((lane >> 2) & 3) << 3);

		*(float2 *)&red[lane >> 2][token] = make_float2(s[j][0], s[j][1]);
		*(float2 *)&red[(lane >> 2) + 8][token] = make_float2(s[j][2], s[j][3]);
	}
}

__global__ void __launch_bounds__(THREADS, 1) attend(const __grid_constant__ struct km_args a, uint16_t *parts, float2 *sums, int quotient, int rest)
{
	extern __shared__ __align__(128) unsigned char memory[];
	struct shared *s = (struct shared *)memory;
	const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
	const int chunk = blockIdx.x, batch = (int)a.batch_size;
	const int lo = chunk * quotient + min(chunk, rest), hi = lo + quotient + (chunk < rest ? 1 : 0);
	const int32_t *indptr = a.kv_indptr, *indices = a.kv_indices;
	const unsigned kv = shared_address(s->kv);
	const unsigned stage_bytes = TOKENS * STRIDE * 2;
	const float scale = a.sm_scale * 1.44269504f;

	asm volatile("griddepcontrol.launch_dependents;" ::: "memory");

	const int own_row = 4 * warp + (lane >> 3);
	int page[STAGES + 2];

#pragma unroll
	for (int t = 0; t < STAGES + 2; t++) {
		int at = lo + TOKENS * t + own_row;

		page[t] = at < hi ? __ldg(indices + at) : 0;
	}
	int bound = (int)threadIdx.x < batch ? __ldg(indptr + threadIdx.x + 1) : 0x7fffffff;

	/* Later page numbers into the second-level cache, before the rows queue up at the memory. */
	for (int i = ((lo + TOKENS * (STAGES + 2)) & ~31) + 32 * (int)threadIdx.x; i < hi; i += 32 * THREADS)
		asm volatile("prefetch.global.L2 [%0];" ::"l"(indices + i));

	/* The first tile, then Q, then the other tiles: Q must not wait behind all of them. */
	copy_tile(kv, page[0], hi - lo, a.ckv_cache, a.kpe_cache, warp, lane);
	int page_a = page[STAGES], page_b = page[STAGES + 1];

	/* The sequence of the first token: as many sequences end at or before it. */
	int seq = __syncthreads_count(bound <= lo);

	for (int base = THREADS; base < batch; base += THREADS) {
		int i = base + (int)threadIdx.x;

		seq += __syncthreads_count(i < batch && __ldg(indptr + (i < batch ? i + 1 : 0)) <= lo);
	}

	unsigned q[5][4], q_next[5][4];

	load_q(q, a.q_nope, a.q_pe, seq, warp, lane);
#pragma unroll
	for (int k = 0; k < 5; k++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			q_next[k][i] = 0;
	int begin = __ldg(indptr + seq), end = __ldg(indptr + seq + 1);
	int next_seq = seq, next_end = end;

	if (end < hi) {
		do {
			next_seq++;
			next_end = __ldg(indptr + next_seq + 1);
		} while (next_end <= end);
		load_q(q_next, a.q_nope, a.q_pe, next_seq, warp, lane);
	}
#pragma unroll
	for (int t = 1; t < STAGES; t++)
		copy_tile(kv + t * stage_bytes, page[t], hi - (lo + TOKENS * t), a.ckv_cache, a.kpe_cache, warp, lane);

	float acc[8][4], max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

#pragma unroll
	for (int j = 0; j < 8; j++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			acc[j][i] = 0;

	int tile = 0, turn = 0;
	bool fresh = false; /* the step before this one had the tile before this one */

	/* After the barrier of a step the tile that follows the one of the next step is there for all warps. */
	copy_wait<STAGES - 1>();
	__syncthreads();
	find_partial(s->red[0][warp], kv, q, warp, lane);
	copy_wait<STAGES - 2>();
	__syncthreads();

	for (;;) {
		int position = min(end, lo + TOKENS * (tile + 1));
		bool more = position < hi, change = more && position == end, last = !more || change;
		int new_tile = more ? (position - lo) / TOKENS : tile;
		int this_seq = seq, this_begin = begin, this_end = end;
		float x[2];

		/* Logits of this step: all partial ones of two heads, lane = token. */
#pragma unroll
		for (int h = 0; h < 2; h++) {
			float part[WARPS];

#pragma unroll
			for (int w = 0; w < WARPS; w++)
				part[w] = s->red[turn][w][2 * warp + h][lane ^ (((2 * warp + h) & 3) << 3)];
			x[h] = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
		}

		/* Partial logits of the next step. */
		if (more) {
			if (change) {
#pragma unroll
				for (int k = 0; k < 5; k++)
#pragma unroll
					for (int i = 0; i < 4; i++)
						q[k][i] = q_next[k][i];
				seq = next_seq;
				begin = end;
				end = next_end;
			}
			find_partial(s->red[turn ^ 1][warp], kv + (new_tile % STAGES) * stage_bytes, q, warp, lane);
		}

		/* Value fragments of this step: they need no weights, and their way is hidden behind the softmax. */
		const int row = (lane & 7) + ((lane >> 3) & 1) * 8, column = (lane >> 4) * 8;
		unsigned v[2][4][4];
		{
			unsigned from = kv + (tile % STAGES) * stage_bytes + 2 * (row * STRIDE + OWN * warp + column);

#pragma unroll
			for (int k = 0; k < 2; k++)
#pragma unroll
				for (int j = 0; j < 4; j++)
					load_matrix4_turned(v[k][j], from + 2 * (16 * k * STRIDE + 16 * j));
		}

		/* Softmax of this step. */
		{
			int token = lo + TOKENS * tile + lane;
			bool there = token >= this_begin && token < this_end && token < hi;

#pragma unroll
			for (int h = 0; h < 2; h++) {
				float logit = there ? x[h] * scale : -INFINITY;
				float new_max = fmaxf(max[h], warp_max(logit));
				float old = exp2_fast(max[h] - new_max), p = exp2_fast(logit - new_max);

				max[h] = new_max;
				sum[h] = sum[h] * old + p;
				s->p[turn][2 * warp + h][lane] = __float2bfloat16(p);
				if (lane == 0)
					s->old[turn][2 * warp + h] = old;
			}
		}
		const bool whole = this_begin >= lo && this_end <= hi;
		const int64_t slot = 2 * (int64_t)chunk + (this_begin >= lo ? 1 : 0);

		if (last) {
#pragma unroll
			for (int h = 0; h < 2; h++) {
				float total = warp_sum(sum[h]);
				int head = 2 * warp + h;

				if (lane == 0) {
					s->fin[turn][head] = 1.0f / total;
					if (whole) {
						a.lse[(int64_t)this_seq * HEADS + head] = max[h] + log2f(total);
					} else {
						sums[slot * HEADS + head] = make_float2(max[h], total);
					}
				}
				max[h] = -INFINITY;
				sum[h] = 0;
			}
		}
		/* This warp's rows of tile + 2; tile + STAGES - 1 is under way already unless this step is the first of its tile. */
		if (new_tile != tile) {
			if (fresh)
				copy_wait<STAGES - 4>();
			else
				copy_wait<STAGES - 3>();
		}
		__syncthreads();
		asm volatile("" ::: "memory");

		unsigned p[2][4];
		{
			unsigned weights = shared_address(&s->p[turn][row][column]);

			load_matrix4(p[0], weights);
			load_matrix4(p[1], weights + 32);
		}
		const float old0 = s->old[turn][lane >> 2], old1 = s->old[turn][(lane >> 2) + 8];

		/* All warps are done with the tile before this one: fill its stage again. */
		if (fresh) {
			int ahead = lo + TOKENS * (tile - 1 + STAGES);

			copy_tile(kv + ((tile - 1) % STAGES) * stage_bytes, page_a, hi - ahead, a.ckv_cache, a.kpe_cache, warp, lane);
			page_a = page_b;
			int at = ahead + 2 * TOKENS + own_row;

			page_b = at < hi ? __ldg(indices + at) : 0;
		}

		/* Values of this step. */
#pragma unroll
		for (int j = 0; j < 8; j++) {
			acc[j][0] *= old0;
			acc[j][1] *= old0;
			acc[j][2] *= old1;
			acc[j][3] *= old1;
		}
#pragma unroll
		for (int k = 0; k < 2; k++)
#pragma unroll
			for (int j = 0; j < 4; j++) {
				multiply_add(acc[2 * j], p[k], v[k][j]);
				multiply_add(acc[2 * j + 1], p[k], v[k][j] + 2);
			}

		if (last) {
			/* The output or a part of it, both divided by their sum. */
			uint16_t *to = (whole ? a.output + (int64_t)this_seq * (HEADS * CKV) : parts + slot * (HEADS * CKV)) +
				       (lane >> 2) * CKV + OWN * warp + 8 * (lane & 3);

#pragma unroll
			for (int h = 0; h < 2; h++) {
				float f = s->fin[turn][(lane >> 2) + 8 * h];

#pragma unroll
				for (int m = 0; m < 2; m++) {
					unsigned w[4];

#pragma unroll
					for (int j = 0; j < 4; j++)
						w[j] = pack(acc[4 * m + j][2 * h] * f, acc[4 * m + j][2 * h + 1] * f);
					turn_quad(w, lane);
					*(uint4 *)(to + 8 * h * CKV + 32 * m) = make_uint4(w[0], w[1], w[2], w[3]);
				}
			}
			if (!more)
				break;
#pragma unroll
			for (int j = 0; j < 8; j++)
#pragma unroll
				for (int i = 0; i < 4; i++)
					acc[j][i] = 0;
			/* Q of the sequence after the one that begins now. */
			if (end < hi) {
				do {
					next_seq++;
					next_end = __ldg(indptr + next_seq + 1);
				} while (next_end <= end);
				load_q(q_next, a.q_nope, a.q_pe, next_seq, warp, lane);
			}
		}
		fresh = new_tile != tile;
		tile = new_tile;
		turn ^= 1;
	}
	copy_wait<0>();
}

__device__ static __forceinline__ int chunk_of(int token, int quotient, int rest)
{
	int larger = rest * (quotient + 1);

	return token < larger ? token / (quotient + 1) : rest + (token - larger) / quotient;
}

/* A block joins the parts of one head of one sequence for 512 / `splits` columns. */
__global__ void __launch_bounds__(JOIN_THREADS) join(const uint16_t *parts, const float2 *sums, const int32_t *indptr, uint16_t *output, float *lse,
						     int quotient, int rest, int splits)
{
	__shared__ float weights[JOIN_WEIGHTS]; /* every warp writes the same numbers, and reads after its own */
	__shared__ float4 group_sums[JOIN_THREADS];
	const int lane = threadIdx.x & 31;
	const int row = blockIdx.x / splits, split = blockIdx.x % splits, head = row % HEADS;
	const int width = CKV / 4 / splits, groups = JOIN_THREADS / width;
	const int group = threadIdx.x / width, column = split * width + threadIdx.x % width;
	const int begin = __ldg(indptr + row / HEADS), end = __ldg(indptr + row / HEADS + 1);
	int first = 0, count = 0;

	if (begin < end) {
		first = chunk_of(begin, quotient, rest);
		count = chunk_of(end - 1, quotient, rest) - first + 1;
	}
	asm volatile("griddepcontrol.wait;" ::: "memory");
	if (count == 1)
		return; /* written already */
	if (count == 0) {
		if ((int)threadIdx.x < width)
			*(uint2 *)(output + (int64_t)row * CKV + 4 * column) = make_uint2(0, 0);
		if (split == 0 && threadIdx.x == 0)
			lse[row] = -INFINITY;
		return;
	}

	const uint2 *from = (const uint2 *)parts + (int64_t)head * (CKV / 4) + column;
	uint2 v[JOIN_AHEAD];
	float2 own[JOIN_WEIGHTS / 32];
	float max = -INFINITY, sum = 0;

#pragma unroll
	for (int j = 0; j < JOIN_WEIGHTS / 32; j++) {
		int i = 32 * j + lane;

		own[j] = make_float2(-INFINITY, 0);
		if (i < count)
			own[j] = __ldcg(sums + (2 * (first + i) + (i == 0 ? 1 : 0)) * HEADS + head);
	}
#pragma unroll
	for (int k = 0; k < JOIN_AHEAD; k++) {
		int i = group + k * groups;

		v[k] = make_uint2(0, 0);
		if (i < count)
			v[k] = __ldcg(from + (int64_t)(2 * (first + i) + (i == 0 ? 1 : 0)) * (HEADS * CKV / 4));
	}
#pragma unroll
	for (int j = 0; j < JOIN_WEIGHTS / 32; j++)
		max = fmaxf(max, own[j].x);
	max = warp_max(max);
#pragma unroll
	for (int j = 0; j < JOIN_WEIGHTS / 32; j++) {
		float weight = exp2_fast(own[j].x - max) * own[j].y;

		weights[32 * j + lane] = weight;
		sum += weight;
	}
	sum = warp_sum(sum);
	__syncwarp();

	float4 total = make_float4(0, 0, 0, 0);

#pragma unroll
	for (int k = 0; k < JOIN_AHEAD; k++) {
		int i = group + k * groups;

		if (i < count) {
			float weight = weights[i];
			float4 more = unpack(v[k]);

			total.x += weight * more.x;
			total.y += weight * more.y;
			total.z += weight * more.z;
			total.w += weight * more.w;
		}
	}
#pragma unroll 4
	for (int i = group + JOIN_AHEAD * groups; i < count; i += groups) {
		float weight = weights[i];
		float4 more = unpack(__ldcg(from + (int64_t)(2 * (first + i)) * (HEADS * CKV / 4)));

		total.x += weight * more.x;
		total.y += weight * more.y;
		total.z += weight * more.z;
		total.w += weight * more.w;
	}
	group_sums[threadIdx.x] = total;
	__syncthreads();
	if ((int)threadIdx.x < width) {
		float factor = 1.0f / sum;

		for (int g = 1; g < groups; g++) {
			float4 more = group_sums[g * width + threadIdx.x];

			total.x += more.x;
			total.y += more.y;
			total.z += more.z;
			total.w += more.w;
		}
		__nv_bfloat162 *to = (__nv_bfloat162 *)((__nv_bfloat16 *)output + (int64_t)row * CKV + 4 * column);

		to[0] = __floats2bfloat162_rn(total.x * factor, total.y * factor);
		to[1] = __floats2bfloat162_rn(total.z * factor, total.w * factor);
	}
	if (split == 0 && threadIdx.x == 0)
		lse[row] = max + log2f(sum);
}

static int chunks(const struct km_args *a)
{
	int64_t n = (a->num_kv_indices + LEAST - 1) / LEAST;

	n = n > MAX_CHUNKS ? MAX_CHUNKS : n;
	return n < 1 ? 1 : (int)n;
}

size_t km_workspace(const struct km_args *a)
{
	return (size_t)chunks(a) * 2 * HEADS * (CKV * sizeof(uint16_t) + sizeof(float2));
}

int km_init(const struct km_args *)
{
	cudaError_t e = cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(struct shared));

	if (e == cudaSuccess)
		e = cudaFuncSetAttribute(attend, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	if (e == cudaSuccess)
		e = cudaFuncSetAttribute(join, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	return (int)e;
}

int km_run(const struct km_args *a)
{
	if (a->batch_size < 1)
		return 0;

	cudaStream_t stream = (cudaStream_t)a->stream;
	int n = chunks(a), quotient = (int)(a->num_kv_indices / n), rest = (int)(a->num_kv_indices % n);
	uint16_t *parts = (uint16_t *)a->workspace;
	float2 *sums = (float2 *)(parts + (size_t)n * 2 * HEADS * CKV);
	int splits = a->batch_size >= 32 ? 1 : a->batch_size >= 8 ? 2 : a->batch_size >= 4 ? 4 : 8;

	if (a->num_kv_indices > 0)
		attend<<<(unsigned)n, THREADS, sizeof(struct shared), stream>>>(*a, parts, sums, quotient, rest);

	cudaLaunchConfig_t config = {};
	cudaLaunchAttribute attribute[1];

	attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attribute[0].val.programmaticStreamSerializationAllowed = 1;
	config.gridDim = dim3((unsigned)(a->batch_size * HEADS * splits));
	config.blockDim = dim3(JOIN_THREADS);
	config.dynamicSmemBytes = 0;
	config.stream = stream;
	config.attrs = attribute;
	config.numAttrs = a->num_kv_indices > 0 ? 1 : 0;

	cudaError_t e = cudaLaunchKernelEx(&config, join, (const uint16_t *)parts, (const float2 *)sums, a->kv_indptr, a->output, a->lse,
					   quotient, rest, splits);

	return e != cudaSuccess ? (int)e : (int)cudaGetLastError();
}
