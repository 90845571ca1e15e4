#include "hardware.h"

#include "template.h"
#include "text.h"
#include "util.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CACHES = 8 };

/* The first line of a file of /proc or /sys, without its newline; "" if there is none. The caller frees. */
static char *first_line(const char *path)
{
	FILE *f = fopen(path, "r");
	char line[256] = "";

	if (f) {
		if (!fgets(line, sizeof(line), f))
			line[0] = 0;
		fclose(f);
	}
	line[strcspn(line, "\n")] = 0;
	return xstrdup(line);
}

/* The value of the first "KEY : value" line of /proc/cpuinfo; NULL if there is none. The caller frees. */
static char *cpuinfo(const char *key)
{
	FILE *f = fopen("/proc/cpuinfo", "r");
	char *line = NULL, *value = NULL;
	size_t size = 0;

	while (f && !value && getline(&line, &size, f) > 0) {
		char *colon = strchr(line, ':');
		size_t n = strlen(key);

		if (!colon || strncmp(line, key, n) != 0 || !(line[n] == '\t' || line[n] == ' ' || line[n] == ':'))
			continue;
		colon[strcspn(colon, "\n")] = 0;
		value = xstrdup(colon + 1 + strspn(colon + 1, " \t"));
	}
	free(line);
	if (f)
		fclose(f);
	return value;
}

static bool has_flag(const char *flags, const char *flag)
{
	size_t n = strlen(flag);

	for (const char *p = strstr(flags, flag); p; p = strstr(p + 1, flag))
		if ((p == flags || p[-1] == ' ') && (p[n] == ' ' || p[n] == 0))
			return true;
	return false;
}

/* The vector extensions that matter to a kernel, in words. The caller frees. */
static char *vector_text(const char *flags)
{
	static const char *const named[] = { "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve" };
	struct buf b;
	char *text;

	buf_init(&b, 4096);
	for (size_t i = 0; i < sizeof(named) / sizeof(*named); i++)
		if (has_flag(flags, named[i]))
			buf_printf(&b, "%s%s", b.len ? ", " : "", named[i]);
	text = b.len ? buf_take(&b) : xstrdup("unknown");
	buf_release(&b);
	return text;
}

static const char *width_text(const char *flags)
{
	if (has_flag(flags, "avx512f"))
		return "64 bytes (16 floats), 32 registers; without AVX-512 code 32 bytes (8 floats), 16 registers";
	if (has_flag(flags, "avx2"))
		return "32 bytes (8 floats), 16 registers";
	return "16 bytes (4 floats)";
}

/* One line a cache: "L1 data: 48K, 12-way, lines of 64 bytes". The caller frees. */
static char *cache_text(void)
{
	static const char *const files[] = { "level", "type", "size", "ways_of_associativity", "coherency_line_size" };
	struct buf b;
	char *text;

	buf_init(&b, 4096);
	for (int i = 0; i < CACHES; i++) {
		char *value[5];

		for (int k = 0; k < 5; k++) {
			char *path = xasprintf("/sys/devices/system/cpu/cpu0/cache/index%d/%s", i, files[k]);

			value[k] = first_line(path);
			free(path);
		}
		if (*value[0] && strcmp(value[1], "Instruction") != 0)
			buf_printf(&b, "- L%s %s cache: %s, %s-way, lines of %s bytes\n", value[0], strcmp(value[1], "Data") == 0 ? "data" : "unified",
				   value[2], value[3], value[4]);
		for (int k = 0; k < 5; k++)
			free(value[k]);
	}
	text = b.len ? buf_take(&b) : xstrdup("- caches: unknown\n");
	buf_release(&b);
	return text;
}

static char *or_unknown(char *value)
{
	if (value && *value)
		return value;
	free(value);
	return xstrdup("unknown");
}

/* The size in brackets of /sys/kernel/mm/transparent_hugepage/enabled is the mode in force. The caller frees. */
static char *huge_pages(void)
{
	char *line = first_line("/sys/kernel/mm/transparent_hugepage/enabled"), *open = strchr(line, '['), *close = strchr(line, ']');
	char *mode = open && close > open ? xstrndup(open + 1, (size_t)(close - open - 1)) : xstrdup("unknown");

	free(line);
	return mode;
}

int hardware_cpu(const char *prompts, struct buf *out, struct error *err)
{
	char *flags = cpuinfo("flags"), *model = or_unknown(cpuinfo("model name")), *caches = cache_text(), *huge = huge_pages();
	char *vectors, *page = xasprintf("%ld", sysconf(_SC_PAGESIZE));
	int status;

	if (!flags)
		flags = or_unknown(cpuinfo("Features"));
	vectors = vector_text(flags);
	{
		const struct template_value values[] = {
			{ "model", model }, { "vectors", vectors }, { "width", width_text(flags) }, { "caches", caches },
			{ "page", page }, { "huge_pages", huge }, { NULL, NULL },
		};

		status = template_fill(prompts, "parts/hardware-cpu.md", values, out, err);
	}
	free(flags);
	free(model);
	free(caches);
	free(huge);
	free(vectors);
	free(page);
	return status;
}
