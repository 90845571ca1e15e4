#!/usr/bin/env bats
# km-compile for tasks with target cuda, with a real nvcc: what it makes, tells and refuses. No device is needed.

load helpers

setup() {
	cd "$BATS_TEST_TMPDIR" || return
	{ [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ] || command -v nvcc >/dev/null; } || skip "no nvcc here: nothing of the target cuda is compiled"
	export KM_CACHE=$BATS_TEST_TMPDIR/cache
	unset KM_ARCH
	TASK=$ROOT/tasks/rmsnorm_h4096
}

compile() { "$KM/km-compile" --arch sm_90a -t "$TASK" "$@"; }

# A kernel that does nothing, with the lines of stdin before it and $1 added to what km_run returns.
kernel() {
	printf '#include "task.h"\n#include <cuda_runtime.h>\n'
	cat
	printf '\n__global__ void nothing() {}\nint km_run(const struct km_args *a)\n{\n'
	printf '\tnothing<<<1, 1, 0, (cudaStream_t)a->stream>>>();\n\treturn (int)cudaGetLastError() %s;\n}\n' "${1:-}"
}

# expect 'STATUS rule' on the source on stdin; its message goes to the file "message".
expect() {
	local got
	compile - >build.json
	jq -r .message build.json >message
	got=$(jq -r '"\(.status) \(.rule)"' build.json)
	[ "$got" = "$1" ] || { echo "expected $1, got $got: $(cat message)"; return 1; }
}

# The import that $1, with the lines of stdin before it, must be refused for: $2.
refused() {
	kernel "| (int)(intptr_t)$1" | expect 'REJECTED import' || return
	[[ $(cat message) == "'$2'"* ]] || { echo "expected '$2', got $(cat message)"; return 1; }
}

@test "a kernel is built: machine code for one architecture, km_run alone is visible, from the cache the second time" {
	compile "$TASK/baseline.cu" >build.json
	[ "$(jq -c '[.status, .target, .arch, .arch_from, .cached]' build.json)" = '["BUILT","cuda","sm_90a","option",false]' ]
	"$KM/km-validate" build build.json
	local library
	library=$(jq -r .library build.json)
	[ "$(sha256sum <"$library" | cut -d' ' -f1)" = "$(jq -r .library_sha256 build.json)" ]
	[ "$(readelf --dyn-syms -W "$library" | awk '$5 == "GLOBAL" && $7 != "UND" { print $8 }')" = km_run ]
	[ "$(readelf -dW "$library" | grep -c 'NEEDED.*\[lib\(cudart\|c\|m\)\.so')" = "$(readelf -dW "$library" | grep -c NEEDED)" ]
	readelf -dW "$library" | grep -q 'NEEDED.*libcudart\.so'
	compile "$TASK/baseline.cu" >again.json
	[ "$(jq -c 'del(.cached, .seconds)' build.json)" = "$(jq -c 'del(.cached, .seconds)' again.json)" ]
	[ "$(jq .cached again.json)" = true ]
	[ -z "$(ls -A "$TMPDIR")" ]
}

@test "a damaged entry of the cache is built again, and so is one whose description is lost" {
	local library
	library=$(compile "$TASK/baseline.cu" | jq -r .library)
	cp "$library" good
	head -c 1000 good >"$library"
	[ "$(compile "$TASK/baseline.cu" | jq .cached)" = false ]
	cmp good "$library"
	rm "${library%.so}.json"
	[ "$(compile "$TASK/baseline.cu" | jq -c '[.cached, (.resources | length)]')" = '[false,1]' ]
}

@test "the architecture: by option, by environment, by default where there is no device" {
	[ "$(KM_ARCH=sm_80 "$KM/km-compile" -t "$TASK" "$TASK/baseline.cu" | jq -c '[.status, .arch, .arch_from]')" = '["BUILT","sm_80","environment"]' ]
	run compile --arch 'sm_90a -I/etc' "$TASK/baseline.cu"
	[ "$status" -eq 2 ]
	[ "$("$KM/km-compile" -t "$TASK" "$TASK/baseline.cu" | jq -r .arch_from)" = device ] || {
		[ "$("$KM/km-compile" -t "$TASK" "$TASK/baseline.cu" | jq -c '[.arch, .arch_from]')" = '["sm_90a","default"]' ]
	}
}

@test "comments, layout and the names of variables make no other kernel; another constant does" {
	local a b c
	kernel <<<'namespace { __device__ int table[4] = { 1, 2, 3, 4 }; __global__ void k(int *p) { int value = table[*p & 3]; *p = value; } }
		int km_init(const struct km_args *) { k<<<1, 1>>>(nullptr); return 0; }' >one.cu
	{ echo '// another comment'; sed 's/value/other/g; s/k<<</  k<<</' one.cu; } >two.cu
	sed 's/4 };/5 };/' one.cu >three.cu
	a=$(compile one.cu | jq -r .code_sha256)
	b=$(compile two.cu | jq -r .code_sha256)
	c=$(compile three.cu | jq -r .code_sha256)
	[ -n "$a" ] && [ "$a" = "$b" ] && [ "$a" != "$c" ]
	[ "$(KM_CACHE=$PWD/other compile --no-sandbox one.cu 2>/dev/null | jq -r .code_sha256)" = "$a" ]
	jq -n --arg code "${a:0:16}" '{made_by: {}, round: 3, settings: {task: "rmsnorm_h4096", target: "cuda", width: 1, k: 4, strategy: "world",
		policy: "default", seed: "1"}, summary: "", open_questions: [], evaluations: 0, cycles: 0, cycles_since_best: 0, refills: 0,
		refills_failed: 0, judge_seconds: 0, best: null, seen: {($code): "r00001/s0"}, refused: [], nodes: []}' >world.json
	[ "$(compile -w world.json two.cu | jq -c '[.status, .duplicate_of]')" = '["DUPLICATE","r00001/s0"]' ]
}

@test "what each kernel needs: registers, spills, stack, shared memory" {
	cat >spill.cu <<-'END'
		#include "task.h"
		#include <cuda_runtime.h>
		template <int N> __global__ void __launch_bounds__(1024, 2) spill(float *p, int n)
		{
			float v[N];
			for (int i = 0; i < N; i++)
				v[i] = p[i * n + threadIdx.x];
			for (int j = 0; j < n; j++)
				for (int i = 0; i < N; i++)
					v[i] = v[i] * v[(i * 7 + 3) % N] + p[j];
			for (int i = 0; i < N; i++)
				p[i * n + threadIdx.x] = v[i];
		}
		static __global__ void plain(float *p)
		{
			__shared__ float s[64];
			s[threadIdx.x] = p[threadIdx.x];
			__syncthreads();
			p[threadIdx.x] = s[63 - threadIdx.x];
		}
		int km_run(const struct km_args *a)
		{
			spill<64><<<1, 1024, 0, (cudaStream_t)a->stream>>>((float *)a->workspace, 3);
			plain<<<1, 64, 0, (cudaStream_t)a->stream>>>((float *)a->workspace);
			return (int)cudaGetLastError();
		}
	END
	compile spill.cu >build.json
	"$KM/km-validate" build build.json
	[ "$(jq -c '[.resources[] | select(.kernel == "plain") | .shared_bytes, .spill_store_bytes]' build.json)" = '[256,0]' ]
	jq -e '.resources[] | select(.kernel == "spill<64>") | .registers == 32 and .spill_store_bytes > 0 and .spill_load_bytes > 0 and .stack_bytes > 0' \
		build.json >/dev/null
}

@test "wgmma, bulk tensor copies and barriers assemble; the driver's function for tensor maps is there" {
	cat >tma.cu <<-'END'
		#include "task.h"
		#include <cuda.h>
		#include <cuda_runtime.h>
		__global__ void __launch_bounds__(128) load(const __grid_constant__ CUtensorMap map, float *out)
		{
			extern __shared__ __align__(1024) unsigned char tile[];
			__shared__ __align__(8) unsigned long long barrier;
			unsigned at = (unsigned)__cvta_generic_to_shared(tile), bar = (unsigned)__cvta_generic_to_shared(&barrier);
			unsigned long long a = ((at & 0x3ffff) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
			float d[4] = {};
			if (threadIdx.x == 0) {
				asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(bar));
				asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 16384;" :: "r"(bar) : "memory");
				asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
					     :: "r"(at), "l"(&map), "r"(0), "r"(0), "r"(bar) : "memory");
			}
			__syncthreads();
			asm volatile("{\n.reg .pred p;\nagain: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0;\n@!p bra again;\n}" :: "r"(bar) : "memory");
			asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
			asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, 0;"
				     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "l"(a), "l"(a));
			asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
			for (int i = 0; i < 4; i++)
				out[threadIdx.x * 4 + i] = d[i];
		}
		int km_init(const struct km_args *)
		{
			return (int)cudaFuncSetAttribute(load, cudaFuncAttributeMaxDynamicSharedMemorySize, 65536);
		}
		int km_run(const struct km_args *a)
		{
			const cuuint64_t size[2] = { 4096, (cuuint64_t)a->batch_size }, stride[1] = { 8192 };
			const cuuint32_t box[2] = { 64, 128 }, step[2] = { 1, 1 };
			CUtensorMap map;
			if (cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)a->workspace, size, stride, box, step,
						   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
						   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS)
				return 1;
			load<<<1, 128, 65536, (cudaStream_t)a->stream>>>(map, (float *)a->workspace);
			return (int)cudaGetLastError();
		}
	END
	compile tma.cu >build.json
	[ "$(jq -c '[.status, .message]' build.json)" = '["BUILT",""]' ]
	jq -e '.resources[0] | if .instructions then .instructions.HGMMA > 0 and .instructions.UTMALDG > 0 else true end' build.json >/dev/null
	[ "$(readelf --dyn-syms -W "$(jq -r .library build.json)" | awk '$5 == "GLOBAL" && $7 != "UND" { print $8 }' | sort | xargs)" = 'km_init km_run' ]
	readelf -dW "$(jq -r .library build.json)" | grep -q 'NEEDED.*\[libcuda\.so\.1\]'
	[ "$(compile --arch sm_80 tma.cu | jq -r .status)" = COMPILE_ERROR ]
}

@test "cuBLAS where it is allowed, and only there" {
	cat >blas.cu <<-'END'
		#include "task.h"
		#include <cublas_v2.h>
		static cublasHandle_t handle;
		int km_init(const struct km_args *) { return handle ? 0 : (int)cublasCreate(&handle); }
		int km_run(const struct km_args *a) { return (int)cublasSetStream(handle, (cudaStream_t)a->stream); }
	END
	[ "$(compile blas.cu | jq -r .status)" = COMPILE_ERROR ]
	[ "$(compile -l cublas blas.cu | jq -r .status)" = BUILT ]
}

@test "honest host code: streams and events for fork and join, attributes, cooperative and extended launches, symbols" {
	kernel <<-'END' | expect 'BUILT null'
		#include <cooperative_groups.h>
		#include <cub/block/block_reduce.cuh>
		#include <cuda_bf16.h>
		#include <cuda_fp8.h>
		#include <algorithm>
		static __constant__ float table[4];
		static __device__ unsigned counter;
		__device__ __noinline__ float helper(float x) { return x * table[(int)x & 3]; }
		__global__ void grid(float *p)
		{
			__shared__ typename cub::BlockReduce<float, 128>::TempStorage storage;
			cooperative_groups::this_grid().sync();
			float sum = cub::BlockReduce<float, 128>(storage).Sum(helper(p[threadIdx.x]));
			if (threadIdx.x == 0 && atomicAdd(&counter, 1) == gridDim.x - 1)
				p[0] = std::max(sum, 1.f);
		}
		static cudaStream_t side;
		static cudaEvent_t forked, joined;
		int km_init(const struct km_args *)
		{
			int device, count, blocks;
			cudaFuncAttributes attributes;
			if (!side && (cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking) || cudaEventCreateWithFlags(&forked, cudaEventDisableTiming) ||
				      cudaEventCreateWithFlags(&joined, cudaEventDisableTiming)))
				return 1;
			return cudaGetDevice(&device) || cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) ||
			       cudaFuncGetAttributes(&attributes, grid) || cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, grid, 128, 0);
		}
		static int both(const struct km_args *a)
		{
			cudaStream_t main = (cudaStream_t)a->stream;
			float *p = (float *)a->workspace;
			void *arguments[] = { &p }, *address;
			cudaLaunchAttribute attribute = {};
			cudaLaunchConfig_t config = {};
			attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
			attribute.val.programmaticStreamSerializationAllowed = 1;
			config.gridDim = config.blockDim = dim3(128);
			config.stream = side;
			config.attrs = &attribute;
			config.numAttrs = 1;
			return cudaEventRecord(forked, main) || cudaStreamWaitEvent(side, forked, 0) || cudaGetSymbolAddress(&address, counter) ||
			       cudaMemsetAsync(address, 0, 4, side) || cudaLaunchKernelEx(&config, grid, p) || cudaEventRecord(joined, side) ||
			       cudaStreamWaitEvent(main, joined, 0) || cudaLaunchCooperativeKernel((void *)grid, dim3(4), dim3(128), arguments, 0, main) ||
			       cudaMemcpyAsync(p, p + 64, 64, cudaMemcpyDeviceToDevice, main);
		}
		size_t km_workspace(const struct km_args *a) { return 1024 + 0 * (size_t)both(a); }
	END
}

@test "what host code may not call is refused by name, with what to do instead" {
	refused 'cudaMalloc((void **)&a, 4)' cudaMalloc </dev/null
	grep -q km_workspace message
	refused 'cudaStreamSynchronize(0)' cudaStreamSynchronize </dev/null
	grep -q 'only enqueues' message
	refused 'cudaEventElapsedTime(0, 0, 0)' cudaEventElapsedTime </dev/null
	refused 'cudaGetDriverEntryPointByVersion(0, 0, 0, 0, 0)' cudaGetDriverEntryPointByVersion </dev/null
	grep -q cuTensorMapEncodeTiled message
	refused 'cudaGraphLaunch(0, 0)' cudaGraphLaunch </dev/null
	refused 'm' __cudaRegisterManagedVar <<<'__managed__ int m;'
	refused 'cuMemAlloc(0, 4)' cuMemAlloc_v2 <<<'#include <cuda.h>'
	refused 'dlopen("x", 1)' dlopen <<<'#include <dlfcn.h>'
	refused 'pthread_create(0, 0, 0, 0)' pthread_create <<<'#include <pthread.h>'
	refused 'printf("x")' printf <<<'#include <cstdio>'
	refused 'new int[a->batch_size]' _Znam </dev/null
	grep -q 'a->workspace' message
}

@test "nothing runs when the library is opened or closed" {
	kernel <<<'__attribute__((constructor)) static void c() { __asm__ volatile(""); }' | expect 'REJECTED constructor'
	kernel <<<'__attribute__((destructor)) static void c() { __asm__ volatile(""); }' | expect 'REJECTED constructor'
	kernel <<<'int g(); static int x = g(); int g() { return (int)cudaGetLastError() + x; }' | expect 'REJECTED constructor'
	grep -q km_init message
	# The header alone brings none, nor an object of the name that this takes; what it declares is code of the C++ library.
	kernel <<<'#include <iostream>' | expect 'BUILT null'
	kernel '+ (std::cout << "x", 0)' <<<'#include <iostream>' | expect 'REJECTED import'
	kernel <<<'struct o { o() { cudaGetLastError(); } }; static o *__ioinit, p;' | expect 'REJECTED constructor'
	kernel <<<'static void c() {} __attribute__((used, section(".init_array"))) static void (*p)() = c;' | expect 'REJECTED constructor'
	kernel <<<'extern "C" void _init() { __asm__ volatile(""); }' | expect 'REJECTED constructor'
	kernel '| t++' <<<'static thread_local int t;' | expect 'REJECTED thread-local'
	kernel <<<'extern "C" int write(int a) { return a; }' | expect 'REJECTED export'
}

@test "no other file is read" {
	kernel <<<'#include "/etc/passwd"' | expect 'REJECTED include'
	kernel <<<'#include "reference.cu"' | expect 'REJECTED include'
	printf '#ifdef __CUDA_ARCH__\n#include </etc/passwd>\n#endif\n' | kernel | expect 'REJECTED include'
	kernel <<<'asm(".inc" "bin \"/etc/ld.so.conf\"");' | expect 'REJECTED incbin'
	printf 'static const char x[] = {\n#embed "/etc/passwd"\n};\n' | kernel | expect 'REJECTED incbin'
	printf '#line 1 "/etc/passwd"\n' | kernel | expect 'REJECTED include'
	kernel <<<'__global__ void z() { asm volatile(".inclu" "de \"/etc/passwd\""); }' | expect 'COMPILE_ERROR null'
	run grep -q root: build.json
	[ "$status" -eq 1 ]
}

@test "limits: source, template and macro bombs, huge data" {
	cp -r "$TASK" task
	jq '.limits.compile_seconds = 6' "$TASK/task.json" >task/task.json
	# shellcheck disable=SC2030 # each test has its own
	TASK=$PWD/task
	{ kernel </dev/null; head -c 50000000 /dev/zero | tr '\0' ' '; } | expect 'REJECTED source-size'
	kernel '+ F<40, 0>::v' <<<'template <int N, long K> struct F { static constexpr int v = F<N - 1, K * 2>::v + F<N - 1, K * 2 + 1>::v; };
		template <long K> struct F<0, K> { static constexpr int v = 1; };' | expect 'COMPILE_ERROR compile-limit'
	kernel <<<'__device__ int s[1 << 28] = { 1 };' | expect 'COMPILE_ERROR compile-limit'
	kernel <<<'asm(".fill 2000000000, 1, 0");' | expect 'COMPILE_ERROR compile-limit'
	[ -z "$(ls -A "$TMPDIR")" ]
}

@test "diagnostics: of the front end, ptxas and the linker, without warnings, floods and paths" {
	kernel '+ nope' <<<'__global__ void k(float *p) { int unused; p[0] = nothing_such; }' | expect 'COMPILE_ERROR null'
	[ "$(cat message)" = 'kernel.cu(3): error: identifier "nothing_such" is undefined' ]
	jq -r .diagnostics build.json >said
	grep -q 'identifier "nope"' said
	run grep -E 'warning|Remark|detected in|/usr|/tmp|/km/' said
	[ "$status" -eq 1 ]
	kernel '+ (k<<<1, 1>>>((float *)a->workspace), 0)' <<<'__global__ void k(float *p) { __shared__ float s[60000]; s[threadIdx.x] = p[0]; __syncthreads(); p[1] = s[3]; }' |
		expect 'COMPILE_ERROR null'
	grep -q "Entry function 'k' uses too much shared data" message
	kernel <<<'__global__ void k(float *p) { asm volatile("wgmma.nothing %0;" :: "f"(p[0])); }' | expect 'COMPILE_ERROR null'
	jq -r .diagnostics build.json >said
	grep -q "Unknown modifier '.nothing'" said
	grep -q '^ .*wgmma.nothing %f1;' said
	kernel '+ other(1)' <<<'int other(int);' | expect 'COMPILE_ERROR null'
	grep -q 'undefined reference to `other' message
	kernel <<<'__device__ int other(int); __global__ void k(int *p) { *p = other(1); }' | expect 'COMPILE_ERROR null'
	grep -q "Unresolved extern function 'other'" message
	kernel <<-'END' | expect 'COMPILE_ERROR null'
		#include <tuple>
		template <typename A, typename B> struct P { typename A::type x; };
		static P<std::tuple<int, float, P<int *, float>>, int> q;
	END
	jq -r .diagnostics build.json >said
	grep -q '([0-9]* more)' said
	[ "$(grep -c 'instantiation of' said)" -le 9 ]
	kernel <<<'def f(x): return x' | expect 'COMPILE_ERROR null'
	kernel <<<'#define km_run km_ran' | expect 'COMPILE_ERROR no-km-run'
}

@test "without nvcc there is no verdict, and the message says what to do" {
	mkdir fake fake/bin
	printf '#!/bin/sh\nexit 1\n' >fake/bin/nvcc
	chmod +x fake/bin/nvcc
	# shellcheck disable=SC2031
	CUDA_HOME=$PWD/fake run compile "$TASK/baseline.cu"
	[ "$status" -eq 1 ]
	[[ $output == *nvcc* ]]
}
