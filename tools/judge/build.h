/* build.h - from a kernel's source to a library that may be opened, or to the reason why not.
 *
 * Reads a task (task.h) and source text; runs the C compiler or nvcc in the sandbox; checks what came out (elf.h). The same
 * source, task.h, flags and compiler give the same library, which is kept in the cache (cache.h) under their hash.
 *
 * Rules that a source or library can break (status REJECTED, .rule):
 *	source-size   more than 1 MiB of source
 *	include       a header that is neither task.h nor the system's
 *	incbin        .incbin or #embed
 *	import        a symbol from outside the library that the task does not allow
 *	export        a global function or object whose name the C library has
 *	constructor   code that runs when the library is opened, or closed (but what nvcc registers kernels with)
 *	ifunc         a function that is chosen when the library is opened
 *	thread-local  thread-local storage
 *	text-relocation, executable-stack, library, elf   as they say; elf: not what the compiler makes
 *	state         writable static data (target cpu)
 * and with status COMPILE_ERROR: compile-limit (time, memory, output), no-km-run.
 *
 * Why "state": a kernel must not remember, and what static memory an honest one needs is constant (tables) or scratch,
 * which the workspace is for. The prompt says so. Not for cuda, where km_init must keep handles.
 */
#ifndef KM_BUILD_H
#define KM_BUILD_H

#include "buf.h"
#include "error.h"
#include "hash.h"
#include "task.h"

#include <stdbool.h>
#include <stddef.h>

enum {
	BUILD_SOURCE_MAX = 1 << 20,
	BUILD_LIBRARY_MAX = 64 << 20,
	BUILD_DIAGNOSTICS_MAX = 6000,
};

enum build_status { BUILD_BUILT, BUILD_COMPILE_ERROR, BUILD_REJECTED, BUILD_NO_CODE };

struct build_options {
	const char *march;            /* cpu: -march; NULL: $KM_MARCH, else "native" */
	const char *arch;             /* cuda: "sm_90a"; NULL: $KM_ARCH, else the device's, else sm_90a */
	const char *const *libraries; /* beside those of the task, ends with NULL; may be NULL: "openblas" for -lopenblas */
	bool no_sandbox;              /* compile without a sandbox */
	bool no_cache;                /* neither look into the cache nor put the library there */
	bool no_lease;                /* the caller holds lease_take("cpu") already (for cuda none is taken) */
};

struct build {
	enum build_status status;
	char rule[32];    /* "" if none */
	char *message;    /* one line for people and the model; never NULL */
	char *diagnostics; /* the compiler's first errors, whole, at most BUILD_DIAGNOSTICS_MAX; never NULL */
	char *compiler;   /* "gcc 12.2.0", "nvcc 13.0.88, gcc 12.2.0"; "" for NO_CODE */
	char *flags;      /* what the compiler was called with, without paths */
	char source_sha256[HASH_HEX + 1];  /* of the source without comments and white space; "" for NO_CODE */
	char code_sha256[HASH_HEX + 1];    /* of machine code, constants and (cuda) kernels' names; "" unless BUILT */
	char library_sha256[HASH_HEX + 1]; /* of the library's bytes; "" unless BUILT */
	char arch[16];         /* cuda: "sm_90a"; else "" */
	const char *arch_from; /* cuda: "option", "environment", "device" or "default"; else NULL */
	cJSON *resources;      /* cuda: an array, what each kernel needs, as schema/build.json says; else NULL */
	struct buf library; /* its bytes; empty unless BUILT */
	char *cache_path;   /* where the cache holds it (absolute); NULL unless BUILT and cached */
	bool cached;        /* nothing was compiled */
	double seconds;     /* wall-clock time of the compiler */
};

/* The name as in build.json: "BUILT", ... */
const char *build_status_name(enum build_status status);

/* Build; 0 whatever the verdict, -1 if the machine failed (no compiler, no sandbox). *b must be released in either
 * case. Takes the lease of "cpu" while the compiler runs. */
int build_kernel(const struct task *task, const char *source, size_t len, const struct build_options *options,
		 struct build *b, struct error *err);
void build_release(struct build *b);

/* Look again at a library that was built before, since whoever wrote its build.json may have made both by hand: BUILT, or the
 * status, rule and message that building would have had. flags: of build.json; libraries that these name (-lopenblas) may be
 * needed beside those of the task. Only the object file, which is gone, could tell which function it is that a library for cuda
 * has run when it is opened. *b must be released. */
void build_check(const struct task *task, const void *library, size_t len, const char *flags, struct build *b);

/* Compile the task's trusted reference (which includes "task.h" and "reference.h", on cuda "reference_cuda.h") without a
 * sandbox into a shared library in the cache; its path, which the caller frees and may dlopen, or NULL: KM_EXIT_INPUT with
 * the compiler's first error if it does not compile. cpu: -O2, -march as given, without fused multiply-add or other
 * contraction. cuda: machine code for the architecture as given and PTX for any device; the CUDA runtime is inside. */
char *build_reference(const struct task *task, const struct build_options *options, struct error *err);

#endif
