/* keeper_process_memory.c - where tensors are, and how a call is made ready.
 *
 * Inputs and outputs are in one slab each, which all participants share, so that two kernels meet the same bytes at the
 * same places. Each participant has a scratch slab of its own of two halves: a workspace that is left as it was moves
 * from one to the other.
 */
#include "keeper_process.h"

#include "random.h"
#include "util.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
	SLACK = 256 << 10,         /* bytes to move in, at least */
	SLACK_MAX = 256 << 20,
	BATCH_BYTES = 256 << 20,   /* of the outputs' slab for copies */
	MEASURED_RUNS = 5,
};

/* Making ready is drawn out to this at most: after 2 ms another context has its turn, in which a runner's kernels would run
 * before the clock starts. */
#define HOLD_SECONDS 1.6e-3

/* ---- sizes ------------------------------------------------------------------------------------------------------ */

static size_t align_up(size_t n)
{
	return (n + DEVICE_ALIGN - 1) / DEVICE_ALIGN * DEVICE_ALIGN;
}

static size_t min_size(size_t a, size_t b)
{
	return a < b ? a : b;
}

const int64_t *keeper_memory_axes(const struct keeper_process *k)
{
	return k->task.workloads[k->workload].axes;
}

size_t keeper_memory_bytes(const struct keeper_process *k, const struct task_tensor *t)
{
	return t->scalar ? 0 : task_bytes(t, keeper_memory_axes(k));
}

/* From a copy to the next: there is one guard zone between them. */
static size_t stride_of(size_t bytes)
{
	return align_up(bytes) + KEEPER_PROCESS_GUARD;
}

/* Bytes of `copies` copies with their guards. */
static size_t packed_size(size_t bytes, size_t copies)
{
	return copies * stride_of(bytes) + KEEPER_PROCESS_GUARD;
}

static size_t room_for(size_t packed)
{
	return packed + min_size(packed / 4, SLACK_MAX) + SLACK;
}

/* Packed bytes of all tensors of one side for a workload. */
static size_t packed_tensors(const struct task_tensor *tensors, int count, const int64_t *axes, size_t copies)
{
	size_t sum = 0;

	for (int i = 0; i < count; i++)
		if (!tensors[i].scalar)
			sum += packed_size(task_bytes(&tensors[i], axes), copies);
	return sum;
}

/* Copies of the outputs of a workload that fit into `bytes` with some slack; at least 1. */
static size_t copies_in(const struct keeper_process *k, const int64_t *axes, size_t bytes)
{
	size_t one = packed_tensors(k->task.outputs, k->task.output_count, axes, 1);
	size_t more = packed_tensors(k->task.outputs, k->task.output_count, axes, 2) - one;

	if (bytes < one + SLACK)
		return 1;
	return min_size(1 + (bytes - one - SLACK) / more, KEEPER_PROCESS_COPIES);
}

static size_t input_room(const struct keeper_process *k)
{
	size_t most = 0;

	for (size_t i = 0; i < k->named_count; i++) {
		size_t packed = packed_tensors(k->task.inputs, k->task.input_count, k->task.workloads[k->named[i]].axes, 1);

		most = packed > most ? packed : most;
	}
	return room_for(most);
}

static size_t output_room(const struct keeper_process *k)
{
	size_t most = 0;

	for (size_t i = 0; i < k->named_count; i++) {
		const int64_t *axes = k->task.workloads[k->named[i]].axes;
		size_t packed = packed_tensors(k->task.outputs, k->task.output_count, axes, copies_in(k, axes, BATCH_BYTES));

		most = packed > most ? packed : most;
	}
	return room_for(most);
}

static size_t half_of_scratch(size_t workspace)
{
	return align_up(room_for(packed_size(workspace, 1)));
}

size_t keeper_memory_scratch(const struct keeper_process *k)
{
	return 2 * half_of_scratch(k->task.workspace_bytes);
}

/* ---- places ----------------------------------------------------------------------------------------------------- */

/* Draw places for tensors, `copies` of each in a row, in `room` bytes: random order, random gaps. Scalars get none. */
static void draw_places(size_t room, const struct task_tensor *tensors, int count, const int64_t *axes, size_t copies, struct keeper_place *places)
{
	int order[TASK_MAX_TENSORS] = { 0 }, n = 0;
	uint64_t seed = random_secret();
	size_t slack = (room - packed_tensors(tensors, count, axes, copies)) / DEVICE_ALIGN, at = 0;

	for (int i = 0; i < count; i++) {
		int other = (int)ref_below(seed, (uint64_t)i, (uint64_t)n + 1);

		places[i] = (struct keeper_place){ 0, 0, 0 };
		if (tensors[i].scalar)
			continue;
		order[n] = order[other];
		order[other] = i;
		n++;
	}
	for (int i = 0; i < n; i++) {
		size_t bytes = task_bytes(&tensors[order[i]], axes);
		size_t gap = (size_t)ref_below(~seed, (uint64_t)i, slack / (size_t)(n - i) + 1);

		slack -= gap;
		at += gap * DEVICE_ALIGN + KEEPER_PROCESS_GUARD;
		places[order[i]] = (struct keeper_place){ at, bytes, stride_of(bytes) };
		at += copies * stride_of(bytes);
	}
}

void keeper_memory_place_inputs(struct keeper_process *k)
{
	draw_places(k->inputs.bytes, k->task.inputs, k->task.input_count, keeper_memory_axes(k), 1, k->input_places);
}

/* The workspace's next place: in a half of its own choice, or in the other one. */
static struct keeper_place draw_workspace(struct keeper_participant *p, bool other_half)
{
	size_t half = half_of_scratch(p->workspace), slack = half - packed_size(p->workspace, 1), gap;

	p->half = other_half ? !p->half : (int)(random_secret() & 1);
	gap = (size_t)ref_below(random_secret(), 0, slack / DEVICE_ALIGN + 1) * DEVICE_ALIGN;
	return (struct keeper_place){ (size_t)p->half * half + gap + KEEPER_PROCESS_GUARD, p->workspace, stride_of(p->workspace) };
}

/* ---- guards ----------------------------------------------------------------------------------------------------- */

static void add_zone(struct keeper_process *k, uint64_t low, uint64_t high, int kind, int tensor)
{
	if (k->zone_count == DEVICE_MAX_ZONES)
		return;
	k->zones[k->zone_count] = (struct device_zone){ low, high };
	k->zone_owners[k->zone_count++] = (struct keeper_zone){ kind, tensor };
}

/* Before, between and behind the copies of a tensor. */
static void add_zones(struct keeper_process *k, const struct device_slab *slab, const struct keeper_place *place, size_t copies, int kind, int tensor)
{
	uint64_t start = (uint64_t)(uintptr_t)slab->at + place->offset;

	if (place->offset == 0)
		return; /* a scalar */
	add_zone(k, start - KEEPER_PROCESS_GUARD, start, kind, tensor);
	for (size_t i = 0; i < copies; i++)
		add_zone(k, start + i * place->stride + place->bytes, start + (i + 1) * place->stride, kind, tensor);
}

static int draw_guards(struct keeper_process *k, const struct keeper_participant *p, struct error *err)
{
	k->zone_count = 0;
	for (int i = 0; i < k->task.input_count; i++)
		add_zones(k, &k->inputs, &k->input_places[i], 1, KEEPER_INPUT_GUARD, i);
	for (int i = 0; i < k->task.output_count; i++)
		add_zones(k, &k->outputs, &k->output_places[i], k->copies, KEEPER_OUTPUT_GUARD, i);
	k->zoned = p && p->workspace ? p : NULL;
	if (k->zoned)
		add_zones(k, &p->scratch, &p->place, 1, KEEPER_WORKSPACE_GUARD, 0);
	return device_guard(k->device, k->zones, k->zone_count, random_secret(), err);
}

/* ---- a call ----------------------------------------------------------------------------------------------------- */

static int poison_outputs(struct keeper_process *k, bool calm, struct error *err)
{
	/* That of the same inputs would be right. */
	bool earlier = k->earlier_workload == k->workload && k->earlier_inputs != k->inputs_count;

	for (int i = 0; i < k->task.output_count; i++) {
		const struct keeper_place *place = &k->output_places[i];
		uint64_t u = random_secret();
		enum device_poison_kind kind = calm ? DEVICE_POISON_NAN : k->copies > 1 ? DEVICE_POISON_MIXED : (enum device_poison_kind)(u % 3);

		if (device_poison(k->device, k->task.outputs[i].dtype, k->outputs.at + place->offset, place->bytes, place->stride, k->copies, kind,
				  earlier ? k->earlier[i] : NULL, u, err) < 0)
			return -1;
		k->usual += (double)((k->copies - 1) * place->bytes) * k->rates.poison;
		if (earlier && kind != DEVICE_POISON_NAN && kind != DEVICE_POISON_HUGE)
			k->usual += (double)(k->copies * place->bytes) * k->rates.copy;
	}
	return 0;
}

/* Zeros, or what its last call left, moved to another place. */
static int prepare_workspace(struct keeper_process *k, struct keeper_participant *p, struct error *err)
{
	unsigned char *old = p->scratch.at + p->place.offset;
	bool zero = p->fresh || random_secret() % 2;

	if (!p->workspace)
		return 0;
	p->place = draw_workspace(p, !zero);
	p->fresh = false;
	k->usual += (double)p->workspace * (zero ? k->rates.zero : k->rates.copy);
	if (zero)
		return device_zero(k->device, p->scratch.at + p->place.offset, p->workspace, err);
	return device_copy(k->device, p->scratch.at + p->place.offset, old, p->workspace, err);
}

/* All calls on the same inputs find the outputs at the same places: so the poison covers all of another's answer to them, which
 * would be a right one. */
static void place_outputs(struct keeper_process *k, size_t copies, bool always)
{
	if (!always && k->placed_inputs == k->inputs_count && k->copies == copies)
		return;
	k->copies = copies;
	k->placed_inputs = k->inputs_count;
	draw_places(k->outputs.bytes, k->task.outputs, k->task.output_count, keeper_memory_axes(k), copies, k->output_places);
}

static int prepare(struct keeper_process *k, struct keeper_participant *p, size_t count, bool calm, struct error *err)
{
	size_t copies = min_size(count, copies_in(k, keeper_memory_axes(k), k->outputs.bytes));
	double hold;

	k->usual = k->workloads[k->workload].prepare;
	place_outputs(k, copies, !p);
	if (device_wait(k->device, err) < 0 || device_reset_persisting(k->device, err) < 0 || device_mark(k->device, 0, err) < 0)
		return -1;
	if (poison_outputs(k, calm, err) < 0 || (p && prepare_workspace(k, p, err) < 0) || draw_guards(k, p, err) < 0)
		return -1;
	/* The flush must last until the runner has enqueued its work, so that none of it comes before the clock starts. */
	hold = p ? fmax(0, fmin(p->hold, floor((HOLD_SECONDS - k->usual) / k->rates.flush))) : 0;
	for (int i = 0; i <= (int)hold; i++)
		if (device_flush(k->device, err) < 0)
			return -1;
	k->usual += hold * k->rates.flush;
	return device_mark(k->device, 1, err);
}

int keeper_memory_prepare(struct keeper_process *k, struct keeper_participant *p, size_t count, struct error *err)
{
	return prepare(k, p, count, false, err);
}

/* ---- arguments -------------------------------------------------------------------------------------------------- */

void keeper_memory_args(const struct keeper_process *k, int workload, uint64_t base, unsigned char *args)
{
	const struct task *task = &k->task;
	bool current = workload == k->workload;

	memset(args, 0, PROTOCOL_ARGS_MAX);
	for (int i = 0; i < task->axis_count; i++)
		memcpy(args + k->layout.axis[i], &task->workloads[workload].axes[i], sizeof(int64_t));
	for (int i = 0; i < task->input_count; i++) {
		uint64_t address = base + k->input_places[i].offset;

		if (task->inputs[i].scalar)
			task_store_scalar(&task->inputs[i], current ? k->scalars[i] : task->workloads[workload].scalars[i],
					  args + k->layout.input[i]);
		else if (base)
			memcpy(args + k->layout.input[i], &address, sizeof(address));
	}
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *values, size_t count)
{
	qsort(values, count, sizeof(*values), compare_doubles);
	return values[count / 2];
}

static int measure_flush(struct keeper_process *k, struct error *err)
{
	double seconds[MEASURED_RUNS];

	for (int i = 0; i < MEASURED_RUNS; i++)
		if (device_mark(k->device, 0, err) < 0 || device_flush(k->device, err) < 0 || device_mark(k->device, 1, err) < 0 ||
		    device_between_marks(k->device, &seconds[i], err) < 0)
			return -1;
	k->rates.flush = median(seconds, MEASURED_RUNS);
	return 0;
}

enum action { POISON, COPY, ZERO };

/* Seconds a byte of one of these, over half of the memory for comparisons. */
static int measure_rate(struct keeper_process *k, enum action action, double *rate, struct error *err)
{
	size_t half = k->expected_count * sizeof(double) / 2 / DEVICE_ALIGN * DEVICE_ALIGN;
	unsigned char *at = (unsigned char *)k->expected;
	double seconds[MEASURED_RUNS];

	for (int i = 0; i < MEASURED_RUNS; i++) {
		int result = device_mark(k->device, 0, err);

		if (result == 0 && action == POISON)
			result = device_poison(k->device, DTYPE_FLOAT32, at, half, half, 1, DEVICE_POISON_NAN, NULL, 1, err);
		else if (result == 0 && action == COPY)
			result = device_copy(k->device, at + half, at, half, err);
		else if (result == 0)
			result = device_zero(k->device, at, half, err);
		if (result < 0 || device_mark(k->device, 1, err) < 0 || device_between_marks(k->device, &seconds[i], err) < 0)
			return -1;
	}
	*rate = median(seconds, MEASURED_RUNS) / (double)half;
	return 0;
}

static int measure_prepare(struct keeper_process *k, int workload, struct error *err)
{
	double seconds[MEASURED_RUNS];

	k->workload = workload;
	keeper_memory_place_inputs(k);
	for (int i = 0; i < MEASURED_RUNS; i++)
		if (prepare(k, NULL, 1, true, err) < 0 || device_between_marks(k->device, &seconds[i], err) < 0)
			return -1;
	k->workloads[workload].prepare = median(seconds, MEASURED_RUNS);
	return 0;
}

/* An idle device runs slower. */
static int warm_up(struct keeper_process *k, struct error *err)
{
	double end = monotonic_seconds() + 0.03;

	while (monotonic_seconds() < end)
		if (device_flush(k->device, err) < 0 || device_wait(k->device, err) < 0)
			return -1;
	return 0;
}

int keeper_memory_open(struct keeper_process *k, struct error *err)
{
	k->zones = xcalloc(DEVICE_MAX_ZONES, sizeof(*k->zones));
	k->zone_owners = xcalloc(DEVICE_MAX_ZONES, sizeof(*k->zone_owners));
	if (device_slab_make(k->device, &k->inputs, "inputs", input_room(k), err) < 0)
		return -1;
	return device_slab_make(k->device, &k->outputs, "outputs", output_room(k), err);
}

int keeper_memory_measure(struct keeper_process *k, struct error *err)
{
	if (warm_up(k, err) < 0 || measure_rate(k, POISON, &k->rates.poison, err) < 0 || measure_rate(k, COPY, &k->rates.copy, err) < 0 ||
	    measure_rate(k, ZERO, &k->rates.zero, err) < 0 || measure_flush(k, err) < 0)
		return -1;
	for (size_t i = 0; i < k->named_count; i++)
		if (measure_prepare(k, k->named[i], err) < 0)
			return -1;
	k->workload = -1;
	return 0;
}
