/* proof_kernels - the half of proof.h that runs kernels. */
#include "proof.h"

#include "build.h"
#include "file.h"
#include "keeper.h"
#include "lease.h"
#include "util.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum kind { BASELINE, ZEROS, NOTHING, HALF, STALE, KINDS };

static const char *const names[KINDS] = {
	"the baseline", "a kernel that writes zeros", "a kernel that writes nothing",
	"a kernel that writes the first half of every output", "a kernel that gives the outputs of its previous call",
};

/* ---- their sources, made from the task's definition and baseline --------------------------------------------------- */

/* The baseline under other names, to be called by what follows it. */
static void put_baseline(const char *baseline, struct buf *out)
{
	buf_puts(out, "#include \"task.h\"\n#include <string.h>\n#define km_run base_run\n#define km_workspace base_workspace\n"
		      "#define km_init base_init\n");
	buf_puts(out, baseline);
	buf_puts(out, "\n#undef km_run\n#undef km_workspace\n#undef km_init\n");
	if (!strstr(baseline, "km_workspace"))
		buf_puts(out, "static size_t base_workspace(const struct km_args *a) { return (void)a, 0; }\n");
	if (strstr(baseline, "km_init"))
		buf_puts(out, "int km_init(const struct km_args *a) { return base_init(a); }\n");
}

/* The bytes of an output. */
static void put_bytes(const struct task *task, int output, struct buf *out)
{
	const struct task_tensor *t = &task->outputs[output];

	buf_puts(out, "(1ul");
	for (int d = 0; d < t->dims; d++)
		buf_printf(out, " * (size_t)a->%s", task->axes[t->axis[d]].name);
	buf_printf(out, " * %zu / 8)", dtype_bits(t->dtype));
}

/* What HALF and STALE have in common: room behind the baseline's workspace for a copy of all outputs. */
static void put_workspace(const struct task *task, struct buf *out)
{
	buf_puts(out, "static size_t own(const struct km_args *a) { return (base_workspace(a) + 63) / 64 * 64; }\n"
		      "size_t km_workspace(const struct km_args *a)\n{\n\tsize_t n = own(a);\n\n");
	for (int o = 0; o < task->output_count; o++) {
		buf_puts(out, "\tn += ");
		put_bytes(task, o, out);
		buf_puts(out, ";\n");
	}
	buf_puts(out, "\treturn n;\n}\n");
}

static void put_run(const struct task *task, enum kind kind, struct buf *out)
{
	buf_puts(out, "int km_run(const struct km_args *a)\n{\n\tchar *at = (char *)a->workspace + own(a);\n\tint result;\n\n");
	for (int o = 0; kind == HALF && o < task->output_count; o++) {
		buf_printf(out, "\tmemcpy(at, a->%s, ", task->outputs[o].name);
		put_bytes(task, o, out);
		buf_puts(out, ");\n\tat += ");
		put_bytes(task, o, out);
		buf_puts(out, ";\n");
	}
	buf_puts(out, "\tresult = base_run(a);\n\tat = (char *)a->workspace + own(a);\n");
	for (int o = 0; o < task->output_count; o++) {
		buf_puts(out, "\tfor (size_t n = ");
		put_bytes(task, o, out);
		buf_printf(out, ", i = %s; i < n; i++) {\n\t\tchar new = ((char *)a->%s)[i];\n\n\t\t((char *)a->%s)[i] = at[i];\n"
				"\t\tat[i] = new;\n\t}\n\tat += ", kind == HALF ? "(n + 1) / 2" : "0", task->outputs[o].name,
			   task->outputs[o].name);
		put_bytes(task, o, out);
		buf_puts(out, ";\n");
	}
	buf_puts(out, "\treturn result;\n}\n");
}

static void put_zeros(const struct task *task, enum kind kind, struct buf *out)
{
	buf_puts(out, "#include \"task.h\"\n#include <string.h>\nint km_run(const struct km_args *a)\n{\n\t(void)a;\n");
	for (int o = 0; kind == ZEROS && o < task->output_count; o++) {
		buf_printf(out, "\tmemset(a->%s, 0, ", task->outputs[o].name);
		put_bytes(task, o, out);
		buf_puts(out, ");\n");
	}
	buf_puts(out, "\treturn 0;\n}\n");
}

static void put_source(const struct task *task, enum kind kind, const char *baseline, struct buf *out)
{
	if (kind == BASELINE) {
		buf_puts(out, baseline);
	} else if (kind == ZEROS || kind == NOTHING) {
		put_zeros(task, kind, out);
	} else {
		put_baseline(baseline, out);
		put_workspace(task, out);
		put_run(task, kind, out);
	}
}

static int build_all(const struct proof *p, struct build *builds, struct error *err)
{
	struct build_options options = { .no_sandbox = p->no_sandbox };
	struct buf baseline, source;
	char *path, name[32];
	int result;

	snprintf(name, sizeof(name), "baseline.%s", task_suffix(p->task));
	path = task_path(p->task, name);
	buf_init(&baseline, BUILD_SOURCE_MAX);
	buf_init(&source, 2 * BUILD_SOURCE_MAX);
	result = file_read(path, &baseline, err);
	for (int kind = 0; kind < KINDS && result == 0; kind++) {
		buf_clear(&source);
		put_source(p->task, (enum kind)kind, baseline.data, &source);
		result = build_kernel(p->task, source.data, source.len, &options, &builds[kind], err);
		if (result == 0 && builds[kind].status != BUILD_BUILT)
			result = error_set(err, KM_EXIT_INPUT, "%s, made from '%s', does not build: %s %s\n%s", names[kind], path,
					   builds[kind].rule, builds[kind].message, builds[kind].diagnostics);
	}
	free(path);
	buf_release(&baseline);
	buf_release(&source);
	return result;
}

/* ---- calls --------------------------------------------------------------------------------------------------------- */

struct trial {
	const struct proof *p;
	const struct keeper_ops *ops;
	struct keeper *keeper;
	enum kind kind;
	int workload;
	struct verdict verdict; /* of the last call */
};

static int try_call(struct trial *t, int set, bool vary, struct error *err)
{
	struct keeper_call call;
	struct keeper_check check;

	t->verdict = (struct verdict){ .status = VERDICT_PASSED };
	if (t->ops->inputs(t->keeper, t->workload, set, vary, err) < 0 ||
	    t->ops->call(t->keeper, (size_t)t->kind, &call, &t->verdict, err) < 0)
		return -1;
	if (t->verdict.status != VERDICT_PASSED)
		return 0;
	return t->ops->check(t->keeper, (size_t)t->kind, true, &check, &t->verdict, err);
}

/* The baseline: until a call does not pass. Others: until one is found to be wrong. */
static int try_workload(struct trial *t, struct error *err)
{
	t->verdict = (struct verdict){ .status = VERDICT_PASSED };
	if (t->ops->select(t->keeper, (size_t)t->kind, t->workload, &t->verdict, err) < 0)
		return -1;
	for (int i = 0; i < 2 * SET_COUNT && t->verdict.status == VERDICT_PASSED; i++)
		if (t->p->task->input_sets[i % SET_COUNT] && try_call(t, i % SET_COUNT, i >= SET_COUNT, err) < 0)
			return -1;
	return 0;
}

static int prove_kind(struct trial *t, const struct build *build, struct error *err)
{
	const struct task *task = t->p->task;
	struct keeper_kernel kernel = { build->library.data, build->library.len, false };
	enum verdict_status wanted = t->kind == BASELINE ? VERDICT_PASSED : VERDICT_INCORRECT;

	t->verdict = (struct verdict){ .status = VERDICT_PASSED };
	if (t->ops->start(t->keeper, (size_t)t->kind, &kernel, &t->verdict, err) < 0)
		return -1;
	for (t->workload = 0; t->workload < task->workload_count; t->workload++) {
		char statement[300], why[800];

		if ((t->verdict.status == VERDICT_PASSED || t->verdict.status == VERDICT_INCORRECT) && try_workload(t, err) < 0)
			return -1;
		snprintf(statement, sizeof(statement), "%s %s workload %s", names[t->kind],
			 t->kind == BASELINE ? "passes" : "fails", task->workloads[t->workload].uuid);
		snprintf(why, sizeof(why), "%s%s%s", verdict_name(t->verdict.status), t->verdict.message[0] ? ": " : "",
			 t->verdict.message);
		t->p->report(t->p->context, t->verdict.status == wanted, statement, t->verdict.status == wanted ? "" : why);
	}
	t->ops->stop(t->keeper, (size_t)t->kind);
	return 0;
}

static int prove_all(const struct proof *p, const struct build *builds, struct error *err)
{
	struct task task = *p->task; /* with a workspace in which a copy of the outputs has room */
	int *all = xcalloc((size_t)task.workload_count, sizeof(*all)), result = -1;
	struct keeper_options options = { .task = &task, .reference = p->reference, .workloads = all, .participants = KINDS,
					  .workload_count = (size_t)task.workload_count, .no_sandbox = p->no_sandbox };
	struct trial t = { .p = p, .ops = &keeper_cpu };
	size_t most = 0;

	for (int w = 0; w < task.workload_count; w++) {
		size_t bytes = 64;

		all[w] = w;
		for (int o = 0; o < task.output_count; o++)
			bytes += task_bytes(&task.outputs[o], task.workloads[w].axes);
		most = bytes > most ? bytes : most;
	}
	task.workspace_bytes += most;
	t.keeper = t.ops->open(&options, err);
	if (t.keeper)
		for (result = 0; (int)t.kind < KINDS && result == 0; t.kind++)
			result = prove_kind(&t, &builds[t.kind], err);
	if (t.keeper)
		t.ops->close(t.keeper);
	free(all);
	return result;
}

int proof_kernels(const struct proof *p, struct error *err)
{
	struct build builds[KINDS] = { 0 };
	int result, lease = -1;

	result = build_all(p, builds, err);
	if (result == 0) {
		lease = lease_take("cpu", err);
		result = lease < 0 ? -1 : prove_all(p, builds, err);
		lease_drop(lease);
	}
	for (int kind = 0; kind < KINDS; kind++)
		build_release(&builds[kind]);
	return result;
}
