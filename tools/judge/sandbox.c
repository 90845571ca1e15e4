#include "sandbox.h"

#include "buf.h"
#include "util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/limits.h>
#include <math.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	NOBODY = 65534,
	MB = 1 << 20,
	DEFAULT_MB = 64,
	DEFAULT_DESCRIPTORS = 256,
	MAX_DESCENDANTS = 4096, /* more of them than this count as too much memory */
	START_SECONDS = 20,
	TICK_MS = 20,
};

struct sandbox {
	pid_t child;      /* bubblewrap, or with no_sandbox the program */
	pid_t init;       /* process 1 of the sandbox as we see it; 0 with no_sandbox */
	int init_handle;  /* pidfd of init, or -1 if it was gone before we could look */
	pid_t program;    /* 0: not looked up yet */
	int status_fd;    /* what bubblewrap reports: lines of JSON, the last when its program has ended */
	char report[1024]; /* those read so far */
	size_t report_len;
	bool ended;       /* child is reaped, wait_status holds how it ended */
	int wait_status;
	bool timed_out, over_memory, killed;
	double start, wall_seconds;
	size_t memory_bytes;
	char *scratch;    /* with no_sandbox: the working folder */
};

/* ---- small helpers ---------------------------------------------------------------------------------------------- */

static void sleep_ms(long ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&t, NULL);
}

static void close_if(int fd)
{
	if (fd >= 0)
		close(fd);
}

/* A file of /proc as a string; its length, or -1. */
static ssize_t read_small(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);

	close_if(fd);
	text[n > 0 ? n : 0] = 0;
	return n;
}

/* State letter and parent of a process or thread from its stat file; false if it is gone. */
static bool read_stat(const char *path, char *state, pid_t *parent)
{
	char text[512], *p;

	if (read_small(path, text, sizeof(text)) <= 0)
		return false;
	p = strrchr(text, ')');
	return p && sscanf(p + 1, " %c %d", state, parent) == 2;
}

/* ---- descendants ------------------------------------------------------------------------------------------------- */

struct family {
	pid_t pids[MAX_DESCENDANTS];
	int count;
	bool overflow;
};

static void family_add(struct family *f, pid_t pid)
{
	if (f->count < MAX_DESCENDANTS)
		f->pids[f->count++] = pid;
	else
		f->overflow = true;
}

/* The children of one thread, where the kernel lists them; false if it does not. */
static bool add_thread_children(struct family *f, pid_t pid, const char *thread)
{
	char path[96], text[1 << 14], *p = text, *end;

	snprintf(path, sizeof(path), "/proc/%d/task/%.20s/children", pid, thread);
	if (read_small(path, text, sizeof(text)) < 0)
		return errno != ENOENT;
	for (long child; (child = strtol(p, &end, 10)) > 0 && end != p; p = end)
		family_add(f, (pid_t)child);
	return true;
}

static void add_children_by_parent(struct family *f, pid_t pid)
{
	struct dirent *entry;
	DIR *proc = opendir("/proc");

	while (proc && (entry = readdir(proc)) != NULL) {
		char path[64], state;
		pid_t parent;
		long n;

		if (!parse_long(entry->d_name, 2, 1L << 30, &n))
			continue;
		snprintf(path, sizeof(path), "/proc/%ld/stat", n);
		if (read_stat(path, &state, &parent) && parent == pid)
			family_add(f, (pid_t)n);
	}
	if (proc)
		closedir(proc);
}

static void add_children(struct family *f, pid_t pid)
{
	struct dirent *entry;
	char path[64];
	bool listed = true;
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	tasks = opendir(path);
	while (tasks && listed && (entry = readdir(tasks)) != NULL)
		if (entry->d_name[0] != '.')
			listed = add_thread_children(f, pid, entry->d_name);
	if (tasks)
		closedir(tasks);
	if (!listed)
		add_children_by_parent(f, pid);
}

/* The program and all that come from it. */
static void family_find(struct family *f, const struct sandbox *s)
{
	f->count = 0;
	f->overflow = false;
	if (s->init_handle >= 0)
		add_children(f, s->init);
	else if (!s->init)
		family_add(f, s->child);
	for (int i = 0; i < f->count && !f->overflow; i++)
		add_children(f, f->pids[i]);
}

static size_t resident_bytes(pid_t pid)
{
	char path[64], text[128];
	unsigned long total, resident;

	snprintf(path, sizeof(path), "/proc/%d/statm", pid);
	if (read_small(path, text, sizeof(text)) <= 0 || sscanf(text, "%lu %lu", &total, &resident) != 2)
		return 0;
	return resident * (size_t)sysconf(_SC_PAGESIZE);
}

static bool over_memory(const struct sandbox *s)
{
	struct family *f;
	size_t sum = 0;
	bool over;

	if (s->memory_bytes == 0)
		return false;
	f = xmalloc(sizeof(*f));
	family_find(f, s);
	for (int i = 0; i < f->count; i++)
		sum += resident_bytes(f->pids[i]);
	over = sum > s->memory_bytes || f->overflow;
	free(f);
	return over;
}

/* ---- starting: the child's side ----------------------------------------------------------------------------------- */

static bool limit(int resource, rlim_t soft, rlim_t hard)
{
	struct rlimit old, new;

	if (getrlimit((__rlimit_resource_t)resource, &old) < 0)
		return false;
	new.rlim_max = hard < old.rlim_max ? hard : old.rlim_max;
	new.rlim_cur = soft < new.rlim_max ? soft : new.rlim_max;
	return setrlimit((__rlimit_resource_t)resource, &new) == 0;
}

static bool set_limits(const struct sandbox_limits *l)
{
	rlim_t file = l->file_bytes ? l->file_bytes : (rlim_t)DEFAULT_MB * MB;
	rlim_t descriptors = (rlim_t)(l->descriptors ? l->descriptors : DEFAULT_DESCRIPTORS);
	rlim_t cpu = (rlim_t)ceil(l->cpu_seconds);

	return limit(RLIMIT_CORE, 0, 0) && limit(RLIMIT_FSIZE, file, file) && limit(RLIMIT_NOFILE, descriptors, descriptors) &&
	       (l->cpu_seconds <= 0 || limit(RLIMIT_CPU, cpu, cpu + 1)) &&
	       (l->address_bytes == 0 || limit(RLIMIT_AS, l->address_bytes, l->address_bytes));
}

/* Root becomes nobody for good: every id, no groups, no capabilities. Others stay who they are. */
static bool drop_root(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct none[2] = { { 0 }, { 0 } };

	if (geteuid() != 0)
		return true;
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	return setgroups(0, NULL) == 0 && setresgid(NOBODY, NOBODY, NOBODY) == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0 &&
	       syscall(SYS_capset, &header, none) == 0;
}

/* If memory runs short, the kernel shall end this one. */
static void offer_to_oom_killer(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd >= 0 && write(fd, "1000", 4) < 0)
		close(fd);
	else
		close_if(fd);
}

struct launch {
	const struct sandbox_spec *spec;
	const char *const *argv;
	int *inherit; /* descriptors that survive the exec */
	size_t inherit_count;
	const char *folder;      /* NULL: ours */
	const char *environment; /* "TMPDIR=..." */
	int report;              /* gets errno if the exec fails */
	pid_t parent;
};

enum { MAX_ENVIRONMENT = 16 };

/* More than fits is refused by sandbox_start. Bubblewrap gets its program's own by --setenv. */
static void fill_environment(const struct launch *l, const char **environment)
{
	size_t n = 0;

	environment[n++] = "PATH=/usr/bin:/bin";
	environment[n++] = "LC_ALL=C";
	environment[n++] = l->environment;
	for (size_t i = 0; l->spec->no_sandbox && l->spec->environment && l->spec->environment[i]; i++)
		environment[n++] = l->spec->environment[i];
	environment[n] = NULL;
}

static void launch_child(const struct launch *l)
{
	const char *environment[MAX_ENVIRONMENT + 4];
	const struct sandbox_spec *spec = l->spec;
	int saved;

	fill_environment(l, environment);

	setsid();
	offer_to_oom_killer();
	if (process_child_setup(spec->stdin_fd, spec->stdout_fd, spec->stderr_fd, l->inherit, l->inherit_count) &&
	    set_limits(&spec->limits) && (spec->no_sandbox || drop_root()) && (!l->folder || chdir(l->folder) == 0) &&
	    prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && getppid() == l->parent)
		execve(l->argv[0], (char *const *)l->argv, (char *const *)environment);
	saved = errno;
	while (write(l->report, &saved, sizeof(saved)) < 0 && errno == EINTR)
		;
	_exit(127);
}

/* Fork and exec. The pid, or -1 with errno set. */
static pid_t launch(struct launch *l)
{
	int report[2], child_errno = 0;
	ssize_t n;
	pid_t pid;

	if (pipe2(report, O_CLOEXEC) < 0)
		return -1;
	l->report = report[1];
	l->parent = getpid();
	pid = fork();
	if (pid == 0)
		launch_child(l);
	close(report[1]);
	do
		n = pid < 0 ? 0 : read(report[0], &child_errno, sizeof(child_errno));
	while (n < 0 && errno == EINTR);
	close(report[0]);
	if (pid > 0 && n == sizeof(child_errno)) {
		waitpid(pid, NULL, 0);
		errno = child_errno;
		return -1;
	}
	return pid;
}

/* ---- starting: in bubblewrap --------------------------------------------------------------------------------------- */

struct words {
	char **list;
	size_t count;
};

static void word(struct words *w, const char *s)
{
	w->list = xreallocarray(w->list, w->count + 2, sizeof(*w->list));
	w->list[w->count++] = xstrdup(s);
	w->list[w->count] = NULL;
}

static void words_from(struct words *w, const char *const *list)
{
	for (; *list; list++)
		word(w, *list);
}

static void words_number(struct words *w, const char *option, unsigned long value)
{
	char s[32];

	snprintf(s, sizeof(s), "%lu", value);
	word(w, option);
	word(w, s);
}

static void words_release(struct words *w)
{
	for (size_t i = 0; i < w->count; i++)
		free(w->list[i]);
	free(w->list);
}

/* The system as the program sees it. /etc/alternatives holds the links that Debian's BLAS goes through, nothing else. */
static void add_system(struct words *w, const struct sandbox_limits *limits)
{
	static const char *const isolation[] = {
		"--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--hostname", "sandbox",
		"--clearenv", "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/tmp", "--setenv", "TMPDIR", "/tmp",
		"--setenv", "LC_ALL", "C", "--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/alternatives", "/etc/alternatives",
		"--dev", "/dev", "--proc", "/proc", NULL };
	static const char *const roots[] = { "/bin", "/lib", "/lib64", "/lib32", "/sbin" };
	struct stat st;

	words_from(w, isolation);
	for (size_t i = 0; i < sizeof(roots) / sizeof(*roots); i++) {
		char target[64];
		ssize_t n = readlink(roots[i], target, sizeof(target) - 1);

		if (n > 0) {
			target[n] = 0;
			words_from(w, (const char *const[]){ "--symlink", target, roots[i], NULL });
		} else if (stat(roots[i], &st) == 0) {
			words_from(w, (const char *const[]){ "--ro-bind", roots[i], roots[i], NULL });
		}
	}
	words_number(w, "--size", (limits->scratch_mb ? limits->scratch_mb : DEFAULT_MB) * MB);
	words_from(w, (const char *const[]){ "--tmpfs", "/tmp", NULL });
	words_number(w, "--size", (limits->scratch_mb ? limits->scratch_mb : DEFAULT_MB) * MB);
	words_from(w, (const char *const[]){ "--tmpfs", "/dev/shm", "--perms", "0755", "--dir", "/km", NULL });
}

/* Devices, libraries and variables of one program. What is below /usr is there already. */
static void add_extras(struct words *w, const struct sandbox_spec *spec)
{
	for (const char *const *at = spec->devices; at && *at; at++)
		words_from(w, (const char *const[]){ "--dev-bind", *at, *at, NULL });
	if (spec->libraries)
		words_from(w, (const char *const[]){ "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", NULL });
	for (const char *const *at = spec->libraries; at && *at; at++)
		if (!starts_with(*at, "/usr/"))
			words_from(w, (const char *const[]){ "--ro-bind", *at, *at, NULL });
	for (const char *const *at = spec->environment; at && *at; at++) {
		char *name = xstrndup(*at, strcspn(*at, "="));

		words_from(w, (const char *const[]){ "--setenv", name, *at + strcspn(*at, "=") + 1, NULL });
		free(name);
	}
}

/* Process 1 is bubblewrap's own, which no filter of system calls binds and nobody stops: its memory must not be open to the
 * program. A program that has devices gets no read-only /proc: the driver of a GPU fails if it cannot write the names of its
 * threads there (CUDA 13.0, cudaErrorOperatingSystem). */
static void add_proc(struct words *w, bool writable)
{
	if (writable)
		words_from(w, (const char *const[]){ "--size", "4096", "--tmpfs", "/proc/1", "--remount-ro", "/proc/1", NULL });
	else
		words_from(w, (const char *const[]){ "--remount-ro", "/proc", NULL });
}

static void add_files(struct words *w, const struct sandbox_spec *spec, const int *files)
{
	for (size_t i = 0; i < spec->file_count; i++) {
		char *destination = xasprintf("/km/%s", spec->files[i].name);

		words_from(w, (const char *const[]){ "--perms", "0555", NULL });
		words_number(w, "--ro-bind-data", (unsigned long)files[i]);
		word(w, destination);
		free(destination);
	}
	add_proc(w, spec->devices != NULL);
	words_from(w, (const char *const[]){ "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/km", NULL });
}

/* RLIMIT_NPROC is set inside, by prlimit: outside it would count all processes of the user. */
static void add_program(struct words *w, const struct sandbox_spec *spec)
{
	word(w, "--");
	if (spec->limits.processes) {
		char *option = xasprintf("--nproc=%d", spec->limits.processes);

		words_from(w, (const char *const[]){ "/usr/bin/prlimit", option, "--", NULL });
		free(option);
	}
	words_from(w, spec->argv);
}

/* Own descriptors with own offsets, since two sandboxes may be handed the same file at one time. */
static int reopen_files(const struct sandbox_spec *spec, int *files, struct error *err)
{
	for (size_t i = 0; i < spec->file_count; i++) {
		char path[64];

		snprintf(path, sizeof(path), "/proc/self/fd/%d", spec->files[i].fd);
		files[i] = open(path, O_RDONLY | O_CLOEXEC);
		if (files[i] < 0)
			return error_set(err, KM_EXIT_ENVIRONMENT, "cannot hand '%s' to the sandbox: %s", spec->files[i].name, strerror(errno));
	}
	return 0;
}

/* The system's, else the one in lib/ beside the program, which a bundle (tools/bundle) carries. */
static const char *find_bubblewrap(void)
{
	static const char *const places[] = { "/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap" };
	static char beside[PATH_MAX + 16];
	const char *named = getenv("KM_BWRAP");
	ssize_t n = readlink("/proc/self/exe", beside, PATH_MAX);
	char *slash;

	if (named && named[0] == '/')
		return access(named, X_OK) == 0 ? named : NULL;
	for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++)
		if (access(places[i], X_OK) == 0)
			return places[i];
	beside[n > 0 ? n : 0] = 0;
	slash = strrchr(beside, '/');
	if (!slash)
		return NULL;
	strcpy(slash, "/lib/bwrap");
	return access(beside, X_OK) == 0 ? beside : NULL;
}

static int no_bubblewrap(struct error *err, const char *why)
{
	return error_set(err, KM_EXIT_ENVIRONMENT,
			 "no sandbox: %s (untrusted code needs bubblewrap: install it, allow unprivileged user namespaces, "
			 "or run it unprotected with --no-sandbox)", why);
}

/* Take what bubblewrap has reported since. False at the end, and when there is nothing to take. */
static bool read_report(struct sandbox *s)
{
	ssize_t n = read(s->status_fd, s->report + s->report_len, sizeof(s->report) - 1 - s->report_len);

	if (n > 0)
		s->report_len += (size_t)n;
	return n > 0;
}

/* Wait for bubblewrap's first line, {"child-pid": N, ...}. If the program is fast the last one may come along with it. */
static int read_init(struct sandbox *s)
{
	double until = monotonic_seconds() + START_SECONDS;

	while (monotonic_seconds() < until) {
		struct pollfd p = { .fd = s->status_fd, .events = POLLIN };
		const char *found;

		if (poll(&p, 1, TICK_MS) <= 0)
			continue;
		if (!read_report(s))
			return -1;
		found = strstr(s->report, "\"child-pid\":");
		if (found && strchr(found, '\n'))
			return sscanf(found, "\"child-pid\": %d", &s->init) == 1 && s->init > 1 ? 0 : -1;
	}
	return -1;
}

/* A fast program may have ended and its process 1 been reaped: then the number is nobody's, or already another's. */
static void open_init(struct sandbox *s)
{
	char path[64], state;
	pid_t parent;

	snprintf(path, sizeof(path), "/proc/%d/stat", s->init);
	s->init_handle = (int)syscall(SYS_pidfd_open, s->init, 0);
	if (read_stat(path, &state, &parent) && parent == s->child)
		return;
	close_if(s->init_handle);
	s->init_handle = -1;
}

static void reap(struct sandbox *s)
{
	while (!s->ended && waitpid(s->child, &s->wait_status, 0) < 0 && errno == EINTR)
		;
	s->ended = true;
}

static int start_bubblewrap(struct sandbox *s, const struct sandbox_spec *spec, const struct words *w, int *inherit, size_t count,
			    struct error *err)
{
	struct launch l = { .spec = spec, .argv = (const char *const *)w->list, .inherit = inherit, .inherit_count = count,
			    .environment = "TMPDIR=/tmp" };

	s->child = launch(&l);
	if (s->child < 0)
		return no_bubblewrap(err, strerror(errno));
	close(inherit[count - 1]);
	inherit[count - 1] = -1;
	if (read_init(s) < 0) {
		kill(s->child, SIGKILL);
		reap(s);
		return no_bubblewrap(err, monotonic_seconds() - s->start > START_SECONDS ? "bubblewrap did not begin in time" :
				     "bubblewrap is refused by this machine");
	}
	open_init(s);
	return 0;
}

static int start_inside(struct sandbox *s, const struct sandbox_spec *spec, struct error *err)
{
	const char *bwrap = find_bubblewrap();
	size_t count = spec->keep_count + spec->file_count + 1;
	int *inherit = xreallocarray(NULL, count, sizeof(*inherit)), status[2] = { -1, -1 }, result;
	int *files = inherit + spec->keep_count;
	struct words w = { NULL, 0 };

	for (size_t i = 0; i < count; i++)
		inherit[i] = i < spec->keep_count ? spec->keep[i] : -1;
	result = bwrap ? reopen_files(spec, files, err) : no_bubblewrap(err, "bubblewrap is not installed");
	if (result == 0 && pipe2(status, O_CLOEXEC) < 0)
		result = error_set(err, KM_EXIT_ENVIRONMENT, "cannot make a pipe: %s", strerror(errno));
	if (result == 0) {
		s->status_fd = status[0];
		inherit[count - 1] = status[1];
		word(&w, bwrap);
		add_system(&w, &spec->limits);
		add_extras(&w, spec);
		add_files(&w, spec, files);
		words_number(&w, "--json-status-fd", (unsigned long)status[1]);
		add_program(&w, spec);
		result = start_bubblewrap(s, spec, &w, inherit, count, err);
	}
	for (size_t i = spec->keep_count; i < count; i++)
		close_if(inherit[i]);
	free(inherit);
	words_release(&w);
	return result;
}

/* ---- starting: without --------------------------------------------------------------------------------------------- */

static int copy_file(int from, const char *folder, const char *name)
{
	char *path = xasprintf("%s/%s", folder, name), chunk[1 << 16];
	int to = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0500);
	ssize_t n = to < 0 ? -1 : 1;

	while (n > 0) {
		n = read(from, chunk, sizeof(chunk));
		if (n > 0 && write(to, chunk, (size_t)n) != n)
			n = -1;
	}
	if (to >= 0 && close(to) < 0)
		n = -1;
	free(path);
	return (int)n;
}

static int start_outside(struct sandbox *s, const struct sandbox_spec *spec, struct error *err)
{
	struct launch l = { .spec = spec, .argv = spec->argv, .inherit = (int *)spec->keep, .inherit_count = spec->keep_count };
	int *files = xreallocarray(NULL, spec->file_count, sizeof(*files)), result;
	char *environment;

	for (size_t i = 0; i < spec->file_count; i++)
		files[i] = -1;
	s->scratch = process_scratch_make(err);
	result = s->scratch ? reopen_files(spec, files, err) : -1;
	for (size_t i = 0; i < spec->file_count; i++) {
		if (result == 0 && copy_file(files[i], s->scratch, spec->files[i].name) < 0)
			result = error_set(err, KM_EXIT_ENVIRONMENT, "cannot copy '%s': %s", spec->files[i].name, strerror(errno));
		close_if(files[i]);
	}
	free(files);
	environment = xasprintf("TMPDIR=%s", s->scratch ? s->scratch : "/tmp");
	l.folder = s->scratch;
	l.environment = environment;
	if (result == 0 && (s->child = launch(&l)) < 0)
		result = error_set(err, KM_EXIT_ENVIRONMENT, "cannot start '%s': %s", spec->argv[0], strerror(errno));
	free(environment);
	return result;
}

static bool extras_fit(const struct sandbox_spec *spec)
{
	size_t n = 0;

	for (const char *const *at = spec->environment; at && *at; at++, n++)
		if ((*at)[0] == '=' || !strchr(*at, '='))
			return false;
	return n <= MAX_ENVIRONMENT;
}

struct sandbox *sandbox_start(const struct sandbox_spec *spec, struct error *err)
{
	struct sandbox *s;

	if (!extras_fit(spec)) {
		error_set(err, KM_EXIT_ENVIRONMENT, "too many variables for a sandbox, or one without '='");
		return NULL;
	}
	s = xcalloc(1, sizeof(*s));
	s->init_handle = s->status_fd = -1;
	s->start = monotonic_seconds();
	s->wall_seconds = spec->limits.wall_seconds;
	s->memory_bytes = spec->limits.memory_bytes;
	if ((spec->no_sandbox ? start_outside : start_inside)(s, spec, err) == 0)
		return s;
	close_if(s->status_fd);
	if (s->scratch)
		process_scratch_remove(s->scratch);
	free(s->scratch);
	free(s);
	return NULL;
}

/* ---- while it runs ------------------------------------------------------------------------------------------------- */

pid_t sandbox_pid(struct sandbox *s)
{
	double until = monotonic_seconds() + START_SECONDS;
	struct family *f;

	if (s->program || !s->init)
		return s->program ? s->program : s->child;
	f = xmalloc(sizeof(*f));
	do {
		family_find(f, s);
		if (f->count == 0)
			sleep_ms(1);
	} while (f->count == 0 && monotonic_seconds() < until && sandbox_check(s));
	s->program = f->count ? f->pids[0] : 0;
	free(f);
	return s->program ? s->program : -1;
}

static void kill_all(struct sandbox *s)
{
	s->killed = true;
	if (s->init_handle >= 0)
		syscall(SYS_pidfd_send_signal, s->init_handle, SIGKILL, NULL, 0);
	if (!s->ended)
		kill(s->child, SIGKILL);
}

void sandbox_kill(struct sandbox *s)
{
	kill_all(s);
}

static bool has_ended(struct sandbox *s)
{
	pid_t pid = s->ended ? 0 : waitpid(s->child, &s->wait_status, WNOHANG);

	if (pid == s->child)
		s->ended = true;
	return s->ended;
}

bool sandbox_check(struct sandbox *s)
{
	if (s->killed || has_ended(s))
		return false;
	if (s->wall_seconds > 0 && monotonic_seconds() - s->start > s->wall_seconds)
		s->timed_out = true;
	else if (over_memory(s))
		s->over_memory = true;
	if (s->timed_out || s->over_memory)
		kill_all(s);
	return !s->killed;
}

double sandbox_cpu_seconds(struct sandbox *s)
{
	struct timespec t;
	clockid_t clock;
	pid_t pid = sandbox_pid(s);

	if (pid <= 0 || clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &t) < 0)
		return -1;
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* True if every thread is stopped; *gone if there is none. */
static bool all_stopped(pid_t pid, bool *gone)
{
	struct dirent *entry;
	bool stopped = true;
	char path[96], state = 'X';
	pid_t parent;
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	tasks = opendir(path);
	*gone = tasks == NULL;
	while (tasks && (entry = readdir(tasks)) != NULL) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%.20s/stat", pid, entry->d_name);
		if (!read_stat(path, &state, &parent))
			continue;
		if (state == 'Z' || state == 'X')
			*gone = true;
		stopped = stopped && (state == 'T' || state == 't');
	}
	if (tasks)
		closedir(tasks);
	return stopped;
}

bool sandbox_stop(struct sandbox *s)
{
	pid_t pid = sandbox_pid(s);
	bool gone = false;

	if (pid <= 0 || kill(pid, SIGSTOP) < 0)
		return false;
	while (!all_stopped(pid, &gone) && !gone)
		sched_yield();
	return !gone;
}

bool sandbox_continue(struct sandbox *s)
{
	pid_t pid = sandbox_pid(s);

	return pid > 0 && kill(pid, SIGCONT) == 0;
}

/* ---- its end --------------------------------------------------------------------------------------------------------- */

/* Bubblewrap reports {"exit-code": N} only if the program was begun. */
static bool program_began(struct sandbox *s)
{
	if (!s->init)
		return true;
	fcntl(s->status_fd, F_SETFL, O_NONBLOCK);
	while (read_report(s))
		;
	return strstr(s->report, "\"exit-code\"") != NULL;
}

static void describe_end(struct sandbox *s, struct process_result *result)
{
	process_result_status(result, s->wait_status);
	if (s->init && result->exit_code > 128 && result->exit_code <= 128 + SIGRTMAX) {
		result->signal = result->exit_code - 128;
		result->exit_code = -1;
	}
	result->timed_out = s->timed_out;
	result->over_memory = s->over_memory;
	result->not_started = !s->killed && !program_began(s);
	result->seconds = monotonic_seconds() - s->start;
}

/* Process 1 of the sandbox is gone only when every other process in it is. */
static void wait_until_empty(struct sandbox *s)
{
	struct pollfd p = { .fd = s->init_handle, .events = POLLIN };

	if (s->init_handle < 0)
		return;
	syscall(SYS_pidfd_send_signal, s->init_handle, SIGKILL, NULL, 0);
	while (poll(&p, 1, -1) < 0 && errno == EINTR)
		;
	close(s->init_handle);
}

void sandbox_end(struct sandbox *s, double seconds, struct process_result *result)
{
	double until = monotonic_seconds() + seconds;

	for (long ms = 1; monotonic_seconds() < until && sandbox_check(s); ms = ms < TICK_MS ? ms * 2 : TICK_MS)
		sleep_ms(ms);
	if (!has_ended(s)) {
		kill_all(s);
		if (!s->init)
			process_kill_session(s->child);
		reap(s);
	} else if (!s->init) {
		process_kill_session(s->child);
	}
	wait_until_empty(s);
	describe_end(s, result);
	close_if(s->status_fd);
	if (s->scratch)
		process_scratch_remove(s->scratch);
	free(s->scratch);
	free(s);
}

static bool run_tick(void *context)
{
	return sandbox_check(context);
}

/* Append what bubblewrap said before it gave up. */
static void add_its_words(int fd, struct error *err)
{
	char text[256];
	ssize_t n;

	fcntl(fd, F_SETFL, O_NONBLOCK);
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0 || !err)
		return;
	text[n] = 0;
	text[strcspn(text, "\n")] = 0;
	snprintf(err->text + strlen(err->text), sizeof(err->text) - strlen(err->text), ": %s", text);
}

int sandbox_run(const struct sandbox_spec *spec, const void *input, size_t input_len, size_t output_ceiling,
		size_t diagnostics_ceiling, struct process_result *result, struct error *err)
{
	struct sandbox_spec own = *spec;
	int in, out[2] = { -1, -1 }, diagnostics[2] = { -1, -1 };
	struct sandbox *s = NULL;

	process_result_init(result, output_ceiling, diagnostics_ceiling);
	in = process_memfd("input", input, input_len, err);
	if (in < 0)
		return -1;
	if (pipe2(out, O_CLOEXEC) < 0 || pipe2(diagnostics, O_CLOEXEC) < 0) {
		error_set(err, KM_EXIT_ENVIRONMENT, "cannot make a pipe: %s", strerror(errno));
	} else {
		own.stdin_fd = in;
		own.stdout_fd = out[1];
		own.stderr_fd = diagnostics[1];
		s = sandbox_start(&own, err);
	}
	close(in);
	close_if(out[1]);
	close_if(diagnostics[1]);
	if (!s) {
		close_if(out[0]);
		if (diagnostics[0] >= 0)
			add_its_words(diagnostics[0], err);
		return -1;
	}
	process_collect(out[0], diagnostics[0], result, run_tick, s);
	sandbox_end(s, result->overflowed ? 0 : spec->limits.wall_seconds + 1, result);
	if (result->not_started) {
		result->diagnostics.data[strcspn(result->diagnostics.data, "\n")] = 0;
		return no_bubblewrap(err, result->diagnostics.len ? result->diagnostics.data : "bubblewrap is refused by this machine");
	}
	return 0;
}
