/* What the sandbox lets a program see, use and leave behind. Needs bubblewrap; says skipped where it does not work. */
#include "sandbox.h"

#include "util.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static const struct sandbox_limits usual = { .wall_seconds = 60, .memory_bytes = 256 << 20, .processes = 32 };

/* Run a shell script inside; stdout is returned, the caller releases *r. */
static const char *run(const char *script, struct sandbox_limits limits, struct process_result *r)
{
	const char *const argv[] = { "/bin/sh", "-c", script, NULL };
	struct sandbox_spec spec = { .argv = argv, .limits = limits };
	struct error err;

	if (sandbox_run(&spec, "input", 5, 1 << 16, 1 << 12, r, &err) < 0)
		fail_msg("%s", err.text);
	return r->output.data;
}

static void expect_output(const char *script, const char *expected)
{
	struct process_result r;

	assert_string_equal(run(script, usual, &r), expected);
	process_result_release(&r);
}

static int probe(void **state)
{
	const char *const argv[] = { "/bin/true", NULL };
	struct sandbox_spec spec = { .argv = argv, .limits = usual };
	struct process_result r;
	struct error err;
	int result = sandbox_run(&spec, NULL, 0, 1, 1024, &r, &err);

	(void)state;
	if (result < 0)
		print_message("%s\n", err.text);
	process_result_release(&r);
	return result;
}

static void test_world(void **state)
{
	(void)state;
	expect_output("cat", "input");
	expect_output("cat /etc/passwd 2>/dev/null || echo none", "none\n");
	expect_output("ls -d /home /root /var /work /etc/* 2>/dev/null", "/etc/alternatives\n");
	expect_output("for f in /x /usr/x /dev/x /km/x; do echo hi >$f; done 2>/dev/null; echo hi >/tmp/x && cat /tmp/x", "hi\n");
	expect_output("head -c 80000000 /dev/zero >/tmp/x 2>/dev/null; wc -c </tmp/x", "67108864\n");
	expect_output("test $(ls /proc | grep -c '^[0-9]') -lt 10 && echo few; ls /sys 2>/dev/null | wc -l", "few\n0\n");
	expect_output("env | sort | cut -d= -f1 | tr '\\n' ' '", "HOME LC_ALL PATH PWD TMPDIR ");
	expect_output("grep -c : /proc/net/dev; ls -l /proc/self/fd | grep -c -e '->'", "1\n4\n");
	/* Process 1 is bubblewrap's, which nobody filters or stops. */
	expect_output("for f in self 1; do (: <>/proc/$f/mem) 2>/dev/null && echo $f; done; echo closed", "closed\n");
	expect_output("grep CapEff /proc/self/status | tr -d '\\t'; ulimit -c", "CapEff:0000000000000000\n0\n");
	if (geteuid() == 0)
		expect_output("id -u; id -g; id -G", "65534\n65534\n65534\n");
}

static void test_status(void **state)
{
	struct process_result r;

	(void)state;
	run("exit 7", usual, &r);
	assert_int_equal(r.exit_code, 7);
	assert_false(r.not_started);
	process_result_release(&r);
	run("kill -SYS $$", usual, &r);
	assert_int_equal(r.exit_code, -1);
	assert_int_equal(r.signal, SIGSYS);
	process_result_release(&r);
	run("ulimit -t 1; while :; do :; done", usual, &r);
	assert_true(r.signal == SIGXCPU || r.signal == SIGKILL);
	process_result_release(&r);
}

static void test_limits(void **state)
{
	struct sandbox_limits l = usual;
	struct process_result r;

	(void)state;
	l.wall_seconds = 0.5;
	run("sleep 100 & setsid sleep 100 & sleep 100", l, &r);
	assert_true(r.timed_out);
	process_result_release(&r);
	l = usual;
	run("head -c 1000000000 /dev/zero | tail -c 999999999", l, &r);
	assert_true(r.over_memory);
	process_result_release(&r);
	run("yes", l, &r);
	assert_true(r.overflowed);
	process_result_release(&r);
	/* The first shell forks once, before there is a bomb: a later fork could find no process left, and end it. */
	run("f() { f | f & }; f & exec sleep 100", (struct sandbox_limits){ .wall_seconds = 2, .memory_bytes = 256 << 20, .processes = 32 }, &r);
	assert_true(r.timed_out);
	assert_non_null(strstr(r.diagnostics.data, "Cannot fork"));
	process_result_release(&r);
}

/* A process that outlives the program must be gone when the sandbox has ended. */
static void test_nothing_left(void **state)
{
	struct process_result r;
	int pair[2];
	char c;

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	{
		const char *const argv[] = { "/bin/sh", "-c", "setsid sleep 100 & exit 0", NULL };
		struct sandbox_spec spec = { .argv = argv, .limits = usual, .keep = &pair[1], .keep_count = 1,
					     .stdin_fd = -1, .stdout_fd = -1, .stderr_fd = -1 };
		struct error err;
		struct sandbox *s = sandbox_start(&spec, &err);

		assert_non_null(s);
		close(pair[1]);
		process_result_init(&r, 1, 1);
		sandbox_end(s, 10, &r);
	}
	assert_int_equal(r.exit_code, 0);
	/* Every process that held the other end is gone, so this does not wait. */
	assert_int_equal(recv(pair[0], &c, 1, MSG_DONTWAIT), 0);
	close(pair[0]);
	process_result_release(&r);
}

/* With devices /proc is not read-only, as drivers want it; the memory of process 1 is closed all the same. */
static void test_proc_with_devices(void **state)
{
	static const char script[] = "echo name >/proc/self/comm && echo named; ls -A /proc/1 | wc -l; "
		"for f in 1 1/task/1 self/../1; do (: <>/proc/$f/mem) 2>/dev/null && echo $f; done; umount /proc/1 2>/dev/null || echo closed";
	const char *const argv[] = { "/bin/sh", "-c", script, NULL }, *const devices[] = { "/dev/null", NULL };
	struct sandbox_spec spec = { .argv = argv, .limits = usual, .devices = devices };
	struct process_result r;
	struct error err;

	(void)state;
	assert_int_equal(sandbox_run(&spec, NULL, 0, 1 << 12, 1 << 12, &r, &err), 0);
	assert_string_equal(r.output.data, "named\n0\nclosed\n");
	process_result_release(&r);
}

/* A node of /dev, a folder of libraries, a variable: each is there if it is asked for, and can do what it could outside. */
static void test_extras(void **state)
{
	char folder[] = "/var/tmp/km-test-XXXXXX", script[200];
	const char *const argv[] = { "/bin/sh", "-c", script, NULL }, *const devices[] = { "/dev/null", NULL };
	const char *const folders[] = { folder, "/usr/lib", NULL }, *const variables[] = { "KM_A=1 2", "KM_B=", NULL };
	struct sandbox_spec spec = { .argv = argv, .limits = usual };
	struct process_result r;
	struct error err;

	(void)state;
	assert_non_null(mkdtemp(folder));
	snprintf(script, sizeof(script), "echo x >/dev/null && test -c /dev/null && echo \"$KM_A,${KM_B-unset}\"; ls -d %s; "
		 "echo x 2>/dev/null >%s/x || echo closed", folder, folder);
	for (int with = 0; with < 2; with++) {
		char expected[100];

		if (with) {
			spec.devices = devices;
			spec.libraries = folders;
			spec.environment = variables;
		}
		snprintf(expected, sizeof(expected), with ? "1 2,\n%s\nclosed\n" : ",unset\nclosed\n", folder);
		assert_int_equal(sandbox_run(&spec, NULL, 0, 1 << 12, 1 << 12, &r, &err), 0);
		assert_string_equal(r.output.data, expected);
		process_result_release(&r);
	}
	rmdir(folder);
	spec.environment = (const char *const[]){ "=x", NULL };
	assert_int_equal(sandbox_run(&spec, NULL, 0, 1, 1, &r, &err), -1);
	process_result_release(&r);
}

static void test_files(void **state)
{
	static const char script[] = "#!/bin/sh\necho \"got $(cat data)\"; echo x 2>/dev/null >data || echo read-only\n";
	const char *const argv[] = { "./script", NULL };
	struct sandbox_file files[2] = { { -1, "script" }, { -1, "data" } };
	struct sandbox_spec spec = { .argv = argv, .files = files, .file_count = 2, .limits = usual };
	struct process_result r;
	struct error err;

	(void)state;
	files[0].fd = process_memfd("script", script, strlen(script), &err);
	files[1].fd = process_memfd("data", "words", 5, &err);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(sandbox_run(&spec, NULL, 0, 1000, 1000, &r, &err), 0);
		assert_string_equal(r.output.data, "got words\nread-only\n");
		process_result_release(&r);
	}
	if (geteuid() != 0) {
		spec.no_sandbox = true;
		assert_int_equal(sandbox_run(&spec, NULL, 0, 1000, 1000, &r, &err), 0);
		assert_string_equal(r.output.data, "got words\nread-only\n");
		process_result_release(&r);
	}
	close(files[0].fd);
	close(files[1].fd);
}

static void test_stop(void **state)
{
	const char *const argv[] = { "/bin/sh", "-c", "while :; do :; done", NULL };
	struct sandbox_spec spec = { .argv = argv, .limits = usual, .stdin_fd = -1, .stdout_fd = -1, .stderr_fd = -1 };
	struct process_result r;
	struct error err;
	struct sandbox *s = sandbox_start(&spec, &err);
	double first = -1, last = 0;

	(void)state;
	assert_non_null(s);
	while (last < 0.01 && sandbox_check(s))
		last = sandbox_cpu_seconds(s);
	assert_true(sandbox_stop(s));
	/* /proc says stopped a moment before it is off the processor. */
	for (int i = 0; i < 500 && (first = sandbox_cpu_seconds(s)) != last; i++) {
		last = first;
		usleep(10000);
	}
	usleep(50000);
	assert_true(sandbox_cpu_seconds(s) == first);
	assert_true(sandbox_continue(s));
	do
		last = sandbox_cpu_seconds(s);
	while (last < first + 0.01 && sandbox_check(s));
	assert_true(last > first);
	process_result_init(&r, 1, 1);
	sandbox_end(s, 0, &r);
	process_result_release(&r);
}

static void test_no_bubblewrap(void **state)
{
	const char *const argv[] = { "/bin/true", NULL };
	struct sandbox_spec spec = { .argv = argv, .limits = usual };
	struct process_result r;
	struct error err;

	(void)state;
	setenv("KM_BWRAP", "/nowhere/bwrap", 1);
	assert_int_equal(sandbox_run(&spec, NULL, 0, 1, 1, &r, &err), -1);
	assert_int_equal(err.code, KM_EXIT_ENVIRONMENT);
	assert_non_null(strstr(err.text, "bubblewrap"));
	assert_non_null(strstr(err.text, "--no-sandbox"));
	process_result_release(&r);
	setenv("KM_BWRAP", "/bin/false", 1);
	assert_int_equal(sandbox_run(&spec, NULL, 0, 1, 1, &r, &err), -1);
	assert_non_null(strstr(err.text, "bubblewrap"));
	process_result_release(&r);
	unsetenv("KM_BWRAP");
}

/* Bubblewrap's first and last line read at once, as when the program is over before we come to look. */
static void test_fast(void **state)
{
	static const char script[] = "#!/bin/bash\n"
		"for ((i = 1; i < $#; i++)); do [ \"${!i}\" != --json-status-fd ] || { i=$((i + 1)) && n=${!i}; }; done\n"
		"report=$(eval \"bwrap \\\"\\$@\\\" $n>&1 >/dev/null\")\n"
		"status=$?\n"
		"printf '%s\\n' \"$report\" >&\"$n\"\n"
		"exit $status\n";
	char folder[] = "/var/tmp/km-test-XXXXXX", path[64];
	struct process_result r;
	FILE *f;

	(void)state;
	assert_non_null(mkdtemp(folder));
	snprintf(path, sizeof(path), "%s/bwrap", folder);
	f = fopen(path, "w");
	assert_non_null(f);
	assert_true(fputs(script, f) >= 0 && fclose(f) == 0 && chmod(path, 0755) == 0 && chmod(folder, 0755) == 0);
	setenv("KM_BWRAP", path, 1);
	run("exit 7", usual, &r);
	unsetenv("KM_BWRAP");
	unlink(path);
	rmdir(folder);
	assert_int_equal(r.exit_code, 7);
	assert_false(r.not_started);
	process_result_release(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_no_bubblewrap), cmocka_unit_test(test_world), cmocka_unit_test(test_status),
		cmocka_unit_test(test_limits), cmocka_unit_test(test_nothing_left), cmocka_unit_test(test_files),
		cmocka_unit_test(test_proc_with_devices), cmocka_unit_test(test_extras), cmocka_unit_test(test_stop),
		cmocka_unit_test(test_fast),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	if (probe(NULL) < 0) {
		puts("1..0 # SKIP no sandbox on this machine");
		return 0;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
