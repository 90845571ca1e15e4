/* patch.h - changes to a kernel that a reply may hold in place of the whole file.
 *
 * Two forms: a unified diff, whose hunks find their place by their lines (the numbers only choose among several places
 * that fit), and blocks
 *   <<<<<<< SEARCH
 *   lines of the kernel
 *   =======
 *   what to put there
 *   >>>>>>> REPLACE
 * A change must fit exactly, to the byte, and in one place; else all of them are refused.
 */
#ifndef KM_PATCH_H
#define KM_PATCH_H

#include "buf.h"
#include "error.h"

#include <stdbool.h>

/* What a text looks like. */
bool patch_is_diff(const char *text);
bool patch_is_blocks(const char *text);

/* Apply a diff, or blocks, to the kernel. -1 with KM_EXIT_INPUT, and a reason for the model, if a change does not fit;
 * the kernel is then of no use. */
int patch_apply(struct buf *kernel, const char *text, struct error *err);

#endif
