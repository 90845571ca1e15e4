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
#include "protocol.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define OUR_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define OUR_ARCH AUDIT_ARCH_AARCH64
#endif

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
static struct protocol_message message; /* the one that is being answered */

/* ---- talking ---------------------------------------------------------------------------------------------------- */

/* Sleep for ever: what is left to do when the keeper is gone or has been told of a fault. It kills this process. */
static void wait_for_the_end(void)
{
	for (;;)
		if (recv(runner.socket, &message, sizeof(message), 0) <= 0 && errno != EINTR)
			__builtin_trap();
}

static void answer(enum protocol_kind kind, int64_t value)
{
	message.kind = kind;
	message.value = value;
	if (send(runner.socket, &message, sizeof(message), MSG_NOSIGNAL) != sizeof(message))
		wait_for_the_end();
}

static void receive(void)
{
	ssize_t n;

	do
		n = recv(runner.socket, &message, sizeof(message), 0);
	while (n < 0 && errno == EINTR);
	if (n != sizeof(message) || message.magic != PROTOCOL_MAGIC || message.args_bytes > PROTOCOL_ARGS_MAX)
		__builtin_trap();
}

static void on_fault(int signal, siginfo_t *info, void *context)
{
	static struct protocol_message fault;

	(void)context;
	fault.magic = PROTOCOL_MAGIC;
	fault.kind = PROTOCOL_FAULT;
	fault.serial = message.serial;
	fault.value = signal;
	fault.where[0] = (uint64_t)(uintptr_t)(signal == SIGSYS ? NULL : info->si_addr);
	fault.where[1] = signal == SIGSYS ? (uint64_t)info->si_syscall : (uint64_t)info->si_code;
	send(runner.socket, &fault, sizeof(fault), MSG_NOSIGNAL);
	wait_for_the_end();
}

/* On a stack of its own, since the candidate may have used up the other one. */
static bool catch_faults(void)
{
	static const int signals[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGSYS };
	static char stack[65536];
	stack_t alternative = { .ss_sp = stack, .ss_size = sizeof(stack) };
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK };

	if (sigaltstack(&alternative, NULL) < 0)
		return false;
	sigemptyset(&action.sa_mask);
	for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++)
		if (sigaction(signals[i], &action, NULL) < 0)
			return false;
	return true;
}

/* ---- seccomp ---------------------------------------------------------------------------------------------------- */

enum { FILTER_MAX = 128 };

struct filter {
	struct sock_filter code[FILTER_MAX];
	unsigned short length;
};

static void emit(struct filter *f, unsigned short code, uint32_t k, uint8_t yes, uint8_t no)
{
	if (f->length >= FILTER_MAX)
		__builtin_trap();
	f->code[f->length++] = (struct sock_filter){ code, yes, no, k };
}

static void emit_load(struct filter *f, size_t offset)
{
	emit(f, BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset, 0, 0);
}

static void emit_return(struct filter *f, uint32_t what)
{
	emit(f, BPF_RET | BPF_K, what, 0, 0);
}

/* Another architecture's calls (int 0x80, x32) are killed outright; else the number is loaded. */
static void filter_begin(struct filter *f)
{
	f->length = 0;
	emit_load(f, offsetof(struct seccomp_data, arch));
	emit(f, BPF_JMP | BPF_JEQ | BPF_K, OUR_ARCH, 1, 0);
	emit_return(f, SECCOMP_RET_KILL_PROCESS);
	emit_load(f, offsetof(struct seccomp_data, nr));
}

static void allow(struct filter *f, long nr)
{
	emit(f, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr, 0, 1);
	emit_return(f, SECCOMP_RET_ALLOW);
}

/* The low and high half of argument i, little-endian. */
static size_t low(int i)
{
	return offsetof(struct seccomp_data, args) + (size_t)i * 8;
}

/* Allow the call if (argument & mask) == value in its low half. */
static void allow_if(struct filter *f, long nr, int argument, uint32_t mask, uint32_t value)
{
	emit(f, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr, 0, 5);
	emit_load(f, low(argument));
	emit(f, BPF_ALU | BPF_AND | BPF_K, mask, 0, 0);
	emit(f, BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1);
	emit_return(f, SECCOMP_RET_ALLOW);
	emit_return(f, SECCOMP_RET_TRAP);
}

/* Allow the call if the argument is at most limit. */
static void allow_up_to(struct filter *f, long nr, int argument, uint64_t limit)
{
	uint32_t most = limit > UINT32_MAX ? UINT32_MAX : (uint32_t)limit;

	emit(f, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr, 0, 6);
	emit_load(f, low(argument) + 4);
	emit(f, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 3);
	emit_load(f, low(argument));
	emit(f, BPF_JMP | BPF_JGT | BPF_K, most, 1, 0);
	emit_return(f, SECCOMP_RET_ALLOW);
	emit_return(f, SECCOMP_RET_TRAP);
}

static bool filter_install(struct filter *f)
{
	struct sock_fprog program = { .filter = f->code };

	emit_return(f, SECCOMP_RET_TRAP);
	program.len = f->length;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static void allow_socket(struct filter *f)
{
	allow_if(f, SYS_recvfrom, 0, UINT32_MAX, (uint32_t)runner.socket);
	allow_if(f, SYS_sendto, 0, UINT32_MAX, (uint32_t)runner.socket);
}

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
	allow_if(&f, SYS_prctl, 0, ~(uint32_t)0, PR_SET_SECCOMP);
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

static void say_why(const char *text)
{
	snprintf(message.text, sizeof(message.text), "%s", text ? text : "");
	answer(PROTOCOL_LOADED, -1);
	wait_for_the_end();
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
	trusted = message.value == 1;
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
