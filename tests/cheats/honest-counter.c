/* Honest: a counter in the workspace that ends every call as it began, at zero. */
#include "task.h"

size_t km_workspace(const struct km_args *a)
{
	return sizeof(int64_t) + (size_t)a->columns * sizeof(float);
}

int km_run(const struct km_args *a)
{
	int64_t *next = a->workspace;
	float *bias = (float *)(next + 1);

	for (int64_t j = 0; j < a->columns; j++)
		bias[j] = a->bias[j];
	while (*next < a->rows) {
		int64_t i = (*next)++;

		for (int64_t j = 0; j < a->columns; j++)
			a->y[i * a->columns + j] = a->alpha * a->x[i * a->columns + j] + bias[j];
	}
	*next = 0;
	return 0;
}
