/* memory.h - where tensors live: slabs larger than their tensors, other places every call, guard zones, poison.
 *
 * A slab is a memfd that the judge and the runners map. A place is a tensor's part of it; before and behind each place
 * are MEMORY_GUARD bytes of random bits that nobody may change. Places are aligned to MEMORY_ALIGN bytes and drawn anew
 * for every call, so that an address says nothing about the contents.
 */
#ifndef KM_MEMORY_H
#define KM_MEMORY_H

#include "error.h"
#include "task.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	MEMORY_ALIGN = 64,
	MEMORY_GUARD = 16384,
};

struct slab {
	int fd; /* close-on-exec; -1: none */
	unsigned char *at;
	size_t bytes;
};

/* Make a slab of zeros. With `sealed` only this mapping can ever write to it: later ones, in any process, can be no
 * more than read-only (F_SEAL_FUTURE_WRITE), so that whoever gets the descriptor cannot change what is in it. Pages are
 * allocated at once if `populate`. KM_EXIT_ENVIRONMENT on failure. */
int slab_make(struct slab *slab, const char *name, size_t bytes, bool sealed, bool populate, struct error *err);
void slab_release(struct slab *slab);

struct place {
	size_t offset, bytes;
};

/* Bytes of a slab that always has room for tensors of these sizes, with guards and a quarter to move in. */
size_t memory_room(const size_t *bytes, size_t count);

/* Draw places for tensors of these sizes in a slab of `room` bytes: random order, random gaps. */
void memory_place(size_t room, const size_t *bytes, size_t count, uint64_t seed, struct place *places);

/* Fill the guard zones of all places, and later find the first place whose zones are not as filled: its index, or -1. */
void memory_guard(const struct slab *slab, const struct place *places, size_t count, uint64_t seed);
int memory_guard_broken(const struct slab *slab, const struct place *places, size_t count, uint64_t seed);

enum memory_poison { POISON_NAN, POISON_HUGE, POISON_EARLIER, POISON_KINDS };

/* Fill a tensor so that an element that is left unwritten is wrong: NaNs of random payloads, +-1e30 (the largest number
 * of a smaller type), or `earlier` (bytes of it; NULL: as POISON_HUGE), which was right for other inputs. */
void memory_poison(void *to, size_t bytes, enum task_dtype dtype, enum memory_poison kind, const void *earlier,
		   uint64_t seed);

/* Throw these lines out of all caches of all cores, by physical address, through our own mapping. Returns when done. */
void memory_flush(const void *at, size_t bytes);

#endif
