/* One head of one sequence at a time; the softmax is kept running, so that a token is visited once. */
#include "task.h"
#include <math.h>

static void attend(const struct km_args *a, int64_t row, float *restrict out, float *lse)
{
	int64_t b = row / a->num_qo_heads, head = row % a->num_qo_heads;
	int64_t group = head / (a->num_qo_heads / a->num_kv_heads), dim = a->head_dim;
	const float *q = a->q + row * dim;
	float max = -INFINITY, sum = 0;

	for (int64_t d = 0; d < dim; d++)
		out[d] = 0;
	for (int64_t t = a->kv_indptr[b]; t < a->kv_indptr[b + 1]; t++) {
		int64_t at = (a->kv_indices[t] * a->num_kv_heads + group) * dim;
		const float *k = a->k_cache + at, *v = a->v_cache + at;
		float s = 0, p, old = 1;

		for (int64_t d = 0; d < dim; d++)
			s += q[d] * k[d];
		s *= a->sm_scale;
		if (s > max) {
			old = expf(max - s);
			max = s;
		}
		p = expf(s - max);
		sum = sum * old + p;
		for (int64_t d = 0; d < dim; d++)
			out[d] = out[d] * old + p * v[d];
	}
	for (int64_t d = 0; d < dim && sum > 0; d++)
		out[d] /= sum;
	*lse = sum > 0 ? (max + logf(sum)) * 1.44269504f : -INFINITY;
}

int km_run(const struct km_args *a)
{
	for (int64_t row = 0; row < a->batch_size * a->num_qo_heads; row++)
		attend(a, row, a->output + row * a->head_dim, a->lse + row);
	return 0;
}
