/* statistics.h - medians, noise, and who is faster.
 *
 * Two kernels are compared by the natural logarithms of ratios of times that were taken next to each other on the same
 * inputs: pairs, in blocks A B B A of two, so that the order of calls and a drift of the machine cancel. Slowdowns by
 * other work on the machine are rare and large, so the mean is robust: a 20 % trimmed mean of the pairs, whose standard
 * error is that of the winsorised sample (K. K. Yuen, Biometrika 61, 1974). Pairs, not blocks, are the sample: a block
 * holds four calls, so that with one slow call in 20 every fifth block is off, on either side, and in a few judgements
 * of 32 blocks more than can be trimmed (simulated in tests/unit/test_statistics.c: 2.4 times the error).
 */
#ifndef KM_STATISTICS_H
#define KM_STATISTICS_H

#include <stdbool.h>
#include <stddef.h>

/* Quantile by linear interpolation between order statistics, 0 <= q <= 1; x is sorted in place. NaN if n is 0. */
double statistics_quantile(double *x, size_t n, double q);

struct estimate {
	double mean;  /* robust mean */
	double error; /* its standard error; INFINITY for fewer than 5 values */
	size_t n;
	double freedom; /* degrees of freedom of the error */
};

/* x is left as it is. */
struct estimate statistics_robust(const double *x, size_t n);

/* The gain in the score over n >= 1 workloads: gain[i] estimates ln(time of the other / time of ours), speedup[i] is ours
 * over the baseline. With the mean of speed-ups as objective the result is ln(sum speedup / sum (speedup / e^gain)), with
 * the geometric mean the mean of the gains; the error is that of independent gains to first order. */
struct estimate statistics_score_gain(const struct estimate *gain, const double *speedup, size_t n, bool geometric);

/* Relative error of the score, given the errors of the logarithms of the speed-ups. */
double statistics_score_noise(const struct estimate *log_speedup, size_t n, bool geometric);

enum versus_verdict { VERSUS_EQUAL, VERSUS_BETTER, VERSUS_WORSE };

enum { VERSUS_BLOCKS = 32 };           /* blocks of a full comparison */
#define VERSUS_GAIN 0.01               /* smallest gain that counts */
#define VERSUS_Z 3.0                   /* smallest z that counts */

/* gain: the estimate of ln(time of the other / time of ours). Better or worse only if the factor differs from 1 by more
 * than `smallest` (VERSUS_GAIN or more) and |z| is more than VERSUS_Z. z is the normal score that is as unlikely as mean / error, which
 * follows Student's t with few degrees of freedom (D. L. Wallace, Annals of Mathematical Statistics 30, 1959). */
enum versus_verdict statistics_versus(const struct estimate *gain, double smallest, double *z);

/* True if more pairs cannot change the verdict in earnest: at least 16 pairs, |gain| over 15 % and |z| over 10. */
bool statistics_decided(const struct estimate *gain);

#endif
