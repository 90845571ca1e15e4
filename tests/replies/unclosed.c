#include "task.h"
int km_run(const struct km_args *a)
{
	for (int i
