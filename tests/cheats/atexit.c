/* Work is registered for the end of the process. */
#include "task.h"
#include <stdlib.h>

static void right(const struct km_args *a)
{
	for (int64_t i = 0; i < a->rows; i++)
		for (int64_t j = 0; j < a->columns; j++)
			a->y[i * a->columns + j] = a->alpha * a->x[i * a->columns + j] + a->bias[j];
}

static void late(void)
{
}

int km_run(const struct km_args *a)
{
	right(a);
	atexit(late);
	return 0;
}
