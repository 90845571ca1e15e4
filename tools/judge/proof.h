/* proof.h - does a task judge? What km-check-task reports, line by line.
 *
 * proof_reference asks the reference alone (expected outputs, tolerances, counts), in this process; so only for the target
 * cpu. proof_kernels judges kernels whose verdict is known: the baseline, which must pass every workload on every input set,
 * and wrong ones made from it, each of which must be found wrong in every workload; and those that "wrong" of task.json
 * makes of it by edits, which must be found wrong in one at least.
 */
#ifndef KM_PROOF_H
#define KM_PROOF_H

#include "error.h"
#include "task.h"

#include <stdbool.h>

struct proof {
	const struct task *task;
	const char *reference; /* library made by build_reference */
	bool no_sandbox;
	/* Called once for every statement: whether it holds, the statement, and if it does not hold why ("" else). */
	void (*report)(void *context, bool holds, const char *statement, const char *why);
	void *context;
};

/*  - the reference gives the same expected outputs when asked again, and no NaN
 *  - operations and bytes are counted
 *  - the expected outputs depend on every input: with one input exchanged for another draw, the old ones are wrong
 *  - expected outputs rounded to the output's type pass; moved by 0.2 of the tolerance they pass
 *  - one element moved by 5 times its tolerance fails, and a row moved by 5 times its norm's
 * 0 whatever was found, -1 if the machine or the task's files failed. */
int proof_reference(const struct proof *p, struct error *err);

/* The baseline on all workloads, input sets and varied scalars; then zeros, nothing, half, stale. For cuda also a constant,
 * each output 2 % too large, and for each input a kernel that reads it 256 bytes too far, takes zeros for it if it is made of
 * integers, or another value if it is a scalar. As proof_reference; KM_EXIT_WAITING if there is no CUDA device. A stale
 * kernel needs up to 1 MiB of workspace an output beside the baseline's, which "workspace_mb" must allow. */
int proof_kernels(const struct proof *p, struct error *err);

#endif
