/* build_cuda - kernels for an NVIDIA device: nvcc, machine code for one architecture, the shared CUDA runtime.
 *
 * nvcc is called once, and gcc links. Headers are listed by gcc itself, which appends to the file that SUNPRO_DEPENDENCIES
 * names in every pass, for host and device. ptxas says what each kernel needs, and cuobjdump, which takes as long as
 * gcc's last pass, runs beside it. Unused functions are dropped by the linker: nvcc makes host code for device functions, and it
 * would call exit.
 *
 * The headers of CUB are made fit by macros, since its device-wide functions are honest means. <iostream> of gcc before 13 makes an
 * object, __ioinit, in every file that includes it, which is code that runs when the library is opened: it becomes a pointer, which
 * nobody uses. Profiling marks would open a library, and exceptions need the C++ library's code; without them CUB ends the process
 * where it cannot go on (exit, which the runner's filter refuses).
 */
#include "build_job.h"
#include "imports.h"
#include "json.h"
#include "util.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NAME_MAX_BYTES = 160, KERNELS_MAX = 64, ADVICE_MAX = 400 };

static const char compile_flags[] = "-O3 -std=c++17 --expt-relaxed-constexpr --extended-lambda --no-compress -cudart shared "
				    "-D__ioinit=*__ioinit -DNVTX_DISABLE -DCCCL_DISABLE_EXCEPTIONS -DNDEBUG "
				    "-Xptxas -v -Xcompiler -fPIC,-fno-threadsafe-statics,-fno-stack-protector,-fno-ident,-ffunction-sections,"
#if defined(__x86_64__)
				    "-fcf-protection=none,"
#endif
				    "-fdata-sections,-U_FORTIFY_SOURCE";

static const char link_flags[] = "-shared -nostartfiles -s -Wl,-z,relro,-z,now,-z,defs -Wl,--build-id=none -Wl,--hash-style=sysv "
				 "-Wl,--as-needed -Wl,--gc-sections -Wl,--defsym=__dso_handle=0 -Wl,--version-script=kernel.map";

/* Of the C++ library only what unwinds the stack is allowed; it is linked so that the rest is refused by name. */
static const char *const links[] = { "cudart", "m", "stdc++", NULL };
static const char *const names[] = { "cudart", "cuda", "stdc++", NULL };

/* nvcc's function that registers the kernels when the library is opened. */
static const char registration[] = "_ZL24__sti____cudaRegisterAllv";

/* ---- calling it ------------------------------------------------------------------------------------------------------------ */

/* The driver's library to link with, which holds no code. */
static bool has_stub(const struct toolchain *tools)
{
	bool found = false;

	for (size_t i = 0; i < TOOLCHAIN_FOLDERS && tools->folders[i][0] && !found; i++) {
		char *path = xasprintf("%s/libcuda.so", tools->folders[i]);

		found = access(path, R_OK) == 0;
		free(path);
	}
	return found;
}

static int find_tools(struct build_job *job, struct error *err)
{
	if (toolchain_find_cuda(job->options->arch, &job->tools, err) < 0)
		return -1;
	snprintf(job->tools.machine, sizeof(job->tools.machine), "%s", job->tools.arch);
	return 0;
}

static char *show_flags(const struct build_job *job)
{
	const char *arch = job->tools.arch, *number = arch + strlen("sm_");

	return xasprintf("%s -gencode arch=compute_%s,code=%s %s %s%s", compile_flags, number, arch, link_flags, job->libraries,
			 has_stub(&job->tools) ? " -lcuda" : "");
}

static char *link_folders(const struct toolchain *tools)
{
	struct buf b;
	char *text;

	buf_init(&b, 1 << 16);
	for (size_t i = 0; i < TOOLCHAIN_FOLDERS && tools->folders[i][0]; i++)
		buf_printf(&b, "-L%s ", tools->folders[i]);
	text = buf_take(&b);
	buf_release(&b);
	return text;
}

/* The disassembler waits for the machine code, which is complete when the next file is there. */
static char *make_listing(const struct toolchain *tools)
{
	if (!tools->disassembler[0])
		return xstrdup(":");
	return xasprintf("{ until [ -e kernel.fatbin ] || [ -e over ]; do sleep 0.02; done\n"
			 "[ -e over ] || %s -sass kernel.cubin | c++filt -p >kernel.sass; } >/dev/null 2>&1 &", tools->disassembler);
}

/* The results come over stdout behind their lengths, as on the cpu; of a failure the assembler's input, which its messages are
 * about. */
static char *make_script(const struct build_job *job)
{
	const char *arch = job->tools.arch, *number = arch + strlen("sm_");
	char *folders = link_folders(&job->tools), *listing = make_listing(&job->tools), *script;

	script = xasprintf("here=$PWD T=$TMPDIR\n"
			   "cd \"$T\" && : >kernel.sass || exit 1\n"
			   "%s\n"
			   "cd \"$here\"\n"
			   "export SUNPRO_DEPENDENCIES=\"$T/c.d x\"\n"
			   "%s -ccbin %s %s -gencode arch=compute_%s,code=%s -Xcompiler \"-Wa\\\\,--MD\\\\,$T/s.d\" --keep --keep-dir \"$T\" "
			   "-c -o \"$T/kernel.o\" kernel.cu >\"$T/said\" 2>&1\n"
			   "status=$?\n"
			   "unset SUNPRO_DEPENDENCIES\n"
			   "c++filt -p <\"$T/said\" >&2\n"
			   "if [ $status -ne 0 ]; then : >\"$T/over\"; wait; cat \"$T/kernel.ptx\" 2>/dev/null; exit $status; fi\n"
			   "%s %s %s -o \"$T/kernel.so\" \"$T/kernel.o\" %s%s >&2 || { : >\"$T/over\"; exit 1; }\n"
			   "wait\n"
			   "cd \"$T\" && for f in c.d s.d kernel.o kernel.so kernel.sass; do wc -c <$f; done && "
			   "cat c.d s.d kernel.o kernel.so kernel.sass\n",
			   listing, job->tools.compiler, job->tools.host, compile_flags, number, arch, job->tools.host, link_flags, folders,
			   job->libraries, has_stub(&job->tools) ? " -lcuda" : "");
	free(folders);
	free(listing);
	return script;
}

/* ---- what it read ---------------------------------------------------------------------------------------------------------- */

static bool has_ending(const char *path, size_t len, const char *ending)
{
	size_t n = strlen(ending);

	return len >= n && memcmp(path + len - n, ending, n) == 0;
}

/* Of the toolkit, perhaps as ROOT/bin/../targets/...; what nvcc has made; the system's. */
static bool is_header(const struct build_job *job, const char *path, size_t len)
{
	static const char *const places[] = { "/usr/include/", "/usr/lib/gcc/", NULL };
	static const char *const own[] = { "targets/", "include/", NULL };
	static const char *const made[] = { "/kernel.cudafe1.stub.c", "/kernel.fatbin.c" };
	size_t root = strlen(job->tools.root), skip;

	for (size_t i = 0; i < sizeof(made) / sizeof(*made); i++)
		if (has_ending(path, len, made[i]))
			return true;
	if (build_path_within(job, path, len, places) || (len == 18 && memcmp(path, "kernel.cudafe1.cpp", len) == 0))
		return true;
	if (len <= root + 1 || memcmp(path, job->tools.root, root) != 0 || path[root] != '/')
		return false;
	skip = root + 1;
	if (len > skip + 7 && memcmp(path + skip, "bin/../", 7) == 0)
		skip += 7;
	return build_path_within(job, path + skip, len - skip, own);
}

/* gcc's temporary file, "/tmp/ccAbCdEf.s". */
static bool is_assembled(const struct build_job *job, const char *path, size_t len)
{
	(void)job;
	return len > 11 && has_ending(path, len, ".s") && memcmp(path + len - 11, "/cc", 3) == 0;
}

/* ---- what it made ---------------------------------------------------------------------------------------------------------- */

/* Of a library that the task allows: "cublasGemmEx" of cublas. What begins with "cuda" is the runtime's or the driver's. */
static bool is_of_library(const struct build_job *job, const char *name)
{
	for (size_t i = 0; i < job->name_count; i++)
		if (!starts_with(job->names[i], "cuda") && starts_with(name, job->names[i]))
			return true;
	return false;
}

static bool may_import(const char *name, void *context)
{
	return import_is_plain(name) || import_is_cuda(name) || is_of_library(context, name);
}

static void set_policy(const struct build_job *job, struct elf_policy *policy)
{
	(void)job;
	policy->import_allowed = may_import;
	policy->advice = import_cuda_advice;
	policy->may_keep_state = policy->may_register = true;
}

static bool check_object(const struct build_made *made, struct build *b)
{
	char name[80];

	if (!elf_constructor(made->part[PART_OBJECT].data, made->part[PART_OBJECT].len, registration, name, sizeof(name)))
		return true;
	build_decide(b, BUILD_REJECTED, "constructor",
		     "code that runs when the library is opened or closed is not allowed (%s): give global and static variables constant "
		     "initialisers and fill them in km_init", name);
	return false;
}

/* nvcc names what is local to a file by a hash over its path and text: eight digits, in machine code and host code alike.
 * Without them a kernel's bytes do not depend on comments, layout and the names of variables. */
static void hash_code(struct build *b)
{
	static const char mark[] = "_9_kernel_cu";
	char *copy = xmalloc(b->library.len), *end = copy + b->library.len, *p = copy;

	memcpy(copy, b->library.data, b->library.len);
	while ((p = memmem(p, (size_t)(end - p), mark, strlen(mark))) != NULL) {
		if (p - copy >= 8)
			memset(p - 8, '0', 8);
		p += strlen(mark);
	}
	hash_hex(copy, b->library.len, b->code_sha256);
	free(copy);
}

/* ---- what each kernel needs --------------------------------------------------------------------------------------------------- */

static const char *line_end(const char *p, const char *end)
{
	const char *newline = memchr(p, '\n', (size_t)(end - p));

	return newline ? newline : end;
}

/* A kernel's name, for JSON: printable, without "(anonymous namespace)::", cut to size. The caller frees. */
static char *clean_name(const char *name, size_t len)
{
	static const char anonymous[] = "(anonymous namespace)::";
	char *clean = xmalloc(len + 1);
	size_t n = 0;

	for (size_t i = 0; i < len && n < NAME_MAX_BYTES;) {
		if (len - i >= strlen(anonymous) && memcmp(name + i, anonymous, strlen(anonymous)) == 0) {
			i += strlen(anonymous);
			continue;
		}
		clean[n++] = (char)(name[i] >= ' ' && name[i] < 0x7f ? name[i] : '?');
		i++;
	}
	clean[n] = 0;
	return clean;
}

/* The number before each unit of "Used 28 registers, used 1 barriers, 32 bytes smem"; those of one key are added up. */
static void take_numbers(cJSON *kernel, const char *line, const char *end)
{
	static const struct {
		const char *unit, *key;
	} units[] = {
		{ " registers", "registers" }, { " barriers", "barriers" }, { " bytes stack frame", "stack_bytes" },
		{ " bytes spill stores", "spill_store_bytes" }, { " bytes spill loads", "spill_load_bytes" },
		{ " bytes smem", "shared_bytes" }, { " bytes cmem", "constant_bytes" },
	};

	for (const char *p = line; p < end; p++) {
		char *after;
		long value;

		if (!isdigit((unsigned char)*p))
			continue;
		value = strtol(p, &after, 10);
		for (size_t i = 0; i < sizeof(units) / sizeof(*units); i++)
			if (starts_with(after, units[i].unit))
				json_set_number(kernel, units[i].key, json_number(kernel, units[i].key, 0) + (double)value);
		p = after - 1;
	}
}

/* "...Compiling entry function 'NAME' for 'sm_90a'": a new kernel. */
static cJSON *add_kernel(cJSON *resources, const char *name, const char *end)
{
	static const char *const keys[] = { "registers", "spill_store_bytes", "spill_load_bytes", "stack_bytes", "shared_bytes", "constant_bytes" };
	const char *closing = memmem(name, (size_t)(end - name), "' for '", 7);
	cJSON *kernel = cJSON_CreateObject();
	char *clean = clean_name(name, (size_t)((closing ? closing : end) - name));

	json_set_string(kernel, "kernel", clean);
	for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++)
		json_set_number(kernel, keys[i], 0);
	cJSON_AddItemToArray(resources, kernel);
	free(clean);
	return kernel;
}

static void take_advice(cJSON *kernel, const char *text, const char *end)
{
	char *clean = clean_name(text, (size_t)(end - text)), *cut = xasprintf("%.*s", ADVICE_MAX, clean);

	json_set_string(kernel, "advice", cut);
	free(cut);
	free(clean);
}

static void take_info(cJSON *resources, const char *p, const char *end)
{
	static const char entry[] = "Compiling entry function '", properties[] = "Function properties for ", used[] = "Used ";
	const char *found;
	bool ours = false; /* the properties that follow are the kernel's, not those of a function that it calls */
	cJSON *kernel = NULL;

	for (const char *line_stop; p < end; p = line_stop + 1) {
		bool info = starts_with(p, "ptxas info ");

		line_stop = line_end(p, end);
		if (info && (found = memmem(p, (size_t)(line_stop - p), entry, strlen(entry))) != NULL) {
			kernel = cJSON_GetArraySize(resources) < KERNELS_MAX ? add_kernel(resources, found + strlen(entry), line_stop) : NULL;
		} else if (info && (found = memmem(p, (size_t)(line_stop - p), properties, strlen(properties))) != NULL) {
			char *name = clean_name(found + strlen(properties), (size_t)(line_stop - found) - strlen(properties));

			ours = kernel && strcmp(name, json_string(kernel, "kernel")) == 0;
			free(name);
		} else if (kernel && info && (found = memmem(p, (size_t)(line_stop - p), used, strlen(used))) != NULL) {
			take_numbers(kernel, found, line_stop);
		} else if (kernel && info && (found = memmem(p, (size_t)(line_stop - p), "Potential ", 10)) != NULL) {
			take_advice(kernel, found, line_stop);
		} else if (ours && *p == ' ') {
			take_numbers(kernel, p, line_stop);
			ours = false;
		}
	}
}

/* ---- the listing: an address in a comment, perhaps a predicate, "LDG.E.128 R4, desc[UR4][R2.64] ;" ----------------------- */

static void count(cJSON *counts, const char *key)
{
	json_set_number(counts, key, json_number(counts, key, 0) + 1);
}

static void count_instruction(cJSON *counts, const char *opcode, size_t len)
{
	static const char *const counted[] = {
		"HMMA", "IMMA", "DMMA", "BMMA", "QMMA", "OMMA", "HGMMA", "IGMMA", "QGMMA", "BGMMA", "UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA",
		"LDGSTS", "UTMALDG", "UTMASTG", "UTMAREDG", "UBLKCP", "UBLKRED", "LDSM", "STSM", "LDL", "STL", "LDG", "STG" };
	size_t base = 0;

	while (base < len && opcode[base] != '.')
		base++;
	count(counts, "total");
	for (size_t i = 0; i < sizeof(counted) / sizeof(*counted); i++) {
		if (strlen(counted[i]) != base || memcmp(opcode, counted[i], base) != 0)
			continue;
		count(counts, counted[i]);
		if (base == 3 && opcode[2] == 'G' && memmem(opcode, len, ".128", 4))
			count(counts, opcode[0] == 'L' ? "LDG.128" : "STG.128");
	}
}

/* The kernel of that name that has no counts yet; NULL if there is none. */
static cJSON *find_kernel(cJSON *resources, const char *name)
{
	cJSON *kernel;

	cJSON_ArrayForEach(kernel, resources)
		if (strcmp(json_string(kernel, "kernel"), name) == 0 && !json_get(kernel, "instructions"))
			return kernel;
	return NULL;
}

static cJSON *begin_function(cJSON *resources, const char *name, const char *end)
{
	char *clean = clean_name(name, (size_t)(end - name));
	cJSON *kernel = find_kernel(resources, clean), *counts = NULL;

	free(clean);
	if (kernel) {
		counts = cJSON_CreateObject();
		json_set(kernel, "instructions", counts);
	}
	return counts;
}

static void take_line(cJSON *counts, const char *p, const char *end)
{
	size_t n;

	while (p < end && *p == ' ')
		p++;
	if (end - p < 4 || memcmp(p, "/*", 2) != 0)
		return;
	n = strspn(p + 2, "0123456789abcdef");
	if (n == 0 || n > 8 || !starts_with(p + 2 + n, "*/"))
		return;
	for (p += n + 4; p < end && (*p == ' ' || *p == '@' || *p == '{');) {
		if (*p == '@')
			while (p < end && *p != ' ')
				p++;
		else
			p++;
	}
	n = strspn(p, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._");
	if (n > 0 && n <= (size_t)(end - p) && !starts_with(p, "NOP"))
		count_instruction(counts, p, n);
}

static void take_listing(cJSON *resources, const char *p, const char *end)
{
	static const char function[] = "\tFunction : ";
	cJSON *counts = NULL;

	for (const char *line_stop; p < end; p = line_stop + 1) {
		const char *found;

		line_stop = line_end(p, end);
		found = memmem(p, (size_t)(line_stop - p), function, strlen(function));
		if (found)
			counts = begin_function(resources, found + strlen(function), line_stop);
		else if (counts)
			take_line(counts, p, line_stop);
	}
}

static void describe(const struct build_made *made, struct build *b)
{
	b->resources = cJSON_CreateArray();
	take_info(b->resources, made->said, made->said + strlen(made->said));
	take_listing(b->resources, made->part[PART_LISTING].data, made->part[PART_LISTING].data + made->part[PART_LISTING].len);
}

/* ---- what it said of a failure ---------------------------------------------------------------------------------------------------- */

static void add_numbered(const char *text, long number, struct buf *out)
{
	const char *end = text + strlen(text);

	for (; number > 1 && text < end; number--)
		text = line_end(text, end) + 1;
	if (text < end)
		buf_printf(out, "    %.*s\n", (int)(line_end(text, end) - text < 300 ? line_end(text, end) - text : 300), text);
}

/* ptxas speaks of lines that no reader of the kernel has seen: show each behind its message. */
static void explain(const struct process_result *r, struct buf *said)
{
	static const char mark[] = "kernel.ptx, line ";
	const char *p = r->diagnostics.data, *end = p + r->diagnostics.len;

	for (const char *stop; p < end; p = stop + 1) {
		const char *found;

		stop = line_end(p, end);
		buf_add(said, p, (size_t)(stop - p));
		buf_putc(said, '\n');
		found = memmem(p, (size_t)(stop - p), mark, strlen(mark));
		if (found && starts_with(p, "ptxas "))
			add_numbered(r->output.data, strtol(found + strlen(mark), NULL, 10), said);
	}
}

const struct build_target build_cuda = {
	.source = "kernel.cu", .scratch_mb = 512, .parts = BUILD_PARTS, .links = links, .names = names, .find_tools = find_tools, .flags = show_flags,
	.script = make_script, .is_header = is_header, .is_assembled = is_assembled, .policy = set_policy, .check_object = check_object,
	.describe = describe, .explain = explain, .hash_code = hash_code,
};
