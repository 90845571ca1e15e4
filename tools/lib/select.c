#include "select.h"

#include "json.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>

struct candidate {
	long index;
	bool early, gated;
	double score, difficulty, rating;
	const char *id;
};

static int ascending(double a, double b)
{
	return (a > b) - (a < b);
}

static int compare(const void *x, const void *y)
{
	const struct candidate *a = x, *b = y;
	int order = a->early - b->early;

	if (order == 0)
		order = a->gated - b->gated;
	if (order == 0)
		order = ascending(b->score, a->score);
	if (order == 0)
		order = ascending(a->difficulty, b->difficulty);
	if (order == 0)
		order = ascending(b->rating, a->rating);
	return order ? order : strcmp(a->id, b->id);
}

bool select_reachable(const struct world *w, long i)
{
	const struct node *node = &w->nodes[i];

	return node->status == NODE_OPEN && node->parent >= 0 && (node->parent == 0 || world_start(w, node->parent));
}

long *select_frontier(const struct world *w, size_t *count)
{
	struct candidate *all = xcalloc(w->count, sizeof(*all));
	long *order;
	size_t n = 0;

	for (size_t i = 0; i < w->count; i++) {
		const struct node *node = &w->nodes[i];
		const cJSON *action;
		struct candidate *c = &all[n];

		if (!select_reachable(w, (long)i))
			continue;
		action = json_get(node->json, "action");
		c->index = (long)i;
		c->id = node->id;
		c->score = json_number(action, "score_0_to_1", 0);
		c->difficulty = json_number(action, "difficulty_1_to_5", 0);
		c->rating = json_number(node->json, "overall_rating_0_to_10", 0);
		c->gated = c->difficulty > WORLD_GATE;
		c->early = w->nodes[node->parent].status == NODE_ACTIVE;
		n++;
	}
	qsort(all, n, sizeof(*all), compare);
	order = xreallocarray(NULL, n, sizeof(*order));
	for (size_t i = 0; i < n; i++)
		order[i] = all[i].index;
	free(all);
	*count = n;
	return order;
}
