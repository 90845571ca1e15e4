/* select.h - the frontier, and what of it is tried next.
 *
 * The frontier are the open nodes whose parent is the root or has a solution. The order, the same under all policies:
 * nodes above the difficulty gate (WORLD_GATE) come after all others; then highest action.score_0_to_1 (the paper's
 * argmax V), lowest difficulty, highest overall rating, node id. tools/jq/select.jq says the same in six lines.
 *
 * POLICY=paper is the paper's algorithm to the letter. POLICY=default selects in the same order and adds rules
 * elsewhere: a failed cycle halves V, a second one prunes (cycle.h); a gain counts only beyond the noise (cycle.h).
 * POLICY=eager is the default with a longer frontier: behind all these, in the same order among each other, the open nodes
 * below one whose cycle is open and has a kernel that passed. So slots that would be idle start from the best so far.
 */
#ifndef KM_SELECT_H
#define KM_SELECT_H

#include "world.h"

/* Indices of the frontier's nodes, best first; *count gets their number. The caller frees. */
long *select_frontier(const struct world *w, size_t *count);

/* Is this node in the frontier? */
bool select_reachable(const struct world *w, long i);

#endif
