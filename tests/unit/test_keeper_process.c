/* km-keeper-cuda's socket, on any machine: what it says before it needs a device. */
#include "keeper_protocol.h"

#include "error.h"
#include "util.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char *program;

struct peer {
	pid_t pid;
	int socket;
};

static struct peer start(const char *folder, const char *workload)
{
	struct peer p;
	int pair[2];
	char number[16];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	p.socket = pair[0];
	p.pid = fork();
	assert_true(p.pid >= 0);
	if (p.pid == 0) {
		int nothing = open("/dev/null", O_WRONLY);

		snprintf(number, sizeof(number), "%d", pair[1]);
		close(pair[0]);
		dup2(nothing, 2);
		execl(program, program, number, "0", folder, "no-such-reference.so", "1", workload, (char *)NULL);
		_exit(127);
	}
	close(pair[1]);
	return p;
}

/* Close the socket, and tell the exit code. */
static int finish(struct peer *p)
{
	int status;

	close(p->socket);
	assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void ask(struct peer *p, enum keeper_kind kind, struct keeper_message *m)
{
	memset(m, 0, sizeof(*m));
	m->magic = KEEPER_MAGIC;
	m->kind = kind;
	m->serial = 7;
	assert_int_equal(send(p->socket, m, sizeof(*m), MSG_NOSIGNAL), sizeof(*m));
	assert_int_equal(recv(p->socket, m, sizeof(*m), 0), sizeof(*m));
	assert_int_equal(m->serial, 7);
	assert_int_equal(m->kind, KEEPER_FAILED);
}

static void expect_failure(const char *folder, const char *workload, int code, const char *text)
{
	struct peer p = start(folder, workload);
	struct keeper_message m;

	ask(&p, KEEPER_DRIVER, &m);
	assert_int_equal(m.value, code);
	assert_non_null(strstr(m.text, text));
	ask(&p, KEEPER_OPEN, &m);
	assert_int_equal(m.value, code);
	assert_non_null(strstr(m.text, text));
	assert_int_equal(finish(&p), KM_OK);
}

static void test_failures(void **state)
{
	(void)state;
	expect_failure("tasks/no-such-task", "0", KM_EXIT_INPUT, "no-such-task");
	expect_failure("tasks/sgemm_cpu", "0", KM_EXIT_INPUT, "is not cuda");
	expect_failure("tasks/rmsnorm_h4096", "0", KM_EXIT_INPUT, "cannot open the reference");
	expect_failure("tasks/rmsnorm_h4096", "9999", KM_EXIT_USAGE, "no workload number 9999");
	expect_failure("tasks/rmsnorm_h4096", "x", KM_EXIT_USAGE, "no workload number -1");
}

static void test_nonsense(void **state)
{
	struct peer p = start("tasks/rmsnorm_h4096", "0");
	char byte;

	(void)state;
	assert_int_equal(send(p.socket, "nonsense", 8, MSG_NOSIGNAL), 8);
	assert_int_equal(recv(p.socket, &byte, 1, 0), 0);
	assert_int_equal(finish(&p), KM_EXIT_ENVIRONMENT);
}

static void test_end(void **state)
{
	struct peer p = start("tasks/rmsnorm_h4096", "0");

	(void)state;
	assert_int_equal(finish(&p), KM_OK);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_failures),
		cmocka_unit_test(test_nonsense),
		cmocka_unit_test(test_end),
	};
	int result = 0;

	program = xasprintf("%s/km-keeper-cuda", getenv("KM_BIN") ? getenv("KM_BIN") : "bin");
	cmocka_set_message_output(CM_OUTPUT_TAP);
	if (access(program, X_OK) == 0)
		result = cmocka_run_group_tests(tests, NULL, NULL);
	else
		puts("1..0 # SKIP no km-keeper-cuda: there was no nvcc");
	free(program);
	return result;
}
