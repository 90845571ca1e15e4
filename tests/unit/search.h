/* What the unit tests of the search share: a world made from a run.json and a list of operations. */
#ifndef TEST_SEARCH_H
#define TEST_SEARCH_H

#include "json.h"
#include "ops.h"
#include "util.h"
#include "world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static inline cJSON *parse(const char *text)
{
	struct error err = { 0 };
	cJSON *value = json_parse(text, strlen(text), &err);

	if (!value)
		fail_msg("%s: %s", err.text, text);
	return value;
}

static inline struct world first_world(int width, int k, const char *policy)
{
	char *text = xasprintf("{\"task\": \"toy\", \"target\": \"cpu\", \"width\": %d, \"k\": %d, \"strategy\": \"world\", \"policy\": \"%s\", \"seed\": \"1\"}", width, k, policy);
	cJSON *run = parse(text);
	struct world w;
	struct error err;

	assert_int_equal(world_first(&w, run, &err), 0);
	cJSON_Delete(run);
	free(text);
	return w;
}

/* Apply {"ops": [OPS]}, or a whole reply if the text starts with '{"'. */
static inline struct ops_result apply(struct world *w, int most_new, long solved, const char *ops)
{
	char *text = starts_with(ops, "{\"ops\"") || starts_with(ops, "{\"summary\"") || starts_with(ops, "{\"open") ? xstrdup(ops) : xasprintf("{\"ops\": [%s]}", ops);
	cJSON *reply = parse(text);
	struct ops_result result;

	ops_apply(w, reply, 0, most_new, solved, &result);
	cJSON_Delete(reply);
	free(text);
	return result;
}

/* Insert one node; returns its id, which lives as long as the world. */
static inline const char *insert(struct world *w, const char *parent, const char *title, double score, double difficulty)
{
	char *op = xasprintf("{\"op\": \"insert_node\", \"parent\": \"%s\", \"action\": {\"title\": \"%s\", \"difficulty_1_to_5\": %g, \"score_0_to_1\": %g}}", parent, title, difficulty, score);
	struct ops_result result = apply(w, 8, -1, op);

	free(op);
	assert_int_equal(result.applied, 1);
	return w->nodes[w->count - 1].id;
}

static inline const char *last_refusal(const struct world *w)
{
	const cJSON *log = json_get(w->document, "refused");

	return json_string(cJSON_GetArrayItem(log, cJSON_GetArraySize(log) - 1), "reason");
}

static inline const struct node *node_of(const struct world *w, const char *id)
{
	long i = world_find(w, id);

	assert_true(i >= 0);
	return &w->nodes[i];
}

/* The document must still be a world: schema and tree rules, on a copy. */
static inline void assert_sound(const struct world *w)
{
	struct world copy;
	struct error err = { 0 };

	if (world_adopt(&copy, cJSON_Duplicate(w->document, true), &err) < 0)
		fail_msg("%s", err.text);
	world_release(&copy);
}

#endif
