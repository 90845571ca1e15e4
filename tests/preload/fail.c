/* fail.c - an LD_PRELOAD that makes one library call of a program fail.
 *
 * Environment: FAIL_CALL = read | write | fsync | rename | open | close | malloc, FAIL_AT = n: the n-th such call of
 * the process fails (EIO, or ENOMEM for malloc). FAIL_COUNT = FILE: instead of failing, the number of such calls is
 * written there when the process ends. Calls before main() and on descriptors 0 and 2 do not count.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int ready;
static long at, seen;
static char call[16], count_file[4096];

__attribute__((constructor)) static void begin(void)
{
	const char *name = getenv("FAIL_CALL"), *n = getenv("FAIL_AT"), *file = getenv("FAIL_COUNT");

	if (!name)
		return;
	snprintf(call, sizeof(call), "%s", name);
	snprintf(count_file, sizeof(count_file), "%s", file ? file : "");
	at = n ? atol(n) : 0;
	/* Children are not the subject. */
	unsetenv("LD_PRELOAD");
	ready = 1;
}

__attribute__((destructor)) static void end(void)
{
	char text[32];
	int fd, n;

	if (!ready || !count_file[0])
		return;
	ready = 0;
	fd = open(count_file, O_WRONLY | O_CREAT | O_TRUNC, 0666);
	n = snprintf(text, sizeof(text), "%ld\n", seen);
	if (fd < 0 || write(fd, text, (size_t)n) != n)
		_exit(99);
	close(fd);
}

static int fails(const char *name)
{
	if (!ready || strcmp(call, name) != 0)
		return 0;
	seen++;
	return !count_file[0] && seen == at;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t read(int fd, void *data, size_t n)
{
	if (fd > 2 && fails("read")) {
		errno = EIO;
		return -1;
	}
	return NEXT(read)(fd, data, n);
}

ssize_t write(int fd, const void *data, size_t n)
{
	if (fd != 0 && fd != 2 && fails("write")) {
		errno = EIO;
		return -1;
	}
	return NEXT(write)(fd, data, n);
}

int fsync(int fd)
{
	if (fails("fsync")) {
		errno = EIO;
		return -1;
	}
	return NEXT(fsync)(fd);
}

int rename(const char *from, const char *to)
{
	if (fails("rename")) {
		errno = EIO;
		return -1;
	}
	return NEXT(rename)(from, to);
}

int open(const char *path, int flags, ...)
{
	va_list args;
	mode_t mode;

	va_start(args, flags);
	mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(args, mode_t) : 0;
	va_end(args);
	if (fails("open")) {
		errno = EIO;
		return -1;
	}
	return NEXT(open)(path, flags, mode);
}

int close(int fd)
{
	int result = NEXT(close)(fd);

	if (fd > 2 && fails("close")) {
		errno = EIO;
		return -1;
	}
	return result;
}

extern void *__libc_malloc(size_t size);

void *malloc(size_t size)
{
	if (fails("malloc")) {
		errno = ENOMEM;
		return NULL;
	}
	return __libc_malloc(size);
}
