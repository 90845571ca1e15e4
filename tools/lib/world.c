#include "world.h"

#include "hash.h"
#include "json.h"
#include "text.h"
#include "util.h"

#include <ctype.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static const char *const status_names[] = { "open", "active", "closed", "pruned", "unrecorded" };

/* ---- the tree as an index --------------------------------------------------------------------------------------- */

const char *node_status_name(enum node_status status)
{
	return status_names[status];
}

static enum node_status status_of(const cJSON *json)
{
	const char *name = json_string(json, "status");
	int status = NODE_OPEN;

	while (status < NODE_UNRECORDED && strcmp(name, status_names[status]) != 0)
		status++;
	return (enum node_status)status;
}

const char *node_title(const struct node *node)
{
	return json_string(json_get(node->json, "action"), "title");
}

const cJSON *node_solution(const struct node *node)
{
	const cJSON *solution = json_get(node->json, "solution");

	return cJSON_IsObject(solution) ? solution : NULL;
}

const cJSON *cycle_attempt(const cJSON *cycle, double number)
{
	const cJSON *attempt;

	cJSON_ArrayForEach(attempt, json_get(cycle, "attempts"))
		if (json_number(attempt, "attempt", 0) == number)
			return attempt;
	return NULL;
}

const cJSON *world_start(const struct world *w, long i)
{
	const struct node *node = &w->nodes[i];
	const cJSON *cycle = json_get(node->json, "cycle");

	return world_is_eager(w) && node->status == NODE_ACTIVE ? cycle_attempt(cycle, json_number(cycle, "best", 0)) : node_solution(node);
}

/* Place in by_id of an id, or where it would be put. */
static size_t place_of(const struct world *w, size_t count, const char *id, bool *found)
{
	size_t low = 0, high = count;

	*found = false;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		int order = strcmp(w->nodes[w->by_id[middle]].id, id);

		if (order == 0)
			*found = true;
		if (order == 0)
			return middle;
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

long world_find(const struct world *w, const char *id)
{
	bool found;
	size_t place = place_of(w, w->count, id, &found);

	return found ? w->by_id[place] : -1;
}

static void grow(struct world *w)
{
	if (w->count < w->size)
		return;
	w->size = w->size ? 2 * w->size : 64;
	w->nodes = xreallocarray(w->nodes, w->size, sizeof(*w->nodes));
	w->by_id = xreallocarray(w->by_id, w->size, sizeof(*w->by_id));
}

static void append(struct world *w, cJSON *json)
{
	struct node *node;

	grow(w);
	node = &w->nodes[w->count];
	node->json = json;
	node->id = json_string(json, "id");
	node->status = status_of(json);
	node->parent = node->first_child = node->last_child = node->next_sibling = -1;
	w->by_id[w->count] = (long)w->count;
	w->count++;
}

static void link_child(struct world *w, long parent, long child)
{
	struct node *p = &w->nodes[parent];

	w->nodes[child].parent = parent;
	if (p->last_child >= 0)
		w->nodes[p->last_child].next_sibling = child;
	else
		p->first_child = child;
	p->last_child = child;
}

static int compare_ids(const void *a, const void *b, void *world)
{
	const struct world *w = world;

	return strcmp(w->nodes[*(const long *)a].id, w->nodes[*(const long *)b].id);
}

static int index_nodes(struct world *w, struct error *err)
{
	cJSON *json;

	cJSON_ArrayForEach(json, w->list)
		append(w, json);
	if (w->count == 0)
		return error_set(err, KM_EXIT_INPUT, "nodes: there is no root");
	qsort_r(w->by_id, w->count, sizeof(*w->by_id), compare_ids, w);
	for (size_t i = 1; i < w->count; i++)
		if (strcmp(w->nodes[w->by_id[i - 1]].id, w->nodes[w->by_id[i]].id) == 0)
			return error_set(err, KM_EXIT_INPUT, "nodes: two nodes have the id '%s'", w->nodes[w->by_id[i]].id);
	return 0;
}

static int link_nodes(struct world *w, struct error *err)
{
	for (size_t i = 0; i < w->count; i++) {
		const char *name = json_string(w->nodes[i].json, "parent");
		long parent = name ? world_find(w, name) : -1;

		if (!name && strcmp(w->nodes[i].id, "root") != 0)
			return error_set(err, KM_EXIT_INPUT, "nodes[%zu]: '%s' has no parent, only 'root' may have none", i, w->nodes[i].id);
		if (name && strcmp(w->nodes[i].id, "root") == 0)
			return error_set(err, KM_EXIT_INPUT, "nodes[%zu]: 'root' has a parent", i);
		if (name && parent < 0)
			return error_set(err, KM_EXIT_INPUT, "nodes[%zu]: parent '%.60s' of '%s' is not there", i, name, w->nodes[i].id);
		if (name && parent >= (long)i)
			return error_set(err, KM_EXIT_INPUT, "nodes[%zu]: parent '%s' of '%s' does not stand before it, or they form a cycle", i, name, w->nodes[i].id);
		if (name)
			link_child(w, parent, (long)i);
	}
	if (world_find(w, "root") < 0)
		return error_set(err, KM_EXIT_INPUT, "nodes: there is no root");
	return 0;
}

/* ---- the rules of the tree -------------------------------------------------------------------------------------- */

static bool id_is_well_formed(const char *id)
{
	size_t len = strlen(id);

	if (strcmp(id, "root") == 0)
		return true;
	if (len < 6 || len > WORLD_ID || id[len - 5] != '.' || strspn(id + len - 4, "0123456789abcdef") != 4)
		return false;
	return strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789-") == len - 5;
}

static int bad(struct error *err, const struct node *node, const char *reason)
{
	return error_set(err, KM_EXIT_INPUT, "node '%s' %s", node->id, reason);
}

static int check_solution(const struct world *w, const struct node *node, struct error *err)
{
	const cJSON *solution = node_solution(node);
	bool root = node->parent < 0;

	if (node->status == NODE_CLOSED && !solution && !root)
		return bad(err, node, "is closed without a solution");
	if (solution && (root || (node->status != NODE_CLOSED && node->status != NODE_PRUNED)))
		return bad(err, node, "has a solution that its status does not allow");
	if (!solution)
		return 0;
	if (strcmp(json_string(solution, "node"), node->id) != 0)
		return bad(err, node, "has the solution of another node");
	if (json_number(solution, "attempt", 0) > json_number(node->json, "attempts", 0))
		return bad(err, node, "has a solution from an attempt that was never made");
	if (json_number(solution, "round", 0) > world_number(w, "round"))
		return bad(err, node, "has a solution from a later round");
	return 0;
}

static int check_cycle(const struct world *w, const struct node *node, const cJSON *cycle, struct error *err)
{
	double best = json_number(cycle, "best", 0), attempts = json_number(node->json, "attempts", 0);
	bool best_found = best == 0;
	const cJSON *attempt;

	if (json_number(cycle, "slot", 0) >= json_number(json_get(w->document, "settings"), "width", 0))
		return bad(err, node, "is in a slot beyond the width");
	if (json_number(cycle, "number", 0) != json_number(node->json, "cycles", 0) + 1)
		return bad(err, node, "has a cycle whose number does not follow its cycles");
	cJSON_ArrayForEach(attempt, json_get(cycle, "attempts")) {
		bool passed = strcmp(json_string(attempt, "status"), "PASSED") == 0;

		if (json_number(attempt, "attempt", 0) > attempts)
			return bad(err, node, "has more attempts in its cycle than it counts");
		if (json_number(attempt, "round", 0) > world_number(w, "round"))
			return bad(err, node, "has an attempt from a later round");
		if (passed != cJSON_IsNumber(json_get(attempt, "score")))
			return bad(err, node, "has an attempt whose score does not fit its status");
		if (passed && json_number(attempt, "attempt", 0) == best)
			best_found = true;
	}
	return best_found ? 0 : bad(err, node, "has a cycle whose best is none of its passed attempts");
}

static int check_node(const struct world *w, const struct node *node, bool slots[WORLD_SLOTS], struct error *err)
{
	const cJSON *cycle = json_get(node->json, "cycle");
	int slot;

	if (!id_is_well_formed(node->id))
		return bad(err, node, "has an id of another form than 'words.1a2b'");
	if (node->parent < 0 && node->status != NODE_CLOSED)
		return bad(err, node, "is the root and must be closed");
	if (json_number(node->json, "failed_cycles", 0) > json_number(node->json, "cycles", 0))
		return bad(err, node, "has more failed cycles than cycles");
	if (json_number(node->json, "created_round", 0) > world_number(w, "round"))
		return bad(err, node, "was created in a later round");
	if ((node->status == NODE_OPEN || node->status == NODE_ACTIVE) && node->parent >= 0 && w->nodes[node->parent].status == NODE_PRUNED)
		return bad(err, node, "lives under a pruned parent");
	if (check_solution(w, node, err) < 0)
		return -1;
	if (cJSON_IsObject(cycle) != (node->status == NODE_ACTIVE))
		return bad(err, node, node->status == NODE_ACTIVE ? "is active without a cycle" : "has a cycle but is not active");
	if (node->status != NODE_ACTIVE)
		return 0;
	if (check_cycle(w, node, cycle, err) < 0)
		return -1;
	slot = (int)json_number(cycle, "slot", 0);
	if (slots[slot])
		return bad(err, node, "is in a slot that another node has");
	slots[slot] = true;
	return 0;
}

static int check_best(const struct world *w, struct error *err)
{
	const cJSON *best = json_get(w->document, "best");
	long i;

	if (!cJSON_IsObject(best))
		return 0;
	i = world_find(w, json_string(best, "node"));
	if (i <= 0)
		return error_set(err, KM_EXIT_INPUT, "best: there is no node '%s'", json_string(best, "node"));
	if (json_number(best, "attempt", 0) > json_number(w->nodes[i].json, "attempts", 0))
		return error_set(err, KM_EXIT_INPUT, "best: node '%s' has no attempt %.0f", w->nodes[i].id, json_number(best, "attempt", 0));
	if (json_number(best, "round", 0) > world_number(w, "round") || world_number(w, "evaluations") < 1)
		return error_set(err, KM_EXIT_INPUT, "best: it does not fit the world's round and evaluations");
	return 0;
}

int world_adopt(struct world *w, cJSON *document, struct error *err)
{
	bool slots[WORLD_SLOTS] = { false };
	int result;

	memset(w, 0, sizeof(*w));
	w->document = document;
	w->list = json_get_mutable(document, "nodes");
	result = index_nodes(w, err);
	if (result == 0)
		result = link_nodes(w, err);
	for (size_t i = 0; i < w->count && result == 0; i++)
		result = check_node(w, &w->nodes[i], slots, err);
	if (result == 0)
		result = check_best(w, err);
	if (result < 0)
		world_release(w);
	return result;
}

int world_load(const char *path, struct world *w, struct error *err)
{
	cJSON *document = json_load(path, "world", err);

	memset(w, 0, sizeof(*w));
	if (!document)
		return -1;
	return world_adopt(w, document, err) < 0 ? error_prefix(err, "'%s'", path) : 0;
}

void world_release(struct world *w)
{
	cJSON_Delete(w->document);
	free(w->nodes);
	free(w->by_id);
	memset(w, 0, sizeof(*w));
}

/* ---- walking ---------------------------------------------------------------------------------------------------- */

bool world_below(const struct world *w, long i, long ancestor)
{
	while (i > ancestor) /* a parent stands before its children */
		i = w->nodes[i].parent;
	return i == ancestor;
}

long world_next_below(const struct world *w, long i, long top)
{
	if (w->nodes[i].first_child >= 0)
		return w->nodes[i].first_child;
	while (i != top && w->nodes[i].next_sibling < 0)
		i = w->nodes[i].parent;
	return i == top ? -1 : w->nodes[i].next_sibling;
}

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

long world_number(const struct world *w, const char *key)
{
	const cJSON *number = json_get(w->document, key);
	double v = number ? number->valuedouble : json_number(json_get(w->document, "settings"), key, 0);

	return v < (double)LONG_MAX ? (long)v : LONG_MAX;
}

void world_count(struct world *w, const char *key, long add)
{
	json_set_number(w->document, key, json_number(w->document, key, 0) + (double)add);
}

int world_samples(const struct world *w)
{
	return (int)json_number(json_get(w->document, "settings"), "samples", 1);
}

static bool has_policy(const struct world *w, const char *name)
{
	return strcmp(json_string(json_get(w->document, "settings"), "policy"), name) == 0;
}

bool world_is_paper(const struct world *w)
{
	return has_policy(w, "paper");
}

bool world_is_eager(const struct world *w)
{
	return has_policy(w, "eager");
}

/* ---- changing --------------------------------------------------------------------------------------------------- */

void world_id(const char *parent, const char *title, char id[WORLD_ID + 1])
{
	char *name = xasprintf("%s/%s", parent, title), hex[HASH_HEX + 1];
	size_t n = 0;

	for (; *title && n < 32; title++) {
		unsigned char c = (unsigned char)*title;

		if (c < 0x80 && isalnum(c))
			id[n++] = (char)tolower(c);
		else if (n && id[n - 1] != '-')
			id[n++] = '-';
	}
	while (n && id[n - 1] == '-')
		n--;
	if (n == 0) {
		memcpy(id, "node", 4);
		n = 4;
	}
	hash_hex(name, strlen(name), hex);
	id[n++] = '.';
	memcpy(id + n, hex, 4);
	id[n + 4] = 0;
	free(name);
}

/* Members of a node in the order of the schema: machine-owned first, then what body holds. */
static cJSON *new_node(const char *id, const char *parent, double round, cJSON *body)
{
	cJSON *node = cJSON_CreateObject(), *member;

	json_set_string(node, "id", id);
	json_set_string(node, "parent", parent);
	json_set_string(node, "status", "open");
	json_set_number(node, "created_round", round);
	json_set_number(node, "attempts", 0);
	json_set_number(node, "failed_cycles", 0);
	json_set_number(node, "cycles", 0);
	json_set(node, "solution", cJSON_CreateNull());
	while ((member = cJSON_DetachItemViaPointer(body, body->child)))
		cJSON_AddItemToObject(node, member->string, member);
	cJSON_Delete(body);
	return node;
}

long world_add(struct world *w, long parent, cJSON *body)
{
	char id[WORLD_ID + 1];
	size_t place;
	bool found;
	cJSON *json;

	world_id(w->nodes[parent].id, json_string(json_get(body, "action"), "title"), id);
	place = place_of(w, w->count, id, &found);
	if (found)
		return -1;
	json = new_node(id, w->nodes[parent].id, json_number(w->document, "round", 0), body);
	cJSON_AddItemToArray(w->list, json);
	append(w, json);
	memmove(w->by_id + place + 1, w->by_id + place, (w->count - 1 - place) * sizeof(*w->by_id));
	w->by_id[place] = (long)w->count - 1;
	link_child(w, parent, (long)w->count - 1);
	return (long)w->count - 1;
}

void world_set_status(struct world *w, long i, enum node_status status)
{
	w->nodes[i].status = status;
	json_set_string(w->nodes[i].json, "status", status_names[status]);
}

void world_refuse(struct world *w, int slot, const char *op, const char *reason)
{
	cJSON *log = json_get_mutable(w->document, "refused"), *entry = cJSON_CreateObject();
	struct buf b;

	buf_init(&b, 1 << 12);
	json_set_number(entry, "round", json_number(w->document, "round", 0));
	json_set_number(entry, "slot", slot);
	text_line(&b, op, 200);
	json_set_string(entry, "op", b.data);
	buf_clear(&b);
	text_line(&b, reason, 400);
	json_set_string(entry, "reason", b.data);
	buf_release(&b);
	cJSON_AddItemToArray(log, entry);
	while (cJSON_GetArraySize(log) > WORLD_REFUSED)
		cJSON_DeleteItemFromArray(log, 0);
}

/* ---- the first world -------------------------------------------------------------------------------------------- */

static cJSON *root_body(const char *task)
{
	cJSON *body = cJSON_CreateObject(), *action = cJSON_CreateObject();

	json_set_string(action, "title", task);
	json_set_string(action, "description", "");
	json_set_string(action, "rationale", "");
	json_set_number(action, "difficulty_1_to_5", 1);
	json_set_number(action, "score_0_to_1", 0);
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

static cJSON *settings_of(const cJSON *run)
{
	static const char *const keys[] = { "task", "target", "width", "k", "samples", "strategy", "policy", "seed" };
	cJSON *settings = cJSON_CreateObject();

	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		if (json_get(run, keys[i]))
			json_set(settings, keys[i], cJSON_Duplicate(json_get(run, keys[i]), true));
	return settings;
}

int world_first(struct world *w, const cJSON *run, struct error *err)
{
	static const char *const counters[] = { "evaluations", "cycles", "cycles_since_best", "refills", "refills_failed", "judge_seconds" };
	cJSON *document = cJSON_CreateObject(), *nodes = cJSON_CreateArray(), *root = new_node("root", NULL, 0, root_body(json_string(run, "task")));

	json_set(document, "made_by", cJSON_CreateObject());
	json_set_number(document, "round", 0);
	json_set(document, "settings", settings_of(run));
	json_set_string(document, "summary", "");
	json_set(document, "open_questions", cJSON_CreateArray());
	for (size_t i = 0; i < sizeof(counters) / sizeof(counters[0]); i++)
		json_set_number(document, counters[i], 0);
	json_set(document, "best", cJSON_CreateNull());
	json_set(document, "seen", cJSON_CreateObject());
	json_set(document, "refused", cJSON_CreateArray());
	json_set_string(root, "status", "closed");
	cJSON_AddItemToArray(nodes, root);
	json_set(document, "nodes", nodes);
	return world_adopt(w, document, err);
}
