#include "compare.h"

#include <math.h>

static void note_wrong(struct compare_result *result, int64_t row, size_t index, double got, double expected)
{
	if (result->wrong_count < COMPARE_SHOWN)
		result->wrong[result->wrong_count++] = (struct compare_element){ row, (int64_t)index, got, expected };
}

/* Where the whole row is off but no element is, show the element that is off most. */
static void note_worst(struct compare_result *result, int64_t row, const double *got, const double *expected, size_t n)
{
	size_t worst = 0;
	double most = -1;

	for (size_t i = 0; i < n; i++) {
		double error = fabs(got[i] - expected[i]);

		if (error > most) {
			most = error;
			worst = i;
		}
	}
	note_wrong(result, row, worst, got[worst], expected[worst]);
}

static void note_errors(struct compare_result *result, double error, double size)
{
	if (!isfinite(error))
		return;
	result->max_abs_error = fmax(result->max_abs_error, error);
	if (size > 0)
		result->max_rel_error = fmax(result->max_rel_error, error / size);
}

enum compare_verdict compare_row(const double *got, const double *expected, size_t n, int64_t row,
				 const struct task_tolerance *tolerance, struct compare_result *result)
{
	double ref2 = 0, err2 = 0, rms;
	size_t finite = 0, wrong = 0;

	for (size_t i = 0; i < n; i++) {
		if (isnan(expected[i]))
			return COMPARE_REFERENCE_NAN;
		if (isfinite(expected[i])) {
			ref2 += expected[i] * expected[i];
			finite++;
		}
	}
	rms = finite ? sqrt(ref2 / (double)finite) : 0;
	for (size_t i = 0; i < n; i++) {
		double error = fabs(got[i] - expected[i]), size = fabs(expected[i]);
		bool right = isinf(expected[i]) ? got[i] == expected[i]
						: error <= tolerance->a * size + tolerance->c * rms + tolerance->absolute;

		if (!right) {
			wrong++;
			note_wrong(result, row, i, got[i], expected[i]);
		}
		if (isfinite(expected[i])) {
			err2 += error * error;
			note_errors(result, error, fmax(size, rms));
		}
	}
	if (!wrong && tolerance->r >= 0 &&
	    !(sqrt(err2) <= tolerance->r * sqrt(ref2) + tolerance->absolute * sqrt((double)finite))) {
		wrong++;
		note_worst(result, row, got, expected, n);
	}
	result->checked_rows++;
	result->wrong_rows += wrong > 0;
	return wrong ? COMPARE_WRONG : COMPARE_RIGHT;
}
