/* device_compare.cu - device.h: rows of the outputs against the reference's, by the rule of compare.h, in double. */
#include "device_core.cuh"

#include <math.h>
#include <string.h>

enum { MAX_THREADS = 512 };

/* ---- elements ---------------------------------------------------------------------------------------------------- */

/* A small float of these field widths, as number.c has it: infinities (IEEE) or, as in e4m3fn, numbers and one NaN at
 * the top exponent; e2m1 has numbers only. */
__device__ static double small_float(unsigned u, int exponent_bits, int fraction_bits)
{
	int bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
	int exponent = (int)(u >> fraction_bits) & top, fraction = (int)u & ((1 << fraction_bits) - 1);
	double sign = u >> (exponent_bits + fraction_bits) & 1 ? -1 : 1;
	bool infinite = exponent_bits >= 5;

	if (infinite && exponent == top)
		return fraction ? (double)NAN : sign * (double)INFINITY;
	if (exponent_bits == 4 && exponent == top && fraction == (1 << fraction_bits) - 1)
		return (double)NAN;
	if (exponent == 0)
		return sign * ldexp((double)fraction, 1 - bias - fraction_bits);
	return sign * ldexp((double)((1 << fraction_bits) + fraction), exponent - bias - fraction_bits);
}

__device__ static double element(int dtype, const void *at, size_t i)
{
	const uint8_t *bytes = (const uint8_t *)at;
	const uint16_t *words = (const uint16_t *)at;

	switch (dtype) {
	case DTYPE_FLOAT32: return ((const float *)at)[i];
	case DTYPE_FLOAT16: return small_float(words[i], 5, 10);
	case DTYPE_BFLOAT16: return __uint_as_float((unsigned)words[i] << 16);
	case DTYPE_FLOAT8_E4M3FN: return small_float(bytes[i], 4, 3);
	case DTYPE_FLOAT8_E5M2: return small_float(bytes[i], 5, 2);
	case DTYPE_FLOAT4_E2M1: return small_float(bytes[i / 2] >> (i % 2 * 4) & 15, 2, 1);
	case DTYPE_INT64: return (double)((const int64_t *)at)[i];
	case DTYPE_INT32: return ((const int32_t *)at)[i];
	case DTYPE_INT16: return ((const int16_t *)at)[i];
	case DTYPE_INT8: return ((const int8_t *)at)[i];
	default: return bytes[i];
	}
}

/* ---- over a block ------------------------------------------------------------------------------------------------ */

/* Sum or largest of x over the threads, known to all of them. blockDim.x is a power of two. */
__device__ static double over_block(double x, bool largest)
{
	__shared__ double values[MAX_THREADS];
	double all;

	values[threadIdx.x] = x;
	for (unsigned half = blockDim.x / 2; half; half /= 2) {
		__syncthreads();
		if (threadIdx.x < half) {
			double a = values[threadIdx.x], b = values[threadIdx.x + half];

			values[threadIdx.x] = largest ? (b > a ? b : a) : a + b;
		}
	}
	__syncthreads();
	all = values[0];
	__syncthreads();
	return all;
}

/* ---- a row ------------------------------------------------------------------------------------------------------- */

struct job {
	struct device_compare c;
	const int64_t *rows;
	const struct device_row *listed; /* NULL: rows of copy 0 */
	uint8_t *wrong;
};

struct sums {
	double finite, squares, nans;            /* of the reference */
	double wrong, error_squares, abs, rel;   /* of the comparison */
};

__device__ static void sum_reference(const double *expected, size_t n, struct sums *s)
{
	double finite = 0, squares = 0, nans = 0;

	for (size_t i = threadIdx.x; i < n; i += blockDim.x) {
		double e = expected[i];

		if (isfinite(e)) {
			squares += e * e;
			finite++;
		}
		nans += isnan(e) ? 1 : 0;
	}
	s->finite = over_block(finite, false);
	s->squares = over_block(squares, false);
	s->nans = over_block(nans, false);
}

__device__ static void sum_errors(const struct device_compare &c, const void *got, size_t first, const double *expected, struct sums *s)
{
	double rms = s->finite > 0 ? sqrt(s->squares / s->finite) : 0, wrong = 0, squares = 0, most = 0, most_rel = 0;

	for (size_t i = threadIdx.x; i < c.length; i += blockDim.x) {
		double e = expected[i], g = element(c.dtype, got, first + i), error = fabs(g - e), size = fabs(e);
		bool right = isinf(e) ? g == e : error <= c.tolerance.a * size + c.tolerance.c * rms + c.tolerance.absolute;

		wrong += right ? 0 : 1;
		if (!isfinite(e))
			continue;
		squares += error * error;
		size = size > rms ? size : rms;
		if (isfinite(error)) {
			most = error > most ? error : most;
			most_rel = size > 0 && error / size > most_rel ? error / size : most_rel;
		}
	}
	s->wrong = over_block(wrong, false);
	s->error_squares = over_block(squares, false);
	s->abs = over_block(most, true);
	s->rel = over_block(most_rel, true);
}

__device__ static bool row_is_wrong(const struct task_tolerance &t, const struct sums &s)
{
	if (s.wrong > 0)
		return true;
	return t.r >= 0 && !(sqrt(s.error_squares) <= t.r * sqrt(s.squares) + t.absolute * sqrt(s.finite));
}

typedef decltype(((struct device_results *)NULL)->compared[0]) compared_reference;

__global__ static void compare_kernel(struct job j, struct device_results *results, int output)
{
	compared_reference to = results->compared[output];
	const double *expected = j.c.expected + blockIdx.x * j.c.length;
	int64_t row = j.rows[blockIdx.x];
	const uint8_t *got = (const uint8_t *)j.c.got;
	size_t first = (size_t)row * j.c.length;
	struct sums s;

	if (j.listed && j.listed[blockIdx.x].slot >= 0 && j.c.window) {
		got = (const uint8_t *)j.c.window + (size_t)j.listed[blockIdx.x].slot * j.c.row_bytes;
		first = 0;
	} else if (j.listed) {
		got += (size_t)j.listed[blockIdx.x].copy * j.c.stride;
	}
	sum_reference(expected, j.c.length, &s);
	sum_errors(j.c, got, first, expected, &s);
	if (threadIdx.x != 0)
		return;
	j.wrong[blockIdx.x] = s.nans == 0 && row_is_wrong(j.c.tolerance, s);
	if (s.nans > 0)
		atomicMin(&to.nan_row, (unsigned long long)row);
	else if (j.wrong[blockIdx.x])
		atomicAdd(&to.wrong_rows, 1ull);
	atomicMax(&to.max_abs_error, (unsigned long long)__double_as_longlong(s.abs));
	atomicMax(&to.max_rel_error, (unsigned long long)__double_as_longlong(s.rel));
}

/* ---- lists of rows ----------------------------------------------------------------------------------------------- */

__global__ static void count_kernel(int64_t *rows, int64_t first, size_t count)
{
	size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;

	if (i < count)
		rows[i] = first + (int64_t)i;
}

static int copy_list(struct device *d, const struct device_row *list, size_t count, struct error *err)
{
	for (size_t i = 0; i < count; i++) {
		d->rows_pinned[i] = list[i].row;
		d->listed_pinned[i] = list[i];
	}
	if (device_failed(cudaMemcpyAsync(d->rows, d->rows_pinned, count * sizeof(*d->rows), cudaMemcpyHostToDevice, d->stream),
			  "cannot copy the list of rows", err) < 0)
		return -1;
	return device_failed(cudaMemcpyAsync(d->listed, d->listed_pinned, count * sizeof(*list), cudaMemcpyHostToDevice, d->stream),
			     "cannot copy the list of rows", err);
}

int device_list_rows(struct device *d, const struct device_row *list, int64_t first, size_t count, struct error *err)
{
	if (count > (list ? (size_t)DEVICE_LISTED_ROWS : (size_t)DEVICE_MAX_ROWS))
		return error_set(err, KM_EXIT_ENVIRONMENT, "%zu rows at once are too many", count);
	d->row_count = count;
	d->listing = list != NULL;
	if (list)
		return copy_list(d, list, count, err);
	return device_launch(d, "list of rows", err, count_kernel, (unsigned)((count + 255) / 256), 256, d->rows, first, count);
}

const int64_t *device_rows(const struct device *d)
{
	return d->rows;
}

/* ---- comparing --------------------------------------------------------------------------------------------------- */

static unsigned threads_for(size_t length)
{
	unsigned threads = 32;

	while (threads < MAX_THREADS && threads * 4 < length)
		threads *= 2;
	return threads;
}

/* Room for the marks of `outputs` outputs. */
static int make_marks(struct device *d, size_t outputs, struct error *err)
{
	if (outputs <= d->wrong_outputs)
		return 0;
	device_free(d, d->wrong);
	d->wrong_outputs = 0;
	d->wrong = (unsigned char *)device_alloc(d, "marks of rows", outputs * DEVICE_MAX_ROWS, err);
	d->wrong_outputs = d->wrong ? outputs : 0;
	return d->wrong ? 0 : -1;
}

static double as_double(unsigned long long bits)
{
	double x;

	memcpy(&x, &bits, sizeof(x));
	return x;
}

int device_compare(struct device *d, const struct device_compare *outputs, size_t count, struct device_found *found, struct error *err)
{
	struct device_results *r = d->results_pinned;

	if (make_marks(d, count, err) < 0)
		return -1;
	for (size_t i = 0; i < count; i++) {
		r->compared[i].wrong_rows = r->compared[i].max_abs_error = r->compared[i].max_rel_error = 0;
		r->compared[i].nan_row = UINT64_MAX;
	}
	if (device_failed(cudaMemcpyAsync(d->results->compared, r->compared, sizeof(r->compared), cudaMemcpyHostToDevice, d->stream), "cannot copy",
			  err) < 0)
		return -1;
	for (size_t i = 0; i < count && d->row_count; i++) {
		struct job j = { outputs[i], d->rows, d->listing ? d->listed : NULL, d->wrong + i * DEVICE_MAX_ROWS };

		if (device_launch(d, "comparison", err, compare_kernel, (unsigned)d->row_count, threads_for(outputs[i].length), j, d->results, (int)i) < 0)
			return -1;
	}
	if (device_read(d, r->compared, d->results->compared, sizeof(r->compared), err) < 0)
		return -1;
	for (size_t i = 0; i < count; i++)
		found[i] = (struct device_found){ (int64_t)r->compared[i].wrong_rows, (int64_t)r->compared[i].nan_row,
						  as_double(r->compared[i].max_abs_error), as_double(r->compared[i].max_rel_error) };
	return 0;
}

int device_wrong_rows(struct device *d, size_t output, size_t rows, unsigned char *wrong, struct error *err)
{
	return device_read(d, wrong, d->wrong + output * DEVICE_MAX_ROWS, rows, err);
}
