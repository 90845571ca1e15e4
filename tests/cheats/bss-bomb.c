/* A terabyte of static memory. */
#include "task.h"

static void right(const struct km_args *a)
{
	for (int64_t i = 0; i < a->rows; i++)
		for (int64_t j = 0; j < a->columns; j++)
			a->y[i * a->columns + j] = a->alpha * a->x[i * a->columns + j] + a->bias[j];
}

static char bomb[(size_t)1 << 40];

int km_run(const struct km_args *a)
{
	right(a);
	bomb[a->rows] = 1;
	a->y[0] += bomb[a->columns];
	return 0;
}
