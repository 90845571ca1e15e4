#include "endings.h"

#include "json.h"

#include <limits.h>

long limits_evaluations_left(const struct limits *limits, const struct world *w)
{
	long done = world_number(w, "evaluations");

	if (limits->evals < 0)
		return LONG_MAX;
	return done < limits->evals ? limits->evals - done : 0;
}

static int check_world(const struct limits *limits, const struct world *w, struct error *err)
{
	double best = json_number(json_get(w->document, "best"), "score", -1) / 100;
	long patience = world_number(w, "cycles_since_best");

	if (limits->target >= 0 && best >= limits->target)
		return error_set(err, KM_EXIT_ENDED, "ended: target %gx reached, best %.1fx", limits->target, best);
	if (limits_evaluations_left(limits, w) == 0)
		return error_set(err, KM_EXIT_ENDED, "ended: %ld of %ld evaluations", world_number(w, "evaluations"), limits->evals);
	if (limits->rounds >= 0 && world_number(w, "round") >= limits->rounds)
		return error_set(err, KM_EXIT_ENDED, "ended: %ld of %ld rounds", world_number(w, "round"), limits->rounds);
	if (limits->patience >= 0 && patience >= limits->patience)
		return error_set(err, KM_EXIT_ENDED, "ended: %ld cycles without a new best (patience %ld)", patience, limits->patience);
	return 0;
}

int limits_check(const struct limits *limits, const struct world *w, const struct calls_sum *spent, struct error *err)
{
	double seconds = spent->seconds + json_number(w->document, "judge_seconds", 0);

	if (check_world(limits, w, err) < 0)
		return -1;
	if (limits->usd >= 0 && spent->usd >= limits->usd)
		return error_set(err, KM_EXIT_ENDED, "ended: $%.2f of $%.2f spent", spent->usd, limits->usd);
	if (limits->tokens >= 0 && spent->tokens >= limits->tokens)
		return error_set(err, KM_EXIT_ENDED, "ended: %ld of %ld tokens", spent->tokens, limits->tokens);
	if (limits->seconds >= 0 && seconds >= limits->seconds)
		return error_set(err, KM_EXIT_ENDED, "ended: %.0f of %.0f seconds", seconds, limits->seconds);
	return 0;
}
