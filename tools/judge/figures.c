#include "figures.h"

#include "buf.h"
#include "json.h"
#include "text.h"
#include "util.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The raw page begins with what is known of device and launch: some 200 columns. */
enum { COLUMNS = 1024, FIELD = 256, WORDS_MAX = 3000, STALLS = 2 };

/* ---- ncu: what is asked ----------------------------------------------------------------------------------------- */

enum how { SUM, MEAN, MOST };

/* Where a key has several metrics, devices differ: the first that is known counts. */
static const struct {
	const char *key, *metric;
	enum how how;
	double unit;
} figures[] = {
	{ "duration_us", "gpu__time_duration.sum", SUM, 1e-3 },
	{ "dram_read_bytes", "dram__bytes_read.sum", SUM, 1 },
	{ "dram_write_bytes", "dram__bytes_write.sum", SUM, 1 },
	{ "dram_percent", "dram__throughput.avg.pct_of_peak_sustained_elapsed", MEAN, 1 },
	{ "sm_percent", "sm__throughput.avg.pct_of_peak_sustained_elapsed", MEAN, 1 },
	{ "tensor_percent", "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active", MEAN, 1 },
	{ "tensor_percent", "sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_active", MEAN, 1 },
	{ "occupancy_percent", "sm__warps_active.avg.pct_of_peak_sustained_active", MEAN, 1 },
	{ "l2_hit_percent", "lts__t_sector_hit_rate.pct", MEAN, 1 },
	{ "registers", "launch__registers_per_thread", MOST, 1 },
};

enum { FIGURES = sizeof(figures) / sizeof(*figures) };

/* Warps that wait for this reason, for each instruction that is issued. */
static const char *const reasons[] = {
	"barrier", "branch_resolving", "dispatch_stall", "drain", "gmma", "imc_miss", "lg_throttle", "long_scoreboard",
	"math_pipe_throttle", "membar", "mio_throttle", "no_instruction", "not_selected", "short_scoreboard", "sleeping",
	"tex_throttle", "wait",
};

enum { REASONS = sizeof(reasons) / sizeof(*reasons) };

static char *stall_metric(const char *reason)
{
	return xasprintf("smsp__average_warps_issue_stalled_%s_per_issue_active.ratio", reason);
}

char *figures_metrics(void)
{
	struct buf list;
	char *text;

	buf_init(&list, 1 << 14);
	for (size_t i = 0; i < FIGURES; i++)
		buf_printf(&list, "%s%s", i ? "," : "", figures[i].metric);
	for (size_t i = 0; i < REASONS; i++) {
		char *metric = stall_metric(reasons[i]);

		buf_printf(&list, ",%s", metric);
		free(metric);
	}
	text = buf_take(&list);
	buf_release(&list);
	return text;
}

/* ---- ncu: its table --------------------------------------------------------------------------------------------- */

struct row {
	char fields[COLUMNS][FIELD];
	size_t count;
};

/* One line of quoted fields with commas between; a quote in a field is doubled. The next line, or NULL at the end. */
static const char *read_row(const char *at, struct row *row)
{
	row->count = 0;
	while (*at == '"') {
		char *field = row->count < COLUMNS ? row->fields[row->count] : NULL;
		size_t n = 0;

		for (at++; *at && *at != '\n' && (*at != '"' || at[1] == '"'); at++) {
			at += *at == '"';
			if (field && n < FIELD - 1)
				field[n++] = *at;
		}
		if (field)
			field[n] = 0;
		row->count += field != NULL;
		at += *at == '"';
		at += *at == ',';
	}
	at += strcspn(at, "\n");
	return *at ? at + 1 : NULL;
}

static const char *find_head(const char *text)
{
	while (text && !starts_with(text, "\"ID\",")) {
		text = strchr(text, '\n');
		text = text ? text + 1 : NULL;
	}
	return text;
}

static const char *field_of(const struct row *head, const struct row *row, const char *name)
{
	for (size_t i = 0; i < head->count && i < row->count; i++)
		if (strcmp(head->fields[i], name) == 0)
			return row->fields[i];
	return NULL;
}

/* "1,234.5"; NaN for "n/a" and the like. */
static double number_of(const struct row *head, const struct row *row, const char *name)
{
	const char *field = field_of(head, row, name);
	char digits[FIELD], *end;
	size_t n = 0;
	double x;

	for (; field && *field; field++)
		if (*field != ',')
			digits[n++] = *field;
	digits[n] = 0;
	x = strtod(digits, &end);
	return n > 0 && !*end && isfinite(x) && x >= 0 ? x : (double)NAN;
}

/* ---- ncu: one object of it -------------------------------------------------------------------------------------- */

struct profile {
	int kernels;
	double values[FIGURES], weights[FIGURES]; /* weights 0: nothing is known */
	double longest;
	char name[FIELD];
	double stalls[REASONS];
};

static void add_figure(struct profile *p, size_t i, double x, double time)
{
	if (isnan(x))
		return;
	if (figures[i].how == MOST) {
		p->values[i] = fmax(p->values[i], x);
		p->weights[i] = 1;
	} else {
		p->values[i] += figures[i].how == SUM ? x : x * time;
		p->weights[i] += figures[i].how == SUM ? 0 : time;
		if (figures[i].how == SUM)
			p->weights[i] = 1;
	}
}

static void add_kernel(struct profile *p, const struct row *head, const struct row *row)
{
	double time = number_of(head, row, figures[0].metric);
	const char *name = field_of(head, row, "Kernel Name");

	time = time > 0 ? time : 1;
	p->kernels++;
	for (size_t i = 0; i < FIGURES; i++)
		add_figure(p, i, number_of(head, row, figures[i].metric), time);
	if (time <= p->longest)
		return;
	p->longest = time;
	snprintf(p->name, sizeof(p->name), "%s", name ? name : "");
	for (size_t i = 0; i < REASONS; i++) {
		char *metric = stall_metric(reasons[i]);

		p->stalls[i] = number_of(head, row, metric);
		free(metric);
	}
}

/* Four digits are more than one call is good for. */
static double rounded(double x)
{
	double scale = x > 0 ? pow(10, 3 - floor(log10(x))) : 1;

	return x > 0 && x < 1e4 ? rint(x * scale) / scale : rint(x);
}

static cJSON *stalls_json(const struct profile *p)
{
	cJSON *list = cJSON_CreateArray();
	bool taken[REASONS] = { false };

	for (int n = 0; n < STALLS; n++) {
		size_t best = REASONS;
		cJSON *o;

		for (size_t i = 0; i < REASONS; i++)
			if (!taken[i] && p->stalls[i] > 0 && (best == REASONS || p->stalls[i] > p->stalls[best]))
				best = i;
		if (best == REASONS)
			break;
		taken[best] = true;
		o = cJSON_CreateObject();
		json_set_string(o, "reason", reasons[best]);
		json_set_number(o, "warps", rounded(p->stalls[best]));
		cJSON_AddItemToArray(list, o);
	}
	return list;
}

static cJSON *profile_json(const struct profile *p)
{
	cJSON *o = cJSON_CreateObject();
	char *name = text_clean(p->name, strlen(p->name));

	json_set_number(o, "kernels", p->kernels);
	json_set_string(o, "kernel", name);
	for (size_t i = 0; i < FIGURES; i++) {
		double x = p->weights[i] > 0 ? p->values[i] / p->weights[i] * figures[i].unit : (double)NAN;

		if (isnan(json_number(o, figures[i].key, (double)NAN)))
			json_set_number(o, figures[i].key, rounded(x));
	}
	json_set(o, "stalls", stalls_json(p));
	free(name);
	return o;
}

cJSON *figures_of_profile(const char *text)
{
	struct row *head = xcalloc(1, sizeof(*head)), *row = xcalloc(1, sizeof(*row));
	struct profile p = { .longest = 0 };
	const char *at = find_head(text);

	at = at ? read_row(at, head) : NULL;
	at = at ? read_row(at, row) : NULL; /* units */
	while (at && *at == '"') {
		at = read_row(at, row);
		if (row->count == head->count)
			add_kernel(&p, head, row);
	}
	free(head);
	free(row);
	return p.kernels ? profile_json(&p) : NULL;
}

/* ---- compute-sanitizer ------------------------------------------------------------------------------------------- */

static const char mark[] = "=========";

/* "ERROR SUMMARY: 3 errors", "RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)" */
static long summary_of(const char *line)
{
	const char *at = strstr(line, " SUMMARY: "), *end = line + strcspn(line, "\n");
	char *rest;
	long n;

	if (!at || at > end)
		return -1;
	at += strlen(" SUMMARY: ");
	n = strtol(at, &rest, 10);
	return rest > at && n >= 0 ? n : -1;
}

long figures_of_check(const char *text, char **words)
{
	long count = -1;
	struct buf b;

	buf_init(&b, WORDS_MAX);
	for (const char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
		const char *at = line + strlen(mark);

		if (!starts_with(line, mark) || (count = summary_of(line)) >= 0) {
			if (count >= 0)
				break;
			continue;
		}
		at += strspn(at, " ");
		if (*at && *at != '\n' && !starts_with(at, "COMPUTE-SANITIZER"))
			buf_printf(&b, "%.*s\n", (int)strcspn(at, "\n"), at);
	}
	if (words)
		*words = text_clean(b.data, b.len);
	buf_release(&b);
	return count;
}

/* ---- both ------------------------------------------------------------------------------------------------------- */

char *figures_why(const char *text)
{
	static const char *const marks[] = { "==ERROR== ", "========= Error: ", "========= Internal error: " };

	if (strstr(text, "ERR_NVGPUCTRPERM"))
		return xstrdup("the driver lets nobody but an administrator read the device's counters (ERR_NVGPUCTRPERM): the option "
			       "NVreg_RestrictProfilingToAdminUsers=0 of the module nvidia lets others too");
	for (const char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
		for (size_t i = 0; i < sizeof(marks) / sizeof(*marks); i++)
			if (starts_with(line, marks[i])) {
				const char *at = line + strlen(marks[i]);
				size_t n = strcspn(at, "\n");

				return text_clean(at, n < 300 ? n : 300);
			}
	return NULL;
}
