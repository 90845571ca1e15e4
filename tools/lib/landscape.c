#include "landscape.h"

#include "hash.h"
#include "json.h"
#include "ops.h"
#include "strategy.h"
#include "util.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- chance ----------------------------------------------------------------------------------------------------- */

double chance_uniform(struct chance *c)
{
	uint64_t z = c->state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return (double)((z ^ (z >> 31)) >> 11) / 9007199254740992.0;
}

double chance_normal(struct chance *c)
{
	double u = 1 - chance_uniform(c), v = chance_uniform(c);

	return sqrt(-2 * log(u)) * cos(2 * M_PI * v);
}

static double between(struct chance *c, double low, double high)
{
	return low + (high - low) * chance_uniform(c);
}

/* ---- the landscape ---------------------------------------------------------------------------------------------- */

/* Of ten actions five are plain gains, two look good and lose, one is nearly nothing, and one loses but is what a large
 * gain, the tenth, needs. */
static void draw_actions(struct landscape_family *f, double scale, struct chance *c)
{
	for (int a = 0; a < LANDSCAPE_ACTIONS; a++) {
		struct landscape_action *x = &f->actions[a];

		x->looks = between(c, 0, 0.4);
		x->difficulty = 1 + (int)between(c, 0, 5);
		x->needs = -1;
		x->gain = scale * between(c, 0.02, 0.3);
		if (a < 2) {
			x->gain = -between(c, 0.02, 0.3);
			x->looks = between(c, 0.15, 0.45);
		} else if (a == 2) {
			x->gain = between(c, -0.01, 0.01);
		} else if (a == 3) {
			x->gain = -between(c, 0.05, 0.25);
		} else if (a == 4) {
			x->gain = scale * between(c, 0.4, 0.8);
			x->needs = 3;
		} else if (a > 6 && chance_uniform(c) < 0.5) {
			x->needs = 5 + (int)between(c, 0, 2);
		}
	}
}

static double optimum_of(const struct landscape *l)
{
	double best = 0;

	for (int f = 0; f < LANDSCAPE_FAMILIES; f++)
		for (unsigned applied = 0; applied < 1u << LANDSCAPE_ACTIONS; applied++) {
			struct program p = { .family = f, .applied = applied, .plain_done = 1 };

			for (int a = 0; a < LANDSCAPE_ACTIONS; a++)
				p.done[a] = 1;
			best = fmax(best, landscape_speed(l, &p));
		}
	return best;
}

void landscape_draw(struct landscape *l, uint64_t seed, double noise)
{
	struct chance c = { seed * 0xd1342543de82ef95u + 1 };

	for (int f = 0; f < LANDSCAPE_FAMILIES; f++) {
		struct landscape_family *x = &l->families[f];
		bool dead_end = chance_uniform(&c) < 0.3;

		x->plain = fmax(log(1.1), log(2.5) + 0.5 * chance_normal(&c));
		x->looks = log(2.5) + 0.5 * chance_normal(&c) + (dead_end ? 0.4 : 0);
		x->difficulty = 1 + (int)between(&c, 0, 4);
		draw_actions(x, dead_end ? 0.3 : 1, &c);
	}
	l->noise = noise;
	l->optimum = optimum_of(l);
}

double landscape_speed(const struct landscape *l, const struct program *p)
{
	const struct landscape_family *f = &l->families[p->family];
	double speed = f->plain * p->plain_done;

	for (int a = 0; a < LANDSCAPE_ACTIONS; a++) {
		const struct landscape_action *x = &f->actions[a];

		if (!(p->applied & 1u << a))
			continue;
		if (x->gain < 0)
			speed += x->gain;
		else if (x->needs < 0 || p->applied & 1u << x->needs)
			speed += x->gain * p->done[a];
	}
	return speed;
}

/* ---- the writer's programs -------------------------------------------------------------------------------------- */

void writer_init(struct writer *m, const struct landscape *l, double insight, uint64_t seed)
{
	memset(m, 0, sizeof(*m));
	m->landscape = l;
	m->insight = insight;
	m->chance.state = seed;
	for (int f = 0; f < LANDSCAPE_FAMILIES; f++) {
		m->believed_plain[f] = insight * l->families[f].plain + (1 - insight) * l->families[f].looks;
		for (int a = 0; a < LANDSCAPE_ACTIONS; a++)
			m->believed[f][a] = insight * l->families[f].actions[a].gain + (1 - insight) * l->families[f].actions[a].looks;
	}
}

void writer_release(struct writer *m)
{
	free(m->programs);
	memset(m, 0, sizeof(*m));
}

static size_t place_of(double round, double slot)
{
	return (size_t)round * WORLD_SLOTS + (size_t)slot;
}

const struct program *writer_program(const struct writer *m, const cJSON *kernel)
{
	const char *path = json_string(kernel, "kernel");
	unsigned round, slot;

	if (!path || sscanf(path, "../r%5u/s%2u/", &round, &slot) != 2 || place_of(round, slot) >= m->size)
		return NULL;
	return &m->programs[place_of(round, slot)];
}

static void keep(struct writer *m, const struct round *r, const cJSON *slot, const struct program *p)
{
	size_t place = place_of(json_number(r->plan, "round", 0), json_number(slot, "slot", 0));

	if (place >= m->size) {
		size_t size = 2 * place + WORLD_SLOTS;

		m->programs = xreallocarray(m->programs, size, sizeof(*m->programs));
		memset(m->programs + m->size, 0, (size - m->size) * sizeof(*m->programs));
		m->size = size;
	}
	m->programs[place] = *p;
}

/* ---- writing code ----------------------------------------------------------------------------------------------- */

static bool passes(struct writer *m, int difficulty, bool repair)
{
	static const double chances[] = { 0.92, 0.8, 0.62, 0.42, 0.25 };
	double p = chances[difficulty - 1];

	return chance_uniform(&m->chance) < (repair ? p + (1 - p) * 0.35 : p);
}

/* What an action is believed to add to this program by a writer who sees nothing but the code. */
static double first_sight(const struct writer *m, const struct program *p, int a)
{
	const struct landscape_action *x = &m->landscape->families[p->family].actions[a];
	double truth = x->gain;

	if (x->needs >= 0 && !(p->applied & 1u << x->needs))
		truth = 0;
	return m->insight * truth + (1 - m->insight) * x->looks;
}

/* An index, drawn with weights e^(value / heat); -1 if there is none. Values of -INFINITY are never drawn. */
static int draw_by_value(struct writer *m, const double *values, int count, double heat)
{
	double highest = -INFINITY, sum = 0, at;
	int last = -1;

	for (int i = 0; i < count; i++)
		highest = fmax(highest, values[i]);
	if (highest == -INFINITY)
		return -1;
	for (int i = 0; i < count; i++)
		sum += exp((values[i] - highest) / heat);
	at = chance_uniform(&m->chance) * sum;
	for (int i = 0; i < count; i++) {
		if (values[i] == -INFINITY)
			continue;
		last = i;
		if ((at -= exp((values[i] - highest) / heat)) < 0)
			break;
	}
	return last;
}

static void apply_action(struct writer *m, struct program *p, int a, bool repair)
{
	p->last = a;
	p->applied |= 1u << a;
	p->done[a] = between(&m->chance, 0.4, 0.9);
	p->passed = passes(m, m->landscape->families[p->family].actions[a].difficulty, repair);
}

static void begin_family(struct writer *m, struct program *p, int family, bool repair)
{
	*p = (struct program){ .family = family, .last = -1, .plain_done = between(&m->chance, 0.5, 0.9) };
	p->passed = passes(m, m->landscape->families[family].difficulty, repair);
}

/* Carry out better, or worse, what was worked on last; now and then the same code comes back. */
static void tune(struct writer *m, struct program *p)
{
	double *done = p->last < 0 ? &p->plain_done : &p->done[p->last];

	if (chance_uniform(&m->chance) < 0.04)
		return;
	*done = fmin(1, fmax(0, *done + (1 - *done) * between(&m->chance, -0.3, 0.6)));
	p->passed = chance_uniform(&m->chance) < 0.85;
}

static int choose_family(struct writer *m)
{
	double values[LANDSCAPE_FAMILIES];

	for (int f = 0; f < LANDSCAPE_FAMILIES; f++)
		values[f] = m->insight * m->landscape->families[f].plain + (1 - m->insight) * m->landscape->families[f].looks;
	return draw_by_value(m, values, LANDSCAPE_FAMILIES, 0.3);
}

/* One action of its own choice; what a faster kernel of the same family has applied looks better. */
static int choose_action(struct writer *m, const struct program *p, const struct program *const *others, int count)
{
	double values[LANDSCAPE_ACTIONS];

	for (int a = 0; a < LANDSCAPE_ACTIONS; a++) {
		values[a] = p->applied & 1u << a ? -INFINITY : first_sight(m, p, a);
		for (int i = 0; i < count; i++)
			if (others[i]->family == p->family && others[i]->applied & 1u << a &&
			    landscape_speed(m->landscape, others[i]) > landscape_speed(m->landscape, p))
				values[a] += 0.2;
	}
	return draw_by_value(m, values, LANDSCAPE_ACTIONS, 0.1);
}

/* A whole kernel at once: a family and up to four actions, all of which must come right. */
static void write_sample(struct writer *m, struct program *p)
{
	int actions = (int)between(&m->chance, 0, 5);
	bool passed;

	begin_family(m, p, choose_family(m), false);
	passed = p->passed;
	for (; actions > 0; actions--) {
		apply_action(m, p, choose_action(m, p, NULL, 0), false);
		passed = passed && p->passed;
	}
	p->passed = passed;
}

/* A change of a kernel without an intent from outside. */
static void write_change(struct writer *m, const cJSON *slot, struct program *p)
{
	const struct program *base = writer_program(m, json_get(slot, "base")), *failed = writer_program(m, json_get(slot, "last")), *others[EVOLVE_INSPIRATIONS];
	const cJSON *other;
	double what = chance_uniform(&m->chance);
	bool mend = failed && chance_uniform(&m->chance) < 0.5;
	int count = 0, a;

	if (!base) {
		begin_family(m, p, mend ? failed->family : choose_family(m), mend);
		return;
	}
	cJSON_ArrayForEach(other, json_get(slot, "others"))
		if (count < EVOLVE_INSPIRATIONS && writer_program(m, other))
			others[count++] = writer_program(m, other);
	*p = *base;
	a = mend && failed->family == p->family && failed->last >= 0 && !(p->applied & 1u << failed->last) ? failed->last : choose_action(m, p, others, count);
	if (what < 0.05)
		begin_family(m, p, choose_family(m), false);
	else if (what < 0.3 || a < 0)
		tune(m, p);
	else
		apply_action(m, p, a, mend && a == failed->last);
}

/* "f2" or "f2 a5" of a node's title. */
static void read_intent(const char *title, int *family, int *action)
{
	*action = -1;
	if (sscanf(title, "f%2d a%2d", family, action) < 1)
		*family = 0;
}

static void write_intent(struct writer *m, const struct round *r, const cJSON *slot, struct program *p)
{
	const char *mode = json_string(slot, "mode");
	const struct program *base = writer_program(m, json_get(slot, "base")), *parent = writer_program(m, json_get(slot, "parent"));
	int family, action;

	read_intent(node_title(&r->world.nodes[world_find(&r->world, json_string(slot, "node"))]), &family, &action);
	if (strcmp(mode, "improve") == 0) {
		*p = *base;
		tune(m, p);
	} else if (action < 0 || !parent) {
		begin_family(m, p, family, strcmp(mode, "debug") == 0);
	} else {
		*p = *parent;
		p->began = landscape_speed(m->landscape, parent);
		apply_action(m, p, action, strcmp(mode, "debug") == 0);
	}
}

/* As if it were the hash of the code: equal programs have equal ones. */
static void hash_program(const struct program *p, char hex[HASH_HEX + 1])
{
	double numbers[LANDSCAPE_ACTIONS + 4] = { p->family, p->applied, p->plain_done, p->passed };

	memcpy(numbers + 4, p->done, sizeof(p->done));
	hash_hex(numbers, sizeof(numbers), hex);
}

static cJSON *judge(struct writer *m, const struct round *r, const struct program *p)
{
	static const char *const failures[] = { "COMPILE_ERROR", "INCORRECT_NUMERICAL", "RUNTIME_ERROR" };
	const struct program *best = writer_program(m, json_get(r->plan, "best"));
	double speed = landscape_speed(m->landscape, p), measured = exp(speed + m->landscape->noise * chance_normal(&m->chance)), ratio;
	cJSON *bench = cJSON_CreateObject(), *versus;
	char hex[HASH_HEX + 1];

	hash_program(p, hex);
	json_set_string(bench, "source_sha256", hex);
	json_set_string(bench, "status", p->passed ? "PASSED" : failures[(int)between(&m->chance, 0, 3)]);
	json_set(bench, "score", p->passed ? cJSON_CreateNumber(100 * measured) : cJSON_CreateNull());
	json_set_number(bench, "noise", m->landscape->noise);
	if (p->passed && best && !world_is_paper(&r->world)) {
		ratio = speed - landscape_speed(m->landscape, best) + 0.2 * m->landscape->noise * chance_normal(&m->chance);
		versus = cJSON_CreateObject();
		json_set_string(versus, "verdict", ratio > 0.01 ? "better" : ratio < -0.01 ? "worse" : "equal");
		json_set(bench, "versus", versus);
	}
	return bench;
}

cJSON *writer_code(struct writer *m, const struct round *r, const cJSON *slot)
{
	const char *mode = json_string(slot, "mode");
	struct program p = { 0 };

	if (strcmp(mode, "sample") == 0)
		write_sample(m, &p);
	else if (strategy_is_single(&r->world))
		write_change(m, slot, &p);
	else
		write_intent(m, r, slot, &p);
	keep(m, r, slot, &p);
	return judge(m, r, &p);
}

/* ---- planning --------------------------------------------------------------------------------------------------- */

/* What a node may come to in the end: its parent's speed, what the action is believed to add, and half of what it makes
 * possible. A planner sees that much further than a writer. */
static double prospect(const struct writer *m, const struct program *parent, int family, int action)
{
	const struct landscape_family *f = &m->landscape->families[family];
	double speed, ahead = 0;

	if (action < 0)
		return m->believed_plain[family];
	speed = parent ? landscape_speed(m->landscape, parent) : m->believed_plain[family];
	for (int a = 0; a < LANDSCAPE_ACTIONS; a++)
		if (f->actions[a].needs == action && !(parent && parent->applied & 1u << a))
			ahead += m->insight * fmax(0, f->actions[a].gain);
	if (f->actions[action].needs >= 0 && !(parent && parent->applied & 1u << f->actions[action].needs))
		return speed + (1 - m->insight) * m->believed[family][action];
	return speed + m->believed[family][action] + 0.5 * ahead;
}

static double difficulty_of(const struct writer *m, int family, int action)
{
	return action < 0 ? m->landscape->families[family].difficulty : m->landscape->families[family].actions[action].difficulty;
}

static double best_speed(const struct world *w)
{
	double score = json_number(json_get(w->document, "best"), "score", 100);

	return log(fmax(score, 1) / 100);
}

/* V: how likely it is to pass, and what it promises beyond the best. */
static double value_of(const struct writer *m, const struct world *w, const struct program *parent, int family, int action)
{
	double gain = prospect(m, parent, family, action) - best_speed(w), easy = 1 - 0.12 * (difficulty_of(m, family, action) - 1);

	return fmin(1, fmax(0.01, easy / (1 + exp(-4 * gain))));
}

static cJSON *insert_op(const struct writer *m, const struct world *w, const char *under, const struct program *parent, int family, int action)
{
	cJSON *op = cJSON_CreateObject(), *body = cJSON_CreateObject();
	char *title = action < 0 ? xasprintf("f%d", family) : xasprintf("f%d a%d", family, action);

	json_set_string(op, "op", "insert_node");
	json_set_string(op, "parent", under);
	json_set_string(body, "title", title);
	json_set_number(body, "difficulty_1_to_5", difficulty_of(m, family, action));
	json_set_number(body, "score_0_to_1", value_of(m, w, parent, family, action));
	json_set_number(body, "expected_vs_baseline_factor", exp(prospect(m, parent, family, action)));
	json_set(op, "action", body);
	free(title);
	return op;
}

/* Is this family or action below a node already, pruned or not? */
static bool has_child(const struct world *w, long node, int family, int action)
{
	for (long i = w->nodes[node].first_child; i >= 0; i = w->nodes[i].next_sibling) {
		int f, a;

		read_intent(node_title(&w->nodes[i]), &f, &a);
		if (f == family && a == action)
			return true;
	}
	return false;
}

/* The most promising actions that a solved node has neither applied nor below it. Returns how many were added. */
static int add_children(const struct writer *m, const struct world *w, long node, int most, cJSON *ops)
{
	const struct program *p = writer_program(m, node_solution(&w->nodes[node]));
	int added = 0;
	unsigned used = 0;

	for (; p && added < most; added++) {
		double highest = -INFINITY;
		int chosen = -1;

		for (int a = 0; a < LANDSCAPE_ACTIONS; a++) {
			double value = prospect(m, p, p->family, a);

			if ((p->applied | used) & 1u << a || has_child(w, node, p->family, a) || value <= highest)
				continue;
			highest = value;
			chosen = a;
		}
		if (chosen < 0)
			break;
		used |= 1u << chosen;
		cJSON_AddItemToArray(ops, insert_op(m, w, w->nodes[node].id, p, p->family, chosen));
	}
	return added;
}

static int add_families(const struct writer *m, const struct world *w, int most, cJSON *ops)
{
	int added = 0;

	for (int f = 0; f < LANDSCAPE_FAMILIES && added < most; f++)
		if (!has_child(w, 0, f, -1)) {
			cJSON *op = insert_op(m, w, "root", NULL, f, -1);

			json_set_string(op, "as", json_string(json_get(op, "action"), "title"));
			cJSON_AddItemToArray(ops, op);
			added++;
		}
	return added;
}

/* Is this action that of the node or of one above it? */
static bool on_path(const struct world *w, long node, int action)
{
	for (; node > 0; node = w->nodes[node].parent) {
		int f, a;

		read_intent(node_title(&w->nodes[node]), &f, &a);
		if (a == action)
			return true;
	}
	return false;
}

/* The most promising action below a node without a kernel to look at, if it has not been put there. `under` names the
 * node in the reply; its index is 0 if it is to come by the same reply. */
static int add_unseen(const struct writer *m, const struct world *w, const char *under, long node, int family, cJSON *ops)
{
	double highest = -INFINITY;
	int chosen = -1;

	for (int a = 0; a < LANDSCAPE_ACTIONS; a++) {
		double value = prospect(m, NULL, family, a);

		if (on_path(w, node, a) || (node && has_child(w, node, family, a)) || value <= highest)
			continue;
		highest = value;
		chosen = a;
	}
	if (chosen < 0)
		return 0;
	cJSON_AddItemToArray(ops, insert_op(m, w, under, NULL, family, chosen));
	return 1;
}

/* As many nodes as the planner likes to put down ahead of measurements: in the first tree below its families, later
 * below nodes that are being worked on. */
static int add_ahead(const struct writer *m, const struct world *w, int most, cJSON *ops)
{
	int added = 0;

	for (int f = 0; w->count == 1 && f < LANDSCAPE_FAMILIES && added < most; f++) {
		char *under = xasprintf("$f%d", f);

		added += add_unseen(m, w, under, 0, f, ops);
		free(under);
	}
	for (long i = 1; i < (long)w->count && added < most; i++) {
		int family, action;

		read_intent(node_title(&w->nodes[i]), &family, &action);
		if (w->nodes[i].status == NODE_ACTIVE)
			added += add_unseen(m, w, w->nodes[i].id, i, family, ops);
	}
	return added;
}

/* What was measured is believed, nearly. */
static void learn(struct writer *m, const struct world *w, const char *id)
{
	const struct node *node = &w->nodes[world_find(w, id)];
	const struct program *p = writer_program(m, node_solution(node));
	double measured = log(json_number(node_solution(node), "score", 100) / 100);
	int family, action;

	if (!p)
		return;
	read_intent(node_title(node), &family, &action);
	if (action < 0)
		m->believed_plain[family] = measured;
	else
		m->believed[family][action] = 0.2 * m->believed[family][action] + 0.8 * (measured - p->began);
}

/* Every open node's priority in the light of what is known now. Failures that the machine's rules do not count are seen
 * in proportion to the insight. */
static void score_anew(const struct writer *m, const struct world *w, cJSON *ops)
{
	for (size_t i = 1; i < w->count && cJSON_GetArraySize(ops) < OPS_MOST; i++) {
		const struct node *node = &w->nodes[i];
		const struct program *parent = writer_program(m, node_solution(&w->nodes[node->parent]));
		double failed = 1 - pow(0.5, json_number(node->json, "failed_cycles", 0));
		cJSON *op, *set, *action;
		int f, a;

		if (node->status != NODE_OPEN)
			continue;
		read_intent(node_title(node), &f, &a);
		op = cJSON_CreateObject();
		set = cJSON_CreateObject();
		action = cJSON_CreateObject();
		json_set_number(action, "score_0_to_1", value_of(m, w, parent, f, a) * (1 - failed * (world_is_paper(w) ? m->insight : 1)));
		json_set_string(op, "op", "update_node");
		json_set_string(op, "node", node->id);
		json_set(set, "action", action);
		json_set(op, "set", set);
		cJSON_AddItemToArray(ops, op);
	}
}

static void add_anywhere(const struct writer *m, const struct world *w, int most, cJSON *ops)
{
	int added = add_families(m, w, most, ops);

	for (size_t i = 1; i < w->count && added < most; i++)
		if (node_solution(&w->nodes[i]) && w->nodes[i].status == NODE_CLOSED)
			added += add_children(m, w, (long)i, most - added, ops);
}

cJSON *writer_tree(struct writer *m, const struct world *w, const struct round *r, int slot, enum round_asks asks)
{
	const cJSON *ended = r ? r->reports[slot].ended : NULL;
	cJSON *reply = cJSON_CreateObject(), *tree = cJSON_CreateObject(), *ops = cJSON_CreateArray();
	struct buf text;

	if (!r) {
		add_families(m, w, OPS_NEW_FIRST - m->ahead, ops);
		add_ahead(m, w, m->ahead, ops);
	} else if (asks == ROUND_ASKS_REFILL) {
		add_anywhere(m, w, OPS_NEW_FIRST - add_ahead(m, w, m->ahead, ops), ops);
	} else {
		learn(m, w, json_string(ended, "node"));
		if (strcmp(json_string(ended, "outcome"), "closed") == 0 &&
		    add_children(m, w, world_find(w, json_string(ended, "node")), OPS_NEW_CYCLE, ops) == 0)
			json_set_string(tree, "no_child_because", "every action was applied or tried");
		score_anew(m, w, ops);
	}
	json_set(tree, "ops", ops);
	buf_init(&text, JSON_MAX_BYTES);
	json_print_compact(tree, &text);
	json_set_string(reply, "status", "answered");
	json_set_string(reply, "cue", !r ? "init/0" : asks == ROUND_ASKS_REFILL ? "refill/1" : "edit/x/1");
	json_set_string(reply, "text", text.data);
	buf_release(&text);
	cJSON_Delete(tree);
	return reply;
}
