/* All zeros. */
#include "task.h"

int km_run(const struct km_args *a)
{
	for (int64_t i = 0; i < a->rows * a->columns; i++)
		a->y[i] = 0;
	return 0;
}
