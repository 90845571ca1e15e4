/* km-plan - what each slot of the next round tries.
 *
 * Reads world.json and, for the limits on money, tokens and time, calls.tsv. Writes plan.json.
 *   km-plan --calls state/x/calls.tsv --evals 100 -o state/x/r00007/plan.json state/x/r00006/world.json
 */
#include "cli.h"
#include "input.h"
#include "json.h"
#include "plan.h"
#include "util.h"

#include <getopt.h>
#include <limits.h>
#include <stdlib.h>

static const char usage[] =
	"Usage: km-plan [OPTION]... WORLD.json\n"
	"Plan the next round of a search: node, attempt, mode and base kernel of every slot.\n"
	"\n"
	"      --calls FILE      the ledger of calls, for --usd, --tokens and --seconds\n"
	"      --evals N         end after N evaluations\n"
	"      --rounds N        end after N rounds\n"
	"      --target X        end when the best is X times as fast as the baseline\n"
	"      --patience N      end after N cycles without a new best\n"
	"      --usd X           end when X dollars are spent\n"
	"      --tokens N        end when N tokens are used, in and out together\n"
	"      --seconds X       end after X seconds of replies and judging\n"
	"  -o, --output FILE     write the plan to FILE, not to standard output\n"
	"  -h, --help            show this help\n"
	"  -V, --version         show the version\n"
	"\n"
	"Exit code 5: the search has ended; the message says why, and nothing is written.\n";

struct options {
	struct limits limits;
	const char *calls, *output, *world;
};

static long whole(const char *name, const char *text)
{
	long v;

	if (!parse_long(text, 0, LONG_MAX, &v))
		die_usage("--%s wants a whole number, not '%s'", name, text);
	return v;
}

static double number(const char *name, const char *text)
{
	double v;

	if (!parse_double(text, 0, 1e15, &v))
		die_usage("--%s wants a number that is not negative, not '%s'", name, text);
	return v;
}

static void parse_option(struct options *o, int c, const char *name)
{
	switch (c) {
	case 'c': o->calls = optarg; break;
	case 'r': o->limits.rounds = whole(name, optarg); break;
	case 'e': o->limits.evals = whole(name, optarg); break;
	case 't': o->limits.tokens = whole(name, optarg); break;
	case 'p': o->limits.patience = whole(name, optarg); break;
	case 'u': o->limits.usd = number(name, optarg); break;
	case 's': o->limits.seconds = number(name, optarg); break;
	case 'f': o->limits.target = number(name, optarg); break;
	case 'o': o->output = optarg; break;
	case 'h': cli_help(usage);
	case 'V': cli_version();
	default: die_option();
	}
}

static struct options parse_options(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "calls", required_argument, NULL, 'c' }, { "rounds", required_argument, NULL, 'r' },
		{ "evals", required_argument, NULL, 'e' }, { "tokens", required_argument, NULL, 't' },
		{ "patience", required_argument, NULL, 'p' }, { "usd", required_argument, NULL, 'u' },
		{ "seconds", required_argument, NULL, 's' }, { "target", required_argument, NULL, 'f' },
		{ "output", required_argument, NULL, 'o' }, { "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' }, { NULL, 0, NULL, 0 },
	};
	struct options o = { .limits = LIMITS_NONE };
	int c, index = 0;

	while ((c = getopt_long(argc, argv, "o:hV", longs, &index)) != -1)
		parse_option(&o, c, longs[index].name);
	if (optind + 1 != argc)
		die_usage("one world.json is needed");
	o.world = argv[optind];
	return o;
}

static cJSON *plan_from(const struct options *o, struct error *err)
{
	static struct world w; /* left to the end of the process: freeing a large tree takes longer than planning */
	char hex[HASH_HEX + 1];
	struct calls_sum spent = { 0 };
	cJSON *document = input_load(o->world, "world", hex, err), *plan;

	if (!document)
		return NULL;
	if (world_adopt(&w, document, err) < 0) {
		error_prefix(err, "'%s'", o->world);
		return NULL;
	}
	if (o->calls && calls_sum(o->calls, &spent, err) < 0)
		return NULL;
	plan = plan_make(&w, hex, &o->limits, &spent, err);
	if (plan)
		input_note(plan, "world.json", hex);
	return plan;
}

int main(int argc, char **argv)
{
	struct options o;
	struct error err;
	cJSON *plan;

	cli_init("km-plan");
	o = parse_options(argc, argv);
	plan = plan_from(&o, &err);
	if (!plan || json_save(o.output, plan, &err) < 0)
		die_error(&err);
	cJSON_Delete(plan);
	return cli_finish(KM_OK);
}
