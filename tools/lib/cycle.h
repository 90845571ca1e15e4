/* cycle.h - what a round's measurements do to the world: attempts, stagnation, the end of cycles, the best.
 *
 * Statuses of bench.json count as follows.
 *   PASSED INCORRECT_NUMERICAL RUNTIME_ERROR TIMEOUT COMPILE_ERROR REJECTED NO_CODE: an evaluation, an attempt
 *   DUPLICATE: an attempt that counts in both streaks, but no evaluation. A kernel whose source or code another slot of
 *       the same round has brought before is one too.
 *   UNRECORDED: neither; it ends the cycle. A node without a passed attempt is set aside as "unrecorded".
 * A gain of b over a is `b > a` under POLICY=paper, and b > a * (1 + max(0.01, 2 x the larger noise)) by default; but
 * by default, where b was measured in turns against a itself (the plan's best), that verdict decides, and the world's
 * new best is a gain over its cycle's best and over its parent.
 * Streaks: attempts in a row without a new cycle best; and, once one has passed and the parent has a score, attempts in
 * a row without a gain over the parent (under POLICY=eager over the best so far of one whose cycle is open). Either
 * reaching K ends the cycle. If one has passed, the cycle's best closes the node, even if slower than the parent. If none
 * has, the node is open again with one more failed cycle, and by default V is halved, and at two failed cycles the node
 * is pruned with what is open below it (revive_node brings it back).
 * Under a strategy whose nodes are one attempt each (strategy.h) every attempt ends its cycle: a pass closes the node, and
 * anything else prunes it and is kept as the node's "failure".
 * The world's best: the first that passes; then a kernel that bench.json calls "better" than the best of the plan; if
 * that one was replaced in this round, or was not measured against, a gain in score.
 */
#ifndef KM_CYCLE_H
#define KM_CYCLE_H

#include "world.h"

enum {
	CYCLE_FAILURES = 2, /* failed cycles at which a node is pruned */
};

/* What one verdict came to. */
struct cycle_report {
	char status[32]; /* as it was counted */
	double score;    /* negative unless it passed */
	bool best;       /* it is the best now */
	cJSON *ended;    /* what prompt_edit (prompt.h) wants to know of the cycle that ended here, or NULL; owned */
};

/* A slot of the plan and what came of it; `bench` is a document of that kind that is no skip. */
struct cycle_verdict {
	const cJSON *slot, *bench;
	double judge_seconds; /* added to the world's */
};

/* Apply the verdicts on the samples of one attempt, usually one. Each is an evaluation; the fastest that passed, else
 * one with code, speaks for the attempt. Slots come in order, and world.round is the plan's round. A node that a
 * re-judged world does not have active is taken as the plan has it.
 * KM_EXIT_INPUT if a verdict contradicts itself. */
int cycle_measure(struct world *w, const cJSON *plan, const struct cycle_verdict *verdicts, int samples, struct cycle_report *report, struct error *err);

/* After all slots: no two active nodes in one slot, none beyond the width. Has an effect only if the world is not the
 * one that the round was planned from. */
void cycle_settle(struct world *w);

/* Is score b with noise nb a gain over score a with noise na? */
bool cycle_gain(const struct world *w, double a, double na, double b, double nb);

#endif
