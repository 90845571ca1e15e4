/* strategy.h - who fills the frontier: settings.strategy of the world.
 *
 * A search always does the same: slots take the best nodes of the frontier, kernels are written for them and judged, the
 * verdicts change the tree. What a strategy decides is where new nodes come from, and how long one is worked on.
 *   world       the model edits the tree; a cycle lasts until K attempts in a row brought nothing (cycle.h)
 *   best-of-n   independent samples: every node stands under the root and is written from the beginning
 *   greedy      every node is a change of the best kernel so far
 *   evolve      islands: every node is a change of a kernel that was drawn from an island's archive
 * But for world, the machine inserts one node for each slot after every round, each node is one attempt ("single"), and
 * there are no calls but those for code. A node that passed is closed and a kernel to start from; one that did not is
 * pruned, and the next change of the same kernel is shown what went wrong.
 *
 * evolve. Programs are numbered; number n is of island n mod EVOLVE_ISLANDS. An island's archive are the
 * EVOLVE_ARCHIVE fastest kernels of its own and those that came to it. The parent is drawn from the archive with a
 * weight of fitness times novelty, 1 / (1 + e^(-10 z)) x 1 / (1 + children), where z is the distance of log(score) from
 * the archive's median in units of its median absolute deviation (the rule of ShinkaEvolve, arXiv 2509.19349). An island
 * without a kernel starts from the beginning. Inspirations, shown beside the parent: the best kernel of the run, and one
 * drawn by fitness alone from all other islands. After every EVOLVE_MIGRATION programs of each island its best comes to
 * the next one. All draws are from the run's seed and the program's number.
 */
#ifndef KM_STRATEGY_H
#define KM_STRATEGY_H

#include "world.h"

enum {
	EVOLVE_ISLANDS = 3,
	EVOLVE_ARCHIVE = 40,
	EVOLVE_MIGRATION = 10,
	EVOLVE_INSPIRATIONS = 2,
};

/* NULL for world, whose modes are new, debug and improve; else the one mode of all attempts: sample, climb, evolve. */
const char *strategy_mode(const struct world *w);

/* Is every node one attempt, put there by the machine? */
bool strategy_is_single(const struct world *w);

/* Insert nodes until every slot can have one. Nothing under the strategy world, and nothing more when the last
 * WORLD_REFILLS nodes were not recorded: then a replay has come to its end. Call after a round's verdicts and edits. */
void strategy_fill(struct world *w);

/* The failed attempt that the node's own attempt should learn from: that of the latest earlier change of the same
 * kernel, if it did not pass; with islands, of the same island. *owner gets the node that made it. NULL if none. */
const cJSON *strategy_failure(const struct world *w, long node, long *owner);

#endif
