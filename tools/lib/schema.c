#include "schema.h"

#include "json.h"
#include "util.h"

#include <math.h>
#include <regex.h>
#include <stdint.h>
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

enum { MAX_REQUIRED = 64 };

/* What one schema asks of a value. A document has thousands of values and its schema a hundred, so a schema is read once. */
struct rule {
	const cJSON *schema;  /* what it was made of */
	const cJSON *type;    /* NULL: any */
	int types;            /* the types of cJSON among them */
	bool integer;         /* a number is enough if it is whole */
	const cJSON *options; /* NULL: any value */
	double low, high;
	double shortest, longest;
	const char *pattern;
	regex_t compiled; /* with a pattern */
	struct member *members;
	size_t count;
	uint64_t required; /* a bit for each of the first members */
	bool closed;       /* no other members */
	const struct rule *others, *items; /* NULL: anything */
	double most; /* elements */
	struct rule *next;
};

struct member {
	const char *name;
	const struct rule *rule;
};

struct rules {
	const cJSON *root; /* the schema document, for $ref */
	struct rule *all;
	struct error *err;
};

/* ---- a schema as rules ------------------------------------------------------------------------------------------ */

static const struct {
	const char *name;
	int types;
} type_names[] = {
	{ "object", cJSON_Object }, { "array", cJSON_Array }, { "string", cJSON_String }, { "number", cJSON_Number },
	{ "integer", 0 }, { "boolean", cJSON_False | cJSON_True }, { "null", cJSON_NULL },
};

static void add_type(struct rule *rule, const char *name)
{
	for (size_t i = 0; i < sizeof(type_names) / sizeof(type_names[0]); i++)
		if (strcmp(name, type_names[i].name) == 0)
			rule->types |= type_names[i].types;
	rule->integer |= strcmp(name, "integer") == 0;
}

static const struct rule *make_rule(struct rules *rules, const cJSON *schema);

/* Which member of the rule has this name; count if none has. Documents mostly hold their keys in the order of the schema,
 * so the search starts at `next`. */
static size_t member_of(const struct rule *rule, const char *name, size_t next)
{
	for (size_t i = next; i < rule->count; i++)
		if (strcmp(rule->members[i].name, name) == 0)
			return i;
	for (size_t i = 0; i < next; i++)
		if (strcmp(rule->members[i].name, name) == 0)
			return i;
	return rule->count;
}

static int make_members(struct rules *rules, struct rule *rule)
{
	const cJSON *properties = json_get(rule->schema, "properties"), *required = json_get(rule->schema, "required"), *item;
	size_t most = (size_t)cJSON_GetArraySize(properties) + (size_t)cJSON_GetArraySize(required);

	rule->members = xcalloc(most, sizeof(*rule->members));
	cJSON_ArrayForEach(item, properties) {
		const struct rule *inner = make_rule(rules, item);

		if (!inner)
			return -1;
		rule->members[rule->count++] = (struct member){ item->string, inner };
	}
	cJSON_ArrayForEach(item, required) {
		size_t i = member_of(rule, item->valuestring, 0);

		if (i == rule->count)
			rule->members[rule->count++] = (struct member){ item->valuestring, rule->others };
		if (i >= MAX_REQUIRED)
			return error_set(rules->err, KM_EXIT_ENVIRONMENT, "the required key '%s' comes too late in a schema", item->valuestring);
		rule->required |= (uint64_t)1 << i;
	}
	return 0;
}

static int fill_rule(struct rules *rules, struct rule *rule)
{
	const cJSON *schema = rule->schema, *others = json_get(schema, "additionalProperties"), *items = json_get(schema, "items"), *option;

	rule->type = json_get(schema, "type");
	if (cJSON_IsString(rule->type))
		add_type(rule, rule->type->valuestring);
	cJSON_ArrayForEach(option, rule->type)
		add_type(rule, option->valuestring);
	rule->options = json_get(schema, "enum");
	rule->low = json_number(schema, "minimum", -INFINITY);
	rule->high = json_number(schema, "maximum", INFINITY);
	rule->shortest = json_number(schema, "minLength", 0);
	rule->longest = json_number(schema, "maxLength", INFINITY);
	rule->most = json_number(schema, "maxItems", INFINITY);
	rule->closed = cJSON_IsFalse(others);
	if (cJSON_IsObject(others) && !(rule->others = make_rule(rules, others)))
		return -1;
	if (items && !(rule->items = make_rule(rules, items)))
		return -1;
	if (make_members(rules, rule) < 0)
		return -1;
	if (json_string(schema, "pattern") && regcomp(&rule->compiled, json_string(schema, "pattern"), REG_EXTENDED | REG_NOSUB) != 0)
		return error_set(rules->err, KM_EXIT_ENVIRONMENT, "bad pattern '%s' in a schema", json_string(schema, "pattern"));
	rule->pattern = json_string(schema, "pattern");
	return 0;
}

/* The rule of a schema, which a $ref may lead to many times, and from inside of it. */
static const struct rule *make_rule(struct rules *rules, const cJSON *schema)
{
	const char *ref = json_string(schema, "$ref");
	struct rule *rule = rules->all;

	if (ref)
		schema = json_get(json_get(rules->root, "definitions"), ref + strlen("#/definitions/"));
	while (rule && rule->schema != schema)
		rule = rule->next;
	if (rule)
		return rule;
	rule = xcalloc(1, sizeof(*rule));
	rule->schema = schema;
	rule->next = rules->all;
	rules->all = rule;
	return fill_rule(rules, rule) < 0 ? NULL : rule;
}

static void free_rules(struct rules *rules)
{
	while (rules->all) {
		struct rule *rule = rules->all;

		rules->all = rule->next;
		if (rule->pattern)
			regfree(&rule->compiled);
		free(rule->members);
		free(rule);
	}
}

/* ---- a document by the rules ------------------------------------------------------------------------------------ */

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

static int refuse(struct error *err, const struct place *at, const char *what, const char *detail)
{
	struct buf b;

	buf_init(&b, 1 << 12);
	name_place(at, &b);
	error_set(err, KM_EXIT_INPUT, "%s: %s%s%s%s", b.len ? b.data : "document", what, detail ? " '" : "", detail ? detail : "", detail ? "'" : "");
	buf_release(&b);
	return -1;
}

static bool is_whole(double v)
{
	return v == floor(v) && fabs(v) <= 9007199254740992.0;
}

static int refuse_type(const struct rule *rule, const cJSON *v, const struct place *at, struct error *err)
{
	const cJSON *option;
	struct buf b;

	if (cJSON_IsNumber(v) && rule->integer && is_whole(v->valuedouble))
		return 0;
	buf_init(&b, 1 << 10);
	if (cJSON_IsString(rule->type))
		buf_puts(&b, rule->type->valuestring);
	cJSON_ArrayForEach(option, rule->type)
		buf_printf(&b, "%s%s", b.len ? "' or '" : "", option->valuestring);
	refuse(err, at, "is not of type", b.data);
	buf_release(&b);
	return -1;
}

static int check_enum(const cJSON *options, const cJSON *v, const struct place *at, struct error *err)
{
	const cJSON *option;

	cJSON_ArrayForEach(option, options)
		if (cJSON_Compare(option, v, true))
			return 0;
	return refuse(err, at, "is none of the allowed values", cJSON_IsString(v) && strlen(v->valuestring) < 80 ? v->valuestring : NULL);
}

static int check_string(const struct rule *rule, const cJSON *v, const struct place *at, struct error *err)
{
	double length = (double)strlen(v->valuestring);

	if (length < rule->shortest)
		return refuse(err, at, "is too short", NULL);
	if (length > rule->longest)
		return refuse(err, at, "is too long", NULL);
	if (rule->pattern && regexec(&rule->compiled, v->valuestring, 0, NULL, 0) != 0)
		return refuse(err, at, "does not match", rule->pattern);
	return 0;
}

static int check_number(const struct rule *rule, const cJSON *v, const struct place *at, struct error *err)
{
	if (v->valuedouble < rule->low)
		return refuse(err, at, "is too small", NULL);
	if (v->valuedouble > rule->high)
		return refuse(err, at, "is too large", NULL);
	return 0;
}

static int check_value(const struct rule *rule, const cJSON *v, const struct place *at, struct error *err);

/* Sets *found to the members of the rule that are there, as far as it comes. */
static int check_members(const struct rule *rule, const cJSON *v, const struct place *at, uint64_t *found, struct error *err)
{
	const cJSON *item;
	size_t next = 0;

	*found = 0;
	cJSON_ArrayForEach(item, v) {
		size_t i = member_of(rule, item->string, next);
		const struct rule *inner = rule->others;
		struct place here = { at, item->string, 0 };

		if (i < rule->count) {
			inner = rule->members[i].rule;
			*found |= i < MAX_REQUIRED ? (uint64_t)1 << i : 0;
			next = i + 1;
		} else if (rule->closed) {
			return refuse(err, at, "has the unknown key", strlen(item->string) < 80 ? item->string : NULL);
		}
		if (inner && check_value(inner, item, &here, err) < 0)
			return -1;
	}
	return 0;
}

static int check_object(const struct rule *rule, const cJSON *v, const struct place *at, struct error *err)
{
	const cJSON *name;
	uint64_t found;
	int result = check_members(rule, v, at, &found, err);

	if ((found & rule->required) == rule->required)
		return result;
	cJSON_ArrayForEach(name, json_get(rule->schema, "required"))
		if (!json_get(v, name->valuestring))
			return refuse(err, at, "lacks the key", name->valuestring);
	return result;
}

static int check_array(const struct rule *rule, const cJSON *v, const struct place *at, struct error *err)
{
	const cJSON *item;
	struct place here = { at, NULL, 0 };

	cJSON_ArrayForEach(item, v) {
		if (here.index >= rule->most)
			return refuse(err, at, "has too many elements", NULL);
		if (rule->items && check_value(rule->items, item, &here, err) < 0)
			return -1;
		here.index++;
	}
	return 0;
}

static int check_value(const struct rule *rule, const cJSON *v, const struct place *at, struct error *err)
{
	if (rule->type && !(v->type & rule->types) && refuse_type(rule, v, at, err) < 0)
		return -1;
	if (rule->options && check_enum(rule->options, v, at, err) < 0)
		return -1;
	if (cJSON_IsString(v))
		return check_string(rule, v, at, err);
	if (cJSON_IsNumber(v))
		return check_number(rule, v, at, err);
	if (cJSON_IsObject(v))
		return check_object(rule, v, at, err);
	return cJSON_IsArray(v) ? check_array(rule, v, at, err) : 0;
}

static bool is_skip(const cJSON *document)
{
	return json_string(document, "skip") != NULL;
}

int schema_check(const char *kind, const cJSON *document, struct error *err)
{
	const struct schema_text *t = schema_texts;
	struct rules rules = { .err = err };
	const struct rule *rule;
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
	rules.root = schema;
	rule = make_rule(&rules, schema);
	if (rule && is_skip(document) && json_true(schema, "skippable"))
		result = 0;
	else
		result = rule ? check_value(rule, document, NULL, err) : -1;
	free_rules(&rules);
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
