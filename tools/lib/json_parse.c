#include "json.h"

#include "util.h"

#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* ---- the bytes -------------------------------------------------------------------------------------------------- */

/* The bytes that need a look, inside a string and outside of one. */
enum { IN_STRING = 1, OUTSIDE = 2 };

static const unsigned char special[256] = {
	[0] = IN_STRING | OUTSIDE, [1 ... 0x1f] = IN_STRING, ['\\'] = IN_STRING, ['"'] = IN_STRING | OUTSIDE, ['['] = OUTSIDE, [']'] = OUTSIDE,
	['{'] = OUTSIDE, ['}'] = OUTSIDE, [0x80 ... 0xff] = IN_STRING | OUTSIDE,
};

/* How many bytes from s on need none. The text ends with a NUL. */
static size_t plain_length(const char *s, int where)
{
	const char *p = s;

	while (!(special[(unsigned char)*p] & where))
		p++;
	return (size_t)(p - s);
}

/* What must hold before values are looked for: no NUL, no broken character, no deeper recursion than can be borne. */
static int prescan(const char *text, size_t len, struct error *err)
{
	bool in_string = false;
	int depth = 0;

	for (size_t i = 0; i < len;) {
		size_t n = plain_length(text + i, in_string ? IN_STRING : OUTSIDE);
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

/* ---- the values ------------------------------------------------------------------------------------------------- */

struct parser {
	const char *at;  /* where it fails, the place */
	const char *end; /* the NUL after the text */
};

static bool parse_value(struct parser *p, cJSON *value);

static void skip_space(struct parser *p)
{
	while (p->at < p->end && (unsigned char)*p->at <= ' ')
		p->at++;
}

/* The code of the \uXXXX at s, -1 if there is none. */
static long code_unit(const char *s)
{
	static const char hex[] = "0123456789abcdefABCDEF";
	long unit = 0;

	if (s[0] != '\\' || s[1] != 'u')
		return -1;
	for (int i = 2; i < 6; i++) {
		const char *digit = s[i] ? strchr(hex, s[i]) : NULL;

		if (!digit)
			return -1;
		unit = 16 * unit + (digit - hex < 16 ? digit - hex : digit - hex - 6);
	}
	return unit;
}

static char *put_character(char *out, long code)
{
	static const unsigned char lead[] = { 0, 0xc0, 0xe0, 0xf0 };
	int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;

	*out++ = (char)(lead[more] | code >> 6 * more);
	while (more-- > 0)
		*out++ = (char)(0x80 | (code >> 6 * more & 0x3f));
	return out;
}

/* Put what the escape at s stands for; returns its length, 0 if it is none. */
static size_t unescape_one(const char *s, char **out)
{
	static const char names[] = "bfnrt\"\\/", bytes[] = "\b\f\n\r\t\"\\/";
	const char *name = s[1] ? strchr(names, s[1]) : NULL;
	long unit = code_unit(s), low;

	if (name) {
		*(*out)++ = bytes[name - names];
		return 2;
	}
	if (unit < 0 || (unit >= 0xdc00 && unit < 0xe000))
		return 0;
	if (unit < 0xd800 || unit >= 0xe000) {
		*out = put_character(*out, unit);
		return 6;
	}
	low = code_unit(s + 6);
	if (low < 0xdc00 || low >= 0xe000)
		return 0;
	*out = put_character(*out, 0x10000 + ((unit & 0x3ff) << 10 | (low & 0x3ff)));
	return 12;
}

/* What stands before `to`, into out, which is as large: an escape is never shorter than what it stands for. */
static bool unescape(struct parser *p, const char *to, char *out)
{
	while (p->at < to) {
		size_t n = 1;

		if (*p->at != '\\')
			*out++ = *p->at;
		else if ((n = unescape_one(p->at, &out)) == 0)
			return false;
		p->at += n;
	}
	*out = 0;
	return true;
}

/* NULL if there is none. The caller frees. */
static char *parse_string(struct parser *p)
{
	bool quoted = *p->at == '"', plain = true;
	const char *to = ++p->at;
	char *string;

	for (; quoted && *to && *to != '"'; to++)
		if (*to == '\\') {
			plain = false;
			to += to[1] != 0;
		}
	if (!quoted || !*to)
		return NULL;
	string = xmalloc((size_t)(to - p->at) + 1);
	if (plain) {
		memcpy(string, p->at, (size_t)(to - p->at));
		string[to - p->at] = 0;
	} else if (!unescape(p, to, string)) {
		free(string);
		return NULL;
	}
	p->at = to + 1;
	return string;
}

/* The one copy of a key, kept to the end of the process: a tree has thousands of objects and a hundred different keys.
 * NULL once there are too many. */
static const char *shared_key(const char *key, size_t len)
{
	enum { PLACES = 1024, MOST = 512 };
	static char *keys[PLACES];
	static int count;
	uint32_t place = 2166136261u;

	for (size_t i = 0; i < len; i++)
		place = (place ^ (unsigned char)key[i]) * 16777619u;
	for (place = (place ^ place >> 15) % PLACES; keys[place]; place = (place + 1) % PLACES)
		if (strncmp(keys[place], key, len) == 0 && !keys[place][len])
			return keys[place];
	if (count == MOST)
		return NULL;
	count++;
	return keys[place] = xstrndup(key, len);
}

/* A key, behind so many others. An object with many keys is a list of names, which no other object has. */
static bool parse_key(struct parser *p, int others, cJSON *value)
{
	const char *key = NULL;
	size_t len = 0;

	if (others < 32 && *p->at == '"')
		len = plain_length(p->at + 1, IN_STRING);
	if (len > 0 && len <= 32 && p->at[len + 1] == '"')
		key = shared_key(p->at + 1, len);
	if (key) {
		value->string = (char *)(uintptr_t)key;
		value->type = cJSON_StringIsConst;
		p->at += len + 2;
	} else {
		value->string = parse_string(p);
	}
	return value->string != NULL;
}

static bool parse_number(struct parser *p, cJSON *value)
{
	static const char bytes[] = "0123456789+-.eE";
	double v;
	size_t length = decimal_length(p->at, &v);

	if (length == 0 || strchr(bytes, p->at[length])) {
		char *number = xstrndup(p->at, strspn(p->at, bytes)), *end;

		v = strtod(number, &end);
		length = (size_t)(end - number);
		free(number);
	}
	value->type |= cJSON_Number;
	value->valuedouble = v;
	value->valueint = v >= INT_MAX ? INT_MAX : v <= INT_MIN ? INT_MIN : (int)v;
	p->at += length;
	return length > 0;
}

static bool parse_name(struct parser *p, const char *name, int type, cJSON *value)
{
	if (!starts_with(p->at, name))
		return false;
	value->type |= type;
	p->at += strlen(name);
	return true;
}

static cJSON *add_child(cJSON *value)
{
	cJSON *child = xmalloc(sizeof(*child)), *first = value->child;

	*child = (cJSON){ .prev = first ? first->prev : child };
	if (first)
		first->prev = first->prev->next = child;
	else
		value->child = child;
	return child;
}

/* An array or object, by its closing bracket. Its elements are hung into it before they are read, so that one
 * cJSON_Delete frees all of a text that breaks off. */
static bool parse_container(struct parser *p, char close, cJSON *value)
{
	value->type |= close == '}' ? cJSON_Object : cJSON_Array;
	p->at++;
	skip_space(p);
	if (*p->at == close) {
		p->at++;
		return true;
	}
	for (int count = 0;; count++) {
		cJSON *child = add_child(value);

		if (close == '}') {
			if (!parse_key(p, count, child))
				return false;
			skip_space(p);
			if (*p->at != ':')
				return false;
			p->at++;
			skip_space(p);
		}
		if (!parse_value(p, child))
			return false;
		skip_space(p);
		if (*p->at != ',')
			break;
		p->at++;
		skip_space(p);
	}
	if (*p->at != close)
		return false;
	p->at++;
	return true;
}

static bool parse_value(struct parser *p, cJSON *value)
{
	switch (*p->at) {
	case '{':
		return parse_container(p, '}', value);
	case '[':
		return parse_container(p, ']', value);
	case '"':
		value->type |= cJSON_String;
		value->valuestring = parse_string(p);
		return value->valuestring != NULL;
	case 'n':
		return parse_name(p, "null", cJSON_NULL, value);
	case 'f':
		return parse_name(p, "false", cJSON_False, value);
	case 't':
		return parse_name(p, "true", cJSON_True, value);
	default:
		return (*p->at == '-' || (*p->at >= '0' && *p->at <= '9')) && parse_number(p, value);
	}
}

/* ---- what was read ---------------------------------------------------------------------------------------------- */

/* Length and first bytes of a key as a number: unequal numbers, unequal keys. */
static uint64_t key_head(const char *key)
{
	size_t len = strlen(key);
	uint64_t head = 0;

	memcpy(&head, key, len < 7 ? len : 7);
	return head ^ (uint64_t)len << 56;
}

struct key {
	uint64_t head;
	const char *name;
};

static int compare_keys(const void *a, const void *b)
{
	const struct key *x = a, *y = b;

	return x->head != y->head ? (x->head < y->head ? -1 : 1) : strcmp(x->name, y->name);
}

static int check_sorted_keys(const cJSON *object, size_t count, struct error *err)
{
	struct key *keys = xreallocarray(NULL, count, sizeof(*keys));
	const cJSON *child;
	int result = 0;

	count = 0;
	cJSON_ArrayForEach(child, object)
		keys[count++] = (struct key){ key_head(child->string), child->string };
	qsort(keys, count, sizeof(*keys), compare_keys);
	for (size_t i = 1; i < count && result == 0; i++)
		if (compare_keys(&keys[i - 1], &keys[i]) == 0)
			result = error_set(err, KM_EXIT_INPUT, "duplicate key '%s'", keys[i].name);
	free(keys);
	return result;
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
	struct parser p = { text, text + len };
	cJSON *value;
	bool whole;

	if (prescan(text, len, err) < 0)
		return NULL;
	value = xcalloc(1, sizeof(*value));
	if (starts_with(text, "\xef\xbb\xbf")) /* a byte order mark */
		p.at += 3;
	skip_space(&p);
	whole = parse_value(&p, value);
	if (whole)
		skip_space(&p);
	if (!whole || p.at < p.end)
		error_set(err, KM_EXIT_INPUT, "cannot parse at byte %zu", (size_t)((p.at < p.end ? p.at : p.end) - text));
	else if (check_values(value, err) == 0)
		return value;
	cJSON_Delete(value);
	return NULL;
}
