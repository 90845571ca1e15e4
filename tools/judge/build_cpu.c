/* build_cpu - kernels for the processor: gcc, plain C, no state. */
#include "build_job.h"
#include "imports.h"
#include "util.h"

#include <string.h>

/* -O3 and nothing that changes results; no protector and no control-flow marks, whatever the distribution's default. */
static const char compile_flags[] = "-O3 -std=gnu11 -fPIC -fvisibility=hidden -fno-math-errno -fno-stack-protector -fno-ident "
#if defined(__x86_64__)
				    "-fcf-protection=none "
#endif
				    "-U_FORTIFY_SOURCE -Werror=implicit-function-declaration";

static const char link_flags[] = "-shared -nostartfiles -s -Wl,-z,relro,-z,now,-z,defs -Wl,--build-id=none -Wl,--hash-style=sysv "
				 "-Wl,--as-needed -Wl,--defsym=__dso_handle=0 -Wl,--version-script=kernel.map";

static const char *const links[] = { "m", NULL };

static int find_tools(struct build_job *job, struct error *err)
{
	return toolchain_find(job->options->march, &job->tools, err);
}

static char *show_flags(const struct build_job *job)
{
	return xasprintf("%s -march=%s %s %s", compile_flags, job->tools.march, link_flags, job->libraries);
}

/* The four results come over stdout behind their lengths, so that the sandbox needs no place to write to. Nothing else may be
 * written there: .print has the assembler say what the source likes, other lengths for one. */
static char *make_script(const struct build_job *job)
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

static const char *const places[] = { "/usr/include/", "/usr/lib/gcc/", NULL };

static bool is_header(const struct build_job *job, const char *path, size_t len)
{
	return build_path_within(job, path, len, places);
}

/* The assembler names its one input, kernel.s, and what line marks and .incbin name. */
static bool is_assembled(const struct build_job *job, const char *path, size_t len)
{
	return is_header(job, path, len) || (len > 9 && memcmp(path + len - 9, "/kernel.s", 9) == 0);
}

static bool may_import(const char *name, void *context)
{
	const struct build_job *job = context;

	/* With -z defs the linker found every name: what the system does not have is from an allowed library. */
	return import_is_plain(name) || (job->name_count > 0 && !import_is_system(name));
}

static void set_policy(const struct build_job *job, struct elf_policy *policy)
{
	(void)job;
	policy->import_allowed = may_import;
}

static void hash_code(struct build *b)
{
	memcpy(b->code_sha256, b->library_sha256, sizeof(b->code_sha256));
}

const struct build_target build_cpu = {
	.source = "kernel.c", .lease = "cpu", .parts = PART_LIBRARY + 1, .links = links, .find_tools = find_tools, .flags = show_flags,
	.script = make_script, .is_header = is_header, .is_assembled = is_assembled, .policy = set_policy, .hash_code = hash_code,
};
