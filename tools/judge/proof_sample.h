/* proof_sample.h - one draw of a workload's inputs, in this process's own memory. */
#ifndef KM_PROOF_SAMPLE_H
#define KM_PROOF_SAMPLE_H

#include "oracle.h"
#include "task.h"

#include <stdbool.h>
#include <stdint.h>

struct sample {
	const struct task *task;
	struct task_layout layout;
	int workload;
	void *args;                       /* struct km_args; outputs and workspace NULL */
	void *inputs[TASK_MAX_TENSORS];   /* NULL for scalars */
	double scalars[TASK_MAX_TENSORS]; /* the workload's values at first */
};

/* Draw: the same workload, set and seed give the same bytes, if the task's reference keeps to its contract. */
void sample_init(struct sample *s, const struct task *task, const struct oracle *oracle, int workload, int set, uint64_t seed);
void sample_release(struct sample *s);

bool sample_equal(const struct sample *a, const struct sample *b);

/* Copy one input tensor of a sample of the same workload; false if it was the same already. */
bool sample_take_input(struct sample *s, const struct sample *from, int input);
void sample_set_scalar(struct sample *s, int input, double value);

#endif
