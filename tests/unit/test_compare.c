/* The rule by which an output row is right: thresholds from both sides, NaN, infinities, norms. */
#include "compare.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static enum compare_verdict compare(const double *got, const double *expected, size_t n, struct task_tolerance t,
				    struct compare_result *r)
{
	memset(r, 0, sizeof(*r));
	return compare_row(got, expected, n, 5, &t, r);
}

/* |err| <= a |ref|: exactly at the threshold passes, the next double does not. */
static void relative_threshold(void **state)
{
	const struct task_tolerance t = { .a = 0.25, .r = -1 };
	struct compare_result r;
	double expected[] = { 4 }, got[] = { 5 };

	(void)state;
	assert_int_equal(compare(got, expected, 1, t, &r), COMPARE_RIGHT);
	assert_true(r.max_abs_error == 1 && r.max_rel_error == 0.25 && r.checked_rows == 1 && r.wrong_rows == 0);
	got[0] = nextafter(5, 6);
	assert_int_equal(compare(got, expected, 1, t, &r), COMPARE_WRONG);
	assert_int_equal(r.wrong_rows, 1);
	assert_int_equal(r.wrong[0].row, 5);
	assert_true(r.wrong[0].expected == 4 && r.wrong[0].index == 0);
	got[0] = 3;
	assert_int_equal(compare(got, expected, 1, t, &r), COMPARE_RIGHT);
}

/* c * rms of the row: small elements of a row of large ones may be off by more than themselves. */
static void rms_threshold(void **state)
{
	const struct task_tolerance t = { .c = 0.125, .r = -1 };
	struct compare_result r;
	double expected[] = { 8, 8, 8, 8, 0, 0, 0, 0, 8, 8, 8, 8, 0, 0, 0, 0 }, got[16]; /* rms 5.66: 0.707 */

	(void)state;
	memcpy(got, expected, sizeof(got));
	got[4] = 0.7;
	assert_int_equal(compare(got, expected, 16, t, &r), COMPARE_RIGHT);
	got[4] = 0.72;
	assert_int_equal(compare(got, expected, 16, t, &r), COMPARE_WRONG);
	assert_int_equal(r.wrong[0].index, 4);
}

static void absolute_threshold(void **state)
{
	const struct task_tolerance t = { .absolute = 0.5, .r = -1 };
	struct compare_result r;
	double expected[] = { 0, 100 }, got[] = { 0.5, 99.5 };

	(void)state;
	assert_int_equal(compare(got, expected, 2, t, &r), COMPARE_RIGHT);
	got[1] = 99.25;
	assert_int_equal(compare(got, expected, 2, t, &r), COMPARE_WRONG);
}

/* Elements within tolerance, the row as a whole not. */
static void norm_threshold(void **state)
{
	struct task_tolerance t = { .a = 0.5, .r = 0.25 };
	struct compare_result r;
	double expected[] = { 3, 4 }, got[] = { 4, 4.5 }; /* ||err|| 1.118, ||ref|| 5: 0.224 */

	(void)state;
	assert_int_equal(compare(got, expected, 2, t, &r), COMPARE_RIGHT);
	t.r = 0.22;
	assert_int_equal(compare(got, expected, 2, t, &r), COMPARE_WRONG);
	assert_int_equal(r.wrong_count, 1);
	assert_int_equal(r.wrong[0].index, 0);
	t.r = -1;
	assert_int_equal(compare(got, expected, 2, t, &r), COMPARE_RIGHT);
}

static void nan_fails(void **state)
{
	const struct task_tolerance t = { .a = 1e30, .c = 1e30, .r = 1e30, .absolute = 1e30 };
	struct compare_result r;
	double expected[] = { 1, 2 }, got[] = { 1, (double)NAN };

	(void)state;
	assert_int_equal(compare(got, expected, 2, t, &r), COMPARE_WRONG);
	assert_int_equal(r.wrong[0].index, 1);
	got[1] = INFINITY;
	assert_int_equal(compare(got, expected, 2, t, &r), COMPARE_WRONG);
	expected[0] = (double)NAN;
	assert_int_equal(compare(got, expected, 2, t, &r), COMPARE_REFERENCE_NAN);
}

static void infinities_must_match(void **state)
{
	const struct task_tolerance t = { .a = 0.1, .r = 0.1 };
	struct compare_result r;
	double expected[] = { -INFINITY, 1 }, got[] = { -INFINITY, 1 };

	(void)state;
	assert_int_equal(compare(got, expected, 2, t, &r), COMPARE_RIGHT);
	assert_true(r.max_abs_error == 0);
	got[0] = -1e30;
	assert_int_equal(compare(got, expected, 2, t, &r), COMPARE_WRONG);
	got[0] = INFINITY;
	assert_int_equal(compare(got, expected, 2, t, &r), COMPARE_WRONG);
	got[0] = (double)NAN;
	assert_int_equal(compare(got, expected, 2, t, &r), COMPARE_WRONG);
	got[0] = -INFINITY;
	got[1] = -INFINITY;
	assert_int_equal(compare(got, expected, 2, t, &r), COMPARE_WRONG);
}

/* A row of zeros is right only as zeros. */
static void zero_reference(void **state)
{
	const struct task_tolerance t = { .a = 0.1, .c = 0.1, .r = 0.1 };
	struct compare_result r;
	double expected[] = { 0, 0 }, got[] = { 0, -0.0 };

	(void)state;
	assert_int_equal(compare(got, expected, 2, t, &r), COMPARE_RIGHT);
	got[1] = 1e-300;
	assert_int_equal(compare(got, expected, 2, t, &r), COMPARE_WRONG);
}

static void results_add_up(void **state)
{
	const struct task_tolerance t = { .a = 0.1, .r = -1 };
	struct compare_result r = { 0 };
	double expected[20], got[20];

	(void)state;
	for (int i = 0; i < 20; i++) {
		expected[i] = 1;
		got[i] = 2 + i;
	}
	for (int64_t row = 0; row < 3; row++)
		assert_int_equal(compare_row(row == 1 ? expected : got, expected, 20, row, &t, &r), row == 1 ? COMPARE_RIGHT : COMPARE_WRONG);
	assert_int_equal(r.checked_rows, 3);
	assert_int_equal(r.wrong_rows, 2);
	assert_int_equal(r.wrong_count, COMPARE_SHOWN);
	assert_true(r.max_abs_error == 20);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(relative_threshold), cmocka_unit_test(rms_threshold), cmocka_unit_test(absolute_threshold),
		cmocka_unit_test(norm_threshold), cmocka_unit_test(nan_fails), cmocka_unit_test(infinities_must_match),
		cmocka_unit_test(zero_reference), cmocka_unit_test(results_add_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
