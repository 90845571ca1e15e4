/* Slabs, places, guards, poison. */
#include "memory.h"
#include "number.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

static const size_t sizes[] = { 1000, 0, 70000, 4 };

enum { COUNT = sizeof(sizes) / sizeof(*sizes) };

static void make(struct slab *slab, bool sealed)
{
	struct error err;

	if (slab_make(slab, "test", memory_room(sizes, COUNT), sealed, true, &err) < 0)
		fail_msg("%s", err.text);
}

/* In 1000 draws: aligned, inside, guards disjoint, and the first tensor in many places. */
static void places_never_overlap(void **state)
{
	size_t room = memory_room(sizes, COUNT), lowest = SIZE_MAX, highest = 0;
	struct place p[COUNT];

	(void)state;
	for (uint64_t seed = 0; seed < 1000; seed++) {
		memory_place(room, sizes, COUNT, seed, p);
		for (int i = 0; i < COUNT; i++) {
			assert_int_equal(p[i].offset % MEMORY_ALIGN, 0);
			assert_int_equal(p[i].bytes, sizes[i]);
			assert_true(p[i].offset >= MEMORY_GUARD && p[i].offset + p[i].bytes + MEMORY_GUARD <= room);
			for (int k = 0; k < i; k++)
				assert_true(p[i].offset >= p[k].offset + p[k].bytes + 2 * MEMORY_GUARD ||
					    p[k].offset >= p[i].offset + p[i].bytes + 2 * MEMORY_GUARD);
		}
		lowest = p[0].offset < lowest ? p[0].offset : lowest;
		highest = p[0].offset > highest ? p[0].offset : highest;
	}
	assert_true(highest - lowest > 200 << 10);
}

static void sealed_slab_is_read_only_to_others(void **state)
{
	struct slab slab;
	void *reader;

	(void)state;
	make(&slab, true);
	slab.at[5] = 42;
	assert_ptr_equal(mmap(NULL, slab.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, slab.fd, 0), MAP_FAILED);
	reader = mmap(NULL, slab.bytes, PROT_READ, MAP_SHARED, slab.fd, 0);
	assert_ptr_not_equal(reader, MAP_FAILED);
	assert_int_equal(((unsigned char *)reader)[5], 42);
	assert_int_equal(mprotect(reader, slab.bytes, PROT_READ | PROT_WRITE), -1);
	slab.at[5] = 43;
	assert_int_equal(((unsigned char *)reader)[5], 43);
	munmap(reader, slab.bytes);
	slab_release(&slab);
}

/* The byte before, the byte behind, and the outermost bytes of every zone. */
static void guards_see_every_write(void **state)
{
	struct slab slab;
	struct place p[COUNT];

	(void)state;
	make(&slab, false);
	memory_place(slab.bytes, sizes, COUNT, 9, p);
	memory_guard(&slab, p, COUNT, 77);
	assert_int_equal(memory_guard_broken(&slab, p, COUNT, 77), -1);
	for (int i = 0; i < COUNT; i++) {
		size_t end = p[i].offset + p[i].bytes;
		size_t at[] = { p[i].offset - 1, p[i].offset - MEMORY_GUARD, end, end + MEMORY_GUARD - 1 };

		memset(slab.at + p[i].offset, 0xff, p[i].bytes);
		assert_int_equal(memory_guard_broken(&slab, p, COUNT, 77), -1);
		for (int k = 0; k < 4; k++) {
			slab.at[at[k]] ^= 1;
			assert_int_equal(memory_guard_broken(&slab, p, COUNT, 77), i);
			slab.at[at[k]] ^= 1;
		}
	}
	assert_int_equal(memory_guard_broken(&slab, p, COUNT, 78), 0);
	slab_release(&slab);
}

static void poison_of(enum task_dtype dtype, enum memory_poison kind, const void *earlier, double *values, size_t count, uint64_t seed)
{
	size_t bytes = (count * dtype_bits(dtype) + 7) / 8;
	void *tensor = malloc(bytes);

	memory_poison(tensor, bytes, dtype, kind, earlier, seed);
	number_decode(dtype, tensor, 0, count, values);
	free(tensor);
}

static void poison_is_never_right(void **state)
{
	static const enum task_dtype floats[] = { DTYPE_FLOAT32, DTYPE_BFLOAT16, DTYPE_FLOAT16, DTYPE_FLOAT8_E4M3FN, DTYPE_FLOAT8_E5M2 };
	static const double huge[] = { 1e30, 1e30, 65504, 448, 57344 };
	static double x[50000];

	(void)state;
	for (int i = 0; i < 5; i++) {
		int negative = 0;

		poison_of(floats[i], POISON_NAN, NULL, x, 50000, 1);
		for (int k = 0; k < 50000; k++)
			assert_true(isnan(x[k]));
		poison_of(floats[i], POISON_HUGE, NULL, x, 50000, 1);
		for (int k = 0; k < 50000; k++) {
			assert_true(fabs(fabs(x[k]) / huge[i] - 1) < 0.01);
			negative += x[k] < 0;
		}
		assert_in_range(negative, 20000, 30000);
	}
}

static void earlier_answers_are_kept(void **state)
{
	float earlier[3] = { 1, 2, 3 };
	double x[3];

	(void)state;
	poison_of(DTYPE_FLOAT32, POISON_EARLIER, earlier, x, 3, 1);
	assert_true(x[0] == 1 && x[1] == 2 && x[2] == 3);
	poison_of(DTYPE_FLOAT32, POISON_EARLIER, NULL, x, 3, 1);
	assert_true(fabs(x[0]) > 9e29);
}

/* Flushing changes nothing that can be read, at any alignment. */
static void flush_keeps_contents(void **state)
{
	unsigned char x[1000], y[1000];

	(void)state;
	for (int i = 0; i < 1000; i++)
		x[i] = y[i] = (unsigned char)(i * 7);
	memory_flush(x + 3, 990);
	memory_flush(x, 0);
	assert_memory_equal(x, y, 1000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(places_never_overlap), cmocka_unit_test(sealed_slab_is_read_only_to_others),
		cmocka_unit_test(guards_see_every_write), cmocka_unit_test(poison_is_never_right),
		cmocka_unit_test(earlier_answers_are_kept), cmocka_unit_test(flush_keeps_contents),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
