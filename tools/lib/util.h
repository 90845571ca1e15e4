/* util.h - allocation that cannot fail, and small string helpers.
 *
 * Running out of memory ends the program with KM_EXIT_ENVIRONMENT. Who gets memory from x*() frees it with free().
 */
#ifndef KM_UTIL_H
#define KM_UTIL_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void *xmalloc(size_t size);
void *xcalloc(size_t count, size_t size);
void *xrealloc(void *p, size_t size);
void *xreallocarray(void *p, size_t count, size_t size);
char *xstrdup(const char *s);
char *xstrndup(const char *s, size_t n);
char *xvasprintf(const char *format, va_list args) __attribute__((format(printf, 1, 0)));
char *xasprintf(const char *format, ...) __attribute__((format(printf, 1, 2)));

bool starts_with(const char *s, const char *prefix);
bool ends_with(const char *s, const char *suffix);

/* Length of the UTF-8 sequence at s, of at most n bytes; 0 if it is none (RFC 3629: no surrogates, no overlong). */
size_t utf8_length(const unsigned char *s, size_t n);

/* Whole-string conversions: true only if all of s is one number in [low, high]; NaN and infinities are refused. */
bool parse_long(const char *s, long low, long high, long *value);
bool parse_double(const char *s, double low, double high, double *value);

/* Seconds on the monotonic clock. */
double monotonic_seconds(void);

#endif
