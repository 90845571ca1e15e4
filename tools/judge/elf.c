#include "elf.h"

#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum {
	MAX_SEGMENTS = 32,
	MAX_TAGS = 40, /* DT_NUM is 38 in glibc 2.36 */
	PAGE = 4096,
};

#if defined(__x86_64__)
enum { OUR_MACHINE = EM_X86_64 };
#elif defined(__aarch64__)
enum { OUR_MACHINE = EM_AARCH64 };
#else
#error "the judge knows x86-64 and aarch64"
#endif

struct library {
	const unsigned char *data;
	size_t len;
	Elf64_Phdr segments[MAX_SEGMENTS];
	int segment_count;
	uint64_t tag[MAX_TAGS]; /* values of the dynamic table */
	bool has[MAX_TAGS];
	const char *strings; /* ends with a NUL */
	size_t string_size;
	uint64_t symbol_count;
	bool may_register;
	struct elf_verdict *verdict;
};

static bool refuse(struct library *lib, const char *rule, const char *format, ...) __attribute__((format(printf, 3, 4)));

static bool refuse(struct library *lib, const char *rule, const char *format, ...)
{
	va_list args;

	snprintf(lib->verdict->rule, sizeof(lib->verdict->rule), "%s", rule);
	va_start(args, format);
	vsnprintf(lib->verdict->message, sizeof(lib->verdict->message), format, args);
	va_end(args);
	return false;
}

/* ---- bytes ------------------------------------------------------------------------------------------------------ */

static bool within(size_t len, uint64_t offset, uint64_t size)
{
	return offset <= len && size <= len - offset;
}

static bool copy_at(const struct library *lib, uint64_t offset, void *into, size_t size)
{
	if (!within(lib->len, offset, size))
		return false;
	memcpy(into, lib->data + offset, size);
	return true;
}

/* Where `size` bytes at a virtual address are in the file. */
static bool file_offset(const struct library *lib, uint64_t address, uint64_t size, uint64_t *offset)
{
	for (int i = 0; i < lib->segment_count; i++) {
		const Elf64_Phdr *s = &lib->segments[i];

		if (s->p_type == PT_LOAD && address >= s->p_vaddr && within(s->p_filesz, address - s->p_vaddr, size)) {
			*offset = s->p_offset + (address - s->p_vaddr);
			return within(lib->len, *offset, size);
		}
	}
	return false;
}

static bool copy_address(const struct library *lib, uint64_t address, void *into, size_t size)
{
	uint64_t offset;

	return file_offset(lib, address, size, &offset) && copy_at(lib, offset, into, size);
}

static const char *string_at(const struct library *lib, uint64_t index)
{
	return index < lib->string_size ? lib->strings + index : NULL;
}

/* ---- headers and segments --------------------------------------------------------------------------------------- */

static bool read_header(struct library *lib, Elf64_Ehdr *header, int type)
{
	if (!copy_at(lib, 0, header, sizeof(*header)) || memcmp(header->e_ident, ELFMAG, SELFMAG) != 0)
		return refuse(lib, "elf", "no ELF file");
	if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_ident[EI_DATA] != ELFDATA2LSB || header->e_machine != OUR_MACHINE ||
	    header->e_type != type)
		return refuse(lib, "elf", "not a library for this processor");
	return true;
}

static bool check_segment(struct library *lib, const Elf64_Phdr *s, const Elf64_Phdr *before)
{
	switch (s->p_type) {
	case PT_LOAD:
		if ((s->p_flags & PF_W) && (s->p_flags & PF_X))
			return refuse(lib, "elf", "memory that is both writable and executable");
		if (!within(lib->len, s->p_offset, s->p_filesz) || s->p_filesz > s->p_memsz || s->p_vaddr + s->p_memsz < s->p_vaddr ||
		    s->p_vaddr > UINT64_MAX / 2 || s->p_memsz > UINT64_MAX / 2)
			return refuse(lib, "elf", "a segment outside of the file");
		if (before && s->p_vaddr / PAGE * PAGE < before->p_vaddr + before->p_memsz)
			return refuse(lib, "elf", "segments that overlap");
		return true;
	case PT_TLS:
		return refuse(lib, "thread-local", "thread-local storage is not allowed");
	case PT_GNU_STACK:
		return (s->p_flags & PF_X) ? refuse(lib, "executable-stack", "it asks for an executable stack") : true;
	case PT_INTERP:
		return refuse(lib, "elf", "it names a program interpreter");
	default:
		return true;
	}
}

static bool read_segments(struct library *lib, const Elf64_Ehdr *header)
{
	const Elf64_Phdr *before = NULL;
	bool stack = false;

	if (header->e_phentsize != sizeof(Elf64_Phdr) || header->e_phnum == 0 || header->e_phnum > MAX_SEGMENTS)
		return refuse(lib, "elf", "odd program headers");
	for (int i = 0; i < header->e_phnum; i++) {
		Elf64_Phdr *s = &lib->segments[i];

		if (header->e_phoff > lib->len || !copy_at(lib, header->e_phoff + (uint64_t)i * sizeof(*s), s, sizeof(*s)))
			return refuse(lib, "elf", "program headers outside of the file");
		lib->segment_count++;
		if (!check_segment(lib, s, before))
			return false;
		if (s->p_type == PT_LOAD)
			before = s;
		stack = stack || s->p_type == PT_GNU_STACK;
	}
	return stack ? true : refuse(lib, "executable-stack", "it does not say that its stack is not executable");
}

/* ---- the dynamic table ------------------------------------------------------------------------------------------ */

static bool check_tag(struct library *lib, const Elf64_Dyn *d)
{
	if (lib->may_register && (d->d_tag == DT_INIT_ARRAY || (d->d_tag == DT_INIT_ARRAYSZ && d->d_un.d_val == sizeof(uint64_t))))
		return true;
	switch (d->d_tag) {
	case DT_INIT:
	case DT_FINI:
	case DT_INIT_ARRAY:
	case DT_FINI_ARRAY:
	case DT_PREINIT_ARRAY:
	case DT_INIT_ARRAYSZ:
	case DT_FINI_ARRAYSZ:
	case DT_PREINIT_ARRAYSZ:
		return refuse(lib, "constructor", "code that runs when the library is opened or closed is not allowed "
						  "(constructors, destructors, __builtin_cpu_supports)");
	case DT_TEXTREL:
		return refuse(lib, "text-relocation", "its code would be changed when it is opened");
	case DT_RPATH:
	case DT_RUNPATH:
	case DT_AUXILIARY:
	case DT_FILTER:
	case DT_AUDIT:
	case DT_DEPAUDIT:
		return refuse(lib, "library", "it says where libraries are looked for");
	case DT_FLAGS:
		if (d->d_un.d_val & DF_TEXTREL)
			return refuse(lib, "text-relocation", "its code would be changed when it is opened");
		if (d->d_un.d_val & DF_STATIC_TLS)
			return refuse(lib, "thread-local", "thread-local storage is not allowed");
		return (d->d_un.d_val & ~(uint64_t)(DF_BIND_NOW | DF_SYMBOLIC)) ? refuse(lib, "elf", "odd flags") : true;
	case DT_FLAGS_1:
		return (d->d_un.d_val & ~(uint64_t)DF_1_NOW) ? refuse(lib, "elf", "odd flags") : true;
	case DT_NEEDED: case DT_HASH: case DT_STRTAB: case DT_SYMTAB: case DT_RELA: case DT_RELASZ: case DT_RELAENT:
	case DT_STRSZ: case DT_SYMENT: case DT_PLTGOT: case DT_PLTREL: case DT_JMPREL: case DT_PLTRELSZ: case DT_BIND_NOW:
	case DT_VERSYM: case DT_VERNEED: case DT_VERNEEDNUM: case DT_RELACOUNT:
		return true;
	default:
		if (OUR_MACHINE == EM_AARCH64 && d->d_tag >= 0x70000000 && d->d_tag <= 0x70000005)
			return true;
		return refuse(lib, "elf", "an odd entry %#llx in the dynamic table", (unsigned long long)d->d_tag);
	}
}

static const Elf64_Phdr *find_dynamic(struct library *lib)
{
	const Elf64_Phdr *found = NULL;

	for (int i = 0; i < lib->segment_count; i++)
		if (lib->segments[i].p_type == PT_DYNAMIC) {
			if (found)
				return NULL;
			found = &lib->segments[i];
		}
	return found;
}

/* Visit the entries up to DT_NULL, which must come before the table's end. The loader reads the table in memory, so it
 * is found by its address. */
static bool each_entry(struct library *lib, bool (*visit)(struct library *, const Elf64_Dyn *, void *), void *context)
{
	const Elf64_Phdr *table = find_dynamic(lib);
	Elf64_Dyn d;

	for (uint64_t at = 0; table && at + sizeof(d) <= table->p_memsz; at += sizeof(d)) {
		if (!copy_address(lib, table->p_vaddr + at, &d, sizeof(d)))
			break;
		if (d.d_tag == DT_NULL)
			return true;
		if (!visit(lib, &d, context))
			return false;
	}
	return refuse(lib, "elf", "no sound dynamic table");
}

static bool note_entry(struct library *lib, const Elf64_Dyn *d, void *context)
{
	(void)context;
	if (!check_tag(lib, d))
		return false;
	if (d->d_tag >= 0 && d->d_tag < MAX_TAGS && d->d_tag != DT_NEEDED) {
		if (lib->has[d->d_tag])
			return refuse(lib, "elf", "an entry twice in the dynamic table");
		lib->has[d->d_tag] = true;
		lib->tag[d->d_tag] = d->d_un.d_val;
	}
	return true;
}

static bool is_writable(const struct library *lib, uint64_t address)
{
	for (int i = 0; i < lib->segment_count; i++) {
		const Elf64_Phdr *s = &lib->segments[i];

		if (s->p_type == PT_LOAD && (s->p_flags & PF_W) && address >= s->p_vaddr && within(s->p_memsz, address - s->p_vaddr, 8))
			return true;
	}
	return false;
}

/* What the loader reads after relocating must not be changed by that. */
static bool tables_are_fixed(const struct library *lib)
{
	static const int tables[] = { DT_STRTAB, DT_SYMTAB, DT_HASH, DT_RELA, DT_JMPREL };

	for (size_t i = 0; i < sizeof(tables) / sizeof(*tables); i++)
		if (lib->has[tables[i]] && is_writable(lib, lib->tag[tables[i]]))
			return false;
	return true;
}

/* The loader finds symbols by this table, wherever it leads: it must not lead behind the last one. The other kind of hash
 * table, which does not tell how many there are, is refused (the linker is asked for this one). */
static bool check_hash(struct library *lib)
{
	uint32_t size[2], link;
	uint64_t at = lib->tag[DT_HASH];

	if (!copy_address(lib, at, size, sizeof(size)) || size[0] == 0)
		return refuse(lib, "elf", "no sound hash table");
	for (uint64_t i = 0; i < (uint64_t)size[0] + size[1]; i++)
		if (!copy_address(lib, at + sizeof(size) + i * sizeof(link), &link, sizeof(link)) || link >= size[1])
			return refuse(lib, "elf", "no sound hash table");
	lib->symbol_count = size[1];
	return true;
}

/* Strings and the number of symbols, which DT_HASH tells. */
static bool read_tables(struct library *lib)
{
	static const int wanted[] = { DT_STRTAB, DT_STRSZ, DT_SYMTAB, DT_SYMENT, DT_HASH };
	uint64_t offset;

	for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); i++)
		if (!lib->has[wanted[i]])
			return refuse(lib, "elf", "the dynamic table lacks an entry");
	if (lib->tag[DT_STRSZ] == 0 || !file_offset(lib, lib->tag[DT_STRTAB], lib->tag[DT_STRSZ], &offset) ||
	    lib->data[offset + lib->tag[DT_STRSZ] - 1] != 0)
		return refuse(lib, "elf", "no sound table of names");
	lib->strings = (const char *)lib->data + offset;
	lib->string_size = lib->tag[DT_STRSZ];
	if (!tables_are_fixed(lib))
		return refuse(lib, "elf", "a table of the loader's in writable memory");
	if (!check_hash(lib))
		return false;
	if (lib->tag[DT_SYMENT] != sizeof(Elf64_Sym) ||
	    !file_offset(lib, lib->tag[DT_SYMTAB], lib->symbol_count * sizeof(Elf64_Sym), &offset))
		return refuse(lib, "elf", "no sound table of symbols");
	return true;
}

static bool listed(const char *const *list, const char *name)
{
	for (; list && *list; list++)
		if (strcmp(*list, name) == 0)
			return true;
	return false;
}

static bool is_library(const char *const *libraries, const char *soname)
{
	for (; libraries && *libraries; libraries++) {
		size_t n = strlen(*libraries);

		if (strncmp(soname, "lib", 3) == 0 && strncmp(soname + 3, *libraries, n) == 0 &&
		    strncmp(soname + 3 + n, ".so", 3) == 0 && (soname[n + 6] == 0 || soname[n + 6] == '.') && !strchr(soname, '/'))
			return true;
	}
	return false;
}

static bool check_needed(struct library *lib, const Elf64_Dyn *d, void *context)
{
	const struct elf_policy *policy = context;
	const char *name;

	if (d->d_tag != DT_NEEDED)
		return true;
	name = string_at(lib, d->d_un.d_val);
	if (!name)
		return refuse(lib, "elf", "a needed library without a name");
	if (listed(policy->needed, name) || is_library(policy->libraries, name))
		return true;
	return refuse(lib, "library", "the library '%.100s' is not allowed for this task", name);
}

/* ---- symbols and relocations --------------------------------------------------------------------------------------- */

static bool read_symbol(const struct library *lib, uint64_t index, Elf64_Sym *symbol, const char **name)
{
	if (index >= lib->symbol_count || !copy_address(lib, lib->tag[DT_SYMTAB] + index * sizeof(*symbol), symbol, sizeof(*symbol)))
		return false;
	*name = string_at(lib, symbol->st_name);
	return *name != NULL;
}

static bool refuse_import(struct library *lib, const char *name, const struct elf_policy *policy)
{
	const char *advice = policy->advice ? policy->advice(name) : "";

	return refuse(lib, "import", "'%.100s' is not allowed for this task%s%s", name, *advice ? ": " : "", advice);
}

static bool check_symbol(struct library *lib, uint64_t index, const struct elf_policy *policy)
{
	Elf64_Sym symbol;
	const char *name;

	if (!read_symbol(lib, index, &symbol, &name))
		return refuse(lib, "elf", "an odd symbol");
	if (ELF64_ST_TYPE(symbol.st_info) == STT_GNU_IFUNC)
		return refuse(lib, "ifunc", "'%.100s' is chosen when the library is opened", name);
	if (ELF64_ST_TYPE(symbol.st_info) == STT_TLS)
		return refuse(lib, "thread-local", "'%.100s' is thread-local", name);
	if (index == 0 || (ELF64_ST_BIND(symbol.st_info) == STB_LOCAL && symbol.st_shndx != SHN_UNDEF))
		return true;
	if (symbol.st_shndx == SHN_UNDEF)
		return policy->import_allowed(name, policy->context) ? true : refuse_import(lib, name, policy);
	return listed(policy->exports, name) ? true : refuse(lib, "export", "'%.100s' is visible from outside", name);
}

enum relocation_kind { RELOCATION_PLAIN, RELOCATION_IFUNC, RELOCATION_TLS, RELOCATION_ODD };

static enum relocation_kind kind_of(uint32_t type)
{
#if defined(__x86_64__)
	switch (type) {
	case R_X86_64_NONE: case R_X86_64_64: case R_X86_64_GLOB_DAT: case R_X86_64_JUMP_SLOT: case R_X86_64_RELATIVE:
		return RELOCATION_PLAIN;
	case R_X86_64_IRELATIVE:
		return RELOCATION_IFUNC;
	case R_X86_64_DTPMOD64: case R_X86_64_DTPOFF64: case R_X86_64_TPOFF64: case R_X86_64_TLSDESC:
		return RELOCATION_TLS;
	}
#else
	switch (type) {
	case R_AARCH64_NONE: case R_AARCH64_ABS64: case R_AARCH64_GLOB_DAT: case R_AARCH64_JUMP_SLOT: case R_AARCH64_RELATIVE:
		return RELOCATION_PLAIN;
	case R_AARCH64_IRELATIVE:
		return RELOCATION_IFUNC;
	case R_AARCH64_TLS_DTPMOD: case R_AARCH64_TLS_DTPREL: case R_AARCH64_TLS_TPREL: case R_AARCH64_TLSDESC:
		return RELOCATION_TLS;
	}
#endif
	return RELOCATION_ODD;
}

static bool check_relocation(struct library *lib, const Elf64_Rela *r)
{
	const Elf64_Phdr *dynamic = find_dynamic(lib);

	switch (kind_of((uint32_t)ELF64_R_TYPE(r->r_info))) {
	case RELOCATION_IFUNC:
		return refuse(lib, "ifunc", "a function is chosen when the library is opened");
	case RELOCATION_TLS:
		return refuse(lib, "thread-local", "thread-local storage is not allowed");
	case RELOCATION_ODD:
		return refuse(lib, "elf", "an odd relocation");
	default:
		break;
	}
	if (ELF64_R_SYM(r->r_info) >= lib->symbol_count)
		return refuse(lib, "elf", "a relocation without symbol");
	if (!is_writable(lib, r->r_offset))
		return refuse(lib, "text-relocation", "what is not its data would be changed when it is opened");
	if (r->r_offset + 8 > dynamic->p_vaddr && r->r_offset < dynamic->p_vaddr + dynamic->p_memsz)
		return refuse(lib, "elf", "its dynamic table would be changed when it is opened");
	return true;
}

static bool check_relocations(struct library *lib, int table, int size)
{
	if (!lib->has[table] && !lib->has[size])
		return true;
	if (!lib->has[table] || !lib->has[size] || lib->tag[size] % sizeof(Elf64_Rela) || lib->tag[size] > lib->len)
		return refuse(lib, "elf", "no sound table of relocations");
	for (uint64_t at = 0; at < lib->tag[size]; at += sizeof(Elf64_Rela)) {
		Elf64_Rela r;

		if (!copy_address(lib, lib->tag[table] + at, &r, sizeof(r)))
			return refuse(lib, "elf", "relocations outside of the file");
		if (!check_relocation(lib, &r))
			return false;
	}
	return true;
}

/* What the program may write: all that the loader does not make read-only after relocating. */
static bool check_state(struct library *lib)
{
	for (int i = 0; i < lib->segment_count; i++) {
		const Elf64_Phdr *s = &lib->segments[i];
		bool covered = false;

		if (s->p_type != PT_LOAD || !(s->p_flags & PF_W) || s->p_memsz == 0)
			continue;
		for (int j = 0; j < lib->segment_count; j++) {
			const Elf64_Phdr *r = &lib->segments[j];

			covered = covered || (r->p_type == PT_GNU_RELRO && r->p_vaddr <= s->p_vaddr &&
					      within(r->p_memsz, s->p_vaddr - r->p_vaddr, s->p_memsz));
		}
		if (!covered)
			return refuse(lib, "state", "writable static data is not allowed: use the workspace for scratch memory, and const for tables");
	}
	return true;
}

/* What runs first: one address, in data that the loader relocates. */
static bool check_constructor(struct library *lib)
{
	uint64_t at = lib->tag[DT_INIT_ARRAY], offset;

	if (!lib->has[DT_INIT_ARRAY] && !lib->has[DT_INIT_ARRAYSZ])
		return true;
	if (!lib->has[DT_INIT_ARRAY] || !lib->has[DT_INIT_ARRAYSZ] || !is_writable(lib, at) || !file_offset(lib, at, sizeof(uint64_t), &offset))
		return refuse(lib, "elf", "no sound table of constructors");
	return true;
}

static bool open_library(struct library *lib, const void *data, size_t len, bool may_register, struct elf_verdict *verdict)
{
	Elf64_Ehdr header;

	memset(lib, 0, sizeof(*lib));
	memset(verdict, 0, sizeof(*verdict));
	lib->data = data;
	lib->len = len;
	lib->may_register = may_register;
	lib->verdict = verdict;
	return read_header(lib, &header, ET_DYN) && read_segments(lib, &header) && each_entry(lib, note_entry, NULL) && read_tables(lib);
}

bool elf_check(const void *data, size_t len, const struct elf_policy *policy, struct elf_verdict *verdict)
{
	struct library lib;

	if (!open_library(&lib, data, len, policy->may_register, verdict))
		return false;
	if ((lib.has[DT_PLTREL] && lib.tag[DT_PLTREL] != DT_RELA) || (lib.has[DT_RELAENT] && lib.tag[DT_RELAENT] != sizeof(Elf64_Rela)))
		return refuse(&lib, "elf", "odd relocations");
	if (!check_relocations(&lib, DT_RELA, DT_RELASZ) || !check_relocations(&lib, DT_JMPREL, DT_PLTRELSZ))
		return false;
	for (uint64_t i = 0; i < lib.symbol_count; i++)
		if (!check_symbol(&lib, i, policy))
			return false;
	if (!check_constructor(&lib))
		return false;
	return each_entry(&lib, check_needed, (void *)policy) && (policy->may_keep_state || check_state(&lib));
}

bool elf_defines(const void *data, size_t len, const char *name)
{
	struct elf_verdict verdict;
	struct library lib;
	const char *its_name;
	Elf64_Sym symbol;

	if (!open_library(&lib, data, len, true, &verdict))
		return false;
	for (uint64_t i = 1; i < lib.symbol_count && read_symbol(&lib, i, &symbol, &its_name); i++)
		if (symbol.st_shndx != SHN_UNDEF && ELF64_ST_TYPE(symbol.st_info) == STT_FUNC && strcmp(its_name, name) == 0)
			return true;
	return false;
}

/* ---- object files --------------------------------------------------------------------------------------------------- */

static bool read_section(const struct library *lib, const Elf64_Ehdr *header, uint64_t index, Elf64_Shdr *section)
{
	return index < header->e_shnum && header->e_shoff <= lib->len &&
	       copy_at(lib, header->e_shoff + index * sizeof(*section), section, sizeof(*section));
}

struct object {
	struct library file;
	Elf64_Ehdr header;
	Elf64_Shdr symbols; /* size 0 if there are none */
};

static bool open_object(struct object *o, const void *data, size_t len, struct elf_verdict *verdict)
{
	Elf64_Shdr section, names;

	memset(o, 0, sizeof(*o));
	o->file = (struct library){ .data = data, .len = len, .verdict = verdict };
	if (!read_header(&o->file, &o->header, ET_REL) || o->header.e_shentsize != sizeof(section))
		return false;
	for (uint64_t i = 0; i < o->header.e_shnum; i++) {
		if (!read_section(&o->file, &o->header, i, &section))
			return false;
		if (section.sh_type != SHT_SYMTAB)
			continue;
		if (!read_section(&o->file, &o->header, section.sh_link, &names) || !within(len, names.sh_offset, names.sh_size) ||
		    !within(len, section.sh_offset, section.sh_size) || names.sh_size == 0 ||
		    o->file.data[names.sh_offset + names.sh_size - 1] != 0)
			return false;
		o->file.strings = (const char *)data + names.sh_offset;
		o->file.string_size = names.sh_size;
		o->symbols = section;
		return true;
	}
	return true;
}

/* The symbol at byte `at` of the table; false behind its end, or with *name NULL if it is malformed. */
static bool object_symbol(const struct object *o, uint64_t at, Elf64_Sym *symbol, const char **name)
{
	*name = NULL;
	if (o->symbols.sh_size < sizeof(*symbol) || at > o->symbols.sh_size - sizeof(*symbol))
		return false;
	if (copy_at(&o->file, o->symbols.sh_offset + at, symbol, sizeof(*symbol)))
		*name = string_at(&o->file, symbol->st_name);
	return true;
}

bool elf_globals(const void *data, size_t len, bool (*visit)(const char *name, void *context), void *context)
{
	struct elf_verdict verdict;
	struct object o;
	const char *name;
	Elf64_Sym symbol;

	if (!open_object(&o, data, len, &verdict))
		return false;
	for (uint64_t at = 0; object_symbol(&o, at, &symbol, &name); at += sizeof(symbol)) {
		int type = ELF64_ST_TYPE(symbol.st_info);

		if (!name)
			return false;
		if (symbol.st_shndx == SHN_UNDEF || ELF64_ST_BIND(symbol.st_info) == STB_LOCAL || type == STT_FILE || type == STT_SECTION)
			continue;
		if (!visit(name, context))
			return true;
	}
	return true;
}

/* The name of a section, "" if it has none. */
static const char *section_name(const struct object *o, const Elf64_Shdr *section)
{
	Elf64_Shdr names;

	if (!read_section(&o->file, &o->header, o->header.e_shstrndx, &names) || !within(o->file.len, names.sh_offset, names.sh_size) ||
	    names.sh_size == 0 || o->file.data[names.sh_offset + names.sh_size - 1] != 0 || section->sh_name >= names.sh_size)
		return "";
	return (const char *)o->file.data + names.sh_offset + section->sh_name;
}

static bool is_construction(const Elf64_Shdr *section, const char *name)
{
	static const char *const names[] = { ".init", ".fini", ".ctors", ".dtors", ".preinit_array" };

	if (section->sh_type == SHT_INIT_ARRAY || section->sh_type == SHT_FINI_ARRAY || section->sh_type == SHT_PREINIT_ARRAY)
		return true;
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (strncmp(name, names[i], strlen(names[i])) == 0) /* ".init_array.00100" too */
			return true;
	return false;
}

/* Where `name` is defined in this file. */
static bool find_symbol(const struct object *o, const char *wanted, Elf64_Sym *symbol)
{
	const char *name;

	for (uint64_t at = 0; object_symbol(o, at, symbol, &name); at += sizeof(*symbol))
		if (name && symbol->st_shndx != SHN_UNDEF && strcmp(name, wanted) == 0)
			return true;
	return false;
}

/* The place that the only relocation of section `index` leads to; false if there is not just one, at its beginning. */
static bool relocated_to(const struct object *o, uint64_t index, uint64_t *section, uint64_t *value)
{
	Elf64_Shdr table, found = { .sh_size = 0 };
	const char *name;
	Elf64_Sym symbol;
	Elf64_Rela r;

	for (uint64_t i = 0; i < o->header.e_shnum && read_section(&o->file, &o->header, i, &table); i++)
		if ((table.sh_type == SHT_RELA || table.sh_type == SHT_REL) && table.sh_info == index) {
			if (found.sh_size || table.sh_type != SHT_RELA)
				return false;
			found = table;
		}
	if (found.sh_size != sizeof(r) || !copy_at(&o->file, found.sh_offset, &r, sizeof(r)) || r.r_offset != 0 ||
	    !object_symbol(o, ELF64_R_SYM(r.r_info) * sizeof(symbol), &symbol, &name))
		return false;
	*section = symbol.st_shndx;
	*value = symbol.st_value + (uint64_t)r.r_addend;
	return true;
}

bool elf_constructor(const void *data, size_t len, const char *allowed, char *name, size_t size)
{
	uint64_t target_section, target;
	struct elf_verdict verdict;
	Elf64_Shdr section;
	bool seen = false;
	Elf64_Sym known;
	struct object o;

	snprintf(name, size, "odd sections");
	if (!open_object(&o, data, len, &verdict))
		return true;
	for (uint64_t i = 0; i < o.header.e_shnum; i++) {
		const char *its_name;

		if (!read_section(&o.file, &o.header, i, &section))
			return true;
		its_name = section_name(&o, &section);
		if (section.sh_size == 0 || !is_construction(&section, its_name))
			continue;
		snprintf(name, size, "%s", its_name);
		if (seen || section.sh_type != SHT_INIT_ARRAY || strcmp(its_name, ".init_array") != 0 || section.sh_size != sizeof(uint64_t) ||
		    !relocated_to(&o, i, &target_section, &target) || !find_symbol(&o, allowed, &known) || known.st_shndx != target_section ||
		    known.st_value != target)
			return true;
		seen = true;
	}
	return false;
}

static bool is_variable(const struct object *o, const Elf64_Sym *symbol)
{
	Elf64_Shdr section;

	if (ELF64_ST_TYPE(symbol->st_info) != STT_OBJECT)
		return false;
	if (symbol->st_shndx == SHN_COMMON)
		return true;
	return read_section(&o->file, &o->header, symbol->st_shndx, &section) && (section.sh_flags & SHF_WRITE) &&
	       strncmp(section_name(o, &section), ".data.rel.ro", 12) != 0;
}

bool elf_variable(const void *data, size_t len, char *name, size_t size)
{
	struct elf_verdict verdict;
	const char *its_name;
	Elf64_Sym symbol;
	struct object o;

	if (!open_object(&o, data, len, &verdict))
		return false;
	for (uint64_t at = 0; object_symbol(&o, at, &symbol, &its_name); at += sizeof(symbol))
		if (its_name && is_variable(&o, &symbol)) {
			snprintf(name, size, "%s", its_name);
			return true;
		}
	return false;
}
