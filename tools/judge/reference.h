/* reference.h - what a task's reference.c defines, and what it may use.
 *
 * reference.c is trusted code by the task's author. It is compiled as C with the task's generated task.h into a shared
 * library that km-bench opens in its own process; no candidate ever sees it. It starts with
 *
 *     #include "task.h"
 *     #include "reference.h"
 *
 * and defines the four functions below. All must be deterministic to the bit: fixed order of summation, no threads, no
 * state between calls. The args point at the judge's private copy of the inputs; output and workspace pointers are
 * NULL. Tensors are dense and row-major, in the C types of task.h.
 */
#ifndef KM_REFERENCE_H
#define KM_REFERENCE_H

#include <stdint.h>

struct km_args;

/* The input sets, in the order of task.json's names "normal", "shifted", "row_scaled", "student_t3", "structured".
 * Before ref_inputs is called every float32, float16 and bfloat16 input holds values of this set (random.h), every bool
 * is 0 or 1, and every other tensor is zero. A "row" of random.h is the tensor's last dimension. */
enum ref_set { REF_NORMAL, REF_SHIFTED, REF_ROW_SCALED, REF_STUDENT_T3, REF_STRUCTURED, REF_SETS };

#define REF_EXPORT __attribute__((visibility("default")))

/* Complete or change the inputs in place (cast const away): index tensors, routing, quantised blocks, scales. The same
 * args, set and seed must give the same bytes. May do nothing. Scalars hold the workload's values. */
REF_EXPORT void ref_inputs(const struct km_args *a, int set, uint64_t seed);

/* The number of rows: units of work. Every output has elements / rows elements for each of them, row r being the
 * elements [r * n, (r + 1) * n). At least 1 and a divisor of every output's number of elements. */
REF_EXPORT int64_t ref_rows(const struct km_args *a);

/* Compute row `row` (0 <= row < ref_rows) of every output, in higher precision; expected[i] has room for the row of
 * output i (definition order). -INFINITY is a value; a NaN is a bug of the reference and ends the judgement. */
REF_EXPORT void ref_row(const struct km_args *a, int64_t row, double *const *expected);

/* Arithmetic operations and the fewest bytes that must move between memory and processor, for the roofline. */
REF_EXPORT void ref_counts(const struct km_args *a, double *flops, double *bytes);

/* ---- random numbers for ref_inputs: counter based, integer only ------------------------------------------------- */

/* The index-th number of the stream `seed`: any two (seed, index) pairs are independent for our purposes. */
static inline uint64_t ref_random(uint64_t seed, uint64_t index)
{
	uint64_t x = (seed ^ 0x6a09e667f3bcc909u) * 0x9e3779b97f4a7c15u;

	x = (x ^ (x >> 32)) + index * 0xd1342543de82ef95u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

/* Uniform in [0, bound), bound >= 1; the bias is below bound / 2^64. */
static inline uint64_t ref_below(uint64_t seed, uint64_t index, uint64_t bound)
{
	return (uint64_t)(((unsigned __int128)ref_random(seed, index) * bound) >> 64);
}

/* A random permutation of 0 .. n-1 (Fisher and Yates). */
static inline void ref_permutation(uint64_t seed, int32_t *p, int64_t n)
{
	for (int64_t i = 0; i < n; i++) {
		int64_t j = (int64_t)ref_below(seed, (uint64_t)i, (uint64_t)i + 1);

		if (j < i)
			p[i] = p[j];
		p[j] = (int32_t)i;
	}
}

#endif
