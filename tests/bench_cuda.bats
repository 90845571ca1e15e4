#!/usr/bin/env bats
# km-bench and the target cuda: what it waits for without a device, what its programs say, and on a device a whole judgement.
# What cheats get there is in cheats_cuda.bats.

load helpers

TASK=$ROOT/tasks/rmsnorm_h4096

setup() {
	export KM_CACHE=$BATS_FILE_TMPDIR/cache
	cd "$BATS_TEST_TMPDIR" || return
}

needs_programs() {
	[ -x "$KM/km-runner-cuda" ] && [ -x "$KM/km-keeper-cuda" ] || skip "NOT TESTED: there is no nvcc"
}

needs_device() {
	needs_programs
	[ -e /dev/nvidiactl ] || skip "NOT TESTED: there is no CUDA device"
}

needs_no_device() {
	[ ! -e /dev/nvidiactl ] || skip "there is a CUDA device"
}

# A build.json that says it was built for cuda.
fake_build() {
	jq -n --arg task "$TASK" '{made_by: {}, cue: null, status: "BUILT", rule: null, message: "", task: $task, target: "cuda",
		kernel: "kernel.cu", library: "kernel.so", library_sha256: ("0" * 64), edited: false, source_sha256: ("0" * 64),
		code_sha256: ("0" * 64), compiler: "nvcc", flags: "", diagnostics: "", resources: [], cached: false,
		seconds: 1}'
}

# Build a kernel into folder $1.
build() {
	mkdir -p "$1"
	cp "$2" "$1/kernel.cu"
	"$KM/km-compile" -t "$TASK" -o "$1/build.json" "$1/kernel.cu"
	[ "$(jq -r .status "$1/build.json")" = BUILT ]
}

@test "without a device km-bench waits and says for what, and writes nothing" {
	needs_no_device
	fake_build >build.json
	"$KM/km-validate" build build.json
	run "$KM/km-bench" -o bench.json build.json
	echo "$output"
	[ "$status" -eq 75 ]
	[[ $output == *"waiting for a CUDA device"* ]]
	[ ! -e bench.json ]
	run "$KM/km-bench" --probe
	[ "$status" -eq 75 ]
	[ "$(ls "$TMPDIR")" = "" ]
}

@test "built without nvcc it waits for the program too" {
	fake_build >build.json
	KM_KEEPER_CUDA=$BATS_TEST_TMPDIR/missing run "$KM/km-bench" build.json
	echo "$output"
	[ "$status" -eq 75 ]
	[[ $output == *km-keeper-cuda* ]]
}

# A keeper that knows devices of other architectures, of which there may be none here.
devices() {
	printf '#!/bin/sh\nprintf %%s %s\n' "'$1'" >keeper
	chmod +x keeper
	export KM_KEEPER_CUDA=$PWD/keeper
}

@test "a library for another architecture than the device's is no verdict on the kernel" {
	needs_programs
	mkdir k
	cp "$TASK/baseline.cu" k/kernel.cu
	"$KM/km-compile" -t "$TASK" --arch sm_90a -o k/build.json k/kernel.cu
	devices $'0\tNVIDIA B200\tGPU-1\t10.0\n1\tNVIDIA A100\tGPU-2\t8.0\n'
	run "$KM/km-bench" -o bench.json k/build.json
	echo "$output"
	[ "$status" -eq 3 ]
	[[ $output == *"'k/build.json'"*"'kernel.so' was built for sm_90a, the device 'NVIDIA B200' (GPU-1) is sm_100"* ]]
	[ ! -e bench.json ]
	# What has no letter runs on later devices of the same kind, but this keeper opens none.
	"$KM/km-compile" -t "$TASK" --arch sm_80 -o k/build.json k/kernel.cu
	devices $'0\tNVIDIA B200\tGPU-1\t10.0\n1\tNVIDIA A40\tGPU-2\t8.6\n'
	run "$KM/km-bench" -o bench.json k/build.json
	echo "$output"
	[ "$status" -eq 1 ]
	[[ $output == *"the keeper of the device ended"* ]]
}

@test "without a device its programs start, and say so" {
	needs_programs
	needs_no_device
	run "$KM/km-keeper-cuda" --devices
	[ "$status" -ne 0 ]
	[[ $output == *"no CUDA device"* ]]
	run "$KM/km-runner-cuda"
	[ "$status" -eq 2 ]
	[[ $output == *"started by km-bench"* ]]
}

# A management library that knows two devices, on a machine that has none: CUDA's own list then fails.
fake_nvml() {
	cat >nvml.c <<-'END'
		#include <stdint.h>
		#include <stdio.h>
		#include <stdlib.h>
		int nvmlInit_v2(void) { return 0; }
		int nvmlShutdown(void) { return 0; }
		int nvmlDeviceGetCount_v2(unsigned *n) { return *n = 2, 0; }
		int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **device) { return *device = (void *)(uintptr_t)(i + 1), getenv("DENIED") && i == 1 ? 4 : 0; }
		int nvmlDeviceGetName(void *d, char *to, unsigned n) { return snprintf(to, n, getenv("KINDS") ? "kind %d" : "kind", (int)(uintptr_t)d), 0; }
		int nvmlDeviceGetUUID(void *d, char *to, unsigned n) { return snprintf(to, n, "GPU-0000000%d-0000-0000-0000-000000000000", (int)(uintptr_t)d), 0; }
		int nvmlDeviceGetCudaComputeCapability(void *d, int *major, int *minor) { return *major = 9, *minor = 0, d ? 0 : 1; }
		int nvmlDeviceGetMigMode(void *d, unsigned *now, unsigned *pending) { return *now = getenv("MIG") != NULL, *pending = 0, d ? 0 : 1; }
	END
	cc -shared -fPIC -o libnvidia-ml.so.1 nvml.c
}

@test "devices are listed without CUDA where it is certain which ones CUDA would show, and by it elsewhere" {
	needs_programs
	needs_no_device
	fake_nvml
	local one=GPU-00000001-0000-0000-0000-000000000000 two=GPU-00000002-0000-0000-0000-000000000000
	listed() { env -u CUDA_VISIBLE_DEVICES LD_LIBRARY_PATH=. "$@" "$KM/km-keeper-cuda" --devices; }
	[ "$(listed)" = "$one"$'\tkind\t'"$one"$'\t9.0\n'"$two"$'\tkind\t'"$two"$'\t9.0' ]
	[ "$(listed CUDA_VISIBLE_DEVICES="$two" | cut -f 1)" = "$two" ]
	[ "$(listed CUDA_VISIBLE_DEVICES="$two,$one" | cut -f 1 | xargs)" = "$two $one" ]
	[ "$(listed KINDS=1 CUDA_VISIBLE_DEVICES="$two,$one" | cut -f 1 | xargs)" = "$two $one" ]
	local uncertain
	for uncertain in CUDA_VISIBLE_DEVICES= CUDA_VISIBLE_DEVICES=0 CUDA_VISIBLE_DEVICES=GPU-0 "CUDA_VISIBLE_DEVICES=$one,1" \
		"CUDA_VISIBLE_DEVICES=$one,$one" "CUDA_VISIBLE_DEVICES=$one," "CUDA_VISIBLE_DEVICES=$one,$two,$one" CUDA_VISIBLE_DEVICES=MIG-1 \
		MIG=1 KINDS=1 DENIED=1; do
		run listed "$uncertain"
		echo "$uncertain: $output"
		[ "$status" -eq 75 ]
		[[ $output == *"no CUDA device"* ]]
	done
}

@test "a device that the management library knows and CUDA does not is waited for" {
	needs_programs
	needs_no_device
	fake_nvml
	build a "$TASK/baseline.cu"
	LD_LIBRARY_PATH=. run "$KM/km-bench" -o bench.json a/build.json
	echo "$output"
	[ "$status" -eq 75 ]
	[[ $output == *"no CUDA device"* ]]
	[ ! -e bench.json ]
	# The same where the driver is there and does not work.
	cc -shared -x c /dev/null -o libcuda.so.1
	LD_LIBRARY_PATH=$PWD run "$KM/km-bench" -o bench.json a/build.json
	echo "$output"
	[ "$status" -eq 75 ]
	[[ $output == *"no CUDA device"* ]]
	LD_LIBRARY_PATH=. run "$KM/km-bench" --probe
	echo "$output"
	[ "$status" -eq 75 ]
	[[ $output == *"cannot be probed"* ]]
}

@test "--probe takes no build.json" {
	run "$KM/km-bench" --probe build.json
	[ "$status" -eq 2 ]
}

@test "on a device: the baseline passes, and is as fast as itself" {
	needs_device
	build a "$TASK/baseline.cu"
	"$KM/km-bench" --versus a/build.json -o bench.json a/build.json
	"$KM/km-validate" bench bench.json
	jq -c '[.status, .message, .score, .noise, .versus, .device, (.workloads[] | [.median_us, .baseline_us, .floor_share, .clock])]' bench.json
	jq -e '.status == "PASSED" and (.score - 100 | fabs) < 2 and .versus.verdict == "equal"' bench.json
	jq -e '.device.uuid != null and (.workloads | all(.clock.excess_us < 4 and .clock.batch_calls >= 2 and .idle_us > 0 and .floor_us > 0))' bench.json
}

@test "on a device: the probe is kept" {
	needs_device
	"$KM/km-bench" --probe >probe.json
	jq -e '.processors > 0' probe.json
	[ "$(ls "$KM_CACHE"/probe-GPU-*.json | wc -l)" -eq 1 ]
}

@test "--profile and --sanitize are for this target, and --sanitize knows its tools" {
	run "$KM/km-bench" --sanitize=leakcheck build.json
	[ "$status" -eq 2 ]
	[[ $output == *"memcheck, racecheck or synccheck"* ]]
	fake_build | jq '.target = "cpu"' >build.json
	for option in --profile --sanitize; do
		run "$KM/km-bench" "$option" build.json
		[ "$status" -eq 2 ]
		[[ $output == *"target cuda"* ]]
	done
}

@test "on a device: tools that are missing are said, and change no verdict" {
	needs_device
	build a "$TASK/baseline.cu"
	KM_NCU=/missing KM_COMPUTE_SANITIZER=/missing "$KM/km-bench" --profile --sanitize -o bench.json a/build.json
	"$KM/km-validate" bench bench.json
	jq -e '.status == "PASSED" and .score > 0 and (.sanitizer | .errors == null and (.message | contains("compute-sanitizer is not there")))' bench.json
	jq -e '[.workloads[] | select(.set == "feedback")] | all(.profile.message | contains("ncu is not there"))' bench.json
}

@test "on a device: a profile and a check, or why there is none" {
	needs_device
	build a "$TASK/baseline.cu"
	"$KM/km-bench" --profile --sanitize -o bench.json a/build.json
	"$KM/km-validate" bench bench.json
	jq -c '.sanitizer, (.workloads[] | .profile)' bench.json
	jq -e '.status == "PASSED" and (.sanitizer | .errors == 0 or .message != "")' bench.json
	jq -e '[.workloads[] | select(.set == "feedback") | .profile] | all(.message != "" or (.kernels >= 1 and .duration_us > 0))' bench.json
}

@test "without a device every script of tests/device is skipped aloud" {
	needs_no_device
	local script
	for script in $(cd "$ROOT/tests/device" && grep -l '^#!/usr/bin/env bash' -- *); do
		"$ROOT/tests/device/$script" -h | grep -q "^Usage: $script "
		grep -q "\b$script\b" "$ROOT/tests/device/README"
	done
	for script in speed reference-check; do
		KM_BIN=$KM run "$ROOT/tests/device/$script"
		echo "$output"
		[ "$status" -eq 77 ]
		[[ $output == "skipped: no CUDA device ($script)" ]]
	done
}

@test "what a script of tests/device needs is built beforehand, and an edit that finds nothing is said" {
	needs_programs
	KM_BIN=$KM "$ROOT/tests/device/rank" --build-only built
	[ "$(cat built/rank-*/build.json | jq -r .status | sort | uniq -c | xargs)" = '4 BUILT' ]
	[ "$(cat built/rank-{memory,compute}*/build.json | jq -r .code_sha256 | sort -u | wc -l)" -eq 4 ]
	run bash -c '. "$0/tests/device/common.bash" && begin && edited rmsnorm_h4096 s/no-such-text/x/' "$ROOT"
	echo "$output"
	[ "$status" -eq 2 ]
	[[ $output == *"baseline.cu has changed: 's/no-such-text/x/' finds nothing"* ]]
}

@test "on a device: inputs and expected outputs are exported" {
	needs_device
	"$KM/km-check-task" --export out --workload b34 --set row_scaled "$TASK"
	jq -e '.workload == "b34" and .input_set == "row_scaled" and .rows == 34 and (.inputs | length) == 3' out/export.json
	[ "$(stat -c %s out/hidden_states.bin)" -eq $((34 * 4096 * 2)) ]
	[ "$(stat -c %s out/output.bin)" -eq $((34 * 4096 * 8)) ]
}

@test "an export wants a task for cuda, a workload and an input set that there are" {
	run "$KM/km-check-task" --export out --workload b34 "$ROOT/tasks/sgemm_cpu"
	[ "$status" -eq 2 ]
	run "$KM/km-check-task" --export out --workload none "$TASK"
	[ "$status" -eq 2 ]
	[[ $output == *"no workload 'none'"* ]]
	run "$KM/km-check-task" --export out --workload b34 --set none "$TASK"
	[ "$status" -eq 2 ]
	[[ $output == *"no input set 'none'"* ]]
	[ ! -e out ]
}
