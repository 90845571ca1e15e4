#include "nvml.h"

#include "util.h"

#include <dlfcn.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NVML_CLOCK_SM = 1, NVML_CLOCK_MEM = 2 };

/* Power cap, hardware slowdown, thermal slowdown by software and hardware, power brake. */
#define SLOWED (0x4ull | 0x8ull | 0x20ull | 0x40ull | 0x80ull)

struct nvml {
	void *library, *device;
	int (*shutdown)(void);
	int (*by_uuid)(const char *, void **);
	int (*minor)(void *, unsigned *);
	int (*clock)(void *, int, unsigned *);
	int (*reasons)(void *, unsigned long long *); /* NULL: the library is too old */
};

static bool find_functions(struct nvml *n, int (**init)(void))
{
	*(void **)init = dlsym(n->library, "nvmlInit_v2");
	*(void **)&n->shutdown = dlsym(n->library, "nvmlShutdown");
	*(void **)&n->by_uuid = dlsym(n->library, "nvmlDeviceGetHandleByUUID");
	*(void **)&n->minor = dlsym(n->library, "nvmlDeviceGetMinorNumber");
	*(void **)&n->clock = dlsym(n->library, "nvmlDeviceGetClockInfo");
	*(void **)&n->reasons = dlsym(n->library, "nvmlDeviceGetCurrentClocksThrottleReasons");
	return *init && n->shutdown && n->by_uuid && n->minor && n->clock;
}

struct nvml *nvml_open(const char *uuid)
{
	struct nvml *n = xcalloc(1, sizeof(*n));
	int (*init)(void);

	n->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
	if (n->library && find_functions(n, &init) && init() == 0) {
		if (n->by_uuid(uuid, &n->device) == 0)
			return n;
		n->shutdown();
	}
	if (n->library)
		dlclose(n->library);
	free(n);
	return NULL;
}

void nvml_close(struct nvml *n)
{
	if (!n)
		return;
	n->shutdown();
	dlclose(n->library);
	free(n);
}

/* The number in one of the driver's own files if it is about this device, else -1. */
static int minor_of_file(const char *path, const char *uuid)
{
	FILE *f = fopen(path, "r");
	char line[256];
	int number = -1;
	bool this_one = false;

	while (f && fgets(line, sizeof(line), f)) {
		this_one = this_one || (starts_with(line, "GPU UUID:") && strstr(line, uuid));
		if (starts_with(line, "Device Minor:"))
			number = atoi(line + strlen("Device Minor:"));
	}
	if (f)
		fclose(f);
	return this_one ? number : -1;
}

int nvml_minor(const struct nvml *n, const char *uuid)
{
	unsigned number;
	glob_t files;
	int found = -1;

	if (n && n->minor(n->device, &number) == 0)
		return (int)number;
	if (glob("/proc/driver/nvidia/gpus/*/information", 0, NULL, &files) != 0)
		return -1;
	for (size_t i = 0; i < files.gl_pathc && found < 0; i++)
		found = minor_of_file(files.gl_pathv[i], uuid);
	globfree(&files);
	return found;
}

bool nvml_clocks(const struct nvml *n, struct nvml_clocks *clocks)
{
	unsigned long long reasons = 0;

	if (!n || n->clock(n->device, NVML_CLOCK_SM, &clocks->processor_mhz) != 0 ||
	    n->clock(n->device, NVML_CLOCK_MEM, &clocks->memory_mhz) != 0)
		return false;
	clocks->slowed = n->reasons && n->reasons(n->device, &reasons) == 0 && (reasons & SLOWED);
	return true;
}
