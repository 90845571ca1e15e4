#include "number.h"

#include <math.h>
#include <string.h>

uint16_t number_to_bfloat16(float x)
{
	uint32_t u;

	memcpy(&u, &x, sizeof(u));
	if ((u & 0x7fffffff) > 0x7f800000)
		return (uint16_t)(u >> 16 | 0x40);
	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

uint16_t number_to_float16(float x)
{
	uint32_t u, sign, magnitude, rest, half;
	int shift;

	memcpy(&u, &x, sizeof(u));
	sign = u >> 16 & 0x8000;
	u &= 0x7fffffff;
	if (u > 0x7f800000)
		return (uint16_t)(sign | 0x7e00);
	if (u >= 0x477ff000)
		return (uint16_t)(sign | 0x7bff);
	if (u < 0x33000000) /* at most half of the smallest subnormal */
		return (uint16_t)sign;
	/* Below 2^-14 the result is subnormal: the significand is shifted further. */
	shift = u < 0x38800000 ? 13 + (int)(113 - (u >> 23)) : 13;
	magnitude = u < 0x38800000 ? (u & 0x7fffff) | 0x800000 : u - 0x38000000;
	half = magnitude >> shift;
	rest = magnitude & ((1u << shift) - 1);
	if (rest > 1u << (shift - 1) || (rest == 1u << (shift - 1) && (half & 1)))
		half++;
	return (uint16_t)(sign | half);
}

/* A small float of these field widths; `infinite` says whether the top exponent holds infinities (IEEE) or, as in
 * e4m3fn, numbers and one NaN. */
static double decode_small(unsigned u, int exponent_bits, int fraction_bits, bool infinite)
{
	int bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
	int exponent = (int)(u >> fraction_bits) & top, fraction = (int)u & ((1 << fraction_bits) - 1);
	double sign = u >> (exponent_bits + fraction_bits) & 1 ? -1 : 1;

	if (infinite && exponent == top)
		return fraction ? (double)NAN : sign * INFINITY;
	if (exponent_bits == 4 && exponent == top && fraction == (1 << fraction_bits) - 1)
		return (double)NAN;
	if (exponent == 0)
		return sign * ldexp(fraction, 1 - bias - fraction_bits);
	return sign * ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
}

static double decode_one(enum task_dtype dtype, const void *tensor, size_t i)
{
	const uint8_t *bytes = tensor;
	const uint16_t *words = tensor;

	switch (dtype) {
	case DTYPE_FLOAT32: return ((const float *)tensor)[i];
	case DTYPE_FLOAT16: return decode_small(words[i], 5, 10, true);
	case DTYPE_BFLOAT16: return decode_small(words[i], 8, 7, true);
	case DTYPE_FLOAT8_E4M3FN: return decode_small(bytes[i], 4, 3, false);
	case DTYPE_FLOAT8_E5M2: return decode_small(bytes[i], 5, 2, true);
	case DTYPE_FLOAT4_E2M1: return decode_small(bytes[i / 2] >> (i % 2 * 4) & 15, 2, 1, false);
	case DTYPE_INT64: return (double)((const int64_t *)tensor)[i];
	case DTYPE_INT32: return ((const int32_t *)tensor)[i];
	case DTYPE_INT16: return ((const int16_t *)tensor)[i];
	case DTYPE_INT8: return ((const int8_t *)tensor)[i];
	case DTYPE_BOOL: return bytes[i];
	}
	return (double)NAN;
}

void number_decode(enum task_dtype dtype, const void *tensor, size_t first, size_t count, double *to)
{
	for (size_t i = 0; i < count; i++)
		to[i] = decode_one(dtype, tensor, first + i);
}
