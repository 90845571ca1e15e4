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
	int width;   /* slots: settings.width times samples */
	int samples; /* slots that share an attempt */
	struct cycle_report reports[WORLD_SLOTS];
};

/* Plan and world, checked against each other. KM_EXIT_INPUT; *r is then empty. A process loads one round and keeps it:
 * freeing a large tree takes longer than changing it. */
int round_load(const char *plan_path, struct round *r, struct error *err);

/* Apply the verdicts of all slots; the world's round becomes the plan's. */
int round_measure(struct round *r, struct error *err);

/* What a slot asks the model for after the verdicts: the edit after its cycle; or, slot 0 alone, more nodes: if no cycle
 * has ended, a slot is idle for want of a node, and fewer than WORLD_REFILLS refills in a row have brought nothing. */
enum round_asks { ROUND_ASKS_NOTHING, ROUND_ASKS_EDIT, ROUND_ASKS_REFILL };
enum round_asks round_asks(const struct round *r, int slot);

/* Apply the edit replies in slot order, then let the strategy fill the frontier. Call after round_measure. */
int round_edit(struct round *r, struct error *err);

/* The same in steps, for a round that is not on disk but made in memory (plan, world, width and samples filled in):
 * begin; judge the samples of each attempt, `first` being the slot of its first; cycle_settle; the reply of each slot
 * that asks; strategy_fill. */
void round_begin(struct round *r);
int round_judge(struct round *r, int first, const struct cycle_verdict *verdicts, int count, struct error *err);
void round_reply(struct round *r, int slot, const cJSON *reply);

/* Apply the reply document of the first tree, of an edit or of a refill (told apart by its cue). `solved` as in
 * ops_apply. What cannot be used is noted in world.refused. */
void round_apply_reply(struct world *w, const cJSON *reply, int slot, long solved);

#endif
