/* Split over the tokens: one block takes a piece of one sequence for all 16 heads, which are the 16 rows of mma.sync. Tiles of
 * 32 tokens come by cp.async into two buffers; a tile is the keys of the logits and then the values. Each of four warps has
 * the logits of 8 tokens and 128 columns of the output. A second kernel joins the pieces. */
#include "task.h"
#include <cuda_bf16.h>

enum {
	HEADS = KM_AXIS_NUM_QO_HEADS, CKV = KM_AXIS_HEAD_DIM_CKV, KPE = KM_AXIS_HEAD_DIM_KPE, WIDTH = CKV + KPE,
	STRIDE = WIDTH + 8, /* so that eight rows lie in different banks */
	TOKENS = 32, WARPS = 4, THREADS = 32 * WARPS, OWN = CKV / WARPS, COLUMNS = OWN / 8,
	ROW_THREADS = THREADS / HEADS, BLOCKS = 264, LEAST = 32, /* as many blocks, if each has as many tokens */
};

/* Of some tokens: the largest logit, the sum of exp(logit - max), and that sum weighted with the values. */
struct part {
	float max, sum, v[CKV];
};

struct shared {
	uint16_t q[HEADS][STRIDE], kv[2][TOKENS][STRIDE];
	float logits[HEADS][TOKENS + 4];
	__nv_bfloat16 p[HEADS][TOKENS + 8];
	float max[HEADS], sum[HEADS], old[HEADS];
};

static int pieces(const struct km_args *a)
{
	int64_t most = BLOCKS / a->batch_size, useful = a->num_kv_indices / (a->batch_size * LEAST);

	most = useful < most ? useful : most;
	return most < 1 ? 1 : (int)most;
}

__device__ static unsigned shared_address(const void *p)
{
	return (unsigned)__cvta_generic_to_shared(p);
}

/* 16 bytes to shared memory; zeros if not `valid`. */
__device__ static void copy_async(void *to, const void *from, bool valid)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

__device__ static void copy_commit()
{
	asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until no more than PENDING groups are under way. */
template <int PENDING> __device__ static void copy_wait()
{
	asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* Matrices of 8 x 8 halves; lane i gives the address of row i % 8 of matrix i / 8. */
__device__ static void load_matrix4(unsigned *to, const void *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}

__device__ static void load_matrix2(unsigned *to, const void *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
		     : "=r"(to[0]), "=r"(to[1]) : "r"(shared_address(row)) : "memory");
}

__device__ static void load_matrix4_turned(unsigned *to, const void *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}

/* 16 x 8 sums += 16 x 16 times 16 x 8 numbers. */
__device__ static void multiply_add(float *sum, const unsigned *a, const unsigned *b)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
		     : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Rows of ckv (or q_nope) and kpe (or q_pe) side by side; the row of tile row r is index[r], or r itself without an index. */
__device__ static void load_rows(uint16_t (*to)[STRIDE], int rows, int valid, const uint16_t *left, const uint16_t *right, const int32_t *index)
{
	for (int i = threadIdx.x; i < rows * (WIDTH / 8); i += THREADS) {
		int row = i / (WIDTH / 8), at = i % (WIDTH / 8) * 8;
		bool there = row < valid;
		int64_t from = !there ? 0 : index ? index[row] : row;

		copy_async(&to[row][at], at < CKV ? left + from * CKV + at : right + from * KPE + at - CKV, there);
	}
	copy_commit();
}

/* The logits of a tile, scaled; -inf from token `valid` on. */
__device__ static void find_logits(struct shared *s, const uint16_t (*kv)[STRIDE], int valid, float scale)
{
	int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
	float sum[2][4] = {};

	for (int k = 0; k < WIDTH / 16; k++) {
		unsigned a[4], b[2];

		load_matrix4(a, &s->q[lane % 16][16 * k + lane / 16 * 8]);
		load_matrix2(b, &kv[8 * warp + lane % 8][16 * k + lane / 8 % 2 * 8]);
		multiply_add(sum[k % 2], a, b);
	}
	for (int i = 0; i < 4; i++) {
		int token = 8 * warp + lane % 4 * 2 + i % 2;

		s->logits[lane / 4 + i / 2 * 8][token] = token < valid ? (sum[0][i] + sum[1][i]) * scale : -INFINITY;
	}
}

/* From logits to weights, eight threads a head. */
__device__ static void weigh(struct shared *s)
{
	int head = threadIdx.x / ROW_THREADS, at = threadIdx.x % ROW_THREADS;
	float old = s->max[head], max = old, sum = 0;

	for (int i = at; i < TOKENS; i += ROW_THREADS)
		max = fmaxf(max, s->logits[head][i]);
	for (int offset = ROW_THREADS / 2; offset > 0; offset /= 2)
		max = fmaxf(max, __shfl_xor_sync(~0u, max, offset));
	for (int i = at; i < TOKENS; i += ROW_THREADS) {
		float p = __expf(s->logits[head][i] - max);

		sum += p;
		s->p[head][i] = __float2bfloat16(p);
	}
	for (int offset = ROW_THREADS / 2; offset > 0; offset /= 2)
		sum += __shfl_xor_sync(~0u, sum, offset);
	if (at == 0) {
		s->old[head] = __expf(old - max);
		s->max[head] = max;
		s->sum[head] = s->sum[head] * s->old[head] + sum;
	}
}

__device__ static void add_values(const struct shared *s, const uint16_t (*kv)[STRIDE], float (*acc)[4])
{
	int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
	float low = s->old[lane / 4], high = s->old[lane / 4 + 8];

	for (int j = 0; j < COLUMNS; j++) {
		acc[j][0] *= low;
		acc[j][1] *= low;
		acc[j][2] *= high;
		acc[j][3] *= high;
	}
	for (int k = 0; k < TOKENS / 16; k++) {
		unsigned a[4], b[4];

		load_matrix4(a, &s->p[lane % 16][16 * k + lane / 16 * 8]);
		for (int j = 0; j < COLUMNS; j += 2) {
			load_matrix4_turned(b, &kv[16 * k + lane % 16][OWN * warp + 8 * j + lane / 16 * 8]);
			multiply_add(acc[j], a, b);
			multiply_add(acc[j + 1], a, b + 2);
		}
	}
}

/* Block (b, piece); its result for head h is parts[(b * HEADS + h) * pieces + piece]. */
__global__ void __launch_bounds__(THREADS) attend(struct km_args a, struct part *parts)
{
	extern __shared__ __align__(16) unsigned char memory[];
	struct shared *s = (struct shared *)memory;
	int b = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
	int from = a.kv_indptr[b], length = a.kv_indptr[b + 1] - from;
	int first = from + (int)((int64_t)length * blockIdx.y / gridDim.y), last = from + (int)((int64_t)length * (blockIdx.y + 1) / gridDim.y);
	float acc[COLUMNS][4] = {};

	if (threadIdx.x < HEADS) {
		s->max[threadIdx.x] = -1e30f;
		s->sum[threadIdx.x] = 0;
	}
	load_rows(s->q, HEADS, HEADS, a.q_nope + (int64_t)b * HEADS * CKV, a.q_pe + (int64_t)b * HEADS * KPE, NULL);
	load_rows(s->kv[0], TOKENS, last - first, a.ckv_cache, a.kpe_cache, a.kv_indices + first);
	for (int t = first, turn = 0; t < last; t += TOKENS, turn ^= 1) {
		load_rows(s->kv[turn ^ 1], TOKENS, last - t - TOKENS, a.ckv_cache, a.kpe_cache, a.kv_indices + t + TOKENS);
		copy_wait<1>();
		__syncthreads();
		find_logits(s, s->kv[turn], last - t, a.sm_scale);
		__syncthreads();
		weigh(s);
		__syncthreads();
		add_values(s, s->kv[turn], acc);
		__syncthreads();
	}
	copy_wait<0>();
	__syncthreads();
	for (int half = 0; half < 2; half++) {
		int head = lane / 4 + 8 * half;
		struct part *to = &parts[((int64_t)b * HEADS + head) * gridDim.y + blockIdx.y];

		for (int j = 0; j < COLUMNS; j++)
			for (int i = 0; i < 2; i++)
				to->v[OWN * warp + 8 * j + lane % 4 * 2 + i] = acc[j][2 * half + i];
		to->max = s->max[head];
		to->sum = s->sum[head];
	}
}

__global__ void __launch_bounds__(CKV) finish(const struct part *parts, int count, __nv_bfloat16 *output, float *lse)
{
	float max = -INFINITY, sum = 0, v = 0;

	parts += blockIdx.x * (int64_t)count;
	for (int i = 0; i < count; i++)
		max = fmaxf(max, parts[i].max);
	for (int i = 0; i < count; i++) {
		float weight = __expf(parts[i].max - max);

		sum += weight * parts[i].sum;
		v += weight * parts[i].v[threadIdx.x];
	}
	output[blockIdx.x * (int64_t)CKV + threadIdx.x] = __float2bfloat16(sum > 0 ? v / sum : 0);
	if (threadIdx.x == 0)
		lse[blockIdx.x] = sum > 0 ? (max + logf(sum)) * 1.44269504f : -INFINITY;
}

size_t km_workspace(const struct km_args *a)
{
	return (size_t)(a->batch_size * HEADS * pieces(a)) * sizeof(struct part);
}

int km_init(const struct km_args *)
{
	return (int)cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(struct shared));
}

int km_run(const struct km_args *a)
{
	cudaStream_t stream = (cudaStream_t)a->stream;
	struct part *parts = (struct part *)a->workspace;

	attend<<<dim3((unsigned)a->batch_size, (unsigned)pieces(a)), THREADS, sizeof(struct shared), stream>>>(*a, parts);
	finish<<<(unsigned)(a->batch_size * HEADS), CKV, 0, stream>>>(parts, pieces(a), (__nv_bfloat16 *)a->output, a->lse);
	return (int)cudaGetLastError();
}
