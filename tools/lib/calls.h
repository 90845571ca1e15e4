/* calls.h - calls.tsv, the ledger of what was asked and paid.
 *
 * One line of nine tab-separated fields before a call and one after it:
 *   start  id  cue  provider  model  tokens_in_estimate  tokens_out_limit  usd_estimate  0
 *   end    id  cue  provider  model  tokens_in           tokens_out        usd           seconds
 * Lines are appended under flock by one write. A last line without its newline, or any line that has not nine fields,
 * is the rest of a write that was cut off, and is passed over.
 */
#ifndef KM_CALLS_H
#define KM_CALLS_H

#include "error.h"

#include <stdbool.h>

struct call_line {
	const char *id, *cue, *provider, *model;
	long tokens_in, tokens_out;
	double usd, seconds;
};

/* What the ended calls came to. */
struct calls_sum {
	long calls;      /* `end` lines */
	long started;    /* `start` lines, so started - calls were cut off in flight or are still running */
	long tokens;     /* in and out together */
	double usd;
	double seconds;  /* waiting for replies, all calls added up */
};

/* Sums of a ledger. A file that does not exist is an empty ledger. KM_EXIT_INPUT if it cannot be read. */
int calls_sum(const char *path, struct calls_sum *sum, struct error *err);

/* Sets *found to whether an `end` line of this id is there. */
int calls_ended(const char *path, const char *id, bool *found, struct error *err);

int calls_append_start(const char *path, const struct call_line *line, struct error *err);
int calls_append_end(const char *path, const struct call_line *line, struct error *err);

#endif
