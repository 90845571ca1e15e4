#include "ledger.h"

#include "json.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>

void ledger_predict(cJSON *cycle, const cJSON *node)
{
	const cJSON *expected = json_get(json_get(node, "action"), "expected_vs_baseline_factor");

	if (!cJSON_IsNumber(expected))
		return;
	json_set_number(cycle, "expected", expected->valuedouble);
	json_set_number(cycle, "confidence", json_number(node, "confidence_0_to_1", 0.5));
}

static const char *kind_of(const struct world *w, long i)
{
	static const struct {
		const char *impact, *kind;
	} kinds[] = {
		{ "memory_bandwidth", "memory" }, { "register_pressure", "registers" }, { "compute_intensity_and_hw_fit", "compute" },
	};
	const cJSON *impacts = json_get(w->nodes[i].json, "impacts");
	const char *kind = "other";
	double highest = 0;

	if (w->nodes[i].parent == 0)
		return "family";
	for (size_t n = 0; n < sizeof(kinds) / sizeof(kinds[0]); n++) {
		double rating = json_number(json_get(impacts, kinds[n].impact), "rating_0_to_10", 0);

		if (rating > highest) {
			highest = rating;
			kind = kinds[n].kind;
		}
	}
	return kind;
}

void ledger_note(struct world *w, long node, const cJSON *cycle, const cJSON *best)
{
	cJSON *list = json_get_mutable(w->document, "ledger"), *entry;

	if (!json_get(cycle, "expected"))
		return;
	if (!list) {
		list = cJSON_CreateArray();
		json_set(w->document, "ledger", list);
	}
	entry = cJSON_CreateObject();
	json_set_string(entry, "node", w->nodes[node].id);
	json_set_number(entry, "cycle", json_number(cycle, "number", 1));
	json_set_number(entry, "round", json_number(w->document, "round", 1));
	json_set_string(entry, "kind", kind_of(w, node));
	json_set_number(entry, "expected", json_number(cycle, "expected", 0));
	json_set_number(entry, "confidence", json_number(cycle, "confidence", 0.5));
	json_set(entry, "measured", best ? cJSON_CreateNumber(json_number(best, "score", 0) / 100) : cJSON_CreateNull());
	cJSON_AddItemToArray(list, entry);
}

/* ---- calibration ------------------------------------------------------------------------------------------------ */

/* Which entries a line is about: all, those of a kind, or those of a range of confidence. */
struct group {
	const char *name, *kind;
	double low, high;
};

static const struct group groups[] = {
	{ "all", NULL, 0, 2 },
	{ "new families", "family", 0, 2 },
	{ "refinements for memory bandwidth", "memory", 0, 2 },
	{ "refinements for registers", "registers", 0, 2 },
	{ "refinements for compute", "compute", 0, 2 },
	{ "other refinements", "other", 0, 2 },
	{ "confidence below 0.4", NULL, 0, 0.4 },
	{ "confidence 0.4 to 0.7", NULL, 0.4, 0.7 },
	{ "confidence 0.7 and more", NULL, 0.7, 2 },
};

static bool is_in(const struct group *g, const cJSON *entry)
{
	double confidence = json_number(entry, "confidence", 0.5);

	return (!g->kind || strcmp(json_string(entry, "kind"), g->kind) == 0) && confidence >= g->low && confidence < g->high;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void append_group(const struct group *g, const cJSON *ledger, struct buf *out)
{
	double *ratios = xcalloc((size_t)cJSON_GetArraySize(ledger), sizeof(*ratios)), confidence = 0;
	int count = 0, passed = 0, kept = 0;
	const cJSON *entry;

	cJSON_ArrayForEach(entry, ledger) {
		double measured = json_number(entry, "measured", -1), expected = json_number(entry, "expected", 0);

		if (!is_in(g, entry))
			continue;
		count++;
		confidence += json_number(entry, "confidence", 0.5);
		if (measured < 0 || expected <= 0)
			continue;
		kept += measured >= LEDGER_KEPT * expected;
		ratios[passed++] = measured / expected;
	}
	if (count) {
		buf_printf(out, "- %s: %d prediction%s, confidence %.2f on average; %d passed, %d kept (%.2f)", g->name, count, count == 1 ? "" : "s",
			   confidence / count, passed, kept, (double)kept / count);
		qsort(ratios, (size_t)passed, sizeof(*ratios), compare);
		if (passed)
			buf_printf(out, "; measured / expected: median %.2f, from %.2f to %.2f", (ratios[(passed - 1) / 2] + ratios[passed / 2]) / 2, ratios[0], ratios[passed - 1]);
		buf_putc(out, '\n');
	}
	free(ratios);
}

void ledger_text(const cJSON *world, struct buf *out)
{
	const cJSON *ledger = json_get(world, "ledger");

	if (cJSON_GetArraySize(ledger) == 0) {
		buf_puts(out, "(No prediction has been put to the test yet.)\n");
		return;
	}
	for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++)
		append_group(&groups[i], ledger, out);
}
