#include "schema.h"

#include "json.h"
#include "util.h"

#include <math.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The schema texts, linked in by schema_data.S: one row a file in tools/schema/. */
extern const struct schema_text {
	const char *kind, *text, *end;
} schema_texts[];

struct place {
	const struct place *outer;
	const char *key; /* NULL for an element */
	int index;
};

enum { MAX_PATTERNS = 32 };

/* The patterns met so far: compiling one takes longer than checking hundreds of strings. */
struct patterns {
	const char *text[MAX_PATTERNS]; /* the schema document's own strings */
	regex_t re[MAX_PATTERNS];
	int count;
};

struct check {
	const cJSON *root; /* the schema document, for $ref */
	struct patterns *patterns;
	struct error *err;
};

static void name_place(const struct place *at, struct buf *out)
{
	if (!at)
		return;
	name_place(at->outer, out);
	if (at->key)
		buf_printf(out, "%s%s", at->outer ? "." : "", at->key);
	else
		buf_printf(out, "[%d]", at->index);
}

static int refuse(const struct check *c, const struct place *at, const char *what, const char *detail)
{
	struct buf b;

	buf_init(&b, 1 << 12);
	name_place(at, &b);
	error_set(c->err, KM_EXIT_INPUT, "%s: %s%s%s%s", b.len ? b.data : "document", what, detail ? " '" : "", detail ? detail : "", detail ? "'" : "");
	buf_release(&b);
	return -1;
}

static bool is_type(const cJSON *v, const char *type)
{
	if (strcmp(type, "object") == 0)
		return cJSON_IsObject(v);
	if (strcmp(type, "array") == 0)
		return cJSON_IsArray(v);
	if (strcmp(type, "string") == 0)
		return cJSON_IsString(v);
	if (strcmp(type, "number") == 0)
		return cJSON_IsNumber(v);
	if (strcmp(type, "integer") == 0)
		return cJSON_IsNumber(v) && v->valuedouble == floor(v->valuedouble) && fabs(v->valuedouble) <= 9007199254740992.0;
	if (strcmp(type, "boolean") == 0)
		return cJSON_IsBool(v);
	return strcmp(type, "null") == 0 && cJSON_IsNull(v);
}

static int check_type(const struct check *c, const cJSON *type, const cJSON *v, const struct place *at)
{
	const cJSON *option;
	struct buf b;

	if (cJSON_IsString(type))
		return is_type(v, type->valuestring) ? 0 : refuse(c, at, "is not of type", type->valuestring);
	cJSON_ArrayForEach(option, type)
		if (is_type(v, option->valuestring))
			return 0;
	buf_init(&b, 1 << 10);
	cJSON_ArrayForEach(option, type)
		buf_printf(&b, "%s%s", b.len ? "' or '" : "", option->valuestring);
	refuse(c, at, "is not of type", b.data);
	buf_release(&b);
	return -1;
}

/* The compiled pattern, NULL if it cannot be compiled or there are too many. */
static const regex_t *compiled(struct patterns *p, const char *pattern)
{
	for (int i = 0; i < p->count; i++)
		if (p->text[i] == pattern)
			return &p->re[i];
	if (p->count == MAX_PATTERNS || regcomp(&p->re[p->count], pattern, REG_EXTENDED | REG_NOSUB) != 0)
		return NULL;
	p->text[p->count] = pattern;
	return &p->re[p->count++];
}

static int check_string(const struct check *c, const cJSON *schema, const cJSON *v, const struct place *at)
{
	double length = (double)strlen(v->valuestring);
	const char *pattern = json_string(schema, "pattern");
	const regex_t *re;

	if (length < json_number(schema, "minLength", 0))
		return refuse(c, at, "is too short", NULL);
	if (length > json_number(schema, "maxLength", INFINITY))
		return refuse(c, at, "is too long", NULL);
	if (!pattern)
		return 0;
	re = compiled(c->patterns, pattern);
	if (!re)
		return error_set(c->err, KM_EXIT_ENVIRONMENT, "bad pattern '%s' in a schema, or too many", pattern);
	return regexec(re, v->valuestring, 0, NULL, 0) == 0 ? 0 : refuse(c, at, "does not match", pattern);
}

static int check_number(const struct check *c, const cJSON *schema, const cJSON *v, const struct place *at)
{
	if (v->valuedouble < json_number(schema, "minimum", -INFINITY))
		return refuse(c, at, "is too small", NULL);
	if (v->valuedouble > json_number(schema, "maximum", INFINITY))
		return refuse(c, at, "is too large", NULL);
	return 0;
}

static int check_enum(const struct check *c, const cJSON *options, const cJSON *v, const struct place *at)
{
	const cJSON *option;

	cJSON_ArrayForEach(option, options)
		if (cJSON_Compare(option, v, true))
			return 0;
	return refuse(c, at, "is none of the allowed values", cJSON_IsString(v) && strlen(v->valuestring) < 80 ? v->valuestring : NULL);
}

static int check_value(const struct check *c, const cJSON *schema, const cJSON *v, const struct place *at);

/* A member by name. Documents mostly hold their keys in the order of the schema, so *next, the member after the one
 * found last, is tried first. */
static const cJSON *find_member(const cJSON *object, const cJSON **next, const char *name)
{
	const cJSON *member = *next && strcmp((*next)->string, name) == 0 ? *next : json_get(object, name);

	if (member)
		*next = member->next;
	return member;
}

static int check_object(const struct check *c, const cJSON *schema, const cJSON *v, const struct place *at)
{
	const cJSON *properties = json_get(schema, "properties"), *others = json_get(schema, "additionalProperties"), *item;
	const cJSON *next = v->child, *next_property = properties ? properties->child : NULL;

	cJSON_ArrayForEach(item, json_get(schema, "required"))
		if (!find_member(v, &next, item->valuestring))
			return refuse(c, at, "lacks the key", item->valuestring);
	cJSON_ArrayForEach(item, v) {
		const cJSON *inner = find_member(properties, &next_property, item->string);
		struct place here = { at, item->string, 0 };

		if (!inner && cJSON_IsFalse(others))
			return refuse(c, at, "has the unknown key", strlen(item->string) < 80 ? item->string : NULL);
		if (!inner)
			inner = others;
		if (cJSON_IsObject(inner) && check_value(c, inner, item, &here) < 0)
			return -1;
	}
	return 0;
}

static int check_array(const struct check *c, const cJSON *schema, const cJSON *v, const struct place *at)
{
	const cJSON *items = json_get(schema, "items"), *item;
	double most = json_number(schema, "maxItems", INFINITY);
	struct place here = { at, NULL, 0 };

	cJSON_ArrayForEach(item, v) {
		if (here.index >= most)
			return refuse(c, at, "has too many elements", NULL);
		if (items && check_value(c, items, item, &here) < 0)
			return -1;
		here.index++;
	}
	return 0;
}

static int check_value(const struct check *c, const cJSON *schema, const cJSON *v, const struct place *at)
{
	const char *ref = json_string(schema, "$ref");
	const cJSON *type, *options;

	if (ref)
		schema = json_get(json_get(c->root, "definitions"), ref + strlen("#/definitions/"));
	type = json_get(schema, "type");
	options = json_get(schema, "enum");
	if (type && check_type(c, type, v, at) < 0)
		return -1;
	if (options && check_enum(c, options, v, at) < 0)
		return -1;
	if (cJSON_IsString(v))
		return check_string(c, schema, v, at);
	if (cJSON_IsNumber(v))
		return check_number(c, schema, v, at);
	if (cJSON_IsObject(v))
		return check_object(c, schema, v, at);
	return cJSON_IsArray(v) ? check_array(c, schema, v, at) : 0;
}

static bool is_skip(const cJSON *document)
{
	return json_string(document, "skip") != NULL;
}

int schema_check(const char *kind, const cJSON *document, struct error *err)
{
	const struct schema_text *t = schema_texts;
	struct patterns patterns = { .count = 0 };
	struct check c = { NULL, &patterns, err };
	struct error inner;
	cJSON *schema;
	int result;

	while (t->kind && strcmp(t->kind, kind) != 0)
		t++;
	if (!t->kind)
		return error_set(err, KM_EXIT_USAGE, "unknown kind of file '%s'", kind);
	schema = json_parse(t->text, (size_t)(t->end - t->text), &inner);
	if (!schema)
		return error_set(err, KM_EXIT_ENVIRONMENT, "schema '%s': %s", kind, inner.text);
	c.root = schema;
	if (is_skip(document) && json_true(schema, "skippable"))
		result = 0;
	else
		result = check_value(&c, schema, document, NULL);
	while (patterns.count)
		regfree(&patterns.re[--patterns.count]);
	cJSON_Delete(schema);
	return result;
}

const char *const *schema_kinds(void)
{
	static const char *kinds[64];

	for (int i = 0; i < 63 && schema_texts[i].kind; i++)
		kinds[i] = schema_texts[i].kind;
	return kinds;
}
