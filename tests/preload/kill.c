/* kill.c - an LD_PRELOAD that kills a whole process group at one chosen moment of its writing.
 *
 * Environment: KILL_COUNTER = FILE of 8 bytes that all processes share: it counts the calls of write to a regular file,
 * fsync, rename, utimensat and futimens. KILL_AT = n: at the n-th the process group dies by SIGKILL: before the call,
 * or, of a write, when half is written. Unset or 0: only count. KILL_IN_PLACE = 1: as if the programs wrote their files
 * in place instead of beside and by rename (the tests show with it that they would notice).
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static unsigned long *counter;
static unsigned long at;
static bool in_place;

static int real_open(const char *path, int flags, mode_t mode)
{
	static int (*next)(const char *, int, ...);

	if (!next)
		next = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
	return next(path, flags, mode);
}

__attribute__((constructor)) static void begin(void)
{
	const char *file = getenv("KILL_COUNTER"), *n = getenv("KILL_AT"), *place = getenv("KILL_IN_PLACE");
	int fd = file ? real_open(file, O_RDWR | O_CLOEXEC, 0) : -1;
	void *map = MAP_FAILED;

	if (fd >= 0) {
		map = mmap(NULL, sizeof(*counter), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		close(fd);
	}
	if (map != MAP_FAILED)
		counter = map;
	at = n ? strtoul(n, NULL, 10) : 0;
	in_place = place && *place == '1';
}

/* True for the call that must not come to its end. */
static bool is_last(void)
{
	return counter && __atomic_add_fetch(counter, 1, __ATOMIC_SEQ_CST) == at;
}

static void die(void)
{
	kill(0, SIGKILL);
	pause();
}

/* With KILL_IN_PLACE: "folder/.NAME.tmp" means "folder/NAME". */
static const char *place(const char *path, char out[4096])
{
	const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
	size_t len = strlen(name), folder = (size_t)(name - path);

	if (!in_place || name[0] != '.' || len < 6 || strcmp(name + len - 4, ".tmp") != 0 || folder + len > 4000)
		return path;
	memcpy(out, path, folder);
	memcpy(out + folder, name + 1, len - 5);
	out[folder + len - 5] = '\0';
	return out;
}

int open(const char *path, int flags, ...)
{
	char other[4096];
	mode_t mode = 0;
	va_list list;

	va_start(list, flags);
	if (flags & (O_CREAT | O_TMPFILE))
		mode = va_arg(list, mode_t);
	va_end(list);
	return real_open(place(path, other), flags, mode);
}

int stat(const char *restrict path, struct stat *restrict st)
{
	char other[4096];

	return fstatat(AT_FDCWD, place(path, other), st, 0);
}

int lstat(const char *restrict path, struct stat *restrict st)
{
	char other[4096];

	return fstatat(AT_FDCWD, place(path, other), st, AT_SYMLINK_NOFOLLOW);
}

int rename(const char *from, const char *to)
{
	static int (*next)(const char *, const char *);
	char other[4096];

	if (!next)
		next = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
	if (is_last())
		die();
	return place(from, other) == from ? next(from, to) : 0;
}

ssize_t write(int fd, const void *data, size_t len)
{
	static ssize_t (*next)(int, const void *, size_t);
	struct stat st;
	int saved = errno;

	if (!next)
		next = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && is_last()) {
		if (next(fd, data, len / 2) >= 0)
			die();
	}
	errno = saved;
	return next(fd, data, len);
}

int fsync(int fd)
{
	static int (*next)(int);

	if (!next)
		next = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
	if (is_last())
		die();
	return next(fd);
}

int utimensat(int folder, const char *path, const struct timespec times[2], int flags)
{
	static int (*next)(int, const char *, const struct timespec *, int);

	if (!next)
		next = (int (*)(int, const char *, const struct timespec *, int))dlsym(RTLD_NEXT, "utimensat");
	if (is_last())
		die();
	return next(folder, path, times, flags);
}

int futimens(int fd, const struct timespec times[2])
{
	static int (*next)(int, const struct timespec *);

	if (!next)
		next = (int (*)(int, const struct timespec *))dlsym(RTLD_NEXT, "futimens");
	if (is_last())
		die();
	return next(fd, times);
}
