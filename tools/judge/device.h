/* device.h - the CUDA device as km-keeper-cuda uses it: memory, inputs, poison, guards, hash, flush, comparer, clock.
 *
 * All work goes on one stream in the order of the calls and need not have ended when a function returns, unless it says
 * so. Functions return 0, or -1 with KM_EXIT_ENVIRONMENT and the words of the CUDA runtime. Addresses are the device's;
 * tensors start at multiples of DEVICE_ALIGN bytes. Sizes are in bytes, times in seconds.
 */
#ifndef KM_DEVICE_H
#define KM_DEVICE_H

#ifdef __cplusplus
extern "C" {
#endif

#include "error.h"
#include "keeper_protocol.h"
#include "task.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	DEVICE_ALIGN = 256,
	DEVICE_MAX_ZONES = 1 << 16,
	DEVICE_MAX_ROWS = 1 << 20, /* rows compared at once */
	DEVICE_LISTED_ROWS = 64,   /* of these, rows given by a list */
};

struct device;

/* NULL without such a device: "no CUDA device: ...". */
struct device *device_open(int ordinal, struct error *err);
void device_close(struct device *d);
void device_describe(const struct device *d, struct keeper_device *to);

/* Number of devices, or -1 with KM_EXIT_WAITING; one of them in words. */
int device_count(struct error *err);
int device_identity(int ordinal, struct keeper_device *to, struct error *err);

/* The stream, as a cudaStream_t, for the reference. */
void *device_stream(const struct device *d);
/* What a CUDA error of the reference is called. */
const char *device_error_text(int code);

/* ---- memory ----------------------------------------------------------------------------------------------------- */

/* An allocation that other processes can map: fd is its POSIX descriptor (close-on-exec), -1 if there is none. */
struct device_slab {
	unsigned char *at;
	size_t bytes;
	int fd;
	uint64_t handle;
};

/* At least `bytes`. `what` is for messages: "inputs". */
int device_slab_make(struct device *d, struct device_slab *slab, const char *what, size_t bytes, struct error *err);
/* Map an allocation that device_slab_make exported, by its descriptor. The descriptor stays the caller's. */
int device_slab_import(struct device *d, struct device_slab *slab, int fd, size_t bytes, struct error *err);
void device_slab_release(struct device *d, struct device_slab *slab);

/* Memory of this process alone; freed by device_free. NULL is a failure. */
void *device_alloc(struct device *d, const char *what, size_t bytes, struct error *err);
/* Host memory that the copy engine and kernels reach; freed by device_free_pinned. */
void *device_alloc_pinned(struct device *d, size_t bytes, struct error *err);
void device_free(struct device *d, void *at);
void device_free_pinned(struct device *d, void *at);

/* Copies to and from host memory, done on return. */
int device_read(struct device *d, void *to, const void *from, size_t bytes, struct error *err);
int device_write(struct device *d, void *to, const void *from, size_t bytes, struct error *err);
/* Within the device; places that overlap are not allowed. */
int device_copy(struct device *d, void *to, const void *from, size_t bytes, struct error *err);
int device_zero(struct device *d, void *to, size_t bytes, struct error *err);
/* Bytes that nobody has, this process or another. Asks for no memory. */
int device_unused(struct device *d, size_t *bytes, struct error *err);
/* Wait for all work. */
int device_wait(struct device *d, struct error *err);

/* ---- inputs ----------------------------------------------------------------------------------------------------- */

/* A tensor as reference_cuda.h promises it to ref_inputs: values of the set (random.h says what they are) for float32,
 * float16 and bfloat16, bool 0 or 1, all else zero. Element i depends on (seed, i) alone. */
int device_fill(struct device *d, enum task_dtype dtype, void *to, size_t elements, size_t columns, int set, uint64_t seed,
		struct error *err);

/* ---- what nobody may change ------------------------------------------------------------------------------------- */

/* Bytes [low, high) between tensors. */
struct device_zone {
	uint64_t low, high;
};

/* Fill at most DEVICE_MAX_ZONES zones with random bits. The list is copied; the one of the call before must be done. */
int device_guard(struct device *d, const struct device_zone *zones, size_t count, uint64_t seed, struct error *err);

struct device_range {
	const void *at;
	size_t bytes;
};

/* Hashes of up to TASK_MAX_TENSORS ranges under a secret key, and the first zone of the last device_guard that is not as
 * it was filled (-1: none is). Waits. */
int device_inspect(struct device *d, const struct device_range *ranges, size_t count, const uint64_t key[2], uint64_t *hashes,
		   int64_t *broken, struct error *err);

/* ---- outputs ---------------------------------------------------------------------------------------------------- */

enum device_poison_kind { DEVICE_POISON_NAN, DEVICE_POISON_HUGE, DEVICE_POISON_EARLIER, DEVICE_POISON_MIXED };

/* Fill `copies` tensors, `stride` bytes apart, so that an element that is left unwritten is wrong: NaNs of random
 * payloads, +-1e30 (the largest number of a smaller type), or `earlier` (NULL: as HUGE), which was right for other
 * inputs; MIXED draws one of these for each copy. */
int device_poison(struct device *d, enum task_dtype dtype, void *to, size_t bytes, size_t stride, size_t copies,
		  enum device_poison_kind kind, const void *earlier, uint64_t seed, struct error *err);

/* Throw everything out of the second-level cache, and leave it full of clean lines: reads 4 times its size. */
int device_flush(struct device *d, struct error *err);
/* Lines that somebody made persist are as any others from now on. */
int device_reset_persisting(struct device *d, struct error *err);

/* Copy `rows` pieces of `width` bytes, `pitch` bytes apart, to pinned memory, by the copy engine. Waits. */
int device_fetch_rows(struct device *d, void *pinned, const void *from, size_t width, size_t pitch, size_t rows, struct error *err);

/* ---- comparison ------------------------------------------------------------------------------------------------- */

/* A row to look at: of copy `copy` of the output, or, if slot >= 0, the slot-th row of the window's pinned copy. */
struct device_row {
	int64_t row;
	int32_t copy, slot;
};

/* Rows for device_compare: a list of at most DEVICE_LISTED_ROWS, or count rows from `first` on of copy 0 (list NULL).
 * The numbers of the rows, which the reference wants, are then at device_rows(). */
int device_list_rows(struct device *d, const struct device_row *list, int64_t first, size_t count, struct error *err);
const int64_t *device_rows(const struct device *d);

struct device_compare {
	enum task_dtype dtype;
	const void *got;         /* copy 0 */
	size_t stride;           /* bytes from copy to copy */
	const void *window;      /* pinned; may be NULL */
	size_t row_bytes;        /* of the window's rows */
	const double *expected;  /* as many rows as were listed */
	size_t length;           /* elements of a row */
	struct task_tolerance tolerance;
};

/* What was found in one output (compare.h says by which rule); nan_row: the first row whose reference has a NaN, or -1. */
struct device_found {
	int64_t wrong_rows, nan_row;
	double max_abs_error, max_rel_error;
};

/* Compare the listed rows of outputs 0 .. count - 1, count at most TASK_MAX_TENSORS. Waits. */
int device_compare(struct device *d, const struct device_compare *outputs, size_t count, struct device_found *found, struct error *err);
/* Of the last comparison: one byte for each listed row, 1 if it was wrong. Waits. */
int device_wrong_rows(struct device *d, size_t output, size_t rows, unsigned char *wrong, struct error *err);

/* ---- time ------------------------------------------------------------------------------------------------------- */

/* Two marks in the stream. */
int device_mark(struct device *d, int which, struct error *err);
/* Wait for the second, and tell the time between them. */
int device_between_marks(struct device *d, double *seconds, struct error *err);
/* Is everything before this mark done? Does not wait. */
bool device_passed_mark(struct device *d, int which);

/* Run a kernel with a known result. -1 if it has not ended after `limit` or the result is another. */
int device_control(struct device *d, double limit, double *seconds, struct error *err);

/* ---- the device's own ceilings ---------------------------------------------------------------------------------- */

/* Measure them, in about 2 s: the object that --probe prints. The caller frees. */
cJSON *device_probe(struct device *d, struct error *err);

#ifdef __cplusplus
}
#endif

#endif
