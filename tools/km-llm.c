/* km-llm - ask a language model: a request in, a reply out.
 *
 * Reads   REQUEST.json, the run's calls/ and calls.tsv, the reply that is there already.
 * Writes  reply.json; with --run also calls/<id>.json and lines of calls.tsv; provider manual: ask-<id>.md.
 * Example km-llm --provider openai --run state/x -o state/x/r00001/s0/reply.json state/x/r00001/s0/request.json
 */
#include "ask.h"
#include "cli.h"
#include "file.h"
#include "hash.h"
#include "json.h"
#include "provider.h"
#include "request.h"
#include "schema.h"
#include "util.h"

#include <curl/curl.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
	"Usage: km-llm --provider NAME [--run DIR] [--check CMD] [--recording DIR] [--exec CMD] [--timeout S] [-o FILE] REQUEST.json\n"
	"Ask a language model and write its reply.\n"
	"\n"
	"  --provider NAME   openai, exec, manual or replay\n"
	"  --run DIR         keep every answer in DIR/calls/ and the ledger DIR/calls.tsv\n"
	"  --check CMD       CMD reads the reply's text; if it fails, its message goes back to the model\n"
	"  --recording DIR   provider replay: the run whose DIR/calls/ is replayed\n"
	"  --exec CMD        provider exec: the command that answers (default: the environment's KM_EXEC)\n"
	"  --timeout S       seconds that one call may take (default 1800)\n"
	"  -o, --output FILE write the reply there (default: standard output)\n"
	"  -h, --help        print this help\n"
	"  -V, --version     print the version\n";

struct options {
	struct ask ask;
	const char *request, *output;
};

enum { OPT_PROVIDER = 256, OPT_RUN, OPT_CHECK, OPT_RECORDING, OPT_EXEC, OPT_TIMEOUT };

static const struct option long_options[] = {
	{ "provider", required_argument, NULL, OPT_PROVIDER }, { "run", required_argument, NULL, OPT_RUN },
	{ "check", required_argument, NULL, OPT_CHECK },       { "recording", required_argument, NULL, OPT_RECORDING },
	{ "exec", required_argument, NULL, OPT_EXEC },         { "timeout", required_argument, NULL, OPT_TIMEOUT },
	{ "output", required_argument, NULL, 'o' },            { "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' },                 { NULL, 0, NULL, 0 },
};

static void set_provider(struct ask *ask, const char *name)
{
	ask->provider = provider_find(name);
	if (!ask->provider)
		die_usage("unknown provider '%s': there are %s", name, provider_names());
}

static void set_option(struct options *o, int option, const char *value)
{
	switch (option) {
	case OPT_PROVIDER:
		set_provider(&o->ask, value);
		break;
	case OPT_RUN:
		o->ask.run = value;
		break;
	case OPT_CHECK:
		o->ask.check = value;
		break;
	case OPT_RECORDING:
		o->ask.options.recording = value;
		break;
	case OPT_EXEC:
		o->ask.options.command = value;
		break;
	case OPT_TIMEOUT:
		if (!parse_double(value, 0.1, 1e6, &o->ask.options.timeout))
			die_usage("--timeout needs a number of seconds, not '%s'", value);
		break;
	case 'o':
		o->output = value;
		break;
	case 'h':
		cli_help(usage);
	case 'V':
		cli_version();
	default:
		die_usage("see the message above");
	}
}

/* KM_PRICE="IN,OUT": dollars for a million tokens each way. */
static void read_price(struct provider_options *options)
{
	const char *price = getenv("KM_PRICE"), *comma = price ? strchr(price, ',') : NULL;
	char *in = comma ? xstrndup(price, (size_t)(comma - price)) : NULL;

	if (price && *price && (!in || !parse_double(in, 0, 1e6, &options->usd_in) || !parse_double(comma + 1, 0, 1e6, &options->usd_out)))
		die_usage("KM_PRICE must be two numbers, IN,OUT: dollars for a million tokens");
	free(in);
}

static struct options parse_options(int argc, char **argv)
{
	struct options o = { .ask.options = { .timeout = 1800, .command = getenv("KM_EXEC") } };
	int option;

	while ((option = getopt_long(argc, argv, "o:hV", long_options, NULL)) != -1)
		set_option(&o, option, optarg);
	if (!o.ask.provider)
		die_usage("--provider is needed: %s", provider_names());
	if (argc - optind != 1)
		die_usage("one request file is needed");
	o.request = argv[optind];
	if (o.output && strcmp(o.output, "-") == 0)
		o.output = NULL;
	read_price(&o.ask.options);
	return o;
}

/* Load the request; who edited it by hand gets the id that its content has now. */
static cJSON *load_request(const char *path, struct buf *bytes, struct error *err)
{
	char id[HASH_HEX + 1];
	cJSON *request;

	if (file_read(path, bytes, err) < 0)
		return NULL;
	request = json_parse(bytes->data, bytes->len, err);
	if (!request || schema_check("request", request, err) < 0) {
		error_prefix(err, "'%s'", path);
		cJSON_Delete(request);
		return NULL;
	}
	if (json_get(request, "skip"))
		return request;
	request_id(request, id);
	if (strcmp(id, json_string(request, "id")) != 0) {
		warning("'%s' was edited: what it asks now has the id %.8s", path, id);
		json_set_string(request, "id", id);
	}
	return request;
}

/* True if the output file already answers this request. A reply that no recording had is looked for again. */
static bool is_answered(const char *output, const cJSON *request, cJSON **reply)
{
	const char *id;

	*reply = output && file_exists(output) ? json_load(output, "reply", NULL) : NULL;
	id = json_string(*reply, "id");
	if (id && strcmp(id, json_string(request, "id")) == 0 && strcmp(json_string(*reply, "status"), "unrecorded") != 0)
		return true;
	cJSON_Delete(*reply);
	*reply = NULL;
	return false;
}

static int prepare_run(const char *run, struct error *err)
{
	char *calls;
	int status;

	if (!run)
		return 0;
	calls = xasprintf("%s/calls", run);
	status = file_make_folder(calls, err);
	free(calls);
	return status;
}

/* The document in the order of its schema: made_by first. */
static int save_reply(const char *output, const cJSON *reply, const struct buf *request_bytes, struct error *err)
{
	cJSON *document = cJSON_CreateObject();
	const cJSON *member;
	int status;

	json_made_by(document, "km-llm");
	json_made_from(document, "request.json", request_bytes->data, request_bytes->len);
	cJSON_ArrayForEach(member, reply) {
		json_set(document, member->string, cJSON_Duplicate(member, true));
	}
	status = json_save(output, document, err);
	cJSON_Delete(document);
	return status;
}

static int answer(struct options *o, const cJSON *request, const struct buf *bytes, struct error *err)
{
	cJSON *reply;
	int status;

	if (json_get(request, "skip"))
		return json_save(o->output, request, err);
	if (is_answered(o->output, request, &reply)) {
		status = file_touch(o->output, err);
	} else {
		reply = prepare_run(o->ask.run, err) == 0 ? ask_reply(&o->ask, request, err) : NULL;
		status = reply ? save_reply(o->output, reply, bytes, err) : -1;
	}
	if (status == 0)
		ask_tidy(&o->ask, reply);
	cJSON_Delete(reply);
	return status;
}

int main(int argc, char **argv)
{
	struct error err = { 0 };
	struct options o;
	struct buf bytes;
	cJSON *request;
	char *folder;

	cli_init("km-llm");
	curl_global_init(CURL_GLOBAL_DEFAULT);
	o = parse_options(argc, argv);
	buf_init(&bytes, JSON_MAX_BYTES);
	folder = o.output ? path_folder(o.output) : NULL;
	o.ask.options.folder = folder ? folder : ".";
	request = load_request(o.request, &bytes, &err);
	if (!request || answer(&o, request, &bytes, &err) < 0)
		die_error(&err);
	cJSON_Delete(request);
	buf_release(&bytes);
	free(folder);
	curl_global_cleanup();
	return cli_finish(KM_OK);
}
