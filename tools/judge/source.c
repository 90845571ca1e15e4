#include "source.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

/* The text is read through peek(), which skips spliced lines (backslash, newline), except in raw strings. */
struct lexer {
	const char *p, *end;
	struct buf *out;
	bool line_start; /* nothing but white space since the newline */
	bool directive;  /* inside a directive */
	bool space;      /* white space since the last token of a directive */
};

static void skip_splices(struct lexer *l)
{
	while (l->end - l->p >= 2 && l->p[0] == '\\') {
		if (l->p[1] == '\n')
			l->p += 2;
		else if (l->p[1] == '\r' && l->end - l->p >= 3 && l->p[2] == '\n')
			l->p += 3;
		else
			return;
	}
}

/* The next character, or -1; `ahead` further ones are not consumed either. */
static int peek(struct lexer *l, int ahead)
{
	const char *kept;
	int c;

	skip_splices(l);
	kept = l->p;
	while (ahead-- > 0 && l->p < l->end) {
		l->p++;
		skip_splices(l);
	}
	c = l->p < l->end ? (unsigned char)*l->p : -1;
	l->p = kept;
	return c;
}

static int next(struct lexer *l)
{
	int c = peek(l, 0);

	if (c >= 0)
		l->p++;
	return c;
}

static bool is_word(int c)
{
	return c >= 0 && (isalnum(c) || c == '_' || c == '$' || c >= 0x80);
}

static void skip_comment(struct lexer *l)
{
	next(l);
	if (next(l) == '/') {
		while (peek(l, 0) >= 0 && peek(l, 0) != '\n')
			next(l);
		return;
	}
	while (peek(l, 0) >= 0 && !(peek(l, 0) == '*' && peek(l, 1) == '/'))
		next(l);
	next(l);
	next(l);
}

static void take_literal(struct lexer *l)
{
	int quote = next(l), c;

	buf_putc(l->out, (char)quote);
	while ((c = peek(l, 0)) >= 0 && c != '\n') {
		buf_putc(l->out, (char)next(l));
		if (c == quote)
			return;
		if (c == '\\' && peek(l, 0) >= 0 && peek(l, 0) != '\n')
			buf_putc(l->out, (char)next(l));
	}
}

/* R"delimiter( ... )delimiter", from the quote on; spliced lines are text here. */
static void take_raw_string(struct lexer *l)
{
	char closing[24] = ")";
	const char *p = l->p + 1, *found;
	size_t n = 0;

	while (p + n < l->end && p[n] != '(' && n < 16)
		n++;
	if (p + n >= l->end || p[n] != '(') {
		take_literal(l);
		return;
	}
	memcpy(closing + 1, p, n);
	closing[n + 1] = '"';
	found = memmem(p, (size_t)(l->end - p), closing, n + 2);
	p = found ? found + n + 2 : l->end;
	buf_add(l->out, l->p, (size_t)(p - l->p));
	l->p = p;
}

static void take_word(struct lexer *l)
{
	size_t start = l->out->len;
	bool number = isdigit(peek(l, 0)) || peek(l, 0) == '.';
	const char *word;

	for (;;) {
		int c = peek(l, 0);
		char before = l->out->len > start ? l->out->data[l->out->len - 1] : 0;
		bool exponent = number && (c == '+' || c == '-') && before && strchr("eEpP", before);

		if (!is_word(c) && !(number && (c == '.' || exponent)))
			break;
		buf_putc(l->out, (char)next(l));
	}
	word = l->out->data + start;
	if (peek(l, 0) == '\'' && (!strcmp(word, "L") || !strcmp(word, "u") || !strcmp(word, "U") || !strcmp(word, "u8")))
		take_literal(l);
	if (peek(l, 0) != '"')
		return;
	if (!strcmp(word, "R") || !strcmp(word, "LR") || !strcmp(word, "uR") || !strcmp(word, "UR") || !strcmp(word, "u8R"))
		take_raw_string(l);
	else if (!strcmp(word, "L") || !strcmp(word, "u") || !strcmp(word, "U") || !strcmp(word, "u8"))
		take_literal(l);
}

/* The longest operator; two that merely touch stay two tokens. */
static void take_operator(struct lexer *l)
{
	static const char *const longest[] = {
		"%:%:", "...", "<<=", ">>=", "->*", "->", "++", "--", "<<", ">>", "<=", ">=", "==", "!=", "&&", "||", "*=", "/=", "%=",
		"+=", "-=", "&=", "^=", "|=", "##", "::", ".*", "%:", "<:", ":>", "<%", "%>" };

	for (size_t i = 0; i < sizeof(longest) / sizeof(*longest); i++) {
		int n = 0;

		while (longest[i][n] && peek(l, n) == longest[i][n])
			n++;
		if (longest[i][n])
			continue;
		while (n-- > 0)
			buf_putc(l->out, (char)next(l));
		return;
	}
	buf_putc(l->out, (char)next(l));
}

static void end_line(struct lexer *l)
{
	if (l->directive)
		buf_putc(l->out, '\n');
	l->directive = l->space = false;
	l->line_start = true;
}

/* Start a token: what stands before it. */
static void begin_token(struct lexer *l, int c)
{
	char last = l->out->len ? l->out->data[l->out->len - 1] : '\n';

	if (l->line_start && (c == '#' || (c == '%' && peek(l, 1) == ':'))) {
		if (last != '\n')
			buf_putc(l->out, '\n');
		l->directive = true;
	} else if (last != '\n' && (!l->directive || l->space)) {
		buf_putc(l->out, ' ');
	}
	l->line_start = l->space = false;
}

void source_normalise(const char *text, size_t len, struct buf *out)
{
	struct lexer l = { .p = text, .end = text + len, .out = out, .line_start = true };
	int c;

	while ((c = peek(&l, 0)) >= 0) {
		if (c == '\n') {
			next(&l);
			end_line(&l);
		} else if (isspace(c) || c == 0) {
			next(&l);
			l.space = true;
		} else if (c == '/' && (peek(&l, 1) == '/' || peek(&l, 1) == '*')) {
			skip_comment(&l);
			l.space = true;
		} else {
			begin_token(&l, c);
			if (c == '"' || c == '\'')
				take_literal(&l);
			else if (is_word(c) || (c == '.' && isdigit(peek(&l, 1))))
				take_word(&l);
			else
				take_operator(&l);
		}
	}
	end_line(&l);
}

/* ---- rules ------------------------------------------------------------------------------------------------------ */

static void refuse(struct source_facts *facts, const char *rule, const char *message, const char *detail, size_t len)
{
	if (facts->rule[0])
		return;
	snprintf(facts->rule, sizeof(facts->rule), "%s", rule);
	snprintf(facts->message, sizeof(facts->message), "%s: %.*s", message, (int)(len < 80 ? len : 80), detail);
}

static bool word_is(const char *p, size_t len, const char *word)
{
	return len == strlen(word) && memcmp(p, word, len) == 0;
}

/* The header name of an include directive: "name" or <name>. The text may hold spaces between its tokens. */
static void check_include(const char *p, const char *end, struct source_facts *facts)
{
	char name[128], closing = *p == '<' ? '>' : '"';
	bool quoted = p < end && *p == '"';
	size_t n = 0;

	if (quoted || (p < end && *p == '<'))
		for (p++; p < end && *p != closing && n < sizeof(name) - 1; p++)
			if (*p != ' ')
				name[n++] = *p;
	name[n] = 0;
	if (n == 0 || p >= end)
		refuse(facts, "include", "an include must name task.h or a system header", "#include", 8);
	else if (name[0] == '/' || strstr(name, "..") || strchr(name, '\\'))
		refuse(facts, "include", "only task.h and system headers may be included", name, n);
	else if (quoted && strcmp(name, "task.h") != 0)
		refuse(facts, "include", "only \"task.h\" and system headers in angle brackets may be included", name, n);
}

static void check_directive(const char *p, const char *end, struct source_facts *facts)
{
	const char *word;
	size_t len;

	p += *p == '#' ? 1 : 2;
	while (p < end && *p == ' ')
		p++;
	for (word = p; p < end && (isalnum((unsigned char)*p) || *p == '_'); p++)
		;
	len = (size_t)(p - word);
	while (p < end && *p == ' ')
		p++;
	if (word_is(word, len, "include") || word_is(word, len, "include_next") || word_is(word, len, "import"))
		check_include(p, end, facts);
	else if (word_is(word, len, "embed"))
		refuse(facts, "incbin", "no file may be embedded", word, len);
	else if ((word_is(word, len, "line") && strspn(p, "0123456789") != (size_t)(end - p)) || (len && isdigit((unsigned char)*word) && p < end))
		refuse(facts, "include", "a line directive may hold a number alone", word, len);
}

static void check_words(const struct buf *text, struct source_facts *facts)
{
	static const char *const words[] = { "incbin", ".include" };

	for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
		if (memmem(text->data, text->len, words[i], strlen(words[i])))
			refuse(facts, "incbin", "the assembler may not read files", words[i], strlen(words[i]));
}

void source_scan(const char *text, size_t len, struct source_facts *facts)
{
	struct buf b;

	memset(facts, 0, sizeof(*facts));
	buf_init(&b, 4 * len + 64);
	source_normalise(text, len, &b);
	facts->has_code = b.len > 0;
	hash_hex(b.data, b.len, facts->sha256);
	for (const char *p = b.data, *end = b.data + b.len; p < end;) {
		const char *newline = memchr(p, '\n', (size_t)(end - p));
		const char *line_end = newline ? newline : end;

		if (*p == '#' || (*p == '%' && line_end - p > 1 && p[1] == ':'))
			check_directive(p, line_end, facts);
		p = line_end + 1;
	}
	check_words(&b, facts);
	buf_release(&b);
}
