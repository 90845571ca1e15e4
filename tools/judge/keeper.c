#include "keeper.h"

#include <inttypes.h>

const struct keeper_ops *keeper_of(enum task_target target)
{
	return target == TASK_CUDA ? &keeper_cuda : &keeper_cpu;
}

void keeper_note_wrong(const struct task *task, int workload, int set, int output, const struct compare_result *wrong,
		       struct verdict *v)
{
	const struct compare_element *e = &wrong->wrong[0];

	verdict_set(v, VERDICT_INCORRECT, NULL, "output '%s' is wrong in %" PRId64 " of %" PRId64 " checked rows: row %" PRId64
		    " element %" PRId64 " is %.9g, expected %.9g (workload %s, input set %s)",
		    task->outputs[output].name, wrong->wrong_rows, wrong->checked_rows, e->row, e->index, e->got, e->expected,
		    task->workloads[workload].uuid, input_set_name((enum task_input_set)set));
}
