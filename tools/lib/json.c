#include "json.h"

#include "file.h"
#include "hash.h"
#include "schema.h"
#include "util.h"
#include "version.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* cJSON would report memory that ran out as a text that cannot be parsed. */
__attribute__((constructor)) static void use_checked_memory(void)
{
	cJSON_Hooks hooks = { xmalloc, free };

	cJSON_InitHooks(&hooks);
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

/* How many bytes from s on are ordinary inside a string: ASCII, no quote, no backslash. The text ends with a NUL. */
static size_t plain_length(const char *s)
{
	const char *p = s;

	while ((signed char)*p >= ' ' && *p != '"' && *p != '\\')
		p++;
	return (size_t)(p - s);
}

/* Look at the bytes before cJSON does: what it would accept wrongly, or recurse into too deeply. */
static int prescan(const char *text, size_t len, struct error *err)
{
	bool in_string = false;
	int depth = 0;

	for (size_t i = 0; i < len;) {
		size_t n = in_string ? plain_length(text + i) : 0;
		signed char c;

		if (n) {
			i += n;
			continue;
		}
		c = (signed char)text[i];
		n = c > 0 ? 1 : utf8_length((const unsigned char *)text + i, len - i);
		if (n == 0 || c == 0)
			return error_set(err, KM_EXIT_INPUT, "%s at byte %zu", c ? "invalid UTF-8" : "NUL", i);
		if (in_string && c == '\\' && i + 5 < len && memcmp(text + i, "\\u0000", 6) == 0)
			return error_set(err, KM_EXIT_INPUT, "\\u0000 at byte %zu", i);
		if (in_string && (unsigned char)c < 0x20)
			return error_set(err, KM_EXIT_INPUT, "unescaped control character in a string at byte %zu", i);
		if (in_string && c == '\\')
			n = i + 1 < len ? 2 : 1;
		else if (c == '"')
			in_string = !in_string;
		else if (!in_string && (c == '{' || c == '[') && ++depth > JSON_MAX_DEPTH)
			return error_set(err, KM_EXIT_INPUT, "nested deeper than %d at byte %zu", JSON_MAX_DEPTH, i);
		else if (!in_string && (c == '}' || c == ']'))
			depth--;
		i += n;
	}
	return 0;
}

static int compare_keys(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int check_sorted_keys(const cJSON *object, size_t count, struct error *err)
{
	const char **keys = xreallocarray(NULL, count, sizeof(*keys));
	const cJSON *child;
	int result = 0;

	count = 0;
	cJSON_ArrayForEach(child, object)
		keys[count++] = child->string;
	qsort(keys, count, sizeof(*keys), compare_keys);
	for (size_t i = 1; i < count && result == 0; i++)
		if (strcmp(keys[i - 1], keys[i]) == 0)
			result = error_set(err, KM_EXIT_INPUT, "duplicate key '%s'", keys[i]);
	free(keys);
	return result;
}

/* Length and first bytes of a key as a number: unequal numbers, unequal keys. */
static uint64_t key_head(const char *key)
{
	size_t len = strlen(key);
	uint64_t head = 0;

	memcpy(&head, key, len < 7 ? len : 7);
	return head ^ (uint64_t)len << 56;
}

static int check_keys(const cJSON *object, struct error *err)
{
	uint64_t heads[24];
	size_t count = 0;
	const cJSON *child;

	/* Nearly all objects are small, and are compared key by key. */
	cJSON_ArrayForEach(child, object) {
		const cJSON *other = object->child;

		if (count == sizeof(heads) / sizeof(heads[0]))
			break;
		heads[count] = key_head(child->string);
		for (size_t i = 0; i < count; i++, other = other->next)
			if (heads[i] == heads[count] && strcmp(other->string, child->string) == 0)
				return error_set(err, KM_EXIT_INPUT, "duplicate key '%s'", child->string);
		count++;
	}
	for (; child; child = child->next)
		count++;
	return count > sizeof(heads) / sizeof(heads[0]) ? check_sorted_keys(object, count, err) : 0;
}

/* Duplicate keys and numbers that overflowed. Depth is bounded by the scan before. */
static int check_values(const cJSON *value, struct error *err)
{
	const cJSON *child;

	if (cJSON_IsNumber(value) && !isfinite(value->valuedouble))
		return error_set(err, KM_EXIT_INPUT, "number out of range%s%s%s", value->string ? " at '" : "", value->string ? value->string : "", value->string ? "'" : "");
	if (cJSON_IsObject(value) && check_keys(value, err) < 0)
		return -1;
	cJSON_ArrayForEach(child, value)
		if (check_values(child, err) < 0)
			return -1;
	return 0;
}

cJSON *json_parse(const char *text, size_t len, struct error *err)
{
	const char *end = text;
	cJSON *value;

	if (prescan(text, len, err) < 0)
		return NULL;
	/* Called with the terminating NUL that cJSON asks for, so that trailing text is refused. */
	value = cJSON_ParseWithLengthOpts(text, len + 1, &end, true);
	if (!value) {
		error_set(err, KM_EXIT_INPUT, "cannot parse at byte %zu", end ? (size_t)(end - text) : 0);
		return NULL;
	}
	if (check_values(value, err) < 0) {
		cJSON_Delete(value);
		return NULL;
	}
	return value;
}

cJSON *json_load(const char *path, const char *kind, struct error *err)
{
	struct buf b;
	cJSON *value = NULL;

	buf_init(&b, JSON_MAX_BYTES);
	if (file_read(path, &b, err) == 0) {
		value = json_parse(b.data, b.len, err);
		if (!value)
			error_prefix(err, "'%s'", path);
	}
	buf_release(&b);
	if (value && kind && schema_check(kind, value, err) < 0) {
		error_prefix(err, "'%s'", path);
		cJSON_Delete(value);
		value = NULL;
	}
	return value;
}

/* ---- printing --------------------------------------------------------------------------------------------------- */

static void print_string(const char *s, struct buf *out)
{
	buf_putc(out, '"');
	for (;;) {
		const char *from = s;
		unsigned char c;

		while ((unsigned char)*s >= 0x20 && *s != '"' && *s != '\\' && *s != 0x7f)
			s++;
		buf_add(out, from, (size_t)(s - from));
		c = (unsigned char)*s++;
		if (c == 0)
			break;
		if (c == '"' || c == '\\')
			buf_printf(out, "\\%c", c);
		else if (c == '\n')
			buf_puts(out, "\\n");
		else if (c == '\t')
			buf_puts(out, "\\t");
		else
			buf_printf(out, "\\u%04x", c);
	}
	buf_putc(out, '"');
}

static void print_whole(long long v, struct buf *out)
{
	unsigned long long rest = v < 0 ? -(unsigned long long)v : (unsigned long long)v;
	char s[24];
	size_t at = sizeof(s);

	do
		s[--at] = (char)('0' + rest % 10);
	while (rest /= 10);
	if (v < 0)
		s[--at] = '-';
	buf_add(out, s + at, sizeof(s) - at);
}

static void print_number(double v, struct buf *out)
{
	char s[40];

	if (!isfinite(v)) {
		buf_puts(out, "null");
		return;
	}
	if (fabs(v) < 1e15 && v == (double)(long long)v) {
		print_whole((long long)v, out);
		return;
	}
	for (int digits = 15; digits <= 17; digits++) {
		snprintf(s, sizeof(s), "%.*g", digits, v);
		if (strtod(s, NULL) == v)
			break;
	}
	buf_puts(out, s);
}

static void print_line_start(int indent, struct buf *out)
{
	static const char spaces[2 * JSON_MAX_DEPTH + 1] = { [0 ... 2 * JSON_MAX_DEPTH - 1] = ' ' };
	size_t want = 2 * (size_t)indent;

	buf_putc(out, '\n');
	for (; want > 2 * JSON_MAX_DEPTH; want -= 2 * JSON_MAX_DEPTH)
		buf_add(out, spaces, 2 * JSON_MAX_DEPTH);
	buf_add(out, spaces, want);
}

static bool is_container(const cJSON *v)
{
	return cJSON_IsObject(v) || cJSON_IsArray(v);
}

/* One line if all members are scalars and it is short enough to read. */
static bool is_short(const cJSON *v)
{
	const cJSON *child;
	size_t width = 0;

	if (cJSON_IsObject(v) && !v->string)
		width = 60; /* elements of arrays read better one member a line, unless they are very short */
	cJSON_ArrayForEach(child, v) {
		if (is_container(child))
			return false;
		width += (child->string ? strlen(child->string) + 4 : 0) + (cJSON_IsString(child) ? strlen(child->valuestring) + 4 : 12);
		if (width > 160)
			return false;
	}
	return true;
}

static void print(const cJSON *v, int indent, bool pretty, struct buf *out)
{
	const cJSON *child;
	bool object = cJSON_IsObject(v), lines;

	if (cJSON_IsString(v))
		print_string(v->valuestring, out);
	else if (cJSON_IsNumber(v))
		print_number(v->valuedouble, out);
	else if (!is_container(v))
		buf_puts(out, cJSON_IsTrue(v) ? "true" : cJSON_IsFalse(v) ? "false" : "null");
	if (!is_container(v))
		return;
	lines = pretty && v->child && !is_short(v);
	buf_putc(out, object ? '{' : '[');
	cJSON_ArrayForEach(child, v) {
		if (child != v->child)
			buf_puts(out, pretty && !lines ? ", " : ",");
		if (lines)
			print_line_start(indent + 1, out);
		if (object) {
			print_string(child->string, out);
			buf_puts(out, pretty ? ": " : ":");
		}
		print(child, indent + 1, pretty, out);
	}
	if (lines)
		print_line_start(indent, out);
	buf_putc(out, object ? '}' : ']');
}

void json_print(const cJSON *value, struct buf *out)
{
	print(value, 0, true, out);
	buf_putc(out, '\n');
}

void json_print_compact(const cJSON *value, struct buf *out)
{
	print(value, 0, false, out);
}

int json_save(const char *path, const cJSON *value, struct error *err)
{
	struct buf b;
	int result;

	buf_init(&b, JSON_MAX_BYTES);
	json_print(value, &b);
	if (b.overflow)
		result = error_set(err, KM_EXIT_ENVIRONMENT, "'%s' would be larger than %d bytes", path ? path : "-", JSON_MAX_BYTES);
	else
		result = file_write(path, b.data, b.len, err);
	buf_release(&b);
	return result;
}

/* ---- members ---------------------------------------------------------------------------------------------------- */

/* As cJSON_GetObjectItemCaseSensitive, but most keys differ in their first byte. */
static cJSON *find(const cJSON *object, const char *key)
{
	cJSON *child = object && (object->type & 0xff) == cJSON_Object ? object->child : NULL;

	while (child && (child->string[0] != key[0] || strcmp(child->string, key) != 0))
		child = child->next;
	return child;
}

cJSON *json_get_mutable(cJSON *object, const char *key)
{
	return find(object, key);
}

const cJSON *json_get(const cJSON *object, const char *key)
{
	return find(object, key);
}

const char *json_string(const cJSON *object, const char *key)
{
	const cJSON *v = json_get(object, key);

	return v && cJSON_IsString(v) ? v->valuestring : NULL;
}

double json_number(const cJSON *object, const char *key, double fallback)
{
	const cJSON *v = json_get(object, key);

	return v && cJSON_IsNumber(v) ? v->valuedouble : fallback;
}

bool json_true(const cJSON *object, const char *key)
{
	return cJSON_IsTrue(json_get(object, key));
}

void json_set(cJSON *object, const char *key, cJSON *value)
{
	if (json_get(object, key))
		cJSON_ReplaceItemInObjectCaseSensitive(object, key, value);
	else
		cJSON_AddItemToObject(object, key, value);
}

void json_set_string(cJSON *object, const char *key, const char *value)
{
	json_set(object, key, value ? cJSON_CreateString(value) : cJSON_CreateNull());
}

void json_set_number(cJSON *object, const char *key, double value)
{
	json_set(object, key, isfinite(value) ? cJSON_CreateNumber(value) : cJSON_CreateNull());
}

void json_set_bool(cJSON *object, const char *key, bool value)
{
	json_set(object, key, cJSON_CreateBool(value));
}

void json_remove(cJSON *object, const char *key)
{
	cJSON_DeleteItemFromObjectCaseSensitive(object, key);
}

void json_made_by(cJSON *document, const char *program)
{
	cJSON *made_by = cJSON_CreateObject();

	json_set_string(made_by, "program", program);
	json_set_string(made_by, "version", KM_VERSION);
	json_set(made_by, "inputs", cJSON_CreateObject());
	json_set(document, "made_by", made_by);
}

void json_made_from(cJSON *document, const char *name, const void *data, size_t len)
{
	char hex[HASH_HEX + 1];

	hash_hex(data, len, hex);
	json_set_string(json_get_mutable(json_get_mutable(document, "made_by"), "inputs"), name, hex);
}
