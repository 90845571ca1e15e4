/* keeper_process.c - bin/km-keeper-cuda: the trusted process that holds the device, started by km-bench.
 *
 * Reads    questions from a socket (keeper_protocol.h), the task folder, the task's compiled reference
 * Writes   answers; for --probe, --devices and --selftest: stdout; for --export: files
 * Example  km-keeper-cuda 5 0 tasks/x .cache/x.ref/reference.so 2 0 1 2
 *          km-keeper-cuda --probe 0
 */
#include "keeper_process.h"

#include "buf.h"
#include "json.h"
#include "nvml.h"
#include "util.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { DEVICES_MAX = 64 };

static const char usage[] =
	"Usage: km-keeper-cuda SOCKET DEVICE TASK-FOLDER REFERENCE.so PARTICIPANTS WORKLOAD...\n"
	"       km-keeper-cuda --devices\n"
	"       km-keeper-cuda --probe DEVICE\n"
	"       km-keeper-cuda --selftest TASK-FOLDER REFERENCE.so\n"
	"       km-keeper-cuda --export DEVICE TASK-FOLDER REFERENCE.so WORKLOAD INPUT-SET FOLDER\n"
	"  The process of km-bench that holds a CUDA device. --devices: number or uuid, name, uuid and\n"
	"  architecture of each; DEVICE: what is first there;\n"
	"  --probe: what a device can do, measured; --selftest: is the keeper right on this device?\n"
	"  --export: inputs and expected outputs as files (km-check-task does that).\n";

static int fail(const struct error *err)
{
	fprintf(stderr, "km-keeper-cuda: error: %s\n", err->text);
	return err->code;
}

/* ---- the socket ------------------------------------------------------------------------------------------------- */

/* 1: a question; 0: the end of the socket; -1: neither. */
static int receive(int socket, struct keeper_message *m, struct error *err)
{
	ssize_t got;

	do
		got = recv(socket, m, sizeof(*m), 0);
	while (got < 0 && errno == EINTR);
	if (got == 0)
		return 0;
	if (got < 0)
		return error_set(err, KM_EXIT_ENVIRONMENT, "cannot read a question: %s", strerror(errno));
	if (got != (ssize_t)sizeof(*m) || m->magic != KEEPER_MAGIC)
		return error_set(err, KM_EXIT_ENVIRONMENT, "what came is no question");
	return 1;
}

static void attach(struct msghdr *header, unsigned char *control, const int *descriptors)
{
	size_t bytes = KEEPER_PROCESS_DESCRIPTORS * sizeof(*descriptors);
	struct cmsghdr *c;

	header->msg_control = control;
	header->msg_controllen = CMSG_SPACE(bytes);
	c = CMSG_FIRSTHDR(header);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(bytes);
	memcpy(CMSG_DATA(c), descriptors, bytes);
}

static int reply(int socket, struct keeper_message *m, const int *descriptors, struct error *err)
{
	unsigned char control[CMSG_SPACE(KEEPER_PROCESS_DESCRIPTORS * sizeof(int))] __attribute__((aligned(16))) = { 0 };
	struct iovec part = { m, sizeof(*m) };
	struct msghdr header = { .msg_iov = &part, .msg_iovlen = 1 };
	ssize_t sent;

	if (descriptors[0] >= 0)
		attach(&header, control, descriptors);
	do
		sent = sendmsg(socket, &header, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	if (sent != (ssize_t)sizeof(*m))
		return error_set(err, KM_EXIT_ENVIRONMENT, "cannot answer: %s", strerror(errno));
	return 0;
}

/* A keeper that cannot load its task says so in answer to OPEN. */
static int serve(struct keeper_process *k, int socket, int ordinal, const struct error *loading, struct error *err)
{
	static struct keeper_message m;
	int descriptors[KEEPER_PROCESS_DESCRIPTORS] = { -1, -1, -1, -1 }, more;

	while ((more = receive(socket, &m, err)) > 0) {
		if (loading->code == KM_OK) {
			keeper_process_answer(k, ordinal, &m, descriptors);
		} else {
			m.kind = KEEPER_FAILED;
			m.value = loading->code;
			snprintf(m.text, sizeof(m.text), "%.*s", (int)sizeof(m.text) - 1, loading->text);
		}
		if (reply(socket, &m, descriptors, err) < 0)
			return -1;
	}
	return more;
}

/* ---- command lines ---------------------------------------------------------------------------------------------- */

static bool read_number(const char *text, int *value)
{
	long n;

	if (!parse_long(text, 0, 1 << 20, &n))
		return false;
	*value = (int)n;
	return true;
}

/* An ordinal among the devices that CUDA shows, or the uuid of one, which is then the only one that it shows us. To be called
 * before CUDA is. */
static bool read_device(const char *text, int *ordinal)
{
	if (!starts_with(text, "GPU-"))
		return read_number(text, ordinal);
	*ordinal = 0;
	return setenv("CUDA_VISIBLE_DEVICES", text, 1) == 0;
}

static int run_keeper(int argc, char **argv)
{
	struct error loading = { .code = KM_OK }, err = { .code = KM_OK };
	struct keeper_process k;
	int socket, ordinal, participants, result;
	int *named = xcalloc((size_t)argc, sizeof(*named));

	if (argc < 7 || !read_number(argv[1], &socket) || !read_device(argv[2], &ordinal) || !read_number(argv[5], &participants)) {
		fputs(usage, stderr);
		free(named);
		return KM_EXIT_USAGE;
	}
	for (int i = 6; i < argc; i++)
		if (!read_number(argv[i], &named[i - 6]))
			named[i - 6] = -1; /* no workload has this number */
	/* km-bench ends us by closing the socket; an interrupt at its terminal is its own business. */
	signal(SIGINT, SIG_IGN);
	keeper_process_load(&k, argv[3], argv[4], (size_t)participants, named, (size_t)argc - 6, &loading);
	result = serve(&k, socket, ordinal, &loading, &err);
	/* The driver takes back what a process had when it is gone: km-bench waits for that, so nothing is given back piece by piece
	 * before. */
	_exit(result < 0 ? fail(&err) : KM_OK);
}

static const struct nvml_identity *find_by_uuid(const struct nvml_identity *all, size_t count, const char *uuid, size_t length)
{
	for (size_t i = 0; i < count; i++)
		if (strlen(all[i].uuid) == length && memcmp(all[i].uuid, uuid, length) == 0)
			return &all[i];
	return NULL;
}

/* Which devices CUDA_VISIBLE_DEVICES leaves, as far as that is certain without CUDA: whole uuids, each once. Without it all, but
 * which of several kinds CUDA has first is not known. 0: it is not certain. */
static size_t choose_visible(const struct nvml_identity *all, size_t count, const struct nvml_identity *chosen[DEVICES_MAX])
{
	const char *named = getenv("CUDA_VISIBLE_DEVICES");
	size_t n = 0, length;

	for (; !named && n < count; n++) {
		if (strcmp(all[n].name, all[0].name) != 0)
			return 0;
		chosen[n] = &all[n];
	}
	for (; named && n < count; named += length + 1) {
		length = strcspn(named, ",");
		chosen[n] = find_by_uuid(all, count, named, length);
		for (size_t i = 0; i < n && chosen[n]; i++)
			if (chosen[i] == chosen[n])
				return 0;
		if (!chosen[n])
			return 0;
		n++;
		if (!named[length])
			return n;
	}
	return named ? 0 : n;
}

/* CUDA takes some tenths of a second to begin with. Devices that are known without it are named by their uuids. */
static bool list_without_cuda(void)
{
	const struct nvml_identity *chosen[DEVICES_MAX];
	struct nvml_identity all[DEVICES_MAX];
	size_t count = choose_visible(all, nvml_list(all, DEVICES_MAX), chosen);

	for (size_t i = 0; i < count; i++)
		printf("%s\t%s\t%s\t%d.%d\n", chosen[i]->uuid, chosen[i]->name, chosen[i]->uuid, chosen[i]->major, chosen[i]->minor);
	return count > 0;
}

static int list_devices(void)
{
	struct error err;
	int count = list_without_cuda() ? 0 : device_count(&err);

	for (int i = 0; i < count; i++) {
		struct keeper_device device;

		if (device_identity(i, &device, &err) < 0)
			return fail(&err);
		printf("%d\t%s\t%s\t%d.%d\n", i, device.name, device.uuid, device.major, device.minor);
	}
	return count < 0 ? fail(&err) : KM_OK;
}

static int probe(const char *device)
{
	struct error err;
	struct device *d;
	cJSON *found;
	int n, result;

	if (!read_device(device, &n)) {
		fputs(usage, stderr);
		return KM_EXIT_USAGE;
	}
	d = device_open(n, &err);
	if (!d)
		return fail(&err);
	found = device_probe(d, &err);
	result = found ? json_save("-", found, &err) : -1;
	cJSON_Delete(found);
	device_close(d);
	return result < 0 ? fail(&err) : KM_OK;
}

static int export(char **argv)
{
	int ordinal, workload, set;
	struct error err;

	if (!read_device(argv[0], &ordinal) || !read_number(argv[3], &workload) || !read_number(argv[4], &set)) {
		fputs(usage, stderr);
		return KM_EXIT_USAGE;
	}
	return keeper_process_export(ordinal, argv[1], argv[2], workload, set, argv[5], &err) < 0 ? fail(&err) : KM_OK;
}

int main(int argc, char **argv)
{
	int result;

	if (argc == 2 && (strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "--help") == 0)) {
		fputs(usage, stdout);
		result = KM_OK;
	} else if (argc == 2 && strcmp(argv[1], "--devices") == 0) {
		result = list_devices();
	} else if (argc == 3 && strcmp(argv[1], "--probe") == 0) {
		result = probe(argv[2]);
	} else if (argc == 4 && strcmp(argv[1], "--selftest") == 0) {
		result = keeper_process_selftest(argv[2], argv[3]);
	} else if (argc == 8 && strcmp(argv[1], "--export") == 0) {
		result = export(argv + 2);
	} else {
		return run_keeper(argc, argv);
	}
	if (fflush(stdout) != 0 && result == KM_OK)
		result = KM_EXIT_ENVIRONMENT;
	return result;
}
