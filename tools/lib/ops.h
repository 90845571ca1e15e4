/* ops.h - what the model may do to the tree: read a tree reply, apply its operations one by one.
 *
 * A tree reply (first tree, edit, refill) is {"summary"?, "open_questions"?, "ops": [...], "no_child_because"?}; prose
 * or a fence around the object is passed over. Operations:
 *   {"op": "insert_node", "parent": ID | "$a" | "root", "as"?: "a", BODY}
 *   {"op": "update_node", "node": ID, "set": {any members of BODY; "action" may be partial}}
 *   {"op": "split_node", "node": ID, "into": [2 or 3 of {"as"?, BODY}]}
 *   {"op": "prune_node", "node": ID, "reason": TEXT}
 *   {"op": "revive_node", "node": ID, "reason": TEXT}
 * BODY: action {title, difficulty_1_to_5, score_0_to_1, description?, rationale?, expected_vs_baseline_factor?},
 * decision?, choice?, impacts? {memory_bandwidth, register_pressure, compute_intensity_and_hw_fit: {rating_0_to_10,
 * risk?, notes?}}, overall_rating_0_to_10? (5), confidence_0_to_1? (0.5), notes?. ID may be "$a" wherever a node of the
 * same reply is named "a". "reason" is allowed in every operation.
 *
 * Rules, each refusing the one operation, with the reason in world.refused:
 *   - members that the machine owns, unknown members, numbers out of range and texts beyond OPS_* bytes are refused, never clamped or cut;
 *   - insert: the parent exists and is not pruned; siblings have different titles, pruned ones included; at most as many
 *     new nodes in one reply as the caller says, the pieces of a split included;
 *   - update: not the root, not a pruned node;
 *   - split: an open node without attempts and children; its pieces take its place under the same parent, all or none;
 *   - prune: not the root, nothing that is active, or has an active node or the best below it; open nodes below go too;
 *   - revive: a pruned or unrecorded node whose parent is not pruned.
 */
#ifndef KM_OPS_H
#define KM_OPS_H

#include "world.h"

enum {
	OPS_TITLE = 120, /* bytes */
	OPS_LABEL = 200, /* decision, choice */
	OPS_TEXT = 2000, /* description, rationale, notes, no_child_because */
	OPS_SHORT = 500, /* reason; risk and notes of an impact; an open question */
	OPS_SUMMARY = 4000,
	OPS_QUESTIONS = 20,
	OPS_MOST = 100,      /* operations of one reply */
	OPS_NEW_FIRST = 8,   /* new nodes of a first tree or a refill */
	OPS_NEW_CYCLE = 3,   /* new nodes of the edit after a cycle */
};

/* The object in a reply's text: the last one that can be parsed and has a list "ops". NULL with KM_EXIT_INPUT and a
 * reason that tells the model what to mend. */
cJSON *ops_parse(const char *text, size_t len, struct error *err);

struct ops_result {
	int applied, refused;
	int usable; /* nodes inserted or revived that are in the frontier now */
};

/* Apply a parsed reply. `solved`: the index of the node that the cycle before has closed, or -1; without an open child
 * in the end it needs no_child_because, which is kept in the node, or the lack is noted in world.refused. */
void ops_apply(struct world *w, const cJSON *reply, int slot, int most_new, long solved, struct ops_result *result);

#endif
