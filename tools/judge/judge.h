/* judge.h - one judgement: is the kernel right, and how fast is it?
 *
 * First every workload of the set is called with every input set in use and all rows are looked at. Then each workload
 * is timed in rounds: new inputs, and on them one call of the candidate, of the baseline and of each rival, in random
 * order; two rounds, the second in reverse order, are a block (A B B A). The candidate's outputs are looked at in every
 * round: KEEPER_ROWS rows drawn after the call, all rows in one round of sixteen. On cpu all get new processes every four blocks. Input sets come in fixed shares and
 * random order, half of them normal, and in a quarter of all rounds scalars vary, in both phases alike.
 *
 * A workload's speed-up is e to the robust mean over rounds of ln(baseline time / candidate time).
 *
 * On cuda the others are called some times more when the candidate has ended: who made them slower is REJECTED.
 *
 * Where the times are a runner's own word (cuda), they are believed only as far as other clocks bear them out: the window of
 * each call, batches of calls in a row, and the device's datasheet. Else: REJECTED, "clock" or "floor". Single calls that the
 * window does not bear out count no less than the median of those that it does. What the window refuses by less than as much
 * again is timed once more by a new process.
 */
#ifndef KM_JUDGE_H
#define KM_JUDGE_H

#include "error.h"
#include "keeper.h"
#include "statistics.h"
#include "task.h"
#include "verdict.h"

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>

enum {
	JUDGE_MIN_BLOCKS = 5,
	JUDGE_MAX_RIVALS = 256,
	JUDGE_IDLE_CALLS = 8,  /* of a workload, on an idle device */
	JUDGE_BATCHES = 3,     /* the fastest of which counts */
};

/* Where the keeper has clocks of its own (keeper.h, batch): what a call may take longer by the window than by its own
 * events, in seconds and as a share, median over a workload's timed calls; a call of a batch; and the share of the least
 * time by the datasheet below which no call is believed. */
#define JUDGE_WINDOW_SLACK 5e-6
#define JUDGE_WINDOW_SHARE 0.005
#define JUDGE_BATCH_SLACK 1e-6
#define JUDGE_BATCH_SHARE 0.01
#define JUDGE_FLOOR_SHARE 0.97

struct judge_kernel {
	const char *name;
	const void *library;
	size_t bytes;
	bool trusted; /* keeper.h */
};

struct judge_options {
	const struct keeper_ops *keeper;
	const struct task *task;
	const char *reference;
	const struct gpu *gpu; /* keeper.h */
	struct judge_kernel candidate, baseline;
	const struct judge_kernel *rivals;
	size_t rival_count;
	bool feedback, final; /* the workloads to judge, */
	const int *only;      /* if there are none of these, numbers in task->workloads, over all of which the score is then */
	size_t only_count;
	bool no_sandbox;
	const volatile sig_atomic_t *interrupted;
};

/* A participant's times on one workload. */
struct judge_times {
	double median, q1, q3; /* seconds; NaN without calls */
	double elapsed;        /* median on our clock; of the candidate only */
	size_t count;
	double *seconds;       /* in the order taken */
	struct estimate gain;  /* ln(its time / the candidate's); n 0 for the candidate */
};

struct judge_workload {
	int index; /* in task->workloads */
	enum verdict_status status;
	bool reached;              /* false: the judgement ended before this workload */
	struct judge_times candidate, baseline, *rivals;
	double flops, bytes;
	double floor;              /* seconds by the datasheet; NaN if unknown */
	double idle;               /* seconds for one who waits: on cpu the wall clock's, on cuda on an idle device; NaN if unknown */
	double excess;             /* median of what our clock has over the times, in seconds; NaN where they are one */
	double arrival;            /* median of the part of it from before the work could begin; NaN as excess */
	double batch;              /* seconds a call in the fastest batch; NaN without */
	size_t batch_calls;
	double max_abs_error, max_rel_error;
	size_t calls;              /* of the candidate, checks included */
	const char *ended_by;      /* "noise", "blocks", "decided", "time", "" */
};

struct judge_rival {
	struct verdict verdict;    /* why it takes no part any more, or passed */
	struct estimate gain;      /* ln(candidate's score / its score); n 0 if unknown */
	double smallest;           /* the smallest gain that counts, at least VERSUS_GAIN */
	double score;              /* its own score; NaN if unknown */
};

struct judge_result {
	struct verdict verdict;
	struct judge_workload *workloads;
	size_t workload_count;
	struct judge_rival *rivals; /* as many as options->rival_count */
	double score, noise;        /* score: 100 x mean (or geometric mean) speed-up, over the feedback workloads if there
	                             * are any among those judged, else over all; NaN unless passed. noise: its relative
	                             * standard error */
	int failed_workload;        /* index in task->workloads, or -1 */
	struct keeper_check failure; /* .output >= 0 if an output was wrong */
	double starting, checking, timing, ending; /* seconds for starting the keeper and all runners, the two phases, ending them */
	double median_gap;          /* CPU seconds between calls of the candidate, median */
	bool has_facts;
	struct keeper_facts facts;  /* of the device; only with has_facts */
};

/* 0 whatever the verdict on the candidate; -1 if the machine, the task, its reference or its baseline failed, or if
 * interrupted. The result must be released in either case. */
int judge_run(const struct judge_options *options, struct judge_result *result, struct error *err);
void judge_result_release(struct judge_result *result, size_t rival_count);

#endif
