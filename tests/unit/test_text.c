/* Text for prompts, and the ledger of calls. */
#include "calls.h"
#include "file.h"
#include "text.h"
#include "util.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void excerpts_keep_head_and_tail_under_any_ceiling(void **state)
{
	struct buf text;

	(void)state;
	buf_init(&text, 1 << 20);
	for (int i = 0; i < 500; i++)
		buf_printf(&text, "line %d of a text with \xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80 in it\n", i);
	for (size_t ceiling = 0; ceiling < 2000; ceiling++) {
		char *excerpt = text_excerpt(text.data, ceiling), *clean = text_clean(excerpt, strlen(excerpt));

		assert_true(strlen(excerpt) <= ceiling);
		assert_string_equal(excerpt, clean);
		if (ceiling > 600) {
			assert_true(starts_with(excerpt, "line 0 of"));
			assert_non_null(strstr(excerpt, "bytes left out here"));
			assert_non_null(strstr(excerpt, "line 499 of"));
		}
		free(clean);
		free(excerpt);
	}
	char *whole = text_excerpt(text.data, text.len);

	assert_string_equal(whole, text.data);
	free(whole);
	buf_release(&text);
}

static void cleaning_leaves_utf8_only(void **state)
{
	static const char raw[] = "a\xff" "b\0c\r\nd\xed\xa0\x80\xc3\xa4";
	char *clean = text_clean(raw, sizeof(raw) - 1);

	(void)state;
	assert_string_equal(clean, "a\xef\xbf\xbd" "bc\nd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xc3\xa4");
	free(clean);
}

static void a_fence_is_longer_than_any_inside(void **state)
{
	struct buf out;

	(void)state;
	buf_init(&out, 1000);
	text_fence(&out, "c", "x ```` y");
	assert_string_equal(out.data, "`````c\nx ```` y\n`````\n");
	buf_release(&out);
}

static void lines_are_one_line_and_cut(void **state)
{
	struct buf out;

	(void)state;
	buf_init(&out, 1000);
	text_line(&out, "  a\n\tb\x01 c  ", 100);
	assert_string_equal(out.data, "a b c");
	buf_clear(&out);
	text_line(&out, "abcdefghij", 8);
	assert_string_equal(out.data, "abcde...");
	buf_release(&out);
}

static void secrets_are_scrubbed_everywhere(void **state)
{
	struct buf text;

	(void)state;
	buf_init(&text, 100);
	buf_add(&text, "keykey and\0key", 14);
	assert_int_equal(text_scrub(&text, "key"), 3);
	assert_int_equal(text.len, 44);
	assert_memory_equal(text.data, "[key removed][key removed] and\0[key removed]", 44);
	buf_release(&text);
}

static void ledger_counts_whole_lines_only(void **state)
{
	char path[] = "/tmp/km-test-calls.XXXXXX";
	struct call_line line = { .id = "abc", .cue = "init/0", .provider = "exec", .model = "a\tmodel\n", .tokens_in = 10, .tokens_out = 5, .usd = 0.25, .seconds = 2 };
	static const struct calls_limits none = CALLS_LIMITS_NONE;
	struct calls_sum sum;
	struct error err;
	bool found;
	int fd = mkstemp(path);

	(void)state;
	close(fd);
	assert_int_equal(calls_append_start(path, "/tmp", &none, &line, NULL), 0);
	assert_int_equal(calls_ended(path, "abc", &found, NULL), 0);
	assert_false(found);
	assert_int_equal(calls_append_end(path, &line, NULL), 0);
	assert_int_equal(file_append_line(path, "end\tabc\tcut", NULL), 0);
	line.id = "def";
	assert_int_equal(calls_append_end(path, &line, NULL), 0);
	fd = open(path, O_WRONLY | O_APPEND);
	assert_int_equal(write(fd, "end\tghi\tinit/0\texec\tm\t1\t1\t0.5\t1", 32), 32);
	close(fd);
	assert_int_equal(calls_ended(path, "abc", &found, NULL), 0);
	assert_true(found);
	assert_int_equal(calls_ended(path, "ghi", &found, NULL), 0);
	assert_false(found);
	assert_int_equal(calls_sum(path, &sum, NULL), 0);
	assert_int_equal(sum.started, 1);
	assert_int_equal(sum.calls, 2);
	assert_int_equal(sum.tokens, 30);
	assert_true(sum.usd == 0.5);
	assert_true(sum.seconds == 4);
	assert_int_equal(sum.open, 0);
	line.id = "jkl";
	assert_int_equal(file_append_line(path, "", NULL), 0);
	assert_int_equal(calls_append_start(path, "/tmp", &none, &line, NULL), 0);
	assert_int_equal(calls_append_start(path, "/tmp", &none, &line, NULL), 0);
	assert_int_equal(calls_sum(path, &sum, NULL), 0);
	assert_int_equal(sum.open, 1);
	assert_int_equal(sum.open_tokens, 15);
	assert_true(sum.open_usd == 0.25);
	assert_int_equal(calls_append_fail(path, &line, NULL), 0);
	assert_int_equal(calls_sum(path, &sum, NULL), 0);
	assert_int_equal(sum.open, 0);
	assert_int_equal(sum.started, 3);
	assert_int_equal(file_append_line(path, "st", NULL), 0); /* cut off */
	assert_int_equal(calls_sum(path, &sum, NULL), 0);
	assert_int_equal(file_append_line(path, "{\"usd\": 7}", NULL), 0);
	assert_int_equal(calls_sum(path, &sum, &err), -1);
	assert_int_equal(err.code, KM_EXIT_INPUT);
	assert_non_null(strstr(err.text, "line 11 "));
	unlink(path);
	assert_int_equal(calls_sum(path, &sum, NULL), 0);
	assert_int_equal(sum.calls, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(excerpts_keep_head_and_tail_under_any_ceiling),
		cmocka_unit_test(cleaning_leaves_utf8_only),
		cmocka_unit_test(a_fence_is_longer_than_any_inside),
		cmocka_unit_test(lines_are_one_line_and_cut),
		cmocka_unit_test(secrets_are_scrubbed_everywhere),
		cmocka_unit_test(ledger_counts_whole_lines_only),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
