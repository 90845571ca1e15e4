/* hash.h - sha256, as lower-case hex. */
#ifndef KM_HASH_H
#define KM_HASH_H

#include <stddef.h>

enum { HASH_HEX = 64 };

/* hex gets HASH_HEX digits and a NUL. */
void hash_hex(const void *data, size_t len, char hex[HASH_HEX + 1]);

#endif
