#include "mend.h"

#include "buf.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

/* The code unit of "\uXXXX" at s, of at most len bytes, or -1. */
static int unit_at(const char *s, size_t len)
{
	int unit = 0;

	if (len < 6 || s[0] != '\\' || s[1] != 'u')
		return -1;
	for (int i = 2; i < 6; i++) {
		int c = tolower((unsigned char)s[i]);

		if (!isxdigit(c))
			return -1;
		unit = 16 * unit + (c <= '9' ? c - '0' : c - 'a' + 10);
	}
	return unit;
}

/* How many bytes the escape at s takes; *good is false if it must be replaced. */
static size_t escape_length(const char *s, size_t len, bool *good)
{
	int unit = unit_at(s, len), next;

	*good = true;
	if (unit < 0)
		return len < 2 ? len : 2;
	if (unit >= 0xd800 && unit < 0xdc00) {
		next = unit_at(s + 6, len - 6);
		*good = next >= 0xdc00 && next < 0xe000;
		return *good ? 12 : 6;
	}
	*good = unit != 0 && !(unit >= 0xdc00 && unit < 0xe000);
	return 6;
}

static char *finish(struct buf *out)
{
	char *text = buf_take(out);

	buf_release(out);
	return text;
}

char *mend_escapes(const char *text, size_t len)
{
	struct buf out;
	bool good;

	buf_init(&out, len + 1);
	for (size_t i = 0, n; i < len; i += n) {
		const char *escape = memchr(text + i, '\\', len - i);

		n = escape ? (size_t)(escape - text) - i : len - i;
		buf_add(&out, text + i, n);
		if (n)
			continue;
		n = escape_length(text + i, len - i, &good);
		buf_add(&out, good ? text + i : "\\ufffd", n);
	}
	return finish(&out);
}

/* Length of the comment at s, or 0. An unclosed one is none; *unclosed remembers it, since then all later ones are. */
static size_t comment_length(const char *s, size_t len, bool *unclosed)
{
	const char *end;

	if (len < 2 || s[0] != '/')
		return 0;
	if (s[1] == '/') {
		end = memchr(s, '\n', len);
		return end ? (size_t)(end - s) : len;
	}
	if (s[1] != '*' || *unclosed)
		return 0;
	end = memmem(s + 2, len - 2, "*/", 2);
	*unclosed = !end;
	return end ? (size_t)(end + 2 - s) : 0;
}

/* White space and comments from s on. */
static size_t gap_length(const char *s, size_t len, bool *unclosed)
{
	size_t i = 0, n;

	while (i < len && ((n = comment_length(s + i, len - i, unclosed)) || isspace((unsigned char)s[i])))
		i += n ? n : 1;
	return i;
}

static size_t string_length(const char *s, size_t len)
{
	size_t i = 1;

	while (i < len && s[i] != '"')
		i += s[i] == '\\' ? 2 : 1;
	return i < len ? i + 1 : len;
}

char *mend_syntax(const char *text, size_t len)
{
	bool unclosed = false;
	char before = '{'; /* the last character that was no space */
	struct buf out;

	buf_init(&out, len + 1);
	for (size_t i = 0, n; i < len; i += n) {
		n = comment_length(text + i, len - i, &unclosed);
		if (n)
			continue;
		n = text[i] == '"' ? string_length(text + i, len - i) : 1;
		if (text[i] == ',') {
			size_t after = i + 1 + gap_length(text + i + 1, len - i - 1, &unclosed);

			if (after < len && (text[after] == '}' || text[after] == ']') && !strchr("[{,", before))
				continue;
		}
		if (!isspace((unsigned char)text[i]))
			before = text[i];
		buf_add(&out, text + i, n);
	}
	return finish(&out);
}

size_t mend_object_length(const char *text, size_t len)
{
	bool unclosed = false;
	int depth = 0;

	for (size_t i = 0, n; i < len; i += n) {
		n = comment_length(text + i, len - i, &unclosed);
		if (n)
			continue;
		n = text[i] == '"' ? string_length(text + i, len - i) : 1;
		if (text[i] == '{')
			depth++;
		else if (text[i] == '}' && --depth == 0)
			return i + 1;
	}
	return 0;
}
