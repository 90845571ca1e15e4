/* An instruction that does not exist. */
#include "task.h"

int km_run(const struct km_args *a)
{
	(void)a;
	__builtin_trap();
	return 0;
}
