/* The input generator: golden values, so that it is the same on any machine, and the shapes of its distributions. */
#include "number.h"
#include "random.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { ROWS = 512, COLUMNS = 512, COUNT = ROWS * COLUMNS };

static float x[COUNT];

/* FNV-1a over the bytes: any changed bit changes it. */
static uint64_t sum(const void *data, size_t bytes)
{
	uint64_t h = 0xcbf29ce484222325u;

	for (size_t i = 0; i < bytes; i++)
		h = (h ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
	return h;
}

static void golden_values(void **state)
{
	static const uint64_t expected[REF_SETS] = { 0x443c7cb263e62fb4, 0xd2204a4c5c9c118a, 0x672701977617f654, 0xaadafca070c39754, 0xbf863935916da7fb };

	(void)state;
	for (int set = 0; set < REF_SETS; set++) {
		random_fill_float(x, ROWS, COLUMNS, set, 42);
		if (sum(x, sizeof(x)) != expected[set])
			fail_msg("set %d: 0x%016lx", set, (unsigned long)sum(x, sizeof(x)));
	}
}

static void element_depends_on_seed_and_index_alone(void **state)
{
	float part[100];

	(void)state;
	random_fill_float(x, ROWS, COLUMNS, REF_NORMAL, 7);
	random_fill_float(part, 1, 100, REF_NORMAL, 7);
	assert_memory_equal(part, x, sizeof(part));
	random_fill_float(part, 1, 99, REF_NORMAL, 8);
	assert_memory_not_equal(part, x, 99 * sizeof(float));
}

static double mean(void)
{
	double m = 0;

	for (int i = 0; i < COUNT; i++)
		m += x[i];
	return m / COUNT;
}

static double moment(double centre, int power)
{
	double m = 0;

	for (int i = 0; i < COUNT; i++)
		m += pow(x[i] - centre, power);
	return m / COUNT;
}

/* Standard errors over 262144 draws: mean 0.002, variance 0.003, fourth moment 0.02. */
static void normal_moments(void **state)
{
	(void)state;
	random_fill_float(x, ROWS, COLUMNS, REF_NORMAL, 1);
	assert_true(fabs(mean()) < 0.01);
	assert_true(fabs(moment(0, 2) - 1) < 0.015);
	assert_true(fabs(moment(0, 3)) < 0.03);
	assert_true(fabs(moment(0, 4) - 3) < 0.1);
	random_fill_float(x, ROWS, COLUMNS, REF_SHIFTED, 1);
	assert_true(fabs(mean() - 2) < 0.01);
	assert_true(fabs(moment(2, 2) - 1) < 0.015);
}

static int compare_floats(const void *a, const void *b)
{
	float p = *(const float *)a, q = *(const float *)b;

	return (p > q) - (p < q);
}

/* Known quantiles of Student's t with 3 degrees of freedom: 0.75 0.7649, 0.95 2.3534, 0.995 5.8409. */
static void student_quantiles(void **state)
{
	(void)state;
	random_fill_float(x, ROWS, COLUMNS, REF_STUDENT_T3, 1);
	qsort(x, COUNT, sizeof(*x), compare_floats);
	assert_true(fabs(x[COUNT / 2]) < 0.01);
	assert_true(fabs(x[COUNT * 3 / 4] - 0.7649) < 0.02);
	assert_true(fabs(x[(int)(COUNT * 0.95)] - 2.3534) < 0.05);
	assert_true(fabs(x[(int)(COUNT * 0.995)] - 5.8409) < 0.3);
	assert_true(fabs(x[(int)(COUNT * 0.005)] + 5.8409) < 0.3);
}

static double row_rms(int row)
{
	double s = 0;

	for (int i = 0; i < COLUMNS; i++)
		s += (double)x[row * COLUMNS + i] * x[row * COLUMNS + i];
	return sqrt(s / COLUMNS);
}

/* ln of a row's size: mean 0, standard deviation 0.7 over 512 rows. */
static void rows_are_scaled(void **state)
{
	double m = 0, v = 0;

	(void)state;
	random_fill_float(x, ROWS, COLUMNS, REF_ROW_SCALED, 3);
	for (int r = 0; r < ROWS; r++) {
		m += log(row_rms(r)) / ROWS;
		v += log(row_rms(r)) * log(row_rms(r)) / ROWS;
	}
	assert_true(fabs(m) < 0.13);
	assert_true(fabs(sqrt(v) - 0.7) < 0.1);
}

static void structured_has_few_bits(void **state)
{
	int large = 0;

	(void)state;
	random_fill_float(x, ROWS, COLUMNS, REF_STRUCTURED, 3);
	for (int i = 0; i < COUNT; i++) {
		assert_true(x[i] * 8 == rint(x[i] * 8) && fabs(x[i]) <= 8);
		large += fabs(x[i]) > 1;
	}
	assert_in_range(large, COUNT / 128, COUNT / 32);
}

static void tails_are_symmetric(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < 1u << 20; i++) {
		uint32_t bits = i < 1u << 19 ? i : i << 12;

		/* The mirrored draw is a neighbour in the table: its steps are at most 8 there. */
		assert_in_range(abs(random_normal(bits) + random_normal(~bits)), 0, 8);
	}
	assert_true(random_normal(0) < -5 * (1 << RANDOM_FRACTION_BITS));
}

static void narrow_floats(void **state)
{
	static const struct {
		float from;
		uint16_t half, bfloat;
	} cases[] = {
		{ 0, 0, 0 }, { 1, 0x3c00, 0x3f80 }, { -2, 0xc000, 0xc000 }, { 65504, 0x7bff, 0x4780 }, { 1e6f, 0x7bff, 0x4974 },
		{ 5.9604645e-8f, 0x0001, 0x3380 }, { 2.9802322e-8f, 0x0000, 0x3300 }, { 6.1035156e-5f, 0x0400, 0x3880 },
		{ 1.00048828125f, 0x3c00, 0x3f80 }, { 1.00146484375f, 0x3c02, 0x3f80 }, { 1.0078125f, 0x3c08, 0x3f81 },
		{ -INFINITY, 0xfbff, 0xff80 },
	};
	double back;
	uint16_t nan = number_to_float16((float)NAN);

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		assert_int_equal(number_to_float16(cases[i].from), cases[i].half);
		assert_int_equal(number_to_bfloat16(cases[i].from), cases[i].bfloat);
	}
	number_decode(DTYPE_FLOAT16, &nan, 0, 1, &back);
	assert_true(isnan(back));
	for (uint32_t u = 0; u < 0x7c00; u++) {
		uint16_t half = (uint16_t)u;

		number_decode(DTYPE_FLOAT16, &half, 0, 1, &back);
		assert_int_equal(number_to_float16((float)back), half);
	}
}

static void small_floats(void **state)
{
	static const uint8_t e4m3[] = { 0x7e, 0x38, 0x01, 0xb8, 0x7f }, e5m2[] = { 0x7b, 0x3c, 0x01, 0xbc, 0x7c }, e2m1[] = { 0x71, 0x9a };
	double y[5];

	(void)state;
	number_decode(DTYPE_FLOAT8_E4M3FN, e4m3, 0, 5, y);
	assert_true(y[0] == 448 && y[1] == 1 && y[2] == 0x1p-9 && y[3] == -1 && isnan(y[4]));
	number_decode(DTYPE_FLOAT8_E5M2, e5m2, 0, 5, y);
	assert_true(y[0] == 57344 && y[1] == 1 && y[2] == 0x1p-16 && y[3] == -1 && isinf(y[4]));
	number_decode(DTYPE_FLOAT4_E2M1, e2m1, 0, 4, y);
	assert_true(y[0] == 0.5 && y[1] == 6 && y[2] == -1 && y[3] == -0.5);
}

static void permutations(void **state)
{
	int32_t p[1000];
	char seen[1000] = { 0 };
	int fixed = 0;

	(void)state;
	ref_permutation(5, p, 1000);
	for (int i = 0; i < 1000; i++) {
		assert_in_range(p[i], 0, 999);
		seen[p[i]]++;
		fixed += p[i] == i;
	}
	for (int i = 0; i < 1000; i++)
		assert_int_equal(seen[i], 1);
	assert_in_range(fixed, 0, 10);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(golden_values), cmocka_unit_test(element_depends_on_seed_and_index_alone),
		cmocka_unit_test(normal_moments), cmocka_unit_test(student_quantiles), cmocka_unit_test(rows_are_scaled),
		cmocka_unit_test(structured_has_few_bits), cmocka_unit_test(tails_are_symmetric), cmocka_unit_test(narrow_floats),
		cmocka_unit_test(small_floats), cmocka_unit_test(permutations),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
