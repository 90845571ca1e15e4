#include "toolchain.h"

#include "buf.h"
#include "hash.h"
#include "process.h"
#include "util.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- gcc ------------------------------------------------------------------------------------------------------------- */

static const char gcc[] = "/usr/bin/gcc";

/* The first line of the compiler's answer that holds `word`; word NULL: the first line. */
static int ask_compiler(const char *compiler, const char *option, const char *word, char *answer, size_t size, struct error *err)
{
	const char *const argv[] = { compiler, option, NULL };
	const char *const envp[] = { "PATH=/usr/bin:/bin", "LC_ALL=C", NULL };
	struct process_spec spec = { .argv = argv, .envp = envp, .output_ceiling = 4096, .diagnostics_ceiling = 4096, .seconds = 20 };
	struct process_result r;
	int result = process_run(&spec, &r, err);
	const char *line = NULL;

	if (result == 0 && r.exit_code == 0) {
		line = word ? strstr(r.output.data, word) : r.output.data;
		while (line && line > r.output.data && line[-1] != '\n')
			line--;
	}
	if (line && *line)
		snprintf(answer, size, "%.*s", (int)strcspn(line, "\n"), line);
	else if (result == 0)
		result = error_set(err, KM_EXIT_ENVIRONMENT, "the compiler '%s' does not work", compiler);
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

/* "gcc 12.2.0", and the first line of --version, with the distribution's revision. */
static int ask_gcc(char *name, size_t size, char *version, size_t version_size, struct error *err)
{
	char number[48];

	if (access(gcc, X_OK) < 0)
		return error_set(err, KM_EXIT_ENVIRONMENT, "no C compiler: '%s' is missing (install gcc)", gcc);
	if (ask_compiler(gcc, "-dumpfullversion", NULL, number, sizeof(number), err) < 0 ||
	    ask_compiler(gcc, "--version", NULL, version, version_size, err) < 0)
		return -1;
	snprintf(name, size, "gcc %s", number);
	return 0;
}

int toolchain_find(const char *march, struct toolchain *t, struct error *err)
{
	if (!march)
		march = getenv("KM_MARCH");
	if (!march || !march[0])
		march = "native";
	if (!is_march(march))
		return error_set(err, KM_EXIT_USAGE, "'%s' is no processor for -march", march);
	snprintf(t->march, sizeof(t->march), "%s", march);
	snprintf(t->machine, sizeof(t->machine), "%s", march);
	if (ask_gcc(t->name, sizeof(t->name), t->version, sizeof(t->version), err) < 0)
		return -1;
	snprintf(t->compiler, sizeof(t->compiler), "%s", gcc);
	if (strcmp(march, "native") == 0)
		describe_machine(t);
	return 0;
}

/* ---- nvcc: where it is ------------------------------------------------------------------------------------------------- */

/* The real path of FOLDER/bin/nvcc (or FOLDER/nvcc), if one is there. */
static bool take_nvcc(struct toolchain *t, const char *folder, size_t len, const char *name)
{
	char *path = xasprintf("%.*s/%s", (int)len, folder, name), *real = NULL;
	bool found = len > 0 && access(path, X_OK) == 0 && (real = realpath(path, NULL)) != NULL && strlen(real) < sizeof(t->compiler);

	if (found)
		snprintf(t->compiler, sizeof(t->compiler), "%s", real);
	free(real);
	free(path);
	return found;
}

static bool find_nvcc(struct toolchain *t)
{
	const char *home = getenv("CUDA_HOME"), *path = getenv("PATH");
	size_t n;

	if (home && home[0] == '/' && take_nvcc(t, home, strlen(home), "bin/nvcc"))
		return true;
	if (take_nvcc(t, "/usr/local/cuda", strlen("/usr/local/cuda"), "bin/nvcc"))
		return true;
	for (; path && *path; path += n, path += *path == ':') {
		n = strcspn(path, ":");
		if (path[0] == '/' && take_nvcc(t, path, n, "nvcc"))
			return true;
	}
	return false;
}

/* Two folders up from nvcc. */
static void find_root(struct toolchain *t)
{
	snprintf(t->root, sizeof(t->root), "%s", t->compiler);
	for (int i = 0; i < 2; i++) {
		char *slash = strrchr(t->root, '/');

		if (slash && slash > t->root)
			*slash = 0;
	}
}

static void find_folders(struct toolchain *t)
{
	static const char *const places[] = { "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "lib64",
					      "targets/x86_64-linux/lib/stubs", "targets/sbsa-linux/lib/stubs", "lib64/stubs" };
	size_t count = 0;

	for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++) {
		char path[TOOLCHAIN_PATH + 64];

		snprintf(path, sizeof(path), "%s/%s", t->root, places[i]);
		if (strlen(path) < TOOLCHAIN_PATH && access(path, X_OK) == 0)
			memcpy(t->folders[count++], path, strlen(path) + 1);
	}
	snprintf(t->disassembler, sizeof(t->disassembler), "%.*s", (int)(strrchr(t->compiler, '/') - t->compiler), t->compiler);
	strncat(t->disassembler, "/cuobjdump", sizeof(t->disassembler) - strlen(t->disassembler) - 1);
	if (access(t->disassembler, X_OK) < 0)
		t->disassembler[0] = 0;
}

/* ---- nvcc: for which device ---------------------------------------------------------------------------------------------- */

/* Ask NVIDIA's management library, which needs no context and some 20 ms. */
static bool ask_device(int *major, int *minor)
{
	void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL), *device = NULL;
	int (*init)(void), (*shutdown)(void), (*handle)(unsigned, void **), (*capability)(void *, int *, int *);
	bool known = false;

	if (!library)
		return false;
	*(void **)&init = dlsym(library, "nvmlInit_v2");
	*(void **)&shutdown = dlsym(library, "nvmlShutdown");
	*(void **)&handle = dlsym(library, "nvmlDeviceGetHandleByIndex_v2");
	*(void **)&capability = dlsym(library, "nvmlDeviceGetCudaComputeCapability");
	if (init && shutdown && handle && capability && init() == 0) {
		known = handle(0, &device) == 0 && capability(device, major, minor) == 0;
		shutdown();
	}
	dlclose(library);
	return known;
}

static bool is_arch(const char *s)
{
	size_t digits;

	if (!starts_with(s, "sm_"))
		return false;
	digits = strspn(s + 3, "0123456789");
	return (digits == 2 || digits == 3) && (!s[3 + digits] || (strchr("af", s[3 + digits]) && !s[4 + digits]));
}

int toolchain_arch_number(const char *arch)
{
	return atoi(arch + strlen("sm_"));
}

bool toolchain_arch_runs(const char *arch, int major, int minor)
{
	int number = toolchain_arch_number(arch);

	return number / 10 == major && (ends_with(arch, "a") ? number % 10 == minor : number % 10 <= minor);
}

/* From 9.0 on some instructions (wgmma) are only in the architecture with the letter. */
static int choose_arch(const char *arch, struct toolchain *t, struct error *err)
{
	const char *named = getenv("KM_ARCH");
	int major = 0, minor = 0;

	t->arch_from = arch ? "option" : "environment";
	if (!arch && named && named[0])
		arch = named;
	if (arch) {
		if (!is_arch(arch))
			return error_set(err, KM_EXIT_USAGE, "'%s' is no architecture such as sm_90a", arch);
		snprintf(t->arch, sizeof(t->arch), "%s", arch);
		return 0;
	}
	t->arch_from = "default";
	snprintf(t->arch, sizeof(t->arch), "sm_90a");
	if (ask_device(&major, &minor) && major > 0 && major < 100 && minor >= 0 && minor < 10) {
		t->arch_from = "device";
		snprintf(t->arch, sizeof(t->arch), "sm_%d%d%s", major, minor, major >= 9 ? "a" : "");
	}
	return 0;
}

/* ---- nvcc: the whole ------------------------------------------------------------------------------------------------------ */

/* "Cuda compilation tools, release 13.0, V13.0.88" */
static int ask_nvcc(struct toolchain *t, char *number, size_t size, char *line, size_t line_size, struct error *err)
{
	const char *version;

	if (ask_compiler(t->compiler, "--version", " V", line, line_size, err) < 0)
		return -1;
	version = strstr(line, " V");
	snprintf(number, size, "%.*s", (int)strcspn(version + 2, " ,"), version + 2);
	return 0;
}

int toolchain_find_cuda(const char *arch, struct toolchain *t, struct error *err)
{
	char host[64], host_version[160], number[32], line[128];

	if (choose_arch(arch, t, err) < 0)
		return -1;
	if (!find_nvcc(t))
		return error_set(err, KM_EXIT_ENVIRONMENT, "no nvcc in $CUDA_HOME, /usr/local/cuda or PATH (install NVIDIA's CUDA Toolkit)");
	if (strpbrk(t->compiler, " \t\n\"'$`\\"))
		return error_set(err, KM_EXIT_ENVIRONMENT, "the path of nvcc, '%s', holds characters that a shell would read", t->compiler);
	find_root(t);
	find_folders(t);
	snprintf(t->host, sizeof(t->host), "%s", gcc);
	if (ask_gcc(host, sizeof(host), host_version, sizeof(host_version), err) < 0 ||
	    ask_nvcc(t, number, sizeof(number), line, sizeof(line), err) < 0)
		return -1;
	snprintf(t->name, sizeof(t->name), "nvcc %s, %.24s", number, host);
	snprintf(t->version, sizeof(t->version), "%s; %s; %s", line, host_version, t->disassembler[0] ? "cuobjdump" : "");
	return 0;
}
