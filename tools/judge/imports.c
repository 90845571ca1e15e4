#include "imports.h"

#include "util.h"

#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

const char *const import_sonames[] = { "libc.so.6", "libm.so.6", "libmvec.so.1", "libgcc_s.so.1", NULL };

/* <math.h> of C11 and GNU, each also with the suffix f or l. */
static const char *const functions[] = {
	"acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "copysign", "cos", "cosh", "erf", "erfc",
	"exp", "exp10", "exp2", "expm1", "fabs", "fdim", "floor", "fma", "fmax", "fmin", "fmod", "frexp", "hypot", "ilogb",
	"ldexp", "lgamma", "llrint", "llround", "log", "log10", "log1p", "log2", "logb", "lrint", "lround", "modf", "nearbyint",
	"nextafter", "pow", "remainder", "remquo", "rint", "round", "roundeven", "scalbln", "scalbn", "sin", "sincos", "sinh",
	"sqrt", "tan", "tanh", "tgamma", "trunc" };

bool import_is_plain(const char *name)
{
	static const char *const others[] = { "memcpy", "memmove", "memset", "memcmp", "__stack_chk_fail" };
	size_t len = strlen(name);

	for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++)
		if (strcmp(name, others[i]) == 0)
			return true;
	for (size_t i = 0; i < sizeof(functions) / sizeof(*functions); i++) {
		size_t n = strlen(functions[i]);

		if (strncmp(name, functions[i], n) == 0 && (len == n || (len == n + 1 && (name[n] == 'f' || name[n] == 'l'))))
			return true;
	}
	return starts_with(name, "_ZGV"); /* libmvec: _ZGVdN8v_expf */
}

bool import_is_system(const char *name)
{
	static const char *const libraries[] = { "libc.so.6", "libm.so.6" };
	bool found = false;

	for (size_t i = 0; i < sizeof(libraries) / sizeof(*libraries) && !found; i++) {
		void *handle = dlopen(libraries[i], RTLD_LAZY | RTLD_LOCAL);

		found = handle && dlsym(handle, name);
		if (handle)
			dlclose(handle);
	}
	return found;
}
