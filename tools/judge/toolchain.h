/* toolchain.h - the C compiler that kernels and references are built with, and what a cache key must say of it. */
#ifndef KM_TOOLCHAIN_H
#define KM_TOOLCHAIN_H

#include "error.h"

struct toolchain {
	const char *compiler; /* its path, under /usr, where the sandbox has it too */
	char name[64];        /* "gcc 12.2.0" */
	char version[160];    /* the first line of --version, with the distribution's revision */
	char march[64];       /* "native", "x86-64-v3" */
	char machine[80];     /* what march stands for: for native a hash over what the kernel says of the processor */
};

/* Fill it in. march NULL: $KM_MARCH, else "native". KM_EXIT_ENVIRONMENT if there is no compiler, KM_EXIT_USAGE if march
 * cannot be one. */
int toolchain_find(const char *march, struct toolchain *t, struct error *err);

#endif
