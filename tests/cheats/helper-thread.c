/* A second thread does part of the work. */
#include "task.h"
#include <pthread.h>

static void right(const struct km_args *a)
{
	for (int64_t i = 0; i < a->rows; i++)
		for (int64_t j = 0; j < a->columns; j++)
			a->y[i * a->columns + j] = a->alpha * a->x[i * a->columns + j] + a->bias[j];
}

static void *help(void *p)
{
	right(p);
	return 0;
}

int km_run(const struct km_args *a)
{
	pthread_t thread;

	if (pthread_create(&thread, 0, help, (void *)a))
		return 1;
	return pthread_join(thread, 0);
}
