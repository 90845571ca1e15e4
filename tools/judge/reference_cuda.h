/* reference_cuda.h - what a task's reference.cu defines, and what it may use.
 *
 * reference.cu is trusted code by the task's author. nvcc compiles it with the task's generated task.h into a shared
 * library that the keeper process opens; no candidate ever sees it. It starts with
 *
 *     #include "task.h"
 *     #include "reference_cuda.h"
 *
 * and defines the four functions below. Pointers in args are device memory, work goes on the given stream (a
 * cudaStream_t) and need not be waited for; output and workspace pointers are NULL. All must be deterministic to the
 * bit: a fixed order of summation, no floating-point atomics, no state between calls but scratch memory. Functions
 * return 0, or another value for failure (a cudaError_t). Tensors are dense and row-major, in the C types of task.h.
 */
#ifndef KM_REFERENCE_CUDA_H
#define KM_REFERENCE_CUDA_H

#include <stdint.h>

struct km_args;

/* The input sets, in the order of task.json's names. Before ref_inputs is called every float32, float16 and bfloat16
 * input holds values of this set, every bool is 0 or 1, and every other tensor is zero. */
enum ref_set { REF_NORMAL, REF_SHIFTED, REF_ROW_SCALED, REF_STUDENT_T3, REF_STRUCTURED, REF_SETS };

#define REF_EXPORT extern "C" __attribute__((visibility("default")))

/* Complete or change the inputs in place (cast const away): index tensors, routing, quantised blocks, scales. The same
 * args, set and seed must give the same bytes. May do nothing. Scalars hold the workload's values. */
REF_EXPORT int ref_inputs(const struct km_args *a, int set, uint64_t seed, void *stream);

/* The number of rows, from axes alone: units of work. Every output has elements / rows elements for each of them, row r
 * being the elements [r * n, (r + 1) * n). At least 1 and a divisor of every output's number of elements. */
REF_EXPORT int64_t ref_rows(const struct km_args *a);

/* Compute `count` rows of every output, in higher precision. `rows` is in device memory, ascending; expected[i] (an array
 * in host memory of device pointers) has room for count rows of output i (definition order). Called with some tens of rows after
 * most calls, and with all rows, in stretches of as many as the keeper has room for, after some. -INFINITY is a value; a NaN
 * is a bug of the reference and ends the judgement. */
REF_EXPORT int ref_expected(const struct km_args *a, const int64_t *rows, int64_t count, double *const *expected, void *stream);

/* Arithmetic operations and the fewest bytes that must move between device memory and processor, from axes alone. */
REF_EXPORT void ref_counts(const struct km_args *a, double *flops, double *bytes);

/* ---- random numbers for ref_inputs: counter based, integer only ------------------------------------------------- */

/* The index-th number of the stream `seed`. */
__host__ __device__ static inline uint64_t ref_random(uint64_t seed, uint64_t index)
{
	uint64_t x = (seed ^ 0x6a09e667f3bcc909u) * 0x9e3779b97f4a7c15u;

	x = (x ^ (x >> 32)) + index * 0xd1342543de82ef95u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

/* Uniform in [0, bound), 1 <= bound < 2^32. */
__host__ __device__ static inline uint64_t ref_below(uint64_t seed, uint64_t index, uint64_t bound)
{
	return ((ref_random(seed, index) >> 32) * bound) >> 32;
}

#endif
