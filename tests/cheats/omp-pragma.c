/* OpenMP pragmas: ignored, harmless. */
#include "task.h"

int km_run(const struct km_args *a)
{
#pragma omp parallel for
	for (int64_t i = 0; i < a->rows * a->columns; i++)
		a->y[i] = a->alpha * a->x[i] + a->bias[i % a->columns];
	return 0;
}
