/* The bias is forgotten. */
#include "task.h"

int km_run(const struct km_args *a)
{
	for (int64_t i = 0; i < a->rows * a->columns; i++)
		a->y[i] = a->alpha * a->x[i];
	return 0;
}
