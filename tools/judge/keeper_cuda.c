/* keeper_cuda.c - the keeper of the target cuda: what km-bench has of it. The device is held by the process
 * bin/km-keeper-cuda (keeper_protocol.h), the kernels by runners (protocol.h); this file makes one call out of both.
 *
 * A call: the keeper makes ready, the runner enqueues behind a kernel that waits, the keeper releases it and takes the
 * clock, the runner tells what its events say, and is stopped. Beside the participants there is one more runner, which has
 * opened no library: what its calls take on the clock is what a call takes that does nothing (the empty window).
 *
 * A participant's first call for a workload is one on an idle stream, on inputs that nobody uses again: what the driver
 * loads when a kernel is first launched would have to wait for a stream that is held.
 */
#include "keeper.h"

#include "gpu.h"
#include "keeper_link.h"
#include "nvml.h"
#include "runner_process.h"
#include "statistics.h"
#include "toolchain.h"
#include "util.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define INIT_SECONDS 10.0      /* km_init, km_workspace; libraries such as cuBLAS take most of a second */
#define FIRST_SECONDS 10.0     /* for enqueuing a first call, which may load code */
#define ENQUEUE_SECONDS 1.0    /* for enqueuing any other: who takes longer waits for the device */
#define BATCH_SECONDS 0.25     /* the same for a batch, which may just have too many launches for a held stream */
#define TIMES_SECONDS 5.0
#define KEEPER_SECONDS 120.0   /* for any answer of the keeper */
#define RECOVERY_SECONDS 10.0  /* in which the device must answer after a runner was killed: 0.2 to 1.2 s (H200) */
#define BATCH_TOTAL 0.003      /* seconds that a batch shall take */

/* A device that is still at work for a runner makes ready more slowly than this. */
#define PREPARE_SHARE 1.3
#define PREPARE_SLACK 50e-6

/* By so much a call that does nothing may take longer than before any kernel was opened: one that uses the device meanwhile would
 * draw it out, and what it is drawn out by could be left out of that kernel's own times. */
#define EMPTY_DRIFT 8e-6

/* Memory of the device that a runner may take beside its context: for code (that of cuBLAS is some 100 MB), variables and stacks. On
 * a small device this share, so that it has room for the others. */
#define MEMORY_MOST 4e9
#define MEMORY_SHARE 0.125
#define RETURN_SECONDS 2.0     /* in which the memory of a runner that was killed must be free again */

enum {
	MISSED_MOST = 1000,     /* calls that did nothing and missed their window */
	EMPTY_CALLS = 48,       /* that the empty window of a workload is the median of */
	EMPTY_LEAST = 8,        /* of these at first */
	BATCH_MOST = 480,       /* calls of a batch: with two launches each they fit into a held stream, which takes 1022 */
	BATCH_LEAST = 2,
	SAMPLES = 4096,         /* of clocks */
	MB = 1 << 20,
	DRIVER_MB = 4096,       /* resident memory of context and libraries, their code that is mapped included */
	PROCESSES = 256,        /* and threads in a sandbox */
	OPEN_FILES = 1024,
	EARLY = 3,              /* participants whose contexts are made before the candidate is known to be right: itself, baseline, best */
	TOOL_MB = 16384,        /* resident memory of a tool, which saves what a kernel changes */
};

struct participant {
	struct runner_process runner;
	bool started;            /* in the keeper: it has slabs there */
	bool trusted;            /* may take memory of the device */
	double before, taken;    /* bytes free on the device before its turn; taken in all its turns */
	int64_t functions;       /* PROTOCOL_HAS_INIT, ... */
	int workload;            /* selected; -1: none */
	bool warm;               /* it has made its first call for this workload */
	struct verdict pending;  /* what became of that call */
	int64_t batch_most;      /* calls of a batch that fit into a held stream, as far as known */
};

/* The last windows of calls that did nothing, of one workload. */
struct empty {
	double seconds[EMPTY_CALLS], median;
	double last, last_arrival; /* with the inputs at hand; NaN if that call had no window, or if somebody else was at work */
	double first;              /* the median before any kernel was opened */
	size_t count, missed;                  /* missed: calls without a window */
};

struct samples {
	double *processor, *memory;
	size_t count;
	bool slowed;
};

struct keeper {
	const struct task *task;
	struct keeper_options options;
	struct task_layout layout;
	struct keeper_link link;
	struct keeper_device device;
	struct nvml *nvml;
	struct samples samples;
	struct participant *participants; /* and behind them the one that does nothing */
	size_t control;
	struct empty *empty;              /* one a workload of the task */
	double least_after;               /* seconds that a known kernel took after a call, the least so far; 0 unknown */
	double least_events;              /* seconds that a call which does nothing took by its events, the least so far */
	uint64_t serial;
	/* of the current inputs */
	int workload, set;
	/* for sandboxes */
	char *nodes[4], *folders[TOOLCHAIN_FOLDERS + 2], *variables[5];
	size_t folder_count;
	const struct keeper_tool *tool; /* that the next runner is started under; NULL: none */
	int tool_output;
};

static int measure_empty(struct keeper *k, struct error *err);

/* ---- the keeper process ----------------------------------------------------------------------------------------- */

static int ask(struct keeper *k, enum keeper_kind kind, size_t who, struct keeper_message *m, const char *what, struct error *err)
{
	m->kind = kind;
	m->who = (int32_t)who;
	return keeper_link_ask(&k->link, m, KEEPER_SECONDS, what, NULL, err);
}

static int device_is_gone(const struct keeper *k, const char *why, struct error *err)
{
	return error_set(err, KM_EXIT_ENVIRONMENT, "device '%s' (%s) does not answer: %s", k->device.name, k->device.uuid, why);
}

/* A runner has been killed, or its context is broken: the device is of use again only when it answers. */
static int recover(struct keeper *k, struct participant *p, struct error *err)
{
	double until = monotonic_seconds() + RECOVERY_SECONDS;
	struct error last = { .code = KM_OK };

	runner_process_end(&p->runner);
	do {
		struct keeper_message m = { .kind = KEEPER_CONTROL };

		if (keeper_link_ask(&k->link, &m, RECOVERY_SECONDS, "does the device work?", NULL, &last) == 0)
			return 0;
		if (!k->link.pid || (k->options.interrupted && *k->options.interrupted)) {
			*err = last;
			return -1;
		}
		poll(NULL, 0, 50);
	} while (monotonic_seconds() < until);
	return device_is_gone(k, last.text, err);
}

/* ---- the device's memory ---------------------------------------------------------------------------------------- */

/* A runner takes memory only while it is not stopped: in its turn. What is missing after its turns is put on its account;
 * what goes between turns is the keeper's, or of other users of the device. These may take memory during a turn as well, so
 * who seems to have taken too much is ended: if the memory comes back, it was its own. Processes are not asked for by
 * number, which means nothing from within a container. */

static int look_at_memory(struct keeper *k, double *unused, struct error *err)
{
	struct keeper_message m = { .kind = 0 };

	if (ask(k, KEEPER_MEMORY, 0, &m, "memory", err) < 0)
		return -1;
	*unused = (double)m.count;
	return 0;
}

static double memory_allowance(const struct keeper *k)
{
	return fmin(MEMORY_MOST, MEMORY_SHARE * (double)k->device.memory_bytes);
}

static int begin_turn(struct keeper *k, struct participant *p, struct error *err)
{
	return p->trusted ? 0 : look_at_memory(k, &p->before, err);
}

static int find_taker(struct keeper *k, struct participant *p, double unused, struct verdict *v, struct error *err)
{
	double until = monotonic_seconds() + RETURN_SECONDS, allowed = memory_allowance(k), now;

	if (recover(k, p, err) < 0)
		return -1;
	do {
		if (look_at_memory(k, &now, err) < 0)
			return -1;
		if (now - unused > allowed) {
			verdict_set(v, VERDICT_REJECTED, "memory",
				    "the kernel takes %.1f GB of the device's memory for code, variables, stacks and buffers (allowed %.1f GB): "
				    "scratch memory comes from km_workspace and a->workspace", p->taken / 1e9, allowed / 1e9);
			return 0;
		}
		poll(NULL, 0, 20);
	} while (monotonic_seconds() < until);
	return error_set(err, KM_EXIT_ENVIRONMENT, "another process takes memory of device '%s' (%s): %.1f GB during a call, which the end of "
						   "the kernel's process did not bring back", k->device.name, k->device.uuid, p->taken / 1e9);
}

/* Its runner is stopped. */
static int end_turn(struct keeper *k, struct participant *p, struct verdict *v, struct error *err)
{
	double unused;

	if (p->trusted || v->status != VERDICT_PASSED)
		return 0;
	if (look_at_memory(k, &unused, err) < 0)
		return -1;
	p->taken += p->before - unused;
	return p->taken > memory_allowance(k) ? find_taker(k, p, unused, v, err) : 0;
}

/* The keeper has failed in somebody's turn: perhaps for want of memory. */
static int explain_failure(struct keeper *k, struct participant *p, struct verdict *v)
{
	struct error another = { .code = KM_OK };

	if (v->status == VERDICT_PASSED && !p->trusted && k->link.pid && end_turn(k, p, v, &another) == 0 && v->status == VERDICT_REJECTED)
		return 0;
	return -1;
}

/* ---- what sandboxes need ---------------------------------------------------------------------------------------- */

static void add_folder(struct keeper *k, const char *path)
{
	char *real = path ? realpath(path, NULL) : NULL;

	for (size_t i = 0; i < k->folder_count && real; i++)
		if (strcmp(k->folders[i], real) == 0) {
			free(real);
			real = NULL;
		}
	if (real && k->folder_count < sizeof(k->folders) / sizeof(*k->folders) - 1)
		k->folders[k->folder_count++] = real;
	else
		free(real);
}

/* The driver's libraries are where the keeper finds them, and first; the toolkit's where kernels are linked with them. */
static int find_folders(struct keeper *k, struct error *err)
{
	struct toolchain *tools = xcalloc(1, sizeof(*tools));
	char arch[16]; /* known here: to be asked of the management library it would be opened once more */
	int status;

	snprintf(arch, sizeof(arch), "sm_%d%d", k->options.gpu->major, k->options.gpu->minor);
	status = toolchain_find_cuda(arch, tools, err);
	for (size_t i = 0; i < TOOLCHAIN_FOLDERS && status == 0 && tools->folders[i][0]; i++)
		if (!strstr(tools->folders[i], "/stubs"))
			add_folder(k, tools->folders[i]);
	free(tools);
	return status;
}

/* "LD_LIBRARY_PATH=a:b" */
static char *library_path(const struct keeper *k)
{
	char *text = xstrdup("LD_LIBRARY_PATH=");

	for (size_t i = 0; i < k->folder_count; i++) {
		char *longer = xasprintf("%s%s%s", text, i ? ":" : "", k->folders[i]);

		free(text);
		text = longer;
	}
	return text;
}

/* A device is known by its uuid, since the driver numbers those that it can see. Kernels are loaded when they are opened,
 * not in their first call. */
static int find_sandbox_needs(struct keeper *k, struct error *err)
{
	const struct gpu *gpu = k->options.gpu;
	int minor = nvml_minor(k->nvml, gpu->uuid);

	if (minor < 0)
		return error_set(err, KM_EXIT_ENVIRONMENT, "cannot tell which node of /dev is device '%s' (%s)", gpu->name, gpu->uuid);
	if (find_folders(k, err) < 0)
		return -1;
	k->nodes[0] = xstrdup("/dev/nvidiactl");
	k->nodes[1] = xstrdup("/dev/nvidia-uvm");
	k->nodes[2] = xasprintf("/dev/nvidia%d", minor);
	k->variables[0] = library_path(k);
	k->variables[1] = xasprintf("CUDA_VISIBLE_DEVICES=%s", gpu->uuid);
	k->variables[2] = xstrdup("CUDA_MODULE_LOADING=EAGER");
	k->variables[3] = xstrdup("CUDA_CACHE_DISABLE=1");
	return 0;
}

/* NULL if all are there. */
static const char *find_missing_node(const struct keeper *k)
{
	for (int i = 0; i < 3; i++)
		if (access(k->nodes[i], R_OK | W_OK) < 0)
			return k->nodes[i];
	return NULL;
}

/* ---- starting and stopping -------------------------------------------------------------------------------------- */

static void cuda_stop(struct keeper *k, size_t who)
{
	struct participant *p = &k->participants[who];
	struct keeper_message m = { .kind = 0 };

	runner_process_end(&p->runner);
	if (p->started && k->link.pid)
		ask(k, KEEPER_STOP, who, &m, "stop", NULL);
	p->started = false;
}

static void start_under_tool(const struct keeper *k, const char **folders, struct runner_start *start)
{
	size_t n = 0;

	for (; n < k->folder_count; n++)
		folders[n] = k->folders[n];
	for (size_t i = 0; i < KEEPER_TOOL_FOLDERS && k->tool->folders[i]; i++)
		folders[n++] = k->tool->folders[i];
	folders[n] = NULL;
	start->libraries = folders;
	start->wrapper = k->tool->argv;
	start->wrapper_seconds = k->tool->seconds;
	start->output = k->tool_output;
	start->memory_bytes += (size_t)TOOL_MB * MB;
}

/* library NULL: the runner that does nothing. It makes its context now, and waits for its slabs. */
static int launch(struct keeper *k, struct participant *p, const struct keeper_kernel *kernel, struct error *err)
{
	struct runner_start start = {
		.program = "km-runner-cuda", .library = kernel->library, .library_bytes = kernel->bytes,
		.memory_bytes = k->task->memory_bytes + (size_t)DRIVER_MB * MB,
		.stream = (uint32_t)k->layout.stream, .devices = (const char *const *)k->nodes,
		.libraries = (const char *const *)k->folders, .environment = (const char *const *)k->variables,
		.processes = PROCESSES, .open_files = OPEN_FILES, .trusted = kernel->trusted,
		.no_sandbox = k->options.no_sandbox, .interrupted = k->options.interrupted,
	};
	const char *folders[TOOLCHAIN_FOLDERS + 2 + KEEPER_TOOL_FOLDERS + 1];

	if (k->tool)
		start_under_tool(k, folders, &start);
	*p = (struct participant){ .trusted = kernel->trusted || k->tool, .workload = -1, .batch_most = BATCH_MOST };
	return runner_process_launch(&p->runner, &start, err);
}

/* Give it its slabs. */
static int set_up(struct keeper *k, size_t who, struct error *err)
{
	struct participant *p = &k->participants[who];
	struct runner_slabs slabs = { .descriptors = { -1, -1, -1, -1 }, .descriptor_count = KEEPER_LINK_DESCRIPTORS };
	struct keeper_message m = { .kind = KEEPER_START, .who = (int32_t)who };
	int status;

	status = keeper_link_ask(&k->link, &m, KEEPER_SECONDS, "start", slabs.descriptors, err);
	if (status == 0) {
		p->started = true;
		memcpy(slabs.bytes, m.bytes, sizeof(slabs.bytes));
		status = runner_process_set_up(&p->runner, &slabs, err);
	}
	for (int i = 0; i < KEEPER_LINK_DESCRIPTORS; i++)
		if (slabs.descriptors[i] >= 0)
			close(slabs.descriptors[i]);
	if (status < 0)
		return -1;
	memcpy(m.where, p->runner.base, sizeof(m.where));
	return ask(k, KEEPER_MAPPED, who, &m, "mapped", err);
}

/* From here on its kernel's code runs, and takes memory on its account. */
static int load(struct keeper *k, struct participant *p, struct verdict *v, struct error *err)
{
	if (begin_turn(k, p, err) < 0 || runner_process_load(&p->runner, &p->functions, v, err) < 0)
		return -1;
	return v->status == VERDICT_PASSED ? end_turn(k, p, v, err) : recover(k, p, err);
}

static int cuda_start(struct keeper *k, size_t who, const struct keeper_kernel *kernel, struct verdict *v, struct error *err)
{
	struct participant *p = &k->participants[who];

	if (!p->started && (launch(k, p, kernel, err) < 0 || set_up(k, who, err) < 0))
		return -1;
	return load(k, p, v, err);
}

static void cuda_close(struct keeper *k)
{
	if (!k)
		return;
	/* All contexts go at the same time: each takes a tenth of a second or two. */
	for (size_t i = 0; i <= k->control; i++)
		runner_process_kill(&k->participants[i].runner);
	keeper_link_hang_up(&k->link);
	for (size_t i = 0; i <= k->control; i++)
		runner_process_end(&k->participants[i].runner);
	keeper_link_end(&k->link);
	nvml_close(k->nvml);
	for (size_t i = 0; i < sizeof(k->nodes) / sizeof(*k->nodes); i++)
		free(k->nodes[i]);
	for (size_t i = 0; i < k->folder_count; i++)
		free(k->folders[i]);
	for (size_t i = 0; i < sizeof(k->variables) / sizeof(*k->variables); i++)
		free(k->variables[i]);
	free(k->samples.processor);
	free(k->samples.memory);
	free(k->empty);
	free(k->participants);
	free(k);
}

/* How many participants are launched by cuda_open. */
static size_t count_early(const struct keeper *k)
{
	size_t most = k->options.participants < EARLY ? k->options.participants : EARLY;

	return k->options.kernels ? most : 0;
}

/* The runner that does nothing, and the early participants. */
static int launch_all(struct keeper *k, struct error *err)
{
	struct keeper_kernel nothing = { NULL, 0, true };

	if (launch(k, &k->participants[k->control], &nothing, err) < 0)
		return -1;
	for (size_t i = 0; i < count_early(k); i++)
		if (launch(k, &k->participants[i], &k->options.kernels[i], err) < 0)
			return -1;
	return 0;
}

/* All contexts are made at the same time, ours by the keeper. Without it nothing else counts: so if something fails here, its
 * answer is still waited for. The nodes may be missing until its context is there (the driver makes them): then it goes first. */
static int open_contexts(struct keeper *k, struct error *err)
{
	struct keeper_message m = { .kind = KEEPER_OPEN };
	struct error failed;
	const char *missing = NULL;
	bool launched = false;
	int status;

	if (keeper_link_send(&k->link, &m, "open", err) < 0)
		return -1;
	status = find_sandbox_needs(k, &failed);
	if (status == 0 && !find_missing_node(k)) {
		launched = true;
		status = launch_all(k, &failed);
	}
	if (keeper_link_await(&k->link, &m, KEEPER_SECONDS, "open", NULL, err) < 0)
		return -1;
	k->device = m.device;
	k->device.name[sizeof(k->device.name) - 1] = k->device.uuid[sizeof(k->device.uuid) - 1] = 0;
	if (status == 0 && !launched && (missing = find_missing_node(k)) != NULL)
		status = error_set(&failed, KM_EXIT_ENVIRONMENT, "cannot read and write '%s', which a sandbox needs", missing);
	else if (status == 0 && !launched)
		status = launch_all(k, &failed);
	if (status < 0)
		*err = failed;
	return status;
}

/* What is measured is measured when all contexts are there, and before any kernel is opened. */
static int open_all(struct keeper *k, struct error *err)
{
	const struct gpu *gpu = k->options.gpu;
	struct keeper_message m = { .kind = 0 };

	if (k->layout.size > PROTOCOL_ARGS_MAX)
		return error_set(err, KM_EXIT_INPUT, "task '%s' has more arguments than fit into %d bytes", k->task->name, PROTOCOL_ARGS_MAX);
	if (keeper_link_start(&k->link, &k->options, k->options.participants + 1, err) < 0)
		return -1;
	k->nvml = nvml_open(gpu->uuid);
	if (ask(k, KEEPER_DRIVER, 0, &m, "driver", err) < 0)
		return -1;
	add_folder(k, m.text);
	if (open_contexts(k, err) < 0)
		return -1;
	if (strcmp(k->device.uuid, gpu->uuid) != 0)
		return error_set(err, KM_EXIT_ENVIRONMENT, "the keeper of the device '%s' (%s) has opened '%s'", gpu->name, gpu->uuid,
				 k->device.uuid);
	if (set_up(k, k->control, err) < 0)
		return -1;
	for (size_t i = 0; i < count_early(k); i++)
		if (set_up(k, i, err) < 0)
			return -1;
	return ask(k, KEEPER_MEASURE, 0, &m, "measure", err) < 0 ? -1 : measure_empty(k, err);
}

static struct keeper *cuda_open(const struct keeper_options *options, struct error *err)
{
	struct keeper *k = xcalloc(1, sizeof(*k));

	k->task = options->task;
	k->options = *options;
	k->workload = -1;
	k->link.socket = k->link.said = -1;
	k->control = options->participants;
	k->participants = xcalloc(options->participants + 1, sizeof(*k->participants));
	k->empty = xcalloc((size_t)k->task->workload_count, sizeof(*k->empty));
	k->samples.processor = xcalloc(SAMPLES, sizeof(double));
	k->samples.memory = xcalloc(SAMPLES, sizeof(double));
	task_layout(k->task, &k->layout);
	if (open_all(k, err) == 0)
		return k;
	cuda_close(k);
	return NULL;
}

/* ---- asking a runner -------------------------------------------------------------------------------------------- */

static void explain_address(const char *what, uint64_t address, struct verdict *v)
{
	if (address)
		verdict_set(v, VERDICT_RUNTIME_ERROR, NULL, "%s was ended by SIGSEGV at address 0x%" PRIx64, what, address);
}

/* A question about axes: km_init, km_workspace. */
static int ask_axes(struct keeper *k, struct participant *p, enum protocol_kind kind, int workload, const char *what,
		    struct runner_answer *answer, struct verdict *v, struct error *err)
{
	struct protocol_message m = { .kind = kind, .args_bytes = (uint32_t)k->layout.size };
	uint64_t address;

	for (int i = 0; i < k->task->axis_count; i++)
		memcpy(m.args + k->layout.axis[i], &k->task->workloads[workload].axes[i], sizeof(int64_t));
	if (runner_process_ask(&p->runner, &m, k->tool ? k->tool->seconds : INIT_SECONDS, what, answer, &address, v, err) < 0)
		return -1;
	explain_address(what, address, v);
	return v->status == VERDICT_PASSED ? 0 : recover(k, p, err);
}

static int ask_init(struct keeper *k, struct participant *p, int workload, struct verdict *v, struct error *err)
{
	struct runner_answer answer;

	if (!(p->functions & PROTOCOL_HAS_INIT))
		return 0;
	if (ask_axes(k, p, PROTOCOL_INIT, workload, "km_init", &answer, v, err) < 0)
		return -1;
	if (v->status == VERDICT_PASSED && answer.value != 0)
		verdict_set(v, VERDICT_RUNTIME_ERROR, NULL, "km_init returned %" PRId64 "%s%s", answer.value, answer.text[0] ? ": " : "", answer.text);
	if (v->status == VERDICT_PASSED && answer.where[0] != 0)
		verdict_set(v, VERDICT_RUNTIME_ERROR, NULL, "km_init left the error %s", answer.text);
	return 0;
}

static int ask_workspace(struct keeper *k, struct participant *p, int workload, size_t *bytes, struct verdict *v, struct error *err)
{
	struct runner_answer answer;

	*bytes = 0;
	if (!(p->functions & PROTOCOL_HAS_WORKSPACE))
		return 0;
	if (ask_axes(k, p, PROTOCOL_WORKSPACE, workload, "km_workspace", &answer, v, err) < 0)
		return -1;
	*bytes = (size_t)answer.value;
	if (v->status == VERDICT_PASSED && *bytes > k->task->workspace_bytes)
		verdict_set(v, VERDICT_REJECTED, "workspace", "km_workspace asks for %zu bytes, the task allows %zu", *bytes,
			    k->task->workspace_bytes);
	return 0;
}

static int cuda_select(struct keeper *k, size_t who, int workload, struct verdict *v, struct error *err)
{
	struct participant *p = &k->participants[who];
	struct keeper_message m = { .workload = workload };
	size_t bytes = 0;

	p->workload = -1;
	if (begin_turn(k, p, err) < 0 || ask_init(k, p, workload, v, err) < 0)
		return -1;
	if (v->status == VERDICT_PASSED && ask_workspace(k, p, workload, &bytes, v, err) < 0)
		return -1;
	if (end_turn(k, p, v, err) < 0)
		return -1;
	if (v->status != VERDICT_PASSED)
		return 0;
	m.count = (int64_t)bytes;
	if (ask(k, KEEPER_SELECT, who, &m, "select", err) < 0)
		return -1;
	p->workload = workload;
	p->warm = false;
	p->pending = (struct verdict){ .status = VERDICT_PASSED };
	p->batch_most = BATCH_MOST;
	return 0;
}

/* ---- one call or batch ------------------------------------------------------------------------------------------ */

/* What is asked for, and what came of it. */
struct job {
	enum protocol_mode mode;
	int64_t count;
	double enqueue_seconds, run_seconds;
	double window, arrival, prepare, usual, events, gap; /* window NaN: there is none */
	bool too_many; /* a batch that did not fit into the held stream: it has run, its clock says nothing */
};

static void sample_clocks(struct keeper *k)
{
	struct samples *s = &k->samples;
	struct nvml_clocks now;

	if (s->count >= SAMPLES || !nvml_clocks(k->nvml, &now))
		return;
	s->processor[s->count] = now.processor_mhz;
	s->memory[s->count++] = now.memory_mhz;
	s->slowed = s->slowed || now.slowed;
}

static void fill_call(struct protocol_message *to, const struct job *job, const struct keeper_message *from)
{
	size_t count = from->patch_count < KEEPER_PATCHES ? from->patch_count : KEEPER_PATCHES;

	*to = (struct protocol_message){ .kind = PROTOCOL_CALL, .value = job->mode, .args_bytes = from->args_bytes,
					 .where = { from->serial, (uint64_t)job->count, count } };
	memcpy(to->args, from->args, sizeof(to->args));
	memcpy(to->text, from->patch, count * sizeof(struct keeper_patch));
}

static int release(struct keeper *k, size_t who, double seconds, struct job *job, int *outcome, struct error *err)
{
	struct keeper_message m = { .seconds = seconds };

	if (ask(k, KEEPER_RELEASE, who, &m, "release", err) < 0)
		return -1;
	job->window = m.window < 0 ? (double)NAN : m.window;
	job->arrival = m.window < 0 ? (double)NAN : m.arrival;
	job->prepare = m.prepare;
	job->usual = m.usual;
	*outcome = m.outcome;
	return 0;
}

/* What km_run did while it enqueued. */
static void judge_enqueued(const struct runner_answer *a, struct verdict *v)
{
	const char *colon = a->text[0] ? ": " : "";

	if (a->where[1] == PROTOCOL_CAPTURING)
		verdict_set(v, VERDICT_REJECTED, "stream", "km_run left its stream being captured");
	if (a->where[1] == PROTOCOL_ELSEWHERE)
		verdict_set(v, VERDICT_REJECTED, "stream", "km_run left another context or device current");
	if (a->value != 0)
		verdict_set(v, VERDICT_RUNTIME_ERROR, NULL, "km_run returned %" PRId64 "%s%s", a->value, colon, a->text);
	if (a->where[0] != 0)
		verdict_set(v, VERDICT_RUNTIME_ERROR, NULL, "km_run left the error %s", a->text);
}

/* Nobody has released the stream, and km_run has not returned. If it does once the stream is released, it was waiting for
 * the device. */
static int look_into_delay(struct keeper *k, size_t who, struct job *job, struct runner_answer *answer, struct verdict *v,
			   struct error *err)
{
	struct participant *p = &k->participants[who];
	uint64_t address;
	int outcome;

	if (release(k, who, job->run_seconds < 1 ? job->run_seconds : 1, job, &outcome, err) < 0 ||
	    runner_process_await(&p->runner, 1, "km_run", answer, &address, v, err) < 0)
		return -1;
	explain_address("km_run", address, v);
	if (!answer->late && job->mode == PROTOCOL_BATCH && outcome == KEEPER_RAN) {
		job->too_many = true;
		return 0;
	}
	if (!answer->late && job->mode == PROTOCOL_QUEUED)
		verdict_set(v, VERDICT_REJECTED, "synchronise",
			    "km_run waits for its stream or the device: it returned only when the stream went on (all work must be asynchronous)");
	verdict_set(v, VERDICT_TIMEOUT, NULL, "km_run did not return within %g s", job->enqueue_seconds);
	return recover(k, p, err);
}

/* The work is done: how long did it take by its events, and did it end well? The runner is stopped then. */
static int ask_times(struct keeper *k, struct participant *p, struct job *job, struct verdict *v, struct error *err)
{
	struct protocol_message m = { .kind = PROTOCOL_TIMES };
	struct runner_answer answer;
	uint64_t address;

	if (runner_process_ask(&p->runner, &m, TIMES_SECONDS, "km_run", &answer, &address, v, err) < 0)
		return -1;
	explain_address("km_run", address, v);
	if (v->status == VERDICT_PASSED && answer.value != 0)
		verdict_set(v, VERDICT_RUNTIME_ERROR, NULL, "the device stopped the kernel: %s", answer.text);
	memcpy(&job->events, &answer.where[0], sizeof(job->events));
	if (v->status == VERDICT_PASSED && !(job->events > 0 && job->events < 1e4))
		verdict_set(v, VERDICT_REJECTED, "clock", "the runner's events say that the call took %g s", job->events);
	return v->status == VERDICT_PASSED ? 0 : recover(k, p, err);
}

/* Is anything of it still at work on the device, now that it is stopped? That would disturb others' calls. */
static int look_after(struct keeper *k, struct job *job, struct error *err)
{
	struct keeper_message m = { .kind = 0 };

	if (ask(k, KEEPER_CONTROL, 0, &m, "control", err) < 0)
		return -1;
	if (k->least_after <= 0 || m.seconds < k->least_after)
		k->least_after = m.seconds;
	job->prepare += m.seconds;
	job->usual += k->least_after;
	return 0;
}

static bool is_busy(const struct job *job)
{
	return job->prepare > PREPARE_SHARE * job->usual + PREPARE_SLACK;
}

static int finish(struct keeper *k, size_t who, struct job *job, const struct runner_answer *enqueued, struct verdict *v,
		  struct error *err)
{
	struct participant *p = &k->participants[who];
	struct verdict first = { .status = VERDICT_PASSED };
	int outcome;

	judge_enqueued(enqueued, &first);
	if (!job->too_many) {
		if (release(k, who, job->run_seconds, job, &outcome, err) < 0)
			return -1;
		if (first.status != VERDICT_PASSED)
			*v = first;
		if (outcome == KEEPER_LATE)
			verdict_set(v, VERDICT_TIMEOUT, NULL, "km_run's work was not done within %g s", job->run_seconds);
		if (outcome == KEEPER_NO_ARRIVAL)
			verdict_set(v, VERDICT_REJECTED, "work-between-calls", "its stream did not start within a second: something of it still holds the device");
		if (outcome != KEEPER_RAN)
			return recover(k, p, err);
	}
	if (first.status != VERDICT_PASSED) {
		*v = first;
		return recover(k, p, err);
	}
	sample_clocks(k);
	if (ask_times(k, p, job, v, err) < 0)
		return -1;
	return v->status == VERDICT_PASSED ? look_after(k, job, err) : 0;
}

static int make_call(struct keeper *k, size_t who, struct job *job, struct verdict *v, struct error *err)
{
	struct participant *p = &k->participants[who];
	struct keeper_message m = { .serial = ++k->serial & UINT32_MAX, .value = job->mode, .count = job->count };
	struct protocol_message question;
	struct runner_answer answer;
	uint64_t address;

	if (ask(k, KEEPER_PREPARE, who, &m, "prepare", err) < 0)
		return -1;
	fill_call(&question, job, &m);
	if (runner_process_enqueue(&p->runner, &question, job->enqueue_seconds, "km_run", &answer, &address, v, err) < 0)
		return -1;
	job->gap = answer.gap;
	explain_address("km_run", address, v);
	if (v->status != VERDICT_PASSED)
		return recover(k, p, err);
	if (answer.late && look_into_delay(k, who, job, &answer, v, err) < 0)
		return -1;
	return v->status == VERDICT_PASSED ? finish(k, who, job, &answer, v, err) : 0;
}

/* Whatever ends without PASSED ends with the runner gone and a device that answers. */
static int perform(struct keeper *k, size_t who, struct job *job, struct verdict *v, struct error *err)
{
	struct participant *p = &k->participants[who];

	if (begin_turn(k, p, err) < 0)
		return -1;
	if (make_call(k, who, job, v, err) < 0)
		return explain_failure(k, p, v);
	return end_turn(k, p, v, err);
}

/* ---- the empty window ------------------------------------------------------------------------------------------- */

static double median_of(const double *values, size_t n)
{
	double sorted[EMPTY_CALLS];

	memcpy(sorted, values, n * sizeof(*sorted));
	return statistics_quantile(sorted, n, 0.5);
}

static int call_nothing(struct keeper *k, struct error *err)
{
	struct job job = { .mode = PROTOCOL_QUEUED, .count = 1, .enqueue_seconds = ENQUEUE_SECONDS, .run_seconds = 1 };
	struct empty *e = &k->empty[k->workload];
	struct verdict v = { .status = VERDICT_PASSED };
	size_t n;

	if (perform(k, k->control, &job, &v, err) < 0)
		return -1;
	if (v.status != VERDICT_PASSED)
		return error_set(err, KM_EXIT_ENVIRONMENT, "a call that does nothing went wrong: %s", v.message);
	/* Even nothing takes some time between two events. */
	if (k->least_events <= 0 || job.events < k->least_events)
		k->least_events = job.events;
	job.window -= job.events;
	e->last = is_busy(&job) ? (double)NAN : job.window;
	e->last_arrival = job.arrival;
	/* The first calls may miss the end of the flush, which is drawn out then. */
	if (isnan(job.window))
		return ++e->missed < MISSED_MOST ? 0 : error_set(err, KM_EXIT_ENVIRONMENT, "this machine is too slow or too busy for the clock: "
								    "a call that does nothing cannot be made within the time of a flush");
	e->seconds[e->count++ % EMPTY_CALLS] = job.window;
	n = e->count < EMPTY_CALLS ? e->count : EMPTY_CALLS;
	e->median = median_of(e->seconds, n);
	return 0;
}

static int look_at_empty(struct keeper *k, struct error *err)
{
	struct verdict v = { .status = VERDICT_PASSED };

	if (k->participants[k->control].workload != k->workload && cuda_select(k, k->control, k->workload, &v, err) < 0)
		return -1;
	do
		if (call_nothing(k, err) < 0)
			return -1;
	while (k->empty[k->workload].count < EMPTY_LEAST);
	return 0;
}

/* What to take off a window. */
static double empty_window(const struct empty *e, double seconds)
{
	return isnan(seconds) || seconds < e->first + EMPTY_DRIFT ? seconds : e->first + EMPTY_DRIFT;
}

/* ---- inputs ----------------------------------------------------------------------------------------------------- */

static int make_inputs(struct keeper *k, int set, bool vary, struct error *err)
{
	struct keeper_message m = { .workload = k->workload, .set = set, .value = vary };

	return ask(k, KEEPER_INPUTS, 0, &m, "inputs", err);
}

static bool is_cold(const struct keeper *k, const struct participant *p)
{
	return p->runner.sandbox && p->workload == k->workload && !p->warm;
}

static int warm_one(struct keeper *k, size_t who, struct error *err)
{
	struct job job = { .mode = PROTOCOL_IDLE, .count = 1, .enqueue_seconds = FIRST_SECONDS, .run_seconds = FIRST_SECONDS };
	struct participant *p = &k->participants[who];

	p->warm = true;
	if (job.run_seconds < k->task->call_seconds)
		job.run_seconds = k->task->call_seconds;
	return perform(k, who, &job, &p->pending, err);
}

/* First calls of whom it may concern, on inputs of their own. */
static int warm_all(struct keeper *k, int set, struct error *err)
{
	bool any = false;

	for (size_t i = 0; i < k->control; i++)
		any = any || is_cold(k, &k->participants[i]);
	if (any && make_inputs(k, set, false, err) < 0)
		return -1;
	for (size_t i = 0; i < k->control; i++)
		if (is_cold(k, &k->participants[i]) && warm_one(k, i, err) < 0)
			return -1;
	return 0;
}

/* With all inputs comes a look at how long nothing takes just now: from one workload to the next, and while the device
 * warms up, that changes by some microseconds. */
static int cuda_inputs(struct keeper *k, int workload, int set, bool vary, struct error *err)
{
	k->workload = workload;
	k->set = set;
	if (warm_all(k, set, err) < 0 || make_inputs(k, set, vary, err) < 0)
		return -1;
	return look_at_empty(k, err);
}

/* Before any kernel is opened. */
static int measure_empty(struct keeper *k, struct error *err)
{
	int set = 0;

	while (!k->task->input_sets[set] && set < SET_COUNT - 1)
		set++;
	for (size_t i = 0; i < k->options.workload_count; i++) {
		k->workload = k->options.workloads[i];
		if (make_inputs(k, set, false, err) < 0 || look_at_empty(k, err) < 0)
			return -1;
		k->empty[k->workload].first = k->empty[k->workload].median;
	}
	return 0;
}

static void cuda_counts(struct keeper *k, double *flops, double *bytes)
{
	struct keeper_message m = { .workload = k->workload };
	bool known = ask(k, KEEPER_COUNTS, 0, &m, "counts", NULL) == 0;

	*flops = known ? m.flops : (double)NAN;
	*bytes = known ? m.bytes_moved : (double)NAN;
}

/* ---- calls ------------------------------------------------------------------------------------------------------ */

static int cuda_call(struct keeper *k, size_t who, struct keeper_call *call, struct verdict *v, struct error *err)
{
	struct job job = { .mode = PROTOCOL_QUEUED, .count = 1, .enqueue_seconds = ENQUEUE_SECONDS, .run_seconds = k->task->call_seconds };

	*call = (struct keeper_call){ .seconds = (double)NAN, .elapsed = (double)NAN };
	*v = k->participants[who].pending;
	if (v->status != VERDICT_PASSED)
		return 0;
	if (perform(k, who, &job, v, err) < 0)
		return -1;
	if (v->status != VERDICT_PASSED)
		return 0;
	call->seconds = job.events;
	call->elapsed = job.window - empty_window(&k->empty[k->workload], k->empty[k->workload].last);
	call->arrival = job.arrival - k->empty[k->workload].last_arrival;
	call->gap = job.gap;
	call->disturbed = job.gap > KEEPER_GAP;
	call->busy = is_busy(&job);
	return 0;
}

static int cuda_idle(struct keeper *k, size_t who, struct keeper_call *call, struct verdict *v, struct error *err)
{
	struct job job = { .mode = PROTOCOL_IDLE, .count = 1, .enqueue_seconds = ENQUEUE_SECONDS, .run_seconds = k->task->call_seconds };
	int status = perform(k, who, &job, v, err);

	*call = (struct keeper_call){ .seconds = job.events, .elapsed = (double)NAN, .gap = job.gap };
	return status;
}

/* Bytes of all outputs of a workload. */
static double output_bytes(const struct keeper *k, int workload)
{
	double sum = 0;

	for (int i = 0; i < k->task->output_count; i++)
		sum += (double)task_bytes(&k->task->outputs[i], k->task->workloads[workload].axes);
	return sum;
}

/* Of a call alone, as much of the outputs may be in the cache when it ends. */
static double cached_bytes(const struct keeper *k, int workload)
{
	return fmin(output_bytes(k, workload), (double)k->device.l2_bytes);
}

/* One that has more launches than a held stream takes is made again with fewer calls. */
static int cuda_batch(struct keeper *k, size_t who, double seconds, struct keeper_batch *batch, struct verdict *v, struct error *err)
{
	struct participant *p = &k->participants[who];
	int64_t count = (int64_t)fmin(ceil(BATCH_TOTAL / seconds), (double)p->batch_most);
	struct job job;
	int misses = 0;

	count = count < BATCH_LEAST ? BATCH_LEAST : count;
	for (;;) {
		job = (struct job){ .mode = PROTOCOL_BATCH, .count = count, .enqueue_seconds = BATCH_SECONDS,
				    .run_seconds = fmax(k->task->call_seconds, 4 * (double)count * seconds) };
		if (perform(k, who, &job, v, err) < 0)
			return -1;
		/* More calls than a held stream takes, or than can be enqueued while the caches are flushed (of which a longer flush
		 * comes next): fewer. */
		if (v->status != VERDICT_PASSED || (!job.too_many && !isnan(job.window)) || (count == BATCH_LEAST && (job.too_many || ++misses > 8)))
			break;
		p->batch_most = count = count / (job.too_many ? 4 : 2) < BATCH_LEAST ? BATCH_LEAST : count / (job.too_many ? 4 : 2);
	}
	if (v->status == VERDICT_PASSED && !job.too_many && isnan(job.window))
		verdict_set(v, VERDICT_REJECTED, "clock", "%d calls of km_run take so long to enqueue that our clock cannot bear them out", BATCH_LEAST);
	if (job.too_many)
		verdict_set(v, VERDICT_REJECTED, "synchronise", "%d calls of km_run in a row wait for the device", BATCH_LEAST);
	*batch = (struct keeper_batch){ .calls = count, .elapsed = job.window - empty_window(&k->empty[k->workload], k->empty[k->workload].median),
					.more = k->device.bandwidth > 0 ? cached_bytes(k, k->workload) / k->device.bandwidth : 0 };
	return 0;
}

static int cuda_check(struct keeper *k, size_t who, bool all, struct keeper_check *check, struct verdict *v, struct error *err)
{
	struct keeper_message m = { .value = all };
	const struct task *task = k->task;
	const struct task_tensor *tensors;

	*check = (struct keeper_check){ .input_set = k->set, .output = -1 };
	if (ask(k, KEEPER_CHECK, who, &m, "check", err) < 0)
		return -1;
	tensors = m.found.broken == KEEPER_OUTPUT_GUARD ? task->outputs : task->inputs;
	if (m.found.broken == KEEPER_INPUT_CHANGED)
		verdict_set(v, VERDICT_REJECTED, "input-changed", "km_run wrote to the input '%s'", tensors[m.found.tensor].name);
	else if (m.found.broken == KEEPER_INPUT_GUARD)
		verdict_set(v, VERDICT_REJECTED, "out-of-bounds", "km_run wrote beside the input '%s'", tensors[m.found.tensor].name);
	else if (m.found.broken == KEEPER_OUTPUT_GUARD)
		verdict_set(v, VERDICT_REJECTED, "out-of-bounds", "km_run wrote outside the output '%s'", tensors[m.found.tensor].name);
	else if (m.found.broken == KEEPER_WORKSPACE_GUARD)
		verdict_set(v, VERDICT_REJECTED, "out-of-bounds", "km_run wrote outside its workspace");
	if (v->status != VERDICT_PASSED)
		return 0;
	check->output = m.found.output;
	check->max_abs_error = m.found.max_abs_error;
	check->max_rel_error = m.found.max_rel_error;
	check->wrong = m.found.wrong;
	if (check->output >= 0)
		keeper_note_wrong(task, k->workload, k->set, check->output, &check->wrong, v);
	return 0;
}

/* ---- the device ------------------------------------------------------------------------------------------------- */

/* Dense operations on 16-bit floats that one processor makes in a clock, by NVIDIA's architecture white papers. For kinds
 * that are not known here the most, so that nobody is refused for being fast. */
static double operations_a_clock(const struct keeper_device *d)
{
	if (d->major == 8)
		return d->minor == 0 ? 2048 : 1024;
	return d->major == 9 ? 4096 : 8192;
}

/* Twice as many with 8 bits, four times with 4: as few as an input of the task has. */
static double narrowness(const struct task *task)
{
	size_t bits = 16;

	for (int i = 0; i < task->input_count; i++)
		if (!task->inputs[i].scalar && task->inputs[i].dtype != DTYPE_BOOL && dtype_bits(task->inputs[i].dtype) < bits)
			bits = dtype_bits(task->inputs[i].dtype);
	return 16.0 / (double)bits;
}

static double cuda_floor(const struct keeper *k, int workload, double flops, double bytes, double *least)
{
	const struct keeper_device *d = &k->device;
	double peak = d->processors * 1e6 * d->clock_mhz * operations_a_clock(d) * narrowness(k->task);
	double working = peak > 0 ? flops / peak : 0, moving = d->bandwidth > 0 ? bytes / d->bandwidth : 0;
	double moving_least = d->bandwidth > 0 ? fmax(0, bytes - cached_bytes(k, workload)) / d->bandwidth : 0;

	*least = fmax(fmax(working, moving_least), k->least_events);
	return fmax(working, moving);
}

static struct keeper_range range_of(const double *samples, size_t count)
{
	double *sorted = xreallocarray(NULL, count + 1, sizeof(*sorted));
	struct keeper_range r = { (double)NAN, (double)NAN, (double)NAN };

	if (count == 0) {
		free(sorted);
		return r;
	}
	memcpy(sorted, samples, count * sizeof(*sorted));
	r.least = statistics_quantile(sorted, count, 0);
	r.median = statistics_quantile(sorted, count, 0.5);
	r.most = statistics_quantile(sorted, count, 1);
	free(sorted);
	return r;
}

static void cuda_facts(struct keeper *k, struct keeper_facts *facts)
{
	*facts = (struct keeper_facts){ .driver = k->device.driver, .slowed = k->samples.slowed };
	memcpy(facts->name, k->device.name, sizeof(facts->name));
	memcpy(facts->uuid, k->device.uuid, sizeof(facts->uuid));
	facts->processor_mhz = range_of(k->samples.processor, k->samples.count);
	facts->memory_mhz = range_of(k->samples.memory, k->samples.count);
}

/* ---- under a tool ----------------------------------------------------------------------------------------------- */

static int call_under_tool(struct keeper *k, int workload, struct verdict *v, struct error *err)
{
	struct job job = { .mode = PROTOCOL_IDLE, .count = 1, .enqueue_seconds = k->tool->seconds, .run_seconds = k->tool->seconds };
	int set = SET_NORMAL;

	if (cuda_select(k, 0, workload, v, err) < 0)
		return -1;
	if (v->status != VERDICT_PASSED)
		return 0;
	while (!k->task->input_sets[set] && set < SET_COUNT - 1)
		set++;
	k->participants[0].warm = true; /* the tool shall see one call */
	return cuda_inputs(k, workload, set, false, err) < 0 ? -1 : perform(k, 0, &job, v, err);
}

static void read_output(int fd, struct buf *output)
{
	char chunk[4096];
	off_t at = 0;
	ssize_t n;

	while ((n = pread(fd, chunk, sizeof(chunk), at)) > 0 && buf_add(output, chunk, (size_t)n))
		at += n;
}

static int cuda_examine(struct keeper *k, const struct keeper_kernel *kernel, const struct keeper_tool *tool, const int *workloads,
			size_t count, struct buf *output, struct verdict *v, struct error *err)
{
	int status;

	k->tool_output = memfd_create("a tool's words", MFD_CLOEXEC);
	if (k->tool_output < 0)
		return error_set(err, KM_EXIT_ENVIRONMENT, "cannot make a file in memory: %s", strerror(errno));
	k->tool = tool;
	status = cuda_start(k, 0, kernel, v, err);
	for (size_t i = 0; i < count && status == 0 && v->status == VERDICT_PASSED; i++)
		status = call_under_tool(k, workloads[i], v, err);
	cuda_stop(k, 0);
	k->tool = NULL;
	read_output(k->tool_output, output);
	close(k->tool_output);
	return status;
}

const struct keeper_ops keeper_cuda = {
	.target = "cuda",
	.rules = { .gain_seconds = 0.3e-6, .seconds = 0.8, .baseline_seconds = 0.4, .noise = 0.002 },
	.open = cuda_open, .start = cuda_start, .select = cuda_select, .inputs = cuda_inputs, .call = cuda_call,
	.check = cuda_check, .counts = cuda_counts, .stop = cuda_stop, .close = cuda_close,
	.idle = cuda_idle, .batch = cuda_batch, .floor = cuda_floor, .facts = cuda_facts,
	.examine = cuda_examine,
};
