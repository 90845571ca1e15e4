/* proof_kernels - the half of proof.h that runs kernels. */
#include "proof.h"

#include "build.h"
#include "file.h"
#include "gpu.h"
#include "json.h"
#include "keeper.h"
#include "lease.h"
#include "util.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STALE_MAX = 1 << 20, SHIFT = 256 };

/* How a kernel is made from the task's definition and baseline, and what becomes of it: the baseline passes all workloads;
 * one of the author's edits of it fails some; the others fail all. */
enum kind { BASELINE, ZEROS, NOTHING, HALF, STALE, CONSTANT, SCALED, SHIFTED, NULLED, CHANGED, EDITED };

struct suspect {
	enum kind kind;
	int tensor;          /* SCALED: an output; SHIFTED, NULLED, CHANGED: an input */
	const cJSON *edits;  /* EDITED */
	char name[200];
	struct build build;
};

struct suspects {
	struct suspect *all;
	size_t count;
};

static void add(struct suspects *s, enum kind kind, int tensor, const char *format, ...) __attribute__((format(printf, 4, 5)));

static void add(struct suspects *s, enum kind kind, int tensor, const char *format, ...)
{
	struct suspect *new;
	va_list args;

	s->all = xreallocarray(s->all, s->count + 1, sizeof(*s->all));
	new = &s->all[s->count++];
	memset(new, 0, sizeof(*new));
	new->kind = kind;
	new->tensor = tensor;
	va_start(args, format);
	vsnprintf(new->name, sizeof(new->name), format, args);
	va_end(args);
}

static bool is_integer(enum task_dtype dtype)
{
	return dtype == DTYPE_INT64 || dtype == DTYPE_INT32 || dtype == DTYPE_INT16 || dtype == DTYPE_INT8;
}

/* What proof_reference asks the reference on cpu, kernels are asked on cuda: are small errors found, does every input count? */
static void add_cuda(const struct task *task, struct suspects *s)
{
	add(s, CONSTANT, 0, "a kernel that writes the byte 0x3c");
	for (int o = 0; o < task->output_count; o++)
		if (dtype_bits(task->outputs[o].dtype) >= 16 && !is_integer(task->outputs[o].dtype))
			add(s, SCALED, o, "a kernel whose output '%s' is 2 %% too large", task->outputs[o].name);
	for (int i = 0; i < task->input_count; i++) {
		const struct task_tensor *t = &task->inputs[i];

		if (t->scalar)
			add(s, CHANGED, i, "a kernel that takes another value for '%s'", t->name);
		else if (is_integer(t->dtype))
			add(s, NULLED, i, "a kernel that takes zeros for '%s'", t->name);
		else
			add(s, SHIFTED, i, "a kernel that reads '%s' %d bytes too far", t->name, SHIFT);
	}
}

static void add_all(const struct task *task, struct suspects *s)
{
	const cJSON *wrong;

	add(s, BASELINE, 0, "the baseline");
	add(s, ZEROS, 0, "a kernel that writes zeros");
	add(s, NOTHING, 0, "a kernel that writes nothing");
	add(s, HALF, 0, "a kernel that writes the first half of every output");
	add(s, STALE, 0, "a kernel that gives the outputs of its previous call");
	if (task->target == TASK_CUDA)
		add_cuda(task, s);
	cJSON_ArrayForEach(wrong, json_get(task->task_json, "wrong")) {
		add(s, EDITED, 0, "a kernel that is wrong in this: %s,", json_string(wrong, "name"));
		s->all[s->count - 1].edits = json_get(wrong, "edits");
	}
}

static void release_all(struct suspects *s)
{
	for (size_t i = 0; i < s->count; i++)
		build_release(&s->all[i].build);
	free(s->all);
}

/* ---- their sources --------------------------------------------------------------------------------------------------- */

static const char cpu_functions[] =
	"#include <string.h>\n"
	"static void proof_fill(void *to, int byte, size_t n, const struct km_args *a) { (void)a; memset(to, byte, n); }\n"
	"static void proof_exchange(char *x, char *y, size_t n, const struct km_args *a)\n"
	"{\n\t(void)a;\n\tfor (size_t i = 0; i < n; i++) {\n\t\tchar kept = x[i];\n\n\t\tx[i] = y[i];\n\t\ty[i] = kept;\n\t}\n}\n";

static const char cuda_functions[] =
	"#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n"
	"static void proof_fill(void *to, int byte, size_t n, const struct km_args *a)\n"
	"{\n\tcudaMemsetAsync(to, byte, n, (cudaStream_t)a->stream);\n}\n"
	"__global__ void proof_swap(char *x, char *y, size_t n)\n"
	"{\n\tfor (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += gridDim.x * (size_t)blockDim.x) {\n"
	"\t\tchar kept = x[i];\n\n\t\tx[i] = y[i];\n\t\ty[i] = kept;\n\t}\n}\n"
	"static void proof_exchange(char *x, char *y, size_t n, const struct km_args *a)\n"
	"{\n\tproof_swap<<<256, 256, 0, (cudaStream_t)a->stream>>>(x, y, n);\n}\n"
	"template <class T> __global__ void proof_enlarge(T *x, size_t n)\n"
	"{\n\tfor (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += gridDim.x * (size_t)blockDim.x)\n"
	"\t\tx[i] = (T)((float)x[i] * 1.02f);\n}\n";

/* The baseline under other names, to be called by what follows it. */
static void put_baseline(const char *baseline, struct buf *out)
{
	buf_puts(out, "#define km_run base_run\n#define km_workspace base_workspace\n#define km_init base_init\n");
	buf_puts(out, baseline);
	buf_puts(out, "\n#undef km_run\n#undef km_workspace\n#undef km_init\n");
	if (!strstr(baseline, "km_workspace"))
		buf_puts(out, "static size_t base_workspace(const struct km_args *a) { return (void)a, 0; }\n");
	if (strstr(baseline, "km_init"))
		buf_puts(out, "int km_init(const struct km_args *a) { return base_init(a); }\n");
	/* What is added to the workspace is behind the baseline's own, which finds as many bytes as it asked for. */
	buf_puts(out, "static size_t proof_own(const struct km_args *a) { return (base_workspace(a) + 255) / 256 * 256; }\n"
		      "static size_t proof_smaller(size_t x, size_t y) { return x < y ? x : y; }\n");
}

/* The elements, and the bytes, of a tensor. */
static void put_elements(const struct task *task, const struct task_tensor *t, struct buf *out)
{
	buf_puts(out, "(1ul");
	for (int d = 0; d < t->dims; d++)
		buf_printf(out, " * (size_t)a->%s", task->axes[t->axis[d]].name);
	buf_putc(out, ')');
}

static void put_bytes(const struct task *task, const struct task_tensor *t, struct buf *out)
{
	buf_putc(out, '(');
	put_elements(task, t, out);
	buf_printf(out, " * %zu / 8)", dtype_bits(t->dtype));
}

/* The bytes of an output that STALE keeps. */
static void put_kept(const struct task *task, int output, struct buf *out)
{
	buf_puts(out, "proof_smaller(");
	put_bytes(task, &task->outputs[output], out);
	buf_printf(out, ", %d)", STALE_MAX);
}

static void put_workspace(const struct task *task, const struct suspect *s, struct buf *out)
{
	buf_puts(out, "size_t km_workspace(const struct km_args *a)\n{\n\tsize_t n = proof_own(a);\n\n");
	for (int o = 0; s->kind == STALE && o < task->output_count; o++) {
		buf_puts(out, "\tn += ");
		put_kept(task, o, out);
		buf_puts(out, ";\n");
	}
	if (s->kind == NULLED) {
		buf_puts(out, "\tn += ");
		put_bytes(task, &task->inputs[s->tensor], out);
		buf_puts(out, ";\n");
	}
	buf_puts(out, "\treturn n;\n}\n");
}

/* Before the baseline is called: with what it is called. */
static void put_change(const struct task *task, const struct suspect *s, struct buf *out)
{
	const struct task_tensor *t = &task->inputs[s->tensor];

	if (s->kind == SHIFTED)
		buf_printf(out, "\tb.%s = (const %s *)((const char *)a->%s + %d);\n", t->name, dtype_c_type(t->dtype), t->name, SHIFT);
	if (s->kind == CHANGED)
		buf_printf(out, "\tb.%s = (%s)(a->%s * 1.5 + 1);\n", t->name, dtype_c_type(t->dtype), t->name);
	if (s->kind == NULLED) {
		buf_puts(out, "\tproof_fill(at, 0, ");
		put_bytes(task, t, out);
		buf_printf(out, ", a);\n\tb.%s = (const %s *)at;\n", t->name, dtype_c_type(t->dtype));
	}
}

/* After it: what becomes of an output. */
static void put_spoiling(const struct task *task, const struct suspect *s, int output, struct buf *out)
{
	const struct task_tensor *t = &task->outputs[output];
	const char *type = t->dtype == DTYPE_BFLOAT16 ? "__nv_bfloat16" : t->dtype == DTYPE_FLOAT16 ? "__half" : "float";

	if (s->kind == STALE) {
		buf_printf(out, "\tproof_exchange((char *)a->%s, at, ", t->name);
		put_kept(task, output, out);
		buf_puts(out, ", a);\n\tat += ");
		put_kept(task, output, out);
		buf_puts(out, ";\n");
	}
	if (s->kind == HALF) {
		buf_printf(out, "\tproof_fill((char *)a->%s + (", t->name);
		put_bytes(task, t, out);
		buf_puts(out, " + 1) / 2, 0, ");
		put_bytes(task, t, out);
		buf_puts(out, " / 2, a);\n");
	}
	if (s->kind == SCALED && output == s->tensor) {
		buf_printf(out, "\tproof_enlarge<<<1024, 256, 0, (cudaStream_t)a->stream>>>((%s *)a->%s, ", type, t->name);
		put_elements(task, t, out);
		buf_puts(out, ");\n");
	}
}

static void put_run(const struct task *task, const struct suspect *s, struct buf *out)
{
	buf_puts(out, "int km_run(const struct km_args *a)\n{\n\tstruct km_args b = *a;\n\tchar *at = (char *)a->workspace + proof_own(a);\n"
		      "\tint result;\n\n\tb.workspace_bytes = base_workspace(a);\n");
	put_change(task, s, out);
	buf_puts(out, "\tresult = base_run(&b);\n");
	for (int o = 0; o < task->output_count; o++)
		put_spoiling(task, s, o, out);
	buf_puts(out, "\t(void)at;\n\treturn result;\n}\n");
}

static void put_bytes_only(const struct task *task, const struct suspect *s, struct buf *out)
{
	buf_puts(out, "int km_run(const struct km_args *a)\n{\n\t(void)a;\n");
	for (int o = 0; s->kind != NOTHING && o < task->output_count; o++) {
		buf_printf(out, "\tproof_fill(a->%s, %d, ", task->outputs[o].name, s->kind == CONSTANT ? 0x3c : 0);
		put_bytes(task, &task->outputs[o], out);
		buf_puts(out, ", a);\n");
	}
	buf_puts(out, "\treturn 0;\n}\n");
}

/* The baseline, with each edit's text replaced where it stands first. */
static int put_edited(const struct task *task, const struct suspect *s, const char *baseline, struct buf *out, struct error *err)
{
	char *text = xstrdup(baseline);
	const cJSON *edit;

	cJSON_ArrayForEach(edit, s->edits) {
		const char *from = json_string(edit, "from"), *at = strstr(text, from);
		char *edited;

		if (!at) {
			free(text);
			return error_set(err, KM_EXIT_INPUT, "'%s/task.json': the baseline holds no '%s'", task->folder, from);
		}
		edited = xasprintf("%.*s%s%s", (int)(at - text), text, json_string(edit, "to"), at + strlen(from));
		free(text);
		text = edited;
	}
	buf_puts(out, text);
	free(text);
	return 0;
}

static int put_source(const struct task *task, const struct suspect *s, const char *baseline, struct buf *out, struct error *err)
{
	if (s->kind == EDITED)
		return put_edited(task, s, baseline, out, err);
	if (s->kind == BASELINE) {
		buf_puts(out, baseline);
		return 0;
	}
	buf_puts(out, "#include \"task.h\"\n");
	buf_puts(out, task->target == TASK_CUDA ? cuda_functions : cpu_functions);
	if (s->kind == ZEROS || s->kind == NOTHING || s->kind == CONSTANT) {
		put_bytes_only(task, s, out);
		return 0;
	}
	put_baseline(baseline, out);
	put_workspace(task, s, out);
	put_run(task, s, out);
	return 0;
}

static int build_one(const struct proof *p, struct suspect *s, const char *baseline, struct error *err)
{
	struct build_options options = { .no_sandbox = p->no_sandbox };
	struct buf source;
	int result;

	buf_init(&source, 2 * BUILD_SOURCE_MAX);
	result = put_source(p->task, s, baseline, &source, err);
	if (result == 0)
		result = build_kernel(p->task, source.data, source.len, &options, &s->build, err);
	if (result == 0 && s->build.status != BUILD_BUILT)
		result = error_set(err, KM_EXIT_INPUT, "%s, made from '%s/baseline.%s', does not build: %s %s\n%s", s->name, p->task->folder,
				   task_suffix(p->task), s->build.rule, s->build.message, s->build.diagnostics);
	buf_release(&source);
	return result;
}

static int build_all(const struct proof *p, struct suspects *s, struct error *err)
{
	struct buf baseline;
	char *path, name[32];
	int result;

	snprintf(name, sizeof(name), "baseline.%s", task_suffix(p->task));
	path = task_path(p->task, name);
	buf_init(&baseline, BUILD_SOURCE_MAX);
	result = file_read(path, &baseline, err);
	for (size_t i = 0; i < s->count && result == 0; i++)
		result = build_one(p, &s->all[i], baseline.data, err);
	free(path);
	buf_release(&baseline);
	return result;
}

/* ---- calls --------------------------------------------------------------------------------------------------------- */

struct trial {
	const struct proof *p;
	const struct keeper_ops *ops;
	struct keeper *keeper;
	size_t who;
	int workload;
	struct verdict verdict; /* of the last call */
};

static int try_call(struct trial *t, int set, bool vary, struct error *err)
{
	struct keeper_call call;
	struct keeper_check check;

	t->verdict = (struct verdict){ .status = VERDICT_PASSED };
	if (t->ops->inputs(t->keeper, t->workload, set, vary, err) < 0 ||
	    t->ops->call(t->keeper, t->who, &call, &t->verdict, err) < 0)
		return -1;
	if (t->verdict.status != VERDICT_PASSED)
		return 0;
	return t->ops->check(t->keeper, t->who, true, &check, &t->verdict, err);
}

/* Until a call does not pass. */
static int try_workload(struct trial *t, struct error *err)
{
	t->verdict = (struct verdict){ .status = VERDICT_PASSED };
	if (t->ops->select(t->keeper, t->who, t->workload, &t->verdict, err) < 0)
		return -1;
	for (int i = 0; i < 2 * SET_COUNT && t->verdict.status == VERDICT_PASSED; i++)
		if (t->p->task->input_sets[i % SET_COUNT] && try_call(t, i % SET_COUNT, i >= SET_COUNT, err) < 0)
			return -1;
	return 0;
}

static void report(const struct trial *t, const char *statement, enum verdict_status wanted)
{
	char why[800];

	snprintf(why, sizeof(why), "%s%s%s", verdict_name(t->verdict.status), t->verdict.message[0] ? ": " : "", t->verdict.message);
	t->p->report(t->p->context, t->verdict.status == wanted, statement, t->verdict.status == wanted ? "" : why);
}

/* Whether the runner lives, and may be called again. */
static bool goes_on(const struct trial *t)
{
	return t->verdict.status == VERDICT_PASSED || t->verdict.status == VERDICT_INCORRECT;
}

static int prove_everywhere(struct trial *t, const struct suspect *s, struct error *err)
{
	const struct task *task = t->p->task;
	bool passes = s->kind == BASELINE;

	for (t->workload = 0; t->workload < task->workload_count; t->workload++) {
		char statement[400];

		if (goes_on(t) && try_workload(t, err) < 0)
			return -1;
		snprintf(statement, sizeof(statement), "%s %s workload %s", s->name, passes ? "passes" : "fails", task->workloads[t->workload].uuid);
		report(t, statement, passes ? VERDICT_PASSED : VERDICT_INCORRECT);
	}
	return 0;
}

static int prove_somewhere(struct trial *t, const struct suspect *s, struct error *err)
{
	const struct task *task = t->p->task;
	char statement[400];

	for (t->workload = 0; t->workload < task->workload_count && t->verdict.status == VERDICT_PASSED; t->workload++)
		if (try_workload(t, err) < 0)
			return -1;
	snprintf(statement, sizeof(statement), "%s fails some workload", s->name);
	report(t, statement, VERDICT_INCORRECT);
	return 0;
}

static int prove_suspect(struct trial *t, const struct suspect *s, struct error *err)
{
	struct keeper_kernel kernel = { s->build.library.data, s->build.library.len, false };
	int result;

	t->verdict = (struct verdict){ .status = VERDICT_PASSED };
	if (t->ops->start(t->keeper, t->who, &kernel, &t->verdict, err) < 0)
		return -1;
	result = s->kind == EDITED ? prove_somewhere(t, s, err) : prove_everywhere(t, s, err);
	t->ops->stop(t->keeper, t->who);
	return result;
}

static int prove_all(const struct proof *p, const struct suspects *s, const struct gpu *gpu, struct error *err)
{
	struct task task = *p->task; /* on cpu with a workspace in which a copy of some outputs has room; on cuda the task must have it */
	int *all = xcalloc((size_t)task.workload_count, sizeof(*all)), result = -1;
	struct keeper_options options = { .task = &task, .reference = p->reference, .workloads = all, .participants = s->count,
					  .workload_count = (size_t)task.workload_count, .gpu = gpu, .no_sandbox = p->no_sandbox };
	struct trial t = { .p = p, .ops = keeper_of(task.target) };

	for (int w = 0; w < task.workload_count; w++)
		all[w] = w;
	task.workspace_bytes += 256 + (size_t)task.output_count * STALE_MAX;
	t.keeper = t.ops->open(&options, err);
	if (t.keeper)
		for (result = 0; t.who < s->count && result == 0; t.who++)
			result = prove_suspect(&t, &s->all[t.who], err);
	if (t.keeper)
		t.ops->close(t.keeper);
	free(all);
	return result;
}

static int prove_on_cpu(const struct proof *p, const struct suspects *s, struct error *err)
{
	int lease = lease_take("cpu", err), result = lease < 0 ? -1 : prove_all(p, s, NULL, err);

	lease_drop(lease);
	return result;
}

static int prove_on_gpu(const struct proof *p, const struct suspects *s, const struct gpu *gpus, int count, struct error *err)
{
	const struct gpu *gpu = NULL;
	int lease = gpu_lease(gpus, count, &gpu, NULL, err), result = -1;

	if (lease >= 0)
		result = prove_all(p, s, gpu, err);
	lease_drop(lease);
	return result;
}

int proof_kernels(const struct proof *p, struct error *err)
{
	struct suspects s = { NULL, 0 };
	struct gpu gpus[GPU_MAX];
	bool cuda = p->task->target == TASK_CUDA;
	int count = 0, result;

	/* First, since it needs no device: what is built without one is in the cache when there is. */
	add_all(p->task, &s);
	result = build_all(p, &s, err);
	if (result == 0 && cuda && (count = gpu_list(gpus, err)) < 0)
		result = -1;
	if (result == 0)
		result = cuda ? prove_on_gpu(p, &s, gpus, count, err) : prove_on_cpu(p, &s, err);
	release_all(&s);
	return result;
}
