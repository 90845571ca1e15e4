/* A function that is chosen when the library is opened. */
#include "task.h"

static void right(const struct km_args *a)
{
	for (int64_t i = 0; i < a->rows; i++)
		for (int64_t j = 0; j < a->columns; j++)
			a->y[i * a->columns + j] = a->alpha * a->x[i * a->columns + j] + a->bias[j];
}

static int plain(const struct km_args *a)
{
	right(a);
	return 0;
}

static void *choose(void)
{
	return (void *)plain;
}

int chosen(const struct km_args *a) __attribute__((ifunc("choose")));

int km_run(const struct km_args *a)
{
	return chosen(a);
}
