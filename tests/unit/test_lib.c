/* The small modules under everything: buffers, strict JSON, schemas' subset, the atomic writer. */
#include "buf.h"
#include "file.h"
#include "hash.h"
#include "json.h"
#include "schema.h"
#include "util.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[] = "/tmp/km-test-lib.XXXXXX";

static int make_folder(void **state)
{
	(void)state;
	return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
	char *command = xasprintf("rm -rf '%s'", folder);
	int result = system(command);

	(void)state;
	free(command);
	return result;
}

static void buffer_refuses_what_passes_its_ceiling_whole(void **state)
{
	struct buf b;

	(void)state;
	buf_init(&b, 5);
	assert_true(buf_puts(&b, "abc"));
	assert_false(buf_puts(&b, "defg"));
	assert_string_equal(b.data, "abc");
	assert_false(buf_puts(&b, "d"));
	buf_clear(&b);
	assert_true(buf_printf(&b, "%d", 12345));
	assert_string_equal(b.data, "12345");
	buf_release(&b);
}

static void json_is_stricter_than_cjson(void **state)
{
	static const char *const bad[] = {
		"", " ", "{", "{} x", "{\"a\":1,\"a\":2}", "[1e999]", "[-1e999]", "[NaN]", "[Infinity]", "\"\\u0000\"",
		"\"\xff\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "[1,]", "{\"a\":}", "\"a\nb\"", "[1] [2]", "nul",
	};
	struct error err;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		cJSON *value = json_parse(bad[i], strlen(bad[i]), &err);

		if (value)
			fail_msg("accepted %s", bad[i]);
		assert_int_equal(err.code, KM_EXIT_INPUT);
	}
}

static void json_bounds_depth(void **state)
{
	struct error err;
	char deep[2 * JSON_MAX_DEPTH + 3];
	cJSON *value;

	(void)state;
	memset(deep, '[', JSON_MAX_DEPTH);
	memset(deep + JSON_MAX_DEPTH, ']', JSON_MAX_DEPTH);
	deep[2 * JSON_MAX_DEPTH] = 0;
	value = json_parse(deep, 2 * JSON_MAX_DEPTH, &err);
	assert_non_null(value);
	cJSON_Delete(value);
	memset(deep, '[', JSON_MAX_DEPTH + 1);
	memset(deep + JSON_MAX_DEPTH + 1, ']', JSON_MAX_DEPTH + 1);
	assert_null(json_parse(deep, 2 * JSON_MAX_DEPTH + 2, &err));
}

static void json_numbers_read_back_as_the_same_double(void **state)
{
	static const double numbers[] = { 0, -0.0, 0.1, 1.0 / 3, 1e300, 5e-324, 9007199254740993.0, 123456789012345678.0, -2.5e-7, 3820 };
	struct error err;

	(void)state;
	for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++) {
		cJSON *array = cJSON_CreateArray(), *back;
		struct buf b;

		cJSON_AddItemToArray(array, cJSON_CreateNumber(numbers[i]));
		buf_init(&b, 1000);
		json_print_compact(array, &b);
		back = json_parse(b.data, b.len, &err);
		assert_non_null(back);
		assert_true(back->child->valuedouble == numbers[i]);
		cJSON_Delete(back);
		cJSON_Delete(array);
		buf_release(&b);
	}
}

static void json_text_survives_a_round_trip(void **state)
{
	static const char text[] = "{\"a\":\"tab\\tquote\\\"back\\\\ \xc3\xa9 \\u0001\",\"b\":[true,false,null,{}],\"A\":[]}";
	struct error err;
	cJSON *first, *second;
	struct buf b;

	(void)state;
	first = json_parse(text, strlen(text), &err);
	assert_non_null(first);
	buf_init(&b, 10000);
	json_print(first, &b);
	second = json_parse(b.data, b.len, &err);
	assert_non_null(second);
	assert_true(cJSON_Compare(first, second, true));
	assert_non_null(json_get(first, "A"));
	assert_true(cJSON_IsArray(json_get(first, "A")));
	cJSON_Delete(first);
	cJSON_Delete(second);
	buf_release(&b);
}

static int check_verdict(const char *text, struct error *err)
{
	cJSON *value = json_parse(text, strlen(text), err);
	int result;

	assert_non_null(value);
	result = schema_check("verdict", value, err);
	cJSON_Delete(value);
	return result;
}

static void schema_names_the_place(void **state)
{
	struct error err;

	(void)state;
	assert_int_equal(check_verdict("{\"cue\":\"init/0\",\"build\":{\"status\":\"\"},\"bench\":{\"status\":\"\"}}", &err), 0);
	assert_int_equal(check_verdict("{\"cue\":\"init/0\",\"build\":{},\"bench\":{\"status\":\"\"}}", &err), -1);
	assert_string_equal(err.text, "build: lacks the key 'status'");
	assert_int_equal(check_verdict("{\"cue\":3,\"build\":{\"status\":\"\"},\"bench\":{\"status\":\"\"}}", &err), -1);
	assert_string_equal(err.text, "cue: is not of type 'string'");
	assert_int_equal(check_verdict("{\"cue\":\"a\",\"extra\":1,\"build\":{\"status\":\"\"},\"bench\":{\"status\":\"\"}}", &err), -1);
	assert_int_equal(schema_check("nothing", NULL, &err), -1);
	assert_int_equal(err.code, KM_EXIT_USAGE);
}

static ino_t inode(const char *path)
{
	struct stat st;

	assert_int_equal(stat(path, &st), 0);
	return st.st_ino;
}

static void same_bytes_keep_the_inode_and_renew_the_time(void **state)
{
	char *path = xasprintf("%s/out", folder);
	struct timespec old[2] = { { 1000, 0 }, { 1000, 0 } };
	struct stat st;
	struct error err;
	ino_t before;

	(void)state;
	assert_int_equal(file_write(path, "one", 3, &err), 0);
	before = inode(path);
	assert_int_equal(utimensat(AT_FDCWD, path, old, 0), 0);
	assert_int_equal(file_write(path, "one", 3, &err), 0);
	assert_int_equal(inode(path), before);
	assert_int_equal(stat(path, &st), 0);
	assert_true(st.st_mtim.tv_sec > 1000);
	assert_int_equal(file_write(path, "two", 3, &err), 0);
	assert_int_not_equal(inode(path), before);
	free(path);
}

static void output_is_not_older_than_what_was_read(void **state)
{
	char *in = xasprintf("%s/in", folder), *out = xasprintf("%s/from-in", folder);
	struct timespec future[2] = { { 4102444800, 5 }, { 4102444800, 5 } };
	struct stat st;
	struct error err;
	struct buf b;

	(void)state;
	assert_int_equal(file_write(in, "x", 1, &err), 0);
	assert_int_equal(utimensat(AT_FDCWD, in, future, 0), 0);
	buf_init(&b, 10);
	assert_int_equal(file_read(in, &b, &err), 0);
	assert_int_equal(file_write(out, "y", 1, &err), 0);
	assert_int_equal(stat(out, &st), 0);
	assert_true(st.st_mtim.tv_sec == 4102444800 && st.st_mtim.tv_nsec == 5);
	buf_release(&b);
	free(in);
	free(out);
}

static void a_failed_write_leaves_the_old_file_and_nothing_else(void **state)
{
	char *path = xasprintf("%s/no-such-folder/file", folder);
	struct error err;

	(void)state;
	assert_int_equal(file_write(path, "x", 1, &err), -1);
	assert_int_equal(err.code, KM_EXIT_ENVIRONMENT);
	assert_false(file_exists(path));
	free(path);
}

static void a_torn_last_line_is_ended_before_the_next(void **state)
{
	char *path = xasprintf("%s/log", folder);
	struct error err;
	struct buf b;

	(void)state;
	assert_int_equal(file_write(path, "whole\ntor", 9, &err), 0);
	assert_int_equal(file_append_line(path, "next", &err), 0);
	buf_init(&b, 100);
	assert_int_equal(file_read(path, &b, &err), 0);
	assert_string_equal(b.data, "whole\ntor\nnext\n");
	buf_release(&b);
	free(path);
}

static void paths_that_climb_out_are_not_tame(void **state)
{
	(void)state;
	assert_true(path_is_tame("kernel.c"));
	assert_true(path_is_tame("../r00001/s0/kernel.c"));
	assert_true(path_is_tame("../../task"));
	assert_false(path_is_tame("/etc/passwd"));
	assert_false(path_is_tame("../../../etc/passwd"));
	assert_false(path_is_tame("a/../../b"));
	assert_false(path_is_tame("a/.."));
	assert_false(path_is_tame(""));
}

static void sha256_of_the_standard_example(void **state)
{
	char hex[HASH_HEX + 1];

	(void)state;
	hash_hex("abc", 3, hex); /* FIPS 180-2, appendix B.1 */
	assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

static void numbers_on_the_command_line_are_whole_and_finite(void **state)
{
	double d;
	long n;

	(void)state;
	assert_true(parse_long("12", 0, 20, &n) && n == 12);
	assert_false(parse_long("12x", 0, 20, &n));
	assert_false(parse_long("", 0, 20, &n));
	assert_false(parse_long("21", 0, 20, &n));
	assert_false(parse_long("99999999999999999999", 0, 20, &n));
	assert_true(parse_double("0.5", 0, 1, &d) && d == 0.5);
	assert_false(parse_double("nan", 0, 1, &d));
	assert_false(parse_double("inf", 0, 1e308, &d));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(buffer_refuses_what_passes_its_ceiling_whole),
		cmocka_unit_test(json_is_stricter_than_cjson),
		cmocka_unit_test(json_bounds_depth),
		cmocka_unit_test(json_numbers_read_back_as_the_same_double),
		cmocka_unit_test(json_text_survives_a_round_trip),
		cmocka_unit_test(schema_names_the_place),
		cmocka_unit_test(same_bytes_keep_the_inode_and_renew_the_time),
		cmocka_unit_test(output_is_not_older_than_what_was_read),
		cmocka_unit_test(a_failed_write_leaves_the_old_file_and_nothing_else),
		cmocka_unit_test(a_torn_last_line_is_ended_before_the_next),
		cmocka_unit_test(paths_that_climb_out_are_not_tame),
		cmocka_unit_test(sha256_of_the_standard_example),
		cmocka_unit_test(numbers_on_the_command_line_are_whole_and_finite),
	};

	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
