/* A workspace of an exabyte. */
#include "task.h"

static void right(const struct km_args *a)
{
	for (int64_t i = 0; i < a->rows; i++)
		for (int64_t j = 0; j < a->columns; j++)
			a->y[i * a->columns + j] = a->alpha * a->x[i * a->columns + j] + a->bias[j];
}

size_t km_workspace(const struct km_args *a)
{
	(void)a;
	return (size_t)1 << 60;
}

int km_run(const struct km_args *a)
{
	right(a);
	return 0;
}
