/* endings.h - when a search ends.
 *
 * Compares the limits that a user set with the world and with what the ledger of calls (calls.h) says was spent.
 */
#ifndef KM_ENDINGS_H
#define KM_ENDINGS_H

#include "calls.h"
#include "world.h"

/* Negative means: no limit. */
struct limits {
	long rounds, evals, tokens, patience;
	double usd, seconds;
	double target; /* factor over the baseline: 20 is a score of 2000 */
};

#define LIMITS_NONE { -1, -1, -1, -1, -1, -1, -1 }

/* 0 while the search may go on; -1 with KM_EXIT_ENDED and a text such as "ended: 14 of 14 evaluations". */
int limits_check(const struct limits *limits, const struct world *w, const struct calls_sum *spent, struct error *err);

/* Evaluations left, LONG_MAX without a limit. */
long limits_evaluations_left(const struct limits *limits, const struct world *w);

#endif
