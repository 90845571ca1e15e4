/* The look into a library: right verdicts on what a compiler makes, and no crash on any other bytes. */
#include "elf.h"

#include "file.h"
#include "process.h"
#include "util.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char flags[] = "-O2 -fPIC -shared -nostartfiles -s -Wl,-z,relro,-z,now -Wl,--hash-style=sysv -Wl,--build-id=none";
static const char *const exports[] = { "km_run", NULL };
static const char *const needed[] = { "libc.so.6", NULL };

static bool may_import(const char *name, void *context)
{
	(void)context;
	return strcmp(name, "memcpy") == 0;
}

static const struct elf_policy policy = { .exports = exports, .needed = needed, .import_allowed = may_import };
static const struct elf_policy registering = { .exports = exports, .needed = needed, .import_allowed = may_import, .may_keep_state = true,
					       .may_register = true };

/* Compile source text to bytes; the caller frees. */
static char *compile(const char *source, const char *options, size_t *len)
{
	char *folder, *command, *path, *bytes;
	const char *argv[] = { "sh", "-c", NULL, NULL };
	struct process_spec spec = { .argv = argv, .output_ceiling = 1, .pass_stderr = true, .input = source, .input_len = strlen(source) };
	struct process_result r;
	struct error err;
	struct buf b;

	folder = process_scratch_make(&err);
	assert_non_null(folder);
	path = xasprintf("%s/made", folder);
	argv[2] = command = xasprintf("gcc -x c - -o %s %s", path, options);
	assert_int_equal(process_run(&spec, &r, &err), 0);
	assert_int_equal(r.exit_code, 0);
	buf_init(&b, 1 << 24);
	assert_int_equal(file_read(path, &b, &err), 0);
	*len = b.len;
	bytes = buf_take(&b);
	buf_release(&b);
	process_result_release(&r);
	process_scratch_remove(folder);
	free(folder);
	free(command);
	free(path);
	return bytes;
}

static void expect_rule(const char *source, const char *more, const char *rule)
{
	char *options = xasprintf("%s %s", flags, more), *bytes;
	struct elf_verdict verdict;
	size_t len;

	bytes = compile(source, options, &len);
	assert_int_equal(elf_check(bytes, len, &policy, &verdict), rule[0] == 0);
	assert_string_equal(verdict.rule, rule);
	free(bytes);
	free(options);
}

#define RUN "int km_run(const void *a) { (void)a; return 0; }\n"

static void test_rules(void **state)
{
	(void)state;
	expect_rule(RUN, "", "");
	expect_rule("#include <string.h>\nint km_run(char *a) { memcpy(a, a + 64, *a); return 0; }", "", "");
	expect_rule("static int f(void) { return 1; } static int (*const t[])(void) = { f }; int km_run(int i) { return t[i](); }", "", "");
	expect_rule(RUN "int write(int a) { return a; }", "", "export");
	expect_rule("int abs2(int); int km_run(int a) { return abs2(a); }", "", "import");
	expect_rule(RUN "__attribute__((constructor)) static void c(void) { __asm__ volatile(\"\"); }", "", "constructor");
	expect_rule(RUN "__attribute__((destructor)) static void c(void) { __asm__ volatile(\"\"); }", "", "constructor");
	expect_rule(RUN "__attribute__((visibility(\"hidden\"))) void _init(void) { __asm__ volatile(\"\"); }", "", "constructor");
	expect_rule("static int f(int a) { return a; } static void *r(void) { return f; }\n"
		    "static int g(int a) __attribute__((ifunc(\"r\"))); int km_run(int a) { return g(a); }", "", "ifunc");
	expect_rule("static __thread int t; int km_run(int a) { t += a; return t; }", "", "thread-local");
	expect_rule("static int s; int km_run(int a) { s += a; return s; }", "", "state");
	expect_rule("static int s = 5; int km_run(int a) { s += a; return s; }", "", "state");
	expect_rule(RUN, "-Wl,-z,execstack", "executable-stack");
	expect_rule(RUN, "-Wl,-rpath,/tmp", "library");
	expect_rule(RUN, "-Wl,--no-as-needed -lm", "library");
	expect_rule(RUN, "-Wl,-z,initfirst", "elf");
	expect_rule(RUN, "-Wl,--hash-style=both", "elf");
}

static bool collect(const char *name, void *context)
{
	strcat(context, name);
	strcat(context, " ");
	return true;
}

static void test_objects(void **state)
{
	char names[200] = "", variable[40];
	size_t len;
	char *bytes = compile("int write(int a) { return a; } static int hidden(int a) { return -a; } int (*p)(int) = hidden; extern int o;\n"
			      "static const int table[2] = { 1, 2 }; const int *q(void) { return o ? table : 0; }", "-c -O0 -fPIC", &len);

	(void)state;
	assert_true(elf_globals(bytes, len, collect, names));
	assert_string_equal(names, "write p q ");
	assert_true(elf_variable(bytes, len, variable, sizeof(variable)));
	assert_string_equal(variable, "p");
	free(bytes);
	bytes = compile("static const int table[2] = { 1, 2 }; int f(int i) { return table[i]; }", "-c -fPIC", &len);
	assert_false(elf_variable(bytes, len, variable, sizeof(variable)));
	free(bytes);
}

/* Whether something but the constructor "mine" would run when a library of this source is opened or closed. */
static bool constructs(const char *source, const char *section)
{
	char name[40];
	size_t len;
	char *bytes = compile(source, "-c -O1 -fPIC", &len);
	bool found = elf_constructor(bytes, len, "mine", name, sizeof(name));

	if (found)
		assert_string_equal(name, section);
	free(bytes);
	return found;
}

#define MINE "static __attribute__((constructor)) void mine(void) { __asm__ volatile(\"\"); } "

static void test_constructors(void **state)
{
	struct elf_verdict verdict;
	size_t len;
	char *bytes;

	(void)state;
	assert_false(constructs("int f(void) { return 1; }", ""));
	assert_false(constructs(MINE, ""));
	assert_true(constructs("static __attribute__((constructor)) void other(void) { __asm__ volatile(\"\"); }", ".init_array"));
	assert_true(constructs(MINE "static __attribute__((constructor)) void other(void) { __asm__ volatile(\"nop\"); }", ".init_array"));
	assert_true(constructs(MINE "static __attribute__((constructor(200))) void other(void) { __asm__ volatile(\"\"); }", ".init_array.00200"));
	assert_true(constructs(MINE "static __attribute__((destructor)) void other(void) { __asm__ volatile(\"\"); }", ".fini_array"));
	assert_true(constructs("static __attribute__((used)) void mine(void) {} static __attribute__((used)) void other(void) {}\n"
			       "__attribute__((used, section(\".init_array\"))) static void (*const p)(void) = other;", ".init_array"));
	assert_true(constructs(MINE "__attribute__((used, section(\".ctors\"))) static void (*const p)(void) = mine;", ".ctors"));
	bytes = compile(RUN MINE, flags, &len);
	assert_true(elf_check(bytes, len, &registering, &verdict));
	assert_false(elf_check(bytes, len, &policy, &verdict));
	assert_string_equal(verdict.rule, "constructor");
	free(bytes);
	bytes = compile(RUN MINE "static __attribute__((constructor)) void other(void) { __asm__ volatile(\"\"); }", flags, &len);
	assert_false(elf_check(bytes, len, &registering, &verdict));
	assert_string_equal(verdict.rule, "constructor");
	free(bytes);
}

static void test_defines(void **state)
{
	size_t len;
	char *bytes = compile(RUN "int km_data = 1;", flags, &len);

	(void)state;
	assert_true(elf_defines(bytes, len, "km_run"));
	assert_false(elf_defines(bytes, len, "km_data"));
	assert_false(elf_defines(bytes, len, "km_init"));
	free(bytes);
}

static uint64_t seed = 42;

static uint64_t draw(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

/* Look at a copy of exactly this size, so that a sanitizer sees a read beyond it. */
static void look(const char *bytes, size_t len)
{
	char *copy = xmalloc(len), names[40];
	struct elf_verdict verdict;

	memcpy(copy, bytes, len);
	elf_check(copy, len, &policy, &verdict);
	elf_defines(copy, len, "km_run");
	elf_variable(copy, len, names, sizeof(names));
	elf_constructor(copy, len, "write", names, sizeof(names));
	elf_check(copy, len, &registering, &verdict);
	elf_globals(copy, len, may_import, NULL);
	free(copy);
}

/* Bytes changed at random, mostly in the headers and tables, and cut off anywhere. */
static void mutate(const char *bytes, size_t len, int rounds)
{
	static const uint64_t odd[] = { 0, 1, 0x7f, 0xff, 0x7fffffff, 0xffffffff, 0x7fffffffffffffff, 0xffffffffffffffff, 0xfffffffffffff000 };
	char *copy = xmalloc(len);

	for (int i = 0; i < rounds; i++) {
		memcpy(copy, bytes, len);
		for (uint64_t n = 1 + draw() % 4; n > 0; n--) {
			size_t at = draw() % (draw() % 2 ? len : 1024 < len ? 1024 : len), size = (size_t)1 << draw() % 4;
			uint64_t value = draw() % 2 ? odd[draw() % (sizeof(odd) / sizeof(*odd))] : draw() % 4096;

			memcpy(copy + at, &value, at + size <= len ? size : 1);
		}
		look(copy, draw() % 4 ? len : (size_t)(draw() % (len + 1)));
	}
	free(copy);
}

static void test_mutated(void **state)
{
	size_t len;
	char *bytes = compile("#include <string.h>\nstatic int f(int a) { return a; } int (*const t[])(int) = { f };\n"
			      "int km_run(char *a) { memcpy(a, a + 64, *a); return t[0](1); }", flags, &len);

	(void)state;
	mutate(bytes, len, 20000);
	for (size_t cut = 0; cut < 2048 && cut < len; cut++)
		look(bytes, cut);
	free(bytes);
	bytes = compile("int write(int a) { return a; } static int s; __attribute__((constructor)) int f(void) { return s++; }", "-c -fPIC", &len);
	mutate(bytes, len, 20000);
	for (size_t cut = 0; cut < len; cut++)
		look(bytes, cut);
	free(bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rules), cmocka_unit_test(test_objects), cmocka_unit_test(test_constructors), cmocka_unit_test(test_defines),
		cmocka_unit_test(test_mutated),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
