/* build_reference - the trusted half of build.h: a task's reference.c as a library that km-bench opens. */
#include "build.h"

#include "cache.h"
#include "diagnostics.h"
#include "file.h"
#include "process.h"
#include "reference.h" /* so that make knows that its text, below, went into this file */
#include "toolchain.h"
#include "util.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The text of reference.h travels in the program, which may be far from its source. */
__asm__(".section .rodata\n"
	"reference_text: .incbin \"tools/judge/reference.h\"\n"
	"reference_text_end: .byte 0\n"
	".previous\n");
extern const char reference_text[], reference_text_end[];

static const char flags[] = "-O2 -std=gnu11 -fPIC -shared -ffp-contract=off -w -Wl,--build-id=none";

struct reference {
	struct buf source, header;
	struct toolchain tools;
	char key[HASH_HEX + 8];
};

static int load(const struct task *task, const struct build_options *options, struct reference *r, struct error *err)
{
	char *path = task_path(task, "reference.c"), hex[HASH_HEX + 1];
	int result = file_read(path, &r->source, err);
	struct buf all;

	free(path);
	if (result < 0 || toolchain_find(options->march, &r->tools, err) < 0)
		return -1;
	task_header(task, &r->header);
	buf_init(&all, 1 << 24);
	buf_printf(&all, "reference 2\n%s\n%s\n%s\n%s\n%zu %zu\n", r->tools.version, r->tools.march, r->tools.machine, flags, r->source.len,
		   r->header.len);
	buf_add(&all, r->source.data, r->source.len);
	buf_add(&all, r->header.data, r->header.len);
	buf_puts(&all, reference_text);
	hash_hex(all.data, all.len, hex);
	buf_release(&all);
	snprintf(r->key, sizeof(r->key), "%s.ref", hex);
	return 0;
}

static int write_into(const char *folder, const char *name, const char *data, size_t len, struct error *err)
{
	char *path = xasprintf("%s/%s", folder, name);
	int result = file_write(path, data, len, err);

	free(path);
	return result;
}

static int run_compiler(const struct reference *r, const char *folder, struct error *err)
{
	char *command = xasprintf("exec %s %s -march=%s -fdiagnostics-color=never -o reference.so reference.c -lm", r->tools.compiler, flags,
				  r->tools.march);
	const char *const argv[] = { "/bin/sh", "-c", command, NULL };
	struct process_spec spec = { .argv = argv, .folder = folder, .output_ceiling = 1 << 16, .diagnostics_ceiling = 1 << 18, .seconds = 120 };
	struct process_result result;
	int ended = process_run(&spec, &result, err);
	struct buf text;

	if (ended == 0 && result.exit_code != 0) {
		char *headline;

		buf_init(&text, BUILD_DIAGNOSTICS_MAX);
		diagnostics_trim(result.diagnostics.data, result.diagnostics.len, BUILD_DIAGNOSTICS_MAX, &text);
		headline = diagnostics_headline(text.data);
		ended = error_set(err, KM_EXIT_INPUT, "%s", headline[0] ? headline : "the compiler failed");
		free(headline);
		buf_release(&text);
	}
	process_result_release(&result);
	free(command);
	return ended;
}

static int compile_into(const struct reference *r, const char *folder, struct buf *library, struct error *err)
{
	char *path = xasprintf("%s/reference.so", folder);
	int result = -1;

	if (write_into(folder, "task.h", r->header.data, r->header.len, err) == 0 &&
	    write_into(folder, "reference.h", reference_text, (size_t)(reference_text_end - reference_text), err) == 0 &&
	    write_into(folder, "reference.c", r->source.data, r->source.len, err) == 0 && run_compiler(r, folder, err) == 0)
		result = file_read(path, library, err);
	free(path);
	return result;
}

/* A library that opens into km-bench itself must be whole: its hash stands behind it, where the loader does not look. */
static int keep(const struct reference *r, struct buf *library, struct error *err)
{
	char hex[HASH_HEX + 1];

	hash_hex(library->data, library->len, hex);
	if (!buf_add(library, hex, HASH_HEX))
		return error_set(err, KM_EXIT_INPUT, "its library is too large");
	return cache_put(r->key, library->data, library->len, err);
}

static bool find(const struct reference *r)
{
	char hex[HASH_HEX + 1];
	struct buf found;
	bool whole;

	buf_init(&found, BUILD_LIBRARY_MAX);
	whole = cache_get(r->key, &found) && found.len > HASH_HEX;
	if (whole) {
		hash_hex(found.data, found.len - HASH_HEX, hex);
		whole = memcmp(found.data + found.len - HASH_HEX, hex, HASH_HEX) == 0;
	}
	buf_release(&found);
	return whole;
}

static int build(const struct task *task, const struct reference *r, struct error *err)
{
	char *folder = process_scratch_make(err);
	struct buf library;
	int result;

	if (!folder)
		return -1;
	buf_init(&library, BUILD_LIBRARY_MAX);
	result = compile_into(r, folder, &library, err);
	if (result == 0)
		result = keep(r, &library, err);
	else
		error_prefix(err, "'%s/reference.c'", task->folder);
	buf_release(&library);
	process_scratch_remove(folder);
	free(folder);
	return result;
}

char *build_reference(const struct task *task, const struct build_options *options, struct error *err)
{
	struct reference r;
	char *path = NULL;

	memset(&r, 0, sizeof(r));
	buf_init(&r.source, BUILD_SOURCE_MAX);
	buf_init(&r.header, 1 << 20);
	if (load(task, options, &r, err) == 0 && ((!options->no_cache && find(&r)) || build(task, &r, err) == 0))
		path = cache_path(r.key, err);
	buf_release(&r.source);
	buf_release(&r.header);
	return path;
}
