/* keeper_process_selftest.c - is the keeper right on this device? It is asked everything in one process, and what a
 * runner would do to the memory is done here: right outputs, wrong ones, changed inputs, broken guards.
 *
 * The slabs are mapped a second time from their descriptors, as a runner maps them. "Right" outputs are the reference's
 * own, rounded to the outputs' types. One line a property: "ok" or "not ok"; times follow after "#".
 */
#include "keeper_process.h"

#include "number.h"
#include "random.h"
#include "util.h"

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	PARTICIPANTS = 3,
	FILLED = (1 << 20) + 5,     /* elements of a tensor for statistics, in rows of COLUMNS */
	COLUMNS = 1009,
	RIGHT_MAX = 1 << 26,        /* most elements of outputs that are written here */
	BATCH = 100,
	ENOUGH_ROWS = 32,
	TIMED = 9,
};

struct selftest {
	struct keeper_process k;
	struct keeper_message m;    /* the last question and its answer */
	uint64_t serial;
	struct device_slab mapped[PARTICIPANTS][PROTOCOL_SLABS];
	struct keeper_page *page[PARTICIPANTS];
	int small, large;           /* workloads */
	int failed;
};

/* ---- telling ---------------------------------------------------------------------------------------------------- */

__attribute__((format(printf, 3, 4))) static void tell(struct selftest *t, bool good, const char *format, ...)
{
	va_list args;

	printf("%s - ", good ? "ok" : "not ok");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
	fflush(stdout);
	t->failed += !good;
}

static void tell_error(struct selftest *t, const char *what, const struct error *err)
{
	tell(t, false, "%s: %s", what, err->text);
}

/* ---- asking ----------------------------------------------------------------------------------------------------- */

/* Answer the question in t->m; true if it is done. A failure that nobody expects is told. */
static bool ask_quietly(struct selftest *t, enum keeper_kind kind, int *descriptors)
{
	t->m.magic = KEEPER_MAGIC;
	t->m.kind = kind;
	t->m.serial = ++t->serial;
	keeper_process_answer(&t->k, 0, &t->m, descriptors);
	return t->m.kind == KEEPER_DONE;
}

static bool ask(struct selftest *t, enum keeper_kind kind)
{
	int descriptors[KEEPER_PROCESS_DESCRIPTORS];
	bool done = ask_quietly(t, kind, descriptors);

	if (!done)
		tell(t, false, "question %d: exit %lld: %s", kind, (long long)t->m.value, t->m.text);
	return done;
}

static bool ask_open(struct selftest *t)
{
	memset(&t->m, 0, sizeof(t->m));
	if (!ask(t, KEEPER_DRIVER))
		return false;
	tell(t, t->m.text[0] == '/', "the driver's library is found: %s", t->m.text);
	return ask(t, KEEPER_OPEN);
}

static bool ask_select(struct selftest *t, int who, int workload, size_t workspace)
{
	t->m = (struct keeper_message){ .who = who, .workload = workload, .count = (int64_t)workspace };
	return ask(t, KEEPER_SELECT);
}

static bool ask_inputs(struct selftest *t, int workload, int set, bool vary)
{
	t->m = (struct keeper_message){ .workload = workload, .set = set, .value = vary };
	return ask(t, KEEPER_INPUTS);
}

static bool ask_prepare(struct selftest *t, int who, enum protocol_mode mode, int64_t count)
{
	t->m = (struct keeper_message){ .who = who, .value = mode, .count = count };
	return ask(t, KEEPER_PREPARE);
}

/* What the runner writes to its page is there before the question. */
static bool ask_release(struct selftest *t, int who, bool arrived, bool done, double seconds)
{
	uint32_t serial = (uint32_t)t->serial;

	if (arrived)
		t->page[who]->arrived = serial;
	if (done)
		t->page[who]->done = serial;
	t->m = (struct keeper_message){ .who = who, .seconds = seconds };
	return ask(t, KEEPER_RELEASE);
}

static bool ask_check(struct selftest *t, int who, bool all)
{
	t->m = (struct keeper_message){ .who = who, .value = all };
	return ask(t, KEEPER_CHECK);
}

static bool start(struct selftest *t, int who)
{
	int descriptors[KEEPER_PROCESS_DESCRIPTORS];
	struct error err;

	t->m = (struct keeper_message){ .who = who };
	if (!ask_quietly(t, KEEPER_START, descriptors)) {
		tell(t, false, "START: %s", t->m.text);
		return false;
	}
	for (int i = 0; i < PROTOCOL_SLABS; i++) {
		if (device_slab_import(t->k.device, &t->mapped[who][i], descriptors[i], (size_t)t->m.bytes[i], &err) < 0) {
			tell_error(t, "a slab can be mapped by its descriptor", &err);
			return false;
		}
	}
	t->page[who] = mmap(NULL, KEEPER_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, descriptors[PROTOCOL_SLABS], 0);
	if (t->page[who] == MAP_FAILED) {
		tell(t, false, "the page can be mapped");
		return false;
	}
	t->m = (struct keeper_message){ .who = who };
	for (int i = 0; i < PROTOCOL_SLABS; i++)
		t->m.where[i] = (uint64_t)(uintptr_t)t->mapped[who][i].at;
	return ask(t, KEEPER_MAPPED);
}

static void stop(struct selftest *t, int who)
{
	for (int i = 0; i < PROTOCOL_SLABS; i++)
		device_slab_release(t->k.device, &t->mapped[who][i]);
	if (t->page[who])
		munmap(t->page[who], KEEPER_PAGE_BYTES);
	t->page[who] = NULL;
	t->m = (struct keeper_message){ .who = who };
	ask(t, KEEPER_STOP);
}

/* ---- what a runner does ------------------------------------------------------------------------------------------- */

static unsigned char *pointer_at(const struct selftest *t, size_t member)
{
	uint64_t address;

	memcpy(&address, t->m.args + member, sizeof(address));
	return (unsigned char *)(uintptr_t)address;
}

static unsigned char *output_at(const struct selftest *t, int output, size_t copy)
{
	size_t step = t->m.patch_count ? (size_t)t->m.patch[output].step : 0;

	return pointer_at(t, t->k.layout.output[output]) + copy * step;
}

/* The code of the nearest number of a type of so many codes. */
static uint64_t nearest_code(enum task_dtype dtype, double x, unsigned codes)
{
	static double values[DTYPE_BOOL + 1][256];
	const double *value = values[dtype];
	double least = INFINITY;
	uint64_t best = 0;

	for (unsigned code = value[1] == 0 ? 0 : codes; code < codes; code++) { /* once */
		uint8_t byte = (uint8_t)code;

		number_decode(dtype, &byte, 0, 1, &values[dtype][code]);
	}
	for (unsigned code = 0; code < codes; code++) {
		if (value[code] == x)
			return code;
		if (fabs(value[code] - x) < least) {
			least = fabs(value[code] - x);
			best = code;
		}
	}
	return best;
}

static uint64_t encode(enum task_dtype dtype, double x)
{
	float f = (float)x;
	uint32_t u;

	memcpy(&u, &f, sizeof(u));
	switch (dtype) {
	case DTYPE_FLOAT32: return u;
	case DTYPE_FLOAT16: return isinf(x) ? (x > 0 ? 0x7c00 : 0xfc00) : number_to_float16(f);
	case DTYPE_BFLOAT16: return number_to_bfloat16(f);
	case DTYPE_FLOAT8_E4M3FN:
	case DTYPE_FLOAT8_E5M2: return nearest_code(dtype, x, 256);
	case DTYPE_FLOAT4_E2M1: return nearest_code(dtype, x, 16);
	case DTYPE_BOOL: return x != 0;
	default: return (uint64_t)(int64_t)rint(x);
	}
}

static void encode_all(enum task_dtype dtype, const double *from, size_t first, size_t count, unsigned char *to)
{
	size_t bits = dtype_bits(dtype);

	for (size_t i = 0; i < count; i++) {
		uint64_t code = encode(dtype, from[i]);

		if (bits == 4)
			to[(first + i) / 2] = (unsigned char)((first + i) % 2 ? (to[(first + i) / 2] & 15) | code << 4 : (to[(first + i) / 2] & 240) | code);
		else
			memcpy(to + (first + i) * (bits / 8), &code, bits / 8);
	}
}

static size_t output_bytes(const struct selftest *t, int output)
{
	return task_bytes(&t->k.task.outputs[output], t->k.task.workloads[t->k.workload].axes);
}

static size_t row_elements(const struct selftest *t, int output)
{
	return task_elements(&t->k.task.outputs[output], t->k.task.workloads[t->k.workload].axes) / (size_t)t->k.workloads[t->k.workload].rows;
}

struct answer {
	unsigned char *bytes[TASK_MAX_TENSORS];
};

static void answer_release(struct answer *a)
{
	for (int i = 0; i < TASK_MAX_TENSORS; i++)
		free(a->bytes[i]);
}

/* The reference's rows from `first` on, as bytes of the outputs. */
static bool right_rows(struct selftest *t, int64_t first, size_t count, struct answer *a)
{
	struct keeper_process *k = &t->k;
	double *expected[TASK_MAX_TENSORS], *at = k->expected;
	struct error err;

	for (int i = 0; i < k->task.output_count; i++) {
		expected[i] = at;
		at += row_elements(t, i) * count;
	}
	if (device_list_rows(k->device, NULL, first, count, &err) < 0 ||
	    k->reference.expected((const struct km_args *)k->args, device_rows(k->device), (int64_t)count, expected, device_stream(k->device)) ||
	    device_wait(k->device, &err) < 0)
		return false;
	for (int i = 0; i < k->task.output_count; i++) {
		size_t elements = row_elements(t, i) * count;
		double *host = xreallocarray(NULL, elements + 1, sizeof(*host));
		bool read = device_read(k->device, host, expected[i], elements * sizeof(*host), &err) == 0;

		if (read)
			encode_all(k->task.outputs[i].dtype, host, (size_t)first * row_elements(t, i), elements, a->bytes[i]);
		free(host);
		if (!read)
			return false;
	}
	return true;
}

/* All outputs of the current inputs. */
static bool right_answer(struct selftest *t, struct answer *a)
{
	struct keeper_process *k = &t->k;
	int64_t rows = k->workloads[k->workload].rows;
	size_t lengths = 0, most;

	memset(a, 0, sizeof(*a));
	for (int i = 0; i < k->task.output_count; i++) {
		a->bytes[i] = xcalloc(1, output_bytes(t, i) + 8);
		lengths += row_elements(t, i);
	}
	most = k->expected_count / (lengths ? lengths : 1);
	most = most < DEVICE_MAX_ROWS ? most : DEVICE_MAX_ROWS;
	for (int64_t first = 0; first < rows; first += (int64_t)most)
		if (!right_rows(t, first, rows - first < (int64_t)most ? (size_t)(rows - first) : most, a)) {
			tell(t, false, "the reference can be asked for all rows");
			return false;
		}
	return true;
}

static bool poke(struct selftest *t, unsigned char *to, const void *from, size_t bytes)
{
	struct error err;

	if (device_write(t->k.device, to, from, bytes, &err) == 0)
		return true;
	tell_error(t, "memory can be written", &err);
	return false;
}

static bool peek(struct selftest *t, void *to, const unsigned char *from, size_t bytes)
{
	struct error err;

	if (device_read(t->k.device, to, from, bytes, &err) == 0)
		return true;
	tell_error(t, "memory can be read", &err);
	return false;
}

static bool flip(struct selftest *t, unsigned char *at)
{
	unsigned char byte;

	if (!peek(t, &byte, at, 1))
		return false;
	byte ^= 0x10;
	return poke(t, at, &byte, 1);
}

/* Write the answer after PREPARE; t->m is its answer. */
static bool write_answer(struct selftest *t, const struct answer *a, size_t copies)
{
	for (int i = 0; i < t->k.task.output_count; i++)
		for (size_t c = 0; c < copies; c++)
			if (output_bytes(t, i) && !poke(t, output_at(t, i, c), a->bytes[i], output_bytes(t, i)))
				return false;
	return true;
}

/* A whole call of participant 0 that writes this answer (NULL: nothing); t->m is left as PREPARE answered. */
static bool call(struct selftest *t, const struct answer *a)
{
	struct keeper_message prepared;

	if (!ask_prepare(t, 0, PROTOCOL_QUEUED, 1))
		return false;
	prepared = t->m;
	if (a && !write_answer(t, a, 1))
		return false;
	if (!ask_release(t, 0, true, true, 1))
		return false;
	t->m = prepared;
	return true;
}

/* ---- the generator ------------------------------------------------------------------------------------------------ */

struct moments {
	double mean, variance, kurtosis, most, median;
};

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* median: of the absolute values. */
static struct moments moments_of(const double *x, size_t n)
{
	double *sizes = xreallocarray(NULL, n, sizeof(*sizes)), fourth = 0;
	struct moments m = { 0, 0, 0, 0, 0 };

	for (size_t i = 0; i < n; i++) {
		m.mean += x[i] / (double)n;
		sizes[i] = fabs(x[i]);
		m.most = fmax(m.most, sizes[i]);
	}
	for (size_t i = 0; i < n; i++) {
		double y = x[i] - m.mean;

		m.variance += y * y / (double)n;
		fourth += y * y * y * y / (double)n;
	}
	m.kurtosis = fourth / (m.variance * m.variance);
	qsort(sizes, n, sizeof(*sizes), compare_doubles);
	m.median = sizes[n / 2];
	free(sizes);
	return m;
}

/* The spread of ln(root mean square) over rows. */
static double spread_of_rows(const double *x)
{
	double sum = 0, squares = 0, rows = FILLED / COLUMNS;

	for (int r = 0; r < FILLED / COLUMNS; r++) {
		double square = 0;

		for (int i = 0; i < COLUMNS; i++)
			square += x[r * COLUMNS + i] * x[r * COLUMNS + i];
		sum += log(square / COLUMNS) / 2;
		squares += log(square / COLUMNS) / 2 * log(square / COLUMNS) / 2;
	}
	return sqrt(squares / rows - sum / rows * sum / rows);
}

static bool is_structured(const double *x)
{
	for (int i = 0; i < FILLED; i++)
		if (x[i] * 8 != rint(x[i] * 8) || fabs(x[i]) > 8 || (i % 32 && x[i] * x[i - 1] < 0))
			return false;
	return true;
}

static bool set_is_right(int set, const double *x)
{
	struct moments m = moments_of(x, FILLED);
	double centre = set == SET_SHIFTED ? 2 : 0, spread;

	switch (set) {
	case SET_NORMAL:
	case SET_SHIFTED:
		return fabs(m.mean - centre) < 0.006 && fabs(m.variance - 1) < 0.01 && fabs(m.kurtosis - 3) < 0.05 && m.most < centre + 5.25 &&
		       m.most > centre + 4.2;
	case SET_ROW_SCALED:
		spread = spread_of_rows(x);
		return spread > 0.63 && spread < 0.77;
	case SET_STUDENT_T3: /* half of all are below 0.765 */
		return fabs(m.median - 0.765) < 0.01 && m.most <= 264 && m.most > 20;
	default:
		return is_structured(x) && m.most == 8;
	}
}

static void test_set(struct selftest *t, enum task_dtype dtype, int set, unsigned char *at)
{
	size_t bytes = (size_t)FILLED * dtype_bits(dtype) / 8;
	unsigned char *first = xmalloc(bytes + 16), *second = xmalloc(bytes + 16);
	double *x = xreallocarray(NULL, FILLED, sizeof(*x));
	struct error err;

	memset(first, 0xa5, bytes + 16);
	if (device_write(t->k.device, at, first, bytes + 16, &err) < 0 ||
	    device_fill(t->k.device, dtype, at, FILLED, COLUMNS, set, 7, &err) < 0 || device_read(t->k.device, first, at, bytes + 16, &err) < 0 ||
	    device_fill(t->k.device, dtype, at, FILLED, COLUMNS, set, 8, &err) < 0 || device_read(t->k.device, second, at, bytes, &err) < 0) {
		tell_error(t, "random inputs", &err);
	} else {
		bool other = memcmp(first, second, bytes) != 0, kept = true;

		for (size_t i = bytes; i < bytes + 16; i++)
			kept = kept && first[i] == 0xa5;
		number_decode(dtype, first, 0, FILLED, x);
		tell(t, set_is_right(set, x) && other && kept, "inputs of type %s and set %s are distributed as they should", dtype_name(dtype),
		     input_set_name((enum task_input_set)set));
	}
	free(first);
	free(second);
	free(x);
}

static void test_bool(struct selftest *t, unsigned char *at)
{
	unsigned char *x = xmalloc(FILLED);
	struct error err;
	int ones = 0, odd = 0;

	if (device_fill(t->k.device, DTYPE_BOOL, at, FILLED, COLUMNS, 0, 3, &err) < 0 || device_read(t->k.device, x, at, FILLED, &err) < 0) {
		tell_error(t, "random inputs", &err);
	} else {
		for (int i = 0; i < FILLED; i++) {
			ones += x[i] == 1;
			odd += x[i] > 1;
		}
		tell(t, odd == 0 && abs(ones - FILLED / 2) < 3000, "inputs of type bool are 0 or 1, evenly");
	}
	free(x);
}

static void test_generator(struct selftest *t)
{
	static const enum task_dtype floats[] = { DTYPE_FLOAT32, DTYPE_FLOAT16, DTYPE_BFLOAT16 };
	struct error err;
	unsigned char *at = device_alloc(t->k.device, "a test", (size_t)FILLED * 4 + 16, &err);

	if (!at) {
		tell_error(t, "memory for a test", &err);
		return;
	}
	for (int i = 0; i < 3; i++)
		for (int set = 0; set < SET_COUNT; set++)
			test_set(t, floats[i], set, at);
	test_bool(t, at);
	device_free(t->k.device, at);
}

/* ---- the comparer, against compare.c -------------------------------------------------------------------------------- */

enum { COMPARED_ROWS = 48 };

static double uniform(uint64_t *state)
{
	++*state;
	return (double)(ref_random(5, *state) >> 11) * 0x1p-53;
}

/* Rows about as wrong as the tolerance allows, some with infinities or a NaN. */
static void make_rows(enum task_dtype dtype, size_t n, double *expected, double *got, uint64_t *state)
{
	for (size_t r = 0; r < COMPARED_ROWS; r++) {
		double off = 0.04 * uniform(state);

		for (size_t i = 0; i < n; i++) {
			double *e = &expected[r * n + i], *g = &got[r * n + i];

			*e = (dtype >= DTYPE_INT64 ? 100 : 4) * (uniform(state) - 0.5);
			*g = *e * (1 + off * (uniform(state) - 0.3));
		}
		if (r % 8 == 1 && dtype < DTYPE_FLOAT8_E4M3FN) {
			expected[r * n] = -INFINITY;
			got[r * n] = r % 16 == 1 ? -INFINITY : -1e4;
		}
		if (r % 8 == 2 && dtype < DTYPE_FLOAT8_E4M3FN)
			got[r * n + n - 1] = (double)NAN;
	}
}

struct comparison {
	enum task_dtype dtype;
	size_t n;
	struct task_tolerance tolerance;
	double *expected, *got;
	unsigned char *bytes;
};

static bool same_result(struct selftest *t, const struct comparison *c, const struct device_found *found)
{
	struct compare_result result;
	unsigned char wrong[COMPARED_ROWS];
	struct error err;
	double *row = xreallocarray(NULL, c->n, sizeof(*row));
	bool same = device_wrong_rows(t->k.device, 0, COMPARED_ROWS, wrong, &err) == 0;

	memset(&result, 0, sizeof(result));
	for (size_t r = 0; r < COMPARED_ROWS; r++) {
		number_decode(c->dtype, c->bytes, r * c->n, c->n, row);
		same = (compare_row(row, c->expected + r * c->n, c->n, (int64_t)r, &c->tolerance, &result) == COMPARE_WRONG) == wrong[r] && same;
	}
	free(row);
	return same && found->wrong_rows == result.wrong_rows && found->nan_row == -1 &&
	       fabs(found->max_abs_error - result.max_abs_error) <= 1e-12 * result.max_abs_error &&
	       fabs(found->max_rel_error - result.max_rel_error) <= 1e-12 * result.max_rel_error;
}

static bool compare_alike(struct selftest *t, struct comparison *c, unsigned char *got, double *expected)
{
	size_t elements = COMPARED_ROWS * c->n, bytes = (elements * dtype_bits(c->dtype) + 7) / 8;
	struct device_compare output = { .dtype = c->dtype, .got = got, .expected = expected, .length = c->n, .tolerance = c->tolerance };
	struct device_found found;
	struct error err;

	if (device_write(t->k.device, got, c->bytes, bytes, &err) < 0 ||
	    device_write(t->k.device, expected, c->expected, elements * sizeof(double), &err) < 0 ||
	    device_list_rows(t->k.device, NULL, 0, COMPARED_ROWS, &err) < 0 || device_compare(t->k.device, &output, 1, &found, &err) < 0) {
		tell_error(t, "comparison", &err);
		return false;
	}
	return same_result(t, c, &found);
}

/* A NaN of the reference is found in its row. */
static bool finds_nan(struct selftest *t, struct comparison *c, unsigned char *got, double *expected)
{
	struct device_compare output = { .dtype = c->dtype, .got = got, .expected = expected, .length = c->n, .tolerance = c->tolerance };
	struct device_found found = { .nan_row = -1 };
	struct error err;
	double nan = (double)NAN;

	if (device_write(t->k.device, expected + 5 * c->n + c->n / 2, &nan, sizeof(nan), &err) < 0 ||
	    device_list_rows(t->k.device, NULL, 0, COMPARED_ROWS, &err) < 0 || device_compare(t->k.device, &output, 1, &found, &err) < 0)
		return false;
	return found.nan_row == 5;
}

static void test_dtype(struct selftest *t, enum task_dtype dtype, unsigned char *got, double *expected)
{
	static const size_t lengths[] = { 1, 7, 64, 1000, 5000 };
	bool alike = true, nan = true;
	uint64_t state = 11;

	for (size_t l = 0; l < sizeof(lengths) / sizeof(*lengths); l++)
		for (int rule = 0; rule < 3; rule++) {
			size_t n = lengths[l], elements = COMPARED_ROWS * n;
			struct comparison c = { dtype, n, { 0.02, rule == 1 ? 0 : 0.01, rule == 2 ? 0.012 : -1, rule == 1 ? 0.001 : 0 },
						xreallocarray(NULL, elements, sizeof(double)), xreallocarray(NULL, elements, sizeof(double)),
						xcalloc(elements, 8) };

			make_rows(dtype, n, c.expected, c.got, &state);
			encode_all(dtype, c.got, 0, elements, c.bytes);
			alike = compare_alike(t, &c, got, expected) && alike;
			nan = finds_nan(t, &c, got, expected) && nan;
			free(c.expected);
			free(c.got);
			free(c.bytes);
		}
	tell(t, alike, "rows of type %s are judged as compare.c judges them", dtype_name(dtype));
	tell(t, nan, "a NaN of the reference is found beside type %s", dtype_name(dtype));
}

static void test_comparer(struct selftest *t)
{
	struct error err;
	size_t most = COMPARED_ROWS * 5000;
	unsigned char *got = device_alloc(t->k.device, "a test", most * 8, &err);
	double *expected = device_alloc(t->k.device, "a test", most * sizeof(double), &err);

	if (!got || !expected)
		tell_error(t, "memory for a test", &err);
	for (int dtype = DTYPE_FLOAT32; got && expected && dtype <= DTYPE_BOOL; dtype++)
		test_dtype(t, (enum task_dtype)dtype, got, expected);
	device_free(t->k.device, got);
	device_free(t->k.device, expected);
}

/* ---- inputs, outputs, places ------------------------------------------------------------------------------------------ */

static void test_sets(struct selftest *t)
{
	for (int set = 0; set < SET_COUNT; set++) {
		struct answer a;
		bool good;

		if (!t->k.task.input_sets[set] || !ask_inputs(t, t->small, set, set % 2) || !right_answer(t, &a))
			continue;
		good = call(t, &a) && ask_check(t, 0, false) && t->m.found.output < 0 && t->m.found.broken == KEEPER_WHOLE;
		tell(t, good, "right outputs pass a check of some rows, set %s", input_set_name((enum task_input_set)set));
		good = ask_check(t, 0, true) && t->m.found.output < 0 && t->m.found.broken == KEEPER_WHOLE;
		tell(t, good, "right outputs pass a check of all rows, set %s (largest error %.3g, relative %.3g)",
		     input_set_name((enum task_input_set)set), t->m.found.max_abs_error, t->m.found.max_rel_error);
		answer_release(&a);
	}
}

static bool inside(const struct selftest *t, const unsigned char *at, size_t bytes, int slab)
{
	const struct device_slab *s = &t->mapped[0][slab];

	return at >= s->at + KEEPER_PROCESS_GUARD && at + bytes + KEEPER_PROCESS_GUARD <= s->at + s->bytes && (uintptr_t)at % DEVICE_ALIGN == 0;
}

static void test_places(struct selftest *t)
{
	const struct task *task = &t->k.task;
	unsigned char *before[2] = { NULL, NULL };
	int same_input = 0, same_output = 0, first_input = -1;
	bool good = true;

	for (int i = task->input_count - 1; i >= 0; i--)
		first_input = task->inputs[i].scalar ? first_input : i;
	for (int round = 0; round < 8; round++) {
		if (!ask_inputs(t, t->small, 0, false) || !ask_prepare(t, 0, PROTOCOL_IDLE, 1))
			return;
		for (int i = 0; i < task->input_count; i++)
			if (!task->inputs[i].scalar)
				good = good && inside(t, pointer_at(t, t->k.layout.input[i]), keeper_memory_bytes(&t->k, &task->inputs[i]), PROTOCOL_INPUT);
		for (int i = 0; i < task->output_count; i++)
			good = good && inside(t, output_at(t, i, 0), output_bytes(t, i), PROTOCOL_OUTPUT);
		same_output += output_at(t, 0, 0) == before[1];
		before[1] = output_at(t, 0, 0);
		if (first_input >= 0) {
			same_input += pointer_at(t, t->k.layout.input[first_input]) == before[0];
			before[0] = pointer_at(t, t->k.layout.input[first_input]);
		}
	}
	tell(t, good, "all tensors are aligned and within the runner's slabs");
	tell(t, same_input <= 1 && same_output <= 1, "tensors are at other places for every call");
}

/* Whatever the poison was, and with earlier right answers among it. */
static void test_unwritten(struct selftest *t)
{
	int missed = 0, all_wrong = 0;

	for (int round = 0; round < 12; round++) {
		if (!ask_inputs(t, t->small, 0, false) || !call(t, NULL) || !ask_check(t, 0, round % 2))
			return;
		missed += t->m.found.output < 0;
		all_wrong += t->m.found.wrong.wrong_rows == t->m.found.wrong.checked_rows;
	}
	tell(t, missed == 0, "outputs that nobody wrote are wrong (all rows were in %d of 12 calls)", all_wrong);
}

/* An answer that was right is no poison for other calls on the same inputs. */
static void test_unwritten_again(struct selftest *t)
{
	struct answer a;
	int missed = 0;

	if (!ask_inputs(t, t->small, 0, false) || !right_answer(t, &a))
		return;
	if (call(t, &a) && ask_check(t, 0, true)) {
		for (int round = 0; round < 12 && call(t, NULL) && ask_check(t, 0, false); round++)
			missed += t->m.found.output < 0;
		tell(t, missed == 0, "outputs that nobody wrote are wrong after a right answer to the same inputs");
	}
	answer_release(&a);
}

/* Make one element of an output wrong; its row and index must be named. */
static void test_one_element(struct selftest *t, const struct answer *right, int output, int64_t row, double value, const char *what)
{
	enum task_dtype dtype = t->k.task.outputs[output].dtype;
	size_t n = row_elements(t, output), bits = dtype_bits(dtype), index = n / 2, element = (size_t)row * n + index;
	unsigned char bytes[8] = { 0 };
	double pair[2] = { value, value };
	const struct keeper_found *f = &t->m.found;

	if (bits < 8 || !call(t, right))
		return;
	encode_all(dtype, pair, 0, 1, bytes);
	if (!poke(t, output_at(t, output, 0) + element * bits / 8, bytes, bits / 8) || !ask_check(t, 0, true))
		return;
	tell(t, f->broken == KEEPER_WHOLE && f->output == output && f->wrong.wrong_rows == 1 && f->wrong.wrong_count == 1 && f->wrong.wrong[0].row == row &&
	     f->wrong.wrong[0].index == (int64_t)index, "%s in row %lld of output '%s' is found and named", what, (long long)row,
	     t->k.task.outputs[output].name);
}

static void test_wrong(struct selftest *t)
{
	struct answer a;
	int64_t last;

	if (!ask_inputs(t, t->small, 0, false) || !right_answer(t, &a))
		return;
	last = t->k.workloads[t->small].rows - 1;
	for (int i = 0; i < t->k.task.output_count; i++) {
		bool narrow = t->k.task.outputs[i].dtype > DTYPE_BFLOAT16;

		if (row_elements(t, i) == 0 || t->k.task.outputs[i].dtype == DTYPE_BOOL)
			continue; /* any large number may be right as a bool */
		test_one_element(t, &a, i, last, narrow ? 100 : 30000, "a large element");
		if (!narrow) {
			test_one_element(t, &a, i, 0, (double)NAN, "a NaN");
			test_one_element(t, &a, i, last / 2, INFINITY, "an infinity");
		}
	}
	answer_release(&a);
}

/* Zeros everywhere, half of all rows only: a few rows are enough to see it. */
static void test_few_rows(struct selftest *t)
{
	struct answer a;
	bool zeros, half;

	if (!ask_inputs(t, t->small, 0, false) || !right_answer(t, &a))
		return;
	for (int i = 0; i < t->k.task.output_count; i++)
		memset(a.bytes[i] + output_bytes(t, i) / 2, 0, output_bytes(t, i) - output_bytes(t, i) / 2);
	half = call(t, &a) && ask_check(t, 0, false) && t->m.found.output >= 0;
	tell(t, half, "outputs of which half is missing fail a check of some rows");
	for (int i = 0; i < t->k.task.output_count; i++)
		memset(a.bytes[i], 0, output_bytes(t, i));
	zeros = call(t, &a) && ask_check(t, 0, false) && t->m.found.output >= 0;
	tell(t, zeros, "zeros fail a check of some rows");
	answer_release(&a);
}

/* What is written after the window's end does not count for the rows that were copied before. */
static void test_late_write(struct selftest *t)
{
	struct answer a;
	struct keeper_message prepared;

	if (!ask_inputs(t, t->small, 0, false) || !right_answer(t, &a))
		return;
	if (ask_prepare(t, 0, PROTOCOL_QUEUED, 1)) {
		prepared = t->m;
		if (ask_release(t, 0, true, true, 1)) {
			bool copied = t->k.window_output >= 0;

			t->m = prepared;
			if (write_answer(t, &a, 1) && ask_check(t, 0, false))
				tell(t, !copied || t->m.found.output == t->k.window_output, "outputs written after the window are wrong, some rows");
			if (ask_check(t, 0, true))
				tell(t, !copied || t->m.found.output == t->k.window_output, "outputs written after the window are wrong, all rows");
		}
	}
	answer_release(&a);
}

/* ---- inputs and guards -------------------------------------------------------------------------------------------- */

static void expect_broken(struct selftest *t, int kind, int tensor, const char *name, const char *where)
{
	bool checked = ask_check(t, 0, false);

	tell(t, checked && t->m.found.broken == kind && t->m.found.tensor == tensor, "a changed bit is seen: '%s', %s", name, where);
}

/* Flip a bit, look, and flip it back. */
static void test_bit(struct selftest *t, unsigned char *at, int kind, int tensor, const char *name, const char *where)
{
	struct keeper_message prepared = t->m;

	if (!flip(t, at))
		return;
	expect_broken(t, kind, tensor, name, where);
	flip(t, at);
	t->m = prepared;
}

static void test_bits(struct selftest *t, unsigned char *at, size_t bytes, int guard, int tensor, const char *name)
{
	test_bit(t, at - 1, guard, tensor, name, "the byte before");
	test_bit(t, at - KEEPER_PROCESS_GUARD, guard, tensor, name, "the first byte of the guard before");
	test_bit(t, at + bytes, guard, tensor, name, "the byte behind");
	test_bit(t, at + bytes + KEEPER_PROCESS_GUARD - 1, guard, tensor, name, "the last byte of the guard behind");
	if (guard != KEEPER_INPUT_GUARD || bytes == 0)
		return;
	test_bit(t, at, KEEPER_INPUT_CHANGED, tensor, name, "its first byte");
	test_bit(t, at + bytes / 2, KEEPER_INPUT_CHANGED, tensor, name, "its middle");
	test_bit(t, at + bytes - 1, KEEPER_INPUT_CHANGED, tensor, name, "its last byte");
}

static void test_guards(struct selftest *t, int workload, const struct answer *right)
{
	const struct task *task = &t->k.task;

	if (!call(t, right))
		return;
	for (int i = 0; i < task->input_count; i++)
		if (!task->inputs[i].scalar)
			test_bits(t, pointer_at(t, t->k.layout.input[i]), task_bytes(&task->inputs[i], task->workloads[workload].axes), KEEPER_INPUT_GUARD, i,
				  task->inputs[i].name);
	for (int i = 0; i < task->output_count; i++)
		test_bits(t, output_at(t, i, 0), output_bytes(t, i), KEEPER_OUTPUT_GUARD, i, task->outputs[i].name);
	if (t->k.participants[0].workspace)
		test_bits(t, pointer_at(t, t->k.layout.workspace), t->k.participants[0].workspace, KEEPER_WORKSPACE_GUARD, 0, "workspace");
	tell(t, ask_check(t, 0, false) && t->m.found.broken == KEEPER_WHOLE, "with all bits as they were, nothing is broken");
}

/* ---- workspace ---------------------------------------------------------------------------------------------------- */

static void test_workspace(struct selftest *t)
{
	size_t bytes = t->k.task.workspace_bytes < 12345 ? t->k.task.workspace_bytes : 12345;
	unsigned char *left = xmalloc(bytes + 1), *now = xmalloc(bytes + 1), *before = NULL;
	int zeroed = 0, kept = 0, other = 0, moved = 0;

	memset(left, 0, bytes + 1);
	for (int round = 0; round < 24 && bytes; round++) {
		unsigned char *at;
		bool zero = true;

		if (!ask_prepare(t, 0, PROTOCOL_IDLE, 1))
			break;
		at = pointer_at(t, t->k.layout.workspace);
		moved += at != before;
		before = at;
		if (!peek(t, now, at, bytes))
			break;
		for (size_t i = 0; i < bytes; i++)
			zero = zero && now[i] == 0;
		if (zero)
			zeroed++;
		else if (memcmp(now, left, bytes) == 0)
			kept++;
		else
			other++;
		random_fill_bits(left, bytes, random_secret());
		poke(t, at, left, bytes);
	}
	if (bytes)
		tell(t, zeroed > 2 && kept > 2 && other == 0 && moved > 20, "a workspace is zeroed (%d) or as it was left (%d), and moves", zeroed, kept);
	free(left);
	free(now);
}

/* ---- batches ------------------------------------------------------------------------------------------------------ */

static bool copies_apart(const struct selftest *t, size_t copies)
{
	bool good = t->m.patch_count == (uint32_t)t->k.task.output_count;

	for (int i = 0; i < t->k.task.output_count && good; i++)
		good = t->m.patch[i].copies == copies && t->m.patch[i].member == t->k.layout.output[i] &&
		       t->m.patch[i].step >= output_bytes(t, i) + KEEPER_PROCESS_GUARD &&
		       inside(t, output_at(t, i, 0), (copies - 1) * (size_t)t->m.patch[i].step + output_bytes(t, i), PROTOCOL_OUTPUT);
	return good;
}

static void test_batch(struct selftest *t)
{
	struct keeper_message prepared;
	struct answer a;
	size_t copies;
	bool good;

	if (!ask_inputs(t, t->small, 0, false) || !right_answer(t, &a) || !ask_prepare(t, 0, PROTOCOL_BATCH, BATCH))
		return;
	prepared = t->m;
	copies = t->k.copies;
	tell(t, copies >= 1 && copies <= BATCH && copies_apart(t, copies), "the outputs of a batch of %d calls are apart: %zu copies", BATCH, copies);
	good = write_answer(t, &a, copies) && ask_release(t, 0, true, true, 1) && ask_check(t, 0, false) && t->m.found.output < 0 &&
	       t->m.found.broken == KEEPER_WHOLE && ask_check(t, 0, true) && t->m.found.output < 0;
	tell(t, good, "a batch of right outputs passes");
	t->m = prepared;
	if (copies > 1)
		test_bit(t, output_at(t, 0, copies / 2) + output_bytes(t, 0), KEEPER_OUTPUT_GUARD, 0, t->k.task.outputs[0].name, "between two copies");
	/* Every second copy is left unwritten. */
	if (ask_prepare(t, 0, PROTOCOL_BATCH, BATCH) && copies > 1) {
		for (int i = 0; i < t->k.task.output_count; i++)
			for (size_t c = 0; c < t->k.copies; c += 2)
				poke(t, output_at(t, i, c), a.bytes[i], output_bytes(t, i));
		good = ask_release(t, 0, true, true, 1) && ask_check(t, 0, false) && t->m.found.output >= 0;
		tell(t, good || t->k.workloads[t->small].rows < 8, "a batch of which half was not computed fails");
	}
	answer_release(&a);
}

/* ---- the clock ---------------------------------------------------------------------------------------------------- */

static void *slow_runner(void *page)
{
	struct keeper_page *p = page;

	while (p->release != p->arrived)
		usleep(100);
	usleep(20000);
	p->done = p->arrived;
	return NULL;
}

/* A call of 20 ms, with a thread as the runner. A flush that ended too early gives no window, and lasts longer next time. */
static bool time_slow_call(struct selftest *t, double *window)
{
	struct keeper_page *page = t->page[0];
	pthread_t thread;
	bool good = true;

	*window = -1;
	for (int i = 0; i < 8 && *window < 0 && good; i++) {
		good = ask_prepare(t, 0, PROTOCOL_QUEUED, 1);
		page->arrived = (uint32_t)t->serial;
		if (!good || pthread_create(&thread, NULL, slow_runner, page) != 0)
			return false;
		good = ask_release(t, 0, false, false, 2) && t->m.outcome == KEEPER_RAN;
		pthread_join(thread, NULL);
		*window = t->m.window;
	}
	return good;
}

static void test_clock(struct selftest *t)
{
	struct keeper_page *page = t->page[0];
	double window;
	bool good;

	if (!ask_inputs(t, t->small, 0, false))
		return;
	good = time_slow_call(t, &window);
	tell(t, good && window > 0.02 && window < 0.05, "a call of 20 ms has a window of %.3f ms", window * 1e3);
	if (ask_prepare(t, 0, PROTOCOL_QUEUED, 1) && ask_release(t, 0, true, false, 0.05))
		tell(t, t->m.outcome == KEEPER_LATE && page->release == (uint32_t)t->k.serial, "a call that does not end is late");
	if (ask_prepare(t, 0, PROTOCOL_QUEUED, 1) && ask_release(t, 0, false, false, 0.05))
		tell(t, t->m.outcome == KEEPER_NO_ARRIVAL, "a call that does not start has not arrived");
	t->m = (struct keeper_message){ 0 };
	if (ask(t, KEEPER_CONTROL))
		tell(t, t->m.seconds > 0 && t->m.seconds < 1, "the device answers in %.1f us", t->m.seconds * 1e6);
}

static void expect_refusal(struct selftest *t, enum keeper_kind kind, const char *what)
{
	int descriptors[KEEPER_PROCESS_DESCRIPTORS];
	bool done = ask_quietly(t, kind, descriptors);

	tell(t, !done && t->m.kind == KEEPER_FAILED && t->m.value == KM_EXIT_USAGE && t->m.text[0], "refused: %s (%s)", what, t->m.text);
}

static double ask_memory(struct selftest *t)
{
	t->m = (struct keeper_message){ .kind = 0 };
	return ask(t, KEEPER_MEMORY) ? (double)t->m.count : 0;
}

/* What somebody takes is missing, and back when it is given back; others may use the device meanwhile. */
static void test_memory(struct selftest *t)
{
	const double bytes = 1 << 30;
	double before = ask_memory(t), with, after;
	struct device_slab slab;
	struct error err;

	if (device_slab_make(t->k.device, &slab, "a test", (size_t)bytes, &err) < 0) {
		tell_error(t, "memory", &err);
		return;
	}
	with = ask_memory(t);
	device_slab_release(t->k.device, &slab);
	after = ask_memory(t);
	tell(t, before - with > 0.9 * bytes && before - with < 1.1 * bytes && after - with > 0.9 * bytes,
	     "memory that is taken is missing: %.3f GB of %.3f, %.3f come back", (before - with) / 1e9, bytes / 1e9, (after - with) / 1e9);
}

static void test_refusals(struct selftest *t)
{
	t->m = (struct keeper_message){ .who = PARTICIPANTS };
	expect_refusal(t, KEEPER_START, "a participant that was not announced");
	t->m = (struct keeper_message){ .who = 0, .workload = t->k.task.workload_count };
	expect_refusal(t, KEEPER_SELECT, "an unknown workload");
	t->m = (struct keeper_message){ .who = 0, .workload = t->small, .count = (int64_t)t->k.task.workspace_bytes + 1 };
	expect_refusal(t, KEEPER_SELECT, "too large a workspace");
	t->m = (struct keeper_message){ .workload = t->small, .set = SET_COUNT };
	expect_refusal(t, KEEPER_INPUTS, "an unknown input set");
	if (ask_inputs(t, t->small, 0, false)) {
		t->m = (struct keeper_message){ .who = 0 };
		expect_refusal(t, KEEPER_CHECK, "a check without a call");
	}
	t->m = (struct keeper_message){ 0 };
	expect_refusal(t, (enum keeper_kind)99, "an unknown question");
}

/* ---- times -------------------------------------------------------------------------------------------------------- */

static double middle(double *values)
{
	qsort(values, TIMED, sizeof(*values), compare_doubles);
	return values[TIMED / 2] * 1e6;
}

static void time_workload(struct selftest *t, int workload, const char *name)
{
	double inputs[TIMED], ready[TIMED], prepare[TIMED], usual[TIMED], window[TIMED], some[TIMED], all[TIMED];
	int slow = 0;

	if (!ask_select(t, 0, workload, 0))
		return;
	for (int i = 0; i < TIMED; i++) {
		double start = monotonic_seconds();

		if (!ask_inputs(t, workload, i % 2 ? SET_NORMAL : SET_ROW_SCALED, false))
			return;
		inputs[i] = monotonic_seconds() - start;
		start = monotonic_seconds();
		if (!ask_prepare(t, 0, PROTOCOL_QUEUED, 1))
			return;
		ready[i] = monotonic_seconds() - start;
		if (!ask_release(t, 0, true, true, 1))
			return;
		prepare[i] = t->m.prepare;
		usual[i] = t->m.usual;
		window[i] = t->m.window;
		slow += t->m.prepare > 1.3 * t->m.usual + 50e-6;
		start = monotonic_seconds();
		if (!ask_check(t, 0, false))
			return;
		some[i] = monotonic_seconds() - start;
		start = monotonic_seconds();
		if (!ask_check(t, 0, true))
			return;
		all[i] = monotonic_seconds() - start;
	}
	tell(t, slow <= TIMED / 2, "making ready takes what is usual (%s)", name);
	printf("# %s workload %s: us: INPUTS %.0f, PREPARE until its answer %.0f, prepare %.0f, usual %.0f, window of nothing %.1f,"
	       " CHECK of some rows %.0f, CHECK of all %lld rows %.0f (of outputs that nobody wrote)\n",
	       name, t->k.task.workloads[workload].uuid, middle(inputs), middle(ready), middle(prepare), middle(usual), middle(window), middle(some),
	       (long long)t->k.workloads[workload].rows, middle(all));
}

static void time_right(struct selftest *t)
{
	double some[TIMED], all[TIMED];
	struct answer a;

	if (!ask_select(t, 0, t->small, 0) || !ask_inputs(t, t->small, 0, false) || !right_answer(t, &a))
		return;
	for (int i = 0; i < TIMED && call(t, &a); i++) {
		double start = monotonic_seconds();

		ask_check(t, 0, false);
		some[i] = monotonic_seconds() - start;
		start = monotonic_seconds();
		ask_check(t, 0, true);
		all[i] = monotonic_seconds() - start;
		if (i == TIMED - 1)
			printf("# small workload %s, right outputs: us: CHECK of some rows %.0f, CHECK of all rows %.0f\n",
			       t->k.task.workloads[t->small].uuid, middle(some), middle(all));
	}
	answer_release(&a);
}

static void show_device(const struct selftest *t)
{
	const struct keeper_device *d = &t->m.device;

	printf("# %s %s, %d.%d, %d processors, %d MHz, L2 %lld bytes, memory %lld bytes, %.3g bytes/s, driver %.1f\n", d->name, d->uuid, d->major,
	       d->minor, d->processors, d->clock_mhz, (long long)d->l2_bytes, (long long)d->memory_bytes, d->bandwidth, d->driver);
	printf("# slabs: inputs %zu, outputs %zu, scratch %zu bytes\n", t->k.inputs.bytes, t->k.outputs.bytes, keeper_memory_scratch(&t->k));
}

/* ---- all ---------------------------------------------------------------------------------------------------------- */

static size_t total(const struct task_tensor *tensors, int count, const int64_t *axes, bool bytes)
{
	size_t sum = 0;

	for (int i = 0; i < count; i++)
		if (!tensors[i].scalar)
			sum += bytes ? task_bytes(&tensors[i], axes) : task_elements(&tensors[i], axes);
	return sum;
}

/* The workload of the fewest outputs among those of enough rows, if there are any, and that of the most bytes. */
static void choose_workloads(struct selftest *t)
{
	const struct task *task = &t->k.task;
	size_t least = SIZE_MAX, most = 0;

	for (int i = 0; i < task->workload_count; i++) {
		const int64_t *axes = task->workloads[i].axes;
		size_t elements = total(task->outputs, task->output_count, axes, false);
		size_t bytes = total(task->inputs, task->input_count, axes, true) + total(task->outputs, task->output_count, axes, true);
		size_t order = elements + (t->k.workloads[i].rows < ENOUGH_ROWS ? SIZE_MAX / 2 : 0);

		if (order < least) {
			least = order;
			t->small = i;
		}
		if (bytes >= most) {
			most = bytes;
			t->large = i;
		}
	}
	least = total(task->outputs, task->output_count, task->workloads[t->small].axes, false);
	tell(t, least <= RIGHT_MAX, "the smaller workload has %zu elements of outputs", least);
}

static void test_large(struct selftest *t)
{
	if (!ask_select(t, 0, t->large, 0) || !ask_inputs(t, t->large, 0, false))
		return;
	test_guards(t, t->large, NULL);
	for (int i = 0; i < t->k.task.workload_count; i++) {
		t->m = (struct keeper_message){ .workload = i };
		if (!ask(t, KEEPER_COUNTS))
			return;
		if (!(t->m.flops >= 0) || !(t->m.bytes_moved > 0))
			tell(t, false, "workload %s: %g operations, %g bytes", t->k.task.workloads[i].uuid, t->m.flops, t->m.bytes_moved);
	}
}

/* Its guard zones go with it, though the next inputs look at those of the last call. */
static void test_stop_after_call(struct selftest *t)
{
	size_t workspace = t->k.task.workspace_bytes < 12345 ? t->k.task.workspace_bytes : 12345;
	bool called = ask_select(t, 1, t->small, workspace) && ask_inputs(t, t->small, 0, false) && ask_prepare(t, 1, PROTOCOL_IDLE, 1);

	stop(t, 1);
	if (called)
		tell(t, ask_inputs(t, t->small, 0, false), "inputs can be made when the participant of the last call is gone, its %zu bytes of workspace too",
		     workspace);
}

/* While nobody is at work. */
static bool test_measure(struct selftest *t)
{
	double start_time = monotonic_seconds();

	t->m = (struct keeper_message){ .who = 0, .workload = t->small };
	expect_refusal(t, KEEPER_SELECT, "a workload before anything was measured");
	t->m = (struct keeper_message){ .kind = 0 };
	if (!ask(t, KEEPER_MEASURE))
		return false;
	printf("# MEASURE took %.0f ms; rates: poison %.3g, copy %.3g, zero %.3g bytes/s\n", (monotonic_seconds() - start_time) * 1e3,
	       1 / t->k.rates.poison, 1 / t->k.rates.copy, 1 / t->k.rates.zero);
	expect_refusal(t, KEEPER_MEASURE, "measuring once more");
	return true;
}

static void test_all(struct selftest *t)
{
	struct answer a;

	for (int i = 0; i < PARTICIPANTS; i++)
		if (!start(t, i))
			return;
	if (!test_measure(t))
		return;
	for (int i = 0; i < PARTICIPANTS; i++)
		if (!ask_select(t, i, t->small, 0))
			return;
	tell(t, true, "%d participants have mapped their slabs", PARTICIPANTS);
	test_generator(t);
	test_comparer(t);
	test_sets(t);
	test_places(t);
	test_unwritten(t);
	test_unwritten_again(t);
	test_wrong(t);
	test_few_rows(t);
	test_late_write(t);
	if (ask_select(t, 0, t->small, t->k.task.workspace_bytes < 12345 ? t->k.task.workspace_bytes : 12345) &&
	    ask_inputs(t, t->small, 0, false) && right_answer(t, &a)) {
		test_workspace(t);
		test_guards(t, t->small, &a);
		answer_release(&a);
	}
	test_batch(t);
	test_clock(t);
	test_memory(t);
	test_refusals(t);
	test_large(t);
	time_workload(t, t->small, "small");
	time_right(t);
	time_workload(t, t->large, "large");
	test_stop_after_call(t);
	if (start(t, 1))
		tell(t, ask_select(t, 1, t->small, 0), "a participant can be stopped and started again");
	for (int i = 0; i < PARTICIPANTS; i++)
		stop(t, i);
}

static int workloads_of(const char *folder, struct error *err)
{
	struct task task;
	int count;

	if (task_load(folder, &task, err) < 0)
		return -1;
	count = task.workload_count;
	task_release(&task);
	return count;
}

int keeper_process_selftest(const char *folder, const char *reference)
{
	static struct selftest t;
	struct error err = { .code = KM_OK };
	int count = workloads_of(folder, &err), *named = xcalloc((size_t)(count > 0 ? count : 1), sizeof(*named));
	double start_time = monotonic_seconds();

	for (int i = 0; i < count; i++)
		named[i] = i;
	if (count < 0) {
		tell_error(&t, "the task can be loaded", &err);
	} else if (keeper_process_load(&t.k, folder, reference, PARTICIPANTS, named, (size_t)count, &err) < 0) {
		tell_error(&t, "the task and its reference can be opened", &err);
	} else if (ask_open(&t)) {
		printf("# OPEN took %.0f ms\n", (monotonic_seconds() - start_time) * 1e3);
		show_device(&t);
		choose_workloads(&t);
		test_all(&t);
	}
	if (count >= 0)
		keeper_process_release(&t.k);
	free(named);
	printf("# %d not ok\n", t.failed);
	return t.failed ? KM_EXIT_ENVIRONMENT : KM_OK;
}
