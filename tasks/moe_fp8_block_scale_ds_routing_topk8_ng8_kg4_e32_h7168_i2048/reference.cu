/* Inputs and expected output of moe_fp8_block_scale_ds_routing_topk8_ng8_kg4_e32_h7168_i2048. A row is one token.
 *
 * Codes are exact in float, and so are products of two of them; sums over at most 128 of these in float are scaled and added
 * up in double precision. Routing and activation are in double precision. Few rows: a warp takes one column at a time, so that
 * weights are read in order. Many rows: the pairs of token and expert are sorted by expert and go through tiles of 64 x 64. */
#include "task.h"
#include "reference_cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp8.h>

enum {
	EXPERTS = KM_AXIS_NUM_EXPERTS, LOCAL = KM_AXIS_NUM_LOCAL_EXPERTS, H = KM_AXIS_HIDDEN_SIZE, I = KM_AXIS_INTERMEDIATE_SIZE,
	G = KM_AXIS_GEMM1_OUT_SIZE, BLOCK = 128, GROUPS = 8, MEMBERS = EXPERTS / GROUPS, KEPT = 4, TOP = 8,
	FEW = 64, WARPS = 4,
	TILE = 64, DEPTH = 32, SIDE = 16, OWN = TILE / SIDE, PAD = TILE + 4,
};

/* ---- inputs: numbers ---------------------------------------------------------------------------------------------- */

/* A standard normal of 16 random bits. */
__device__ static float normal(uint64_t bits)
{
	return normcdfinvf(((float)(bits & 0xffff) + 0.5f) / 65536);
}

__device__ static uint8_t code(float x)
{
	return (uint8_t)__nv_cvt_float_to_fp8(100 * x, __NV_SATFINITE, __NV_E4M3);
}

/* Element i of the activations, of which 1 has the code of 100, in one of the input sets. */
__device__ static float activation(uint64_t i, int set, uint64_t seed)
{
	uint64_t bits = ref_random(seed, i), signs = ref_random(~seed, i / 32);
	float x = normal(bits), y;

	switch (set) {
	case REF_SHIFTED:
		return x + 2;
	case REF_STUDENT_T3:
		y = normal(bits >> 16) * normal(bits >> 16) + normal(bits >> 32) * normal(bits >> 32) + normal(bits >> 48) * normal(bits >> 48);
		return x / sqrtf(y / 3 + 1e-6f);
	case REF_STRUCTURED:
		x = (float)(bits % 9) / 8 * ((bits >> 8) % 64 ? 1.0f : 4.0f);
		return signs % 2 ? x : -x;
	default:
		return x;
	}
}

__global__ void fill_activations(uint8_t *codes, int64_t n, int set, uint64_t seed)
{
	for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
		codes[i] = code(activation((uint64_t)i, set, seed));
}

/* Sixteen normals a turn. */
__global__ void fill_weights(uint4 *codes, int64_t n, uint64_t seed)
{
	for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n / 16; i += (int64_t)gridDim.x * blockDim.x) {
		unsigned words[4];

		for (int w = 0; w < 4; w++) {
			uint64_t bits = ref_random(seed, (uint64_t)(4 * i + w));

			words[w] = 0;
			for (int j = 0; j < 4; j++)
				words[w] |= (unsigned)code(normal(bits >> 16 * j)) << 8 * j;
		}
		codes[i] = make_uint4(words[0], words[1], words[2], words[3]);
	}
}

/* size * 2^u, u uniform in [-1, 1]; for the activations of set row_scaled also exp(0.7 g), within 1/8 and 8, g normal, one a
 * token. */
__global__ void fill_scales(float *scales, int64_t n, int64_t tokens, bool by_token, float size, uint64_t seed)
{
	for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) {
		float scale = size * exp2f((float)(ref_random(seed, (uint64_t)i) >> 40) * 0x1p-23f - 1);

		if (by_token)
			scale *= fminf(fmaxf(expf(0.7f * normal(ref_random(~seed, (uint64_t)(i % tokens)))), 0.125f), 8);
		scales[i] = scale;
	}
}

/* Standard deviation 0.05, at most 0.15. */
__global__ void fill_bias(__nv_bfloat16 *bias, uint64_t seed)
{
	bias[threadIdx.x] = __float2bfloat16(fminf(fmaxf(0.05f * normal(ref_random(seed, threadIdx.x)), -0.15f), 0.15f));
}

/* ---- inputs: routing ---------------------------------------------------------------------------------------------- */

/* Of eight tokens, how many local experts each has: as many as tokens in all, and most have none, as with random routing. Who
 * is which is drawn. Fewer than eight tokens, and those that are left over, have one each. */
__device__ static int local_count(int64_t place, int64_t tokens)
{
	static const unsigned counts = 0x03010040; /* of place 0 in the lowest digit */

	return place < tokens / 8 * 8 ? (int)(counts >> place % 8 * 4 & 15) : 1;
}

/* Local experts in use. */
__host__ __device__ static int64_t active(int64_t tokens)
{
	int64_t most = 6 + tokens / 3;

	most = most < tokens ? most : tokens;
	return most < LOCAL ? most : (int64_t)LOCAL;
}

/* The local expert of a pair, 0 to active - 1: each in turn, but half of them have three times the work of the others. Four
 * pairs in a row have different experts, if six are in use. */
__device__ static int expert_of(int64_t pair, int64_t in_use)
{
	int64_t at = pair % (2 * in_use);

	return (int)(at < in_use ? at : at % (in_use > 1 ? in_use / 2 : 1));
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

/* A draw of selection scores, and what is chosen by them. */
struct draw {
	uint64_t seed;
	bool kept[GROUPS];
	int chosen[TOP], count[GROUPS]; /* count: chosen experts of a group */
};

__device__ static double draw_score(uint64_t seed, int expert)
{
	return 0.2 + 0.6 * (double)(ref_random(seed, (uint64_t)expert) >> 11) * 0x1p-53;
}

/* The groups with the largest sums of two; false if the choice is a close one. */
__device__ static bool choose_groups(struct draw *d)
{
	double score[GROUPS], worst = 2, best = 0;

	for (int g = 0; g < GROUPS; g++) {
		double first = 0, second = 0;

		for (int i = 0; i < MEMBERS; i++) {
			double x = draw_score(d->seed, g * MEMBERS + i);

			second = fmax(second, fmin(first, x));
			first = fmax(first, x);
		}
		score[g] = first + second;
	}
	for (int g = 0; g < GROUPS; g++) {
		int better = 0;

		for (int other = 0; other < GROUPS; other++)
			better += score[other] > score[g];
		d->kept[g] = better < KEPT;
		worst = d->kept[g] ? fmin(worst, score[g]) : worst;
		best = d->kept[g] ? best : fmax(best, score[g]);
	}
	return worst - best > 2e-4;
}

/* The experts with the largest scores in the groups kept; false if the choice is a close one. */
__device__ static bool choose_experts(struct draw *d)
{
	double top[TOP + 1];
	int who[TOP + 1];

	for (int i = 0; i <= TOP; i++)
		top[i] = -1;
	for (int e = 0; e < EXPERTS; e++) {
		double x = d->kept[e / MEMBERS] ? draw_score(d->seed, e) : -1;
		int at = TOP;

		if (x <= top[TOP])
			continue;
		for (; at > 0 && top[at - 1] < x; at--) {
			top[at] = top[at - 1];
			who[at] = who[at - 1];
		}
		top[at] = x;
		who[at] = e;
	}
	for (int g = 0; g < GROUPS; g++)
		d->count[g] = 0;
	for (int i = 0; i < TOP; i++) {
		d->chosen[i] = who[i];
		d->count[who[i] / MEMBERS]++;
	}
	return top[TOP - 1] - top[TOP] > 2e-4;
}

/* A group with `wanted` chosen experts, in which the local ones may lie; -1 if there is none. */
__device__ static int find_group(const struct draw *d, int wanted)
{
	int from = (int)(d->seed % GROUPS);

	for (int i = 0; i < GROUPS; i++)
		if (d->count[(from + i) % GROUPS] == wanted)
			return (from + i) % GROUPS;
	return -1;
}

/* Exchange the members of a group so that those chosen become the local experts of pairs first, first + 1, ... */
__device__ static void name_members(const struct draw *d, int group, int64_t first, int64_t in_use, uint64_t seed, int *name)
{
	for (int i = 0; i < MEMBERS; i++)
		name[i] = i;
	for (int i = 0; i < TOP; i++) {
		int from = d->chosen[i] % MEMBERS, to, other = 0;

		if (d->chosen[i] / MEMBERS != group)
			continue;
		to = (int)permuted(expert_of(first++, in_use), LOCAL, seed);
		while (name[other] != to)
			other++;
		name[other] = name[from];
		name[from] = to;
	}
}

/* One thread a token: draw scores until no choice is close and some group has as many chosen experts as are wanted here; move
 * that group to the local experts' place; and write the logits from which these scores follow. */
__global__ void fill_logits(float *logits, const __nv_bfloat16 *bias, int64_t tokens, int offset, uint64_t seed)
{
	int64_t token = blockIdx.x * (int64_t)blockDim.x + threadIdx.x, place, first = 0;
	int wanted, group = -1, name[MEMBERS];
	struct draw d;

	if (token >= tokens)
		return;
	place = permuted(token, tokens, ref_random(seed, 0));
	wanted = local_count(place, tokens);
	for (int64_t i = place / 8 * 8; i < place; i++)
		first += local_count(i, tokens);
	first += place / 8 * 8;
	for (uint64_t turn = 0; group < 0; turn++) {
		d.seed = ref_random(ref_random(seed, 1) + turn, (uint64_t)token);
		if (choose_groups(&d) && choose_experts(&d))
			group = find_group(&d, wanted);
	}
	name_members(&d, group, first, active(tokens), ref_random(seed, 2), name);
	for (int e = 0; e < EXPERTS; e++) {
		int to_group = (e / MEMBERS - group + offset / MEMBERS + GROUPS) % GROUPS;
		int to = to_group * MEMBERS + (e / MEMBERS == group ? name[e % MEMBERS] : e % MEMBERS);
		double s = draw_score(d.seed, e) - (double)__bfloat162float(bias[to]);

		logits[token * EXPERTS + to] = (float)log(s / (1 - s));
	}
}

int ref_inputs(const struct km_args *a, int set, uint64_t seed, void *stream)
{
	cudaStream_t s = (cudaStream_t)stream;
	int64_t t = a->seq_len;

	fill_activations<<<2048, 256, 0, s>>>((uint8_t *)a->hidden_states, t * H, set, ref_random(seed, 1));
	fill_scales<<<256, 256, 0, s>>>((float *)a->hidden_states_scale, t * (H / BLOCK), t, set == REF_ROW_SCALED, 0.01f, ref_random(seed, 2));
	fill_weights<<<4096, 256, 0, s>>>((uint4 *)a->gemm1_weights, (int64_t)LOCAL * G * H, ref_random(seed, 3));
	fill_scales<<<256, 256, 0, s>>>((float *)a->gemm1_weights_scale, LOCAL * (G / BLOCK) * (H / BLOCK), 1, false, 0.0002f, ref_random(seed, 4));
	fill_weights<<<4096, 256, 0, s>>>((uint4 *)a->gemm2_weights, (int64_t)LOCAL * H * I, ref_random(seed, 5));
	fill_scales<<<256, 256, 0, s>>>((float *)a->gemm2_weights_scale, LOCAL * (H / BLOCK) * (I / BLOCK), 1, false, 0.0002f, ref_random(seed, 6));
	fill_bias<<<1, EXPERTS, 0, s>>>((__nv_bfloat16 *)a->routing_bias, ref_random(seed, 7));
	fill_logits<<<(unsigned)((t + 63) / 64), 64, 0, s>>>((float *)a->routing_logits, (const __nv_bfloat16 *)a->routing_bias, t,
							     a->local_expert_offset, ref_random(seed, 8));
	return (int)cudaGetLastError();
}

/* ---- expected output: routing --------------------------------------------------------------------------------------- */

/* The local experts of a row, in ascending order. */
struct picks {
	int count, expert[TOP];
	double weight[TOP];
	int64_t pair[TOP]; /* number of the pair of row and expert, with many rows */
};

__device__ static int best_of(const double *score, const bool *taken, int n)
{
	int best = -1;

	for (int i = 0; i < n; i++)
		if (!taken[i] && (best < 0 || score[i] > score[best]))
			best = i;
	return best;
}

/* One thread a row. Of equal ones the first is taken; the inputs have none. */
__global__ void route(struct km_args a, const int64_t *rows, int64_t count, struct picks *all)
{
	int64_t at = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
	double s[EXPERTS], score[EXPERTS], group[GROUPS], sum = 1e-20;
	bool taken[EXPERTS], kept[GROUPS] = {};
	struct picks *p = &all[at];

	if (at >= count)
		return;
	for (int e = 0; e < EXPERTS; e++) {
		s[e] = 1 / (1 + exp(-(double)a.routing_logits[rows[at] * EXPERTS + e]));
		score[e] = s[e] + (double)__bfloat162float(((const __nv_bfloat16 *)a.routing_bias)[e]);
		taken[e] = false;
	}
	for (int g = 0; g < GROUPS; g++) {
		int first = best_of(score + g * MEMBERS, taken + g * MEMBERS, MEMBERS), second;

		taken[g * MEMBERS + first] = true;
		second = best_of(score + g * MEMBERS, taken + g * MEMBERS, MEMBERS);
		taken[g * MEMBERS + first] = false;
		group[g] = score[g * MEMBERS + first] + score[g * MEMBERS + second];
	}
	for (int i = 0; i < KEPT; i++)
		kept[best_of(group, kept, GROUPS)] = true;
	for (int e = 0; e < EXPERTS; e++)
		taken[e] = !kept[e / MEMBERS];
	for (int i = 0; i < TOP; i++) {
		int best = best_of(score, taken, EXPERTS);

		taken[best] = true;
		s[best] = -s[best]; /* marks it */
		sum -= s[best];
	}
	p->count = 0;
	for (int e = 0; e < LOCAL; e++) {
		int global = a.local_expert_offset + e;

		if (global >= 0 && global < EXPERTS && s[global] < 0) {
			p->expert[p->count] = e;
			p->weight[p->count++] = -s[global] / sum * (double)a.routed_scaling_factor;
		}
	}
}

__device__ static double silu_times(double x, double y)
{
	return x / (1 + exp(-x)) * y;
}

__device__ static float decode(uint8_t byte)
{
	return __half2float(__half(__nv_cvt_fp8_to_halfraw(byte, __NV_E4M3)));
}

/* ---- few rows --------------------------------------------------------------------------------------------------- */

/* x times one row of weights, one warp, 16 columns a lane and turn; lane 0 has the result. Block k of 128
 * columns has the factor left[k * stride] * right[k]; left may be NULL. */
__device__ static double dot(const float *x, const uint8_t *row, int n, const float *left, int64_t stride, const float *right)
{
	int lane = threadIdx.x % 32;
	double sum = 0;

	for (int k = lane * 16; k < n; k += 512) {
		uint4 bits = *(const uint4 *)(row + k);
		uint8_t codes[16];
		float part = 0;

		memcpy(codes, &bits, sizeof(codes));
		for (int i = 0; i < 16; i++)
			part = fmaf(x[k + i], decode(codes[i]), part);
		sum += (double)part * (left ? (double)left[k / BLOCK * stride] : 1.0) * (double)right[k / BLOCK];
	}
	for (int offset = 16; offset > 0; offset /= 2)
		sum += __shfl_xor_sync(~0u, sum, offset);
	return sum;
}

/* Block (part of the columns, pick, row): c[row][pick][I]. */
__global__ void __launch_bounds__(32 * WARPS) first_few(struct km_args a, const int64_t *rows, const struct picks *all, float *c)
{
	__shared__ float x[H];
	const struct picks *p = &all[blockIdx.z];
	int64_t token = rows[blockIdx.z];
	int e = p->expert[blockIdx.y];

	if ((int)blockIdx.y >= p->count)
		return;
	for (int i = threadIdx.x; i < H; i += 32 * WARPS)
		x[i] = decode(a.hidden_states[token * H + i]);
	__syncthreads();
	for (int n = blockIdx.x * WARPS + threadIdx.x / 32; n < I; n += gridDim.x * WARPS) {
		double sum[2];

		for (int half = 0; half < 2; half++) {
			int64_t row = (int64_t)e * G + half * I + n;

			sum[half] = dot(x, a.gemm1_weights + row * H, H, a.hidden_states_scale + token, a.seq_len,
					a.gemm1_weights_scale + row / BLOCK * (H / BLOCK));
		}
		if (threadIdx.x % 32 == 0)
			c[(blockIdx.z * (int64_t)TOP + blockIdx.y) * I + n] = (float)silu_times(sum[1], sum[0]);
	}
}

/* Block (part of the columns, row). */
__global__ void __launch_bounds__(32 * WARPS) second_few(struct km_args a, const struct picks *all, const float *c, double *output)
{
	const struct picks *p = &all[blockIdx.y];
	const float *x = c + blockIdx.y * (int64_t)TOP * I;

	for (int n = blockIdx.x * WARPS + threadIdx.x / 32; n < H; n += gridDim.x * WARPS) {
		double sum = 0;

		for (int i = 0; i < p->count; i++) {
			int64_t row = (int64_t)p->expert[i] * H + n;

			sum += p->weight[i] * dot(x + i * I, a.gemm2_weights + row * I, I, NULL, 0, a.gemm2_weights_scale + row / BLOCK * (I / BLOCK));
		}
		if (threadIdx.x % 32 == 0)
			output[blockIdx.y * (int64_t)H + n] = sum;
	}
}

/* ---- many rows -------------------------------------------------------------------------------------------------- */

/* All pairs of row and local expert, by expert and then by row. */
struct pairs {
	int64_t first[LOCAL + 1];
};

/* One warp an expert, all in one block. */
__global__ void __launch_bounds__(32 * LOCAL) sort_pairs(struct picks *all, int64_t count, struct pairs *pairs, int64_t *row_of)
{
	__shared__ int64_t number[LOCAL];
	int expert = threadIdx.x / 32, lane = threadIdx.x % 32;

	for (int pass = 0; pass < 2; pass++) {
		int64_t at = 0;

		for (int e = 0; pass == 1 && e < expert; e++)
			at += number[e];
		if (pass == 1 && lane == 0)
			pairs->first[expert] = at;
		for (int64_t r = lane; r - lane < count; r += 32) {
			int found = -1;
			unsigned who;

			for (int i = 0; r < count && i < all[r].count; i++)
				if (all[r].expert[i] == expert)
					found = i;
			who = __ballot_sync(~0u, found >= 0);
			if (pass == 1 && found >= 0) {
				int64_t pair = at + __popc(who & ((1u << lane) - 1));

				all[r].pair[found] = pair;
				row_of[pair] = r;
			}
			at += __popc(who);
		}
		if (pass == 0 && lane == 0)
			number[expert] = at;
		if (pass == 1 && expert == LOCAL - 1 && lane == 0)
			pairs->first[LOCAL] = at;
		__syncthreads();
	}
}

/* A tile of 64 pairs of one expert by 64 columns: out[pair][n] = sum over k of x[pair][k] w[n][k], with scales. x is codes of
 * the token row_of names (FIRST) or floats of the pair. Block (columns, tile of rows, expert). */
template <bool FIRST> __global__ void __launch_bounds__(SIDE * SIDE)
multiply(struct km_args a, const int64_t *rows, const struct pairs *pairs, const int64_t *row_of, const float *c, float *out)
{
	__shared__ __align__(16) float left[DEPTH][PAD], right[DEPTH][PAD];
	const int N = FIRST ? G : H, K = FIRST ? H : I;
	int expert = blockIdx.z, n0 = blockIdx.x * TILE, x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
	int64_t first = pairs->first[expert] + blockIdx.y * (int64_t)TILE, last = pairs->first[expert + 1];
	const uint8_t *w = (FIRST ? a.gemm1_weights : a.gemm2_weights) + ((int64_t)expert * N + n0) * K;
	const float *scales = (FIRST ? a.gemm1_weights_scale : a.gemm2_weights_scale) + ((int64_t)expert * N + n0) / BLOCK * (K / BLOCK);
	double sum[OWN][OWN] = {};

	if (first >= last)
		return;
	for (int k0 = 0; k0 < K; k0 += BLOCK) {
		float part[OWN][OWN] = {};

		for (int k = k0; k < k0 + BLOCK; k += DEPTH) {
			for (int i = threadIdx.x; i < TILE * DEPTH; i += SIDE * SIDE) {
				int r = i / DEPTH, at = i % DEPTH;
				int64_t pair = first + r < last ? first + r : first;

				left[at][r] = FIRST ? decode(a.hidden_states[rows[row_of[pair]] * H + k + at]) : c[pair * I + k + at];
				right[at][r] = decode(w[(int64_t)r * K + k + at]);
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
		}
		for (int i = 0; i < OWN; i++) {
			int64_t pair = first + y * OWN + i < last ? first + y * OWN + i : first;
			double scale = scales[k0 / BLOCK];

			if (FIRST)
				scale *= (double)a.hidden_states_scale[k0 / BLOCK * a.seq_len + rows[row_of[pair]]];
			for (int j = 0; j < OWN; j++)
				sum[i][j] += scale * (double)part[i][j];
		}
	}
	for (int i = 0; i < OWN && first + y * OWN + i < last; i++)
		for (int j = 0; j < OWN; j++)
			out[(first + y * OWN + i) * N + n0 + x * OWN + j] = (float)sum[i][j];
}

__global__ void activate(const float *g, int64_t n, float *c)
{
	for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
		c[i] = (float)silu_times((double)g[i / I * G + I + i % I], (double)g[i / I * G + i % I]);
}

/* One block a row. */
__global__ void add_up(const struct picks *all, const float *o, double *output)
{
	const struct picks *p = &all[blockIdx.x];

	for (int n = threadIdx.x; n < H; n += blockDim.x) {
		double sum = 0;

		for (int i = 0; i < p->count; i++)
			sum += p->weight[i] * (double)o[p->pair[i] * H + n];
		output[blockIdx.x * (int64_t)H + n] = sum;
	}
}

/* ---- expected output: the whole ------------------------------------------------------------------------------------- */

enum { KEEP_PICKS, KEEP_PAIRS, KEEP_ROW_OF, KEEP_G, KEEP_C, KEEP_O, KEPT_BUFFERS };

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

static int compute_few(const struct km_args *a, const int64_t *rows, int64_t count, const struct picks *picks, double *output, cudaStream_t stream)
{
	float *c;
	int result = scratch(KEEP_C, sizeof(float) * (size_t)count * TOP * I, &c);

	if (result != 0)
		return result;
	first_few<<<dim3(64, TOP, (unsigned)count), 32 * WARPS, 0, stream>>>(*a, rows, picks, c);
	second_few<<<dim3(64, (unsigned)count), 32 * WARPS, 0, stream>>>(*a, picks, c, output);
	return (int)cudaGetLastError();
}

/* Waits for the number of pairs. */
static int compute_many(const struct km_args *a, const int64_t *rows, int64_t count, struct picks *picks, double *output, cudaStream_t stream)
{
	struct pairs *pairs;
	int64_t *row_of, n = 0;
	float *g, *c, *o;
	unsigned tiles = (unsigned)((count + TILE - 1) / TILE);
	int result = scratch(KEEP_PAIRS, sizeof(struct pairs), &pairs);

	if (result == 0)
		result = scratch(KEEP_ROW_OF, sizeof(*row_of) * (size_t)count * TOP, &row_of);
	if (result != 0)
		return result;
	sort_pairs<<<1, 32 * LOCAL, 0, stream>>>(picks, count, pairs, row_of);
	result = (int)cudaMemcpyAsync(&n, &pairs->first[LOCAL], sizeof(n), cudaMemcpyDeviceToHost, stream);
	if (result == 0)
		result = (int)cudaStreamSynchronize(stream);
	if (result == 0)
		result = scratch(KEEP_G, sizeof(float) * (size_t)(n + 1) * G, &g);
	if (result == 0)
		result = scratch(KEEP_C, sizeof(float) * (size_t)(n + 1) * I, &c);
	if (result == 0)
		result = scratch(KEEP_O, sizeof(float) * (size_t)(n + 1) * H, &o);
	if (result != 0)
		return result;
	multiply<true><<<dim3(G / TILE, tiles, LOCAL), SIDE * SIDE, 0, stream>>>(*a, rows, pairs, row_of, NULL, g);
	activate<<<2048, 256, 0, stream>>>(g, n * I, c);
	multiply<false><<<dim3(H / TILE, tiles, LOCAL), SIDE * SIDE, 0, stream>>>(*a, rows, pairs, row_of, c, o);
	add_up<<<(unsigned)count, 256, 0, stream>>>(picks, o, output);
	return (int)cudaGetLastError();
}

int64_t ref_rows(const struct km_args *a)
{
	return a->seq_len;
}

int ref_expected(const struct km_args *a, const int64_t *rows, int64_t count, double *const *expected, void *stream)
{
	cudaStream_t s = (cudaStream_t)stream;
	struct picks *picks;
	int result = scratch(KEEP_PICKS, sizeof(*picks) * (size_t)count, &picks);

	if (result != 0)
		return result;
	route<<<(unsigned)((count + 31) / 32), 32, 0, s>>>(*a, rows, count, picks);
	return count <= FEW ? compute_few(a, rows, count, picks, expected[0], s) : compute_many(a, rows, count, picks, expected[0], s);
}

/* As many pairs of token and local expert as tokens, and the weights of the experts in use. */
void ref_counts(const struct km_args *a, double *flops, double *bytes)
{
	double tokens = (double)a->seq_len, h = H, i = I, g = G;

	*flops = tokens * 2 * h * (g + i);
	*bytes = (double)active(a->seq_len) * h * (g + i) + tokens * (4.0 * EXPERTS + 2 * h);
}
