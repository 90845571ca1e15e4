#include "verdict.h"

#include <stdarg.h>
#include <stdio.h>

const char *verdict_name(enum verdict_status status)
{
	static const char *const names[] = { "PASSED", "INCORRECT_NUMERICAL", "RUNTIME_ERROR", "TIMEOUT", "REJECTED" };

	return names[status];
}

void verdict_set(struct verdict *v, enum verdict_status status, const char *rule, const char *format, ...)
{
	va_list ap;

	if (v->status != VERDICT_PASSED)
		return;
	v->status = status;
	snprintf(v->rule, sizeof(v->rule), "%s", rule ? rule : "");
	va_start(ap, format);
	vsnprintf(v->message, sizeof(v->message), format, ap);
	va_end(ap);
	for (char *p = v->message; *p; p++)
		if (*p < ' ' || *p > '~')
			*p = '?';
}
