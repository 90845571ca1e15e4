#include "text.h"

#include "util.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char *text_clean(const char *text, size_t len)
{
	struct buf out;
	char *clean;

	buf_init(&out, 3 * len + 1);
	for (size_t i = 0; i < len;) {
		size_t n = utf8_length((const unsigned char *)text + i, len - i);

		if (n == 0)
			buf_puts(&out, "\xef\xbf\xbd");
		else if (text[i] != 0 && !(text[i] == '\r' && i + 1 < len && text[i + 1] == '\n'))
			buf_add(&out, text + i, n);
		i += n ? n : 1;
	}
	clean = buf_take(&out);
	buf_release(&out);
	return clean;
}

/* The largest length <= want at which text may be cut: after a line if one ends in the last quarter, else between two
 * characters. */
static size_t head_length(const char *text, size_t want)
{
	for (size_t i = want; i > want - want / 4; i--)
		if (text[i - 1] == '\n')
			return i;
	while (want > 0 && ((unsigned char)text[want] & 0xc0) == 0x80)
		want--;
	return want;
}

/* The smallest offset >= from at which the tail may start. */
static size_t tail_offset(const char *text, size_t len, size_t from)
{
	for (size_t i = from; i < from + (len - from) / 4; i++)
		if (text[i - 1] == '\n')
			return i;
	while (from < len && ((unsigned char)text[from] & 0xc0) == 0x80)
		from++;
	return from;
}

char *text_excerpt(const char *text, size_t ceiling)
{
	enum { MARK = 64 };
	size_t len = strlen(text), room, head, tail;

	if (len <= ceiling)
		return xstrdup(text);
	if (ceiling < 2 * MARK)
		return xstrndup(text, head_length(text, ceiling));
	room = ceiling - MARK;
	head = head_length(text, room - room / 3);
	tail = tail_offset(text, len, len - room / 3);
	return xasprintf("%.*s%s[... %zu bytes left out here ...]\n%s", (int)head, text, head && text[head - 1] == '\n' ? "" : "\n",
			 tail - head, text + tail);
}

static size_t longest_run(const char *text, char c)
{
	size_t longest = 0, run = 0;

	for (; *text; text++) {
		run = *text == c ? run + 1 : 0;
		if (run > longest)
			longest = run;
	}
	return longest;
}

void text_fence(struct buf *out, const char *info, const char *text)
{
	size_t len = strlen(text), ticks = longest_run(text, '`') + 1;
	char *fence;

	if (ticks < 3)
		ticks = 3;
	fence = xmalloc(ticks + 1);
	memset(fence, '`', ticks);
	fence[ticks] = 0;
	buf_printf(out, "%s%s\n", fence, info);
	buf_puts(out, text);
	if (len && text[len - 1] != '\n')
		buf_putc(out, '\n');
	buf_printf(out, "%s\n", fence);
	free(fence);
}

void text_line(struct buf *out, const char *text, size_t ceiling)
{
	struct buf line;
	bool space = false;

	buf_init(&line, strlen(text) + 1);
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (c <= ' ' || c == 0x7f) {
			space = line.len > 0;
			continue;
		}
		if (space)
			buf_putc(&line, ' ');
		space = false;
		buf_putc(&line, *text);
	}
	if (line.len <= ceiling)
		buf_puts(out, line.data);
	else
		buf_printf(out, "%.*s...", (int)head_length(line.data, ceiling > 3 ? ceiling - 3 : 0), line.data);
	buf_release(&line);
}

size_t text_scrub(struct buf *text, const char *secret)
{
	struct buf out;
	size_t length = strlen(secret), found = 0;
	const char *from = text->data, *end = text->data + text->len, *hit;

	if (length == 0)
		return 0;
	buf_init(&out, 14 * text->len + 1);
	while ((hit = memmem(from, (size_t)(end - from), secret, length))) {
		buf_add(&out, from, (size_t)(hit - from));
		buf_puts(&out, "[key removed]");
		from = hit + length;
		found++;
	}
	if (found) {
		buf_add(&out, from, (size_t)(end - from));
		out.ceiling = text->ceiling > out.len ? text->ceiling : out.len;
		buf_release(text);
		*text = out;
	} else {
		buf_release(&out);
	}
	return found;
}
