/* number.h - the element types of tensors: decode to double, encode 16-bit floats. */
#ifndef KM_NUMBER_H
#define KM_NUMBER_H

#include "task.h"

#include <stddef.h>
#include <stdint.h>

/* Round to nearest even; float16 saturates at +-65504, NaN stays NaN. */
uint16_t number_to_bfloat16(float x);
uint16_t number_to_float16(float x);

/* Widen count elements from element `first` of a tensor on. Exact, but for int64 beyond 2^53. */
void number_decode(enum task_dtype dtype, const void *tensor, size_t first, size_t count, double *to);

#endif
