#include "file.h"

#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Time of the newest file read so far. */
static struct timespec newest;

static bool later(struct timespec a, struct timespec b)
{
	return a.tv_sec != b.tv_sec ? a.tv_sec > b.tv_sec : a.tv_nsec > b.tv_nsec;
}

static int fill(int fd, const char *path, struct buf *b, struct error *err)
{
	char chunk[1 << 16];
	ssize_t n;

	while ((n = read(fd, chunk, sizeof(chunk))) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set(err, KM_EXIT_INPUT, "cannot read '%s': %s", path, strerror(errno));
		if (!buf_add(b, chunk, (size_t)n))
			return error_set(err, KM_EXIT_INPUT, "'%s' is larger than %zu bytes", path, b->ceiling);
	}
	return 0;
}

int file_read(const char *path, struct buf *b, struct error *err)
{
	struct stat st;
	int fd, result;

	if (strcmp(path, "-") == 0)
		return fill(STDIN_FILENO, "standard input", b, err);
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return error_set(err, KM_EXIT_INPUT, "cannot open '%s': %s", path, strerror(errno));
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		close(fd);
		return error_set(err, KM_EXIT_INPUT, "'%s' is not a regular file", path);
	}
	if (later(st.st_mtim, newest))
		newest = st.st_mtim;
	result = fill(fd, path, b, err);
	close(fd);
	return result;
}

static struct timespec stamp(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return later(newest, now) ? newest : now;
}

int file_touch(const char *path, struct error *err)
{
	struct timespec times[2] = { stamp(), stamp() };

	if (utimensat(AT_FDCWD, path, times, 0) < 0)
		return error_set(err, KM_EXIT_ENVIRONMENT, "cannot set the time of '%s': %s", path, strerror(errno));
	return 0;
}

static int write_all(int fd, const char *data, size_t len)
{
	while (len) {
		ssize_t n = write(fd, data, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		data += n;
		len -= (size_t)n;
	}
	return 0;
}

static bool holds(const char *path, const void *data, size_t len)
{
	struct buf b;
	struct stat st;
	bool same = false;

	if (lstat(path, &st) < 0 || !S_ISREG(st.st_mode) || (size_t)st.st_size != len)
		return false;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	buf_init(&b, len);
	if (fd >= 0 && fill(fd, path, &b, NULL) == 0)
		same = b.len == len && (len == 0 || memcmp(b.data, data, len) == 0);
	if (fd >= 0)
		close(fd);
	buf_release(&b);
	return same;
}

/* A link, pipe or device where the temporary file should be was put there by somebody else: it goes. So does a file that
 * has another name too. */
static bool is_foreign(const char *temporary)
{
	struct stat st;

	return lstat(temporary, &st) == 0 && (!S_ISREG(st.st_mode) || st.st_nlink > 1);
}

/* Open the temporary file beside the target and lock it. Its name is fixed, so that what a killed process left is
 * used up by the next; the lock, and the look whether the name still means this file, keep two writers apart. A file
 * system where the name never means the file that was opened gives EBUSY. */
static int open_beside(const char *temporary)
{
	for (int tries = 0; tries < 1000; tries++) {
		struct stat mine, named;
		int fd;

		if (is_foreign(temporary) && unlink(temporary) < 0)
			return -1;
		fd = open(temporary, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
		if (fd < 0)
			return -1;
		if (flock(fd, LOCK_EX) == 0 && fstat(fd, &mine) == 0 && lstat(temporary, &named) == 0 &&
		    mine.st_ino == named.st_ino && mine.st_dev == named.st_dev && S_ISREG(mine.st_mode) && mine.st_nlink == 1)
			return fd;
		close(fd);
	}
	errno = EBUSY;
	return -1;
}

static int sync_folder(const char *folder)
{
	int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int result = fd < 0 ? -1 : fsync(fd);

	if (fd >= 0)
		close(fd);
	return result;
}

static int replace(const char *path, const void *data, size_t len)
{
	const char *slash = strrchr(path, '/');
	char *folder = path_folder(path);
	char *temporary = xasprintf("%s/.%s.tmp", folder, slash ? slash + 1 : path);
	struct timespec times[2] = { stamp(), stamp() };
	int fd = open_beside(temporary), result = -1;

	if (fd >= 0) {
		result = ftruncate(fd, 0);
		if (result == 0)
			result = write_all(fd, data, len);
		if (result == 0)
			result = futimens(fd, times);
		if (result == 0)
			result = fsync(fd);
		if (result == 0)
			result = rename(temporary, path);
		if (result != 0) {
			int saved = errno;

			unlink(temporary);
			errno = saved;
		}
		if (close(fd) < 0)
			result = -1;
		if (result == 0)
			result = sync_folder(folder);
	}
	free(temporary);
	free(folder);
	return result;
}

int file_write(const char *path, const void *data, size_t len, struct error *err)
{
	if (!path || strcmp(path, "-") == 0) {
		if (write_all(STDOUT_FILENO, data, len) < 0)
			return error_set(err, KM_EXIT_ENVIRONMENT, "cannot write standard output: %s", strerror(errno));
		return 0;
	}
	if (holds(path, data, len))
		return file_touch(path, err);
	if (replace(path, data, len) < 0)
		return error_set(err, KM_EXIT_ENVIRONMENT, "cannot write '%s': %s", path, strerror(errno));
	return 0;
}

static int append(int fd, const char *line)
{
	struct buf b;
	char last = '\n';
	int result;
	off_t end;

	if (flock(fd, LOCK_EX) < 0)
		return -1;
	end = lseek(fd, 0, SEEK_END);
	if (end < 0 || (end > 0 && pread(fd, &last, 1, end - 1) != 1))
		return -1;
	buf_init(&b, strlen(line) + 2);
	if (last != '\n')
		buf_putc(&b, '\n');
	buf_puts(&b, line);
	buf_putc(&b, '\n');
	result = write_all(fd, b.data, b.len);
	buf_release(&b);
	return result == 0 ? fsync(fd) : -1;
}

int file_append_line(const char *path, const char *line, struct error *err)
{
	int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
	int result = fd < 0 ? -1 : append(fd, line);

	if (result < 0)
		error_set(err, KM_EXIT_ENVIRONMENT, "cannot append to '%s': %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	return result;
}

bool file_exists(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0;
}

int file_need_folder(const char *path, struct error *err)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return error_set(err, KM_EXIT_INPUT, "cannot open the folder '%s': %s", path, strerror(errno));
	close(fd);
	return 0;
}

int file_make_folder(const char *path, struct error *err)
{
	char *copy = xstrdup(path);
	int result = 0;

	for (char *p = copy + 1; result == 0; p++) {
		char c = *p;

		if (c && c != '/')
			continue;
		*p = 0;
		if (mkdir(copy, 0777) < 0 && errno != EEXIST)
			result = error_set(err, KM_EXIT_ENVIRONMENT, "cannot make folder '%s': %s", copy, strerror(errno));
		*p = c;
		if (!c)
			break;
	}
	free(copy);
	return result;
}

char *path_folder(const char *path)
{
	const char *slash = strrchr(path, '/');

	if (!slash)
		return xstrdup(".");
	return slash == path ? xstrdup("/") : xstrndup(path, (size_t)(slash - path));
}

char *path_beside(const char *from, const char *relative)
{
	char *folder, *path;

	if (relative[0] == '/')
		return xstrdup(relative);
	if (!from || strcmp(from, "-") == 0)
		return xstrdup(relative);
	folder = path_folder(from);
	path = strcmp(folder, ".") == 0 ? xstrdup(relative) : xasprintf("%s/%s", folder, relative);
	free(folder);
	return path;
}

bool path_is_tame(const char *path)
{
	if (path[0] == '/' || path[0] == 0)
		return false;
	for (int leading = 0; starts_with(path, "../"); path += 3)
		if (++leading > 2)
			return false;
	for (const char *p = path; *p; p += strcspn(p, "/") + (p[strcspn(p, "/")] == '/'))
		if (strcspn(p, "/") == 2 && p[0] == '.' && p[1] == '.')
			return false;
	return true;
}
