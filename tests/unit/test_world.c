/* The tree: ids, the rules that a world.json must keep, walking, the frontier's order. */
#include "search.h"

#include "schema.h"
#include "select.h"

static void ids_come_from_titles(void **state)
{
	char id[WORLD_ID + 1], other[WORLD_ID + 1];

	(void)state;
	/* printf 'root/Pack B into Panels!' | sha256sum */
	world_id("root", "Pack B into Panels!", id);
	assert_string_equal(id, "pack-b-into-panels.1858");
	world_id("a.1234", "Pack B into Panels!", other);
	assert_string_not_equal(id, other);
	world_id("root", "  __ ", id);
	assert_true(starts_with(id, "node."));
	world_id("root", "\xc3\xa4\xc3\xb6", id);
	assert_true(starts_with(id, "node."));
	world_id("root", "abcdefghijklmnopqrstuvwxyz01234 6789", id);
	assert_true(starts_with(id, "abcdefghijklmnopqrstuvwxyz01234."));
	world_id("root", "abcdefghijklmnopqrstuvwxyz0123456789", id);
	assert_int_equal(strlen(id), WORLD_ID);
}

static void a_first_world_is_sound(void **state)
{
	struct world w = first_world(2, 3, "default");
	struct error err = { 0 };

	(void)state;
	insert(&w, "root", "One", 0.5, 2);
	insert(&w, w.nodes[1].id, "Two", 0.5, 2);
	json_made_by(w.document, "test");
	assert_int_equal(schema_check("world", w.document, &err), 0);
	assert_sound(&w);
	world_release(&w);
}

/* Each row: a change to a sound world of root, a (open), b below a, and what the refusal says. */
static void malformed_trees_are_refused(void **state)
{
	static const struct {
		int node; /* -1: the document */
		const char *key, *value, *reason;
	} rows[] = {
		{ 1, "parent", "null", "has no parent" },
		{ 0, "parent", "\"a.b74e\"", "'root' has a parent" },
		{ 2, "parent", "\"nobody.0000\"", "is not there" },
		{ 1, "parent", "\"B\"", "cycle" },
		{ 1, "parent", "\"A\"", "cycle" },
		{ 2, "id", "\"A\"", "two nodes have the id" },
		{ 2, "id", "\"plain\"", "form" },
		{ 2, "id", "\"..\"", "form" },
		{ 0, "status", "\"open\"", "must be closed" },
		{ 1, "status", "\"closed\"", "closed without a solution" },
		{ 1, "status", "\"active\"", "active without a cycle" },
		{ 1, "status", "\"pruned\"", "under a pruned parent" },
		{ 1, "cycle", "{\"number\": 1, \"slot\": 0, \"streak_best\": 0, \"streak_parent\": 0, \"best\": null, \"attempts\": []}", "is not active" },
		{ 1, "failed_cycles", "1", "more failed cycles" },
		{ 1, "created_round", "3", "later round" },
		{ 1, "solution", "{\"node\": \"A\", \"attempt\": 1, \"round\": 0, \"slot\": 0, \"score\": 1, \"noise\": 0, \"kernel\": \"\", \"bench\": \"\"}", "status does not allow" },
		{ 0, "solution", "{\"node\": \"root\", \"attempt\": 1, \"round\": 0, \"slot\": 0, \"score\": 1, \"noise\": 0, \"kernel\": \"\", \"bench\": \"\"}", "status does not allow" },
		{ -1, "best", "{\"node\": \"x.0000\", \"attempt\": 1, \"round\": 0, \"slot\": 0, \"score\": 1, \"noise\": 0, \"kernel\": \"\", \"bench\": \"\"}", "there is no node" },
		{ -1, "best", "{\"node\": \"A\", \"attempt\": 1, \"round\": 0, \"slot\": 0, \"score\": 1, \"noise\": 0, \"kernel\": \"\", \"bench\": \"\"}", "has no attempt" },
		{ -1, "nodes", "[]", "no root" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct world w = first_world(1, 3, "default"), copy;
		struct error err = { 0 };
		const char *a = insert(&w, "root", "A", 0.5, 2), *b = insert(&w, a, "B", 0.5, 2);
		cJSON *value = parse(rows[i].value), *at;

		if (cJSON_IsString(value) && strcmp(value->valuestring, "A") == 0)
			cJSON_SetValuestring(value, a);
		if (cJSON_IsString(value) && strcmp(value->valuestring, "B") == 0)
			cJSON_SetValuestring(value, b);
		if (json_string(value, "node") && strcmp(json_string(value, "node"), "A") == 0)
			json_set_string(value, "node", a);
		at = rows[i].node < 0 ? w.document : w.nodes[rows[i].node].json;
		json_set(at, rows[i].key, value);
		assert_int_equal(world_adopt(&copy, cJSON_Duplicate(w.document, true), &err), -1);
		assert_int_equal(err.code, KM_EXIT_INPUT);
		if (!strstr(err.text, rows[i].reason))
			fail_msg("row %zu: '%s' does not say '%s'", i, err.text, rows[i].reason);
		world_release(&w);
	}
}

static cJSON *cycle(int slot, const char *best, const char *attempts)
{
	char *text = xasprintf("{\"number\": 1, \"slot\": %d, \"streak_best\": 0, \"streak_parent\": 0, \"best\": %s, \"attempts\": [%s]}", slot, best, attempts);
	cJSON *value = parse(text);

	free(text);
	return value;
}

static void malformed_cycles_are_refused(void **state)
{
	static const struct {
		int slot;
		const char *best, *attempts, *reason;
	} rows[] = {
		{ 1, "null", "", NULL },
		{ 2, "null", "", "beyond the width" },
		{ 0, "null", "", "that another node has" },
		{ 1, "1", "", "none of its passed attempts" },
		{ 1, "1", "{\"attempt\": 1, \"round\": 0, \"slot\": 0, \"mode\": \"new\", \"status\": \"PASSED\", \"score\": 2}", NULL },
		{ 1, "1", "{\"attempt\": 1, \"round\": 0, \"slot\": 0, \"mode\": \"new\", \"status\": \"TIMEOUT\", \"score\": null}", "none of its passed attempts" },
		{ 1, "null", "{\"attempt\": 1, \"round\": 0, \"slot\": 0, \"mode\": \"new\", \"status\": \"TIMEOUT\", \"score\": 3}", "does not fit its status" },
		{ 1, "null", "{\"attempt\": 2, \"round\": 0, \"slot\": 0, \"mode\": \"new\", \"status\": \"TIMEOUT\", \"score\": null}", "more attempts in its cycle" },
		{ 1, "null", "{\"attempt\": 1, \"round\": 4, \"slot\": 0, \"mode\": \"new\", \"status\": \"TIMEOUT\", \"score\": null}", "later round" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct world w = first_world(2, 3, "default"), copy = { 0 };
		struct error err = { 0 };
		long a, b;

		insert(&w, "root", "A", 0.5, 2);
		insert(&w, "root", "B", 0.5, 2);
		a = 1;
		b = 2;
		world_set_status(&w, a, NODE_ACTIVE);
		json_set(w.nodes[a].json, "cycle", cycle(0, "null", ""));
		world_set_status(&w, b, NODE_ACTIVE);
		json_set_number(w.nodes[b].json, "attempts", 1);
		json_set(w.nodes[b].json, "cycle", cycle(rows[i].slot, rows[i].best, rows[i].attempts));
		assert_int_equal(world_adopt(&copy, cJSON_Duplicate(w.document, true), &err), rows[i].reason ? -1 : 0);
		if (rows[i].reason && !strstr(err.text, rows[i].reason))
			fail_msg("row %zu: '%s' does not say '%s'", i, err.text, rows[i].reason);
		world_release(&copy);
		world_release(&w);
	}
}

static void deep_trees_cost_no_stack(void **state)
{
	struct world w = first_world(1, 3, "default");
	long below = 0;

	(void)state;
	for (int i = 0; i < 3000; i++) {
		char *title = xasprintf("Deeper %d", i);

		insert(&w, w.nodes[i].id, title, 0.5, 2);
		free(title);
	}
	assert_sound(&w);
	for (long i = 1; i >= 0; i = world_next_below(&w, i, 1))
		below++;
	assert_int_equal(below, 3000);
	assert_true(world_below(&w, 3000, 1));
	assert_false(world_below(&w, 1, 3000));
	world_release(&w);
}

static void a_walk_stays_in_its_subtree(void **state)
{
	struct world w = first_world(1, 3, "default");
	const char *a = insert(&w, "root", "A", 0.5, 2);
	long seen = 0;

	(void)state;
	insert(&w, "root", "B", 0.5, 2);
	insert(&w, a, "C", 0.5, 2);
	insert(&w, w.nodes[3].id, "D", 0.5, 2);
	insert(&w, a, "E", 0.5, 2);
	for (long i = 1; i >= 0; i = world_next_below(&w, i, 1))
		seen = 10 * seen + i;
	assert_int_equal(seen, 1345);
	assert_true(world_below(&w, 4, 1));
	assert_false(world_below(&w, 2, 1));
	world_release(&w);
}

static void the_frontier_is_ordered(void **state)
{
	/* title, score, difficulty, rating; in the order wanted */
	static const struct {
		const char *title;
		double score, difficulty, rating;
	} rows[] = {
		{ "high", 0.9, 4, 1 }, { "easy", 0.5, 1, 1 }, { "rated", 0.5, 2, 9 }, { "aaa", 0.5, 2, 3 }, { "bbb", 0.5, 2, 3 }, { "low", 0.1, 1, 1 }, { "gated", 1, 4.5, 9 },
	};
	static const int shuffled[] = { 6, 3, 0, 5, 4, 2, 1 };
	struct world w = first_world(1, 3, "default");
	size_t count;
	long *order;

	(void)state;
	for (size_t i = 0; i < 7; i++) {
		insert(&w, "root", rows[shuffled[i]].title, rows[shuffled[i]].score, rows[shuffled[i]].difficulty);
		json_set_number(w.nodes[w.count - 1].json, "overall_rating_0_to_10", rows[shuffled[i]].rating);
	}
	insert(&w, w.nodes[1].id, "unreachable", 1, 1);
	order = select_frontier(&w, &count);
	assert_int_equal(count, 7);
	for (size_t i = 0; i < 7; i++)
		assert_string_equal(node_title(&w.nodes[order[i]]), rows[i].title);
	free(order);
	world_release(&w);
}

static void by_the_eager_policy_what_waits_comes_last(void **state)
{
	static const char *const wanted[][4] = { { "B", "solved below", NULL }, { "B", "solved below", "early", "early, gated" } };
	static const char *const policies[] = { "default", "eager" };

	(void)state;
	for (int p = 0; p < 2; p++) {
		struct world w = first_world(3, 3, policies[p]);
		const char *a = insert(&w, "root", "A", 0.5, 2), *c, *d;
		size_t count;
		long *order;

		insert(&w, "root", "B", 0.3, 2);
		insert(&w, a, "early, gated", 1, 5);
		insert(&w, a, "early", 0.9, 2);
		c = insert(&w, "root", "C", 0.5, 2);
		insert(&w, c, "nothing passed above", 1, 1);
		d = insert(&w, "root", "D", 0.5, 2);
		insert(&w, d, "solved below", 0.1, 2);
		world_set_status(&w, world_find(&w, a), NODE_ACTIVE);
		json_set(node_of(&w, a)->json, "cycle", cycle(0, "1", "{\"attempt\": 1, \"round\": 0, \"slot\": 0, \"mode\": \"new\", \"status\": \"PASSED\", \"score\": 2}"));
		world_set_status(&w, world_find(&w, c), NODE_ACTIVE);
		json_set(node_of(&w, c)->json, "cycle", cycle(1, "null", "{\"attempt\": 1, \"round\": 0, \"slot\": 0, \"mode\": \"new\", \"status\": \"TIMEOUT\", \"score\": null}"));
		world_set_status(&w, world_find(&w, d), NODE_CLOSED);
		json_set(node_of(&w, d)->json, "solution", cJSON_CreateObject());
		order = select_frontier(&w, &count);
		assert_int_equal(count, p ? 4 : 2);
		for (size_t i = 0; i < count; i++)
			assert_string_equal(node_title(&w.nodes[order[i]]), wanted[p][i]);
		assert_int_equal(select_reachable(&w, 3), p);
		assert_false(select_reachable(&w, world_find(&w, c) + 1));
		free(order);
		world_release(&w);
	}
}

static void refusals_are_kept_to_the_latest(void **state)
{
	struct world w = first_world(1, 3, "default");
	const cJSON *log = json_get(w.document, "refused");
	char *text;

	(void)state;
	for (int i = 0; i < WORLD_REFUSED + 5; i++) {
		text = xasprintf("op %d\nand more", i);
		world_refuse(&w, 0, text, "no");
		free(text);
	}
	assert_int_equal(cJSON_GetArraySize(log), WORLD_REFUSED);
	assert_string_equal(json_string(log->child, "op"), "op 5 and more");
	world_release(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ids_come_from_titles),
		cmocka_unit_test(a_first_world_is_sound),
		cmocka_unit_test(malformed_trees_are_refused),
		cmocka_unit_test(malformed_cycles_are_refused),
		cmocka_unit_test(deep_trees_cost_no_stack),
		cmocka_unit_test(a_walk_stays_in_its_subtree),
		cmocka_unit_test(the_frontier_is_ordered),
		cmocka_unit_test(by_the_eager_policy_what_waits_comes_last),
		cmocka_unit_test(refusals_are_kept_to_the_latest),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
