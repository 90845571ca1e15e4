/* What km-bench, a keeper and a runner share: messages that fit into a packet, leases, and a runner that finds no device. */
#include "gpu.h"
#include "keeper_protocol.h"
#include "lease.h"
#include "process.h"
#include "runner_process.h"
#include "task.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

/* No padding that differs between compilers, and room for what is put there. */
static void test_sizes(void **state)
{
	(void)state;
	assert_int_equal(sizeof(struct protocol_message), 64 + PROTOCOL_ARGS_MAX + PROTOCOL_TEXT_MAX);
	assert_int_equal(offsetof(struct protocol_message, args), 64);
	assert_int_equal(offsetof(struct keeper_message, args) % 16, 0);
	assert_int_equal(sizeof(struct keeper_patch), 8);
	assert_true(TASK_MAX_TENSORS * sizeof(struct keeper_patch) <= PROTOCOL_TEXT_MAX);
	assert_true(offsetof(struct keeper_page, release) >= 128 && offsetof(struct keeper_page, done) >= 256);
	assert_true(sizeof(struct keeper_page) <= KEEPER_PAGE_BYTES);
}

static void test_one_packet(void **state)
{
	static struct keeper_message sent, got;
	int pair[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	memset(&sent, 0x5a, sizeof(sent));
	assert_int_equal(send(pair[0], &sent, sizeof(sent), 0), sizeof(sent));
	assert_int_equal(recv(pair[1], &got, sizeof(got), 0), sizeof(got));
	assert_memory_equal(&sent, &got, sizeof(got));
	close(pair[0]);
	close(pair[1]);
}

static void test_lease(void **state)
{
	char folder[] = "/tmp/km-test-XXXXXX", path[64];
	int first, second;
	struct error err;

	(void)state;
	assert_non_null(mkdtemp(folder));
	setenv("KM_CACHE", folder, 1);
	assert_int_equal(lease_try("gpu-GPU-1", &first, &err), 0);
	assert_true(first >= 0);
	assert_int_equal(lease_try("gpu-GPU-1", &second, &err), 0);
	assert_int_equal(second, -1);
	assert_int_equal(lease_try("gpu-GPU-2", &second, &err), 0);
	assert_true(second >= 0);
	lease_drop(second);
	lease_drop(first);
	assert_int_equal(lease_try("gpu-GPU-1", &first, &err), 0);
	assert_true(first >= 0);
	lease_drop(first);
	for (int i = 1; i <= 2; i++) {
		snprintf(path, sizeof(path), "%s/lock-gpu-GPU-%d", folder, i);
		unlink(path);
	}
	assert_int_equal(rmdir(folder), 0);
}

static volatile sig_atomic_t interrupted;

static void on_alarm(int signal)
{
	interrupted = signal;
}

/* Two judgements have two devices; a third waits for one of them. */
static void test_devices(void **state)
{
	char folder[] = "/tmp/km-test-XXXXXX", path[64];
	const struct gpu gpus[] = { { "0", "one", "GPU-1", 9, 0 }, { "1", "two", "GPU-2", 9, 0 } }, *first, *second, *third;
	struct error err;
	int leases[3];

	(void)state;
	assert_non_null(mkdtemp(folder));
	setenv("KM_CACHE", folder, 1);
	leases[0] = gpu_lease(gpus, 2, &first, NULL, &err);
	leases[1] = gpu_lease(gpus, 2, &second, NULL, &err);
	assert_true(leases[0] >= 0 && leases[1] >= 0);
	assert_ptr_equal(first, &gpus[0]);
	assert_ptr_equal(second, &gpus[1]);
	signal(SIGALRM, on_alarm);
	alarm(1);
	assert_int_equal(gpu_lease(gpus, 2, &third, &interrupted, &err), -1);
	assert_int_equal(interrupted, SIGALRM);
	interrupted = 0;
	lease_drop(leases[1]);
	leases[2] = gpu_lease(gpus, 2, &third, &interrupted, &err);
	assert_true(leases[2] >= 0);
	assert_ptr_equal(third, &gpus[1]);
	lease_drop(leases[0]);
	lease_drop(leases[2]);
	for (int i = 1; i <= 2; i++) {
		snprintf(path, sizeof(path), "%s/lock-gpu-GPU-%d", folder, i);
		unlink(path);
	}
	assert_int_equal(rmdir(folder), 0);
}

static void launch(struct runner_process *r, const char *const *wrapper, int output)
{
	static const char *const none[] = { NULL }, *const variables[] = { "CUDA_VISIBLE_DEVICES=", NULL };
	struct runner_start start = { .program = "km-runner-cuda", .memory_bytes = 1 << 30,
				      .libraries = none, .environment = variables, .processes = 64,
				      .wrapper = wrapper, .wrapper_seconds = 30, .output = output };
	struct error err = { .code = KM_OK };

	assert_int_equal(runner_process_launch(r, &start, &err), 0);
}

/* What it says to SETUP with so many descriptors. */
static void set_up(struct runner_process *r, size_t count, struct error *err)
{
	struct runner_slabs slabs = { .descriptor_count = count, .bytes = { 1, 1, 1 } };

	for (size_t i = 0; i < count; i++)
		slabs.descriptors[i] = process_memfd("x", "x", 1, err);
	assert_int_equal(runner_process_set_up(r, &slabs, err), -1);
	for (size_t i = 0; i < count; i++)
		close(slabs.descriptors[i]);
	assert_int_equal(err->code, KM_EXIT_ENVIRONMENT);
	assert_null(r->sandbox);
}

/* In its sandbox it starts, looks for the device, and says what is missing when it is asked. Under a tool it can end by itself,
 * and what the tool says before and after is collected. */
static void start_without_device(const char *const *wrapper, int output)
{
	struct runner_process r;
	struct error err;

	launch(&r, wrapper, output);
	set_up(&r, PROTOCOL_SLABS + 1, &err);
	assert_non_null(strstr(err.text, "the runner cannot start: no CUDA device"));
}

/* One that has ended while nobody looked. */
static void test_gone(void **state)
{
	static const char *const tool[] = { "/bin/sh", "-c", "exit 7", "sh", NULL };
	struct runner_process r;
	struct error err;

	(void)state;
	launch(&r, tool, -1);
	while (sandbox_check(r.sandbox))
		usleep(1000);
	set_up(&r, PROTOCOL_SLABS + 1, &err);
	assert_non_null(strstr(err.text, "the runner did not start in its sandbox: the runner ended the process with status 7"));
}

/* The slabs and the page, no less. */
static void test_few_descriptors(void **state)
{
	struct runner_process r;
	struct error err;

	(void)state;
	for (size_t count = 0; count <= PROTOCOL_SLABS; count++) {
		launch(&r, NULL, -1);
		set_up(&r, count, &err);
		assert_non_null(strstr(err.text, "the runner did not start in its sandbox"));
	}
}

/* No more either: it ends without an answer. */
static void test_many_descriptors(void **state)
{
	struct protocol_message m = { .magic = PROTOCOL_MAGIC, .kind = PROTOCOL_SETUP };
	const int descriptors[PROTOCOL_SLABS + 2] = { 0 };
	unsigned char control[CMSG_SPACE(sizeof(descriptors))] __attribute__((aligned(16))) = { 0 };
	struct iovec part = { &m, sizeof(m) };
	struct msghdr header = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	struct runner_process r;

	(void)state;
	launch(&r, NULL, -1);
	*CMSG_FIRSTHDR(&header) = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(descriptors)) };
	memcpy(CMSG_DATA(CMSG_FIRSTHDR(&header)), descriptors, sizeof(descriptors));
	assert_int_equal(sendmsg(r.socket, &header, MSG_NOSIGNAL), sizeof(m));
	assert_int_equal(recv(r.socket, &m, sizeof(m), 0), 0);
	runner_process_end(&r);
}

static void test_no_device(void **state)
{
	(void)state;
	start_without_device(NULL, -1);
}

static void test_under_tool(void **state)
{
	static const char *const tool[] = { "/bin/sh", "-c", "echo begun; \"$@\"; echo ended $?", "sh", NULL };
	int output = memfd_create("output", MFD_CLOEXEC);
	char text[200] = "";

	(void)state;
	assert_true(output >= 0);
	start_without_device(tool, output);
	assert_true(pread(output, text, sizeof(text) - 1, 0) > 0);
	assert_string_equal(text, "begun\nended 0\n");
	close(output);
}

/* Is the runner there? It is built where nvcc is; sanitized ones are not built at all. */
static bool find_runner(void)
{
	char *program = getenv("KM_RUNNER_CUDA") ? NULL : realpath("bin/km-runner-cuda", NULL);

	if (program)
		setenv("KM_RUNNER_CUDA", program, 1);
	free(program);
	return getenv("KM_RUNNER_CUDA") != NULL;
}

int main(void)
{
	const struct CMUnitTest always[] = {
		cmocka_unit_test(test_sizes), cmocka_unit_test(test_one_packet), cmocka_unit_test(test_lease), cmocka_unit_test(test_devices),
	};
	const struct CMUnitTest with_runner[] = {
		cmocka_unit_test(test_sizes), cmocka_unit_test(test_one_packet), cmocka_unit_test(test_lease), cmocka_unit_test(test_devices),
		cmocka_unit_test(test_no_device), cmocka_unit_test(test_gone), cmocka_unit_test(test_few_descriptors),
		cmocka_unit_test(test_many_descriptors), cmocka_unit_test(test_under_tool),
	};

	if (find_runner())
		return cmocka_run_group_tests_name("protocol", with_runner, NULL, NULL);
	puts("# skipped: how a runner is started: bin/km-runner-cuda is not there, which nvcc builds");
	return cmocka_run_group_tests_name("protocol", always, NULL, NULL);
}
