#include "diagnostics.h"

#include "util.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_INPUT = 1 << 20, LINE_MAX_BYTES = 400, NOTES_KEPT = 2 };

/* ---- paths and bytes ------------------------------------------------------------------------------------------------ */

/* Where the path at s ends. */
static size_t path_length(const char *s)
{
	return strcspn(s, " \t\n:;,'\"");
}

/* The length of a scratch folder's name (process_scratch_make) with what leads to it, if the path of n bytes at s is in one. */
static size_t scratch_prefix(const char *s, size_t n)
{
	const char *found = s;

	while ((found = memmem(found, n - (size_t)(found - s), "/km-", 4)) != NULL) {
		if ((size_t)(found - s) + 11 <= n && found[10] == '/')
			return (size_t)(found - s) + 11;
		found++;
	}
	return 0;
}

/* How much of a path at s is the machine's: "/usr/lib/gcc/x86_64-linux-gnu/12/include/" of ".../immintrin.h". */
static size_t machine_prefix(const char *s)
{
	static const char *const folders[] = { "/usr/include/", "/usr/bin/", "/tmp/", "/km/" };
	const char *include;
	size_t n;

	for (size_t i = 0; i < sizeof(folders) / sizeof(*folders); i++)
		if (starts_with(s, folders[i]))
			return strlen(folders[i]);
	if (!starts_with(s, "/usr/") && !starts_with(s, "/opt/"))
		return 0;
	n = path_length(s);
	include = memmem(s, n, "/include/", 9);
	if (include)
		return (size_t)(include - s) + 9;
	if (!starts_with(s, "/usr/lib/"))
		return 0;
	while (n && s[n - 1] != '/')
		n--;
	return n;
}

/* A scratch folder is looked for once a path, not at each of its slashes: a path may be as long as the text. */
static void clean(const char *text, size_t len, struct buf *out)
{
	size_t path_end = 0;

	for (size_t i = 0; i < len;) {
		size_t skip = 0, n;

		if (text[i] == '/' && i >= path_end) {
			path_end = i + path_length(text + i);
			skip = scratch_prefix(text + i, path_end - i);
		}
		if (text[i] == '/' && !skip)
			skip = machine_prefix(text + i);
		if (skip) {
			i += skip;
			continue;
		}
		n = utf8_length((const unsigned char *)text + i, len - i);
		if (n == 0 || (n == 1 && (unsigned char)text[i] < 0x20 && text[i] != '\n' && text[i] != '\t') || text[i] == 0x7f)
			buf_putc(out, '?');
		else
			buf_add(out, text + i, n);
		i += n ? n : 1;
	}
}

/* ---- blocks --------------------------------------------------------------------------------------------------------- */

enum block { BLOCK_INSIDE, BLOCK_CONTEXT, BLOCK_ERROR, BLOCK_WARNING, BLOCK_NOTE, BLOCK_NOISE };

static bool holds(const char *line, size_t len, const char *word)
{
	return memmem(line, len, word, strlen(word)) != NULL;
}

static bool is_noise(const char *line, size_t len)
{
	static const char *const beginnings[] = { "collect2: ", "compilation terminated", "cc1: all warnings", "cc1plus: all warnings",
						  "Remark: The warnings can be", "ptxas info ", "ptxas fatal   : Ptx assembly aborted" };

	for (size_t i = 0; i < sizeof(beginnings) / sizeof(*beginnings); i++)
		if (starts_with(line, beginnings[i]))
			return true;
	return holds(line, len, " detected in the compilation of ");
}

/* What a line begins. The linker has errors without that word. */
static enum block kind_of_line(const char *line, size_t len)
{
	size_t digits = strspn(line, "0123456789");

	if (len == 0 || line[0] == ' ' || line[0] == '\t' || (digits && starts_with(line + digits, " |")))
		return BLOCK_INSIDE;
	if (is_noise(line, len))
		return BLOCK_NOISE;
	if (starts_with(line, "In file included from") || holds(line, len, ": In function ") || holds(line, len, ": in function ") ||
	    holds(line, len, ": At top level") || holds(line, len, "Assembler messages"))
		return BLOCK_CONTEXT;
	if (holds(line, len, "error: ") || holds(line, len, "Error: ") || holds(line, len, "undefined reference"))
		return BLOCK_ERROR;
	if (holds(line, len, "warning: ") || holds(line, len, "Warning: ") || holds(line, len, "): warning #") || starts_with(line, "ptxas warning"))
		return BLOCK_WARNING;
	return holds(line, len, "note: ") || holds(line, len, "): note #") ? BLOCK_NOTE : BLOCK_ERROR;
}

struct trimmer {
	struct buf *out;
	size_t most;
	struct buf block; /* the error being read, with its notes */
	struct buf context;
	bool wanted;      /* we are in an error, not in a warning */
	size_t kept, dropped;
};

/* nvcc's front end shows every step of an instantiation and every function that did not fit, some of them pages long. */
static bool is_flood(const struct buf *block)
{
	return memmem(block->data, block->len, "detected during", 15) || memmem(block->data, block->len, "): note #", 9);
}

static void add_cut(struct buf *out, const char *line, size_t len)
{
	if (len > LINE_MAX_BYTES)
		buf_printf(out, "%.*s...\n", LINE_MAX_BYTES, line);
	else
		buf_add(out, line, len + 1);
}

/* Of instantiations keep the first and the last step, of notes two, without the lines that they point at. */
static void thin_out(struct buf *block)
{
	bool steps = false, noted = false;
	size_t notes = 0, left_out = 0;
	struct buf out;

	buf_init(&out, block->ceiling);
	for (const char *p = block->data, *end = p + block->len, *next; p < end; p = next) {
		size_t n = strcspn(p, "\n");
		bool step = steps && starts_with(p, "            ");

		next = p + n + 1;
		if (step && starts_with(next, "            ") && left_out++ > 0)
			continue;
		if (step && left_out > 2)
			buf_printf(&out, "            (%zu more)\n", left_out - 1);
		if (!step)
			left_out = 0;
		steps = step || holds(p, n, "detected during:");
		noted = holds(p, n, "): note #") || (noted && (p[0] == ' ' || n == 0));
		notes += holds(p, n, "): note #");
		if (n > 0 && (!noted || (holds(p, n, "): note #") && notes <= NOTES_KEPT)))
			add_cut(&out, p, n);
	}
	buf_clear(block);
	buf_add(block, out.data, out.len);
	buf_release(&out);
}

static void end_block(struct trimmer *t)
{
	if (t->block.len == 0)
		return;
	if (is_flood(&t->block))
		thin_out(&t->block);
	if (t->dropped == 0 && t->out->len + t->block.len <= t->most)
		t->kept++;
	else if (t->kept > 0 || t->dropped > 0)
		t->dropped++;
	else
		t->kept++;
	if (t->dropped == 0) {
		size_t room = t->most - t->out->len;

		buf_add(t->out, t->block.data, t->block.len < room ? t->block.len : room);
	}
	buf_clear(&t->block);
}

static void take_line(struct trimmer *t, const char *line, size_t len)
{
	enum block kind = kind_of_line(line, len);

	switch (kind) {
	case BLOCK_ERROR:
	case BLOCK_WARNING:
		end_block(t);
		t->wanted = kind == BLOCK_ERROR;
		if (t->wanted)
			buf_add(&t->block, t->context.data, t->context.len);
		if (t->wanted)
			buf_clear(&t->context);
		break;
	case BLOCK_CONTEXT:
		end_block(t);
		t->wanted = false;
		if (!starts_with(line, "In file included"))
			buf_clear(&t->context);
		buf_add(&t->context, line, len);
		buf_putc(&t->context, '\n');
		return;
	case BLOCK_NOISE:
		end_block(t);
		t->wanted = false;
		return;
	default:
		break;
	}
	if (t->wanted) {
		buf_add(&t->block, line, len);
		buf_putc(&t->block, '\n');
	}
}

/* Cut what may be the first part of a character. */
static void end_at_character(struct buf *b)
{
	size_t n = b->len, back = 0;

	while (back < 3 && back < n && ((unsigned char)b->data[n - 1 - back] & 0xc0) == 0x80)
		back++;
	if (back < n && utf8_length((unsigned char *)b->data + n - 1 - back, back + 1) != back + 1)
		b->len = n - 1 - back;
	b->data[b->len] = 0;
}

void diagnostics_trim(const char *text, size_t len, size_t most, struct buf *out)
{
	struct trimmer t = { .out = out, .most = most - 40 };
	struct buf cleaned;

	buf_init(&cleaned, 4 * MAX_INPUT);
	buf_init(&t.block, 4 * MAX_INPUT);
	buf_init(&t.context, 1 << 16);
	clean(text, len < MAX_INPUT ? len : MAX_INPUT, &cleaned);
	for (const char *p = cleaned.data, *end = p + cleaned.len; p < end;) {
		size_t n = strcspn(p, "\n");

		take_line(&t, p, n);
		p += n + 1;
	}
	end_block(&t);
	end_at_character(out);
	if (out->len && out->data[out->len - 1] != '\n')
		buf_putc(out, '\n');
	if (t.dropped)
		buf_printf(out, "(%zu more)\n", t.dropped);
	buf_release(&cleaned);
	buf_release(&t.block);
	buf_release(&t.context);
}

char *diagnostics_headline(const char *trimmed)
{
	const char *error = strstr(trimmed, "rror: "), *line;

	if (!error)
		error = strstr(trimmed, "undefined reference");
	if (!error)
		return xstrndup(trimmed, strcspn(trimmed, "\n"));
	for (line = error; line > trimmed && line[-1] != '\n'; line--)
		;
	return xstrndup(line, strcspn(line, "\n"));
}
