/* km-check-task - proves that a task judges.
 *
 * Reads a task folder. Writes one TAP line a statement on standard output: the reference is sound, its outputs depend on
 * every input, the tolerances are neither vacuous nor impossible, the baseline passes and wrong kernels fail.
 *   km-check-task tasks/sgemm_cpu
 *   km-check-task --export /tmp/x --workload b34 tasks/rmsnorm_h4096
 */
#include "build.h"
#include "cli.h"
#include "file.h"
#include "gpu.h"
#include "proof.h"
#include "task.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
	"Usage: km-check-task [--no-sandbox] TASK\n"
	"       km-check-task --export FOLDER --workload UUID [--set SET] TASK\n"
	"Prove that the task in the folder TASK judges: the reference is sound, the tolerances are neither vacuous nor\n"
	"impossible, the baseline passes, wrong kernels fail. Prints TAP.\n"
	"\n"
	"      --no-sandbox      run without bubblewrap\n"
	"      --export FOLDER   check nothing; write inputs of a workload and all that the reference\n"
	"                        expects of them into FOLDER, as raw files (target cuda)\n"
	"      --workload UUID   of this workload\n"
	"      --set SET         of this input set: normal (default), shifted, row_scaled, student_t3,\n"
	"                        structured\n"
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

struct wanted {
	const char *folder, *workload, *set;
};

static int find_workload(const struct task *task, const char *uuid)
{
	for (int w = 0; w < task->workload_count; w++)
		if (uuid && strcmp(task->workloads[w].uuid, uuid) == 0)
			return w;
	die_usage("task '%s' has no workload '%s'", task->name, uuid ? uuid : "");
}

static int find_set(const char *name)
{
	for (int set = 0; set < SET_COUNT; set++)
		if (strcmp(input_set_name((enum task_input_set)set), name) == 0)
			return set;
	die_usage("there is no input set '%s'", name);
}

static int export_inputs(const char *folder, const struct wanted *wanted, bool no_sandbox)
{
	struct build_options options = { .no_sandbox = no_sandbox };
	struct task task;
	struct error err;
	char *reference;
	int workload, set = find_set(wanted->set);

	if (task_load(folder, &task, &err) < 0)
		die_error(&err);
	if (task.target != TASK_CUDA)
		die_usage("--export is for tasks with target cuda");
	workload = find_workload(&task, wanted->workload);
	reference = build_reference(&task, &options, &err);
	if (!reference || file_make_folder(wanted->folder, &err) < 0 ||
	    gpu_export(&task, reference, workload, set, wanted->folder, &err) < 0)
		die_error(&err);
	free(reference);
	task_release(&task);
	return KM_OK;
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "no-sandbox", no_argument, NULL, 'n' },
		{ "export", required_argument, NULL, 'e' },
		{ "workload", required_argument, NULL, 'w' },
		{ "set", required_argument, NULL, 's' },
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{ NULL, 0, NULL, 0 },
	};
	struct wanted wanted = { .set = "normal" };
	bool no_sandbox = false;
	int c;

	cli_init("km-check-task");
	while ((c = getopt_long(argc, argv, "hV", longs, NULL)) != -1) {
		switch (c) {
		case 'n': no_sandbox = true; break;
		case 'e': wanted.folder = optarg; break;
		case 'w': wanted.workload = optarg; break;
		case 's': wanted.set = optarg; break;
		case 'h': cli_help(usage);
		case 'V': cli_version();
		default: die_option();
		}
	}
	if (argc - optind != 1)
		die_usage("need one task folder");
	return cli_finish(wanted.folder ? export_inputs(argv[optind], &wanted, no_sandbox) : check(argv[optind], no_sandbox));
}
