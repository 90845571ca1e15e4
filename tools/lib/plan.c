#include "plan.h"

#include "json.h"
#include "select.h"
#include "strategy.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>

struct planner {
	const struct world *w;
	long active[WORLD_SLOTS]; /* node index by slot, -1 if the slot is free */
	long *frontier;
	size_t count, next;
	long left; /* evaluations */
	int samples;
};

/* ---- kernels ---------------------------------------------------------------------------------------------------- */

static cJSON *kernel(const struct world *w, const char *node, double attempt, double round, double slot)
{
	const char *target = json_string(json_get(w->document, "settings"), "target");
	const char *names[] = { "kernel", strcmp(target, "cuda") == 0 ? "kernel.cu" : "kernel.c", "build", "build.json", "bench", "bench.json" };
	cJSON *k = cJSON_CreateObject();

	json_set_string(k, "node", node);
	json_set_number(k, "attempt", attempt);
	for (int i = 0; i < 6; i += 2) {
		char *path = xasprintf("../r%05.0f/s%.0f/%s", round, slot, names[i + 1]);

		json_set_string(k, names[i], path);
		free(path);
	}
	return k;
}

static cJSON *kernel_of_solution(const struct world *w, const cJSON *solution)
{
	if (!cJSON_IsObject(solution))
		return cJSON_CreateNull();
	return kernel(w, json_string(solution, "node"), json_number(solution, "attempt", 0), json_number(solution, "round", 0), json_number(solution, "slot", 0));
}

static cJSON *kernel_of_attempt(const struct world *w, const struct node *node, const cJSON *attempt)
{
	if (!attempt)
		return cJSON_CreateNull();
	return kernel(w, node->id, json_number(attempt, "attempt", 0), json_number(attempt, "round", 0), json_number(attempt, "slot", 0));
}

/* ---- slots ------------------------------------------------------------------------------------------------------ */

static cJSON *slot_skip(int k, const char *why)
{
	cJSON *slot = cJSON_CreateObject();

	json_set_number(slot, "slot", k);
	json_set_string(slot, "skip", why);
	return slot;
}

static cJSON *slot_start(const struct world *w, int k, const struct node *node, const char *mode, double cycle_attempt)
{
	cJSON *slot = cJSON_CreateObject();

	json_set_number(slot, "slot", k);
	json_set_string(slot, "node", node->id);
	json_set_string(slot, "mode", mode);
	json_set_number(slot, "attempt", json_number(node->json, "attempts", 0) + 1);
	json_set_number(slot, "cycle", json_number(node->json, "cycles", 0) + 1);
	json_set_number(slot, "cycle_attempt", cycle_attempt);
	json_set(slot, "parent", kernel_of_attempt(w, &w->nodes[node->parent], world_start(w, node->parent)));
	return slot;
}

static void slot_finish(cJSON *slot, cJSON *base, cJSON *last, char *why)
{
	json_set(slot, "base", base);
	json_set(slot, "last", last);
	json_set_string(slot, "why", why);
	free(why);
}

/* The next attempt of a cycle that is open. */
static cJSON *slot_continue(const struct world *w, int k, const struct node *node)
{
	const cJSON *cycle = json_get(node->json, "cycle"), *attempt, *last = NULL, *code = NULL, *best;
	double best_number = json_number(cycle, "best", 0), count = 0;
	cJSON *slot;

	cJSON_ArrayForEach(attempt, json_get(cycle, "attempts")) {
		last = attempt;
		count++;
		if (strcmp(json_string(attempt, "status"), "NO_CODE") != 0)
			code = attempt;
	}
	best = cycle_attempt(cycle, best_number);
	slot = slot_start(w, k, node, best ? "improve" : code ? "debug" : "new", count + 1);
	if (best)
		slot_finish(slot, kernel_of_attempt(w, node, best), kernel_of_attempt(w, node, last),
			    xasprintf("attempt %.0f of the cycle, best so far attempt %.0f with %.2fx", count + 1, best_number, json_number(best, "score", 0) / 100));
	else if (code)
		slot_finish(slot, kernel_of_attempt(w, node, code), kernel_of_attempt(w, node, last),
			    xasprintf("attempt %.0f of the cycle, nothing has passed yet", count + 1));
	else
		slot_finish(slot, cJSON_Duplicate(json_get(slot, "parent"), true), kernel_of_attempt(w, node, last),
			    xasprintf("attempt %.0f of the cycle, no reply had code yet", count + 1));
	return slot;
}

/* The kernels of the nodes that are shown beside the parent. */
static cJSON *inspirations(const struct world *w, const struct node *node)
{
	cJSON *list = cJSON_CreateArray();
	const cJSON *name;

	cJSON_ArrayForEach(name, json_get(node->json, "inspirations")) {
		long i = world_find(w, name->valuestring);

		if (i >= 0 && node_solution(&w->nodes[i]))
			cJSON_AddItemToArray(list, kernel_of_solution(w, node_solution(&w->nodes[i])));
	}
	return list;
}

/* The one attempt of a node that the machine put there. */
static cJSON *slot_single(const struct planner *p, int k)
{
	long i = p->frontier[p->next], owner = -1;
	const struct node *node = &p->w->nodes[i];
	const cJSON *failure = strategy_failure(p->w, i, &owner);
	cJSON *slot = slot_start(p->w, k, node, strategy_mode(p->w), 1);
	const char *parent = json_string(json_get(slot, "parent"), "node");

	slot_finish(slot, cJSON_Duplicate(json_get(slot, "parent"), true), owner < 0 ? cJSON_CreateNull() : kernel_of_attempt(p->w, &p->w->nodes[owner], failure),
		    parent ? xasprintf("number %zu of %zu in the frontier: a change of %s", p->next + 1, p->count, parent)
			   : xasprintf("number %zu of %zu in the frontier: from the beginning", p->next + 1, p->count));
	if (json_get(node->json, "inspirations"))
		json_set(slot, "others", inspirations(p->w, node));
	return slot;
}

static cJSON *slot_new(const struct planner *p, int k)
{
	const struct node *node = &p->w->nodes[p->frontier[p->next]];
	const cJSON *action = json_get(node->json, "action");
	double difficulty = json_number(action, "difficulty_1_to_5", 0);
	bool early = p->w->nodes[node->parent].status == NODE_ACTIVE;
	cJSON *slot = slot_start(p->w, k, node, "new", 1);

	slot_finish(slot, cJSON_Duplicate(json_get(slot, "parent"), true), cJSON_CreateNull(),
		    xasprintf("number %zu of %zu in the frontier: V %.2f, difficulty %g%s%s", p->next + 1, p->count, json_number(action, "score_0_to_1", 0), difficulty,
			      difficulty > WORLD_GATE ? ", above the gate, nothing else is left" : "",
			      early ? "; its parent's cycle goes on, the slot would be idle" : ""));
	return slot;
}

/* The first sample of lane k; its node is no longer free. */
static cJSON *slot_plan(struct planner *p, int k)
{
	long node = p->active[k];

	if (node < 0 && p->next == p->count)
		return slot_skip(k, "no open node is left for this slot");
	if (p->left == 0)
		return slot_skip(k, "no evaluation is left for this slot");
	if (node >= 0)
		return slot_continue(p->w, k, &p->w->nodes[node]);
	cJSON *slot = strategy_is_single(p->w) ? slot_single(p, k) : slot_new(p, k);

	p->next++;
	return slot;
}

/* ---- the round -------------------------------------------------------------------------------------------------- */

static size_t find_active(struct planner *p)
{
	size_t count = 0;

	for (int k = 0; k < WORLD_SLOTS; k++)
		p->active[k] = -1;
	for (size_t i = 0; i < p->w->count; i++) {
		if (p->w->nodes[i].status != NODE_ACTIVE)
			continue;
		p->active[(int)json_number(json_get(p->w->nodes[i].json, "cycle"), "slot", 0)] = (long)i;
		count++;
	}
	return count;
}

/* Slots k x samples and on: all samples of an attempt are of one node, and start from the same kernel. */
static void plan_lane(struct planner *p, int k, cJSON *slots[WORLD_SLOTS])
{
	int first = k * p->samples;
	cJSON *slot = slot_plan(p, k);

	for (int i = 0; i < p->samples; i++) {
		bool idle = json_get(slot, "skip"), none = !idle && p->left == 0;

		if (none)
			slots[first + i] = slot_skip(first + i, "no evaluation is left for this slot");
		else
			slots[first + i] = cJSON_Duplicate(slot, true);
		json_set_number(slots[first + i], "slot", first + i);
		if (!idle && !none && p->samples > 1)
			json_set_number(slots[first + i], "sample", i + 1);
		p->left -= !idle && !none;
	}
	cJSON_Delete(slot);
}

/* Open cycles come first: with few evaluations left it is new nodes that wait. */
static cJSON *plan_slots(struct planner *p)
{
	int width = (int)world_number(p->w, "width");
	cJSON *slots[WORLD_SLOTS] = { NULL }, *list = cJSON_CreateArray();

	for (int k = 0; k < width; k++)
		if (p->active[k] >= 0)
			plan_lane(p, k, slots);
	for (int k = 0; k < width; k++)
		if (p->active[k] < 0)
			plan_lane(p, k, slots);
	for (int i = 0; i < width * p->samples; i++)
		cJSON_AddItemToArray(list, slots[i]);
	return list;
}

cJSON *plan_make(const struct world *w, const char *world_sha256, const struct limits *limits, const struct calls_sum *spent, struct error *err)
{
	struct planner p = { .w = w, .samples = world_samples(w) };
	cJSON *plan, *from;
	char *path;

	if (limits_check(limits, w, spent, err) < 0)
		return NULL;
	p.left = limits_evaluations_left(limits, w);
	p.frontier = select_frontier(w, &p.count);
	if (find_active(&p) == 0 && p.count == 0 && world_number(w, "refills_failed") >= WORLD_REFILLS) {
		free(p.frontier);
		error_set(err, KM_EXIT_ENDED, "ended: nothing left to try: no open node, and refills brought none");
		return NULL;
	}
	plan = cJSON_CreateObject();
	json_made_by(plan, "km-plan");
	from = cJSON_CreateObject();
	path = xasprintf("../r%05ld/world.json", world_number(w, "round"));
	json_set_string(from, "path", path);
	json_set_string(from, "sha256", world_sha256);
	json_set_number(plan, "round", json_number(w->document, "round", 0) + 1);
	json_set(plan, "world", from);
	json_set(plan, "best", kernel_of_solution(w, json_get(w->document, "best")));
	json_set(plan, "slots", plan_slots(&p));
	free(path);
	free(p.frontier);
	return plan;
}
