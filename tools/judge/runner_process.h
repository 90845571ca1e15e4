/* runner_process.h - one runner in its sandbox, as seen from the keeper: start, ask, stop, bury.
 *
 * A start has three steps: the process is launched; it is told of its slabs (SETUP); it opens the kernel (LOAD). No code of
 * the kernel runs before the third.
 *
 * Between questions the runner is stopped (SIGSTOP), so that its process does nothing while inputs are made and outputs
 * looked at. Only between the answer ENQUEUED and the next question it runs on, and all the time under a tool.
 */
#ifndef KM_RUNNER_PROCESS_H
#define KM_RUNNER_PROCESS_H

#include "error.h"
#include "protocol.h"
#include "sandbox.h"
#include "verdict.h"

#include <signal.h>
#include <stdbool.h>

enum { RUNNER_DESCRIPTORS = 4, RUNNER_WRAPPER_WORDS = 24 };

struct runner_process {
	struct sandbox *sandbox; /* NULL: not started, or ended */
	int socket, stat_fd;
	uint64_t serial;
	bool runs_on;                  /* it has answered ENQUEUED and was not stopped */
	uint64_t base[PROTOCOL_SLABS]; /* the slabs' addresses in the runner */
	double cpu_at_answer;          /* its CPU clock when it was stopped after the last answer */
	bool wrapped;                  /* a tool has started it: nobody is stopped, and it may end by itself */
	double wall_seconds;           /* of all */
	/* for SETUP */
	enum protocol_trust trust;
	size_t map_bytes;
	uint32_t stream;
	const volatile sig_atomic_t *interrupted;
};

struct runner_slabs {
	int descriptors[RUNNER_DESCRIPTORS]; /* the slabs, and what else its program wants */
	size_t descriptor_count;
	uint64_t bytes[PROTOCOL_SLABS];
};

struct runner_start {
	const char *program; /* "km-runner-cpu", see runner_program_path */
	const void *library; /* NULL: it opens none */
	size_t library_bytes;
	struct runner_slabs slabs; /* of runner_process_start: that it inherits */
	size_t memory_bytes; /* most resident memory, mapped descriptors included */
	size_t map_bytes;    /* most bytes in one mmap */
	uint32_t stream;     /* where in struct km_args its stream belongs */
	const char *const *devices, *const *libraries, *const *environment; /* as in struct sandbox_spec */
	int processes, open_files; /* limits; 0: those of the sandbox */
	bool trusted, no_sandbox;
	/* A tool that starts the runner and watches it: its absolute path and its options, before the runner's own words; ends with
	 * NULL. What both write goes to `output`, and after wrapper_seconds all of it is killed. NULL: none. */
	const char *const *wrapper;
	int output;
	double wrapper_seconds;
	const volatile sig_atomic_t *interrupted;
};

struct runner_answer {
	int64_t value;
	uint64_t where[PROTOCOL_SLABS];
	char text[PROTOCOL_TEXT_MAX];
	bool late;      /* of runner_process_enqueue and runner_process_await: it has not come yet */
	double seconds; /* from the question to the answer, on our clock */
	double cpu;     /* CPU seconds that the process used meanwhile, by the kernel's accounts */
	double gap;     /* CPU seconds used between the last answer and this question */
};

/* The steps of a start, for a runner that makes ready for its slabs while these are made. launch does not wait for it; set_up
 * hands over the descriptors with SETUP, and waits until the runner has mapped them. After any failure the runner has ended, all
 * of which are the machine's but for those of load: what the kernel does wrong is in *v. */
int runner_process_launch(struct runner_process *r, const struct runner_start *start, struct error *err);
int runner_process_set_up(struct runner_process *r, const struct runner_slabs *slabs, struct error *err);
int runner_process_load(struct runner_process *r, int64_t *functions, struct verdict *v, struct error *err);

/* All of them, for a runner that inherits start->slabs, and opens start->library if there is one. */
int runner_process_start(struct runner_process *r, const struct runner_start *start, int64_t *functions, struct verdict *v,
			 struct error *err);

/* Ask one question (kind, value, where[0], args are the caller's) and wait for its answer for at most `seconds`. `what`
 * names it in messages: "km_run". If the runner faults, dies or is late, *v says so and the runner has ended; where a
 * memory fault happened is translated by the caller, who knows the places: *fault_address is set (0: none). -1 only if
 * interrupted. */
int runner_process_ask(struct runner_process *r, struct protocol_message *question, double seconds, const char *what,
		       struct runner_answer *answer, uint64_t *fault_address, struct verdict *v, struct error *err);

/* The same for a question whose answer is ENQUEUED, after which the runner runs on. One who is late lives on too, and may
 * be waited for again; ->late says so. */
int runner_process_enqueue(struct runner_process *r, struct protocol_message *question, double seconds, const char *what,
			   struct runner_answer *answer, uint64_t *fault_address, struct verdict *v, struct error *err);
int runner_process_await(struct runner_process *r, double seconds, const char *what, struct runner_answer *answer,
			 uint64_t *fault_address, struct verdict *v, struct error *err);

/* Kill it, but for one under a tool, and do not wait: runner_process_end is to follow. */
void runner_process_kill(struct runner_process *r);

/* Kill it and all that it started. One under a tool is given the time to end by itself first. */
void runner_process_end(struct runner_process *r);

/* A program that belongs to this one: beside it, or for tests named by a variable: "km-runner-cpu" by $KM_RUNNER_CPU. The
 * caller frees. */
char *runner_program_path(const char *name);

#endif
