#include "sse.h"

#include "util.h"

#include <string.h>

void sse_init(struct sse *sse, size_t ceiling, bool (*event)(void *, const char *, size_t), void *user)
{
	memset(sse, 0, sizeof(*sse));
	buf_init(&sse->line, ceiling);
	buf_init(&sse->data, ceiling);
	sse->event = event;
	sse->user = user;
}

void sse_release(struct sse *sse)
{
	buf_release(&sse->line);
	buf_release(&sse->data);
}

static bool dispatch(struct sse *sse)
{
	bool more = true;

	if (sse->has_data)
		more = sse->event(sse->user, sse->data.data, sse->data.len);
	buf_clear(&sse->data);
	sse->has_data = false;
	return more;
}

static bool take_line(struct sse *sse)
{
	const char *line = sse->line.data, *value = line + 5;
	size_t len = sse->line.len;

	if (len >= 3 && memcmp(line, "\xef\xbb\xbf", 3) == 0) {
		line += 3;
		value += 3;
		len -= 3;
	}
	if (len == 0)
		return dispatch(sse);
	if (len < 5 || memcmp(line, "data:", 5) != 0)
		return true;
	if (*value == ' ')
		value++;
	if (sse->has_data)
		buf_putc(&sse->data, '\n');
	sse->has_data = true;
	return buf_add(&sse->data, value, len - (size_t)(value - line));
}

bool sse_feed(struct sse *sse, const char *bytes, size_t len)
{
	for (size_t i = 0; i < len;) {
		size_t n = 0;
		bool more;

		if (sse->after_cr && bytes[i] == '\n')
			i++;
		sse->after_cr = false;
		while (i + n < len && bytes[i + n] != '\n' && bytes[i + n] != '\r')
			n++;
		if (!buf_add(&sse->line, bytes + i, n))
			return false;
		i += n;
		if (i == len)
			break;
		sse->after_cr = bytes[i++] == '\r';
		more = take_line(sse);
		buf_clear(&sse->line);
		if (!more)
			return false;
	}
	return true;
}

bool sse_end(struct sse *sse)
{
	bool more = sse->line.len == 0 || take_line(sse);

	buf_clear(&sse->line);
	return more && dispatch(sse);
}
