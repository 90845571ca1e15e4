/* The lexer: what counts as the same source, and which directives are refused. */
#include "diagnostics.h"
#include "source.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void same(const char *a, const char *b, int expected)
{
	struct source_facts x, y;

	source_scan(a, strlen(a), &x);
	source_scan(b, strlen(b), &y);
	if ((strcmp(x.sha256, y.sha256) == 0) != expected)
		fail_msg("%s: [%s] [%s]", expected ? "should be the same" : "should differ", a, b);
}

static void test_same(void **state)
{
	(void)state;
	same("int a=1;", "int  a\t=\n1 ; // one", 1);
	same("a/* x */b", "a b", 1);
	same("a/**/+b", "a+b", 1);
	same("in\\\nt x;", "int x;", 1);
	same("x = \"a // b\";", "x = \"a // b\"; /* \" */", 1);
	same("#define F(x) x\nint a;", "#define  F(x)  x // c\n\n\nint a;", 1);
	same("#if 1 /* a\n b */\nx\n#endif", "#if 1\nx\n#endif", 1);
	same("f('\"'); // '", "f ( '\"' )   ;", 1);
	same("1.5e+3f", "1.5e+3f/**/", 1);
}

static void test_different(void **state)
{
	(void)state;
	same("a + +b", "a ++b", 0);
	same("intx;", "int x;", 0);
	same("\"a  b\"", "\"a b\"", 0);
	same("\"/* a */\"", "\"\"", 0);
	same("' '", "'  '", 0);
	same("#define F(x) x\n", "#define F (x) x\n", 0);
	same("#define A\nb", "#define A b", 0);
	same("R\"(a // b)\"", "R\"(a )\"", 0);
	same("1e+3", "1e + 3", 0);
	same("\"\\\" // \" a", "\"\\\" \" a", 0);
}

static void expect_rule(const char *text, const char *rule)
{
	struct source_facts facts;

	source_scan(text, strlen(text), &facts);
	if (strcmp(facts.rule, rule) != 0)
		fail_msg("rule '%s' for: %s", facts.rule, text);
}

static void test_rules(void **state)
{
	(void)state;
	expect_rule("#include \"task.h\"\n#include <math.h>\n#include <sys/types.h>\n", "");
	expect_rule("#include \"/etc/passwd\"\n", "include");
	expect_rule("  # /* c */ include /* c */ \"/etc/passwd\"", "include");
	expect_rule("#inc\\\nlude \"/etc/passwd\"\n", "include");
	expect_rule("%:include </etc/passwd>\n", "include");
	expect_rule("#include <../../etc/passwd>\n", "include");
	expect_rule("#include \"reference.c\"\n", "include");
	expect_rule("#define X \"/etc/passwd\"\n#include X\n", "include");
	expect_rule("#include_next \"/etc/passwd\"\n", "include");
	expect_rule("#import \"/etc/passwd\"\n", "include");
	expect_rule("#include", "include");
	expect_rule("#include \"task.h", "include");
	expect_rule("#line 3 \"/etc/passwd\"\n", "include");
	expect_rule("# 3 \"/etc/passwd\"\n", "include");
	expect_rule("#line 3\n", "");
	expect_rule("// #include \"/etc/passwd\"\n/*\n#include \"/etc/passwd\"\n*/ int a;", "");
	expect_rule("const char *s = \"#include\";\n", "");
	expect_rule("asm(\".incbin \\\"x\\\"\");", "incbin");
	expect_rule("asm(\".include \\\"x\\\"\");", "incbin");
	expect_rule("// .incbin\nint a;", "");
	expect_rule("#embed \"x\"\n", "incbin");
}

static void test_code(void **state)
{
	static const char *const empty[] = { "", " \n\t", "// a", "/* a", "\\\n\\\n", "/* a */ // b\n" };
	struct source_facts facts;

	(void)state;
	for (size_t i = 0; i < sizeof(empty) / sizeof(*empty); i++) {
		source_scan(empty[i], strlen(empty[i]), &facts);
		assert_false(facts.has_code);
	}
	source_scan("x", 1, &facts);
	assert_true(facts.has_code);
}

/* Any bytes at all: no crash, and an end. */
static void test_noise(void **state)
{
	static const char alphabet[] = "#\"'\\/*\n\r R(u8L)%:<>.0e+-a\0\xff";
	struct source_facts facts;
	char text[200];
	unsigned seed = 1;

	(void)state;
	for (int i = 0; i < 20000; i++) {
		size_t len = (size_t)i % sizeof(text);

		for (size_t j = 0; j < len; j++) {
			seed = seed * 1103515245 + 12345;
			text[j] = alphabet[(seed >> 16) % (sizeof(alphabet) - 1)];
		}
		source_scan(text, len, &facts);
	}
}

static void expect_trimmed(const char *text, size_t most, const char *expected)
{
	struct buf out;

	buf_init(&out, 1 << 16);
	diagnostics_trim(text, strlen(text), most, &out);
	assert_string_equal(out.data, expected);
	buf_release(&out);
}

static void test_diagnostics(void **state)
{
	static const char two[] = "kernel.c:1:1: error: first\n    1 | x\n      | ^\nkernel.c:2:1: warning: w\n    2 | y\n"
				  "kernel.c:3:1: error: second\n    3 | z\nkernel.c:3:2: note: here\n";
	char *headline;

	(void)state;
	expect_trimmed(two, 1000, "kernel.c:1:1: error: first\n    1 | x\n      | ^\nkernel.c:3:1: error: second\n    3 | z\n"
				  "kernel.c:3:2: note: here\n");
	expect_trimmed(two, 100, "kernel.c:1:1: error: first\n    1 | x\n      | ^\n(1 more)\n");
	expect_trimmed("/usr/bin/ld: /tmp/kernel.o: in function `f':\nkernel.c:(.text+0x1): undefined reference to `g'\ncollect2: error: ld\n", 1000,
		       "ld: kernel.o: in function `f':\nkernel.c:(.text+0x1): undefined reference to `g'\n");
	expect_trimmed("/usr/lib/gcc/x86_64-linux-gnu/12/include/immintrin.h:5:1: error: no\n", 1000, "immintrin.h:5:1: error: no\n");
	expect_trimmed("/somewhere/else/km-a1B2c3/kernel.s:5: Error: no\n", 1000, "kernel.s:5: Error: no\n");
	expect_trimmed("kernel.c:1:1: error: a\xff\x01z\n", 1000, "kernel.c:1:1: error: a??z\n");
	expect_trimmed("", 1000, "");
	headline = diagnostics_headline("ld: in function\nkernel.c:3: error: that\nmore\n");
	assert_string_equal(headline, "kernel.c:3: error: that");
	free(headline);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_same), cmocka_unit_test(test_different), cmocka_unit_test(test_rules), cmocka_unit_test(test_code),
		cmocka_unit_test(test_noise), cmocka_unit_test(test_diagnostics),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
