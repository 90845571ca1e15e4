/* process.h - run a child program: bytes in, bytes out, a clock, and nothing left behind.
 *
 * The child runs in a session of its own with none of our descriptors but 0, 1 and 2, with default signal handling.
 * When the call returns the child is reaped and its whole process group and session have been killed. A child that
 * dies of our closing its pipes, or that never reads its input, is no error: the caller judges by the result.
 */
#ifndef KM_PROCESS_H
#define KM_PROCESS_H

#include "buf.h"
#include "error.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct process_spec {
	const char *const *argv; /* ends with NULL; argv[0] is looked up in PATH unless it holds a '/' */
	const char *const *envp; /* ends with NULL; NULL: our own environment */
	const char *folder;      /* working folder; NULL: ours */
	const void *input;       /* bytes for stdin; NULL with input_len 0: stdin is empty */
	size_t input_len;
	size_t output_ceiling;      /* most bytes kept of stdout; one more and the child is killed */
	size_t diagnostics_ceiling; /* most bytes kept of stderr; the rest is read and dropped */
	bool pass_stderr;           /* stderr is ours, not captured */
	double seconds;             /* wall-clock limit; 0: none */
};

/* How a child ended. Exactly one of exit_code >= 0 and signal > 0. */
struct process_result {
	int exit_code;     /* -1 if killed by a signal */
	int signal;        /* 0 if it exited */
	bool timed_out;    /* we killed it because of .seconds */
	bool overflowed;   /* we killed it because of .output_ceiling */
	bool over_memory;  /* we killed it because of its memory (sandbox.h only) */
	double seconds;    /* wall-clock time it took */
	struct buf output, diagnostics; /* NUL-terminated; diagnostics.overflow says that it was cut */
};

/* Run to the end. 0 if the child was started, whatever became of it; -1 with KM_EXIT_ENVIRONMENT if it could not be
 * started (no such program, no fork). *result must be released in either case. */
int process_run(const struct process_spec *spec, struct process_result *result, struct error *err);
void process_result_release(struct process_result *result);

/* "exit status 3", "killed by signal 9 (Killed)", "stopped after 10 s": for messages. The caller frees. */
char *process_describe(const struct process_result *result);

/* Make an empty folder of mode 0700 under $TMPDIR or /tmp, and remove it with all that is in it. The caller of the
 * first frees the path; NULL with KM_EXIT_ENVIRONMENT on failure. Links are removed, never followed. */
char *process_scratch_make(struct error *err);
void process_scratch_remove(const char *folder);

/* ---- for modules that start the child themselves (sandbox.c) ---- */

/* Feed input to in (-1: none), collect out and diagnostics (-1: none) until both are at their end. The three are made
 * non-blocking and closed. tick is called at least every 20 ms, and ends the pumping by returning false. */
struct process_pump {
	int in, out, diagnostics;
	const void *input;
	size_t input_len;
	bool (*tick)(void *context);
	void *context;
};

/* Returns false if the output passed its ceiling or tick ended it: the caller then kills the child. */
bool process_pump(struct process_pump *pump, struct process_result *result);

/* SIGKILL to the process group and to every process of the session of that leader. */
void process_kill_session(pid_t leader);

#endif
