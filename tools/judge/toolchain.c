#include "toolchain.h"

#include "buf.h"
#include "hash.h"
#include "process.h"
#include "util.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int ask_compiler(struct toolchain *t, const char *option, char *answer, size_t size, struct error *err)
{
	const char *const argv[] = { t->compiler, option, NULL };
	const char *const envp[] = { "PATH=/usr/bin:/bin", "LC_ALL=C", NULL };
	struct process_spec spec = { .argv = argv, .envp = envp, .output_ceiling = 4096, .diagnostics_ceiling = 4096, .seconds = 20 };
	struct process_result r;
	int result = process_run(&spec, &r, err);

	if (result == 0 && (r.exit_code != 0 || r.output.len == 0))
		result = error_set(err, KM_EXIT_ENVIRONMENT, "the compiler '%s' does not work", t->compiler);
	if (result == 0)
		snprintf(answer, size, "%.*s", (int)strcspn(r.output.data, "\n"), r.output.data);
	process_result_release(&r);
	return result;
}

/* -march=native goes by the processor's features, model and caches: all of that is in the first block of cpuinfo. */
static void describe_machine(struct toolchain *t)
{
	static const char *const lines[] = { "vendor_id", "cpu family", "model", "stepping", "cache size", "flags", "Features", "CPU " };
	FILE *f = fopen("/proc/cpuinfo", "re");
	char *line = NULL, hex[HASH_HEX + 1];
	size_t size = 0;
	struct buf b;

	buf_init(&b, 1 << 16);
	while (f && getline(&line, &size, f) > 1)
		for (size_t i = 0; i < sizeof(lines) / sizeof(*lines); i++)
			if (starts_with(line, lines[i])) {
				buf_puts(&b, line);
				break;
			}
	if (f)
		fclose(f);
	free(line);
	hash_hex(b.data, b.len, hex);
	buf_release(&b);
	snprintf(t->machine, sizeof(t->machine), "native %.16s", hex);
}

static bool is_march(const char *s)
{
	return s[0] && s[0] != '-' && strlen(s) < 60 && strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.+") == strlen(s);
}

int toolchain_find(const char *march, struct toolchain *t, struct error *err)
{
	char number[48];

	if (!march)
		march = getenv("KM_MARCH");
	if (!march || !march[0])
		march = "native";
	if (!is_march(march))
		return error_set(err, KM_EXIT_USAGE, "'%s' is no processor for -march", march);
	snprintf(t->march, sizeof(t->march), "%s", march);
	snprintf(t->machine, sizeof(t->machine), "%s", march);
	t->compiler = "/usr/bin/gcc";
	if (access(t->compiler, X_OK) < 0)
		return error_set(err, KM_EXIT_ENVIRONMENT, "no C compiler: '%s' is missing (install gcc)", t->compiler);
	if (ask_compiler(t, "-dumpfullversion", number, sizeof(number), err) < 0 ||
	    ask_compiler(t, "--version", t->version, sizeof(t->version), err) < 0)
		return -1;
	snprintf(t->name, sizeof(t->name), "gcc %s", number);
	if (strcmp(march, "native") == 0)
		describe_machine(t);
	return 0;
}
