#include "prompt_parts.h"

#include "file.h"
#include "json.h"
#include "ledger.h"
#include "outline.h"
#include "request.h"
#include "task.h"
#include "text.h"
#include "util.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void parts_take(struct parts *parts, const char *name, char *text)
{
	assert(parts->count < PARTS_MAX);
	parts->values[parts->count].name = name;
	parts->values[parts->count].text = text;
	parts->count++;
}

void parts_copy(struct parts *parts, const char *name, const char *text)
{
	parts_take(parts, name, xstrdup(text));
}

void parts_release(struct parts *parts)
{
	for (int i = 0; i < parts->count; i++)
		free((char *)parts->values[i].text);
	parts->count = 0;
}

static const char *part(const struct parts *parts, const char *name)
{
	for (int i = 0; i < parts->count; i++)
		if (strcmp(parts->values[i].name, name) == 0)
			return parts->values[i].text;
	return "";
}

const char *parts_language(const struct parts *parts)
{
	return part(parts, "language");
}

/* Hand a buffer over as a part of at most `ceiling` bytes; the buffer is released. */
static void take_buf(struct parts *parts, const char *name, struct buf *b, size_t ceiling)
{
	parts_take(parts, name, text_excerpt(b->data, ceiling));
	buf_release(b);
}

/* ---- the task --------------------------------------------------------------------------------------------------- */

static void describe_tensor(const struct task *task, const struct task_tensor *t, struct buf *out)
{
	buf_printf(out, "- `%s`: ", t->name);
	if (t->scalar)
		buf_printf(out, "%s scalar, passed by value", dtype_name(t->dtype));
	else
		buf_printf(out, "%s [", dtype_name(t->dtype));
	for (int d = 0; d < t->dims; d++)
		buf_printf(out, "%s%s", d ? ", " : "", task->axes[t->axis[d]].name);
	if (!t->scalar)
		buf_puts(out, "], contiguous, row-major");
}

static void describe_text(const cJSON *definition, const char *list, const char *name, struct buf *out)
{
	const char *text = json_string(json_get(json_get(definition, list), name), "description");

	if (text && *text) {
		buf_puts(out, ": ");
		text_line(out, text, 500);
	}
	buf_putc(out, '\n');
}

static void describe_tolerance(const struct task_tensor *t, struct buf *out)
{
	buf_printf(out, "- `%s`: every element |got - expected| <= %g |expected| + %g rms(expected row)", t->name, t->tolerance.a, t->tolerance.c);
	if (t->tolerance.absolute > 0)
		buf_printf(out, " + %g", t->tolerance.absolute);
	if (t->tolerance.r >= 0)
		buf_printf(out, ", and every row ||got - expected|| <= %g ||expected||", t->tolerance.r);
	buf_puts(out, "\n");
}

static void describe_axes(const struct task *task, struct buf *out)
{
	buf_puts(out, "Axes:\n");
	for (int i = 0; i < task->axis_count; i++) {
		if (task->axes[i].is_const)
			buf_printf(out, "- `%s` = %lld, constant", task->axes[i].name, (long long)task->axes[i].value);
		else
			buf_printf(out, "- `%s`, varies from call to call", task->axes[i].name);
		describe_text(task->definition, "axes", task->axes[i].name, out);
	}
}

static void describe_task(const struct task *task, struct buf *out)
{
	const cJSON *constraint;
	char *reference;

	buf_printf(out, "Task `%s` (%s).\n", task->name, task->op_type);
	if (task->description)
		buf_printf(out, "%s\n", task->description);
	buf_putc(out, '\n');
	describe_axes(task, out);
	buf_puts(out, "\nInputs:\n");
	for (int i = 0; i < task->input_count; i++) {
		describe_tensor(task, &task->inputs[i], out);
		describe_text(task->definition, "inputs", task->inputs[i].name, out);
	}
	buf_puts(out, "\nOutputs:\n");
	for (int i = 0; i < task->output_count; i++) {
		describe_tensor(task, &task->outputs[i], out);
		describe_text(task->definition, "outputs", task->outputs[i].name, out);
	}
	if (cJSON_GetArraySize(json_get(task->definition, "constraints")))
		buf_puts(out, "\nConstraints:\n");
	cJSON_ArrayForEach(constraint, json_get(task->definition, "constraints")) {
		buf_puts(out, "- ");
		text_line(out, constraint->valuestring, 500);
		buf_putc(out, '\n');
	}
	buf_puts(out, "\nWhat it computes, as Python text (the specification; it is not run):\n");
	reference = text_excerpt(task->reference_text, PART_TASK / 2);
	text_fence(out, "python", reference);
	free(reference);
	buf_puts(out, "\nTolerance against a reference computed in double precision:\n");
	for (int i = 0; i < task->output_count; i++)
		describe_tolerance(&task->outputs[i], out);
}

static void describe_sets(const struct task *task, struct buf *out)
{
	const char *separator = "";

	buf_puts(out, "Values differ in every call; they are drawn from these distributions, in timed calls too: ");
	for (int i = 0; i < SET_COUNT; i++)
		if (task->input_sets[i]) {
			buf_printf(out, "%s%s", separator, input_set_name((enum task_input_set)i));
			separator = ", ";
		}
	buf_puts(out, ".\n");
}

static void describe_workloads(const struct task *task, struct buf *out)
{
	buf_puts(out, "The score is taken on these workloads (others are checked and timed at the end, so do not hard-code these sizes):\n");
	for (int i = 0; i < task->workload_count; i++) {
		const struct task_workload *w = &task->workloads[i];

		if (!w->feedback)
			continue;
		buf_puts(out, "-");
		for (int a = 0; a < task->axis_count; a++)
			if (!task->axes[a].is_const)
				buf_printf(out, " %s=%lld", task->axes[a].name, (long long)w->axes[a]);
		for (int t = 0; t < task->input_count; t++)
			if (task->inputs[t].scalar)
				buf_printf(out, " %s=%.9g", task->inputs[t].name, w->scalars[t]);
		buf_putc(out, '\n');
	}
	buf_puts(out, task->objective == TASK_SPEEDUP ? "Objective: the mean over these workloads of baseline time / time; more is better.\n"
						      : "Objective: the geometric mean of the times; less is better.\n");
	describe_sets(task, out);
	buf_printf(out, "Limits: %g s a call, %zu MB of workspace, %g s to compile.\n", task->call_seconds, task->workspace_bytes >> 20, task->compile_seconds);
	buf_puts(out, "Libraries that may be linked beside the C library and libm:");
	for (char **library = task->libraries; *library; library++)
		buf_printf(out, " %s", *library);
	buf_puts(out, *task->libraries ? "\n" : " none\n");
}

/* The checks at the end of task.h are for the compiler, not for a reader. */
static void cut_asserts(struct buf *header)
{
	char *asserts = strstr(header->data, "\n#ifdef __cplusplus\n#define KM_ASSERT");

	if (!asserts)
		return;
	*asserts = 0;
	header->len = (size_t)(asserts - header->data);
	buf_puts(header, "\n/* checks of the layout, left out here */\n#endif\n");
}

static int take_baseline(struct parts *parts, const struct task *task, struct error *err)
{
	char *name = xasprintf("baseline.%s", task_suffix(task)), *path = task_path(task, name);
	struct buf source, text;
	int status;

	buf_init(&source, JSON_MAX_BYTES);
	buf_init(&text, JSON_MAX_BYTES);
	status = file_read(path, &source, err);
	if (status == 0) {
		char *clean = text_clean(source.data, source.len), *excerpt = text_excerpt(clean, PART_BASELINE);

		buf_puts(&text, "The baseline, factor 1, is this kernel:\n\n");
		text_fence(&text, parts_language(parts), excerpt);
		parts_take(parts, "baseline", buf_take(&text));
		free(excerpt);
		free(clean);
	}
	buf_release(&text);
	buf_release(&source);
	free(path);
	free(name);
	return status;
}

static void take_task(struct parts *parts, const struct task *task)
{
	struct buf b;

	parts_copy(parts, "task_name", task->name);
	parts_copy(parts, "target", task->target == TASK_CPU ? "cpu" : "cuda");
	parts_copy(parts, "language", task->target == TASK_CPU ? "c" : "cuda");
	buf_init(&b, JSON_MAX_BYTES);
	describe_task(task, &b);
	take_buf(parts, "task", &b, PART_TASK);
	buf_init(&b, JSON_MAX_BYTES);
	describe_workloads(task, &b);
	take_buf(parts, "workloads", &b, PART_WORKLOADS);
	buf_init(&b, JSON_MAX_BYTES);
	task_header(task, &b);
	cut_asserts(&b);
	take_buf(parts, "header", &b, PART_HEADER);
}

/* ---- the parts that are templates ------------------------------------------------------------------------------- */

static int take_template(struct parts *parts, const struct prompt_source *source, const char *name, const char *file, struct error *err)
{
	struct buf b;
	int status;

	buf_init(&b, PROMPT_MAX_BYTES);
	status = template_fill(source->prompts, file, parts->values, &b, err);
	if (status == 0 && b.overflow)
		status = error_set(err, KM_EXIT_INPUT, "'%s/%s' is too large", source->prompts, file);
	if (status == 0)
		parts_take(parts, name, buf_take(&b));
	buf_release(&b);
	return status;
}

static int take_hardware(struct parts *parts, const struct prompt_source *source, struct error *err)
{
	char *path = xasprintf("%s/hardware.md", source->prompts);
	struct buf b;
	int status = 0;

	buf_init(&b, TEMPLATE_MAX_BYTES);
	if (file_exists(path))
		status = file_read(path, &b, err);
	else
		buf_puts(&b, "(There is no sheet about this machine.)\n");
	if (status == 0) {
		char *clean = text_clean(b.data, b.len);

		parts_take(parts, "hardware", text_excerpt(clean, PART_HARDWARE));
		free(clean);
	}
	buf_release(&b);
	free(path);
	return status;
}

int parts_common(struct parts *parts, const struct prompt_source *source, struct error *err)
{
	struct task task;
	int status;
	bool cuda;

	if (task_load(source->task, &task, err) < 0)
		return -1;
	take_task(parts, &task);
	status = take_baseline(parts, &task, err);
	task_release(&task);
	cuda = strcmp(parts_language(parts), "cuda") == 0;
	if (status < 0 || take_hardware(parts, source, err) < 0 ||
	    take_template(parts, source, "interface", cuda ? "parts/interface-cuda.md" : "parts/interface.md", err) < 0)
		return -1;
	return take_template(parts, source, "rules", cuda ? "parts/language-cuda.md" : "parts/language-c.md", err);
}

int parts_world(struct parts *parts, const cJSON *world, const char *focus, struct error *err)
{
	const cJSON *best = json_get(world, "best"), *question;
	struct buf b;

	buf_init(&b, JSON_MAX_BYTES);
	if (outline_tree(world, focus, PART_OUTLINE, &b, err) < 0) {
		buf_release(&b);
		return -1;
	}
	take_buf(parts, "outline", &b, PART_OUTLINE);
	buf_init(&b, JSON_MAX_BYTES);
	buf_puts(&b, *json_string(world, "summary") ? json_string(world, "summary") : "(No summary yet.)");
	buf_putc(&b, '\n');
	if (cJSON_GetArraySize(json_get(world, "open_questions")))
		buf_puts(&b, "\nOpen questions:\n");
	cJSON_ArrayForEach(question, json_get(world, "open_questions")) {
		buf_puts(&b, "- ");
		text_line(&b, question->valuestring, 400);
		buf_putc(&b, '\n');
	}
	take_buf(parts, "summary", &b, PART_SUMMARY);
	buf_init(&b, JSON_MAX_BYTES);
	if (cJSON_IsObject(best)) {
		outline_factor(json_number(best, "score", 0) / 100, &b);
		buf_printf(&b, " the baseline's speed, node %s, attempt %d", json_string(best, "node"), (int)json_number(best, "attempt", 0));
	} else {
		buf_puts(&b, "none has passed yet");
	}
	take_buf(parts, "best", &b, 400);
	buf_init(&b, JSON_MAX_BYTES);
	ledger_text(world, &b);
	take_buf(parts, "ledger", &b, PART_LEDGER);
	return 0;
}

static cJSON *parameters_for(const struct prompt_source *source)
{
	cJSON *parameters = request_parameters(source->model, source->max_tokens ? source->max_tokens : PROMPT_MAX_TOKENS,
					       source->has_temperature ? &source->temperature : NULL);

	if (source->effort)
		json_set_string(parameters, "effort", source->effort);
	return parameters;
}

cJSON *parts_request(const struct parts *parts, const struct prompt_source *source, const char *name, const char *cue, struct error *err)
{
	struct buf system, user;
	cJSON *messages = cJSON_CreateArray(), *request = NULL;
	int status;

	buf_init(&system, JSON_MAX_BYTES);
	buf_init(&user, JSON_MAX_BYTES);
	status = template_fill(source->prompts, "system.md", parts->values, &system, err);
	if (status == 0)
		status = template_fill(source->prompts, name, parts->values, &user, err);
	if (status == 0 && system.len + user.len > PROMPT_MAX_BYTES)
		status = error_set(err, KM_EXIT_INPUT, "the prompt of '%s/%s' would be %zu bytes, and the ceiling is %d: shorten the templates",
				   source->prompts, name, system.len + user.len, PROMPT_MAX_BYTES);
	if (status == 0) {
		char *clean = text_clean(user.data, user.len);

		messages_add(messages, "system", system.data);
		messages_add(messages, "user", clean);
		free(clean);
		request = request_new(messages, parameters_for(source), cue);
	} else {
		cJSON_Delete(messages);
	}
	buf_release(&system);
	buf_release(&user);
	return request;
}
