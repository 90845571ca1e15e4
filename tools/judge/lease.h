/* lease.h - one at a time on a device.
 *
 * On the cpu target compiling, references and timing share the device "cpu"; each GPU is one device. The lock is
 * flock(2) on "<cache folder>/lock-<device>", so it goes with the process that holds it, however that ends.
 */
#ifndef KM_LEASE_H
#define KM_LEASE_H

#include "error.h"

/* Wait for the device; device is letters, digits and '-'. Returns a descriptor (close-on-exec), or -1 with
 * KM_EXIT_ENVIRONMENT. The lock is not counted: who holds it must not take it again. */
int lease_take(const char *device, struct error *err);

/* Take it only if it is free now: *lease is the descriptor, or -1 if another has it. -1 only on failure. */
int lease_try(const char *device, int *lease, struct error *err);

/* Give it back; -1 is ignored. */
void lease_drop(int lease);

#endif
