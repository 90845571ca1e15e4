#include "proof.h"

#include "compare.h"
#include "number.h"
#include "oracle.h"
#include "proof_sample.h"
#include "random.h"
#include "util.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 64 }; /* rows looked at of one draw */

static const uint64_t SEED = 20, OTHER_SEED = 21;

static void say(const struct proof *p, bool holds, const char *why, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

static void say(const struct proof *p, bool holds, const char *why, const char *format, ...)
{
	char text[400];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	p->report(p->context, holds, text, holds ? "" : why);
}

/* ---- some rows of expected outputs -------------------------------------------------------------------------------- */

struct rows {
	int64_t count, at[ROWS];
	double *expected[ROWS][TASK_MAX_TENSORS];
	size_t length[TASK_MAX_TENSORS];
};

static void rows_release(const struct task *task, struct rows *r)
{
	for (int64_t i = 0; i < r->count; i++)
		for (int o = 0; o < task->output_count; o++)
			free(r->expected[i][o]);
	r->count = 0;
}

/* Rows spread evenly; -1 if the reference says something impossible. */
static int rows_compute(const struct oracle *oracle, const struct sample *s, struct rows *r, struct error *err)
{
	const struct task *task = s->task;
	const int64_t *axes = task->workloads[s->workload].axes;
	int64_t all = oracle_rows(oracle, s->args, axes, err);

	r->count = 0;
	if (all < 0)
		return -1;
	for (int o = 0; o < task->output_count; o++)
		r->length[o] = task_elements(&task->outputs[o], axes) / (size_t)all;
	for (int64_t i = 0; i < ROWS && i < all; i++) {
		r->at[i] = all <= ROWS ? i : (all - 1) * i / (ROWS - 1);
		for (int o = 0; o < task->output_count; o++)
			r->expected[i][o] = xreallocarray(NULL, r->length[o] + 1, sizeof(double));
		oracle_row(oracle, s->args, r->at[i], r->expected[i]);
		r->count++;
	}
	return 0;
}

/* How many rows of one output are wrong if `got` is taken for the result where `expected` is right. */
static int64_t rows_wrong(const struct task *task, const struct rows *got, const struct rows *expected, int output)
{
	struct compare_result result = { 0 };

	for (int64_t i = 0; i < expected->count; i++)
		compare_row(got->expected[i][output], expected->expected[i][output], expected->length[output], expected->at[i],
			    &task->outputs[output].tolerance, &result);
	return result.wrong_rows;
}

/* ---- the reference ------------------------------------------------------------------------------------------------ */

static const char *find_bad_value(const struct task *task, const struct rows *a, const struct rows *b)
{
	for (int64_t i = 0; i < a->count; i++)
		for (int o = 0; o < task->output_count; o++) {
			if (memcmp(a->expected[i][o], b->expected[i][o], a->length[o] * sizeof(double)) != 0)
				return "it gave other numbers the second time";
			for (size_t e = 0; e < a->length[o]; e++)
				if (isnan(a->expected[i][o][e]))
					return "it gave a NaN";
		}
	return NULL;
}

/* One workload and set, drawn and computed twice. */
static int check_repeatable(const struct proof *p, const struct oracle *oracle, int workload, int set, const char **bad,
			    struct error *err)
{
	struct sample a, b;
	struct rows ra = { 0 }, rb = { 0 };
	int result;

	sample_init(&a, p->task, oracle, workload, set, SEED);
	sample_init(&b, p->task, oracle, workload, set, SEED);
	result = rows_compute(oracle, &a, &ra, err);
	if (result == 0)
		result = rows_compute(oracle, &b, &rb, err);
	if (result == 0 && !sample_equal(&a, &b))
		*bad = "it gave other inputs the second time";
	else if (result == 0)
		*bad = find_bad_value(p->task, &ra, &rb);
	rows_release(p->task, &ra);
	rows_release(p->task, &rb);
	sample_release(&a);
	sample_release(&b);
	return result;
}

static int prove_repeatable(const struct proof *p, const struct oracle *oracle, struct error *err)
{
	char why[300] = "";

	for (int w = 0; w < p->task->workload_count; w++)
		for (int set = 0; set < SET_COUNT; set++) {
			const char *bad = NULL;

			if (!p->task->input_sets[set])
				continue;
			if (check_repeatable(p, oracle, w, set, &bad, err) < 0)
				return -1;
			if (bad && !*why)
				snprintf(why, sizeof(why), "%s: workload %s, input set %s", bad, p->task->workloads[w].uuid,
					 input_set_name((enum task_input_set)set));
		}
	say(p, !*why, why, "the reference is repeatable and gives no NaN");
	return 0;
}

static void prove_counts(const struct proof *p, const struct oracle *oracle)
{
	char why[200] = "";

	for (int w = 0; w < p->task->workload_count; w++) {
		struct sample s;
		double flops = -1, bytes = -1;

		sample_init(&s, p->task, oracle, w, SET_NORMAL, SEED);
		oracle_counts(oracle, s.args, &flops, &bytes);
		if (!(flops >= 0 && bytes > 0 && isfinite(flops) && isfinite(bytes)))
			snprintf(why, sizeof(why), "%g operations and %g bytes for workload %s", flops, bytes,
				 p->task->workloads[w].uuid);
		sample_release(&s);
	}
	say(p, !*why, why, "operations and bytes are counted");
}

/* ---- every input counts ------------------------------------------------------------------------------------------- */

enum dependence { DEPENDS, NEVER_VARIES, DOES_NOT_MATTER };

/* Exchange one input of a sample for that of another draw, or a scalar for another value; false if it stays the same. */
static bool exchange(struct sample *s, const struct sample *other, int input)
{
	const struct task_tensor *t = &s->task->inputs[input];
	double value = s->scalars[input];

	if (!t->scalar)
		return sample_take_input(s, other, input);
	for (size_t i = 0; i < t->vary_count; i++)
		if (t->vary[i] != s->scalars[input])
			value = t->vary[i];
	if (value == s->scalars[input])
		value = value * 1.5 + 1;
	sample_set_scalar(s, input, value);
	return true;
}

static int check_dependence(const struct proof *p, const struct oracle *oracle, int input, int workload, int set,
			    enum dependence *found, struct error *err)
{
	struct sample s, other;
	struct rows before = { 0 }, after = { 0 };
	int result;

	sample_init(&s, p->task, oracle, workload, set, SEED);
	sample_init(&other, p->task, oracle, workload, set, OTHER_SEED);
	result = rows_compute(oracle, &s, &before, err);
	if (result == 0 && exchange(&s, &other, input)) {
		*found = *found == DEPENDS ? DEPENDS : DOES_NOT_MATTER;
		result = rows_compute(oracle, &s, &after, err);
		for (int o = 0; o < p->task->output_count && result == 0; o++)
			if (rows_wrong(p->task, &before, &after, o) > 0)
				*found = DEPENDS;
	}
	rows_release(p->task, &before);
	rows_release(p->task, &after);
	sample_release(&s);
	sample_release(&other);
	return result;
}

static int prove_dependence(const struct proof *p, const struct oracle *oracle, struct error *err)
{
	for (int i = 0; i < p->task->input_count; i++) {
		enum dependence found = NEVER_VARIES;

		for (int w = 0; w < p->task->workload_count && found != DEPENDS; w++)
			for (int set = 0; set < SET_COUNT && found != DEPENDS; set++)
				if (p->task->input_sets[set] && check_dependence(p, oracle, i, w, set, &found, err) < 0)
					return -1;
		say(p, found == DEPENDS,
		    found == NEVER_VARIES ? "it is the same in every draw" : "with another one the old outputs still pass",
		    "the expected outputs depend on input '%s'", p->task->inputs[i].name);
	}
	return 0;
}

/* ---- tolerances --------------------------------------------------------------------------------------------------- */

static double round_to(enum task_dtype dtype, double x)
{
	switch (dtype) {
	case DTYPE_FLOAT32: return (double)(float)x;
	case DTYPE_BFLOAT16:
	case DTYPE_FLOAT16: {
		uint16_t half = dtype == DTYPE_BFLOAT16 ? number_to_bfloat16((float)x) : number_to_float16((float)x);
		double back;

		number_decode(dtype, &half, 0, 1, &back);
		return back;
	}
	default: return x;
	}
}

/* What a tolerance allows in a row: per element, and per element if all are moved alike (the bound on the norm). */
struct allowed {
	double each, norm; /* norm: INFINITY if there is no such bound */
};

static double finite_norm(const double *e, size_t n, size_t *count)
{
	double sum = 0;

	*count = 0;
	for (size_t i = 0; i < n; i++)
		if (isfinite(e[i])) {
			sum += e[i] * e[i];
			(*count)++;
		}
	return sqrt(sum);
}

static struct allowed allowed_at(const struct task_tolerance *t, double norm, size_t count, double e)
{
	double root = count ? sqrt((double)count) : 1;
	struct allowed a = { t->a * fabs(e) + t->c * norm / root + t->absolute, INFINITY };

	if (t->r >= 0)
		a.norm = t->r * norm / root + t->absolute;
	return a;
}

enum change { ROUNDED, FIFTH, ONE_ELEMENT, WHOLE_ROW };

/* A changed copy of a row; false if this change cannot be made there (nothing is allowed, or no bound on the norm). */
static bool change_row(const struct task_tensor *output, const double *e, size_t n, enum change change, double *to)
{
	size_t count, hit = n / 2;
	double norm = finite_norm(e, n, &count);
	bool changed = change == ROUNDED || change == FIFTH;

	while (change == ONE_ELEMENT && hit < n && !isfinite(e[hit]))
		hit++;
	for (size_t i = 0; i < n; i++) {
		struct allowed a = allowed_at(&output->tolerance, norm, count, e[i]);
		double sign = (i * 2654435761u >> 7) % 2 ? 1 : -1, by = 0;

		if (change == FIFTH)
			by = 0.2 * fmin(a.each, a.norm);
		else if (change == ONE_ELEMENT && i == hit)
			by = 5 * a.each;
		else if (change == WHOLE_ROW && isfinite(a.norm))
			by = 5 * a.norm;
		to[i] = !isfinite(e[i]) ? e[i] : change == ROUNDED ? round_to(output->dtype, e[i]) : e[i] + sign * by;
		changed = changed || to[i] != e[i];
	}
	return changed;
}

struct tally {
	int64_t rows, wrong;
};

static void try_change(const struct proof *p, const struct rows *r, int output, enum change change, struct tally *tally)
{
	const struct task_tensor *t = &p->task->outputs[output];
	double *changed = xreallocarray(NULL, r->length[output] + 1, sizeof(double));

	for (int64_t i = 0; i < r->count; i++) {
		const double *e = r->expected[i][output];
		struct compare_result result = { 0 };

		if (!change_row(t, e, r->length[output], change, changed))
			continue;
		compare_row(changed, e, r->length[output], r->at[i], &t->tolerance, &result);
		tally->rows++;
		tally->wrong += result.wrong_rows;
	}
	free(changed);
}

static int tally_changes(const struct proof *p, const struct oracle *oracle, int output, struct tally *tally, struct error *err)
{
	for (int w = 0; w < p->task->workload_count; w++)
		for (int set = 0; set < SET_COUNT; set++) {
			struct sample s;
			struct rows r = { 0 };
			int result;

			if (!p->task->input_sets[set])
				continue;
			sample_init(&s, p->task, oracle, w, set, SEED);
			result = rows_compute(oracle, &s, &r, err);
			for (int change = ROUNDED; change <= WHOLE_ROW && result == 0; change++)
				try_change(p, &r, output, (enum change)change, &tally[change]);
			rows_release(p->task, &r);
			sample_release(&s);
			if (result < 0)
				return -1;
		}
	return 0;
}

static int prove_tolerance(const struct proof *p, const struct oracle *oracle, struct error *err)
{
	for (int o = 0; o < p->task->output_count; o++) {
		const char *name = p->task->outputs[o].name;
		struct tally tally[WHOLE_ROW + 1] = { 0 };
		char why[4][120];

		if (tally_changes(p, oracle, o, tally, err) < 0)
			return -1;
		for (int i = 0; i <= WHOLE_ROW; i++)
			snprintf(why[i], sizeof(why[i]), "%lld of %lld rows were found wrong", (long long)tally[i].wrong,
				 (long long)tally[i].rows);
		say(p, tally[ROUNDED].wrong == 0, why[ROUNDED], "'%s': expected values, rounded to %s, pass", name,
		    dtype_name(p->task->outputs[o].dtype));
		say(p, tally[FIFTH].wrong == 0, why[FIFTH], "'%s': expected values off by 0.2 of the tolerance pass", name);
		say(p, tally[ONE_ELEMENT].rows > 0 && tally[ONE_ELEMENT].wrong == tally[ONE_ELEMENT].rows, why[ONE_ELEMENT],
		    "'%s': one element off by 5 times its tolerance fails", name);
		if (p->task->outputs[o].tolerance.r >= 0)
			say(p, tally[WHOLE_ROW].rows > 0 && tally[WHOLE_ROW].wrong == tally[WHOLE_ROW].rows, why[WHOLE_ROW],
			    "'%s': a row off by 5 times its norm's tolerance fails", name);
	}
	return 0;
}

int proof_reference(const struct proof *p, struct error *err)
{
	struct oracle *oracle = oracle_open(p->reference, p->task, err);
	int result;

	if (!oracle)
		return -1;
	result = prove_repeatable(p, oracle, err);
	if (result == 0) {
		prove_counts(p, oracle);
		result = prove_dependence(p, oracle, err);
	}
	if (result == 0)
		result = prove_tolerance(p, oracle, err);
	oracle_close(oracle);
	return result;
}
