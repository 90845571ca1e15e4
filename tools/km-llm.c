/* km-llm - ask a language model: a request in, a reply out.
 *
 * Reads   REQUEST.json, the run's calls/ and calls.tsv, the reply that is there already.
 * Writes  reply.json; with --run also calls/<id>.json and lines of calls.tsv; provider manual: ask-<id>.md.
 * Example km-llm --provider openai --run state/x -o state/x/r00001/s0/reply.json state/x/r00001/s0/request.json
 */
#include "ask.h"
#include "calls.h"
#include "cli.h"
#include "file.h"
#include "hash.h"
#include "json.h"
#include "provider.h"
#include "request.h"
#include "schema.h"
#include "util.h"

#include <curl/curl.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char usage[] =
	"Usage: km-llm --provider NAME [OPTION]... REQUEST.json\n"
	"Ask a language model and write its reply.\n"
	"\n"
	"  --provider NAME   openai, anthropic, exec, manual or replay\n"
	"  --run DIR         keep every answer in DIR/calls/ and the ledger DIR/calls.tsv\n"
	"  --check CMD       CMD reads the reply's text; if it exits with 6, its message goes back to the model\n"
	"  --again N         with --check: how often it is asked again (default 2)\n"
	"  --recording DIR   provider replay: the run whose DIR/calls/ is replayed\n"
	"  --exec CMD        provider exec: the command that answers (default: the environment's KM_EXEC)\n"
	"  -o, --output FILE write the reply there (default: standard output)\n"
	"\n"
	"Patience:\n"
	"  --timeout S       seconds that one call may take, with all its tries (default 1800)\n"
	"  --stall S         seconds without a byte of a stream before the next try, 0 for no limit (default 600)\n"
	"  --tries N         tries of one call (default 5)\n"
	"  --backoff S       seconds before the second try; doubled for each later one (default 1)\n"
	"  --max-wait S      the longest pause before a try (default 300)\n"
	"  --whole           ask for the reply in one piece, not as a stream\n"
	"\n"
	"Limits, by the ledger of --run, looked at before each call:\n"
	"  --usd X, --tokens N, --seconds S, --calls N  what the run may take\n"
	"  --call-usd X, --call-tokens N  what one call may take\n"
	"  --prices FILE     what tokens cost, by model (the environment's KM_PRICE=IN,OUT goes before)\n"
	"\n"
	"  -h, --help        print this help\n"
	"  -V, --version     print the version\n";

struct options {
	struct ask ask;
	const char *request, *output, *prices;
};

enum {
	OPT_PROVIDER = 256, OPT_RUN, OPT_CHECK, OPT_AGAIN, OPT_RECORDING, OPT_EXEC, OPT_TIMEOUT, OPT_STALL, OPT_TRIES, OPT_BACKOFF, OPT_MAX_WAIT,
	OPT_WHOLE, OPT_USD, OPT_TOKENS, OPT_SECONDS, OPT_CALLS, OPT_CALL_USD, OPT_CALL_TOKENS, OPT_PRICES
};

static const struct option long_options[] = {
	{ "provider", required_argument, NULL, OPT_PROVIDER }, { "run", required_argument, NULL, OPT_RUN },
	{ "check", required_argument, NULL, OPT_CHECK },       { "again", required_argument, NULL, OPT_AGAIN },
	{ "recording", required_argument, NULL, OPT_RECORDING }, { "exec", required_argument, NULL, OPT_EXEC },
	{ "timeout", required_argument, NULL, OPT_TIMEOUT },   { "stall", required_argument, NULL, OPT_STALL },
	{ "tries", required_argument, NULL, OPT_TRIES },       { "backoff", required_argument, NULL, OPT_BACKOFF },
	{ "max-wait", required_argument, NULL, OPT_MAX_WAIT }, { "whole", no_argument, NULL, OPT_WHOLE },
	{ "usd", required_argument, NULL, OPT_USD },           { "tokens", required_argument, NULL, OPT_TOKENS },
	{ "seconds", required_argument, NULL, OPT_SECONDS },   { "calls", required_argument, NULL, OPT_CALLS },
	{ "call-usd", required_argument, NULL, OPT_CALL_USD }, { "call-tokens", required_argument, NULL, OPT_CALL_TOKENS },
	{ "prices", required_argument, NULL, OPT_PRICES },
	{ "output", required_argument, NULL, 'o' },            { "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' },                 { NULL, 0, NULL, 0 },
};

static void set_provider(struct ask *ask, const char *name)
{
	ask->provider = provider_find(name);
	if (!ask->provider)
		die_usage("unknown provider '%s': there are %s", name, provider_names());
}

static void set_number(const char *name, const char *value, double low, double high, double *number)
{
	if (!parse_double(value, low, high, number))
		die_usage("--%s needs a number from %g to %g, not '%s'", name, low, high, value);
}

static void set_count(const char *name, const char *value, long low, long high, long *count)
{
	if (!parse_long(value, low, high, count))
		die_usage("--%s needs a whole number from %ld to %ld, not '%s'", name, low, high, value);
}

/* True if it was one of the options that are numbers. */
static bool set_numeric(struct ask *ask, int option, const char *value)
{
	switch (option) {
	case OPT_AGAIN: set_count("again", value, 0, 9, &ask->again); return true;
	case OPT_TIMEOUT: set_number("timeout", value, 0.1, 1e6, &ask->options.timeout); return true;
	case OPT_STALL: set_number("stall", value, 0, 1e6, &ask->options.stall); return true;
	case OPT_TRIES: set_count("tries", value, 1, 1000, &ask->options.tries); return true;
	case OPT_BACKOFF: set_number("backoff", value, 0, 1e6, &ask->options.backoff); return true;
	case OPT_MAX_WAIT: set_number("max-wait", value, 0, 1e6, &ask->options.max_wait); return true;
	case OPT_USD: set_number("usd", value, 0, 1e9, &ask->limits.usd); return true;
	case OPT_TOKENS: set_count("tokens", value, 0, 1000000000000, &ask->limits.tokens); return true;
	case OPT_SECONDS: set_number("seconds", value, 0, 1e9, &ask->limits.seconds); return true;
	case OPT_CALLS: set_count("calls", value, 0, 1000000000, &ask->limits.calls); return true;
	case OPT_CALL_USD: set_number("call-usd", value, 0, 1e9, &ask->limits.call_usd); return true;
	case OPT_CALL_TOKENS: set_count("call-tokens", value, 0, 1000000000, &ask->limits.call_tokens); return true;
	default: return false;
	}
}

static void set_option(struct options *o, int option, const char *value)
{
	switch (option) {
	case OPT_PROVIDER: set_provider(&o->ask, value); break;
	case OPT_RUN: o->ask.run = value; break;
	case OPT_CHECK: o->ask.check = value; break;
	case OPT_RECORDING: o->ask.options.recording = value; break;
	case OPT_EXEC: o->ask.options.command = value; break;
	case OPT_WHOLE: o->ask.options.whole = true; break;
	case OPT_PRICES: o->prices = value; break;
	case 'o': o->output = value; break;
	case 'h': cli_help(usage);
	case 'V': cli_version();
	default:
		if (!set_numeric(&o->ask, option, value))
			die_option();
	}
}

static struct options parse_options(int argc, char **argv)
{
	struct options o = { .ask = {
		.again = 2, .limits = CALLS_LIMITS_NONE,
		.options = { .timeout = 1800, .stall = 600, .tries = 5, .backoff = 1, .max_wait = 300, .command = getenv("KM_EXEC") },
	} };
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
	return o;
}

/* ---- what it costs ---------------------------------------------------------------------------------------------- */

/* Find the price of the request's model; a limit in money is none without one. */
static int find_price(struct options *o, const cJSON *request, struct error *err)
{
	const char *given = getenv("KM_PRICE"), *model = json_string(json_get(request, "parameters"), "model");
	struct ask *ask = &o->ask;

	if (given && *given && !price_parse(given, &ask->options.price))
		return error_set(err, KM_EXIT_USAGE, "KM_PRICE must be two or three numbers, IN,OUT or IN,OUT,CACHED: dollars for a million tokens");
	if (!ask->options.price.known && o->prices && prices_find(o->prices, model, &ask->options.price, err) < 0)
		return -1;
	if (ask->provider->priced && !ask->options.price.known && (ask->limits.usd >= 0 || ask->limits.call_usd >= 0))
		return error_set(err, KM_EXIT_USAGE, "there is a limit in dollars, but no price is known for the model '%s': put it into %s%s%s or set KM_PRICE=IN,OUT", model,
				 o->prices ? "'" : "", o->prices ? o->prices : "a table for --prices", o->prices ? "'" : "");
	return 0;
}

/* ---- what is seen meanwhile ------------------------------------------------------------------------------------- */

static const char *progress_cue;

/* A line that is written over and over, on a terminal only. */
static void show_progress(void *data, const struct provider_progress *p)
{
	static double last;

	(void)data;
	if (p->seconds - last < 0.2 && last > 0)
		return;
	last = p->seconds;
	if (p->wait > 0)
		fprintf(stderr, "\r\033[Kkm-llm: %s: %.0f s; next try in %.0f s: %.60s", progress_cue, p->seconds, p->wait, p->reason);
	else
		fprintf(stderr, "\r\033[Kkm-llm: %s: %.0f s, %zu bytes of thinking, %zu of text%s", progress_cue, p->seconds, p->thinking, p->text,
			p->try > 1 ? " (tried again)" : "");
	fflush(stderr);
}

static void print_spent(const struct ask *ask)
{
	char *ledger = xasprintf("%s/calls.tsv", ask->run);
	struct calls_sum sum;

	if (calls_sum(ledger, &sum, NULL) == 0) {
		fprintf(stderr, " | run: $%.4f", sum.usd);
		if (ask->limits.usd >= 0)
			fprintf(stderr, " of $%.4f", ask->limits.usd);
		fprintf(stderr, ", %ld", sum.tokens);
		if (ask->limits.tokens >= 0)
			fprintf(stderr, " of %ld", ask->limits.tokens);
		fprintf(stderr, " tokens, %ld", sum.calls);
		if (ask->limits.calls >= 0)
			fprintf(stderr, " of %ld", ask->limits.calls);
		fprintf(stderr, " calls, %ld open", sum.open);
	}
	free(ledger);
}

/* The line at the end of a call: what it took and what the run has spent. */
static void show_answer(const struct ask *ask, const cJSON *request, const struct provider_answer *answer)
{
	if (isatty(STDERR_FILENO))
		fputs("\r\033[K", stderr);
	fprintf(stderr, "km-llm: %s: %ld tokens in, %ld out, %.1f s, $%.4f", json_string(request, "cue"), answer->tokens_in, answer->tokens_out,
		answer->seconds, answer->usd);
	if (answer->tries > 1)
		fprintf(stderr, ", %d tries", answer->tries);
	if (answer->finish && strcmp(answer->finish, "stop") != 0)
		fprintf(stderr, ", %s", strcmp(answer->finish, "length") == 0 ? "cut off at the token limit" : "a refusal");
	if (ask->run)
		print_spent(ask);
	fputc('\n', stderr);
}

/* ---- request and reply ------------------------------------------------------------------------------------------ */

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

/* What is needed to keep the reply, before it is paid for. */
static int prepare(const struct options *o, struct error *err)
{
	const char *run = o->ask.run;
	char *calls;
	int status;

	if (o->output && access(o->ask.options.folder, W_OK) < 0)
		return error_set(err, KM_EXIT_ENVIRONMENT, "cannot write '%s': %s", o->output, strerror(errno));
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
		reply = find_price(o, request, err) == 0 && prepare(o, err) == 0 ? ask_reply(&o->ask, request, err) : NULL;
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
	o.ask.answered = show_answer;
	request = load_request(o.request, &bytes, &err);
	progress_cue = json_string(request, "cue");
	if (isatty(STDERR_FILENO))
		o.ask.options.progress = show_progress;
	if (!request || answer(&o, request, &bytes, &err) < 0) {
		if (isatty(STDERR_FILENO))
			fputs("\r\033[K", stderr);
		die_error(&err);
	}
	cJSON_Delete(request);
	buf_release(&bytes);
	free(folder);
	curl_global_cleanup();
	return cli_finish(KM_OK);
}
