/* ledger.h - predictions against measurements: world.ledger, one entry for every cycle that began with a prediction.
 *
 * An entry holds what the model expected when the cycle began (later edits of the node change nothing), its confidence,
 * the kind of the action, and the factor over the baseline of the cycle's best, null if nothing passed. Kinds: "family"
 * for a child of the root; else by the highest of the node's impact ratings: "memory", "registers", "compute"; "other"
 * without ratings.
 */
#ifndef KM_LEDGER_H
#define KM_LEDGER_H

#include "buf.h"
#include "world.h"

/* A prediction is kept if at least this share of the expected factor was measured. */
#define LEDGER_KEPT 0.9

/* Put the node's expectation into a cycle that begins. */
void ledger_predict(cJSON *cycle, const cJSON *node);

/* Note the end of a cycle; `best` is its best attempt or NULL. Nothing if there was no prediction. */
void ledger_note(struct world *w, long node, const cJSON *cycle, const cJSON *best);

/* Append the calibration as lines of text: of all predictions, by kind of action and by confidence, each with the number of
 * cycles, how many passed and how many kept the prediction, and the median of measured over expected. The length is
 * bounded. world is a document. */
void ledger_text(const cJSON *world, struct buf *out);

#endif
