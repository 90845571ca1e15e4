/* process.h - run a child program: bytes in, bytes out, a clock, and nothing left behind.
 *
 * The child runs in a session of its own with none of our descriptors but 0, 1 and 2, with default signal handling.
 * When the call returns the child is reaped and its whole process group and session have been killed. A child that
 * dies of our closing its pipes, or that never reads its input, is no error: the caller judges by the result.
 *
 * SIGINT, SIGTERM or SIGHUP to us ends the child's session first and us after that; a kill -9 of us, or a crash, ends the
 * child itself, but not what it has started.
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
	bool not_started;  /* bubblewrap could not set the sandbox up (sandbox.h only): the machine's fault */
	double seconds;    /* wall-clock time it took */
	struct buf output, diagnostics; /* NUL-terminated; diagnostics.overflow says that it was cut */
};

/* Run to the end. 0 if the child was started, whatever became of it; -1 with KM_EXIT_ENVIRONMENT if it could not be
 * started (no such program, no fork) or was killed because a signal is to end us. *result must be released in either case. */
int process_run(const struct process_spec *spec, struct process_result *result, struct error *err);
void process_result_release(struct process_result *result);

/* "exit status 3", "killed by signal 9 (Killed)", "stopped after 10 s": for messages. The caller frees. */
char *process_describe(const struct process_result *result);

/* Between these two, SIGINT, SIGTERM and SIGHUP, unless ignored, are kept; the last release raises the one that came, so
 * that what was made in between can be removed before. They nest, and are for one thread. process_run does both: hold
 * around it and the folder that it works in. Only for work that process_run waits in: nothing else ends early. */
void process_hold_signals(void);
void process_release_signals(void);

/* Make an empty folder of mode 0700 under $TMPDIR or /tmp, and remove it with all that is in it. The caller of the
 * first frees the path; NULL with KM_EXIT_ENVIRONMENT on failure. Links are removed, never followed. */
char *process_scratch_make(struct error *err);
void process_scratch_remove(const char *folder);

/* ---- for modules that start the child themselves (sandbox.c) ---- */

/* A sealed memfd, close-on-exec, that holds these bytes, at its beginning. -1 with KM_EXIT_ENVIRONMENT. */
int process_memfd(const char *name, const void *data, size_t len, struct error *err);

/* Collect what comes out of two pipes (-1: none), which are closed, until both are at their end. tick is called at
 * least every 20 ms and ends the collecting by returning false; what is in the pipes then is still taken. Sets
 * result->overflowed and returns early if the output passes its ceiling: the caller then kills the child. */
void process_collect(int out, int diagnostics, struct process_result *result, bool (*tick)(void *), void *context);

/* An empty result with these ceilings. */
void process_result_init(struct process_result *result, size_t output_ceiling, size_t diagnostics_ceiling);

/* In a child after fork: dup these onto 0, 1 and 2 (-1: /dev/null), mark every other descriptor close-on-exec but
 * those of keep, and put all signals back to their defaults. False on failure. */
bool process_child_setup(int in, int out, int diagnostics, const int *keep, size_t keep_count);

/* Translate a waitpid status into result->exit_code and result->signal. */
void process_result_status(struct process_result *result, int status);

/* SIGKILL to the process group and to every process of the session of that leader. */
void process_kill_session(pid_t leader);

#endif
