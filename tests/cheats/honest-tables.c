/* Honest: constant tables, a static function by pointer, memcpy, and expf from the mathematical library. */
#include "task.h"
#include <math.h>
#include <string.h>

static const float one[4] = { 1, 1, 1, 1 };

static float pick(int64_t i)
{
	return one[i & 3];
}

static float (*const table[2])(int64_t) = { pick, pick };

int km_run(const struct km_args *a)
{
	float bias[256];

	memcpy(bias, a->bias, sizeof(bias));
	for (int64_t i = 0; i < a->rows * a->columns; i++)
		a->y[i] = a->alpha * a->x[i] * table[i & 1](i) + bias[i & 255] * expf((float)(i >> 62));
	return 0;
}
