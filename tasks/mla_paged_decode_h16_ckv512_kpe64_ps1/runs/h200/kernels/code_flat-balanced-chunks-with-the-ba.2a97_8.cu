#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>

constexpr int HEADS = KM_AXIS_NUM_QO_HEADS, CKV = KM_AXIS_HEAD_DIM_CKV, KPE = KM_AXIS_HEAD_DIM_KPE, WIDTH = CKV + KPE;
constexpr int STRIDE = WIDTH + 8; /* eight rows lie in different banks */
constexpr int TOKENS = 16, STAGES = 4, WARPS = 4, THREADS = 32 * WARPS;
constexpr int OWN = CKV / WARPS, OWN_PE = KPE / WARPS, COLUMNS = OWN / 8;
constexpr int STEPS = (OWN + OWN_PE) / 16; /* of 16 columns, for the warp's share of the logits */
constexpr int MOST = 264, LEAST = 16; /* chunks at most; tokens a chunk at least */
constexpr int WINDOW = 2048; /* indices staged at once */
constexpr int FAR = 0x7fffffff;

static_assert(HEADS == 16 && CKV == 512 && KPE == 64, "made for these sizes");
static_assert((STAGES & (STAGES - 1)) == 0, "stages are counted by a mask");

/* Of some tokens, for all heads: the largest logit (base 2), the sum of 2^(logit - max), and that sum weighted with the values,
 * in bfloat16. The columns are permuted within 32: 8q + 2u + e holds the column 8u + 2q + e. */
struct part {
	float max[HEADS], sum[HEADS];
	uint16_t v[HEADS][CKV];
};

static_assert(sizeof(struct part) % 16 == 0, "parts are written in pieces of 16 bytes");

/* Warp w reads only its own columns of q and kv, 128w.. of ckv and 16w.. of kpe; it copies these columns of q, but whole rows of kv. */
struct shared {
	uint16_t q[HEADS][STRIDE];
	uint16_t kv[STAGES][TOKENS][STRIDE];
	float4 exchange[2][2][WARPS][32];
	int32_t index[WINDOW];
};

static_assert(sizeof(struct shared) <= 113 * 1024, "two blocks a multiprocessor");

/* Up to 16 tokens of one segment; the segment (chunk x sequence b) ends at `end`. */
struct tile {
	int start, count, b, end, whole;
};

__device__ __forceinline__ static unsigned shared_address(const void *p)
{
	return (unsigned)__cvta_generic_to_shared(p);
}

/* 16 bytes to shared memory; zeros if not `there`. */
__device__ __forceinline__ static void copy_async(void *to, const void *from, bool there)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}

/* The same; the line of 128 bytes comes to the second-level cache, for the other warps. */
__device__ __forceinline__ static void copy_async_line(void *to, const void *from, bool there)
{
	asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}

__device__ __forceinline__ static void copy_commit()
{
	asm volatile("cp.async.commit_group;" ::: "memory");
}

/* The first `bytes` of 16 bytes; zeros after them. */
__device__ __forceinline__ static void copy_async_some(void *to, const void *from, int bytes)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}

template <int PENDING> __device__ __forceinline__ static void copy_wait()
{
	asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ static void prefetch(const void *p)
{
	asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

__device__ __forceinline__ static void load_matrix4(unsigned *to, const void *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}

__device__ __forceinline__ static void load_matrix4_turned(unsigned *to, const void *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}

/* 16 x 8 sums += 16 x 16 times 16 x 8 numbers. */
__device__ __forceinline__ static void multiply_add(float *sum, const unsigned *a, const unsigned *b)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
		     : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ static float power2(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

/* Two bfloat16 numbers, x in the lower half. */
__device__ __forceinline__ static unsigned pack(float x, float y)
{
	__nv_bfloat162 h = __floats2bfloat162_rn(x, y);

	return *(unsigned *)&h;
}

/* -1 or 0, unknown to the compiler, so that it makes no second copy of a loop's body. */
template <int VALUE> __device__ __forceinline__ static int opaque()
{
	int x;

	asm volatile("mov.s32 %0, %1;" : "=r"(x) : "n"(VALUE));
	return x;
}

/* 16 bytes to global memory, if `there`; always the same instructions. */
__device__ __forceinline__ static void store16(void *to, unsigned x, unsigned y, unsigned z, unsigned w, int there)
{
	asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.s32 p, %5, 0;\n\t@p st.global.v4.b32 [%0], {%1, %2, %3, %4};\n\t}"
		     ::"l"(to), "r"(x), "r"(y), "r"(z), "r"(w), "r"(there) : "memory");
}

/* 8 bytes of a part, past the first-level cache; zeros if not `there`. Not moved over the wait for the parts. */
__device__ __forceinline__ static uint2 load8(const void *from, int there)
{
	unsigned x = 0, y = 0;

	asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.s32 p, %3, 0;\n\t@p ld.global.cg.v2.b32 {%0, %1}, [%2];\n\t}"
		     : "+r"(x), "+r"(y) : "l"(from), "r"(there) : "memory");
	return make_uint2(x, y);
}

__device__ __forceinline__ static float load4(const float *from)
{
	float x;

	asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(x) : "l"(from) : "memory");
	return x;
}

/* The tile after t in the chunk that ends at hi; count 0 if there is none. */
__device__ __forceinline__ static struct tile following(struct tile t, const int32_t *indptr, int hi)
{
	int at = t.start + t.count;

	t.start = at;
	if (at >= hi) {
		t.count = 0;
		return t;
	}
	if (at >= t.end) {
		int stop;

		do {
			t.b++;
			stop = __ldg(indptr + t.b + 1);
		} while (stop <= at);
		t.end = min(stop, hi);
		t.whole = stop <= hi;
	}
	t.count = min(TOKENS, t.end - at);
	return t;
}

__device__ __forceinline__ static void stage(struct shared *s, const int32_t *from, int count)
{
	for (int i = threadIdx.x; i < count; i += THREADS)
		s->index[i] = __ldg(from + i);
}

/* While the first indices come: the translations of the caches' addresses, in steps of 2 MB spread over the grid, and q of all
 * sequences to the second-level cache. Hints only. */
__device__ __forceinline__ static void warm(const struct km_args &a)
{
	const int tid = threadIdx.x;

	if (tid < 4) {
		unsigned ckv = (unsigned)((a.num_pages * (CKV * 2) + (1 << 21) - 1) >> 21);
		unsigned kpe = (unsigned)((a.num_pages * (KPE * 2) + (1 << 21) - 1) >> 21);
		unsigned e = tid * gridDim.x + blockIdx.x;

		if (e >= ckv + kpe)
			e -= ckv + kpe;
		if (e < ckv + kpe)
			prefetch(e < ckv ? (const char *)a.ckv_cache + ((int64_t)e << 21) : (const char *)a.kpe_cache + ((int64_t)(e - ckv) << 21));
	} else if (tid >= THREADS / 2) {
		int line = (int)blockIdx.x * (THREADS / 2) + tid - THREADS / 2;
		int nope = (int)a.batch_size * (HEADS * CKV / 64), pe = (int)a.batch_size * (HEADS * KPE / 64);

		if (line < nope + pe)
			prefetch(line < nope ? a.q_nope + (int64_t)line * 64 : a.q_pe + (int64_t)(line - nope) * 64);
	}
}

/* Every fourth of 16 rows, whole, so that an instruction touches one page; zeros from row `count` on. The indices are read
 * before the first copy, which the compiler does not let them pass. */
__device__ __forceinline__ static void load_tile(uint16_t (*to)[STRIDE], const int32_t *index, int count, const uint16_t *ckv, const uint16_t *kpe)
{
	constexpr int ROWS = TOKENS / WARPS;
	int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	int row_pe = lane / 8 * WARPS + warp;
	int page[ROWS], page_pe = row_pe < count ? index[row_pe] : 0;

	static_assert(ROWS == 4 && CKV == 512 && KPE == 64, "two copies a row, and one for four rotary keys");
#pragma unroll
	for (int r = 0; r < ROWS; r++)
		page[r] = r * WARPS + warp < count ? index[r * WARPS + warp] : 0;
#pragma unroll
	for (int r = 0; r < ROWS; r++) {
		int row = r * WARPS + warp;
		bool there = row < count;
		const uint16_t *from = ckv + (int64_t)page[r] * CKV + lane * 8;

		copy_async(&to[row][lane * 8], from, there);
		copy_async(&to[row][lane * 8 + CKV / 2], from + CKV / 2, there);
	}
	copy_async(&to[row_pe][CKV + lane % 8 * 8], kpe + (int64_t)page_pe * KPE + lane % 8 * 8, row_pe < count);
}

/* The warp's columns of q. */
__device__ __forceinline__ static void load_q(struct shared *s, const uint16_t *q_nope, const uint16_t *q_pe, int b)
{
	int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	int at = OWN * warp + lane % 16 * 8, at_pe = OWN_PE * warp + lane % 2 * 8, row_pe = lane / 2;

#pragma unroll
	for (int r = 0; r < HEADS / 2; r++) {
		int row = 2 * r + lane / 16;

		copy_async(&s->q[row][at], q_nope + ((int64_t)b * HEADS + row) * CKV + at, true);
	}
	copy_async_line(&s->q[row_pe][CKV + at_pe], q_pe + ((int64_t)b * HEADS + row_pe) * KPE + at_pe, true);
}

static __global__ void __launch_bounds__(THREADS, 2) attend(const struct km_args a, struct part *parts, int chunk, unsigned magic, float scale)
{
	extern __shared__ __align__(128) unsigned char memory[];
	struct shared *s = (struct shared *)memory;
	const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
	const int tokens = (int)a.num_kv_indices, batch = (int)a.batch_size;
	const int32_t *indptr = a.kv_indptr;

	cudaTriggerProgrammaticLaunchCompletion();
	if (tokens <= 0)
		return;

	int hi, window, window_end;
	struct tile now;

	if (magic) {
		/* Every sequence begins with a chunk: a block has one segment. Chunk i lies between the tokens (i - batch) * chunk and
		 * (i + 1) * chunk, so the indices come together with the lengths. */
		const int block = (int)blockIdx.x;
		int begin = lane < batch ? __ldg(indptr + lane) : 0, length = lane < batch ? __ldg(indptr + lane + 1) : 0;

		window = max(0, (block - batch) * chunk) & ~3;
		window_end = min(tokens, (block + 1) * chunk);
#pragma unroll 1
		for (int i = tid * 4; i < window_end - window; i += THREADS * 4)
			copy_async_some(&s->index[i], a.kv_indices + window + i, min(16, (window_end - window - i) * 4));
		copy_commit();
		warm(a);

		length -= begin;
		int pieces = (int)__umulhi((unsigned)(length + chunk - 1), magic), sum = pieces;

#pragma unroll
		for (int i = 1; i < 32; i *= 2) {
			int x = __shfl_up_sync(0xffffffffu, sum, i);

			if (lane >= i)
				sum += x;
		}

		unsigned beyond = __ballot_sync(0xffffffffu, sum > block);
		int b = beyond ? __ffs((int)beyond) - 1 : 0;
		int k = block - __shfl_sync(0xffffffffu, sum - pieces, b);

		pieces = __shfl_sync(0xffffffffu, pieces, b);
		begin = __shfl_sync(0xffffffffu, begin, b);
		length = __shfl_sync(0xffffffffu, length, b);
		copy_wait<0>();
		if (!beyond)
			return;
		now.b = b;
		now.start = begin + (int)((unsigned)(length * k) / (unsigned)pieces);
		now.end = hi = begin + (int)((unsigned)(length * (k + 1)) / (unsigned)pieces);
		now.whole = pieces == 1;
		now.count = min(TOKENS, now.end - now.start);
		__syncthreads();
	} else {
		const int lo = (int)blockIdx.x * chunk;
		if (lo >= tokens)
			return;
		hi = tokens - lo < chunk ? tokens : lo + chunk;

		/* The first sequence: as many ends as are not beyond lo. The indices come meanwhile. */
		int bound = tid < batch ? __ldg(indptr + tid + 1) : FAR;
		window = lo;
		window_end = lo + min(WINDOW, hi - lo);
		int staged = window_end - window;
		int index0 = tid < staged ? __ldg(a.kv_indices + window + tid) : 0;
		int index1 = tid + THREADS < staged ? __ldg(a.kv_indices + window + tid + THREADS) : 0;

		warm(a);
		static_assert(2 * THREADS <= WINDOW, "two indices a thread fit");
		s->index[tid] = index0;
		s->index[tid + THREADS] = index1;
#pragma unroll 1
		for (int i = tid + 2 * THREADS; i < staged; i += THREADS)
			s->index[i] = __ldg(a.kv_indices + window + i);

		int b = __syncthreads_count(bound <= lo);

		for (int base = THREADS; b == base && base < batch; base += THREADS) {
			int j = base + tid;

			bound = j < batch ? __ldg(indptr + j + 1) : FAR;
			b += __syncthreads_count(bound <= lo);
		}
		if (b >= batch)
			return;

		int start = __ldg(indptr + b), stop = __ldg(indptr + b + 1);

		now.b = b;
		now.start = start > lo ? start : lo;
		now.end = min(stop, hi);
		now.whole = start >= lo && stop <= hi;
		now.count = min(TOKENS, now.end - now.start);
	}
	if (now.count <= 0)
		return;

	/* All threads come here together. */
	auto fetch = [&](const struct tile &t, int turn) {
		if (t.count > 0) {
			if (t.start + t.count > window_end) {
				__syncthreads();
				window = t.start;
				window_end = window + min(WINDOW, hi - window);
				stage(s, a.kv_indices + window, window_end - window);
				__syncthreads();
			}
			load_tile(s->kv[turn], s->index + (t.start - window), t.count, a.ckv_cache, a.kpe_cache);
		}
	};

	/* The first tiles lie in the first window. Not unrolled: instructions come from cold memory too. */
	static_assert(STAGES * TOKENS <= WINDOW, "the first tiles need no other indices");
	struct tile ahead = now;
	load_q(s, a.q_nope, a.q_pe, now.b);
#pragma unroll 1
	for (int i = 0; i < STAGES - 1; i++) {
		if (ahead.count > 0)
			load_tile(s->kv[i], s->index + (ahead.start - window), ahead.count, a.ckv_cache, a.kpe_cache);
		copy_commit();
		ahead = following(ahead, indptr, hi);
	}
	/* The translation of the part's address is cold. */
	if (lane == 0 && !now.whole)
		prefetch(&parts[(int64_t)blockIdx.x + (magic ? 0 : now.b)].v[4 * warp][0]);

	float acc[COLUMNS][4];
	unsigned qf[STEPS][4];
	float max0 = -INFINITY, max1 = -INFINITY, sum0 = 0, sum1 = 0;
	bool first = true;
	int age = STAGES; /* tiles since q of the next sequence was asked for */

	/* The turn -1 is a dry one, while the first tile is on its way: it brings the instructions of the loop, computes with
	 * whatever lies in the last stage and in q, and asks for the tile of that stage. Turn 0 begins with `first` and so
	 * forgets all that the dry one computed. */
#pragma unroll 1
	for (int n = opaque<-1>(); now.count > 0; n++) {
		const bool dry = n < 0;
		const bool last = now.start + now.count == now.end;
		uint16_t (*kv)[STRIDE] = s->kv[n & (STAGES - 1)];

		/* The tile is there since the barrier of the one before. */
		if (first) {
			if (age < STAGES)
				copy_wait<0>();
			__syncwarp();

			const uint16_t *qrow = &s->q[lane % 16][lane / 16 * 8];

#pragma unroll
			for (int k = 0; k < STEPS; k++)
				load_matrix4(qf[k], qrow + (k < OWN / 16 ? OWN * warp + 16 * k : CKV + OWN_PE * warp));
#pragma unroll
			for (int j = 0; j < COLUMNS; j++)
#pragma unroll
				for (int i = 0; i < 4; i++)
					acc[j][i] = 0;
			max0 = max1 = -INFINITY;
			sum0 = sum1 = 0;
			__syncwarp();
			if (!dry && now.end < hi) {
				int next = now.b;

				do
					next++;
				while (__ldg(indptr + next + 1) <= now.end);
				load_q(s, a.q_nope, a.q_pe, next);
				age = 0;
			}
		}

		/* The warp's share of the logits of all 16 tokens. */
		float c[2][2][4];
		{
			const uint16_t *krow = &kv[lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8];
			unsigned kf[STEPS][4];

#pragma unroll
			for (int i = 0; i < 2; i++)
#pragma unroll
				for (int j = 0; j < 4; j++)
					c[0][i][j] = c[1][i][j] = 0;
#pragma unroll
			for (int k = 0; k < STEPS; k++)
				load_matrix4(kf[k], krow + (k < OWN / 16 ? OWN * warp + 16 * k : CKV + OWN_PE * warp));
#pragma unroll
			for (int k = 0; k < STEPS; k++) {
				multiply_add(c[k % 2][0], qf[k], kf[k]);
				multiply_add(c[k % 2][1], qf[k], kf[k] + 2);
			}
		}
#pragma unroll
		for (int i = 0; i < 2; i++) {
#pragma unroll
			for (int j = 0; j < 4; j++)
				c[0][i][j] += c[1][i][j];
			s->exchange[n & 1][i][warp][lane] = make_float4(c[0][i][0], c[0][i][1], c[0][i][2], c[0][i][3]);
		}

		/* The values, while the others come. */
		unsigned vf[COLUMNS / 2][4];
		{
			const uint16_t *row = &kv[lane % 16][OWN * warp + lane / 16 * 8];

#pragma unroll
			for (int j = 0; j < COLUMNS / 2; j++)
				load_matrix4_turned(vf[j], row + 16 * j);
		}

		/* One barrier for three things: the logits are exchanged, this tile is read, the next one is there. */
		if (!dry)
			copy_wait<STAGES - 2>();
		__syncthreads();

		float4 y[2][3];

#pragma unroll
		for (int i = 0; i < 2; i++)
#pragma unroll
			for (int w = 1; w < WARPS; w++)
				y[i][w - 1] = s->exchange[n & 1][i][warp ^ w][lane];

		/* The tile is in registers: its place is free. */
		fetch(ahead, n & (STAGES - 1));
		copy_commit();
		ahead = following(ahead, indptr, hi);

		/* All warps add in the same order, up to the commutation of two terms, so that they have the same logits. */
		float p[2][4];

#pragma unroll
		for (int i = 0; i < 2; i++) {
			int column = 8 * i + lane % 4 * 2;

			p[i][0] = ((c[0][i][0] + y[i][0].x) + (y[i][1].x + y[i][2].x)) * scale;
			p[i][1] = ((c[0][i][1] + y[i][0].y) + (y[i][1].y + y[i][2].y)) * scale;
			p[i][2] = ((c[0][i][2] + y[i][0].z) + (y[i][1].z + y[i][2].z)) * scale;
			p[i][3] = ((c[0][i][3] + y[i][0].w) + (y[i][1].w + y[i][2].w)) * scale;
			if (column >= now.count)
				p[i][0] = p[i][2] = -INFINITY;
			if (column + 1 >= now.count)
				p[i][1] = p[i][3] = -INFINITY;
		}

		float m0 = fmaxf(fmaxf(p[0][0], p[0][1]), fmaxf(p[1][0], p[1][1]));
		float m1 = fmaxf(fmaxf(p[0][2], p[0][3]), fmaxf(p[1][2], p[1][3]));

#pragma unroll
		for (int i = 1; i < 4; i *= 2) {
			m0 = fmaxf(m0, __shfl_xor_sync(0xffffffffu, m0, i));
			m1 = fmaxf(m1, __shfl_xor_sync(0xffffffffu, m1, i));
		}
		m0 = fmaxf(m0, max0);
		m1 = fmaxf(m1, max1);

		float f0 = power2(max0 - m0), f1 = power2(max1 - m1);

		max0 = m0;
		max1 = m1;
#pragma unroll
		for (int i = 0; i < 2; i++) {
			p[i][0] = power2(p[i][0] - m0);
			p[i][1] = power2(p[i][1] - m0);
			p[i][2] = power2(p[i][2] - m1);
			p[i][3] = power2(p[i][3] - m1);
		}
		sum0 = sum0 * f0 + ((p[0][0] + p[0][1]) + (p[1][0] + p[1][1]));
		sum1 = sum1 * f1 + ((p[0][2] + p[0][3]) + (p[1][2] + p[1][3]));

		unsigned pf[4];

		pf[0] = pack(p[0][0], p[0][1]);
		pf[1] = pack(p[0][2], p[0][3]);
		pf[2] = pack(p[1][0], p[1][1]);
		pf[3] = pack(p[1][2], p[1][3]);

		if (__any_sync(0xffffffffu, f0 != 1.0f || f1 != 1.0f)) {
#pragma unroll
			for (int j = 0; j < COLUMNS; j++) {
				acc[j][0] *= f0;
				acc[j][1] *= f0;
				acc[j][2] *= f1;
				acc[j][3] *= f1;
			}
		}
#pragma unroll
		for (int j = 0; j < COLUMNS / 2; j++) {
			multiply_add(acc[2 * j], pf, vf[j]);
			multiply_add(acc[2 * j + 1], pf, vf[j] + 2);
		}

		if (last || dry) {
#pragma unroll
			for (int i = 1; i < 4; i *= 2) {
				sum0 += __shfl_xor_sync(0xffffffffu, sum0, i);
				sum1 += __shfl_xor_sync(0xffffffffu, sum1, i);
			}
			if (now.whole && !dry) {
#pragma unroll
				for (int half = 0; half < 2; half++) {
					int head = lane / 4 + 8 * half;
					float inverse = 1.0f / (half ? sum1 : sum0);
					__nv_bfloat16 *to = (__nv_bfloat16 *)a.output + ((int64_t)now.b * HEADS + head) * CKV + OWN * warp + lane % 4 * 2;

#pragma unroll
					for (int j = 0; j < COLUMNS; j++)
						*(__nv_bfloat162 *)(to + 8 * j) = __floats2bfloat162_rn(acc[j][2 * half] * inverse, acc[j][2 * half + 1] * inverse);
				}
				if (warp == 0 && lane % 4 == 0) {
					float *to = a.lse + (int64_t)now.b * HEADS + lane / 4;

					to[0] = max0 + log2f(sum0);
					to[8] = max1 + log2f(sum1);
				}
			} else {
				struct part *to = parts + ((int64_t)blockIdx.x + (magic ? 0 : now.b));

#pragma unroll
				for (int half = 0; half < 2; half++) {
					uint16_t *v = &to->v[lane / 4 + 8 * half][OWN * warp + lane % 4 * 8];

#pragma unroll
					for (int j = 0; j < COLUMNS; j += 4)
						store16(v + 8 * j, pack(acc[j][2 * half], acc[j][2 * half + 1]),
							pack(acc[j + 1][2 * half], acc[j + 1][2 * half + 1]),
							pack(acc[j + 2][2 * half], acc[j + 2][2 * half + 1]),
							pack(acc[j + 3][2 * half], acc[j + 3][2 * half + 1]), !dry);
				}
				if (!dry && warp == 0 && lane % 4 == 0) {
					to->max[lane / 4] = max0;
					to->max[lane / 4 + 8] = max1;
					to->sum[lane / 4] = sum0;
					to->sum[lane / 4 + 8] = sum1;
				}
			}
		}
		if (dry) {
			/* The first tile and q, of all warps. */
			copy_wait<STAGES - 1>();
			__syncthreads();
		} else {
			age++;
			first = last;
			now = following(now, indptr, hi);
		}
	}
	copy_wait<0>();
}

/* One head of one sequence: GROUPS groups of threads stride over the parts, LANES threads each have four columns. */
template <int LANES, int GROUPS, int UNROLL>
static __global__ void __launch_bounds__(LANES *GROUPS, LANES *GROUPS == 128 ? 10 : LANES *GROUPS == 256 ? 4 : 2) join(const struct part *parts, const int32_t *indptr, int chunk, unsigned magic, __nv_bfloat16 *output, float *lse)
{
	/* Small grids, and the first blocks of the others, are there before the parts: a dry pass without parts brings the
	 * instructions. */
	constexpr bool DRY = LANES == 32;
	constexpr int SIZE = LANES * GROUPS, SIZE_WARPS = SIZE / 32;
	__shared__ float weight[MOST + 8], sums[MOST + 8];
	__shared__ float warp_max[SIZE_WARPS], warp_sum[SIZE_WARPS];
	__shared__ float4 totals[GROUPS][LANES];
	const int tid = threadIdx.x, lane = tid % LANES, group = tid / LANES;
	const int b = blockIdx.x / HEADS, head = blockIdx.x % HEADS;
	const int at = ((int)blockIdx.y * LANES + lane) * 4;
	/* Two columns here, two 8 further. */
	__nv_bfloat16 *to = output + (int64_t)blockIdx.x * CKV + (at & ~31) + (at & 4) * 4 + (at & 31) / 8 * 2;

	int slot, count;

	if (magic) {
		const int l = tid % 32;
		int pieces = l < (int)gridDim.x / HEADS ? (int)__umulhi((unsigned)(__ldg(indptr + l + 1) - __ldg(indptr + l) + chunk - 1), magic) : 0;

		count = __shfl_sync(0xffffffffu, pieces, b);
		slot = __reduce_add_sync(0xffffffffu, l < b ? pieces : 0);
	} else {
		const int start = __ldg(indptr + b), end = __ldg(indptr + b + 1), i0 = start / chunk;

		count = end > start ? (end - 1) / chunk - i0 + 1 : 0;
		slot = i0 + b;
	}

	const struct part *mine = parts + (int64_t)slot;

	/* Only for the translations of the addresses, which are cold. */
	if (count > 1) {
		if (tid == 0)
			prefetch(to);
		else if (tid == 32)
			prefetch(lse + blockIdx.x);
		else if (DRY && tid == 64)
			prefetch(mine);
	}

	if (count <= 1)
		cudaGridDependencySynchronize();
	if (count == 0) {
		if (group == 0) {
			*(__nv_bfloat162 *)to = __floats2bfloat162_rn(0.0f, 0.0f);
			*(__nv_bfloat162 *)(to + 8) = __floats2bfloat162_rn(0.0f, 0.0f);
		}
		if (tid == 0 && blockIdx.y == 0)
			lse[blockIdx.x] = -INFINITY;
		return;
	}

	if (count == 1)
		return;

#pragma unroll 1
	for (int pass = DRY || blockIdx.x < gridDim.x / 2 ? opaque<0>() : 1;; pass++) {
		const int n = pass ? count : 0;

		if (pass)
			cudaGridDependencySynchronize();

		uint2 v[UNROLL];
		float4 acc = make_float4(0, 0, 0, 0);

#pragma unroll
		for (int u = 0; u < UNROLL; u++) {
			int i = group + u * GROUPS;

			v[u] = load8(&mine[i].v[head][at], i < n);
		}

		/* The weights of the parts, while the first values are on their way. */
		float m = -INFINITY, total = 0;

		for (int i = tid; i < n; i += SIZE) {
			float x = load4(&mine[i].max[head]), y = load4(&mine[i].sum[head]);

			weight[i] = x;
			sums[i] = y;
			m = fmaxf(m, x);
		}
#pragma unroll
		for (int i = 16; i > 0; i /= 2)
			m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, i));
		if (tid % 32 == 0)
			warp_max[tid / 32] = m;
		__syncthreads();
#pragma unroll
		for (int i = 0; i < SIZE_WARPS; i++)
			m = fmaxf(m, warp_max[i]);
		for (int i = tid; i < n; i += SIZE) {
			float w = power2(weight[i] - m);

			weight[i] = w;
			total += w * sums[i];
		}
#pragma unroll
		for (int i = 16; i > 0; i /= 2)
			total += __shfl_xor_sync(0xffffffffu, total, i);
		if (tid % 32 == 0)
			warp_sum[tid / 32] = total;
		__syncthreads();
		total = 0;
#pragma unroll
		for (int i = 0; i < SIZE_WARPS; i++)
			total += warp_sum[i];

		for (int base = group;;) {
#pragma unroll
			for (int u = 0; u < UNROLL; u++) {
				int i = base + u * GROUPS;
				float w = i < n ? weight[i] : 0.0f;

				acc.x += w * __uint_as_float(v[u].x << 16);
				acc.y += w * __uint_as_float(v[u].x & 0xffff0000u);
				acc.z += w * __uint_as_float(v[u].y << 16);
				acc.w += w * __uint_as_float(v[u].y & 0xffff0000u);
			}
			base += UNROLL * GROUPS;
			if (base >= n)
				break;
#pragma unroll
			for (int u = 0; u < UNROLL; u++) {
				int i = base + u * GROUPS;

				v[u] = load8(&mine[i].v[head][at], i < n);
			}
		}

		if (GROUPS > 1) {
			totals[group][lane] = acc;
			__syncthreads();
			if (group == 0) {
#pragma unroll
				for (int g = 1; g < GROUPS; g++) {
					float4 x = totals[g][lane];

					acc.x += x.x;
					acc.y += x.y;
					acc.z += x.z;
					acc.w += x.w;
				}
			}
		}
		if (pass && group == 0) {
			float inverse = 1.0f / total;

			*(__nv_bfloat162 *)to = __floats2bfloat162_rn(acc.x * inverse, acc.y * inverse);
			*(__nv_bfloat162 *)(to + 8) = __floats2bfloat162_rn(acc.z * inverse, acc.w * inverse);
		}
		if (pass && tid == 0 && blockIdx.y == 0)
			lse[blockIdx.x] = m + log2f(total);
		if (pass)
			break;
		__syncthreads();
	}
}

/* Tokens a chunk, if every sequence begins with one: no more than MOST chunks whatever the lengths. */
static int64_t aligned_tokens(const struct km_args *a)
{
	int64_t room = MOST - a->batch_size, c = (a->num_kv_indices + room - 1) / room;

	return c < LEAST ? LEAST : c;
}

/* For some sequences whose indices fit: then the lengths are short enough for the division by `chunk_magic`, too. */
static bool aligned(const struct km_args *a)
{
	return a->batch_size >= 2 && a->batch_size <= 32 && a->num_kv_indices > 0 && (a->batch_size + 1) * aligned_tokens(a) + 8 <= WINDOW;
}

/* Tokens a chunk. */
static int chunk_tokens(const struct km_args *a)
{
	int64_t c = (a->num_kv_indices + MOST - 1) / MOST;

	if (aligned(a))
		return (int)aligned_tokens(a);
	return c < LEAST ? LEAST : (int)c;
}

/* 2^32 / chunk, rounded up; 0 if chunks are cut regardless of the sequences. */
static unsigned chunk_magic(const struct km_args *a)
{
	uint64_t c = (uint64_t)chunk_tokens(a);

	return aligned(a) ? (unsigned)((((uint64_t)1 << 32) + c - 1) / c) : 0;
}

static int chunk_count(const struct km_args *a)
{
	int64_t c = chunk_tokens(a), n = (a->num_kv_indices + (aligned(a) ? a->batch_size : 1) * (c - 1)) / c;

	return n < 1 ? 1 : (int)n;
}

size_t km_workspace(const struct km_args *a)
{
	return (size_t)(chunk_count(a) + a->batch_size) * sizeof(struct part);
}

int km_init(const struct km_args *)
{
	cudaError_t e = cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(struct shared));

	if (e == cudaSuccess)
		e = cudaFuncSetAttribute(attend, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	if (e == cudaSuccess)
		e = cudaFuncSetAttribute(join<32, 16, 10>, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	if (e == cudaSuccess)
		e = cudaFuncSetAttribute(join<128, 2, 12>, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	if (e == cudaSuccess)
		e = cudaFuncSetAttribute(join<128, 1, 8>, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	return (int)e;
}

int km_run(const struct km_args *a)
{
	cudaStream_t stream = (cudaStream_t)a->stream;
	struct part *parts = (struct part *)a->workspace;
	const struct part *read = parts;
	const int32_t *indptr = a->kv_indptr;
	__nv_bfloat16 *output = (__nv_bfloat16 *)a->output;
	float *lse = a->lse;
	int chunk = chunk_tokens(a);
	unsigned magic = chunk_magic(a);
	cudaError_t e;

	if (a->batch_size <= 0)
		return 0;
	attend<<<(unsigned)chunk_count(a), THREADS, sizeof(struct shared), stream>>>(*a, parts, chunk, magic, a->sm_scale * 1.44269504088896341f);
	e = cudaGetLastError();
	if (e != cudaSuccess)
		return (int)e;

	cudaLaunchAttribute attribute = {};
	cudaLaunchConfig_t config = {};

	attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attribute.val.programmaticStreamSerializationAllowed = 1;
	config.dynamicSmemBytes = 0;
	config.stream = stream;
	config.attrs = &attribute;
	config.numAttrs = 1;
	if (a->batch_size <= 4) {
		config.gridDim = dim3((unsigned)(a->batch_size * HEADS), 4);
		config.blockDim = dim3(512);
		e = cudaLaunchKernelEx(&config, join<32, 16, 10>, read, indptr, chunk, magic, output, lse);
	} else if (a->batch_size <= 32) {
		config.gridDim = dim3((unsigned)(a->batch_size * HEADS), 1);
		config.blockDim = dim3(256);
		e = cudaLaunchKernelEx(&config, join<128, 2, 12>, read, indptr, chunk, magic, output, lse);
	} else {
		config.gridDim = dim3((unsigned)(a->batch_size * HEADS), 1);
		config.blockDim = dim3(128);
		e = cudaLaunchKernelEx(&config, join<128, 1, 8>, read, indptr, chunk, magic, output, lse);
	}
	return (int)e;
}
