/* Running a child: its output, its end, its limits, and what it does not inherit. */
#include "process.h"

#include "file.h"
#include "util.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void run(const char *script, const char *input, double seconds, struct process_result *r)
{
	const char *const argv[] = { "sh", "-c", script, NULL };
	struct process_spec spec = { .argv = argv, .input = input, .input_len = strlen(input), .output_ceiling = 100000,
				     .diagnostics_ceiling = 10, .seconds = seconds };
	struct error err;

	assert_int_equal(process_run(&spec, r, &err), 0);
}

static void expect(const char *script, const char *input, const char *output)
{
	struct process_result r;

	run(script, input, 20, &r);
	assert_string_equal(r.output.data, output);
	assert_int_equal(r.exit_code, 0);
	process_result_release(&r);
}

static void test_bytes(void **state)
{
	(void)state;
	expect("cat", "words\n", "words\n");
	expect("cat", "", "");
	expect("exec 0<&-; echo ignored input", "many words", "ignored input\n");
	expect("head -c 90000 /dev/zero | wc -c", "", "90000\n");
}

static void test_end(void **state)
{
	struct process_result r;
	char *said;

	(void)state;
	run("echo to stderr, more than ten bytes >&2; exit 3", "", 20, &r);
	assert_int_equal(r.exit_code, 3);
	assert_int_equal(r.signal, 0);
	assert_string_equal(r.diagnostics.data, "to stderr,");
	assert_true(r.diagnostics.overflow);
	said = process_describe(&r);
	assert_string_equal(said, "exit status 3");
	free(said);
	process_result_release(&r);
	run("kill -TERM $$", "", 20, &r);
	assert_int_equal(r.exit_code, -1);
	assert_int_equal(r.signal, SIGTERM);
	process_result_release(&r);
}

static void test_limits(void **state)
{
	struct process_result r;

	(void)state;
	run("sleep 100 & sleep 100", "", 0.2, &r);
	assert_true(r.timed_out);
	process_result_release(&r);
	run("yes", "", 20, &r);
	assert_true(r.overflowed);
	assert_int_equal(r.output.len, 100000);
	process_result_release(&r);
}

/* A helper that outlives the child holds its stdout open: we neither wait for it nor leave it behind. */
static void test_left_behind(void **state)
{
	struct process_result r;
	long pid;

	(void)state;
	run("sleep 1000 & echo $!", "", 20, &r);
	assert_false(r.timed_out);
	r.output.data[strcspn(r.output.data, "\n")] = 0;
	assert_true(parse_long(r.output.data, 2, 1L << 30, &pid));
	for (int i = 0; i < 500 && kill((pid_t)pid, 0) == 0; i++)
		usleep(20000);
	assert_int_equal(kill((pid_t)pid, 0), -1);
	process_result_release(&r);
}

static void test_descriptors(void **state)
{
	int ours = open("/dev/null", O_RDONLY);

	(void)state;
	expect("ls /proc/self/fd | wc -l", "", "4\n"); /* 0, 1, 2 and the folder itself */
	close(ours);
}

static void test_no_program(void **state)
{
	const char *const argv[] = { "/nowhere/program", NULL };
	struct process_spec spec = { .argv = argv };
	struct process_result r;
	struct error err;

	(void)state;
	assert_int_equal(process_run(&spec, &r, &err), -1);
	assert_int_equal(err.code, KM_EXIT_ENVIRONMENT);
	assert_non_null(strstr(err.text, "/nowhere/program"));
	process_result_release(&r);
}

static void test_scratch(void **state)
{
	struct error err;
	char *folder = process_scratch_make(&err), *command;
	struct process_result r;

	(void)state;
	assert_non_null(folder);
	command = xasprintf("cd %s; mkdir -p a/b; echo >a/b/c; ln -s /etc a/link; chmod 0 a/b", folder);
	run(command, "", 20, &r);
	process_scratch_remove(folder);
	assert_false(file_exists(folder));
	assert_true(file_exists("/etc"));
	process_result_release(&r);
	free(command);
	free(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bytes), cmocka_unit_test(test_end), cmocka_unit_test(test_limits),
		cmocka_unit_test(test_left_behind), cmocka_unit_test(test_descriptors), cmocka_unit_test(test_no_program),
		cmocka_unit_test(test_scratch),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
