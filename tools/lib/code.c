#include "code.h"

#include "buf.h"
#include "util.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct fence {
	char c;        /* '`' or '~' */
	size_t length; /* of the run; 0: no fence */
	size_t indent;
};

struct block {
	struct buf text;
	bool found;
	int rank; /* 3 defines km_run, 2 names it, 1 neither */
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
		const char *p = hit + 6;

		if ((hit > text && is_word(hit[-1])) || is_word(*p))
			continue;
		rank = 2;
		p += strspn(p, " \t\n");
		if (*p != '(')
			continue;
		p += strcspn(p, ")");
		if (*p)
			p++;
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

/* Remove <TAG>...</TAG>. What is before a closing tag without an opening one goes too, and so does all that follows an
 * opening one that is never closed: the reply broke off while thinking. */
static void drop_tag(char *text, const char *opening, const char *closing)
{
	char *open, *close;

	while ((open = strstr(text, opening))) {
		close = strstr(open, closing);
		if (!close) {
			*open = 0;
			break;
		}
		close += strlen(closing);
		memmove(open, close, strlen(close) + 1);
	}
	while ((close = strstr(text, closing))) {
		close += strlen(closing);
		memmove(text, close, strlen(close) + 1);
	}
}

/* The reply with LF line ends and without thinking. The caller frees. */
static char *normalise(const char *reply)
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

char *code_extract(const char *reply, const char **reason)
{
	char *text = normalise(reply), *source = NULL;
	struct block best = { 0 };

	buf_init(&best.text, strlen(text) + 2);
	if (is_blank(text, strlen(text))) {
		*reason = "the reply holds nothing but white space or thinking";
	} else {
		scan_blocks(text, &best);
		if (!best.found && is_bare_code(text))
			best.found = buf_puts(&best.text, text);
		*reason = "the reply holds no code block, and it is not code as a whole";
	}
	if (best.found) {
		if (best.text.data[best.text.len - 1] != '\n')
			buf_putc(&best.text, '\n');
		source = buf_take(&best.text);
	}
	buf_release(&best.text);
	free(text);
	return source;
}
