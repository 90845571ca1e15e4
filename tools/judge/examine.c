#include "examine.h"

#include "figures.h"
#include "json.h"
#include "util.h"

#include <glob.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OUTPUT_MAX = 4 << 20 };

/* ---- where a tool is --------------------------------------------------------------------------------------------- */

struct program {
	char *path;       /* without links; NULL: there is none */
	char *folder;     /* that it is in */
	const char *folders[KEEPER_TOOL_FOLDERS + 1];
};

/* Without links, since the sandbox has the folders themselves only. Takes the string. */
static bool take_program(struct program *p, char *path)
{
	if (access(path, X_OK) == 0)
		p->path = realpath(path, NULL);
	free(path);
	return p->path != NULL;
}

static bool look_in_path(struct program *p, const char *name)
{
	const char *path = getenv("PATH");

	for (size_t n; path && *path; path += n, path += *path == ':') {
		n = strcspn(path, ":");
		if (path[0] == '/' && take_program(p, xasprintf("%.*s/%s", (int)n, path, name)))
			return true;
	}
	return false;
}

/* Packages put each version into a folder of its own: the last one. */
static bool look_in_opt(struct program *p, const char *name)
{
	char *pattern = xasprintf("/opt/nvidia/*/*/%s", name);
	glob_t found;
	bool any = glob(pattern, 0, NULL, &found) == 0;

	if (any) {
		any = take_program(p, xstrdup(found.gl_pathv[found.gl_pathc - 1]));
		globfree(&found);
	}
	free(pattern);
	return any;
}

static bool find_program(struct program *p, const char *variable, const char *name)
{
	static const char opt[] = "/opt/nvidia";
	const char *named = getenv(variable), *home = getenv("CUDA_HOME");
	size_t n = 0;

	*p = (struct program){ .path = NULL };
	if (named) {
		take_program(p, xstrdup(named));
	} else {
		if (!(home && home[0] == '/' && take_program(p, xasprintf("%s/bin/%s", home, name))) &&
		    !take_program(p, xasprintf("/usr/local/cuda/bin/%s", name)) && !look_in_path(p, name))
			look_in_opt(p, name);
	}
	if (!p->path)
		return false;
	p->folder = xstrndup(p->path, (size_t)(strrchr(p->path, '/') - p->path));
	if (access(opt, X_OK) == 0)
		p->folders[n++] = opt;
	if (!starts_with(p->folder, "/opt/nvidia/") && !starts_with(p->folder, "/usr/"))
		p->folders[n++] = p->folder;
	return true;
}

static void program_release(struct program *p)
{
	free(p->path);
	free(p->folder);
}

/* ---- which workloads ----------------------------------------------------------------------------------------------- */

struct examination {
	cJSON *document;
	const struct judge_options *options;
	const struct judge_result *result;
	size_t *order; /* in result->workloads, the one of median time first */
	size_t count;
	int *workloads; /* the same in the task */
};

static void choose(struct examination *x)
{
	const struct judge_result *r = x->result;

	x->order = xreallocarray(NULL, r->workload_count + 1, sizeof(*x->order));
	x->workloads = xreallocarray(NULL, r->workload_count + 1, sizeof(*x->workloads));
	for (size_t i = 0; i < r->workload_count; i++)
		if (x->options->only_count || !x->options->feedback || x->options->task->workloads[r->workloads[i].index].feedback)
			x->order[x->count++] = i;
	for (size_t i = 1; i < x->count; i++)
		for (size_t k = i; k > 0 && r->workloads[x->order[k]].candidate.median < r->workloads[x->order[k - 1]].candidate.median; k--) {
			size_t swap = x->order[k];

			x->order[k] = x->order[k - 1];
			x->order[k - 1] = swap;
		}
	if (x->count > 2) {
		size_t median = x->order[x->count / 2];

		memmove(x->order + 1, x->order, x->count / 2 * sizeof(*x->order));
		x->order[0] = median;
	}
	for (size_t i = 0; i < x->count; i++)
		x->workloads[i] = r->workloads[x->order[i]].index;
}

/* ---- one start of a tool ------------------------------------------------------------------------------------------ */

static bool is_interrupted(const struct examination *x)
{
	return x->options->interrupted && *x->options->interrupted;
}

/* What it wrote, and why it did not end well ("": it did); both are the caller's. */
struct outcome {
	struct buf output;
	char *why;
};

static void run_tool(const struct examination *x, struct keeper *k, const struct program *p, const char *const *argv, size_t first,
		     size_t count, struct outcome *o)
{
	const struct judge_kernel *candidate = &x->options->candidate;
	struct keeper_kernel kernel = { candidate->library, candidate->bytes, candidate->trusted };
	struct keeper_tool tool = { argv, p->folders, EXAMINE_SECONDS };
	struct verdict v = { .status = VERDICT_PASSED };
	struct error err = { .code = KM_OK };
	int status;

	buf_init(&o->output, OUTPUT_MAX);
	status = x->options->keeper->examine(k, &kernel, &tool, x->workloads + first, count, &o->output, &v, &err);
	o->why = figures_why(o->output.data);
	if (!o->why)
		o->why = xstrdup(status < 0 ? err.text : v.message);
}

static void outcome_release(struct outcome *o)
{
	buf_release(&o->output);
	free(o->why);
}

/* ---- ncu ----------------------------------------------------------------------------------------------------------- */

static cJSON *profile_without(const char *why)
{
	cJSON *o = cJSON_CreateObject();

	json_set_string(o, "message", why);
	return o;
}

static cJSON *profile_one(const struct examination *x, struct keeper *k, const struct program *p, const char *metrics, size_t i)
{
	const char *const argv[] = { p->path, "--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw",
				     "--print-units", "base", "--metrics", metrics, NULL };
	struct outcome o;
	cJSON *found;

	run_tool(x, k, p, argv, i, 1, &o);
	found = figures_of_profile(o.output.data);
	if (found)
		json_set_string(found, "message", "");
	else
		found = profile_without(*o.why ? o.why : "ncu saw no kernel");
	outcome_release(&o);
	return found;
}

static void set_profile(const struct examination *x, size_t i, cJSON *profile)
{
	json_set(cJSON_GetArrayItem(json_get_mutable(x->document, "workloads"), (int)x->order[i]), "profile", profile);
}

static void profile_all(const struct examination *x, struct keeper *k, const char *why)
{
	double start = monotonic_seconds();
	char *metrics = figures_metrics();
	struct program p;
	bool found = find_program(&p, "KM_NCU", "ncu");

	if (!found)
		why = "ncu is not there: install NVIDIA Nsight Compute";
	for (size_t i = 0; i < x->count && !is_interrupted(x); i++) {
		if (!why && i > 0 && monotonic_seconds() > start + EXAMINE_TOTAL)
			why = "left out: profiling the workloads before it took all the time";
		set_profile(x, i, why ? profile_without(why) : profile_one(x, k, &p, metrics, i));
	}
	program_release(&p);
	free(metrics);
}

/* ---- compute-sanitizer ------------------------------------------------------------------------------------------- */

static const char *const checks[] = { "memcheck", "racecheck", "synccheck" };

bool examine_knows(const char *check)
{
	for (size_t i = 0; i < sizeof(checks) / sizeof(*checks); i++)
		if (strcmp(check, checks[i]) == 0)
			return true;
	return false;
}

static cJSON *check_json(const char *check, long errors, const char *text, const char *message)
{
	cJSON *o = cJSON_CreateObject();

	json_set_string(o, "tool", check);
	json_set_number(o, "errors", errors < 0 ? (double)NAN : (double)errors);
	json_set_string(o, "text", text);
	json_set_string(o, "message", message);
	return o;
}

static cJSON *check_all(const struct examination *x, struct keeper *k, const char *check, const char *why)
{
	struct program p;
	struct outcome o;
	cJSON *found;
	char *words;
	long errors;

	if (!find_program(&p, "KM_COMPUTE_SANITIZER", "compute-sanitizer"))
		why = "compute-sanitizer is not there: install NVIDIA's CUDA Toolkit";
	if (why) {
		program_release(&p);
		return check_json(check, -1, "", why);
	}
	run_tool(x, k, &p, (const char *const[]){ p.path, "--tool", check, "--show-backtrace", "no", "--print-limit", "20", NULL }, 0,
		 x->count, &o);
	errors = figures_of_check(o.output.data, &words);
	found = check_json(check, errors, errors == 0 ? "" : words,
			   *o.why ? o.why : errors < 0 ? "compute-sanitizer did not come to its summary" : "");
	free(words);
	outcome_release(&o);
	program_release(&p);
	return found;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

int examine(cJSON *document, const struct judge_options *options, const struct judge_result *result, bool profile, const char *check,
	    struct error *err)
{
	struct examination x = { .document = document, .options = options, .result = result };
	struct keeper_options wanted = { .task = options->task, .reference = options->reference, .participants = 1,
					 .gpu = options->gpu, .no_sandbox = options->no_sandbox, .interrupted = options->interrupted };
	struct error failed = { .code = KM_OK };
	struct keeper *k;

	choose(&x);
	wanted.workloads = x.workloads;
	wanted.workload_count = x.count;
	k = options->keeper->open(&wanted, &failed);
	if (profile)
		profile_all(&x, k, k ? NULL : failed.text);
	if (check && !is_interrupted(&x))
		json_set(document, "sanitizer", check_all(&x, k, check, k ? NULL : failed.text));
	if (k)
		options->keeper->close(k);
	free(x.order);
	free(x.workloads);
	return is_interrupted(&x) ? error_set(err, KM_EXIT_ENVIRONMENT, "interrupted") : 0;
}
