/* random.h - the judge's input generator: counter based, integer arithmetic only, the same bytes on any machine.
 *
 * Element i of a tensor depends on (seed, i) alone. The five input sets (enum ref_set in reference.h):
 *   normal      standard normal, cut at 5.2
 *   shifted     normal + 2
 *   row_scaled  normal, each row times exp(0.7 g), g normal, one g a row
 *   student_t3  Student's t with 3 degrees of freedom, cut at 264
 *   structured  multiples of 1/8 in [-1, 1), one element in 64 times 8, signs constant along 32 neighbours
 * A row is the last dimension of the tensor.
 */
#ifndef KM_RANDOM_H
#define KM_RANDOM_H

#include "reference.h"
#include "task.h"

#include <stddef.h>
#include <stdint.h>

/* Normals are multiples of 2^-24 before they are scaled. */
enum { RANDOM_FRACTION_BITS = 24 };

/* The standard normal of 32 random bits, in units of 2^-24: the quantile function, piecewise linear in 4096 steps and
 * 4096 finer ones in each tail. */
int32_t random_normal(uint32_t bits);

/* exp(0.7 g) for g in units of 2^-24, |g| < 6. */
double random_row_scale(int32_t g);

/* Fill rows * columns elements. */
void random_fill_float(float *to, int64_t rows, int64_t columns, int set, uint64_t seed);

/* The same values rounded to nearest even: bfloat16 and float16 (which saturates at 65504). */
void random_fill_bfloat16(uint16_t *to, int64_t rows, int64_t columns, int set, uint64_t seed);
void random_fill_float16(uint16_t *to, int64_t rows, int64_t columns, int set, uint64_t seed);

/* 0 or 1, evenly. */
void random_fill_bool(uint8_t *to, int64_t count, uint64_t seed);

/* Raw bits: guard zones. */
void random_fill_bits(void *to, size_t bytes, uint64_t seed);

/* A whole input tensor as reference.h promises it to ref_inputs: floats of the set, bool 0 or 1, all else zero. */
void random_fill_tensor(const struct task_tensor *t, const int64_t *axes, void *to, int set, uint64_t seed);

/* Secrets: 64 bits from the kernel's generator; no later value can be told from earlier ones. */
uint64_t random_secret(void);

#endif
