#include "build.h"

#include "cache.h"
#include "diagnostics.h"
#include "elf.h"
#include "imports.h"
#include "lease.h"
#include "process.h"
#include "sandbox.h"
#include "source.h"
#include "toolchain.h"
#include "util.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	RULES_VERSION = 4, /* part of the cache key: raise it when what is refused changes */
	MEMORY_MAX_GB = 4,
	STDERR_MAX = 1 << 20,
	PROCESSES_MAX = 64,
};

static const char *const status_names[] = { "BUILT", "COMPILE_ERROR", "REJECTED", "NO_CODE" };

static const char *const exported[] = { "km_run", "km_workspace", "km_init", NULL };

static const char version_script[] = "{ global: km_run; km_workspace; km_init; local: *; };\n";

/* -O3 and nothing that changes results; no protector and no control-flow marks, whatever the distribution's default. */
static const char compile_flags[] = "-O3 -std=gnu11 -fPIC -fvisibility=hidden -fno-math-errno -fno-stack-protector -fno-ident "
#if defined(__x86_64__)
				    "-fcf-protection=none "
#endif
				    "-U_FORTIFY_SOURCE -Werror=implicit-function-declaration";

static const char link_flags[] = "-shared -nostartfiles -s -Wl,-z,relro,-z,now,-z,defs -Wl,--build-id=none -Wl,--hash-style=sysv "
				 "-Wl,--as-needed -Wl,--defsym=__dso_handle=0 -Wl,--version-script=kernel.map";

const char *build_status_name(enum build_status status)
{
	return status_names[status];
}

/* ---- the verdict ---------------------------------------------------------------------------------------------------- */

static void decide(struct build *b, enum build_status status, const char *rule, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

static void decide(struct build *b, enum build_status status, const char *rule, const char *format, ...)
{
	va_list args;

	b->status = status;
	snprintf(b->rule, sizeof(b->rule), "%s", rule);
	free(b->message);
	va_start(args, format);
	b->message = xvasprintf(format, args);
	va_end(args);
}

static void build_init(struct build *b)
{
	memset(b, 0, sizeof(*b));
	b->message = xstrdup("");
	b->diagnostics = xstrdup("");
	b->compiler = xstrdup("");
	b->flags = xstrdup("");
	buf_init(&b->library, BUILD_LIBRARY_MAX);
}

void build_release(struct build *b)
{
	free(b->message);
	free(b->diagnostics);
	free(b->compiler);
	free(b->flags);
	free(b->cache_path);
	buf_release(&b->library);
	memset(b, 0, sizeof(*b));
}

/* ---- what is asked of the compiler ------------------------------------------------------------------------------------ */

struct job {
	const struct task *task;
	const char *source;
	size_t len;
	const struct build_options *options;
	struct toolchain tools;
	char *libraries;  /* "-lopenblas -lm" */
	char **names;     /* of the allowed libraries, ends with NULL */
	size_t name_count;
	struct buf header; /* task.h */
	char key[HASH_HEX + 4]; /* cache entry: "<sha256>.so" */
};

static bool is_library_name(const char *s)
{
	if (!s[0] || strlen(s) > 60)
		return false;
	for (; *s; s++)
		if (!isalnum((unsigned char)*s) && !strchr("_+-", *s))
			return false;
	return true;
}

static int add_libraries(struct job *job, const char *const *names, struct buf *flags, struct error *err)
{
	for (; names && *names; names++) {
		if (!is_library_name(*names))
			return error_set(err, KM_EXIT_USAGE, "'%s' is no name of a library", *names);
		buf_printf(flags, "-l%s ", *names);
		job->names = xreallocarray(job->names, job->name_count + 2, sizeof(*job->names));
		job->names[job->name_count++] = xstrdup(*names);
		job->names[job->name_count] = NULL;
	}
	return 0;
}

static void make_key(struct job *job)
{
	char source[HASH_HEX + 1], hex[HASH_HEX + 1];
	struct buf b;

	hash_hex(job->source, job->len, source);
	buf_init(&b, 1 << 22);
	buf_printf(&b, "kernel %d\n%s\n%s\n%s\n%s\n%s\n%s\n%s\n%s\n", RULES_VERSION, source, job->tools.version, job->tools.march,
		   job->tools.machine, compile_flags, link_flags, job->libraries, version_script);
	buf_add(&b, job->header.data, job->header.len);
	hash_hex(b.data, b.len, hex);
	buf_release(&b);
	snprintf(job->key, sizeof(job->key), "%s.so", hex);
}

static int job_init(struct job *job, const struct task *task, const char *source, size_t len, const struct build_options *options,
		    struct error *err)
{
	struct buf flags;
	int result;

	memset(job, 0, sizeof(*job));
	job->task = task;
	job->source = source;
	job->len = len;
	job->options = options;
	buf_init(&job->header, 1 << 20);
	task_header(task, &job->header);
	buf_init(&flags, 1 << 16);
	result = add_libraries(job, (const char *const *)task->libraries, &flags, err);
	if (result == 0)
		result = add_libraries(job, options->libraries, &flags, err);
	buf_puts(&flags, "-lm");
	job->libraries = buf_take(&flags);
	buf_release(&flags);
	if (result == 0)
		result = toolchain_find(options->march, &job->tools, err);
	if (result == 0)
		make_key(job);
	return result;
}

static void job_release(struct job *job)
{
	for (size_t i = 0; i < job->name_count; i++)
		free(job->names[i]);
	free(job->names);
	free(job->libraries);
	buf_release(&job->header);
}

/* ---- running it ------------------------------------------------------------------------------------------------------- */

/* The four results come over stdout behind their lengths, so that the sandbox needs no place to write to. Nothing else may be
 * written there: .print has the assembler say what the source likes, other lengths for one. */
static char *make_script(const struct job *job)
{
	return xasprintf("set -e\n"
			 "%s %s -march=%s -fdiagnostics-color=never -fmessage-length=0 -fmax-errors=20 -MD -MT x -MF \"$TMPDIR/c.d\" "
			 "-S -o \"$TMPDIR/kernel.s\" kernel.c >&2\n"
			 "%s \"-Wa,--MD,$TMPDIR/s.d\" -c -o \"$TMPDIR/kernel.o\" \"$TMPDIR/kernel.s\" >&2\n"
			 "%s %s -o \"$TMPDIR/kernel.so\" \"$TMPDIR/kernel.o\" %s >&2\n"
			 "cd \"$TMPDIR\"\n"
			 "for f in c.d s.d kernel.o kernel.so; do wc -c <$f; done\n"
			 "cat c.d s.d kernel.o kernel.so\n",
			 job->tools.compiler, compile_flags, job->tools.march, job->tools.compiler, job->tools.compiler, link_flags,
			 job->libraries);
}

static int run_compiler(const struct job *job, struct process_result *r, struct error *err)
{
	struct sandbox_file files[] = { { -1, "kernel.c" }, { -1, "task.h" }, { -1, "kernel.map" } };
	char *script = make_script(job);
	const char *const argv[] = { "/bin/sh", "-c", script, NULL };
	struct sandbox_spec spec = {
		.argv = argv, .files = files, .file_count = 3, .no_sandbox = job->options->no_sandbox,
		.limits = { .wall_seconds = job->task->compile_seconds, .cpu_seconds = job->task->compile_seconds + 1,
			    .memory_bytes = (size_t)MEMORY_MAX_GB << 30, .address_bytes = (size_t)MEMORY_MAX_GB << 30,
			    .file_bytes = BUILD_LIBRARY_MAX, .processes = PROCESSES_MAX },
	};
	int result = -1;

	files[0].fd = process_memfd("kernel.c", job->source, job->len, err);
	files[1].fd = files[0].fd < 0 ? -1 : process_memfd("task.h", job->header.data, job->header.len, err);
	files[2].fd = files[1].fd < 0 ? -1 : process_memfd("kernel.map", version_script, strlen(version_script), err);
	if (files[2].fd >= 0)
		result = sandbox_run(&spec, NULL, 0, BUILD_LIBRARY_MAX + (1 << 20), STDERR_MAX, r, err);
	else
		process_result_init(r, 1, 1);
	for (int i = 0; i < 3; i++)
		if (files[i].fd >= 0)
			close(files[i].fd);
	free(script);
	return result;
}

/* The results, as parts of the compiler's output. */
struct made {
	struct {
		const char *data;
		size_t len;
	} headers, assembled, object, library;
};

static bool split_output(const struct buf *output, struct made *made)
{
	unsigned long n[4];
	int used = 0;
	const char *p;
	size_t left;

	if (sscanf(output->data, "%lu\n%lu\n%lu\n%lu%n", &n[0], &n[1], &n[2], &n[3], &used) != 4 || output->data[used] != '\n')
		return false;
	p = output->data + used + 1;
	left = output->len - (size_t)used - 1;
	for (int i = 0; i < 4; i++) {
		if (n[i] > left)
			return false;
		left -= n[i];
	}
	made->headers.data = p;
	made->headers.len = n[0];
	made->assembled.data = p += n[0];
	made->assembled.len = n[1];
	made->object.data = p += n[1];
	made->object.len = n[2];
	made->library.data = p + n[2];
	made->library.len = n[3];
	return left == 0;
}

/* ---- looking at what it made -------------------------------------------------------------------------------------------- */

/* Visit the files of a make rule "x: a b \ c"; false if visit refuses one. */
static bool each_dependency(const char *text, size_t len, bool (*visit)(const char *path, size_t len, void *context), void *context)
{
	const char *p = memchr(text, ':', len), *end = text + len;

	while (p && p < end) {
		const char *start;

		p++;
		while (p < end && (isspace((unsigned char)*p) || *p == '\\'))
			p++;
		for (start = p; p < end && !isspace((unsigned char)*p); p++)
			;
		if (p > start && !visit(start, (size_t)(p - start), context))
			return false;
	}
	return true;
}

static bool is_ours(const char *path, size_t len)
{
	static const char *const places[] = { "/usr/include/", "/usr/lib/gcc/" };

	if ((len == 8 && memcmp(path, "kernel.c", 8) == 0) || (len == 6 && memcmp(path, "task.h", 6) == 0))
		return true;
	for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++)
		if (len > strlen(places[i]) && memcmp(path, places[i], strlen(places[i])) == 0 && !memmem(path, len, "/../", 4))
			return true;
	return false;
}

static bool is_header(const char *path, size_t len, void *context)
{
	if (is_ours(path, len))
		return true;
	decide(context, BUILD_REJECTED, "include", "only task.h and system headers may be included: %.*s", len < 80 ? (int)len : 80, path);
	return false;
}

/* The assembler names its one input, kernel.s, and what line marks and .incbin name. */
static bool is_assembled(const char *path, size_t len, void *context)
{
	int *inputs = context;

	return is_ours(path, len) || (len > 9 && memcmp(path + len - 9, "/kernel.s", 9) == 0 && ++*inputs == 1);
}

static bool is_free_name(const char *name, void *context)
{
	struct build *b = context;

	if (!import_is_system(name))
		return true;
	decide(b, BUILD_REJECTED, "export", "'%.100s' is a function of the C library: declare it static or call it something else", name);
	return false;
}

static bool may_import(const char *name, void *context)
{
	const struct job *job = context;

	/* With -z defs the linker found every name: what the system does not have is from an allowed library. */
	return import_is_plain(name) || (job->name_count > 0 && !import_is_system(name));
}

static bool check_library(const struct job *job, const char *data, size_t len, struct build *b)
{
	struct elf_policy policy = { .exports = exported, .needed = import_sonames, .libraries = (const char *const *)job->names,
				     .import_allowed = may_import, .context = (void *)job, .may_keep_state = job->task->target == TASK_CUDA };
	struct elf_verdict verdict;

	if (!elf_check(data, len, &policy, &verdict)) {
		decide(b, BUILD_REJECTED, verdict.rule, "%s", verdict.message);
		return false;
	}
	if (elf_defines(data, len, "km_run"))
		return true;
	decide(b, BUILD_COMPILE_ERROR, "no-km-run", "no function km_run: include \"task.h\" and define int km_run(const struct km_args *a)");
	return false;
}

/* Say which variable it is. */
static void name_variable(const struct made *made, struct build *b)
{
	char name[80];

	if (strcmp(b->rule, "state") == 0 && elf_variable(made->object.data, made->object.len, name, sizeof(name)))
		decide(b, BUILD_REJECTED, "state", "'%s' is writable static data: use the workspace for scratch memory, and const for tables", name);
}

/* A name that the C library has must not be taken, even though the linker keeps it inside: the reader would be misled. */
static bool check_made(const struct job *job, const struct made *made, struct build *b)
{
	int inputs = 0;

	if (!each_dependency(made->headers.data, made->headers.len, is_header, b))
		return false;
	if (!each_dependency(made->assembled.data, made->assembled.len, is_assembled, &inputs)) {
		decide(b, BUILD_REJECTED, "incbin", "the assembler may not read files");
		return false;
	}
	if (!elf_globals(made->object.data, made->object.len, is_free_name, b)) {
		decide(b, BUILD_REJECTED, "elf", "not an object file for this processor");
		return false;
	}
	if (b->rule[0] || !check_library(job, made->library.data, made->library.len, b)) {
		name_variable(made, b);
		return false;
	}
	return true;
}

/* ---- what the compiler said ------------------------------------------------------------------------------------------------ */

static bool ran_out(const struct process_result *r)
{
	static const char *const signs[] = { "out of memory", "virtual memory exhausted", "Killed signal", "CPU time limit exceeded",
					     "File size limit exceeded", "No space left on device", "file truncated", "Cannot allocate memory",
					     "memory exhausted", "File too large" };

	if (r->timed_out || r->over_memory || r->overflowed || r->signal)
		return true;
	for (size_t i = 0; i < sizeof(signs) / sizeof(*signs); i++)
		if (strstr(r->diagnostics.data, signs[i]))
			return true;
	return false;
}

static void judge_failure(const struct job *job, const struct process_result *r, struct build *b)
{
	char *headline;
	struct buf text;

	if (ran_out(r)) {
		decide(b, BUILD_COMPILE_ERROR, "compile-limit", "the compiler needed more than %.0f s, %d GB of memory or %d MB of disk",
		       job->task->compile_seconds, MEMORY_MAX_GB, BUILD_LIBRARY_MAX >> 20);
		return;
	}
	if (strstr(r->diagnostics.data, "Error: file not found: ") || strstr(r->diagnostics.data, "Error: can't open ")) {
		decide(b, BUILD_REJECTED, "incbin", "the assembler may not read files");
		return;
	}
	buf_init(&text, BUILD_DIAGNOSTICS_MAX);
	diagnostics_trim(r->diagnostics.data, r->diagnostics.len, BUILD_DIAGNOSTICS_MAX, &text);
	headline = diagnostics_headline(text.data);
	decide(b, BUILD_COMPILE_ERROR, "", "%.300s", headline[0] ? headline : "the compiler failed");
	free(headline);
	free(b->diagnostics);
	b->diagnostics = buf_take(&text);
	buf_release(&text);
}

static void judge(const struct job *job, const struct process_result *r, struct build *b)
{
	struct made made;

	if (r->exit_code != 0) {
		judge_failure(job, r, b);
	} else if (!split_output(&r->output, &made)) {
		decide(b, BUILD_COMPILE_ERROR, "", "the compiler failed");
	} else if (check_made(job, &made, b)) {
		b->status = BUILD_BUILT;
		buf_add(&b->library, made.library.data, made.library.len);
	}
}

static int compile(const struct job *job, struct build *b, struct error *err)
{
	int lease = -1, result;
	struct process_result r;

	if (!job->options->no_lease && (lease = lease_take("cpu", err)) < 0)
		return -1;
	result = run_compiler(job, &r, err);
	lease_drop(lease);
	if (result == 0) {
		b->seconds = r.seconds;
		judge(job, &r, b);
	}
	process_result_release(&r);
	return result;
}

/* ---- the whole ---------------------------------------------------------------------------------------------------------- */

static bool take_from_cache(const struct job *job, struct build *b)
{
	if (job->options->no_cache || !cache_get(job->key, &b->library))
		return false;
	if (!check_library(job, b->library.data, b->library.len, b)) {
		/* A damaged entry: build it again. */
		buf_clear(&b->library);
		decide(b, BUILD_BUILT, "", "%s", "");
		return false;
	}
	b->cached = true;
	return true;
}

static void describe(const struct job *job, struct build *b)
{
	free(b->compiler);
	free(b->flags);
	b->compiler = xstrdup(job->tools.name);
	b->flags = xasprintf("%s -march=%s %s %s", compile_flags, job->tools.march, link_flags, job->libraries);
}

static int build_job(struct job *job, struct build *b, struct error *err)
{
	describe(job, b);
	if (!take_from_cache(job, b) && compile(job, b, err) < 0)
		return -1;
	if (b->status != BUILD_BUILT)
		return 0;
	hash_hex(b->library.data, b->library.len, b->library_sha256);
	memcpy(b->code_sha256, b->library_sha256, sizeof(b->code_sha256));
	if (job->options->no_cache || (!b->cached && cache_put(job->key, b->library.data, b->library.len, NULL) < 0))
		return 0;
	b->cache_path = cache_path(job->key, NULL);
	return 0;
}

int build_kernel(const struct task *task, const char *source, size_t len, const struct build_options *options,
		 struct build *b, struct error *err)
{
	struct source_facts facts;
	struct job job;
	int result;

	build_init(b);
	if (len > BUILD_SOURCE_MAX) {
		decide(b, BUILD_REJECTED, "source-size", "more than %d bytes of source", BUILD_SOURCE_MAX);
		return 0;
	}
	source_scan(source, len, &facts);
	if (!facts.has_code) {
		decide(b, BUILD_NO_CODE, "", "there is no code");
		return 0;
	}
	memcpy(b->source_sha256, facts.sha256, sizeof(b->source_sha256));
	if (facts.rule[0]) {
		decide(b, BUILD_REJECTED, facts.rule, "%s", facts.message);
		return 0;
	}
	result = job_init(&job, task, source, len, options, err);
	if (result == 0)
		result = build_job(&job, b, err);
	job_release(&job);
	return result;
}
