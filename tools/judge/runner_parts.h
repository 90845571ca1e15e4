/* runner_parts.h - what the programs that run kernels have in common: talking to the keeper, telling it of faults, and
 * filters of system calls. Included by exactly one file of each program, which may be C or C++.
 */
#ifndef KM_RUNNER_PARTS_H
#define KM_RUNNER_PARTS_H

#include "protocol.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define OUR_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define OUR_ARCH AUDIT_ARCH_AARCH64
#endif

/* The includer's: the descriptor of the socket on which the keeper asks. */
static inline int keeper_socket(void);

static struct protocol_message message; /* the one that is being answered */

/* ---- talking ---------------------------------------------------------------------------------------------------- */

/* Sleep for ever: what is left to do when the keeper is gone or has been told of a fault. It kills this process. */
static inline void wait_for_the_end(void)
{
	for (;;)
		if (recv(keeper_socket(), &message, sizeof(message), 0) <= 0 && errno != EINTR)
			__builtin_trap();
}

static inline void answer(enum protocol_kind kind, int64_t value)
{
	message.kind = kind;
	message.value = value;
	if (send(keeper_socket(), &message, sizeof(message), MSG_NOSIGNAL) != sizeof(message))
		wait_for_the_end();
}

static inline void receive(void)
{
	ssize_t n;

	do
		n = recv(keeper_socket(), &message, sizeof(message), 0);
	while (n < 0 && errno == EINTR);
	if (n != sizeof(message) || message.magic != PROTOCOL_MAGIC || message.args_bytes > PROTOCOL_ARGS_MAX)
		__builtin_trap();
}

/* The library cannot be opened, for this reason. */
static inline void say_why(const char *text)
{
	snprintf(message.text, sizeof(message.text), "%s", text ? text : "");
	answer(PROTOCOL_LOADED, -1);
	wait_for_the_end();
}

static inline void on_fault(int signal, siginfo_t *info, void *context)
{
	static struct protocol_message fault;

	(void)context;
	fault.magic = PROTOCOL_MAGIC;
	fault.kind = PROTOCOL_FAULT;
	fault.serial = message.serial;
	fault.value = signal;
	fault.where[0] = (uint64_t)(uintptr_t)(signal == SIGSYS ? NULL : info->si_addr);
	fault.where[1] = signal == SIGSYS ? (uint64_t)info->si_syscall : (uint64_t)info->si_code;
	send(keeper_socket(), &fault, sizeof(fault), MSG_NOSIGNAL);
	wait_for_the_end();
}

/* On a stack of its own, since the candidate may have used up the other one. */
static inline bool catch_faults(void)
{
	static const int signals[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGSYS };
	static char stack[65536];
	stack_t alternative = { .ss_sp = stack, .ss_flags = 0, .ss_size = sizeof(stack) };
	struct sigaction action;

	sigemptyset(&action.sa_mask);
	action.sa_sigaction = on_fault;
	action.sa_flags = SA_SIGINFO | SA_ONSTACK;
	if (sigaltstack(&alternative, NULL) < 0)
		return false;
	for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++)
		if (sigaction(signals[i], &action, NULL) < 0)
			return false;
	return true;
}

/* ---- seccomp ---------------------------------------------------------------------------------------------------- */

enum { FILTER_MAX = 320 };

struct filter {
	struct sock_filter code[FILTER_MAX];
	unsigned short length;
};

static inline void emit(struct filter *f, unsigned short code, uint32_t k, uint8_t yes, uint8_t no)
{
	struct sock_filter one = { code, yes, no, k };

	if (f->length >= FILTER_MAX)
		__builtin_trap();
	f->code[f->length++] = one;
}

static inline void emit_load(struct filter *f, size_t offset)
{
	emit(f, BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset, 0, 0);
}

static inline void emit_return(struct filter *f, uint32_t what)
{
	emit(f, BPF_RET | BPF_K, what, 0, 0);
}

/* Another architecture's calls (int 0x80, x32) are killed outright; else the number is loaded. */
static inline void filter_begin(struct filter *f)
{
	f->length = 0;
	emit_load(f, offsetof(struct seccomp_data, arch));
	emit(f, BPF_JMP | BPF_JEQ | BPF_K, OUR_ARCH, 1, 0);
	emit_return(f, SECCOMP_RET_KILL_PROCESS);
	emit_load(f, offsetof(struct seccomp_data, nr));
}

static inline void allow(struct filter *f, long nr)
{
	emit(f, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr, 0, 1);
	emit_return(f, SECCOMP_RET_ALLOW);
}

/* The low half of argument i, little-endian; the high one is 4 bytes behind. */
static inline size_t low(int i)
{
	return offsetof(struct seccomp_data, args) + (size_t)i * 8;
}

/* Allow the call if (argument & mask) == value in its low half. */
static inline void allow_if(struct filter *f, long nr, int argument, uint32_t mask, uint32_t value)
{
	emit(f, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr, 0, 5);
	emit_load(f, low(argument));
	emit(f, BPF_ALU | BPF_AND | BPF_K, mask, 0, 0);
	emit(f, BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1);
	emit_return(f, SECCOMP_RET_ALLOW);
	emit_return(f, SECCOMP_RET_TRAP);
}

/* Allow the call if the argument is at most limit. */
static inline void allow_up_to(struct filter *f, long nr, int argument, uint64_t limit)
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

static inline void allow_socket(struct filter *f)
{
	allow_if(f, SYS_recvfrom, 0, UINT32_MAX, (uint32_t)keeper_socket());
	allow_if(f, SYS_sendto, 0, UINT32_MAX, (uint32_t)keeper_socket());
}

/* For every thread of the process; what was not allowed raises SIGSYS. */
static inline bool filter_install(struct filter *f)
{
	struct sock_fprog program;

	emit_return(f, SECCOMP_RET_TRAP);
	program.len = f->length;
	program.filter = f->code;
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0;
}

#endif
