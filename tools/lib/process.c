#include "process.h"

#include "util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { TICK_MS = 20 };

/* ---- results ---------------------------------------------------------------------------------------------------- */

void process_result_init(struct process_result *result, size_t output_ceiling, size_t diagnostics_ceiling)
{
	memset(result, 0, sizeof(*result));
	result->exit_code = -1;
	buf_init(&result->output, output_ceiling);
	buf_init(&result->diagnostics, diagnostics_ceiling);
}

void process_result_release(struct process_result *result)
{
	buf_release(&result->output);
	buf_release(&result->diagnostics);
}

void process_result_status(struct process_result *result, int status)
{
	result->exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
	result->signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

char *process_describe(const struct process_result *result)
{
	if (result->timed_out)
		return xasprintf("stopped after %.0f s", result->seconds);
	if (result->overflowed)
		return xasprintf("stopped after %zu bytes of output", result->output.ceiling);
	if (result->over_memory)
		return xstrdup("stopped for using too much memory");
	if (result->not_started)
		return xstrdup("not started");
	if (result->signal)
		return xasprintf("killed by signal %d (%s)", result->signal, strsignal(result->signal));
	return xasprintf("exit status %d", result->exit_code);
}

/* ---- signals ---------------------------------------------------------------------------------------------------- */

static const int ends[] = { SIGINT, SIGTERM, SIGHUP };
enum { ENDS = sizeof(ends) / sizeof(*ends) };

static volatile sig_atomic_t held; /* the signal that came meanwhile, or 0 */
static struct sigaction before[ENDS];
static int holders;

static void hold(int signal)
{
	held = signal;
}

void process_hold_signals(void)
{
	struct sigaction action = { .sa_handler = hold };

	if (holders++)
		return;
	sigemptyset(&action.sa_mask);
	for (int i = 0; i < ENDS; i++) {
		sigaction(ends[i], NULL, &before[i]);
		if (before[i].sa_handler != SIG_IGN) /* as under nohup */
			sigaction(ends[i], &action, NULL);
	}
}

void process_release_signals(void)
{
	int signal;

	if (--holders)
		return;
	for (int i = 0; i < ENDS; i++)
		sigaction(ends[i], &before[i], NULL);
	signal = held;
	held = 0;
	if (signal)
		raise(signal);
}

/* ---- the child's side: only async-signal-safe calls ---------------------------------------------------------------- */

static bool put_onto(int fd, int target)
{
	if (fd == target)
		return fcntl(fd, F_SETFD, 0) == 0;
	return dup2(fd, target) == target;
}

bool process_child_setup(int in, int out, int diagnostics, const int *keep, size_t keep_count)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int wanted[3] = { in, out, diagnostics };
	sigset_t none;

	/* Move the three out of the way first, so that none is overwritten before it was used. */
	for (int i = 0; i < 3; i++) {
		wanted[i] = fcntl(wanted[i] < 0 ? null : wanted[i], F_DUPFD_CLOEXEC, 3);
		if (wanted[i] < 0)
			return false;
	}
	for (int i = 0; i < 3; i++)
		if (!put_onto(wanted[i], i))
			return false;
	if (close_range(3, ~0u, CLOSE_RANGE_CLOEXEC) < 0)
		return false;
	for (size_t i = 0; i < keep_count; i++)
		if (fcntl(keep[i], F_SETFD, 0) < 0)
			return false;
	for (int sig = 1; sig < NSIG; sig++)
		signal(sig, SIG_DFL);
	sigemptyset(&none);
	return sigprocmask(SIG_SETMASK, &none, NULL) == 0;
}

/* Never returns; on failure the errno goes to `report`, which exec closes. A parent that is killed takes the child along. */
static void run_child(const struct process_spec *spec, const int fds[3], int report, pid_t parent)
{
	int saved;

	setsid();
	if (process_child_setup(fds[0], fds[1], fds[2], NULL, 0) && (!spec->folder || chdir(spec->folder) == 0) &&
	    prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && getppid() == parent) {
		if (spec->envp)
			execvpe(spec->argv[0], (char *const *)spec->argv, (char *const *)spec->envp);
		else
			execvp(spec->argv[0], (char *const *)spec->argv);
	}
	saved = errno;
	while (write(report, &saved, sizeof(saved)) < 0 && errno == EINTR)
		;
	_exit(127);
}

/* ---- collecting ------------------------------------------------------------------------------------------------- */

int process_memfd(const char *name, const void *data, size_t len, struct error *err)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	size_t done = 0;

	while (fd >= 0 && done < len) {
		ssize_t n = write(fd, (const char *)data + done, len - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			break;
		done += (size_t)n;
	}
	if (fd >= 0 && done == len && lseek(fd, 0, SEEK_SET) == 0 &&
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) == 0)
		return fd;
	error_set(err, KM_EXIT_ENVIRONMENT, "cannot keep '%s' in memory: %s", name, strerror(errno));
	if (fd >= 0)
		close(fd);
	return -1;
}

/* Take what is there. False at the end of the pipe. What does not fit is dropped and *full set. */
static bool take(int fd, struct buf *into, bool *full)
{
	char chunk[1 << 16];

	for (;;) {
		ssize_t n = read(fd, chunk, sizeof(chunk));
		size_t room = into->ceiling - into->len;

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 && errno == EAGAIN;
		if ((size_t)n > room) {
			buf_add(into, chunk, room);
			*full = into->overflow = true;
			return true;
		}
		buf_add(into, chunk, (size_t)n);
		if ((size_t)n < sizeof(chunk))
			return true;
	}
}

static void finish(struct pollfd *p)
{
	if (p->fd >= 0)
		close(p->fd);
	p->fd = -1;
}

void process_collect(int out, int diagnostics, struct process_result *result, bool (*tick)(void *), void *context)
{
	struct pollfd p[2] = { { .fd = out, .events = POLLIN }, { .fd = diagnostics, .events = POLLIN } };
	struct buf *into[2] = { &result->output, &result->diagnostics };
	bool full[2] = { false, false }, going = true;

	for (int i = 0; i < 2; i++)
		if (p[i].fd >= 0)
			fcntl(p[i].fd, F_SETFL, fcntl(p[i].fd, F_GETFL) | O_NONBLOCK);
	while (going && !full[0] && (p[0].fd >= 0 || p[1].fd >= 0)) {
		going = tick(context);
		if (going)
			poll(p, 2, TICK_MS);
		for (int i = 0; i < 2; i++)
			if (p[i].fd >= 0 && !take(p[i].fd, into[i], &full[i]))
				finish(&p[i]);
	}
	result->overflowed = full[0];
	finish(&p[0]);
	finish(&p[1]);
}

/* ---- running ---------------------------------------------------------------------------------------------------- */

struct watch {
	pid_t pid;
	double start, limit;
	bool ended, timed_out, interrupted;
};

/* True while the child runs, has time left, and no signal wants our end. The child is looked at, not reaped. */
static bool watch_tick(void *context)
{
	struct watch *w = context;
	siginfo_t info = { 0 };

	if (waitid(P_PID, (id_t)w->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == w->pid)
		w->ended = true;
	else if (w->limit > 0 && monotonic_seconds() - w->start > w->limit)
		w->timed_out = true;
	else if (held)
		w->interrupted = true;
	return !w->ended && !w->timed_out && !w->interrupted;
}

static void sleep_ms(long ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&t, NULL);
}

static pid_t session_of(const char *pid)
{
	char path[64], text[512];
	char *p;
	int fd, session = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%.20s/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (fd >= 0)
		close(fd);
	if (n <= 0)
		return -1;
	text[n] = 0;
	p = strrchr(text, ')');
	if (!p || sscanf(p + 1, " %*c %*d %*d %d", &session) != 1)
		return -1;
	return session;
}

void process_kill_session(pid_t leader)
{
	struct dirent *entry;
	DIR *proc;

	kill(-leader, SIGKILL);
	proc = opendir("/proc");
	while (proc && (entry = readdir(proc)) != NULL) {
		long pid;

		if (parse_long(entry->d_name, 2, 1L << 30, &pid) && session_of(entry->d_name) == leader)
			kill((pid_t)pid, SIGKILL);
	}
	if (proc)
		closedir(proc);
}

static void wait_for(struct watch *w, struct process_result *result)
{
	int status = 0;

	/* Its pipes are closed; it may live on for a while. */
	for (long ms = 1; !result->overflowed && watch_tick(w); ms = ms < TICK_MS ? ms * 2 : TICK_MS)
		sleep_ms(ms);
	process_kill_session(w->pid);
	while (waitpid(w->pid, &status, 0) < 0 && errno == EINTR)
		;
	process_result_status(result, status);
	result->timed_out = w->timed_out;
	result->seconds = monotonic_seconds() - w->start;
}

struct plumbing {
	int input, out[2], diagnostics[2], report[2];
};

static void close_if(int fd)
{
	if (fd >= 0)
		close(fd);
}

static int plumbing_open(struct plumbing *p, const struct process_spec *spec, struct error *err)
{
	*p = (struct plumbing){ -1, { -1, -1 }, { -1, -1 }, { -1, -1 } };
	p->input = process_memfd("input", spec->input, spec->input_len, err);
	if (p->input < 0)
		return -1;
	if (pipe2(p->out, O_CLOEXEC) < 0 || (!spec->pass_stderr && pipe2(p->diagnostics, O_CLOEXEC) < 0) ||
	    pipe2(p->report, O_CLOEXEC) < 0)
		return error_set(err, KM_EXIT_ENVIRONMENT, "cannot make a pipe: %s", strerror(errno));
	return 0;
}

static void plumbing_close_child_side(struct plumbing *p)
{
	close_if(p->input);
	close_if(p->out[1]);
	close_if(p->diagnostics[1]);
	close_if(p->report[1]);
}

static void plumbing_close(struct plumbing *p)
{
	plumbing_close_child_side(p);
	close_if(p->out[0]);
	close_if(p->diagnostics[0]);
	close_if(p->report[0]);
}

static int run(const struct process_spec *spec, struct process_result *result, struct error *err)
{
	struct watch w = { .start = monotonic_seconds(), .limit = spec->seconds };
	pid_t parent = getpid();
	struct plumbing p;
	int child_errno = 0;
	ssize_t n;

	process_result_init(result, spec->output_ceiling, spec->diagnostics_ceiling);
	if (plumbing_open(&p, spec, err) < 0 || (w.pid = fork()) < 0) {
		plumbing_close(&p);
		return error_set(err, KM_EXIT_ENVIRONMENT, "cannot start '%s': %s", spec->argv[0], strerror(errno));
	}
	if (w.pid == 0)
		run_child(spec, (int[]){ p.input, p.out[1], spec->pass_stderr ? STDERR_FILENO : p.diagnostics[1] }, p.report[1], parent);
	plumbing_close_child_side(&p);
	do
		n = read(p.report[0], &child_errno, sizeof(child_errno));
	while (n < 0 && errno == EINTR);
	close(p.report[0]);
	process_collect(p.out[0], p.diagnostics[0], result, watch_tick, &w);
	wait_for(&w, result);
	if (n == sizeof(child_errno))
		return error_set(err, KM_EXIT_ENVIRONMENT, "cannot start '%s': %s", spec->argv[0], strerror(child_errno));
	if (w.interrupted)
		return error_set(err, KM_EXIT_ENVIRONMENT, "interrupted");
	return 0;
}

int process_run(const struct process_spec *spec, struct process_result *result, struct error *err)
{
	int status;

	process_hold_signals();
	status = run(spec, result, err);
	process_release_signals();
	return status;
}

/* ---- scratch folders -------------------------------------------------------------------------------------------- */

char *process_scratch_make(struct error *err)
{
	const char *base = getenv("TMPDIR");
	char *folder = xasprintf("%s/km-XXXXXX", base && base[0] == '/' ? base : "/tmp");

	if (mkdtemp(folder))
		return folder;
	error_set(err, KM_EXIT_ENVIRONMENT, "cannot make a folder like '%s': %s", folder, strerror(errno));
	free(folder);
	return NULL;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *where)
{
	(void)st;
	(void)type;
	(void)where;
	remove(path);
	return 0;
}

/* A folder that its owner may not enter cannot be emptied. */
static int open_up(const char *path, const struct stat *st, int type, struct FTW *where)
{
	(void)where;
	if (type == FTW_DNR || (S_ISDIR(st->st_mode) && (st->st_mode & 0700) != 0700))
		chmod(path, 0700);
	return 0;
}

void process_scratch_remove(const char *folder)
{
	nftw(folder, open_up, 16, FTW_PHYS);
	nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}
