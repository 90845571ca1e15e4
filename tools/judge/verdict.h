/* verdict.h - what became of a kernel in a judgement. */
#ifndef KM_VERDICT_H
#define KM_VERDICT_H

#include <stdbool.h>

enum verdict_status { VERDICT_PASSED, VERDICT_INCORRECT, VERDICT_RUNTIME_ERROR, VERDICT_TIMEOUT, VERDICT_REJECTED };

struct verdict {
	enum verdict_status status;
	char rule[32];     /* of REJECTED: "work-between-calls", "out-of-bounds", ...; else "" */
	char message[600]; /* one line for people and the model; "" if passed */
};

/* "PASSED", "INCORRECT_NUMERICAL", "RUNTIME_ERROR", "TIMEOUT", "REJECTED". */
const char *verdict_name(enum verdict_status status);

/* Set *v, unless it already says something other than PASSED: the first finding counts. rule may be NULL. What is not
 * printable ASCII in the message becomes '?', since part of it may come from the candidate. */
void verdict_set(struct verdict *v, enum verdict_status status, const char *rule, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

#endif
