/* km-check-task - proves that a task judges.
 *
 * Reads a task folder. Writes one TAP line a statement on standard output: the reference is sound, its outputs depend on
 * every input, the tolerances are neither vacuous nor impossible, the baseline passes and wrong kernels fail.
 *   km-check-task tasks/sgemm_cpu
 */
#include "build.h"
#include "cli.h"
#include "proof.h"
#include "task.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

static const char usage[] =
	"Usage: km-check-task [--no-sandbox] TASK\n"
	"Prove that the task in the folder TASK judges: the reference is sound, the tolerances are neither vacuous nor\n"
	"impossible, the baseline passes, wrong kernels fail. Prints TAP.\n"
	"\n"
	"      --no-sandbox      run without bubblewrap\n"
	"  -h, --help            show this help\n"
	"  -V, --version         show the version\n"
	"\n"
	"Exit code 3: the task's files are malformed, or a statement does not hold.\n";

struct tap {
	int count, failed;
};

static void report(void *context, bool holds, const char *statement, const char *why)
{
	struct tap *tap = context;

	tap->count++;
	tap->failed += !holds;
	printf("%sok %d - %s\n", holds ? "" : "not ", tap->count, statement);
	if (*why)
		printf("# %s\n", why);
	fflush(stdout);
}

static int check(const char *folder, bool no_sandbox)
{
	struct build_options options = { .no_sandbox = no_sandbox };
	struct tap tap = { 0, 0 };
	struct task task;
	struct error err;
	struct proof proof = { .task = &task, .no_sandbox = no_sandbox, .report = report, .context = &tap };
	char *reference;

	if (task_load(folder, &task, &err) < 0)
		die_error(&err);
	reference = build_reference(&task, &options, &err);
	proof.reference = reference;
	/* The reference of a CUDA task is asked by the keeper alone, so there kernels are the proof. */
	if (!reference || (task.target == TASK_CPU && proof_reference(&proof, &err) < 0) || proof_kernels(&proof, &err) < 0)
		die_error(&err);
	printf("1..%d\n", tap.count);
	if (tap.failed)
		note("task '%s': %d of %d statements do not hold", task.name, tap.failed, tap.count);
	free(reference);
	task_release(&task);
	return tap.failed ? KM_EXIT_INPUT : KM_OK;
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "no-sandbox", no_argument, NULL, 'n' },
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{ NULL, 0, NULL, 0 },
	};
	bool no_sandbox = false;
	int c;

	cli_init("km-check-task");
	while ((c = getopt_long(argc, argv, "hV", longs, NULL)) != -1) {
		switch (c) {
		case 'n': no_sandbox = true; break;
		case 'h': cli_help(usage);
		case 'V': cli_version();
		default: die_usage("see above");
		}
	}
	if (argc - optind != 1)
		die_usage("need one task folder");
	return cli_finish(check(argv[optind], no_sandbox));
}
