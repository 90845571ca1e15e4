#include "runner_process.h"

#include "util.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
	TICK_MS = 20,          /* how often limits are looked at while we wait */
	START_SECONDS = 20,    /* for HELLO and LOADED */
	WALL_SECONDS = 3600,   /* of a whole runner; every question has its own limit */
	WRAPPER_SCRATCH_MB = 256,
};

/* ---- names ------------------------------------------------------------------------------------------------------ */

/* Those that kernels try; others are shown by number. */
static const struct {
	long nr;
	const char *name;
} syscalls[] = {
#define CALL(name) { SYS_##name, #name }
	CALL(read), CALL(write), CALL(readv), CALL(writev), CALL(openat), CALL(close), CALL(mmap), CALL(mprotect), CALL(munmap),
	CALL(mremap), CALL(brk), CALL(madvise), CALL(rt_sigaction), CALL(rt_sigprocmask), CALL(rt_sigreturn), CALL(sigaltstack),
	CALL(tgkill), CALL(tkill), CALL(kill), CALL(gettid), CALL(getpid), CALL(getppid), CALL(exit), CALL(exit_group),
	CALL(clone), CALL(clone3), CALL(execve), CALL(execveat), CALL(ptrace), CALL(process_vm_readv), CALL(process_vm_writev),
	CALL(socket), CALL(connect), CALL(bind), CALL(sendto), CALL(sendmsg), CALL(recvfrom), CALL(recvmsg), CALL(socketpair),
	CALL(futex), CALL(nanosleep), CALL(clock_nanosleep), CALL(clock_gettime), CALL(clock_settime), CALL(gettimeofday),
	CALL(setitimer), CALL(timer_create), CALL(timerfd_create), CALL(memfd_create), CALL(shmat), CALL(shmget),
	CALL(sched_setaffinity), CALL(sched_yield), CALL(sched_setscheduler), CALL(setpriority), CALL(prctl), CALL(seccomp),
	CALL(io_uring_setup), CALL(io_setup), CALL(bpf), CALL(perf_event_open), CALL(userfaultfd), CALL(mount), CALL(unshare),
	CALL(ioctl), CALL(fcntl), CALL(dup), CALL(pipe2), CALL(eventfd2), CALL(getrandom), CALL(uname), CALL(newfstatat),
	CALL(statx), CALL(unlinkat), CALL(renameat2), CALL(mkdirat), CALL(personality), CALL(mlock), CALL(mbind),
#if defined(__x86_64__)
	CALL(open), CALL(fork), CALL(vfork), CALL(alarm), CALL(pause), CALL(unlink), CALL(mkdir), CALL(rename), CALL(stat),
	CALL(access), CALL(arch_prctl), CALL(time), CALL(pipe), CALL(dup2), CALL(creat),
#endif
#undef CALL
};

static const char *syscall_name(uint64_t nr, char text[32])
{
	for (size_t i = 0; i < sizeof(syscalls) / sizeof(*syscalls); i++)
		if ((uint64_t)syscalls[i].nr == nr)
			return syscalls[i].name;
	snprintf(text, 32, "%" PRIu64, nr);
	return text;
}

static const char *signal_name(int64_t signal, char text[32])
{
	const char *name = signal > 0 && signal < NSIG ? sigabbrev_np((int)signal) : NULL;

	snprintf(text, 32, name ? "SIG%s" : "signal %.0s%" PRId64, name ? name : "", signal);
	return text;
}

/* ---- ends ------------------------------------------------------------------------------------------------------- */

static bool is_interrupted(const struct runner_process *r)
{
	return r->interrupted && *r->interrupted;
}

static void end_sandbox(struct runner_process *r, double seconds, struct process_result *end)
{
	sandbox_end(r->sandbox, seconds, end);
	r->sandbox = NULL;
	close(r->socket);
	if (r->stat_fd >= 0)
		close(r->stat_fd);
}

/* The end of the socket tells it to go; the sandbox's own limit bounds how long that takes. */
static void let_end(struct runner_process *r)
{
	shutdown(r->socket, SHUT_RDWR);
	while (!is_interrupted(r) && sandbox_check(r->sandbox))
		poll(NULL, 0, TICK_MS);
}

void runner_process_kill(struct runner_process *r)
{
	if (r->sandbox && !r->wrapped)
		sandbox_kill(r->sandbox);
}

void runner_process_end(struct runner_process *r)
{
	struct process_result end = { 0 };

	if (!r->sandbox)
		return;
	if (r->wrapped)
		let_end(r);
	end_sandbox(r, 0, &end);
}

static void refuse_call(const char *what, uint64_t nr, struct verdict *v)
{
	char text[32];
	const char *name = syscall_name(nr, text);

	if (nr == SYS_exit_group || nr == SYS_exit)
		verdict_set(v, VERDICT_REJECTED, "exit", "%s ended the process (%s)", what, name);
	else
		verdict_set(v, VERDICT_REJECTED, "system-call", "%s made the system call %s, which no kernel may", what, name);
}

/* The runner is gone without a word: read from how it ended what happened. */
static void bury(struct runner_process *r, const char *what, struct verdict *v)
{
	struct process_result end = { 0 };
	char text[32];

	end_sandbox(r, 0.5, &end);
	if (end.over_memory)
		verdict_set(v, VERDICT_REJECTED, "memory", "%s used more memory than the task allows", what);
	else if (end.timed_out)
		verdict_set(v, VERDICT_TIMEOUT, NULL, "%s: the runner passed %g s", what, r->wall_seconds);
	else if (end.signal == SIGSYS)
		verdict_set(v, VERDICT_REJECTED, "system-call", "%s made a system call that no kernel may", what);
	else if (end.signal > 0)
		verdict_set(v, VERDICT_RUNTIME_ERROR, NULL, "%s was ended by %s", what, signal_name(end.signal, text));
	else
		verdict_set(v, VERDICT_REJECTED, "exit", "%s ended the process with status %d", what, end.exit_code);
}

static void explain_fault(const struct protocol_message *m, const char *what, uint64_t *fault_address, struct verdict *v)
{
	char text[32];

	if (m->value == SIGSYS) {
		refuse_call(what, m->where[1], v);
		return;
	}
	if (m->value == SIGSEGV || m->value == SIGBUS)
		*fault_address = m->where[0];
	/* A fault at an address is put into words by who knows what lies there. */
	if (!*fault_address)
		verdict_set(v, VERDICT_RUNTIME_ERROR, NULL, "%s was ended by %s", what, signal_name(m->value, text));
}

/* ---- waiting ---------------------------------------------------------------------------------------------------- */

/* Wait for one packet. 1: it is in *m; 0: the runner has ended or is too late, *v says which; -1: interrupted. If *late is
 * given, it is set for one who is too late, and nothing else happens. */
static int receive(struct runner_process *r, double seconds, const char *what, struct protocol_message *m, bool *late,
		   struct verdict *v, struct error *err)
{
	double deadline = monotonic_seconds() + seconds;

	for (;;) {
		struct pollfd p = { .fd = r->socket, .events = POLLIN };
		int ready = poll(&p, 1, TICK_MS);
		ssize_t n;

		if (is_interrupted(r))
			return error_set(err, KM_EXIT_ENVIRONMENT, "interrupted");
		if (ready < 0 && errno == EINTR)
			continue;
		if (ready > 0) {
			n = recv(r->socket, m, sizeof(*m), MSG_DONTWAIT | MSG_TRUNC);
			if (n == sizeof(*m))
				return 1;
			if (n < 0 && (errno == EAGAIN || errno == EINTR))
				continue;
			if (n > 0) {
				runner_process_end(r);
				verdict_set(v, VERDICT_REJECTED, "protocol", "%s wrote to the judge's socket", what);
				return 0;
			}
		}
		if (ready != 0 || !sandbox_check(r->sandbox)) {
			bury(r, what, v);
			return 0;
		}
		if (monotonic_seconds() > deadline && late) {
			*late = true;
			return 0;
		}
		if (monotonic_seconds() > deadline) {
			runner_process_end(r);
			verdict_set(v, VERDICT_TIMEOUT, NULL, "%s did not return within %g s", what, seconds);
			return 0;
		}
	}
}

/* Is the process asleep in the kernel, as it is when it waits for a question? True also if it is gone. */
static bool is_asleep(const struct runner_process *r)
{
	char text[512], *p;
	ssize_t n = pread(r->stat_fd, text, sizeof(text) - 1, 0);

	if (n <= 0)
		return true;
	text[n] = 0;
	p = strrchr(text, ')');
	return !p || p[2] == 'S' || p[2] == 'Z' || p[2] == 'X';
}

/* Let it go on to where it waits for the question, so that its waking up is not in the time of the call. One that does
 * not go to sleep is found out by its CPU time. */
static void wake(struct runner_process *r)
{
	double start = monotonic_seconds();
	struct timespec pause = { 0, 50000 };

	if (r->wrapped)
		return;
	sandbox_continue(r->sandbox);
	for (int i = 0; !is_asleep(r) && monotonic_seconds() < start + 0.2; i++)
		if (i > 100)
			nanosleep(&pause, NULL);
}

static void refuse_talk(struct runner_process *r, const char *what, struct verdict *v)
{
	verdict_set(v, VERDICT_REJECTED, "protocol", "%s wrote to the judge's socket", what);
	runner_process_end(r);
}

/* Read what came back; on anything but the answer that was asked for the runner ends. */
static void take_answer(struct runner_process *r, enum protocol_kind expected, struct protocol_message *m, const char *what,
			uint64_t *fault_address, struct verdict *v)
{
	if (m->magic == PROTOCOL_MAGIC && m->kind == PROTOCOL_FAULT) {
		explain_fault(m, what, fault_address, v);
		runner_process_end(r);
	} else if (m->magic != PROTOCOL_MAGIC || m->serial != r->serial || m->kind != expected) {
		refuse_talk(r, what, v);
	} else if (expected == PROTOCOL_LOADED && m->value < 0) {
		m->text[PROTOCOL_TEXT_MAX - 1] = 0;
		verdict_set(v, VERDICT_RUNTIME_ERROR, NULL, "%s: %s", what, m->text);
		runner_process_end(r);
	}
}

/* Stopped first: the accounts of one that runs on lag behind, by up to a tick of 4 ms. */
static void stop(struct runner_process *r)
{
	r->runs_on = false;
	if (r->wrapped)
		return;
	sandbox_stop(r->sandbox);
	r->cpu_at_answer = sandbox_cpu_seconds(r->sandbox);
}

/* One that is to run on is not stopped; its gap is that from the last time it was. */
struct exchange {
	struct protocol_message *question; /* NULL: it was sent before */
	enum protocol_kind expected;
	double seconds;
	const char *what;
	bool patient; /* one who is late is not killed */
};

/* 1: the packet that is to be taken is in *m; else as receive. */
static int send_and_receive(struct runner_process *r, const struct exchange *x, struct protocol_message *m,
			    struct runner_answer *answer, struct verdict *v, struct error *err)
{
	/* Whatever is here now was said before it was asked. */
	if (x->question && recv(r->socket, m, sizeof(*m), MSG_DONTWAIT) > 0 && m->kind != PROTOCOL_FAULT) {
		refuse_talk(r, x->what, v);
		return 0;
	}
	if (m->kind == PROTOCOL_FAULT)
		return 1;
	if (x->question && send(r->socket, x->question, sizeof(*x->question), MSG_NOSIGNAL) != sizeof(*x->question)) {
		bury(r, x->what, v);
		return 0;
	}
	return receive(r, x->seconds, x->what, m, x->patient ? &answer->late : NULL, v, err);
}

static int exchange(struct runner_process *r, const struct exchange *x, struct runner_answer *answer, uint64_t *fault_address,
		    struct verdict *v, struct error *err)
{
	struct protocol_message m = { .kind = 0 };
	double start, cpu = 0;
	int got;

	*fault_address = 0;
	*answer = (struct runner_answer){ .value = 0 };
	if (x->question) {
		x->question->magic = PROTOCOL_MAGIC;
		x->question->serial = ++r->serial;
	}
	if (!r->runs_on) {
		wake(r);
		cpu = sandbox_cpu_seconds(r->sandbox);
		answer->gap = cpu - r->cpu_at_answer;
	}
	start = monotonic_seconds();
	got = send_and_receive(r, x, &m, answer, v, err);
	answer->seconds = monotonic_seconds() - start;
	r->runs_on = x->expected == PROTOCOL_ENQUEUED;
	if (got <= 0)
		return got;
	if (!r->runs_on) {
		stop(r);
		answer->cpu = r->cpu_at_answer - cpu;
	}
	answer->value = m.value;
	memcpy(answer->where, m.where, sizeof(answer->where));
	memcpy(answer->text, m.text, sizeof(answer->text) - 1);
	take_answer(r, x->expected, &m, x->what, fault_address, v);
	return 0;
}

int runner_process_ask(struct runner_process *r, struct protocol_message *question, double seconds, const char *what,
		       struct runner_answer *answer, uint64_t *fault_address, struct verdict *v, struct error *err)
{
	enum protocol_kind expected = question->kind == PROTOCOL_LOAD ? PROTOCOL_LOADED : PROTOCOL_ANSWER;
	struct exchange x = { question, expected, seconds, what, false };

	return exchange(r, &x, answer, fault_address, v, err);
}

int runner_process_enqueue(struct runner_process *r, struct protocol_message *question, double seconds, const char *what,
			   struct runner_answer *answer, uint64_t *fault_address, struct verdict *v, struct error *err)
{
	struct exchange x = { question, PROTOCOL_ENQUEUED, seconds, what, true };

	return exchange(r, &x, answer, fault_address, v, err);
}

int runner_process_await(struct runner_process *r, double seconds, const char *what, struct runner_answer *answer,
			 uint64_t *fault_address, struct verdict *v, struct error *err)
{
	struct exchange x = { NULL, PROTOCOL_ENQUEUED, seconds, what, true };

	return exchange(r, &x, answer, fault_address, v, err);
}

/* ---- starting --------------------------------------------------------------------------------------------------- */

char *runner_program_path(const char *name)
{
	char self[PATH_MAX], *slash, *variable = xstrdup(name), *path;
	const char *named;
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	self[n > 0 ? n : 0] = 0;
	slash = strrchr(self, '/');
	for (char *p = variable; *p; p++)
		*p = (char)(*p == '-' ? '_' : toupper((unsigned char)*p));
	named = getenv(variable);
	path = named ? xstrdup(named) : xasprintf("%.*s/%s", slash ? (int)(slash - self) : 0, self, name);
	free(variable);
	return path;
}

static int open_runner_program(const char *name, struct error *err)
{
	char *path = runner_program_path(name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		error_set(err, KM_EXIT_ENVIRONMENT, "cannot open the runner '%s': %s", path, strerror(errno));
	free(path);
	return fd;
}

/* Copies of the descriptors above those that the child uses for itself, so that their numbers are free there too. */
static int keep_numbers(const struct runner_start *start, int socket, int *keep, struct error *err)
{
	for (size_t i = 0; i <= start->slabs.descriptor_count; i++) {
		keep[i] = fcntl(i == 0 ? socket : start->slabs.descriptors[i - 1], F_DUPFD_CLOEXEC, 40 + (int)i);
		if (keep[i] < 0) {
			while (i-- > 0)
				close(keep[i]);
			return error_set(err, KM_EXIT_ENVIRONMENT, "cannot copy a descriptor: %s", strerror(errno));
		}
	}
	return 0;
}

static double wall_seconds(const struct runner_start *start)
{
	return start->wrapper ? start->wrapper_seconds : WALL_SECONDS;
}

static struct sandbox *start_sandbox(const struct runner_start *start, int program, int library, const int *keep, struct error *err)
{
	struct sandbox_file files[] = { { program, "runner" }, { library, "kernel.so" } };
	char numbers[RUNNER_DESCRIPTORS + 1][16];
	const char *argv[RUNNER_WRAPPER_WORDS + RUNNER_DESCRIPTORS + 4];
	size_t words = 0;
	struct sandbox_spec spec = {
		.argv = argv, .files = files, .file_count = library >= 0 ? 2 : 1, .keep = keep, .keep_count = start->slabs.descriptor_count + 1,
		.devices = start->devices, .libraries = start->libraries, .environment = start->environment,
		.stdin_fd = -1, .stdout_fd = start->wrapper ? start->output : -1, .stderr_fd = start->wrapper ? start->output : -1,
		.no_sandbox = start->no_sandbox,
		.limits = { .wall_seconds = wall_seconds(start), .scratch_mb = start->wrapper ? WRAPPER_SCRATCH_MB : 0,
			    .memory_bytes = start->memory_bytes, .processes = start->processes,
			    .descriptors = start->open_files },
	};

	for (; start->wrapper && words < RUNNER_WRAPPER_WORDS && start->wrapper[words]; words++)
		argv[words] = start->wrapper[words];
	argv[words++] = "./runner";
	argv[words++] = library >= 0 ? "./kernel.so" : "-";
	for (size_t i = 0; i <= start->slabs.descriptor_count; i++) {
		snprintf(numbers[i], sizeof(numbers[i]), "%d", keep[i]);
		argv[words++] = numbers[i];
	}
	argv[words] = NULL;
	return sandbox_start(&spec, err);
}

static int launch(struct runner_process *r, const struct runner_start *start, struct error *err)
{
	int pair[2] = { -1, -1 }, keep[RUNNER_DESCRIPTORS + 1], program = open_runner_program(start->program, err), library = -1;
	bool ready = program >= 0;

	if (ready && start->library) {
		library = process_memfd("kernel.so", start->library, start->library_bytes, err);
		ready = library >= 0;
	}
	if (ready && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		error_set(err, KM_EXIT_ENVIRONMENT, "cannot make a socket pair: %s", strerror(errno));
	if (pair[1] >= 0 && keep_numbers(start, pair[1], keep, err) == 0) {
		r->sandbox = start_sandbox(start, program, library, keep, err);
		for (size_t i = 0; i <= start->slabs.descriptor_count; i++)
			close(keep[i]);
	}
	r->socket = pair[0];
	if (pair[1] >= 0)
		close(pair[1]);
	if (library >= 0)
		close(library);
	if (program >= 0)
		close(program);
	if (!r->sandbox && pair[0] >= 0)
		close(pair[0]);
	return r->sandbox ? 0 : -1;
}

int runner_process_launch(struct runner_process *r, const struct runner_start *start, struct error *err)
{
	*r = (struct runner_process){ .socket = -1, .stat_fd = -1, .wrapped = start->wrapper, .wall_seconds = wall_seconds(start),
				      .trust = start->wrapper ? PROTOCOL_TOOL : start->trusted ? PROTOCOL_TRUSTED : PROTOCOL_CANDIDATE,
				      .map_bytes = start->map_bytes, .stream = start->stream, .interrupted = start->interrupted };
	return launch(r, start, err);
}

/* For HELLO and for LOADED. */
static double start_seconds(const struct runner_process *r)
{
	return r->wrapped ? r->wall_seconds : START_SECONDS;
}

/* handed NULL: it has inherited what it needs. */
static bool send_setup(const struct runner_process *r, struct protocol_message *m, const struct runner_slabs *handed)
{
	unsigned char control[CMSG_SPACE(RUNNER_DESCRIPTORS * sizeof(int))] __attribute__((aligned(16))) = { 0 };
	struct iovec part = { m, sizeof(*m) };
	struct msghdr header = { .msg_iov = &part, .msg_iovlen = 1 };
	ssize_t sent;

	if (handed) {
		size_t bytes = handed->descriptor_count * sizeof(int);
		struct cmsghdr *c;

		header.msg_control = control;
		header.msg_controllen = CMSG_SPACE(bytes);
		c = CMSG_FIRSTHDR(&header);
		*c = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(bytes) };
		memcpy(CMSG_DATA(c), handed->descriptors, bytes);
	}
	do
		sent = sendmsg(r->socket, &header, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	return sent == sizeof(*m);
}

/* No code of the kernel has run yet, so a failure here is the machine's. */
static int greet(struct runner_process *r, const uint64_t *slab_bytes, const struct runner_slabs *handed, struct error *err)
{
	struct protocol_message m = { .magic = PROTOCOL_MAGIC, .kind = PROTOCOL_SETUP, .value = r->trust, .limit = r->map_bytes,
				      .stream = r->stream };
	struct verdict v = { 0 };
	char path[64];
	pid_t pid;
	int got;

	memcpy(m.where, slab_bytes, sizeof(m.where));
	if (send_setup(r, &m, handed)) {
		got = receive(r, start_seconds(r), "the runner", &m, NULL, &v, err);
	} else {
		bury(r, "the runner", &v);
		got = 0;
	}
	if (got < 0)
		return -1;
	if (got == 0 || m.magic != PROTOCOL_MAGIC || m.kind != PROTOCOL_HELLO)
		return error_set(err, KM_EXIT_ENVIRONMENT, "the runner did not start in its sandbox: %s", v.message);
	m.text[PROTOCOL_TEXT_MAX - 1] = 0;
	if (m.value < 0 && m.text[0])
		return error_set(err, KM_EXIT_ENVIRONMENT, "the runner cannot start: %s", m.text);
	if (m.value < 0)
		return error_set(err, KM_EXIT_ENVIRONMENT, "this kernel does not let a process filter its system calls (seccomp)");
	memcpy(r->base, m.where, sizeof(r->base));
	pid = sandbox_pid(r->sandbox);
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	r->stat_fd = open(path, O_RDONLY | O_CLOEXEC);
	if (pid < 0 || r->stat_fd < 0)
		return error_set(err, KM_EXIT_ENVIRONMENT, "cannot find the runner's process");
	return 0;
}

int runner_process_set_up(struct runner_process *r, const struct runner_slabs *slabs, struct error *err)
{
	if (greet(r, slabs->bytes, slabs, err) == 0)
		return 0;
	runner_process_end(r);
	return -1;
}

int runner_process_load(struct runner_process *r, int64_t *functions, struct verdict *v, struct error *err)
{
	struct protocol_message m = { .kind = PROTOCOL_LOAD };
	struct runner_answer answer;
	uint64_t address;

	*functions = 0;
	if (runner_process_ask(r, &m, start_seconds(r), "opening the library", &answer, &address, v, err) < 0) {
		runner_process_end(r);
		return -1;
	}
	if (address)
		verdict_set(v, VERDICT_RUNTIME_ERROR, NULL, "opening the library was ended by a memory fault");
	*functions = answer.value;
	return 0;
}

int runner_process_start(struct runner_process *r, const struct runner_start *start, int64_t *functions, struct verdict *v,
			 struct error *err)
{
	*functions = 0;
	if (runner_process_launch(r, start, err) < 0)
		return -1;
	if (greet(r, start->slabs.bytes, NULL, err) < 0) {
		runner_process_end(r);
		return -1;
	}
	return start->library ? runner_process_load(r, functions, v, err) : 0;
}
