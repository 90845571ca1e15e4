/* build_job.h - what building is made of, for build.c and one file a target (build_cpu.c, build_cuda.c).
 *
 * build.c looks at the source, runs a target's script in the sandbox, splits what comes back into parts, checks the parts and
 * keeps the library in the cache. A target says how its compiler is called and what may be in what it makes.
 */
#ifndef KM_BUILD_JOB_H
#define KM_BUILD_JOB_H

#include "build.h"
#include "elf.h"
#include "process.h"
#include "toolchain.h"

enum {
	BUILD_RULES_VERSION = 5, /* part of the cache key: raise it when what is refused changes */
	BUILD_MEMORY_MAX_GB = 4,
};

/* Of the compiler's standard output, in this order. */
enum build_part {
	PART_HEADERS,   /* files that were included: a make rule */
	PART_ASSEMBLED, /* files that the assembler read: a make rule */
	PART_OBJECT,
	PART_LIBRARY,
	PART_LISTING,   /* disassembly, where the target has one */
	BUILD_PARTS,
};

struct build_made {
	struct {
		const char *data;
		size_t len;
	} part[BUILD_PARTS];
	const char *said; /* on standard error; ends with a NUL */
};

struct build_target;

struct build_job {
	const struct build_target *target;
	const struct task *task;
	const char *source;
	size_t len;
	const struct build_options *options;
	struct toolchain tools;
	char *libraries;  /* "-lopenblas -lm" */
	char **names;     /* of the allowed libraries, ends with NULL if there are any */
	size_t name_count;
	struct buf header; /* task.h */
	char *flags;      /* what build.json shows, without paths */
	char key[HASH_HEX + 1]; /* of cache entries: "<key>.so" */
};

struct build_target {
	const char *source;       /* what the source is called in the sandbox */
	const char *lease;        /* held while the compiler runs; NULL: none */
	size_t scratch_mb;        /* room in the sandbox's /tmp; 0: its default */
	size_t parts;             /* how many of enum build_part come back */
	const char *const *links; /* libraries that are always linked: "-lm"; ends with NULL */
	const char *const *names; /* libraries that may be needed whatever the task says, beside libc and libm; ends with NULL; may be NULL */
	int (*find_tools)(struct build_job *job, struct error *err);
	char *(*flags)(const struct build_job *job);
	char *(*script)(const struct build_job *job);
	/* A file that was included, or that the assembler read, and may be. */
	bool (*is_header)(const struct build_job *job, const char *path, size_t len);
	bool (*is_assembled)(const struct build_job *job, const char *path, size_t len);
	/* The rest of the policy for the library: .import_allowed gets the job as its context. */
	void (*policy)(const struct build_job *job, struct elf_policy *policy);
	/* Look at the object file; false after build_decide. May be NULL. */
	bool (*check_object)(const struct build_made *made, struct build *b);
	/* What is told beside the library. May be NULL. */
	void (*describe)(const struct build_made *made, struct build *b);
	/* What the compiler said, made plain for a reader, and what it left on standard output. May be NULL. */
	void (*explain)(const struct process_result *r, struct buf *said);
	void (*hash_code)(struct build *b);
};

extern const struct build_target build_cpu, build_cuda;

extern const char *const build_exported[]; /* names that a kernel may export; ends with NULL */
extern const char build_version_script[];

void build_decide(struct build *b, enum build_status status, const char *rule, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

/* True for the source, task.h, and files in these folders ("/usr/include/"), which end with NULL. */
bool build_path_within(const struct build_job *job, const char *path, size_t len, const char *const *folders);

#endif
