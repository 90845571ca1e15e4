#include "cycle.h"

#include "json.h"
#include "ledger.h"
#include "strategy.h"
#include "util.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One verdict on its way into the world. */
struct measured {
	struct world *w;
	const cJSON *plan, *slot, *bench;
	int k, lane;    /* slot number, and that of its attempt: slots of one lane are samples of one attempt */
	long round;
	const char *status;
	double score, noise;
	bool passed;
	long node;      /* -1 if the tree does not have it */
	double attempt;
};

bool cycle_gain(const struct world *w, double a, double na, double b, double nb)
{
	double margin = world_is_paper(w) ? 0 : fmax(0.01, 2 * fmax(na, nb));

	return b > a * (1 + margin);
}

/* ---- duplicates ------------------------------------------------------------------------------------------------- */

static bool short_hash(const cJSON *bench, const char *key, char hash[17])
{
	const char *hex = json_string(bench, key);

	if (!hex)
		return false;
	memcpy(hash, hex, 16);
	hash[16] = 0;
	return true;
}

/* Where source or code of this kernel was seen, NULL if nowhere. With `round` only in that round. */
static const char *seen_at(const struct measured *m, bool this_round)
{
	static const char *const keys[] = { "source_sha256", "code_sha256" };
	const cJSON *seen = json_get(m->w->document, "seen");
	char hash[17], prefix[16];

	snprintf(prefix, sizeof(prefix), "r%05ld/", m->round % 100000);
	for (int i = 0; i < 2; i++) {
		const char *where = short_hash(m->bench, keys[i], hash) ? json_string(seen, hash) : NULL;

		if (where && (!this_round || starts_with(where, prefix)))
			return where;
	}
	return NULL;
}

static void remember(const struct measured *m)
{
	cJSON *seen = json_get_mutable(m->w->document, "seen");
	const char *before = seen_at(m, false);
	char *where = before ? xstrdup(before) : xasprintf("r%05ld/s%d", m->round, m->k), hash[17];

	if (short_hash(m->bench, "source_sha256", hash) && !json_get(seen, hash))
		json_set_string(seen, hash, where);
	if (short_hash(m->bench, "code_sha256", hash) && !json_get(seen, hash))
		json_set_string(seen, hash, where);
	free(where);
}

/* ---- the best --------------------------------------------------------------------------------------------------- */

static cJSON *solution_of(const struct measured *m, const char *node, const cJSON *attempt)
{
	const char *suffix = strcmp(json_string(json_get(m->w->document, "settings"), "target"), "cuda") == 0 ? "cu" : "c";
	double round = json_number(attempt, "round", 0), slot = json_number(attempt, "slot", 0);
	char *kernel = xasprintf("../r%05.0f/s%.0f/kernel.%s", round, slot, suffix), *bench = xasprintf("../r%05.0f/s%.0f/bench.json", round, slot);
	cJSON *solution = cJSON_CreateObject();

	json_set_string(solution, "node", node);
	json_set_number(solution, "attempt", json_number(attempt, "attempt", 0));
	json_set_number(solution, "round", round);
	json_set_number(solution, "slot", slot);
	json_set_number(solution, "score", json_number(attempt, "score", 0));
	json_set_number(solution, "noise", json_number(attempt, "noise", 0));
	json_set_string(solution, "kernel", kernel);
	json_set_string(solution, "bench", bench);
	free(kernel);
	free(bench);
	return solution;
}

static bool same_kernel(const cJSON *a, const cJSON *b)
{
	const char *x = json_string(a, "node"), *y = json_string(b, "node");

	return x && y && strcmp(x, y) == 0 && json_number(a, "attempt", 0) == json_number(b, "attempt", -1);
}

static bool is_best(const struct measured *m)
{
	const cJSON *best = json_get(m->w->document, "best");

	return m->passed && json_number(best, "round", 0) == (double)m->round && json_number(best, "slot", -1) == m->k;
}

static bool beats_best(const struct measured *m)
{
	const cJSON *best = json_get(m->w->document, "best");
	const char *verdict = json_string(json_get(m->bench, "versus"), "verdict");

	if (!cJSON_IsObject(best))
		return true;
	if (verdict && same_kernel(best, json_get(m->plan, "best")))
		return strcmp(verdict, "better") == 0;
	return cycle_gain(m->w, json_number(best, "score", 0), json_number(best, "noise", 0), m->score, m->noise);
}

static void update_best(const struct measured *m, const cJSON *attempt)
{
	cJSON *best;

	if (!m->passed || m->node < 0 || !beats_best(m))
		return;
	best = solution_of(m, m->w->nodes[m->node].id, attempt);
	if (world_number(m->w, "evaluations") > 0)
		json_set_number(best, "evaluation", json_number(m->w->document, "evaluations", 0));
	json_set(m->w->document, "best", best);
	json_set_number(m->w->document, "cycles_since_best", 0);
}

/* Is this attempt a gain over an earlier kernel, an attempt at `node`? Where the judge compared with that very kernel its
 * word counts, since times of two judgements are hardly comparable; else the scores. */
static bool gains_over(const struct measured *m, const char *node, const cJSON *earlier)
{
	const cJSON *rival = json_get(m->plan, "best");
	const char *name = json_string(rival, "node"), *verdict = json_string(json_get(m->bench, "versus"), "verdict");

	if (!m->passed)
		return false;
	if (!world_is_paper(m->w) && verdict && name && strcmp(name, node) == 0 &&
	    json_number(rival, "attempt", 0) == json_number(earlier, "attempt", -1))
		return strcmp(verdict, "better") == 0;
	return cycle_gain(m->w, json_number(earlier, "score", 0), json_number(earlier, "noise", 0), m->score, m->noise);
}

/* ---- cycles ----------------------------------------------------------------------------------------------------- */

static cJSON *attempt_record(const struct measured *m)
{
	cJSON *attempt = cJSON_CreateObject();

	json_set_number(attempt, "attempt", m->attempt);
	json_set_number(attempt, "round", (double)m->round);
	json_set_number(attempt, "slot", m->k);
	json_set_string(attempt, "mode", json_string(m->slot, "mode"));
	json_set_string(attempt, "status", m->status);
	json_set(attempt, "score", m->passed ? cJSON_CreateNumber(m->score) : cJSON_CreateNull());
	if (m->passed)
		json_set_number(attempt, "noise", m->noise);
	return attempt;
}

static cJSON *start_cycle(struct measured *m)
{
	cJSON *json = m->w->nodes[m->node].json, *cycle = cJSON_CreateObject();

	json_set_number(cycle, "number", json_number(json, "cycles", 0) + 1);
	json_set_number(cycle, "slot", m->lane);
	ledger_predict(cycle, json);
	json_set_number(cycle, "streak_best", 0);
	json_set_number(cycle, "streak_parent", 0);
	json_set(cycle, "best", cJSON_CreateNull());
	json_set(cycle, "attempts", cJSON_CreateArray());
	json_set(json, "cycle", cycle);
	world_set_status(m->w, m->node, NODE_ACTIVE);
	return cycle;
}

static void count(cJSON *object, const char *key, bool reset)
{
	json_set_number(object, key, reset ? 0 : json_number(object, key, 0) + 1);
}

/* The attempt is already the last of the cycle's list, and the world's best is up to date: who is that is also the best
 * of its cycle, and ahead of its parent. */
static void update_streaks(const struct measured *m, cJSON *cycle)
{
	const struct node *node = &m->w->nodes[m->node], *above = &m->w->nodes[node->parent];
	const cJSON *best = cycle_attempt(cycle, json_number(cycle, "best", 0)), *parent = world_start(m->w, node->parent);
	bool first_of_all = !world_is_paper(m->w) && is_best(m);
	bool gain = m->passed && (!best || first_of_all || gains_over(m, node->id, best));

	count(cycle, "streak_best", gain);
	if (gain)
		json_set_number(cycle, "best", m->attempt);
	if (!parent || !cJSON_IsNumber(json_get(cycle, "best")))
		return;
	count(cycle, "streak_parent", first_of_all || gains_over(m, above->id, parent));
}

static void prune_by_rule(struct world *w, long top, const char *why)
{
	char *below = xasprintf("below '%s', which was pruned", w->nodes[top].id);

	for (long i = top; i >= 0; i = world_next_below(w, i, top)) {
		if (i != top && w->nodes[i].status != NODE_OPEN && w->nodes[i].status != NODE_ACTIVE)
			continue;
		json_remove(w->nodes[i].json, "cycle");
		world_set_status(w, i, NODE_PRUNED);
		json_set_string(w->nodes[i].json, "pruned_because", i == top ? why : below);
	}
	free(below);
}

/* Nothing has passed. Returns the outcome that the edit call is told. */
static const char *fail_node(struct measured *m, const cJSON *cycle)
{
	cJSON *json = m->w->nodes[m->node].json, *action = json_get_mutable(json, "action");
	int attempts = cJSON_GetArraySize(json_get(cycle, "attempts"));

	world_set_status(m->w, m->node, NODE_OPEN);
	count(json, "failed_cycles", false);
	if (strategy_is_single(m->w)) {
		json_set(json, "failure", cJSON_Duplicate(cJSON_GetArrayItem(json_get(cycle, "attempts"), attempts - 1), true));
		prune_by_rule(m->w, m->node, "its one attempt did not pass");
		return "pruned";
	}
	if (world_is_paper(m->w))
		return "failed";
	json_set_number(action, "score_0_to_1", json_number(action, "score_0_to_1", 0) / 2);
	if (json_number(json, "failed_cycles", 0) < CYCLE_FAILURES)
		return "failed";
	prune_by_rule(m->w, m->node, "two cycles failed");
	return "pruned";
}

static const char *close_node(struct measured *m, const cJSON *best)
{
	struct node *node = &m->w->nodes[m->node];

	json_set(node->json, "solution", solution_of(m, node->id, best));
	world_set_status(m->w, m->node, NODE_CLOSED);
	return "closed";
}

static const char *set_aside(struct measured *m)
{
	world_set_status(m->w, m->node, NODE_UNRECORDED);
	return "failed";
}

/* Did this cycle bring the kernel that is the best now? */
static bool holds_best(const struct measured *m, const cJSON *cycle)
{
	const cJSON *best = json_get(m->w->document, "best");
	const char *node = json_string(best, "node");

	return node && strcmp(node, m->w->nodes[m->node].id) == 0 && cycle_attempt(cycle, json_number(best, "attempt", 0));
}

/* End the node's cycle. A cycle without any attempt (the first was not recorded) leaves no trace and no edit call. */
static cJSON *end_cycle(struct measured *m)
{
	bool unrecorded = strcmp(m->status, "UNRECORDED") == 0, brought_best;
	cJSON *json = m->w->nodes[m->node].json, *cycle = cJSON_DetachItemFromObjectCaseSensitive(json, "cycle"), *ended;
	const cJSON *best = cycle_attempt(cycle, json_number(cycle, "best", 0));
	const char *outcome = best ? close_node(m, best) : unrecorded ? set_aside(m) : fail_node(m, cycle);

	brought_best = holds_best(m, cycle);
	if (cJSON_GetArraySize(json_get(cycle, "attempts")) == 0) {
		cJSON_Delete(cycle);
		return NULL;
	}
	count(json, "cycles", false);
	if (best || !unrecorded) {
		world_count(m->w, "cycles", 1);
		if (!brought_best)
			world_count(m->w, "cycles_since_best", 1);
		ledger_note(m->w, m->node, cycle, best);
	}
	ended = cJSON_CreateObject();
	json_set_string(ended, "node", m->w->nodes[m->node].id);
	json_set(ended, "cycle", cJSON_Duplicate(json_get(cycle, "number"), true));
	json_set_number(ended, "slot", m->k);
	json_set_string(ended, "outcome", outcome);
	json_set(ended, "attempts", cJSON_DetachItemFromObjectCaseSensitive(cycle, "attempts"));
	json_set(ended, "best", cJSON_Duplicate(json_get(cycle, "best"), true));
	cJSON_Delete(cycle);
	return ended;
}

/* An attempt at a node that is closed, pruned or set aside in this world: after another judgement of an earlier round
 * its cycle had ended sooner. The measurement counts; a gain replaces the solution. */
static void measure_late(struct measured *m, const cJSON *attempt)
{
	struct node *node = &m->w->nodes[m->node];
	const cJSON *solution = node_solution(node);

	if (solution && gains_over(m, node->id, solution))
		json_set(node->json, "solution", solution_of(m, node->id, attempt));
}

static cJSON *measure_node(struct measured *m, cJSON *attempt)
{
	struct node *node = &m->w->nodes[m->node];
	bool unrecorded = strcmp(m->status, "UNRECORDED") == 0;
	double k = (double)world_number(m->w, "k");
	cJSON *cycle;

	if (!unrecorded)
		json_set_number(node->json, "attempts", fmax(json_number(node->json, "attempts", 0), m->attempt));
	if (!unrecorded)
		update_best(m, attempt);
	if (node->status != NODE_OPEN && node->status != NODE_ACTIVE) {
		measure_late(m, attempt);
		return NULL;
	}
	cycle = node->status == NODE_ACTIVE ? json_get_mutable(node->json, "cycle") : start_cycle(m);
	json_set_number(cycle, "slot", m->lane);
	if (!unrecorded) {
		cJSON_AddItemToArray(json_get_mutable(cycle, "attempts"), cJSON_Duplicate(attempt, true));
		update_streaks(m, cycle);
	}
	if (unrecorded || strategy_is_single(m->w) || json_number(cycle, "streak_best", 0) >= k || json_number(cycle, "streak_parent", 0) >= k)
		return end_cycle(m);
	return NULL;
}

/* ---- one verdict ------------------------------------------------------------------------------------------------ */

static int read_verdict(struct measured *m, struct error *err)
{
	const char *node = json_string(m->slot, "node");

	m->k = (int)json_number(m->slot, "slot", 0);
	m->lane = m->k / world_samples(m->w);
	m->round = world_number(m->w, "round");
	m->attempt = json_number(m->slot, "attempt", 0);
	m->status = json_string(m->bench, "status");
	m->score = json_number(m->bench, "score", -1);
	m->noise = json_number(m->bench, "noise", 0);
	m->passed = strcmp(m->status, "PASSED") == 0;
	if (!node || m->attempt < 1 || !json_string(m->slot, "mode"))
		return error_set(err, KM_EXIT_INPUT, "slot %d of the plan lacks its node, attempt or mode", m->k);
	if (m->passed && m->score < 0)
		return error_set(err, KM_EXIT_INPUT, "the verdict of slot %d has passed without a score", m->k);
	m->node = world_find(m->w, node);
	if (m->node == 0)
		return error_set(err, KM_EXIT_INPUT, "slot %d of the plan works on the root", m->k);
	return 0;
}

/* Counts the evaluation; turns a kernel that this round had already into a duplicate. */
static void count_verdict(struct measured *m, double judge_seconds)
{
	bool hashed = strcmp(m->status, "NO_CODE") != 0 && strcmp(m->status, "UNRECORDED") != 0;

	if (hashed && seen_at(m, true)) {
		m->status = "DUPLICATE";
		m->passed = false;
	}
	if (hashed)
		remember(m);
	if (strcmp(m->status, "DUPLICATE") != 0 && strcmp(m->status, "UNRECORDED") != 0)
		world_count(m->w, "evaluations", 1);
	json_set_number(m->w->document, "judge_seconds", json_number(m->w->document, "judge_seconds", 0) + judge_seconds);
}

/* Of several samples, the one that speaks for the attempt: a pass before all else, then code before none. */
static int rank_of(const struct measured *m)
{
	if (m->passed)
		return 3;
	if (strcmp(m->status, "UNRECORDED") == 0)
		return 0;
	return strcmp(m->status, "NO_CODE") == 0 || strcmp(m->status, "DUPLICATE") == 0 ? 1 : 2;
}

static bool speaks_for(const struct measured *a, const struct measured *b)
{
	return rank_of(a) > rank_of(b) || (rank_of(a) == rank_of(b) && a->passed && a->score > b->score);
}

int cycle_measure(struct world *w, const cJSON *plan, const struct cycle_verdict *verdicts, int samples, struct cycle_report *report, struct error *err)
{
	struct measured chosen = { 0 };
	cJSON *attempt;

	memset(report, 0, sizeof(*report));
	for (int i = 0; i < samples; i++) {
		struct measured m = { .w = w, .plan = plan, .slot = verdicts[i].slot, .bench = verdicts[i].bench };

		if (read_verdict(&m, err) < 0)
			return -1;
		count_verdict(&m, verdicts[i].judge_seconds);
		if (i == 0 || speaks_for(&m, &chosen))
			chosen = m;
	}
	snprintf(report->status, sizeof(report->status), "%s", chosen.status);
	report->score = chosen.passed ? chosen.score : -1;
	if (chosen.node < 0) {
		world_refuse(w, chosen.k, "attempt", "the plan's node is not in this tree, so only the evaluation counts");
		return 0;
	}
	attempt = attempt_record(&chosen);
	report->ended = measure_node(&chosen, attempt);
	report->best = is_best(&chosen);
	cJSON_Delete(attempt);
	return 0;
}

/* ---- slots ------------------------------------------------------------------------------------------------------ */

void cycle_settle(struct world *w)
{
	int width = (int)world_number(w, "width");
	bool taken[WORLD_SLOTS] = { false };

	for (size_t i = 0; i < w->count; i++) {
		cJSON *cycle = json_get_mutable(w->nodes[i].json, "cycle");
		int k;

		if (w->nodes[i].status != NODE_ACTIVE)
			continue;
		k = (int)json_number(cycle, "slot", 0);
		if (k >= width || taken[k])
			for (k = 0; k < width && taken[k]; k++)
				;
		if (k == width) {
			json_remove(w->nodes[i].json, "cycle");
			world_set_status(w, (long)i, NODE_OPEN);
			continue;
		}
		taken[k] = true;
		json_set_number(cycle, "slot", k);
	}
}
