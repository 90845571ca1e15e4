#include "memory.h"

#include "random.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

enum { POISON_STRETCH = 1 << 16 }; /* bytes of poison that are drawn; the rest of a tensor repeats them */

/* ---- slabs ------------------------------------------------------------------------------------------------------ */

int slab_make(struct slab *slab, const char *name, size_t bytes, bool sealed, bool populate, struct error *err)
{
	int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | (sealed ? F_SEAL_FUTURE_WRITE : 0);
	void *at = MAP_FAILED;

	slab->bytes = (bytes + 4095) / 4096 * 4096;
	slab->fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (slab->fd >= 0 && ftruncate(slab->fd, (off_t)slab->bytes) == 0)
		at = mmap(NULL, slab->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | (populate ? MAP_POPULATE : 0), slab->fd, 0);
	if (at == MAP_FAILED || fcntl(slab->fd, F_ADD_SEALS, seals) < 0) {
		error_set(err, KM_EXIT_ENVIRONMENT, "cannot make %zu bytes of shared memory: %s", slab->bytes, strerror(errno));
		if (at != MAP_FAILED)
			munmap(at, slab->bytes);
		if (slab->fd >= 0)
			close(slab->fd);
		*slab = (struct slab){ .fd = -1 };
		return -1;
	}
	slab->at = at;
	return 0;
}

void slab_release(struct slab *slab)
{
	if (slab->at)
		munmap(slab->at, slab->bytes);
	if (slab->at && slab->fd >= 0)
		close(slab->fd);
	*slab = (struct slab){ .fd = -1 };
}

/* ---- places ----------------------------------------------------------------------------------------------------- */

static size_t align_up(size_t n)
{
	return (n + MEMORY_ALIGN - 1) / MEMORY_ALIGN * MEMORY_ALIGN;
}

/* What the tensors take when packed: each with its two guards. */
static size_t packed_size(const size_t *bytes, size_t count)
{
	size_t sum = 0;

	for (size_t i = 0; i < count; i++)
		sum += align_up(bytes[i]) + 2 * MEMORY_GUARD;
	return sum;
}

size_t memory_room(const size_t *bytes, size_t count)
{
	size_t packed = packed_size(bytes, count);

	return (packed + packed / 4 + (256 << 10) + 4095) / 4096 * 4096;
}

void memory_place(size_t room, const size_t *bytes, size_t count, uint64_t seed, struct place *places)
{
	int32_t order[2 * TASK_MAX_TENSORS];
	size_t slack = (room - packed_size(bytes, count)) / MEMORY_ALIGN, at = 0;

	ref_permutation(seed, order, (int64_t)count);
	for (size_t i = 0; i < count; i++) {
		struct place *place = &places[order[i]];
		size_t gap = ref_below(~seed, i, slack / (count - i) + 1);

		slack -= gap;
		at += gap * MEMORY_ALIGN + MEMORY_GUARD;
		*place = (struct place){ at, bytes[order[i]] };
		at += align_up(place->bytes) + MEMORY_GUARD;
	}
}

/* ---- guards ----------------------------------------------------------------------------------------------------- */

void memory_guard(const struct slab *slab, const struct place *places, size_t count, uint64_t seed)
{
	for (size_t i = 0; i < count; i++) {
		unsigned char *start = slab->at + places[i].offset;

		random_fill_bits(start - MEMORY_GUARD, MEMORY_GUARD, ref_random(seed, 2 * i));
		random_fill_bits(start + places[i].bytes, MEMORY_GUARD, ref_random(seed, 2 * i + 1));
	}
}

static bool guard_intact(const unsigned char *zone, uint64_t seed)
{
	unsigned char expected[MEMORY_GUARD];

	random_fill_bits(expected, sizeof(expected), seed);
	return memcmp(zone, expected, sizeof(expected)) == 0;
}

int memory_guard_broken(const struct slab *slab, const struct place *places, size_t count, uint64_t seed)
{
	for (size_t i = 0; i < count; i++) {
		const unsigned char *start = slab->at + places[i].offset;

		if (!guard_intact(start - MEMORY_GUARD, ref_random(seed, 2 * i)) ||
		    !guard_intact(start + places[i].bytes, ref_random(seed, 2 * i + 1)))
			return (int)i;
	}
	return -1;
}

/* ---- poison ----------------------------------------------------------------------------------------------------- */

/* The bits of a NaN of this payload, and of a huge number of this sign. Integers have no NaN: any bits will do. */
static uint64_t poison_bits(enum task_dtype dtype, enum memory_poison kind, uint64_t u)
{
	bool nan = kind == POISON_NAN;

	switch (dtype) {
	case DTYPE_FLOAT32:
		return nan ? 0x7fc00000 | (u & 0x803fffff) : 0x7149f2ca | (u & 0x80000000); /* 1e30 */
	case DTYPE_BFLOAT16:
		return nan ? 0x7fc0 | (u & 0x803f) : 0x714a | (u & 0x8000); /* 1e30 */
	case DTYPE_FLOAT16:
		return nan ? 0x7e00 | (u & 0x81ff) : 0x7bff | (u & 0x8000); /* 65504 */
	case DTYPE_FLOAT8_E4M3FN:
		return nan ? 0x7f : 0x7e | (u & 0x80); /* 448 */
	case DTYPE_FLOAT8_E5M2:
		return nan ? 0x7e | (u & 0x81) : 0x7b | (u & 0x80); /* 57344 */
	default:
		return u;
	}
}

static void poison_words(void *to, size_t bytes, size_t width, enum task_dtype dtype, enum memory_poison kind, uint64_t seed)
{
	for (size_t i = 0; i < bytes; i += width) {
		uint64_t bits = poison_bits(dtype, kind, ref_random(seed, i) >> 16);

		memcpy((char *)to + i, &bits, width); /* little-endian, as all our targets are */
	}
}

void memory_poison(void *to, size_t bytes, enum task_dtype dtype, enum memory_poison kind, const void *earlier, uint64_t seed)
{
	size_t width = (dtype_bits(dtype) + 7) / 8, stretch = bytes < POISON_STRETCH ? bytes : POISON_STRETCH;

	if (kind == POISON_EARLIER && earlier) {
		memcpy(to, earlier, bytes);
		return;
	}
	if (dtype == DTYPE_FLOAT4_E2M1 || dtype >= DTYPE_INT64)
		random_fill_bits(to, stretch, seed);
	else
		poison_words(to, stretch, width, dtype, kind, seed);
	for (size_t i = stretch; i < bytes; i += stretch)
		memcpy((char *)to + i, to, bytes - i < stretch ? bytes - i : stretch);
}

/* ---- caches ----------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)

static bool has_clflushopt(void)
{
	unsigned a, b, c, d;

	return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 23 & 1);
}

__attribute__((target("clflushopt"))) static void flush_fast(const char *p, const char *end)
{
	for (; p < end; p += 64)
		_mm_clflushopt((void *)(uintptr_t)p);
}

static void flush_slow(const char *p, const char *end)
{
	for (; p < end; p += 64)
		_mm_clflush(p);
}

void memory_flush(const void *at, size_t bytes)
{
	const char *p = (const char *)((uintptr_t)at & ~(uintptr_t)63), *end = (const char *)at + bytes;

	_mm_mfence();
	if (has_clflushopt())
		flush_fast(p, end);
	else
		flush_slow(p, end);
	_mm_mfence();
}

#elif defined(__aarch64__)

void memory_flush(const void *at, size_t bytes)
{
	const char *p = (const char *)((uintptr_t)at & ~(uintptr_t)63), *end = (const char *)at + bytes;

	for (; p < end; p += 64)
		__asm__ volatile("dc civac, %0" : : "r"(p) : "memory");
	__asm__ volatile("dsb ish" : : : "memory");
}

#else
#error "memory_flush: no way known to flush caches on this architecture"
#endif
