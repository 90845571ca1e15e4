/* imports.h - which functions of the system a cpu kernel may call, and which names it may not take. */
#ifndef KM_IMPORTS_H
#define KM_IMPORTS_H

#include <stdbool.h>

/* True for memcpy, memmove, memset, memcmp, the functions of <math.h>, their vector forms, and __stack_chk_fail. */
bool import_is_plain(const char *name);

/* True if the C or the mathematics library of this machine exports the name. */
bool import_is_system(const char *name);

/* The sonames that a plain kernel may need; ends with NULL. */
extern const char *const import_sonames[];

#endif
