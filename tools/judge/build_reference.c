/* build_reference - the trusted half of build.h: a task's reference.c as a library that km-bench opens, or its reference.cu as
 * one that km-keeper-cuda opens.
 *
 * On cuda the runtime is linked into the library, with all its names kept inside: it then needs nothing that the loader would
 * have to find on the machine it runs on, and works in the device's primary context, as the keeper's own copy does.
 */
#include "build.h"

#include "cache.h"
#include "diagnostics.h"
#include "file.h"
#include "process.h"
#include "reference.h" /* so that make knows that its text, below, went into this file; reference_cuda.h is for nvcc alone */
#include "toolchain.h"
#include "util.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The text of the headers travels in the program, which may be far from its source. */
__asm__(".section .rodata\n"
	"reference_text: .incbin \"tools/judge/reference.h\"\n"
	"reference_text_end: .byte 0\n"
	"reference_cuda_text: .incbin \"tools/judge/reference_cuda.h\"\n"
	"reference_cuda_text_end: .byte 0\n"
	".previous\n");
extern const char reference_text[], reference_cuda_text[];

static const char cpu_flags[] = "-O2 -std=gnu11 -fPIC -shared -ffp-contract=off -w -Wl,--build-id=none";
static const char cuda_flags[] = "-O2 -std=c++17 -w -cudart static -shared -Xcompiler -fPIC,-fvisibility=hidden "
				 "-Xlinker -Bsymbolic,--exclude-libs,ALL,--build-id=none";

enum { PTX_ARCH = 80 }; /* what every device from that on compiles for itself */

struct reference {
	bool cuda;
	const char *source_name, *header_name, *header_text;
	struct buf source, header;
	struct toolchain tools;
	char *flags;
	char key[HASH_HEX + 8];
};

/* Machine code for the device, and PTX that newer ones, and those between, can use. */
static char *cuda_flags_for(const char *arch)
{
	int number = toolchain_arch_number(arch), ptx = number < PTX_ARCH ? number : PTX_ARCH;

	return xasprintf("%s -gencode arch=compute_%s,code=%s -gencode arch=compute_%d,code=compute_%d", cuda_flags, arch + strlen("sm_"), arch,
			 ptx, ptx);
}

static int find_tools(const struct build_options *options, struct reference *r, struct error *err)
{
	if ((r->cuda ? toolchain_find_cuda(options->arch, &r->tools, err) : toolchain_find(options->march, &r->tools, err)) < 0)
		return -1;
	r->flags = r->cuda ? cuda_flags_for(r->tools.arch) : xasprintf("%s -march=%s", cpu_flags, r->tools.march);
	return 0;
}

static int load(const struct task *task, const struct build_options *options, struct reference *r, struct error *err)
{
	char *path = task_path(task, r->source_name), hex[HASH_HEX + 1];
	int result = file_read(path, &r->source, err);
	struct buf all;

	free(path);
	if (result < 0 || find_tools(options, r, err) < 0)
		return -1;
	task_header(task, &r->header);
	buf_init(&all, 1 << 24);
	buf_printf(&all, "reference 3\n%s\n%s\n%s\n%zu %zu\n", r->tools.version, r->tools.machine, r->flags, r->source.len, r->header.len);
	buf_add(&all, r->source.data, r->source.len);
	buf_add(&all, r->header.data, r->header.len);
	buf_puts(&all, r->header_text);
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
	char *command = xasprintf("exec %s %s %s %s -o reference.so %s -lm", r->tools.compiler, r->cuda ? "-ccbin" : "-fdiagnostics-color=never",
				  r->cuda ? r->tools.host : "", r->flags, r->source_name);
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
	    write_into(folder, r->header_name, r->header_text, strlen(r->header_text), err) == 0 &&
	    write_into(folder, r->source_name, r->source.data, r->source.len, err) == 0 && run_compiler(r, folder, err) == 0)
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

static int build_in(const char *folder, const struct task *task, const struct reference *r, struct error *err)
{
	struct buf library;
	int result;

	buf_init(&library, BUILD_LIBRARY_MAX);
	result = compile_into(r, folder, &library, err);
	if (result == 0)
		result = keep(r, &library, err);
	else
		error_prefix(err, "'%s/%s'", task->folder, r->source_name);
	buf_release(&library);
	return result;
}

static int build(const struct task *task, const struct reference *r, struct error *err)
{
	char *folder;
	int result = -1;

	process_hold_signals();
	folder = process_scratch_make(err);
	if (folder) {
		result = build_in(folder, task, r, err);
		process_scratch_remove(folder);
	}
	process_release_signals();
	free(folder);
	return result;
}

char *build_reference(const struct task *task, const struct build_options *options, struct error *err)
{
	struct reference r;
	char *path = NULL;

	memset(&r, 0, sizeof(r));
	r.cuda = task->target == TASK_CUDA;
	r.source_name = r.cuda ? "reference.cu" : "reference.c";
	r.header_name = r.cuda ? "reference_cuda.h" : "reference.h";
	r.header_text = r.cuda ? reference_cuda_text : reference_text;
	buf_init(&r.source, BUILD_SOURCE_MAX);
	buf_init(&r.header, 1 << 20);
	if (load(task, options, &r, err) == 0 && ((!options->no_cache && find(&r)) || build(task, &r, err) == 0))
		path = cache_path(r.key, err);
	buf_release(&r.source);
	buf_release(&r.header);
	free(r.flags);
	return path;
}
