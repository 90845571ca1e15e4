/* calls.h - calls.tsv, the ledger of what was asked and paid.
 *
 * One line of nine tab-separated fields before a call and one after it, `end` with what an answer cost, or `fail`, which
 * is known to have cost nothing but time:
 *   start  id  cue  provider  model  tokens_in_estimate  tokens_out_limit  usd_estimate  0
 *   end    id  cue  provider  model  tokens_in           tokens_out        usd           seconds
 *   fail   id  cue  provider  model  0                   0                 0             seconds
 * Lines are appended under flock by one write. A last line without its newline, or one that has not nine fields, is the
 * rest of a write that was cut off, and is passed over. A line that begins with none of the three words is an error: the
 * file is another one.
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

/* What the calls came to. */
struct calls_sum {
	long calls;      /* `end` lines */
	long started;    /* `start` lines */
	long tokens;     /* in and out together */
	double usd;
	double seconds;  /* waiting for replies, all calls added up, failed ones too */
	/* Ids whose latest line is `start`: they are being answered, or were cut off; by their estimates. */
	long open, open_tokens;
	double open_usd;
};

/* What a run, and one call, may take. Negative means: no limit. */
struct calls_limits {
	double usd, seconds;
	long tokens, calls;
	double call_usd;
	long call_tokens;
};

#define CALLS_LIMITS_NONE { -1, -1, -1, -1, -1, -1 }

/* Sums of a ledger. A file that does not exist is an empty ledger. KM_EXIT_INPUT if it cannot be read or is none. */
int calls_sum(const char *path, struct calls_sum *sum, struct error *err);

/* Sets *found to whether an `end` line of this id is there. */
int calls_ended(const char *path, const char *id, bool *found, struct error *err);

/* Append the line before a call, unless by the ledger the limits do not leave room for it: what was spent, what the
 * open calls may take and what this one may take, together. Then KM_EXIT_ENDED says which limit. Looking and appending
 * are one step among all processes that name the same lock folder. */
int calls_append_start(const char *path, const char *lock, const struct calls_limits *limits, const struct call_line *line, struct error *err);
/* The limits of one call alone. */
int calls_check_one(const struct calls_limits *limits, const struct call_line *line, struct error *err);
int calls_append_end(const char *path, const struct call_line *line, struct error *err);
int calls_append_fail(const char *path, const struct call_line *line, struct error *err);

#endif
