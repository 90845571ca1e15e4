/* Recursion without an end. */
#include "task.h"

static int deeper(volatile int *up, int n)
{
	volatile int here[64];

	here[n & 63] = *up + 1;
	return deeper(here, n + 1) + here[n & 63];
}

int km_run(const struct km_args *a)
{
	volatile int start = (int)a->rows;

	return deeper(&start, 1) == 7;
}
