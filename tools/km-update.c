/* km-update - lets measurements and the model's edits change the tree.
 *
 * Reads a round's plan.json and, beside it, the world before it, bench.json and edit-reply.json of every slot. Writes
 * the request for an edit, or the next world.json.
 *   km-update request --slot 0 -o state/x/r00007/s0/edit-request.json state/x/r00007/plan.json
 *   km-update world -o state/x/r00007/world.json state/x/r00007/plan.json
 */
#include "calls.h"
#include "cli.h"
#include "file.h"
#include "input.h"
#include "json.h"
#include "ledger.h"
#include "ops.h"
#include "prompt.h"
#include "round.h"
#include "strategy.h"
#include "util.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
	"Usage: km-update request --slot K [OPTION]... PLAN.json\n"
	"       km-update request --first [OPTION]... RUN.json\n"
	"       km-update world [OPTION]... PLAN.json\n"
	"       km-update world --first --reply REPLY.json [OPTION]... RUN.json\n"
	"       km-update check\n"
	"       km-update ledger [-o FILE] WORLD.json\n"
	"Let measurements and the model's edits change the tree of a search.\n"
	"\n"
	"  request               write the request for the edit call of a slot, or {\"skip\": reason}\n"
	"  world                 write the next world.json\n"
	"  check                 can the text on standard input be read as a tree reply?\n"
	"  ledger                print how good the predictions were\n"
	"\n"
	"      --slot K          the slot whose edit call it is\n"
	"      --first           the first tree of a run, from its run.json\n"
	"      --reply FILE      the reply to the first request\n"
	"      --prompts DIR     the templates (default: those of the run)\n"
	"      --task DIR        the task (default: that of the run)\n"
	"      --model NAME      the model, for the request's parameters\n"
	"      --temperature T   a sampling temperature to ask for\n"
	"      --max-tokens N    the longest reply to ask for (default 16000)\n"
	"      --effort E        the effort of reasoning to ask for, as the provider names it\n"
	"      --calls FILE      the ledger of calls, for the progress line\n"
	"  -o, --output FILE     write to FILE, not to standard output\n"
	"  -h, --help            show this help\n"
	"  -V, --version         show the version\n";

struct options {
	const char *command, *input, *output, *reply, *prompts, *task, *model, *calls, *effort;
	double temperature; /* negative if not given */
	long max_tokens;    /* 0 if not given */
	long slot; /* -1 if not given */
	bool first;
};

/* ---- options ---------------------------------------------------------------------------------------------------- */

static void parse_option(struct options *o, int c)
{
	switch (c) {
	case 's':
		if (!parse_long(optarg, 0, WORLD_SLOTS - 1, &o->slot))
			die_usage("--slot wants a number from 0 to %d, not '%s'", WORLD_SLOTS - 1, optarg);
		break;
	case 'f': o->first = true; break;
	case 'r': o->reply = optarg; break;
	case 'p': o->prompts = optarg; break;
	case 't': o->task = optarg; break;
	case 'm': o->model = optarg; break;
	case 'c': o->calls = optarg; break;
	case 'e': o->effort = optarg; break;
	case 'T':
		if (!parse_double(optarg, 0, 10, &o->temperature))
			die_usage("--temperature wants a number from 0 to 10, not '%s'", optarg);
		break;
	case 'M':
		if (!parse_long(optarg, 1, 10000000, &o->max_tokens))
			die_usage("--max-tokens wants a number, not '%s'", optarg);
		break;
	case 'o': o->output = optarg; break;
	case 'h': cli_help(usage);
	case 'V': cli_version();
	default: die_option();
	}
}

static void check_options(const struct options *o, int operands)
{
	bool request = strcmp(o->command, "request") == 0, world = strcmp(o->command, "world") == 0;
	bool ledger = strcmp(o->command, "ledger") == 0;

	if (strcmp(o->command, "check") == 0) {
		if (operands != 0)
			die_usage("check reads standard input and takes no file");
		return;
	}
	if (!request && !world && !ledger)
		die_usage("unknown command '%s'", o->command);
	if (operands != 1)
		die_usage("one %s is needed", ledger ? "world.json" : o->first ? "run.json" : "plan.json");
	if (request && !o->first && o->slot < 0)
		die_usage("request needs --slot or --first");
	if (world && o->first && !o->reply)
		die_usage("world --first needs --reply");
}

static struct options parse_options(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "slot", required_argument, NULL, 's' }, { "first", no_argument, NULL, 'f' },
		{ "reply", required_argument, NULL, 'r' }, { "prompts", required_argument, NULL, 'p' },
		{ "task", required_argument, NULL, 't' }, { "model", required_argument, NULL, 'm' },
		{ "calls", required_argument, NULL, 'c' }, { "temperature", required_argument, NULL, 'T' },
		{ "max-tokens", required_argument, NULL, 'M' }, { "effort", required_argument, NULL, 'e' }, { "output", required_argument, NULL, 'o' },
		{ "help", no_argument, NULL, 'h' }, { "version", no_argument, NULL, 'V' }, { NULL, 0, NULL, 0 },
	};
	struct options o = { .slot = -1, .temperature = -1 };
	int c;

	while ((c = getopt_long(argc, argv, "o:hV", longs, NULL)) != -1)
		parse_option(&o, c);
	if (optind == argc)
		die_usage("a command is needed: request, world, check or ledger");
	o.command = argv[optind++];
	check_options(&o, argc - optind);
	o.input = argv[optind];
	return o;
}

/* ---- check ------------------------------------------------------------------------------------------------------ */

static int check(struct error *err)
{
	struct buf b;
	cJSON *reply = NULL;

	buf_init(&b, JSON_MAX_BYTES);
	if (file_read("-", &b, err) == 0 && !(reply = ops_parse(b.data, b.len, err)))
		err->code = KM_EXIT_REFUSED;
	buf_release(&b);
	cJSON_Delete(reply);
	return reply ? 0 : -1;
}

/* ---- ledger ----------------------------------------------------------------------------------------------------- */

static int ledger(const struct options *o, struct error *err)
{
	cJSON *world = json_load(o->input, "world", err);
	struct buf text;
	int result;

	if (!world)
		return -1;
	buf_init(&text, JSON_MAX_BYTES);
	ledger_text(world, &text);
	result = file_write(o->output, text.data, text.len, err);
	buf_release(&text);
	cJSON_Delete(world);
	return result;
}

/* ---- request ---------------------------------------------------------------------------------------------------- */

static cJSON *skip(const char *why)
{
	cJSON *document = cJSON_CreateObject();

	json_set_string(document, "skip", why);
	return document;
}

static cJSON *request_of_slot(const struct options *o, const struct prompt_source *source, struct error *err)
{
	static struct round r;
	cJSON *request = NULL;

	if (round_load(o->input, &r, err) < 0)
		return NULL;
	if (o->slot >= r.width)
		error_set(err, KM_EXIT_USAGE, "there is no slot %ld, there are %d", o->slot, r.width);
	else if (round_measure(&r, err) < 0)
		request = NULL;
	else if (round_asks(&r, (int)o->slot) == ROUND_ASKS_EDIT)
		request = prompt_edit(source, r.world.document, r.reports[o->slot].ended, r.folder, err);
	else if (round_asks(&r, (int)o->slot) == ROUND_ASKS_REFILL)
		request = prompt_refill(source, r.world.document, r.folder, err);
	else
		request = skip(strategy_is_single(&r.world) ? "under this strategy no edit of the tree is asked for" : "no cycle has ended in this slot");
	return request;
}

static int write_request(const struct options *o, struct error *err)
{
	char *prompts = path_beside(o->input, o->first ? "prompts" : "../prompts"), *task = path_beside(o->input, o->first ? "task" : "../task");
	struct prompt_source source = { .prompts = o->prompts ? o->prompts : prompts, .task = o->task ? o->task : task, .model = o->model,
					.has_temperature = o->temperature >= 0, .temperature = o->temperature, .max_tokens = (int)o->max_tokens, .effort = o->effort };
	cJSON *run = o->first ? json_load(o->input, "run", err) : NULL, *request = NULL;
	int result;

	if (!o->first)
		request = request_of_slot(o, &source, err);
	else if (run && strcmp(json_string(run, "strategy"), "world") != 0)
		request = skip("under this strategy no tree is asked for");
	else if (run)
		request = prompt_first_tree(&source, err);
	result = request ? json_save(o->output, request, err) : -1;
	cJSON_Delete(request);
	cJSON_Delete(run);
	free(prompts);
	free(task);
	return result;
}

/* ---- world ------------------------------------------------------------------------------------------------------ */

/* "r00007 s0 pack-b.1a2b attempt 2 improve PASSED 31.2x, best, closed" */
static void print_slot(const struct round *r, const cJSON *slot, int k)
{
	const struct cycle_report *report = &r->reports[k];
	char score[32] = "";

	if (report->score >= 0)
		snprintf(score, sizeof(score), " %.1fx", report->score / 100);
	fprintf(stderr, "r%05.0f s%d %s attempt %.0f %s %s%s%s%s%s", json_number(r->plan, "round", 0), k, json_string(slot, "node"), json_number(slot, "attempt", 0),
		json_string(slot, "mode"), report->status, score, report->best ? ", best" : "", report->ended ? ", " : "",
		report->ended ? json_string(report->ended, "outcome") : "");
}

static void print_totals(const struct round *r, const struct calls_sum *spent)
{
	const cJSON *best = json_get(r->world.document, "best");
	long evaluations = world_number(&r->world, "evaluations");
	char text[32] = "none yet";

	if (cJSON_IsObject(best))
		snprintf(text, sizeof(text), "%.1fx", json_number(best, "score", 0) / 100);
	fprintf(stderr, " | best %s, %ld evaluation%s, %.0f s, $%.2f\n", text, evaluations, evaluations == 1 ? "" : "s",
		json_number(r->world.document, "judge_seconds", 0) + spent->seconds, spent->usd);
}

/* One line a busy slot, the totals behind the last. */
static void print_progress(const struct round *r, const struct calls_sum *spent)
{
	const cJSON *slot;
	int k = 0, printed = 0;

	cJSON_ArrayForEach(slot, json_get(r->plan, "slots")) {
		if (!json_string(slot, "skip") && k % r->samples == 0) {
			if (printed++)
				fputc('\n', stderr);
			print_slot(r, slot, k);
		}
		k++;
	}
	if (!printed)
		fprintf(stderr, "r%05.0f no open node, asked for new ones", json_number(r->plan, "round", 0));
	print_totals(r, spent);
}

static int write_world(const struct options *o, struct error *err)
{
	static struct round r;
	struct calls_sum spent = { 0 };
	int result;

	if (round_load(o->input, &r, err) < 0)
		return -1;
	result = round_measure(&r, err);
	if (result == 0)
		result = round_edit(&r, err);
	if (result == 0 && o->calls)
		result = calls_sum(o->calls, &spent, err);
	if (result == 0) {
		json_made_by(r.world.document, "km-update");
		json_set(json_get_mutable(r.world.document, "made_by"), "inputs", cJSON_Duplicate(r.inputs, true));
		result = json_save(o->output, r.world.document, err);
	}
	if (result == 0)
		print_progress(&r, &spent);
	return result;
}

static int write_first_world(const struct options *o, struct error *err)
{
	char run_hex[HASH_HEX + 1], reply_hex[HASH_HEX + 1];
	cJSON *run = input_load(o->input, "run", run_hex, err), *reply = run ? input_load(o->reply, "reply", reply_hex, err) : NULL;
	struct world w = { 0 };
	int result = -1;

	if (reply && world_first(&w, run, err) == 0) {
		if (!json_get(reply, "skip"))
			round_apply_reply(&w, reply, 0, -1);
		strategy_fill(&w);
		json_made_by(w.document, "km-update");
		input_note(w.document, "run.json", run_hex);
		input_note(w.document, "reply.json", reply_hex);
		result = json_save(o->output, w.document, err);
	}
	if (result == 0)
		fprintf(stderr, "r00000 first tree: %zu open nodes\n", w.count - 1);
	world_release(&w);
	cJSON_Delete(reply);
	cJSON_Delete(run);
	return result;
}

int main(int argc, char **argv)
{
	struct options o;
	struct error err;
	int result;

	cli_init("km-update");
	o = parse_options(argc, argv);
	if (strcmp(o.command, "check") == 0)
		result = check(&err);
	else if (strcmp(o.command, "ledger") == 0)
		result = ledger(&o, &err);
	else if (strcmp(o.command, "request") == 0)
		result = write_request(&o, &err);
	else
		result = o.first ? write_first_world(&o, &err) : write_world(&o, &err);
	if (result < 0)
		die_error(&err);
	return cli_finish(KM_OK);
}
