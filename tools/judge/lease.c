#include "lease.h"

#include "cache.h"
#include "file.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* The descriptor; -1 on failure, and with LOCK_NB also if another has it, which *busy then says. */
static int take(const char *device, int how, bool *busy, struct error *err)
{
	char *folder = cache_folder(err), *path;
	int fd, result;

	if (!folder)
		return -1;
	path = xasprintf("%s/lock-%s", folder, device);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	do
		result = fd < 0 ? -1 : flock(fd, how);
	while (fd >= 0 && result < 0 && errno == EINTR);
	*busy = fd >= 0 && result < 0 && errno == EWOULDBLOCK;
	if (result < 0) {
		error_set(err, KM_EXIT_ENVIRONMENT, "cannot lock '%s': %s", path, strerror(errno));
		lease_drop(fd);
		fd = -1;
	}
	free(path);
	free(folder);
	return fd;
}

int lease_take(const char *device, struct error *err)
{
	bool busy;

	return take(device, LOCK_EX, &busy, err);
}

int lease_try(const char *device, int *lease, struct error *err)
{
	bool busy = false;

	*lease = take(device, LOCK_EX | LOCK_NB, &busy, err);
	return *lease >= 0 || busy ? 0 : -1;
}

void lease_drop(int lease)
{
	if (lease >= 0)
		close(lease);
}
