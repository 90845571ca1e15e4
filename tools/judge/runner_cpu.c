/* runner_cpu.c - bin/km-runner-cpu: the process that a candidate runs in.
 *
 * Started by km-bench inside the sandbox as `runner KERNEL.so SOCKET INPUT OUTPUT SCRATCH`, the last four being
 * descriptor numbers. It maps the slabs, gives up what it does not need, opens the kernel and then does as protocol.h
 * says until it is killed. It never exits by itself: whoever sees it gone knows that the candidate did that.
 *
 * Two seccomp filters bound what the code in here can ask of the kernel: one before the kernel is opened, with what the
 * dynamic loader needs, and a stricter one before its first function is called, which leaves the socket alone. A refused
 * call raises SIGSYS, whose handler tells km-bench which call it was. Nothing of value is in this process: no seed, no
 * expected number, no clock that counts.
 */
#include "runner_parts.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/prctl.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

struct km_args;

struct runner {
	int socket;
	void *slab[PROTOCOL_SLABS];
	int (*run)(const struct km_args *), (*init)(const struct km_args *);
	size_t (*workspace)(const struct km_args *);
};

static struct runner runner;

static inline int keeper_socket(void)
{
	return runner.socket;
}

/* ---- seccomp ---------------------------------------------------------------------------------------------------- */

/* What opening a library needs: read files, map them, and the two calls that install the second filter. */
static bool filter_for_loading(uint64_t limit)
{
	static const long calls[] = { SYS_read, SYS_pread64, SYS_close, SYS_fstat, SYS_newfstatat, SYS_lseek, SYS_mprotect,
				      SYS_munmap, SYS_brk, SYS_getcwd, SYS_futex, SYS_getrandom };
	struct filter f;

	filter_begin(&f);
	allow_socket(&f);
	allow_if(&f, SYS_openat, 2, ~(uint32_t)(O_CLOEXEC | O_NOCTTY | O_LARGEFILE), O_RDONLY);
	allow_up_to(&f, SYS_mmap, 1, limit);
	allow_if(&f, SYS_madvise, 2, UINT32_MAX, MADV_POPULATE_WRITE);
	allow_if(&f, SYS_seccomp, 0, UINT32_MAX, SECCOMP_SET_MODE_FILTER);
	for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++)
		allow(&f, calls[i]);
	return filter_install(&f);
}

static bool filter_for_running(void)
{
	struct filter f;

	filter_begin(&f);
	allow_socket(&f);
	allow_if(&f, SYS_madvise, 2, UINT32_MAX, MADV_POPULATE_WRITE);
	return filter_install(&f);
}

/* ---- setting up ------------------------------------------------------------------------------------------------- */

/* A slab between two stretches where nothing is mapped, so that running off its end faults there and nowhere else. */
static void *map_between_gaps(int i, int descriptor, size_t bytes)
{
	int access = i == PROTOCOL_INPUT ? PROT_READ : PROT_READ | PROT_WRITE;
	int flags = MAP_SHARED | MAP_FIXED | (i == PROTOCOL_SCRATCH ? 0 : MAP_POPULATE);
	char *room = mmap(NULL, bytes + 2 * PROTOCOL_GAP, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return room == MAP_FAILED ? MAP_FAILED : mmap(room + PROTOCOL_GAP, bytes, access, flags, descriptor, 0);
}

/* The inputs can only be mapped for reading (memory.h), the rest is writable. Scratch pages come when they are asked
 * for (POPULATE): most kernels need few. */
static bool map_slabs(const int *descriptors)
{
	for (int i = 0; i < PROTOCOL_SLABS; i++) {
		runner.slab[i] = map_between_gaps(i, descriptors[i], message.where[i]);
		if (runner.slab[i] == MAP_FAILED)
			return false;
		close(descriptors[i]);
		message.where[i] = (uint64_t)(uintptr_t)runner.slab[i];
	}
	return true;
}

/* A failure in here is the kernel's: that filters can be installed is known by now. */
static void load(const char *library, bool trusted)
{
	void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);

	if (!handle)
		say_why(dlerror());
	*(void **)&runner.run = dlsym(handle, "km_run");
	*(void **)&runner.init = dlsym(handle, "km_init");
	*(void **)&runner.workspace = dlsym(handle, "km_workspace");
	if (!runner.run)
		say_why("the library has no function km_run");
	if (!trusted && !filter_for_running())
		say_why("the second filter of system calls was refused");
	answer(PROTOCOL_LOADED, (runner.init ? PROTOCOL_HAS_INIT : 0) | (runner.workspace ? PROTOCOL_HAS_WORKSPACE : 0));
}

/* ---- the loop --------------------------------------------------------------------------------------------------- */

static void serve(void)
{
	const struct km_args *args = (const struct km_args *)(const void *)message.args;

	receive();
	switch (message.kind) {
	case PROTOCOL_INIT:
		answer(PROTOCOL_ANSWER, runner.init ? runner.init(args) : 0);
		break;
	case PROTOCOL_WORKSPACE:
		answer(PROTOCOL_ANSWER, runner.workspace ? (int64_t)runner.workspace(args) : 0);
		break;
	case PROTOCOL_POPULATE:
		madvise((void *)(uintptr_t)message.where[0], (size_t)message.value, MADV_POPULATE_WRITE);
		answer(PROTOCOL_ANSWER, 0);
		break;
	case PROTOCOL_CALL:
		answer(PROTOCOL_ANSWER, runner.run(args));
		break;
	default:
		__builtin_trap();
	}
}

int main(int argc, char **argv)
{
	int descriptors[PROTOCOL_SLABS];
	bool trusted;

	if (argc != 3 + PROTOCOL_SLABS) {
		fprintf(stderr, "km-runner-cpu: started by km-bench, not by hand\n");
		return 2;
	}
	runner.socket = atoi(argv[2]);
	for (int i = 0; i < PROTOCOL_SLABS; i++)
		descriptors[i] = atoi(argv[3 + i]);
	receive();
	trusted = message.value == PROTOCOL_TRUSTED;
	if (message.kind != PROTOCOL_SETUP || !map_slabs(descriptors) || !catch_faults() ||
	    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return 1;
	if (trusted)
		setenv("OPENBLAS_NUM_THREADS", "1", 1);
	answer(PROTOCOL_HELLO, trusted || filter_for_loading(message.limit) ? 0 : -1);
	receive();
	load(argv[1], trusted);
	for (;;)
		serve();
}
