/* km-compile - build a kernel, or say why it cannot be built.
 *
 * Reads:  the kernel's source, its task folder, and where given candidate.json, world.json, a recording.
 * Writes: build.json, and kernel.so beside it (without -o: build.json on stdout, the library in the cache).
 * Example: km-compile -t tasks/sgemm_cpu mine.c | km-bench -
 */
#include "build.h"
#include "cli.h"
#include "file.h"
#include "json.h"
#include "schema.h"
#include "source.h"
#include "task.h"
#include "util.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char usage[] =
	"Usage: km-compile [-t TASK] [-c CANDIDATE] [-w WORLD] [-o BUILD] [--replay RECORDING] [--march M] [--arch A] [-l LIBRARY]... [--no-sandbox] KERNEL\n"
	"Compile an untrusted kernel in a sandbox, check what came out, and write build.json.\n"
	"\n"
	"  -t, --task DIR          task folder (default: with -o, ../../task beside BUILD)\n"
	"  -c, --candidate FILE    candidate.json that KERNEL was made from\n"
	"  -w, --world FILE        world.json: a kernel that was judged before is a DUPLICATE\n"
	"  -o, --output FILE       write build.json there and kernel.so beside it (default: stdout and the cache)\n"
	"      --replay DIR        write the verdict recorded in DIR for the candidate's cue; compile nothing\n"
	"      --march M           cpu: processor to compile for (default: $KM_MARCH, else native)\n"
	"      --arch A            cuda: architecture to compile for (default: $KM_ARCH, else the device's, else sm_90a)\n"
	"  -l, --library NAME      allow and link a library beside those of the task: openblas, cublas\n"
	"      --no-sandbox        compile without a sandbox: for sources that you trust\n"
	"  -h, --help              show this help\n"
	"  -V, --version           show the version\n"
	"KERNEL is a source file, or - for standard input.\n";

enum { MAX_SOURCE_READ = 64 << 20, MAX_LIBRARIES = 16 };

struct options {
	const char *kernel, *task, *candidate, *world, *output, *replay;
	const char *libraries[MAX_LIBRARIES + 1];
	int library_count;
	struct build_options build;
};

/* All that is loaded. */
struct input {
	struct task task;
	char *task_folder;
	struct buf source;
	bool too_large; /* the source passed MAX_SOURCE_READ */
	cJSON *candidate, *world;
	cJSON *build; /* the document being made */
};

/* ---- paths in the document ------------------------------------------------------------------------------------------ */

static char *resolve(const char *path, struct error *err)
{
	char *real = realpath(path, NULL);

	if (!real)
		error_set(err, KM_EXIT_INPUT, "cannot find '%s': %s", path, strerror(errno));
	return real;
}

/* `path` as seen from `folder`, both absolute and without links. */
static char *relative_to(const char *path, const char *folder)
{
	size_t common = 0, i = 0;
	char *relative;
	struct buf b;

	for (; path[i] && path[i] == folder[i]; i++)
		if (path[i] == '/')
			common = i + 1;
	if (folder[i] == 0 && path[i] == '/')
		common = i + 1;
	else if (folder[i] == 0 && path[i] == 0)
		return xstrdup(".");
	buf_init(&b, 1 << 16);
	/* One ".." for every part of folder that is left. */
	for (const char *p = common <= strlen(folder) ? folder + common : ""; *p; p += strcspn(p, "/"), p += *p == '/')
		buf_puts(&b, "../");
	buf_puts(&b, path + common);
	if (b.len > 1 && b.data[b.len - 1] == '/')
		b.data[--b.len] = 0;
	relative = buf_take(&b);
	buf_release(&b);
	return relative;
}

/* A path for the document: relative to its folder, or absolute if it goes to stdout. The caller frees. */
static char *name_path(const struct options *o, const char *path, struct error *err)
{
	char *real = resolve(path, err), *folder, *real_folder, *relative;

	if (!real || !o->output)
		return real;
	folder = path_folder(o->output);
	real_folder = realpath(folder, NULL);
	if (!real_folder)
		error_set(err, KM_EXIT_ENVIRONMENT, "cannot write '%s': %s", o->output, strerror(errno));
	relative = real_folder ? relative_to(real, real_folder) : NULL;
	free(folder);
	free(real_folder);
	free(real);
	return relative;
}

/* ---- loading ---------------------------------------------------------------------------------------------------------- */

static int load_source(const struct options *o, struct input *in, struct error *err)
{
	buf_init(&in->source, MAX_SOURCE_READ);
	if (file_read(o->kernel, &in->source, err) == 0)
		return 0;
	in->too_large = in->source.overflow;
	return in->too_large ? 0 : -1;
}

static int load_json(const char *path, const char *kind, cJSON **value, struct error *err)
{
	if (!path)
		return 0;
	*value = json_load(path, kind, err);
	return *value ? 0 : -1;
}

static int load(const struct options *o, struct input *in, struct error *err)
{
	if (load_json(o->candidate, "candidate", &in->candidate, err) < 0)
		return -1;
	if (json_string(in->candidate, "skip"))
		return 0;
	in->task_folder = o->task ? xstrdup(o->task) : path_beside(o->output, "../../task");
	if (task_load(in->task_folder, &in->task, err) < 0)
		return -1;
	if (load_source(o, in, err) < 0)
		return -1;
	return load_json(o->world, "world", &in->world, err);
}

static void release(struct input *in)
{
	if (in->task.folder)
		task_release(&in->task);
	free(in->task_folder);
	if (in->source.data)
		buf_release(&in->source);
	cJSON_Delete(in->candidate);
	cJSON_Delete(in->world);
	cJSON_Delete(in->build);
}

/* ---- the document ------------------------------------------------------------------------------------------------------ */

static int add_input(cJSON *document, const char *path, struct error *err)
{
	const char *slash = path ? strrchr(path, '/') : NULL;
	struct buf b;
	int result;

	if (!path)
		return 0;
	buf_init(&b, JSON_MAX_BYTES);
	result = file_read(path, &b, err);
	if (result == 0)
		json_made_from(document, slash ? slash + 1 : path, b.data, b.len);
	buf_release(&b);
	return result;
}

static int start_document(const struct options *o, struct input *in, struct error *err)
{
	bool from_stdin = strcmp(o->kernel, "-") == 0;
	const char *slash = strrchr(o->kernel, '/'), *source = json_string(in->candidate, "source");
	char *task, *kernel = NULL;

	in->build = cJSON_CreateObject();
	json_made_by(in->build, "km-compile");
	if (!in->too_large)
		json_made_from(in->build, slash ? slash + 1 : o->kernel, in->source.data, in->source.len);
	if (add_input(in->build, o->candidate, err) < 0 || add_input(in->build, o->world, err) < 0)
		return -1;
	json_set_string(json_get_mutable(json_get_mutable(in->build, "made_by"), "inputs"), "task", in->task.sha256);
	task = name_path(o, in->task_folder, err);
	if (task && !from_stdin)
		kernel = name_path(o, o->kernel, err);
	if (!task || (!from_stdin && !kernel)) {
		free(task);
		return -1;
	}
	json_set_string(in->build, "cue", json_string(in->candidate, "cue"));
	json_set_string(in->build, "status", "NO_CODE");
	json_set_string(in->build, "rule", NULL);
	json_set_string(in->build, "message", "");
	json_set_string(in->build, "task", task);
	json_set_string(in->build, "target", in->task.target == TASK_CUDA ? "cuda" : "cpu");
	json_set_string(in->build, "kernel", kernel);
	json_set_string(in->build, "library", NULL);
	json_set_bool(in->build, "edited", source && (in->too_large || strcmp(source, in->source.data) != 0 ||
						      strlen(source) != in->source.len));
	json_set_string(in->build, "source_sha256", NULL);
	json_set_string(in->build, "code_sha256", NULL);
	json_set_string(in->build, "compiler", "");
	json_set_string(in->build, "flags", "");
	json_set_string(in->build, "diagnostics", "");
	json_set_number(in->build, "seconds", 0);
	free(task);
	free(kernel);
	return 0;
}

static void set_verdict(cJSON *build, const char *status, const char *message)
{
	json_set_string(build, "status", status);
	json_set_string(build, "message", message);
}

/* ---- verdicts that need no compiler -------------------------------------------------------------------------------------- */

/* Where in this run a kernel with this hash was judged; NULL if nowhere. */
static const char *seen_at(const struct input *in, const char *hash)
{
	char key[17];

	memcpy(key, hash, 16);
	key[16] = 0;
	return json_string(json_get(in->world, "seen"), key);
}

static bool is_duplicate(struct input *in, const char *hash)
{
	const char *slot = hash[0] ? seen_at(in, hash) : NULL;
	char *message;

	if (!slot)
		return false;
	message = xasprintf("the same kernel as in %s", slot);
	set_verdict(in->build, "DUPLICATE", message);
	json_set_string(in->build, "duplicate_of", slot);
	free(message);
	return true;
}

/* An attempt that brought no code, and that nobody wrote in its place. */
static bool settled_by_candidate(struct input *in)
{
	const char *status = json_string(in->candidate, "status");
	struct source_facts facts;

	if (!status || strcmp(status, "CODE") == 0 || in->too_large)
		return false;
	source_scan(in->source.data, in->source.len, &facts);
	if (facts.has_code)
		return false;
	set_verdict(in->build, status, json_string(in->candidate, "reason") ? json_string(in->candidate, "reason") : "");
	return true;
}

/* The recorded verdict, as far as it is not about files. */
static int take_recorded(struct input *in, const cJSON *verdict, struct error *err)
{
	static const char *const ours[] = { "made_by", "cue", "task", "kernel", "library", "library_sha256", "edited" };
	const cJSON *recorded = json_get(verdict, "build"), *item;

	if (strcmp(json_string(verdict, "cue"), json_string(in->candidate, "cue")) != 0)
		return error_set(err, KM_EXIT_INPUT, "it is of the cue '%s'", json_string(verdict, "cue"));
	cJSON_ArrayForEach(item, recorded) {
		bool own = false;

		for (size_t i = 0; i < sizeof(ours) / sizeof(*ours); i++)
			own = own || strcmp(item->string, ours[i]) == 0;
		if (!own)
			json_set(in->build, item->string, cJSON_Duplicate(item, true));
	}
	return schema_check("build", in->build, err);
}

static char *verdict_path(const struct options *o, const struct input *in)
{
	char *name = xstrdup(json_string(in->candidate, "cue")), *path;

	for (char *p = name; *p; p++)
		if (*p == '/')
			*p = '_';
	path = xasprintf("%s/verdicts/%s.json", o->replay, name);
	free(name);
	return path;
}

static int replay(const struct options *o, struct input *in, struct error *err)
{
	char *path = verdict_path(o, in);
	cJSON *verdict = NULL;
	int result = file_need_folder(o->replay, err);

	if (result == 0 && !file_exists(path)) {
		set_verdict(in->build, "UNRECORDED", "no verdict was recorded for this attempt");
	} else if (result == 0) {
		verdict = json_load(path, "verdict", err);
		result = verdict ? take_recorded(in, verdict, err) : -1;
		if (verdict && result < 0)
			error_prefix(err, "'%s'", path);
	}
	cJSON_Delete(verdict);
	free(path);
	return result;
}

/* ---- compiling ----------------------------------------------------------------------------------------------------------- */

static void describe(const struct build *b, cJSON *build)
{
	set_verdict(build, build_status_name(b->status), b->message);
	json_set_string(build, "rule", b->rule[0] ? b->rule : NULL);
	json_set_string(build, "source_sha256", b->source_sha256[0] ? b->source_sha256 : NULL);
	json_set_string(build, "code_sha256", b->code_sha256[0] ? b->code_sha256 : NULL);
	json_set_string(build, "compiler", b->compiler);
	json_set_string(build, "flags", b->flags);
	if (b->arch_from) {
		json_set_string(build, "arch", b->arch);
		json_set_string(build, "arch_from", b->arch_from);
	}
	json_set_string(build, "diagnostics", b->diagnostics);
	if (b->resources)
		json_set(build, "resources", cJSON_Duplicate(b->resources, true));
	json_set_bool(build, "cached", b->cached);
	json_set_number(build, "seconds", round(b->seconds * 1000) / 1000);
}

static int save_library(const struct options *o, const struct build *b, cJSON *build, struct error *err)
{
	char *path;
	int result;

	json_set_string(build, "library_sha256", b->library_sha256);
	if (!o->output) {
		json_set_string(build, "library", b->cache_path);
		return b->cache_path ? 0 : error_set(err, KM_EXIT_ENVIRONMENT, "cannot write the library into the cache: set KM_CACHE, or use -o");
	}
	path = path_beside(o->output, "kernel.so");
	result = file_write(path, b->library.data, b->library.len, err);
	free(path);
	json_set_string(build, "library", "kernel.so");
	return result;
}

static int judge_build(const struct options *o, struct input *in, const struct build *b, struct error *err)
{
	describe(b, in->build);
	if (b->status != BUILD_BUILT || is_duplicate(in, b->code_sha256))
		return 0;
	return save_library(o, b, in->build, err);
}

static int compile(const struct options *o, struct input *in, struct error *err)
{
	struct source_facts facts = { .has_code = true };
	struct build b;
	int result;

	if (!in->too_large && in->source.len <= BUILD_SOURCE_MAX)
		source_scan(in->source.data, in->source.len, &facts);
	if (facts.sha256[0] && facts.has_code && is_duplicate(in, facts.sha256)) {
		json_set_string(in->build, "source_sha256", facts.sha256);
		return 0;
	}
	result = build_kernel(&in->task, in->source.data, in->too_large ? (size_t)MAX_SOURCE_READ + 1 : in->source.len, &o->build, &b, err);
	if (result == 0)
		result = judge_build(o, in, &b, err);
	build_release(&b);
	return result;
}

/* A library that an earlier verdict on this file left must not look as if it belonged to this one. */
static void remove_stale_library(const struct options *o, const cJSON *build)
{
	char *path;

	if (!o->output || json_string(build, "library"))
		return;
	path = path_beside(o->output, "kernel.so");
	if (file_exists(path))
		unlink(path);
	free(path);
}

static int run(const struct options *o, struct input *in, struct error *err)
{
	int result;

	if (load(o, in, err) < 0)
		return -1;
	if (json_string(in->candidate, "skip")) {
		result = json_save(o->output, in->candidate, err);
	} else {
		if (start_document(o, in, err) < 0)
			return -1;
		result = settled_by_candidate(in) ? 0 : o->replay ? replay(o, in, err) : compile(o, in, err);
		if (result == 0)
			result = json_save(o->output, in->build, err);
	}
	if (result == 0)
		remove_stale_library(o, in->build);
	return result;
}

/* ---- options --------------------------------------------------------------------------------------------------------------- */

enum { OPT_REPLAY = 256, OPT_MARCH, OPT_ARCH, OPT_NO_SANDBOX };

static const struct option long_options[] = {
	{ "task", required_argument, NULL, 't' }, { "candidate", required_argument, NULL, 'c' },
	{ "world", required_argument, NULL, 'w' }, { "output", required_argument, NULL, 'o' },
	{ "replay", required_argument, NULL, OPT_REPLAY }, { "march", required_argument, NULL, OPT_MARCH },
	{ "arch", required_argument, NULL, OPT_ARCH },
	{ "library", required_argument, NULL, 'l' }, { "allow-library", required_argument, NULL, 'l' },
	{ "no-sandbox", no_argument, NULL, OPT_NO_SANDBOX }, { "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' }, { NULL, 0, NULL, 0 } };

static void set_option(struct options *o, int option)
{
	switch (option) {
	case 't': o->task = optarg; break;
	case 'c': o->candidate = optarg; break;
	case 'w': o->world = optarg; break;
	case 'o': o->output = strcmp(optarg, "-") == 0 ? NULL : optarg; break;
	case OPT_REPLAY: o->replay = optarg; break;
	case OPT_MARCH: o->build.march = optarg; break;
	case OPT_ARCH: o->build.arch = optarg; break;
	case OPT_NO_SANDBOX: o->build.no_sandbox = true; break;
	case 'l':
		if (o->library_count == MAX_LIBRARIES)
			die_usage("more than %d libraries", MAX_LIBRARIES);
		o->libraries[o->library_count++] = optarg;
		break;
	case 'h': cli_help(usage);
	case 'V': cli_version();
	default: die_option();
	}
}

static void parse(int argc, char **argv, struct options *o)
{
	int option;

	while ((option = getopt_long(argc, argv, "t:c:w:o:l:hV", long_options, NULL)) != -1)
		set_option(o, option);
	if (optind != argc - 1)
		die_usage("give one kernel");
	o->kernel = argv[optind];
	o->build.libraries = o->libraries;
	if (!o->task && !o->output)
		die_usage("say which task it is for: --task DIR");
	if (o->replay && !o->candidate)
		die_usage("--replay needs --candidate, which holds the cue");
	if (o->build.no_sandbox)
		warning("compiling without a sandbox: the source can make the compiler read any file that you can read");
}

int main(int argc, char **argv)
{
	struct options o = { .kernel = NULL };
	struct input in;
	struct error err;

	cli_init("km-compile");
	parse(argc, argv, &o);
	memset(&in, 0, sizeof(in));
	if (run(&o, &in, &err) < 0)
		die_error(&err);
	release(&in);
	return cli_finish(KM_OK);
}
