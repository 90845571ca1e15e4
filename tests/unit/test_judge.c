/* What the judge makes of times on a device that is not there: a keeper that only says how long calls took. */
#include "judge.h"

#include "random.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { CANDIDATE, BASELINE, RIVAL };

/* Seconds of a call of each, and what the candidate's process adds to those of the others while it lives. */
static const double own_seconds[] = { 20e-6, 40e-6, 30e-6 };
static double added[3];
static bool alive;
static const struct keeper_kernel *announced;
static size_t calls_alone;
/* What our clock has over the events of the candidate's first so many calls, in its first so many processes. */
static size_t odd_calls, own_calls, odd_processes, own_processes;
static double odd_seconds = 20e-6;

static double noisy(double seconds)
{
	return seconds * (1 + 0.005 * ((double)(random_secret() % 1001) / 1000 - 0.5));
}

static struct keeper *open_nothing(const struct keeper_options *options, struct error *err)
{
	(void)err;
	announced = options->kernels;
	alive = true;
	calls_alone = own_calls = own_processes = 0;
	return (struct keeper *)&alive;
}

static int start(struct keeper *k, size_t who, const struct keeper_kernel *kernel, struct verdict *v, struct error *err)
{
	(void)k, (void)v, (void)err;
	/* Its process may have been made ready for this one. */
	assert_ptr_equal(kernel, &announced[who]);
	assert_int_equal(kernel->trusted, who == RIVAL);
	own_processes += who == CANDIDATE;
	alive = alive || who == CANDIDATE;
	return 0;
}

static int choose(struct keeper *k, size_t who, int workload, struct verdict *v, struct error *err)
{
	(void)k, (void)workload, (void)v, (void)err;
	assert_true(who != CANDIDATE || alive);
	return 0;
}

static int make_inputs(struct keeper *k, int workload, int set, bool vary, struct error *err)
{
	(void)k, (void)workload, (void)set, (void)vary, (void)err;
	return 0;
}

static int call(struct keeper *k, size_t who, struct keeper_call *c, struct verdict *v, struct error *err)
{
	(void)k, (void)v, (void)err;
	assert_true(who != CANDIDATE || alive);
	calls_alone += !alive;
	c->seconds = noisy(own_seconds[who]) + (alive ? added[who] : 0);
	c->elapsed = c->seconds + (who == CANDIDATE && own_calls++ < odd_calls && own_processes <= odd_processes ? odd_seconds : 0);
	c->arrival = c->gap = 0;
	c->disturbed = c->busy = false;
	return 0;
}

static int check(struct keeper *k, size_t who, bool all, struct keeper_check *c, struct verdict *v, struct error *err)
{
	(void)k, (void)who, (void)all, (void)v, (void)err;
	*c = (struct keeper_check){ .output = -1 };
	return 0;
}

static int batch(struct keeper *k, size_t who, double seconds, struct keeper_batch *b, struct verdict *v, struct error *err)
{
	(void)k, (void)who, (void)v, (void)err;
	*b = (struct keeper_batch){ .calls = 10, .elapsed = 10 * seconds };
	return 0;
}

static void count(struct keeper *k, double *flops, double *bytes)
{
	(void)k;
	*flops = *bytes = 1;
}

static double least_time(const struct keeper *k, int workload, double flops, double bytes, double *least)
{
	(void)k, (void)workload, (void)flops, (void)bytes;
	return *least = 1e-6;
}

static void stop(struct keeper *k, size_t who)
{
	(void)k;
	alive = alive && who != CANDIDATE;
}

static void close_nothing(struct keeper *k)
{
	(void)k;
}

static const struct keeper_ops device = {
	.target = "cuda", .rules = { .gain_seconds = 0.3e-6, .seconds = 0.05, .baseline_seconds = 0.02, .noise = 0.002 },
	.open = open_nothing, .start = start, .select = choose, .inputs = make_inputs, .call = call, .check = check, .counts = count,
	.stop = stop, .close = close_nothing, .idle = call, .batch = batch, .floor = least_time,
};

/* What `more` seconds in each call of `who`, while the candidate is there, make of the verdict. */
static void judge(size_t who, double more, struct judge_result *result)
{
	struct task_workload workload = { .feedback = true };
	struct task task = { .name = (char *)"t", .target = TASK_CUDA, .workloads = &workload, .workload_count = 1, .input_sets = { true } };
	struct judge_kernel rival = { .name = "the rival", .trusted = true };
	struct judge_options options = { .keeper = &device, .task = &task, .rivals = &rival, .rival_count = 1, .feedback = true };
	struct error err;

	memset(added, 0, sizeof(added));
	added[who] = more;
	assert_int_equal(judge_run(&options, result, &err), 0);
}

static void test_others_alone(void **state)
{
	struct judge_result r;

	(void)state;
	judge(BASELINE, 0, &r);
	assert_int_equal(r.verdict.status, VERDICT_PASSED);
	assert_true(!alive && calls_alone == 2 * 8);
	assert_true(fabs(r.score - 200) < 2);
	judge_result_release(&r, 1);
	/* A little may be the machine's: clocks that others' work has lowered. */
	judge(BASELINE, 3e-6, &r);
	assert_int_equal(r.verdict.status, VERDICT_PASSED);
	judge_result_release(&r, 1);
}

static void test_others_disturbed(void **state)
{
	struct judge_result r;

	(void)state;
	judge(BASELINE, 8.5e-6, &r);
	assert_int_equal(r.verdict.status, VERDICT_REJECTED);
	assert_string_equal(r.verdict.rule, "work-between-calls");
	assert_non_null(strstr(r.verdict.message, "the baseline takes 48."));
	assert_int_equal(r.failed_workload, 0);
	judge_result_release(&r, 1);
	judge(RIVAL, 8.5e-6, &r);
	assert_int_equal(r.verdict.status, VERDICT_REJECTED);
	assert_non_null(strstr(r.verdict.message, "the rival takes 38."));
	judge_result_release(&r, 1);
	/* Its own calls are its own business. */
	judge(CANDIDATE, 8e-6, &r);
	assert_int_equal(r.verdict.status, VERDICT_PASSED);
	judge_result_release(&r, 1);
}

/* A few windows that are too long do not refuse it: more calls are made until they are a minority, or all there may be. */
static void test_clock_in_doubt(void **state)
{
	struct judge_result r;

	(void)state;
	odd_processes = SIZE_MAX;
	odd_calls = 12;
	judge(BASELINE, 0, &r);
	assert_int_equal(r.verdict.status, VERDICT_PASSED);
	assert_true(r.workloads[0].candidate.count > 12);
	judge_result_release(&r, 1);
	odd_calls = SIZE_MAX;
	judge(BASELINE, 0, &r);
	assert_int_equal(r.verdict.status, VERDICT_REJECTED);
	assert_string_equal(r.verdict.rule, "clock");
	assert_int_equal(r.workloads[0].candidate.count, 64);
	judge_result_release(&r, 1);
	assert_int_equal(own_processes, 1);
	odd_calls = 0;
}

/* A process whose windows are all too long by little gets a second life, and only one. */
static void test_clock_of_another_process(void **state)
{
	struct judge_result r;

	(void)state;
	odd_calls = SIZE_MAX;
	odd_seconds = 6e-6;
	odd_processes = 1;
	judge(BASELINE, 0, &r);
	assert_int_equal(r.verdict.status, VERDICT_PASSED);
	assert_int_equal(own_processes, 2);
	assert_true(fabs(r.workloads[0].excess) < 0.1e-6 && r.workloads[0].candidate.count < 64);
	judge_result_release(&r, 1);
	odd_processes = 2;
	judge(BASELINE, 0, &r);
	assert_int_equal(r.verdict.status, VERDICT_REJECTED);
	assert_string_equal(r.verdict.rule, "clock");
	assert_int_equal(own_processes, 2);
	judge_result_release(&r, 1);
	/* What is late by twice the slack is late. */
	odd_processes = 1;
	odd_seconds = 11e-6;
	judge(BASELINE, 0, &r);
	assert_int_equal(r.verdict.status, VERDICT_REJECTED);
	assert_int_equal(own_processes, 1);
	judge_result_release(&r, 1);
	odd_calls = odd_processes = 0;
	odd_seconds = 20e-6;
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_others_alone), cmocka_unit_test(test_others_disturbed),
		cmocka_unit_test(test_clock_in_doubt), cmocka_unit_test(test_clock_of_another_process) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
