/* Computes on the host, with device pointers. */
#include "task.h"

int km_run(const struct km_args *a)
{
	for (int64_t i = 0; i < a->batch_size * 4096; i++)
		a->output[i] = a->hidden_states[i];
	return 0;
}
