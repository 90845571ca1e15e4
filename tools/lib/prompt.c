#include "prompt.h"

#include "evidence.h"
#include "json.h"
#include "outline.h"
#include "prompt_parts.h"
#include "text.h"
#include "util.h"
#include "world.h"

#include <stdlib.h>
#include <string.h>

enum { REFUSED_SHOWN = 8, TRAJECTORY_TABLES = 3, TIMES_SHOWN = 8 };

static void take(struct parts *parts, const char *name, struct buf *b, size_t ceiling)
{
	parts_take(parts, name, text_excerpt(b->data, ceiling));
	buf_release(b);
}

/* The parts are only needed until the request is made. */
static cJSON *finish(struct parts *parts, const struct prompt_source *source, int status, const char *template, const char *cue, struct error *err)
{
	cJSON *request = status == 0 ? parts_request(parts, source, template, cue, err) : NULL;

	parts_release(parts);
	return request;
}

/* ---- kernels and verdicts --------------------------------------------------------------------------------------- */

/* The three files of an attempt. */
struct files {
	char *kernel, *build, *bench;
};

static void files_release(struct files *files)
{
	free(files->kernel);
	free(files->build);
	free(files->bench);
}

/* From a kernel object of plan.json. */
static struct files planned_files(const cJSON *kernel, const char *round_folder)
{
	return (struct files){
		.kernel = xasprintf("%s/%s", round_folder, json_string(kernel, "kernel")),
		.build = xasprintf("%s/%s", round_folder, json_string(kernel, "build")),
		.bench = xasprintf("%s/%s", round_folder, json_string(kernel, "bench")),
	};
}

/* From an attempt record of world.json. */
static struct files attempt_files(const cJSON *attempt, const char *round_folder, const char *language)
{
	char *folder = xasprintf("%s/../r%05d/s%d", round_folder, (int)json_number(attempt, "round", 0), (int)json_number(attempt, "slot", 0));
	struct files files = {
		.kernel = xasprintf("%s/kernel.%s", folder, strcmp(language, "cuda") == 0 ? "cu" : "c"),
		.build = xasprintf("%s/build.json", folder),
		.bench = xasprintf("%s/bench.json", folder),
	};

	free(folder);
	return files;
}

/* Values NAME_code and NAME_evidence for a kernel of the plan; a sentence in place of both if there is none. */
static int take_kernel(struct parts *parts, const cJSON *kernel, const char *round_folder, const char *code_name, const char *evidence_name,
		       const char *none, struct error *err)
{
	struct buf code, evidence;
	struct files files;
	int status = 0;

	buf_init(&code, JSON_MAX_BYTES);
	buf_init(&evidence, JSON_MAX_BYTES);
	if (cJSON_IsObject(kernel)) {
		files = planned_files(kernel, round_folder);
		status = evidence_code(files.kernel, parts_language(parts), &code, err);
		if (status == 0)
			status = evidence_verdict(files.build, files.bench, &evidence, err);
		files_release(&files);
	} else {
		buf_printf(&code, "(%s)\n", none);
		buf_puts(&evidence, "(Nothing was measured.)\n");
	}
	take(parts, code_name, &code, JSON_MAX_BYTES);
	take(parts, evidence_name, &evidence, JSON_MAX_BYTES);
	return status;
}

static bool is_active(const cJSON *node)
{
	return node && strcmp(json_string(node, "status"), "active") == 0;
}

/* The value parent: the parent's kernel and verdict, or that there is none. */
static int take_parent(struct parts *parts, const cJSON *world, const cJSON *parent, const char *round_folder, struct error *err)
{
	struct files files;
	struct buf b;
	int status = 0;

	buf_init(&b, JSON_MAX_BYTES);
	if (cJSON_IsObject(parent)) {
		files = planned_files(parent, round_folder);
		buf_printf(&b, is_active(outline_find(world, json_string(parent, "node"))) ?
			   "The best kernel so far of the parent, node %s, which is still being worked on; it has passed.\n\n" :
			   "The kernel of the parent, node %s; it has passed.\n\n", json_string(parent, "node"));
		status = evidence_code(files.kernel, parts_language(parts), &b, err);
		buf_putc(&b, '\n');
		if (status == 0)
			status = evidence_verdict(files.build, files.bench, &b, err);
		files_release(&files);
	} else {
		buf_puts(&b, "There is none: the parent is the task itself, so this kernel is written from the beginning.\n");
	}
	take(parts, "parent", &b, JSON_MAX_BYTES);
	return status;
}

static bool same_kernel(const cJSON *a, const cJSON *b)
{
	return cJSON_IsObject(a) && cJSON_IsObject(b) && strcmp(json_string(a, "kernel"), json_string(b, "kernel")) == 0;
}

/* One line an attempt: "attempt 3 (improve): PASSED, 12.3x". */
static void append_attempt(const cJSON *attempt, struct buf *out)
{
	const cJSON *score = json_get(attempt, "score");

	buf_printf(out, "attempt %d (%s): ", (int)json_number(attempt, "attempt", 0), json_string(attempt, "mode"));
	text_line(out, json_string(attempt, "status"), 40);
	if (cJSON_IsNumber(score)) {
		buf_puts(out, ", ");
		outline_factor(score->valuedouble / 100, out);
	}
	buf_putc(out, '\n');
}

static void take_attempts(struct parts *parts, const cJSON *attempts)
{
	const cJSON *attempt;
	struct buf b;

	buf_init(&b, JSON_MAX_BYTES);
	cJSON_ArrayForEach(attempt, attempts) {
		buf_puts(&b, "- ");
		append_attempt(attempt, &b);
	}
	if (b.len == 0)
		buf_puts(&b, "(none)\n");
	take(parts, "attempts", &b, PART_ATTEMPTS);
}

static void take_number(struct parts *parts, const char *name, double value)
{
	parts_take(parts, name, xasprintf("%.0f", value));
}

static int take_node(struct parts *parts, const cJSON *world, const cJSON *node, struct error *err)
{
	struct buf b;
	int status;

	buf_init(&b, JSON_MAX_BYTES);
	outline_node(node, &b);
	take(parts, "intent", &b, PART_INTENT);
	parts_copy(parts, "node", json_string(node, "id"));
	buf_init(&b, JSON_MAX_BYTES);
	status = outline_path(world, json_string(node, "id"), PART_PATH, &b, err);
	take(parts, "path", &b, PART_PATH);
	return status;
}

/* ---- first tree ------------------------------------------------------------------------------------------------- */

static int take_operations(struct parts *parts, const struct prompt_source *source, int most_new, struct error *err)
{
	struct buf b;
	int status;

	take_number(parts, "max_new", most_new);
	buf_init(&b, PROMPT_MAX_BYTES);
	status = template_fill(source->prompts, "parts/operations.md", parts->values, &b, err);
	if (status == 0)
		parts_take(parts, "operations", buf_take(&b));
	buf_release(&b);
	return status;
}

cJSON *prompt_first_tree(const struct prompt_source *source, struct error *err)
{
	struct parts parts = { 0 };
	int status = parts_common(&parts, source, err);

	if (status == 0)
		status = take_operations(&parts, source, PROMPT_MAX_NEW_FIRST, err);
	return finish(&parts, source, status, "first.md", "init/0", err);
}

/* ---- code ------------------------------------------------------------------------------------------------------- */

static const cJSON *find_slot(const cJSON *plan, int slot)
{
	const cJSON *s;

	cJSON_ArrayForEach(s, json_get(plan, "slots"))
		if ((int)json_number(s, "slot", -1) == slot)
			return s;
	return NULL;
}

static int check_slot(const cJSON *plan, int slot, const cJSON *world, const cJSON **s, const cJSON **node, struct error *err)
{
	*s = find_slot(plan, slot);
	if (!*s)
		return error_set(err, KM_EXIT_USAGE, "the plan has no slot %d", slot);
	if (json_get(*s, "skip"))
		return 0;
	if (!json_string(*s, "node") || !json_string(*s, "mode") || json_number(*s, "attempt", 0) < 1)
		return error_set(err, KM_EXIT_INPUT, "slot %d of the plan has no node, mode or attempt", slot);
	*node = outline_find(world, json_string(*s, "node"));
	if (!*node)
		return error_set(err, KM_EXIT_INPUT, "slot %d of the plan names the node '%s', which the world does not have", slot, json_string(*s, "node"));
	return 0;
}

/* The value inspirations: other kernels of the search with their verdicts. */
static int take_inspirations(struct parts *parts, const cJSON *others, const char *round_folder, struct error *err)
{
	const cJSON *other;
	struct buf b;
	int status = 0;

	buf_init(&b, JSON_MAX_BYTES);
	cJSON_ArrayForEach(other, others) {
		struct files files;

		if (!cJSON_IsObject(other) || status < 0)
			continue;
		files = planned_files(other, round_folder);
		buf_printf(&b, "Node %s; it has passed.\n\n", json_string(other, "node"));
		status = evidence_code(files.kernel, parts_language(parts), &b, err);
		buf_putc(&b, '\n');
		if (status == 0)
			status = evidence_verdict(files.build, files.bench, &b, err);
		files_release(&files);
	}
	if (b.len == 0)
		buf_puts(&b, "(No other kernel has passed yet.)\n");
	take(parts, "inspirations", &b, PART_INSPIRATIONS);
	return status;
}

/* The modes of the strategies that have no tree: the kernel to change, what went wrong with its last change, others. */
static int take_kernels_single(struct parts *parts, const cJSON *world, const cJSON *s, const char *round_folder, struct error *err)
{
	int status = take_parent(parts, world, json_get(s, "parent"), round_folder, err);

	if (status == 0)
		status = take_kernel(parts, json_get(s, "last"), round_folder, "last_code", "last_evidence", "The last change of it passed, or there was none.", err);
	return status == 0 ? take_inspirations(parts, json_get(s, "others"), round_folder, err) : -1;
}

/* The kernels that a mode shows: the parent's always, the last attempt's when something went before, and the cycle's
 * best when there is one to improve. Two kernels at most. */
static int take_kernels(struct parts *parts, const cJSON *world, const cJSON *s, const char *round_folder, struct error *err)
{
	const cJSON *parent = json_get(s, "parent"), *base = json_get(s, "base"), *last = json_get(s, "last");
	const char *mode = json_string(s, "mode");
	int status = 0;

	if (strcmp(mode, "sample") == 0 || strcmp(mode, "climb") == 0 || strcmp(mode, "evolve") == 0)
		return take_kernels_single(parts, world, s, round_folder, err);
	if (strcmp(mode, "improve") != 0)
		status = take_parent(parts, world, parent, round_folder, err);
	if (status == 0 && strcmp(mode, "debug") == 0)
		status = take_kernel(parts, last, round_folder, "last_code", "last_evidence", "The last attempt left no code.", err);
	if (status == 0 && strcmp(mode, "improve") == 0)
		status = take_kernel(parts, base, round_folder, "base_code", "base_evidence", "There is no kernel of this cycle.", err);
	if (status == 0 && strcmp(mode, "improve") == 0)
		status = take_kernel(parts, same_kernel(base, last) ? NULL : last, round_folder, "last_code", "last_evidence",
				     "The last attempt is the best one, shown above.", err);
	return status;
}

/* Of the kernel that the plan calls the parent. */
static void take_parent_factor(struct parts *parts, const cJSON *world, const cJSON *node, const cJSON *planned)
{
	const cJSON *parent = json_string(node, "parent") ? outline_find(world, json_string(node, "parent")) : NULL;
	bool early = is_active(parent) && cJSON_IsObject(planned);
	const cJSON *start = early ? cycle_attempt(json_get(parent, "cycle"), json_number(planned, "attempt", 0)) : json_get(parent, "solution");
	double score = json_number(start, "score", -1);
	struct buf b;

	buf_init(&b, 100);
	if (score >= 0) {
		outline_factor(score / 100, &b);
		buf_puts(&b, early ? " the baseline's so far, and it is still being worked on" : " the baseline's");
	} else {
		buf_puts(&b, "there is no parent kernel, the parent is the task itself");
	}
	parts_take(parts, "parent_factor", buf_take(&b));
	buf_release(&b);
}

cJSON *prompt_code(const struct prompt_source *source, const cJSON *world, const cJSON *plan, int slot, const char *round_folder, struct error *err)
{
	const cJSON *s, *node = NULL;
	struct parts parts = { 0 };
	char *cue, *template;
	cJSON *request;
	int status;

	if (check_slot(plan, slot, world, &s, &node, err) < 0)
		return NULL;
	if (!node) {
		request = cJSON_CreateObject();
		json_set_string(request, "skip", json_string(s, "skip"));
		return request;
	}
	status = parts_common(&parts, source, err);
	if (status == 0)
		status = parts_world(&parts, world, json_string(node, "id"), err);
	if (status == 0)
		status = take_node(&parts, world, node, err);
	if (status == 0)
		status = take_kernels(&parts, world, s, round_folder, err);
	take_parent_factor(&parts, world, node, json_get(s, "parent"));
	take_attempts(&parts, json_get(json_get(node, "cycle"), "attempts"));
	take_number(&parts, "cycle_attempt", json_number(s, "cycle_attempt", 1));
	take_number(&parts, "k", json_number(json_get(world, "settings"), "k", 1));
	cue = xasprintf("code/%s/%.0f", json_string(node, "id"), json_number(s, "attempt", 1));
	if (json_get(s, "sample")) {
		char *attempt = cue;

		cue = xasprintf("%s/%.0f", attempt, json_number(s, "sample", 1));
		free(attempt);
	}
	template = xasprintf("%s.md", json_string(s, "mode"));
	request = finish(&parts, source, status, template, cue, err);
	free(template);
	free(cue);
	return request;
}

/* ---- edit and refill -------------------------------------------------------------------------------------------- */

/* Operations of the latest round that were refused, with the reasons. */
static void take_refused(struct parts *parts, const cJSON *world)
{
	const cJSON *list = json_get(world, "refused"), *refused;
	double latest = -1;
	struct buf b;
	int shown = 0;

	cJSON_ArrayForEach(refused, list)
		if (json_number(refused, "round", 0) > latest)
			latest = json_number(refused, "round", 0);
	buf_init(&b, JSON_MAX_BYTES);
	cJSON_ArrayForEach(refused, list) {
		if (json_number(refused, "round", 0) < latest || shown == REFUSED_SHOWN)
			continue;
		shown++;
		buf_puts(&b, "- ");
		text_line(&b, json_string(refused, "op"), 160);
		buf_puts(&b, ": ");
		text_line(&b, json_string(refused, "reason"), 200);
		buf_putc(&b, '\n');
	}
	if (shown == 0)
		buf_puts(&b, "(none)\n");
	take(parts, "refused", &b, PART_REFUSED);
}

struct frontier {
	int open, promising;
};

static struct frontier count_frontier(const cJSON *world)
{
	struct frontier f = { 0 };
	const cJSON *node;

	cJSON_ArrayForEach(node, json_get(world, "nodes")) {
		if (strcmp(json_string(node, "status"), "open") != 0)
			continue;
		f.open++;
		f.promising += json_number(json_get(node, "action"), "score_0_to_1", 0) > PROMPT_THIN_SCORE;
	}
	return f;
}

static void take_frontier(struct parts *parts, const cJSON *world)
{
	struct frontier f = count_frontier(world);

	if (f.open == 0)
		parts_copy(parts, "frontier", "The frontier is empty: there is no open node left to try. Insert new nodes, whole kernel families under \"root\" among them.\n");
	else if (f.promising < PROMPT_THIN_NODES)
		parts_take(parts, "frontier",
			   xasprintf("The frontier is thin: of %d open nodes only %d have a score above %.1f. Insert nodes that deserve a high score, "
				     "or raise the score of open ones that the measurements speak for.\n", f.open, f.promising, PROMPT_THIN_SCORE));
	else
		parts_take(parts, "frontier", xasprintf("%d nodes are open, %d of them with a score above %.1f.\n", f.open, f.promising, PROMPT_THIN_SCORE));
}

/* Open nodes below one that is being worked on start from the kernel that its cycle ends with, so not before; under
 * POLICY=eager before, but last. */
static void take_waiting(struct parts *parts, const cJSON *world)
{
	const char *active[WORLD_SLOTS];
	bool eager = strcmp(json_string(json_get(world, "settings"), "policy"), "eager") == 0;
	int working = 0, waiting = 0;
	const cJSON *node;

	cJSON_ArrayForEach(node, json_get(world, "nodes"))
		if (is_active(node) && working < WORLD_SLOTS)
			active[working++] = json_string(node, "id");
	cJSON_ArrayForEach(node, json_get(world, "nodes")) {
		const char *parent = json_string(node, "parent");

		for (int i = 0; i < working && parent && strcmp(json_string(node, "status"), "open") == 0; i++)
			waiting += strcmp(active[i], parent) == 0;
	}
	if (waiting && eager)
		parts_take(parts, "waiting",
			   xasprintf("%d of the open nodes stand below nodes that are being worked on: they are tried when nothing else is left for a slot "
				     "and a kernel of their parent has passed. What is to be tried first belongs under the root or below a closed node.\n", waiting));
	else if (waiting)
		parts_take(parts, "waiting",
			   xasprintf("%d of the open nodes wait: they start from the kernel with which the cycle of their parent will end. "
				     "What is to be tried at once belongs under the root or below a closed node.\n", waiting));
	else
		parts_copy(parts, "waiting", "");
}

/* The record of a node's best kernel: what it was closed with, or the best attempt of the cycle so far; NULL if none has passed. */
static const cJSON *best_attempt(const cJSON *node)
{
	const cJSON *cycle = json_get(node, "cycle"), *best = json_get(cycle, "best"), *solution = json_get(node, "solution"), *attempt;

	if (cJSON_IsObject(solution))
		return solution;
	cJSON_ArrayForEach(attempt, json_get(cycle, "attempts"))
		if (cJSON_IsNumber(best) && json_number(attempt, "attempt", 0) == best->valuedouble)
			return attempt;
	return NULL;
}

/* The fastest kernels, one a node, with their times side by side: one workload's gain is another family's. */
static int take_times(struct parts *parts, const cJSON *world, const char *round_folder, struct error *err)
{
	const cJSON *shown[TIMES_SHOWN], *nodes[TIMES_SHOWN], *node;
	struct buf b;
	int count = 0, status = 0;

	cJSON_ArrayForEach(node, json_get(world, "nodes")) {
		const cJSON *attempt = best_attempt(node);
		int at = count < TIMES_SHOWN ? count : TIMES_SHOWN;

		while (attempt && at > 0 && json_number(shown[at - 1], "score", 0) < json_number(attempt, "score", 0))
			at--;
		if (!attempt || at == TIMES_SHOWN)
			continue;
		count += count < TIMES_SHOWN;
		for (int i = count - 1; i > at; i--) {
			shown[i] = shown[i - 1];
			nodes[i] = nodes[i - 1];
		}
		shown[at] = attempt;
		nodes[at] = node;
	}
	buf_init(&b, JSON_MAX_BYTES);
	for (int i = 0; i < count && status == 0; i++) {
		struct files files = attempt_files(shown[i], round_folder, parts_language(parts));

		buf_printf(&b, "- %s: ", json_string(nodes[i], "id"));
		status = evidence_times(files.bench, &b, err);
		buf_puts(&b, " us, ");
		outline_factor(json_number(shown[i], "score", 0) / 100, &b);
		buf_putc(&b, '\n');
		files_release(&files);
	}
	if (count == 0)
		buf_puts(&b, "(No kernel has passed yet.)\n");
	take(parts, "times", &b, PART_TIMES);
	return status;
}

/* The last attempts with their tables, earlier ones as a line each. */
static int take_trajectory(struct parts *parts, const cJSON *attempts, const char *round_folder, struct error *err)
{
	int count = cJSON_GetArraySize(attempts), i = 0, status = 0;
	const cJSON *attempt;
	struct buf b;

	buf_init(&b, JSON_MAX_BYTES);
	cJSON_ArrayForEach(attempt, attempts) {
		struct files files = attempt_files(attempt, round_folder, parts_language(parts));

		buf_puts(&b, "\n### ");
		append_attempt(attempt, &b);
		if (status == 0 && (i == 0 || count - i <= TRAJECTORY_TABLES))
			status = evidence_verdict(files.build, files.bench, &b, err);
		files_release(&files);
		i++;
	}
	take(parts, "trajectory", &b, PART_TRAJECTORY);
	return status;
}

/* The kernel that the cycle ended with: its best, or else its last. */
static int take_result(struct parts *parts, const cJSON *ended, const char *round_folder, struct error *err)
{
	const cJSON *attempts = json_get(ended, "attempts"), *best = json_get(ended, "best"), *attempt, *shown = NULL;
	struct files files;
	struct buf b;
	int status = 0;

	cJSON_ArrayForEach(attempt, attempts)
		if (!cJSON_IsNumber(best) || json_number(attempt, "attempt", 0) == best->valuedouble)
			shown = attempt;
	buf_init(&b, JSON_MAX_BYTES);
	if (shown) {
		files = attempt_files(shown, round_folder, parts_language(parts));
		status = evidence_code(files.kernel, parts_language(parts), &b, err);
		files_release(&files);
	} else {
		buf_puts(&b, "(none)\n");
	}
	take(parts, "code", &b, JSON_MAX_BYTES);
	return status;
}

/* What was predicted and what came out, in one sentence. */
static void take_prediction(struct parts *parts, const cJSON *node)
{
	double expected = json_number(json_get(node, "action"), "expected_vs_baseline_factor", -1);
	double measured = json_number(json_get(node, "solution"), "score", -1) / 100;
	struct buf b;

	buf_init(&b, 400);
	buf_puts(&b, "Predicted ");
	if (expected >= 0)
		outline_factor(expected, &b);
	else
		buf_puts(&b, "nothing");
	buf_puts(&b, ", measured ");
	if (measured >= 0)
		outline_factor(measured, &b);
	else
		buf_puts(&b, "nothing: no attempt passed");
	if (expected > 0 && measured >= 0)
		buf_printf(&b, " (%.2f of the prediction)", measured / expected);
	take(parts, "prediction", &b, 400);
}

static const char *outcome_text(const cJSON *ended)
{
	const char *outcome = json_string(ended, "outcome");

	if (outcome && strcmp(outcome, "closed") == 0)
		return "The cycle has ended and the node is solved (closed): its best kernel is attached to it. "
		       "The node must now end up with at least one open child, or the reply says in no_child_because why not.";
	if (outcome && strcmp(outcome, "pruned") == 0)
		return "The cycle has ended without a kernel that passes, for the second time: the node is pruned. "
		       "Only revive_node brings it back; do that only if the evidence shows a fixable mistake and not a wrong idea.";
	return "The cycle has ended without a kernel that passes. The node is open again and its score was halved. "
	       "If the intent was too large, split it into smaller steps or insert an easier alternative.";
}

cJSON *prompt_edit(const struct prompt_source *source, const cJSON *world, const cJSON *ended, const char *round_folder, struct error *err)
{
	const char *id = json_string(ended, "node");
	const cJSON *node = id ? outline_find(world, id) : NULL;
	struct parts parts = { 0 };
	char *cue;
	cJSON *request;
	int status;

	if (!node) {
		error_set(err, KM_EXIT_INPUT, "the cycle that ended names no node of the world");
		return NULL;
	}
	status = parts_common(&parts, source, err);
	if (status == 0)
		status = parts_world(&parts, world, id, err);
	if (status == 0)
		status = take_operations(&parts, source, PROMPT_MAX_NEW, err);
	if (status == 0)
		status = take_node(&parts, world, node, err);
	if (status == 0)
		status = take_trajectory(&parts, json_get(ended, "attempts"), round_folder, err);
	if (status == 0)
		status = take_result(&parts, ended, round_folder, err);
	if (status == 0)
		status = take_times(&parts, world, round_folder, err);
	take_prediction(&parts, node);
	take_refused(&parts, world);
	take_frontier(&parts, world);
	take_waiting(&parts, world);
	parts_copy(&parts, "outcome", outcome_text(ended));
	cue = xasprintf("edit/%s/%.0f", id, json_number(ended, "cycle", 1));
	request = finish(&parts, source, status, "edit.md", cue, err);
	free(cue);
	return request;
}

/* The fastest kernel of the run and its verdict. */
static int take_best(struct parts *parts, const cJSON *world, const char *round_folder, struct error *err)
{
	const cJSON *best = json_get(world, "best");
	struct buf code, verdict;
	int status = 0;

	buf_init(&code, JSON_MAX_BYTES);
	buf_init(&verdict, JSON_MAX_BYTES);
	if (cJSON_IsObject(best)) {
		struct files files = attempt_files(best, round_folder, parts_language(parts));

		status = evidence_code(files.kernel, parts_language(parts), &code, err);
		if (status == 0)
			status = evidence_verdict(files.build, files.bench, &verdict, err);
		files_release(&files);
	} else {
		buf_puts(&code, "(No kernel has passed yet.)\n");
	}
	take(parts, "code", &code, JSON_MAX_BYTES);
	take(parts, "verdict", &verdict, JSON_MAX_BYTES);
	return status;
}

cJSON *prompt_refill(const struct prompt_source *source, const cJSON *world, const char *round_folder, struct error *err)
{
	struct parts parts = { 0 };
	char *cue = xasprintf("refill/%.0f", json_number(world, "refills", 0) + 1);
	int status = parts_common(&parts, source, err);
	cJSON *request;

	if (status == 0)
		status = parts_world(&parts, world, NULL, err);
	if (status == 0)
		status = take_operations(&parts, source, PROMPT_MAX_NEW_FIRST, err);
	if (status == 0)
		status = take_best(&parts, world, round_folder, err);
	if (status == 0)
		status = take_times(&parts, world, round_folder, err);
	take_refused(&parts, world);
	take_frontier(&parts, world);
	take_waiting(&parts, world);
	request = finish(&parts, source, status, "refill.md", cue, err);
	free(cue);
	return request;
}
