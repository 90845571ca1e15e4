#include "report.h"

#include "json.h"
#include "util.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- bench.json ------------------------------------------------------------------------------------------------- */

char *report_device(void)
{
	FILE *f = fopen("/proc/cpuinfo", "r");
	char line[512], *colon, *name = NULL;

	while (f && !name && fgets(line, sizeof(line), f)) {
		if (!starts_with(line, "model name") || !(colon = strchr(line, ':')))
			continue;
		colon[1 + strcspn(colon + 1, "\n")] = 0;
		name = xstrdup(colon + 1 + strspn(colon + 1, " "));
	}
	if (f)
		fclose(f);
	return name ? name : xstrdup("cpu");
}

/* Of a device other than the cpu nothing is known until it was used. */
static cJSON *device_of(const cJSON *build)
{
	cJSON *device = cJSON_CreateObject();
	const char *target = json_string(build, "target");
	char *name = target && strcmp(target, "cpu") != 0 ? xstrdup("unknown") : report_device();

	json_set_string(device, "name", name);
	json_set_string(device, "target", target ? target : "cpu");
	free(name);
	return device;
}

static cJSON *range_json(const struct keeper_range *r)
{
	const double numbers[] = { r->least, r->median, r->most };

	return isnan(r->median) ? cJSON_CreateNull() : cJSON_CreateDoubleArray(numbers, 3);
}

static void fill_device(cJSON *device, const struct keeper_facts *facts)
{
	cJSON *clocks = cJSON_CreateObject();

	json_set_string(device, "name", facts->name);
	json_set_string(device, "uuid", facts->uuid);
	json_set_number(device, "driver", facts->driver);
	json_set(clocks, "processor_mhz", range_json(&facts->processor_mhz));
	json_set(clocks, "memory_mhz", range_json(&facts->memory_mhz));
	json_set(clocks, "slowed", isnan(facts->processor_mhz.median) ? cJSON_CreateNull() : cJSON_CreateBool(facts->slowed));
	json_set(device, "clocks", clocks);
}

cJSON *report_new(const cJSON *build, const char *status, const char *rule, const char *message)
{
	cJSON *d = cJSON_CreateObject();

	json_made_by(d, "km-bench");
	json_set_string(d, "cue", json_string(build, "cue"));
	json_set_string(d, "status", status);
	json_set_string(d, "rule", rule && *rule ? rule : NULL);
	json_set_string(d, "message", message ? message : "");
	json_set_string(d, "task", json_string(build, "task"));
	json_set_string(d, "source_sha256", json_string(build, "source_sha256"));
	json_set_string(d, "code_sha256", json_string(build, "code_sha256"));
	json_set(d, "score", cJSON_CreateNull());
	json_set(d, "noise", cJSON_CreateNull());
	json_set(d, "device", device_of(build));
	json_set_number(d, "seconds", 0);
	json_set(d, "workloads", cJSON_CreateArray());
	json_set(d, "versus", cJSON_CreateNull());
	json_set(d, "failure", cJSON_CreateNull());
	return d;
}

static double round_to(double x, double per)
{
	return rint(x * per) / per;
}

/* With as many digits as clocks have: those of short calls are of the device. */
static double microseconds(double seconds)
{
	return fabs(seconds) < 1e-3 ? rint(seconds * 1e9) / 1e3 : rint(seconds * 1e7) / 10;
}

static void set_us(cJSON *o, const char *key, double seconds)
{
	json_set_number(o, key, microseconds(seconds));
}

/* Not one call: no number. */
static void set_times(cJSON *o, const struct judge_times *t, bool baseline)
{
	if (baseline) {
		set_us(o, "baseline_us", t->median);
		return;
	}
	set_us(o, "median_us", t->median);
	set_us(o, "q1_us", t->q1);
	set_us(o, "q3_us", t->q3);
}

static double or_nan(double x, size_t n)
{
	return n ? x : (double)NAN;
}

static cJSON *axes_json(const struct task *task, int workload)
{
	cJSON *axes = cJSON_CreateObject();

	for (int i = 0; i < task->axis_count; i++)
		json_set_number(axes, task->axes[i].name, (double)task->workloads[workload].axes[i]);
	return axes;
}

/* How far our clocks bear the times out. */
static cJSON *clock_json(const struct judge_workload *w)
{
	cJSON *o = cJSON_CreateObject();

	json_set_number(o, "excess_us", microseconds(w->excess));
	json_set_number(o, "arrival_us", microseconds(w->arrival));
	json_set_number(o, "batch_us", microseconds(w->batch));
	json_set_number(o, "batch_calls", (double)w->batch_calls);
	return o;
}

static cJSON *workload_json(const struct task *task, const struct judge_options *options, const struct judge_workload *w)
{
	const struct task_workload *workload = &task->workloads[w->index];
	bool feedback = workload->feedback && options->feedback, timed = w->baseline.gain.n > 0;
	struct judge_times none = { .median = (double)NAN, .q1 = (double)NAN, .q3 = (double)NAN };
	double speedup = timed ? exp(w->baseline.gain.mean) : (double)NAN;
	cJSON *o = cJSON_CreateObject(), *samples = cJSON_CreateArray();

	json_set_string(o, "uuid", workload->uuid);
	json_set(o, "axes", axes_json(task, w->index));
	json_set_string(o, "set", feedback ? "feedback" : "final");
	json_set_string(o, "status", verdict_name(w->status));
	set_times(o, w->candidate.count ? &w->candidate : &none, false);
	set_us(o, "idle_us", or_nan(w->idle, w->candidate.count));
	set_times(o, w->baseline.count ? &w->baseline : &none, true);
	set_us(o, "floor_us", w->floor);
	if (w->floor > 0 && w->candidate.count)
		json_set_number(o, "floor_share", round_to(w->floor / w->candidate.median, 1e4));
	if (!isnan(w->excess))
		json_set(o, "clock", clock_json(w));
	json_set_number(o, "speedup", round_to(speedup, 1e6));
	json_set_number(o, "noise", timed ? round_to(w->baseline.gain.error, 1e6) : (double)NAN);
	json_set_number(o, "flops", or_nan(w->flops, w->calls));
	json_set_number(o, "bytes", or_nan(w->bytes, w->calls));
	json_set_number(o, "max_abs_error", or_nan(w->max_abs_error, w->calls));
	json_set_number(o, "max_rel_error", or_nan(w->max_rel_error, w->calls));
	json_set_number(o, "calls", (double)w->calls);
	if (*w->ended_by)
		json_set_string(o, "ended_by", w->ended_by);
	for (size_t i = 0; i < w->candidate.count; i++)
		cJSON_AddItemToArray(samples, cJSON_CreateNumber(microseconds(w->candidate.seconds[i])));
	json_set(o, "samples_us", samples);
	return o;
}

/* JSON has no NaN and no infinity: they are written as strings. */
static void set_element_value(cJSON *o, const char *key, double value)
{
	if (isfinite(value))
		json_set_number(o, key, value);
	else
		json_set_string(o, key, isnan(value) ? "nan" : value > 0 ? "inf" : "-inf");
}

static cJSON *failure_json(const struct task *task, const struct judge_result *r)
{
	const struct compare_result *wrong = &r->failure.wrong;
	cJSON *o = cJSON_CreateObject(), *elements = cJSON_CreateArray();

	json_set_string(o, "uuid", task->workloads[r->failed_workload].uuid);
	json_set(o, "axes", axes_json(task, r->failed_workload));
	json_set_string(o, "input_set", input_set_name((enum task_input_set)r->failure.input_set));
	json_set_string(o, "output", task->outputs[r->failure.output].name);
	for (int i = 0; i < wrong->wrong_count; i++) {
		cJSON *e = cJSON_CreateObject();

		json_set_number(e, "row", (double)wrong->wrong[i].row);
		json_set_number(e, "index", (double)wrong->wrong[i].index);
		set_element_value(e, "got", wrong->wrong[i].got);
		set_element_value(e, "expected", wrong->wrong[i].expected);
		cJSON_AddItemToArray(elements, e);
	}
	json_set(o, "elements", elements);
	json_set_number(o, "wrong_rows", (double)wrong->wrong_rows);
	json_set_number(o, "checked_rows", (double)wrong->checked_rows);
	return o;
}

static cJSON *versus_json(const char *name, const struct judge_rival *rival, const char *sha256)
{
	static const char *const names[] = { "equal", "better", "worse" };
	cJSON *o = cJSON_CreateObject();
	double z;
	enum versus_verdict verdict = statistics_versus(&rival->gain, rival->smallest, &z);

	json_set_string(o, "name", name);
	json_set_string(o, "code_sha256", sha256);
	json_set_number(o, "factor", round_to(exp(rival->gain.mean), 1e6));
	json_set_number(o, "z", round_to(z, 1e3));
	json_set_string(o, "verdict", names[verdict]);
	return o;
}

static void fill_versus(cJSON *d, const struct judge_options *options, const struct judge_result *r, const char *sha256)
{
	const struct judge_rival *rival = &r->rivals[0];

	if (options->rival_count == 0 || r->verdict.status != VERDICT_PASSED)
		return;
	if (rival->verdict.status == VERDICT_PASSED) {
		json_set(d, "versus", versus_json(options->rivals[0].name, rival, sha256));
	} else {
		char *text = xasprintf("'%s' could not be compared with: %s: %s", options->rivals[0].name,
				       verdict_name(rival->verdict.status), rival->verdict.message);

		json_set_string(d, "message", text);
		free(text);
	}
}

/* Where the seconds went: `seconds` has but a little more in it. */
static cJSON *stages_json(const struct judge_result *r, double listing, double building)
{
	cJSON *o = cJSON_CreateObject();

	json_set_number(o, "listing", listing);
	json_set_number(o, "building", building);
	json_set_number(o, "starting", r->starting);
	json_set_number(o, "checking", r->checking);
	json_set_number(o, "timing", r->timing);
	json_set_number(o, "ending", r->ending);
	return o;
}

void report_fill(cJSON *d, const struct judge_options *options, const struct judge_result *r, double listing, double building,
		 const char *versus_sha256)
{
	cJSON *workloads = cJSON_CreateArray();

	json_set_string(d, "status", verdict_name(r->verdict.status));
	json_set_string(d, "rule", r->verdict.rule[0] ? r->verdict.rule : NULL);
	json_set_string(d, "message", r->verdict.message);
	json_set_bool(d, "sandbox", !options->no_sandbox);
	if (r->has_facts)
		fill_device(json_get_mutable(d, "device"), &r->facts);
	json_set(d, "stages", stages_json(r, listing, building));
	if (r->verdict.status == VERDICT_PASSED) {
		json_set_number(d, "score", round_to(r->score, 1e4));
		json_set_number(d, "noise", round_to(r->noise, 1e6));
	}
	for (size_t i = 0; i < r->workload_count; i++)
		if (r->workloads[i].reached || r->workloads[i].calls)
			cJSON_AddItemToArray(workloads, workload_json(options->task, options, &r->workloads[i]));
	json_set(d, "workloads", workloads);
	fill_versus(d, options, r, versus_sha256);
	if (r->failure.output >= 0)
		json_set(d, "failure", failure_json(options->task, r));
}

/* ---- the table -------------------------------------------------------------------------------------------------- */

static void table_number(struct buf *out, const char *format, double x)
{
	buf_putc(out, '\t');
	if (isfinite(x))
		buf_printf(out, format, x);
	else
		buf_putc(out, '-');
}

/* rival -1: the candidate; -2: the baseline. */
static const struct judge_times *times_for(const struct judge_workload *w, long rival)
{
	return rival == -1 ? &w->candidate : rival == -2 ? &w->baseline : w->rivals ? &w->rivals[rival] : NULL;
}

static void table_line(struct buf *out, const struct judge_result *r, const char *name, enum verdict_status status, double score, long rival)
{
	buf_printf(out, "%s\t%s", name, verdict_name(status));
	table_number(out, "%.3f", score / 100);
	for (size_t i = 0; i < r->workload_count; i++) {
		const struct judge_times *t = times_for(&r->workloads[i], rival);

		table_number(out, t && t->median < 1e-3 ? "%.2f" : "%.1f", t && t->count ? t->median * 1e6 : (double)NAN);
	}
	buf_putc(out, '\n');
}

void report_table(const struct judge_options *options, const struct judge_result *r, struct buf *out)
{
	bool passed = r->verdict.status == VERDICT_PASSED;

	buf_puts(out, "name\tstatus\tfactor");
	for (size_t i = 0; i < r->workload_count; i++)
		buf_printf(out, "\tus:%s", options->task->workloads[r->workloads[i].index].uuid);
	buf_putc(out, '\n');
	table_line(out, r, options->candidate.name, r->verdict.status, r->score, -1);
	table_line(out, r, options->baseline.name, VERDICT_PASSED, passed ? 100 : (double)NAN, -2);
	for (size_t i = 0; i < options->rival_count; i++)
		table_line(out, r, options->rivals[i].name, r->rivals[i].verdict.status, passed ? r->rivals[i].score : (double)NAN, (long)i);
}
