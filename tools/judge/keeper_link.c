#include "keeper_link.h"

#include "gpu.h"
#include "process.h"
#include "runner_process.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	TICK_MS = 20,     /* how often it is looked at whether we were interrupted */
	SOCKET_AT = 40,   /* above those descriptors that the child uses for itself */
	END_SECONDS = 10, /* after which a keeper that does not end is killed */
};

/* ---- starting --------------------------------------------------------------------------------------------------- */

struct arguments {
	char **list;
	size_t count;
};

/* Takes the string. */
static void argument(struct arguments *a, char *s)
{
	a->list = xreallocarray(a->list, a->count + 2, sizeof(*a->list));
	a->list[a->count++] = s;
	a->list[a->count] = NULL;
}

static void make_arguments(struct arguments *a, const struct keeper_options *o, size_t participants, int socket)
{
	argument(a, runner_program_path("km-keeper-cuda"));
	argument(a, xasprintf("%d", socket));
	argument(a, xstrdup(o->gpu->device));
	argument(a, xstrdup(o->task->folder));
	argument(a, xstrdup(o->reference));
	argument(a, xasprintf("%zu", participants));
	for (size_t i = 0; i < o->workload_count; i++)
		argument(a, xasprintf("%d", o->workloads[i]));
}

static void arguments_release(struct arguments *a)
{
	for (size_t i = 0; i < a->count; i++)
		free(a->list[i]);
	free(a->list);
}

static void run_child(char **argv, int socket, int said, pid_t parent)
{
	setsid();
	if (process_child_setup(-1, -1, said, &socket, 1) && prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && getppid() == parent)
		execv(argv[0], argv);
	dprintf(STDERR_FILENO, "cannot start '%s': %s\n", argv[0], strerror(errno));
	_exit(127);
}

int keeper_link_start(struct keeper_link *l, const struct keeper_options *options, size_t participants, struct error *err)
{
	struct arguments a = { NULL, 0 };
	int pair[2] = { -1, -1 }, theirs = -1;
	pid_t parent = getpid();

	*l = (struct keeper_link){ .socket = -1, .interrupted = options->interrupted };
	l->said = memfd_create("keeper's words", MFD_CLOEXEC);
	if (l->said >= 0 && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0)
		theirs = fcntl(pair[1], F_DUPFD_CLOEXEC, SOCKET_AT);
	if (theirs >= 0) {
		make_arguments(&a, options, participants, theirs);
		l->pid = fork();
		if (l->pid == 0)
			run_child(a.list, theirs, l->said, parent);
		arguments_release(&a);
	}
	if (theirs < 0 || l->pid < 0) {
		error_set(err, KM_EXIT_ENVIRONMENT, "cannot start the keeper of the device: %s", strerror(errno));
		l->pid = 0;
	}
	l->socket = pair[0];
	if (theirs >= 0)
		close(theirs);
	if (pair[1] >= 0)
		close(pair[1]);
	if (l->pid)
		return 0;
	keeper_link_end(l);
	return -1;
}

/* ---- its end ---------------------------------------------------------------------------------------------------- */

/* True when it is reaped. */
static bool has_ended(struct keeper_link *l, double seconds)
{
	double until = monotonic_seconds() + seconds;

	while (l->pid && waitpid(l->pid, NULL, WNOHANG) == 0) {
		if (monotonic_seconds() > until)
			return false;
		poll(NULL, 0, 1);
	}
	l->pid = 0;
	return true;
}

void keeper_link_hang_up(struct keeper_link *l)
{
	if (l->socket >= 0)
		close(l->socket);
	l->socket = -1;
}

void keeper_link_end(struct keeper_link *l)
{
	keeper_link_hang_up(l);
	if (!has_ended(l, END_SECONDS)) {
		kill(l->pid, SIGKILL);
		while (waitpid(l->pid, NULL, 0) < 0 && errno == EINTR)
			;
		l->pid = 0;
	}
	if (l->said >= 0)
		close(l->said);
	l->said = -1;
}

/* The last line that it wrote. */
static void last_words(const struct keeper_link *l, char *text, size_t size)
{
	off_t end = lseek(l->said, 0, SEEK_END);
	ssize_t n = pread(l->said, text, size - 1, end > (off_t)size - 1 ? end - (off_t)size + 1 : 0);
	char *line;

	text[n > 0 ? n : 0] = 0;
	while (n > 0 && text[n - 1] == '\n')
		text[--n] = 0;
	line = strrchr(text, '\n');
	if (line)
		memmove(text, line + 1, strlen(line));
}

static int bury(struct keeper_link *l, const char *what, struct error *err)
{
	char text[400];

	has_ended(l, 1);
	last_words(l, text, sizeof(text));
	return error_set(err, KM_EXIT_ENVIRONMENT, "the keeper of the device ended (%s)%s%s", what, text[0] ? ": " : "", text);
}

/* ---- asking ----------------------------------------------------------------------------------------------------- */

/* Descriptors that nobody asked for are closed. */
static void take_descriptors(struct msghdr *header, int *descriptors)
{
	int found[KEEPER_LINK_DESCRIPTORS] = { -1, -1, -1, -1 };

	for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len <= CMSG_LEN(sizeof(found)))
			memcpy(found, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
	for (int i = 0; i < KEEPER_LINK_DESCRIPTORS; i++) {
		if (descriptors)
			descriptors[i] = found[i];
		else if (found[i] >= 0)
			close(found[i]);
	}
}

static ssize_t receive(struct keeper_link *l, struct keeper_message *m, int *descriptors)
{
	unsigned char control[CMSG_SPACE(KEEPER_LINK_DESCRIPTORS * sizeof(int))] __attribute__((aligned(16))) = { 0 };
	struct iovec part = { m, sizeof(*m) };
	struct msghdr header = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	ssize_t n;

	do
		n = recvmsg(l->socket, &header, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	take_descriptors(&header, descriptors);
	return n;
}

static int wait_for_answer(struct keeper_link *l, double seconds, const char *what, struct error *err)
{
	double until = monotonic_seconds() + seconds;

	for (;;) {
		struct pollfd p = { .fd = l->socket, .events = POLLIN };
		int ready = poll(&p, 1, TICK_MS);

		if (l->interrupted && *l->interrupted)
			return error_set(err, KM_EXIT_ENVIRONMENT, "interrupted");
		if (ready > 0)
			return 0;
		if (monotonic_seconds() > until)
			return error_set(err, KM_EXIT_ENVIRONMENT, "the keeper of the device did not answer within %g s (%s)", seconds, what);
	}
}

int keeper_link_send(struct keeper_link *l, struct keeper_message *m, const char *what, struct error *err)
{
	m->magic = KEEPER_MAGIC;
	return send(l->socket, m, sizeof(*m), MSG_NOSIGNAL) == sizeof(*m) ? 0 : bury(l, what, err);
}

int keeper_link_await(struct keeper_link *l, struct keeper_message *m, double seconds, const char *what, int *descriptors,
		      struct error *err)
{
	uint32_t kind = m->kind;

	if (wait_for_answer(l, seconds, what, err) < 0)
		return -1;
	if (receive(l, m, descriptors) != sizeof(*m))
		return bury(l, what, err);
	m->text[KEEPER_TEXT_MAX - 1] = 0;
	if (m->kind == KEEPER_FAILED)
		return error_set(err, (enum km_exit)m->value, "%s", m->text);
	if (m->magic != KEEPER_MAGIC || m->kind != KEEPER_DONE)
		return error_set(err, KM_EXIT_ENVIRONMENT, "the keeper of the device answered question %u with %u", kind, m->kind);
	return 0;
}

int keeper_link_ask(struct keeper_link *l, struct keeper_message *m, double seconds, const char *what, int *descriptors,
		    struct error *err)
{
	return keeper_link_send(l, m, what, err) < 0 ? -1 : keeper_link_await(l, m, seconds, what, descriptors, err);
}
