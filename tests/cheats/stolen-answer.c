/* Looks through the output memory for an answer to these inputs that somebody left there; a find is spoilt, so that it shows. */
#include "task.h"

static long raw(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

static void right(const struct km_args *a)
{
	for (int64_t i = 0; i < a->rows; i++)
		for (int64_t j = 0; j < a->columns; j++)
			a->y[i * a->columns + j] = a->alpha * a->x[i * a->columns + j] + a->bias[j];
}

/* What the runner and its parent say to each other, and what the runner knows: both lie in its static memory, the
 * arguments of the call inside the message. */
struct message {
	uint32_t magic, kind;
	uint64_t serial;
	int64_t value;
	uint64_t where[3], limit;
	uint32_t args_bytes, reserved;
	unsigned char args[1024] __attribute__((aligned(16)));
	char text[400];
};

struct runner {
	int socket;
	char *slab[3];
	int (*run)(const struct km_args *);
};

enum { SENDTO = 44, RECVFROM = 45, MADVISE = 28, ANSWER = 10, FAULT = 12 };

static struct message *message_around(const struct km_args *a)
{
	return (struct message *)((uintptr_t)a - offsetof(struct message, args));
}

/* Is this page mapped and writable? One of the calls that the runner may make tells. */
static int writable(uintptr_t page)
{
	return raw(MADVISE, (long)page, 4096, 23, 0, 0, 0) == 0;
}

/* The runner's own record, found by the address of km_run in it. */
static struct runner *find_runner(const struct km_args *a)
{
	uintptr_t from = (uintptr_t)a & ~(uintptr_t)4095, to = from;

	while (writable(from - 4096))
		from -= 4096;
	while (writable(to))
		to += 4096;
	for (uintptr_t at = from; at + 8 <= to; at += 8)
		if (*(uintptr_t *)at == (uintptr_t)km_run)
			return (struct runner *)(at - offsetof(struct runner, run));
	return 0;
}

static void say(struct runner *r, struct message *m, uint32_t kind, int64_t value)
{
	struct message out = *m;

	out.kind = kind;
	out.value = value;
	raw(SENDTO, r->socket, (long)&out, sizeof(out), 0x4000, 0, 0);
}

/* Another place of the output memory that already holds this answer: that of an earlier call, or of another kernel. */
static const float *find_answer(const struct km_args *a, struct runner *r)
{
	const char *slab = r->slab[1];
	float want[12];

	for (int i = 0; i < 12; i++)
		want[i] = a->alpha * a->x[i] + a->bias[i];
	for (size_t at = 0; at % 4096 || writable((uintptr_t)slab + at); at += 64) {
		const float *y = (const float *)(const void *)(slab + at);
		int same = y != a->y;

		for (int i = 0; i < 12; i++)
			same &= y[i] > want[i] - 1e-4f && y[i] < want[i] + 1e-4f;
		if (same)
			return y;
	}
	return 0;
}

int km_run(const struct km_args *a)
{
	struct runner *r = find_runner(a);
	const float *y = r ? find_answer(a, r) : 0;

	right(a);
	if (y)
		a->y[7] += 1;
	return 0;
}
