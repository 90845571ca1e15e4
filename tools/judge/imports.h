/* imports.h - which functions of the system a kernel may call, and which names it may not take. */
#ifndef KM_IMPORTS_H
#define KM_IMPORTS_H

#include <stdbool.h>

/* True for memcpy, memmove, memset, memcmp, the functions of <math.h>, their vector forms, and __stack_chk_fail. */
bool import_is_plain(const char *name);

/* True if the C or the mathematics library of this machine exports the name. */
bool import_is_system(const char *name);

/* The sonames that a plain kernel may need; ends with NULL. */
extern const char *const import_sonames[];

/* True for what the host code of a cuda kernel may call of the CUDA runtime and driver: launches, attributes, occupancy,
 * asynchronous copies, events and streams for fork and join, errors, tensor maps, and what nvcc's own code calls. */
bool import_is_cuda(const char *name);

/* What a cuda kernel does in place of a function that is refused, in words; never NULL, perhaps "". */
const char *import_cuda_advice(const char *name);

#endif
