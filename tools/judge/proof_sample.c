#include "proof_sample.h"

#include "random.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>

static void store(const struct sample *s, size_t member, const void *value)
{
	memcpy((char *)s->args + member, value, 8);
}

void sample_set_scalar(struct sample *s, int input, double value)
{
	s->scalars[input] = value;
	task_store_scalar(&s->task->inputs[input], value, (char *)s->args + s->layout.input[input]);
}

void sample_init(struct sample *s, const struct task *task, const struct oracle *oracle, int workload, int set, uint64_t seed)
{
	const struct task_workload *w = &task->workloads[workload];

	memset(s, 0, sizeof(*s));
	s->task = task;
	s->workload = workload;
	task_layout(task, &s->layout);
	s->args = xcalloc(1, s->layout.size + 8);
	for (int i = 0; i < task->axis_count; i++)
		store(s, s->layout.axis[i], &w->axes[i]);
	for (int i = 0; i < task->input_count; i++) {
		const struct task_tensor *t = &task->inputs[i];

		if (t->scalar) {
			sample_set_scalar(s, i, w->scalars[i]);
			continue;
		}
		s->inputs[i] = xcalloc(1, task_bytes(t, w->axes) + 64);
		random_fill_tensor(t, w->axes, s->inputs[i], set, ref_random(seed, (uint64_t)i));
		store(s, s->layout.input[i], &s->inputs[i]);
	}
	oracle_inputs(oracle, s->args, set, ref_random(seed, TASK_MAX_TENSORS));
}

void sample_release(struct sample *s)
{
	for (int i = 0; i < TASK_MAX_TENSORS; i++)
		free(s->inputs[i]);
	free(s->args);
}

static size_t input_bytes(const struct sample *s, int input)
{
	return task_bytes(&s->task->inputs[input], s->task->workloads[s->workload].axes);
}

bool sample_equal(const struct sample *a, const struct sample *b)
{
	for (int i = 0; i < a->task->input_count; i++)
		if (a->inputs[i] && memcmp(a->inputs[i], b->inputs[i], input_bytes(a, i)) != 0)
			return false;
	return true;
}

bool sample_take_input(struct sample *s, const struct sample *from, int input)
{
	size_t bytes = input_bytes(s, input);

	if (memcmp(s->inputs[input], from->inputs[input], bytes) == 0)
		return false;
	memcpy(s->inputs[input], from->inputs[input], bytes);
	return true;
}
