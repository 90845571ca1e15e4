/* Operations on the tree: what each does, and what each is refused for. */
#include "search.h"

#include "schema.h"

#define ACTION "\"action\": {\"title\": \"T\", \"difficulty_1_to_5\": 2, \"score_0_to_1\": 0.5}"
#define BODY(title) "\"action\": {\"title\": \"" title "\", \"difficulty_1_to_5\": 2, \"score_0_to_1\": 0.5}"

/* root - a (closed, the best) - b (open); root - c (active); root - d (open, untried); root - e (pruned) */
static struct world sample(void)
{
	struct world w = first_world(1, 3, "default");
	const char *a = insert(&w, "root", "A", 0.5, 2);
	cJSON *solution = parse("{\"attempt\": 1, \"round\": 1, \"slot\": 0, \"score\": 100, \"noise\": 0, \"kernel\": \"../r00001/s0/kernel.c\", \"bench\": \"../r00001/s0/bench.json\"}");

	insert(&w, a, "B", 0.5, 2);
	insert(&w, "root", "C", 0.5, 2);
	insert(&w, "root", "D", 0.5, 2);
	insert(&w, "root", "E", 0.5, 2);
	json_set_string(solution, "node", a);
	json_set_number(w.nodes[1].json, "attempts", 1);
	json_set(w.nodes[1].json, "solution", cJSON_Duplicate(solution, true));
	json_set(w.document, "best", solution);
	json_set_number(w.document, "evaluations", 1);
	json_set_number(w.document, "round", 1);
	world_set_status(&w, 1, NODE_CLOSED);
	world_set_status(&w, 3, NODE_ACTIVE);
	json_set(w.nodes[3].json, "cycle", parse("{\"number\": 1, \"slot\": 0, \"streak_best\": 0, \"streak_parent\": 0, \"best\": null, \"attempts\": []}"));
	world_set_status(&w, 5, NODE_PRUNED);
	assert_sound(&w);
	return w;
}

/* Replace @A..@E in a text by the ids of the sample. */
static char *with_ids(const struct world *w, const char *text)
{
	struct buf b;
	char *replaced;

	buf_init(&b, 1 << 20);
	for (; *text; text++)
		if (text[0] == '@' && text[1] >= 'A' && text[1] <= 'E')
			buf_puts(&b, w->nodes[*++text - 'A' + 1].id);
		else
			buf_putc(&b, *text);
	replaced = buf_take(&b);
	buf_release(&b);
	return replaced;
}

static struct ops_result apply_to_sample(struct world *w, const char *ops)
{
	char *text = with_ids(w, ops);
	struct ops_result result = apply(w, 3, -1, text);

	free(text);
	return result;
}

static void refused_operations_change_nothing(void **state)
{
	static const struct {
		const char *op, *reason;
	} rows[] = {
		{ "7", "it is no object" },
		{ "{}", "unknown operation" },
		{ "{\"op\": \"drop_node\", \"node\": \"@B\"}", "unknown operation" },
		{ "{\"op\": \"insert_node\", " ACTION "}", "'parent' is missing" },
		{ "{\"op\": \"insert_node\", \"parent\": \"x.0000\", " ACTION "}", "there is no node" },
		{ "{\"op\": \"insert_node\", \"parent\": \"$z\", " ACTION "}", "no node of this reply is named 'z'" },
		{ "{\"op\": \"insert_node\", \"parent\": \"@E\", " ACTION "}", "is pruned" },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\"}", "'action' is missing" },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", \"action\": 3}", "'action' is no object" },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", \"action\": {\"difficulty_1_to_5\": 2, \"score_0_to_1\": 0.5}}", "'title' is missing" },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", \"action\": {\"title\": \"  \", \"difficulty_1_to_5\": 2, \"score_0_to_1\": 0.5}}", "'title' is empty" },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", \"action\": {\"title\": \"a\\nb\", \"difficulty_1_to_5\": 2, \"score_0_to_1\": 0.5}}", "control characters" },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", \"action\": {\"title\": \"T\", \"score_0_to_1\": 0.5}}", "'difficulty_1_to_5' is missing" },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", \"action\": {\"title\": \"T\", \"difficulty_1_to_5\": 6, \"score_0_to_1\": 0.5}}", "is 6, not in 1 to 5" },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", \"action\": {\"title\": \"T\", \"difficulty_1_to_5\": 2, \"score_0_to_1\": 1.5}}", "is 1.5, not in 0 to 1" },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", \"action\": {\"title\": \"T\", \"difficulty_1_to_5\": 2, \"score_0_to_1\": \"0.5\"}}", "is no number" },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", \"action\": {\"title\": \"T\", \"difficulty_1_to_5\": 2, \"score_0_to_1\": 0.5, \"v\": 1}}", "unknown member 'v' in 'action'" },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", " ACTION ", \"overall_rating_0_to_10\": 11}", "is 11, not in 0 to 10" },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", " ACTION ", \"confidence_0_to_1\": -1}", "is -1, not in 0 to 1" },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", " ACTION ", \"impacts\": {\"luck\": {\"rating_0_to_10\": 1}}}", "unknown member 'luck'" },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", " ACTION ", \"impacts\": {\"memory_bandwidth\": {\"risk\": \"x\"}}}", "'rating_0_to_10' is missing" },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", " ACTION ", \"id\": \"mine.0000\"}", "'id' is owned by the machine" },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", " ACTION ", \"solution\": {\"score\": 1e9}}", "'solution' is owned by the machine" },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", " ACTION ", \"as\": \"\"}", "'as' is no name" },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", " BODY("D") "}", "has a child of that title" },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", " BODY("E") "}", "pruned" },
		{ "{\"op\": \"update_node\", \"node\": \"root\", \"set\": {\"notes\": \"x\"}}", "the root cannot be changed" },
		{ "{\"op\": \"update_node\", \"node\": \"@E\", \"set\": {\"notes\": \"x\"}}", "is pruned" },
		{ "{\"op\": \"update_node\", \"node\": \"@B\"}", "'set' is missing" },
		{ "{\"op\": \"update_node\", \"node\": \"@B\", \"set\": {}}", "'set' is missing or empty" },
		{ "{\"op\": \"update_node\", \"node\": \"@B\", \"set\": {\"status\": \"closed\"}}", "'status' is owned by the machine" },
		{ "{\"op\": \"update_node\", \"node\": \"@A\", \"set\": {\"notes\": \"x\", \"solution\": {\"score\": 9}}}", "'solution' is owned by the machine" },
		{ "{\"op\": \"update_node\", \"node\": \"@B\", \"set\": {\"notes\": \"x\", \"attempts\": 0}}", "'attempts' is owned by the machine" },
		{ "{\"op\": \"update_node\", \"node\": \"@B\", \"set\": {\"notes\": \"x\", \"action\": {\"score_0_to_1\": 2}}}", "is 2, not in 0 to 1" },
		{ "{\"op\": \"update_node\", \"node\": \"@D\", \"set\": {\"action\": {\"title\": \"C\"}}}", "has a child of that title" },
		{ "{\"op\": \"split_node\", \"node\": \"@D\", \"into\": [{" BODY("x") "}]}", "2 or 3" },
		{ "{\"op\": \"split_node\", \"node\": \"@D\", \"into\": [{" BODY("x") "}, {" BODY("y") "}, {" BODY("z") "}, {" BODY("u") "}]}", "2 or 3" },
		{ "{\"op\": \"split_node\", \"node\": \"@D\", \"into\": [{" BODY("x") "}, {" BODY("x") "}]}", "two pieces" },
		{ "{\"op\": \"split_node\", \"node\": \"@D\", \"into\": [{" BODY("x") "}, {" BODY("C") "}]}", "has a child of that title" },
		{ "{\"op\": \"split_node\", \"node\": \"@D\", \"into\": [{" BODY("x") "}, 3]}", "no object" },
		{ "{\"op\": \"split_node\", \"node\": \"@D\", \"into\": [{" BODY("x") "}, {" BODY("y") ", \"status\": \"closed\"}]}", "owned by the machine" },
		{ "{\"op\": \"split_node\", \"node\": \"@A\", \"into\": [{" BODY("x") "}, {" BODY("y") "}]}", "only an open node" },
		{ "{\"op\": \"split_node\", \"node\": \"@C\", \"into\": [{" BODY("x") "}, {" BODY("y") "}]}", "only an open node" },
		{ "{\"op\": \"prune_node\", \"node\": \"@D\"}", "'reason' is missing" },
		{ "{\"op\": \"prune_node\", \"node\": \"root\", \"reason\": \"r\"}", "the root cannot be pruned" },
		{ "{\"op\": \"prune_node\", \"node\": \"@E\", \"reason\": \"r\"}", "pruned already" },
		{ "{\"op\": \"prune_node\", \"node\": \"@A\", \"reason\": \"r\"}", "the best" },
		{ "{\"op\": \"prune_node\", \"node\": \"@C\", \"reason\": \"r\"}", "is active" },
		{ "{\"op\": \"revive_node\", \"node\": \"@D\", \"reason\": \"r\"}", "is open" },
		{ "{\"op\": \"revive_node\", \"node\": \"@E\"}", "'reason' is missing" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct world w = sample();
		cJSON *before = cJSON_Duplicate(w.list, true);
		struct ops_result result = apply_to_sample(&w, rows[i].op);

		if (result.applied != 0 || result.refused != 1 || !strstr(last_refusal(&w), rows[i].reason))
			fail_msg("row %zu: applied %d, refused %d: '%s' does not say '%s'", i, result.applied, result.refused, last_refusal(&w), rows[i].reason);
		assert_true(cJSON_Compare(before, w.list, true));
		cJSON_Delete(before);
		world_release(&w);
	}
}

static void long_texts_are_refused_not_cut(void **state)
{
	static const struct {
		const char *format;
		int most;
	} rows[] = {
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", \"action\": {\"title\": \"%s\", \"difficulty_1_to_5\": 2, \"score_0_to_1\": 0.5}}", OPS_TITLE },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", \"notes\": \"%s\", " ACTION "}", OPS_TEXT },
		{ "{\"op\": \"insert_node\", \"parent\": \"root\", \"decision\": \"%s\", " ACTION "}", OPS_LABEL },
		{ "{\"op\": \"update_node\", \"node\": \"@D\", \"set\": {\"action\": {\"rationale\": \"%s\"}}}", OPS_TEXT },
		{ "{\"op\": \"prune_node\", \"node\": \"@D\", \"reason\": \"%s\"}", OPS_SHORT },
		{ "{\"summary\": \"%s\", \"ops\": []}", OPS_SUMMARY },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		for (int over = 0; over < 2; over++) {
			struct world w = sample();
			char *text = xcalloc(1, OPS_SUMMARY + 2), *ops;

			memset(text, 'x', (size_t)(rows[i].most + over));
			ops = xasprintf(rows[i].format, text);
			assert_int_equal(apply_to_sample(&w, ops).refused, over);
			free(ops);
			free(text);
			world_release(&w);
		}
}

static void inserted_nodes_are_whole(void **state)
{
	struct world w = sample();
	struct error err = { 0 };
	const cJSON *action;

	(void)state;
	assert_int_equal(apply_to_sample(&w, "{\"op\": \"insert_node\", \"parent\": \"@A\", \"decision\": \"d\", \"impacts\": {\"memory_bandwidth\": {\"rating_0_to_10\": 7, \"risk\": \"low\"}}, " BODY(" T ") "}").applied, 1);
	json_made_by(w.document, "test");
	assert_int_equal(schema_check("world", w.document, &err), 0);
	assert_sound(&w);
	action = json_get(w.nodes[6].json, "action");
	assert_string_equal(json_string(action, "title"), "T");
	assert_string_equal(json_string(w.nodes[6].json, "parent"), w.nodes[1].id);
	assert_string_equal(json_string(w.nodes[6].json, "status"), "open");
	assert_true(cJSON_IsNull(json_get(action, "expected_vs_baseline_factor")));
	assert_true(world_find(&w, w.nodes[6].id) == 6);
	world_release(&w);
}

static void names_reach_nodes_of_the_same_reply(void **state)
{
	struct world w = sample();
	struct ops_result result = apply_to_sample(&w, "{\"op\": \"insert_node\", \"parent\": \"root\", \"as\": \"a\", " BODY("X") "},"
		"{\"op\": \"insert_node\", \"parent\": \"$a\", \"as\": \"$b\", " BODY("Y") "},"
		"{\"op\": \"insert_node\", \"parent\": \"$b\", \"as\": \"a\", " BODY("Z") "},"
		"{\"op\": \"update_node\", \"node\": \"$b\", \"set\": {\"notes\": \"n\"}}");

	(void)state;
	assert_int_equal(result.applied, 3);
	assert_int_equal(result.refused, 1);
	assert_non_null(strstr(last_refusal(&w), "are named 'a'"));
	assert_int_equal(w.nodes[7].parent, 6);
	assert_string_equal(json_string(w.nodes[7].json, "notes"), "n");
	assert_int_equal(result.usable, 1); /* Y waits for X */
	world_release(&w);
}

static void new_nodes_are_counted(void **state)
{
	struct world w = sample();
	struct ops_result result = apply_to_sample(&w, "{\"op\": \"insert_node\", \"parent\": \"root\", " BODY("X") "}, {\"op\": \"insert_node\", \"parent\": \"root\", " BODY("Y") "},"
		"{\"op\": \"split_node\", \"node\": \"@D\", \"into\": [{" BODY("u") "}, {" BODY("v") "}]}, {\"op\": \"insert_node\", \"parent\": \"root\", " BODY("Z") "}, {\"op\": \"insert_node\", \"parent\": \"root\", " BODY("U") "}");

	(void)state;
	assert_int_equal(result.applied, 3);
	assert_int_equal(result.refused, 2);
	assert_non_null(strstr(last_refusal(&w), "no more new nodes"));
	world_release(&w);
}

static void updates_touch_what_they_name(void **state)
{
	struct world w = sample();
	const cJSON *action = json_get(w.nodes[4].json, "action");

	(void)state;
	assert_int_equal(apply_to_sample(&w, "{\"op\": \"update_node\", \"node\": \"@D\", \"set\": {\"confidence_0_to_1\": 0.9, \"action\": {\"score_0_to_1\": 0.75}}}").applied, 1);
	action = json_get(w.nodes[4].json, "action");
	assert_true(json_number(action, "score_0_to_1", 0) == 0.75);
	assert_true(json_number(action, "difficulty_1_to_5", 0) == 2);
	assert_string_equal(json_string(action, "title"), "D");
	assert_true(json_number(w.nodes[4].json, "confidence_0_to_1", 0) == 0.9);
	assert_true(json_number(w.nodes[4].json, "overall_rating_0_to_10", 0) == 5);
	assert_sound(&w);
	world_release(&w);
}

static void a_split_puts_alternatives_in_its_place(void **state)
{
	struct world w = sample();
	struct ops_result result = apply_to_sample(&w, "{\"op\": \"split_node\", \"node\": \"@D\", \"into\": [{" BODY("D1") "}, {" BODY("D2") "}]}");

	(void)state;
	assert_int_equal(result.applied, 1);
	assert_int_equal(result.usable, 2);
	assert_int_equal(w.nodes[4].status, NODE_PRUNED);
	assert_int_equal(w.nodes[6].parent, 0);
	assert_int_equal(w.nodes[7].parent, 0);
	assert_sound(&w);
	world_release(&w);
}

static void tried_nodes_and_parents_are_not_split(void **state)
{
	struct world w = sample();

	(void)state;
	json_set_number(w.nodes[4].json, "attempts", 1);
	apply_to_sample(&w, "{\"op\": \"split_node\", \"node\": \"@D\", \"into\": [{" BODY("D1") "}, {" BODY("D2") "}]}");
	assert_non_null(strstr(last_refusal(&w), "was tried already"));
	insert(&w, w.nodes[2].id, "below b", 0.5, 2);
	apply_to_sample(&w, "{\"op\": \"split_node\", \"node\": \"@B\", \"into\": [{" BODY("D1") "}, {" BODY("D2") "}]}");
	assert_non_null(strstr(last_refusal(&w), "has children"));
	world_release(&w);
}

static void pruning_takes_what_is_open_below(void **state)
{
	struct world w = sample();

	(void)state;
	insert(&w, w.nodes[2].id, "below b", 0.5, 2);
	insert(&w, w.nodes[6].id, "deeper", 0.5, 2);
	assert_int_equal(apply_to_sample(&w, "{\"op\": \"prune_node\", \"node\": \"@B\", \"reason\": \"slow\"}").applied, 1);
	assert_string_equal(json_string(w.nodes[2].json, "pruned_because"), "slow");
	assert_int_equal(w.nodes[6].status, NODE_PRUNED);
	assert_int_equal(w.nodes[7].status, NODE_PRUNED);
	assert_int_equal(w.nodes[1].status, NODE_CLOSED);
	assert_sound(&w);
	assert_int_equal(apply_to_sample(&w, "{\"op\": \"revive_node\", \"node\": \"@B\", \"reason\": \"r\"}").applied, 1);
	assert_int_equal(w.nodes[2].status, NODE_OPEN);
	assert_null(json_get(w.nodes[2].json, "pruned_because"));
	assert_int_equal(w.nodes[6].status, NODE_PRUNED);
	assert_sound(&w);
	world_release(&w);
}

static void what_is_below_a_pruned_node_is_not_revived_alone(void **state)
{
	struct world w = sample();
	char *op;

	(void)state;
	insert(&w, w.nodes[2].id, "below b", 0.5, 2);
	op = xasprintf("{\"op\": \"prune_node\", \"node\": \"@B\", \"reason\": \"r\"}, {\"op\": \"revive_node\", \"node\": \"%s\", \"reason\": \"r\"}", w.nodes[6].id);
	assert_int_equal(apply_to_sample(&w, op).applied, 1);
	assert_non_null(strstr(last_refusal(&w), "is pruned"));
	free(op);
	world_release(&w);
}

static void a_pruned_solution_comes_back_closed(void **state)
{
	struct world w = sample();

	(void)state;
	json_set(w.document, "best", cJSON_CreateNull());
	assert_int_equal(apply_to_sample(&w, "{\"op\": \"prune_node\", \"node\": \"@A\", \"reason\": \"r\"}").applied, 1);
	assert_sound(&w);
	assert_int_equal(apply_to_sample(&w, "{\"op\": \"revive_node\", \"node\": \"@A\", \"reason\": \"r\"}").applied, 1);
	assert_int_equal(w.nodes[1].status, NODE_CLOSED);
	assert_sound(&w);
	world_release(&w);
}

static void an_active_descendant_protects_its_ancestors(void **state)
{
	struct world w = sample();

	(void)state;
	json_set(w.document, "best", cJSON_CreateNull());
	world_set_status(&w, 3, NODE_OPEN);
	world_set_status(&w, 2, NODE_ACTIVE);
	json_set(w.nodes[2].json, "cycle", cJSON_DetachItemFromObjectCaseSensitive(w.nodes[3].json, "cycle"));
	apply_to_sample(&w, "{\"op\": \"prune_node\", \"node\": \"@A\", \"reason\": \"r\"}");
	assert_non_null(strstr(last_refusal(&w), "is active"));
	world_release(&w);
}

static void a_solved_node_needs_a_child_or_a_reason(void **state)
{
	struct world w = sample();

	(void)state;
	assert_int_equal(apply(&w, 3, 1, "{\"ops\": []}").refused, 0); /* b is open below a */
	world_set_status(&w, 2, NODE_PRUNED);
	assert_int_equal(apply(&w, 3, 1, "{\"ops\": []}").refused, 1);
	assert_non_null(strstr(last_refusal(&w), "no open child"));
	assert_int_equal(apply(&w, 3, 1, "{\"ops\": [], \"no_child_because\": \"it is at the roofline\"}").refused, 0);
	assert_string_equal(json_string(w.nodes[1].json, "no_child_because"), "it is at the roofline");
	world_release(&w);
}

static void summary_and_questions_are_kept(void **state)
{
	struct world w = sample();

	(void)state;
	assert_int_equal(apply(&w, 3, -1, "{\"summary\": \"s\", \"open_questions\": [\"q\"], \"ops\": []}").refused, 0);
	assert_string_equal(json_string(w.document, "summary"), "s");
	assert_int_equal(apply(&w, 3, -1, "{\"summary\": 3, \"open_questions\": [1], \"ops\": []}").refused, 2);
	assert_string_equal(json_string(w.document, "summary"), "s");
	assert_int_equal(cJSON_GetArraySize(json_get(w.document, "open_questions")), 1);
	world_release(&w);
}

static void replies_are_found_in_prose(void **state)
{
	static const struct {
		const char *text;
		bool readable;
	} rows[] = {
		{ "{\"ops\": []}", true },
		{ "Here it is:\n```json\n{\"ops\": []}\n```\nDone.", true },
		{ "```\n{\"ops\": []}\n```", true },
		{ "a set {x} and {\"a\": 1} then {\"ops\": [{\"op\": \"}\"}]} end }", true },
		{ "{ not closed \" {\"ops\": []}", true },
		/* Comments and superfluous commas are beyond doubt, nothing else is. */
		{ "{\"ops\": [1, 2,], /* it's \" and } */ }", true },
		{ "```json\n{\n  // the \"best\" {\n  \"ops\": [\n    {\"op\": \"http://x/*y*/,]\"}, // why\n  ],\n}\n```", true },
		{ "{\"ops\": [1,,]}", false },
		{ "{\"ops\": [,]}", false },
		{ "{\"ops\": [1 2]}", false },
		{ "{'ops': []}", false },
		{ "{ops: []}", false },
		{ "{\"ops\": [True]}", false },
		{ "{\"ops\": [1] /* not closed }", false },
		{ "<think>{\"ops\": []}</think> I will not.", false },
		{ "<think>I cannot decide {\"ops\": []}", false },
		{ "", false },
		{ "no braces", false },
		{ "{\"ops\": {}}", false },
		{ "[{\"ops\": 3}]", false },
		{ "{\"ops\": []", false },
		{ "{\"ops\": [1e999]}", false },
		{ "{\"ops\": [], \"ops\": []}", false },
		{ "{\"summary\": \"x\"}", false },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct error err = { 0 };
		cJSON *reply = ops_parse(rows[i].text, strlen(rows[i].text), &err);

		if (!!reply != rows[i].readable)
			fail_msg("row %zu: %s", i, rows[i].text);
		if (!reply)
			assert_int_equal(err.code, KM_EXIT_INPUT);
		cJSON_Delete(reply);
	}
}

static void the_last_tree_of_a_reply_counts(void **state)
{
	static const char text[] = "Draft: {\"ops\": [1]} Better: {\"ops\": [1, 2]} {\"x\": 1}";
	struct error err;
	cJSON *reply = ops_parse(text, strlen(text), &err);

	(void)state;
	assert_int_equal(cJSON_GetArraySize(json_get(reply, "ops")), 2);
	cJSON_Delete(reply);
}

static void many_braces_end(void **state)
{
	size_t len = 4 << 20;
	char *text = xmalloc(len + 1);
	struct error err;

	(void)state;
	memset(text, '{', len);
	text[len] = 0;
	assert_null(ops_parse(text, len, &err));
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(refused_operations_change_nothing),
		cmocka_unit_test(long_texts_are_refused_not_cut),
		cmocka_unit_test(inserted_nodes_are_whole),
		cmocka_unit_test(names_reach_nodes_of_the_same_reply),
		cmocka_unit_test(new_nodes_are_counted),
		cmocka_unit_test(updates_touch_what_they_name),
		cmocka_unit_test(a_split_puts_alternatives_in_its_place),
		cmocka_unit_test(tried_nodes_and_parents_are_not_split),
		cmocka_unit_test(pruning_takes_what_is_open_below),
		cmocka_unit_test(what_is_below_a_pruned_node_is_not_revived_alone),
		cmocka_unit_test(a_pruned_solution_comes_back_closed),
		cmocka_unit_test(an_active_descendant_protects_its_ancestors),
		cmocka_unit_test(a_solved_node_needs_a_child_or_a_reason),
		cmocka_unit_test(summary_and_questions_are_kept),
		cmocka_unit_test(replies_are_found_in_prose),
		cmocka_unit_test(the_last_tree_of_a_reply_counts),
		cmocka_unit_test(many_braces_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
