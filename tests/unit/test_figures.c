/* What NVIDIA's tools print, as far as we read it, and what they print when it does not work. */
#include "figures.h"

#include "buf.h"
#include "examine.h"
#include "json.h"
#include "util.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define STALL(reason) "smsp__average_warps_issue_stalled_" reason "_per_issue_active.ratio"

static const char head[] =
	"==PROF== Connected to process 7 (/km/runner)\n==PROF== Profiling \"scale\" - 0: 0%....50%....100% - 3 passes\nnoise of the kernel\n"
	"\"ID\",\"Process ID\",\"Kernel Name\",\"gpu__time_duration.sum\",\"dram__bytes_read.sum\","
	"\"dram__throughput.avg.pct_of_peak_sustained_elapsed\",\"sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active\","
	"\"sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_active\",\"launch__registers_per_thread\",\"" STALL("barrier") "\",\""
	STALL("long_scoreboard") "\",\"" STALL("wait") "\"\n"
	"\"\",\"\",\"\",\"nsecond\",\"byte\",\"%\",\"%\",\"%\",\"register/thread\",\"inst\",\"inst\",\"inst\"\n";

static bool is(const cJSON *found, const char *key, double expected)
{
	return fabs(json_number(found, key, -1) - expected) < 1e-9;
}

static void test_profile(void **state)
{
	char *text = xasprintf("%s%s%s", head, "\"0\",\"7\",\"scale(float \"\"x\"\", int)\",\"1,000\",\"4,194,304\",\"80.5\",\"n/a\",\"10\",\"32\",\"0.5\",\"7.25\",\"1\"\n",
			       "\"1\",\"7\",\"gemm\",\"3,000\",\"1,000\",\"40.5\",\"n/a\",\"50\",\"128\",\"3\",\"n/a\",\"2\"\n");
	cJSON *found = figures_of_profile(text);
	const cJSON *stalls = json_get(found, "stalls");

	(void)state;
	assert_non_null(found);
	assert_true(is(found, "kernels", 2));
	assert_string_equal(json_string(found, "kernel"), "gemm");
	assert_true(is(found, "duration_us", 4));
	assert_true(is(found, "dram_read_bytes", 4195304));
	assert_true(is(found, "dram_percent", 50.5));
	assert_true(is(found, "tensor_percent", 40));
	assert_true(is(found, "registers", 128));
	assert_true(cJSON_IsNull(json_get(found, "sm_percent")));
	assert_int_equal(cJSON_GetArraySize(stalls), 2);
	assert_string_equal(json_string(cJSON_GetArrayItem(stalls, 0), "reason"), "barrier");
	assert_string_equal(json_string(cJSON_GetArrayItem(stalls, 1), "reason"), "wait");
	cJSON_Delete(found);
	free(text);
}

/* Before what was asked for, the raw page has all that is known of device and launch. */
static void test_many_columns(void **state)
{
	char text[1 << 14] = "", *at = text;
	cJSON *found;

	(void)state;
	at += sprintf(at, "\"ID\",\"Kernel Name\"");
	for (int i = 0; i < 300; i++)
		at += sprintf(at, ",\"device__attribute_%d\"", i);
	at += sprintf(at, ",\"gpu__time_duration.sum\"\n\"\"\n\"0\",\"scale\"");
	for (int i = 0; i < 300; i++)
		at += sprintf(at, ",\"%d\"", i);
	sprintf(at, ",\"7,000\"\n");
	found = figures_of_profile(text);
	assert_true(is(found, "duration_us", 7));
	cJSON_Delete(found);
}

/* Cut anywhere, or with bytes changed, it is read as far as it goes. */
static void test_cut(void **state)
{
	char *whole = xasprintf("%s\"0\",\"7\",\"k\",\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\"\n", head);
	static const char odd[] = "\"\n,\xff" "9";

	(void)state;
	for (size_t n = 0; n <= strlen(whole); n++) {
		char *text = xstrndup(whole, n);

		cJSON_Delete(figures_of_profile(text));
		for (size_t i = 0; i < sizeof(odd) - 1 && n > 0; i++) {
			text[n - 1] = odd[i];
			cJSON_Delete(figures_of_profile(text));
		}
		free(text);
	}
	assert_null(figures_of_profile(""));
	assert_null(figures_of_profile(head));
	free(whole);
}

static void test_metrics(void **state)
{
	char *list = figures_metrics();

	(void)state;
	assert_non_null(strstr(list, "dram__bytes_write.sum,"));
	assert_non_null(strstr(list, STALL("gmma")));
	assert_null(strstr(list, ",,"));
	free(list);
}

static long check(const char *text, const char *expected)
{
	char *words;
	long count = figures_of_check(text, &words);

	assert_string_equal(words, expected);
	free(words);
	return count;
}

static void test_check(void **state)
{
	(void)state;
	assert_int_equal(check("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n", ""), 0);
	assert_int_equal(check("========= COMPUTE-SANITIZER\n========= Invalid __global__ read of size 4 bytes\n=========     at scale+0x40\n"
			       "printed by the kernel\n=========\n========= ERROR SUMMARY: 2 errors\n========= more\n",
			       "Invalid __global__ read of size 4 bytes\nat scale+0x40\n"), 2);
	assert_int_equal(check("========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)\n", ""), 3);
	assert_int_equal(check("", ""), -1);
	assert_int_equal(check("========= ERROR SUMMARY: many\n", "ERROR SUMMARY: many\n"), -1);
	assert_true(examine_knows("racecheck") && !examine_knows("leakcheck"));
}

static void expect_why(const char *text, const char *part)
{
	char *why = figures_why(text);

	if (part)
		assert_true(why && strstr(why, part));
	else
		assert_null(why);
	free(why);
}

static void test_why(void **state)
{
	(void)state;
	expect_why("==PROF== fine\n", NULL);
	expect_why("", NULL);
	expect_why("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n", "NVreg_RestrictProfilingToAdminUsers=0");
	expect_why("==PROF== x\n==ERROR== The application returned an error code (9).", "The application returned an error code (9).");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_profile), cmocka_unit_test(test_many_columns), cmocka_unit_test(test_cut), cmocka_unit_test(test_metrics), cmocka_unit_test(test_check),
		cmocka_unit_test(test_why),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
