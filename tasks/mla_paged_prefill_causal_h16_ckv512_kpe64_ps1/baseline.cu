/* A block takes four queries of one sequence, 64 rows of mma.sync, through all tokens that the last of them sees. Tiles of 32
 * tokens come by cp.async into two buffers; a tile is the keys of the logits and then the values. Two warps share a query:
 * each has the logits of 16 tokens and 256 columns of the output. */
#include "task.h"
#include <cuda_bf16.h>

enum {
	HEADS = KM_AXIS_NUM_QO_HEADS, CKV = KM_AXIS_HEAD_DIM_CKV, KPE = KM_AXIS_HEAD_DIM_KPE, WIDTH = CKV + KPE,
	STRIDE = WIDTH + 8, /* so that eight rows lie in different banks */
	QUERIES = 4, ROWS = QUERIES * HEADS, TOKENS = 32, SHARE = 2, THREADS = 32 * QUERIES * SHARE,
	OWN = CKV / SHARE, COLUMNS = OWN / 8, OWN_TOKENS = TOKENS / SHARE, ROW_THREADS = THREADS / ROWS,
};

struct shared {
	uint16_t q[ROWS][STRIDE], kv[2][TOKENS][STRIDE];
	float logits[ROWS][TOKENS + 4];
	__nv_bfloat16 p[ROWS][TOKENS + 8];
	float max[ROWS], sum[ROWS], old[ROWS];
};

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

/* Four matrices of 8 x 8 halves; lane i gives the address of row i % 8 of matrix i / 8. */
__device__ static void load_matrix4(unsigned *to, const void *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
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

/* The logits of a tile, scaled; query i of the block sees the first valid + i tokens of it. */
__device__ static void find_logits(struct shared *s, const uint16_t (*kv)[STRIDE], int valid, float scale)
{
	int warp = threadIdx.x / 32, lane = threadIdx.x % 32, query = warp / SHARE, first = warp % SHARE * OWN_TOKENS;
	float sum[2][4] = {};

	for (int k = 0; k < WIDTH / 16; k++) {
		unsigned a[4], b[4];

		load_matrix4(a, &s->q[HEADS * query + lane % 16][16 * k + lane / 16 * 8]);
		load_matrix4(b, &kv[first + lane / 16 * 8 + lane % 8][16 * k + lane / 8 % 2 * 8]);
		multiply_add(sum[0], a, b);
		multiply_add(sum[1], a, b + 2);
	}
	for (int j = 0; j < 2; j++)
		for (int i = 0; i < 4; i++) {
			int token = first + 8 * j + lane % 4 * 2 + i % 2;

			s->logits[HEADS * query + lane / 4 + i / 2 * 8][token] = token < valid + query ? sum[j][i] * scale : -INFINITY;
		}
}

/* From logits to weights, four threads a row. */
__device__ static void weigh(struct shared *s)
{
	int row = threadIdx.x / ROW_THREADS, at = threadIdx.x % ROW_THREADS;
	float old = s->max[row], max = old, sum = 0;

	for (int i = at; i < TOKENS; i += ROW_THREADS)
		max = fmaxf(max, s->logits[row][i]);
	for (int offset = ROW_THREADS / 2; offset > 0; offset /= 2)
		max = fmaxf(max, __shfl_xor_sync(~0u, max, offset));
	for (int i = at; i < TOKENS; i += ROW_THREADS) {
		float p = __expf(s->logits[row][i] - max);

		sum += p;
		s->p[row][i] = __float2bfloat16(p);
	}
	for (int offset = ROW_THREADS / 2; offset > 0; offset /= 2)
		sum += __shfl_xor_sync(~0u, sum, offset);
	if (at == 0) {
		s->old[row] = __expf(old - max);
		s->max[row] = max;
		s->sum[row] = s->sum[row] * s->old[row] + sum;
	}
}

__device__ static void add_values(const struct shared *s, const uint16_t (*kv)[STRIDE], float (*acc)[4])
{
	int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = HEADS * (warp / SHARE), column = OWN * (warp % SHARE);
	float low = s->old[row + lane / 4], high = s->old[row + lane / 4 + 8];

	for (int j = 0; j < COLUMNS; j++) {
		acc[j][0] *= low;
		acc[j][1] *= low;
		acc[j][2] *= high;
		acc[j][3] *= high;
	}
	for (int k = 0; k < TOKENS / 16; k++) {
		unsigned a[4], b[4];

		load_matrix4(a, &s->p[row + lane % 16][16 * k + lane / 16 * 8]);
		for (int j = 0; j < COLUMNS; j += 2) {
			load_matrix4_turned(b, &kv[16 * k + lane % 16][column + 8 * j + lane / 16 * 8]);
			multiply_add(acc[j], a, b);
			multiply_add(acc[j + 1], a, b + 2);
		}
	}
}

/* The sequence and first query of block `block`; false if there are no more queries. */
__device__ static bool find_queries(const struct km_args *a, int block, int *b, int *first)
{
	for (*b = 0; *b < a->len_indptr - 1; ++*b) {
		int blocks = (a->qo_indptr[*b + 1] - a->qo_indptr[*b] + QUERIES - 1) / QUERIES;

		if (block < blocks) {
			*first = a->qo_indptr[*b] + block * QUERIES;
			return true;
		}
		block -= blocks;
	}
	return false;
}

__device__ static void store(const struct km_args *a, const struct shared *s, const float (*acc)[4], int64_t first, int queries)
{
	int warp = threadIdx.x / 32, lane = threadIdx.x % 32, query = warp / SHARE;

	for (int half = 0; half < 2 && query < queries; half++) {
		int head = lane / 4 + 8 * half;
		int64_t row = (first + query) * HEADS + head;
		float max = s->max[HEADS * query + head], sum = s->sum[HEADS * query + head], scale = sum > 0 ? 1 / sum : 0;
		__nv_bfloat16 *to = (__nv_bfloat16 *)a->output + row * CKV + OWN * (warp % SHARE) + lane % 4 * 2;

		for (int j = 0; j < COLUMNS; j++)
			*(__nv_bfloat162 *)(to + 8 * j) = __floats2bfloat162_rn(acc[j][2 * half] * scale, acc[j][2 * half + 1] * scale);
		if (warp % SHARE == 0 && lane % 4 == 0)
			a->lse[row] = sum > 0 ? (max + logf(sum)) * 1.44269504f : -INFINITY;
	}
}

__global__ void __launch_bounds__(THREADS) attend(struct km_args a)
{
	extern __shared__ __align__(16) unsigned char memory[];
	struct shared *s = (struct shared *)memory;
	int b, first, queries, seen, last;
	const int32_t *index;
	float acc[COLUMNS][4] = {};

	if (!find_queries(&a, (int)(gridDim.x - 1 - blockIdx.x), &b, &first))
		return;
	queries = min(QUERIES, a.qo_indptr[b + 1] - first);
	index = a.kv_indices + a.kv_indptr[b];
	/* Tokens that the first query sees, which may be less than none, and the last one. */
	seen = a.kv_indptr[b + 1] - a.kv_indptr[b] - (a.qo_indptr[b + 1] - first) + 1;
	last = seen + queries - 1;
	for (int i = threadIdx.x; i < ROWS; i += THREADS) {
		s->max[i] = -1e30f;
		s->sum[i] = 0;
	}
	load_rows(s->q, ROWS, queries * HEADS, a.q_nope + (int64_t)first * HEADS * CKV, a.q_pe + (int64_t)first * HEADS * KPE, NULL);
	load_rows(s->kv[0], TOKENS, last, a.ckv_cache, a.kpe_cache, index);
	for (int t = 0, turn = 0; t < last; t += TOKENS, turn ^= 1) {
		load_rows(s->kv[turn ^ 1], TOKENS, last - t - TOKENS, a.ckv_cache, a.kpe_cache, index + t + TOKENS);
		copy_wait<1>();
		__syncthreads();
		find_logits(s, s->kv[turn], seen - t, a.sm_scale);
		__syncthreads();
		weigh(s);
		__syncthreads();
		add_values(s, s->kv[turn], acc);
		__syncthreads();
	}
	copy_wait<0>();
	__syncthreads();
	store(&a, s, acc, first, queries);
}

int km_init(const struct km_args *)
{
	return (int)cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(struct shared));
}

int km_run(const struct km_args *a)
{
	/* As many blocks as there can be, whatever the lengths. */
	unsigned blocks = (unsigned)(a->total_q / QUERIES + a->len_indptr - 1);

	attend<<<blocks, THREADS, sizeof(struct shared), (cudaStream_t)a->stream>>>(*a);
	return (int)cudaGetLastError();
}
