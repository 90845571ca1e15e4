/* keeper_cpu.c - the keeper of the target cpu, inside km-bench itself.
 *
 * All runners map the same two slabs: inputs, which this process alone can write (a kernel that tries faults, and the
 * fault's address says where), and outputs, which are poisoned as a whole before every call. So two kernels meet the
 * same bytes on the same pages, and what differs between them is their code. Each has a scratch slab of its own for its
 * workspace. No runner but the one that is called is running.
 *
 * A call takes what the system's accounts say that its process used of the processor since its last answer, read here,
 * from outside: time for which other work had the processor is not in it. Nothing else can do work for that
 * process: it has one thread, and no system call that would start or await anything. (On two shared cores with a load
 * of 3.5, two calls in a row differed by 15 to 20 % on the wall clock, by 2 to 7 % in this measure.)
 */
#include "keeper.h"

#include "memory.h"
#include "number.h"
#include "oracle.h"
#include "random.h"
#include "runner_process.h"
#include "util.h"

#include <inttypes.h>
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define INIT_SECONDS 5.0

struct participant {
	struct runner_process runner;
	bool started;
	int64_t functions; /* PROTOCOL_HAS_INIT, ... */
	struct slab scratch;
	struct place workspace; /* .bytes 0: none */
	size_t room;            /* part of the scratch slab that its workspace moves in */
	bool fresh;             /* the workspace holds nothing of this workload yet */
};

struct keeper {
	const struct task *task;
	struct keeper_options options;
	struct task_layout layout;
	struct oracle *oracle;
	struct slab inputs, outputs;
	size_t scratch_bytes;
	struct participant *participants;
	cpu_set_t processors; /* that we may use */
	/* of the current inputs */
	int processor;
	int workload, set;
	struct place input_places[TASK_MAX_TENSORS], output_places[TASK_MAX_TENSORS];
	double scalars[TASK_MAX_TENSORS];
	unsigned char args[PROTOCOL_ARGS_MAX] __attribute__((aligned(16))); /* for the oracle: our addresses */
	int64_t rows;
	/* of the last call */
	uint64_t guard_seed;
	/* an earlier right answer of this workload, one block an output; NULL if none */
	unsigned char *earlier[TASK_MAX_TENSORS];
	int earlier_workload;
	uint64_t earlier_inputs, inputs_count; /* of which inputs that is; inputs_count: how often inputs were made */
};

/* ---- sizes ------------------------------------------------------------------------------------------------------ */

static const int64_t *axes_of(const struct keeper *k)
{
	return k->task->workloads[k->workload].axes;
}

/* Bytes of all tensors of one side for a workload; scalars count as nothing. */
static void tensor_bytes(const struct task_tensor *tensors, int count, const int64_t *axes, size_t *bytes)
{
	for (int i = 0; i < count; i++)
		bytes[i] = tensors[i].scalar ? 0 : task_bytes(&tensors[i], axes);
}

static size_t room_for_all(const struct keeper *k, const struct task_tensor *tensors, int count)
{
	size_t most = 4096, bytes[TASK_MAX_TENSORS];

	for (size_t i = 0; i < k->options.workload_count; i++) {
		size_t room;

		tensor_bytes(tensors, count, k->task->workloads[k->options.workloads[i]].axes, bytes);
		room = memory_room(bytes, (size_t)count);
		most = room > most ? room : most;
	}
	return most;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static void cpu_stop(struct keeper *k, size_t who)
{
	struct participant *p = &k->participants[who];

	if (p->started) {
		runner_process_end(&p->runner);
		slab_release(&p->scratch);
	}
	p->started = false;
}

static void forget_earlier(struct keeper *k)
{
	for (int i = 0; i < TASK_MAX_TENSORS; i++) {
		free(k->earlier[i]);
		k->earlier[i] = NULL;
	}
}

static void cpu_close(struct keeper *k)
{
	if (!k)
		return;
	for (size_t i = 0; i < k->options.participants; i++)
		cpu_stop(k, i);
	forget_earlier(k);
	slab_release(&k->inputs);
	slab_release(&k->outputs);
	oracle_close(k->oracle);
	free(k->participants);
	free(k);
}

static struct keeper *cpu_open(const struct keeper_options *options, struct error *err)
{
	struct keeper *k = xcalloc(1, sizeof(*k));
	const struct task *task = options->task;

	k->task = task;
	k->options = *options;
	k->inputs.fd = k->outputs.fd = -1;
	k->participants = xcalloc(options->participants, sizeof(*k->participants));
	if (sched_getaffinity(0, sizeof(k->processors), &k->processors) < 0)
		CPU_ZERO(&k->processors);
	task_layout(task, &k->layout);
	k->scratch_bytes = memory_room(&task->workspace_bytes, 1);
	k->oracle = oracle_open(options->reference, task, err);
	if (k->oracle && k->layout.size > PROTOCOL_ARGS_MAX)
		error_set(err, KM_EXIT_INPUT, "task '%s' has more arguments than fit into %d bytes", task->name, PROTOCOL_ARGS_MAX);
	else if (k->oracle &&
		 slab_make(&k->inputs, "inputs", room_for_all(k, task->inputs, task->input_count), true, true, err) == 0 &&
		 slab_make(&k->outputs, "outputs", room_for_all(k, task->outputs, task->output_count), false, true, err) == 0)
		return k;
	cpu_close(k);
	return NULL;
}

static int cpu_start(struct keeper *k, size_t who, const struct keeper_kernel *kernel, struct verdict *v, struct error *err)
{
	struct participant *p = &k->participants[who];
	const struct slab *slabs[PROTOCOL_SLABS] = { &k->inputs, &k->outputs, &p->scratch };
	struct runner_start start = {
		.program = "km-runner-cpu", .library = kernel->library, .library_bytes = kernel->bytes,
		.slabs.descriptor_count = PROTOCOL_SLABS, .memory_bytes = k->task->memory_bytes, .map_bytes = k->task->memory_bytes,
		.trusted = kernel->trusted, .no_sandbox = k->options.no_sandbox, .interrupted = k->options.interrupted,
	};

	if (slab_make(&p->scratch, "scratch", k->scratch_bytes, false, false, err) < 0)
		return -1;
	for (int i = 0; i < PROTOCOL_SLABS; i++) {
		start.slabs.descriptors[i] = slabs[i]->fd;
		start.slabs.bytes[i] = slabs[i]->bytes;
		start.memory_bytes += slabs[i]->bytes;
	}
	p->started = true;
	return runner_process_start(&p->runner, &start, &p->functions, v, err);
}

/* ---- arguments -------------------------------------------------------------------------------------------------- */

static void store_pointer(unsigned char *args, size_t member, uint64_t address)
{
	memcpy(args + member, &address, sizeof(address));
}

/* struct km_args with axes alone: for km_init and km_workspace. */
static void fill_axes(const struct keeper *k, int workload, unsigned char *args)
{
	memset(args, 0, PROTOCOL_ARGS_MAX);
	for (int i = 0; i < k->task->axis_count; i++)
		memcpy(args + k->layout.axis[i], &k->task->workloads[workload].axes[i], sizeof(int64_t));
}

/* Axes, inputs at `base` and scalars. */
static void fill_inputs(const struct keeper *k, uint64_t base, unsigned char *args)
{
	fill_axes(k, k->workload, args);
	for (int i = 0; i < k->task->input_count; i++) {
		if (k->task->inputs[i].scalar)
			task_store_scalar(&k->task->inputs[i], k->scalars[i], args + k->layout.input[i]);
		else
			store_pointer(args, k->layout.input[i], base + k->input_places[i].offset);
	}
}

static void fill_call(const struct keeper *k, const struct participant *p, unsigned char *args)
{
	fill_inputs(k, p->runner.base[PROTOCOL_INPUT], args);
	for (int i = 0; i < k->task->output_count; i++)
		store_pointer(args, k->layout.output[i], p->runner.base[PROTOCOL_OUTPUT] + k->output_places[i].offset);
	if (p->workspace.bytes) {
		store_pointer(args, k->layout.workspace, p->runner.base[PROTOCOL_SCRATCH] + p->workspace.offset);
		store_pointer(args, k->layout.workspace_bytes, p->workspace.bytes);
	}
}

/* ---- asking ----------------------------------------------------------------------------------------------------- */

/* A write to the inputs faults, since they can only be read; elsewhere a fault is an error as on any machine. */
static void explain_address(const struct keeper *k, const struct participant *p, const char *what, uint64_t address, struct verdict *v)
{
	uint64_t offset = address - p->runner.base[PROTOCOL_INPUT];

	for (int i = 0; i < k->task->input_count && address; i++)
		if (!k->task->inputs[i].scalar && offset - k->input_places[i].offset < k->input_places[i].bytes)
			verdict_set(v, VERDICT_REJECTED, "input-changed", "%s wrote to the input '%s'", what, k->task->inputs[i].name);
	if (address && offset < k->inputs.bytes)
		verdict_set(v, VERDICT_REJECTED, "out-of-bounds", "%s wrote beside an input", what);
	for (int i = 0; i < PROTOCOL_SLABS && address; i++) {
		const struct slab *slab = i == 0 ? &k->inputs : i == 1 ? &k->outputs : &p->scratch;
		uint64_t before = p->runner.base[i] - address, after = address - (p->runner.base[i] + slab->bytes);

		if (before <= PROTOCOL_GAP || after < PROTOCOL_GAP)
			verdict_set(v, VERDICT_REJECTED, "out-of-bounds", "%s ran past the tensors of the task (SIGSEGV)", what);
	}
	if (address)
		verdict_set(v, VERDICT_RUNTIME_ERROR, NULL, "%s was ended by SIGSEGV at address 0x%" PRIx64, what, address);
}

static int ask(struct keeper *k, struct participant *p, struct protocol_message *m, double seconds, const char *what,
	       struct runner_answer *answer, struct verdict *v, struct error *err)
{
	uint64_t address;

	m->args_bytes = (uint32_t)k->layout.size;
	if (runner_process_ask(&p->runner, m, seconds, what, answer, &address, v, err) < 0)
		return -1;
	explain_address(k, p, what, address, v);
	return 0;
}

static int ask_init(struct keeper *k, struct participant *p, int workload, struct verdict *v, struct error *err)
{
	struct protocol_message m = { .kind = PROTOCOL_INIT };
	struct runner_answer answer;

	if (!(p->functions & PROTOCOL_HAS_INIT))
		return 0;
	fill_axes(k, workload, m.args);
	if (ask(k, p, &m, INIT_SECONDS, "km_init", &answer, v, err) < 0)
		return -1;
	if (v->status == VERDICT_PASSED && answer.value != 0)
		verdict_set(v, VERDICT_RUNTIME_ERROR, NULL, "km_init returned %" PRId64, answer.value);
	return 0;
}

static int ask_workspace(struct keeper *k, struct participant *p, int workload, struct verdict *v, struct error *err)
{
	struct protocol_message m = { .kind = PROTOCOL_WORKSPACE };
	struct runner_answer answer;
	size_t bytes;

	p->workspace = (struct place){ 0 };
	if (!(p->functions & PROTOCOL_HAS_WORKSPACE))
		return 0;
	fill_axes(k, workload, m.args);
	if (ask(k, p, &m, INIT_SECONDS, "km_workspace", &answer, v, err) < 0)
		return -1;
	if (v->status != VERDICT_PASSED)
		return 0;
	bytes = (size_t)answer.value;
	if (bytes > k->task->workspace_bytes) {
		verdict_set(v, VERDICT_REJECTED, "workspace", "km_workspace asks for %zu bytes, the task allows %zu", bytes,
			    k->task->workspace_bytes);
		return 0;
	}
	if (bytes == 0)
		return 0;
	p->room = memory_room(&bytes, 1);
	memory_place(p->room, &bytes, 1, random_secret(), &p->workspace);
	p->fresh = true;
	m = (struct protocol_message){ .kind = PROTOCOL_POPULATE, .value = (int64_t)p->room,
				       .where = { p->runner.base[PROTOCOL_SCRATCH] } };
	return ask(k, p, &m, INIT_SECONDS, "the runner", &answer, v, err);
}

static int cpu_select(struct keeper *k, size_t who, int workload, struct verdict *v, struct error *err)
{
	struct participant *p = &k->participants[who];

	if (ask_init(k, p, workload, v, err) < 0)
		return -1;
	return v->status == VERDICT_PASSED ? ask_workspace(k, p, workload, v, err) : 0;
}

/* Draw a processor: processors differ, in kind or in what else runs there, and whoever had the better one by chance
 * would keep it, since the system leaves a process where it was. All calls on the same inputs are on the same one. */
static void draw_processor(struct keeper *k)
{
	int count = CPU_COUNT(&k->processors), skip = count ? (int)ref_below(random_secret(), 0, (uint64_t)count) : 0;

	k->processor = -1;
	for (int i = 0; i < CPU_SETSIZE && k->processor < 0; i++)
		if (CPU_ISSET(i, &k->processors) && skip-- == 0)
			k->processor = i;
}

/* Not being allowed to is no failure. */
static void use_processor(const struct keeper *k, const struct participant *p)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	if (k->processor < 0)
		return;
	CPU_SET(k->processor, &one);
	sched_setaffinity(sandbox_pid(p->runner.sandbox), sizeof(one), &one);
}

/* ---- inputs ----------------------------------------------------------------------------------------------------- */

static int cpu_inputs(struct keeper *k, int workload, int set, bool vary, struct error *err)
{
	const struct task *task = k->task;
	const int64_t *axes = task->workloads[workload].axes;
	uint64_t seed = random_secret();
	size_t bytes[TASK_MAX_TENSORS];

	k->workload = workload;
	k->set = set;
	k->inputs_count++;
	draw_processor(k);
	tensor_bytes(task->inputs, task->input_count, axes, bytes);
	memory_place(k->inputs.bytes, bytes, (size_t)task->input_count, random_secret(), k->input_places);
	tensor_bytes(task->outputs, task->output_count, axes, bytes);
	memory_place(k->outputs.bytes, bytes, (size_t)task->output_count, random_secret(), k->output_places);
	memory_guard(&k->inputs, k->input_places, (size_t)task->input_count, random_secret());
	for (int i = 0; i < task->input_count; i++) {
		const struct task_tensor *t = &task->inputs[i];

		k->scalars[i] = task->workloads[workload].scalars[i];
		if (t->scalar && vary && t->vary_count)
			k->scalars[i] = t->vary[ref_below(random_secret(), 0, t->vary_count)];
		if (!t->scalar)
			random_fill_tensor(t, axes, k->inputs.at + k->input_places[i].offset, set, ref_random(seed, (uint64_t)i));
	}
	fill_inputs(k, (uint64_t)(uintptr_t)k->inputs.at, k->args);
	oracle_inputs(k->oracle, k->args, set, random_secret());
	k->rows = oracle_rows(k->oracle, k->args, axes, err);
	return k->rows < 0 ? -1 : 0;
}

static void cpu_counts(struct keeper *k, double *flops, double *bytes)
{
	oracle_counts(k->oracle, k->args, flops, bytes);
}

/* ---- one call --------------------------------------------------------------------------------------------------- */

static void prepare_outputs(struct keeper *k)
{
	/* That of the same inputs would be right. */
	bool earlier = k->earlier_workload == k->workload && k->earlier_inputs != k->inputs_count;

	for (int i = 0; i < k->task->output_count; i++) {
		struct place *place = &k->output_places[i];
		uint64_t u = random_secret();

		memory_poison(k->outputs.at + place->offset, place->bytes, k->task->outputs[i].dtype,
			      (enum memory_poison)(u % POISON_KINDS), earlier ? k->earlier[i] : NULL, u);
	}
	k->guard_seed = random_secret();
	memory_guard(&k->outputs, k->output_places, (size_t)k->task->output_count, k->guard_seed);
}

/* Zeros, or what its last call left, moved to another place. */
static void prepare_workspace(struct keeper *k, struct participant *p)
{
	size_t old = p->workspace.offset, bytes = p->workspace.bytes;

	if (!bytes)
		return;
	memory_place(p->room, &bytes, 1, random_secret(), &p->workspace);
	if (p->fresh || random_secret() % 2)
		memset(p->scratch.at + p->workspace.offset, 0, bytes);
	else
		memmove(p->scratch.at + p->workspace.offset, p->scratch.at + old, bytes);
	p->fresh = false;
	memory_guard(&p->scratch, &p->workspace, 1, ~k->guard_seed);
}

static void chill(const struct keeper *k, const struct participant *p)
{
	for (int i = 0; i < k->task->input_count; i++)
		memory_flush(k->inputs.at + k->input_places[i].offset, k->input_places[i].bytes);
	for (int i = 0; i < k->task->output_count; i++)
		memory_flush(k->outputs.at + k->output_places[i].offset, k->output_places[i].bytes);
	if (p->workspace.bytes)
		memory_flush(p->scratch.at + p->workspace.offset, p->workspace.bytes);
}

static int cpu_call(struct keeper *k, size_t who, struct keeper_call *call, struct verdict *v, struct error *err)
{
	struct participant *p = &k->participants[who];
	struct protocol_message m = { .kind = PROTOCOL_CALL };
	struct runner_answer answer = { .value = 0 };

	use_processor(k, p);
	prepare_outputs(k);
	prepare_workspace(k, p);
	fill_call(k, p, m.args);
	chill(k, p);
	if (ask(k, p, &m, k->task->call_seconds, "km_run", &answer, v, err) < 0)
		return -1;
	/* All that its process has used since its last answer counts, before Go and after the answer too: else a kernel that has
	 * taken over the runner could answer first and work afterwards, or warm the caches between calls. */
	call->seconds = answer.cpu + answer.gap;
	call->elapsed = answer.seconds;
	call->arrival = (double)NAN;
	call->gap = answer.gap;
	call->disturbed = answer.gap > KEEPER_GAP;
	if (v->status == VERDICT_PASSED && answer.value != 0)
		verdict_set(v, VERDICT_RUNTIME_ERROR, NULL, "km_run returned %" PRId64, answer.value);
	return 0;
}

/* ---- checking --------------------------------------------------------------------------------------------------- */

struct rows {
	double *expected[TASK_MAX_TENSORS], *got;
	size_t length[TASK_MAX_TENSORS];
	struct compare_result results[TASK_MAX_TENSORS];
};

static void rows_init(const struct keeper *k, struct rows *r)
{
	size_t longest = 0;

	memset(r, 0, sizeof(*r));
	for (int i = 0; i < k->task->output_count; i++) {
		r->length[i] = task_elements(&k->task->outputs[i], axes_of(k)) / (size_t)k->rows;
		r->expected[i] = xreallocarray(NULL, r->length[i] + 1, sizeof(double));
		longest = r->length[i] > longest ? r->length[i] : longest;
	}
	r->got = xreallocarray(NULL, longest + 1, sizeof(double));
}

static void rows_release(const struct keeper *k, struct rows *r)
{
	for (int i = 0; i < k->task->output_count; i++)
		free(r->expected[i]);
	free(r->got);
}

static int check_row(const struct keeper *k, struct rows *r, int64_t row, struct error *err)
{
	oracle_row(k->oracle, k->args, row, r->expected);
	for (int i = 0; i < k->task->output_count; i++) {
		const struct task_tensor *t = &k->task->outputs[i];

		number_decode(t->dtype, k->outputs.at + k->output_places[i].offset, (size_t)row * r->length[i], r->length[i], r->got);
		if (compare_row(r->got, r->expected[i], r->length[i], row, &t->tolerance, &r->results[i]) == COMPARE_REFERENCE_NAN)
			return error_set(err, KM_EXIT_INPUT,
					 "the reference of task '%s' computed a NaN: workload %s, input set %s, output '%s', row %" PRId64,
					 k->task->name, k->task->workloads[k->workload].uuid,
					 input_set_name((enum task_input_set)k->set), t->name, row);
	}
	return 0;
}

static int check_rows(const struct keeper *k, struct rows *r, bool all, struct error *err)
{
	int64_t count = all || k->rows <= KEEPER_ROWS ? k->rows : KEEPER_ROWS;
	uint64_t seed = random_secret();

	for (int64_t i = 0; i < count; i++) {
		/* One row of each of `count` stretches: no row twice. */
		int64_t first = (int64_t)((__int128)k->rows * i / count), next = (int64_t)((__int128)k->rows * (i + 1) / count);
		int64_t row = first + (int64_t)ref_below(seed, (uint64_t)i, (uint64_t)(next - first));

		if (check_row(k, r, row, err) < 0)
			return -1;
	}
	return 0;
}

static void check_guards(struct keeper *k, const struct participant *p, struct verdict *v)
{
	int broken = memory_guard_broken(&k->outputs, k->output_places, (size_t)k->task->output_count, k->guard_seed);

	if (broken >= 0)
		verdict_set(v, VERDICT_REJECTED, "out-of-bounds", "km_run wrote outside the output '%s'", k->task->outputs[broken].name);
	if (p->workspace.bytes && memory_guard_broken(&p->scratch, &p->workspace, 1, ~k->guard_seed) >= 0)
		verdict_set(v, VERDICT_REJECTED, "out-of-bounds", "km_run wrote outside its workspace");
}

/* Keep right outputs: later calls may find them as poison. */
static void keep_earlier(struct keeper *k)
{
	forget_earlier(k);
	k->earlier_workload = k->workload;
	k->earlier_inputs = k->inputs_count;
	for (int i = 0; i < k->task->output_count; i++) {
		k->earlier[i] = xmalloc(k->output_places[i].bytes + 1);
		memcpy(k->earlier[i], k->outputs.at + k->output_places[i].offset, k->output_places[i].bytes);
	}
}

static int cpu_check(struct keeper *k, size_t who, bool all, struct keeper_check *check, struct verdict *v, struct error *err)
{
	struct rows r;
	int result;

	*check = (struct keeper_check){ .input_set = k->set, .output = -1 };
	check_guards(k, &k->participants[who], v);
	if (v->status != VERDICT_PASSED)
		return 0;
	rows_init(k, &r);
	result = check_rows(k, &r, all, err);
	for (int i = 0; i < k->task->output_count && result == 0; i++) {
		check->max_abs_error = fmax(check->max_abs_error, r.results[i].max_abs_error);
		check->max_rel_error = fmax(check->max_rel_error, r.results[i].max_rel_error);
		if (r.results[i].wrong_rows && check->output < 0) {
			check->output = i;
			check->wrong = r.results[i];
			keeper_note_wrong(k->task, k->workload, k->set, i, &check->wrong, v);
		}
	}
	if (result == 0 && all && check->output < 0)
		keep_earlier(k);
	rows_release(k, &r);
	return result;
}

const struct keeper_ops keeper_cpu = {
	.target = "cpu", .rules = { .seconds = 2.0, .baseline_seconds = 0.7, .noise = 0.005, .life = 4 },
	.open = cpu_open, .start = cpu_start, .select = cpu_select, .inputs = cpu_inputs, .call = cpu_call,
	.check = cpu_check, .counts = cpu_counts, .stop = cpu_stop, .close = cpu_close,
};
