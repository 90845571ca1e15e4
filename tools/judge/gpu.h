/* gpu.h - which CUDA devices there are, and one of them for us alone.
 *
 * bin/km-keeper-cuda, beside the running program or named by $KM_KEEPER_CUDA, lists them; this process has no context.
 * CUDA_VISIBLE_DEVICES holds as for any program.
 */
#ifndef KM_GPU_H
#define KM_GPU_H

#include "error.h"
#include "task.h"

#include <cjson/cJSON.h>
#include <signal.h>
#include <stddef.h>

struct gpu {
	char device[48]; /* what km-keeper-cuda is told: its ordinal, or its uuid */
	char name[64], uuid[48];
	int major, minor; /* its architecture: 9.0 */
};

enum { GPU_MAX = 64 };

/* The number of devices, at least 1; -1 with KM_EXIT_WAITING "waiting for a CUDA device: why". */
int gpu_list(struct gpu gpus[GPU_MAX], struct error *err);

/* Keep those that run machine code for `arch` ("sm_90a"); returns their number. If it is 0 nothing has changed. */
int gpu_keep_fitting(struct gpu *gpus, int count, const char *arch);

/* Take the lease "gpu-<uuid>" of the first device that is free, or wait until one is; *chosen says which. Returns as
 * lease_take does; -1 also if *interrupted (which may be NULL). */
int gpu_lease(const struct gpu *gpus, int count, const struct gpu **chosen, const volatile sig_atomic_t *interrupted, struct error *err);

/* What the first device can do, measured once and kept in the cache folder as probe-<uuid>.json. NULL on failure. */
cJSON *gpu_probe(const volatile sig_atomic_t *interrupted, struct error *err);

/* Have the keeper write new inputs of a workload and what the reference expects into a folder that exists. */
int gpu_export(const struct task *task, const char *reference, int workload, int set, const char *folder, struct error *err);

#endif
