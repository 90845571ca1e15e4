/* json.h - the one loader and the one printer of JSON, over cJSON's tree.
 *
 * Every JSON file and every JSON text from a model or a server comes through json_parse, which is stricter than
 * cJSON: one value and nothing after it, UTF-8, no NUL, no number outside a double, no duplicate key, at most
 * JSON_MAX_DEPTH levels. Trees are freed with cJSON_Delete. Keys are compared exactly.
 */
#ifndef KM_JSON_H
#define KM_JSON_H

#include "buf.h"
#include "error.h"

#include <cjson/cJSON.h>
#include <stdbool.h>

enum {
	JSON_MAX_BYTES = 64 << 20,
	JSON_MAX_DEPTH = 64,
};

/* Parse len bytes of text. NULL with KM_EXIT_INPUT and the byte offset in *err if it is not acceptable. */
cJSON *json_parse(const char *text, size_t len, struct error *err);

/* Read a file ("-" is stdin), parse it and check it against the schema of that kind (schema.h), "run", "world", ...;
 * kind NULL checks nothing. Errors name the file and the place in it. */
cJSON *json_load(const char *path, const char *kind, struct error *err);

/* Print with two-space indentation, short arrays and objects of scalars on one line, numbers with the fewest digits
 * that read back as the same double. Ends with a newline. */
void json_print(const cJSON *value, struct buf *out);

/* The same on one line without newline, keys in tree order: what is hashed. */
void json_print_compact(const cJSON *value, struct buf *out);

/* Print and file_write; path NULL or "-" is stdout. */
int json_save(const char *path, const cJSON *value, struct error *err);

/* Members of an object; NULL, the fallback or false if absent or of another type. */
const cJSON *json_get(const cJSON *object, const char *key);
cJSON *json_get_mutable(cJSON *object, const char *key);
const char *json_string(const cJSON *object, const char *key);
double json_number(const cJSON *object, const char *key, double fallback);
bool json_true(const cJSON *object, const char *key);

/* Set a member, replacing one of that name in its place. json_set takes ownership of value. */
void json_set(cJSON *object, const char *key, cJSON *value);
void json_set_string(cJSON *object, const char *key, const char *value); /* NULL sets null */
void json_set_number(cJSON *object, const char *key, double value);      /* not finite sets null */
void json_set_bool(cJSON *object, const char *key, bool value);
void json_remove(cJSON *object, const char *key);

/* Add "made_by": {"program", "version", "inputs": {}} to a document; json_made_from then names an input file by its
 * base name and the sha256 of its bytes. */
void json_made_by(cJSON *document, const char *program);
void json_made_from(cJSON *document, const char *name, const void *data, size_t len);

#endif
