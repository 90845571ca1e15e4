/* Inputs and expected output of trimul. A row is one (b, i, j), and has dim elements.
 *
 * A line is a (b, i): the tokens (b, i, 0 .. S-1). A row needs L of the line (b, i) and R of the line (b, j). Few rows: those
 * two lines of each. Many rows, which ascend: L of all lines from the first row's to the last one's, R of all lines of their
 * batches. LayerNorm is in double precision; what goes into a product is rounded to float; sums of 32 products in float, and
 * the triangle's sums of 8, are added up in double precision. */
#include "task.h"
#include "reference_cuda.h"

enum {
	HIDDEN = KM_AXIS_HIDDEN_DIM, FEW = 64,
	TILE = 64, DEPTH = 32, SIDE = 16, OWN = TILE / SIDE, PAD = TILE + 4,
	ROWS = 4, RUN = 8, /* of the triangle: rows a block, products in float */
};

/* ---- inputs ----------------------------------------------------------------------------------------------------- */

__device__ static float normal(uint64_t seed, uint64_t i)
{
	return normcdfinvf(((float)(ref_random(seed, i) >> 42) + 0.5f) * 0x1p-22f);
}

__global__ void fill_normal(float *x, int64_t n, float size, uint64_t seed)
{
	for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
		x[i] = size * normal(seed, (uint64_t)i);
}

__global__ void fill_constant(float *x, int64_t n, float value)
{
	for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
		x[i] = value;
}

/* Cauchy with scale 2. */
__global__ void fill_cauchy(float *x, int64_t n, uint64_t seed)
{
	for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) {
		float u = ((float)(ref_random(seed, (uint64_t)i) >> 42) + 0.5f) * 0x1p-22f - 0.5f;

		x[i] = 2 * sinpif(u) / cospif(u);
	}
}

/* 0 or 1, evenly; if `lines`, one line of sixteen is all 0. */
__global__ void fill_mask(float *mask, int64_t n, int64_t length, bool lines, uint64_t seed)
{
	for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) {
		bool none = lines && ref_random(~seed, (uint64_t)(i / length)) % 16 == 0;

		mask[i] = none ? 0.0f : (float)(ref_random(seed, (uint64_t)i) >> 63);
	}
}

/* Of the public timed cases, which have heavy tails and which a random mask. */
static bool is_cauchy(const struct km_args *a)
{
	return a->batch_size == 1 && a->dim == 128 && a->seq_len >= 768;
}

static bool is_masked(const struct km_args *a)
{
	return a->dim == 384 && a->seq_len < 1024;
}

static void fill_weights(const struct km_args *a, bool centred, uint64_t seed, cudaStream_t s)
{
	int64_t n = a->dim * HIDDEN;
	const float *const gates[] = { a->left_proj_weight, a->right_proj_weight, a->left_gate_weight, a->right_gate_weight, a->out_gate_weight };

	for (uint64_t i = 0; i < 5; i++)
		fill_normal<<<256, 256, 0, s>>>((float *)gates[i], n, 1 / sqrtf((float)HIDDEN), ref_random(seed, i));
	fill_normal<<<256, 256, 0, s>>>((float *)a->to_out_weight, n, 1 / sqrtf((float)a->dim), ref_random(seed, 5));
	fill_normal<<<1, 256, 0, s>>>((float *)a->norm_weight, a->dim, 1, ref_random(seed, 6));
	fill_normal<<<1, 256, 0, s>>>((float *)a->norm_bias, a->dim, 1, ref_random(seed, 7));
	fill_normal<<<1, 256, 0, s>>>((float *)a->to_out_norm_weight, HIDDEN, 1, ref_random(seed, 8));
	fill_normal<<<1, 256, 0, s>>>((float *)a->to_out_norm_bias, HIDDEN, 1, ref_random(seed, 9));
	if (!centred)
		return;
	fill_constant<<<1, 256, 0, s>>>((float *)a->norm_bias, a->dim, 0);
	fill_constant<<<1, 256, 0, s>>>((float *)a->to_out_norm_weight, HIDDEN, 1);
	fill_constant<<<1, 256, 0, s>>>((float *)a->to_out_norm_bias, HIDDEN, 0);
}

/* Set normal is the public case. Centred sets have no biases: in the others these hide what is wrong with the triangle. */
int ref_inputs(const struct km_args *a, int set, uint64_t seed, void *stream)
{
	cudaStream_t s = (cudaStream_t)stream;
	int64_t tokens = a->batch_size * a->seq_len * a->seq_len;
	bool masked = set == REF_NORMAL ? is_masked(a) : set == REF_ROW_SCALED ? !is_masked(a) : set != REF_STUDENT_T3;

	fill_weights(a, set == REF_SHIFTED || set == REF_STUDENT_T3, ref_random(seed, 1), s);
	if (set == REF_STUDENT_T3 || (set == REF_NORMAL && is_cauchy(a)))
		fill_cauchy<<<4096, 256, 0, s>>>((float *)a->x, tokens * a->dim, ref_random(seed, 2));
	if (masked)
		fill_mask<<<1024, 256, 0, s>>>((float *)a->mask, tokens, a->seq_len, set == REF_SHIFTED, ref_random(seed, 3));
	else
		fill_constant<<<1024, 256, 0, s>>>((float *)a->mask, tokens, 1);
	return (int)cudaGetLastError();
}

/* ---- lines ------------------------------------------------------------------------------------------------------ */

/* Which lines have L and R: of every row of the list, or a range of lines each. */
struct plan {
	const int64_t *rows;
	int64_t count, length; /* length: of a line */
	bool few;
	int64_t first[2], lines[2]; /* L, R; few: lines is count */
};

/* Side 0: the line (b, i) of a row, side 1: (b, j). */
__device__ static int64_t line_of_row(const struct plan *p, int64_t r, int side)
{
	int64_t row = p->rows[r], s = p->length;

	return side == 0 ? row / s : row / (s * s) * s + row % s;
}

/* The line number n of a side. */
__device__ static int64_t line_id(const struct plan *p, int side, int64_t n)
{
	return p->few ? line_of_row(p, n, side) : p->first[side] + n;
}

/* The number, on a side, of a row's line. */
__device__ static int64_t line_number(const struct plan *p, int side, int64_t r)
{
	return p->few ? r : line_of_row(p, r, side) - p->first[side];
}

struct statistics {
	double mean, scale;
};

/* One warp a token of a side's lines. */
__global__ void find_statistics(struct km_args a, struct plan p, int side, struct statistics *out)
{
	int64_t at = blockIdx.x * (int64_t)(blockDim.x / 32) + threadIdx.x / 32;
	int lane = threadIdx.x % 32;
	const float *x;
	double sum = 0, square = 0, mean;

	if (at >= p.lines[side] * p.length)
		return;
	x = a.x + (line_id(&p, side, at / p.length) * p.length + at % p.length) * a.dim;
	for (int64_t d = lane; d < a.dim; d += 32)
		sum += (double)x[d];
	for (int offset = 16; offset > 0; offset /= 2)
		sum += __shfl_xor_sync(~0u, sum, offset);
	mean = sum / (double)a.dim;
	for (int64_t d = lane; d < a.dim; d += 32)
		square += ((double)x[d] - mean) * ((double)x[d] - mean);
	for (int offset = 16; offset > 0; offset /= 2)
		square += __shfl_xor_sync(~0u, square, offset);
	if (lane == 0) {
		out[at].mean = mean;
		out[at].scale = 1 / sqrt(square / (double)a.dim + 1e-5);
	}
}

/* ---- products --------------------------------------------------------------------------------------------------- */

__device__ static double sigmoid(double x)
{
	return 1 / (1 + exp(-x));
}

__device__ static float normalised(const struct km_args *a, int64_t token, int64_t d, const struct statistics *s)
{
	return (float)(((double)a->x[token * a->dim + d] - s->mean) * s->scale * (double)a->norm_weight[d] + (double)a->norm_bias[d]);
}

enum product { PROJECT, GATE, OUT };

/* What a product reads and writes. */
struct work {
	struct plan plan;
	int side;                           /* PROJECT */
	const struct statistics *statistics; /* of the side's lines, for GATE of side 0 */
	const float *z;                     /* OUT: count x HIDDEN */
	float *to;                          /* PROJECT: L or R of all tokens; GATE: count x HIDDEN */
	double *output;                     /* OUT */
	int64_t m;                          /* rows of the product */
};

/* Element k of row m of the left side. */
template <int KIND> __device__ static float left_element(const struct km_args *a, const struct work *w, int64_t m, int64_t k)
{
	const struct plan *p = &w->plan;

	if (KIND == OUT)
		return w->z[m * HIDDEN + k];
	if (KIND == PROJECT)
		return normalised(a, line_id(p, w->side, m / p->length) * p->length + m % p->length, k, &w->statistics[m]);
	return normalised(a, p->rows[m], k, &w->statistics[line_number(p, 0, m) * p->length + p->rows[m] % p->length]);
}

/* Element k of column c of a tile that begins with column n0: of PROJECT in turn two of the projection and two of the gate. */
template <int KIND> __device__ static float right_element(const struct km_args *a, const struct work *w, int64_t n0, int c, int64_t k)
{
	if (KIND == OUT)
		return a->to_out_weight[(n0 + c) * HIDDEN + k];
	if (KIND == GATE)
		return a->out_gate_weight[(n0 + c) * a->dim + k];
	n0 = n0 / 2 + c / 4 * 2 + c % 2;
	if (c % 4 < 2)
		return (w->side == 0 ? a->left_proj_weight : a->right_proj_weight)[n0 * a->dim + k];
	return (w->side == 0 ? a->left_gate_weight : a->right_gate_weight)[n0 * a->dim + k];
}

template <int KIND> __device__ static void store(const struct km_args *a, const struct work *w, int64_t m, int64_t n0, int x, const double *sum)
{
	const struct plan *p = &w->plan;

	if (KIND == OUT)
		for (int j = 0; j < OWN; j++)
			w->output[m * a->dim + n0 + x * OWN + j] = sum[j];
	if (KIND == GATE)
		for (int j = 0; j < OWN; j++)
			w->to[m * HIDDEN + n0 + x * OWN + j] = (float)sigmoid(sum[j]);
	if (KIND == PROJECT) {
		double mask = (double)a->mask[line_id(p, w->side, m / p->length) * p->length + m % p->length];

		for (int j = 0; j < OWN / 2; j++)
			w->to[m * HIDDEN + n0 / 2 + x * 2 + j] = (float)(sum[j] * mask * sigmoid(sum[j + 2]));
	}
}

/* A tile of 64 x 64, 4 x 4 elements a thread. Block (tile of columns, tile of rows). */
template <int KIND> __global__ void __launch_bounds__(SIDE * SIDE) multiply(struct km_args a, struct work w)
{
	__shared__ __align__(16) float left[DEPTH][PAD], right[DEPTH][PAD];
	int64_t n0 = blockIdx.x * (int64_t)TILE, first = blockIdx.y * (int64_t)TILE, depth = KIND == OUT ? (int64_t)HIDDEN : a.dim;
	int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
	double sum[OWN][OWN] = {};

	for (int64_t k = 0; k < depth; k += DEPTH) {
		float part[OWN][OWN] = {};

		for (int i = threadIdx.x; i < TILE * DEPTH; i += SIDE * SIDE) {
			int r = i / DEPTH, at = i % DEPTH;

			left[at][r] = left_element<KIND>(&a, &w, first + r < w.m ? first + r : first, k + at);
			right[at][r] = right_element<KIND>(&a, &w, n0, r, k + at);
		}
		__syncthreads();
		for (int at = 0; at < DEPTH; at++) {
			float4 l = *(const float4 *)&left[at][y * OWN], r = *(const float4 *)&right[at][x * OWN];
			float ls[OWN] = { l.x, l.y, l.z, l.w }, rs[OWN] = { r.x, r.y, r.z, r.w };

			for (int i = 0; i < OWN; i++)
				for (int j = 0; j < OWN; j++)
					part[i][j] = fmaf(ls[i], rs[j], part[i][j]);
		}
		__syncthreads();
		for (int i = 0; i < OWN; i++)
			for (int j = 0; j < OWN; j++)
				sum[i][j] += (double)part[i][j];
	}
	for (int i = 0; i < OWN; i++)
		if (first + y * OWN + i < w.m)
			store<KIND>(&a, &w, first + y * OWN + i, n0, x, sum[i]);
}

/* ---- the triangle ----------------------------------------------------------------------------------------------- */

/* The sum of one number of each of the block's HIDDEN threads. */
__device__ static double block_sum(double x)
{
	__shared__ double sums[HIDDEN / 32];
	double sum = 0;

	for (int offset = 16; offset > 0; offset /= 2)
		x += __shfl_xor_sync(~0u, x, offset);
	__syncthreads();
	if (threadIdx.x % 32 == 0)
		sums[threadIdx.x / 32] = x;
	__syncthreads();
	for (int i = 0; i < HIDDEN / 32; i++)
		sum += sums[i];
	return sum;
}

/* z = LayerNorm(o) * g for four rows a block, one thread a hidden element; z replaces g. */
__global__ void __launch_bounds__(HIDDEN) triangle(struct km_args a, struct plan p, const float *left, const float *right, float *g)
{
	int64_t first = blockIdx.x * (int64_t)ROWS;
	int h = threadIdx.x;
	const float *l[ROWS], *r[ROWS];
	double o[ROWS] = {};

	for (int i = 0; i < ROWS; i++) {
		int64_t row = first + i < p.count ? first + i : first;

		l[i] = left + line_number(&p, 0, row) * p.length * HIDDEN + h;
		r[i] = right + line_number(&p, 1, row) * p.length * HIDDEN + h;
	}
	for (int64_t k = 0; k < p.length; k += RUN)
		for (int i = 0; i < ROWS; i++) {
			float part = 0;

			for (int j = 0; j < RUN; j++)
				part = fmaf(l[i][(k + j) * HIDDEN], r[i][(k + j) * HIDDEN], part);
			o[i] += (double)part;
		}
	for (int i = 0; i < ROWS; i++) {
		double centred = o[i] - block_sum(o[i]) / HIDDEN, scale = 1 / sqrt(block_sum(centred * centred) / HIDDEN + 1e-5);
		double z = centred * scale * (double)a.to_out_norm_weight[h] + (double)a.to_out_norm_bias[h];

		if (first + i < p.count)
			g[(first + i) * HIDDEN + h] = (float)(z * (double)g[(first + i) * HIDDEN + h]);
	}
}

/* ---- expected output ---------------------------------------------------------------------------------------------- */

enum { KEEP_STATISTICS, KEEP_LEFT, KEEP_RIGHT, KEEP_GATE, KEPT_BUFFERS };

/* Scratch memory that is kept, and grows. */
static int scratch(int which, size_t bytes, void *memory)
{
	static void *kept[KEPT_BUFFERS];
	static size_t room[KEPT_BUFFERS];
	cudaError_t result = cudaSuccess;

	if (bytes > room[which]) {
		result = cudaFree(kept[which]);
		kept[which] = NULL;
		room[which] = 0;
		if (result == cudaSuccess)
			result = cudaMalloc(&kept[which], bytes);
		if (result == cudaSuccess)
			room[which] = bytes;
	}
	*(void **)memory = kept[which];
	return (int)result;
}

/* For many rows, waits for the first and the last row's number. */
static int make_plan(const struct km_args *a, const int64_t *rows, int64_t count, cudaStream_t stream, struct plan *p)
{
	int64_t s = a->seq_len, ends[2];
	int result;

	*p = { rows, count, s, count <= FEW, { 0, 0 }, { count, count } };
	if (p->few)
		return 0;
	result = (int)cudaMemcpyAsync(&ends[0], rows, sizeof(*ends), cudaMemcpyDeviceToHost, stream);
	if (result == 0)
		result = (int)cudaMemcpyAsync(&ends[1], rows + count - 1, sizeof(*ends), cudaMemcpyDeviceToHost, stream);
	if (result == 0)
		result = (int)cudaStreamSynchronize(stream);
	if (result != 0)
		return result;
	p->first[0] = ends[0] / s;
	p->lines[0] = ends[1] / s - p->first[0] + 1;
	p->first[1] = ends[0] / (s * s) * s;
	p->lines[1] = (ends[1] / (s * s) + 1) * s - p->first[1];
	return 0;
}

static unsigned tiles(int64_t n)
{
	return (unsigned)((n + TILE - 1) / TILE);
}

/* L or R of its lines. */
static int compute_side(const struct km_args *a, const struct plan *p, int side, struct statistics *statistics, float **to, cudaStream_t stream)
{
	int64_t tokens = p->lines[side] * p->length, step = 65535 * (int64_t)TILE;
	int result = scratch(side == 0 ? KEEP_LEFT : KEEP_RIGHT, sizeof(float) * (size_t)tokens * HIDDEN, to);
	struct work w = { *p, side, statistics, NULL, *to, NULL, tokens };

	if (result != 0 || tokens > step)
		return result ? result : (int)cudaErrorInvalidValue;
	find_statistics<<<(unsigned)((tokens + 7) / 8), 256, 0, stream>>>(*a, *p, side, statistics);
	multiply<PROJECT><<<dim3(2 * HIDDEN / TILE, tiles(tokens)), SIDE * SIDE, 0, stream>>>(*a, w);
	return (int)cudaGetLastError();
}

int64_t ref_rows(const struct km_args *a)
{
	return a->batch_size * a->seq_len * a->seq_len;
}

int ref_expected(const struct km_args *a, const int64_t *rows, int64_t count, double *const *expected, void *stream)
{
	cudaStream_t s = (cudaStream_t)stream;
	struct statistics *statistics;
	float *left, *right, *gate;
	struct plan p;
	struct work w;
	int64_t most;
	int result = make_plan(a, rows, count, s, &p);

	if (result != 0)
		return result;
	most = p.lines[0] > p.lines[1] ? p.lines[0] : p.lines[1];
	result = scratch(KEEP_STATISTICS, sizeof(*statistics) * (size_t)(most * p.length), &statistics);
	if (result == 0)
		result = scratch(KEEP_GATE, sizeof(float) * (size_t)count * HIDDEN, &gate);
	if (result == 0)
		result = compute_side(a, &p, 1, statistics, &right, s);
	if (result == 0)
		result = compute_side(a, &p, 0, statistics, &left, s);
	if (result != 0)
		return result;
	w = { p, 0, statistics, gate, gate, expected[0], count };
	/* A row's own token is on its line (b, i), whose statistics these are. */
	multiply<GATE><<<dim3(HIDDEN / TILE, tiles(count)), SIDE * SIDE, 0, s>>>(*a, w);
	triangle<<<(unsigned)((count + ROWS - 1) / ROWS), HIDDEN, 0, s>>>(*a, p, left, right, gate);
	multiply<OUT><<<dim3((unsigned)(a->dim / TILE), tiles(count)), SIDE * SIDE, 0, s>>>(*a, w);
	return (int)cudaGetLastError();
}

void ref_counts(const struct km_args *a, double *flops, double *bytes)
{
	double tokens = (double)(a->batch_size * a->seq_len * a->seq_len), dim = (double)a->dim;

	*flops = tokens * (2 * dim * 6 * HIDDEN + 2.0 * (double)a->seq_len * HIDDEN);
	*bytes = sizeof(float) * (tokens * (2 * dim + 1) + 6 * HIDDEN * dim);
}
