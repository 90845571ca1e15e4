#include "patch.h"

#include "text.h"
#include "util.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
	QUOTE = 100,   /* bytes of a line that a message repeats */
	MOST = 1000,   /* changes of one reply */
	LOOKED = 1000, /* lines of a change that does not fit that are looked for */
};

/* One change: whole lines that are to be found, and what takes their place. */
struct change {
	struct buf old, new;
	const char *what; /* "hunk", "SEARCH block" */
	int number;
	long line;        /* where the old lines are said to begin, as the kernel is then; 0 if nowhere is */
};

static size_t line_length(const char *line)
{
	size_t n = strcspn(line, "\n");

	return line[n] ? n + 1 : n;
}

/* ---- one change ------------------------------------------------------------------------------------------------- */

static void add_line(struct buf *to, const char *line, size_t length)
{
	buf_add(to, line, length);
	if (length == 0 || line[length - 1] != '\n')
		buf_putc(to, '\n');
}

/* The next place at or after `from` where all of old stands, from the beginning of a line on; NULL if there is none. */
static const char *next_place(const struct buf *kernel, const char *from, const struct buf *old)
{
	const char *end = kernel->data + kernel->len;

	while ((from = memmem(from, (size_t)(end - from), old->data, old->len)))
		if (from == kernel->data || from[-1] == '\n')
			return from;
		else
			from++;
	return NULL;
}

static long count_lines(const char *from, const char *to)
{
	long lines = 0;

	for (; from < to; from++)
		lines += *from == '\n';
	return lines;
}

/* Say which line keeps a change from fitting. */
static int misfit(const struct buf *kernel, const struct change *c, struct error *err)
{
	struct buf line, quote;
	int status = 0, looked = 0;

	buf_init(&line, c->old.len + 2);
	buf_init(&quote, 4 * QUOTE);
	for (const char *p = c->old.data; *p && status == 0 && looked++ < LOOKED; p += line_length(p)) {
		buf_clear(&line);
		add_line(&line, p, line_length(p));
		if (next_place(kernel, kernel->data, &line))
			continue;
		text_line(&quote, line.data, QUOTE);
		status = error_set(err, KM_EXIT_INPUT, "%s %d does not fit: the line '%s' is not in the kernel as it stands", c->what, c->number, quote.data);
	}
	if (status == 0)
		status = error_set(err, KM_EXIT_INPUT, "%s %d does not fit: its lines are in the kernel, but not together", c->what, c->number);
	buf_release(&quote);
	buf_release(&line);
	return status;
}

/* Where the change belongs, or NULL. */
static const char *find_place(const struct buf *kernel, const struct change *c, struct error *err)
{
	const char *place = NULL, *named = NULL, *counted = kernel->data;
	long line = 1;
	int count = 0;

	if (c->old.len == 0) {
		error_set(err, KM_EXIT_INPUT, "%s %d has no line of the kernel by which its place could be found", c->what, c->number);
		return NULL;
	}
	for (const char *p = kernel->data; (p = next_place(kernel, p, &c->old)); p++) {
		count++;
		place = p;
		line += count_lines(counted, p);
		counted = p;
		if (c->line == line)
			named = p;
	}
	if (count == 0)
		misfit(kernel, c, err);
	if (count > 1 && !named)
		error_set(err, KM_EXIT_INPUT, "%s %d fits in %d places: give it more lines around the change", c->what, c->number, count);
	return count > 1 ? named : place;
}

static int apply(struct buf *kernel, const struct change *c, struct error *err)
{
	const char *place = find_place(kernel, c, err);
	size_t before, after;
	struct buf whole;

	if (!place)
		return -1;
	if (c->number > MOST)
		return error_set(err, KM_EXIT_INPUT, "there are more than %d changes", MOST);
	before = (size_t)(place - kernel->data);
	after = before + c->old.len;
	buf_init(&whole, kernel->ceiling);
	buf_add(&whole, kernel->data, before);
	buf_add(&whole, c->new.data, c->new.len);
	buf_add(&whole, kernel->data + after, kernel->len - after);
	if (whole.overflow) {
		buf_release(&whole);
		return error_set(err, KM_EXIT_INPUT, "the changed kernel is too large");
	}
	buf_release(kernel);
	*kernel = whole;
	return 0;
}

static void change_init(struct change *c, const char *what)
{
	memset(c, 0, sizeof(*c));
	buf_init(&c->old, 64 << 20);
	buf_init(&c->new, 64 << 20);
	c->what = what;
}

static void change_next(struct change *c)
{
	buf_clear(&c->old);
	buf_clear(&c->new);
	c->number++;
	c->line = 0;
}

static void change_release(struct change *c)
{
	buf_release(&c->old);
	buf_release(&c->new);
}

/* ---- a unified diff --------------------------------------------------------------------------------------------- */

bool patch_is_diff(const char *text)
{
	for (; *text; text += line_length(text)) {
		const char *next = text + line_length(text);

		if (starts_with(text, "@@") || (starts_with(text, "--- ") && starts_with(next, "+++ ")))
			return true;
	}
	return false;
}

/* "@@ -12,5 +14,6 @@": the line in the kernel as the hunks before have left it, 0 if the numbers cannot be read. */
static long hunk_line(const char *line)
{
	long old, new;

	if (sscanf(line, "@@ -%ld,%*d +%ld", &old, &new) == 2 || sscanf(line, "@@ -%ld +%ld", &old, &new) == 2)
		return new > 0 ? new : 0;
	return 0;
}

/* Take one line of a hunk. Blank lines whose space was lost are counted in *blank until another line follows: at the
 * end of a hunk they belong to the reply, not to the kernel. */
static int take_hunk_line(struct change *c, const char *line, size_t length, int *blank, struct error *err)
{
	if (length == 0 || *line == '\n') {
		++*blank;
		return 0;
	}
	if (*line == '\\')
		return 0;
	for (; *blank; --*blank) {
		buf_putc(&c->old, '\n');
		buf_putc(&c->new, '\n');
	}
	if (*line == ' ' || *line == '-')
		add_line(&c->old, line + 1, length - 1);
	if (*line == ' ' || *line == '+')
		add_line(&c->new, line + 1, length - 1);
	if (!strchr(" -+", *line))
		return error_set(err, KM_EXIT_INPUT, "hunk %d has a line that begins with neither ' ', '-' nor '+'", c->number);
	return 0;
}

static int apply_diff(struct buf *kernel, const char *text, struct error *err)
{
	bool in_hunk = false;
	struct change c;
	int status = 0, blank = 0;

	change_init(&c, "hunk");
	for (size_t length; status == 0 && (length = line_length(text)) > 0; text += length) {
		bool head = starts_with(text, "@@");
		bool file = starts_with(text, "diff ") || (starts_with(text, "--- ") && starts_with(text + length, "+++ "));

		if (in_hunk && (head || file)) {
			status = apply(kernel, &c, err);
			in_hunk = false;
		}
		if (head) {
			change_next(&c);
			c.line = hunk_line(text);
			in_hunk = true;
			blank = 0;
		} else if (in_hunk && status == 0) {
			status = take_hunk_line(&c, text, length, &blank, err);
		}
	}
	if (status == 0 && in_hunk)
		status = apply(kernel, &c, err);
	if (status == 0 && c.number == 0)
		status = error_set(err, KM_EXIT_INPUT, "the diff has no hunk: a line that begins with @@");
	change_release(&c);
	return status;
}

/* ---- blocks ----------------------------------------------------------------------------------------------------- */

/* True for a line of five to nine marks and, perhaps, a word behind. */
static bool is_marker(const char *line, char mark, const char *word)
{
	size_t n = 0;

	while (line[n] == mark)
		n++;
	if (n < 5 || n > 9)
		return false;
	line += n;
	line += strspn(line, " ");
	if (starts_with(line, word))
		line += strlen(word);
	line += strspn(line, " \t");
	return *line == '\n' || !*line;
}

bool patch_is_blocks(const char *text)
{
	for (; *text; text += line_length(text))
		if (is_marker(text, '<', "SEARCH"))
			return true;
	return false;
}

static int apply_blocks(struct buf *kernel, const char *text, struct error *err)
{
	enum { OUTSIDE, SEARCH, REPLACE } where = OUTSIDE;
	struct change c;
	int status = 0;

	change_init(&c, "SEARCH block");
	for (size_t length; status == 0 && (length = line_length(text)) > 0; text += length) {
		if (where == OUTSIDE && is_marker(text, '<', "SEARCH")) {
			change_next(&c);
			where = SEARCH;
		} else if (where == SEARCH && is_marker(text, '=', "")) {
			where = REPLACE;
		} else if (where == REPLACE && is_marker(text, '>', "REPLACE")) {
			status = apply(kernel, &c, err);
			where = OUTSIDE;
		} else if (where != OUTSIDE) {
			add_line(where == SEARCH ? &c.old : &c.new, text, length);
		}
	}
	if (status == 0 && where != OUTSIDE)
		status = error_set(err, KM_EXIT_INPUT, "SEARCH block %d does not end with >>>>>>> REPLACE", c.number);
	change_release(&c);
	return status;
}

int patch_apply(struct buf *kernel, const char *text, struct error *err)
{
	if (kernel->len && kernel->data[kernel->len - 1] != '\n')
		buf_putc(kernel, '\n');
	return patch_is_blocks(text) ? apply_blocks(kernel, text, err) : apply_diff(kernel, text, err);
}
