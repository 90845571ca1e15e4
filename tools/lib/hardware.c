#include "hardware.h"

#include "json.h"
#include "template.h"
#include "text.h"
#include "util.h"

#include <ctype.h>
#include <glob.h>
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

/* ---- cuda ---------------------------------------------------------------------------------------------------------- */

/* What NVIDIA's datasheets and the programming guide's table of compute capabilities say; the H200's second-level cache is what its
 * driver reports. The name is looked for in what the
 * driver calls the device, the longer ones first. */
static const struct device {
	const char *name, *arch;
	int processors, clock_mhz, shared_kb, threads;
	double l2_mb, memory_gb, bandwidth; /* TB/s */
	const char *peaks;
} devices[] = {
	{ "H100 PCIe", "sm_90a", 114, 1755, 227, 2048, 50, 80, 2.0, "bf16 and fp16 756 TFLOP/s, fp8 1513, int8 1513 TOP/s, tf32 378, fp32 51" },
	{ "H100 NVL", "sm_90a", 132, 1785, 227, 2048, 50, 94, 3.9, "bf16 and fp16 835 TFLOP/s, fp8 1671, int8 1671 TOP/s, tf32 418, fp32 60" },
	{ "H200 NVL", "sm_90a", 132, 1785, 227, 2048, 50, 141, 4.8, "bf16 and fp16 836 TFLOP/s, fp8 1671, int8 1671 TOP/s, tf32 418, fp32 60" },
	{ "H200", "sm_90a", 132, 1980, 227, 2048, 60, 141, 4.8, "bf16 and fp16 989 TFLOP/s, fp8 1979, int8 1979 TOP/s, tf32 495, fp32 67" },
	{ "H100", "sm_90a", 132, 1980, 227, 2048, 50, 80, 3.35, "bf16 and fp16 989 TFLOP/s, fp8 1979, int8 1979 TOP/s, tf32 495, fp32 67" },
	{ "B200", "sm_100a", 148, 1965, 227, 2048, 126, 180, 8.0, "bf16 and fp16 2250 TFLOP/s, fp8 4500, fp4 9000, tf32 1125, fp32 75" },
	{ "A100", "sm_80", 108, 1410, 163, 2048, 40, 80, 2.04, "bf16 and fp16 312 TFLOP/s, int8 624 TOP/s, tf32 156, fp32 19.5" },
	{ "L40S", "sm_89", 142, 2520, 99, 1536, 96, 48, 0.864, "bf16 and fp16 362 TFLOP/s, fp8 733, int8 733 TOP/s, tf32 183, fp32 91.6" },
	{ "RTX 4090", "sm_89", 128, 2520, 99, 1536, 72, 24, 1.01, "bf16 and fp16 165 TFLOP/s, fp8 330, int8 661 TOP/s, tf32 82.6, fp32 82.6" },
};

enum { DEVICES = sizeof(devices) / sizeof(*devices) };

static const struct device *find_device(const char *name)
{
	for (int i = 0; i < DEVICES; i++)
		if (strcasestr(name, devices[i].name))
			return &devices[i];
	return NULL;
}

/* What the driver says in its own folder of /proc, which needs no library. NULL without a device; the caller frees. */
static char *device_here(void)
{
	char *name = NULL, line[256];
	glob_t found;

	if (glob("/proc/driver/nvidia/gpus/*/information", 0, NULL, &found) == 0) {
		FILE *f = fopen(found.gl_pathv[0], "re");

		while (f && !name && fgets(line, sizeof(line), f))
			if (starts_with(line, "Model:")) {
				line[strcspn(line, "\n")] = 0;
				name = xstrdup(line + 6 + strspn(line + 6, " \t"));
			}
		if (f)
			fclose(f);
	}
	globfree(&found);
	return name;
}

static const char *feature_text(const char *arch)
{
	int number = atoi(arch + strlen("sm_"));

	if (number >= 100 && number < 120)
		return "tcgen05 matrix instructions with tensor memory, TMA (bulk tensor copies) with mbarriers, clusters with distributed shared "
		       "memory, programmatic dependent launch; mma.sync and cp.async too";
	if (number >= 90 && number < 100)
		return "wgmma (matrix instructions of four warps on shared memory), TMA (bulk tensor copies) with mbarriers, clusters with distributed "
		       "shared memory, setmaxnreg, programmatic dependent launch; mma.sync, ldmatrix and cp.async too";
	return "mma.sync matrix instructions, ldmatrix, cp.async; no TMA, wgmma or clusters";
}

/* The device's architecture as km-compile chooses it. */
static char *arch_text(const cJSON *probe, const struct device *known)
{
	double major = json_number(probe, "major", 0), minor = json_number(probe, "minor", 0);

	if (major > 0)
		return xasprintf("sm_%.0f%.0f%s", major, minor, major >= 9 ? "a" : "");
	return xstrdup(known ? known->arch : "sm_90a");
}

/* A figure of the probe, else of the datasheet, else "unknown". The caller frees. */
static char *figure(const cJSON *probe, const char *key, double unit, const struct device *known, double sheet)
{
	double value = json_number(probe, key, 0) / unit;

	if (!(value > 0))
		value = known ? sheet : 0;
	return value > 0 ? xasprintf("%.4g", value) : xstrdup("unknown");
}

/* What a probe measures, in words and with a unit. */
static const struct measured {
	const char *key, *text;
	double unit;
	const char *name;
} measured[] = {
	{ "read_bytes_per_s", "reading device memory", 1e12, "TB/s" },
	{ "copy_bytes_per_s", "copying within device memory, bytes read and bytes written", 1e12, "TB/s" },
	{ "l2_read_bytes_per_s", "reading the second-level cache", 1e12, "TB/s" },
	{ "fp32_flops", "fp32 multiply-adds", 1e12, "TFLOP/s" },
	{ "tf32_flops", "tf32 matrix instructions", 1e12, "TFLOP/s" },
	{ "bf16_flops", "bf16 matrix instructions", 1e12, "TFLOP/s" },
	{ "fp16_flops", "fp16 matrix instructions", 1e12, "TFLOP/s" },
	{ "fp8_flops", "fp8 matrix instructions", 1e12, "TFLOP/s" },
	{ "launch_s", "from the launch of an empty kernel on an idle stream until the host knows of its end", 1e-6, "us" },
	{ "empty_call_s", "between two events around one empty kernel, which is a part of every call's time", 1e-6, "us" },
};

/* One line for each number that was measured. The caller frees. */
static char *measured_text(const cJSON *probe)
{
	struct buf b;
	char *text;

	buf_init(&b, 1 << 16);
	for (size_t i = 0; i < sizeof(measured) / sizeof(*measured); i++) {
		double value = json_number(probe, measured[i].key, 0) / measured[i].unit;

		if (value > 0)
			buf_printf(&b, "- Measured on this device: %s: %.4g %s\n", measured[i].text, value, measured[i].name);
	}
	text = buf_take(&b);
	buf_release(&b);
	return text;
}

static int fill_cuda(const char *prompts, const char *name, const char *origin, const cJSON *probe, struct buf *out, struct error *err)
{
	const struct device *known = find_device(name);
	char *clean = text_clean(name, strlen(name));
	char *arch = arch_text(probe, known), *figures = measured_text(probe);
	char *processors = figure(probe, "processors", 1, known, known ? known->processors : 0);
	char *clock = figure(probe, "clock_mhz", 1, known, known ? known->clock_mhz : 0);
	char *l2 = figure(probe, "l2_bytes", 1 << 20, known, known ? known->l2_mb : 0);
	char *memory = figure(probe, "memory_bytes", 1e9, known, known ? known->memory_gb : 0);
	char *bandwidth = figure(probe, "bandwidth_bytes_per_s", 1e12, known, known ? known->bandwidth : 0);
	char *shared = xasprintf("%d", known ? known->shared_kb : 99), *threads = xasprintf("%d", known ? known->threads : 1536);
	const struct template_value values[] = {
		{ "name", clean }, { "origin", origin }, { "arch", arch }, { "features", feature_text(arch) }, { "processors", processors },
		{ "clock", clock }, { "threads", threads }, { "shared", shared }, { "l2", l2 }, { "memory", memory }, { "bandwidth", bandwidth },
		{ "peaks", known ? known->peaks : "unknown" }, { "measured", figures }, { NULL, NULL },
	};
	char *const all[] = { clean, arch, figures, processors, clock, l2, memory, bandwidth, shared, threads };
	int status = template_fill(prompts, "parts/hardware-cuda.md", values, out, err);

	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		free(all[i]);
	return status;
}

static int unknown_device(const char *name, struct error *err)
{
	struct buf b;

	buf_init(&b, 1 << 10);
	for (int i = 0; i < DEVICES; i++)
		buf_printf(&b, "%s%s", i ? ", " : "", devices[i].name);
	error_set(err, KM_EXIT_USAGE, "no datasheet of a device '%s' (known: %s)", name, b.data);
	buf_release(&b);
	return -1;
}

int hardware_cuda(const char *prompts, const char *device, const cJSON *probe, struct buf *out, struct error *err)
{
	const char *probed = json_string(probe, "name"), *origin = "";
	char *here = NULL, *name;
	int status;

	if (device && !find_device(device))
		return unknown_device(device, err);
	if (!device && !probed)
		here = device_here();
	if (!device && !probed && !here)
		origin = " (assumed: there is no device where this search is planned)";
	name = here ? here : xstrdup(device ? device : probed ? probed : "NVIDIA H200");
	status = fill_cuda(prompts, name, origin, device ? NULL : probe, out, err);
	free(name);
	return status;
}
