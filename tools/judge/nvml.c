#include "nvml.h"

#include "util.h"

#include <dlfcn.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NVML_CLOCK_SM = 1, NVML_CLOCK_MEM = 2, NVML_NOT_SUPPORTED = 3 };

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

/* ---- the list ---------------------------------------------------------------------------------------------------- */

struct lister {
	int (*init)(void), (*shutdown)(void);
	int (*count)(unsigned *);
	int (*by_index)(unsigned, void **);
	int (*name)(void *, char *, unsigned), (*uuid)(void *, char *, unsigned);
	int (*capability)(void *, int *, int *);
	int (*mig)(void *, unsigned *, unsigned *);
};

static bool find_lister(void *library, struct lister *l)
{
	*(void **)&l->init = dlsym(library, "nvmlInit_v2");
	*(void **)&l->shutdown = dlsym(library, "nvmlShutdown");
	*(void **)&l->count = dlsym(library, "nvmlDeviceGetCount_v2");
	*(void **)&l->by_index = dlsym(library, "nvmlDeviceGetHandleByIndex_v2");
	*(void **)&l->name = dlsym(library, "nvmlDeviceGetName");
	*(void **)&l->uuid = dlsym(library, "nvmlDeviceGetUUID");
	*(void **)&l->capability = dlsym(library, "nvmlDeviceGetCudaComputeCapability");
	*(void **)&l->mig = dlsym(library, "nvmlDeviceGetMigMode");
	return l->init && l->shutdown && l->count && l->by_index && l->name && l->uuid && l->capability && l->mig;
}

static bool identify(const struct lister *l, unsigned index, struct nvml_identity *to)
{
	unsigned now = 0, pending = 0;
	void *device;
	int mig;

	if (l->by_index(index, &device) != 0 || l->name(device, to->name, sizeof(to->name)) != 0 ||
	    l->uuid(device, to->uuid, sizeof(to->uuid)) != 0 || l->capability(device, &to->major, &to->minor) != 0)
		return false;
	mig = l->mig(device, &now, &pending);
	return (mig == NVML_NOT_SUPPORTED || (mig == 0 && now == 0)) && starts_with(to->uuid, "GPU-");
}

static size_t list_all(const struct lister *l, struct nvml_identity *to, size_t most)
{
	unsigned count = 0;

	if (l->count(&count) != 0 || count > most)
		return 0;
	for (unsigned i = 0; i < count; i++)
		if (!identify(l, i, &to[i]))
			return 0;
	return count;
}

size_t nvml_list(struct nvml_identity *to, size_t most)
{
	void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
	struct lister l;
	size_t count = 0;

	if (library && find_lister(library, &l) && l.init() == 0) {
		count = list_all(&l, to, most);
		l.shutdown();
	}
	if (library)
		dlclose(library);
	return count;
}

/* ---- one device -------------------------------------------------------------------------------------------------- */

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
