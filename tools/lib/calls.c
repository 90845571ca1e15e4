#include "calls.h"

#include "buf.h"
#include "file.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { FIELDS = 9, LEDGER_MAX_BYTES = 256 << 20 };

/* Cut a line at its tabs; false if there are not exactly FIELDS fields. */
static bool split(char *line, const char *end, char *fields[FIELDS])
{
	char *tab = line;

	for (int count = 0; tab && count < FIELDS; line = tab + 1) {
		fields[count++] = line;
		tab = memchr(line, '\t', (size_t)(end - line));
		if (!tab)
			return count == FIELDS;
		*tab = 0;
	}
	return false;
}

/* Does it begin as a line of a ledger does, however short it was cut off? */
static bool is_ours(const char *line)
{
	static const char *const kinds[] = { "start\t", "end\t", "fail\t" };

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (starts_with(line, kinds[i]) || starts_with(kinds[i], line))
			return true;
	return false;
}

typedef void (*line_fn)(char *fields[FIELDS], void *data);

/* Call fn for every whole line of the ledger that starts with this. What is no ledger must not pass for one that says
 * that nothing was spent. */
static int each_line(const char *path, const char *start, line_fn fn, void *data, struct error *err)
{
	struct buf b;
	int result = 0;
	long number = 1;

	if (!file_exists(path))
		return 0;
	buf_init(&b, LEDGER_MAX_BYTES);
	result = file_read(path, &b, err);
	for (char *line = b.data, *end; result == 0 && (end = memchr(line, '\n', (size_t)(b.data + b.len - line))); line = end + 1, number++) {
		char *fields[FIELDS];

		*end = 0;
		if (!is_ours(line))
			result = error_set(err, KM_EXIT_INPUT, "'%s': line %ld is none of a ledger of calls: it begins with neither start, end nor fail", path, number);
		else if (starts_with(line, start) && split(line, end, fields))
			fn(fields, data);
	}
	buf_release(&b);
	return result;
}

struct open_call {
	char *id;
	long tokens;
	double usd;
};

struct adding {
	struct calls_sum *sum;
	struct open_call *open;
	size_t count, room;
};

static void close_call(struct adding *a, const char *id)
{
	for (size_t i = 0; i < a->count; i++)
		if (strcmp(a->open[i].id, id) == 0) {
			free(a->open[i].id);
			a->open[i] = a->open[--a->count];
			return;
		}
}

static void open_call(struct adding *a, const char *id, long tokens, double usd)
{
	close_call(a, id); /* it was cut off */
	if (a->count == a->room) {
		a->room = a->room ? 2 * a->room : 16;
		a->open = xreallocarray(a->open, a->room, sizeof(*a->open));
	}
	a->open[a->count++] = (struct open_call){ .id = xstrdup(id), .tokens = tokens, .usd = usd };
}

static void add_line(char *fields[FIELDS], void *data)
{
	struct adding *a = data;
	struct calls_sum *sum = a->sum;
	bool start = strcmp(fields[0], "start") == 0, end = strcmp(fields[0], "end") == 0, fail = strcmp(fields[0], "fail") == 0;
	double usd, seconds;
	long in, out;

	if (!start && !end && !fail)
		return;
	if (start)
		sum->started++;
	if (!start)
		close_call(a, fields[1]);
	if (!parse_long(fields[5], 0, LONG_MAX / 4, &in) || !parse_long(fields[6], 0, LONG_MAX / 4, &out) ||
	    !parse_double(fields[7], 0, 1e12, &usd) || !parse_double(fields[8], 0, 1e12, &seconds))
		return;
	if (start) {
		open_call(a, fields[1], in + out, usd);
		return;
	}
	sum->calls += end;
	sum->tokens += in + out;
	sum->usd += usd;
	sum->seconds += seconds;
}

/* The sums, but for what is open of the call `except` (may be NULL), which was cut off if it is made again. */
static int sum_except(const char *path, const char *except, struct calls_sum *sum, struct error *err)
{
	struct adding a = { .sum = sum };
	int result;

	memset(sum, 0, sizeof(*sum));
	result = each_line(path, "", add_line, &a, err);
	if (except)
		close_call(&a, except);
	for (size_t i = 0; i < a.count; i++) {
		sum->open++;
		sum->open_tokens += a.open[i].tokens;
		sum->open_usd += a.open[i].usd;
		free(a.open[i].id);
	}
	free(a.open);
	return result;
}

int calls_sum(const char *path, struct calls_sum *sum, struct error *err)
{
	return sum_except(path, NULL, sum, err);
}

static void note(char *fields[FIELDS], void *found)
{
	(void)fields;
	*(bool *)found = true;
}

int calls_ended(const char *path, const char *id, bool *found, struct error *err)
{
	char *start = xasprintf("end\t%s\t", id);
	int result;

	*found = false;
	result = each_line(path, start, note, found, err);
	free(start);
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

static int check_run(const struct calls_limits *l, const struct calls_sum *s, const struct call_line *line, struct error *err)
{
	long tokens = line->tokens_in + line->tokens_out;

	if (l->calls >= 0 && s->calls + s->open >= l->calls)
		return error_set(err, KM_EXIT_ENDED, "ended: %ld of %ld calls made", s->calls + s->open, l->calls);
	if (l->seconds >= 0 && s->seconds >= l->seconds)
		return error_set(err, KM_EXIT_ENDED, "ended: %.0f of %.0f seconds waited for replies", s->seconds, l->seconds);
	if (l->tokens >= 0 && s->tokens + s->open_tokens + tokens > l->tokens)
		return error_set(err, KM_EXIT_ENDED, "ended: %ld of %ld tokens used; open calls may use %ld, and the next one %ld", s->tokens, l->tokens,
				 s->open_tokens, tokens);
	if (l->usd >= 0 && s->usd + s->open_usd + line->usd > l->usd + 1e-9)
		return error_set(err, KM_EXIT_ENDED, "ended: $%.4f of $%.4f spent; open calls may cost $%.4f, and the next one $%.4f", s->usd, l->usd,
				 s->open_usd, line->usd);
	return 0;
}

int calls_check_one(const struct calls_limits *l, const struct call_line *line, struct error *err)
{
	long tokens = line->tokens_in + line->tokens_out;

	if (l->call_tokens >= 0 && tokens > l->call_tokens)
		return error_set(err, KM_EXIT_ENDED, "ended: the next call may use %ld tokens, a call's limit is %ld", tokens, l->call_tokens);
	if (l->call_usd >= 0 && line->usd > l->call_usd + 1e-9)
		return error_set(err, KM_EXIT_ENDED, "ended: the next call may cost $%.4f, a call's limit is $%.4f", line->usd, l->call_usd);
	return 0;
}

int calls_append_start(const char *path, const char *lock, const struct calls_limits *limits, const struct call_line *line, struct error *err)
{
	int fd = open(lock, O_RDONLY | O_DIRECTORY | O_CLOEXEC), result;
	struct calls_sum sum;

	if (fd < 0 || flock(fd, LOCK_EX) < 0) {
		result = error_set(err, KM_EXIT_ENVIRONMENT, "cannot lock '%s': %s", lock, strerror(errno));
	} else {
		result = calls_check_one(limits, line, err);
		if (result == 0)
			result = sum_except(path, line->id, &sum, err);
		if (result == 0)
			result = check_run(limits, &sum, line, err);
		if (result == 0)
			result = append(path, "start", line, err);
	}
	if (fd >= 0)
		close(fd);
	return result;
}

int calls_append_end(const char *path, const struct call_line *line, struct error *err)
{
	return append(path, "end", line, err);
}

int calls_append_fail(const char *path, const struct call_line *line, struct error *err)
{
	return append(path, "fail", line, err);
}
