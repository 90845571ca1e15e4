/* Inputs and expected outputs of gqa_decode_cpu. A row is one head of one sequence; it is computed in double precision,
 * tokens in ascending order, the logits twice instead of being stored. */
#include "task.h"
#include "reference.h"

#include <math.h>

/* Which sequence holds 90 % of the tokens, and which is empty; -1 if none. */
static void choose(int64_t batch, int set, uint64_t seed, int64_t *big, int64_t *empty)
{
	*big = set == REF_STRUCTURED && batch > 1 ? (int64_t)ref_below(seed, 1, (uint64_t)batch) : -1;
	*empty = -1;
	if ((set == REF_SHIFTED && batch > 1) || (set == REF_STRUCTURED && batch > 2))
		*empty = (int64_t)ref_below(seed, 2, (uint64_t)batch);
	if (*empty >= 0 && *empty == *big)
		*empty = (*big + 1) % batch;
}

/* The lengths of the sequences, as kv_indptr: equal within 3 %, but set "shifted" has an empty sequence, and set
 * "structured" one that holds 90 % of the tokens and, from three sequences on, an empty one. */
static void fill_indptr(const struct km_args *a, int set, uint64_t seed)
{
	int32_t *indptr = (int32_t *)a->kv_indptr;
	int64_t batch = a->batch_size, n = a->num_kv_indices, total = 0, given = 0, big, empty, most, before = 0;

	choose(batch, set, seed, &big, &empty);
	most = big >= 0 ? n * 9 / 10 : 0;
	for (int64_t b = 0; b < batch; b++)
		if (b != big && b != empty)
			total += 985 + (int64_t)ref_below(seed, 16 + (uint64_t)b, 31);
	indptr[0] = 0;
	for (int64_t b = 0; b < batch; b++) {
		if (b == big)
			before = most;
		else if (b != empty)
			given += 985 + (int64_t)ref_below(seed, 16 + (uint64_t)b, 31);
		indptr[b + 1] = (int32_t)(before + (n - most) * given / total);
	}
}

/* The first num_kv_indices numbers of a random permutation of the pages. */
static void fill_indices(const struct km_args *a, uint64_t seed)
{
	int32_t *indices = (int32_t *)a->kv_indices;
	int64_t n = a->num_kv_indices;

	for (int64_t i = 0; i < a->num_pages; i++) {
		int64_t j = (int64_t)ref_below(seed, (uint64_t)i, (uint64_t)i + 1);

		if (i < n)
			indices[i] = indices[j];
		if (j < n)
			indices[j] = (int32_t)i;
	}
}

/* Where the rows of k have scales of their own or heavy tails, logits would grow until rounding them to single precision is
 * what counts. There every head of q gets the norm sqrt(128) times a factor. */
static void tame(const struct km_args *a, int set)
{
	double factor = set == REF_ROW_SCALED ? 0.125 : 0.0625;

	if (set != REF_ROW_SCALED && set != REF_STUDENT_T3)
		return;
	for (int64_t row = 0; row < a->batch_size * a->num_qo_heads; row++) {
		float *q = (float *)a->q + row * a->head_dim;
		double sum = 0;

		for (int64_t d = 0; d < a->head_dim; d++)
			sum += (double)q[d] * q[d];
		for (int64_t d = 0; d < a->head_dim && sum > 0; d++)
			q[d] = (float)(q[d] * (factor / sqrt(sum / (double)a->head_dim)));
	}
}

void ref_inputs(const struct km_args *a, int set, uint64_t seed)
{
	fill_indptr(a, set, ref_random(seed, 1));
	fill_indices(a, ref_random(seed, 2));
	tame(a, set);
}

int64_t ref_rows(const struct km_args *a)
{
	return a->batch_size * a->num_qo_heads;
}

/* The logit of one token; eight sums side by side, added in a fixed order. */
static double logit(const struct km_args *a, const float *q, int64_t page, int64_t group)
{
	const float *k = a->k_cache + (page * a->num_kv_heads + group) * a->head_dim;
	double s[8] = {0};

	for (int64_t d = 0; d < a->head_dim; d += 8)
		for (int l = 0; l < 8; l++)
			s[l] += (double)q[d + l] * k[d + l];
	return (((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))) * (double)a->sm_scale;
}

void ref_row(const struct km_args *a, int64_t row, double *const *expected)
{
	int64_t b = row / a->num_qo_heads, head = row % a->num_qo_heads;
	int64_t group = head / (a->num_qo_heads / a->num_kv_heads), from = a->kv_indptr[b], to = a->kv_indptr[b + 1];
	const float *q = a->q + row * a->head_dim;
	double max = -INFINITY, sum = 0, *output = expected[0];

	for (int64_t d = 0; d < a->head_dim; d++)
		output[d] = 0;
	for (int64_t t = from; t < to; t++)
		max = fmax(max, logit(a, q, a->kv_indices[t], group));
	for (int64_t t = from; t < to; t++) {
		int64_t page = a->kv_indices[t];
		const float *v = a->v_cache + (page * a->num_kv_heads + group) * a->head_dim;
		double p = exp(logit(a, q, page, group) - max);

		sum += p;
		for (int64_t d = 0; d < a->head_dim; d++)
			output[d] += p * v[d];
	}
	for (int64_t d = 0; d < a->head_dim && to > from; d++)
		output[d] /= sum;
	expected[1][0] = to > from ? max / M_LN2 + log2(sum) : -INFINITY;
}

void ref_counts(const struct km_args *a, double *flops, double *bytes)
{
	double tokens = (double)a->num_kv_indices, rows = (double)(a->batch_size * a->num_qo_heads);
	double dim = (double)a->head_dim;

	*flops = tokens * (double)a->num_qo_heads * (4 * dim + 4);
	*bytes = sizeof(float) * (2 * tokens * (double)a->num_kv_heads * dim + rows * (2 * dim + 1)) +
		 sizeof(int32_t) * (tokens + (double)a->len_indptr);
}
