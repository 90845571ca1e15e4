#include "error.h"

#include <stdarg.h>
#include <stdio.h>

int error_set(struct error *err, enum km_exit code, const char *format, ...)
{
	va_list args;

	if (!err)
		return -1;
	err->code = code;
	va_start(args, format);
	vsnprintf(err->text, sizeof(err->text), format, args);
	va_end(args);
	return -1;
}

int error_prefix(struct error *err, const char *format, ...)
{
	char prefix[512], rest[sizeof(err->text)];
	va_list args;

	if (!err)
		return -1;
	va_start(args, format);
	vsnprintf(prefix, sizeof(prefix), format, args);
	va_end(args);
	snprintf(rest, sizeof(rest), "%s", err->text);
	snprintf(err->text, sizeof(err->text), "%s: %.*s", prefix, (int)(sizeof(err->text) - sizeof(prefix) - 3), rest);
	return -1;
}
