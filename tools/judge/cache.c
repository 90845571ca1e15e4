#include "cache.h"

#include "file.h"
#include "hash.h"
#include "util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char *choose_folder(struct error *err)
{
	const char *own = getenv("KM_CACHE"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");

	if (own && own[0]) {
		char *here = own[0] == '/' ? NULL : realpath(".", NULL);
		char *path = here ? xasprintf("%s/%s", here, own) : xstrdup(own);

		free(here);
		return path;
	}
	if (xdg && xdg[0] == '/')
		return xasprintf("%s/kernel-make", xdg);
	if (home && home[0] == '/')
		return xasprintf("%s/.cache/kernel-make", home);
	error_set(err, KM_EXIT_ENVIRONMENT, "no place for the cache: set KM_CACHE or HOME");
	return NULL;
}

static int make_folder(const char *folder, struct error *err)
{
	char *parent = path_folder(folder);
	int result = file_make_folder(parent, err);

	free(parent);
	if (result == 0 && mkdir(folder, 0700) < 0 && errno != EEXIST)
		result = error_set(err, KM_EXIT_ENVIRONMENT, "cannot make it: %s", strerror(errno));
	return result;
}

static int check_folder(const char *folder, struct error *err)
{
	struct stat st;

	if (stat(folder, &st) < 0 || !S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 022))
		return error_set(err, KM_EXIT_ENVIRONMENT, "it is not a folder that we alone can write");
	return 0;
}

char *cache_folder(struct error *err)
{
	char *folder = choose_folder(err);

	if (!folder)
		return NULL;
	if ((file_exists(folder) || make_folder(folder, err) == 0) && check_folder(folder, err) == 0)
		return folder;
	error_prefix(err, "the cache folder '%s' (KM_CACHE= sets another)", folder);
	free(folder);
	return NULL;
}

char *cache_path(const char *name, struct error *err)
{
	char *folder = cache_folder(err), *path;

	if (!folder)
		return NULL;
	path = xasprintf("%s/%s", folder, name);
	free(folder);
	return path;
}

bool cache_get(const char *name, struct buf *b)
{
	char *path = cache_path(name, NULL);
	bool found = path && file_exists(path) && file_read(path, b, NULL) == 0;

	if (found)
		utimensat(AT_FDCWD, path, NULL, 0);
	else
		buf_clear(b);
	free(path);
	return found;
}

struct entry {
	char *path;
	struct timespec used;
	off_t size;
};

static int compare_use(const void *a, const void *b)
{
	const struct timespec *x = &((const struct entry *)a)->used, *y = &((const struct entry *)b)->used;

	if (x->tv_sec != y->tv_sec)
		return x->tv_sec < y->tv_sec ? -1 : 1;
	return x->tv_nsec < y->tv_nsec ? -1 : x->tv_nsec > y->tv_nsec;
}

/* "<sha256>.so", ".json" or ".ref". Whatever else lies in the folder is not ours to delete. */
static bool is_entry(const char *name)
{
	const char *end = name + HASH_HEX;

	return strspn(name, "0123456789abcdef") == HASH_HEX && (!strcmp(end, ".so") || !strcmp(end, ".json") || !strcmp(end, ".ref"));
}

static size_t list_entries(const char *folder, struct entry **entries, off_t *total)
{
	DIR *dir = opendir(folder);
	struct dirent *item;
	size_t count = 0;

	*entries = NULL;
	*total = 0;
	while (dir && (item = readdir(dir)) != NULL) {
		char *path = xasprintf("%s/%s", folder, item->d_name);
		struct stat st;

		if (!is_entry(item->d_name) || lstat(path, &st) < 0 || !S_ISREG(st.st_mode)) {
			free(path);
			continue;
		}
		*entries = xreallocarray(*entries, count + 1, sizeof(**entries));
		(*entries)[count++] = (struct entry){ path, st.st_mtim, st.st_size };
		*total += st.st_size;
	}
	if (dir)
		closedir(dir);
	return count;
}

static void drop_oldest(const char *folder)
{
	struct entry *entries;
	off_t total;
	size_t count = list_entries(folder, &entries, &total);

	if (count > 1)
		qsort(entries, count, sizeof(*entries), compare_use);
	for (size_t i = 0; i < count; i++) {
		if (total > CACHE_MAX && unlink(entries[i].path) == 0)
			total -= entries[i].size;
		free(entries[i].path);
	}
	free(entries);
}

int cache_put(const char *name, const void *data, size_t len, struct error *err)
{
	char *folder = cache_folder(err), *path;
	int result;

	if (!folder)
		return -1;
	path = xasprintf("%s/%s", folder, name);
	result = file_write(path, data, len, err);
	drop_oldest(folder);
	free(path);
	free(folder);
	return result;
}
