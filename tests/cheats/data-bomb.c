/* Two gigabytes of constants. */
#include "task.h"

static void right(const struct km_args *a)
{
	for (int64_t i = 0; i < a->rows; i++)
		for (int64_t j = 0; j < a->columns; j++)
			a->y[i * a->columns + j] = a->alpha * a->x[i * a->columns + j] + a->bias[j];
}

const char bomb[(size_t)1 << 31] = { 1 };

int km_run(const struct km_args *a)
{
	right(a);
	a->y[0] += bomb[a->rows];
	return 0;
}
