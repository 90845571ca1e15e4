/* keeper_process_answer.c - the questions of keeper_protocol.h, one function each. */
#include "keeper_process.h"

#include "random.h"
#include "util.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define ARRIVAL_SECONDS 1.0
#define CONTROL_SECONDS 5.0

enum { MAX_HOLD = 23 }; /* passes of the flush, of 70 us on an H200 */

/* ---- the task and its reference --------------------------------------------------------------------------------- */

static int find(const struct keeper_process *k, const char *name, void *function, struct error *err)
{
	*(void **)function = dlsym(k->reference.handle, name);
	if (!*(void **)function)
		return error_set(err, KM_EXIT_INPUT, "the reference of task '%s' does not define %s", k->task.name, name);
	return 0;
}

static int open_reference(struct keeper_process *k, const char *path, struct error *err)
{
	struct keeper_reference *r = &k->reference;

	r->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!r->handle)
		return error_set(err, KM_EXIT_INPUT, "cannot open the reference of task '%s': %s", k->task.name, dlerror());
	if (find(k, "ref_inputs", &r->inputs, err) < 0 || find(k, "ref_rows", &r->rows, err) < 0 ||
	    find(k, "ref_expected", &r->expected, err) < 0 || find(k, "ref_counts", &r->counts, err) < 0)
		return -1;
	return 0;
}

static int look_at_task(const struct keeper_process *k, struct error *err)
{
	const struct task *task = &k->task;

	if (task->target != TASK_CUDA)
		return error_set(err, KM_EXIT_INPUT, "the target of task '%s' is not cuda", task->name);
	if (k->layout.size > PROTOCOL_ARGS_MAX)
		return error_set(err, KM_EXIT_INPUT, "task '%s' has more arguments than fit into %d bytes", task->name, PROTOCOL_ARGS_MAX);
	for (size_t i = 0; i < k->named_count; i++)
		if (k->named[i] < 0 || k->named[i] >= task->workload_count)
			return error_set(err, KM_EXIT_USAGE, "task '%s' has no workload number %d", task->name, k->named[i]);
	return 0;
}

int keeper_process_load(struct keeper_process *k, const char *folder, const char *reference, size_t participants, const int *named,
			size_t named_count, struct error *err)
{
	memset(k, 0, sizeof(*k));
	k->workload = k->who = k->earlier_workload = k->window_output = -1;
	k->inputs.fd = k->outputs.fd = -1;
	k->named = named;
	k->named_count = named_count;
	if (task_load(folder, &k->task, err) < 0)
		return -1;
	k->loaded = true;
	task_layout(&k->task, &k->layout);
	k->workloads = xcalloc((size_t)k->task.workload_count, sizeof(*k->workloads));
	k->participants = xcalloc(participants, sizeof(*k->participants));
	k->participant_count = participants;
	return look_at_task(k, err) < 0 ? -1 : open_reference(k, reference, err);
}

/* ---- participants ----------------------------------------------------------------------------------------------- */

static void stop_participant(struct keeper_process *k, struct keeper_participant *p)
{
	struct error none;

	if (!p->started)
		return;
	/* The guard zones are looked at once more with the next inputs: those of a slab that is gone are not there any more. */
	if (k->zoned == p) {
		k->zone_count = 0;
		k->zoned = NULL;
		device_guard(k->device, NULL, 0, 0, &none);
	}
	device_slab_release(k->device, &p->scratch);
	if (p->page)
		munmap(p->page, KEEPER_PAGE_BYTES);
	if (p->page_fd >= 0)
		close(p->page_fd);
	*p = (struct keeper_participant){ .page_fd = -1 };
}

void keeper_process_release(struct keeper_process *k)
{
	for (size_t i = 0; i < k->participant_count; i++)
		stop_participant(k, &k->participants[i]);
	for (int i = 0; i < TASK_MAX_TENSORS; i++)
		device_free(k->device, k->earlier[i]);
	if (k->device) {
		device_slab_release(k->device, &k->inputs);
		device_slab_release(k->device, &k->outputs);
		device_free(k->device, k->expected);
		device_free_pinned(k->device, k->window);
	}
	device_close(k->device);
	if (k->reference.handle)
		dlclose(k->reference.handle);
	free(k->participants);
	free(k->workloads);
	free(k->zones);
	free(k->zone_owners);
	free(k->wrong);
	if (k->loaded)
		task_release(&k->task);
	memset(k, 0, sizeof(*k));
}

static int make_page(struct keeper_participant *p, struct error *err)
{
	void *at = MAP_FAILED;

	p->page_fd = memfd_create("page", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (p->page_fd >= 0 && ftruncate(p->page_fd, KEEPER_PAGE_BYTES) == 0)
		at = mmap(NULL, KEEPER_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, p->page_fd, 0);
	/* Or a runner could take the page away, and our next look at it would end us. */
	if (at == MAP_FAILED || fcntl(p->page_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
		if (at != MAP_FAILED)
			munmap(at, KEEPER_PAGE_BYTES);
		return error_set(err, KM_EXIT_ENVIRONMENT, "cannot make a shared page: %s", strerror(errno));
	}
	p->page = at;
	return 0;
}

static int answer_start(struct keeper_process *k, struct keeper_participant *p, struct keeper_message *m, int *descriptors, struct error *err)
{
	stop_participant(k, p);
	*p = (struct keeper_participant){ .started = true, .page_fd = -1, .workload = -1, .scratch.fd = -1 };
	if (device_slab_make(k->device, &p->scratch, "a workspace", keeper_memory_scratch(k), err) < 0 || make_page(p, err) < 0) {
		stop_participant(k, p);
		return -1;
	}
	m->bytes[PROTOCOL_INPUT] = k->inputs.bytes;
	m->bytes[PROTOCOL_OUTPUT] = k->outputs.bytes;
	m->bytes[PROTOCOL_SCRATCH] = p->scratch.bytes;
	descriptors[0] = k->inputs.fd;
	descriptors[1] = k->outputs.fd;
	descriptors[2] = p->scratch.fd;
	descriptors[3] = p->page_fd;
	return 0;
}

static int answer_mapped(struct keeper_participant *p, const struct keeper_message *m)
{
	memcpy(p->where, m->where, sizeof(p->where));
	p->mapped = true;
	return 0;
}

/* ---- opening, inputs -------------------------------------------------------------------------------------------- */

/* The runtime is going to open the same. */
static int answer_driver(struct keeper_message *m, struct error *err)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
	struct link_map *map = NULL;
	char *path;
	size_t length;

	if (!library)
		return error_set(err, KM_EXIT_WAITING, "no CUDA device: %s", dlerror());
	path = dlinfo(library, RTLD_DI_LINKMAP, &map) == 0 && map ? realpath(map->l_name, NULL) : NULL;
	length = path ? (size_t)(strrchr(path, '/') - path) : 0;
	if (length > 0 && length < sizeof(m->text))
		snprintf(m->text, sizeof(m->text), "%.*s", (int)length, path);
	free(path);
	return m->text[0] ? 0 : error_set(err, KM_EXIT_ENVIRONMENT, "cannot tell where the driver's library 'libcuda.so.1' is");
}

static int answer_open(struct keeper_process *k, int ordinal, struct keeper_message *m, struct error *err)
{
	if (k->device)
		return error_set(err, KM_EXIT_USAGE, "the keeper was opened already");
	k->device = device_open(ordinal, err);
	if (!k->device || keeper_check_open(k, err) < 0 || keeper_memory_open(k, err) < 0)
		return -1;
	device_describe(k->device, &m->device);
	k->opened = true;
	return 0;
}

static int answer_measure(struct keeper_process *k, struct error *err)
{
	if (k->measured)
		return error_set(err, KM_EXIT_USAGE, "it was measured already");
	k->measured = keeper_memory_measure(k, err) == 0;
	return k->measured ? 0 : -1;
}

static int know_workload(const struct keeper_process *k, int workload, struct error *err)
{
	if (workload < 0 || workload >= k->task.workload_count || k->workloads[workload].rows < 1)
		return error_set(err, KM_EXIT_USAGE, "workload number %d was not named at the start", workload);
	return 0;
}

static int answer_select(struct keeper_process *k, struct keeper_participant *p, const struct keeper_message *m, struct error *err)
{
	if (know_workload(k, m->workload, err) < 0)
		return -1;
	if (!k->measured)
		return error_set(err, KM_EXIT_USAGE, "nothing was measured yet");
	if (m->count < 0 || (uint64_t)m->count > k->task.workspace_bytes)
		return error_set(err, KM_EXIT_USAGE, "a workspace of %lld bytes, the task allows %zu", (long long)m->count, k->task.workspace_bytes);
	p->workload = m->workload;
	p->workspace = (size_t)m->count;
	p->fresh = true;
	return 0;
}

static void draw_scalars(struct keeper_process *k, bool vary)
{
	for (int i = 0; i < k->task.input_count; i++) {
		const struct task_tensor *t = &k->task.inputs[i];

		k->scalars[i] = k->task.workloads[k->workload].scalars[i];
		if (t->scalar && vary && t->vary_count)
			k->scalars[i] = t->vary[ref_below(random_secret(), 0, t->vary_count)];
	}
}

static int fill_inputs(struct keeper_process *k, struct error *err)
{
	const int64_t *axes = keeper_memory_axes(k);

	for (int i = 0; i < k->task.input_count; i++) {
		const struct task_tensor *t = &k->task.inputs[i];
		size_t columns = t->dims ? (size_t)axes[t->axis[t->dims - 1]] : 1;

		if (!t->scalar && device_fill(k->device, t->dtype, k->inputs.at + k->input_places[i].offset, task_elements(t, axes),
					      columns ? columns : 1, k->set, random_secret(), err) < 0)
			return -1;
	}
	return 0;
}

static int answer_inputs(struct keeper_process *k, const struct keeper_message *m, struct error *err)
{
	int code;

	if (know_workload(k, m->workload, err) < 0)
		return -1;
	if (m->set < 0 || m->set >= SET_COUNT)
		return error_set(err, KM_EXIT_USAGE, "no input set has the number %d", m->set);
	k->who = -1;
	k->workload = m->workload;
	k->set = m->set;
	k->inputs_count++;
	draw_scalars(k, m->value == 1);
	keeper_memory_place_inputs(k);
	keeper_memory_args(k, k->workload, (uint64_t)(uintptr_t)k->inputs.at, k->args);
	if (device_wait(k->device, err) < 0 || fill_inputs(k, err) < 0)
		return -1;
	code = k->reference.inputs((const struct km_args *)k->args, k->set, random_secret(), device_stream(k->device));
	if (code)
		return keeper_reference_failed(k, "ref_inputs", code, err);
	if (device_wait(k->device, err) < 0)
		return error_prefix(err, "the reference of task '%s' failed in ref_inputs", k->task.name);
	return keeper_check_hash_inputs(k, err);
}

static int answer_counts(struct keeper_process *k, struct keeper_message *m, struct error *err)
{
	unsigned char args[PROTOCOL_ARGS_MAX] __attribute__((aligned(16)));

	if (know_workload(k, m->workload, err) < 0)
		return -1;
	keeper_memory_args(k, m->workload, 0, args);
	k->reference.counts((const struct km_args *)args, &m->flops, &m->bytes_moved);
	return 0;
}

static int answer_memory(struct keeper_process *k, struct keeper_message *m, struct error *err)
{
	size_t bytes;

	if (device_unused(k->device, &bytes, err) < 0)
		return -1;
	m->count = (int64_t)bytes;
	return 0;
}

/* ---- a call ----------------------------------------------------------------------------------------------------- */

static void fill_call(const struct keeper_process *k, const struct keeper_participant *p, struct keeper_message *m)
{
	uint64_t address, bytes = p->workspace;

	keeper_memory_args(k, k->workload, p->where[PROTOCOL_INPUT], m->args);
	for (int i = 0; i < k->task.output_count; i++) {
		address = p->where[PROTOCOL_OUTPUT] + k->output_places[i].offset;
		memcpy(m->args + k->layout.output[i], &address, sizeof(address));
	}
	if (p->workspace) {
		address = p->where[PROTOCOL_SCRATCH] + p->place.offset;
		memcpy(m->args + k->layout.workspace, &address, sizeof(address));
		memcpy(m->args + k->layout.workspace_bytes, &bytes, sizeof(bytes));
	}
	m->args_bytes = (uint32_t)k->layout.size;
}

static void fill_patches(const struct keeper_process *k, struct keeper_message *m)
{
	m->patch_count = 0;
	for (int i = 0; i < k->task.output_count && m->value == PROTOCOL_BATCH; i++)
		m->patch[m->patch_count++] = (struct keeper_patch){ k->layout.output[i] & 0xfff, k->copies & 0xfff, k->output_places[i].stride & 0xffffffffff };
}

static int look_at_prepare(const struct keeper_process *k, const struct keeper_participant *p, const struct keeper_message *m, struct error *err)
{
	if (k->workload < 0 || p->workload != k->workload)
		return error_set(err, KM_EXIT_USAGE, "participant %d has not selected the workload of the inputs", m->who);
	if (!p->mapped)
		return error_set(err, KM_EXIT_USAGE, "participant %d has not said where its slabs are", m->who);
	if (m->value < PROTOCOL_QUEUED || m->value > PROTOCOL_BATCH || m->count < 1 || (m->count > 1 && m->value != PROTOCOL_BATCH))
		return error_set(err, KM_EXIT_USAGE, "no call of mode %lld, %lld times", (long long)m->value, (long long)m->count);
	return 0;
}

static int answer_prepare(struct keeper_process *k, struct keeper_participant *p, struct keeper_message *m, struct error *err)
{
	if (look_at_prepare(k, p, m, err) < 0)
		return -1;
	k->who = -1;
	k->window_output = -1;
	k->serial = (uint32_t)m->serial;
	if (keeper_memory_prepare(k, p, (size_t)m->count, err) < 0)
		return -1;
	fill_call(k, p, m);
	fill_patches(k, m);
	m->usual = k->usual;
	k->who = m->who;
	return m->value == PROTOCOL_IDLE ? device_between_marks(k->device, &m->prepare, err) : 0;
}

static inline void pause_a_moment(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/* Wait until the word holds the serial; false if it does not by `end`. Reading the clock costs more than the look. */
static bool wait_for(const volatile uint32_t *word, uint32_t serial, double end)
{
	for (unsigned i = 1;; i++) {
		if (__atomic_load_n(word, __ATOMIC_ACQUIRE) == serial)
			return true;
		if (i % 64 == 0 && monotonic_seconds() > end)
			return __atomic_load_n(word, __ATOMIC_ACQUIRE) == serial;
		pause_a_moment();
	}
}

/* What a small kernel takes now: work that the call has left on the device delays it. It is never faster than when
 * nobody else uses the device, so the least that was seen is the usual. */
static int look_behind(struct keeper_process *k, struct keeper_message *m, struct error *err)
{
	double seconds;

	if (device_control(k->device, CONTROL_SECONDS, &seconds, err) < 0)
		return -1;
	if (k->least_behind == 0 || seconds < k->least_behind)
		k->least_behind = seconds;
	m->prepare += seconds;
	m->usual += k->least_behind;
	return 0;
}

static int answer_release(struct keeper_process *k, struct keeper_participant *p, struct keeper_message *m, struct error *err)
{
	double start, released;
	bool early;

	if (k->who != m->who)
		return error_set(err, KM_EXIT_USAGE, "participant %d was not made ready", m->who);
	m->usual = k->usual;
	keeper_check_draw_window(k);
	early = device_passed_mark(k->device, 1);
	if (device_between_marks(k->device, &m->prepare, err) < 0)
		return -1;
	start = monotonic_seconds();
	m->outcome = wait_for(&p->page->arrived, k->serial, monotonic_seconds() + ARRIVAL_SECONDS) ? KEEPER_RAN : KEEPER_NO_ARRIVAL;
	released = monotonic_seconds();
	__atomic_store_n(&p->page->release, k->serial, __ATOMIC_RELEASE);
	if (m->outcome == KEEPER_RAN && !wait_for(&p->page->done, k->serial, released + m->seconds))
		m->outcome = KEEPER_LATE;
	if (m->outcome == KEEPER_RAN && keeper_check_fetch_window(k, err) < 0)
		return -1;
	m->arrival = released - start;
	m->window = early ? -1 : monotonic_seconds() - start;
	if (early)
		p->hold = p->hold < MAX_HOLD / 2 ? 2 * p->hold + 1 : MAX_HOLD;
	if (m->outcome == KEEPER_RAN)
		return look_behind(k, m, err);
	k->window_output = -1;
	return 0;
}

static int answer_check(struct keeper_process *k, struct keeper_message *m, struct error *err)
{
	if (k->who != m->who)
		return error_set(err, KM_EXIT_USAGE, "the last call was not one of participant %d", m->who);
	return keeper_check(k, m->value == 1, &m->found, err);
}

/* ---- all questions ---------------------------------------------------------------------------------------------- */

static struct keeper_participant *find_participant(struct keeper_process *k, const struct keeper_message *m, struct error *err)
{
	if (m->who < 0 || (size_t)m->who >= k->participant_count) {
		error_set(err, KM_EXIT_USAGE, "there is no participant %d", m->who);
		return NULL;
	}
	if (m->kind != KEEPER_START && !k->participants[m->who].started) {
		error_set(err, KM_EXIT_USAGE, "participant %d was not started", m->who);
		return NULL;
	}
	return &k->participants[m->who];
}

static int answer_participant(struct keeper_process *k, struct keeper_message *m, int *descriptors, struct error *err)
{
	struct keeper_participant *p = find_participant(k, m, err);

	if (!p)
		return -1;
	switch (m->kind) {
	case KEEPER_START: return answer_start(k, p, m, descriptors, err);
	case KEEPER_MAPPED: return answer_mapped(p, m);
	case KEEPER_SELECT: return answer_select(k, p, m, err);
	case KEEPER_PREPARE: return answer_prepare(k, p, m, err);
	case KEEPER_RELEASE: return answer_release(k, p, m, err);
	case KEEPER_CHECK: return answer_check(k, m, err);
	default: break;
	}
	if (k->who == m->who)
		k->who = -1;
	/* Its guards and workspace are part of the last call's list. */
	if (device_wait(k->device, err) < 0)
		return -1;
	stop_participant(k, p);
	return 0;
}

static int answer(struct keeper_process *k, int ordinal, struct keeper_message *m, int *descriptors, struct error *err)
{
	if (m->kind == KEEPER_OPEN)
		return answer_open(k, ordinal, m, err);
	if (m->kind == KEEPER_DRIVER)
		return answer_driver(m, err);
	if (!k->opened)
		return error_set(err, KM_EXIT_USAGE, "the keeper is not open");
	switch (m->kind) {
	case KEEPER_MEASURE:
		return answer_measure(k, err);
	case KEEPER_INPUTS:
		return answer_inputs(k, m, err);
	case KEEPER_COUNTS:
		return answer_counts(k, m, err);
	case KEEPER_CONTROL:
		return device_control(k->device, CONTROL_SECONDS, &m->seconds, err);
	case KEEPER_MEMORY:
		return answer_memory(k, m, err);
	case KEEPER_START:
	case KEEPER_MAPPED:
	case KEEPER_SELECT:
	case KEEPER_PREPARE:
	case KEEPER_RELEASE:
	case KEEPER_CHECK:
	case KEEPER_STOP:
		return answer_participant(k, m, descriptors, err);
	default:
		return error_set(err, KM_EXIT_USAGE, "unknown question %u", m->kind);
	}
}

void keeper_process_answer(struct keeper_process *k, int ordinal, struct keeper_message *m, int descriptors[KEEPER_PROCESS_DESCRIPTORS])
{
	struct error err = { .code = KM_EXIT_ENVIRONMENT, .text = "" };

	for (int i = 0; i < KEEPER_PROCESS_DESCRIPTORS; i++)
		descriptors[i] = -1;
	m->text[0] = '\0';
	if (answer(k, ordinal, m, descriptors, &err) == 0) {
		m->kind = KEEPER_DONE;
		return;
	}
	m->kind = KEEPER_FAILED;
	m->value = err.code;
	snprintf(m->text, sizeof(m->text), "%.*s", (int)sizeof(m->text) - 1, err.text);
}
