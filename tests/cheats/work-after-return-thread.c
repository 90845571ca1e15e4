/* A detached thread goes on after km_run has returned. */
#include "task.h"
#include <pthread.h>

static void right(const struct km_args *a)
{
	for (int64_t i = 0; i < a->rows; i++)
		for (int64_t j = 0; j < a->columns; j++)
			a->y[i * a->columns + j] = a->alpha * a->x[i * a->columns + j] + a->bias[j];
}

static void *later(void *p)
{
	right(p);
	return 0;
}

int km_run(const struct km_args *a)
{
	static struct km_args kept;
	pthread_t thread;

	kept = *a;
	pthread_create(&thread, 0, later, &kept);
	return pthread_detach(thread);
}
