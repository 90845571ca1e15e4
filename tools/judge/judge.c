#include "judge.h"

#include "random.h"
#include "util.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
	CANDIDATE, BASELINE, RIVALS, /* participants */
	DECK = 16,                   /* rounds in which the shares of input sets hold exactly */
	MAX_ROUNDS = 2 * VERSUS_BLOCKS,
	MANY_GAPS = 8,               /* fewer disturbed calls than this are noise */
	ALONE_CALLS = 8,             /* of each other, when the candidate is gone; twice as many more if it seems to have disturbed them */
};

/* What others may take longer while the candidate's process is there, as a share, in seconds, and in standard errors. */
#define ALONE_SHARE 0.08
#define ALONE_SLACK 1e-6
#define ALONE_Z 4.0

/* For more calls of a candidate that the clock would refuse. */
#define DOUBT_SECONDS 4.0

#define GAP_SHARE 0.5 /* share of disturbed calls that is no noise, however busy the machine is */

struct judge {
	const struct judge_options *options;
	const struct keeper_ops *ops;
	struct keeper *keeper;
	struct keeper_kernel *kernels; /* one a participant */
	struct judge_result *result;
	size_t participants;
	int *workloads;
	double *times;       /* [participant][MAX_ROUNDS], of the workload at hand; NaN: none */
	double *claims;      /* the same, before they were borne out */
	bool *doubtful;      /* the same: somebody else was at work on the device */
	double elapsed[MAX_ROUNDS], arrivals[MAX_ROUNDS]; /* of the candidate's calls */
	size_t rounds;       /* of the workload at hand */
	double *gaps;
	size_t gap_count, gap_size, disturbed, busy;
	/* what remains of the deck of input sets */
	int deck[DECK];
	int deck_left, full_check_at;
};

/* ---- drawing ---------------------------------------------------------------------------------------------------- */

/* Half normal, the rest evenly from the other sets of the task; shuffled. Without normal among them, all evenly. */
static void shuffle_deck(struct judge *j)
{
	const bool *in_use = j->options->task->input_sets;
	int others[SET_COUNT] = { 0 }, count = 0, plain[DECK];
	int32_t order[DECK];

	for (int s = 1; s < SET_COUNT; s++)
		if (in_use[s])
			others[count++] = s;
	for (int i = 0; i < DECK; i++) {
		bool plain_one = count == 0 || (in_use[SET_NORMAL] && i % 2 == 0);

		plain[i] = plain_one ? SET_NORMAL : others[i / (in_use[SET_NORMAL] ? 2 : 1) % count];
	}
	ref_permutation(random_secret(), order, DECK);
	for (int i = 0; i < DECK; i++)
		j->deck[i] = plain[order[i]];
	j->deck_left = DECK;
	j->full_check_at = (int)(random_secret() % DECK);
}

static int draw_set(struct judge *j, bool *full_check)
{
	if (j->deck_left == 0)
		shuffle_deck(j);
	j->deck_left--;
	*full_check = j->deck_left == j->full_check_at;
	return j->deck[j->deck_left];
}

static bool draw_vary(void)
{
	return random_secret() % 4 == 0;
}

/* ---- one call --------------------------------------------------------------------------------------------------- */


static struct verdict *verdict_of(struct judge *j, size_t who)
{
	return who == CANDIDATE ? &j->result->verdict : &j->result->rivals[who - RIVALS].verdict;
}

/* The task's own kernel failed: that is no verdict on the candidate. */
static int baseline_failed(const struct judge *j, const struct verdict *v, struct error *err)
{
	return error_set(err, KM_EXIT_INPUT, "the baseline of task '%s' is %s%s%s: %s", j->options->task->name,
			 verdict_name(v->status), v->rule[0] ? ", rule " : "", v->rule, v->message);
}

static bool takes_part(struct judge *j, size_t who)
{
	return who == BASELINE || verdict_of(j, who)->status == VERDICT_PASSED;
}

/* Start or select: what to do with a verdict that is not PASSED depends on whose it is. */
static int settle(struct judge *j, size_t who, const struct verdict *v, struct error *err)
{
	if (v->status == VERDICT_PASSED)
		return 0;
	j->ops->stop(j->keeper, who);
	if (who == BASELINE)
		return baseline_failed(j, v, err);
	*verdict_of(j, who) = *v;
	return 0;
}

static void note_gap(struct judge *j, const struct keeper_call *call)
{
	if (j->gap_count == j->gap_size) {
		j->gap_size = 2 * j->gap_size + 64;
		j->gaps = xreallocarray(j->gaps, j->gap_size, sizeof(*j->gaps));
	}
	j->gaps[j->gap_count++] = call->gap;
	j->disturbed += call->disturbed;
	j->busy += call->busy;
}

static bool is_many(const struct judge *j, size_t calls)
{
	return calls >= MANY_GAPS && (double)calls > GAP_SHARE * (double)j->gap_count;
}

/* A single gap may be the machine's: time stolen from a virtual machine is charged to whoever was running. One who works
 * between calls gains nothing by it, since gaps are part of the times. Disturbed calls count too: else a kernel could have
 * those left out in which it is slow. */
static void judge_gaps(struct judge *j)
{
	if (is_many(j, j->busy))
		verdict_set(&j->result->verdict, VERDICT_REJECTED, "work-between-calls",
			    "the device was at work for the kernel before or after %zu of %zu calls", j->busy, j->gap_count);
	if (is_many(j, j->disturbed))
		verdict_set(&j->result->verdict, VERDICT_REJECTED, "work-between-calls",
			    "the kernel's process used the processor between %zu of %zu calls (median %.0f us, allowed %.0f us)",
			    j->disturbed, j->gap_count, statistics_quantile(j->gaps, j->gap_count, 0.5) * 1e6, KEEPER_GAP * 1e6);
}

static int call_candidate(struct judge *j, struct judge_workload *w, bool all, struct keeper_call *call, struct error *err)
{
	struct verdict *v = &j->result->verdict;
	struct keeper_check check = { .output = -1 };

	*call = (struct keeper_call){ .seconds = (double)NAN };
	if (j->ops->call(j->keeper, CANDIDATE, call, v, err) < 0)
		return -1;
	w->calls++;
	if (v->status == VERDICT_PASSED) {
		note_gap(j, call);
		if (j->ops->check(j->keeper, CANDIDATE, all, &check, v, err) < 0)
			return -1;
	}
	w->max_abs_error = fmax(w->max_abs_error, check.max_abs_error);
	w->max_rel_error = fmax(w->max_rel_error, check.max_rel_error);
	if (v->status == VERDICT_PASSED)
		judge_gaps(j);
	w->status = v->status;
	if (v->status != VERDICT_PASSED) {
		j->result->failed_workload = w->index;
		j->result->failure = check;
	}
	return 0;
}

/* A rival that nobody has to trust may know that it is only compared with, and do less than it should. All rows are not
 * looked at: the keeper would keep them, as what the candidate may find before its call on the same inputs. */
static bool must_be_right(const struct judge *j, size_t who)
{
	return who >= RIVALS && !j->options->rivals[who - RIVALS].trusted;
}

static int call_other(struct judge *j, size_t who, struct keeper_call *call, struct error *err)
{
	struct verdict v = { .status = VERDICT_PASSED };
	struct keeper_check check;

	*call = (struct keeper_call){ .seconds = (double)NAN };
	if (j->ops->call(j->keeper, who, call, &v, err) < 0)
		return -1;
	if (v.status == VERDICT_PASSED && must_be_right(j, who) && j->ops->check(j->keeper, who, false, &check, &v, err) < 0)
		return -1;
	if (v.status != VERDICT_PASSED)
		call->seconds = (double)NAN;
	return settle(j, who, &v, err);
}

static int select_workload(struct judge *j, size_t who, int workload, struct error *err)
{
	struct verdict v = { .status = VERDICT_PASSED };

	if (j->ops->select(j->keeper, who, workload, &v, err) < 0)
		return -1;
	if (who == CANDIDATE && v.status != VERDICT_PASSED)
		j->result->failed_workload = workload;
	return settle(j, who, &v, err);
}

/* ---- first phase: is it right? ---------------------------------------------------------------------------------- */

static bool can_vary(const struct task *task)
{
	for (int i = 0; i < task->input_count; i++)
		if (task->inputs[i].vary_count)
			return true;
	return false;
}

static int check_once(struct judge *j, struct judge_workload *w, int set, bool vary, struct error *err)
{
	struct keeper_call call;

	if (j->ops->inputs(j->keeper, w->index, set, vary, err) < 0)
		return -1;
	return call_candidate(j, w, true, &call, err);
}

/* Every input set in use, in random order, and where scalars can vary one more call in which they surely do. */
static int check_workload(struct judge *j, struct judge_workload *w, struct error *err)
{
	const struct task *task = j->options->task;
	int32_t order[SET_COUNT];

	if (select_workload(j, CANDIDATE, w->index, err) < 0)
		return -1;
	ref_permutation(random_secret(), order, SET_COUNT);
	for (int i = 0; i < SET_COUNT && takes_part(j, CANDIDATE); i++)
		if (task->input_sets[order[i]] && check_once(j, w, order[i], draw_vary(), err) < 0)
			return -1;
	if (takes_part(j, CANDIDATE)) {
		bool all;

		if (can_vary(task) && check_once(j, w, draw_set(j, &all), true, err) < 0)
			return -1;
		j->ops->counts(j->keeper, &w->flops, &w->bytes);
	}
	w->status = j->result->verdict.status;
	w->reached = w->reached || w->status != VERDICT_PASSED;
	return 0;
}

/* ---- second phase: how fast? ------------------------------------------------------------------------------------ */

static double *times_of(const struct judge *j, size_t who)
{
	return j->times + who * MAX_ROUNDS;
}

/* What the window may have over the events. */
static double window_slack(double seconds)
{
	return JUDGE_WINDOW_SLACK + JUDGE_WINDOW_SHARE * seconds;
}

static bool is_borne_out(const struct judge *j, size_t who, size_t round)
{
	double claim = j->claims[who * MAX_ROUNDS + round];

	if (j->doubtful[who * MAX_ROUNDS + round])
		return false;
	return who != CANDIDATE || j->elapsed[round] - claim <= window_slack(claim); /* false without a window */
}

/* Times are means over rounds, but what our clocks say of a workload is a median: whoever told the truth in just more than half
 * of its calls could say anything in the others. So a call that our clock does not bear out counts for the candidate no less
 * than the median of those that it does, and a call of another's, while somebody was at work on the device, no more. */
static void bear_out(struct judge *j, size_t who)
{
	const double *claims = j->claims + who * MAX_ROUNDS;
	double *times = times_of(j, who), sure[MAX_ROUNDS], middle;
	size_t count = 0;

	for (size_t i = 0; i < j->rounds; i++) {
		times[i] = claims[i];
		if (!isnan(claims[i]) && is_borne_out(j, who, i))
			sure[count++] = claims[i];
	}
	middle = statistics_quantile(sure, count, 0.5);
	for (size_t i = 0; i < j->rounds && count; i++)
		if (!isnan(claims[i]) && !is_borne_out(j, who, i))
			times[i] = who == CANDIDATE ? fmax(claims[i], middle) : fmin(claims[i], middle);
}

/* ln(time of who / time of the candidate) in each round that has both. */
static struct estimate gain_of(const struct judge *j, size_t who)
{
	const double *ours = times_of(j, CANDIDATE), *theirs = times_of(j, who);
	double pairs[MAX_ROUNDS];
	size_t count = 0;

	for (size_t i = 0; i < j->rounds; i++) {
		double x = log(theirs[i] / ours[i]);

		if (!isnan(x))
			pairs[count++] = x;
	}
	return statistics_robust(pairs, count);
}

/* The order of a round: random in the first of a block, the reverse in the second. */
static void draw_order(const struct judge *j, const bool *active, bool second, size_t *order, size_t *count)
{
	int32_t permutation[JUDGE_MAX_RIVALS + RIVALS];

	if (second) {
		for (size_t i = 0; i < *count / 2; i++) {
			size_t swap = order[i];

			order[i] = order[*count - 1 - i];
			order[*count - 1 - i] = swap;
		}
		return;
	}
	*count = 0;
	ref_permutation(random_secret(), permutation, (int64_t)j->participants);
	for (size_t i = 0; i < j->participants; i++)
		if (active[permutation[i]])
			order[(*count)++] = (size_t)permutation[i];
}

/* New inputs, and one call of everyone in this order. Times go to slot `round`; MAX_ROUNDS: nowhere, to warm up. */
static int run_round(struct judge *j, struct judge_workload *w, const size_t *order, size_t count, size_t round, struct error *err)
{
	bool all;
	int set = draw_set(j, &all);

	if (j->ops->inputs(j->keeper, w->index, set, draw_vary(), err) < 0)
		return -1;
	for (size_t i = 0; i < count && takes_part(j, CANDIDATE); i++) {
		size_t who = order[i];
		struct keeper_call call;

		if (!takes_part(j, who))
			continue;
		if (who == CANDIDATE ? call_candidate(j, w, all, &call, err) < 0 : call_other(j, who, &call, err) < 0)
			return -1;
		if (round < MAX_ROUNDS) {
			times_of(j, who)[round] = j->claims[who * MAX_ROUNDS + round] = call.seconds;
			j->doubtful[who * MAX_ROUNDS + round] = call.busy;
		}
		if (round < MAX_ROUNDS && who == CANDIDATE) {
			j->elapsed[round] = call.elapsed;
			j->arrivals[round] = call.arrival;
		}
	}
	return 0;
}

/* What our clock has over the events, median over rounds; *count: rounds with both, of *calls. */
static double window_excess(const struct judge *j, size_t *count, size_t *calls, double *arrival)
{
	const double *seconds = j->claims + CANDIDATE * MAX_ROUNDS;
	double excess[MAX_ROUNDS], arrivals[MAX_ROUNDS];

	*count = *calls = 0;
	for (size_t i = 0; i < j->rounds; i++) {
		*calls += !isnan(seconds[i]);
		if (isnan(seconds[i]) || isnan(j->elapsed[i]))
			continue;
		excess[*count] = j->elapsed[i] - seconds[i];
		arrivals[(*count)++] = j->arrivals[i];
	}
	*arrival = statistics_quantile(arrivals, *count, 0.5);
	return statistics_quantile(excess, *count, 0.5);
}

/* Would the clock refuse it, though by fewer calls than there may be? The median of a few windows is some microseconds off. */
static bool is_in_doubt(const struct judge *j)
{
	double seconds[MAX_ROUNDS], arrival, excess;
	size_t count, calls, known = 0;

	if (!j->ops->batch || j->rounds / 2 >= VERSUS_BLOCKS)
		return false;
	for (size_t i = 0; i < j->rounds; i++)
		if (!isnan(j->claims[CANDIDATE * MAX_ROUNDS + i]))
			seconds[known++] = j->claims[CANDIDATE * MAX_ROUNDS + i];
	excess = window_excess(j, &count, &calls, &arrival);
	return 2 * count < calls || excess > window_slack(statistics_quantile(seconds, known, 0.5));
}

/* Who still has to be timed on this workload; "" while someone has, else what ended it. */
static const char *choose_active(struct judge *j, double start, bool *active)
{
	double elapsed = monotonic_seconds() - start;
	const struct keeper_rules *rules = &j->ops->rules;
	bool late = elapsed > rules->seconds, any = false, decided = false, full = false;
	size_t blocks = j->rounds / 2;

	for (size_t who = BASELINE; who < j->participants; who++) {
		struct estimate gain = gain_of(j, who);
		bool good = who == BASELINE ? gain.error < rules->noise || elapsed > rules->baseline_seconds : statistics_decided(&gain);
		bool enough = gain.n >= 2 * JUDGE_MIN_BLOCKS && (late || good);

		decided = decided || (who != BASELINE && enough && !late);
		full = full || !enough;
		active[who] = takes_part(j, who) && !enough && blocks < VERSUS_BLOCKS;
		any = any || active[who];
	}
	active[CANDIDATE] = any || (elapsed < DOUBT_SECONDS && is_in_doubt(j));
	return active[CANDIDATE] ? "" : late ? "time" : full ? "blocks" : decided ? "decided" : "noise";
}

static int run_block(struct judge *j, struct judge_workload *w, const bool *active, struct error *err)
{
	size_t *order = xreallocarray(NULL, j->participants, sizeof(*order)), count = 0;
	int result = 0;

	for (int second = 0; second < 2 && result == 0; second++) {
		draw_order(j, active, second, order, &count);
		result = run_round(j, w, order, count, j->rounds, err);
		j->rounds++;
	}
	for (size_t who = 0; who < j->participants && j->ops->batch; who++)
		bear_out(j, who);
	free(order);
	return result;
}

static void times_release(struct judge_times *t)
{
	free(t->seconds);
	*t = (struct judge_times){ .seconds = NULL };
}

/* What was measured of it. */
static void workload_release(struct judge_workload *w, size_t rival_count)
{
	times_release(&w->candidate);
	times_release(&w->baseline);
	for (size_t i = 0; i < rival_count && w->rivals; i++)
		times_release(&w->rivals[i]);
	free(w->rivals);
	w->rivals = NULL;
}

static void summarise(const struct judge *j, size_t who, struct judge_times *t)
{
	double *seconds = times_of(j, who), *sorted = xreallocarray(NULL, j->rounds + 1, sizeof(*sorted));
	size_t known = 0;

	t->seconds = xreallocarray(NULL, j->rounds + 1, sizeof(*t->seconds));
	for (size_t i = 0; i < j->rounds; i++)
		if (!isnan(seconds[i]))
			t->seconds[t->count++] = seconds[i];
	memcpy(sorted, t->seconds, t->count * sizeof(*sorted));
	t->median = statistics_quantile(sorted, t->count, 0.5);
	t->q1 = statistics_quantile(sorted, t->count, 0.25);
	t->q3 = statistics_quantile(sorted, t->count, 0.75);
	if (who != CANDIDATE)
		t->gain = gain_of(j, who);
	for (size_t i = 0; i < j->rounds; i++)
		if (!isnan(j->elapsed[i]))
			sorted[known++] = j->elapsed[i];
	t->elapsed = who == CANDIDATE ? statistics_quantile(sorted, known, 0.5) : (double)NAN;
	free(sorted);
}

static void summarise_all(struct judge *j, struct judge_workload *w)
{
	summarise(j, CANDIDATE, &w->candidate);
	summarise(j, BASELINE, &w->baseline);
	if (!j->ops->idle)
		w->idle = w->candidate.elapsed;
	w->rivals = xcalloc(j->participants - RIVALS + 1, sizeof(*w->rivals));
	for (size_t who = RIVALS; who < j->participants; who++)
		summarise(j, who, &w->rivals[who - RIVALS]);
}

/* ---- second phase: may its times be believed? ------------------------------------------------------------------- */

/* A process's windows are all some microseconds long or short for as long as it lives: of 800 medians on an H200 one was 5.4 us,
 * and of the same kernel in eight new processes -1.5 to 4.3. Twice the slack is nobody's luck. */
static bool is_refused_by_little(const struct judge *j, const struct judge_workload *w)
{
	size_t count, calls;
	double arrival, excess = window_excess(j, &count, &calls, &arrival), allowed = window_slack(w->candidate.median);

	return 2 * count >= calls && excess > allowed && excess < 2 * allowed;
}

static void judge_window(struct judge *j, struct judge_workload *w)
{
	size_t count, calls;
	double allowed;

	w->excess = window_excess(j, &count, &calls, &w->arrival);
	if (2 * count < calls) {
		verdict_set(&j->result->verdict, VERDICT_REJECTED, "clock",
			    "our clock cannot bear out %zu of %zu calls: they take too long to enqueue, or somebody else uses the device",
			    calls - count, calls);
		return;
	}
	allowed = window_slack(w->candidate.median);
	if (w->excess > allowed)
		verdict_set(&j->result->verdict, VERDICT_REJECTED, "clock",
			    "a call takes %.2f us by its stream's events, but %.2f us more by our clock (allowed %.2f us)",
			    w->candidate.median * 1e6, w->excess * 1e6, allowed * 1e6);
}

static void judge_floor(struct judge *j, struct judge_workload *w, double least)
{
	if (w->candidate.median < JUDGE_FLOOR_SHARE * least)
		verdict_set(&j->result->verdict, VERDICT_REJECTED, "floor",
			    "a call takes %.2f us by its stream's events, but the device needs %.2f us by its datasheet, or for nothing",
			    w->candidate.median * 1e6, least * 1e6);
}

static int call_idle(struct judge *j, struct judge_workload *w, struct error *err)
{
	double seconds[JUDGE_IDLE_CALLS];
	size_t count = 0;
	bool all;

	for (int i = 0; i < JUDGE_IDLE_CALLS && takes_part(j, CANDIDATE); i++) {
		struct keeper_call call;

		if (j->ops->inputs(j->keeper, w->index, draw_set(j, &all), draw_vary(), err) < 0 ||
		    j->ops->idle(j->keeper, CANDIDATE, &call, &j->result->verdict, err) < 0)
			return -1;
		if (takes_part(j, CANDIDATE))
			seconds[count++] = call.seconds;
	}
	w->idle = statistics_quantile(seconds, count, 0.5);
	return 0;
}

/* Calls in a row leave no room to work before a call or after it. Another's use of the device can only slow a batch down,
 * so the fastest counts. */
static int call_batches(struct judge *j, struct judge_workload *w, struct error *err)
{
	double claim = w->candidate.median, allowed = 0;
	bool all;

	for (int i = 0; i < JUDGE_BATCHES && takes_part(j, CANDIDATE); i++) {
		struct keeper_batch batch;

		if (j->ops->inputs(j->keeper, w->index, draw_set(j, &all), draw_vary(), err) < 0 ||
		    j->ops->batch(j->keeper, CANDIDATE, claim, &batch, &j->result->verdict, err) < 0)
			return -1;
		if (!takes_part(j, CANDIDATE))
			return 0;
		if (isnan(w->batch) || batch.elapsed / (double)batch.calls < w->batch) {
			w->batch = batch.elapsed / (double)batch.calls;
			w->batch_calls = (size_t)batch.calls;
			allowed = (1 + JUDGE_BATCH_SHARE) * claim + JUDGE_BATCH_SLACK + batch.more;
		}
	}
	if (w->batch > allowed)
		verdict_set(&j->result->verdict, VERDICT_REJECTED, "clock",
			    "a call takes %.2f us by its stream's events, but %zu in a row take %.2f us each by our clock (allowed %.2f us)",
			    claim * 1e6, w->batch_calls, w->batch * 1e6, allowed * 1e6);
	return 0;
}

static int believe(struct judge *j, struct judge_workload *w, struct error *err)
{
	double least;

	w->floor = j->ops->floor(j->keeper, w->index, w->flops, w->bytes, &least);
	judge_window(j, w);
	judge_floor(j, w, least);
	if (takes_part(j, CANDIDATE) && call_idle(j, w, err) < 0)
		return -1;
	if (takes_part(j, CANDIDATE) && call_batches(j, w, err) < 0)
		return -1;
	w->status = j->result->verdict.status;
	if (!takes_part(j, CANDIDATE))
		j->result->failed_workload = w->index;
	return 0;
}

/* ---- second phase: a workload ----------------------------------------------------------------------------------- */

static int start_one(struct judge *j, size_t who, struct error *err)
{
	struct verdict v = { .status = VERDICT_PASSED };

	if (j->ops->start(j->keeper, who, &j->kernels[who], &v, err) < 0)
		return -1;
	return settle(j, who, &v, err);
}

/* Where its pages lie makes a process faster or slower than its copy for as long as it lives (0.5 % on the cpu target, where twelve
 * comparisons of two copies had z up to 4.5): so it does not live long. */
static int start_anew(struct judge *j, struct judge_workload *w, const bool *active, struct error *err)
{
	size_t *order = xreallocarray(NULL, j->participants, sizeof(*order)), count = 0;
	int result = 0;

	for (size_t who = 0; who < j->participants && result == 0; who++) {
		if (!active[who] || !takes_part(j, who))
			continue;
		j->ops->stop(j->keeper, who);
		result = start_one(j, who, err);
		if (result == 0 && takes_part(j, who))
			result = select_workload(j, who, w->index, err);
	}
	draw_order(j, active, false, order, &count);
	if (result == 0 && takes_part(j, CANDIDATE))
		result = run_round(j, w, order, count, MAX_ROUNDS, err);
	free(order);
	return result;
}

/* One untimed round first: pages, branch predictors and the processor's clock come to where they stay. */
static int time_once(struct judge *j, struct judge_workload *w, struct error *err)
{
	bool *active = xcalloc(j->participants, sizeof(*active));
	size_t *order = xreallocarray(NULL, j->participants, sizeof(*order)), count = 0;
	int result = 0;
	double start;

	w->reached = true;
	w->ended_by = "";
	j->rounds = 0;
	for (size_t i = 0; i < j->participants * MAX_ROUNDS; i++)
		j->times[i] = j->claims[i] = (double)NAN;
	for (size_t who = 0; who < j->participants && result == 0; who++) {
		active[who] = takes_part(j, who);
		if (active[who])
			result = select_workload(j, who, w->index, err);
	}
	draw_order(j, active, false, order, &count);
	if (result == 0)
		result = run_round(j, w, order, count, MAX_ROUNDS, err);
	start = monotonic_seconds();
	while (result == 0 && takes_part(j, CANDIDATE) && !*(w->ended_by = choose_active(j, start, active))) {
		if (j->ops->rules.life && j->rounds && j->rounds % (2 * j->ops->rules.life) == 0)
			result = start_anew(j, w, active, err);
		if (result == 0 && takes_part(j, CANDIDATE))
			result = run_block(j, w, active, err);
	}
	summarise_all(j, w);
	free(active);
	free(order);
	return result;
}

/* What the clock would refuse by little is timed once more, by a process that is new. */
static int time_workload(struct judge *j, struct judge_workload *w, struct error *err)
{
	int result = time_once(j, w, err);

	if (result == 0 && j->ops->batch && takes_part(j, CANDIDATE) && is_refused_by_little(j, w)) {
		j->ops->stop(j->keeper, CANDIDATE);
		result = start_one(j, CANDIDATE, err);
		workload_release(w, j->participants - RIVALS);
		if (result == 0)
			result = time_once(j, w, err);
	}
	if (result == 0 && j->ops->batch && takes_part(j, CANDIDATE))
		result = believe(j, w, err);
	return result;
}


/* ---- second phase: did it leave the others alone? --------------------------------------------------------------- */

/* What a candidate has left on the device may sleep until another's call wakes it: then the keeper sees nothing of it before or
 * after a call, and its own calls are not slowed. But when its process has ended, nothing of it is left, and what the others took longer
 * with it than without it is its doing. */

/* Calls of everyone but the candidate, on inputs of their own; times[who * calls + i] is NaN for one that does not count. */
static int call_alone(struct judge *j, const struct judge_workload *w, size_t calls, double *times, struct error *err)
{
	for (size_t i = 0; i < calls; i++) {
		bool all;

		if (j->ops->inputs(j->keeper, w->index, draw_set(j, &all), draw_vary(), err) < 0)
			return -1;
		for (size_t who = BASELINE; who < j->participants; who++) {
			struct keeper_call call = { .seconds = (double)NAN };

			if (takes_part(j, who) && call_other(j, who, &call, err) < 0)
				return -1;
			times[who * calls + i] = call.busy ? (double)NAN : call.seconds;
		}
	}
	return 0;
}

static struct estimate mean_logarithm(const double *seconds, size_t count)
{
	double *logs = xreallocarray(NULL, count + 1, sizeof(*logs));
	struct estimate e;
	size_t known = 0;

	for (size_t i = 0; i < count; i++)
		if (!isnan(seconds[i]))
			logs[known++] = log(seconds[i]);
	e = statistics_robust(logs, known);
	free(logs);
	return e;
}

static const struct judge_times *others_times(const struct judge_workload *w, size_t who)
{
	return who == BASELINE ? &w->baseline : &w->rivals[who - RIVALS];
}

/* The first who was slower with the candidate there than without; 0: nobody. */
static size_t find_disturbed(const struct judge *j, const struct judge_workload *w, size_t calls, const double *times, double *with, double *without)
{
	for (size_t who = BASELINE; who < j->participants; who++) {
		const struct judge_times *t = others_times(w, who);
		struct estimate there = mean_logarithm(t->seconds, t->count), gone = mean_logarithm(times + who * calls, calls);

		*with = exp(there.mean);
		*without = exp(gone.mean);
		if (there.n >= 5 && gone.n >= 5 &&
		    there.mean - gone.mean > log1p(ALONE_SHARE + ALONE_SLACK / *without) + ALONE_Z * hypot(there.error, gone.error))
			return who;
	}
	return 0;
}

static int look_at_others(struct judge *j, struct judge_workload *w, struct error *err)
{
	double *times = xcalloc(j->participants * 2 * ALONE_CALLS, sizeof(*times)), with, without;
	size_t who, calls = ALONE_CALLS;
	int status = 0;

	for (who = BASELINE; who < j->participants && status == 0; who++)
		if (takes_part(j, who))
			status = select_workload(j, who, w->index, err);
	if (status == 0)
		status = call_alone(j, w, calls, times, err);
	if (status == 0 && find_disturbed(j, w, calls, times, &with, &without)) {
		calls *= 2;
		status = call_alone(j, w, calls, times, err);
		who = status == 0 ? find_disturbed(j, w, calls, times, &with, &without) : 0;
		if (who) {
			verdict_set(&j->result->verdict, VERDICT_REJECTED, "work-between-calls",
				    "%s takes %.2f us while the kernel's process is there and %.2f us without it: something of it disturbs others' calls",
				    who == BASELINE ? "the baseline" : j->options->rivals[who - RIVALS].name, with * 1e6, without * 1e6);
			w->status = j->result->verdict.status;
			j->result->failed_workload = w->index;
		}
	}
	free(times);
	return status;
}

static int look_at_all_others(struct judge *j, struct error *err)
{
	if (!j->ops->batch || !takes_part(j, CANDIDATE))
		return 0;
	j->ops->stop(j->keeper, CANDIDATE);
	for (size_t i = 0; i < j->result->workload_count && takes_part(j, CANDIDATE); i++)
		if (look_at_others(j, &j->result->workloads[i], err) < 0)
			return -1;
	return 0;
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

static bool is_chosen(const struct judge_options *o, int workload)
{
	const struct task_workload *w = &o->task->workloads[workload];

	for (size_t i = 0; i < o->only_count; i++)
		if (o->only[i] == workload)
			return true;
	return o->only_count == 0 && ((o->feedback && w->feedback) || (o->final && w->final));
}

static void choose_workloads(struct judge *j)
{
	const struct task *task = j->options->task;
	struct judge_result *r = j->result;

	j->workloads = xreallocarray(NULL, (size_t)task->workload_count + 1, sizeof(*j->workloads));
	r->workloads = xcalloc((size_t)task->workload_count + 1, sizeof(*r->workloads));
	for (int i = 0; i < task->workload_count; i++)
		if (is_chosen(j->options, i)) {
			struct judge_workload *w = &r->workloads[r->workload_count];

			w->ended_by = "";
			w->floor = w->idle = w->excess = w->arrival = w->batch = (double)NAN;
			j->workloads[r->workload_count++] = w->index = i;
		}
}

static struct keeper_kernel kernel_of(const struct judge_options *o, size_t who)
{
	const struct judge_kernel *k = who == CANDIDATE ? &o->candidate : who == BASELINE ? &o->baseline : &o->rivals[who - RIVALS];

	return (struct keeper_kernel){ k->library, k->bytes, k->trusted };
}

static int open_keeper(struct judge *j, struct error *err)
{
	struct keeper_options options = {
		.task = j->options->task, .reference = j->options->reference, .workloads = j->workloads,
		.workload_count = j->result->workload_count, .participants = j->participants, .kernels = j->kernels, .gpu = j->options->gpu,
		.no_sandbox = j->options->no_sandbox, .interrupted = j->options->interrupted,
	};

	if (j->result->workload_count == 0)
		return error_set(err, KM_EXIT_INPUT, "task '%s' has no workload of this set", j->options->task->name);
	for (size_t who = 0; who < j->participants; who++)
		j->kernels[who] = kernel_of(j->options, who);
	j->keeper = j->ops->open(&options, err);
	return j->keeper ? 0 : -1;
}

/* Seconds since the mark, which is moved here. */
static double lap(double *mark)
{
	double since = *mark;

	*mark = monotonic_seconds();
	return *mark - since;
}

/* Only a candidate that is right is timed, so the others open their kernels after the first phase. */
static int run_phases(struct judge *j, struct error *err)
{
	struct judge_result *r = j->result;
	double mark = monotonic_seconds();

	if (start_one(j, CANDIDATE, err) < 0)
		return -1;
	r->starting += lap(&mark);
	for (size_t i = 0; i < r->workload_count && takes_part(j, CANDIDATE); i++)
		if (check_workload(j, &r->workloads[i], err) < 0)
			return -1;
	r->checking = lap(&mark);
	for (size_t who = BASELINE; who < j->participants && takes_part(j, CANDIDATE); who++)
		if (start_one(j, who, err) < 0)
			return -1;
	r->starting += lap(&mark);
	for (size_t i = 0; i < r->workload_count && takes_part(j, CANDIDATE); i++)
		if (time_workload(j, &r->workloads[i], err) < 0)
			return -1;
	if (look_at_all_others(j, err) < 0)
		return -1;
	r->timing = lap(&mark);
	return 0;
}

/* The workloads that the score is over: feedback ones if any was judged, or those that were named. */
static bool scores(const struct judge *j, const struct judge_workload *w)
{
	return j->options->only_count > 0 || !j->options->feedback || j->options->task->workloads[w->index].feedback;
}

static double score_of(const struct estimate *log_speedup, size_t n, bool geometric)
{
	double sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += geometric ? log_speedup[i].mean : exp(log_speedup[i].mean);
	return 100 * (geometric ? exp(sum / (double)n) : sum / (double)n);
}

/* The smallest difference that counts, as a share of the time. */
static double smallest_gain(const struct judge *j, const struct judge_workload *w)
{
	return fmax(VERSUS_GAIN, j->ops->rules.gain_seconds / w->candidate.median);
}

static void score_rival(const struct judge *j, size_t rival, const struct estimate *log_speedup, const double *speedup, size_t n)
{
	struct judge_rival *r = &j->result->rivals[rival];
	bool geometric = j->options->task->objective == TASK_GEOMEAN_LATENCY;
	struct estimate *gains = xcalloc(n, sizeof(*gains)), *own = xcalloc(n, sizeof(*own));
	size_t at = 0;

	r->score = (double)NAN;
	r->smallest = 0;
	for (size_t i = 0; i < j->result->workload_count; i++)
		if (scores(j, &j->result->workloads[i])) {
			gains[at] = j->result->workloads[i].rivals[rival].gain;
			own[at] = log_speedup[at];
			own[at].mean -= gains[at].mean;
			r->smallest += smallest_gain(j, &j->result->workloads[i]) / (double)n;
			at++;
		}
	if (r->verdict.status == VERDICT_PASSED) {
		r->gain = statistics_score_gain(gains, speedup, n, geometric);
		r->score = score_of(own, n, geometric);
	}
	free(gains);
	free(own);
}

static void score(struct judge *j)
{
	struct judge_result *r = j->result;
	bool geometric = j->options->task->objective == TASK_GEOMEAN_LATENCY;
	struct estimate *log_speedup = xcalloc(r->workload_count, sizeof(*log_speedup));
	double *speedup = xcalloc(r->workload_count, sizeof(*speedup));
	size_t n = 0;

	for (size_t i = 0; i < r->workload_count; i++)
		if (scores(j, &r->workloads[i])) {
			log_speedup[n] = r->workloads[i].baseline.gain;
			speedup[n] = exp(log_speedup[n].mean);
			n++;
		}
	r->score = score_of(log_speedup, n, geometric);
	r->noise = statistics_score_noise(log_speedup, n, geometric);
	for (size_t i = 0; i < j->options->rival_count; i++)
		score_rival(j, i, log_speedup, speedup, n);
	free(log_speedup);
	free(speedup);
}

int judge_run(const struct judge_options *options, struct judge_result *result, struct error *err)
{
	struct judge j = { .options = options, .ops = options->keeper, .result = result, .participants = RIVALS + options->rival_count };
	double mark;
	int status;

	memset(result, 0, sizeof(*result));
	result->score = result->noise = (double)NAN;
	result->failed_workload = -1;
	result->failure.output = -1;
	result->rivals = xcalloc(options->rival_count + 1, sizeof(*result->rivals));
	j.kernels = xcalloc(j.participants, sizeof(*j.kernels));
	j.times = xcalloc(j.participants * MAX_ROUNDS, sizeof(*j.times));
	j.claims = xcalloc(j.participants * MAX_ROUNDS, sizeof(*j.claims));
	j.doubtful = xcalloc(j.participants * MAX_ROUNDS, sizeof(*j.doubtful));
	choose_workloads(&j);
	mark = monotonic_seconds();
	status = open_keeper(&j, err);
	result->starting = lap(&mark);
	if (status == 0)
		status = run_phases(&j, err);
	if (status == 0 && result->verdict.status == VERDICT_PASSED)
		score(&j);
	result->median_gap = j.gap_count ? statistics_quantile(j.gaps, j.gap_count, 0.5) : 0;
	if (j.keeper && j.ops->facts) {
		j.ops->facts(j.keeper, &result->facts);
		result->has_facts = true;
	}
	lap(&mark);
	if (j.keeper)
		j.ops->close(j.keeper);
	result->ending = lap(&mark);
	free(j.gaps);
	free(j.times);
	free(j.claims);
	free(j.doubtful);
	free(j.workloads);
	free(j.kernels);
	return status;
}


void judge_result_release(struct judge_result *result, size_t rival_count)
{
	for (size_t i = 0; i < result->workload_count; i++)
		workload_release(&result->workloads[i], rival_count);
	free(result->workloads);
	free(result->rivals);
}
