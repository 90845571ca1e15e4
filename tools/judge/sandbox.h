/* sandbox.h - run an untrusted program where it can reach nothing: bubblewrap, limits, a watchdog, a sure end.
 *
 * What the program sees: a read-only /usr with the /bin /lib /lib64 links, an empty environment but PATH, HOME, TMPDIR
 * and LC_ALL=C, a private /tmp (and /dev/shm) of scratch_mb, a minimal read-only /dev, a /proc of its own pid
 * namespace, no network, no user database, and the files that it is handed, read-only, in its working folder /km; and
 * what `devices`, `libraries` and `environment` name beside that. As
 * root the program runs as uid and gid 65534 with no supplementary groups; as another user it stays that user. It
 * holds the three standard descriptors and those of `keep`, nothing else.
 *
 * Example (what km-bench does with its runner):
 *	struct sandbox_file files[] = { { runner_fd, "runner" }, { kernel_fd, "kernel.so" } };
 *	struct sandbox_spec spec = { .argv = (const char *const[]){ "./runner", "kernel.so", "7", NULL }, .files = files,
 *		.file_count = 2, .keep = (int[]){ 7 }, .keep_count = 1, .limits = { .wall_seconds = 60, ... }, ... };
 *	struct sandbox *s = sandbox_start(&spec, &err);
 *
 * With no_sandbox the program runs as the caller with limits, clock and watchdog but no wall around it: the working
 * folder is then a scratch folder that holds copies of the files. The caller warns the user; this module prints nothing.
 */
#ifndef KM_SANDBOX_H
#define KM_SANDBOX_H

#include "error.h"
#include "process.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* A file handed in by descriptor (process_memfd makes one), since the folder that it is in may be closed to the sandbox's user. It is read from
 * its beginning; the descriptor stays open and its offset is undefined afterwards. */
struct sandbox_file {
	int fd;
	const char *name; /* in the working folder; no '/'; mode 0555 */
};

/* 0 means no limit, except where said. */
struct sandbox_limits {
	double wall_seconds;   /* from start to end; watched by sandbox_check */
	double cpu_seconds;    /* RLIMIT_CPU per process, rounded up: SIGXCPU, a second later SIGKILL */
	size_t memory_bytes;   /* resident memory of all processes together, mapped memfds included; by sandbox_check */
	size_t address_bytes;  /* RLIMIT_AS per process */
	size_t file_bytes;     /* RLIMIT_FSIZE; 0: 64 MB */
	size_t scratch_mb;     /* size of /tmp; 0: 64 */
	int processes;         /* RLIMIT_NPROC, processes and threads in the sandbox (since Linux 5.14; not with no_sandbox) */
	int descriptors;       /* RLIMIT_NOFILE; 0: 256 */
};

struct sandbox_spec {
	const char *const *argv; /* ends with NULL; argv[0] "./NAME" of a handed file, or an absolute path under /usr */
	const struct sandbox_file *files;
	size_t file_count;
	const int *keep; /* descriptors that the program inherits under the same number (all > 2): sockets, memfds */
	size_t keep_count;
	const char *const *devices;     /* nodes below /dev to read and write; ends with NULL; NULL: none */
	const char *const *libraries;   /* folders of libraries, absolute, without links in them, read-only under the same path,
	                                 * and the loader's cache /etc/ld.so.cache; ends with NULL; NULL: none */
	const char *const *environment; /* "NAME=VALUE", beside the four named above; ends with NULL; NULL: none */
	int stdin_fd, stdout_fd, stderr_fd; /* -1: /dev/null */
	struct sandbox_limits limits;
	bool no_sandbox;
};

struct sandbox; /* a running one */

/* Start it; NULL with KM_EXIT_ENVIRONMENT if bubblewrap is missing or the machine does not let it work (the text
 * names bubblewrap and --no-sandbox). The program's own failing to start shows as its exit code 127 or 126.
 * Must be called from a thread that lives as long as the sandbox: the kernel ends the sandbox with that thread. */
struct sandbox *sandbox_start(const struct sandbox_spec *spec, struct error *err);

/* The pid, as seen by the caller, of the program itself: to stop it, go on, and read /proc/PID/stat. Waits up to 20 s
 * for it to exist; -1 if it does not. Valid until sandbox_end. The same pid on every call. */
pid_t sandbox_pid(struct sandbox *s);

/* Look once at clock and memory; kill everything if a limit is passed. False when the sandbox has ended or was just
 * killed. Takes some 30 us; call it every 10 to 50 ms while waiting for the program. */
bool sandbox_check(struct sandbox *s);

/* CPU time in seconds (user + system, all threads) that the program has used so far, from its clock
 * (clock_getcpuclockid), to about a microsecond; negative if it is gone. */
double sandbox_cpu_seconds(struct sandbox *s);

/* SIGSTOP / SIGCONT to the program. sandbox_stop returns when all its threads are stopped; false if it is gone. */
bool sandbox_stop(struct sandbox *s);
bool sandbox_continue(struct sandbox *s);

/* Kill all of it, and do not wait: sandbox_end is to follow. */
void sandbox_kill(struct sandbox *s);

/* How it ended (sandbox_end), in a process_result without output. .signal is the program's: the kernel's seccomp
 * SIGSYS, SIGSEGV, SIGXCPU, ... (bubblewrap reports 128 + signal, which is translated back; a program that itself exits
 * with such a code looks the same). Flags timed_out, over_memory say that we killed it; not_started that bubblewrap
 * failed before the program began, its message is on the sandbox's stderr.
 *
 * sandbox_end(s, seconds, result) waits up to `seconds` for the program to end by itself (limits stay watched), then
 * kills all of it, waits until every process in it is gone, removes what it left, fills *result and frees s. */
void sandbox_end(struct sandbox *s, double seconds, struct process_result *result);

/* Start, feed stdin, collect stdout and stderr, end. spec's stdin_fd, stdout_fd and stderr_fd are ignored. As
 * process_run: 0 if it was started, *result to be released in either case. */
int sandbox_run(const struct sandbox_spec *spec, const void *input, size_t input_len, size_t output_ceiling,
		size_t diagnostics_ceiling, struct process_result *result, struct error *err);

#endif
