/* round.h - one round on disk: its plan, the world before it, its verdicts and edit replies.
 *
 * Reads rNNNNN/plan.json, the world.json that the plan names, and per slot sK/bench.json, sK/build.json (for its
 * seconds, if it is there) and sK/edit-reply.json, all found from the plan's folder. Changes the world in memory.
 */
#ifndef KM_ROUND_H
#define KM_ROUND_H

#include "cycle.h"
#include "world.h"

struct round {
	char *folder; /* of the plan */
	cJSON *plan;
	struct world world;
	cJSON *inputs; /* name -> sha256 of every file read, for made_by */
	int width;
	struct cycle_report reports[WORLD_SLOTS];
};

/* Plan and world, checked against each other. KM_EXIT_INPUT; *r is then empty. */
int round_load(const char *plan_path, struct round *r, struct error *err);
void round_release(struct round *r);

/* Apply the verdicts of all slots; the world's round becomes the plan's. */
int round_measure(struct round *r, struct error *err);

/* Apply the edit replies in slot order. Call after round_measure. */
int round_edit(struct round *r, struct error *err);

/* Ask for more nodes in this round, in slot 0? True if no cycle has ended, a slot is idle for want of a node, and fewer
 * than WORLD_REFILLS refills in a row have brought nothing. Call after round_measure. */
bool round_wants_refill(const struct round *r);

/* Apply the reply document of the first tree, of an edit or of a refill (told apart by its cue). `solved` as in
 * ops_apply. What cannot be used is noted in world.refused. */
void round_apply_reply(struct world *w, const cJSON *reply, int slot, long solved);

#endif
