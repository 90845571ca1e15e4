/* Inputs and expected outputs of mla_paged_prefill_causal_h16_ckv512_kpe64_ps1. A row is one head of one query.
 *
 * Few rows: the tokens of each are cut into chunks, one block each; four warps of a block take every fourth token and keep a
 * running softmax in double precision; their parts, and then those of the chunks, are joined in ascending order.
 *
 * Many rows: a block takes 32 of them through tiles of 32 tokens. Inputs are exact in float, and products of two of them nearly
 * so; sums of 32 in float are added up in double precision, which is a hundred times better than the tolerance asks for. */
#include "task.h"
#include "reference_cuda.h"

#include <cuda_bf16.h>

enum {
	HEADS = KM_AXIS_NUM_QO_HEADS, CKV = KM_AXIS_HEAD_DIM_CKV, KPE = KM_AXIS_HEAD_DIM_KPE, WIDTH = CKV + KPE, WARPS = 4,
	LANE_CKV = CKV / 32, LANE_KPE = KPE / 32,
	FEW = 512, CHUNKS = 64,
	/* of the kernel for many rows */
	TILE = 32, STRIDE = WIDTH + 4, THREADS = 512, OWN_ROWS = 4, OWN_COLUMNS = CKV * TILE / OWN_ROWS / THREADS, COLUMN_STEP = CKV / OWN_COLUMNS,
};

/* ---- inputs ----------------------------------------------------------------------------------------------------- */

/* Distribute `total` over the sequences, one[0] to one[batch - 1], uniform within 30 % of the mean; but sequence `big` gets 90 %. */
__device__ static void share(int32_t *one, int64_t batch, int64_t total, int64_t big, uint64_t seed)
{
	int64_t weights = 0, given = 0, before = 0;

	for (int64_t b = 0; b < batch; b++)
		if (b != big)
			weights += 700 + (int64_t)ref_below(seed, (uint64_t)b, 601);
	for (int64_t b = 0; b < batch; b++) {
		given += b == big ? 9 * weights : 700 + (int64_t)ref_below(seed, (uint64_t)b, 601);
		one[b] = (int32_t)(total * given / (big >= 0 ? 10 * weights : weights) - before);
		before += one[b];
	}
}

/* The lengths of the sequences, as qo_indptr and kv_indptr. Each has a query at least and no fewer keys than queries, but
 * set "shifted" has a sequence without queries, and set "structured" one that holds 90 % and, from three sequences on, one that
 * has queries and no keys. One thread. */
__global__ void fill_indptr(int32_t *qo, int32_t *kv, int64_t batch, int64_t queries, int64_t keys, int set, uint64_t seed)
{
	int64_t big = set == REF_STRUCTURED && batch > 1 ? (int64_t)ref_below(seed, 1, (uint64_t)batch) : -1, empty = -1;

	if ((set == REF_SHIFTED && batch > 1) || (set == REF_STRUCTURED && batch > 2))
		empty = (int64_t)ref_below(seed, 2, (uint64_t)batch);
	if (empty >= 0 && empty == big)
		empty = (big + 1) % batch;
	qo[0] = kv[0] = 0;
	share(qo + 1, batch, queries - batch, big, ref_random(seed, 3));
	share(kv + 1, batch, keys - queries, big, ref_random(seed, 4));
	for (int64_t b = 1; b <= batch; b++)
		qo[b]++;
	if (set == REF_SHIFTED && empty >= 0) {
		qo[1 + (empty + 1) % batch] += qo[1 + empty];
		qo[1 + empty] = 0;
	}
	for (int64_t b = 1; b <= batch; b++)
		kv[b] += qo[b];
	if (set == REF_STRUCTURED && empty >= 0) {
		kv[1 + big] += kv[1 + empty];
		kv[1 + empty] = 0;
	}
	for (int64_t b = 1; b <= batch; b++) {
		qo[b] += qo[b - 1];
		kv[b] += kv[b - 1];
	}
}

/* The place of i in a random permutation of 0 .. n-1: a Feistel network of six rounds on the next even number of bits, taken
 * again until the result is below n. */
__device__ static int64_t permuted(int64_t i, int64_t n, uint64_t seed)
{
	int half = 1;
	uint64_t x = (uint64_t)i;

	while ((int64_t)1 << (2 * half) < n)
		half++;
	do
		for (uint64_t round = 0; round < 6; round++) {
			uint64_t mask = ((uint64_t)1 << half) - 1, left = x >> half, right = x & mask;

			x = right << half | (left ^ ((ref_random(seed + round, right) >> 20) & mask));
		}
	while ((int64_t)x >= n);
	return (int64_t)x;
}

__global__ void fill_indices(int32_t *indices, int64_t n, int64_t pages, uint64_t seed)
{
	int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;

	if (i < n)
		indices[i] = (int32_t)permuted(i, pages, seed);
}

int ref_inputs(const struct km_args *a, int set, uint64_t seed, void *stream)
{
	cudaStream_t s = (cudaStream_t)stream;

	fill_indptr<<<1, 1, 0, s>>>((int32_t *)a->qo_indptr, (int32_t *)a->kv_indptr, a->len_indptr - 1, a->total_q, a->num_kv_indices, set,
				    ref_random(seed, 1));
	fill_indices<<<(unsigned)((a->num_kv_indices + 255) / 256), 256, 0, s>>>((int32_t *)a->kv_indices, a->num_kv_indices,
										  a->num_pages, ref_random(seed, 2));
	return (int)cudaGetLastError();
}

/* ---- few rows --------------------------------------------------------------------------------------------------- */

/* The sequence of a query, and how many of its tokens the query sees. */
__device__ static int find_sequence(const struct km_args *a, int64_t query, int64_t *seen)
{
	int b = 0;

	while (query >= a->qo_indptr[b + 1])
		b++;
	*seen = a->kv_indptr[b + 1] - a->kv_indptr[b] - (a->qo_indptr[b + 1] - query) + 1;
	*seen = *seen > 0 ? *seen : 0;
	return b;
}

/* Of some tokens: the largest logit, sum of exp(logit - max), and that sum weighted with ckv. */
struct part {
	double max, sum, v[CKV];
};

__device__ static double value(const uint16_t *x, int64_t i)
{
	return (double)__bfloat162float(((const __nv_bfloat16 *)x)[i]);
}

/* Element d of `count` parts, joined in order, and their max and sum. */
__device__ static double join(const struct part *parts, int count, int d, double *max, double *sum)
{
	double v = 0;

	*max = -INFINITY;
	*sum = 0;
	for (int i = 0; i < count; i++)
		*max = fmax(*max, parts[i].max);
	for (int i = 0; i < count; i++) {
		double weight = parts[i].sum > 0 ? exp(parts[i].max - *max) : 0;

		*sum += weight * parts[i].sum;
		v += weight * parts[i].v[d];
	}
	return v;
}

__global__ void __launch_bounds__(32 * WARPS) attend(struct km_args a, const int64_t *rows, struct part *parts)
{
	__shared__ struct part own[WARPS];
	int64_t row = rows[blockIdx.x], length, from = a.kv_indptr[find_sequence(&a, row / HEADS, &length)];
	int64_t first = from + length * blockIdx.y / gridDim.y, last = from + length * (blockIdx.y + 1) / gridDim.y;
	int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
	struct part *to = &parts[blockIdx.x * (int64_t)gridDim.y + blockIdx.y];
	double q[LANE_CKV], q_pe[LANE_KPE], v[LANE_CKV] = {}, max = -INFINITY, sum = 0;

	for (int i = 0; i < LANE_CKV; i++)
		q[i] = value(a.q_nope, row * CKV + 32 * i + lane);
	for (int i = 0; i < LANE_KPE; i++)
		q_pe[i] = value(a.q_pe, row * KPE + 32 * i + lane);
	for (int64_t t = first + warp; t < last; t += WARPS) {
		int64_t page = a.kv_indices[t];
		double ckv[LANE_CKV], s = 0, p, old = 1;

		for (int i = 0; i < LANE_CKV; i++) {
			ckv[i] = value(a.ckv_cache, page * CKV + 32 * i + lane);
			s += q[i] * ckv[i];
		}
		for (int i = 0; i < LANE_KPE; i++)
			s += q_pe[i] * value(a.kpe_cache, page * KPE + 32 * i + lane);
		for (int offset = 16; offset > 0; offset /= 2)
			s += __shfl_xor_sync(~0u, s, offset);
		s *= (double)a.sm_scale;
		if (s > max) {
			old = exp(max - s);
			max = s;
		}
		p = exp(s - max);
		sum = sum * old + p;
		for (int i = 0; i < LANE_CKV; i++)
			v[i] = v[i] * old + p * ckv[i];
	}
	own[warp].max = max;
	own[warp].sum = sum;
	for (int i = 0; i < LANE_CKV; i++)
		own[warp].v[32 * i + lane] = v[i];
	__syncthreads();
	for (int d = (int)threadIdx.x; d < CKV; d += 32 * WARPS)
		to->v[d] = join(own, WARPS, d, &max, &sum);
	if (threadIdx.x == 0) {
		to->max = max;
		to->sum = sum;
	}
}

__global__ void finish(const struct part *parts, int chunks, double *output, double *lse)
{
	double max, sum, v = join(parts + blockIdx.x * (int64_t)chunks, chunks, (int)threadIdx.x, &max, &sum);

	output[blockIdx.x * (int64_t)CKV + threadIdx.x] = sum > 0 ? v / sum : 0;
	if (threadIdx.x == 0)
		lse[blockIdx.x] = sum > 0 ? (max + log(sum)) / 0.69314718055994530942 : -INFINITY;
}

/* ---- many rows -------------------------------------------------------------------------------------------------- */

struct tile {
	float q[TILE][STRIDE], kv[TILE][STRIDE], p[TILE][TILE];
	double logits[TILE][TILE + 1], max[TILE], sum[TILE], old[TILE];
	int64_t seen[TILE];
	int sequence[TILE];
};

__device__ static void load_row(float *to, const uint16_t *ckv, const uint16_t *kpe)
{
	for (int i = threadIdx.x % 32; i < WIDTH; i += 32)
		to[i] = (float)(i < CKV ? value(ckv, i) : value(kpe, i - CKV));
}

/* Logits of a tile of tokens that begins at token t of sequence b. */
__device__ static void find_logits(struct tile *s, int b, int64_t t, double scale)
{
	int row = threadIdx.x / 16, x = threadIdx.x % 16;
	double sum[2] = {};

	for (int k = 0; k < WIDTH; k += 32) {
		float part[2] = {};

		for (int i = k; i < k + 32; i += 4) {
			float4 q = *(const float4 *)&s->q[row][i];

			for (int j = 0; j < 2; j++) {
				float4 kv = *(const float4 *)&s->kv[x + 16 * j][i];

				part[j] = fmaf(q.w, kv.w, fmaf(q.z, kv.z, fmaf(q.y, kv.y, fmaf(q.x, kv.x, part[j]))));
			}
		}
		for (int j = 0; j < 2; j++)
			sum[j] += (double)part[j];
	}
	for (int j = 0; j < 2; j++)
		s->logits[row][x + 16 * j] = s->sequence[row] == b && t + x + 16 * j < s->seen[row] ? sum[j] * scale : -INFINITY;
}

/* From logits to weights, one warp a row. */
__device__ static void weigh(struct tile *s)
{
	int lane = threadIdx.x % 32;

	for (int row = threadIdx.x / 32; row < TILE; row += THREADS / 32) {
		double x = s->logits[row][lane], old = s->max[row], max = x, p, sum;

		for (int offset = 16; offset > 0; offset /= 2)
			max = fmax(max, __shfl_xor_sync(~0u, max, offset));
		max = fmax(max, old);
		p = x > -INFINITY ? exp(x - max) : 0;
		sum = p;
		for (int offset = 16; offset > 0; offset /= 2)
			sum += __shfl_xor_sync(~0u, sum, offset);
		s->p[row][lane] = (float)p;
		if (lane == 0) {
			s->old[row] = old > -INFINITY ? exp(old - max) : 0;
			s->max[row] = max;
			s->sum[row] = s->sum[row] * s->old[row] + sum;
		}
	}
}

__device__ static void add_values(const struct tile *s, double (*acc)[OWN_COLUMNS])
{
	int row = threadIdx.x / COLUMN_STEP * OWN_ROWS, column = threadIdx.x % COLUMN_STEP;
	float part[OWN_ROWS][OWN_COLUMNS] = {};

	for (int t = 0; t < TILE; t++)
		for (int j = 0; j < OWN_COLUMNS; j++) {
			float v = s->kv[t][column + COLUMN_STEP * j];

			for (int i = 0; i < OWN_ROWS; i++)
				part[i][j] = fmaf(s->p[row + i][t], v, part[i][j]);
		}
	for (int i = 0; i < OWN_ROWS; i++)
		for (int j = 0; j < OWN_COLUMNS; j++)
			acc[i][j] = acc[i][j] * s->old[row + i] + (double)part[i][j];
}

__global__ void __launch_bounds__(THREADS) attend_many(struct km_args a, const int64_t *rows, int64_t count, double *output, double *lse)
{
	extern __shared__ __align__(16) unsigned char memory[];
	struct tile *s = (struct tile *)memory;
	int64_t first = blockIdx.x * (int64_t)TILE, have = count - first < TILE ? count - first : TILE;
	int warp = threadIdx.x / 32, own = threadIdx.x / COLUMN_STEP * OWN_ROWS, column = threadIdx.x % COLUMN_STEP;
	double acc[OWN_ROWS][OWN_COLUMNS] = {};

	for (int i = warp; i < TILE; i += THREADS / 32) {
		int64_t row = rows[first + (i < have ? i : 0)];

		load_row(s->q[i], a.q_nope + row * CKV, a.q_pe + row * KPE);
		s->sequence[i] = find_sequence(&a, row / HEADS, &s->seen[i]);
		s->max[i] = -INFINITY;
		s->sum[i] = 0;
	}
	__syncthreads();
	/* Rows ascend, and so do their sequences. */
	for (int b = s->sequence[0]; b <= s->sequence[have - 1]; b++) {
		int64_t most = 0;

		for (int i = 0; i < have; i++)
			if (s->sequence[i] == b && s->seen[i] > most)
				most = s->seen[i];
		for (int64_t t = 0; t < most; t += TILE) {
			for (int i = warp; i < TILE; i += THREADS / 32) {
				int64_t page = a.kv_indices[a.kv_indptr[b] + (t + i < most ? t + i : 0)];

				load_row(s->kv[i], a.ckv_cache + page * CKV, a.kpe_cache + page * KPE);
			}
			__syncthreads();
			find_logits(s, b, t, (double)a.sm_scale);
			__syncthreads();
			weigh(s);
			__syncthreads();
			add_values(s, acc);
			__syncthreads();
		}
	}
	for (int i = 0; i < OWN_ROWS && own + i < have; i++) {
		double sum = s->sum[own + i];

		for (int j = 0; j < OWN_COLUMNS; j++)
			output[(first + own + i) * CKV + column + COLUMN_STEP * j] = sum > 0 ? acc[i][j] / sum : 0;
		if (column == 0)
			lse[first + own + i] = sum > 0 ? (s->max[own + i] + log(sum)) / 0.69314718055994530942 : -INFINITY;
	}
}

/* ---- expected outputs ------------------------------------------------------------------------------------------- */

/* Scratch memory that is made once. */
static int scratch(void **memory)
{
	static void *kept;
	cudaError_t result = kept ? cudaSuccess : cudaMalloc(&kept, (size_t)FEW * CHUNKS * sizeof(struct part));

	*memory = kept;
	return (int)result;
}

int64_t ref_rows(const struct km_args *a)
{
	return a->total_q * HEADS;
}

static int compute_few(const struct km_args *a, const int64_t *rows, int64_t count, double *const *expected, cudaStream_t stream)
{
	void *parts;
	int result = scratch(&parts);

	if (result != 0)
		return result;
	attend<<<dim3((unsigned)count, CHUNKS), 32 * WARPS, 0, stream>>>(*a, rows, (struct part *)parts);
	finish<<<(unsigned)count, CKV, 0, stream>>>((const struct part *)parts, CHUNKS, expected[0], expected[1]);
	return (int)cudaGetLastError();
}

int ref_expected(const struct km_args *a, const int64_t *rows, int64_t count, double *const *expected, void *stream)
{
	cudaError_t result;

	if (count <= FEW)
		return compute_few(a, rows, count, expected, (cudaStream_t)stream);
	result = cudaFuncSetAttribute(attend_many, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(struct tile));
	if (result != cudaSuccess)
		return (int)result;
	attend_many<<<(unsigned)((count + TILE - 1) / TILE), THREADS, sizeof(struct tile), (cudaStream_t)stream>>>(*a, rows, count, expected[0],
														     expected[1]);
	return (int)cudaGetLastError();
}

/* Pairs of query and token: as if the queries were spread evenly and each sequence's last ones saw all its tokens. */
void ref_counts(const struct km_args *a, double *flops, double *bytes)
{
	double batch = (double)(a->len_indptr - 1), queries = (double)a->total_q / batch, keys = (double)a->num_kv_indices / batch;
	double pairs = batch * queries * (keys - (queries - 1) / 2), rows = (double)(a->total_q * HEADS);

	*flops = pairs * HEADS * (2.0 * (CKV + KPE) + 2.0 * CKV + 4);
	*bytes = sizeof(__nv_bfloat16) * ((double)a->num_kv_indices * (CKV + KPE) + rows * (2 * CKV + KPE)) + sizeof(float) * rows +
		 sizeof(int32_t) * ((double)a->num_kv_indices + 2 * (double)a->len_indptr);
}
