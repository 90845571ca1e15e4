#include "lease.h"

#include "cache.h"
#include "file.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

int lease_take(const char *device, struct error *err)
{
	char *folder = cache_folder(err), *path;
	int fd, result;

	if (!folder)
		return -1;
	path = xasprintf("%s/lock-%s", folder, device);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	do
		result = fd < 0 ? -1 : flock(fd, LOCK_EX);
	while (fd >= 0 && result < 0 && errno == EINTR);
	if (result < 0) {
		error_set(err, KM_EXIT_ENVIRONMENT, "cannot lock '%s': %s", path, strerror(errno));
		lease_drop(fd);
		fd = -1;
	}
	free(path);
	free(folder);
	return fd;
}

void lease_drop(int lease)
{
	if (lease >= 0)
		close(lease);
}
