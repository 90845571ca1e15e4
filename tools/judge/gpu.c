#include "gpu.h"

#include "cache.h"
#include "file.h"
#include "json.h"
#include "lease.h"
#include "process.h"
#include "runner_process.h"
#include "toolchain.h"
#include "util.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LIST_SECONDS = 60, PROBE_SECONDS = 120, EXPORT_SECONDS = 600, OUTPUT_MAX = 1 << 20, TICK_MS = 50 };

/* km-keeper-cuda with these arguments, the first of which is for its own name; *result is to be released in any case. */
static int run_keeper(const char **argv, double seconds, struct process_result *result, struct error *err)
{
	char *program = runner_program_path("km-keeper-cuda");
	struct process_spec spec = { .argv = argv, .output_ceiling = OUTPUT_MAX, .diagnostics_ceiling = 1 << 14, .seconds = seconds };
	int status;

	argv[0] = program;
	status = process_run(&spec, result, err);
	free(program);
	return status;
}

/* What the keeper said last, without its name and what we say ourselves; one line. */
static const char *last_line(struct process_result *r)
{
	char *text = r->diagnostics.data, *line, *colon;
	size_t n = strlen(text);

	while (n > 0 && text[n - 1] == '\n')
		text[--n] = 0;
	line = strrchr(text, '\n');
	line = line ? line + 1 : text;
	colon = strstr(line, "error: ");
	line = colon ? colon + strlen("error: ") : line;
	return starts_with(line, "no CUDA device: ") ? line + strlen("no CUDA device: ") : line;
}

/* Lines of ordinal or uuid, name, uuid and architecture, with tabs between. */
static int parse_list(char *text, struct gpu *gpus)
{
	char *rest = NULL;
	int count = 0;

	for (char *line = strtok_r(text, "\n", &rest); line && count < GPU_MAX; line = strtok_r(NULL, "\n", &rest)) {
		char *name = strchr(line, '\t'), *uuid = name ? strchr(name + 1, '\t') : NULL;
		char *architecture = uuid ? strchr(uuid + 1, '\t') : NULL;
		struct gpu *g = &gpus[count];
		long ordinal;

		if (!architecture)
			continue;
		*name = *uuid = *architecture = 0;
		if (strcmp(line, uuid + 1) != 0 && !parse_long(line, 0, 1 << 20, &ordinal))
			continue;
		if (sscanf(architecture + 1, "%d.%d", &g->major, &g->minor) != 2)
			continue;
		snprintf(g->device, sizeof(g->device), "%s", line);
		snprintf(g->name, sizeof(g->name), "%s", name + 1);
		snprintf(g->uuid, sizeof(g->uuid), "%s", uuid + 1);
		count++;
	}
	return count;
}

int gpu_list(struct gpu gpus[GPU_MAX], struct error *err)
{
	const char *argv[] = { NULL, "--devices", NULL };
	struct process_result r;
	int status = run_keeper(argv, LIST_SECONDS, &r, err), count = 0;

	if (status < 0)
		error_set(err, KM_EXIT_WAITING, "waiting for a CUDA device, and for km-keeper-cuda, which is built where there is nvcc");
	else if (r.exit_code != 0)
		status = error_set(err, KM_EXIT_WAITING, "waiting for a CUDA device: %s", last_line(&r));
	else if ((count = parse_list(r.output.data, gpus)) == 0)
		status = error_set(err, KM_EXIT_WAITING, "waiting for a CUDA device: there is none");
	process_result_release(&r);
	return status < 0 ? -1 : count;
}

int gpu_keep_fitting(struct gpu *gpus, int count, const char *arch)
{
	int kept = 0;

	for (int i = 0; i < count; i++)
		if (toolchain_arch_runs(arch, gpus[i].major, gpus[i].minor))
			gpus[kept++] = gpus[i];
	return kept;
}

int gpu_lease(const struct gpu *gpus, int count, const struct gpu **chosen, const volatile sig_atomic_t *interrupted, struct error *err)
{
	while (!interrupted || !*interrupted) {
		for (int i = 0; i < count; i++) {
			char name[64];
			int lease;

			snprintf(name, sizeof(name), "gpu-%.47s", gpus[i].uuid);
			*chosen = &gpus[i];
			if (lease_try(name, &lease, err) < 0)
				return -1;
			if (lease >= 0)
				return lease;
		}
		poll(NULL, 0, TICK_MS);
	}
	return error_set(err, KM_EXIT_ENVIRONMENT, "interrupted");
}

static cJSON *measure(const struct gpu *gpu, struct error *err)
{
	const char *argv[] = { NULL, "--probe", gpu->device, NULL };
	struct process_result r;
	cJSON *found = NULL;

	if (run_keeper(argv, PROBE_SECONDS, &r, err) == 0) {
		if (r.exit_code == 0)
			found = json_parse(r.output.data, r.output.len, err);
		else
			error_set(err, r.exit_code == KM_EXIT_WAITING ? KM_EXIT_WAITING : KM_EXIT_ENVIRONMENT, "device '%s' (%s) cannot be probed: %s", gpu->name, gpu->uuid, last_line(&r));
	}
	process_result_release(&r);
	return found;
}

cJSON *gpu_probe(const volatile sig_atomic_t *interrupted, struct error *err)
{
	struct gpu gpus[GPU_MAX];
	const struct gpu *gpu = gpus;
	char *folder, *path;
	cJSON *found = NULL;
	int lease;

	if (gpu_list(gpus, err) < 0 || (folder = cache_folder(err)) == NULL)
		return NULL;
	path = xasprintf("%s/probe-%s.json", folder, gpu->uuid);
	free(folder);
	if (file_exists(path)) {
		found = json_load(path, NULL, err);
	} else if ((lease = gpu_lease(gpus, 1, &gpu, interrupted, err)) >= 0) {
		found = measure(gpu, err);
		lease_drop(lease);
		if (found && json_save(path, found, err) < 0) {
			cJSON_Delete(found);
			found = NULL;
		}
	}
	free(path);
	return found;
}

static int export(const struct gpu *gpu, const struct task *task, const char *reference, int workload, int set, const char *folder,
		  struct error *err)
{
	char number[16], set_number[16];
	const char *argv[] = { NULL, "--export", gpu->device, task->folder, reference, number, set_number, folder, NULL };
	struct process_result r;
	int status;

	snprintf(number, sizeof(number), "%d", workload);
	snprintf(set_number, sizeof(set_number), "%d", set);
	status = run_keeper(argv, EXPORT_SECONDS, &r, err);
	if (status == 0 && r.exit_code != 0)
		status = error_set(err, r.exit_code > 0 ? r.exit_code : KM_EXIT_ENVIRONMENT, "%s", last_line(&r));
	process_result_release(&r);
	return status;
}

int gpu_export(const struct task *task, const char *reference, int workload, int set, const char *folder, struct error *err)
{
	struct gpu gpus[GPU_MAX];
	const struct gpu *gpu = NULL;
	int count = gpu_list(gpus, err), lease = count < 0 ? -1 : gpu_lease(gpus, count, &gpu, NULL, err), status;

	if (lease < 0)
		return -1;
	status = export(gpu, task, reference, workload, set, folder, err);
	lease_drop(lease);
	return status;
}
