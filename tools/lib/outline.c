#include "outline.h"

#include "json.h"
#include "text.h"
#include "util.h"
#include "world.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
	LINE_MAX_TITLE = 100,
	FOLD_LINE = 110,    /* most bytes of a line that counts what is left out */
	MAX_INDENT = 12,    /* levels; deeper nodes are not indented further */
	NODE_TEXT = 3000,   /* most bytes of one text of a node in full */
	PASSES = 4,
};

const cJSON *outline_find(const cJSON *world, const char *id)
{
	const cJSON *node;

	cJSON_ArrayForEach(node, json_get(world, "nodes"))
		if (strcmp(json_string(node, "id"), id) == 0)
			return node;
	return NULL;
}

void outline_factor(double factor, struct buf *out)
{
	buf_printf(out, factor < 10 ? "%.2fx" : factor < 100 ? "%.1fx" : "%.0fx", factor);
}

static double node_score(const cJSON *node)
{
	return json_number(json_get(node, "solution"), "score", -1);
}

static double node_value(const cJSON *node)
{
	return json_number(json_get(node, "action"), "score_0_to_1", 0);
}

static void append_state(const cJSON *node, struct buf *out)
{
	const cJSON *action = json_get(node, "action"), *solution = json_get(node, "solution");
	double expected = json_number(action, "expected_vs_baseline_factor", -1);
	int attempts = (int)json_number(node, "attempts", 0), failed = (int)json_number(node, "failed_cycles", 0);

	buf_puts(out, json_string(node, "status"));
	if (cJSON_IsObject(solution)) {
		buf_putc(out, ' ');
		outline_factor(node_score(node) / 100, out);
	} else {
		buf_printf(out, " V=%.2f", node_value(node));
	}
	if (expected >= 0) {
		buf_puts(out, ", expected ");
		outline_factor(expected, out);
	}
	buf_printf(out, ", difficulty %g", json_number(action, "difficulty_1_to_5", 0));
	if (attempts)
		buf_printf(out, ", %d attempt%s", attempts, attempts == 1 ? "" : "s");
	if (failed)
		buf_printf(out, ", %d failed cycle%s", failed, failed == 1 ? "" : "s");
}

static void append_line(const cJSON *node, struct buf *out)
{
	const char *why = json_string(node, "pruned_because");

	buf_printf(out, "- %s [", json_string(node, "id"));
	append_state(node, out);
	buf_puts(out, "] ");
	text_line(out, json_string(json_get(node, "action"), "title"), LINE_MAX_TITLE);
	if (why && strcmp(json_string(node, "status"), "pruned") == 0) {
		buf_puts(out, " (pruned: ");
		text_line(out, why, LINE_MAX_TITLE);
		buf_putc(out, ')');
	}
	buf_putc(out, '\n');
}

/* ---- choosing what fits ----------------------------------------------------------------------------------------- */

struct entry {
	long index;
	int class;    /* smaller is more use */
	double value; /* within a class, larger is more use */
	size_t line, length; /* its line in the outline's lines */
	size_t cost;
	bool chosen;
};

struct outline {
	struct world w;
	struct entry *entries; /* one a node, by index */
	struct buf lines;      /* of all nodes */
	long focus, best;
};

static int entry_class(const struct outline *o, long i)
{
	if (i == o->focus || i == o->best)
		return 0;
	switch (o->w.nodes[i].status) {
	case NODE_ACTIVE:
		return 1;
	case NODE_OPEN:
		return 2;
	case NODE_CLOSED:
		return 3;
	default:
		return 4;
	}
}

static void fill_entries(struct outline *o)
{
	buf_init(&o->lines, JSON_MAX_BYTES);
	for (long i = 0; i < (long)o->w.count; i++) {
		const struct node *node = &o->w.nodes[i];
		struct entry *e = &o->entries[i];

		e->index = i;
		e->class = entry_class(o, i);
		e->value = e->class == 2 ? node_value(node->json) : e->class == 3 ? json_number(json_get(node->json, "solution"), "round", 0) : (double)i;
		e->line = o->lines.len;
		append_line(node->json, &o->lines);
		e->length = o->lines.len - e->line;
		e->cost = e->length + 2 * MAX_INDENT + (node->first_child >= 0 ? FOLD_LINE : 0);
	}
}

static int compare_entries(const void *a, const void *b)
{
	const struct entry *x = *(const struct entry *const *)a, *y = *(const struct entry *const *)b;

	if (x->class != y->class)
		return x->class < y->class ? -1 : 1;
	if (x->value != y->value)
		return x->value > y->value ? -1 : 1;
	return x->index < y->index ? -1 : 1;
}

/* Choose a node and its ancestors if they fit into what is left. */
static void choose(struct outline *o, long i, size_t *left)
{
	size_t cost = 0;

	for (long j = i; j >= 0 && !o->entries[j].chosen && cost <= *left; j = o->w.nodes[j].parent)
		cost += o->entries[j].cost;
	if (cost > *left)
		return;
	*left -= cost;
	for (long j = i; j >= 0 && !o->entries[j].chosen; j = o->w.nodes[j].parent)
		o->entries[j].chosen = true;
}

/* Choose as many as fit into what is left, the most useful first. */
static void choose_all(struct outline *o, size_t left)
{
	struct entry **order = xreallocarray(NULL, o->w.count, sizeof(*order));

	for (size_t i = 0; i < o->w.count; i++)
		order[i] = &o->entries[i];
	qsort(order, o->w.count, sizeof(*order), compare_entries);
	for (size_t i = 0; i < o->w.count; i++)
		choose(o, order[i]->index, &left);
	free(order);
}

/* ---- printing --------------------------------------------------------------------------------------------------- */

struct count {
	long nodes, open, closed, pruned;
	double best;
};

static void count_hidden(const struct outline *o, long top, struct count *count)
{
	for (long i = top; i >= 0; i = world_next_below(&o->w, i, top)) {
		enum node_status status = o->w.nodes[i].status;

		count->nodes++;
		count->open += status == NODE_OPEN || status == NODE_ACTIVE;
		count->closed += status == NODE_CLOSED;
		count->pruned += status == NODE_PRUNED;
		if (node_score(o->w.nodes[i].json) > count->best)
			count->best = node_score(o->w.nodes[i].json);
	}
}

static void print_fold(const struct count *count, int indent, struct buf *out)
{
	buf_printf(out, "%*s- (%ld more: %ld open, %ld closed, %ld pruned", 2 * indent, "", count->nodes, count->open, count->closed, count->pruned);
	if (count->best >= 0) {
		buf_puts(out, "; fastest ");
		outline_factor(count->best / 100, out);
	}
	buf_puts(out, ")\n");
}

static int depth_of(const struct outline *o, long i)
{
	int depth = 0;

	for (long p = o->w.nodes[i].parent; p > 0 && depth < MAX_INDENT; p = o->w.nodes[p].parent)
		depth++;
	return depth;
}

/* The chosen nodes are a tree that starts at the root; its depth is bounded by the ceiling. */
static void print_below(const struct outline *o, long parent, struct buf *out)
{
	struct count hidden = { .best = -1 };
	int depth = 0;

	for (long i = o->w.nodes[parent].first_child; i >= 0; i = o->w.nodes[i].next_sibling) {
		depth = depth_of(o, i);
		if (!o->entries[i].chosen) {
			count_hidden(o, i, &hidden);
			continue;
		}
		buf_printf(out, "%*s", 2 * depth, "");
		buf_add(out, o->lines.data + o->entries[i].line, o->entries[i].length);
		print_below(o, i, out);
	}
	if (hidden.nodes)
		print_fold(&hidden, depth, out);
}

/* An index over a document that somebody else owns. */
static int borrow(struct world *w, const cJSON *world, struct error *err)
{
	return world_adopt(w, cJSON_CreateObjectReference(world->child), err);
}

int outline_tree(const cJSON *world, const char *focus, size_t ceiling, struct buf *out, struct error *err)
{
	const char *best = json_string(json_get(world, "best"), "node");
	struct outline o;
	struct buf text;

	if (borrow(&o.w, world, err) < 0)
		return -1;
	o.focus = focus ? world_find(&o.w, focus) : -1;
	o.best = best ? world_find(&o.w, best) : -1;
	o.entries = xcalloc(o.w.count, sizeof(*o.entries));
	fill_entries(&o);
	buf_init(&text, JSON_MAX_BYTES);
	/* Lines are reckoned too long, for they may be followed by one that counts what is hidden: what is left over is used. */
	for (int pass = 0; pass < PASSES && text.len < ceiling; pass++) {
		choose_all(&o, ceiling - text.len);
		buf_clear(&text);
		print_below(&o, 0, &text);
	}
	buf_puts(out, o.w.count > 1 ? text.data : "(The tree is empty: there is only the root.)\n");
	buf_release(&text);
	buf_release(&o.lines);
	free(o.entries);
	world_release(&o.w);
	return 0;
}

/* ---- nodes in full ---------------------------------------------------------------------------------------------- */

static void append_text(const char *label, const char *text, struct buf *out)
{
	char *excerpt;

	if (!text || !*text)
		return;
	excerpt = text_excerpt(text, NODE_TEXT);
	buf_printf(out, "%s: %s\n", label, excerpt);
	free(excerpt);
}

static void append_impacts(const cJSON *impacts, struct buf *out)
{
	const cJSON *impact;

	cJSON_ArrayForEach(impact, impacts) {
		const char *risk = json_string(impact, "risk"), *notes = json_string(impact, "notes");

		buf_puts(out, "Impact on ");
		text_line(out, impact->string, 60);
		buf_printf(out, ": %g of 10", json_number(impact, "rating_0_to_10", 0));
		if (risk && *risk) {
			buf_puts(out, "; risk: ");
			text_line(out, risk, 300);
		}
		if (notes && *notes) {
			buf_puts(out, "; ");
			text_line(out, notes, 300);
		}
		buf_putc(out, '\n');
	}
}

void outline_node(const cJSON *node, struct buf *out)
{
	const cJSON *action = json_get(node, "action");

	buf_printf(out, "Node: %s [", json_string(node, "id"));
	append_state(node, out);
	buf_puts(out, "]\n");
	append_text("Title", json_string(action, "title"), out);
	append_text("Decision", json_string(node, "decision"), out);
	append_text("Choice", json_string(node, "choice"), out);
	append_text("Description", json_string(action, "description"), out);
	append_text("Rationale", json_string(action, "rationale"), out);
	append_impacts(json_get(node, "impacts"), out);
	append_text("Notes", json_string(node, "notes"), out);
}

int outline_path(const cJSON *world, const char *id, size_t ceiling, struct buf *out, struct error *err)
{
	struct buf path, node;
	struct world w;
	char *text, *excerpt;
	long i;

	if (borrow(&w, world, err) < 0)
		return -1;
	buf_init(&path, JSON_MAX_BYTES);
	buf_init(&node, JSON_MAX_BYTES);
	i = world_find(&w, id);
	for (i = i < 0 ? -1 : w.nodes[i].parent; i >= 0 && w.nodes[i].parent >= 0; i = w.nodes[i].parent) {
		buf_clear(&node);
		outline_node(w.nodes[i].json, &node);
		if (path.len)
			buf_putc(&node, '\n');
		buf_add(&node, path.data, path.len);
		text = buf_take(&node);
		buf_clear(&path);
		buf_puts(&path, text);
		free(text);
		if (path.len > 4 * ceiling)
			break;
	}
	excerpt = text_excerpt(path.data, ceiling);
	buf_puts(out, path.len ? excerpt : "(The parent is the root: this intent starts a kernel family of its own.)\n");
	free(excerpt);
	buf_release(&node);
	buf_release(&path);
	world_release(&w);
	return 0;
}
