#include "calls.h"

#include "buf.h"
#include "file.h"
#include "util.h"

#include <ctype.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { FIELDS = 9, LEDGER_MAX_BYTES = 256 << 20 };

/* Cut a line at its tabs; false if there are not exactly FIELDS fields. */
static bool split(char *line, char *fields[FIELDS])
{
	int count = 0;

	for (char *field; (field = strsep(&line, "\t"));) {
		if (count == FIELDS)
			return false;
		fields[count++] = field;
	}
	return count == FIELDS;
}

typedef void (*line_fn)(char *fields[FIELDS], void *data);

/* Call fn for every whole line of the ledger. */
static int each_line(const char *path, line_fn fn, void *data, struct error *err)
{
	struct buf b;
	int result = 0;

	if (!file_exists(path))
		return 0;
	buf_init(&b, LEDGER_MAX_BYTES);
	result = file_read(path, &b, err);
	for (char *line = b.data, *end; result == 0 && (end = strchr(line, '\n')); line = end + 1) {
		char *fields[FIELDS];

		*end = 0;
		if (split(line, fields))
			fn(fields, data);
	}
	buf_release(&b);
	return result;
}

static void add_line(char *fields[FIELDS], void *data)
{
	struct calls_sum *sum = data;
	double usd, seconds;
	long in, out;

	if (strcmp(fields[0], "start") == 0)
		sum->started++;
	if (strcmp(fields[0], "end") != 0 || !parse_long(fields[5], 0, LONG_MAX / 4, &in) || !parse_long(fields[6], 0, LONG_MAX / 4, &out) ||
	    !parse_double(fields[7], 0, 1e12, &usd) || !parse_double(fields[8], 0, 1e12, &seconds))
		return;
	sum->calls++;
	sum->tokens += in + out;
	sum->usd += usd;
	sum->seconds += seconds;
}

int calls_sum(const char *path, struct calls_sum *sum, struct error *err)
{
	memset(sum, 0, sizeof(*sum));
	return each_line(path, add_line, sum, err);
}

struct search {
	const char *id;
	bool found;
};

static void match_end(char *fields[FIELDS], void *data)
{
	struct search *search = data;

	if (strcmp(fields[0], "end") == 0 && strcmp(fields[1], search->id) == 0)
		search->found = true;
}

int calls_ended(const char *path, const char *id, bool *found, struct error *err)
{
	struct search search = { .id = id };
	int result = each_line(path, match_end, &search, err);

	*found = search.found;
	return result;
}

/* A field of the ledger: no tabs or newlines, and never empty. The caller frees. */
static char *field(const char *s)
{
	char *copy = xstrdup(s && *s ? s : "-");

	for (char *p = copy; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = '?';
	return copy;
}

static int append(const char *path, const char *kind, const struct call_line *line, struct error *err)
{
	char *cue = field(line->cue), *provider = field(line->provider), *model = field(line->model);
	char *text = xasprintf("%s\t%s\t%s\t%s\t%s\t%ld\t%ld\t%.6f\t", kind, line->id, cue, provider, model, line->tokens_in,
			       line->tokens_out, line->usd);
	char *whole = strcmp(kind, "start") == 0 ? xasprintf("%s0", text) : xasprintf("%s%.3f", text, line->seconds);
	int result = file_append_line(path, whole, err);

	free(whole);
	free(text);
	free(cue);
	free(provider);
	free(model);
	return result;
}

int calls_append_start(const char *path, const struct call_line *line, struct error *err)
{
	return append(path, "start", line, err);
}

int calls_append_end(const char *path, const struct call_line *line, struct error *err)
{
	return append(path, "end", line, err);
}
