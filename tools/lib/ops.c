#include "ops.h"

#include "code.h"
#include "json.h"
#include "mend.h"
#include "select.h"
#include "util.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- finding the object in a reply ------------------------------------------------------------------------------ */

enum {
	TRIES = 200,            /* opening braces that are tried */
	SCAN_BYTES = 32 << 20,  /* bytes looked at in all, so that hostile braces cost no quadratic time */
};

/* Length of the balanced object that starts at text[0] == '{', or 0. *looked counts the bytes passed. */
static size_t balanced(const char *text, size_t len, size_t *looked)
{
	bool in_string = false;
	int depth = 0;

	for (size_t i = 0; i < len; i++) {
		char c = text[i];

		++*looked;
		if (in_string && c == '\\')
			i++;
		else if (c == '"')
			in_string = !in_string;
		else if (!in_string && c == '{')
			depth++;
		else if (!in_string && c == '}' && --depth == 0)
			return i + 1;
	}
	return 0;
}

/* The object at text[0], of n bytes by its brackets; *n becomes 0 if it is none. What cannot be parsed as it stands is
 * tried without comments and superfluous commas. *err tells what is wrong with it as it stands. */
static cJSON *parse_object(const char *text, size_t len, size_t *n, size_t *looked, struct error *err)
{
	char *copy;
	cJSON *value = NULL;

	*n = balanced(text, len, looked);
	if (*n) {
		copy = xstrndup(text, *n); /* json_parse wants the NUL behind */
		value = json_parse(copy, *n, err);
		free(copy);
	}
	if (value)
		return value;
	*n = mend_object_length(text, len);
	*looked += *n ? *n : len;
	if (*n) {
		copy = mend_syntax(text, *n);
		value = json_parse(copy, strlen(copy), NULL);
		free(copy);
	}
	if (!value)
		*n = 0; /* there may be a good one inside */
	return value;
}

static cJSON *parse_text(const char *text, size_t len, struct error *err)
{
	struct error first = { KM_EXIT_INPUT, "no JSON object found" };
	cJSON *found = NULL, *value;
	size_t looked = 0, n;
	int tries = 0, failures = 0;

	for (size_t i = 0; i < len && tries < TRIES && looked < SCAN_BYTES; i += n ? n : 1) {
		struct error inner;

		n = 0;
		if (text[i] != '{')
			continue;
		tries++;
		error_set(&inner, KM_EXIT_INPUT, "an object that opens at byte %zu does not close", i);
		value = parse_object(text + i, len - i, &n, &looked, &inner);
		if (cJSON_IsArray(json_get(value, "ops"))) {
			cJSON_Delete(found);
			found = value;
			continue;
		}
		if (value)
			error_set(&inner, KM_EXIT_INPUT, "the object lacks the list \"ops\"");
		cJSON_Delete(value);
		if (failures++ == 0)
			first = inner;
	}
	if (!found)
		error_set(err, KM_EXIT_INPUT, "the reply is no {\"ops\": [...]}: %s", first.text);
	return found;
}

cJSON *ops_parse(const char *text, size_t len, struct error *err)
{
	const char *nul = memchr(text, 0, len);
	char *whole, *clean;
	cJSON *reply;

	if (nul) {
		error_set(err, KM_EXIT_INPUT, "the reply has a NUL at byte %zu", (size_t)(nul - text));
		return NULL;
	}
	whole = xstrndup(text, len);
	clean = reply_without_thinking(whole);
	reply = parse_text(clean, strlen(clean), err);
	free(clean);
	free(whole);
	return reply;
}

/* ---- members ---------------------------------------------------------------------------------------------------- */

struct applier {
	struct world *w;
	int slot;
	long left; /* new nodes that this reply may still bring */
	struct {
		const char *as;
		long node;
	} names[3 * OPS_MOST];
	size_t name_count;
	long fresh[3 * OPS_MOST]; /* nodes that this reply inserted or revived */
	size_t fresh_count;
	char reason[400];
};

enum kind { TEXT, NUMBER, NUMBER_OR_NULL };

struct field {
	const char *key;
	enum kind kind;
	double low, high; /* of a number, or of a text's bytes */
	bool required;
	double otherwise;
};

static const struct field action_fields[] = {
	{ "title", TEXT, 1, OPS_TITLE, true, 0 },
	{ "description", TEXT, 0, OPS_TEXT, false, 0 },
	{ "rationale", TEXT, 0, OPS_TEXT, false, 0 },
	{ "difficulty_1_to_5", NUMBER, 1, 5, true, 0 },
	{ "score_0_to_1", NUMBER, 0, 1, true, 0 },
	{ "expected_vs_baseline_factor", NUMBER_OR_NULL, 0, 1e6, false, 0 },
	{ NULL, TEXT, 0, 0, false, 0 },
};

static const struct field impact_fields[] = {
	{ "rating_0_to_10", NUMBER, 0, 10, true, 0 },
	{ "risk", TEXT, 0, OPS_SHORT, false, 0 },
	{ "notes", TEXT, 0, OPS_SHORT, false, 0 },
	{ NULL, TEXT, 0, 0, false, 0 },
};

static const struct field label_fields[] = {
	{ "decision", TEXT, 0, OPS_LABEL, false, 0 },
	{ "choice", TEXT, 0, OPS_LABEL, false, 0 },
	{ NULL, TEXT, 0, 0, false, 0 },
};

static const struct field rating_fields[] = {
	{ "overall_rating_0_to_10", NUMBER, 0, 10, false, 5 },
	{ "confidence_0_to_1", NUMBER, 0, 1, false, 0.5 },
	{ "notes", TEXT, 0, OPS_TEXT, false, 0 },
	{ NULL, TEXT, 0, 0, false, 0 },
};

static const char *const body_keys[] = {
	"decision", "choice", "action", "impacts", "overall_rating_0_to_10", "confidence_0_to_1", "notes", NULL,
};
static const char *const machine_keys[] = {
	"id", "parent", "status", "created_round", "attempts", "failed_cycles", "cycles", "solution", "cycle", "pruned_because", "no_child_because", "failure", "islands", "inspirations", NULL,
};
static const char *const impact_keys[] = { "memory_bandwidth", "register_pressure", "compute_intensity_and_hw_fit", NULL };

static int __attribute__((format(printf, 2, 3))) refuse(struct applier *a, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(a->reason, sizeof(a->reason), format, args);
	va_end(args);
	return -1;
}

static bool is_among(const char *key, const char *const *keys)
{
	for (; *keys; keys++)
		if (strcmp(key, *keys) == 0)
			return true;
	return false;
}

/* Members of an object other than those of the body and the extra ones (a list of keys). */
static int check_keys(struct applier *a, const cJSON *object, const char *const *extra)
{
	const cJSON *member;

	cJSON_ArrayForEach(member, object) {
		if (is_among(member->string, body_keys) || is_among(member->string, extra))
			continue;
		if (is_among(member->string, machine_keys))
			return refuse(a, "'%s' is owned by the machine", member->string);
		return refuse(a, "unknown member '%.60s'", member->string);
	}
	return 0;
}

static int check_field(struct applier *a, const struct field *f, const cJSON *v)
{
	if (f->kind == TEXT) {
		double len = cJSON_IsString(v) ? (double)strlen(v->valuestring) : -1;

		if (len < 0)
			return refuse(a, "'%s' is no text", f->key);
		if (len < f->low)
			return refuse(a, "'%s' is empty", f->key);
		return len > f->high ? refuse(a, "'%s' is longer than %.0f bytes", f->key, f->high) : 0;
	}
	if (f->kind == NUMBER_OR_NULL && cJSON_IsNull(v))
		return 0;
	if (!cJSON_IsNumber(v))
		return refuse(a, "'%s' is no number", f->key);
	if (v->valuedouble < f->low || v->valuedouble > f->high)
		return refuse(a, "'%s' is %g, not in %g to %g", f->key, v->valuedouble, f->low, f->high);
	return 0;
}

static cJSON *default_of(const struct field *f)
{
	if (f->kind == TEXT)
		return cJSON_CreateString("");
	return f->kind == NUMBER ? cJSON_CreateNumber(f->otherwise) : cJSON_CreateNull();
}

/* Put the fields of a table into `into`: from source, else from base, else the default. With skip_absent, members that
 * source lacks are left out. */
static int take_fields(struct applier *a, const struct field *f, const cJSON *source, const cJSON *base, bool skip_absent, cJSON *into)
{
	for (; f->key; f++) {
		const cJSON *v = json_get(source, f->key);

		if (v && check_field(a, f, v) < 0)
			return -1;
		if (!v)
			v = json_get(base, f->key);
		if (!v && skip_absent)
			continue;
		if (!v && f->required)
			return refuse(a, "'%s' is missing", f->key);
		json_set(into, f->key, v ? cJSON_Duplicate(v, true) : default_of(f));
	}
	return 0;
}

static int check_table(struct applier *a, const struct field *table, const cJSON *object, const char *what)
{
	const cJSON *member;

	if (!cJSON_IsObject(object))
		return refuse(a, "'%s' is no object", what);
	cJSON_ArrayForEach(member, object) {
		const struct field *f = table;

		while (f->key && strcmp(f->key, member->string) != 0)
			f++;
		if (!f->key)
			return refuse(a, "unknown member '%.60s' in '%s'", member->string, what);
	}
	return 0;
}

/* The title as it is kept: without blanks at its ends; one line. */
static int mend_title(struct applier *a, cJSON *action)
{
	const char *title = json_string(action, "title");
	size_t from = strspn(title, " "), to = strlen(title);
	char *trimmed;

	for (const char *p = title; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			return refuse(a, "'title' holds control characters");
	while (to > from && title[to - 1] == ' ')
		to--;
	if (to == from)
		return refuse(a, "'title' is empty");
	trimmed = xstrndup(title + from, to - from);
	json_set_string(action, "title", trimmed);
	free(trimmed);
	return 0;
}

static int take_action(struct applier *a, const cJSON *source, const cJSON *base, cJSON *into)
{
	cJSON *action;

	if (!source)
		return refuse(a, "'action' is missing");
	if (check_table(a, action_fields, source, "action") < 0)
		return -1;
	action = cJSON_CreateObject();
	json_set(into, "action", action);
	return take_fields(a, action_fields, source, base, false, action) < 0 ? -1 : mend_title(a, action);
}

static int take_impacts(struct applier *a, const cJSON *source, cJSON *into)
{
	cJSON *impacts;
	const cJSON *member;

	if (!source || cJSON_IsNull(source)) {
		json_set(into, "impacts", cJSON_CreateNull());
		return 0;
	}
	if (!cJSON_IsObject(source))
		return refuse(a, "'impacts' is no object");
	impacts = cJSON_CreateObject();
	json_set(into, "impacts", impacts);
	cJSON_ArrayForEach(member, source) {
		cJSON *impact;

		if (!is_among(member->string, impact_keys))
			return refuse(a, "unknown member '%.60s' in 'impacts'", member->string);
		if (check_table(a, impact_fields, member, member->string) < 0)
			return -1;
		impact = cJSON_CreateObject();
		json_set(impacts, member->string, impact);
		if (take_fields(a, impact_fields, member, NULL, true, impact) < 0)
			return -1;
		if (!json_get(impact, "rating_0_to_10"))
			return refuse(a, "'rating_0_to_10' is missing in '%s'", member->string);
	}
	return 0;
}

/* The model-owned members of a new node, in the order of the schema; NULL if something is wrong with them. */
static cJSON *take_body(struct applier *a, const cJSON *source)
{
	cJSON *body = cJSON_CreateObject();

	if (take_fields(a, label_fields, source, NULL, false, body) == 0 && take_action(a, json_get(source, "action"), NULL, body) == 0 &&
	    take_impacts(a, json_get(source, "impacts"), body) == 0 && take_fields(a, rating_fields, source, NULL, false, body) == 0)
		return body;
	cJSON_Delete(body);
	return NULL;
}

/* ---- references ------------------------------------------------------------------------------------------------- */

static long resolve(struct applier *a, const cJSON *op, const char *key)
{
	const char *name = json_string(op, key);
	long i;

	if (!name)
		return refuse(a, "'%s' is missing", key);
	if (name[0] != '$') {
		i = world_find(a->w, name);
		return i >= 0 ? i : refuse(a, "there is no node '%.60s'", name);
	}
	for (size_t n = 0; n < a->name_count; n++)
		if (strcmp(a->names[n].as, name + 1) == 0)
			return a->names[n].node;
	return refuse(a, "no node of this reply is named '%.60s'", name + 1);
}

/* The name that a new node gives itself, "$a" meaning "a"; NULL if none. */
static const char *as_name(const cJSON *source)
{
	const char *as = json_string(source, "as");

	return as && as[0] == '$' ? as + 1 : as;
}

/* Is "as" absent, or a name that no other node of this reply has? */
static int check_as(struct applier *a, const cJSON *source)
{
	const char *as = as_name(source);

	if (!json_get(source, "as"))
		return 0;
	if (!as || as[0] == 0 || strlen(as) > 32)
		return refuse(a, "'as' is no name of 1 to 32 bytes");
	for (size_t n = 0; n < a->name_count; n++)
		if (strcmp(a->names[n].as, as) == 0)
			return refuse(a, "two nodes of this reply are named '%s'", as);
	return 0;
}

/* No other child of this parent, and no node at all, may have what the title makes. */
static int check_title(struct applier *a, long parent, const char *title, long self)
{
	const struct world *w = a->w;

	for (long i = w->nodes[parent].first_child; i >= 0; i = w->nodes[i].next_sibling)
		if (i != self && strcmp(node_title(&w->nodes[i]), title) == 0)
			return refuse(a, "'%s' has a child of that title: '%s', %s", w->nodes[parent].id, w->nodes[i].id, node_status_name(w->nodes[i].status));
	return 0;
}

static int check_new(struct applier *a, long parent, const cJSON *body)
{
	const char *title = json_string(json_get(body, "action"), "title");
	char id[WORLD_ID + 1];

	if (check_title(a, parent, title, -1) < 0)
		return -1;
	world_id(a->w->nodes[parent].id, title, id);
	return world_find(a->w, id) < 0 ? 0 : refuse(a, "a node with the id '%s' is there already", id);
}

/* Everything was checked: the node comes to be. */
static void add_new(struct applier *a, const cJSON *source, long parent, cJSON *body)
{
	const char *as = as_name(source);
	long node = world_add(a->w, parent, body);

	if (as) {
		a->names[a->name_count].as = as;
		a->names[a->name_count++].node = node;
	}
	a->fresh[a->fresh_count++] = node;
	a->left--;
}

/* ---- operations ------------------------------------------------------------------------------------------------- */

static int insert_node(struct applier *a, const cJSON *op)
{
	static const char *const extra[] = { "op", "parent", "as", "reason", NULL };
	long parent;
	cJSON *body;

	if (check_keys(a, op, extra) < 0 || check_as(a, op) < 0 || (parent = resolve(a, op, "parent")) < 0)
		return -1;
	if (a->w->nodes[parent].status == NODE_PRUNED)
		return refuse(a, "the parent '%s' is pruned", a->w->nodes[parent].id);
	if (a->left < 1)
		return refuse(a, "no more new nodes are allowed in this reply");
	body = take_body(a, op);
	if (!body)
		return -1;
	if (check_new(a, parent, body) < 0) {
		cJSON_Delete(body);
		return -1;
	}
	add_new(a, op, parent, body);
	return 0;
}

/* The new values of an update, checked: members of `into` then replace those of the node. */
static int take_update(struct applier *a, const struct node *node, const cJSON *set, cJSON *into)
{
	if (take_fields(a, label_fields, set, NULL, true, into) < 0 || take_fields(a, rating_fields, set, NULL, true, into) < 0)
		return -1;
	if (json_get(set, "impacts") && take_impacts(a, json_get(set, "impacts"), into) < 0)
		return -1;
	if (!json_get(set, "action"))
		return 0;
	if (take_action(a, json_get(set, "action"), json_get(node->json, "action"), into) < 0)
		return -1;
	return check_title(a, node->parent, json_string(json_get(into, "action"), "title"), (long)(node - a->w->nodes));
}

static int update_node(struct applier *a, const cJSON *op)
{
	static const char *const extra[] = { "op", "node", "set", "reason", NULL }, *const none[] = { NULL };
	const cJSON *set = json_get(op, "set");
	cJSON *values, *member;
	int result;
	long i;

	if (check_keys(a, op, extra) < 0 || (i = resolve(a, op, "node")) < 0)
		return -1;
	if (i == 0)
		return refuse(a, "the root cannot be changed");
	if (a->w->nodes[i].status == NODE_PRUNED)
		return refuse(a, "'%s' is pruned", a->w->nodes[i].id);
	if (!cJSON_IsObject(set) || !set->child)
		return refuse(a, "'set' is missing or empty");
	if (check_keys(a, set, none) < 0)
		return -1;
	values = cJSON_CreateObject();
	result = take_update(a, &a->w->nodes[i], set, values);
	while (result == 0 && (member = cJSON_DetachItemViaPointer(values, values->child))) {
		char *key = xstrdup(member->string);

		json_set(a->w->nodes[i].json, key, member);
		free(key);
	}
	cJSON_Delete(values);
	return result;
}

static void prune_one(struct applier *a, long i, const char *reason)
{
	world_set_status(a->w, i, NODE_PRUNED);
	json_set_string(a->w->nodes[i].json, "pruned_because", reason);
}

static int check_split(struct applier *a, const struct node *node, const cJSON *into)
{
	int pieces = cJSON_GetArraySize(into);

	if (node->status != NODE_OPEN)
		return refuse(a, "'%s' is %s, only an open node can be split", node->id, node_status_name(node->status));
	if (json_number(node->json, "attempts", 0) > 0 || json_number(node->json, "cycles", 0) > 0)
		return refuse(a, "'%s' was tried already", node->id);
	if (node->first_child >= 0)
		return refuse(a, "'%s' has children", node->id);
	if (!cJSON_IsArray(into) || pieces < 2 || pieces > 3)
		return refuse(a, "'into' is no list of 2 or 3 nodes");
	return pieces <= a->left ? 0 : refuse(a, "no more new nodes are allowed in this reply");
}

/* Check every piece before any is added. */
static int take_pieces(struct applier *a, long parent, const cJSON *into, cJSON *bodies[3])
{
	static const char *const extra[] = { "as", "reason", NULL };
	const cJSON *piece;
	int n = 0;

	cJSON_ArrayForEach(piece, into) {
		if (!cJSON_IsObject(piece))
			return refuse(a, "'into' holds something that is no object");
		if (check_keys(a, piece, extra) < 0 || check_as(a, piece) < 0)
			return -1;
		bodies[n] = take_body(a, piece);
		if (!bodies[n] || check_new(a, parent, bodies[n]) < 0)
			return -1;
		for (int earlier = 0; earlier < n; earlier++) {
			const char *as = as_name(piece), *other = as_name(cJSON_GetArrayItem(into, earlier));
			char one[WORLD_ID + 1], two[WORLD_ID + 1];

			world_id(a->w->nodes[parent].id, json_string(json_get(bodies[earlier], "action"), "title"), one);
			world_id(a->w->nodes[parent].id, json_string(json_get(bodies[n], "action"), "title"), two);
			if (strcmp(one, two) == 0 || (as && other && strcmp(as, other) == 0))
				return refuse(a, "two pieces have one title or one name");
		}
		n++;
	}
	return 0;
}

static int split_node(struct applier *a, const cJSON *op)
{
	static const char *const extra[] = { "op", "node", "into", "reason", NULL };
	const cJSON *into = json_get(op, "into"), *piece;
	cJSON *bodies[3] = { NULL };
	long i, parent;
	int n = 0;

	if (check_keys(a, op, extra) < 0 || (i = resolve(a, op, "node")) < 0 || check_split(a, &a->w->nodes[i], into) < 0)
		return -1;
	parent = a->w->nodes[i].parent;
	if (take_pieces(a, parent, into, bodies) < 0) {
		for (n = 0; n < 3; n++)
			cJSON_Delete(bodies[n]);
		return -1;
	}
	cJSON_ArrayForEach(piece, into)
		add_new(a, piece, parent, bodies[n++]);
	prune_one(a, i, "split into alternatives");
	return 0;
}

static const char *reason_of(struct applier *a, const cJSON *op)
{
	const char *reason = json_string(op, "reason");

	if (!reason || !reason[0])
		refuse(a, "'reason' is missing");
	else if (strlen(reason) > OPS_SHORT)
		refuse(a, "'reason' is longer than %d bytes", OPS_SHORT);
	else
		return reason;
	return NULL;
}

static int prune_node(struct applier *a, const cJSON *op)
{
	static const char *const extra[] = { "op", "node", "reason", NULL };
	const char *best = json_string(json_get(a->w->document, "best"), "node"), *reason;
	struct world *w = a->w;
	char *below;
	long i;

	if (check_keys(a, op, extra) < 0 || (i = resolve(a, op, "node")) < 0 || !(reason = reason_of(a, op)))
		return -1;
	if (i == 0)
		return refuse(a, "the root cannot be pruned");
	if (w->nodes[i].status == NODE_PRUNED)
		return refuse(a, "'%s' is pruned already", w->nodes[i].id);
	if (best && world_below(w, world_find(w, best), i))
		return refuse(a, "the best, '%s', is '%s' or lies below it", best, w->nodes[i].id);
	for (long n = i; n >= 0; n = world_next_below(w, n, i))
		if (w->nodes[n].status == NODE_ACTIVE)
			return refuse(a, "'%s' is active", w->nodes[n].id);
	prune_one(a, i, reason);
	below = xasprintf("below '%s', which was pruned", w->nodes[i].id);
	for (long n = i; n >= 0; n = world_next_below(w, n, i))
		if (w->nodes[n].status == NODE_OPEN)
			prune_one(a, n, below);
	free(below);
	return 0;
}

static int revive_node(struct applier *a, const cJSON *op)
{
	static const char *const extra[] = { "op", "node", "reason", NULL };
	const struct node *node;
	long i;

	if (check_keys(a, op, extra) < 0 || (i = resolve(a, op, "node")) < 0 || !reason_of(a, op))
		return -1;
	node = &a->w->nodes[i];
	if (node->status != NODE_PRUNED && node->status != NODE_UNRECORDED)
		return refuse(a, "'%s' is %s", node->id, node_status_name(node->status));
	if (a->w->nodes[node->parent].status == NODE_PRUNED)
		return refuse(a, "the parent '%s' is pruned", a->w->nodes[node->parent].id);
	world_set_status(a->w, i, node_solution(node) ? NODE_CLOSED : NODE_OPEN);
	json_remove(node->json, "pruned_because");
	a->fresh[a->fresh_count++] = i;
	return 0;
}

/* ---- the reply -------------------------------------------------------------------------------------------------- */

static const struct {
	const char *name;
	int (*apply)(struct applier *a, const cJSON *op);
} operations[] = {
	{ "insert_node", insert_node }, { "update_node", update_node }, { "split_node", split_node },
	{ "prune_node", prune_node },   { "revive_node", revive_node },
};

static int apply_one(struct applier *a, const cJSON *op)
{
	const char *name = json_string(op, "op");

	if (!cJSON_IsObject(op))
		return refuse(a, "it is no object");
	for (size_t i = 0; name && i < sizeof(operations) / sizeof(operations[0]); i++)
		if (strcmp(name, operations[i].name) == 0)
			return operations[i].apply(a, op);
	return refuse(a, "unknown operation");
}

/* "insert_node pack-b.1a2b / Use huge pages", "prune_node tile.77aa" */
static void log_refusal(struct applier *a, const cJSON *op)
{
	const char *name = json_string(op, "op"), *node = json_string(op, "node"), *parent = json_string(op, "parent"), *title = json_string(json_get(op, "action"), "title");
	char *text = xasprintf("%s %s%s%s", name ? name : "(no operation)", node ? node : parent ? parent : "", title ? " / " : "", title ? title : "");

	world_refuse(a->w, a->slot, text, a->reason);
	free(text);
}

static int take_summary(struct applier *a, const cJSON *summary)
{
	static const struct field field = { "summary", TEXT, 0, OPS_SUMMARY, false, 0 };

	if (check_field(a, &field, summary) < 0)
		return -1;
	json_set_string(a->w->document, "summary", summary->valuestring);
	return 0;
}

static int take_questions(struct applier *a, const cJSON *list)
{
	static const struct field field = { "open_questions", TEXT, 1, OPS_SHORT, false, 0 };
	const cJSON *question;
	int count = 0;

	if (!cJSON_IsArray(list))
		return refuse(a, "'open_questions' is no list");
	cJSON_ArrayForEach(question, list)
		if (++count > OPS_QUESTIONS || check_field(a, &field, question) < 0)
			return count > OPS_QUESTIONS ? refuse(a, "'open_questions' has more than %d entries", OPS_QUESTIONS) : -1;
	json_set(a->w->document, "open_questions", cJSON_Duplicate(list, true));
	return 0;
}

static bool has_open_child(const struct world *w, long node)
{
	for (long i = w->nodes[node].first_child; i >= 0; i = w->nodes[i].next_sibling)
		if (w->nodes[i].status == NODE_OPEN || w->nodes[i].status == NODE_ACTIVE)
			return true;
	return false;
}

static int check_solved(struct applier *a, const cJSON *reply, long solved)
{
	static const struct field field = { "no_child_because", TEXT, 1, OPS_TEXT, false, 0 };
	const cJSON *because = json_get(reply, "no_child_because");

	if (solved < 0 || a->w->nodes[solved].status != NODE_CLOSED || has_open_child(a->w, solved))
		return 0;
	if (!because)
		return refuse(a, "the solved node '%s' has no open child and the reply does not say why (no_child_because)", a->w->nodes[solved].id);
	if (check_field(a, &field, because) < 0)
		return -1;
	json_set_string(a->w->nodes[solved].json, "no_child_because", because->valuestring);
	return 0;
}

static void count_outcome(struct applier *a, const char *what, int outcome, struct ops_result *result)
{
	if (outcome < 0) {
		world_refuse(a->w, a->slot, what, a->reason);
		result->refused++;
	}
}

void ops_apply(struct world *w, const cJSON *reply, int slot, int most_new, long solved, struct ops_result *result)
{
	struct applier a = { .w = w, .slot = slot, .left = most_new };
	const cJSON *op, *v;
	int number = 0;

	memset(result, 0, sizeof(*result));
	if ((v = json_get(reply, "summary")))
		count_outcome(&a, "summary", take_summary(&a, v), result);
	if ((v = json_get(reply, "open_questions")))
		count_outcome(&a, "open_questions", take_questions(&a, v), result);
	cJSON_ArrayForEach(op, json_get(reply, "ops")) {
		if (++number > OPS_MOST) {
			refuse(&a, "a reply has at most %d operations, the others are dropped", OPS_MOST);
			count_outcome(&a, "ops", -1, result);
			break;
		}
		if (apply_one(&a, op) == 0) {
			result->applied++;
		} else {
			log_refusal(&a, op);
			result->refused++;
		}
	}
	count_outcome(&a, "no_child_because", check_solved(&a, reply, solved), result);
	for (size_t i = 0; i < a.fresh_count; i++)
		result->usable += select_reachable(w, a.fresh[i]);
}
