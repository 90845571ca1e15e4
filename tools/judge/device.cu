/* device.cu - device.h: opening, memory, copies, flush, time. */
#include "device_core.cuh"

extern "C" {
#include "util.h"
}

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- identity --------------------------------------------------------------------------------------------------- */

static int attribute(int ordinal, cudaDeviceAttr which)
{
	int value = 0;

	if (cudaDeviceGetAttribute(&value, which, ordinal) != cudaSuccess) {
		cudaGetLastError();
		return 0;
	}
	return value;
}

static void write_uuid(const cudaUUID_t *uuid, char to[48])
{
	int at = snprintf(to, 48, "GPU-");

	for (int i = 0; i < 16; i++)
		at += snprintf(to + at, 48 - (size_t)at, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", (unsigned char)uuid->bytes[i]);
}

int device_count(struct error *err)
{
	int count = 0;
	cudaError_t code = cudaGetDeviceCount(&count);

	if (code != cudaSuccess)
		return error_set(err, KM_EXIT_WAITING, "no CUDA device: %s", cudaGetErrorString(code));
	return count;
}

int device_identity(int ordinal, struct keeper_device *to, struct error *err)
{
	cudaDeviceProp properties;
	int count = device_count(err), driver = 0;

	memset(to, 0, sizeof(*to));
	if (count < 0)
		return -1;
	if (ordinal < 0 || ordinal >= count)
		return error_set(err, KM_EXIT_ENVIRONMENT, "no CUDA device: number %d of %d", ordinal, count);
	if (device_failed(cudaGetDeviceProperties(&properties, ordinal), "properties of the device", err) < 0 ||
	    device_failed(cudaDriverGetVersion(&driver), "version of the driver", err) < 0)
		return -1;
	snprintf(to->name, sizeof(to->name), "%.63s", properties.name);
	write_uuid(&properties.uuid, to->uuid);
	to->major = properties.major;
	to->minor = properties.minor;
	to->processors = properties.multiProcessorCount;
	to->clock_mhz = attribute(ordinal, cudaDevAttrClockRate) / 1000;
	to->memory_mhz = attribute(ordinal, cudaDevAttrMemoryClockRate) / 1000;
	to->bus_bits = attribute(ordinal, cudaDevAttrGlobalMemoryBusWidth);
	to->l2_bytes = properties.l2CacheSize;
	to->memory_bytes = (int64_t)properties.totalGlobalMem;
	to->bandwidth = to->memory_mhz * 1e6 * 2 * to->bus_bits / 8;
	to->driver = driver / 1000 + driver % 1000 / 10 / 10.0;
	return 0;
}

void device_describe(const struct device *d, struct keeper_device *to)
{
	*to = d->identity;
}

void *device_stream(const struct device *d)
{
	return d->stream;
}

const char *device_error_text(int code)
{
	return cudaGetErrorString((cudaError_t)code);
}

/* ---- the driver ------------------------------------------------------------------------------------------------- */

static int find(const char *name, void *function, struct error *err)
{
	cudaDriverEntryPointQueryResult found;
	void *at = NULL;
	cudaError_t code = cudaGetDriverEntryPointByVersion(name, &at, 12000, cudaEnableDefault, &found);

	if (code != cudaSuccess || found != cudaDriverEntryPointSuccess || !at)
		return error_set(err, KM_EXIT_ENVIRONMENT, "CUDA: the driver has no %s", name);
	memcpy(function, &at, sizeof(at));
	return 0;
}

static int find_driver(struct device_driver *driver, struct error *err)
{
	return find("cuMemCreate", &driver->create, err) < 0 || find("cuMemRelease", &driver->release, err) < 0 ||
			       find("cuMemExportToShareableHandle", &driver->export_handle, err) < 0 ||
			       find("cuMemImportFromShareableHandle", &driver->import_handle, err) < 0 ||
			       find("cuMemAddressReserve", &driver->reserve, err) < 0 ||
			       find("cuMemAddressFree", &driver->free_address, err) < 0 || find("cuMemMap", &driver->map, err) < 0 ||
			       find("cuMemUnmap", &driver->unmap, err) < 0 || find("cuMemSetAccess", &driver->set_access, err) < 0 ||
			       find("cuMemGetAllocationGranularity", &driver->granularity, err) < 0 ||
			       find("cuGetErrorString", &driver->error_string, err) < 0
		       ? -1
		       : 0;
}

static int driver_failed(const struct device *d, CUresult code, const char *action, const char *what, size_t bytes, struct error *err)
{
	const char *text = NULL;

	if (code == CUDA_SUCCESS)
		return 0;
	if (d->driver.error_string(code, &text) != CUDA_SUCCESS || !text)
		text = "unknown error";
	return error_set(err, KM_EXIT_ENVIRONMENT, "CUDA: cannot %s %zu bytes of device memory for %s: %s", action, bytes, what, text);
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static int make_stream(struct device *d, struct error *err)
{
	return device_failed(cudaInitDevice(d->ordinal, cudaDeviceScheduleSpin, cudaInitDeviceFlagsAreValid), "cannot make a context", err) < 0 ||
			       device_failed(cudaSetDevice(d->ordinal), "cannot use the device", err) < 0 ||
			       device_failed(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking), "cannot make a stream", err) < 0 ||
			       device_failed(cudaEventCreate(&d->marks[0]), "cannot make an event", err) < 0 ||
			       device_failed(cudaEventCreate(&d->marks[1]), "cannot make an event", err) < 0
		       ? -1
		       : 0;
}

static int make_lists(struct device *d, struct error *err)
{
	d->results = (struct device_results *)device_alloc(d, "results", sizeof(*d->results), err);
	d->zones = (struct device_zone *)device_alloc(d, "zones", DEVICE_MAX_ZONES * sizeof(*d->zones), err);
	d->rows = (int64_t *)device_alloc(d, "rows", DEVICE_MAX_ROWS * sizeof(*d->rows), err);
	d->listed = (struct device_row *)device_alloc(d, "rows", DEVICE_LISTED_ROWS * sizeof(*d->listed), err);
	if (!d->results || !d->zones || !d->rows || !d->listed)
		return -1;
	d->results_pinned = (struct device_results *)device_alloc_pinned(d, sizeof(*d->results), err);
	d->zones_pinned = (struct device_zone *)device_alloc_pinned(d, DEVICE_MAX_ZONES * sizeof(*d->zones), err);
	d->rows_pinned = (int64_t *)device_alloc_pinned(d, DEVICE_LISTED_ROWS * sizeof(*d->rows), err);
	d->listed_pinned = (struct device_row *)device_alloc_pinned(d, DEVICE_LISTED_ROWS * sizeof(*d->listed), err);
	return d->results_pinned && d->zones_pinned && d->rows_pinned && d->listed_pinned ? 0 : -1;
}

static int make_clean(struct device *d, struct error *err)
{
	d->clean_bytes = 4 * (size_t)(d->identity.l2_bytes > 0 ? d->identity.l2_bytes : 64 << 20);
	d->clean = (unsigned char *)device_alloc(d, "the flush of caches", d->clean_bytes, err);
	return d->clean ? device_zero(d, d->clean, d->clean_bytes, err) : -1;
}

struct device *device_open(int ordinal, struct error *err)
{
	struct device *d = (struct device *)xcalloc(1, sizeof(*d));

	d->ordinal = ordinal;
	if (device_identity(ordinal, &d->identity, err) == 0 && make_stream(d, err) == 0 && find_driver(&d->driver, err) == 0 &&
	    make_lists(d, err) == 0 && make_clean(d, err) == 0 && device_wait(d, err) == 0)
		return d;
	device_close(d);
	return NULL;
}

void device_close(struct device *d)
{
	if (!d)
		return;
	for (int i = 0; i < 2; i++)
		if (d->marks[i])
			cudaEventDestroy(d->marks[i]);
	device_free_pinned(d, d->results_pinned);
	device_free_pinned(d, d->zones_pinned);
	device_free_pinned(d, d->rows_pinned);
	device_free_pinned(d, d->listed_pinned);
	device_free(d, d->results);
	device_free(d, d->zones);
	device_free(d, d->rows);
	device_free(d, d->listed);
	device_free(d, d->wrong);
	device_free(d, d->clean);
	if (d->stream)
		cudaStreamDestroy(d->stream);
	free(d);
}

/* ---- slabs ------------------------------------------------------------------------------------------------------ */

static CUmemAllocationProp properties_of(const struct device *d)
{
	CUmemAllocationProp p;

	memset(&p, 0, sizeof(p));
	p.type = CU_MEM_ALLOCATION_TYPE_PINNED;
	p.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
	p.location.id = d->ordinal;
	p.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
	return p;
}

/* Give the slab's allocation an address. */
static int map_slab(struct device *d, struct device_slab *slab, const char *what, struct error *err)
{
	CUmemAccessDesc access;
	CUdeviceptr at = 0;

	memset(&access, 0, sizeof(access));
	access.location = properties_of(d).location;
	access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
	if (driver_failed(d, d->driver.reserve(&at, slab->bytes, 0, 0, 0), "reserve addresses for", what, slab->bytes, err) < 0)
		return -1;
	if (driver_failed(d, d->driver.map(at, slab->bytes, 0, slab->handle, 0), "map", what, slab->bytes, err) < 0) {
		d->driver.free_address(at, slab->bytes);
		return -1;
	}
	slab->at = (unsigned char *)at;
	return driver_failed(d, d->driver.set_access(at, slab->bytes, &access, 1), "open", what, slab->bytes, err);
}

int device_slab_make(struct device *d, struct device_slab *slab, const char *what, size_t bytes, struct error *err)
{
	CUmemAllocationProp properties = properties_of(d);
	CUmemGenericAllocationHandle handle;
	size_t unit = 0;

	*slab = (struct device_slab){ NULL, 0, -1, 0 };
	if (driver_failed(d, d->driver.granularity(&unit, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED), "get", what, bytes, err) < 0)
		return -1;
	bytes = (bytes + unit - 1) / unit * unit;
	if (driver_failed(d, d->driver.create(&handle, bytes, &properties, 0), "get", what, bytes, err) < 0)
		return -1;
	slab->handle = handle;
	slab->bytes = bytes;
	if (map_slab(d, slab, what, err) == 0 &&
	    driver_failed(d, d->driver.export_handle(&slab->fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0), "share", what, bytes, err) == 0) {
		fcntl(slab->fd, F_SETFD, FD_CLOEXEC);
		return 0;
	}
	device_slab_release(d, slab);
	return -1;
}

int device_slab_import(struct device *d, struct device_slab *slab, int fd, size_t bytes, struct error *err)
{
	CUmemGenericAllocationHandle handle;

	*slab = (struct device_slab){ NULL, bytes, -1, 0 };
	if (driver_failed(d, d->driver.import_handle(&handle, (void *)(uintptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR), "import", "a slab",
			  bytes, err) < 0) {
		slab->bytes = 0;
		return -1;
	}
	slab->handle = handle;
	if (map_slab(d, slab, "a slab", err) == 0)
		return 0;
	device_slab_release(d, slab);
	return -1;
}

void device_slab_release(struct device *d, struct device_slab *slab)
{
	if (slab->at) {
		d->driver.unmap((CUdeviceptr)slab->at, slab->bytes);
		d->driver.free_address((CUdeviceptr)slab->at, slab->bytes);
	}
	if (slab->bytes)
		d->driver.release(slab->handle);
	if (slab->bytes && slab->fd >= 0)
		close(slab->fd);
	*slab = (struct device_slab){ NULL, 0, -1, 0 };
}

/* ---- memory of our own ------------------------------------------------------------------------------------------ */

void *device_alloc(struct device *, const char *what, size_t bytes, struct error *err)
{
	void *at = NULL;
	cudaError_t code = cudaMalloc(&at, bytes ? bytes : 1);

	if (code == cudaSuccess)
		return at;
	cudaGetLastError(); /* or the next kernel would seem to have failed */
	error_set(err, KM_EXIT_ENVIRONMENT, "CUDA: cannot get %zu bytes of device memory for %s: %s", bytes, what, cudaGetErrorString(code));
	return NULL;
}

void *device_alloc_pinned(struct device *, size_t bytes, struct error *err)
{
	void *at = NULL;

	if (device_failed(cudaHostAlloc(&at, bytes, cudaHostAllocDefault), "cannot get pinned memory", err) < 0)
		return NULL;
	memset(at, 0, bytes);
	return at;
}

void device_free(struct device *, void *at)
{
	if (at)
		cudaFree(at);
}

void device_free_pinned(struct device *, void *at)
{
	if (at)
		cudaFreeHost(at);
}

int device_unused(struct device *, size_t *bytes, struct error *err)
{
	size_t all;

	return device_failed(cudaMemGetInfo(bytes, &all), "cannot tell how much memory is free", err);
}

int device_wait(struct device *d, struct error *err)
{
	return device_failed(cudaStreamSynchronize(d->stream), "work on the device failed", err);
}

static int copy(struct device *d, void *to, const void *from, size_t bytes, struct error *err)
{
	return device_failed(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, d->stream), "cannot copy", err);
}

int device_read(struct device *d, void *to, const void *from, size_t bytes, struct error *err)
{
	return copy(d, to, from, bytes, err) < 0 ? -1 : device_wait(d, err);
}

int device_write(struct device *d, void *to, const void *from, size_t bytes, struct error *err)
{
	return copy(d, to, from, bytes, err) < 0 ? -1 : device_wait(d, err);
}

int device_copy(struct device *d, void *to, const void *from, size_t bytes, struct error *err)
{
	return copy(d, to, from, bytes, err);
}

int device_zero(struct device *d, void *to, size_t bytes, struct error *err)
{
	return device_failed(cudaMemsetAsync(to, 0, bytes, d->stream), "cannot clear memory", err);
}

int device_fetch_rows(struct device *d, void *pinned, const void *from, size_t width, size_t pitch, size_t rows, struct error *err)
{
	cudaError_t code = cudaMemcpy2DAsync(pinned, width, from, pitch, width, rows, cudaMemcpyDeviceToHost, d->stream);

	return device_failed(code, "cannot copy rows", err) < 0 ? -1 : device_wait(d, err);
}

/* ---- caches ----------------------------------------------------------------------------------------------------- */

/* What is read is all zeros, so nothing is ever written: a line written would be a dirty one. */
__global__ static void read_kernel(const uint4 *from, size_t count, unsigned *never)
{
	size_t step = (size_t)gridDim.x * blockDim.x, i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
	unsigned all = 0;

	for (; i + 3 * step < count; i += 4 * step) {
		uint4 a = __ldcg(from + i), b = __ldcg(from + i + step), c = __ldcg(from + i + 2 * step), e = __ldcg(from + i + 3 * step);

		all |= a.x | a.y | a.z | a.w | b.x | b.y | b.z | b.w | c.x | c.y | c.z | c.w | e.x | e.y | e.z | e.w;
	}
	for (; i < count; i += step) {
		uint4 a = __ldcg(from + i);

		all |= a.x | a.y | a.z | a.w;
	}
	if (all)
		*never = all;
}

int device_flush(struct device *d, struct error *err)
{
	return device_launch(d, "flush of the caches", err, read_kernel, (unsigned)d->identity.processors * 4, 512, (const uint4 *)d->clean,
			     d->clean_bytes / sizeof(uint4), (unsigned *)d->clean);
}

int device_reset_persisting(struct device *, struct error *err)
{
	cudaError_t code = cudaCtxResetPersistingL2Cache();

	if (code == cudaErrorNotSupported) { /* older devices have no such lines */
		cudaGetLastError();
		code = cudaSuccess;
	}
	return device_failed(code, "cannot reset persisting lines", err);
}

/* ---- time ------------------------------------------------------------------------------------------------------- */

int device_mark(struct device *d, int which, struct error *err)
{
	return device_failed(cudaEventRecord(d->marks[which], d->stream), "cannot record an event", err);
}

bool device_passed_mark(struct device *d, int which)
{
	bool passed = cudaEventQuery(d->marks[which]) == cudaSuccess;

	cudaGetLastError(); /* "not ready" stays there, too, and is no failure of the next kernel; real ones come again */
	return passed;
}

int device_between_marks(struct device *d, double *seconds, struct error *err)
{
	float milliseconds = 0;

	if (device_failed(cudaEventSynchronize(d->marks[1]), "work on the device failed", err) < 0 ||
	    device_failed(cudaEventElapsedTime(&milliseconds, d->marks[0], d->marks[1]), "cannot read events", err) < 0)
		return -1;
	*seconds = milliseconds * 1e-3;
	return 0;
}

/* ---- a kernel with a known result ------------------------------------------------------------------------------- */

enum { CONTROL_THREADS = 256, CONTROL_BLOCKS = 64 };

/* The sum over all threads of the square of their number. */
__global__ static void control_kernel(unsigned long long *sum)
{
	unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x;

	atomicAdd(sum, i * i);
}

static unsigned long long control_sum(void)
{
	unsigned long long n = (unsigned long long)CONTROL_THREADS * CONTROL_BLOCKS;

	return (n - 1) * n * (2 * n - 1) / 6;
}

static int wait_until(struct device *d, double end, struct error *err)
{
	cudaError_t code;

	while ((code = cudaStreamQuery(d->stream)) == cudaErrorNotReady) {
		cudaGetLastError(); /* where that code stays, too */
		if (monotonic_seconds() > end)
			return error_set(err, KM_EXIT_ENVIRONMENT, "CUDA: the device does not answer");
	}
	return device_failed(code, "the device does not work", err);
}

int device_control(struct device *d, double limit, double *seconds, struct error *err)
{
	double start = monotonic_seconds();

	d->results_pinned->control = 0;
	if (device_zero(d, &d->results->control, sizeof(d->results->control), err) < 0 ||
	    device_launch(d, "a known kernel", err, control_kernel, CONTROL_BLOCKS, CONTROL_THREADS, &d->results->control) < 0 ||
	    copy(d, &d->results_pinned->control, &d->results->control, sizeof(d->results->control), err) < 0 ||
	    wait_until(d, start + limit, err) < 0)
		return -1;
	*seconds = monotonic_seconds() - start;
	if (d->results_pinned->control != control_sum())
		return error_set(err, KM_EXIT_ENVIRONMENT, "CUDA: the device computes wrong results");
	return 0;
}
