/* The process aborts. */
#include "task.h"
#include <stdlib.h>

int km_run(const struct km_args *a)
{
	if (a->rows)
		abort();
	return 0;
}
