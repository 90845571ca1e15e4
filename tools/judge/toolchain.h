/* toolchain.h - the compilers that kernels and references are built with, and what a cache key must say of them. */
#ifndef KM_TOOLCHAIN_H
#define KM_TOOLCHAIN_H

#include "error.h"

#include <stdbool.h>

enum { TOOLCHAIN_PATH = 512, TOOLCHAIN_FOLDERS = 6 };

struct toolchain {
	char compiler[TOOLCHAIN_PATH]; /* its path: gcc's is under /usr, where the sandbox has it too; nvcc's is without links */
	char name[64];        /* "gcc 12.2.0"; "nvcc 13.0.88, gcc 12.2.0" */
	char version[320];    /* all that tells two compilers apart */
	char march[64];       /* cpu: "native", "x86-64-v3" */
	char machine[80];     /* what march stands for: for native a hash over what the kernel says of the processor */

	/* cuda */
	char arch[16];         /* "sm_90a" */
	const char *arch_from; /* "option", "environment", "device", "default" */
	char host[TOOLCHAIN_PATH];   /* the C++ compiler that nvcc calls: "/usr/bin/gcc" */
	char root[TOOLCHAIN_PATH];   /* the toolkit's folder, without links: "/usr/local/cuda-13.0" */
	char disassembler[TOOLCHAIN_PATH]; /* cuobjdump; "" if there is none */
	char folders[TOOLCHAIN_FOLDERS][TOOLCHAIN_PATH]; /* of its libraries, stubs last; "" ends them if there are fewer */
};

/* Fill in gcc. march NULL: $KM_MARCH, else "native". KM_EXIT_ENVIRONMENT if there is no compiler, KM_EXIT_USAGE if march
 * cannot be one. */
int toolchain_find(const char *march, struct toolchain *t, struct error *err);

/* Fill in nvcc, of $CUDA_HOME, /usr/local/cuda or PATH, with its host compiler. arch NULL: $KM_ARCH, else that of the first
 * device (NVIDIA's management library knows it without a context), else "sm_90a". KM_EXIT_ENVIRONMENT if there is no nvcc. */
int toolchain_find_cuda(const char *arch, struct toolchain *t, struct error *err);

/* The number of an architecture: 90 of "sm_90a". */
int toolchain_arch_number(const char *arch);

/* Does a device of this architecture run machine code for `arch`? By the CUDA Programming Guide on compute capabilities: "sm_90a" on 9.0
 * alone; "sm_100f", and what has no letter, on later ones of the same major number too. */
bool toolchain_arch_runs(const char *arch, int major, int minor);

#endif
