/* hardware.h - the sheet about the processor that prompts show: what a kernel writer must know about it.
 *
 * Reads /proc/cpuinfo and /sys/devices/system/cpu. The sheet names the processor model, its vector extensions, caches
 * and page size; no host name, clock reading or load.
 */
#ifndef KM_HARDWARE_H
#define KM_HARDWARE_H

#include "buf.h"
#include "error.h"

/* Fill PROMPTS/parts/hardware-cpu.md into out. What a machine does not tell is called unknown. */
int hardware_cpu(const char *prompts, struct buf *out, struct error *err);

#endif
