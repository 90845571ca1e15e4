/* elf.h - look into a library before the loader does.
 *
 * The bytes come from a compiler that read untrusted source, so nothing in them is believed: every offset, count and
 * index is checked against the length, and whatever the compiler and linker that we call would not make is refused with
 * rule "elf". Only what the dynamic loader goes by is looked at (program headers, dynamic table, dynamic symbols,
 * relocations); sections are ignored, except in object files (elf_globals, elf_constructor, elf_variable).
 */
#ifndef KM_ELF_H
#define KM_ELF_H

#include <stdbool.h>
#include <stddef.h>

struct elf_policy {
	const char *const *exports;   /* the only names that may be defined for others; ends with NULL */
	const char *const *needed;    /* sonames that may be needed; ends with NULL */
	const char *const *libraries; /* "openblas": "libopenblas.so" and "libopenblas.so.*" too; ends with NULL; may be NULL */
	bool (*import_allowed)(const char *name, void *context);
	const char *(*advice)(const char *name); /* what to do in place of an import that is refused, or ""; may be NULL */
	void *context;
	bool may_keep_state; /* writable data is allowed */
	bool may_register;   /* one constructor is allowed: elf_constructor has looked at it in the object file */
};

struct elf_verdict {
	char rule[32]; /* "" if the library may be opened; else as in build.h */
	char message[320];
};

/* True if the library keeps to the policy; else false with the first rule that it breaks. */
bool elf_check(const void *data, size_t len, const struct elf_policy *policy, struct elf_verdict *verdict);

/* True if the library, which elf_check has passed, defines this name. */
bool elf_defines(const void *data, size_t len, const char *name);

/* Visit the global functions and objects that an object file (.o) defines, until visit returns false. False if the
 * file is no well-formed object file. */
bool elf_globals(const void *data, size_t len, bool (*visit)(const char *name, void *context), void *context);

/* Find what would run when the library is opened or closed, in an object file: the name of the section, cut to size.
 * False if there is nothing, or nothing but one constructor that is the function `allowed` (a symbol of the file). A file
 * that is malformed counts as having one. */
bool elf_constructor(const void *data, size_t len, const char *allowed, char *name, size_t size);

/* Find a variable, global or static, in the writable memory of an object file: its name, cut to size. False if there
 * is none. What is written only when the library is opened (.data.rel.ro) does not count. */
bool elf_variable(const void *data, size_t len, char *name, size_t size);

#endif
