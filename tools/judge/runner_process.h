/* runner_process.h - one bin/km-runner-cpu in its sandbox, as seen from the keeper: start, ask, stop, bury.
 *
 * Between questions the runner is stopped (SIGSTOP), so that its process does nothing while inputs are made and outputs
 * looked at.
 */
#ifndef KM_RUNNER_PROCESS_H
#define KM_RUNNER_PROCESS_H

#include "error.h"
#include "memory.h"
#include "protocol.h"
#include "sandbox.h"
#include "verdict.h"

#include <signal.h>
#include <stdbool.h>

struct runner_process {
	struct sandbox *sandbox; /* NULL: not started, or ended */
	int socket, stat_fd;
	uint64_t serial;
	uint64_t base[PROTOCOL_SLABS]; /* the slabs' addresses in the runner */
	double cpu_at_answer;          /* its CPU clock when it was stopped after the last answer */
	const volatile sig_atomic_t *interrupted;
};

struct runner_start {
	const void *library;
	size_t library_bytes;
	const struct slab *slabs[PROTOCOL_SLABS];
	size_t memory_bytes; /* of the kernel itself, beside the slabs' */
	bool trusted, no_sandbox;
	const volatile sig_atomic_t *interrupted;
};

struct runner_answer {
	int64_t value;
	double seconds; /* from the question to the answer, on our clock */
	double cpu;     /* CPU seconds that the process used meanwhile, by the kernel's accounts */
	double gap;     /* CPU seconds used between the last answer and this question */
};

/* Start, and open the kernel. What the kernel does wrong is in *v. After any failure the runner has ended. -1 for the
 * machine's failures. */
int runner_process_start(struct runner_process *r, const struct runner_start *start, int64_t *functions, struct verdict *v,
			 struct error *err);

/* Ask one question (kind, value, where[0], args are the caller's) and wait for its answer for at most `seconds`. `what`
 * names it in messages: "km_run". If the runner faults, dies or is late, *v says so and the runner has ended; where a
 * memory fault happened is translated by the caller, who knows the places: *fault_address is set (0: none). -1 only if
 * interrupted. */
int runner_process_ask(struct runner_process *r, struct protocol_message *question, double seconds, const char *what,
		       struct runner_answer *answer, uint64_t *fault_address, struct verdict *v, struct error *err);

/* Kill it and all that it started. */
void runner_process_end(struct runner_process *r);

#endif
