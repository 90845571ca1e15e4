/* Route; list the tokens of every local expert; a grouped product with the gate and up projections, activated on its way out; a
 * grouped product with the down projection, weighted and added up in float; and convert. Codes are exact in half precision:
 * tiles of codes come by cp.async, are converted as they are read, and go through mma.sync with float sums, which are scaled
 * after every block of 128 columns. */
#include "task.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

enum {
	EXPERTS = KM_AXIS_NUM_EXPERTS, LOCAL = KM_AXIS_NUM_LOCAL_EXPERTS, H = KM_AXIS_HIDDEN_SIZE, I = KM_AXIS_INTERMEDIATE_SIZE,
	G = KM_AXIS_GEMM1_OUT_SIZE, BLOCK = 128, KEPT = 4, TOP = 8, GROUP_LANES = 4,
	BN = 64, THREADS = 128, STAGES = 4, CODES_STRIDE = BLOCK + 32, HALVES_STRIDE = BLOCK + 32,
};

/* ---- routing ---------------------------------------------------------------------------------------------------- */

struct lists {
	int count[LOCAL];
};

/* Where everything lies in the workspace. */
struct layout {
	size_t lists, tokens, weights, c, sum, bytes;
};

__host__ __device__ static size_t align(size_t n)
{
	return (n + 255) / 256 * 256;
}

static struct layout lay_out(const struct km_args *a)
{
	size_t t = (size_t)a->seq_len;
	struct layout l;

	l.lists = 0;
	l.tokens = align(sizeof(struct lists));
	l.weights = l.tokens + align(sizeof(int) * LOCAL * t);
	l.c = l.weights + align(sizeof(float) * LOCAL * t);
	l.sum = l.c + align(sizeof(__half) * TOP * t * I);
	l.bytes = l.sum + align(sizeof(float) * t * H);
	return l;
}

/* The lane and place of the largest of the warp's numbers, the first of equal ones. */
__device__ static int best_lane(float x, int index)
{
	for (int offset = 16; offset > 0; offset /= 2) {
		float other = __shfl_xor_sync(~0u, x, offset);
		int other_index = __shfl_xor_sync(~0u, index, offset);

		if (other > x || (other == x && other_index < index)) {
			x = other;
			index = other_index;
		}
	}
	return index;
}

/* One warp a token, eight experts a lane; four lanes are a group. */
__global__ void __launch_bounds__(THREADS) route(struct km_args a, struct lists *lists, int *tokens, float *weights)
{
	const int OWN = EXPERTS / 32;
	int64_t token = blockIdx.x * (int64_t)(THREADS / 32) + threadIdx.x / 32;
	int lane = threadIdx.x % 32, better = 0, chosen[TOP];
	float s[OWN], score[OWN], first = -1, second = -1, group, sum = 1e-20f, weight[TOP];

	if (token >= a.seq_len)
		return;
	for (int i = 0; i < OWN; i++) {
		int e = lane * OWN + i;

		s[i] = 1 / (1 + expf(-a.routing_logits[token * EXPERTS + e]));
		score[i] = s[i] + __bfloat162float(((const __nv_bfloat16 *)a.routing_bias)[e]);
		second = fmaxf(second, fminf(first, score[i]));
		first = fmaxf(first, score[i]);
	}
	for (int offset = 1; offset < GROUP_LANES; offset *= 2) {
		float other_first = __shfl_xor_sync(~0u, first, offset), other_second = __shfl_xor_sync(~0u, second, offset);

		second = fmaxf(fminf(first, other_first), fmaxf(second, other_second));
		first = fmaxf(first, other_first);
	}
	group = first + second;
	for (int g = 0; g < 32 / GROUP_LANES; g++) {
		float other = __shfl_sync(~0u, group, g * GROUP_LANES);

		better += other > group || (other == group && g < lane / GROUP_LANES);
	}
	for (int n = 0; n < TOP; n++) {
		float most = -INFINITY, own = 0;
		int at = lane * OWN;

		for (int i = 0; i < OWN; i++)
			if (better < KEPT && score[i] > most) {
				most = score[i];
				at = lane * OWN + i;
			}
		chosen[n] = best_lane(most, at);
		for (int i = 0; i < OWN; i++)
			if (chosen[n] == lane * OWN + i) {
				score[i] = -INFINITY;
				own = s[i];
			}
		weight[n] = __shfl_sync(~0u, own, chosen[n] / OWN);
		sum += weight[n];
	}
	for (int n = 0; n < TOP; n++) {
		int e = chosen[n] - a.local_expert_offset;

		if (lane == n && e >= 0 && e < LOCAL) {
			int64_t at = e * a.seq_len + atomicAdd(&lists->count[e], 1);

			tokens[at] = (int)token;
			weights[at] = weight[n] / sum * a.routed_scaling_factor;
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

/* 16 x 8 sums += 16 x 16 times 16 x 8 halves. */
__device__ static void multiply_add(float *sum, const unsigned *a, const unsigned *b)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
		     : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Eight neighbouring numbers of a row as four pairs of halves. In which order the k of a product go does not matter as long as
 * both sides agree: lane % 4 has numbers 8 (lane % 4) and up of 32. */
__device__ static void read8(const uint8_t *codes, unsigned *to)
{
	uint2 bits = *(const uint2 *)codes;

	for (int i = 0; i < 4; i++) {
		unsigned word = i < 2 ? bits.x : bits.y;
		__half2_raw pair = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)(word >> i % 2 * 16), __NV_E4M3);

		memcpy(&to[i], &pair, sizeof(pair));
	}
}

__device__ static void read8(const __half *halves, unsigned *to)
{
	uint4 bits = *(const uint4 *)halves;

	to[0] = bits.x;
	to[1] = bits.y;
	to[2] = bits.z;
	to[3] = bits.w;
}

/* A tile of BM rows of a list by 64 columns of weights, in both products. FIRST: rows are tokens' codes, columns are 32 of the
 * up projection and the same 32 of the gate. Else rows are halves of c. */
template <bool FIRST, int BM> struct product {
	static constexpr int K = FIRST ? H : I, N = FIRST ? G : H, STEPS = K / BLOCK;
	static constexpr int WARPS_M = BM / 32 ? 2 : 1, WARPS_N = THREADS / 32 / WARPS_M, ROWS = BM / WARPS_M / 16, COLUMNS = BN / WARPS_N / 8;

	struct stage {
		typename std::conditional<FIRST, uint8_t[BM][CODES_STRIDE], __half[BM][HALVES_STRIDE]>::type x;
		uint8_t w[BN][CODES_STRIDE];
	};

	/* What a block works on. */
	struct work {
		int expert, count, first; /* pairs of the expert, and of those before it */
		int row;                  /* the tile's first, in the expert's list */
		int column;
	};

	__device__ static bool find_work(const struct lists *lists, struct work *w)
	{
		int tile = blockIdx.y;

		w->first = 0;
		w->column = blockIdx.x * (FIRST ? BN / 2 : BN);
		for (w->expert = 0; w->expert < LOCAL; w->expert++) {
			int tiles = (lists->count[w->expert] + BM - 1) / BM;

			w->count = lists->count[w->expert];
			w->row = tile * BM;
			if (tile < tiles)
				return true;
			tile -= tiles;
			w->first += w->count;
		}
		return false;
	}

	/* Row of the weights for a column of the tile: a warp's columns are half up projection, half gate. */
	__device__ static int weight_row(const struct work *w, int column)
	{
		const int HALF = BN / WARPS_N / 2;

		if (!FIRST)
			return w->column + column;
		return w->column + column / (2 * HALF) * HALF + column % HALF + (column % (2 * HALF) < HALF ? 0 : I);
	}

	__device__ static void load(struct stage *s, const struct km_args *a, const struct work *w, const int *tokens, const __half *c, int k)
	{
		const int CHUNKS = FIRST ? BLOCK / 16 : BLOCK / 8;

		for (int i = threadIdx.x; i < BM * CHUNKS; i += THREADS) {
			int r = i / CHUNKS, at = i % CHUNKS;
			bool valid = w->row + r < w->count;
			int64_t row = !valid ? 0 : FIRST ? tokens[w->expert * a->seq_len + w->row + r] : w->first + w->row + r;

			if constexpr (FIRST)
				copy_async(&s->x[r][at * 16], a->hidden_states + row * H + k + at * 16, valid);
			else
				copy_async(&s->x[r][at * 8], c + row * I + k + at * 8, valid);
		}
		for (int i = threadIdx.x; i < BN * (BLOCK / 16); i += THREADS) {
			int r = i / (BLOCK / 16), at = i % (BLOCK / 16) * 16;
			const uint8_t *weights = FIRST ? a->gemm1_weights : a->gemm2_weights;

			copy_async(&s->w[r][at], weights + ((int64_t)w->expert * N + weight_row(w, r)) * K + k + at, true);
		}
	}

	/* part = one block of 128 columns of k. */
	__device__ static void multiply(const struct stage *s, int wm, int wn, float (*part)[COLUMNS][4])
	{
		int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4 * 8;

		for (int k = 0; k < BLOCK; k += 32) {
			unsigned low[ROWS][4], high[ROWS][4], b[4];

			for (int i = 0; i < ROWS; i++) {
				read8(&s->x[wm + 16 * i + g][k + t], low[i]);
				read8(&s->x[wm + 16 * i + g + 8][k + t], high[i]);
			}
			for (int j = 0; j < COLUMNS; j++) {
				read8(&s->w[wn + 8 * j + g][k + t], b);
				for (int i = 0; i < ROWS; i++)
					for (int half = 0; half < 4; half += 2) {
						unsigned x[4] = { low[i][half], high[i][half], low[i][half + 1], high[i][half + 1] };

						multiply_add(part[i][j], x, b + half);
					}
			}
		}
	}

	/* Scales of the tile for one block of 128: of the weights' columns (up projection, gate), and of the rows. */
	__device__ static void scale(const struct km_args *a, const struct work *w, const int *tokens, int wm, int step,
				     const float (*part)[COLUMNS][4], float (*sum)[COLUMNS][4])
	{
		const float *scales = (FIRST ? a->gemm1_weights_scale : a->gemm2_weights_scale) + (int64_t)w->expert * (N / BLOCK) * STEPS;
		float up = scales[w->column / BLOCK * STEPS + step], gate = FIRST ? scales[(I + w->column) / BLOCK * STEPS + step] : up;

		for (int i = 0; i < ROWS; i++)
			for (int half = 0; half < 2; half++) {
				int row = w->row + wm + 16 * i + 8 * half + threadIdx.x % 32 / 4;
				float x = 1;

				if (FIRST)
					x = row < w->count ? a->hidden_states_scale[step * a->seq_len + tokens[w->expert * a->seq_len + row]] : 0;
				for (int j = 0; j < COLUMNS; j++)
					for (int n = 0; n < 2; n++)
						sum[i][j][2 * half + n] += part[i][j][2 * half + n] * x * (j < COLUMNS / 2 ? up : gate);
			}
	}

	__device__ static void store_first(const struct work *w, int wm, int wn, const float (*sum)[COLUMNS][4], __half *c)
	{
		int lane = threadIdx.x % 32;

		for (int i = 0; i < ROWS; i++)
			for (int half = 0; half < 2; half++) {
				int row = w->row + wm + 16 * i + 8 * half + lane / 4;

				for (int j = 0; j < COLUMNS / 2 && row < w->count; j++) {
					float out[2];

					for (int n = 0; n < 2; n++) {
						float x1 = sum[i][j][2 * half + n], x2 = sum[i][j + COLUMNS / 2][2 * half + n];

						out[n] = x2 / (1 + __expf(-x2)) * x1;
					}
					*(__half2 *)(c + (int64_t)(w->first + row) * I + w->column + wn / 2 + 8 * j + lane % 4 * 2) =
						__floats2half2_rn(out[0], out[1]);
				}
			}
	}

	__device__ static void store_second(const struct km_args *a, const struct work *w, const int *tokens, const float *weights, int wm, int wn,
					    const float (*sum)[COLUMNS][4], float *total)
	{
		int lane = threadIdx.x % 32;

		for (int i = 0; i < ROWS; i++)
			for (int half = 0; half < 2; half++) {
				int row = w->row + wm + 16 * i + 8 * half + lane / 4;
				int64_t at = w->expert * a->seq_len + row;

				for (int j = 0; j < COLUMNS && row < w->count; j++)
					for (int n = 0; n < 2; n++)
						atomicAdd(&total[(int64_t)tokens[at] * H + w->column + wn + 8 * j + lane % 4 * 2 + n],
							  weights[at] * sum[i][j][2 * half + n]);
			}
	}

	__device__ static void run(struct stage *stages, const struct km_args *a, const struct lists *lists, const int *tokens, const float *weights,
				   __half *c, float *total)
	{
		int warp = threadIdx.x / 32, wm = warp / WARPS_N * (BM / WARPS_M), wn = warp % WARPS_N * (BN / WARPS_N);
		float sum[ROWS][COLUMNS][4] = {};
		struct work w;

		if (!find_work(lists, &w))
			return;
		for (int s = 0; s < STAGES - 1; s++) {
			if (s < STEPS)
				load(&stages[s], a, &w, tokens, c, s * BLOCK);
			copy_commit();
		}
		for (int step = 0; step < STEPS; step++) {
			int next = step + STAGES - 1;
			float part[ROWS][COLUMNS][4] = {};

			copy_wait<STAGES - 2>();
			__syncthreads();
			if (next < STEPS)
				load(&stages[next % STAGES], a, &w, tokens, c, next * BLOCK);
			copy_commit();
			multiply(&stages[step % STAGES], wm, wn, part);
			scale(a, &w, tokens, wm, step, part, sum);
		}
		if (FIRST)
			store_first(&w, wm, wn, sum, c);
		else
			store_second(a, &w, tokens, weights, wm, wn, sum, total);
	}
};

template <bool FIRST, int BM> __global__ void __launch_bounds__(THREADS)
grouped(struct km_args a, const struct lists *lists, const int *tokens, const float *weights, __half *c, float *total)
{
	extern __shared__ __align__(16) unsigned char memory[];

	product<FIRST, BM>::run((typename product<FIRST, BM>::stage *)memory, &a, lists, tokens, weights, c, total);
}

__global__ void convert(const float *sum, int64_t n, __nv_bfloat16 *output)
{
	int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;

	if (i < n)
		output[i] = __float2bfloat16(sum[i]);
}

/* ---- the call --------------------------------------------------------------------------------------------------- */

template <bool FIRST, int BM> static int prepare()
{
	return (int)cudaFuncSetAttribute(grouped<FIRST, BM>, cudaFuncAttributeMaxDynamicSharedMemorySize,
					 (int)(STAGES * sizeof(typename product<FIRST, BM>::stage)));
}

template <bool FIRST, int BM> static void launch(const struct km_args *a, const struct layout *l)
{
	unsigned char *at = (unsigned char *)a->workspace;
	/* As many tiles as there can be, whatever the routing. */
	int64_t rows = a->seq_len, tiles = rows * TOP / BM + LOCAL, most = (rows + BM - 1) / BM * LOCAL;
	dim3 grid(FIRST ? I / (BN / 2) : H / BN, (unsigned)(tiles < most ? tiles : most));

	grouped<FIRST, BM><<<grid, THREADS, STAGES * sizeof(typename product<FIRST, BM>::stage), (cudaStream_t)a->stream>>>(*a,
		(const struct lists *)(at + l->lists), (const int *)(at + l->tokens), (const float *)(at + l->weights), (__half *)(at + l->c),
		(float *)(at + l->sum));
}

size_t km_workspace(const struct km_args *a)
{
	return lay_out(a).bytes;
}

int km_init(const struct km_args *)
{
	int result = prepare<true, 16>();

	if (result == 0)
		result = prepare<false, 16>();
	if (result == 0)
		result = prepare<true, 64>();
	return result ? result : prepare<false, 64>();
}

int km_run(const struct km_args *a)
{
	cudaStream_t stream = (cudaStream_t)a->stream;
	unsigned char *at = (unsigned char *)a->workspace;
	struct layout l = lay_out(a);
	int64_t n = a->seq_len * H;

	cudaMemsetAsync(at + l.lists, 0, sizeof(struct lists), stream);
	cudaMemsetAsync(at + l.sum, 0, sizeof(float) * (size_t)n, stream);
	route<<<(unsigned)((a->seq_len + THREADS / 32 - 1) / (THREADS / 32)), THREADS, 0, stream>>>(*a, (struct lists *)(at + l.lists),
		(int *)(at + l.tokens), (float *)(at + l.weights));
	if (a->seq_len <= 256) {
		launch<true, 16>(a, &l);
		launch<false, 16>(a, &l);
	} else {
		launch<true, 64>(a, &l);
		launch<false, 64>(a, &l);
	}
	convert<<<(unsigned)((n + 255) / 256), 256, 0, stream>>>((const float *)(at + l.sum), n, (__nv_bfloat16 *)a->output);
	return (int)cudaGetLastError();
}
