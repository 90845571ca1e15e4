#include "template.h"

#include "file.h"
#include "util.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* If a placeholder starts at s, set its name and return its length, else 0. */
static size_t placeholder(const char *s, const char **name, size_t *name_length)
{
	const char *p = s;

	if (p[0] != '{' || p[1] != '{')
		return 0;
	p += 2;
	p += strspn(p, " ");
	if (!isalpha((unsigned char)*p))
		return 0;
	*name = p;
	while (isalnum((unsigned char)*p) || *p == '_')
		p++;
	*name_length = (size_t)(p - *name);
	p += strspn(p, " ");
	return p[0] == '}' && p[1] == '}' ? (size_t)(p + 2 - s) : 0;
}

static const struct template_value *find(const struct template_value *values, const char *name, size_t length)
{
	for (; values->name; values++)
		if (strlen(values->name) == length && memcmp(values->name, name, length) == 0)
			return values;
	return NULL;
}

static int fill(const char *text, const char *path, const struct template_value *values, struct buf *out, struct error *err)
{
	const char *name;
	size_t name_length, length;

	while (*text) {
		const struct template_value *value;

		length = placeholder(text, &name, &name_length);
		if (length == 0) {
			buf_putc(out, *text++);
			continue;
		}
		value = find(values, name, name_length);
		if (!value)
			return error_set(err, KM_EXIT_INPUT, "'%s': unknown placeholder {{%.*s}}", path, (int)name_length, name);
		if (!value->text)
			return error_set(err, KM_EXIT_INPUT, "'%s': the placeholder {{%s}} has no value in this template", path, value->name);
		buf_puts(out, value->text);
		text += length;
	}
	return 0;
}

int template_fill(const char *folder, const char *name, const struct template_value *values, struct buf *out, struct error *err)
{
	char *path = xasprintf("%s/%s", folder, name);
	struct buf text;
	int status;

	buf_init(&text, TEMPLATE_MAX_BYTES);
	status = file_read(path, &text, err);
	if (status == 0 && memchr(text.data, 0, text.len))
		status = error_set(err, KM_EXIT_INPUT, "'%s' holds a NUL", path);
	if (status == 0)
		status = fill(text.data, path, values, out, err);
	buf_release(&text);
	free(path);
	return status;
}
