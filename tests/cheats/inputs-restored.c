/* An input serves as scratch memory and is put back. */
#include "task.h"

static void right(const struct km_args *a)
{
	for (int64_t i = 0; i < a->rows; i++)
		for (int64_t j = 0; j < a->columns; j++)
			a->y[i * a->columns + j] = a->alpha * a->x[i * a->columns + j] + a->bias[j];
}

int km_run(const struct km_args *a)
{
	volatile float *x = (volatile float *)a->x;
	float kept = x[0];

	x[0] = a->alpha;
	right(a);
	x[0] = kept;
	a->y[0] = a->alpha * kept + a->bias[0];
	return 0;
}
