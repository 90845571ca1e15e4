/* device_core.cuh - what the files behind device.h share. */
#ifndef KM_DEVICE_CORE_CUH
#define KM_DEVICE_CORE_CUH

#include "device.h"

#include <cuda.h>
#include <cuda_runtime.h>

/* Results of kernels, on the device. */
struct device_results {
	unsigned long long hashes[TASK_MAX_TENSORS];
	unsigned long long broken;
	unsigned long long control;
	struct {
		unsigned long long wrong_rows, nan_row, max_abs_error, max_rel_error; /* the last two: bits of doubles >= 0 */
	} compared[TASK_MAX_TENSORS];
};

/* Functions of the driver; found at run time, so that the program starts without it. */
struct device_driver {
	CUresult (*create)(CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *, unsigned long long);
	CUresult (*release)(CUmemGenericAllocationHandle);
	CUresult (*export_handle)(void *, CUmemGenericAllocationHandle, CUmemAllocationHandleType, unsigned long long);
	CUresult (*import_handle)(CUmemGenericAllocationHandle *, void *, CUmemAllocationHandleType);
	CUresult (*reserve)(CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long);
	CUresult (*free_address)(CUdeviceptr, size_t);
	CUresult (*map)(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long);
	CUresult (*unmap)(CUdeviceptr, size_t);
	CUresult (*set_access)(CUdeviceptr, size_t, const CUmemAccessDesc *, size_t);
	CUresult (*granularity)(size_t *, const CUmemAllocationProp *, CUmemAllocationGranularity_flags);
	CUresult (*error_string)(CUresult, const char **);
};

struct device {
	int ordinal;
	struct keeper_device identity;
	struct device_driver driver;
	cudaStream_t stream;
	cudaEvent_t marks[2];
	unsigned char *clean;           /* what the flush reads */
	size_t clean_bytes;
	struct device_results *results, *results_pinned;
	struct device_zone *zones, *zones_pinned;
	size_t zone_count;
	uint64_t guard_seed;
	int64_t *rows, *rows_pinned;
	struct device_row *listed, *listed_pinned;
	size_t row_count;
	bool listing;                   /* `listed` holds the places of the rows */
	unsigned char *wrong;           /* DEVICE_MAX_ROWS bytes for each output */
	size_t wrong_outputs;
};

static inline int device_failed(cudaError_t code, const char *what, struct error *err)
{
	if (code == cudaSuccess)
		return 0;
	return error_set(err, KM_EXIT_ENVIRONMENT, "CUDA: %s: %s", what, cudaGetErrorString(code));
}

/* Start a kernel on the device's stream. */
template <typename... P, typename... A>
static inline int device_launch(struct device *d, const char *what, struct error *err, void (*kernel)(P...), dim3 blocks, unsigned threads,
				A... arguments)
{
	kernel<<<blocks, threads, 0, d->stream>>>(arguments...);
	return device_failed(cudaGetLastError(), what, err);
}

/* Blocks for `items` pieces of work at `each` pieces a block, enough to fill the device a few times over at most. */
static inline unsigned device_blocks(const struct device *d, size_t items, size_t each)
{
	size_t blocks = (items + each - 1) / each, most = (size_t)d->identity.processors * 16;

	return (unsigned)(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

#endif
