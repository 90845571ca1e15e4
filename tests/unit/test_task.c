/* Task folders: what is read from one, which ones are refused and why, the layout of struct km_args and its header. */
#include "task.h"

#include "file.h"
#include "json.h"
#include "process.h"
#include "util.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char definition[] =
	"{\"name\": \"mixed\", \"op_type\": \"toy\", \"reference\": \"def run(x, flag, scale, n): pass\","
	" \"axes\": {\"rows\": {\"type\": \"var\"}, \"columns\": {\"type\": \"const\", \"value\": 3}},"
	" \"inputs\": {\"x\": {\"shape\": [\"rows\", \"columns\"], \"dtype\": \"float32\"}, \"flag\": {\"shape\": null, \"dtype\": \"bool\"},"
	" \"scale\": {\"shape\": null, \"dtype\": \"float32\"}, \"half\": {\"shape\": null, \"dtype\": \"bfloat16\"},"
	" \"n\": {\"shape\": null, \"dtype\": \"int64\"}, \"codes\": {\"shape\": [\"rows\"], \"dtype\": \"float4_e2m1\"}},"
	" \"outputs\": {\"y\": {\"shape\": [\"rows\", \"columns\"], \"dtype\": \"float16\"}, \"z\": {\"shape\": [], \"dtype\": \"int32\"}}}";

static const char workloads[] =
	"{\"definition\": \"mixed\", \"solution\": null, \"evaluation\": null, \"workload\": {\"uuid\": \"a\", \"axes\": {\"rows\": 5}, \"inputs\":"
	" {\"x\": {\"type\": \"random\"}, \"flag\": {\"type\": \"scalar\", \"value\": true}, \"scale\": {\"type\": \"scalar\", \"value\": 0.5},"
	" \"half\": {\"type\": \"scalar\", \"value\": 1}, \"n\": {\"type\": \"scalar\", \"value\": -7}, \"codes\": {\"type\": \"random\"}}}}\n";

static const char task_json[] =
	"{\"target\": \"cpu\", \"objective\": \"speedup\", \"tolerance\": {\"y\": {\"a\": 0.1, \"c\": 0.2, \"r\": null}, \"z\": {\"a\": 0, \"c\": 0,"
	" \"r\": 0.5, \"absolute\": 1}}, \"feedback\": [\"a\"], \"final\": [], \"libraries\": [\"openblas\"], \"limits\": {\"compile_seconds\": 9,"
	" \"call_seconds\": 0.5, \"memory_mb\": 2, \"workspace_mb\": 0}, \"input_sets\": [\"shifted\"], \"vary\": {\"scale\": [1, 2.5]}}";

static char *folder;

static int set_up(void **state)
{
	struct error err;

	(void)state;
	folder = process_scratch_make(&err);
	return folder ? 0 : -1;
}

static int tear_down(void **state)
{
	(void)state;
	process_scratch_remove(folder);
	free(folder);
	return 0;
}

static void put(const char *name, const char *text)
{
	char *path = xasprintf("%s/%s", folder, name);
	struct error err;

	assert_int_equal(file_write(path, text, strlen(text), &err), 0);
	free(path);
}

static void put_all(void)
{
	put("definition.json", definition);
	put("workloads.jsonl", workloads);
	put("task.json", task_json);
}

static void test_load(void **state)
{
	struct error err;
	struct task t;

	(void)state;
	put_all();
	assert_int_equal(task_load(folder, &t, &err), 0);
	assert_string_equal(t.name, "mixed");
	assert_int_equal(t.axis_count, 2);
	assert_true(t.axes[1].is_const && t.axes[1].value == 3);
	assert_int_equal(t.input_count, 6);
	assert_int_equal(t.output_count, 2);
	assert_int_equal(task_input_find(&t, "scale"), 2);
	assert_int_equal(task_output_find(&t, "x"), -1);
	assert_int_equal(task_workload_find(&t, "a"), 0);
	assert_true(t.workloads[0].feedback && !t.workloads[0].final);
	assert_int_equal(t.workloads[0].axes[0], 5);
	assert_int_equal(t.workloads[0].axes[1], 3);
	assert_true(t.workloads[0].scalars[1] == 1 && t.workloads[0].scalars[2] == 0.5 && t.workloads[0].scalars[4] == -7);
	assert_int_equal(task_elements(&t.inputs[0], t.workloads[0].axes), 15);
	assert_int_equal(task_bytes(&t.inputs[0], t.workloads[0].axes), 60);
	assert_int_equal(task_bytes(&t.inputs[5], t.workloads[0].axes), 3); /* five codes of four bits */
	assert_int_equal(task_bytes(&t.outputs[0], t.workloads[0].axes), 30);
	assert_int_equal(task_elements(&t.outputs[1], t.workloads[0].axes), 1);
	assert_true(t.outputs[0].tolerance.r < 0 && t.outputs[1].tolerance.r == 0.5 && t.outputs[1].tolerance.absolute == 1);
	assert_int_equal(t.inputs[2].vary_count, 2);
	assert_true(t.input_sets[SET_SHIFTED] && !t.input_sets[SET_NORMAL]);
	assert_string_equal(t.libraries[0], "openblas");
	assert_int_equal(t.memory_bytes, 2 << 20);
	task_release(&t);
}

/* Change the first `from` of a file into `to`: the task must be refused with a message that holds `why`. */
static void refused(const char *name, const char *text, const char *from, const char *to, const char *why)
{
	const char *at = strstr(text, from);
	char *changed = at ? xasprintf("%.*s%s%s", (int)(at - text), text, to, at + strlen(from)) : NULL;
	struct error err = { .code = KM_OK };
	struct task t;

	assert_non_null(changed);
	put_all();
	put(name, changed);
	if (task_load(folder, &t, &err) == 0)
		fail_msg("accepted: %s -> %s", from, to);
	assert_int_equal(err.code, KM_EXIT_INPUT);
	if (!strstr(err.text, why) || !strstr(err.text, name))
		fail_msg("'%s' does not say '%s' and '%s'", err.text, why, name);
	free(changed);
}

/* As many outputs as there are patches in a batch's message on cuda. */
static void test_too_many_outputs(void **state)
{
	char *more = xstrdup("\"outputs\": {");

	(void)state;
	for (int i = 0; i < TASK_MAX_TENSORS - 1; i++) {
		char *longer = xasprintf("%s\"o%d\": {\"shape\": [], \"dtype\": \"int32\"}, ", more, i);

		free(more);
		more = longer;
	}
	refused("definition.json", definition, "\"outputs\": {", more, "33 outputs, where 1 to 32 are allowed");
	free(more);
}

static void test_refused_definition(void **state)
{
	static const char file[] = "definition.json";

	(void)state;
	refused(file, definition, "\"rows\": {\"type\": \"var\"}", "\"int\": {\"type\": \"var\"}", "cannot be called 'int'");
	refused(file, definition, "\"rows\": {\"type\": \"var\"}", "\"a b\": {\"type\": \"var\"}", "cannot be called 'a b'");
	refused(file, definition, "\"value\": 3", "\"parent\": \"x\"", "'columns'");
	refused(file, definition, "\"scale\"", "\"rows\"", "cannot be called 'rows'");
	refused(file, definition, "\"scale\"", "\"workspace\"", "cannot be called 'workspace'");
	refused(file, definition, "\"y\": {", "\"x\": {", "both an input and an output");
	refused(file, definition, "\"shape\": [\"rows\"]", "\"shape\": [\"lines\"]", "unknown axis");
	refused(file, definition, "\"shape\": []", "\"shape\": null", "no shape for the output 'z'");
	refused(file, definition, "\"float32\"", "\"float33\"", "float33");
	refused(file, definition, "{\"name\"", "{\"nam\"", "name");
	refused(file, definition, "{\"name\"", "{{\"name\"", "cannot parse");
}

static void test_refused_workloads(void **state)
{
	static const char file[] = "workloads.jsonl";
	char *twice = xasprintf("%s%s", workloads, workloads);

	(void)state;
	refused(file, workloads, "\"mixed\"", "\"other\"", "another definition");
	refused(file, workloads, "{\"rows\": 5}", "{}", "no usable value for the axis 'rows'");
	refused(file, workloads, "{\"rows\": 5}", "{\"rows\": 5, \"lines\": 1}", "unknown or fixed axis 'lines'");
	refused(file, workloads, "{\"rows\": 5}", "{\"rows\": 5, \"columns\": 4}", "unknown or fixed axis 'columns'");
	refused(file, workloads, "{\"rows\": 5}", "{\"rows\": 900000000000000}", "too large");
	refused(file, workloads, "\"x\": {\"type\": \"random\"}, ", "", "'x' is missing");
	refused(file, workloads, "\"x\": {\"type\": \"random\"}", "\"x\": {\"type\": \"scalar\", \"value\": 1}", "wrong type");
	refused(file, workloads, "{\"type\": \"scalar\", \"value\": true}", "{\"type\": \"scalar\"}", "'flag'");
	refused(file, workloads, "\"x\": {", "\"q\": {\"type\": \"random\"}, \"x\": {", "unknown input 'q'");
	refused(file, workloads, "\"uuid\": \"a\"", "\"uuid\": 1", "line 1");
	refused(file, twice, "", "", "two workloads are called 'a'");
	free(twice);
}

static void test_refused_task(void **state)
{
	static const char file[] = "task.json";

	(void)state;
	refused(file, task_json, "\"feedback\": [\"a\"]", "\"feedback\": []", "no feedback workload");
	refused(file, task_json, "\"feedback\": [\"a\"]", "\"feedback\": [\"b\"]", "unknown workload 'b'");
	refused(file, task_json, "\"feedback\": [\"a\"]", "\"feedback\": [\"a\", \"a\"]", "named twice");
	refused(file, task_json, "\"z\": {\"a\"", "\"q\": {\"a\"", "unknown output 'q'");
	refused(file, task_json, "\"y\": {\"a\": 0.1, \"c\": 0.2, \"r\": null}, ", "", "no tolerance for the output 'y'");
	refused(file, task_json, "\"vary\": {\"scale\"", "\"vary\": {\"x\"", "no scalar input");
	refused(file, task_json, "\"cpu\"", "\"tpu\"", "tpu");
	refused(file, task_json, "\"vary\"", "\"peers\": [{\"name\": \"p\", \"kernel\": \"..\"}], \"vary\"", "kernel cannot be");
}

/* The header asserts every offset, so compiling it proves the layout; gcc must also agree on the size. */
static void test_header(void **state)
{
	const char *argv[] = { "gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c", "-", NULL };
	struct process_spec spec = { .argv = argv, .output_ceiling = 1, .pass_stderr = true };
	struct process_result r;
	struct task_layout layout;
	struct error err;
	struct task t;
	struct buf b;

	(void)state;
	put_all();
	assert_int_equal(task_load(folder, &t, &err), 0);
	task_layout(&t, &layout);
	assert_int_equal(layout.axis[1], 8);
	assert_int_equal(layout.input[0], 16); /* const float *x */
	assert_int_equal(layout.input[1], 24); /* uint8_t flag */
	assert_int_equal(layout.input[2], 28); /* float scale */
	assert_int_equal(layout.input[3], 32); /* uint16_t half */
	assert_int_equal(layout.input[4], 40); /* int64_t n */
	assert_int_equal(layout.size, 48 + 8 + 2 * 8 + 16);
	buf_init(&b, 1 << 16);
	task_header(&t, &b);
	buf_puts(&b, "extern int columns[KM_AXIS_COLUMNS == 3 ? 1 : -1];\n"
		     "int km_run(const struct km_args *a) { a->y[0] = (uint16_t)a->x[0]; a->z[0] = a->flag; return (int)a->rows; }\n");
	for (int language = 0; language < 2; language++) {
		argv[1] = language ? "-std=gnu++17" : "-std=gnu11";
		argv[7] = language ? "c++" : "c";
		spec.input = b.data;
		spec.input_len = b.len;
		assert_int_equal(process_run(&spec, &r, &err), 0);
		/* No C++ compiler is needed for anything, so only a compiler that is there may disagree. */
		assert_true(r.exit_code == 0 || (language && !file_exists("/usr/bin/g++")));
		process_result_release(&r);
	}
	buf_release(&b);
	task_release(&t);
}

static uint64_t stored(enum task_dtype dtype, double value)
{
	struct task_tensor t = { .dtype = dtype, .scalar = true };
	uint64_t member = 0;

	task_store_scalar(&t, value, &member);
	return member;
}

static void test_scalars(void **state)
{
	float f = 0.1f;
	uint32_t bits;

	(void)state;
	memcpy(&bits, &f, sizeof(bits));
	assert_int_equal(stored(DTYPE_FLOAT32, 0.1), bits);
	assert_int_equal(stored(DTYPE_INT32, -2.6), 0xfffffffdu);
	assert_int_equal(stored(DTYPE_INT32, 1e20), 0x7fffffffu);
	assert_int_equal(stored(DTYPE_INT8, -1000), 0x80);
	assert_int_equal(stored(DTYPE_INT64, -1), UINT64_MAX);
	assert_int_equal(stored(DTYPE_INT64, 1e30), INT64_MAX);
	assert_int_equal(stored(DTYPE_BOOL, 0.25), 1);
	/* IEEE 754 binary16 and bfloat16, known codes */
	assert_int_equal(stored(DTYPE_FLOAT16, 1), 0x3c00);
	assert_int_equal(stored(DTYPE_FLOAT16, -2.5), 0xc100);
	assert_int_equal(stored(DTYPE_FLOAT16, 65504), 0x7bff);
	assert_int_equal(stored(DTYPE_FLOAT16, 65519.9), 0x7bff);
	assert_int_equal(stored(DTYPE_FLOAT16, 65520), 0x7c00);
	assert_int_equal(stored(DTYPE_FLOAT16, 0x1p-24), 0x0001);
	assert_int_equal(stored(DTYPE_FLOAT16, 0x1p-25), 0x0000);
	assert_int_equal(stored(DTYPE_FLOAT16, 0x1.ffcp-15), 0x0400 - 1 + 1); /* rounds up to the smallest normal */
	assert_int_equal(stored(DTYPE_FLOAT16, 1 + 0x1p-11), 0x3c00);         /* a tie goes to even */
	assert_int_equal(stored(DTYPE_FLOAT16, 1 + 3 * 0x1p-11), 0x3c02);
	assert_int_equal(stored(DTYPE_FLOAT16, (double)INFINITY), 0x7c00);
	assert_int_equal(stored(DTYPE_BFLOAT16, 1), 0x3f80);
	assert_int_equal(stored(DTYPE_BFLOAT16, 0.0883883), 0x3db5);
	assert_int_equal(stored(DTYPE_BFLOAT16, -0.0), 0x8000);
	assert_int_equal(stored(DTYPE_BFLOAT16, 3.4e38), 0x7f80);
}

/* The sum depends on every file that a verdict depends on, and on nothing else. */
static void test_sum(void **state)
{
	char before[HASH_HEX + 1];
	struct error err;
	struct task t;

	(void)state;
	put_all();
	assert_int_equal(task_load(folder, &t, &err), 0);
	memcpy(before, t.sha256, sizeof(before));
	put("README.md", "words");
	assert_int_equal(task_sha256(&t, t.sha256, &err), 0);
	assert_string_equal(before, t.sha256);
	put("baseline.c", "int a;");
	assert_int_equal(task_sha256(&t, t.sha256, &err), 0);
	assert_string_not_equal(before, t.sha256);
	task_release(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_load), cmocka_unit_test(test_refused_definition), cmocka_unit_test(test_too_many_outputs), cmocka_unit_test(test_refused_workloads),
		cmocka_unit_test(test_refused_task), cmocka_unit_test(test_header), cmocka_unit_test(test_scalars), cmocka_unit_test(test_sum),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
