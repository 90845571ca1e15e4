/* Plans and verdicts: modes and bases, both streaks, the end of cycles, failure rules, the best, endings. */
#include "search.h"

#include "cycle.h"
#include "ledger.h"
#include "plan.h"
#include "round.h"

static cJSON *plan_of(const struct world *w)
{
	struct limits limits = LIMITS_NONE;
	struct calls_sum spent = { 0 };
	struct error err = { 0 };
	cJSON *plan = plan_make(w, "", &limits, &spent, &err);

	if (!plan)
		fail_msg("%s", err.text);
	return plan;
}

static const cJSON *slot_of(const cJSON *plan, int k)
{
	return cJSON_GetArrayItem(json_get(plan, "slots"), k);
}

static cJSON *verdict_of(const char *status, double score, const char *versus, const char *hash)
{
	cJSON *bench = cJSON_CreateObject(), *v = cJSON_CreateObject();

	json_set_string(bench, "status", status);
	json_set(bench, "score", score > 0 ? cJSON_CreateNumber(score) : cJSON_CreateNull());
	json_set_number(bench, "noise", 0.002);
	if (hash)
		json_set_string(bench, "code_sha256", hash);
	if (versus)
		json_set_string(v, "verdict", versus);
	json_set(bench, "versus", v);
	return bench;
}

/* Give slot k of the plan a verdict; the round must have begun. Returns the outcome of the cycle it ended, or NULL. */
static const char *judge(struct world *w, const cJSON *plan, int k, const char *status, double score, const char *versus, const char *hash)
{
	static char outcome[32];
	cJSON *bench = verdict_of(status, score, versus, hash);
	struct cycle_report report;
	struct error err = { 0 };

	json_set(w->document, "round", cJSON_Duplicate(json_get(plan, "round"), true));
	if (cycle_measure(w, plan, &(struct cycle_verdict){ slot_of(plan, k), bench, 1.5 }, 1, &report, &err) < 0)
		fail_msg("%s", err.text);
	snprintf(outcome, sizeof(outcome), "%s", report.ended ? json_string(report.ended, "outcome") : "");
	cJSON_Delete(report.ended);
	cJSON_Delete(bench);
	cycle_settle(w);
	assert_sound(w);
	return outcome[0] ? outcome : NULL;
}

/* One round of width 1. */
static const char *play(struct world *w, const char *status, double score)
{
	cJSON *plan = plan_of(w);
	const char *outcome = judge(w, plan, 0, status, score, NULL, NULL);

	cJSON_Delete(plan);
	return outcome;
}

static const char *mode_of(const struct world *w)
{
	static char mode[16];
	cJSON *plan = plan_of(w);

	snprintf(mode, sizeof(mode), "%s", json_string(slot_of(plan, 0), "mode"));
	cJSON_Delete(plan);
	return mode;
}

static void modes_and_bases_follow_the_cycle(void **state)
{
	struct world w = first_world(1, 5, "default");
	cJSON *plan;

	(void)state;
	insert(&w, "root", "A", 0.9, 2);
	assert_string_equal(mode_of(&w), "new");
	play(&w, "NO_CODE", 0);
	assert_string_equal(mode_of(&w), "new");
	play(&w, "COMPILE_ERROR", 0);
	assert_string_equal(mode_of(&w), "debug");
	play(&w, "NO_CODE", 0);
	plan = plan_of(&w);
	assert_string_equal(json_string(slot_of(plan, 0), "mode"), "debug");
	assert_string_equal(json_string(json_get(slot_of(plan, 0), "base"), "kernel"), "../r00002/s0/kernel.c");
	assert_string_equal(json_string(json_get(slot_of(plan, 0), "last"), "bench"), "../r00003/s0/bench.json");
	assert_true(cJSON_IsNull(json_get(slot_of(plan, 0), "parent")));
	cJSON_Delete(plan);
	play(&w, "PASSED", 200);
	play(&w, "TIMEOUT", 0);
	plan = plan_of(&w);
	assert_string_equal(json_string(slot_of(plan, 0), "mode"), "improve");
	assert_string_equal(json_string(json_get(slot_of(plan, 0), "base"), "build"), "../r00004/s0/build.json");
	assert_string_equal(json_string(json_get(slot_of(plan, 0), "last"), "kernel"), "../r00005/s0/kernel.c");
	assert_string_equal(json_string(json_get(plan, "best"), "kernel"), "../r00004/s0/kernel.c");
	assert_true(json_number(slot_of(plan, 0), "attempt", 0) == 6);
	assert_true(json_number(slot_of(plan, 0), "cycle_attempt", 0) == 6);
	cJSON_Delete(plan);
	world_release(&w);
}

static void k_attempts_without_a_new_best_end_the_cycle(void **state)
{
	struct world w = first_world(1, 3, "default");
	const char *a = insert(&w, "root", "A", 0.9, 2);

	(void)state;
	assert_null(play(&w, "PASSED", 100));
	assert_null(play(&w, "PASSED", 90));
	assert_null(play(&w, "RUNTIME_ERROR", 0));
	assert_null(play(&w, "PASSED", 110)); /* a new best: the streak starts again */
	assert_null(play(&w, "PASSED", 110.5)); /* within the noise */
	assert_null(play(&w, "REJECTED", 0));
	assert_string_equal(play(&w, "PASSED", 20), "closed");
	assert_true(json_number(node_solution(node_of(&w, a)), "score", 0) == 110);
	assert_true(json_number(node_solution(node_of(&w, a)), "attempt", 0) == 4);
	assert_int_equal(world_number(&w, "evaluations"), 7);
	assert_int_equal(world_number(&w, "cycles"), 1);
	assert_int_equal(world_number(&w, "cycles_since_best"), 0);
	assert_true(json_number(w.document, "judge_seconds", 0) == 7 * 1.5);
	world_release(&w);
}

static const char *play_against(struct world *w, double score, const char *versus)
{
	cJSON *plan = plan_of(w);
	const char *outcome = judge(w, plan, 0, "PASSED", score, versus, NULL);

	cJSON_Delete(plan);
	return outcome;
}

static double cycle_best(const struct world *w, const char *id)
{
	return json_number(json_get(node_of(w, id)->json, "cycle"), "best", 0);
}

static void within_a_cycle_the_judges_comparison_decides(void **state)
{
	struct world w = first_world(1, 2, "default");
	const char *a = insert(&w, "root", "A", 0.9, 2);

	(void)state;
	play_against(&w, 100, NULL);
	play_against(&w, 90, "better"); /* a slower day for both: still a gain over the best, which is the cycle's */
	assert_true(cycle_best(&w, a) == 2);
	assert_null(play_against(&w, 140, "equal"));
	assert_true(cycle_best(&w, a) == 2);
	assert_string_equal(play_against(&w, 140, "worse"), "closed");
	assert_true(json_number(node_solution(node_of(&w, a)), "attempt", 0) == 2);
	world_release(&w);
}

static void the_search_s_new_best_is_its_cycles_best(void **state)
{
	struct world w = first_world(1, 3, "default");
	const char *a = insert(&w, "root", "A", 0.9, 2), *b;

	(void)state;
	play_against(&w, 100, NULL);
	for (int i = 0; i < 3; i++)
		play_against(&w, 50, "worse");
	assert_int_equal(node_of(&w, a)->status, NODE_CLOSED);
	b = insert(&w, "root", "B", 0.8, 2);
	play_against(&w, 120, "equal");
	play_against(&w, 110, "better"); /* against A's kernel, which is the best; less than the score before */
	assert_true(cycle_best(&w, b) == 2);
	world_release(&w);
}

static void by_the_paper_any_gain_counts(void **state)
{
	struct world w = first_world(1, 3, "paper");
	const char *a = insert(&w, "root", "A", 0.9, 2);

	(void)state;
	play(&w, "PASSED", 100);
	play(&w, "PASSED", 100.1);
	play(&w, "PASSED", 100.1);
	play(&w, "PASSED", 90);
	assert_string_equal(play(&w, "PASSED", 90), "closed");
	assert_true(json_number(node_solution(node_of(&w, a)), "score", 0) == 100.1);
	world_release(&w);
}

static void the_margin_grows_with_the_noise(void **state)
{
	struct world w = first_world(1, 3, "default");

	(void)state;
	assert_false(cycle_gain(&w, 100, 0, 100.9, 0));
	assert_true(cycle_gain(&w, 100, 0, 101.1, 0));
	assert_false(cycle_gain(&w, 100, 0.03, 105, 0));
	assert_false(cycle_gain(&w, 100, 0, 105, 0.03));
	assert_true(cycle_gain(&w, 100, 0.03, 107, 0));
	world_release(&w);
}

static void not_beating_the_parent_ends_the_cycle(void **state)
{
	struct world w = first_world(1, 3, "default");
	const char *a = insert(&w, "root", "A", 0.9, 2), *b;

	(void)state;
	play(&w, "PASSED", 100);
	for (int i = 0; i < 3; i++)
		play(&w, "TIMEOUT", 0);
	b = insert(&w, a, "B", 0.9, 2);
	assert_null(play(&w, "TIMEOUT", 0));    /* nothing has passed: does not count against the parent */
	assert_null(play(&w, "PASSED", 50));    /* 1 */
	assert_null(play(&w, "PASSED", 60));    /* 2, though a new best of the cycle each time */
	assert_string_equal(play(&w, "PASSED", 70), "closed");
	assert_true(json_number(node_solution(node_of(&w, b)), "score", 0) == 70); /* slower than its parent */
	assert_int_equal(world_number(&w, "cycles_since_best"), 1);
	assert_string_equal(json_string(json_get(w.document, "best"), "node"), a);
	world_release(&w);
}

static void failing_twice_prunes(void **state)
{
	struct world w = first_world(1, 2, "default");
	const char *a = insert(&w, "root", "A", 0.8, 2), *below = insert(&w, a, "below", 0.8, 2);

	(void)state;
	assert_null(play(&w, "TIMEOUT", 0));
	assert_string_equal(play(&w, "COMPILE_ERROR", 0), "failed");
	assert_int_equal(node_of(&w, a)->status, NODE_OPEN);
	assert_true(json_number(json_get(node_of(&w, a)->json, "action"), "score_0_to_1", 0) == 0.4);
	play(&w, "NO_CODE", 0);
	assert_string_equal(play(&w, "DUPLICATE", 0), "pruned");
	assert_int_equal(node_of(&w, a)->status, NODE_PRUNED);
	assert_string_equal(json_string(node_of(&w, a)->json, "pruned_because"), "two cycles failed");
	assert_int_equal(node_of(&w, below)->status, NODE_PRUNED);
	assert_int_equal(world_number(&w, "evaluations"), 3);
	assert_int_equal(world_number(&w, "cycles"), 2);
	assert_int_equal(world_number(&w, "cycles_since_best"), 2);
	assert_true(json_number(node_of(&w, a)->json, "attempts", 0) == 4);
	world_release(&w);
}

static void by_the_paper_failure_changes_no_priority(void **state)
{
	struct world w = first_world(1, 1, "paper");
	const char *a = insert(&w, "root", "A", 0.8, 2);

	(void)state;
	for (int i = 0; i < 3; i++)
		assert_string_equal(play(&w, "TIMEOUT", 0), "failed");
	assert_int_equal(node_of(&w, a)->status, NODE_OPEN);
	assert_true(json_number(json_get(node_of(&w, a)->json, "action"), "score_0_to_1", 0) == 0.8);
	assert_true(json_number(node_of(&w, a)->json, "failed_cycles", 0) == 3);
	world_release(&w);
}

static void the_unrecorded_counts_as_nothing(void **state)
{
	struct world w = first_world(1, 3, "default");
	const char *a = insert(&w, "root", "A", 0.8, 2), *b = insert(&w, "root", "B", 0.7, 2);

	(void)state;
	assert_null(play(&w, "UNRECORDED", 0)); /* never tried: no edit call */
	assert_int_equal(node_of(&w, a)->status, NODE_UNRECORDED);
	assert_true(json_number(node_of(&w, a)->json, "attempts", 0) == 0);
	play(&w, "PASSED", 100);
	assert_string_equal(play(&w, "UNRECORDED", 0), "closed");
	assert_int_equal(node_of(&w, b)->status, NODE_CLOSED);
	assert_int_equal(world_number(&w, "evaluations"), 1);
	insert(&w, "root", "C", 0.8, 2);
	play(&w, "TIMEOUT", 0);
	assert_string_equal(play(&w, "UNRECORDED", 0), "failed");
	assert_int_equal(w.nodes[3].status, NODE_UNRECORDED);
	assert_true(json_number(w.nodes[3].json, "failed_cycles", 0) == 0);
	assert_true(json_number(json_get(w.nodes[3].json, "action"), "score_0_to_1", 0) == 0.8);
	world_release(&w);
}

static void the_best_is_what_the_judge_calls_better(void **state)
{
	struct world w = first_world(1, 9, "default");
	const struct {
		double score;
		const char *versus;
		double best;
	} rows[] = {
		{ 100, NULL, 100 },    { 120, "equal", 100 }, { 101, "better", 101 }, { 90, "worse", 101 }, { 90, "better", 90 }, { 90.5, NULL, 90 }, { 99, NULL, 99 },
	};

	(void)state;
	insert(&w, "root", "A", 0.8, 2);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		cJSON *plan = plan_of(&w);

		judge(&w, plan, 0, "PASSED", rows[i].score, rows[i].versus, NULL);
		assert_true(json_number(json_get(w.document, "best"), "score", 0) == rows[i].best);
		cJSON_Delete(plan);
	}
	assert_true(json_number(json_get(w.document, "best"), "evaluation", 0) == 7);
	world_release(&w);
}

static void a_best_of_the_same_round_is_beaten_by_score(void **state)
{
	struct world w = first_world(3, 9, "default");
	cJSON *plan;

	(void)state;
	insert(&w, "root", "A", 0.8, 2);
	insert(&w, "root", "B", 0.7, 2);
	insert(&w, "root", "C", 0.6, 2);
	plan = plan_of(&w);
	judge(&w, plan, 0, "PASSED", 100, NULL, NULL);
	judge(&w, plan, 1, "PASSED", 50, NULL, NULL);
	judge(&w, plan, 2, "PASSED", 100.5, NULL, NULL);
	assert_true(json_number(json_get(w.document, "best"), "slot", -1) == 0);
	cJSON_Delete(plan);
	plan = plan_of(&w);
	judge(&w, plan, 0, "PASSED", 150, "better", NULL);
	judge(&w, plan, 1, "PASSED", 120, "better", NULL); /* better than the plan's best, not than slot 0 */
	assert_true(json_number(json_get(w.document, "best"), "score", -1) == 150);
	judge(&w, plan, 2, "PASSED", 160, "better", NULL);
	assert_true(json_number(json_get(w.document, "best"), "score", -1) == 160);
	cJSON_Delete(plan);
	world_release(&w);
}

#define HASH "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

static void the_same_code_twice_in_a_round_is_a_duplicate(void **state)
{
	struct world w = first_world(2, 9, "default");
	const cJSON *cycle;
	cJSON *plan;

	(void)state;
	insert(&w, "root", "A", 0.8, 2);
	insert(&w, "root", "B", 0.7, 2);
	plan = plan_of(&w);
	judge(&w, plan, 0, "PASSED", 100, NULL, HASH);
	judge(&w, plan, 1, "PASSED", 200, NULL, HASH);
	assert_int_equal(world_number(&w, "evaluations"), 1);
	assert_true(json_number(json_get(w.document, "best"), "score", 0) == 100);
	cycle = json_get(w.nodes[2].json, "cycle");
	assert_string_equal(json_string(json_get(cycle, "attempts")->child, "status"), "DUPLICATE");
	assert_true(json_number(cycle, "streak_best", 0) == 1);
	assert_string_equal(json_string(json_get(w.document, "seen"), "0011223344556677"), "r00001/s0");
	cJSON_Delete(plan);
	world_release(&w);
}

static void slots_keep_their_nodes(void **state)
{
	struct world w = first_world(3, 9, "default");
	cJSON *plan;

	(void)state;
	insert(&w, "root", "A", 0.8, 2);
	insert(&w, "root", "B", 0.7, 2);
	plan = plan_of(&w);
	assert_non_null(json_string(slot_of(plan, 2), "skip"));
	judge(&w, plan, 0, "UNRECORDED", 0, NULL, NULL);
	judge(&w, plan, 1, "TIMEOUT", 0, NULL, NULL);
	cJSON_Delete(plan);
	insert(&w, "root", "C", 0.9, 2);
	insert(&w, "root", "D", 0.8, 2);
	plan = plan_of(&w);
	assert_string_equal(json_string(slot_of(plan, 0), "node"), w.nodes[3].id);
	assert_string_equal(json_string(slot_of(plan, 1), "node"), w.nodes[2].id);
	assert_string_equal(json_string(slot_of(plan, 1), "mode"), "debug");
	assert_string_equal(json_string(slot_of(plan, 2), "node"), w.nodes[4].id);
	cJSON_Delete(plan);
	world_release(&w);
}

/* POLICY=eager: an idle slot takes a child of an active node, which starts from its parent's best so far and is held
 * against that for as long as the parent has no solution. */
static void by_the_eager_policy_children_do_not_wait(void **state)
{
	struct world w = first_world(2, 2, "eager");
	const char *a = insert(&w, "root", "A", 0.8, 2), *b = insert(&w, a, "B", 0.8, 2);
	cJSON *plan;

	(void)state;
	plan = plan_of(&w);
	assert_string_equal(json_string(slot_of(plan, 1), "skip"), "no open node is left for this slot");
	judge(&w, plan, 0, "TIMEOUT", 0, NULL, NULL);
	cJSON_Delete(plan);
	plan = plan_of(&w); /* nothing has passed yet */
	assert_non_null(json_string(slot_of(plan, 1), "skip"));
	judge(&w, plan, 0, "PASSED", 100, NULL, NULL);
	cJSON_Delete(plan);
	plan = plan_of(&w);
	assert_string_equal(json_string(slot_of(plan, 0), "mode"), "improve");
	assert_string_equal(json_string(slot_of(plan, 1), "node"), b);
	assert_string_equal(json_string(slot_of(plan, 1), "mode"), "new");
	assert_string_equal(json_string(json_get(slot_of(plan, 1), "base"), "node"), a);
	assert_string_equal(json_string(json_get(slot_of(plan, 1), "base"), "kernel"), "../r00002/s0/kernel.c");
	assert_non_null(strstr(json_string(slot_of(plan, 1), "why"), "goes on"));
	judge(&w, plan, 0, "PASSED", 200, NULL, NULL);
	assert_null(judge(&w, plan, 1, "PASSED", 150, NULL, NULL)); /* behind the parent's 200: 1 */
	assert_true(json_number(json_get(node_of(&w, b)->json, "cycle"), "streak_parent", 9) == 1);
	cJSON_Delete(plan);
	plan = plan_of(&w);
	assert_string_equal(json_string(json_get(slot_of(plan, 1), "parent"), "kernel"), "../r00003/s0/kernel.c");
	judge(&w, plan, 0, "TIMEOUT", 0, NULL, NULL);
	assert_string_equal(judge(&w, plan, 1, "PASSED", 160, NULL, NULL), "closed"); /* before its parent */
	cJSON_Delete(plan);
	insert(&w, b, "C", 0.8, 2);
	plan = plan_of(&w);
	assert_string_equal(json_string(json_get(slot_of(plan, 1), "parent"), "node"), b);
	assert_string_equal(judge(&w, plan, 0, "TIMEOUT", 0, NULL, NULL), "closed");
	assert_true(json_number(node_solution(node_of(&w, a)), "score", 0) == 200);
	cJSON_Delete(plan);
	world_release(&w);
}

/* A plan from another judgement of the rounds before still counts. */
static void plans_of_another_world_are_taken_as_they_are(void **state)
{
	struct world w = first_world(2, 1, "default"), other = first_world(2, 9, "default");
	const char *a = insert(&w, "root", "A", 0.8, 2);
	cJSON *plan;

	(void)state;
	insert(&w, "root", "B", 0.7, 2);
	insert(&other, "root", "A", 0.8, 2);
	insert(&other, "root", "B", 0.7, 2);
	plan = plan_of(&other);
	judge(&other, plan, 0, "PASSED", 100, NULL, NULL);
	judge(&other, plan, 1, "TIMEOUT", 0, NULL, NULL);
	judge(&w, plan, 0, "PASSED", 100, NULL, NULL); /* active, streak 0 */
	cJSON_Delete(plan);
	plan = plan_of(&w);
	judge(&w, plan, 0, "TIMEOUT", 0, NULL, NULL); /* K is 1: closed */
	assert_int_equal(node_of(&w, a)->status, NODE_CLOSED);
	cJSON_Delete(plan);
	plan = plan_of(&other); /* attempt 2 at a, which w has closed */
	judge(&w, plan, 0, "PASSED", 200, NULL, NULL);
	assert_true(json_number(node_solution(node_of(&w, a)), "score", 0) == 200);
	assert_int_equal(world_number(&w, "evaluations"), 3);
	cJSON_Delete(plan);
	insert(&other, "root", "only here", 0.99, 2);
	json_remove(other.nodes[2].json, "cycle");
	world_set_status(&other, 2, NODE_OPEN);
	plan = plan_of(&other);
	judge(&w, plan, 1, "PASSED", 900, NULL, NULL);
	assert_int_equal(world_number(&w, "evaluations"), 4);
	assert_true(json_number(json_get(w.document, "best"), "score", 0) == 200);
	cJSON_Delete(plan);
	world_release(&w);
	world_release(&other);
}

static void ends(const struct world *w, struct limits limits, struct calls_sum spent, const char *text)
{
	struct error err = { 0 };
	cJSON *plan = plan_make(w, "", &limits, &spent, &err);

	assert_true(!plan == !!text);
	if (text) {
		assert_int_equal(err.code, KM_EXIT_ENDED);
		assert_string_equal(err.text, text);
	}
	cJSON_Delete(plan);
}

static void limits_end_the_search(void **state)
{
	struct world w = first_world(1, 9, "default");
	struct calls_sum spent = { .calls = 3, .tokens = 1000, .usd = 0.25, .seconds = 20 };
	struct limits none = LIMITS_NONE, l;

	(void)state;
	insert(&w, "root", "A", 0.8, 2);
	play(&w, "PASSED", 310);
	json_set_number(w.document, "cycles_since_best", 2);
	ends(&w, none, spent, NULL);
	l = none, l.evals = 1;
	ends(&w, l, spent, "ended: 1 of 1 evaluations");
	l.evals = 2;
	ends(&w, l, spent, NULL);
	l = none, l.rounds = 1;
	ends(&w, l, spent, "ended: 1 of 1 rounds");
	l.rounds = 2;
	ends(&w, l, spent, NULL);
	l = none, l.target = 3;
	ends(&w, l, spent, "ended: target 3x reached, best 3.1x");
	l.target = 3.2;
	ends(&w, l, spent, NULL);
	l = none, l.patience = 2;
	ends(&w, l, spent, "ended: 2 cycles without a new best (patience 2)");
	l.patience = 3;
	ends(&w, l, spent, NULL);
	l = none, l.usd = 0.25;
	ends(&w, l, spent, "ended: $0.25 of $0.25 spent");
	l = none, l.tokens = 999;
	ends(&w, l, spent, "ended: 1000 of 999 tokens");
	l = none, l.seconds = 21;
	ends(&w, l, spent, "ended: 22 of 21 seconds");
	world_release(&w);
}

static void few_evaluations_go_to_open_cycles_first(void **state)
{
	struct world w = first_world(3, 9, "default");
	struct limits limits = LIMITS_NONE;
	struct calls_sum spent = { 0 };
	cJSON *plan;

	(void)state;
	insert(&w, "root", "A", 0.8, 2);
	insert(&w, "root", "B", 0.7, 2);
	insert(&w, "root", "C", 0.6, 2);
	plan = plan_of(&w);
	judge(&w, plan, 0, "UNRECORDED", 0, NULL, NULL);
	judge(&w, plan, 1, "TIMEOUT", 0, NULL, NULL);
	judge(&w, plan, 2, "TIMEOUT", 0, NULL, NULL);
	cJSON_Delete(plan);
	insert(&w, "root", "D", 0.9, 2);
	limits.evals = 4;
	plan = plan_make(&w, "", &limits, &spent, NULL);
	assert_non_null(json_string(slot_of(plan, 0), "skip"));
	assert_non_null(json_string(slot_of(plan, 1), "node"));
	assert_non_null(json_string(slot_of(plan, 2), "node"));
	cJSON_Delete(plan);
	world_release(&w);
}

static cJSON *reply_of(const char *cue, const char *status, const char *text)
{
	cJSON *reply = cJSON_CreateObject();

	json_set_string(reply, "cue", cue);
	json_set_string(reply, "status", status);
	json_set_string(reply, "text", text);
	return reply;
}

static void answer(struct world *w, const char *cue, const char *status, const char *text)
{
	cJSON *reply = reply_of(cue, status, text);

	round_apply_reply(w, reply, 0, -1);
	assert_sound(w);
	cJSON_Delete(reply);
}

#define INSERT(title) "{\"ops\": [{\"op\": \"insert_node\", \"parent\": \"root\", \"action\": {\"title\": \"" title "\", \"difficulty_1_to_5\": 2, \"score_0_to_1\": 0.5}}]}"

static void an_empty_frontier_asks_and_three_failures_end(void **state)
{
	struct world w = first_world(2, 9, "default");
	struct limits none = LIMITS_NONE;
	struct calls_sum spent = { 0 };
	cJSON *plan = plan_of(&w);

	(void)state;
	assert_non_null(json_string(slot_of(plan, 0), "skip"));
	assert_non_null(json_string(slot_of(plan, 1), "skip"));
	cJSON_Delete(plan);
	answer(&w, "refill/1", "unreadable", "");
	answer(&w, "refill/2", "answered", "{\"ops\": []}");
	ends(&w, none, spent, NULL);
	answer(&w, "refill/3", "answered", INSERT("New"));
	assert_int_equal(world_number(&w, "refills_failed"), 0);
	assert_int_equal(world_number(&w, "refills"), 3);
	play(&w, "UNRECORDED", 0);
	for (int i = 0; i < 3; i++)
		answer(&w, "refill/4", "answered", "no tree");
	ends(&w, none, spent, "ended: nothing left to try: no open node, and refills brought none");
	answer(&w, "edit/x/1", "answered", INSERT("Other"));
	ends(&w, none, spent, NULL);
	world_release(&w);
}

/* A slot is idle and no cycle has ended: the default asks for more nodes although one waits below A, eager does not. */
static void new_nodes_are_asked_for_when_none_can_start(void **state)
{
	static const char *const policies[] = { "default", "eager" };

	(void)state;
	for (int p = 0; p < 2; p++) {
		struct round r = { .world = first_world(2, 9, policies[p]), .samples = 1, .width = 2 };
		const char *a = insert(&r.world, "root", "A", 0.8, 2);

		insert(&r.world, a, "B", 0.8, 2);
		r.plan = plan_of(&r.world);
		judge(&r.world, r.plan, 0, "PASSED", 100, NULL, NULL);
		assert_int_equal(round_asks(&r, 0), p ? ROUND_ASKS_NOTHING : ROUND_ASKS_REFILL);
		answer(&r.world, "refill/1", "answered", "{\"ops\": []}");
		assert_int_equal(world_number(&r.world, "refills_failed"), 1);
		cJSON_Delete(r.plan);
		world_release(&r.world);
	}
}

static void an_unrecorded_refill_ends_a_replay(void **state)
{
	struct world w = first_world(1, 9, "default");
	struct limits none = LIMITS_NONE;
	struct calls_sum spent = { 0 };

	(void)state;
	answer(&w, "refill/1", "unrecorded", "");
	ends(&w, none, spent, "ended: nothing left to try: no open node, and refills brought none");
	world_release(&w);
}

/* ---- random searches -------------------------------------------------------------------------------------------- */

static unsigned dice(unsigned sides)
{
	static uint64_t x = 88172645463325252u;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return (unsigned)((x >> 20) % sides);
}

static const char *some_node(const struct world *w)
{
	switch (dice(8)) {
	case 0: return "root";
	case 1: return "$a";
	case 2: return "nobody.0000";
	default: return w->nodes[dice((unsigned)w->count)].id;
	}
}

static void add_random_op(const struct world *w, struct buf *b)
{
	static const char *const kinds[] = { "insert_node", "insert_node", "insert_node", "update_node", "split_node", "prune_node", "revive_node", "other" };
	const char *kind = kinds[dice(8)];

	buf_printf(b, "{\"op\": \"%s\", \"reason\": \"r\", \"%s\": \"%s\"", kind, strcmp(kind, "insert_node") == 0 ? "parent" : "node", some_node(w));
	if (strcmp(kind, "insert_node") == 0)
		buf_printf(b, "%s, \"action\": {\"title\": \"T%u\", \"difficulty_1_to_5\": %u, \"score_0_to_1\": 0.%u}", dice(3) ? "" : ", \"as\": \"a\"", dice(30), dice(7), dice(10));
	if (strcmp(kind, "update_node") == 0)
		buf_printf(b, ", \"set\": {\"action\": {\"title\": \"T%u\", \"score_0_to_1\": 0.%u}}", dice(30), dice(10));
	if (strcmp(kind, "split_node") == 0)
		buf_printf(b, ", \"into\": [{\"action\": {\"title\": \"T%u\", \"difficulty_1_to_5\": 2, \"score_0_to_1\": 0.5}}, {\"action\": {\"title\": \"T%u\", \"difficulty_1_to_5\": 2, \"score_0_to_1\": 0.5}}]", dice(30), dice(30));
	buf_putc(b, '}');
}

static void random_reply(struct world *w, int slot, const char *cue, long solved)
{
	static const char *const statuses[] = { "answered", "answered", "answered", "answered", "unreadable", "unrecorded" };
	unsigned ops = dice(6);
	struct buf b;
	cJSON *reply;

	buf_init(&b, 1 << 16);
	buf_puts(&b, "{\"ops\": [");
	for (unsigned i = 0; i < ops; i++) {
		if (i)
			buf_putc(&b, ',');
		add_random_op(w, &b);
	}
	buf_puts(&b, "]}");
	reply = reply_of(cue, statuses[dice(6)], b.data);
	round_apply_reply(w, reply, slot, solved);
	cJSON_Delete(reply);
	buf_release(&b);
}

static void random_verdict(struct world *w, const cJSON *plan, int k, bool *ended)
{
	static const char *const statuses[] = { "PASSED", "PASSED", "PASSED", "TIMEOUT", "COMPILE_ERROR", "NO_CODE", "DUPLICATE", "UNRECORDED" };
	static const char *const verdicts[] = { NULL, "better", "equal", "worse" };
	const char *status = statuses[dice(8)];
	char hash[65];

	snprintf(hash, sizeof(hash), "%064u", dice(20));
	memcpy(hash, hash + 48, 16);
	*ended = judge(w, plan, k, status, strcmp(status, "PASSED") == 0 ? 50 + dice(300) : 0, verdicts[dice(4)], hash) || *ended;
}

/* Returns false once the search has ended. */
static bool random_round(struct world *w, int width)
{
	struct limits limits = LIMITS_NONE;
	struct calls_sum spent = { 0 };
	struct error err = { 0 };
	bool ended = false, idle = false;
	long before = world_number(w, "evaluations");
	cJSON *plan;

	limits.evals = 40;
	limits.rounds = 200;
	plan = plan_make(w, "", &limits, &spent, &err);
	if (!plan) {
		assert_int_equal(err.code, KM_EXIT_ENDED);
		return false;
	}
	json_set(w->document, "round", cJSON_Duplicate(json_get(plan, "round"), true));
	for (int k = 0; k < width; k++) {
		if (json_string(slot_of(plan, k), "skip"))
			idle = true;
		else
			random_verdict(w, plan, k, &ended);
		for (int other = 0; other < k && json_string(slot_of(plan, k), "node"); other++)
			if (json_string(slot_of(plan, other), "node"))
				assert_string_not_equal(json_string(slot_of(plan, k), "node"), json_string(slot_of(plan, other), "node"));
	}
	assert_true(world_number(w, "evaluations") <= 40);
	assert_true(world_number(w, "evaluations") - before <= width);
	if (ended || idle)
		random_reply(w, 0, ended ? "edit/x/1" : "refill/1", -1);
	assert_sound(w);
	cJSON_Delete(plan);
	return true;
}

static void random_searches_stay_sound_and_end(void **state)
{
	long solved = 0;

	(void)state;
	for (int seed = 0; seed < 200; seed++) {
		int width = 1 + (int)dice(4);
		struct world w = first_world(width, 1 + (int)dice(4), ((const char *[]){ "paper", "default", "eager" })[dice(3)]);

		random_reply(&w, 0, "init/0", -1);
		while (random_round(&w, width))
			;
		assert_true(world_number(&w, "round") <= 200);
		solved += cJSON_IsObject(json_get(w.document, "best"));
		world_release(&w);
	}
	assert_true(solved > 50); /* the dice do let searches get somewhere */
}

/* ---- the ledger ------------------------------------------------------------------------------------------------- */

static const cJSON *entry_of(const struct world *w, int n)
{
	return cJSON_GetArrayItem(json_get(w->document, "ledger"), n);
}

static void predictions_are_kept_as_they_were_when_the_cycle_began(void **state)
{
	struct world w = first_world(1, 1, "default");
	char *child;

	(void)state;
	apply(&w, 8, -1, "{\"op\": \"insert_node\", \"parent\": \"root\", \"confidence_0_to_1\": 0.8, \"action\": {\"title\": \"A\", \"difficulty_1_to_5\": 1, "
			 "\"score_0_to_1\": 0.9, \"expected_vs_baseline_factor\": 4}}");
	assert_null(play(&w, "PASSED", 200));
	/* What the model says later changes nothing. */
	child = xasprintf("{\"op\": \"update_node\", \"node\": \"%s\", \"set\": {\"confidence_0_to_1\": 0.1, \"action\": {\"expected_vs_baseline_factor\": 2}}}", w.nodes[1].id);
	assert_int_equal(apply(&w, 8, -1, child).applied, 1);
	free(child);
	assert_string_equal(play(&w, "TIMEOUT", 0), "closed");
	assert_int_equal(cJSON_GetArraySize(json_get(w.document, "ledger")), 1);
	assert_string_equal(json_string(entry_of(&w, 0), "kind"), "family");
	assert_true(json_number(entry_of(&w, 0), "expected", 0) == 4);
	assert_true(json_number(entry_of(&w, 0), "confidence", 0) == 0.8);
	assert_true(json_number(entry_of(&w, 0), "measured", 0) == 2);
	/* A refinement's kind is its highest impact; without a pass nothing was measured. */
	child = xasprintf("{\"op\": \"insert_node\", \"parent\": \"%s\", \"impacts\": {\"memory_bandwidth\": {\"rating_0_to_10\": 4}, \"register_pressure\": {\"rating_0_to_10\": 7}}, "
			  "\"action\": {\"title\": \"B\", \"difficulty_1_to_5\": 1, \"score_0_to_1\": 0.9, \"expected_vs_baseline_factor\": 3}}", w.nodes[1].id);
	apply(&w, 8, -1, child);
	free(child);
	assert_string_equal(play(&w, "TIMEOUT", 0), "failed");
	assert_string_equal(json_string(entry_of(&w, 1), "kind"), "registers");
	assert_true(cJSON_IsNull(json_get(entry_of(&w, 1), "measured")));
	/* No prediction, no entry. */
	insert(&w, "root", "C", 1, 1);
	play(&w, "PASSED", 100);
	play(&w, "TIMEOUT", 0);
	assert_int_equal(cJSON_GetArraySize(json_get(w.document, "ledger")), 2);
	world_release(&w);
}

static void calibration_is_told_by_kind_and_confidence(void **state)
{
	cJSON *world = parse("{\"ledger\": ["
			     "{\"kind\": \"family\", \"expected\": 4, \"confidence\": 0.9, \"measured\": 2},"
			     "{\"kind\": \"family\", \"expected\": 2, \"confidence\": 0.7, \"measured\": 1.8},"
			     "{\"kind\": \"memory\", \"expected\": 2, \"confidence\": 0.2, \"measured\": null}]}");
	struct buf b;

	(void)state;
	buf_init(&b, 1 << 16);
	ledger_text(world, &b);
	assert_non_null(strstr(b.data, "- all: 3 predictions, confidence 0.60 on average; 2 passed, 1 kept (0.33); measured / expected: median 0.70, from 0.50 to 0.90\n"));
	assert_non_null(strstr(b.data, "- new families: 2 predictions, confidence 0.80 on average; 2 passed, 1 kept (0.50)"));
	assert_non_null(strstr(b.data, "- refinements for memory bandwidth: 1 prediction, confidence 0.20 on average; 0 passed, 0 kept (0.00)\n"));
	assert_non_null(strstr(b.data, "- confidence 0.7 and more: 2 predictions"));
	assert_null(strstr(b.data, "confidence 0.4 to 0.7"));
	buf_release(&b);
	cJSON_Delete(world);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(modes_and_bases_follow_the_cycle),
		cmocka_unit_test(k_attempts_without_a_new_best_end_the_cycle),
		cmocka_unit_test(within_a_cycle_the_judges_comparison_decides),
		cmocka_unit_test(the_search_s_new_best_is_its_cycles_best),
		cmocka_unit_test(by_the_paper_any_gain_counts),
		cmocka_unit_test(the_margin_grows_with_the_noise),
		cmocka_unit_test(not_beating_the_parent_ends_the_cycle),
		cmocka_unit_test(failing_twice_prunes),
		cmocka_unit_test(by_the_paper_failure_changes_no_priority),
		cmocka_unit_test(the_unrecorded_counts_as_nothing),
		cmocka_unit_test(the_best_is_what_the_judge_calls_better),
		cmocka_unit_test(a_best_of_the_same_round_is_beaten_by_score),
		cmocka_unit_test(the_same_code_twice_in_a_round_is_a_duplicate),
		cmocka_unit_test(slots_keep_their_nodes),
		cmocka_unit_test(by_the_eager_policy_children_do_not_wait),
		cmocka_unit_test(new_nodes_are_asked_for_when_none_can_start),
		cmocka_unit_test(plans_of_another_world_are_taken_as_they_are),
		cmocka_unit_test(limits_end_the_search),
		cmocka_unit_test(few_evaluations_go_to_open_cycles_first),
		cmocka_unit_test(an_empty_frontier_asks_and_three_failures_end),
		cmocka_unit_test(an_unrecorded_refill_ends_a_replay),
		cmocka_unit_test(random_searches_stay_sound_and_end),
		cmocka_unit_test(predictions_are_kept_as_they_were_when_the_cycle_began),
		cmocka_unit_test(calibration_is_told_by_kind_and_confidence),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
