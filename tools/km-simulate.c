/* km-simulate - compares search strategies on synthetic landscapes, without model, compiler or GPU.
 *
 * Reads nothing. Writes a table, tab-separated: what share of the possible logarithmic speed-up each strategy has reached.
 *   km-simulate --runs 500 --evals 120 --insight 0.3,0.6 | tools/report columns
 *
 * Every choice is made by the code that km-plan and km-update run; only kernels and replies are made up (landscape.h).
 */
#include "cli.h"
#include "json.h"
#include "landscape.h"
#include "ops.h"
#include "plan.h"
#include "strategy.h"
#include "util.h"

#include <getopt.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
	"Usage: km-simulate [OPTION]...\n"
	"Compare search strategies on synthetic landscapes at equal numbers of evaluations.\n"
	"\n"
	"      --runs N          landscapes, the same ones for all (default 300)\n"
	"      --evals N         evaluations of each search; shown at 1/8, 1/4, 1/2 and all of them (default 120)\n"
	"      --rounds N        rounds of each search, instead of evaluations\n"
	"      --searches LIST   STRATEGY or STRATEGY:POLICY, with commas\n"
	"                        (default world:default,world:paper,evolve,greedy,best-of-n)\n"
	"      --insight LIST    how well the model sees what an action brings, 0 to 1 (default 0,0.3,0.6,0.9)\n"
	"      --noise X         relative noise of a measurement (default 0.01)\n"
	"      --width N         slots of a round (default 1)\n"
	"      --samples N       samples of an attempt (default 1)\n"
	"      --ahead N         nodes of a first tree or a refill that are put below nodes without a kernel (default 0)\n"
	"      --k N             attempts without progress that end a cycle (default 5)\n"
	"      --seed N          of landscapes and models (default 1)\n"
	"  -h, --help            show this help\n"
	"  -V, --version         show the version\n";

enum { MOST = 16, POINTS = 4 };

struct options {
	long runs, evals, rounds, width, samples, k, ahead, seed; /* rounds: 0 if evaluations are counted */
	double noise, insights[MOST];
	int insight_count, search_count;
	char *searches[MOST]; /* STRATEGY or STRATEGY:POLICY */
};

/* ---- one search ------------------------------------------------------------------------------------------------- */

struct search {
	const struct options *options;
	struct writer writer;
	struct world world;
	double shares[POINTS]; /* of the possible logarithm, at 1/8, 1/4, 1/2 and all of the evaluations or rounds */
};

/* Where a search has come to when it is at point i. */
static long point(const struct options *o, int i)
{
	return (o->rounds ? o->rounds : o->evals) >> (POINTS - 1 - i);
}

static cJSON *run_document(const struct options *o, const char *search)
{
	const char *policy = strchr(search, ':');
	char *strategy = xstrndup(search, strcspn(search, ":")), *seed = xasprintf("%ld", o->seed);
	cJSON *run = cJSON_CreateObject();

	json_set_string(run, "task", "landscape");
	json_set_string(run, "target", "cpu");
	json_set_number(run, "width", (double)o->width);
	json_set_number(run, "k", (double)o->k);
	json_set_number(run, "samples", (double)o->samples);
	json_set_string(run, "strategy", strategy);
	json_set_string(run, "policy", policy ? policy + 1 : "default");
	json_set_string(run, "seed", seed);
	free(seed);
	free(strategy);
	return run;
}

static void judge_slots(struct search *s, struct round *r)
{
	struct error err;

	round_begin(r);
	for (int first = 0; first < r->width; first += r->samples) {
		struct cycle_verdict verdicts[WORLD_SLOTS];
		cJSON *benches[WORLD_SLOTS];
		int count = 0;

		for (int k = first; k < first + r->samples; k++) {
			const cJSON *slot = cJSON_GetArrayItem(json_get(r->plan, "slots"), k);

			if (json_string(slot, "skip"))
				continue;
			benches[count] = writer_code(&s->writer, r, slot);
			verdicts[count] = (struct cycle_verdict){ slot, benches[count], 0 };
			count++;
		}
		if (count && round_judge(r, first, verdicts, count, &err) < 0)
			die_error(&err);
		for (int i = 0; i < count; i++)
			cJSON_Delete(benches[i]);
	}
	cycle_settle(&r->world);
}

static void edit_tree(struct search *s, struct round *r)
{
	for (int k = 0; k < r->width; k++) {
		enum round_asks asks = round_asks(r, k);
		cJSON *reply = asks == ROUND_ASKS_NOTHING ? NULL : writer_tree(&s->writer, &r->world, r, k, asks);

		if (reply)
			round_reply(r, k, reply);
		cJSON_Delete(reply);
	}
	strategy_fill(&r->world);
}

/* False when the search has ended. */
static bool play_round(struct search *s)
{
	struct limits limits = LIMITS_NONE;
	struct calls_sum spent = { 0 };
	struct round r = { .samples = (int)s->options->samples, .width = (int)(s->options->width * s->options->samples) };
	struct error err;

	limits.evals = s->options->rounds ? -1 : s->options->evals;
	limits.rounds = s->options->rounds ? s->options->rounds : 20 * s->options->evals;
	r.plan = plan_make(&s->world, "", &limits, &spent, &err);
	if (!r.plan && err.code != KM_EXIT_ENDED)
		die_error(&err);
	if (!r.plan)
		return false;
	r.world = s->world;
	judge_slots(s, &r);
	edit_tree(s, &r);
	s->world = r.world;
	for (int k = 0; k < r.width; k++)
		cJSON_Delete(r.reports[k].ended);
	cJSON_Delete(r.plan);
	return true;
}

/* The share as of now counts for every point that is not behind yet. */
static void note_share(struct search *s)
{
	const struct program *best = writer_program(&s->writer, json_get(s->world.document, "best"));
	double share = best ? landscape_speed(s->writer.landscape, best) / s->writer.landscape->optimum : 0;
	long done = world_number(&s->world, s->options->rounds ? "round" : "evaluations");

	for (int i = 0; i < POINTS; i++)
		if (done <= point(s->options, i))
			s->shares[i] = share;
}

static void run_search(struct search *s, const struct landscape *l, const char *search, double insight, long number)
{
	cJSON *run = run_document(s->options, search), *reply;
	struct error err;

	memset(s->shares, 0, sizeof(s->shares));
	writer_init(&s->writer, l, insight, (uint64_t)s->options->seed * 1000003 + (uint64_t)number);
	s->writer.ahead = (int)s->options->ahead;
	if (world_first(&s->world, run, &err) < 0)
		die_error(&err);
	if (!strategy_is_single(&s->world)) {
		reply = writer_tree(&s->writer, &s->world, NULL, 0, ROUND_ASKS_NOTHING);
		round_apply_reply(&s->world, reply, 0, -1);
		cJSON_Delete(reply);
	}
	strategy_fill(&s->world);
	while (play_round(s))
		note_share(s);
	world_release(&s->world);
	writer_release(&s->writer);
	cJSON_Delete(run);
}

/* ---- the table -------------------------------------------------------------------------------------------------- */

/* Sums over the landscapes of what a search has reached at each point, and, last, of what the first search of the list has
 * reached beyond it in the end, on the same landscape. */
struct statistic {
	double sum, squares;
};

static void add(struct statistic *s, double value)
{
	s->sum += value;
	s->squares += value * value;
}

/* Mean and half of the 95 % confidence interval, in percent. */
static void print_statistic(const struct statistic *s, double n)
{
	double mean = s->sum / n, variance = fmax(0, s->squares / n - mean * mean) * n / fmax(n - 1, 1);

	printf("\t%.1f +- %.1f", 100 * mean, 100 * 1.96 * sqrt(variance / n));
}

static void print_table(const struct options *o)
{
	static struct statistic sums[MOST][MOST][POINTS + 1];
	struct landscape l;
	struct search s = { .options = o };
	double first = 0;

	for (long n = 0; n < o->runs; n++) {
		landscape_draw(&l, (uint64_t)o->seed * 1000000007u + (uint64_t)n, o->noise);
		for (int i = 0; i < o->insight_count; i++)
			for (int k = 0; k < o->search_count; k++) {
				run_search(&s, &l, o->searches[k], o->insights[i], n);
				first = k == 0 ? s.shares[POINTS - 1] : first;
				for (int p = 0; p < POINTS; p++)
					add(&sums[i][k][p], s.shares[p]);
				add(&sums[i][k][POINTS], first - s.shares[POINTS - 1]);
			}
	}
	printf("insight\tsearch");
	for (int p = 0; p < POINTS; p++)
		printf("\t%% at %ld", point(o, p));
	printf("\t%s minus it\n", o->searches[0]);
	for (int i = 0; i < o->insight_count; i++)
		for (int k = 0; k < o->search_count; k++) {
			printf("%g\t%s", o->insights[i], o->searches[k]);
			for (int p = 0; p < POINTS + (k > 0); p++)
				print_statistic(&sums[i][k][p], (double)o->runs);
			putchar('\n');
		}
}

/* ---- options ---------------------------------------------------------------------------------------------------- */

static void check_search(const char *search)
{
	static const char *const known[] = { "world", "world:default", "world:eager", "world:paper", "evolve", "greedy", "best-of-n" };

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (strcmp(search, known[i]) == 0)
			return;
	die_usage("there is no search '%s'", search);
}

static void forget_searches(struct options *o)
{
	for (int i = 0; i < o->search_count; i++)
		free(o->searches[i]);
	o->search_count = 0;
}

static void parse_searches(struct options *o, const char *text)
{
	forget_searches(o);
	for (o->search_count = 0; *text; text += *text == ',') {
		size_t n = strcspn(text, ",");

		if (o->search_count == MOST)
			die_usage("at most %d searches are compared", MOST);
		o->searches[o->search_count] = xstrndup(text, n);
		check_search(o->searches[o->search_count++]);
		text += n;
	}
}

static void parse_insights(struct options *o, const char *text)
{
	for (o->insight_count = 0; *text; text += *text == ',') {
		size_t n = strcspn(text, ",");
		char *number = xstrndup(text, n);

		if (o->insight_count == MOST || !parse_double(number, 0, 1, &o->insights[o->insight_count++]))
			die_usage("--insight wants numbers from 0 to 1, at most %d, not '%s'", MOST, number);
		free(number);
		text += n;
	}
}

static long whole(const char *name, const char *text, long low, long high)
{
	long v;

	if (!parse_long(text, low, high, &v))
		die_usage("--%s wants a whole number from %ld to %ld, not '%s'", name, low, high, text);
	return v;
}

static void parse_option(struct options *o, int c, const char *name)
{
	switch (c) {
	case 'r': o->runs = whole(name, optarg, 1, 1000000); break;
	case 'e': o->evals = whole(name, optarg, 8, 4000); break;
	case 'R': o->rounds = whole(name, optarg, 8, 4000); break;
	case 'A': o->ahead = whole(name, optarg, 0, OPS_NEW_FIRST / 2); break;
	case 'l': parse_searches(o, optarg); break;
	case 'i': parse_insights(o, optarg); break;
	case 'w': o->width = whole(name, optarg, 1, WORLD_SLOTS); break;
	case 'a': o->samples = whole(name, optarg, 1, WORLD_SLOTS); break;
	case 'k': o->k = whole(name, optarg, 1, 1000); break;
	case 's': o->seed = whole(name, optarg, 0, 1000000000); break;
	case 'n':
		if (!parse_double(optarg, 0, 1, &o->noise))
			die_usage("--noise wants a number from 0 to 1, not '%s'", optarg);
		break;
	case 'h': cli_help(usage);
	case 'V': cli_version();
	default: die_option();
	}
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "runs", required_argument, NULL, 'r' }, { "evals", required_argument, NULL, 'e' }, { "searches", required_argument, NULL, 'l' },
		{ "insight", required_argument, NULL, 'i' }, { "width", required_argument, NULL, 'w' }, { "samples", required_argument, NULL, 'a' },
		{ "k", required_argument, NULL, 'k' }, { "seed", required_argument, NULL, 's' }, { "noise", required_argument, NULL, 'n' },
		{ "rounds", required_argument, NULL, 'R' }, { "ahead", required_argument, NULL, 'A' },
		{ "help", no_argument, NULL, 'h' }, { "version", no_argument, NULL, 'V' }, { NULL, 0, NULL, 0 },
	};
	struct options o = { .runs = 300, .evals = 120, .width = 1, .samples = 1, .k = 5, .seed = 1, .noise = 0.01 };
	int c, index = 0;

	cli_init("km-simulate");
	parse_searches(&o, "world:default,world:paper,evolve,greedy,best-of-n");
	parse_insights(&o, "0,0.3,0.6,0.9");
	while ((c = getopt_long(argc, argv, "hV", longs, &index)) != -1)
		parse_option(&o, c, longs[index].name);
	if (optind != argc)
		die_usage("km-simulate reads no file");
	if (o.width * o.samples > WORLD_SLOTS)
		die_usage("width times samples is at most %d", WORLD_SLOTS);
	print_table(&o);
	forget_searches(&o);
	return cli_finish(KM_OK);
}
