/* schema.h - checks a JSON document against the schema of its kind.
 *
 * tools/schema/KIND.json holds one schema a file kind, in a subset of JSON Schema: type (a name or a list), required,
 * properties, additionalProperties (false, or a schema), items, enum, minimum, maximum, minLength, maxLength,
 * maxItems, pattern (POSIX extended), $ref "#/definitions/x". They are linked into every program. A schema with
 * "skippable": true also accepts {"skip": "reason"}, which is how idle slots travel through a round.
 */
#ifndef KM_SCHEMA_H
#define KM_SCHEMA_H

#include "error.h"

#include <cjson/cJSON.h>

/* 0, or -1 with KM_EXIT_INPUT and the place ("nodes[3].status: ...") in *err. An unknown kind is KM_EXIT_USAGE. */
int schema_check(const char *kind, const cJSON *document, struct error *err);

/* The names of all kinds, ending with NULL. */
const char *const *schema_kinds(void);

#endif
