/* The scalar of the workload files instead of the argument. */
#include "task.h"

int km_run(const struct km_args *a)
{
	for (int64_t i = 0; i < a->rows * a->columns; i++)
		a->y[i] = 1.5f * a->x[i] + a->bias[i % a->columns];
	return 0;
}
