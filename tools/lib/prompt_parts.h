/* prompt_parts.h - the values that templates are filled with (prompt.c only).
 *
 * A list of named texts; each is owned by the list. The ceilings add up to less than PROMPT_MAX_BYTES for every
 * template, with 20,000 bytes left for system.md, the rules and the template's own words.
 */
#ifndef KM_PROMPT_PARTS_H
#define KM_PROMPT_PARTS_H

#include "prompt.h"
#include "template.h"

enum {
	PARTS_MAX = 40,
	/* Most bytes of each part. */
	PART_TASK = 16000,
	PART_WORKLOADS = 6000,
	PART_HEADER = 8000,
	PART_BASELINE = 6000,
	PART_HARDWARE = 8000,
	PART_PATH = 16000,
	PART_OUTLINE = 24000,
	PART_INTENT = 9000,
	PART_SUMMARY = 14000,
	PART_REFUSED = 3000,
	PART_ATTEMPTS = 3000,
	PART_TRAJECTORY = 24000,
	PART_LEDGER = 2000,
	PART_TIMES = 3000,
	PART_INSPIRATIONS = 48000, /* only in evolve.md, which holds neither outline nor path */
	/* Kernels and verdicts: evidence.h. Two kernels and two verdicts at most are in one prompt: 140,000. */
};

struct parts {
	struct template_value values[PARTS_MAX + 1];
	int count;
};

/* Take ownership of text. */
void parts_take(struct parts *parts, const char *name, char *text);
void parts_copy(struct parts *parts, const char *name, const char *text);
void parts_release(struct parts *parts);

/* What every prompt holds, from the task's folder and the templates of prompts/parts: task_name, target, language,
 * task, workloads, baseline, header, interface, rules, hardware. */
int parts_common(struct parts *parts, const struct prompt_source *source, struct error *err);

/* What every prompt after the first holds: outline, summary, best, one line about the fastest kernel, and
 * ledger, how good the predictions were. */
int parts_world(struct parts *parts, const cJSON *world, const char *focus, struct error *err);

/* "c" or "cuda", from the value `language` that parts_common has set. */
const char *parts_language(const struct parts *parts);

/* The request made of system.md and the given template; takes the sizes to account. */
cJSON *parts_request(const struct parts *parts, const struct prompt_source *source, const char *name, const char *cue, struct error *err);

#endif
