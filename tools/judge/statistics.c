#include "statistics.h"

#include "util.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double statistics_quantile(double *x, size_t n, double q)
{
	double place = q * (double)(n - 1), whole = floor(place);
	size_t i = (size_t)whole;

	if (n == 0)
		return (double)NAN;
	qsort(x, n, sizeof(*x), compare_doubles);
	return i + 1 < n ? x[i] + (place - whole) * (x[i + 1] - x[i]) : x[n - 1];
}

struct estimate statistics_robust(const double *x, size_t n)
{
	struct estimate e = { .mean = (double)NAN, .error = INFINITY, .n = n };
	double *sorted, sum = 0, wsum = 0, wsum2 = 0, wmean;
	size_t cut = n / 5, kept = n - 2 * cut;

	if (n == 0)
		return e;
	sorted = xreallocarray(NULL, n, sizeof(*sorted));
	memcpy(sorted, x, n * sizeof(*sorted));
	qsort(sorted, n, sizeof(*sorted), compare_doubles);
	for (size_t i = 0; i < n; i++) {
		size_t j = i < cut ? cut : i >= n - cut ? n - cut - 1 : i;

		sum += i == j ? sorted[i] : 0;
		wsum += sorted[j];
	}
	wmean = wsum / (double)n;
	for (size_t i = 0; i < n; i++) {
		double d = sorted[i < cut ? cut : i >= n - cut ? n - cut - 1 : i] - wmean;

		wsum2 += d * d;
	}
	e.mean = sum / (double)kept;
	e.freedom = (double)(kept - 1);
	if (n >= 5)
		e.error = sqrt(wsum2 / ((double)kept * (double)(kept - 1)));
	free(sorted);
	return e;
}

struct estimate statistics_score_gain(const struct estimate *gain, const double *speedup, size_t n, bool geometric)
{
	struct estimate all = { 0 };
	double ours = 0, theirs = 0, error2 = 0;

	for (size_t i = 0; i < n; i++) {
		double other = geometric ? 1 : speedup[i] * exp(-gain[i].mean);

		ours += geometric ? 1 : speedup[i];
		theirs += other;
		error2 += other * other * gain[i].error * gain[i].error;
		all.mean += gain[i].mean / (double)n;
		all.n += gain[i].n;
		all.freedom += gain[i].freedom;
	}
	if (!geometric)
		all.mean = log(ours / theirs);
	all.error = sqrt(error2) / theirs;
	return all;
}

double statistics_score_noise(const struct estimate *log_speedup, size_t n, bool geometric)
{
	double sum = 0, error2 = 0;

	for (size_t i = 0; i < n; i++) {
		double weight = geometric ? 1 : exp(log_speedup[i].mean);

		sum += weight;
		error2 += weight * weight * log_speedup[i].error * log_speedup[i].error;
	}
	return sqrt(error2) / sum;
}

enum versus_verdict statistics_versus(const struct estimate *gain, double smallest, double *z)
{
	/* An error of 0 is that of a test or of a clock that is too coarse; 1e-6 is below any clock's resolution here. */
	double t = gain->mean / fmax(gain->error, 1e-6), f = fmax(gain->freedom, 1);

	*z = copysign(sqrt(f * log1p(t * t / f)) * (8 * f + 1) / (8 * f + 3), t);
	if (gain->mean > log1p(smallest) && *z > VERSUS_Z)
		return VERSUS_BETTER;
	if (gain->mean < -log1p(smallest) && *z < -VERSUS_Z)
		return VERSUS_WORSE;
	return VERSUS_EQUAL;
}

bool statistics_decided(const struct estimate *gain)
{
	return gain->n >= 16 && fabs(gain->mean) > 0.15 && fabs(gain->mean) > 10 * gain->error;
}
