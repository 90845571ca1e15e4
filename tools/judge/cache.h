/* cache.h - what was built once, by content.
 *
 * Files in $KM_CACHE, else $XDG_CACHE_HOME/kernel-make, else ~/.cache/kernel-make (mode 0700, owned by us: an entry is
 * trusted as much as its folder). An entry is named by the hash of all that it was made from and never changes; the
 * oldest by last use are dropped when the folder holds more than CACHE_MAX bytes. Anyone may delete any of it at any time.
 */
#ifndef KM_CACHE_H
#define KM_CACHE_H

#include "buf.h"
#include "error.h"

#include <stdbool.h>
#include <stddef.h>

enum { CACHE_MAX = 512 << 20 };

/* The folder, absolute, made if need be; the caller frees. NULL with KM_EXIT_ENVIRONMENT if there is no place for it or
 * it belongs to someone else. */
char *cache_folder(struct error *err);

/* Where the entry `name` ("<sha256>.so") is or would be; the caller frees. */
char *cache_path(const char *name, struct error *err);

/* Read an entry and mark it as used. False if it is not there or is larger than the buffer's ceiling. */
bool cache_get(const char *name, struct buf *b);

/* Put an entry there and drop old ones beyond CACHE_MAX. */
int cache_put(const char *name, const void *data, size_t len, struct error *err);

#endif
