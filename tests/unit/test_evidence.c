/* What a prompt says of a verdict: figures of a device's profile are there, and for the cpu nothing but what there was before. */
#include "evidence.h"

#include "json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const char build[] = "tests/golden/state/build.json", golden[] = "tests/golden/state/bench.json";

/* The text for the golden document after `change`; the caller frees. */
static char *text_after(void (*change)(cJSON *))
{
	char path[] = "/tmp/km-test-XXXXXX";
	struct error err;
	cJSON *bench = json_load(golden, "bench", &err);
	struct buf out;
	char *text;

	assert_non_null(bench);
	json_set(bench, "failure", cJSON_CreateNull());
	change(bench);
	assert_true(close(mkstemp(path)) == 0);
	assert_int_equal(json_save(path, bench, &err), 0);
	buf_init(&out, 1 << 20);
	assert_int_equal(evidence_verdict(build, path, &out, &err), 0);
	unlink(path);
	cJSON_Delete(bench);
	text = buf_take(&out);
	buf_release(&out);
	return text;
}

static void change_nothing(cJSON *bench)
{
	(void)bench;
}

static void make_cpu(cJSON *bench)
{
	json_set_string(json_get_mutable(bench, "device"), "target", "cpu");
	json_remove(bench, "sanitizer");
	json_remove(cJSON_GetArrayItem(json_get_mutable(bench, "workloads"), 0), "profile");
}

static void fail_tools(cJSON *bench)
{
	cJSON *profile = cJSON_CreateObject(), *sanitizer = json_get_mutable(bench, "sanitizer");

	json_set_string(profile, "message", "ncu is not there");
	json_set(cJSON_GetArrayItem(json_get_mutable(bench, "workloads"), 0), "profile", profile);
	json_set(sanitizer, "errors", cJSON_CreateNull());
}

static void test_cuda(void **state)
{
	char *text = text_after(change_nothing);

	(void)state;
	assert_non_null(strstr(text, "| m=64 n=64 | 100.5 | 816.5 |"));
	assert_non_null(strstr(text, "| GFLOP/s | GB/s | noise |\n|---|---|---|---|---|---|---|---|\n"));
	assert_non_null(strstr(text, "| 20 % | 5.22 | 0.49 | 0.4 % |\n"));
	assert_non_null(strstr(text, "- m=64 n=64: 2 kernels, 0.04915 MB of device memory moved, 12.5 % of the memory's peak, 71.5 % of the processors' peak"));
	assert_non_null(strstr(text, "24.5 % occupancy, 55.5 % hits in L2, 128 registers; most warps waited"));
	assert_non_null(strstr(text, "long_scoreboard 3.25\n"));
	assert_non_null(strstr(text, "compute-sanitizer (memcheck) found 1 errors:\n```text\nInvalid __global__ read"));
	free(text);
}

static void test_cpu(void **state)
{
	char *text = text_after(make_cpu);

	(void)state;
	assert_non_null(strstr(text, "| GFLOP/s | noise |\n|---|---|---|---|---|---|---|\n"));
	assert_null(strstr(text, "ncu"));
	assert_null(strstr(text, "sanitizer"));
	free(text);
}

static void test_no_tools(void **state)
{
	char *text = text_after(fail_tools);

	(void)state;
	assert_null(strstr(text, "ncu"));
	assert_null(strstr(text, "sanitizer"));
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_cuda), cmocka_unit_test(test_cpu), cmocka_unit_test(test_no_tools) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
