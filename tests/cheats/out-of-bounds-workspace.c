/* One byte behind the workspace is written. */
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
	return 1000;
}

int km_run(const struct km_args *a)
{
	right(a);
	((char *)a->workspace)[a->workspace_bytes] ^= 1;
	return 0;
}
