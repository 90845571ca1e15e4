/* Only the first half of the rows is written. */
#include "task.h"

int km_run(const struct km_args *a)
{
	for (int64_t i = 0; i < a->rows / 2 * a->columns; i++)
		a->y[i] = a->alpha * a->x[i] + a->bias[i % a->columns];
	return 0;
}
