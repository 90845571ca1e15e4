/* hardware.h - the sheet about the processor or device that prompts show: what a kernel writer must know about it.
 *
 * For the cpu reads /proc/cpuinfo and /sys/devices/system/cpu: the sheet names the processor model, its vector extensions,
 * caches and page size; no host name, clock reading or load. For cuda reads what a probe measured, or only the device's name
 * in /proc/driver/nvidia, and a table of datasheets.
 */
#ifndef KM_HARDWARE_H
#define KM_HARDWARE_H

#include "buf.h"
#include "error.h"

#include <cjson/cJSON.h>

/* Fill PROMPTS/parts/hardware-cpu.md into out. What a machine does not tell is called unknown. */
int hardware_cpu(const char *prompts, struct buf *out, struct error *err);

/* Fill PROMPTS/parts/hardware-cuda.md into out. Of the device called `device` ("H200", or as the driver calls it), whether it
 * is here or not; device NULL: of that which `probe` is about (what km-bench --probe writes; what it lacks is taken from the
 * datasheet, measured figures are left out); probe NULL too: of the first device of this machine, and if it has none, of an H200, and says so. KM_EXIT_USAGE
 * naming the known ones for a device of no known name. */
int hardware_cuda(const char *prompts, const char *device, const cJSON *probe, struct buf *out, struct error *err);

#endif
