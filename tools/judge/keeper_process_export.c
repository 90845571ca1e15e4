/* keeper_process_export.c - one draw of a workload's inputs and what the reference expects of it, as files.
 *
 * Reads    the task, its compiled reference
 * Writes   into a folder NAME.bin of each tensor (dense, row-major, little-endian; outputs in float64), and at last
 *          export.json, which names them with dtype and shape, the number of rows that are compared one by one, and the values of axes and scalars
 */
#include "keeper_process.h"

#include "file.h"
#include "json.h"
#include "util.h"

#include <stdlib.h>

static int write_bytes(const char *folder, const char *name, const void *data, size_t bytes, struct error *err)
{
	char *path = xasprintf("%s/%s.bin", folder, name);
	int result = file_write(path, data, bytes, err);

	free(path);
	return result;
}

static cJSON *tensor_json(const struct keeper_process *k, const struct task_tensor *t)
{
	cJSON *o = cJSON_CreateObject(), *shape = cJSON_CreateArray();

	for (int d = 0; d < t->dims; d++)
		cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)keeper_memory_axes(k)[t->axis[d]]));
	json_set_string(o, "name", t->name);
	json_set_string(o, "dtype", dtype_name(t->dtype));
	json_set(o, "shape", shape);
	return o;
}

static int write_input(struct keeper_process *k, const char *folder, int input, struct error *err)
{
	const struct keeper_place *place = &k->input_places[input];
	void *data = xmalloc(place->bytes + 1);
	int result = device_read(k->device, data, k->inputs.at + place->offset, place->bytes, err);

	if (result == 0)
		result = write_bytes(folder, k->task.inputs[input].name, data, place->bytes, err);
	free(data);
	return result;
}

static int write_inputs(struct keeper_process *k, const char *folder, cJSON *document, struct error *err)
{
	cJSON *inputs = cJSON_CreateArray();

	json_set(document, "inputs", inputs);
	for (int i = 0; i < k->task.input_count; i++) {
		const struct task_tensor *t = &k->task.inputs[i];
		cJSON *o = tensor_json(k, t);

		if (t->scalar)
			json_set_number(o, "value", k->scalars[i]);
		cJSON_AddItemToArray(inputs, o);
		if (!t->scalar && write_input(k, folder, i, err) < 0)
			return -1;
	}
	return 0;
}

static int write_outputs(struct keeper_process *k, const char *folder, cJSON *document, struct error *err)
{
	double *expected[TASK_MAX_TENSORS] = { NULL };
	cJSON *outputs = cJSON_CreateArray();
	size_t elements[TASK_MAX_TENSORS];
	int result;

	json_set(document, "outputs", outputs);
	for (int i = 0; i < k->task.output_count; i++) {
		elements[i] = task_elements(&k->task.outputs[i], keeper_memory_axes(k));
		expected[i] = xreallocarray(NULL, elements[i] + 1, sizeof(double));
		cJSON_AddItemToArray(outputs, tensor_json(k, &k->task.outputs[i]));
	}
	result = keeper_check_expected(k, expected, err);
	for (int i = 0; i < k->task.output_count; i++) {
		if (result == 0)
			result = write_bytes(folder, k->task.outputs[i].name, expected[i], elements[i] * sizeof(double), err);
		free(expected[i]);
	}
	return result;
}

static int write_all(struct keeper_process *k, const char *folder, struct error *err)
{
	cJSON *document = cJSON_CreateObject(), *axes = cJSON_CreateObject();
	char *path = xasprintf("%s/export.json", folder);
	int result;

	json_set_string(document, "task", k->task.name);
	json_set_string(document, "workload", k->task.workloads[k->workload].uuid);
	json_set_string(document, "input_set", input_set_name((enum task_input_set)k->set));
	for (int i = 0; i < k->task.axis_count; i++)
		json_set_number(axes, k->task.axes[i].name, (double)keeper_memory_axes(k)[i]);
	json_set(document, "axes", axes);
	json_set_number(document, "rows", (double)k->workloads[k->workload].rows);
	result = write_inputs(k, folder, document, err);
	if (result == 0)
		result = write_outputs(k, folder, document, err);
	if (result == 0)
		result = json_save(path, document, err);
	free(path);
	cJSON_Delete(document);
	return result;
}

int keeper_process_export(int ordinal, const char *task, const char *reference, int workload, int set, const char *folder,
			  struct error *err)
{
	static const enum keeper_kind questions[] = { KEEPER_OPEN, KEEPER_INPUTS };
	static struct keeper_message m;
	int descriptors[KEEPER_PROCESS_DESCRIPTORS], result;
	struct keeper_process k;

	result = keeper_process_load(&k, task, reference, 1, &workload, 1, err);
	for (size_t i = 0; i < sizeof(questions) / sizeof(*questions) && result == 0; i++) {
		m = (struct keeper_message){ .kind = questions[i], .workload = workload, .set = set };
		keeper_process_answer(&k, ordinal, &m, descriptors);
		if (m.kind == KEEPER_FAILED)
			result = error_set(err, (int)m.value, "%s", m.text);
	}
	if (result == 0)
		result = write_all(&k, folder, err);
	keeper_process_release(&k);
	return result;
}
