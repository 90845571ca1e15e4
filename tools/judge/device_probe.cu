/* device_probe.cu - device.h: what the device can do, measured. Each figure is the median of RUNS runs of a few
 * milliseconds on random data, after one that is not counted. */
#include "device_core.cuh"
#include "device_wgmma.cuh"

extern "C" {
#include "json.h"
#include "util.h"
}

#include <stdlib.h>
#include <string.h>

enum {
	RUNS = 7,
	CALLS = 101,              /* of an empty kernel */
	STREAM_BYTES = 1 << 30,   /* read or copied at once */
	CHAINS = 8,               /* independent sums of a thread or warp */
	UNROLLED = 16,
};

#define RUN_SECONDS 0.004

struct probe {
	struct device *d;
	unsigned char *from, *to; /* STREAM_BYTES each */
	volatile unsigned *gate;  /* pinned */
	cJSON *found, *missing;
};

/* ---- kernels ---------------------------------------------------------------------------------------------------- */

__global__ static void empty_kernel()
{
}

/* Hold the stream until the host opens the gate, two seconds at most. */
__global__ static void gate_kernel(const volatile unsigned *gate)
{
	long long start = clock64();

	while (*gate == 0 && clock64() - start < 4000000000)
		continue;
}

__device__ static unsigned fold(uint4 v)
{
	return v.x ^ v.y ^ v.z ^ v.w;
}

/* Read `count` vectors `passes` times, each time from another place on, so that no load is the same as one before. */
__global__ static void __launch_bounds__(512) read_passes_kernel(const uint4 *from, size_t count, unsigned passes, unsigned *never)
{
	size_t step = (size_t)gridDim.x * blockDim.x, first = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
	unsigned all = 0;

	for (unsigned pass = 0; pass < passes; pass++)
		for (size_t i = first; i < count; i += 4 * step) {
#pragma unroll
			for (int j = 0; j < 4; j++) {
				size_t at = i + j * step + pass * 32;

				all ^= i + j * step < count ? fold(__ldcg(from + (at < count ? at : at - count))) : 0;
			}
		}
	if (all == 0x9e3779b9u)
		*never = all;
}

__global__ static void __launch_bounds__(512) copy_kernel(uint4 *to, const uint4 *from, size_t count, unsigned passes)
{
	size_t step = (size_t)gridDim.x * blockDim.x, first = blockIdx.x * (size_t)blockDim.x + threadIdx.x;

	for (unsigned pass = 0; pass < passes; pass++)
		for (size_t i = first; i < count; i += 4 * step) {
			uint4 v[4];

#pragma unroll
			for (int j = 0; j < 4; j++)
				v[j] = i + j * step < count ? __ldcs(from + i + j * step) : make_uint4(0, 0, 0, 0);
#pragma unroll
			for (int j = 0; j < 4; j++)
				if (i + j * step < count)
					__stcs(to + i + j * step, v[j]);
		}
}

__global__ static void __launch_bounds__(512) fma_kernel(unsigned passes, float factor, float *never)
{
	float sums[CHAINS], total = 0;

#pragma unroll
	for (int c = 0; c < CHAINS; c++)
		sums[c] = 0.001f * (float)(threadIdx.x + c);
	for (unsigned pass = 0; pass < passes; pass++) {
#pragma unroll
		for (int u = 0; u < UNROLLED; u++)
#pragma unroll
			for (int c = 0; c < CHAINS; c++)
				sums[c] = fmaf(sums[c], factor, 0.37f);
	}
#pragma unroll
	for (int c = 0; c < CHAINS; c++)
		total += sums[c];
	if (total == 12345.678f)
		*never = total;
}

/* One warp's matrix product, with accumulators d. */
template <enum device_matrix TYPE> __device__ static void multiply(float d[4], const unsigned a[4], const unsigned b[2])
{
	if (TYPE == DEVICE_TF32)
		asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
			     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
			     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
	if (TYPE == DEVICE_BF16)
		asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
			     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
			     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
	if (TYPE == DEVICE_FP16)
		asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
			     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
			     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <enum device_matrix TYPE> __global__ static void __launch_bounds__(256) matrix_kernel(unsigned passes, float *never)
{
	float d[CHAINS][4] = {}, total = 0;
	unsigned a[4], b[2];

	for (unsigned i = 0; i < 4; i++)
		a[i] = device_matrix_bits(TYPE, threadIdx.x * 6 + i);
	for (unsigned i = 0; i < 2; i++)
		b[i] = device_matrix_bits(TYPE, threadIdx.x * 6 + 4 + i);
	for (unsigned pass = 0; pass < passes; pass++)
#pragma unroll
		for (int c = 0; c < CHAINS; c++)
			multiply<TYPE>(d[c], a, b);
	for (int c = 0; c < CHAINS; c++)
		total += d[c][0] + d[c][1] + d[c][2] + d[c][3];
	if (total == 12345.678f)
		*never = total;
}

/* ---- measuring -------------------------------------------------------------------------------------------------- */

enum figure { READ, COPY, READ_L2, FMA, MATRIX };

struct work {
	enum figure figure;
	enum device_matrix type; /* of MATRIX */
	bool wgmma;
	size_t bytes;            /* of READ, COPY, READ_L2 */
};

/* Start work of so many passes; its amount in bytes or operations to *amount. */
static int start(struct probe *p, const struct work *w, unsigned passes, double *amount, struct error *err)
{
	struct device *d = p->d;
	unsigned processors = (unsigned)d->identity.processors;
	float *never = (float *)p->to;
	void (*matrix)(unsigned, float *) = w->type == DEVICE_TF32   ? matrix_kernel<DEVICE_TF32>
					    : w->type == DEVICE_BF16 ? matrix_kernel<DEVICE_BF16>
								     : matrix_kernel<DEVICE_FP16>;

	switch (w->figure) {
	case READ:
	case READ_L2:
		*amount = (double)w->bytes * passes;
		return device_launch(d, "probe: read", err, read_passes_kernel, processors * 4, 512, (const uint4 *)p->from, w->bytes / 16, passes,
				     (unsigned *)p->to);
	case COPY:
		*amount = 2.0 * (double)w->bytes * passes;
		return device_launch(d, "probe: copy", err, copy_kernel, processors * 4, 512, (uint4 *)p->to, (const uint4 *)p->from, w->bytes / 16,
				     passes);
	case FMA:
		*amount = 2.0 * UNROLLED * CHAINS * 512 * 4 * processors * passes;
		return device_launch(d, "probe: fp32", err, fma_kernel, processors * 4, 512, passes, 0.9f, never);
	default:
		if (w->wgmma)
			return device_wgmma(d, w->type, passes, never, amount, err);
		*amount = (w->type == DEVICE_TF32 ? 2048.0 : 4096.0) * CHAINS * 8 * 4 * processors * passes;
		return device_launch(d, "probe: matrices", err, matrix, processors * 4, 256, passes, never);
	}
}

static int time_work(struct probe *p, const struct work *w, unsigned passes, double *seconds, double *amount, struct error *err)
{
	if (device_mark(p->d, 0, err) < 0 || start(p, w, passes, amount, err) < 0 || device_mark(p->d, 1, err) < 0)
		return -1;
	return device_between_marks(p->d, seconds, err);
}

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

/* Bytes or operations a second. */
static int measure(struct probe *p, const char *name, const struct work *w, struct error *err)
{
	double seconds[RUNS], amount = 0, once;
	unsigned passes = 1;

	/* As many passes as a run should take; the first look is also the warm-up. */
	while (time_work(p, w, passes, &once, &amount, err) == 0 && once < RUN_SECONDS / 2 && passes < 1u << 24)
		passes = once < RUN_SECONDS / 32 ? passes * 8 : (unsigned)(passes * RUN_SECONDS / once) + 1;
	for (int i = 0; i < RUNS; i++)
		if (time_work(p, w, passes, &seconds[i], &amount, err) < 0)
			return -1;
	json_set_number(p->found, name, amount / median(seconds, RUNS));
	return 0;
}

static void miss(struct probe *p, const char *name, const char *why)
{
	json_set(p->found, name, cJSON_CreateNull());
	json_set_string(p->missing, name, why);
}

static int measure_matrices(struct probe *p, struct error *err)
{
	static const struct {
		const char *name;
		enum device_matrix type;
	} all[] = { { "tf32_flops", DEVICE_TF32 }, { "bf16_flops", DEVICE_BF16 }, { "fp16_flops", DEVICE_FP16 }, { "fp8_flops", DEVICE_FP8 } };
	const struct keeper_device *device = &p->d->identity;
	bool wgmma = device->major == 9 && device->minor == 0;

	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
		struct work w = { MATRIX, all[i].type, wgmma, 0 };

		if (device->major < 8)
			miss(p, all[i].name, "not measured before compute capability 8.0");
		else if (all[i].type == DEVICE_FP8 && !wgmma)
			miss(p, all[i].name, "measured on compute capability 9.0 only");
		else if (measure(p, all[i].name, &w, err) < 0)
			return -1;
		else if (device->major > 9)
			json_set_string(p->missing, all[i].name, "a lower bound: measured with mma.sync, which is not this device's fastest way");
	}
	return 0;
}

/* From the launch of an empty kernel on an idle stream until the host knows of its end. */
static int measure_launch(struct probe *p, struct error *err)
{
	double seconds[CALLS];

	for (int i = 0; i < CALLS; i++) {
		double start_time = monotonic_seconds();

		if (device_launch(p->d, "probe: launch", err, empty_kernel, 1, 32) < 0 || device_wait(p->d, err) < 0)
			return -1;
		seconds[i] = monotonic_seconds() - start_time;
	}
	json_set_number(p->found, "launch_s", median(seconds, CALLS));
	return 0;
}

/* Between two events around an empty kernel, all queued before the first of them. */
static int measure_empty_call(struct probe *p, struct error *err)
{
	double seconds[CALLS];

	for (int i = 0; i < CALLS; i++) {
		int result;

		*p->gate = 0;
		result = device_launch(p->d, "probe: gate", err, gate_kernel, 1, 1, (const volatile unsigned *)p->gate);
		if (result == 0)
			result = device_mark(p->d, 0, err);
		if (result == 0)
			result = device_launch(p->d, "probe: empty call", err, empty_kernel, 1, 32);
		if (result == 0)
			result = device_mark(p->d, 1, err);
		*p->gate = 1;
		if (result < 0 || device_between_marks(p->d, &seconds[i], err) < 0)
			return -1;
	}
	json_set_number(p->found, "empty_call_s", median(seconds, CALLS));
	return 0;
}

static int measure_all(struct probe *p, struct error *err)
{
	size_t part = (size_t)p->d->identity.l2_bytes / 4 / 512 * 512;
	struct work read = { READ, DEVICE_TF32, false, STREAM_BYTES }, copy = { COPY, DEVICE_TF32, false, STREAM_BYTES };
	struct work l2 = { READ_L2, DEVICE_TF32, false, part }, fma = { FMA, DEVICE_TF32, false, 0 };

	if (device_fill(p->d, DTYPE_FLOAT32, p->from, STREAM_BYTES / 4, 4096, 0, 1, err) < 0 || measure(p, "read_bytes_per_s", &read, err) < 0 ||
	    measure(p, "copy_bytes_per_s", &copy, err) < 0)
		return -1;
	if (part < 4096)
		miss(p, "l2_read_bytes_per_s", "the size of the cache is not known");
	else if (measure(p, "l2_read_bytes_per_s", &l2, err) < 0)
		return -1;
	return measure(p, "fp32_flops", &fma, err) < 0 || measure_matrices(p, err) < 0 || measure_launch(p, err) < 0 ||
			       measure_empty_call(p, err) < 0
		       ? -1
		       : 0;
}

/* ---- the document ----------------------------------------------------------------------------------------------- */

static void describe(const struct keeper_device *d, cJSON *to)
{
	json_set_string(to, "name", d->name);
	json_set_string(to, "uuid", d->uuid);
	json_set_number(to, "major", d->major);
	json_set_number(to, "minor", d->minor);
	json_set_number(to, "processors", d->processors);
	json_set_number(to, "clock_mhz", d->clock_mhz);
	json_set_number(to, "memory_mhz", d->memory_mhz);
	json_set_number(to, "bus_bits", d->bus_bits);
	json_set_number(to, "bandwidth_bytes_per_s", d->bandwidth);
	json_set_number(to, "l2_bytes", (double)d->l2_bytes);
	json_set_number(to, "memory_bytes", (double)d->memory_bytes);
	json_set_number(to, "driver", d->driver);
}

cJSON *device_probe(struct device *d, struct error *err)
{
	struct probe p = { d, NULL, NULL, NULL, cJSON_CreateObject(), cJSON_CreateObject() };
	bool good;

	describe(&d->identity, p.found);
	p.from = (unsigned char *)device_alloc(d, "the probe", STREAM_BYTES, err);
	p.to = p.from ? (unsigned char *)device_alloc(d, "the probe", STREAM_BYTES, err) : NULL;
	p.gate = p.to ? (volatile unsigned *)device_alloc_pinned(d, 4096, err) : NULL;
	good = p.gate && measure_all(&p, err) == 0;
	json_set(p.found, "missing", p.missing);
	device_free(d, p.from);
	device_free(d, p.to);
	device_free_pinned(d, (void *)p.gate);
	if (good)
		return p.found;
	cJSON_Delete(p.found);
	return NULL;
}
