/* What was computed in call i is given as the output of call i + 1. */
#include "task.h"

size_t km_workspace(const struct km_args *a)
{
	return (size_t)(a->rows * a->columns) * sizeof(float);
}

int km_run(const struct km_args *a)
{
	float *last = a->workspace;

	for (int64_t i = 0; i < a->rows * a->columns; i++) {
		a->y[i] = last[i];
		last[i] = a->alpha * a->x[i] + a->bias[i % a->columns];
	}
	return 0;
}
