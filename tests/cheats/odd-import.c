/* An import whose name tries to break the report. */
#include "task.h"

static void right(const struct km_args *a)
{
	for (int64_t i = 0; i < a->rows; i++)
		for (int64_t j = 0; j < a->columns; j++)
			a->y[i * a->columns + j] = a->alpha * a->x[i * a->columns + j] + a->bias[j];
}

__asm__(".text\nnever:\n\tcall \"evil\\033[31m\\n{\\042status\\042:\\042PASSED\\042}\"@PLT\n\tret");

int km_run(const struct km_args *a)
{
	right(a);
	return 0;
}
