/* nvml.h - what NVIDIA's management library says of a device, without a context on it.
 *
 * The library is looked for when it is needed; where it is missing nothing is known, which is no error.
 */
#ifndef KM_NVML_H
#define KM_NVML_H

#include <stdbool.h>
#include <stddef.h>

struct nvml; /* one device */

struct nvml_clocks {
	unsigned processor_mhz, memory_mhz;
	bool slowed; /* held below what was asked for, by power or heat */
};

struct nvml_identity {
	char name[64], uuid[48]; /* as CUDA says them */
	int major, minor;        /* its architecture */
};

/* All devices of the machine, in an order of its own, within some 30 ms; 0 if it is not certain that CUDA would tell of the same: the
 * library or one of its functions is missing, a device does not answer or is divided (MIG), there are more than `most`. */
size_t nvml_list(struct nvml_identity *to, size_t most);

/* The device with this uuid ("GPU-..."); NULL if the library or the device is not there. */
struct nvml *nvml_open(const char *uuid);
void nvml_close(struct nvml *n);

/* N of /dev/nvidiaN, also where the library is missing (n NULL); -1 if unknown. */
int nvml_minor(const struct nvml *n, const char *uuid);

/* The clocks now, which takes some 40 us; false if they are not known. n may be NULL. */
bool nvml_clocks(const struct nvml *n, struct nvml_clocks *clocks);

#endif
