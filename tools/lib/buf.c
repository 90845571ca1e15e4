#include "buf.h"

#include "util.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buf_init(struct buf *b, size_t ceiling)
{
	b->size = 256;
	b->data = xmalloc(b->size);
	b->data[0] = 0;
	b->len = 0;
	b->ceiling = ceiling;
	b->overflow = false;
}

void buf_release(struct buf *b)
{
	free(b->data);
	memset(b, 0, sizeof(*b));
}

void buf_clear(struct buf *b)
{
	b->len = 0;
	b->data[0] = 0;
	b->overflow = false;
}

char *buf_take(struct buf *b)
{
	char *data = b->data;

	buf_init(b, b->ceiling);
	return data;
}

bool buf_add(struct buf *b, const void *data, size_t len)
{
	if (b->overflow || len > b->ceiling - b->len) {
		b->overflow = true;
		return false;
	}
	if (b->len + len + 1 > b->size) {
		while (b->len + len + 1 > b->size)
			b->size *= 2;
		b->data = xrealloc(b->data, b->size);
	}
	if (data && len)
		memcpy(b->data + b->len, data, len);
	b->len += len;
	b->data[b->len] = 0;
	return true;
}

bool buf_puts(struct buf *b, const char *s)
{
	return buf_add(b, s, strlen(s));
}

bool buf_putc(struct buf *b, char c)
{
	if (b->overflow || b->len == b->ceiling || b->len + 1 >= b->size)
		return buf_add(b, &c, 1);
	b->data[b->len++] = c;
	b->data[b->len] = 0;
	return true;
}

bool buf_printf(struct buf *b, const char *format, ...)
{
	char few[256], *s;
	va_list args;
	bool fits;
	int n;

	va_start(args, format);
	n = vsnprintf(few, sizeof(few), format, args);
	va_end(args);
	if (n >= 0 && (size_t)n < sizeof(few))
		return buf_add(b, few, (size_t)n);
	va_start(args, format);
	s = xvasprintf(format, args);
	va_end(args);
	fits = buf_puts(b, s);
	free(s);
	return fits;
}
