#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>

constexpr int HEADS = KM_AXIS_NUM_QO_HEADS, CKV = KM_AXIS_HEAD_DIM_CKV, KPE = KM_AXIS_HEAD_DIM_KPE, WIDTH = CKV + KPE;
constexpr int STRIDE = WIDTH + 8; /* eight rows lie in different banks */
constexpr int TOKENS = 32, WARPS = 4, THREADS = 32 * WARPS, OWN = CKV / WARPS, COLUMNS = OWN / 8;
constexpr int MOST = 264, LEAST = 16; /* chunks at most; tokens a chunk at least */
constexpr int WINDOW = 1024; /* indices staged at once */
constexpr int FAR = 0x7fffffff;

static_assert(HEADS == 16 && CKV == 512 && KPE == 64, "made for these sizes");

/* Of some tokens, for all heads: the largest logit (base 2), the sum of 2^(logit - max), and that sum weighted with the values.
 * The columns are permuted within 16: 4q + {0, 1, 2, 3} holds the columns 2q, 2q + 1, 8 + 2q, 9 + 2q. */
struct part {
	float max[HEADS], sum[HEADS];
	float v[HEADS][CKV];
};

struct shared {
	uint16_t q[HEADS][STRIDE];
	uint16_t kv[2][TOKENS][STRIDE];
	float logits[HEADS][TOKENS + 8];
	__nv_bfloat16 p[HEADS][TOKENS + 8];
	int32_t index[WINDOW];
	float max[HEADS], sum[HEADS], factor[HEADS];
};

static_assert(sizeof(struct shared) <= 113 * 1024, "two blocks a multiprocessor");

/* Up to 32 tokens of one segment; the segment (chunk x sequence b) ends at `end`. */
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

__device__ __forceinline__ static void copy_commit()
{
	asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int PENDING> __device__ __forceinline__ static void copy_wait()
{
	asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
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

/* Each warp copies the rows of 8 tokens, those of its logits; zeros up to a multiple of 16 rows. */
__device__ __forceinline__ static void load_tile(uint16_t (*to)[STRIDE], const int32_t *index, int count, const uint16_t *ckv, const uint16_t *kpe)
{
	int lane = threadIdx.x % 32, row0 = threadIdx.x / 32 * 8;

	if (row0 >= ((count + 15) & ~15))
		return;
#pragma unroll
	for (int r = 0; r < 8; r++) {
		int row = row0 + r;
		bool there = row < count;
		int page = there ? index[row] : 0;
		const uint16_t *from = ckv + (int64_t)page * CKV + lane * 8;

		copy_async(&to[row][lane * 8], from, there);
		copy_async(&to[row][CKV / 2 + lane * 8], from + CKV / 2, there);
	}
#pragma unroll
	for (int h = 0; h < 2; h++) {
		int row = row0 + 4 * h + lane / 8, at = lane % 8 * 8;
		bool there = row < count;
		int page = there ? index[row] : 0;

		copy_async(&to[row][CKV + at], kpe + (int64_t)page * KPE + at, there);
	}
}

__device__ __forceinline__ static void load_q(struct shared *s, const uint16_t *q_nope, const uint16_t *q_pe, int b)
{
	int lane = threadIdx.x % 32, row0 = threadIdx.x / 32 * (HEADS / WARPS);
	int row = row0 + lane / 8, at = lane % 8 * 8;

#pragma unroll
	for (int r = 0; r < HEADS / WARPS; r++) {
		const uint16_t *from = q_nope + ((int64_t)b * HEADS + row0 + r) * CKV + lane * 8;

		copy_async(&s->q[row0 + r][lane * 8], from, true);
		copy_async(&s->q[row0 + r][CKV / 2 + lane * 8], from + CKV / 2, true);
	}
	copy_async(&s->q[row][CKV + at], q_pe + ((int64_t)b * HEADS + row) * KPE + at, true);
}

/* The logits of the warp's 8 tokens, times scale; -inf from token `count` of the tile on. */
__device__ __forceinline__ static void find_logits(struct shared *s, uint16_t (*kv)[STRIDE], int count, float scale)
{
	int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	int valid = count - 8 * warp, column = lane % 4 * 2;
	float c[4][4];

#pragma unroll
	for (int i = 0; i < 4; i++)
#pragma unroll
		for (int j = 0; j < 4; j++)
			c[i][j] = 0;
	if (valid > 0) {
		const uint16_t *krow = &kv[8 * warp + lane % 8][lane / 8 * 8];
		const uint16_t *qrow = &s->q[lane % 16][lane / 16 * 8];

#pragma unroll
		for (int k = 0; k < WIDTH; k += 64) {
			unsigned kf[8], qf[4][4];

			load_matrix4(kf, krow + k);
			load_matrix4(kf + 4, krow + k + 32);
#pragma unroll
			for (int i = 0; i < 4; i++)
				load_matrix4(qf[i], qrow + k + 16 * i);
#pragma unroll
			for (int i = 0; i < 4; i++)
				multiply_add(c[i], qf[i], kf + 2 * i);
		}
	}
#pragma unroll
	for (int half = 0; half < 2; half++) {
		float x = ((c[0][2 * half] + c[1][2 * half]) + (c[2][2 * half] + c[3][2 * half])) * scale;
		float y = ((c[0][2 * half + 1] + c[1][2 * half + 1]) + (c[2][2 * half + 1] + c[3][2 * half + 1])) * scale;

		x = column < valid ? x : -INFINITY;
		y = column + 1 < valid ? y : -INFINITY;
		*(float2 *)&s->logits[lane / 4 + 8 * half][8 * warp + column] = make_float2(x, y);
	}
}

/* Eight threads a head, four tokens a thread. `sum` is of the thread's own tokens until the last tile of the segment. */
__device__ __forceinline__ static void weigh(struct shared *s, float &max, float &sum, bool last)
{
	int head = threadIdx.x / 8, at = threadIdx.x % 8 * 4;
	float4 x = *(const float4 *)&s->logits[head][at];
	float m = fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w));
	float factor;

#pragma unroll
	for (int i = 1; i < 8; i *= 2)
		m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, i));
	m = fmaxf(m, max);
	factor = power2(max - m);
	max = m;
	x.x = power2(x.x - m);
	x.y = power2(x.y - m);
	x.z = power2(x.z - m);
	x.w = power2(x.w - m);
	sum = sum * factor + ((x.x + x.y) + (x.z + x.w));
	*(__nv_bfloat162 *)&s->p[head][at] = __floats2bfloat162_rn(x.x, x.y);
	*(__nv_bfloat162 *)&s->p[head][at + 2] = __floats2bfloat162_rn(x.z, x.w);
	if (last) {
#pragma unroll
		for (int i = 1; i < 8; i *= 2)
			sum += __shfl_xor_sync(0xffffffffu, sum, i);
	}
	if (at == 0) {
		s->factor[head] = factor;
		if (last) {
			s->max[head] = max;
			s->sum[head] = sum;
		}
	}
}

/* The warp's 128 columns of the output: old sums times their factors, plus P times the values. */
__device__ __forceinline__ static void add_values(struct shared *s, uint16_t (*kv)[STRIDE], int count, float (*acc)[4])
{
	int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	float f0 = s->factor[lane / 4], f1 = s->factor[lane / 4 + 8];

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
	for (int k = 0; k < TOKENS; k += 16) {
		if (k < count) {
			unsigned pf[4];
			const uint16_t *row = &kv[k + lane % 16][OWN * warp + lane / 16 * 8];

			load_matrix4(pf, &s->p[lane % 16][k + lane / 16 * 8]);
#pragma unroll
			for (int j = 0; j < COLUMNS; j += 2) {
				unsigned vf[4];

				load_matrix4_turned(vf, row + 8 * j);
				multiply_add(acc[j], pf, vf);
				multiply_add(acc[j + 1], pf, vf + 2);
			}
		}
	}
}

static __global__ void __launch_bounds__(THREADS, 2) attend(const struct km_args a, struct part *parts, int chunk, float scale)
{
	extern __shared__ __align__(128) unsigned char memory[];
	struct shared *s = (struct shared *)memory;
	const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
	const int tokens = (int)a.num_kv_indices, batch = (int)a.batch_size;
	const int32_t *indptr = a.kv_indptr;
	float acc[COLUMNS][4];
	float max = -INFINITY, sum = 0;

	cudaTriggerProgrammaticLaunchCompletion();
	if (tokens <= 0)
		return;

	const int lo = (int)blockIdx.x * chunk;
	if (lo >= tokens)
		return;
	const int hi = tokens - lo < chunk ? tokens : lo + chunk;

	/* The first sequence: as many ends as are not beyond lo. The indices come meanwhile. */
	int bound = tid < batch ? __ldg(indptr + tid + 1) : FAR;
	int window = lo, window_end = lo + min(WINDOW, hi - lo);

	stage(s, a.kv_indices + window, window_end - window);

	int b = __syncthreads_count(bound <= lo);

	for (int base = THREADS; b == base && base < batch; base += THREADS) {
		int j = base + tid;

		bound = j < batch ? __ldg(indptr + j + 1) : FAR;
		b += __syncthreads_count(bound <= lo);
	}
	if (b >= batch)
		return;

	struct tile now, next;
	{
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
		copy_commit();
	};

	load_q(s, a.q_nope, a.q_pe, now.b);
	fetch(now, 0);
	next = following(now, indptr, hi);
	fetch(next, 1);

	bool first = true;

	for (int turn = 0; now.count > 0; turn ^= 1) {
		const bool last = now.start + now.count == now.end;

		copy_wait<1>();
		if (first) {
			__syncthreads();
#pragma unroll
			for (int j = 0; j < COLUMNS; j++)
#pragma unroll
				for (int i = 0; i < 4; i++)
					acc[j][i] = 0;
			max = -INFINITY;
			sum = 0;
		} else {
			__syncwarp();
		}
		find_logits(s, s->kv[turn], now.count, scale);
		__syncthreads();
		if (last && next.count > 0)
			load_q(s, a.q_nope, a.q_pe, next.b);
		copy_commit();
		weigh(s, max, sum, last);
		__syncthreads();
		add_values(s, s->kv[turn], now.count, acc);
		__syncthreads();

		struct tile after = following(next, indptr, hi);

		fetch(after, turn);
		if (last) {
			if (now.whole) {
#pragma unroll
				for (int half = 0; half < 2; half++) {
					int head = lane / 4 + 8 * half;
					float inverse = 1.0f / s->sum[head];
					__nv_bfloat16 *to = (__nv_bfloat16 *)a.output + ((int64_t)now.b * HEADS + head) * CKV + OWN * warp + lane % 4 * 2;

#pragma unroll
					for (int j = 0; j < COLUMNS; j++)
						*(__nv_bfloat162 *)(to + 8 * j) = __floats2bfloat162_rn(acc[j][2 * half] * inverse, acc[j][2 * half + 1] * inverse);
				}
				if (tid < HEADS)
					a.lse[(int64_t)now.b * HEADS + tid] = s->max[tid] + log2f(s->sum[tid]);
			} else {
				struct part *to = parts + ((int64_t)blockIdx.x + now.b);

#pragma unroll
				for (int half = 0; half < 2; half++) {
					float *v = &to->v[lane / 4 + 8 * half][OWN * warp + lane % 4 * 4];

#pragma unroll
					for (int j = 0; j < COLUMNS; j += 2)
						*(float4 *)(v + 8 * j) = make_float4(acc[j][2 * half], acc[j][2 * half + 1], acc[j + 1][2 * half], acc[j + 1][2 * half + 1]);
				}
				if (tid < HEADS) {
					to->max[tid] = s->max[tid];
					to->sum[tid] = s->sum[tid];
				}
			}
		}
		first = last;
		now = next;
		next = after;
	}
	copy_wait<0>();
}

/* One head of one sequence: GROUPS groups of threads stride over the parts, LANES threads each have four columns. */
template <int LANES, int GROUPS, int UNROLL>
static __global__ void __launch_bounds__(LANES *GROUPS) join(const struct part *parts, const int32_t *indptr, int chunk, __nv_bfloat16 *output, float *lse)
{
	constexpr int SIZE = LANES * GROUPS, SIZE_WARPS = SIZE / 32;
	__shared__ float weight[MOST + 8], sums[MOST + 8];
	__shared__ float warp_max[SIZE_WARPS], warp_sum[SIZE_WARPS];
	__shared__ float4 totals[GROUPS][LANES];
	const int tid = threadIdx.x, lane = tid % LANES, group = tid / LANES;
	const int b = blockIdx.x / HEADS, head = blockIdx.x % HEADS;
	const int at = ((int)blockIdx.y * LANES + lane) * 4;
	const int start = __ldg(indptr + b), end = __ldg(indptr + b + 1);
	__nv_bfloat16 *to = output + (int64_t)blockIdx.x * CKV + (at & ~15) + (at & 15) / 2;

	cudaGridDependencySynchronize();
	if (end <= start) {
		if (group == 0) {
			*(__nv_bfloat162 *)to = __floats2bfloat162_rn(0.0f, 0.0f);
			*(__nv_bfloat162 *)(to + 8) = __floats2bfloat162_rn(0.0f, 0.0f);
		}
		if (tid == 0 && blockIdx.y == 0)
			lse[blockIdx.x] = -INFINITY;
		return;
	}

	const int i0 = start / chunk, count = (end - 1) / chunk - i0 + 1;

	if (count == 1)
		return;

	const struct part *mine = parts + ((int64_t)i0 + b);
	float4 v[UNROLL], acc = make_float4(0, 0, 0, 0);

#pragma unroll
	for (int u = 0; u < UNROLL; u++) {
		int i = group + u * GROUPS;

		v[u] = i < count ? __ldcg((const float4 *)&mine[i].v[head][at]) : make_float4(0, 0, 0, 0);
	}

	/* The weights of the parts, while the first values are on their way. */
	float m = -INFINITY, total = 0;

	for (int i = tid; i < count; i += SIZE) {
		float x = __ldcg(&mine[i].max[head]), y = __ldcg(&mine[i].sum[head]);

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
	for (int i = tid; i < count; i += SIZE) {
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
			float w = i < count ? weight[i] : 0.0f;

			acc.x += w * v[u].x;
			acc.y += w * v[u].y;
			acc.z += w * v[u].z;
			acc.w += w * v[u].w;
		}
		base += UNROLL * GROUPS;
		if (base >= count)
			break;
#pragma unroll
		for (int u = 0; u < UNROLL; u++) {
			int i = base + u * GROUPS;

			v[u] = i < count ? __ldcg((const float4 *)&mine[i].v[head][at]) : make_float4(0, 0, 0, 0);
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
	if (group == 0) {
		float inverse = 1.0f / total;

		*(__nv_bfloat162 *)to = __floats2bfloat162_rn(acc.x * inverse, acc.y * inverse);
		*(__nv_bfloat162 *)(to + 8) = __floats2bfloat162_rn(acc.z * inverse, acc.w * inverse);
	}
	if (tid == 0 && blockIdx.y == 0)
		lse[blockIdx.x] = m + log2f(total);
}

/* Tokens a chunk. */
static int chunk_tokens(const struct km_args *a)
{
	int64_t c = (a->num_kv_indices + MOST - 1) / MOST;

	return c < LEAST ? LEAST : (int)c;
}

static int chunk_count(const struct km_args *a)
{
	int64_t c = chunk_tokens(a), n = (a->num_kv_indices + c - 1) / c;

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
		e = cudaFuncSetAttribute(join<128, 4, 6>, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
	if (e == cudaSuccess)
		e = cudaFuncSetAttribute(join<128, 2, 4>, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
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
	cudaError_t e;

	if (a->batch_size <= 0)
		return 0;
	attend<<<(unsigned)chunk_count(a), THREADS, sizeof(struct shared), stream>>>(*a, parts, chunk, a->sm_scale * 1.44269504088896341f);
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
		e = cudaLaunchKernelEx(&config, join<32, 16, 10>, read, indptr, chunk, output, lse);
	} else if (a->batch_size <= 32) {
		config.gridDim = dim3((unsigned)(a->batch_size * HEADS), 1);
		config.blockDim = dim3(512);
		e = cudaLaunchKernelEx(&config, join<128, 4, 6>, read, indptr, chunk, output, lse);
	} else {
		config.gridDim = dim3((unsigned)(a->batch_size * HEADS), 1);
		config.blockDim = dim3(256);
		e = cudaLaunchKernelEx(&config, join<128, 2, 4>, read, indptr, chunk, output, lse);
	}
	return (int)e;
}
