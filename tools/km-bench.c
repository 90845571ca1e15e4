/* km-bench - is a built kernel right, and how fast is it?
 *
 * Reads build.json, the library beside it and the task that it names; writes bench.json.
 *   km-bench --plan state/x/r00007/plan.json -o state/x/r00007/s0/bench.json state/x/r00007/s0/build.json
 *   km-compile -t tasks/sgemm_cpu mine.c | km-bench - | jq -r .status
 * For a task with target cuda it starts km-keeper-cuda and km-runner-cuda, which are beside it.
 */
#include "build.h"
#include "cli.h"
#include "examine.h"
#include "file.h"
#include "gpu.h"
#include "hash.h"
#include "input.h"
#include "json.h"
#include "judge.h"
#include "lease.h"
#include "report.h"
#include "schema.h"
#include "task.h"
#include "util.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char usage[] =
	"Usage: km-bench [OPTION]... BUILD.json\n"
	"       km-bench --probe [-o FILE]\n"
	"Judge a kernel that km-compile built: is it right, and how fast is it?\n"
	"\n"
	"      --set SET         the workloads to judge: feedback (default), final or all\n"
	"      --workload UUID   judge this one instead; may be repeated\n"
	"      --plan FILE       compare with the best kernel so far, which this plan.json names\n"
	"      --versus [NAME=]FILE\n"
	"                        compare with the kernel of this build.json; may be repeated\n"
	"      --peer [NAME=]FILE\n"
	"                        the same, for a kernel that is trusted: it may use the system\n"
	"      --peers           also time the peers that the task names\n"
	"      --table           print times and factors of all as tab-separated text\n"
	"      --replay FOLDER   take the verdict from this recording, run nothing\n"
	"      --profile         after PASSED, what ncu sees in a call (target cuda)\n"
	"      --sanitize[=TOOL] after PASSED, what compute-sanitizer finds: memcheck (default),\n"
	"                        racecheck or synccheck (target cuda)\n"
	"      --no-sandbox      run without bubblewrap: only for kernels that you trust\n"
	"      --probe           measure what the CUDA device can do, once, and print it\n"
	"  -o, --output FILE     write the verdict to FILE, not to standard output\n"
	"  -h, --help            show this help\n"
	"  -V, --version         show the version\n"
	"\n"
	"BUILD.json '-' is standard input. A kernel that is wrong is no error: the status says so.\n";

struct rival_option {
	char *name, *path; /* path: build.json */
	bool trusted;
};

struct options {
	bool feedback, final, table, peers, no_sandbox, probe, profile;
	const char *plan, *replay, *output, *build, *sanitize;
	const char **only; /* workloads by their uuids; none: those of the set */
	size_t only_count;
	struct rival_option *rivals;
	size_t rival_count;
};

/* A kernel with what it was loaded from. */
struct loaded {
	char *name;
	struct buf library;
	char code_sha256[HASH_HEX + 1];
	bool trusted;
};

struct bench {
	const struct options *options;
	cJSON *build, *document;
	struct task task;
	struct loaded candidate, baseline, *rivals;
	size_t rival_count;
	char march[64]; /* what the candidate was built for; "" if not said */
	char arch[16];
	struct gpu gpus[GPU_MAX];
	int gpu_count; /* only for the target cuda */
	double start;    /* when we began to judge */
	double listing;  /* seconds for the list of devices, */
	double building; /* for looking at the kernel and building the baseline, those to compare with, and the reference, */
	double waited;   /* and for others that have the device: these do not count */
};

static volatile sig_atomic_t interrupted;

/* ---- options ---------------------------------------------------------------------------------------------------- */

static void add_rival(struct options *o, const char *text, bool trusted)
{
	const char *equals = strchr(text, '=');
	struct rival_option r = { .trusted = trusted };

	/* Tabs and newlines would break the table. */
	r.name = equals ? xstrndup(text, (size_t)(equals - text)) : xstrdup(text);
	r.path = xstrdup(equals ? equals + 1 : text);
	for (char *p = r.name; *p; p++)
		if (iscntrl((unsigned char)*p))
			*p = ' ';
	if (!*r.name || !*r.path || o->rival_count == JUDGE_MAX_RIVALS / 2)
		die_usage("cannot compare with '%s'", text);
	o->rivals = xreallocarray(o->rivals, o->rival_count + 1, sizeof(*o->rivals));
	o->rivals[o->rival_count++] = r;
}

static void parse_set(struct options *o, const char *text)
{
	o->feedback = strcmp(text, "feedback") == 0 || strcmp(text, "all") == 0;
	o->final = strcmp(text, "final") == 0 || strcmp(text, "all") == 0;
	if (!o->feedback && !o->final)
		die_usage("--set wants feedback, final or all, not '%s'", text);
}

static void add_workload(struct options *o, const char *uuid)
{
	o->only = xreallocarray(o->only, o->only_count + 1, sizeof(*o->only));
	o->only[o->only_count++] = uuid;
}

static void parse_sanitize(struct options *o, const char *text)
{
	o->sanitize = text ? text : "memcheck";
	if (!examine_knows(o->sanitize))
		die_usage("--sanitize wants memcheck, racecheck or synccheck, not '%s'", o->sanitize);
}

static void parse_option(struct options *o, int c)
{
	switch (c) {
	case 's': parse_set(o, optarg); break;
	case 'w': add_workload(o, optarg); break;
	case 'p': o->plan = optarg; break;
	case 'v': add_rival(o, optarg, false); break;
	case 'e': add_rival(o, optarg, true); break;
	case 'E': o->peers = true; break;
	case 't': o->table = true; break;
	case 'r': o->replay = optarg; break;
	case 'P': o->profile = true; break;
	case 'S': parse_sanitize(o, optarg); break;
	case 'n': o->no_sandbox = true; break;
	case 'b': o->probe = true; break;
	case 'o': o->output = optarg; break;
	case 'h': cli_help(usage);
	case 'V': cli_version();
	default: die_option();
	}
}

static struct options parse_options(int argc, char **argv)
{
	static const struct option names[] = {
		{ "set", required_argument, NULL, 's' }, { "plan", required_argument, NULL, 'p' },
		{ "workload", required_argument, NULL, 'w' },
		{ "versus", required_argument, NULL, 'v' }, { "peer", required_argument, NULL, 'e' },
		{ "peers", no_argument, NULL, 'E' }, { "table", no_argument, NULL, 't' },
		{ "replay", required_argument, NULL, 'r' }, { "no-sandbox", no_argument, NULL, 'n' },
		{ "probe", no_argument, NULL, 'b' }, { "profile", no_argument, NULL, 'P' },
		{ "sanitize", optional_argument, NULL, 'S' },
		{ "output", required_argument, NULL, 'o' }, { "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' }, { NULL, 0, NULL, 0 },
	};
	struct options o = { .feedback = true };
	int c;

	while ((c = getopt_long(argc, argv, "o:hV", names, NULL)) != -1)
		parse_option(&o, c);
	if (o.probe && argc > optind)
		die_usage("--probe takes no build.json");
	if (o.probe)
		return o;
	if (argc - optind != 1)
		die_usage(argc - optind < 1 ? "no build.json given" : "more than one build.json given");
	o.build = argv[optind];
	return o;
}

static void options_release(struct options *o)
{
	for (size_t i = 0; i < o->rival_count; i++) {
		free(o->rivals[i].name);
		free(o->rivals[i].path);
	}
	free(o->rivals);
	free(o->only);
}

/* ---- signals ---------------------------------------------------------------------------------------------------- */

static void on_signal(int signal)
{
	interrupted = signal;
}

static void catch_signals(void)
{
	struct sigaction action = { .sa_handler = on_signal };

	sigemptyset(&action.sa_mask);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
}

/* All runners are gone by now: end as the signal would have ended us. */
static void die_of_signal(void)
{
	signal(interrupted, SIG_DFL);
	raise(interrupted);
}

/* ---- kernels ---------------------------------------------------------------------------------------------------- */

static void loaded_release(struct loaded *l)
{
	free(l->name);
	if (l->library.data)
		buf_release(&l->library);
}

/* The library's bytes, which must be those that were built. A pipe or a device in its place is not opened for good. */
static int read_library(const char *path, const char *sha256, struct buf *to, struct error *err)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), regular = fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
	char hex[HASH_HEX + 1];

	if (fd < 0)
		return error_set(err, KM_EXIT_INPUT, "cannot open the library '%s': %s", path, strerror(errno));
	close(fd);
	if (!regular)
		return error_set(err, KM_EXIT_INPUT, "the library '%s' is no regular file", path);
	buf_init(to, BUILD_LIBRARY_MAX);
	if (file_read(path, to, err) < 0)
		return -1;
	hash_hex(to->data, to->len, hex);
	if (sha256 && strcmp(hex, sha256) != 0)
		return error_set(err, KM_EXIT_INPUT, "the library '%s' is not the one that was built", path);
	return 0;
}

/* Does the library keep to the rules by which it was built? Whoever wrote its build.json may have made both by hand. */
static void check_again(const struct bench *b, const cJSON *build, const struct loaded *l, struct build *found)
{
	const char *flags = json_string(build, "flags");

	build_check(&b->task, l->library.data, l->library.len, flags ? flags : "", found);
}

/* Machine code runs on few devices. Of those that there are, the ones that run this are kept. */
static int check_arch(struct bench *b, const cJSON *build, const char *path, struct error *err)
{
	const char *arch = json_string(build, "arch");
	struct gpu first = b->gpus[0];
	int kept = arch ? gpu_keep_fitting(b->gpus, b->gpu_count, arch) : b->gpu_count;

	if (b->gpu_count == 0 || kept > 0) {
		b->gpu_count = kept;
		return 0;
	}
	return error_set(err, KM_EXIT_INPUT, "'%s': '%s' was built for %s, the device '%s' (%s) is sm_%d%d: build it there, or with --arch", path,
			 json_string(build, "library"), arch, first.name, first.uuid, first.major, first.minor);
}

static int check_rival(const struct bench *b, const cJSON *build, const struct loaded *l, const char *path, struct error *err)
{
	struct build found;
	int result = 0;

	check_again(b, build, l, &found);
	if (found.status != BUILD_BUILT)
		result = error_set(err, KM_EXIT_INPUT, "'%s': its library is %s: %s", path, build_status_name(found.status), found.message);
	build_release(&found);
	return result;
}

/* `library` of a build document that says BUILT. */
static int load_built(const char *path, const cJSON *build, struct loaded *l, struct error *err)
{
	const char *library = json_string(build, "library"), *code = json_string(build, "code_sha256");
	char *full;
	int result;

	if (!library)
		return error_set(err, KM_EXIT_INPUT, "'%s': no library was kept of this kernel", path);
	full = path_beside(path, library);
	result = read_library(full, json_string(build, "library_sha256"), &l->library, err);
	strncpy(l->code_sha256, code ? code : "", HASH_HEX);
	free(full);
	return result;
}

/* What is built here is built as the candidate was. */
static struct build_options build_options_of(const struct bench *b)
{
	return (struct build_options){ .march = b->march[0] ? b->march : NULL, .arch = b->arch[0] ? b->arch : NULL,
				       .no_sandbox = b->options->no_sandbox, .no_lease = true };
}

static int build_source(struct bench *b, const char *path, const char *const *libraries, struct loaded *l, struct error *err)
{
	struct build_options options = build_options_of(b);
	struct build built;
	struct buf source;
	int result;

	options.libraries = libraries;
	buf_init(&source, BUILD_SOURCE_MAX);
	result = file_read(path, &source, err);
	if (result == 0) {
		result = build_kernel(&b->task, source.data, source.len, &options, &built, err);
		if (result == 0 && built.status != BUILD_BUILT)
			result = error_set(err, KM_EXIT_INPUT, "'%s' does not build: %s: %s", path,
					   build_status_name(built.status), built.message);
		if (result == 0) {
			buf_init(&l->library, BUILD_LIBRARY_MAX);
			buf_add(&l->library, built.library.data, built.library.len);
			memcpy(l->code_sha256, built.code_sha256, sizeof(l->code_sha256));
		}
		build_release(&built);
	}
	buf_release(&source);
	return result;
}

/* A rival whose library did not travel with the run, or is for another device, is built again from its source. */
static int load_rival(struct bench *b, const struct rival_option *rival, struct loaded *l, struct error *err)
{
	cJSON *build = json_load(rival->path, "build", err);
	const char *status = json_string(build, "status"), *kernel = json_string(build, "kernel");
	struct error first;
	int result;

	l->name = xstrdup(rival->name);
	l->trusted = rival->trusted;
	if (!build)
		return -1;
	if (!status || strcmp(status, "BUILT") != 0) {
		cJSON_Delete(build);
		return error_set(err, KM_EXIT_INPUT, "'%s': this kernel was not built, so there is nothing to compare with", rival->path);
	}
	result = load_built(rival->path, build, l, &first);
	if (result == 0)
		result = check_arch(b, build, rival->path, &first);
	if (result == 0 && !rival->trusted)
		result = check_rival(b, build, l, rival->path, &first);
	if (result < 0 && kernel && !rival->trusted) {
		char *path = path_beside(rival->path, kernel);

		if (l->library.data)
			buf_release(&l->library);
		result = build_source(b, path, NULL, l, err);
		free(path);
	} else if (result < 0) {
		*err = first;
	}
	cJSON_Delete(build);
	return result;
}

static int load_peers(struct bench *b, struct error *err)
{
	for (int i = 0; i < b->task.peer_count && b->options->peers; i++) {
		const struct task_peer *peer = &b->task.peers[i];
		struct loaded *l = &b->rivals[b->rival_count++];
		char *path = task_path(&b->task, peer->kernel);
		int result = build_source(b, path, (const char *const *)peer->libraries, l, err);

		l->name = xstrdup(peer->name);
		l->trusted = true;
		free(path);
		if (result < 0)
			return -1;
	}
	return 0;
}

static int load_rivals(struct bench *b, struct error *err)
{
	const struct options *o = b->options;

	b->rivals = xcalloc(o->rival_count + (size_t)b->task.peer_count + 1, sizeof(*b->rivals));
	for (size_t i = 0; i < o->rival_count; i++)
		if (load_rival(b, &o->rivals[i], &b->rivals[b->rival_count++], err) < 0)
			return -1;
	return load_peers(b, err);
}

/* The best kernel so far goes first: it is the one that bench.json's `versus` is about. */
static int add_best(struct options *o, struct error *err)
{
	cJSON *plan;
	const char *build;

	if (!o->plan)
		return 0;
	plan = json_load(o->plan, "plan", err);
	if (!plan)
		return -1;
	build = json_string(json_get(plan, "best"), "build");
	if (build) {
		struct rival_option best = { .name = xstrdup("best"), .path = path_beside(o->plan, build) };

		o->rivals = xreallocarray(o->rivals, o->rival_count + 1, sizeof(*o->rivals));
		memmove(o->rivals + 1, o->rivals, o->rival_count++ * sizeof(*o->rivals));
		o->rivals[0] = best;
	}
	cJSON_Delete(plan);
	return 0;
}

/* ---- judging ---------------------------------------------------------------------------------------------------- */

/* The baseline is built for the same processor or device as the candidate was. */
static void find_march(struct bench *b)
{
	const char *flags = json_string(b->build, "flags"), *at = flags ? strstr(flags, "-march=") : NULL;
	const char *arch = json_string(b->build, "arch");
	size_t n = at ? strspn(at + 7, "abcdefghijklmnopqrstuvwxyz0123456789-_.+") : 0;

	if (n > 0 && n < sizeof(b->march))
		memcpy(b->march, at + 7, n);
	if (arch && strlen(arch) < sizeof(b->arch))
		memcpy(b->arch, arch, strlen(arch));
}

static struct judge_kernel kernel_of(const struct loaded *l)
{
	return (struct judge_kernel){ .name = l->name, .library = l->library.data, .bytes = l->library.len, .trusted = l->trusted };
}

static int print_table(const struct judge_options *options, const struct judge_result *result, struct error *err)
{
	struct buf text;
	int status;

	buf_init(&text, 1 << 20);
	report_table(options, result, &text);
	status = file_write(NULL, text.data, text.len, err);
	buf_release(&text);
	return status;
}

/* The numbers of the workloads that were named, each once; the caller frees. NULL: one is not the task's. */
static int *find_workloads(const struct bench *b, size_t *count, struct error *err)
{
	const struct options *o = b->options;
	int *found = xcalloc((size_t)b->task.workload_count + 1, sizeof(*found));

	*count = 0;
	for (size_t i = 0; i < o->only_count; i++) {
		int w = 0;
		bool known = false;

		while (w < b->task.workload_count && strcmp(b->task.workloads[w].uuid, o->only[i]) != 0)
			w++;
		if (w == b->task.workload_count) {
			error_set(err, KM_EXIT_USAGE, "task '%s' has no workload '%s'", b->task.name, o->only[i]);
			free(found);
			return NULL;
		}
		for (size_t k = 0; k < *count; k++)
			known = known || found[k] == w;
		if (!known)
			found[(*count)++] = w;
	}
	return found;
}

static int look_closer(struct bench *b, const struct judge_options *options, const struct judge_result *result, struct error *err)
{
	double start = monotonic_seconds();
	int status = examine(b->document, options, result, b->options->profile, b->options->sanitize, err);

	json_set_number(json_get_mutable(b->document, "stages"), "examining", monotonic_seconds() - start);
	return status;
}

static int judge_with(struct bench *b, const char *reference, const struct gpu *gpu, struct error *err)
{
	struct judge_kernel *rivals = xcalloc(b->rival_count + 1, sizeof(*rivals));
	struct judge_options options = {
		.keeper = keeper_of(b->task.target), .task = &b->task, .reference = reference, .gpu = gpu,
		.candidate = kernel_of(&b->candidate), .baseline = kernel_of(&b->baseline),
		.rivals = rivals, .rival_count = b->rival_count,
		.feedback = b->options->feedback, .final = b->options->final,
		.no_sandbox = b->options->no_sandbox, .interrupted = &interrupted,
	};
	const char *sha256 = b->rival_count && b->rivals[0].code_sha256[0] ? b->rivals[0].code_sha256 : NULL;
	struct judge_result result;
	int *only = find_workloads(b, &options.only_count, err), status;

	options.only = only;
	if (!only) {
		free(rivals);
		return -1;
	}
	for (size_t i = 0; i < b->rival_count; i++)
		rivals[i] = kernel_of(&b->rivals[i]);
	status = judge_run(&options, &result, err);
	if (status == 0)
		report_fill(b->document, &options, &result, b->listing, b->building, sha256);
	if (status == 0 && b->options->table)
		status = print_table(&options, &result, err);
	if (status == 0 && result.verdict.status == VERDICT_PASSED && (b->options->profile || b->options->sanitize))
		status = look_closer(b, &options, &result, err);
	judge_result_release(&result, b->rival_count);
	free(rivals);
	free(only);
	return status;
}

/* The baseline, those to compare with, and the reference, which the caller frees. */
static char *build_others(struct bench *b, struct error *err)
{
	struct build_options options = build_options_of(b);
	char *name = xasprintf("baseline.%s", task_suffix(&b->task)), *path = task_path(&b->task, name), *reference = NULL;

	if (build_source(b, path, NULL, &b->baseline, err) == 0 && load_rivals(b, err) == 0)
		reference = build_reference(&b->task, &options, err);
	b->building = monotonic_seconds() - b->start - b->listing - b->waited;
	free(path);
	free(name);
	return reference;
}

/* Everything that uses the processor happens under its lock. */
static int judge_on_cpu(struct bench *b, struct error *err)
{
	double start = monotonic_seconds();
	int lease = lease_take("cpu", err), status = -1;
	char *reference;

	b->waited = monotonic_seconds() - start;
	reference = lease < 0 ? NULL : build_others(b, err);
	if (reference)
		status = judge_with(b, reference, NULL, err);
	lease_drop(lease);
	free(reference);
	return status;
}

/* Compiling needs no device, so that others may have it meanwhile. */
static int judge_on_gpu(struct bench *b, struct error *err)
{
	char *reference = build_others(b, err);
	double start = monotonic_seconds();
	const struct gpu *gpu = NULL;
	int lease = -1, status = -1;

	if (reference)
		lease = gpu_lease(b->gpus, b->gpu_count, &gpu, &interrupted, err);
	b->waited = monotonic_seconds() - start;
	if (lease >= 0)
		status = judge_with(b, reference, gpu, err);
	lease_drop(lease);
	free(reference);
	return status;
}

static int load_task(struct bench *b, bool cuda, struct error *err)
{
	char *folder = path_beside(b->options->build, json_string(b->build, "task"));
	int status = task_load(folder, &b->task, err);

	free(folder);
	if (status == 0 && (b->task.target == TASK_CUDA) != cuda) {
		status = error_set(err, KM_EXIT_INPUT, "'%s' was built for another target than that of its task '%s'", b->options->build,
				   b->task.name);
		task_release(&b->task);
	}
	return status;
}

static int judge_built(struct bench *b, struct error *err)
{
	bool cuda = strcmp(json_string(b->build, "target"), "cuda") == 0;
	struct build found;
	int status = 0;

	b->start = monotonic_seconds();
	if (!cuda && (b->options->profile || b->options->sanitize))
		return error_set(err, KM_EXIT_USAGE, "--profile and --sanitize are for the target cuda");
	if (cuda && (b->gpu_count = gpu_list(b->gpus, err)) < 0)
		return -1;
	b->listing = monotonic_seconds() - b->start;
	b->candidate.name = xstrdup("candidate");
	if (load_built(b->options->build, b->build, &b->candidate, err) < 0 || check_arch(b, b->build, b->options->build, err) < 0 ||
	    load_task(b, cuda, err) < 0)
		return -1;
	b->baseline.name = xstrdup("baseline");
	find_march(b);
	check_again(b, b->build, &b->candidate, &found);
	if (found.status != BUILD_BUILT) {
		cJSON_Delete(b->document);
		b->document = report_new(b->build, build_status_name(found.status), found.rule, found.message);
	} else {
		status = cuda ? judge_on_gpu(b, err) : judge_on_cpu(b, err);
		json_set_number(b->document, "seconds", monotonic_seconds() - b->start - b->waited);
	}
	build_release(&found);
	for (size_t i = 0; i < b->rival_count; i++)
		loaded_release(&b->rivals[i]);
	free(b->rivals);
	task_release(&b->task);
	return status;
}

/* ---- replay ----------------------------------------------------------------------------------------------------- */

/* The recorded verdict on this cue, as it was; the status UNRECORDED if there is none. */
static int replay(struct bench *b, struct error *err)
{
	const char *cue = json_string(b->build, "cue");
	char *name = xstrdup(cue ? cue : ""), *path;
	cJSON *verdict = NULL;
	int status = file_need_folder(b->options->replay, err);

	for (char *p = name; *p; p++)
		if (*p == '/')
			*p = '_';
	path = xasprintf("%s/verdicts/%s.json", b->options->replay, name);
	if (status == 0 && *name && file_exists(path)) {
		verdict = json_load(path, "verdict", err);
		status = verdict ? schema_check("bench", json_get(verdict, "bench"), err) : -1;
		if (verdict && status < 0)
			error_prefix(err, "'%s': bench", path);
		if (status == 0)
			b->document = cJSON_Duplicate(json_get(verdict, "bench"), true);
		cJSON_Delete(verdict);
	} else if (status == 0) {
		b->document = report_new(b->build, "UNRECORDED", NULL, "no verdict was recorded for this kernel");
	}
	free(path);
	free(name);
	return status;
}

/* ---- main ------------------------------------------------------------------------------------------------------- */

static cJSON *skip_document(const cJSON *build)
{
	cJSON *d = cJSON_CreateObject();

	json_set_string(d, "skip", json_string(build, "skip"));
	return d;
}

/* What to write for this build document. */
static int make_document(struct bench *b, struct error *err)
{
	const char *status = json_string(b->build, "status");

	if (json_string(b->build, "skip")) {
		b->document = skip_document(b->build);
		return 0;
	}
	if (b->options->replay)
		return replay(b, err);
	b->document = report_new(b->build, strcmp(status, "BUILT") == 0 ? "PASSED" : status, json_string(b->build, "rule"),
				 json_string(b->build, "message"));
	return strcmp(status, "BUILT") == 0 ? judge_built(b, err) : 0;
}

static int probe(const struct options *o, struct error *err)
{
	cJSON *found = gpu_probe(&interrupted, err);
	int status = found ? json_save(o->output, found, err) : -1;

	cJSON_Delete(found);
	return status;
}

static int run(struct options *o, struct error *err)
{
	struct bench b = { .options = o };
	char hex[HASH_HEX + 1];
	int status = -1;

	b.build = input_load(o->build, "build", hex, err);
	if (b.build && add_best(o, err) == 0)
		status = make_document(&b, err);
	if (status == 0 && json_get(b.document, "made_by"))
		input_note(b.document, "build.json", hex);
	if (status == 0 && (o->output || !o->table))
		status = json_save(o->output, b.document, err);
	loaded_release(&b.candidate);
	loaded_release(&b.baseline);
	cJSON_Delete(b.document);
	cJSON_Delete(b.build);
	return status;
}

int main(int argc, char **argv)
{
	struct options o;
	struct error err;
	int status;

	cli_init("km-bench");
	o = parse_options(argc, argv);
	if (o.no_sandbox)
		warning("running without a sandbox: this kernel can read and write whatever you can");
	catch_signals();
	status = o.probe ? probe(&o, &err) : run(&o, &err);
	if (interrupted)
		die_of_signal();
	if (status < 0)
		die_error(&err);
	options_release(&o);
	return cli_finish(KM_OK);
}
