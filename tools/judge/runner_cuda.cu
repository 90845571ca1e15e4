/* runner_cuda.cu - bin/km-runner-cuda: the process that a candidate for the target cuda runs in.
 *
 * Started by km-bench inside the sandbox as `runner KERNEL.so SOCKET`, the last being a descriptor's number; KERNEL.so is "-"
 * where km-bench only wants to measure how long nothing takes. It makes a context on the one device that it can see, takes
 * the slabs and the page with SETUP and maps them, opens the kernel and then does as protocol.h says until it is killed. It
 * never exits by itself, but under a tool that watches it (PROTOCOL_TOOL): there it has no filter either, and marks its calls.
 *
 * The filter of system calls is installed when the context is there and before the kernel is opened. It leaves what the
 * driver needs to load code, launch it and wait, and threads; no process, no socket but ours, no file to write. A refused
 * call raises SIGSYS, whose handler tells km-bench which call it was. Nothing of value is in this process: no seed, no
 * expected number. Its events give the time that counts, but km-bench's own clocks bound what they may say.
 */
#include "runner_parts.h"

#include "keeper_protocol.h"

#include <cuda.h>
#include <cuda_profiler_api.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

struct km_args;

#define WAIT_LIMIT_NS 2000000000ull /* after which the stream goes on though nobody released it */

enum { DRIVER_VERSION = 12000 };

/* The functions of the driver that the runtime has no counterpart for; the driver is opened by the runtime. */
struct driver {
	CUresult (*import)(CUmemGenericAllocationHandle *, void *, CUmemAllocationHandleType);
	CUresult (*granularity)(size_t *, const CUmemAllocationProp *, CUmemAllocationGranularity_flags);
	CUresult (*reserve)(CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long);
	CUresult (*map)(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long);
	CUresult (*access)(CUdeviceptr, size_t, const CUmemAccessDesc *, size_t);
	CUresult (*current)(CUcontext *);
	CUresult (*set_current)(CUcontext);
	CUresult (*error_name)(CUresult, const char **);
};

struct runner {
	struct driver driver;
	CUcontext context;
	cudaStream_t stream;
	cudaEvent_t begin, end;
	struct keeper_page *page, *device_page;
	uint32_t stream_member;
	bool open; /* a kernel is */
	int (*run)(const struct km_args *), (*init)(const struct km_args *);
	size_t (*workspace)(const struct km_args *);
	cudaError_t (*last_error)(void); /* of the kernel's own runtime; NULL if it uses none */
	bool watched; /* by a tool, which started this process */
	/* of the last call, for TIMES */
	cudaError_t error;
	double seconds;
};

static struct runner runner;
static int socket_number;

static inline int keeper_socket(void)
{
	return socket_number;
}

static unsigned char call_args[PROTOCOL_ARGS_MAX] __attribute__((aligned(16)));

/* ---- our own kernels -------------------------------------------------------------------------------------------- */

static __device__ uint64_t now_ns(void)
{
	uint64_t t;

	asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
	return t;
}

/* Say that the stream has come this far, and hold it until the keeper lets it go on. */
static __global__ void wait_for_release(struct keeper_page *page, uint32_t serial, uint64_t limit_ns)
{
	uint64_t start = now_ns();

	page->arrived = serial;
	__threadfence_system();
	while (page->release != serial && now_ns() - start < limit_ns)
		;
}

static __global__ void nothing(void)
{
}

/* ---- seccomp ---------------------------------------------------------------------------------------------------- */

static void refuse_with(struct filter *f, long nr, uint32_t error)
{
	emit(f, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr, 0, 1);
	emit_return(f, SECCOMP_RET_ERRNO | error);
}

/* Allow the call if the argument is a null pointer. */
static void allow_null(struct filter *f, long nr, int argument)
{
	emit(f, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr, 0, 6);
	emit_load(f, low(argument) + 4);
	emit(f, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 3);
	emit_load(f, low(argument));
	emit(f, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1);
	emit_return(f, SECCOMP_RET_ALLOW);
	emit_return(f, SECCOMP_RET_TRAP);
}

/* Threads of this process and nothing else: the C library falls back on clone where clone3 is unknown. */
static void allow_threads(struct filter *f)
{
	const uint32_t wanted = CLONE_THREAD | CLONE_VM;
	const uint32_t refused = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID |
				 CLONE_NEWNET | CLONE_PTRACE | CLONE_VFORK | CLONE_PARENT;

	allow_if(f, SYS_clone, 0, wanted | refused, wanted);
	refuse_with(f, SYS_clone3, ENOSYS);
}

/* Read-only, or for reading and writing as the device's nodes are: there is no other file that could be written. */
static void allow_opening(struct filter *f)
{
	const uint32_t refused = O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | (O_TMPFILE & ~O_DIRECTORY);

	allow_if(f, SYS_openat, 2, refused, 0);
#ifdef SYS_open
	allow_if(f, SYS_open, 1, refused, 0);
#endif
}

static bool filter_calls(void)
{
	static const long calls[] = {
		/* launching, waiting, memory */
		SYS_ioctl, SYS_futex, SYS_sched_yield, SYS_ppoll, SYS_mmap, SYS_munmap, SYS_mprotect, SYS_mremap, SYS_madvise,
		SYS_mincore, SYS_brk, SYS_membarrier, SYS_restart_syscall, SYS_get_mempolicy,
		/* files */
		SYS_read, SYS_pread64, SYS_readv, SYS_write, SYS_writev, SYS_close, SYS_fstat, SYS_newfstatat, SYS_statx, SYS_lseek,
		SYS_readlinkat, SYS_faccessat, SYS_faccessat2, SYS_getcwd, SYS_getdents64, SYS_fcntl, SYS_dup, SYS_dup3, SYS_pipe2,
		SYS_eventfd2,
		/* threads */
		SYS_exit, SYS_set_robust_list, SYS_rseq, SYS_rt_sigprocmask, SYS_set_tid_address, SYS_sched_getaffinity,
		SYS_sched_getscheduler, SYS_sched_getparam, SYS_sched_get_priority_max, SYS_sched_get_priority_min, SYS_getcpu,
		/* questions */
		SYS_clock_gettime, SYS_clock_getres, SYS_clock_nanosleep, SYS_nanosleep, SYS_gettimeofday, SYS_getpid, SYS_gettid,
		SYS_getppid, SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_uname, SYS_sysinfo, SYS_getrusage, SYS_getrandom,
#ifdef __x86_64__
		SYS_poll, SYS_stat, SYS_lstat, SYS_access, SYS_readlink, SYS_dup2, SYS_pipe, SYS_time, SYS_epoll_wait,
#endif
	};
	struct filter f;

	filter_begin(&f);
	allow_socket(&f);
	allow_threads(&f);
	allow_opening(&f);
	allow_null(&f, SYS_prlimit64, 2);
	allow_if(&f, SYS_prctl, 0, UINT32_MAX, PR_SET_NAME);
	for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++)
		allow(&f, calls[i]);
	return filter_install(&f);
}

/* ---- setting up: each says in message.text what did not work ------------------------------------------------------ */

static bool works(cudaError_t e, const char *what)
{
	if (e == cudaSuccess)
		return true;
	snprintf(message.text, sizeof(message.text), "%s: %s (%s)", what, cudaGetErrorString(e), cudaGetErrorName(e));
	return false;
}

static bool driver_works(CUresult e, const char *what)
{
	const char *name = NULL;

	if (e == CUDA_SUCCESS)
		return true;
	runner.driver.error_name(e, &name);
	snprintf(message.text, sizeof(message.text), "%s: %s", what, name ? name : "unknown error of the driver");
	return false;
}

template <typename function> static bool find(const char *name, function *to)
{
	cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
	void *at = NULL;
	cudaError_t e = cudaGetDriverEntryPointByVersion(name, &at, DRIVER_VERSION, cudaEnableDefault, &found);

	if (e == cudaSuccess && found != cudaDriverEntryPointSuccess)
		e = cudaErrorSymbolNotFound;
	*to = (function)at;
	return works(e, name);
}

static bool find_driver(struct driver *d)
{
	return find("cuGetErrorName", &d->error_name) && find("cuMemImportFromShareableHandle", &d->import) &&
	       find("cuMemGetAllocationGranularity", &d->granularity) && find("cuMemAddressReserve", &d->reserve) &&
	       find("cuMemMap", &d->map) && find("cuMemSetAccess", &d->access) && find("cuCtxGetCurrent", &d->current) &&
	       find("cuCtxSetCurrent", &d->set_current);
}

/* The thread spins while it waits, as the empty window was measured. */
static bool open_device(void)
{
	int count = 0;

	message.text[0] = 0;
	return works(cudaGetDeviceCount(&count), "no CUDA device") && works(cudaSetDevice(0), "cannot use the device") &&
	       works(cudaSetDeviceFlags(cudaDeviceScheduleSpin), "cannot set the device's flags") &&
	       works(cudaFree(NULL), "cannot make a context") && find_driver(&runner.driver) &&
	       driver_works(runner.driver.current(&runner.context), "cannot find the context") &&
	       works(cudaStreamCreateWithFlags(&runner.stream, cudaStreamNonBlocking), "cannot make a stream") &&
	       works(cudaEventCreate(&runner.begin), "cannot make an event") &&
	       works(cudaEventCreate(&runner.end), "cannot make an event");
}

/* A slab between two stretches where nothing is mapped, so that running off its end faults there and nowhere else. */
static bool map_slab(int i, int descriptor)
{
	const struct driver *d = &runner.driver;
	CUmemAllocationProp properties = {};
	CUmemAccessDesc access = {};
	CUmemGenericAllocationHandle handle;
	CUdeviceptr room = 0;
	size_t bytes = message.where[i], grain = 0, gap;

	properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
	properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
	properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
	access.location = properties.location;
	access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
	if (!driver_works(d->granularity(&grain, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM), "cuMemGetAllocationGranularity"))
		return false;
	gap = ((size_t)PROTOCOL_GAP + grain - 1) / grain * grain;
	if (!driver_works(d->import(&handle, (void *)(uintptr_t)descriptor, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
			  "cuMemImportFromShareableHandle") ||
	    !driver_works(d->reserve(&room, bytes + 2 * gap, 0, 0, 0), "cuMemAddressReserve") ||
	    !driver_works(d->map(room + gap, bytes, 0, handle, 0), "cuMemMap") ||
	    !driver_works(d->access(room + gap, bytes, &access, 1), "cuMemSetAccess"))
		return false;
	close(descriptor);
	message.where[i] = room + gap;
	return true;
}

static bool map_page(int descriptor)
{
	void *at = mmap(NULL, KEEPER_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0), *on_device = NULL;

	if (at == MAP_FAILED) {
		snprintf(message.text, sizeof(message.text), "cannot map the page: %s", strerror(errno));
		return false;
	}
	close(descriptor);
	runner.page = (struct keeper_page *)at;
	if (!works(cudaHostRegister(at, KEEPER_PAGE_BYTES, cudaHostRegisterMapped), "cannot register the page") ||
	    !works(cudaHostGetDevicePointer(&on_device, at, 0), "cannot find the page on the device"))
		return false;
	runner.device_page = (struct keeper_page *)on_device;
	return true;
}

/* Everything that a call uses once, so that no first call pays for it. */
static bool warm(void)
{
	float ms;

	wait_for_release<<<1, 1, 0, runner.stream>>>(runner.device_page, 0, 0);
	nothing<<<1, 32, 0, runner.stream>>>();
	return works(cudaGetLastError(), "cannot launch a kernel") && works(cudaEventRecord(runner.begin, runner.stream), "cudaEventRecord") &&
	       works(cudaEventRecord(runner.end, runner.stream), "cudaEventRecord") &&
	       works(cudaDeviceSynchronize(), "cannot run a kernel") &&
	       works(cudaEventElapsedTime(&ms, runner.begin, runner.end), "cudaEventElapsedTime");
}

/* With it come the slabs and the page, no less and no more; with no other message anything can come: the filter allows no
 * recvmsg. */
static void receive_setup(int *descriptors)
{
	const size_t bytes = (PROTOCOL_SLABS + 1) * sizeof(int);
	alignas(16) unsigned char control[CMSG_SPACE(bytes)] = {};
	struct iovec part = { &message, sizeof(message) };
	struct msghdr header = {};
	struct cmsghdr *c;
	ssize_t n;

	header.msg_iov = &part;
	header.msg_iovlen = 1;
	header.msg_control = control;
	header.msg_controllen = sizeof(control);
	do
		n = recvmsg(socket_number, &header, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	c = n == sizeof(message) ? CMSG_FIRSTHDR(&header) : NULL;
	if (!c || message.magic != PROTOCOL_MAGIC || message.kind != PROTOCOL_SETUP || (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) ||
	    c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(bytes))
		__builtin_trap();
	memcpy(descriptors, CMSG_DATA(c), bytes);
}

/* `descriptors`: the slabs and the page. */
static bool set_up(const int *descriptors)
{
	runner.stream_member = message.stream;
	if (message.stream > PROTOCOL_ARGS_MAX - sizeof(runner.stream))
		return false;
	for (int i = 0; i < PROTOCOL_SLABS; i++)
		if (!map_slab(i, descriptors[i]))
			return false;
	return map_page(descriptors[PROTOCOL_SLABS]) && warm();
}

static bool close_in(bool trusted)
{
	if (!catch_faults() || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || (!trusted && !filter_calls())) {
		snprintf(message.text, sizeof(message.text), "its system calls cannot be filtered (seccomp): %s", strerror(errno));
		return false;
	}
	return true;
}

/* ---- the kernel ------------------------------------------------------------------------------------------------- */

/* Functions of the runtime that the kernel was linked with, which keeps its own account of errors. With it comes the
 * kernel's device code: it is loaded here, not in the first call. */
static void open_runtime(void)
{
	cudaError_t (*release)(void *), e;
	char text[200];
	void *runtime;

	snprintf(text, sizeof(text), "libcudart.so.%d", CUDART_VERSION / 1000);
	runtime = dlopen(text, RTLD_NOW | RTLD_NOLOAD);
	if (!runtime)
		return;
	*(void **)&release = dlsym(runtime, "cudaFree");
	*(void **)&runner.last_error = dlsym(runtime, "cudaGetLastError");
	e = release ? release(NULL) : cudaErrorSymbolNotFound;
	if (e == cudaSuccess)
		return;
	snprintf(text, sizeof(text), "its code for the device: %s (%s)", cudaGetErrorString(e), cudaGetErrorName(e));
	say_why(text);
}

static void load(const char *library)
{
	void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);

	if (!handle)
		say_why(dlerror());
	*(void **)&runner.run = dlsym(handle, "km_run");
	*(void **)&runner.init = dlsym(handle, "km_init");
	*(void **)&runner.workspace = dlsym(handle, "km_workspace");
	if (!runner.run)
		say_why("the library has no function km_run");
	open_runtime();
	runner.open = true;
	answer(PROTOCOL_LOADED, (runner.init ? PROTOCOL_HAS_INIT : 0) | (runner.workspace ? PROTOCOL_HAS_WORKSPACE : 0));
}

/* ---- calls ------------------------------------------------------------------------------------------------------ */

static cudaError_t take_error(void)
{
	cudaError_t ours = cudaGetLastError(), theirs = runner.last_error ? runner.last_error() : cudaSuccess;

	return theirs != cudaSuccess ? theirs : ours;
}

static void name_error(int64_t e)
{
	message.text[0] = 0;
	if (e > 0 && e < INT32_MAX)
		snprintf(message.text, sizeof(message.text), "%s: %s", cudaGetErrorName((cudaError_t)e), cudaGetErrorString((cudaError_t)e));
}

static struct km_args *take_args(void)
{
	memcpy(call_args, message.args, sizeof(call_args));
	memcpy(call_args + runner.stream_member, &runner.stream, sizeof(runner.stream));
	return (struct km_args *)(void *)call_args;
}

/* Put the output pointers of call i of a batch in place. */
static void patch(int64_t i)
{
	for (uint64_t n = 0; n < message.where[2] && n < KEEPER_PATCHES; n++) {
		struct keeper_patch p;
		uint64_t address;

		memcpy(&p, message.text + n * sizeof(p), sizeof(p));
		if (p.member > PROTOCOL_ARGS_MAX - sizeof(address) || p.copies == 0)
			continue;
		memcpy(&address, message.args + p.member, sizeof(address));
		address += p.step * ((uint64_t)i % p.copies);
		memcpy(call_args + p.member, &address, sizeof(address));
	}
}

/* The first value that is not 0. */
static int run_all(int64_t count)
{
	struct km_args *args = take_args();
	int first = 0;

	for (int64_t i = 0; i < count; i++) {
		int value = 0;

		patch(i);
		if (runner.open)
			value = runner.run(args);
		else
			nothing<<<1, 32, 0, runner.stream>>>();
		first = first ? first : value;
	}
	return first;
}

/* What km_run has changed about this thread and its stream, which is put right. */
static enum protocol_state tidy(void)
{
	cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
	enum protocol_state state = PROTOCOL_CLEAN;
	CUcontext now = NULL;
	cudaGraph_t graph;

	if (runner.driver.current(&now) != CUDA_SUCCESS || now != runner.context) {
		runner.driver.set_current(runner.context);
		state = PROTOCOL_ELSEWHERE;
	}
	cudaStreamIsCapturing(runner.stream, &capture);
	if (capture != cudaStreamCaptureStatusNone) {
		cudaStreamEndCapture(runner.stream, &graph);
		state = PROTOCOL_CAPTURING;
	}
	return state;
}

/* All streams of the device: what is not on ours belongs to the call just as well. */
static void finish(uint32_t serial, cudaError_t e)
{
	cudaError_t synchronised = cudaDeviceSynchronize();
	float ms = 0;

	runner.page->done = serial;
	e = e == cudaSuccess ? synchronised : e;
	runner.error = e == cudaSuccess ? cudaEventElapsedTime(&ms, runner.begin, runner.end) : e;
	runner.seconds = 1e-3 * (double)ms;
}

static void call(void)
{
	uint32_t serial = (uint32_t)message.where[0];
	int64_t count = (int64_t)message.where[1];
	cudaError_t e, left;
	int value;

	take_error();
	if (message.value == PROTOCOL_IDLE)
		runner.page->arrived = serial;
	else
		wait_for_release<<<1, 1, 0, runner.stream>>>(runner.device_page, serial, WAIT_LIMIT_NS);
	e = cudaEventRecord(runner.begin, runner.stream);
	value = run_all(count);
	left = take_error();
	message.where[1] = tidy();
	if (e == cudaSuccess)
		e = cudaEventRecord(runner.end, runner.stream);
	message.where[0] = left;
	name_error(left != cudaSuccess ? (int64_t)left : value);
	answer(PROTOCOL_ENQUEUED, value);
	finish(serial, e);
}

static void tell_times(void)
{
	memcpy(&message.where[0], &runner.seconds, sizeof(runner.seconds));
	name_error(runner.error);
	answer(PROTOCOL_ANSWER, runner.error);
}

static void initialise(void)
{
	int value = 0;
	cudaError_t e;

	take_error();
	if (runner.init)
		value = runner.init(take_args());
	e = cudaDeviceSynchronize();
	if (e == cudaSuccess && tidy() != PROTOCOL_CLEAN)
		e = cudaErrorDeviceUninitialized;
	if (e == cudaSuccess)
		e = take_error();
	message.where[0] = e;
	name_error(e != cudaSuccess ? (int64_t)e : value);
	answer(PROTOCOL_ANSWER, value);
}

/* A tool that watches wants the process to end in good order. */
static void end_with_socket(void)
{
	char byte;

	if (runner.watched && recv(socket_number, &byte, 1, MSG_PEEK) == 0)
		exit(0);
}

static void serve(const char *library)
{
	end_with_socket();
	receive();
	switch (message.kind) {
	case PROTOCOL_LOAD:
		load(library);
		break;
	case PROTOCOL_INIT:
		initialise();
		break;
	case PROTOCOL_WORKSPACE:
		answer(PROTOCOL_ANSWER, runner.workspace ? (int64_t)runner.workspace(take_args()) : 0);
		break;
	case PROTOCOL_CALL:
		if (runner.watched)
			cudaProfilerStart();
		call();
		if (runner.watched)
			cudaProfilerStop();
		break;
	case PROTOCOL_TIMES:
		tell_times();
		break;
	default:
		__builtin_trap();
	}
}

int main(int argc, char **argv)
{
	int descriptors[PROTOCOL_SLABS + 1];
	char why_not[PROTOCOL_TEXT_MAX];
	bool open, ready, trusted;

	if (argc != 3) {
		fprintf(stderr, "km-runner-cuda: started by km-bench, not by hand\n");
		return 2;
	}
	socket_number = atoi(argv[2]);
	open = open_device();
	memcpy(why_not, message.text, sizeof(why_not));
	receive_setup(descriptors);
	memcpy(message.text, why_not, sizeof(why_not));
	runner.watched = message.value == PROTOCOL_TOOL;
	trusted = message.value != PROTOCOL_CANDIDATE;
	ready = open && set_up(descriptors) && close_in(trusted);
	answer(PROTOCOL_HELLO, ready ? 0 : -1);
	for (;;)
		serve(argv[1]);
}
