#include "round.h"

#include "file.h"
#include "input.h"
#include "json.h"
#include "ops.h"
#include "select.h"
#include "strategy.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>

/* ---- loading ---------------------------------------------------------------------------------------------------- */

/* A file beside the plan; its hash is kept under `name`. */
static cJSON *load(struct round *r, const char *path, const char *kind, const char *name, struct error *err)
{
	char *full = xasprintf("%s/%s", r->folder, path), hex[HASH_HEX + 1];
	cJSON *document = input_load(full, kind, hex, err);

	if (document)
		json_set_string(r->inputs, name, hex);
	free(full);
	return document;
}

static cJSON *load_of_slot(struct round *r, int k, const char *kind, const char *file, struct error *err)
{
	char *path = xasprintf("s%d/%s", k, file);
	cJSON *document = load(r, path, kind, path, err);

	free(path);
	return document;
}

static int check_plan(const struct round *r, struct error *err)
{
	const cJSON *slot, *other;
	int k = 0;

	if (json_number(r->plan, "round", 0) != json_number(r->world.document, "round", 0) + 1)
		return error_set(err, KM_EXIT_INPUT, "round %.0f does not follow a world of round %ld", json_number(r->plan, "round", 0), world_number(&r->world, "round"));
	cJSON_ArrayForEach(slot, json_get(r->plan, "slots")) {
		const char *node = json_string(slot, "node");

		if (json_number(slot, "slot", -1) != k++)
			return error_set(err, KM_EXIT_INPUT, "slots are not numbered in order");
		if (!node && !json_string(slot, "skip"))
			return error_set(err, KM_EXIT_INPUT, "slot %d has neither node nor skip", k - 1);
		for (other = slot->next; node && other; other = other->next)
			if (json_string(other, "node") && strcmp(json_string(other, "node"), node) == 0 && (int)json_number(other, "slot", 0) / r->samples != (k - 1) / r->samples)
				return error_set(err, KM_EXIT_INPUT, "node '%s' is in two slots", node);
	}
	if (k != r->width)
		return error_set(err, KM_EXIT_INPUT, "it has %d slots, the world wants %d", k, r->width);
	return 0;
}

static int load_world(struct round *r, struct error *err)
{
	const char *path = json_string(json_get(r->plan, "world"), "path");
	cJSON *document = load(r, path, "world", "world.json", err);

	if (!document)
		return -1;
	if (world_adopt(&r->world, document, err) < 0)
		return error_prefix(err, "'%s/%s'", r->folder, path);
	r->samples = world_samples(&r->world);
	r->width = (int)world_number(&r->world, "width") * r->samples;
	return 0;
}

static void release(struct round *r)
{
	for (int k = 0; k < r->width; k++)
		cJSON_Delete(r->reports[k].ended);
	world_release(&r->world);
	cJSON_Delete(r->plan);
	cJSON_Delete(r->inputs);
	free(r->folder);
	memset(r, 0, sizeof(*r));
}

int round_load(const char *plan_path, struct round *r, struct error *err)
{
	char hex[HASH_HEX + 1];
	int result = -1;

	memset(r, 0, sizeof(*r));
	r->folder = path_folder(plan_path);
	r->inputs = cJSON_CreateObject();
	r->plan = input_load(plan_path, "plan", hex, err);
	if (r->plan) {
		json_set_string(r->inputs, "plan.json", hex);
		result = load_world(r, err);
	}
	if (result == 0 && check_plan(r, err) < 0)
		result = error_prefix(err, "'%s'", plan_path);
	if (result < 0)
		release(r);
	return result;
}

/* ---- verdicts --------------------------------------------------------------------------------------------------- */

static int build_seconds(struct round *r, int k, double *seconds, struct error *err)
{
	char *path = xasprintf("s%d/build.json", k), *full = xasprintf("%s/%s", r->folder, path);
	cJSON *build = NULL;
	int result = 0;

	*seconds = 0;
	if (file_exists(full)) {
		build = load(r, path, "build", path, err);
		result = build ? 0 : -1;
	}
	*seconds = json_number(build, "seconds", 0);
	cJSON_Delete(build);
	free(full);
	free(path);
	return result;
}

static int load_verdict(struct round *r, int k, const cJSON *slot, struct cycle_verdict *v, cJSON **bench, struct error *err)
{
	double seconds = 0;

	*bench = load_of_slot(r, k, "bench", "bench.json", err);
	if (!*bench)
		return -1;
	if (json_get(*bench, "skip"))
		return error_set(err, KM_EXIT_INPUT, "'%s/s%d/bench.json' has no verdict for a slot that the plan uses", r->folder, k);
	if (build_seconds(r, k, &seconds, err) < 0)
		return -1;
	*v = (struct cycle_verdict){ slot, *bench, seconds + json_number(*bench, "seconds", 0) };
	return 0;
}

static const cJSON *slot_of(const struct round *r, int k)
{
	return cJSON_GetArrayItem(json_get(r->plan, "slots"), k);
}

/* The samples of one attempt, in the slots from `first` on. */
static int measure_attempt(struct round *r, int first, struct error *err)
{
	cJSON *benches[WORLD_SLOTS] = { NULL };
	struct cycle_verdict verdicts[WORLD_SLOTS];
	int count = 0, result = 0;

	for (int k = first; k < first + r->samples && result == 0; k++)
		if (!json_string(slot_of(r, k), "skip")) {
			result = load_verdict(r, k, slot_of(r, k), &verdicts[count], &benches[count], err);
			count++;
		}
	if (result == 0 && count > 0)
		result = round_judge(r, first, verdicts, count, err);
	for (int i = 0; i < count; i++)
		cJSON_Delete(benches[i]);
	return result;
}

void round_begin(struct round *r)
{
	json_set_number(r->world.document, "round", json_number(r->plan, "round", 0));
}

int round_judge(struct round *r, int first, const struct cycle_verdict *verdicts, int count, struct error *err)
{
	return cycle_measure(&r->world, r->plan, verdicts, count, &r->reports[first], err);
}

int round_measure(struct round *r, struct error *err)
{
	round_begin(r);
	for (int k = 0; k < r->width; k += r->samples)
		if (measure_attempt(r, k, err) < 0)
			return -1;
	cycle_settle(&r->world);
	return 0;
}

/* ---- edits ------------------------------------------------------------------------------------------------------ */

/* Ask for more nodes in this round? If no cycle has ended, a slot is idle for want of a node, and fewer than
 * WORLD_REFILLS refills in a row have brought nothing. */
static bool wants_refill(const struct round *r)
{
	const cJSON *slot;
	size_t open;
	bool idle = false;

	for (int k = 0; k < r->width; k++)
		if (r->reports[k].ended)
			return false;
	cJSON_ArrayForEach(slot, json_get(r->plan, "slots"))
		idle = idle || json_string(slot, "skip");
	free(select_frontier(&r->world, &open));
	return idle && open == 0 && world_number(&r->world, "refills_failed") < WORLD_REFILLS;
}

static void count_refill(struct world *w, const char *status, int usable)
{
	double failed = json_number(w->document, "refills_failed", 0) + 1;

	world_count(w, "refills", 1);
	if (strcmp(status, "unrecorded") == 0)
		failed = WORLD_REFILLS; /* what follows was not recorded either */
	json_set_number(w->document, "refills_failed", usable ? 0 : failed);
}

void round_apply_reply(struct world *w, const cJSON *reply, int slot, long solved)
{
	const char *status = json_string(reply, "status"), *cue = json_string(reply, "cue"), *text = json_string(reply, "text");
	bool refill = starts_with(cue, "refill/"), edit = starts_with(cue, "edit/");
	struct ops_result result = { 0 };
	struct error err = { KM_EXIT_INPUT, "" };
	cJSON *tree = NULL;

	if (strcmp(status, "answered") == 0)
		tree = ops_parse(text, strlen(text), &err);
	else
		error_set(&err, KM_EXIT_INPUT, "%s%s%s", status, json_string(reply, "reason") ? ": " : "", json_string(reply, "reason") ? json_string(reply, "reason") : "");
	if (tree)
		ops_apply(w, tree, slot, edit ? OPS_NEW_CYCLE : OPS_NEW_FIRST, solved, &result);
	else
		world_refuse(w, slot, cue, err.text);
	cJSON_Delete(tree);
	if (refill)
		count_refill(w, status, result.usable);
	else if (result.usable)
		json_set_number(w->document, "refills_failed", 0);
}

enum round_asks round_asks(const struct round *r, int slot)
{
	if (strategy_is_single(&r->world))
		return ROUND_ASKS_NOTHING;
	if (r->reports[slot].ended)
		return ROUND_ASKS_EDIT;
	return slot == 0 && wants_refill(r) ? ROUND_ASKS_REFILL : ROUND_ASKS_NOTHING;
}

void round_reply(struct round *r, int slot, const cJSON *reply)
{
	const cJSON *ended = r->reports[slot].ended;
	bool closed = ended && strcmp(json_string(ended, "outcome"), "closed") == 0;

	if (!json_get(reply, "skip"))
		round_apply_reply(&r->world, reply, slot, closed ? world_find(&r->world, json_string(ended, "node")) : -1);
}

int round_edit(struct round *r, struct error *err)
{
	for (int k = 0; k < r->width; k++) {
		cJSON *reply = load_of_slot(r, k, "reply", "edit-reply.json", err);

		if (!reply)
			return -1;
		round_reply(r, k, reply);
		cJSON_Delete(reply);
	}
	strategy_fill(&r->world);
	return 0;
}
