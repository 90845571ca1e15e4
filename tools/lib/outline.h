/* outline.h - the tree of the world model as text for a prompt, never longer than asked for.
 *
 * One line a node, indented by depth:
 *   - tile-6x16.ab12 [closed 12.3x, expected 10x, difficulty 2, 3 attempts] Register tile of 6 by 16
 *   - pack-b.01fe [open V=0.70, expected 20x, difficulty 3] Pack B into panels
 * If they do not all fit, the nodes that are most use are kept with all their ancestors: the path of the node in
 * question, the best, the active and open ones by V, then solved ones, the latest first, then the newest of the rest; what is
 * left out below a node is one line that counts it.
 */
#ifndef KM_OUTLINE_H
#define KM_OUTLINE_H

#include "buf.h"
#include "error.h"

#include <cjson/cJSON.h>
#include <stddef.h>

/* Append the outline in at most `ceiling` bytes. focus: id of the node in question, or NULL. world is a document whose
 * tree may be wrong; then KM_EXIT_INPUT. */
int outline_tree(const cJSON *world, const char *focus, size_t ceiling, struct buf *out, struct error *err);

/* Append the nodes from the root's child down to the parent of `id`, in full: intent, notes, expectation and result. In
 * at most `ceiling` bytes; the middle of a longer path is left out. */
int outline_path(const cJSON *world, const char *id, size_t ceiling, struct buf *out, struct error *err);

/* Append one node in full, the same way. */
void outline_node(const cJSON *node, struct buf *out);

/* The node object of that id, or NULL. */
const cJSON *outline_find(const cJSON *world, const char *id);

/* "12.3x" from a score (100 is the baseline), "0.93x" below ten. */
void outline_factor(double factor, struct buf *out);

#endif
