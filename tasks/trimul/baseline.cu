/* LayerNorm to halves; one product for both projections, both gates and the output gate, activated on its way out; a batched
 * product for the triangle, one matrix of S x S for each hidden element; LayerNorm and gate; the last product. All products by
 * one kernel: tiles of 128 x 128 by cp.async and mma.sync, halves with float sums. */
#include "task.h"
#include <cuda_fp16.h>

enum {
	HIDDEN = KM_AXIS_HIDDEN_DIM, BM = 128, BN = 128, BK = 32, WARPS_M = 2, WARPS_N = 4, THREADS = 256, STAGES = 3,
	ROWS = BM / WARPS_M / 16, COLUMNS = BN / WARPS_N / 8, TURNED = BM + 8,
	OUTPUTS = 5 * HIDDEN, /* columns of the first product: left projection and gate, right ones, output gate */
};

/* Where everything lies in the workspace. The last product's input takes the place of the normalised x. */
struct layout {
	size_t xn, weights, to_out, left, right, gate, o, bytes;
};

static size_t align(size_t n)
{
	return (n + 255) / 256 * 256;
}

static struct layout lay_out(const struct km_args *a)
{
	size_t tokens = (size_t)(a->batch_size * a->seq_len * a->seq_len), dim = (size_t)a->dim;
	struct layout l;

	l.xn = 0;
	l.weights = align(sizeof(__half) * tokens * dim);
	l.to_out = l.weights + align(sizeof(__half) * OUTPUTS * dim);
	l.left = l.to_out + align(sizeof(__half) * HIDDEN * dim);
	l.right = l.left + align(sizeof(__half) * tokens * HIDDEN);
	l.gate = l.right + align(sizeof(__half) * tokens * HIDDEN);
	l.o = l.gate + align(sizeof(__half) * tokens * HIDDEN);
	l.bytes = l.o + align(sizeof(float) * tokens * HIDDEN);
	return l;
}

/* ---- what is not a product ---------------------------------------------------------------------------------------- */

__device__ static float warp_sum(float x)
{
	for (int offset = 16; offset > 0; offset /= 2)
		x += __shfl_xor_sync(~0u, x, offset);
	return x;
}

/* Rows of `to` in the order of the first product: of 32, sixteen of a projection and the same of its gate. */
__global__ void convert_weights(struct km_args a, __half *to, __half *to_out)
{
	int row = blockIdx.x, part = row / (2 * HIDDEN), at = row % (2 * HIDDEN), h = at / 32 * 16 + at % 16;
	const float *left = at % 32 < 16 ? a.left_proj_weight : a.left_gate_weight, *right = at % 32 < 16 ? a.right_proj_weight : a.right_gate_weight;
	const float *from = part == 0 ? left + h * a.dim : part == 1 ? right + h * a.dim : a.out_gate_weight + at * a.dim;

	for (int64_t d = threadIdx.x; d < a.dim; d += blockDim.x)
		to[row * a.dim + d] = __float2half(from[d]);
	for (int64_t i = row * (int64_t)blockDim.x + threadIdx.x; i < HIDDEN * a.dim; i += gridDim.x * (int64_t)blockDim.x)
		to_out[i] = __float2half(a.to_out_weight[i]);
}

/* One warp a token. */
__global__ void normalise(struct km_args a, int64_t tokens, __half *to)
{
	int64_t token = blockIdx.x * (int64_t)(blockDim.x / 32) + threadIdx.x / 32;
	const float4 *x = (const float4 *)(a.x + token * a.dim), *weight = (const float4 *)a.norm_weight, *bias = (const float4 *)a.norm_bias;
	float sum = 0, square = 0, mean, scale;

	if (token >= tokens)
		return;
	for (int64_t d = threadIdx.x % 32; d < a.dim / 4; d += 32)
		sum += (x[d].x + x[d].y) + (x[d].z + x[d].w);
	mean = warp_sum(sum) / (float)a.dim;
	for (int64_t d = threadIdx.x % 32; d < a.dim / 4; d += 32) {
		float4 c = make_float4(x[d].x - mean, x[d].y - mean, x[d].z - mean, x[d].w - mean);

		square += (c.x * c.x + c.y * c.y) + (c.z * c.z + c.w * c.w);
	}
	scale = 1 / sqrtf(warp_sum(square) / (float)a.dim + 1e-5f);
	for (int64_t d = threadIdx.x % 32; d < a.dim / 4; d += 32) {
		__half2 *out = (__half2 *)(to + token * a.dim + 4 * d);

		out[0] = __floats2half2_rn((x[d].x - mean) * scale * weight[d].x + bias[d].x, (x[d].y - mean) * scale * weight[d].y + bias[d].y);
		out[1] = __floats2half2_rn((x[d].z - mean) * scale * weight[d].z + bias[d].z, (x[d].w - mean) * scale * weight[d].w + bias[d].w);
	}
}

/* z = LayerNorm(o) * gate. A block has 32 tokens of one batch, all hidden elements of which it turns in shared memory. */
__global__ void __launch_bounds__(THREADS) finish(struct km_args a, int64_t area, const float *o, const __half *gate, __half *z)
{
	__shared__ float turned[32][HIDDEN + 1];
	int64_t first = blockIdx.x * (int64_t)32, b = first / area;
	int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

	for (int h = warp; h < HIDDEN; h += THREADS / 32)
		turned[lane][h] = o[(b * HIDDEN + h) * area + first % area + lane];
	__syncthreads();
	for (int t = warp; t < 32; t += THREADS / 32) {
		float x[HIDDEN / 32], sum = 0, square = 0, scale;

		for (int i = 0; i < HIDDEN / 32; i++) {
			x[i] = turned[t][32 * i + lane];
			sum += x[i];
		}
		sum = warp_sum(sum) / HIDDEN;
		for (int i = 0; i < HIDDEN / 32; i++) {
			x[i] -= sum;
			square += x[i] * x[i];
		}
		scale = 1 / sqrtf(warp_sum(square) / HIDDEN + 1e-5f);
		for (int i = 0; i < HIDDEN / 32; i++) {
			int h = 32 * i + lane;
			int64_t at = (first + t) * HIDDEN + h;

			z[at] = __float2half((x[i] * scale * a.to_out_norm_weight[h] + a.to_out_norm_bias[h]) * __half2float(gate[at]));
		}
	}
}

/* ---- products --------------------------------------------------------------------------------------------------- */

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

/* Four, or two, matrices of 8 x 8 halves; lane i gives the address of row i % 8 of matrix i / 8. */
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

/* 16 x 8 sums += 16 x 16 times 16 x 8 halves. */
__device__ static void multiply_add(float *sum, const unsigned *a, const unsigned *b)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
		     : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

enum product { PROJECT, TRIANGLE, OUT };

/* C = A B^T: A is m x k, B is n x k, k a multiple of 32. */
struct work {
	const __half *a, *b;
	int64_t m, n, k;
	float *c;                    /* TRIANGLE, OUT: m x n */
	__half *left, *right, *gate; /* PROJECT: left and right are [batch][hidden][token], gate is [token][hidden] */
	const float *mask;
	int64_t area;                /* tokens of a batch */
};

/* A tile of 128 rows, 32 halves each, in chunks of 16 bytes, exchanged within a row so that eight rows of one chunk column lie in
 * different banks. */
struct tile {
	uint4 chunks[BM * BK / 8];

	__device__ uint4 *at(int row, int chunk)
	{
		return &chunks[row * (BK / 8) + (chunk ^ (row >> 1 & 3))];
	}
};

struct stage {
	tile a, b;
};

union memory {
	struct stage stages[STAGES];
	__half turned[BN / 2][TURNED];

	__device__ memory() {}
};

__device__ static void load_tile(tile *t, const __half *from, int64_t rows, int64_t first, int64_t k0, int64_t k)
{
	for (int i = threadIdx.x; i < BM * BK / 8; i += THREADS) {
		int row = i / (BK / 8), chunk = i % (BK / 8);
		bool valid = first + row < rows;

		copy_async(t->at(row, chunk), from + (valid ? first + row : 0) * k + k0 + chunk * 8, valid);
	}
}

__device__ static void multiply_tile(struct stage *s, int wm, int wn, float (*sum)[COLUMNS][4])
{
	int lane = threadIdx.x % 32;

	for (int k = 0; k < BK / 16; k++) {
		unsigned a[ROWS][4], b[COLUMNS][2];

		for (int i = 0; i < ROWS; i++)
			load_matrix4(a[i], s->a.at(wm + 16 * i + lane % 16, 2 * k + lane / 16));
		for (int j = 0; j < COLUMNS; j++)
			load_matrix2(b[j], s->b.at(wn + 8 * j + lane % 8, 2 * k + lane / 8 % 2));
		for (int i = 0; i < ROWS; i++)
			for (int j = 0; j < COLUMNS; j++)
				multiply_add(sum[i][j], a[i], b[j]);
	}
}

__device__ static float sigmoid(float x)
{
	return 1 / (1 + __expf(-x));
}

/* Rows and columns of a thread's sums, as (i, j, number) -> (row, column) of the tile. */
__device__ static int row_of(int wm, int i, int number)
{
	return wm + 16 * i + number / 2 * 8 + threadIdx.x % 32 / 4;
}

__device__ static int column_of(int wn, int j, int number)
{
	return wn + 8 * j + threadIdx.x % 4 * 2 + number % 2;
}

__device__ static void store_plain(const struct work *w, int64_t m0, int64_t n0, int wm, int wn, const float (*sum)[COLUMNS][4], float *c)
{
	for (int i = 0; i < ROWS; i++)
		for (int j = 0; j < COLUMNS; j++)
			for (int number = 0; number < 4; number += 2) {
				int64_t row = m0 + row_of(wm, i, number), column = n0 + column_of(wn, j, number);

				if (row < w->m && column < w->n)
					*(float2 *)(c + row * w->n + column) = make_float2(sum[i][j][number], sum[i][j][number + 1]);
			}
}

__device__ static void store_gate(const struct work *w, int64_t m0, int wm, int wn, const float (*sum)[COLUMNS][4])
{
	for (int i = 0; i < ROWS; i++)
		for (int j = 0; j < COLUMNS; j++)
			for (int number = 0; number < 4; number += 2) {
				int64_t row = m0 + row_of(wm, i, number);

				if (row < w->m)
					*(__half2 *)(w->gate + row * HIDDEN + column_of(wn, j, number)) =
						__floats2half2_rn(sigmoid(sum[i][j][number]), sigmoid(sum[i][j][number + 1]));
			}
}

/* A tile is 64 hidden elements: of each warp's 32 columns the first sixteen are projections, the others their gates. */
__device__ static void store_side(const struct work *w, union memory *s, int64_t m0, int wm, int wn, const float (*sum)[COLUMNS][4], __half *to, int h0)
{
	for (int i = 0; i < ROWS; i++)
		for (int j = 0; j < COLUMNS / 2; j++)
			for (int number = 0; number < 4; number++) {
				int row = row_of(wm, i, number);
				float mask = m0 + row < w->m ? w->mask[m0 + row] : 0;

				s->turned[column_of(wn / 2, j, number)][row] =
					__float2half(sum[i][j][number] * mask * sigmoid(sum[i][j + COLUMNS / 2][number]));
			}
	__syncthreads();
	for (int i = threadIdx.x; i < BN / 2 * (BM / 8); i += THREADS) {
		int h = i / (BM / 8), at = i % (BM / 8) * 8;
		int64_t token = m0 + at;

		if (token < w->m)
			*(uint4 *)(to + (token / w->area * HIDDEN + h0 + h) * w->area + token % w->area) = *(const uint4 *)&s->turned[h][at];
	}
}

/* Block (tile of columns, tile of rows, matrix of the batch). */
template <int KIND> __global__ void __launch_bounds__(THREADS) multiply(struct work w)
{
	__shared__ __align__(128) union memory s;
	int64_t m0 = blockIdx.y * (int64_t)BM, n0 = blockIdx.x * (int64_t)BN;
	int warp = threadIdx.x / 32, wm = warp / WARPS_N * (BM / WARPS_M), wn = warp % WARPS_N * (BN / WARPS_N);
	const __half *a = w.a + (KIND == TRIANGLE ? blockIdx.z * w.m * w.k : 0), *b = w.b + (KIND == TRIANGLE ? blockIdx.z * w.n * w.k : 0);
	float sum[ROWS][COLUMNS][4] = {};

	for (int64_t step = 0; step < STAGES - 1; step++) {
		if (step * BK < w.k) {
			load_tile(&s.stages[step].a, a, w.m, m0, step * BK, w.k);
			load_tile(&s.stages[step].b, b, w.n, n0, step * BK, w.k);
		}
		copy_commit();
	}
	for (int64_t step = 0; step * BK < w.k; step++) {
		int64_t next = step + STAGES - 1;

		copy_wait<STAGES - 2>();
		__syncthreads();
		if (next * BK < w.k) {
			load_tile(&s.stages[next % STAGES].a, a, w.m, m0, next * BK, w.k);
			load_tile(&s.stages[next % STAGES].b, b, w.n, n0, next * BK, w.k);
		}
		copy_commit();
		multiply_tile(&s.stages[step % STAGES], wm, wn, sum);
	}
	copy_wait<0>();
	__syncthreads();
	if (KIND != PROJECT)
		store_plain(&w, m0, n0, wm, wn, sum, w.c + (KIND == TRIANGLE ? blockIdx.z * w.m * w.n : 0));
	else if (n0 < 4 * HIDDEN)
		store_side(&w, &s, m0, wm, wn, sum, n0 < 2 * HIDDEN ? w.left : w.right, (int)(n0 % (2 * HIDDEN) / 2));
	else
		store_gate(&w, m0, wm, wn, sum);
}

/* ---- the call --------------------------------------------------------------------------------------------------- */

static unsigned tiles(int64_t n, int64_t size)
{
	return (unsigned)((n + size - 1) / size);
}

size_t km_workspace(const struct km_args *a)
{
	return lay_out(a).bytes;
}

int km_run(const struct km_args *a)
{
	cudaStream_t stream = (cudaStream_t)a->stream;
	int64_t s = a->seq_len, area = s * s, tokens = a->batch_size * area;
	struct layout l = lay_out(a);
	unsigned char *at = (unsigned char *)a->workspace;
	__half *xn = (__half *)(at + l.xn), *weights = (__half *)(at + l.weights), *to_out = (__half *)(at + l.to_out);
	__half *left = (__half *)(at + l.left), *right = (__half *)(at + l.right), *gate = (__half *)(at + l.gate);
	float *o = (float *)(at + l.o);
	struct work project = { xn, weights, tokens, OUTPUTS, a->dim, NULL, left, right, gate, a->mask, area };
	struct work triangle = { left, right, s, s, s, o, NULL, NULL, NULL, NULL, area };
	struct work out = { xn, to_out, tokens, a->dim, HIDDEN, a->output, NULL, NULL, NULL, NULL, area };

	convert_weights<<<OUTPUTS, 128, 0, stream>>>(*a, weights, to_out);
	normalise<<<tiles(tokens, 8), 256, 0, stream>>>(*a, tokens, xn);
	multiply<PROJECT><<<dim3(OUTPUTS / BN, tiles(tokens, BM)), THREADS, 0, stream>>>(project);
	multiply<TRIANGLE><<<dim3(tiles(s, BN), tiles(s, BM), (unsigned)(a->batch_size * HIDDEN)), THREADS, 0, stream>>>(triangle);
	finish<<<(unsigned)(tokens / 32), THREADS, 0, stream>>>(*a, area, o, gate, xn);
	multiply<OUT><<<dim3(tiles(a->dim, BN), tiles(tokens, BM)), THREADS, 0, stream>>>(out);
	return (int)cudaGetLastError();
}
