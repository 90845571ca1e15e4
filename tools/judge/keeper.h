/* keeper.h - the trusted side of a target: who holds the tensors, starts the runners, calls and checks.
 *
 * The judge (judge.h) decides what is called when and what the figures mean; a keeper does it on one kind of device. On
 * the target cpu it lives in km-bench itself; on others it may be a process that these functions talk to.
 *
 * Order of use: open; start one runner for each participant; then for each workload: select for each participant, and
 * any number of times: inputs, then call of some participants, each perhaps followed at once by check. Functions return
 * 0 whatever became of the kernel, whose verdict is in *v; -1 with *err if the machine or the task failed, or if
 * keeper_interrupted.
 */
#ifndef KM_KEEPER_H
#define KM_KEEPER_H

#include "compare.h"
#include "error.h"
#include "task.h"
#include "verdict.h"

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>

struct keeper;

struct keeper_options {
	const struct task *task;
	const char *reference;    /* library made by build_reference */
	const int *workloads;     /* indices into task->workloads: memory is made for the largest of these */
	size_t workload_count;
	size_t participants;
	bool no_sandbox;
	const volatile sig_atomic_t *interrupted; /* set by a signal handler; NULL: never */
};

struct keeper_kernel {
	const void *library; /* its bytes */
	size_t bytes;
	bool trusted;        /* a peer of the task's author: may allocate and use the system, on one thread */
};

struct keeper_call {
	double seconds;   /* what the call took: on cpu, the CPU time since the last answer */
	double elapsed;   /* from Go to the answer, on our clock */
	double gap;       /* CPU seconds that the runner used between its last answer and this Go */
	bool disturbed;   /* gap is over the limit */
};

struct keeper_check {
	int input_set;
	int output;                   /* the first output that was wrong; -1 if none was */
	double max_abs_error, max_rel_error;
	struct compare_result wrong;  /* of that output */
};

struct keeper_ops {
	const char *target;
	struct keeper *(*open)(const struct keeper_options *options, struct error *err);
	int (*start)(struct keeper *k, size_t who, const struct keeper_kernel *kernel, struct verdict *v, struct error *err);
	/* Make ready for a workload: km_init, km_workspace. */
	int (*select)(struct keeper *k, size_t who, int workload, struct verdict *v, struct error *err);
	/* New inputs at new places for the workload that all participants have selected; vary: scalars that vary too. */
	int (*inputs)(struct keeper *k, int workload, int set, bool vary, struct error *err);
	/* One call: poison, cold caches, Go, answer, stop. */
	int (*call)(struct keeper *k, size_t who, struct keeper_call *call, struct verdict *v, struct error *err);
	/* Look at the outputs of the call that was just made: guards, and all rows or some drawn now. */
	int (*check)(struct keeper *k, size_t who, bool all, struct keeper_check *check, struct verdict *v, struct error *err);
	/* Operations and bytes of the selected workload's current inputs. */
	void (*counts)(struct keeper *k, double *flops, double *bytes);
	/* End one runner; nothing of it is left. */
	void (*stop)(struct keeper *k, size_t who);
	void (*close)(struct keeper *k);
};

extern const struct keeper_ops keeper_cpu;

/* CPU time of a runner between an answer and the next Go that is no noise (idle: 3 us; a helper: 680 us and more). */
#define KEEPER_GAP 0.0003

enum { KEEPER_ROWS = 32 }; /* rows checked of a timed call */

#endif
