/* km_run itself is a function that is chosen when the library is opened, said in assembly. */
#include "task.h"

static void right(const struct km_args *a)
{
	for (int64_t i = 0; i < a->rows; i++)
		for (int64_t j = 0; j < a->columns; j++)
			a->y[i * a->columns + j] = a->alpha * a->x[i * a->columns + j] + a->bias[j];
}

int plain(const struct km_args *a) __asm__("plain");
__attribute__((visibility("hidden"), used)) int plain(const struct km_args *a)
{
	right(a);
	return 0;
}

__asm__(".text\n.globl km_run\n.type km_run, @gnu_indirect_function\nkm_run:\n\tlea plain(%rip), %rax\n\tret");
