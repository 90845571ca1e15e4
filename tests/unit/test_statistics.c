/* Who is faster: simulated machines with drift, steady noise and rare large slowdowns. The seeds are fixed, so the counts
 * are too; the bounds are those that the method promises for any seed. */
#include "reference.h"
#include "random.h"
#include "statistics.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

enum { TRIALS = 1000, WORKLOADS = 3 };

struct machine {
	double drift;     /* standard deviation of what both calls of a pair share */
	double noise;     /* of a single call's ln(time) */
	double slow_share, slow_factor;
};

static uint64_t counter;

static double gauss(void)
{
	return random_normal((uint32_t)ref_random(1234, counter++)) / (double)(1 << RANDOM_FRACTION_BITS);
}

static double call(const struct machine *m, double shared, double log_time)
{
	double x = log_time + shared + m->noise * gauss();

	return (double)(ref_random(99, counter++) >> 11) * 0x1p-53 < m->slow_share ? x + log(m->slow_factor) * (1 + fabs(gauss())) : x;
}

/* One judgement: blocks A B B A on three workloads; theirs takes `factor` times as long as ours. */
static enum versus_verdict trial(const struct machine *m, double factor)
{
	struct estimate gains[WORKLOADS], all;
	double speedup[WORKLOADS] = { 10, 20, 15 }, z, pairs[2 * VERSUS_BLOCKS];

	for (int w = 0; w < WORKLOADS; w++) {
		for (int i = 0; i < 2 * VERSUS_BLOCKS; i++) {
			double shared = m->drift * gauss(), theirs = call(m, shared, log(factor));

			pairs[i] = theirs - call(m, shared, 0);
		}
		gains[w] = statistics_robust(pairs, 2 * VERSUS_BLOCKS);
	}
	all = statistics_score_gain(gains, speedup, WORKLOADS, false);
	return statistics_versus(&all, VERSUS_GAIN, &z);
}

static int count(const struct machine *m, double factor, enum versus_verdict verdict)
{
	int n = 0;

	for (int i = 0; i < TRIALS; i++)
		n += trial(m, factor) == verdict;
	return n;
}

/* 20 % lognormal noise that both kernels share, 3 % of their own, one call in 20 slowed down by half and more. */
static const struct machine shared_noise = { .drift = 0.2, .noise = 0.03, .slow_share = 0.05, .slow_factor = 1.5 };

static const struct machine quiet = { .drift = 0.2, .noise = 0.015, .slow_share = 0.02, .slow_factor = 1.5 };

/* 20 % on every call on its own: nothing cancels, and nothing below some 6 % can be found. */
static const struct machine own_noise = { .drift = 0, .noise = 0.2, .slow_share = 0, .slow_factor = 1 };

/* |z| > 3 has a probability of 0.0027, and more than 9 of 1000 one of 0.001. With little noise the 1 % that a gain must
 * have makes a wrong verdict impossible. */
static void copies_are_equal(void **state)
{
	(void)state;
	assert_int_equal(count(&quiet, 1, VERSUS_EQUAL), TRIALS);
	assert_in_range(count(&shared_noise, 1, VERSUS_EQUAL), TRIALS - 9, TRIALS);
	assert_in_range(count(&own_noise, 1, VERSUS_EQUAL), TRIALS - 9, TRIALS);
}

static void three_percent_is_found(void **state)
{
	(void)state;
	assert_in_range(count(&shared_noise, 1.03, VERSUS_BETTER), TRIALS * 99 / 100, TRIALS);
	assert_in_range(count(&shared_noise, 1 / 1.03, VERSUS_WORSE), TRIALS * 99 / 100, TRIALS);
}

static void noise_hides_no_wrong_sign(void **state)
{
	(void)state;
	assert_int_equal(count(&own_noise, 1.03, VERSUS_WORSE), 0);
	assert_in_range(count(&own_noise, 1.2, VERSUS_BETTER), TRIALS * 99 / 100, TRIALS);
}

/* Half a percent, known to the bit, is no gain. */
static void small_gains_do_not_count(void **state)
{
	struct estimate gain = { .mean = log(1.005), .error = 1e-9, .n = 64, .freedom = 39 };
	double z;

	(void)state;
	assert_int_equal(statistics_versus(&gain, VERSUS_GAIN, &z), VERSUS_EQUAL);
	assert_true(z > 3);
	gain.mean = log(1.02);
	assert_int_equal(statistics_versus(&gain, VERSUS_GAIN, &z), VERSUS_BETTER);
	gain.error = 0.01;
	assert_int_equal(statistics_versus(&gain, VERSUS_GAIN, &z), VERSUS_EQUAL);
	gain.mean = -log(1.02);
	gain.error = 0.001;
	assert_int_equal(statistics_versus(&gain, VERSUS_GAIN, &z), VERSUS_WORSE);
}

/* Few values with the same mean and error are weaker evidence: t of 4 with 5 degrees of freedom is z of 2.6. */
static void few_values_weigh_less(void **state)
{
	struct estimate gain = { .mean = 0.04, .error = 0.01, .n = 10, .freedom = 5 };
	double z;

	(void)state;
	assert_int_equal(statistics_versus(&gain, VERSUS_GAIN, &z), VERSUS_EQUAL);
	assert_true(fabs(z - 2.57) < 0.05);
	gain.freedom = 1000;
	assert_int_equal(statistics_versus(&gain, VERSUS_GAIN, &z), VERSUS_BETTER);
	assert_true(fabs(z - 4) < 0.02);
}

/* One value far off moves the robust mean no more than one just beyond the others. */
static void outliers_do_not_count(void **state)
{
	double x[20];
	struct estimate calm, wild;

	(void)state;
	for (int i = 0; i < 20; i++)
		x[i] = i;
	calm = statistics_robust(x, 20);
	x[19] = 1e9;
	wild = statistics_robust(x, 20);
	assert_true(calm.mean == 9.5 && wild.mean == 9.5 && calm.error == wild.error);
	assert_true(isinf(statistics_robust(x, 4).error));
	assert_true(isnan(statistics_robust(x, 0).mean));
}

/* The standard error tells how far means of fresh samples scatter. */
static void error_is_calibrated(void **state)
{
	double means = 0, errors = 0, x[VERSUS_BLOCKS];

	(void)state;
	for (int t = 0; t < TRIALS; t++) {
		struct estimate e;

		for (int i = 0; i < VERSUS_BLOCKS; i++)
			x[i] = gauss();
		e = statistics_robust(x, VERSUS_BLOCKS);
		means += e.mean * e.mean / TRIALS;
		errors += e.error * e.error / TRIALS;
	}
	assert_true(errors / means > 0.85 && errors / means < 1.15);
}

static void quantiles(void **state)
{
	double x[] = { 3, 1, 2, 5, 4 };

	(void)state;
	assert_true(statistics_quantile(x, 5, 0.5) == 3);
	assert_true(statistics_quantile(x, 5, 0.25) == 2);
	assert_true(statistics_quantile(x, 4, 0.5) == 2.5);
	assert_true(statistics_quantile(x, 1, 0.9) == 1);
	assert_true(isnan(statistics_quantile(x, 0, 0.5)));
}

/* Twice as fast on one workload of speed-up 10, equal on one of 30: 40 against 35. */
static void score_gain_weighs_by_speedup(void **state)
{
	struct estimate gain[] = { { log(2), 0.01, 64, 39 }, { 0, 0.01, 64, 39 } }, all;
	double speedup[] = { 10, 30 };

	(void)state;
	all = statistics_score_gain(gain, speedup, 2, false);
	assert_true(fabs(exp(all.mean) - 40.0 / 35) < 1e-12);
	assert_true(fabs(all.error - 0.01 * sqrt(25 + 900) / 35) < 1e-12);
	all = statistics_score_gain(gain, speedup, 2, true);
	assert_true(fabs(exp(all.mean) - sqrt(2)) < 1e-12);
	assert_true(fabs(all.error - 0.01 / sqrt(2)) < 1e-12);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(copies_are_equal), cmocka_unit_test(three_percent_is_found), cmocka_unit_test(noise_hides_no_wrong_sign),
		cmocka_unit_test(small_gains_do_not_count), cmocka_unit_test(few_values_weigh_less),
		cmocka_unit_test(outliers_do_not_count), cmocka_unit_test(error_is_calibrated),
		cmocka_unit_test(quantiles), cmocka_unit_test(score_gain_weighs_by_speedup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
