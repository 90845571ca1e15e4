/* km-instantiate - from a plan to a prompt, from a reply to a kernel's source.
 *
 * Reads   PLAN.json with the world, prompts, task and earlier attempts that it names; or REPLY.json; or CANDIDATE.json.
 * Writes  request.json; candidate.json; kernel.c; or, for `hardware`, the sheet about this machine.
 * Example km-instantiate request --slot 0 -o r00001/s0/request.json r00001/plan.json
 */
#include "cache.h"
#include "cli.h"
#include "code.h"
#include "file.h"
#include "hardware.h"
#include "json.h"
#include "prompt.h"
#include "schema.h"
#include "text.h"
#include "util.h"

#include <getopt.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char usage[] =
	"Usage: km-instantiate request --slot K [--task DIR] [--prompts DIR] [--model NAME] [--temperature T] [--max-tokens N] [--effort E] [-o FILE] PLAN.json\n"
	"  or:  km-instantiate candidate [--language L] [--plan PLAN.json --slot K] [-o FILE] REPLY.json\n"
	"  or:  km-instantiate check [--plan PLAN.json --slot K]\n"
	"  or:  km-instantiate source [-o FILE] CANDIDATE.json\n"
	"  or:  km-instantiate hardware [--target T] [--device NAME | --probe FILE] [--prompts DIR] [-o FILE]\n"
	"Write the prompt for a slot of a plan; find the kernel in a reply, or say what hides it; write its source; describe this machine.\n"
	"\n"
	"  --slot K          request, candidate, check: the slot\n"
	"  --plan PLAN.json  candidate, check: the plan that names the kernel which changes are applied to\n"
	"  --task DIR        request: the task's folder (default: ../task beside the plan)\n"
	"  --prompts DIR     request: the templates (default: ../prompts beside the plan);\n"
	"                    hardware: (default: the folder of -o FILE, else prompts)\n"
	"  --model NAME      request: the model to ask\n"
	"  --temperature T   request: a sampling temperature to ask for\n"
	"  --max-tokens N    request: the longest reply to ask for (default 16000)\n"
	"  --effort E        request: the effort of reasoning to ask for, as the provider names it: low, medium, high, ...\n"
	"  --language L      candidate: c or cuda (default c)\n"
	"  --target T        hardware: cpu (default) or cuda\n"
	"  --device NAME     hardware, cuda: of this device, by its datasheet, such as H200 (default: the one that was probed, or is here)\n"
	"  --probe FILE      hardware, cuda: of the device that km-bench --probe wrote this about, on any machine\n"
	"  -o, --output FILE write there (default: standard output)\n"
	"  -h, --help        print this help\n"
	"  -V, --version     print the version\n";

struct options {
	long slot;
	const char *task, *prompts, *model, *language, *target, *device, *probe, *effort, *output, *plan;
	bool has_temperature;
	double temperature;
	long max_tokens;
};

enum { OPT_SLOT = 256, OPT_TASK, OPT_PROMPTS, OPT_MODEL, OPT_TEMPERATURE, OPT_MAX_TOKENS, OPT_EFFORT, OPT_LANGUAGE, OPT_TARGET, OPT_DEVICE, OPT_PROBE, OPT_PLAN };

static const struct option long_options[] = {
	{ "slot", required_argument, NULL, OPT_SLOT },
	{ "task", required_argument, NULL, OPT_TASK },
	{ "prompts", required_argument, NULL, OPT_PROMPTS },
	{ "model", required_argument, NULL, OPT_MODEL },
	{ "temperature", required_argument, NULL, OPT_TEMPERATURE },
	{ "max-tokens", required_argument, NULL, OPT_MAX_TOKENS },
	{ "effort", required_argument, NULL, OPT_EFFORT },
	{ "language", required_argument, NULL, OPT_LANGUAGE },
	{ "target", required_argument, NULL, OPT_TARGET },
	{ "device", required_argument, NULL, OPT_DEVICE },
	{ "probe", required_argument, NULL, OPT_PROBE },
	{ "plan", required_argument, NULL, OPT_PLAN },
	{ "output", required_argument, NULL, 'o' },
	{ "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' },
	{ NULL, 0, NULL, 0 },
};

static void set_option(struct options *o, int option, const char *value)
{
	switch (option) {
	case OPT_SLOT:
		if (!parse_long(value, 0, 63, &o->slot))
			die_usage("--slot needs a number from 0 to 63, not '%s'", value);
		break;
	case OPT_TASK:
		o->task = value;
		break;
	case OPT_PROMPTS:
		o->prompts = value;
		break;
	case OPT_MODEL:
		o->model = value;
		break;
	case OPT_TEMPERATURE:
		if (!parse_double(value, 0, 10, &o->temperature))
			die_usage("--temperature needs a number from 0 to 10, not '%s'", value);
		o->has_temperature = true;
		break;
	case OPT_MAX_TOKENS:
		if (!parse_long(value, 1, 10000000, &o->max_tokens))
			die_usage("--max-tokens needs a number, not '%s'", value);
		break;
	case OPT_EFFORT:
		o->effort = value;
		break;
	case OPT_LANGUAGE:
		if (strcmp(value, "c") != 0 && strcmp(value, "cuda") != 0)
			die_usage("--language is c or cuda, not '%s'", value);
		o->language = value;
		break;
	case OPT_TARGET:
		if (strcmp(value, "cpu") != 0 && strcmp(value, "cuda") != 0)
			die_usage("--target is cpu or cuda, not '%s'", value);
		o->target = value;
		break;
	case OPT_DEVICE:
		o->device = value;
		break;
	case OPT_PROBE:
		o->probe = value;
		break;
	case OPT_PLAN:
		o->plan = value;
		break;
	case 'o':
		o->output = strcmp(value, "-") == 0 ? NULL : value;
		break;
	case 'h':
		cli_help(usage);
	case 'V':
		cli_version();
	default:
		die_option();
	}
}

/* Read a file, parse it and check its kind; its bytes stay in *bytes for made_by. */
static cJSON *load(const char *path, const char *kind, struct buf *bytes, struct error *err)
{
	cJSON *document;

	if (file_read(path, bytes, err) < 0)
		return NULL;
	document = json_parse(bytes->data, bytes->len, err);
	if (!document || schema_check(kind, document, err) < 0) {
		error_prefix(err, "'%s'", path);
		cJSON_Delete(document);
		return NULL;
	}
	return document;
}

/* ---- request ---------------------------------------------------------------------------------------------------- */

static int request(const struct options *o, const char *path, struct error *err)
{
	char *task = o->task ? xstrdup(o->task) : path_beside(path, "../task");
	char *prompts = o->prompts ? xstrdup(o->prompts) : path_beside(path, "../prompts");
	struct prompt_source source = {
		.prompts = prompts, .task = task, .model = o->model, .has_temperature = o->has_temperature,
		.temperature = o->temperature, .max_tokens = (int)o->max_tokens, .effort = o->effort,
	};
	char *folder = path_folder(path), *world_path = NULL;
	static cJSON *world; /* left to the end of the process: freeing a large tree takes longer than quoting it */
	cJSON *plan, *document = NULL;
	int status = -1;

	if (o->slot < 0)
		die_usage("request needs --slot K");
	plan = json_load(path, "plan", err);
	if (plan) {
		world_path = path_beside(path, json_string(json_get(plan, "world"), "path"));
		world = json_load(world_path, "world", err);
	}
	if (world)
		document = prompt_code(&source, world, plan, (int)o->slot, folder, err);
	if (document)
		status = json_save(o->output, document, err);
	cJSON_Delete(document);
	cJSON_Delete(plan);
	free(world_path);
	free(folder);
	free(prompts);
	free(task);
	return status;
}

/* ---- candidate -------------------------------------------------------------------------------------------------- */

/* Cut "code/NODE/ATTEMPT", with "~n" or not, into its parts. */
static int read_cue(const char *cue, char **node, long *attempt, struct error *err)
{
	const char *start = starts_with(cue, "code/") ? cue + 5 : NULL, *slash = start ? strchr(start, '/') : NULL;
	char *number = slash ? xstrndup(slash + 1, strcspn(slash + 1, "~/")) : NULL;
	bool good = slash && slash > start && slash - start <= 40 && parse_long(number, 1, 1000000000, attempt);

	free(number);
	if (!good)
		return error_set(err, KM_EXIT_INPUT, "the reply's cue '%.120s' is not that of a code request: code/NODE/ATTEMPT", cue);
	*node = xstrndup(start, (size_t)(slash - start));
	return 0;
}

/* The kernel that the slot started from, which changes are applied to; *base stays NULL if there is none. */
static int load_base(const struct options *o, char **base, struct error *err)
{
	cJSON *plan;
	const char *kernel;
	struct buf b;
	char *path;
	int status = 0;

	if (!o->plan)
		return 0;
	plan = json_load(o->plan, "plan", err);
	if (!plan)
		return -1;
	kernel = json_string(json_get(cJSON_GetArrayItem(json_get(plan, "slots"), (int)o->slot), "base"), "kernel");
	if (kernel) {
		path = path_beside(o->plan, kernel);
		buf_init(&b, JSON_MAX_BYTES);
		status = file_read(path, &b, err);
		if (status == 0)
			*base = buf_take(&b);
		buf_release(&b);
		free(path);
	}
	cJSON_Delete(plan);
	return status;
}

/* The source in a text. NULL, with 0, if there is none: then *why tells it. -1 if the base cannot be read. */
static int find_source(const struct options *o, const char *text, char **source, struct error *why, struct error *err)
{
	char *base = NULL;

	*source = NULL;
	if (code_is_patch(text) && load_base(o, &base, err) < 0)
		return -1;
	*source = code_extract(text, base, why);
	free(base);
	return 0;
}

static int set_source(cJSON *document, const cJSON *reply, const struct options *o, struct error *err)
{
	const char *status = json_string(reply, "status"), *reason = json_string(reply, "reason");
	struct error why = { 0 };
	char *source = NULL;

	if (strcmp(status, "answered") == 0) {
		if (find_source(o, json_string(reply, "text"), &source, &why, err) < 0)
			return -1;
		if (!source)
			reason = why.text;
	}
	json_set_string(document, "status", source ? "CODE" : strcmp(status, "unrecorded") == 0 ? "UNRECORDED" : "NO_CODE");
	if (!source && reason)
		json_set_string(document, "reason", reason);
	json_set_string(document, "language", o->language);
	json_set_string(document, "source", source ? source : "");
	free(source);
	return 0;
}

static cJSON *make_candidate(const cJSON *reply, const struct buf *bytes, const struct options *o, struct error *err)
{
	char *node = NULL;
	long attempt = 0;
	cJSON *document;

	if (json_get(reply, "skip"))
		return cJSON_Duplicate(reply, true);
	if (read_cue(json_string(reply, "cue"), &node, &attempt, err) < 0)
		return NULL;
	document = cJSON_CreateObject();
	json_made_by(document, "km-instantiate");
	json_made_from(document, "reply.json", bytes->data, bytes->len);
	json_set_string(document, "cue", json_string(reply, "cue"));
	json_set_string(document, "node", node);
	json_set_number(document, "attempt", (double)attempt);
	free(node);
	if (set_source(document, reply, o, err) < 0) {
		cJSON_Delete(document);
		return NULL;
	}
	return document;
}

static int candidate(const struct options *o, const char *path, struct error *err)
{
	struct buf bytes;
	cJSON *reply, *document = NULL;
	int status = -1;

	buf_init(&bytes, JSON_MAX_BYTES);
	reply = load(path, "reply", &bytes, err);
	if (reply)
		document = make_candidate(reply, &bytes, o, err);
	if (document)
		status = json_save(o->output, document, err);
	cJSON_Delete(document);
	cJSON_Delete(reply);
	buf_release(&bytes);
	return status;
}

/* ---- check ------------------------------------------------------------------------------------------------------ */

/* Can the text on standard input be read as a reply with a kernel? What is said otherwise goes to the model as it is. */
static int check(const struct options *o, const char *path, struct error *err)
{
	struct error why = { 0 };
	char *source = NULL, *text;
	struct buf b;
	int status;

	if (path)
		die_usage("check reads standard input and takes no file");
	buf_init(&b, JSON_MAX_BYTES);
	status = file_read("-", &b, err);
	if (status == 0) {
		text = text_clean(b.data, b.len);
		status = find_source(o, text, &source, &why, err);
		free(text);
	}
	buf_release(&b);
	if (status == 0 && !source) {
		fprintf(stderr, "%s\n", why.text);
		exit(KM_EXIT_REFUSED);
	}
	free(source);
	return status;
}

/* ---- source ----------------------------------------------------------------------------------------------------- */

/* Keep what stands at path as path~ if it is something else. */
static int keep_old(const char *path, const char *source, struct error *err)
{
	struct buf old;
	char *kept;
	int status = 0;

	if (!path || !file_exists(path))
		return 0;
	kept = xasprintf("%s~", path);
	buf_init(&old, JSON_MAX_BYTES);
	status = file_read(path, &old, err);
	if (status == 0 && (old.len != strlen(source) || memcmp(old.data, source, old.len) != 0))
		status = file_write(kept, old.data, old.len, err);
	buf_release(&old);
	free(kept);
	return status;
}

static int source(const struct options *o, const char *path, struct error *err)
{
	cJSON *document = json_load(path, "candidate", err);
	const char *text = json_string(document, "source");
	int status = -1;

	if (document) {
		text = text ? text : "";
		status = keep_old(o->output, text, err);
		if (status == 0)
			status = file_write(o->output, text, strlen(text), err);
	}
	cJSON_Delete(document);
	return status;
}

/* ---- hardware --------------------------------------------------------------------------------------------------- */

/* What km-bench --probe wrote last; *probe stays NULL if there is nothing. */
static int load_probe(cJSON **probe, struct error *err)
{
	char *folder = cache_folder(NULL), *pattern = folder ? xasprintf("%s/probe-*.json", folder) : NULL;
	const char *newest = NULL;
	struct stat st;
	time_t latest = 0;
	glob_t found;

	free(folder);
	if (!pattern)
		return 0;
	if (glob(pattern, 0, NULL, &found) == 0)
		for (size_t i = 0; i < found.gl_pathc; i++)
			if (stat(found.gl_pathv[i], &st) == 0 && (!newest || st.st_mtime > latest)) {
				newest = found.gl_pathv[i];
				latest = st.st_mtime;
			}
	if (newest)
		*probe = json_load(newest, NULL, err);
	globfree(&found);
	free(pattern);
	return newest && !*probe ? -1 : 0;
}

static int device_sheet(const struct options *o, const char *folder, struct buf *sheet, struct error *err)
{
	cJSON *probe = o->probe ? json_load(o->probe, NULL, err) : NULL;
	int status = o->probe ? (probe ? 0 : -1) : o->device ? 0 : load_probe(&probe, err);

	if (status == 0 && o->probe && !json_string(probe, "name")) {
		error_set(err, KM_EXIT_INPUT, "'%s' was not written by km-bench --probe: it has no name", o->probe);
		status = -1;
	}
	if (status == 0)
		status = hardware_cuda(folder, o->device, probe, sheet, err);
	cJSON_Delete(probe);
	return status;
}

static int hardware(const struct options *o, const char *path, struct error *err)
{
	char *folder = o->prompts ? xstrdup(o->prompts) : o->output ? path_folder(o->output) : xstrdup("prompts");
	struct buf sheet;
	int status;

	if (path)
		die_usage("hardware reads no file");
	if (o->device && o->probe)
		die_usage("--device or --probe, not both");
	buf_init(&sheet, JSON_MAX_BYTES);
	status = strcmp(o->target, "cuda") == 0 ? device_sheet(o, folder, &sheet, err) : hardware_cpu(folder, &sheet, err);
	if (status == 0)
		status = file_write(o->output, sheet.data, sheet.len, err);
	buf_release(&sheet);
	free(folder);
	return status;
}

static const struct {
	const char *name;
	bool reads;
	int (*run)(const struct options *, const char *path, struct error *);
} commands[] = {
	{ "request", true, request },
	{ "candidate", true, candidate },
	{ "check", false, check },
	{ "source", true, source },
	{ "hardware", false, hardware },
};

static int run_command(const struct options *o, int argc, char **argv, struct error *err)
{
	if (argc == 0)
		die_usage("one of request, candidate, check, source, hardware is needed");
	for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++) {
		if (strcmp(argv[0], commands[i].name) != 0)
			continue;
		if (argc > 2 || (commands[i].reads && argc != 2))
			die_usage("%s needs one file", argv[0]);
		return commands[i].run(o, argc == 2 ? argv[1] : NULL, err);
	}
	die_usage("unknown command '%s'", argv[0]);
}

int main(int argc, char **argv)
{
	struct options o = { .slot = -1, .language = "c", .target = "cpu" };
	struct error err = { 0 };
	int option;

	cli_init("km-instantiate");
	while ((option = getopt_long(argc, argv, "o:hV", long_options, NULL)) != -1)
		set_option(&o, option, optarg);
	if (o.plan && o.slot < 0)
		die_usage("--plan needs --slot K");
	if (run_command(&o, argc - optind, argv + optind, &err) < 0)
		die_error(&err);
	return cli_finish(KM_OK);
}
