#include "build_job.h"

#include "cache.h"
#include "diagnostics.h"
#include "imports.h"
#include "json.h"
#include "lease.h"
#include "sandbox.h"
#include "source.h"
#include "util.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STDERR_MAX = 1 << 20, PROCESSES_MAX = 64 };

static const char *const status_names[] = { "BUILT", "COMPILE_ERROR", "REJECTED", "NO_CODE" };

const char *const build_exported[] = { "km_run", "km_workspace", "km_init", NULL };

const char build_version_script[] = "{ global: km_run; km_workspace; km_init; local: *; };\n";

const char *build_status_name(enum build_status status)
{
	return status_names[status];
}

/* ---- the verdict ---------------------------------------------------------------------------------------------------- */

void build_decide(struct build *b, enum build_status status, const char *rule, const char *format, ...)
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
	cJSON_Delete(b->resources);
	buf_release(&b->library);
	memset(b, 0, sizeof(*b));
}

/* ---- what is asked of the compiler ------------------------------------------------------------------------------------ */

static bool is_library_name(const char *s)
{
	if (!s[0] || strlen(s) > 60)
		return false;
	for (; *s; s++)
		if (!isalnum((unsigned char)*s) && !strchr("_+-", *s))
			return false;
	return true;
}

static void allow_libraries(struct build_job *job, const char *const *names)
{
	for (; names && *names; names++) {
		job->names = xreallocarray(job->names, job->name_count + 2, sizeof(*job->names));
		job->names[job->name_count++] = xstrdup(*names);
		job->names[job->name_count] = NULL;
	}
}

static int add_libraries(struct build_job *job, const char *const *names, struct buf *flags, struct error *err)
{
	for (const char *const *name = names; name && *name; name++) {
		if (!is_library_name(*name))
			return error_set(err, KM_EXIT_USAGE, "'%s' is no name of a library", *name);
		buf_printf(flags, "-l%s ", *name);
	}
	allow_libraries(job, names);
	return 0;
}

static void make_key(struct build_job *job)
{
	char source[HASH_HEX + 1];
	struct buf b;

	hash_hex(job->source, job->len, source);
	buf_init(&b, 1 << 22);
	buf_printf(&b, "kernel %d\n%s\n%s\n%s\n%s\n%s\n%s\n", BUILD_RULES_VERSION, job->target->source, source, job->tools.version,
		   job->tools.machine, job->flags, build_version_script);
	buf_add(&b, job->header.data, job->header.len);
	hash_hex(b.data, b.len, job->key);
	buf_release(&b);
}

static const struct build_target *target_of(const struct task *task)
{
	return task->target == TASK_CUDA ? &build_cuda : &build_cpu;
}

static int job_init(struct build_job *job, const struct task *task, const char *source, size_t len, const struct build_options *options,
		    struct error *err)
{
	struct buf flags;
	int result;

	memset(job, 0, sizeof(*job));
	job->target = target_of(task);
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
	for (const char *const *link = job->target->links; *link; link++)
		buf_printf(&flags, "-l%s%s", *link, link[1] ? " " : "");
	job->libraries = buf_take(&flags);
	buf_release(&flags);
	allow_libraries(job, job->target->names);
	if (result == 0)
		result = job->target->find_tools(job, err);
	if (result < 0)
		return -1;
	job->flags = job->target->flags(job);
	make_key(job);
	return 0;
}

static void job_release(struct build_job *job)
{
	for (size_t i = 0; i < job->name_count; i++)
		free(job->names[i]);
	free(job->names);
	free(job->libraries);
	free(job->flags);
	buf_release(&job->header);
}

/* ---- running it ------------------------------------------------------------------------------------------------------- */

static int run_compiler(const struct build_job *job, struct process_result *r, struct error *err)
{
	struct sandbox_file files[] = { { -1, job->target->source }, { -1, "task.h" }, { -1, "kernel.map" } };
	char *script = job->target->script(job);
	const char *const argv[] = { "/bin/sh", "-c", script, NULL }, *const toolkit[] = { job->tools.root, NULL };
	struct sandbox_spec spec = {
		.argv = argv, .files = files, .file_count = 3, .no_sandbox = job->options->no_sandbox,
		.libraries = job->tools.root[0] && !starts_with(job->tools.root, "/usr") ? toolkit : NULL,
		.limits = { .wall_seconds = job->task->compile_seconds, .cpu_seconds = job->task->compile_seconds + 1,
			    .memory_bytes = (size_t)BUILD_MEMORY_MAX_GB << 30, .address_bytes = (size_t)BUILD_MEMORY_MAX_GB << 30,
			    .file_bytes = BUILD_LIBRARY_MAX, .scratch_mb = job->target->scratch_mb, .processes = PROCESSES_MAX },
	};
	int result = -1;

	files[0].fd = process_memfd(job->target->source, job->source, job->len, err);
	files[1].fd = files[0].fd < 0 ? -1 : process_memfd("task.h", job->header.data, job->header.len, err);
	files[2].fd = files[1].fd < 0 ? -1 : process_memfd("kernel.map", build_version_script, strlen(build_version_script), err);
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

static bool split_output(const struct build_target *target, const struct process_result *r, struct build_made *made)
{
	const char *p = r->output.data;
	size_t left;

	memset(made, 0, sizeof(*made));
	made->said = r->diagnostics.data;
	for (size_t i = 0; i < target->parts; i++) {
		int used = 0;

		if (sscanf(p, "%zu%n", &made->part[i].len, &used) != 1 || p[used] != '\n')
			return false;
		p += used + 1;
	}
	left = r->output.len - (size_t)(p - r->output.data);
	for (size_t i = 0; i < target->parts; i++) {
		if (made->part[i].len > left)
			return false;
		made->part[i].data = p;
		p += made->part[i].len;
		left -= made->part[i].len;
	}
	return left == 0;
}

/* ---- looking at what it made -------------------------------------------------------------------------------------------- */

struct reader {
	const struct build_job *job;
	struct build *b;
	int others; /* read by the assembler and no header */
};

/* Visit the files of the make rules "x: a b \ c"; false if visit refuses one. */
static bool each_dependency(const char *text, size_t len, bool (*visit)(const char *path, size_t len, struct reader *r), struct reader *r)
{
	const char *p = text, *end = text + len;

	while (p && p < end) {
		const char *start;

		while (p < end && (isspace((unsigned char)*p) || *p == '\\'))
			p++;
		for (start = p; p < end && !isspace((unsigned char)*p); p++)
			;
		if (p > start && !(p[-1] == ':' && (start == text || start[-1] == '\n')) && !visit(start, (size_t)(p - start), r))
			return false;
	}
	return true;
}

bool build_path_within(const struct build_job *job, const char *path, size_t len, const char *const *folders)
{
	const char *const own[] = { job->target->source, "task.h" };

	for (size_t i = 0; i < sizeof(own) / sizeof(*own); i++)
		if (len == strlen(own[i]) && memcmp(path, own[i], len) == 0)
			return true;
	for (; *folders; folders++)
		if (len > strlen(*folders) && memcmp(path, *folders, strlen(*folders)) == 0 && !memmem(path, len, "/../", 4))
			return true;
	return false;
}

static bool may_include(const char *path, size_t len, struct reader *r)
{
	if (r->job->target->is_header(r->job, path, len))
		return true;
	build_decide(r->b, BUILD_REJECTED, "include", "only task.h and system headers may be included: %.*s", len < 80 ? (int)len : 80, path);
	return false;
}

static bool may_assemble(const char *path, size_t len, struct reader *r)
{
	if (r->job->target->is_header(r->job, path, len) || (r->job->target->is_assembled(r->job, path, len) && ++r->others == 1))
		return true;
	build_decide(r->b, BUILD_REJECTED, "incbin", "the assembler may not read files");
	return false;
}

static bool is_free_name(const char *name, void *context)
{
	struct build *b = context;

	if (!import_is_system(name))
		return true;
	build_decide(b, BUILD_REJECTED, "export", "'%.100s' is a function of the C library: declare it static or call it something else", name);
	return false;
}

static bool check_library(const struct build_job *job, const char *data, size_t len, struct build *b)
{
	struct elf_policy policy = { .exports = build_exported, .needed = import_sonames, .libraries = (const char *const *)job->names,
				     .context = (void *)job };
	struct elf_verdict verdict;

	job->target->policy(job, &policy);
	if (!elf_check(data, len, &policy, &verdict)) {
		build_decide(b, BUILD_REJECTED, verdict.rule, "%s", verdict.message);
		return false;
	}
	if (elf_defines(data, len, "km_run"))
		return true;
	build_decide(b, BUILD_COMPILE_ERROR, "no-km-run", "no function km_run: include \"task.h\" and define int km_run(const struct km_args *a)");
	return false;
}

/* Say which variable it is. */
static void name_variable(const struct build_made *made, struct build *b)
{
	char name[80];

	if (strcmp(b->rule, "state") == 0 && elf_variable(made->part[PART_OBJECT].data, made->part[PART_OBJECT].len, name, sizeof(name)))
		build_decide(b, BUILD_REJECTED, "state", "'%s' is writable static data: use the workspace for scratch memory, and const for tables", name);
}

/* A name that the C library has must not be taken, even though the linker keeps it inside: the reader would be misled. */
static bool check_made(const struct build_job *job, const struct build_made *made, struct build *b)
{
	struct reader reader = { .job = job, .b = b };

	if (!each_dependency(made->part[PART_HEADERS].data, made->part[PART_HEADERS].len, may_include, &reader) ||
	    !each_dependency(made->part[PART_ASSEMBLED].data, made->part[PART_ASSEMBLED].len, may_assemble, &reader))
		return false;
	if (!elf_globals(made->part[PART_OBJECT].data, made->part[PART_OBJECT].len, is_free_name, b)) {
		build_decide(b, BUILD_REJECTED, "elf", "not an object file for this processor");
		return false;
	}
	if (b->rule[0] || (job->target->check_object && !job->target->check_object(made, b)))
		return false;
	if (!check_library(job, made->part[PART_LIBRARY].data, made->part[PART_LIBRARY].len, b)) {
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
					     "memory exhausted", "File too large", "died due to signal 9 ",
					     "died due to signal 24 ", "died due to signal 25 " };

	if (r->timed_out || r->over_memory || r->overflowed || r->signal)
		return true;
	for (size_t i = 0; i < sizeof(signs) / sizeof(*signs); i++)
		if (strstr(r->diagnostics.data, signs[i]))
			return true;
	return false;
}

static void judge_failure(const struct build_job *job, const struct process_result *r, struct build *b)
{
	struct buf said, text;
	char *headline;

	if (ran_out(r)) {
		build_decide(b, BUILD_COMPILE_ERROR, "compile-limit", "the compiler needed more than %.0f s, %d GB of memory or %d MB of disk",
		       job->task->compile_seconds, BUILD_MEMORY_MAX_GB, BUILD_LIBRARY_MAX >> 20);
		return;
	}
	if (strstr(r->diagnostics.data, "Error: file not found: ") || strstr(r->diagnostics.data, "Error: can't open ")) {
		build_decide(b, BUILD_REJECTED, "incbin", "the assembler may not read files");
		return;
	}
	buf_init(&said, 2 * STDERR_MAX);
	if (job->target->explain)
		job->target->explain(r, &said);
	else
		buf_add(&said, r->diagnostics.data, r->diagnostics.len);
	buf_init(&text, BUILD_DIAGNOSTICS_MAX);
	diagnostics_trim(said.data, said.len, BUILD_DIAGNOSTICS_MAX, &text);
	buf_release(&said);
	headline = diagnostics_headline(text.data);
	build_decide(b, BUILD_COMPILE_ERROR, "", "%.300s", headline[0] ? headline : "the compiler failed");
	free(headline);
	free(b->diagnostics);
	b->diagnostics = buf_take(&text);
	buf_release(&text);
}

static void judge(const struct build_job *job, const struct process_result *r, struct build *b)
{
	struct build_made made;

	if (r->exit_code != 0) {
		judge_failure(job, r, b);
	} else if (!split_output(job->target, r, &made)) {
		build_decide(b, BUILD_COMPILE_ERROR, "", "the compiler failed");
	} else if (check_made(job, &made, b)) {
		b->status = BUILD_BUILT;
		buf_add(&b->library, made.part[PART_LIBRARY].data, made.part[PART_LIBRARY].len);
		if (job->target->describe)
			job->target->describe(&made, b);
	}
}

static int compile(const struct build_job *job, struct build *b, struct error *err)
{
	int lease = -1, result;
	struct process_result r;

	if (!job->options->no_lease && job->target->lease && (lease = lease_take(job->target->lease, err)) < 0)
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

/* What is told beside the library has an entry of its own. */
static bool take_description(const struct build_job *job, struct build *b)
{
	char *name = xasprintf("%s.json", job->key);
	struct buf text;

	buf_init(&text, JSON_MAX_BYTES);
	if (cache_get(name, &text))
		b->resources = json_parse(text.data, text.len, NULL);
	buf_release(&text);
	free(name);
	return cJSON_IsArray(b->resources);
}

static bool take_from_cache(const struct build_job *job, const char *name, struct build *b)
{
	if (job->options->no_cache || (job->target->describe && !take_description(job, b)) || !cache_get(name, &b->library))
		return false;
	if (!check_library(job, b->library.data, b->library.len, b)) {
		/* A damaged entry: build it again. */
		buf_clear(&b->library);
		build_decide(b, BUILD_BUILT, "", "%s", "");
		return false;
	}
	b->cached = true;
	return true;
}

static bool put_into_cache(const struct build_job *job, const char *library, const struct build *b)
{
	char *text = b->resources ? cJSON_PrintUnformatted(b->resources) : NULL, *name = xasprintf("%s.json", job->key);
	bool put = (!text || cache_put(name, text, strlen(text), NULL) == 0) && cache_put(library, b->library.data, b->library.len, NULL) == 0;

	free(name);
	free(text);
	return put;
}

static void describe(const struct build_job *job, struct build *b)
{
	free(b->compiler);
	free(b->flags);
	b->compiler = xstrdup(job->tools.name);
	b->flags = xstrdup(job->flags);
	memcpy(b->arch, job->tools.arch, sizeof(b->arch));
	b->arch_from = job->tools.arch_from;
}

static int build_job(struct build_job *job, struct build *b, struct error *err)
{
	char *name = xasprintf("%s.so", job->key);
	int result = 0;

	describe(job, b);
	if (!take_from_cache(job, name, b)) {
		cJSON_Delete(b->resources);
		b->resources = NULL;
		result = compile(job, b, err);
	}
	if (result == 0 && b->status == BUILD_BUILT) {
		hash_hex(b->library.data, b->library.len, b->library_sha256);
		job->target->hash_code(b);
		if (!job->options->no_cache && (b->cached || put_into_cache(job, name, b)))
			b->cache_path = cache_path(name, NULL);
	}
	free(name);
	return result;
}

int build_kernel(const struct task *task, const char *source, size_t len, const struct build_options *options,
		 struct build *b, struct error *err)
{
	struct source_facts facts;
	struct build_job job;
	int result;

	build_init(b);
	if (len > BUILD_SOURCE_MAX) {
		build_decide(b, BUILD_REJECTED, "source-size", "more than %d bytes of source", BUILD_SOURCE_MAX);
		return 0;
	}
	source_scan(source, len, &facts);
	if (!facts.has_code) {
		build_decide(b, BUILD_NO_CODE, "", "there is no code");
		return 0;
	}
	memcpy(b->source_sha256, facts.sha256, sizeof(b->source_sha256));
	if (facts.rule[0]) {
		build_decide(b, BUILD_REJECTED, facts.rule, "%s", facts.message);
		return 0;
	}
	result = job_init(&job, task, source, len, options, err);
	if (result == 0)
		result = build_job(&job, b, err);
	job_release(&job);
	return result;
}

/* "-lopenblas" among flags: "openblas", but for those that the target links with anyway. */
static void allow_flags(struct build_job *job, const char *flags)
{
	for (const char *p = strstr(flags, "-l"); p; p = strstr(p + 2, "-l")) {
		char *name = xstrndup(p + 2, strcspn(p + 2, " "));
		const char *const one[] = { name, NULL }, *const *link = job->target->links;

		while (*link && strcmp(*link, name) != 0)
			link++;
		if ((p == flags || p[-1] == ' ') && !*link && is_library_name(name))
			allow_libraries(job, one);
		free(name);
	}
}

void build_check(const struct task *task, const void *library, size_t len, const char *flags, struct build *b)
{
	struct build_job job = { .target = target_of(task), .task = task };

	build_init(b);
	allow_libraries(&job, (const char *const *)task->libraries);
	allow_flags(&job, flags);
	allow_libraries(&job, job.target->names);
	check_library(&job, library, len, b);
	for (size_t i = 0; i < job.name_count; i++)
		free(job.names[i]);
	free(job.names);
}
