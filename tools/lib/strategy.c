#include "strategy.h"

#include "json.h"
#include "util.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum kind { KIND_WORLD, KIND_BEST_OF_N, KIND_GREEDY, KIND_EVOLVE };

static const struct {
	const char *name, *mode, *title;
} strategies[] = {
	[KIND_WORLD] = { "world", NULL, NULL },
	[KIND_BEST_OF_N] = { "best-of-n", "sample", "Sample" },
	[KIND_GREEDY] = { "greedy", "climb", "Step" },
	[KIND_EVOLVE] = { "evolve", "evolve", "Program" },
};

static enum kind kind_of(const struct world *w)
{
	const char *name = json_string(json_get(w->document, "settings"), "strategy");

	for (size_t i = 0; name && i < sizeof(strategies) / sizeof(strategies[0]); i++)
		if (strcmp(name, strategies[i].name) == 0)
			return (enum kind)i;
	return KIND_WORLD;
}

const char *strategy_mode(const struct world *w)
{
	return strategies[kind_of(w)].mode;
}

bool strategy_is_single(const struct world *w)
{
	return kind_of(w) != KIND_WORLD;
}

/* ---- draws ------------------------------------------------------------------------------------------------------ */

/* A stream of numbers for one program of one run (splitmix64). */
struct draws {
	uint64_t state;
};

static struct draws draws_for(const struct world *w, long number)
{
	const char *seed = json_string(json_get(w->document, "settings"), "seed");

	return (struct draws){ strtoull(seed, NULL, 10) * 0x9e3779b97f4a7c15u + (uint64_t)number * 0xd1342543de82ef95u };
}

/* Uniform in [0, 1). */
static double draw(struct draws *d)
{
	uint64_t z = d->state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return (double)((z ^ (z >> 31)) >> 11) / 9007199254740992.0;
}

/* An index of weights, drawn in proportion; -1 if all are zero. */
static long draw_weighted(struct draws *d, const double *weights, size_t count)
{
	double sum = 0, at;
	long last = -1;

	for (size_t i = 0; i < count; i++)
		sum += weights[i];
	at = draw(d) * sum;
	for (size_t i = 0; i < count; i++) {
		if (weights[i] <= 0)
			continue;
		last = (long)i;
		if ((at -= weights[i]) < 0)
			break;
	}
	return last;
}

/* ---- archives --------------------------------------------------------------------------------------------------- */

static bool on_island(const struct node *node, long island)
{
	const cJSON *member;

	cJSON_ArrayForEach(member, json_get(node->json, "islands"))
		if ((long)member->valuedouble == island)
			return true;
	return false;
}

static double score_of(const struct world *w, long i)
{
	return json_number(node_solution(&w->nodes[i]), "score", 0);
}

struct archive {
	const struct world *w;
	long *nodes; /* fastest first */
	size_t count;
};

static int compare_scores(const void *a, const void *b, void *world)
{
	double x = score_of(world, *(const long *)a), y = score_of(world, *(const long *)b);

	if (x != y)
		return x > y ? -1 : 1;
	return *(const long *)a < *(const long *)b ? -1 : 1;
}

/* The kernels of one island, or with `other` of all nodes that are not on it. */
static struct archive archive_of(const struct world *w, long island, bool other)
{
	struct archive a = { .w = w, .nodes = xreallocarray(NULL, w->count, sizeof(*a.nodes)) };

	for (long i = 1; i < (long)w->count; i++)
		if (w->nodes[i].status == NODE_CLOSED && score_of(w, i) > 0 && on_island(&w->nodes[i], island) != other)
			a.nodes[a.count++] = i;
	qsort_r(a.nodes, a.count, sizeof(*a.nodes), compare_scores, (void *)w);
	if (a.count > EVOLVE_ARCHIVE)
		a.count = EVOLVE_ARCHIVE;
	return a;
}

static long children_of(const struct world *w, long i)
{
	long count = 0;

	for (long c = w->nodes[i].first_child; c >= 0; c = w->nodes[c].next_sibling)
		count++;
	return count;
}

static double log_score(const struct archive *a, size_t i)
{
	return log(score_of(a->w, a->nodes[i]));
}

static int compare_numbers(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *values, size_t count)
{
	qsort(values, count, sizeof(*values), compare_numbers);
	return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

/* A node of the archive, drawn by fitness and, if asked for, by novelty; -1 if it is empty. */
static long draw_from(const struct archive *a, struct draws *d, bool novelty)
{
	double *values, middle, spread;
	long drawn;

	if (a->count == 0)
		return -1;
	values = xreallocarray(NULL, a->count, sizeof(*values));
	for (size_t i = 0; i < a->count; i++)
		values[i] = log_score(a, i);
	middle = median(values, a->count);
	for (size_t i = 0; i < a->count; i++)
		values[i] = fabs(log_score(a, i) - middle);
	spread = fmax(median(values, a->count), 1e-3);
	for (size_t i = 0; i < a->count; i++) {
		values[i] = 1 / (1 + exp(-10 * (log_score(a, i) - middle) / spread));
		if (novelty)
			values[i] /= 1 + (double)children_of(a->w, a->nodes[i]);
	}
	drawn = draw_weighted(d, values, a->count);
	free(values);
	return drawn < 0 ? a->nodes[0] : a->nodes[drawn];
}

/* ---- proposals -------------------------------------------------------------------------------------------------- */

static long best_node(const struct world *w)
{
	const char *name = json_string(json_get(w->document, "best"), "node");

	return name ? world_find(w, name) : -1;
}

static cJSON *body_of(const char *title)
{
	cJSON *body = cJSON_CreateObject(), *action = cJSON_CreateObject();

	json_set_string(action, "title", title);
	json_set_string(action, "description", "");
	json_set_string(action, "rationale", "");
	json_set_number(action, "difficulty_1_to_5", 1);
	json_set_number(action, "score_0_to_1", 0.5);
	json_set(action, "expected_vs_baseline_factor", cJSON_CreateNull());
	json_set_string(body, "decision", "");
	json_set_string(body, "choice", "");
	json_set(body, "action", action);
	json_set(body, "impacts", cJSON_CreateNull());
	json_set_number(body, "overall_rating_0_to_10", 0);
	json_set_number(body, "confidence_0_to_1", 0);
	json_set_string(body, "notes", "");
	return body;
}

static long add_program(struct world *w, long parent, enum kind kind, long number)
{
	char *title = xasprintf("%s %ld", strategies[kind].title, number);
	long node = world_add(w, parent < 0 ? 0 : parent, body_of(title));

	free(title);
	return node;
}

static void add_island(struct world *w, long i, long island)
{
	cJSON *list = json_get_mutable(w->nodes[i].json, "islands");

	if (!list) {
		list = cJSON_CreateArray();
		json_set(w->nodes[i].json, "islands", list);
	}
	if (!on_island(&w->nodes[i], island))
		cJSON_AddItemToArray(list, cJSON_CreateNumber((double)island));
}

/* The best of each island comes to the next one. All bests are chosen before any moves. */
static void migrate(struct world *w)
{
	long best[EVOLVE_ISLANDS];

	for (int i = 0; i < EVOLVE_ISLANDS; i++) {
		struct archive a = archive_of(w, i, false);

		best[i] = a.count ? a.nodes[0] : -1;
		free(a.nodes);
	}
	for (int i = 0; i < EVOLVE_ISLANDS; i++)
		if (best[i] >= 0)
			add_island(w, best[i], (i + 1) % EVOLVE_ISLANDS);
}

static void inspire(cJSON *list, const struct world *w, long node, long parent)
{
	const cJSON *member;

	if (node < 0 || node == parent)
		return;
	cJSON_ArrayForEach(member, list)
		if (strcmp(member->valuestring, w->nodes[node].id) == 0)
			return;
	cJSON_AddItemToArray(list, cJSON_CreateString(w->nodes[node].id));
}

static void evolve_one(struct world *w, long number)
{
	long island = number % EVOLVE_ISLANDS, parent, node, other;
	struct draws d = draws_for(w, number);
	cJSON *inspirations = cJSON_CreateArray();
	struct archive mine, others;

	if (number % ((long)EVOLVE_MIGRATION * EVOLVE_ISLANDS) == 0)
		migrate(w);
	mine = archive_of(w, island, false);
	others = archive_of(w, island, true);
	parent = draw_from(&mine, &d, true);
	other = draw_from(&others, &d, false);
	inspire(inspirations, w, best_node(w), parent);
	inspire(inspirations, w, other, parent);
	node = add_program(w, parent, KIND_EVOLVE, number);
	add_island(w, node, island);
	json_set(w->nodes[node].json, "inspirations", inspirations);
	free(mine.nodes);
	free(others.nodes);
}

/* ---- filling ---------------------------------------------------------------------------------------------------- */

static bool recording_is_over(const struct world *w)
{
	if (w->count <= WORLD_REFILLS)
		return false;
	for (size_t i = w->count - WORLD_REFILLS; i < w->count; i++)
		if (w->nodes[i].status != NODE_UNRECORDED)
			return false;
	return true;
}

void strategy_fill(struct world *w)
{
	enum kind kind = kind_of(w);
	long missing = world_number(w, "width");

	if (kind == KIND_WORLD)
		return;
	if (recording_is_over(w)) {
		json_set_number(w->document, "refills_failed", WORLD_REFILLS);
		return;
	}
	for (size_t i = 1; i < w->count; i++)
		missing -= w->nodes[i].status == NODE_OPEN;
	for (; missing > 0; missing--) {
		long number = (long)w->count;

		if (kind == KIND_EVOLVE)
			evolve_one(w, number);
		else
			add_program(w, kind == KIND_GREEDY ? best_node(w) : -1, kind, number);
	}
}

/* ---- what went wrong before ------------------------------------------------------------------------------------- */

static bool same_islands(const struct node *a, const struct node *b)
{
	const cJSON *first = cJSON_GetArrayItem(json_get(a->json, "islands"), 0);

	return !first || on_island(b, (long)first->valuedouble);
}

const cJSON *strategy_failure(const struct world *w, long node, long *owner)
{
	const struct node *self = &w->nodes[node];
	const cJSON *failure = NULL;

	if (kind_of(w) == KIND_WORLD || kind_of(w) == KIND_BEST_OF_N)
		return NULL;
	for (long i = w->nodes[self->parent].first_child; i >= 0 && i < node; i = w->nodes[i].next_sibling) {
		if (!same_islands(self, &w->nodes[i]) || w->nodes[i].status == NODE_OPEN || w->nodes[i].status == NODE_UNRECORDED)
			continue;
		failure = json_get(w->nodes[i].json, "failure");
		*owner = i;
	}
	return failure;
}
