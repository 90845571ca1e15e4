#include "evidence.h"

#include "file.h"
#include "json.h"
#include "outline.h"
#include "text.h"
#include "util.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int evidence_code(const char *kernel_path, const char *language, struct buf *out, struct error *err)
{
	struct buf source;
	int status;

	buf_init(&source, JSON_MAX_BYTES);
	status = file_read(kernel_path, &source, err);
	if (status == 0 && source.len == 0) {
		buf_puts(out, "(There is no code: the reply held none.)\n");
	} else if (status == 0) {
		char *clean = text_clean(source.data, source.len);
		char *excerpt = text_excerpt(clean, EVIDENCE_CODE_MAX);

		text_fence(out, language, excerpt);
		free(excerpt);
		free(clean);
	}
	buf_release(&source);
	return status;
}

/* "M=64 N=480" */
static void append_axes(const cJSON *axes, struct buf *out)
{
	const cJSON *axis;

	cJSON_ArrayForEach(axis, axes) {
		buf_puts(out, axis == axes->child ? "" : " ");
		text_line(out, axis->string, 40);
		buf_printf(out, "=%.0f", axis->valuedouble);
	}
}

/* A microsecond value with three or four significant digits, "-" for none. */
static void append_time(const cJSON *workload, const char *key, struct buf *out)
{
	double us = json_number(workload, key, -1);

	if (us < 0)
		buf_puts(out, "-");
	else
		buf_printf(out, us < 10 ? "%.2f" : us < 1000 ? "%.1f" : "%.0f", us);
}

/* GB/s and GFLOP/s: what is counted by 1e-3 of the microseconds. */
static void append_rate(double count, double us, struct buf *out)
{
	if (count > 0 && us > 0)
		buf_printf(out, "%.2f", count / us * 1e-3);
	else
		buf_puts(out, "-");
}

static void append_workload(const cJSON *workload, bool cuda, struct buf *out)
{
	double median = json_number(workload, "median_us", -1), floor_us = json_number(workload, "floor_us", -1);
	double speedup = json_number(workload, "speedup", -1), flops = json_number(workload, "flops", -1), noise = json_number(workload, "noise", -1);

	buf_puts(out, "| ");
	append_axes(json_get(workload, "axes"), out);
	buf_puts(out, " | ");
	append_time(workload, "median_us", out);
	buf_puts(out, " | ");
	append_time(workload, "baseline_us", out);
	buf_puts(out, " | ");
	if (speedup >= 0)
		outline_factor(speedup, out);
	else
		text_line(out, json_string(workload, "status"), 40);
	buf_puts(out, " | ");
	if (floor_us > 0 && median > 0)
		buf_printf(out, "%.0f %%", 100 * floor_us / median);
	else
		buf_puts(out, "-");
	buf_puts(out, " | ");
	append_rate(flops, median, out);
	buf_puts(out, " | ");
	if (cuda) {
		append_rate(json_number(workload, "bytes", -1), median, out);
		buf_puts(out, " | ");
	}
	if (noise >= 0)
		buf_printf(out, "%.1f %%", 100 * noise);
	else
		buf_puts(out, "-");
	buf_puts(out, " |\n");
}

static bool is_cuda(const cJSON *bench)
{
	const char *target = json_string(json_get(bench, "device"), "target");

	return target && strcmp(target, "cuda") == 0;
}

static void append_times(const cJSON *bench, struct buf *out)
{
	const cJSON *workload;
	bool cuda = is_cuda(bench);
	int rows = 0;

	buf_printf(out, "| workload | time us | baseline us | times the baseline | share of the floor | GFLOP/s |%s noise |\n|---|---|---|---|---|---|%s---|\n",
		   cuda ? " GB/s |" : "", cuda ? "---|" : "");
	cJSON_ArrayForEach(workload, json_get(bench, "workloads"))
		if (strcmp(json_string(workload, "set"), "feedback") == 0 && rows++ < EVIDENCE_WORKLOADS)
			append_workload(workload, cuda, out);
	if (rows > EVIDENCE_WORKLOADS)
		buf_printf(out, "(%d more workloads)\n", rows - EVIDENCE_WORKLOADS);
}

/* ", 45.1 % of the memory's bandwidth"; nothing if it is not known. */
static void append_share(const cJSON *profile, const char *key, const char *of, struct buf *out)
{
	double percent = json_number(profile, key, -1);

	if (percent >= 0)
		buf_printf(out, ", %.3g %% %s", percent, of);
}

static void append_stalls(const cJSON *stalls, struct buf *out)
{
	const cJSON *stall;

	if (cJSON_GetArraySize(stalls))
		buf_puts(out, "; most warps waited for (warps for each instruction issued)");
	cJSON_ArrayForEach(stall, stalls) {
		buf_puts(out, stall == stalls->child ? " " : ", ");
		text_line(out, json_string(stall, "reason"), 40);
		buf_printf(out, " %.3g", json_number(stall, "warps", 0));
	}
}

static void append_profile(const cJSON *workload, const cJSON *profile, struct buf *out)
{
	double moved = json_number(profile, "dram_read_bytes", -1) + json_number(profile, "dram_write_bytes", 0);

	buf_puts(out, "- ");
	append_axes(json_get(workload, "axes"), out);
	buf_printf(out, ": %.0f kernels", json_number(profile, "kernels", 0));
	if (moved >= 0)
		buf_printf(out, ", %.4g MB of device memory moved", moved * 1e-6);
	append_share(profile, "dram_percent", "of the memory's peak", out);
	append_share(profile, "sm_percent", "of the processors' peak", out);
	append_share(profile, "tensor_percent", "of the tensor units' peak", out);
	append_share(profile, "occupancy_percent", "occupancy", out);
	append_share(profile, "l2_hit_percent", "hits in L2", out);
	if (json_number(profile, "registers", -1) >= 0)
		buf_printf(out, ", %.0f registers", json_number(profile, "registers", 0));
	append_stalls(json_get(profile, "stalls"), out);
	buf_putc(out, '\n');
}

/* What a profiler saw, if there was one. */
static void append_profiles(const cJSON *bench, struct buf *out)
{
	const cJSON *workload;
	int shown = 0;

	cJSON_ArrayForEach(workload, json_get(bench, "workloads")) {
		const cJSON *profile = json_get(workload, "profile");

		if (!json_get(profile, "kernels") || strcmp(json_string(workload, "set"), "feedback") != 0 || shown == EVIDENCE_KERNELS)
			continue;
		if (shown++ == 0)
			buf_puts(out, "Profile of one call with cold caches (ncu):\n");
		append_profile(workload, profile, out);
	}
}

static void append_sanitizer(const cJSON *sanitizer, struct buf *out)
{
	const char *text = json_string(sanitizer, "text");

	if (json_number(sanitizer, "errors", 0) <= 0)
		return;
	buf_printf(out, "compute-sanitizer (%s) found %.0f errors:\n", json_string(sanitizer, "tool"), json_number(sanitizer, "errors", 0));
	text_fence(out, "text", text ? text : "");
}

static void append_value(const cJSON *value, struct buf *out)
{
	if (cJSON_IsNumber(value))
		buf_printf(out, "%.9g", value->valuedouble);
	else
		text_line(out, cJSON_IsString(value) ? value->valuestring : "?", 40);
}

static void append_elements(const cJSON *failure, struct buf *out)
{
	const cJSON *element;

	cJSON_ArrayForEach(element, json_get(failure, "elements")) {
		buf_printf(out, "  row %.0f, element %.0f: got ", json_number(element, "row", 0), json_number(element, "index", 0));
		append_value(json_get(element, "got"), out);
		buf_puts(out, ", expected ");
		append_value(json_get(element, "expected"), out);
		buf_putc(out, '\n');
	}
}

static void append_failure(const cJSON *failure, struct buf *out)
{
	const char *set = json_string(failure, "input_set"), *output = json_string(failure, "output");
	double wrong = json_number(failure, "wrong_rows", -1), checked = json_number(failure, "checked_rows", -1);

	if (!cJSON_IsObject(failure))
		return;
	buf_puts(out, "It failed");
	if (json_get(failure, "axes")) {
		buf_puts(out, " at ");
		append_axes(json_get(failure, "axes"), out);
	}
	if (set) {
		buf_puts(out, ", input set ");
		text_line(out, set, 40);
	}
	if (output) {
		buf_puts(out, ", output ");
		text_line(out, output, 60);
	}
	if (wrong >= 0 && checked >= 0)
		buf_printf(out, "; %.0f of %.0f checked rows are wrong", wrong, checked);
	buf_puts(out, ".\n");
	append_elements(failure, out);
}

/* Compiler messages from the first error on; warnings before it are no help. */
static void append_diagnostics(const char *diagnostics, struct buf *out)
{
	const char *error = strstr(diagnostics, "error:"), *start = diagnostics;
	char *excerpt;

	if (!*diagnostics)
		return;
	if (error) {
		for (const char *p = diagnostics; p < error; p++)
			if (*p == '\n')
				start = p + 1;
	}
	excerpt = xstrndup(start, EVIDENCE_DIAGNOSTICS);
	if (strlen(start) > EVIDENCE_DIAGNOSTICS) {
		char *end = strrchr(excerpt, '\n');

		if (end)
			end[1] = 0;
	}
	buf_puts(out, "First messages of the compiler:\n");
	text_fence(out, "text", excerpt);
	free(excerpt);
}

/* "LDG 4, HMMA 32" */
static void append_instructions(const cJSON *instructions, struct buf *out)
{
	const cJSON *count;

	buf_printf(out, "; %.0f instructions", json_number(instructions, "total", 0));
	cJSON_ArrayForEach(count, instructions) {
		if (strcmp(count->string, "total") == 0)
			continue;
		buf_puts(out, ", ");
		text_line(out, count->string, 20);
		buf_printf(out, " %.0f", count->valuedouble);
	}
}

/* What a kernel needs of the device, one line each. */
static void append_resources(const cJSON *resources, struct buf *out)
{
	const cJSON *kernel;
	int shown = 0;

	if (cJSON_GetArraySize(resources))
		buf_puts(out, "Resources (of a thread: registers, spills, stack; of a block: static shared memory):\n");
	cJSON_ArrayForEach(kernel, resources) {
		double stores = json_number(kernel, "spill_store_bytes", 0), loads = json_number(kernel, "spill_load_bytes", 0);
		const char *advice = json_string(kernel, "advice");

		if (shown++ == EVIDENCE_KERNELS)
			break;
		buf_puts(out, "- ");
		text_line(out, json_string(kernel, "kernel"), 100);
		buf_printf(out, ": %.0f registers, %.0f bytes shared", json_number(kernel, "registers", 0), json_number(kernel, "shared_bytes", 0));
		if (json_number(kernel, "stack_bytes", 0) > 0)
			buf_printf(out, ", stack %.0f bytes", json_number(kernel, "stack_bytes", 0));
		if (stores + loads > 0)
			buf_printf(out, ", spills %.0f bytes stored, %.0f loaded", stores, loads);
		else
			buf_puts(out, ", no spills");
		if (json_get(kernel, "instructions"))
			append_instructions(json_get(kernel, "instructions"), out);
		buf_putc(out, '\n');
		if (advice && *advice) {
			buf_puts(out, "  The assembler says: ");
			text_line(out, advice, 400);
			buf_putc(out, '\n');
		}
	}
	if (cJSON_GetArraySize(resources) > EVIDENCE_KERNELS)
		buf_printf(out, "(%d more kernels)\n", cJSON_GetArraySize(resources) - EVIDENCE_KERNELS);
}

static void append_versus(const cJSON *versus, struct buf *out)
{
	if (!cJSON_IsObject(versus))
		return;
	buf_puts(out, "Measured in turns against ");
	text_line(out, json_string(versus, "name"), 60);
	buf_printf(out, ", call by call on the same inputs: %.3f times its speed, judged %s.\n", json_number(versus, "factor", 0),
		   json_string(versus, "verdict"));
}

static void append_status(const cJSON *bench, struct buf *out)
{
	const char *rule = json_string(bench, "rule"), *message = json_string(bench, "message");
	double score = json_number(bench, "score", -1), noise = json_number(bench, "noise", -1);

	buf_printf(out, "Verdict: %s", json_string(bench, "status"));
	if (rule) {
		buf_puts(out, ", rule broken: ");
		text_line(out, rule, 80);
	}
	if (score >= 0) {
		buf_puts(out, ", ");
		outline_factor(score / 100, out);
		buf_puts(out, " the baseline's speed (mean over the workloads");
		if (noise >= 0)
			buf_printf(out, ", noise %.1f %%", 100 * noise);
		buf_putc(out, ')');
	}
	buf_puts(out, "\n");
	if (message && *message) {
		buf_puts(out, "Message: ");
		text_line(out, message, 800);
		buf_putc(out, '\n');
	}
}

static void describe(const cJSON *build, const cJSON *bench, struct buf *out)
{
	if (json_get(bench, "skip")) {
		buf_puts(out, "(Not judged: ");
		text_line(out, json_string(bench, "skip"), 200);
		buf_puts(out, ")\n");
		return;
	}
	append_status(bench, out);
	if (json_number(bench, "score", -1) >= 0)
		append_times(bench, out);
	append_profiles(bench, out);
	append_sanitizer(json_get(bench, "sanitizer"), out);
	append_resources(json_get(build, "resources"), out);
	append_versus(json_get(bench, "versus"), out);
	append_failure(json_get(bench, "failure"), out);
	if (json_string(build, "diagnostics") && strcmp(json_string(build, "status"), "BUILT") != 0)
		append_diagnostics(json_string(build, "diagnostics"), out);
}

int evidence_verdict(const char *build_path, const char *bench_path, struct buf *out, struct error *err)
{
	cJSON *build = json_load(build_path, "build", err), *bench = build ? json_load(bench_path, "bench", err) : NULL;
	struct buf text;
	char *excerpt;

	if (bench) {
		buf_init(&text, JSON_MAX_BYTES);
		describe(build, bench, &text);
		excerpt = text_excerpt(text.data, EVIDENCE_MAX);
		buf_puts(out, excerpt);
		free(excerpt);
		buf_release(&text);
	}
	cJSON_Delete(build);
	cJSON_Delete(bench);
	return bench ? 0 : -1;
}

int evidence_times(const char *bench_path, struct buf *out, struct error *err)
{
	cJSON *bench = json_load(bench_path, "bench", err);
	const cJSON *workload;
	int shown = 0;

	cJSON_ArrayForEach(workload, json_get(bench, "workloads")) {
		if (strcmp(json_string(workload, "set"), "feedback") != 0 || shown++ >= EVIDENCE_WORKLOADS)
			continue;
		buf_puts(out, shown > 1 ? " " : "");
		append_time(workload, "median_us", out);
	}
	cJSON_Delete(bench);
	return bench ? 0 : -1;
}
