#include "imports.h"

#include "util.h"

#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

const char *const import_sonames[] = { "libc.so.6", "libm.so.6", "libmvec.so.1", "libgcc_s.so.1", NULL };

/* <math.h> of C11 and GNU, each also with the suffix f or l. */
static const char *const functions[] = {
	"acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "copysign", "cos", "cosh", "erf", "erfc",
	"exp", "exp10", "exp2", "expm1", "fabs", "fdim", "floor", "fma", "fmax", "fmin", "fmod", "frexp", "hypot", "ilogb",
	"ldexp", "lgamma", "llrint", "llround", "log", "log10", "log1p", "log2", "logb", "lrint", "lround", "modf", "nearbyint",
	"nextafter", "pow", "remainder", "remquo", "rint", "round", "roundeven", "scalbln", "scalbn", "sin", "sincos", "sinh",
	"sqrt", "tan", "tanh", "tgamma", "trunc" };

bool import_is_plain(const char *name)
{
	static const char *const others[] = { "memcpy", "memmove", "memset", "memcmp", "__stack_chk_fail" };
	size_t len = strlen(name);

	for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++)
		if (strcmp(name, others[i]) == 0)
			return true;
	for (size_t i = 0; i < sizeof(functions) / sizeof(*functions); i++) {
		size_t n = strlen(functions[i]);

		if (strncmp(name, functions[i], n) == 0 && (len == n || (len == n + 1 && (name[n] == 'f' || name[n] == 'l'))))
			return true;
	}
	return starts_with(name, "_ZGV"); /* libmvec: _ZGVdN8v_expf */
}

bool import_is_system(const char *name)
{
	static const char *const libraries[] = { "libc.so.6", "libm.so.6" };
	bool found = false;

	for (size_t i = 0; i < sizeof(libraries) / sizeof(*libraries) && !found; i++) {
		void *handle = dlopen(libraries[i], RTLD_LAZY | RTLD_LOCAL);

		found = handle && dlsym(handle, name);
		if (handle)
			dlclose(handle);
	}
	return found;
}

/* ---- cuda ---------------------------------------------------------------------------------------------------------- */

static bool in_list(const char *name, const char *const *list, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (strcmp(name, list[i]) == 0)
			return true;
	return false;
}

bool import_is_cuda(const char *name)
{
	/* nvcc's code: it registers the kernels when the library is opened, and launches them. */
	static const char *const compiler[] = {
		"__cudaRegisterFatBinary", "__cudaRegisterFatBinaryEnd", "__cudaUnregisterFatBinary", "__cudaRegisterFunction",
		"__cudaRegisterVar", "__cudaInitModule", "__cudaPushCallConfiguration", "__cudaPopCallConfiguration", "__cudaGetKernel",
		"__cudaLaunchKernel", "__cxa_atexit" };
	/* g++'s: for headers with exceptions that are not thrown. */
	static const char *const unwinding[] = { "__gxx_personality_v0", "_Unwind_Resume", "__cxa_begin_catch", "__cxa_end_catch", "_ZSt9terminatev" };
	/* CUB's: where it cannot go on. The runner's filter refuses it when it is called, and says so. */
	static const char *const ending[] = { "exit" };
	static const char *const runtime[] = {
		"cudaLaunchKernel", "cudaLaunchKernelExC", "cudaLaunchCooperativeKernel",
		"cudaFuncSetAttribute", "cudaFuncGetAttributes", "cudaFuncSetCacheConfig",
		"cudaOccupancyMaxActiveBlocksPerMultiprocessor", "cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags",
		"cudaOccupancyAvailableDynamicSMemPerBlock", "cudaOccupancyMaxActiveClusters", "cudaOccupancyMaxPotentialClusterSize",
		"cudaGetDevice", "cudaSetDevice", "cudaGetDeviceCount", "cudaDeviceGetAttribute", "cudaGetDeviceProperties", "cudaGetDeviceProperties_v2",
		"cudaDeviceGetStreamPriorityRange", "cudaRuntimeGetVersion", "cudaDriverGetVersion",
		"cudaMemcpyAsync", "cudaMemcpy2DAsync", "cudaMemcpy3DAsync", "cudaMemcpyToSymbolAsync", "cudaMemcpyFromSymbolAsync", "cudaMemsetAsync",
		"cudaMemset2DAsync", "cudaGetSymbolAddress", "cudaGetSymbolSize",
		"cudaEventCreate", "cudaEventCreateWithFlags", "cudaEventRecord", "cudaStreamWaitEvent", "cudaStreamCreateWithFlags",
		"cudaStreamCreateWithPriority", "cudaStreamIsCapturing",
		/* An access policy brings nothing over calls: no part of the cache is set aside (cudaDeviceSetLimit is refused), lines that persist
		 * are reset before every call, and inputs move. Launches may have one anyway. */
		"cudaStreamSetAttribute",
		"cudaGetLastError", "cudaPeekAtLastError", "cudaGetErrorString", "cudaGetErrorName" };
	static const char *const driver[] = {
		"cuTensorMapEncodeTiled", "cuTensorMapEncodeIm2col", "cuTensorMapEncodeIm2colWide", "cuTensorMapReplaceAddress" };

	return in_list(name, compiler, sizeof(compiler) / sizeof(*compiler)) || in_list(name, unwinding, sizeof(unwinding) / sizeof(*unwinding)) ||
	       in_list(name, ending, sizeof(ending) / sizeof(*ending)) ||
	       in_list(name, runtime, sizeof(runtime) / sizeof(*runtime)) ||
	       in_list(name, driver, sizeof(driver) / sizeof(*driver));
}

const char *import_cuda_advice(const char *name)
{
	static const struct {
		const char *prefix, *advice;
	} table[] = {
		{ "cudaGetDriverEntryPoint", "call cuTensorMapEncodeTiled and the like directly: they are linked" },
		{ "cudaMallocManaged", "scratch memory comes from km_workspace and a->workspace" },
		{ "cudaMalloc", "scratch memory comes from km_workspace and a->workspace" },
		{ "cudaFree", "scratch memory comes from km_workspace and a->workspace" },
		{ "cudaHost", "scratch memory comes from km_workspace and a->workspace; host memory is not registered" },
		{ "__cudaRegisterManagedVar", "managed memory is not allowed: use a->workspace" },
		{ "cudaStreamSynchronize", "km_run only enqueues work on a->stream and returns" },
		{ "cudaDeviceSynchronize", "km_run only enqueues work on a->stream and returns" },
		{ "cudaEventSynchronize", "km_run only enqueues work on a->stream and returns" },
		{ "cudaStreamQuery", "km_run only enqueues work on a->stream and returns" },
		{ "cudaEventQuery", "km_run only enqueues work on a->stream and returns" },
		{ "cudaMemcpy", "only the asynchronous forms on a->stream: cudaMemcpyAsync, cudaMemcpy2DAsync, cudaMemcpy3DAsync" },
		{ "cudaMemset", "only the asynchronous forms on a->stream: cudaMemsetAsync, cudaMemset2DAsync" },
		{ "cudaStreamCreate", "cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking) in km_init" },
		{ "cudaStreamDestroy", "make streams and events once, in km_init, and keep them" },
		{ "cudaEventDestroy", "make streams and events once, in km_init, and keep them" },
		{ "cudaEventElapsedTime", "the judge takes the time" },
		{ "cudaStreamBeginCapture", "launch the kernels one by one" },
		{ "cudaStreamEndCapture", "launch the kernels one by one" },
		{ "cudaGraph", "launch the kernels one by one" },
		{ "cudaLaunchHostFunc", "no host code runs behind the kernels: compute on the device" },
		{ "cudaStreamAddCallback", "no host code runs behind the kernels: compute on the device" },
		{ "cudaModule", "kernels are compiled with the file: no code is loaded at run time" },
		{ "cudaLibrary", "kernels are compiled with the file: no code is loaded at run time" },
		{ "cuModule", "kernels are compiled with the file: no code is loaded at run time" },
		{ "cuLibrary", "kernels are compiled with the file: no code is loaded at run time" },
		{ "nvrtc", "kernels are compiled with the file: no code is loaded at run time" },
		{ "cudaDeviceSetLimit", "the device's settings are the judge's" },
		{ "cudaDeviceReset", "the device's settings are the judge's" },
		{ "cudaDeviceSetCacheConfig", "the device's settings are the judge's" },
		{ "cudaCtxResetPersistingL2Cache", "the device's settings are the judge's" },
		{ "cudaIpc", "other processes' memory is out of reach" },
		{ "cudaImport", "other processes' memory is out of reach" },
		{ "_Zn", "no host memory is allocated: use static variables, arrays of fixed size, and a->workspace" },
		{ "_Zd", "no host memory is allocated: use static variables, arrays of fixed size, and a->workspace" },
		{ "__cxa_", "nothing is thrown: return another value than 0 for failure" },
		{ "_ZNSt", "the C++ library's code is not linked: only what its headers hold in full" },
		{ "_ZSt", "the C++ library's code is not linked: only what its headers hold in full" },
		{ "malloc", "no host memory is allocated: use static variables, arrays of fixed size, and a->workspace" },
		{ "printf", "nothing is printed: return another value than 0 for failure" },
		{ "fprintf", "nothing is printed: return another value than 0 for failure" },
		{ "stderr", "nothing is printed: return another value than 0 for failure" },
		{ "puts", "nothing is printed: return another value than 0 for failure" },
		{ "exit", "return another value than 0 for failure" },
		{ "abort", "return another value than 0 for failure" },
		{ "__assert_fail", "return another value than 0 for failure" },
		{ "dlopen", "libraries are linked, not opened" },
		{ "dlsym", "libraries are linked, not opened" },
		{ "pthread_", "one thread enqueues the work" },
	};

	if (ends_with(name, "_ptsz"))
		return "the default stream of a thread is not used: all work goes on a->stream";
	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++)
		if (starts_with(name, table[i].prefix))
			return table[i].advice;
	return "";
}
