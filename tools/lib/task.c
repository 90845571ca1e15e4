#include "task.h"

#include "file.h"
#include "json.h"
#include "schema.h"
#include "util.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT = 16 << 20 };

/* ---- names ------------------------------------------------------------------------------------------------------ */

static const struct {
	const char *name, *c_type;
	size_t bits;
} dtypes[] = {
	[DTYPE_FLOAT32] = { "float32", "float", 32 },
	[DTYPE_FLOAT16] = { "float16", "uint16_t", 16 },
	[DTYPE_BFLOAT16] = { "bfloat16", "uint16_t", 16 },
	[DTYPE_FLOAT8_E4M3FN] = { "float8_e4m3fn", "uint8_t", 8 },
	[DTYPE_FLOAT8_E5M2] = { "float8_e5m2", "uint8_t", 8 },
	[DTYPE_FLOAT4_E2M1] = { "float4_e2m1", "uint8_t", 4 },
	[DTYPE_INT64] = { "int64", "int64_t", 64 },
	[DTYPE_INT32] = { "int32", "int32_t", 32 },
	[DTYPE_INT16] = { "int16", "int16_t", 16 },
	[DTYPE_INT8] = { "int8", "int8_t", 8 },
	[DTYPE_BOOL] = { "bool", "uint8_t", 8 },
};

static const char *const set_names[SET_COUNT] = { "normal", "shifted", "row_scaled", "student_t3", "structured" };

const char *dtype_name(enum task_dtype dtype)
{
	return dtypes[dtype].name;
}

const char *dtype_c_type(enum task_dtype dtype)
{
	return dtypes[dtype].c_type;
}

size_t dtype_bits(enum task_dtype dtype)
{
	return dtypes[dtype].bits;
}

const char *input_set_name(enum task_input_set set)
{
	return set_names[set];
}

/* What a member of struct km_args may not be called: C's and C++'s keywords, the names of types that task.h uses, and
 * the members that are always there. */
static bool is_reserved(const char *name)
{
	static const char *const words[] = {
		"auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern",
		"float", "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed",
		"sizeof", "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while", "asm",
		"typeof", "bool", "true", "false", "nullptr", "class", "new", "delete", "this", "template", "operator",
		"private", "public", "protected", "virtual", "friend", "namespace", "using", "try", "catch", "throw",
		"export", "and", "or", "not", "xor", "linux", "unix", "workspace", "workspace_bytes", "stream" };

	for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
		if (strcmp(name, words[i]) == 0)
			return true;
	return false;
}

static bool is_identifier(const char *name)
{
	size_t len = strlen(name);

	if (len == 0 || len > 60 || !(isalpha((unsigned char)name[0]) || name[0] == '_') || starts_with(name, "__"))
		return false;
	for (const char *p = name; *p; p++)
		if (!isalnum((unsigned char)*p) && *p != '_')
			return false;
	return !is_reserved(name) && !ends_with(name, "_t");
}

static int find(const struct task_tensor *tensors, int count, const char *name)
{
	for (int i = 0; i < count; i++)
		if (strcmp(tensors[i].name, name) == 0)
			return i;
	return -1;
}

int task_axis_find(const struct task *task, const char *name)
{
	for (int i = 0; i < task->axis_count; i++)
		if (strcmp(task->axes[i].name, name) == 0)
			return i;
	return -1;
}

int task_input_find(const struct task *task, const char *name)
{
	return find(task->inputs, task->input_count, name);
}

int task_output_find(const struct task *task, const char *name)
{
	return find(task->outputs, task->output_count, name);
}

int task_workload_find(const struct task *task, const char *uuid)
{
	for (int i = 0; i < task->workload_count; i++)
		if (strcmp(task->workloads[i].uuid, uuid) == 0)
			return i;
	return -1;
}

/* ---- sizes ------------------------------------------------------------------------------------------------------ */

static bool count_elements(const struct task_tensor *tensor, const int64_t *axes, size_t *elements)
{
	*elements = 1;
	for (int i = 0; i < tensor->dims; i++)
		if (__builtin_mul_overflow(*elements, (size_t)axes[tensor->axis[i]], elements))
			return false;
	return *elements <= (size_t)1 << 44; /* far above any machine: sums of bytes cannot overflow */
}

size_t task_elements(const struct task_tensor *tensor, const int64_t *axes)
{
	size_t elements;

	return count_elements(tensor, axes, &elements) ? elements : 0;
}

size_t task_bytes(const struct task_tensor *tensor, const int64_t *axes)
{
	size_t bits = dtype_bits(tensor->dtype), elements = task_elements(tensor, axes);

	return bits >= 8 ? elements * (bits / 8) : (elements + 1) / 2;
}

/* ---- loading: definition.json --------------------------------------------------------------------------------------- */

static int refuse(const struct task *task, const char *file, struct error *err, const char *what, const char *name)
{
	return error_set(err, KM_EXIT_INPUT, "'%s/%s': %s '%s'", task->folder, file, what, name);
}

static int load_axes(struct task *task, struct error *err)
{
	const cJSON *axes = json_get(task->definition, "axes"), *item;

	if (cJSON_GetArraySize(axes) > TASK_MAX_AXES)
		return error_set(err, KM_EXIT_INPUT, "'%s/definition.json': more than %d axes", task->folder, TASK_MAX_AXES);
	task->axes = xcalloc((size_t)cJSON_GetArraySize(axes), sizeof(*task->axes));
	cJSON_ArrayForEach(item, axes) {
		struct task_axis *axis = &task->axes[task->axis_count++];
		double value = json_number(item, "value", -1);

		axis->name = xstrdup(item->string);
		axis->is_const = strcmp(json_string(item, "type"), "const") == 0;
		if (!is_identifier(axis->name))
			return refuse(task, "definition.json", err, "an axis cannot be called", axis->name);
		if (axis->is_const && (value < 0 || value > 1e15))
			return refuse(task, "definition.json", err, "no usable value for the const axis", axis->name);
		axis->value = axis->is_const ? (int64_t)value : 0;
	}
	return 0;
}

static enum task_dtype dtype_of(const char *name)
{
	size_t i = 0;

	while (strcmp(dtypes[i].name, name) != 0)
		i++; /* the schema admits these names only */
	return (enum task_dtype)i;
}

static int load_tensor(struct task *task, const cJSON *item, bool output, struct task_tensor *tensor, struct error *err)
{
	const cJSON *shape = json_get(item, "shape"), *dim;

	tensor->name = xstrdup(item->string);
	tensor->dtype = dtype_of(json_string(item, "dtype"));
	tensor->scalar = cJSON_IsNull(shape);
	if (!is_identifier(tensor->name) || task_axis_find(task, tensor->name) >= 0)
		return refuse(task, "definition.json", err, "a tensor cannot be called", tensor->name);
	if (tensor->scalar && output)
		return refuse(task, "definition.json", err, "no shape for the output", tensor->name);
	cJSON_ArrayForEach(dim, shape) {
		int axis = task_axis_find(task, dim->valuestring);

		if (axis < 0)
			return refuse(task, "definition.json", err, "unknown axis in the shape of", tensor->name);
		tensor->axis[tensor->dims++] = axis;
	}
	return 0;
}

static int load_tensors(struct task *task, bool output, struct error *err)
{
	const cJSON *list = json_get(task->definition, output ? "outputs" : "inputs"), *item;
	struct task_tensor *tensors = xcalloc((size_t)cJSON_GetArraySize(list), sizeof(*tensors));
	int count = cJSON_GetArraySize(list), *loaded = output ? &task->output_count : &task->input_count;

	*(output ? &task->outputs : &task->inputs) = tensors;
	if (count > TASK_MAX_TENSORS || (output && count == 0))
		return error_set(err, KM_EXIT_INPUT, "'%s/definition.json': %d %s, where %d to %d are allowed", task->folder, count,
				 output ? "outputs" : "inputs", output, TASK_MAX_TENSORS);
	cJSON_ArrayForEach(item, list) {
		/* Counted first, so that what a failure leaves is released. */
		int i = (*loaded)++;

		if (load_tensor(task, item, output, &tensors[i], err) < 0)
			return -1;
		if (output && task_input_find(task, tensors[i].name) >= 0)
			return refuse(task, "definition.json", err, "both an input and an output are called", tensors[i].name);
	}
	return 0;
}

static int load_definition(struct task *task, struct error *err)
{
	char *path = task_path(task, "definition.json");

	task->definition = json_load(path, "definition", err);
	free(path);
	if (!task->definition)
		return -1;
	task->name = xstrdup(json_string(task->definition, "name"));
	task->op_type = xstrdup(json_string(task->definition, "op_type"));
	task->description = xstrdup(json_string(task->definition, "description") ? json_string(task->definition, "description") : "");
	task->reference_text = xstrdup(json_string(task->definition, "reference"));
	if (load_axes(task, err) < 0 || load_tensors(task, false, err) < 0)
		return -1;
	return load_tensors(task, true, err);
}

/* ---- loading: workloads.jsonl ---------------------------------------------------------------------------------------- */

static int load_workload_axes(const struct task *task, const cJSON *axes, struct task_workload *w, struct error *err)
{
	const cJSON *item;

	w->axes = xcalloc((size_t)task->axis_count, sizeof(*w->axes));
	for (int i = 0; i < task->axis_count; i++) {
		const struct task_axis *axis = &task->axes[i];
		double value = json_number(axes, axis->name, -1);

		if (!axis->is_const && (value < 0 || value > 1e15))
			return error_set(err, KM_EXIT_INPUT, "workload '%s': no usable value for the axis '%s'", w->uuid, axis->name);
		w->axes[i] = axis->is_const ? axis->value : (int64_t)value;
	}
	cJSON_ArrayForEach(item, axes) {
		int i = task_axis_find(task, item->string);

		if (i < 0 || (task->axes[i].is_const && item->valuedouble != (double)task->axes[i].value))
			return error_set(err, KM_EXIT_INPUT, "workload '%s': unknown or fixed axis '%s'", w->uuid, item->string);
	}
	return 0;
}

static int load_workload_inputs(const struct task *task, const cJSON *inputs, struct task_workload *w, struct error *err)
{
	const cJSON *item;

	w->scalars = xcalloc((size_t)task->input_count, sizeof(*w->scalars));
	for (int i = 0; i < task->input_count; i++) {
		const cJSON *input = json_get(inputs, task->inputs[i].name), *value = json_get(input, "value");
		bool given = input && strcmp(json_string(input, "type"), "scalar") == 0;

		if (!input || given != task->inputs[i].scalar || (given && !value))
			return error_set(err, KM_EXIT_INPUT, "workload '%s': the input '%s' is missing or of the wrong type", w->uuid,
					 task->inputs[i].name);
		if (given)
			w->scalars[i] = cJSON_IsBool(value) ? cJSON_IsTrue(value) : value->valuedouble;
	}
	cJSON_ArrayForEach(item, inputs)
		if (task_input_find(task, item->string) < 0)
			return error_set(err, KM_EXIT_INPUT, "workload '%s': unknown input '%s'", w->uuid, item->string);
	return 0;
}

static int check_sizes(const struct task_tensor *tensors, int count, const struct task_workload *w, struct error *err)
{
	size_t elements;

	for (int i = 0; i < count; i++)
		if (!count_elements(&tensors[i], w->axes, &elements))
			return error_set(err, KM_EXIT_INPUT, "workload '%s': '%s' is too large", w->uuid, tensors[i].name);
	return 0;
}

static int load_workload(struct task *task, const cJSON *line, struct error *err)
{
	const cJSON *workload = json_get(line, "workload");
	const char *uuid = json_string(workload, "uuid");
	struct task_workload *w;

	if (strcmp(json_string(line, "definition"), task->name) != 0)
		return error_set(err, KM_EXIT_INPUT, "workload '%s' is of another definition", uuid);
	if (task_workload_find(task, uuid) >= 0)
		return error_set(err, KM_EXIT_INPUT, "two workloads are called '%s'", uuid);
	task->workloads = xreallocarray(task->workloads, (size_t)task->workload_count + 1, sizeof(*task->workloads));
	w = &task->workloads[task->workload_count++];
	*w = (struct task_workload){ .uuid = xstrdup(uuid) };
	if (load_workload_axes(task, json_get(workload, "axes"), w, err) < 0 ||
	    load_workload_inputs(task, json_get(workload, "inputs"), w, err) < 0 ||
	    check_sizes(task->inputs, task->input_count, w, err) < 0)
		return -1;
	return check_sizes(task->outputs, task->output_count, w, err);
}

static int load_workload_line(struct task *task, const char *line, size_t len, struct error *err)
{
	char *text = xstrndup(line, len); /* json_parse wants the NUL after it */
	cJSON *value = strlen(text) == len ? json_parse(text, len, err) : NULL;
	int result = -1;

	if (strlen(text) != len)
		error_set(err, KM_EXIT_INPUT, "NUL in the line");
	else if (value && schema_check("workload", value, err) == 0)
		result = load_workload(task, value, err);
	cJSON_Delete(value);
	free(text);
	return result;
}

static int load_workloads(struct task *task, struct error *err)
{
	char *path = task_path(task, "workloads.jsonl");
	struct buf b;
	int result, line = 1;

	buf_init(&b, MAX_TEXT);
	result = file_read(path, &b, err);
	for (const char *p = b.data, *end = b.data + b.len; result == 0 && p < end; line++) {
		const char *newline = memchr(p, '\n', (size_t)(end - p));
		size_t len = newline ? (size_t)(newline - p) : (size_t)(end - p);

		if (len > 0 && load_workload_line(task, p, len, err) < 0)
			result = error_prefix(err, "'%s' line %d", path, line);
		p += len + 1;
	}
	buf_release(&b);
	free(path);
	return result;
}

/* ---- loading: task.json ---------------------------------------------------------------------------------------------- */

static char **load_strings(const cJSON *array)
{
	char **list = xcalloc((size_t)cJSON_GetArraySize(array) + 1, sizeof(*list));
	const cJSON *item;
	int count = 0;

	cJSON_ArrayForEach(item, array)
		list[count++] = xstrdup(item->valuestring);
	return list;
}

static int load_tolerances(struct task *task, struct error *err)
{
	const cJSON *tolerances = json_get(task->task_json, "tolerance"), *item;

	cJSON_ArrayForEach(item, tolerances)
		if (task_output_find(task, item->string) < 0)
			return refuse(task, "task.json", err, "a tolerance for the unknown output", item->string);
	for (int i = 0; i < task->output_count; i++) {
		const cJSON *given = json_get(tolerances, task->outputs[i].name);

		if (!given)
			return refuse(task, "task.json", err, "no tolerance for the output", task->outputs[i].name);
		task->outputs[i].tolerance = (struct task_tolerance){ json_number(given, "a", 0), json_number(given, "c", 0),
								      json_number(given, "r", -1), json_number(given, "absolute", 0) };
	}
	return 0;
}

static int load_set(struct task *task, const char *key, bool final, struct error *err)
{
	const cJSON *item;

	cJSON_ArrayForEach(item, json_get(task->task_json, key)) {
		int i = task_workload_find(task, item->valuestring);
		bool *mark = i < 0 ? NULL : final ? &task->workloads[i].final : &task->workloads[i].feedback;

		if (!mark || *mark)
			return refuse(task, "task.json", err, mark ? "named twice: workload" : "unknown workload", item->valuestring);
		*mark = true;
	}
	return 0;
}

static int load_vary(struct task *task, struct error *err)
{
	const cJSON *item, *value;

	cJSON_ArrayForEach(item, json_get(task->task_json, "vary")) {
		int i = task_input_find(task, item->string);

		if (i < 0 || !task->inputs[i].scalar)
			return refuse(task, "task.json", err, "vary names no scalar input:", item->string);
		task->inputs[i].vary = xcalloc((size_t)cJSON_GetArraySize(item), sizeof(double));
		cJSON_ArrayForEach(value, item)
			task->inputs[i].vary[task->inputs[i].vary_count++] = value->valuedouble;
	}
	return 0;
}

static bool is_file_name(const char *name)
{
	return name[0] && name[0] != '.' && !strchr(name, '/');
}

static int load_peers(struct task *task, struct error *err)
{
	const cJSON *peers = json_get(task->task_json, "peers"), *item;

	task->peers = xcalloc((size_t)cJSON_GetArraySize(peers), sizeof(*task->peers));
	cJSON_ArrayForEach(item, peers) {
		const char *kernel = json_string(item, "kernel");

		if (!is_file_name(kernel))
			return refuse(task, "task.json", err, "a peer's kernel cannot be", kernel);
		task->peers[task->peer_count++] = (struct task_peer){ xstrdup(json_string(item, "name")), xstrdup(kernel),
								      load_strings(json_get(item, "libraries")) };
	}
	return 0;
}

static void load_limits(struct task *task)
{
	const cJSON *limits = json_get(task->task_json, "limits");

	task->compile_seconds = json_number(limits, "compile_seconds", 0);
	task->call_seconds = json_number(limits, "call_seconds", 0);
	task->memory_bytes = (size_t)json_number(limits, "memory_mb", 0) << 20;
	task->workspace_bytes = (size_t)json_number(limits, "workspace_mb", 0) << 20;
}

static void load_input_sets(struct task *task)
{
	const cJSON *sets = json_get(task->task_json, "input_sets"), *item;

	for (int i = 0; i < SET_COUNT; i++) {
		task->input_sets[i] = cJSON_GetArraySize(sets) == 0;
		cJSON_ArrayForEach(item, sets)
			if (strcmp(item->valuestring, set_names[i]) == 0)
				task->input_sets[i] = true;
	}
}

static int load_task_json(struct task *task, struct error *err)
{
	char *path = task_path(task, "task.json");

	task->task_json = json_load(path, "task", err);
	free(path);
	if (!task->task_json)
		return -1;
	task->target = strcmp(json_string(task->task_json, "target"), "cuda") == 0 ? TASK_CUDA : TASK_CPU;
	task->objective = strcmp(json_string(task->task_json, "objective"), "speedup") == 0 ? TASK_SPEEDUP : TASK_GEOMEAN_LATENCY;
	task->libraries = load_strings(json_get(task->task_json, "libraries"));
	load_limits(task);
	load_input_sets(task);
	if (load_tolerances(task, err) < 0 || load_set(task, "feedback", false, err) < 0 || load_set(task, "final", true, err) < 0 ||
	    load_vary(task, err) < 0 || load_peers(task, err) < 0)
		return -1;
	if (cJSON_GetArraySize(json_get(task->task_json, "feedback")) == 0)
		return error_set(err, KM_EXIT_INPUT, "'%s/task.json': no feedback workload", task->folder);
	return 0;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------- */

int task_load(const char *folder, struct task *task, struct error *err)
{
	size_t len = strlen(folder);

	memset(task, 0, sizeof(*task));
	while (len > 1 && folder[len - 1] == '/')
		len--;
	task->folder = xstrndup(folder, len);
	if (load_definition(task, err) == 0 && load_workloads(task, err) == 0 && load_task_json(task, err) == 0 &&
	    task_sha256(task, task->sha256, err) == 0)
		return 0;
	task_release(task);
	return -1;
}

static void release_tensors(struct task_tensor *tensors, int count)
{
	for (int i = 0; i < count; i++) {
		free(tensors[i].name);
		free(tensors[i].vary);
	}
	free(tensors);
}

static void release_strings(char **list)
{
	for (char **s = list; s && *s; s++)
		free(*s);
	free(list);
}

void task_release(struct task *task)
{
	for (int i = 0; i < task->axis_count; i++)
		free(task->axes[i].name);
	free(task->axes);
	release_tensors(task->inputs, task->input_count);
	release_tensors(task->outputs, task->output_count);
	for (int i = 0; i < task->workload_count; i++) {
		free(task->workloads[i].uuid);
		free(task->workloads[i].axes);
		free(task->workloads[i].scalars);
	}
	free(task->workloads);
	for (int i = 0; i < task->peer_count; i++) {
		free(task->peers[i].name);
		free(task->peers[i].kernel);
		release_strings(task->peers[i].libraries);
	}
	free(task->peers);
	release_strings(task->libraries);
	free(task->folder);
	free(task->name);
	free(task->op_type);
	free(task->description);
	free(task->reference_text);
	cJSON_Delete(task->definition);
	cJSON_Delete(task->task_json);
	memset(task, 0, sizeof(*task));
}

char *task_path(const struct task *task, const char *name)
{
	return xasprintf("%s/%s", task->folder, name);
}

const char *task_suffix(const struct task *task)
{
	return task->target == TASK_CUDA ? "cu" : "c";
}

static int add_file(const struct task *task, const char *name, struct buf *all, struct error *err)
{
	char *path = task_path(task, name);
	struct buf b;
	int result = 0;

	buf_init(&b, MAX_TEXT);
	if (file_exists(path) && (result = file_read(path, &b, err)) == 0) {
		buf_printf(all, "%s %zu\n", name, b.len);
		buf_add(all, b.data, b.len);
	}
	buf_release(&b);
	free(path);
	return result;
}

int task_sha256(const struct task *task, char hex[HASH_HEX + 1], struct error *err)
{
	bool cuda = task->target == TASK_CUDA;
	const char *const names[] = { "definition.json", "workloads.jsonl", "task.json", cuda ? "reference.cu" : "reference.c",
				      cuda ? "baseline.cu" : "baseline.c" };
	struct buf all;
	int result = 0;

	buf_init(&all, 8 * (size_t)MAX_TEXT);
	for (size_t i = 0; result == 0 && i < sizeof(names) / sizeof(*names); i++)
		result = add_file(task, names[i], &all, err);
	hash_hex(all.data, all.len, hex);
	buf_release(&all);
	return result;
}

/* ---- struct km_args --------------------------------------------------------------------------------------------------- */

static size_t place(size_t *at, size_t size)
{
	size_t offset = (*at + size - 1) / size * size;

	*at = offset + size;
	return offset;
}

static size_t scalar_size(enum task_dtype dtype)
{
	return dtype_bits(dtype) < 8 ? 1 : dtype_bits(dtype) / 8;
}

void task_layout(const struct task *task, struct task_layout *layout)
{
	size_t at = 0;

	memset(layout, 0, sizeof(*layout));
	for (int i = 0; i < task->axis_count; i++)
		layout->axis[i] = place(&at, 8);
	for (int i = 0; i < task->input_count; i++)
		layout->input[i] = place(&at, task->inputs[i].scalar ? scalar_size(task->inputs[i].dtype) : 8);
	for (int i = 0; i < task->output_count; i++)
		layout->output[i] = place(&at, 8);
	layout->workspace = place(&at, 8);
	layout->workspace_bytes = place(&at, 8);
	if (task->target == TASK_CUDA)
		layout->stream = place(&at, 8);
	layout->size = at;
}

static void add_shape(const struct task *task, const struct task_tensor *t, struct buf *out)
{
	buf_puts(out, " /* ");
	if (t->scalar)
		buf_puts(out, "scalar, ");
	for (int i = 0; i < t->dims; i++)
		buf_printf(out, "[%s]", task->axes[t->axis[i]].name);
	buf_printf(out, "%s%s */\n", t->dims ? " " : "", dtype_name(t->dtype));
}

static void add_members(const struct task *task, struct buf *out)
{
	for (int i = 0; i < task->axis_count; i++) {
		buf_printf(out, "\tint64_t %s;", task->axes[i].name);
		if (task->axes[i].is_const)
			buf_printf(out, " /* always %lld */", (long long)task->axes[i].value);
		buf_putc(out, '\n');
	}
	for (int i = 0; i < task->input_count; i++) {
		const struct task_tensor *t = &task->inputs[i];

		buf_printf(out, t->scalar ? "\t%s %s;" : "\tconst %s *%s;", dtype_c_type(t->dtype), t->name);
		add_shape(task, t, out);
	}
	for (int i = 0; i < task->output_count; i++) {
		buf_printf(out, "\t%s *%s;", dtype_c_type(task->outputs[i].dtype), task->outputs[i].name);
		add_shape(task, &task->outputs[i], out);
	}
	buf_puts(out, "\tvoid *workspace; /* scratch memory of the size that km_workspace asked for, or NULL */\n");
	buf_puts(out, "\tsize_t workspace_bytes;\n");
	if (task->target == TASK_CUDA)
		buf_puts(out, "\tvoid *stream; /* a cudaStream_t: all work goes there */\n");
}

static void add_assert(const char *member, size_t offset, struct buf *out)
{
	buf_printf(out, "KM_ASSERT(offsetof(struct km_args, %s) == %zu, \"%s\");\n", member, offset, member);
}

static void add_asserts(const struct task *task, struct buf *out)
{
	struct task_layout layout;

	task_layout(task, &layout);
	buf_puts(out, "#ifdef __cplusplus\n#define KM_ASSERT static_assert\n#else\n#define KM_ASSERT _Static_assert\n#endif\n");
	for (int i = 0; i < task->axis_count; i++)
		add_assert(task->axes[i].name, layout.axis[i], out);
	for (int i = 0; i < task->input_count; i++)
		add_assert(task->inputs[i].name, layout.input[i], out);
	for (int i = 0; i < task->output_count; i++)
		add_assert(task->outputs[i].name, layout.output[i], out);
	add_assert("workspace", layout.workspace, out);
	add_assert("workspace_bytes", layout.workspace_bytes, out);
	if (task->target == TASK_CUDA)
		add_assert("stream", layout.stream, out);
	buf_printf(out, "KM_ASSERT(sizeof(struct km_args) == %zu, \"struct km_args\");\n#undef KM_ASSERT\n", layout.size);
}

static void add_axis_macros(const struct task *task, struct buf *out)
{
	for (int i = 0; i < task->axis_count; i++) {
		if (!task->axes[i].is_const)
			continue;
		buf_puts(out, "#define KM_AXIS_");
		for (const char *p = task->axes[i].name; *p; p++)
			buf_putc(out, (char)toupper((unsigned char)*p));
		buf_printf(out, " %lld\n", (long long)task->axes[i].value);
	}
}

void task_header(const struct task *task, struct buf *out)
{
	buf_printf(out, "/* task.h - the interface of a kernel for the task %s. */\n", task->name);
	buf_puts(out, "#ifndef KM_TASK_H\n#define KM_TASK_H\n\n#include <stddef.h>\n#include <stdint.h>\n\n");
	add_axis_macros(task, out);
	buf_puts(out, "\nstruct km_args {\n");
	add_members(task, out);
	buf_puts(out, "};\n\n#ifdef __cplusplus\nextern \"C\" {\n#endif\n#pragma GCC visibility push(default)\n");
	buf_puts(out, "/* Fill the outputs from the inputs. Returns 0, or another value for failure. */\n");
	buf_puts(out, "int km_run(const struct km_args *a);\n");
	buf_puts(out, "/* Optional: bytes of workspace that km_run needs for these axes (pointers are NULL). */\n");
	buf_puts(out, "size_t km_workspace(const struct km_args *a);\n");
	buf_puts(out, "/* Optional: called once per workload, not timed (pointers are NULL). Returns 0, or another value for failure. */\n");
	buf_puts(out, "int km_init(const struct km_args *a);\n");
	buf_puts(out, "#pragma GCC visibility pop\n#ifdef __cplusplus\n}\n#endif\n\n");
	add_asserts(task, out);
	buf_puts(out, "\n#endif\n");
}

/* ---- scalars ---------------------------------------------------------------------------------------------------------- */

static int64_t to_integer(double value, int bits)
{
	double high = ldexp(1, bits - 1);

	value = rint(value);
	if (!(value > -high))
		return bits == 64 ? INT64_MIN : -(int64_t)high;
	if (value >= high)
		return bits == 64 ? INT64_MAX : (int64_t)high - 1;
	return (int64_t)value;
}

/* A binary float of `exponent` bits of exponent and `mantissa` of fraction, round to nearest even, no special range
 * for subnormals but gradual underflow, overflow to infinity (IEEE 754, and bfloat16 as its truncated float32). */
static uint16_t to_half(double value, int exponent, int mantissa)
{
	int bias = (1 << (exponent - 1)) - 1, e;
	uint16_t sign = (uint16_t)(signbit(value) ? 1 << (exponent + mantissa) : 0);
	double magnitude = fabs(value), scaled;

	if (isnan(value))
		return (uint16_t)(sign | ((1 << exponent) - 1) << mantissa | 1 << (mantissa - 1));
	if (magnitude == 0)
		return sign;
	e = ilogb(magnitude);
	if (e < 1 - bias)
		e = 1 - bias;
	if (isinf(value) || e > bias)
		return (uint16_t)(sign | ((1 << exponent) - 1) << mantissa);
	scaled = rint(ldexp(magnitude, mantissa - e));
	/* The carry into the exponent field, also from subnormal to normal and to infinity, is the addition's. */
	return (uint16_t)(sign | (((e + bias - 1) << mantissa) + (int)scaled));
}

void task_store_scalar(const struct task_tensor *input, double value, void *member)
{
	size_t size = scalar_size(input->dtype);
	float f = (float)value;
	uint16_t half = 0;
	int64_t n = 0;

	switch (input->dtype) {
	case DTYPE_FLOAT32:
		memcpy(member, &f, sizeof(f));
		return;
	case DTYPE_FLOAT16:
	case DTYPE_BFLOAT16:
		half = input->dtype == DTYPE_FLOAT16 ? to_half(value, 5, 10) : to_half(value, 8, 7);
		memcpy(member, &half, sizeof(half));
		return;
	case DTYPE_BOOL:
		n = value != 0;
		break;
	case DTYPE_FLOAT8_E4M3FN: /* their codes, as integers */
	case DTYPE_FLOAT8_E5M2:
	case DTYPE_FLOAT4_E2M1:
		n = to_integer(value, 16);
		break;
	default:
		n = to_integer(value, (int)dtype_bits(input->dtype));
	}
	memcpy(member, &n, size); /* little endian */
}
