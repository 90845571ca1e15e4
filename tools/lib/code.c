#include "code.h"

#include "buf.h"
#include "patch.h"
#include "util.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { PARAMETERS_MAX = 4096 }; /* bytes between km_run( and ) */

struct fence {
	char c;        /* '`' or '~' */
	size_t length; /* of the run; 0: no fence */
	size_t indent;
};

struct block {
	struct buf text;
	bool found;
	int rank;           /* 3 defines km_run, 2 names it, 1 neither */
	struct buf changes; /* all blocks that are patches, one after the other */
};

static size_t line_length(const char *line)
{
	size_t n = strcspn(line, "\n");

	return line[n] ? n + 1 : n;
}

static bool is_blank(const char *line, size_t length)
{
	for (size_t i = 0; i < length; i++)
		if (!isspace((unsigned char)line[i]))
			return false;
	return true;
}

/* The fence that a line opens; its length is 0 if it opens none. An info string holds no backtick. */
static struct fence fence_opens(const char *line, size_t length)
{
	struct fence fence = { 0 };

	while (fence.indent < length && (line[fence.indent] == ' ' || line[fence.indent] == '\t' || line[fence.indent] == '>'))
		fence.indent++;
	if (fence.indent == length || (line[fence.indent] != '`' && line[fence.indent] != '~'))
		return fence;
	fence.c = line[fence.indent];
	while (fence.indent + fence.length < length && line[fence.indent + fence.length] == fence.c)
		fence.length++;
	if (fence.length < 3 || (fence.c == '`' && memchr(line + fence.indent + fence.length, '`', length - fence.indent - fence.length)))
		fence.length = 0;
	return fence;
}

static bool fence_closes(const struct fence *open, const char *line, size_t length)
{
	struct fence fence = fence_opens(line, length);

	return fence.length >= open->length && fence.c == open->c && is_blank(line + fence.indent + fence.length, length - fence.indent - fence.length);
}

static bool is_word(char c)
{
	return isalnum((unsigned char)c) || c == '_';
}

/* 3 if the text defines km_run, 2 if it names it, 1 if neither. */
static int rank_of(const char *text)
{
	int rank = 1;

	for (const char *hit = strstr(text, "km_run"); hit; hit = strstr(hit + 1, "km_run")) {
		const char *p = hit + 6, *close;

		if ((hit > text && is_word(hit[-1])) || is_word(*p))
			continue;
		rank = 2;
		p += strspn(p, " \t\n");
		if (*p != '(')
			continue;
		close = memchr(p, ')', strnlen(p, PARAMETERS_MAX));
		if (!close)
			continue;
		p = close + 1;
		p += strspn(p, " \t\n");
		if (*p == '{')
			return 3;
	}
	return rank;
}

/* Append a line of a block, less the indentation that its opening fence has. */
static void add_line(struct buf *text, const char *line, size_t length, size_t indent)
{
	while (indent > 0 && length > 0 && (*line == ' ' || *line == '\t' || *line == '>')) {
		line++;
		length--;
		indent--;
	}
	buf_add(text, line, length);
}

/* Keep the block if it is better than what was kept. */
static void consider(struct block *best, const struct buf *text)
{
	int rank = rank_of(text->data);

	if (is_blank(text->data, text->len))
		return;
	if (patch_is_diff(text->data) || patch_is_blocks(text->data)) {
		buf_add(&best->changes, text->data, text->len);
		if (text->data[text->len - 1] != '\n')
			buf_putc(&best->changes, '\n');
		return;
	}
	if (best->found && (rank < best->rank || (rank == 1 && text->len <= best->text.len)))
		return;
	buf_clear(&best->text);
	buf_add(&best->text, text->data, text->len);
	best->found = true;
	best->rank = rank;
}

static void scan_blocks(const char *reply, struct block *best)
{
	struct fence open = { 0 };
	struct buf text;

	buf_init(&text, strlen(reply) + 1);
	for (size_t length; (length = line_length(reply)) > 0; reply += length) {
		if (open.length == 0) {
			open = fence_opens(reply, length);
		} else if (fence_closes(&open, reply, length)) {
			consider(best, &text);
			buf_clear(&text);
			open.length = 0;
		} else {
			add_line(&text, reply, length, open.indent);
		}
	}
	if (open.length)
		consider(best, &text);
	buf_release(&text);
}

static bool starts_like_code(const char *line)
{
	static const char *const starts[] = { "#", "/*", "//", "static ", "typedef ", "extern ", "struct ", "enum ", "int ", "void ", "inline ", "const ", "__attribute__" };

	for (size_t i = 0; i < sizeof(starts) / sizeof(*starts); i++)
		if (starts_with(line, starts[i]))
			return true;
	return false;
}

/* True for text that has no fences but is a source file as a whole. */
static bool is_bare_code(const char *text)
{
	const char *end = text + strlen(text);

	text += strspn(text, " \t\n");
	while (end > text && isspace((unsigned char)end[-1]))
		end--;
	if (end == text || rank_of(text) < 3 || !starts_like_code(text))
		return false;
	if (end[-1] == '}' || end[-1] == ';' || (end - text > 1 && end[-1] == '/' && end[-2] == '*'))
		return true;
	while (end > text && end[-1] != '\n')
		end--;
	return *end == '#' || starts_with(end, "//");
}

/* Remove <TAG>...</TAG>, as reply_without_thinking says. */
static void drop_tag(char *text, const char *opening, const char *closing)
{
	char *to = text, *from = text, *open, *close, *last = NULL;

	while ((open = strstr(from, opening))) {
		memmove(to, from, (size_t)(open - from));
		to += open - from;
		close = strstr(open, closing);
		from = close ? close + strlen(closing) : open + strlen(open);
	}
	memmove(to, from, strlen(from) + 1);
	for (close = text; (close = strstr(close, closing)); close = last)
		last = close + strlen(closing);
	if (last)
		memmove(text, last, strlen(last) + 1);
}

char *reply_without_thinking(const char *reply)
{
	char *text = xstrdup(reply), *to = text;

	for (const char *from = text; *from; from++)
		if (!(from[0] == '\r' && from[1] == '\n'))
			*to++ = *from == '\r' ? '\n' : *from;
	*to = 0;
	drop_tag(text, "<think>", "</think>");
	drop_tag(text, "<thinking>", "</thinking>");
	return text;
}

static void block_release(struct block *block)
{
	buf_release(&block->text);
	buf_release(&block->changes);
}

/* Look through a reply without thinking. */
static void find_blocks(const char *text, struct block *best)
{
	const char *start = text + strspn(text, " \t\n");

	memset(best, 0, sizeof(*best));
	buf_init(&best->text, strlen(text) + 2);
	buf_init(&best->changes, 2 * strlen(text) + 2);
	scan_blocks(text, best);
	if (best->found || best->changes.len)
		return;
	if (is_bare_code(text)) {
		best->found = buf_puts(&best->text, text);
		best->rank = 3;
	} else if (patch_is_blocks(text) || (patch_is_diff(text) && (starts_with(start, "--- ") || starts_with(start, "diff ") || starts_with(start, "@@")))) {
		buf_puts(&best->changes, text);
	}
}

static bool wants_changes(const struct block *best)
{
	return best->changes.len && !(best->found && best->rank == 3);
}

bool code_is_patch(const char *reply)
{
	char *text = reply_without_thinking(reply);
	struct block best;
	bool patch;

	find_blocks(text, &best);
	patch = wants_changes(&best);
	block_release(&best);
	free(text);
	return patch;
}

static char *take_block(struct block *best)
{
	if (best->text.data[best->text.len - 1] != '\n')
		buf_putc(&best->text, '\n');
	return buf_take(&best->text);
}

static char *take_changes(const struct block *best, const char *base, struct error *err)
{
	struct buf kernel;
	char *source = NULL;

	if (!base) {
		error_set(err, KM_EXIT_INPUT, "the reply holds changes, but there is no kernel to change: the whole file is needed");
		return NULL;
	}
	buf_init(&kernel, strlen(base) + best->changes.len + 2);
	buf_puts(&kernel, base);
	if (patch_apply(&kernel, best->changes.data, err) == 0)
		source = buf_take(&kernel);
	else
		error_prefix(err, "the changes cannot be applied");
	buf_release(&kernel);
	return source;
}

char *code_extract(const char *reply, const char *base, struct error *err)
{
	char *text = reply_without_thinking(reply), *source = NULL;
	struct block best;

	find_blocks(text, &best);
	if (is_blank(text, strlen(text)))
		error_set(err, KM_EXIT_INPUT, "the reply holds nothing but white space or thinking");
	else if (wants_changes(&best))
		source = take_changes(&best, base, err);
	else if (best.found)
		source = take_block(&best);
	else
		error_set(err, KM_EXIT_INPUT, "the reply holds no code block, and it is not code as a whole");
	block_release(&best);
	free(text);
	return source;
}
