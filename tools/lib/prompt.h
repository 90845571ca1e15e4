/* prompt.h - the requests to the language model: first tree, code, edit, refill.
 *
 * Reads the templates of a prompts folder (template.h), the task's folder and the files of earlier attempts, and
 * returns a request document {id, cue, messages, parameters} (km-state(5)). The same inputs give the same bytes:
 * no time, version, host name or absolute path enters a request.
 *
 * Every part of a prompt has a ceiling, and a whole prompt never exceeds PROMPT_MAX_BYTES whatever the size of the
 * tree, of the kernels or of the diagnostics. Texts that do not fit lose their middle, with a line that says so.
 */
#ifndef KM_PROMPT_H
#define KM_PROMPT_H

#include "error.h"

#include <cjson/cJSON.h>
#include <stdbool.h>

enum {
	PROMPT_MAX_BYTES = 300000, /* all messages of a request together */
	PROMPT_MAX_TOKENS = 16000, /* parameters.max_tokens: the longest reply asked for */
	PROMPT_THIN_NODES = 3,     /* fewer open nodes than this with V above PROMPT_THIN_SCORE: ask for more */
	PROMPT_MAX_NEW = 3,        /* new nodes that one ended cycle may bring */
	PROMPT_MAX_NEW_FIRST = 8,  /* of a first tree or a refill; both as in ops.h */
};
#define PROMPT_THIN_SCORE 0.5

/* Where a prompt comes from, and for whom. `prompts` and `task` are folders; `model` becomes parameters.model ("" if
 * NULL). Zeros mean: the parameter temperature left out, and PROMPT_MAX_TOKENS. */
struct prompt_source {
	const char *prompts, *task;
	const char *model;
	bool has_temperature;
	double temperature;
	int max_tokens;
	const char *effort; /* of reasoning, as the provider calls it: "low", "high", ...; NULL: not said */
};

/* Each returns a new request document, or NULL with the reason: KM_EXIT_INPUT for a template, task or state file that
 * cannot be used. world and plan are documents that json_load has accepted. round_folder is the folder of the round
 * being made (state/<run>/r00007); the files of attempts are found at <round_folder>/../rNNNNN/sK/. */

/* The first tree of a run; cue init/0. */
cJSON *prompt_first_tree(const struct prompt_source *source, struct error *err);

/* The code for slot `slot` of the plan; cue code/<node>/<attempt>[/<sample>]. An idle slot gives {"skip": reason}. */
cJSON *prompt_code(const struct prompt_source *source, const cJSON *world, const cJSON *plan, int slot, const char *round_folder, struct error *err);

/* The edit of the tree after a cycle; cue edit/<node>/<cycle>. `world` already holds this round's measurements.
 * ended: {"node", "cycle": number, "slot", "outcome": "closed" | "failed" | "pruned", "attempts": [attempt records of
 * world.json], "best": attempt number or null}. Says so and asks for more if the frontier is thin. */
cJSON *prompt_edit(const struct prompt_source *source, const cJSON *world, const cJSON *ended, const char *round_folder, struct error *err);

/* More nodes while no cycle has ended and the frontier is thin, or new families when it is empty; cue
 * refill/<world.refills + 1>. */
cJSON *prompt_refill(const struct prompt_source *source, const cJSON *world, const char *round_folder, struct error *err);

#endif
