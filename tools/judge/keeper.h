/* keeper.h - the trusted side of a target: who holds the tensors, starts the runners, calls and checks.
 *
 * The judge (judge.h) decides what is called when and what the figures mean; a keeper does it on one kind of device. On
 * the target cpu it lives in km-bench itself; for cuda it is a process that these functions talk to.
 *
 * Order of use: open; start one runner for each participant; then for each workload: select for each participant, and
 * any number of times: inputs, then call of some participants, each perhaps followed at once by check. Functions return
 * 0 whatever became of the kernel, whose verdict is in *v; -1 with *err if the machine or the task failed, or if
 * keeper_interrupted.
 */
#ifndef KM_KEEPER_H
#define KM_KEEPER_H

#include "buf.h"
#include "compare.h"
#include "error.h"
#include "task.h"
#include "verdict.h"

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gpu;
struct keeper;

struct keeper_kernel {
	const void *library; /* its bytes */
	size_t bytes;
	bool trusted;        /* a peer of the task's author: may allocate and use the system, on one thread */
};

struct keeper_options {
	const struct task *task;
	const char *reference;    /* library made by build_reference */
	const int *workloads;     /* indices into task->workloads: memory is made for the largest of these */
	size_t workload_count;
	size_t participants;
	/* What the participants are going to be started with, in order, so that their processes can make ready while the device is
	 * opened; NULL: not known yet. */
	const struct keeper_kernel *kernels;
	const struct gpu *gpu;    /* gpu.h; NULL for cpu */
	bool no_sandbox;
	const volatile sig_atomic_t *interrupted; /* set by a signal handler; NULL: never */
};

struct keeper_call {
	double seconds;   /* what the call took: on cpu, the CPU time since the last answer; on cuda, the time between its events */
	double elapsed;   /* on our clock: on cpu from Go to the answer, on cuda what the call's window has over an empty one */
	double arrival;   /* cuda: the part of `elapsed` before the runner's stream waited for Go; NaN on cpu */
	double gap;       /* CPU seconds that the runner used between its last answer and this Go */
	bool disturbed;   /* gap is over the limit */
	bool busy;        /* the device was still at work after the call, or before it */
};

struct keeper_batch {
	int64_t calls;    /* made in a row */
	double elapsed;   /* of all, as of keeper_call */
	double more;      /* seconds that an honest call may take longer in a row than alone */
};

struct keeper_check {
	int input_set;
	int output;                   /* the first output that was wrong; -1 if none was */
	double max_abs_error, max_rel_error;
	struct compare_result wrong;  /* of that output */
};

/* Least, median and most of what was seen during calls; NaN if it is not known. */
struct keeper_range {
	double least, median, most;
};

struct keeper_facts {
	char name[64], uuid[48];
	double driver; /* 13.0 */
	struct keeper_range processor_mhz, memory_mhz;
	bool slowed;   /* by power or heat, once at least */
};

/* A program that starts a runner and watches what its kernel does, for people and models: no verdict comes of it. */
struct keeper_tool {
	const char *const *argv;    /* its absolute path and its options; ends with NULL; at most RUNNER_WRAPPER_WORDS */
	const char *const *folders; /* of its installation, absolute, without links in them; ends with NULL; at most KEEPER_TOOL_FOLDERS */
	double seconds;             /* after which all of it is killed */
};

enum { KEEPER_TOOL_FOLDERS = 2 };

/* What the judge has to know of a target. */
struct keeper_rules {
	double gain_seconds;     /* the smallest difference that makes a kernel better, beside VERSUS_GAIN */
	double seconds;          /* most time spent on timing one workload, but for JUDGE_MIN_BLOCKS */
	double baseline_seconds; /* most seconds of these in which the baseline takes part, which may be slow */
	double noise;            /* relative error of a speed-up that is good enough */
	size_t life;             /* blocks after which all participants get new processes; 0: never */
};

struct keeper_ops {
	const char *target;
	struct keeper_rules rules;
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

	/* The rest is NULL on the target cpu. */

	/* A call as one who waits for it sees it: not behind other work. Only ->seconds counts. */
	int (*idle)(struct keeper *k, size_t who, struct keeper_call *call, struct verdict *v, struct error *err);
	/* Several calls in a row, of `seconds` each, which bounds what call has said. */
	int (*batch)(struct keeper *k, size_t who, double seconds, struct keeper_batch *batch, struct verdict *v, struct error *err);
	/* Seconds that this device needs at least, by its datasheet; *least: even if outputs stay in its cache, and no less
	 * than what nothing takes. */
	double (*floor)(const struct keeper *k, int workload, double flops, double bytes, double *least);
	void (*facts)(struct keeper *k, struct keeper_facts *facts);
	/* One call for each of these workloads under a tool, as participant 0, which is started and stopped here. What the tool
	 * wrote is in *output, as much as fits. Only after a verdict, with a keeper of its own: there is no filter. *v: why the
	 * calls ended early. */
	int (*examine)(struct keeper *k, const struct keeper_kernel *kernel, const struct keeper_tool *tool, const int *workloads,
		       size_t count, struct buf *output, struct verdict *v, struct error *err);
};

extern const struct keeper_ops keeper_cpu, keeper_cuda;

/* The keeper of a target. */
const struct keeper_ops *keeper_of(enum task_target target);

/* CPU time of a runner between an answer and the next Go that is no noise (idle: 3 us; a helper: 680 us and more). */
#define KEEPER_GAP 0.0003

enum { KEEPER_ROWS = 32 }; /* rows checked of a timed call */

/* ---- for keepers ------------------------------------------------------------------------------------------------ */

/* The verdict on an output that is wrong. */
void keeper_note_wrong(const struct task *task, int workload, int set, int output, const struct compare_result *wrong,
		       struct verdict *v);

#endif
