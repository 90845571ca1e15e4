/* plan.h - the plan of a round: which node each slot works on, and from which code.
 *
 * A slot whose cycle is open goes on with its node: "debug" while nothing has passed in this cycle, "improve"
 * afterwards. Then the free slots, in order, take the best nodes of the frontier (select.h), mode "new". A slot for
 * which no node or no evaluation is left is {"slot", "skip": reason}. With settings.samples S above 1, S slots in a row
 * do this together: the same node and attempt, {"sample": 1..S}, and what was said here of a slot holds for the S of them.
 *   base: the code to start from. new: the parent's solution; debug: the last attempt that had code; improve: the best
 *         of the cycle. While no attempt of a cycle had any code the mode stays "new".
 *   last: the last attempt of this cycle, whatever came of it. parent: the parent's solution. null where there is none.
 * Under POLICY=eager the best so far of a parent whose cycle is open stands for its solution.
 * Under a strategy whose nodes are one attempt each the mode is the strategy's own (strategy.h), last is the failed
 * attempt to learn from, and others are the inspirations of evolve.
 */
#ifndef KM_PLAN_H
#define KM_PLAN_H

#include "endings.h"
#include "world.h"

/* The plan of round world.round + 1. world_sha256: of the bytes of world.json.
 * NULL with KM_EXIT_ENDED if a limit is reached or nothing is left to try. An empty frontier plans a round in which all
 * slots are idle, until WORLD_REFILLS refills in a row brought nothing. */
cJSON *plan_make(const struct world *w, const char *world_sha256, const struct limits *limits, const struct calls_sum *spent, struct error *err);

#endif
