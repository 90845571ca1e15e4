#include "task.h"
#if 1
int km_run(const struct km_args *a)
{
	return a == 0;
}
#endif
