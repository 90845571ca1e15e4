#include "random.h"

#include "number.h"
#include "util.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* The few double operations below must round as written on every machine: no fused multiply-add. */
#pragma GCC optimize("fp-contract=off")

enum {
	STEPS = 4096,      /* linear pieces of a quantile function; the first and the last are the tails */
	TAIL_STEPS = 4096, /* pieces of each tail */
	T3_BITS = 20,      /* Student's t is kept in units of 2^-20, normals in units of 2^-24 */
};

/* Quantiles at i / STEPS and, for the lower tail, at i / (STEPS * TAIL_STEPS), in units of 2^-bits. */
struct quantiles {
	int32_t centre[STEPS + 1], tail[TAIL_STEPS + 1];
};

static struct quantiles normal, t3;
static bool tables_made;

/* ---- the quantile tables ---------------------------------------------------------------------------------------- */

/* Natural logarithm by frexp and the series of artanh, to about 1e-15, with + - * / alone. */
static double log_series(double x)
{
	int e;
	double m = frexp(x, &e), y, y2, term, sum = 0;

	y = (m - 0.75) / (m + 0.75);
	y2 = y * y;
	term = y;
	for (int k = 1; k < 40; k += 2) {
		sum = sum + term / k;
		term = term * y2;
	}
	/* ln 0.75 and ln 2 */
	return 2 * sum - 0.28768207245178092744 + e * 0.69314718055994530942;
}

/* exp by halving and squaring, to about 1e-15 relative. */
static double exp_series(double x)
{
	double y = x / 1024, sum = 1, term = 1;

	for (int k = 1; k < 14; k++) {
		term = term * y / k;
		sum = sum + term;
	}
	for (int k = 0; k < 10; k++)
		sum = sum * sum;
	return sum;
}

/* The quantile of p < 1/2: P. J. Acklam's rational approximation (relative error 1.15e-9), good to far below the
 * 2^-24 of the table at every point used. */
static double lower_quantile(double p)
{
	static const double a[] = { -3.969683028665376e+01, 2.209460984245205e+02, -2.759285104469687e+02,
				    1.383577518672690e+02, -3.066479806614716e+01, 2.506628277459239e+00 };
	static const double b[] = { -5.447609879822406e+01, 1.615858368580409e+02, -1.556989798598866e+02,
				    6.680131188771972e+01, -1.328068155288572e+01, 1 };
	static const double c[] = { -7.784894002430293e-03, -3.223964580411365e-01, -2.400758277161838e+00,
				    -2.549732539343734e+00, 4.374664141464968e+00, 2.938163982698783e+00 };
	static const double d[] = { 7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e+00,
				    3.754408661907416e+00, 1 };
	bool centre = p >= 0.02425;
	double q = centre ? p - 0.5 : sqrt(-2 * log_series(p)), x = centre ? q * q : q;
	const double *up = centre ? a : c, *down = centre ? b : d;
	double num = 0, den = 0;

	for (int i = 0; i < 6; i++)
		num = num * x + up[i];
	for (int i = 0; i < (centre ? 6 : 5); i++)
		den = den * x + down[i];
	return centre ? num * q / den : num / den;
}

/* atan of x >= 0, to about 1e-15: three halvings of the angle, then its series. */
static double atan_series(double x)
{
	double x2, term, sum = 0;

	for (int i = 0; i < 3; i++)
		x = x / (1 + sqrt(1 + x * x));
	x2 = x * x;
	term = x;
	for (int k = 1; k < 30; k += 2) {
		sum = sum + term / k;
		term = term * -x2;
	}
	return 8 * sum;
}

/* The quantile of p < 1/2 of Student's t with 3 degrees of freedom. Its distribution function at -sqrt(3) v is
 * (atan(1/v) - v / (1 + v^2)) / pi; Newton's method in v goes on from where the last call ended, whose p was near. */
static double lower_t3(double p, double *v)
{
	for (int i = 0; i < 6; i++) {
		double w = 1 + *v * *v, f = (atan_series(1 / *v) - *v / w) - 3.14159265358979323846 * p;
		double next = *v + f * w * w / 2;

		*v = next > *v / 2 ? next : *v / 2;
	}
	return -1.73205080756887729353 * *v;
}

/* By symmetry the upper half follows from the lower one; the middle stays 0. */
static void set_lower(struct quantiles *q, int i, int32_t x)
{
	q->centre[i] = x;
	q->centre[STEPS - i] = -x;
}

static int32_t fixed(double x, int bits)
{
	return (int32_t)rint(x * (1 << bits));
}

static void make_tables(void)
{
	const double finest = 1.0 / ((double)STEPS * TAIL_STEPS);
	double v = 100;

	for (int i = 1; i <= TAIL_STEPS; i++) {
		normal.tail[i] = fixed(lower_quantile(i * finest), RANDOM_FRACTION_BITS);
		t3.tail[i] = fixed(lower_t3(i * finest, &v), T3_BITS);
	}
	for (int i = 1; i < STEPS / 2; i++) {
		set_lower(&normal, i, fixed(lower_quantile((double)i / STEPS), RANDOM_FRACTION_BITS));
		set_lower(&t3, i, fixed(lower_t3((double)i / STEPS, &v), T3_BITS));
	}
	normal.tail[0] = normal.tail[1];
	t3.tail[0] = t3.tail[1];
	tables_made = true;
}

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

/* The value of 32 random bits: 12 choose the piece, 20 the place in it; in a tail 12 the finer piece, 8 the place. */
static inline int32_t quantile(const struct quantiles *q, uint32_t bits)
{
	uint32_t i = bits >> 20, rest = bits & 0xfffff;
	const int32_t *t = q->centre + i;

	if (__builtin_expect(i == 0 || i == STEPS - 1, 0)) {
		bool upper = i > 0;
		uint32_t depth = upper ? 0xfffff - rest : rest;
		int32_t x;

		t = q->tail + (depth >> 8);
		x = (int32_t)(t[0] + (((int64_t)(t[1] - t[0]) * (depth & 0xff)) >> 8));
		return upper ? -x : x;
	}
	return (int32_t)(t[0] + (((int64_t)(t[1] - t[0]) * rest) >> 20));
}

int32_t random_normal(uint32_t bits)
{
	if (!tables_made)
		make_tables();
	return quantile(&normal, bits);
}

double random_row_scale(int32_t g)
{
	return exp_series(0.7 * ((double)g / (1 << RANDOM_FRACTION_BITS)));
}

/* Signs are constant along 32 neighbours; magnitudes have few bits, so that sums can cancel exactly. */
static float structured(uint64_t seed, uint64_t index)
{
	uint64_t u = ref_random(seed, index), run = ref_random(~seed, index >> 5);
	int32_t eighths = (int32_t)(u & 7) + (run & 1 ? -8 : 0);

	return (float)eighths * (((u >> 8) & 63) == 0 ? 1.0f : 0.125f);
}

static void fill_quantiles(float *to, int64_t count, const struct quantiles *q, int32_t shift, float unit, uint64_t seed)
{
	for (int64_t i = 0; i < count; i += 2) {
		uint64_t u = ref_random(seed, (uint64_t)i);

		to[i] = (float)(quantile(q, (uint32_t)u) + shift) * unit;
		if (i + 1 < count)
			to[i + 1] = (float)(quantile(q, (uint32_t)(u >> 32)) + shift) * unit;
	}
}

static void scale_rows(float *to, int64_t rows, int64_t columns, uint64_t seed)
{
	for (int64_t r = 0; r < rows; r++) {
		float factor = (float)random_row_scale(random_normal((uint32_t)ref_random(~seed, (uint64_t)r)));

		for (int64_t i = 0; i < columns; i++)
			to[r * columns + i] *= factor;
	}
}

void random_fill_float(float *to, int64_t rows, int64_t columns, int set, uint64_t seed)
{
	int64_t count = rows * columns;

	if (!tables_made)
		make_tables();
	if (set == REF_STUDENT_T3)
		fill_quantiles(to, count, &t3, 0, 1.0f / (1 << T3_BITS), seed);
	else if (set == REF_STRUCTURED)
		for (int64_t i = 0; i < count; i++)
			to[i] = structured(seed, (uint64_t)i);
	else
		fill_quantiles(to, count, &normal, set == REF_SHIFTED ? 2 << RANDOM_FRACTION_BITS : 0,
			       1.0f / (1 << RANDOM_FRACTION_BITS), seed);
	if (set == REF_ROW_SCALED)
		scale_rows(to, rows, columns, seed);
}

static void fill_narrow(uint16_t *to, int64_t rows, int64_t columns, int set, uint64_t seed, uint16_t (*convert)(float))
{
	float *wide = xreallocarray(NULL, (size_t)(rows * columns) + 1, sizeof(*wide));

	random_fill_float(wide, rows, columns, set, seed);
	for (int64_t i = 0; i < rows * columns; i++)
		to[i] = convert(wide[i]);
	free(wide);
}

void random_fill_bfloat16(uint16_t *to, int64_t rows, int64_t columns, int set, uint64_t seed)
{
	fill_narrow(to, rows, columns, set, seed, number_to_bfloat16);
}

void random_fill_float16(uint16_t *to, int64_t rows, int64_t columns, int set, uint64_t seed)
{
	fill_narrow(to, rows, columns, set, seed, number_to_float16);
}

void random_fill_bool(uint8_t *to, int64_t count, uint64_t seed)
{
	for (int64_t i = 0; i < count; i++)
		to[i] = ref_random(seed, (uint64_t)i) & 1;
}

void random_fill_bits(void *to, size_t bytes, uint64_t seed)
{
	for (size_t i = 0; i < bytes; i += 8) {
		uint64_t u = ref_random(seed, i);

		memcpy((char *)to + i, &u, bytes - i < 8 ? bytes - i : 8);
	}
}

void random_fill_tensor(const struct task_tensor *t, const int64_t *axes, void *to, int set, uint64_t seed)
{
	int64_t count = (int64_t)task_elements(t, axes), columns = t->dims ? axes[t->axis[t->dims - 1]] : 1;
	int64_t rows = columns ? count / columns : 0;

	switch (t->dtype) {
	case DTYPE_FLOAT32: random_fill_float(to, rows, columns, set, seed); break;
	case DTYPE_BFLOAT16: random_fill_bfloat16(to, rows, columns, set, seed); break;
	case DTYPE_FLOAT16: random_fill_float16(to, rows, columns, set, seed); break;
	case DTYPE_BOOL: random_fill_bool(to, count, seed); break;
	default: memset(to, 0, task_bytes(t, axes));
	}
}

uint64_t random_secret(void)
{
	uint64_t u;

	/* 8 bytes are given whole or, when a signal came early in boot, not at all. */
	while (getrandom(&u, sizeof(u), 0) != sizeof(u))
		continue;
	return u;
}
