/* keeper_process_check.c - looking at what a call left: inputs, guards, rows of the outputs.
 *
 * Whether inputs and guards are whole is known before the reference is asked, for which changed index tensors might be
 * poison. Rows are compared on the device; of the wrong ones a few are copied here and compared again by compare_row,
 * which notes their elements.
 */
#include "keeper_process.h"

#include "number.h"
#include "random.h"
#include "util.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { EXPECTED_BYTES = 256 << 20, MAX_PITCH = 0x7fffffff };

int keeper_reference_failed(const struct keeper_process *k, const char *function, int code, struct error *err)
{
	return error_set(err, KM_EXIT_INPUT, "the reference of task '%s' failed: %s returned %d (as a CUDA error: %s)", k->task.name, function,
			 code, device_error_text(code));
}

/* ---- sizes ------------------------------------------------------------------------------------------------------ */

static size_t row_length(const struct keeper_process *k, int output, int workload)
{
	return task_elements(&k->task.outputs[output], k->task.workloads[workload].axes) / (size_t)k->workloads[workload].rows;
}

/* Doubles that one row of every output takes. */
static size_t all_lengths(const struct keeper_process *k, int workload)
{
	size_t sum = 0;

	for (int i = 0; i < k->task.output_count; i++)
		sum += row_length(k, i, workload);
	return sum;
}

int64_t keeper_check_rows(struct keeper_process *k, int workload, struct error *err)
{
	unsigned char args[PROTOCOL_ARGS_MAX] __attribute__((aligned(16)));
	int64_t rows;

	keeper_memory_args(k, workload, 0, args);
	rows = k->reference.rows((const struct km_args *)args);
	if (rows < 1)
		return error_set(err, KM_EXIT_INPUT, "the reference of task '%s' says %" PRId64 " rows", k->task.name, rows);
	for (int i = 0; i < k->task.output_count; i++) {
		size_t elements = task_elements(&k->task.outputs[i], k->task.workloads[workload].axes);

		if (elements % (size_t)rows != 0)
			return error_set(err, KM_EXIT_INPUT, "the reference of task '%s' says %" PRId64 " rows, which does not divide"
					 " the %zu elements of output '%s'", k->task.name, rows, elements, k->task.outputs[i].name);
	}
	return rows;
}

int keeper_check_open(struct keeper_process *k, struct error *err)
{
	k->expected_count = EXPECTED_BYTES / sizeof(double);
	for (size_t i = 0; i < k->named_count; i++) {
		int64_t rows = keeper_check_rows(k, k->named[i], err);
		size_t lengths;

		if (rows < 0)
			return -1;
		k->workloads[k->named[i]].rows = rows;
		lengths = all_lengths(k, k->named[i]);
		k->expected_count = lengths > k->expected_count ? lengths : k->expected_count;
	}
	k->wrong = xmalloc(DEVICE_MAX_ROWS);
	k->expected = device_alloc(k->device, "expected rows", k->expected_count * sizeof(double), err);
	k->window = device_alloc_pinned(k->device, KEEPER_PROCESS_WINDOW_BYTES, err);
	return k->expected && k->window ? 0 : -1;
}

/* ---- inputs and guards ------------------------------------------------------------------------------------------ */

static int inspect(struct keeper_process *k, uint64_t *hashes, int64_t *broken, struct error *err)
{
	struct device_range ranges[TASK_MAX_TENSORS];

	for (int i = 0; i < k->task.input_count; i++)
		ranges[i] = (struct device_range){ k->inputs.at + k->input_places[i].offset, k->input_places[i].bytes };
	return device_inspect(k->device, ranges, (size_t)k->task.input_count, k->hash_key, hashes, broken, err);
}

int keeper_check_hash_inputs(struct keeper_process *k, struct error *err)
{
	int64_t broken;

	k->hash_key[0] = random_secret();
	k->hash_key[1] = random_secret();
	return inspect(k, k->hashes, &broken, err);
}

static int look_around(struct keeper_process *k, struct keeper_found *found, struct error *err)
{
	uint64_t hashes[TASK_MAX_TENSORS];
	int64_t broken;

	if (inspect(k, hashes, &broken, err) < 0)
		return -1;
	if (broken >= 0) {
		found->broken = k->zone_owners[broken].kind;
		found->tensor = k->zone_owners[broken].tensor;
	}
	for (int i = k->task.input_count - 1; i >= 0; i--)
		if (hashes[i] != k->hashes[i]) {
			found->broken = KEEPER_INPUT_CHANGED;
			found->tensor = i;
		}
	return 0;
}

/* ---- the window's rows ------------------------------------------------------------------------------------------ */

void keeper_check_draw_window(struct keeper_process *k)
{
	int64_t rows = k->workloads[k->workload].rows, count, step;
	uint64_t seed = random_secret();
	size_t longest = 0;

	k->window_output = -1;
	for (int i = 0; i < k->task.output_count; i++) {
		size_t bits = row_length(k, i, k->workload) * dtype_bits(k->task.outputs[i].dtype);

		if (bits % 8 == 0 && bits / 8 > longest) {
			longest = bits / 8;
			k->window_output = i;
		}
	}
	if (k->window_output < 0)
		return;
	count = KEEPER_PROCESS_WINDOW_BYTES / (int64_t)longest;
	count = count < KEEPER_PROCESS_WINDOW_ROWS ? count : KEEPER_PROCESS_WINDOW_ROWS;
	count = count < rows ? count : rows;
	if (count < 1) {
		k->window_output = -1;
		return;
	}
	step = count > 1 ? (rows - 1) / (count - 1) : 1;
	step = step < MAX_PITCH / (int64_t)longest ? step : MAX_PITCH / (int64_t)longest;
	k->window_step = 1 + (int64_t)(ref_random(seed, 0) % (uint64_t)step);
	k->window_first = (int64_t)(ref_random(seed, 1) % (uint64_t)(rows - (count - 1) * k->window_step));
	k->window_copy = (int)ref_below(seed, 2, k->copies);
	k->window_rows = (size_t)count;
	k->window_row_bytes = longest;
}

int keeper_check_fetch_window(struct keeper_process *k, struct error *err)
{
	const struct keeper_place *place;

	if (k->window_output < 0)
		return 0;
	place = &k->output_places[k->window_output];
	return device_fetch_rows(k->device, k->window,
				 k->outputs.at + place->offset + (size_t)k->window_copy * place->stride + (size_t)k->window_first * k->window_row_bytes,
				 k->window_row_bytes, (size_t)k->window_step * k->window_row_bytes, k->window_rows, err);
}

/* ---- lists of rows ---------------------------------------------------------------------------------------------- */

static int compare_rows(const void *a, const void *b)
{
	int64_t x = ((const struct device_row *)a)->row, y = ((const struct device_row *)b)->row;

	return (x > y) - (x < y);
}

/* Is it in the window's copy? Its slot, or -1. */
static int32_t slot_of(const struct keeper_process *k, int64_t row)
{
	int64_t from_first = row - k->window_first;

	if (k->window_output < 0 || from_first < 0 || from_first % k->window_step || from_first / k->window_step >= (int64_t)k->window_rows)
		return -1;
	return (int32_t)(from_first / k->window_step);
}

static size_t add_row(const struct keeper_process *k, struct device_row *list, size_t n, int64_t row, int32_t copy)
{
	int32_t slot = slot_of(k, row);

	for (size_t i = 0; i < n; i++)
		if (list[i].row == row)
			return n;
	list[n] = (struct device_row){ row, slot >= 0 ? k->window_copy : copy, slot };
	return n + 1;
}

/* The window's rows and one of each of `wanted` stretches, ascending, no row twice; of a batch, each of some copy. No
 * more than the memory for expected rows holds. */
static size_t draw_rows(const struct keeper_process *k, int64_t wanted, struct device_row *list)
{
	int64_t rows = k->workloads[k->workload].rows;
	size_t lengths = all_lengths(k, k->workload), most = lengths ? k->expected_count / lengths : DEVICE_LISTED_ROWS, n = 0;
	int64_t count = rows < wanted ? rows : wanted;
	uint64_t seed = random_secret();

	for (size_t i = 0; k->window_output >= 0 && i < k->window_rows && n < most; i++)
		n = add_row(k, list, n, k->window_first + (int64_t)i * k->window_step, 0);
	for (int64_t i = 0; i < count && n < most; i++) {
		int64_t first = (int64_t)((__int128)rows * i / count), next = (int64_t)((__int128)rows * (i + 1) / count);

		n = add_row(k, list, n, first + (int64_t)(ref_random(seed, (uint64_t)i) % (uint64_t)(next - first)),
			    (int32_t)ref_below(~seed, (uint64_t)i, k->copies));
	}
	qsort(list, n, sizeof(*list), compare_rows);
	return n;
}

/* ---- comparing -------------------------------------------------------------------------------------------------- */

/* One stretch of rows: a list, or count rows from first on of one copy. */
struct stretch {
	const struct device_row *list; /* NULL: none */
	int64_t first;
	size_t count;
	size_t copy;                   /* without a list */
	double *expected[TASK_MAX_TENSORS];
	struct device_compare outputs[TASK_MAX_TENSORS];
	struct device_found found[TASK_MAX_TENSORS];
};

static void lay_out(const struct keeper_process *k, struct stretch *s)
{
	double *at = k->expected;

	for (int i = 0; i < k->task.output_count; i++) {
		const struct keeper_place *place = &k->output_places[i];
		size_t length = row_length(k, i, k->workload);

		s->expected[i] = at;
		at += length * s->count;
		s->outputs[i] = (struct device_compare){
			.dtype = k->task.outputs[i].dtype, .got = k->outputs.at + place->offset + s->copy * place->stride,
			.stride = place->stride, .window = i == k->window_output ? k->window : NULL, .row_bytes = k->window_row_bytes,
			.expected = s->expected[i], .length = length, .tolerance = k->task.outputs[i].tolerance,
		};
	}
}

/* Where a row of the stretch is: on the device, or in the window's memory. */
static const unsigned char *find_row(const struct stretch *s, int output, size_t index, size_t *first)
{
	const struct device_compare *c = &s->outputs[output];
	const struct device_row *r = s->list ? &s->list[index] : NULL;

	*first = 0;
	if (r && r->slot >= 0 && c->window)
		return (const unsigned char *)c->window + (size_t)r->slot * c->row_bytes;
	*first = (size_t)(r ? r->row : s->first + (int64_t)index) * c->length;
	return (const unsigned char *)c->got + (r ? (size_t)r->copy * c->stride : 0);
}

/* Add the elements of a row that the device found wrong. */
static int note_row(struct keeper_process *k, const struct stretch *s, int output, size_t index, struct compare_result *wrong, struct error *err)
{
	const struct device_compare *c = &s->outputs[output];
	size_t bits = dtype_bits(c->dtype), first, low, high;
	const unsigned char *at = find_row(s, output, index, &first);
	double *expected = xreallocarray(NULL, c->length + 1, sizeof(double)), *got = xreallocarray(NULL, c->length + 1, sizeof(double));
	unsigned char *bytes;
	int result;

	low = first * bits / 8;
	high = ((first + c->length) * bits + 7) / 8;
	bytes = xmalloc(high - low + 1);
	result = device_read(k->device, bytes, at + low, high - low, err);
	if (result == 0)
		result = device_read(k->device, expected, c->expected + index * c->length, c->length * sizeof(double), err);
	if (result == 0) {
		number_decode(c->dtype, bytes, first - low * 8 / bits, c->length, got);
		compare_row(got, expected, c->length, s->list ? s->list[index].row : s->first + (int64_t)index, &c->tolerance, wrong);
	}
	free(bytes);
	free(expected);
	free(got);
	return result;
}

static int note_wrong(struct keeper_process *k, const struct stretch *s, int output, struct compare_result *wrong, struct error *err)
{
	struct compare_result shown = *wrong;

	if (device_wrong_rows(k->device, (size_t)output, s->count, k->wrong, err) < 0)
		return -1;
	for (size_t i = 0; i < s->count && shown.wrong_count < COMPARE_SHOWN; i++)
		if (k->wrong[i] && note_row(k, s, output, i, &shown, err) < 0)
			return -1;
	memcpy(wrong->wrong, shown.wrong, sizeof(wrong->wrong));
	wrong->wrong_count = shown.wrong_count;
	return 0;
}

static int add_found(struct keeper_process *k, const struct stretch *s, struct compare_result *results, struct error *err)
{
	for (int i = 0; i < k->task.output_count; i++) {
		const struct device_found *f = &s->found[i];
		struct compare_result *r = &results[i];

		if (f->nan_row >= 0)
			return error_set(err, KM_EXIT_INPUT,
					 "the reference of task '%s' computed a NaN: workload %s, input set %s, output '%s', row %" PRId64,
					 k->task.name, k->task.workloads[k->workload].uuid,
					 input_set_name((enum task_input_set)k->set), k->task.outputs[i].name, f->nan_row);
		r->checked_rows += (int64_t)s->count;
		r->wrong_rows += f->wrong_rows;
		r->max_abs_error = fmax(r->max_abs_error, f->max_abs_error);
		r->max_rel_error = fmax(r->max_rel_error, f->max_rel_error);
		if (f->wrong_rows && r->wrong_count < COMPARE_SHOWN && note_wrong(k, s, i, r, err) < 0)
			return -1;
	}
	return 0;
}

static int check_stretch(struct keeper_process *k, struct stretch *s, struct compare_result *results, struct error *err)
{
	int code;

	lay_out(k, s);
	if (device_list_rows(k->device, s->list, s->first, s->count, err) < 0)
		return -1;
	code = k->reference.expected((const struct km_args *)k->args, device_rows(k->device), (int64_t)s->count, s->expected,
				     device_stream(k->device));
	if (code)
		return keeper_reference_failed(k, "ref_expected", code, err);
	if (device_compare(k->device, s->outputs, (size_t)k->task.output_count, s->found, err) < 0)
		return -1;
	return add_found(k, s, results, err);
}

/* The rows of the window and `wanted` others. */
static int check_some(struct keeper_process *k, int64_t wanted, struct compare_result *results, struct error *err)
{
	struct device_row list[DEVICE_LISTED_ROWS];
	struct stretch s = { .list = list };

	s.count = draw_rows(k, wanted, list);
	return s.count ? check_stretch(k, &s, results, err) : 0;
}

/* All rows; of a batch, those of one copy drawn now. */
static int check_all(struct keeper_process *k, struct compare_result *results, struct error *err)
{
	int64_t rows = k->workloads[k->workload].rows;
	size_t lengths = all_lengths(k, k->workload), most = lengths ? k->expected_count / lengths : DEVICE_MAX_ROWS;
	size_t copy = (size_t)ref_below(random_secret(), 0, k->copies);

	most = most < DEVICE_MAX_ROWS ? most : DEVICE_MAX_ROWS;
	for (int64_t first = 0; first < rows; first += (int64_t)most) {
		struct stretch s = { .first = first, .count = most, .copy = copy };

		if (rows - first < (int64_t)most)
			s.count = (size_t)(rows - first);
		if (check_stretch(k, &s, results, err) < 0)
			return -1;
	}
	return 0;
}

static int read_expected(struct keeper_process *k, const struct stretch *s, double *const *to, struct error *err)
{
	int code;

	if (device_list_rows(k->device, NULL, s->first, s->count, err) < 0)
		return -1;
	code = k->reference.expected((const struct km_args *)k->args, device_rows(k->device), (int64_t)s->count, s->expected,
				     device_stream(k->device));
	if (code)
		return keeper_reference_failed(k, "ref_expected", code, err);
	for (int i = 0; i < k->task.output_count; i++) {
		size_t length = row_length(k, i, k->workload);

		if (device_wait(k->device, err) < 0 ||
		    device_read(k->device, to[i] + (size_t)s->first * length, s->expected[i], s->count * length * sizeof(double), err) < 0)
			return -1;
	}
	return 0;
}

int keeper_check_expected(struct keeper_process *k, double *const *to, struct error *err)
{
	int64_t rows = k->workloads[k->workload].rows;
	size_t lengths = all_lengths(k, k->workload), most = lengths ? k->expected_count / lengths : DEVICE_MAX_ROWS;

	most = most < DEVICE_MAX_ROWS ? most : DEVICE_MAX_ROWS;
	k->window_output = -1;
	for (int64_t first = 0; first < rows; first += (int64_t)most) {
		struct stretch s = { .first = first, .count = rows - first < (int64_t)most ? (size_t)(rows - first) : most };

		lay_out(k, &s);
		if (read_expected(k, &s, to, err) < 0)
			return -1;
	}
	return 0;
}

/* ---- an earlier right answer ------------------------------------------------------------------------------------ */

static void forget_earlier(struct keeper_process *k)
{
	for (int i = 0; i < TASK_MAX_TENSORS; i++) {
		device_free(k->device, k->earlier[i]);
		k->earlier[i] = NULL;
	}
	k->earlier_workload = -1;
}

/* Keep right outputs: later calls may find them as poison. Without memory for them there are none. */
static int keep_earlier(struct keeper_process *k, struct error *err)
{
	bool again = k->earlier_workload == k->workload;

	if (!again)
		forget_earlier(k);
	for (int i = 0; i < k->task.output_count; i++) {
		const struct keeper_place *place = &k->output_places[i];

		if (!again)
			k->earlier[i] = device_alloc(k->device, "an earlier answer", place->bytes, NULL);
		if (k->earlier[i] && device_copy(k->device, k->earlier[i], k->outputs.at + place->offset, place->bytes, err) < 0)
			return -1;
	}
	k->earlier_workload = k->workload;
	k->earlier_inputs = k->inputs_count;
	return device_wait(k->device, err);
}

/* ---- one check -------------------------------------------------------------------------------------------------- */

/* What the rows of the window show counts only where the tensor itself is right by now. */
static void merge(struct compare_result *all, const struct compare_result *window)
{
	double abs_error = fmax(all->max_abs_error, window->max_abs_error), rel_error = fmax(all->max_rel_error, window->max_rel_error);

	if (!all->wrong_rows && window->wrong_rows)
		*all = *window;
	all->max_abs_error = abs_error;
	all->max_rel_error = rel_error;
}

static int compare_outputs(struct keeper_process *k, bool all, struct compare_result *results, struct error *err)
{
	struct compare_result window[TASK_MAX_TENSORS];

	memset(results, 0, TASK_MAX_TENSORS * sizeof(*results));
	memset(window, 0, sizeof(window));
	if (!all)
		return check_some(k, KEEPER_PROCESS_ROWS, results, err);
	if (check_some(k, 0, window, err) < 0 || check_all(k, results, err) < 0)
		return -1;
	for (int i = 0; i < k->task.output_count; i++)
		merge(&results[i], &window[i]);
	return 0;
}

int keeper_check(struct keeper_process *k, bool all, struct keeper_found *found, struct error *err)
{
	struct compare_result results[TASK_MAX_TENSORS];

	*found = (struct keeper_found){ .output = -1 };
	if (look_around(k, found, err) < 0)
		return -1;
	if (found->broken != KEEPER_WHOLE)
		return 0;
	if (compare_outputs(k, all, results, err) < 0)
		return -1;
	for (int i = 0; i < k->task.output_count; i++) {
		found->max_abs_error = fmax(found->max_abs_error, results[i].max_abs_error);
		found->max_rel_error = fmax(found->max_rel_error, results[i].max_rel_error);
		if (results[i].wrong_rows && found->output < 0) {
			found->output = i;
			found->wrong = results[i];
		}
	}
	return all && found->output < 0 && k->copies == 1 ? keep_earlier(k, err) : 0;
}
