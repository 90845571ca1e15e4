#!/usr/bin/env bats
# km-bench: verdicts and scores, comparisons, what passes through, what is refused, what it leaves.
# What cheats get is in cheats.bats. KM_LONG=1 adds the trials with two copies and with a kernel that is 3 % slower.

load helpers

TASK=$ROOT/tests/tasks/toy_scale

setup() {
	export KM_CACHE=$BATS_FILE_TMPDIR/cache
	unset KM_MARCH
	cd "$BATS_TEST_TMPDIR" || return
}

# The kernel `right`, in which the body of km_run is $1.
source_of() {
	cat <<-END
		#include "task.h"

		static void right(const struct km_args *a, int64_t rows)
		{
			for (int64_t i = 0; i < rows; i++)
				for (int64_t j = 0; j < a->columns; j++)
					a->y[i * a->columns + j] = a->alpha * a->x[i * a->columns + j] + a->bias[j];
		}

		int km_run(const struct km_args *a)
		{
			$1
			return 0;
		}
	END
}

# Build a kernel with this body into folder $1.
build() {
	mkdir -p "$1"
	source_of "$2" >"$1/kernel.c"
	"$KM/km-compile" -t "${3:-$TASK}" -o "$1/build.json" "$1/kernel.c"
	[ "$(jq -r .status "$1/build.json")" = BUILT ]
}

# The runners that are there now, ours and others.
processes() {
	pgrep -f '\./runner \./kernel\.so' | sort
}

@test "an honest kernel passes: a score, every feedback workload, a document that is valid" {
	build a 'right(a, a->rows);'
	"$KM/km-bench" -o a/bench.json a/build.json
	"$KM/km-validate" bench a/bench.json
	[ "$(jq -c '[.status, .rule, .versus, .failure, .sandbox]' a/bench.json)" = '["PASSED",null,null,null,true]' ]
	[ "$(jq -c '[.workloads[] | [.uuid, .set, .status]]' a/bench.json)" = '[["f-r400","feedback","PASSED"],["f-r333","feedback","PASSED"]]' ]
	jq -e '.score > 0 and .noise >= 0 and (.workloads | all(.calls >= 15 and .speedup > 0 and .flops > 0 and (.samples_us | length) >= 10))' a/bench.json
	[ "$(jq -r .code_sha256 a/bench.json)" = "$(jq -r .code_sha256 a/build.json)" ]
}

@test "the score is 100 times the mean speed-up of the feedback workloads" {
	build a 'right(a, a->rows);'
	"$KM/km-bench" --set all a/build.json >bench.json
	jq -e '(.score / 100 - ([.workloads[] | select(.set == "feedback") | .speedup] | add / length) | fabs) < 1e-5' bench.json
	[ "$(jq -c '[.workloads[].set]' bench.json)" = '["feedback","feedback","final"]' ]
	[ "$("$KM/km-bench" --set final a/build.json | jq -c '[.workloads[].uuid]')" = '["x-r7"]' ]
}

@test "workloads that are named are judged alone, and the score is over them" {
	local uuid
	build x 'right(a, a->rows);'
	uuid=$(jq -r '.final[0]' "$TASK/task.json")
	"$KM/km-bench" --workload "$uuid" --workload "$uuid" -o bench.json x/build.json
	"$KM/km-validate" bench bench.json
	jq -e --arg uuid "$uuid" '.status == "PASSED" and (.workloads | map(.uuid)) == [$uuid] and .score > 0' bench.json
	jq -e '.stages as $s | [$s.building, $s.starting, $s.checking, $s.timing, $s.ending] | all(. > 0) and add + $s.listing <= $ARGS.named.total' \
		--argjson total "$(jq .seconds bench.json)" bench.json
	run "$KM/km-bench" --workload none x/build.json
	[ "$status" -eq 2 ]
	[[ $output == *"no workload 'none'"* ]]
}

@test "a wrong result says where: workload, input set, output, elements, rows" {
	build a 'right(a, a->rows); a->y[3 * a->columns + 5] += 100;'
	"$KM/km-bench" a/build.json >bench.json
	"$KM/km-validate" bench bench.json
	[ "$(jq -r .status bench.json)" = INCORRECT_NUMERICAL ]
	[ "$(jq -c '[.failure | .uuid, .output, .wrong_rows, .checked_rows, .elements[0].row, .elements[0].index]' bench.json)" = '["f-r400","y",1,400,3,5]' ]
	jq -e '.failure.elements[0] | (.got - .expected - 100 | fabs) < 0.1' bench.json
	jq -e '.score == null and .failure.axes.rows == 400 and (.workloads | length) == 1' bench.json
}

@test "a kernel is compared with the plan's best, whose library may be missing" {
	mkdir -p run/task run/r00001/s0 run/r00002/s0
	cp "$TASK"/* run/task/
	build run/r00001/s0 'for (int n = 0; n < 4; n++) right(a, a->rows);' run/task
	build run/r00002/s0 'right(a, a->rows);' run/task
	jq -n '{made_by: {}, round: 2, world: {path: "../r00001/world.json", sha256: ("0" * 64)}, slots: [{slot: 0, skip: "x"}],
		best: {node: "a", attempt: 1, kernel: "../r00001/s0/kernel.c", build: "../r00001/s0/build.json", bench: "../r00001/s0/bench.json"}}' \
		>run/r00002/plan.json
	"$KM/km-bench" --plan run/r00002/plan.json run/r00002/s0/build.json >bench.json
	[ "$(jq -c '[.status, .versus.name, .versus.verdict]' bench.json)" = '["PASSED","best","better"]' ]
	[ "$(jq -r .versus.code_sha256 bench.json)" = "$(jq -r .code_sha256 run/r00001/s0/build.json)" ]
	jq -e '.versus.factor > 1.01 and .versus.z > 3' bench.json
	# A library that did not travel with the run is built again.
	rm run/r00001/s0/kernel.so
	"$KM/km-bench" --plan run/r00002/plan.json run/r00001/s0/build.json >bench.json || status=$?
	[ "$status" -eq 3 ]
	"$KM/km-bench" --plan run/r00002/plan.json run/r00002/s0/build.json | jq -e '.versus.verdict == "better"'
}

@test "the table has the candidate, the baseline, the rivals and the task's peers" {
	build a 'right(a, a->rows);'
	build b 'for (int n = 0; n < 4; n++) right(a, a->rows);'
	"$KM/km-bench" --table --versus slow=b/build.json --peer trusted=a/build.json -o bench.json a/build.json >table.tsv
	[ "$(cut -f 1,2 table.tsv | tr '\t\n' ' ,')" = 'name status,candidate PASSED,baseline PASSED,slow PASSED,trusted PASSED,' ]
	[ "$(awk -F '\t' '$1 == "baseline" { print $3 }' table.tsv)" = 1.000 ]
	awk -F '\t' '{ f[$1] = $3 } END { exit !(f["candidate"] > f["slow"] && f["trusted"] > f["slow"]) }' table.tsv
	[ "$(jq -r .versus.name bench.json)" = slow ]
}

@test "a rival that fails is no verdict on the candidate" {
	build a 'right(a, a->rows);'
	build b 'return 7;'
	"$KM/km-bench" --versus bad=b/build.json a/build.json >bench.json
	[ "$(jq -c '[.status, .versus]' bench.json)" = '["PASSED",null]' ]
	jq -r .message bench.json | grep -q "'bad' could not be compared with: RUNTIME_ERROR: km_run returned 7"
}

@test "what was not built passes through, and so does an idle slot" {
	echo 'int x;' | "$KM/km-compile" -t "$TASK" - >build.json
	"$KM/km-bench" - <build.json >bench.json
	"$KM/km-validate" bench bench.json
	[ "$(jq -c '[.status, .rule, .message]' bench.json)" = "$(jq -c '[.status, .rule, .message]' build.json)" ]
	echo '{"skip": "nothing to do"}' | "$KM/km-bench" - >bench.json
	[ "$(jq -c . bench.json)" = '{"skip":"nothing to do"}' ]
}

@test "a library that was made by hand is looked at like one that was built" {
	build a 'right(a, a->rows);'
	build b 'right(a, a->rows);'
	echo 'int puts(const char *); int km_run(const void *a) { (void)a; return puts("x"); }' |
		gcc -shared -fPIC -nostartfiles -s -Wl,-z,relro,-z,now -Wl,--hash-style=sysv -Wl,--build-id=none -x c - -o b/kernel.so
	jq --arg sha "$(sha256sum b/kernel.so | cut -d ' ' -f 1)" '.library_sha256 = $sha' b/build.json >b/forged.json
	"$KM/km-bench" -o bench.json b/forged.json
	"$KM/km-validate" bench bench.json
	[ "$(jq -c '[.status, .rule, .score]' bench.json)" = '["REJECTED","import",null]' ]
	# As a rival it is built again from its source, and without one refused; for a trusted one its user answers.
	"$KM/km-bench" --versus other=b/forged.json a/build.json | jq -e '.versus.name == "other"'
	rm b/kernel.c
	run "$KM/km-bench" --versus other=b/forged.json a/build.json
	[ "$status" -eq 3 ]
	"$KM/km-bench" --peer other=b/forged.json a/build.json | jq -e '.status == "PASSED"'
}

@test "a library that is missing, changed or no file is a bad input, and nothing is written" {
	build a 'right(a, a->rows);'
	cp a/kernel.so kept.so
	echo x >>a/kernel.so
	run "$KM/km-bench" -o bench.json a/build.json
	[ "$status" -eq 3 ]
	[[ $output == *"not the one that was built"* ]]
	head -c 1000 kept.so >a/kernel.so
	run "$KM/km-bench" -o bench.json a/build.json
	[ "$status" -eq 3 ]
	rm a/kernel.so
	run "$KM/km-bench" -o bench.json a/build.json
	[ "$status" -eq 3 ]
	[[ $output == *kernel.so* ]]
	mkfifo a/kernel.so
	run timeout 10 "$KM/km-bench" -o bench.json a/build.json
	[ "$status" -eq 3 ]
	[ ! -e bench.json ]
}

@test "a build for cuda waits for a device" {
	build a 'right(a, a->rows);'
	jq '.target = "cuda"' a/build.json >a/cuda.json
	run "$KM/km-bench" a/cuda.json
	[ "$status" -eq 75 ]
	[[ $output == *"waiting for a CUDA device"* ]]
}

@test "wrong use is exit 2, a malformed build exit 3" {
	run "$KM/km-bench"
	[ "$status" -eq 2 ]
	run "$KM/km-bench" --set some x.json
	[ "$status" -eq 2 ]
	echo '{"status": "BUILT"}' >x.json
	run "$KM/km-bench" x.json
	[ "$status" -eq 3 ]
	run "$KM/km-bench" missing.json
	[ "$status" -eq 3 ]
}

@test "replay gives the recorded verdict, or says that there is none" {
	build a 'right(a, a->rows);'
	jq '.cue = "code/tile/1"' a/build.json >build.json
	mkdir -p recording/verdicts
	"$KM/km-bench" --replay recording build.json >bench.json
	[ "$(jq -c '[.status, .cue]' bench.json)" = '["UNRECORDED","code/tile/1"]' ]
	"$KM/km-validate" bench bench.json
	jq '.status = "TIMEOUT"' bench.json >recorded.json
	jq -n --slurpfile build build.json --slurpfile bench recorded.json '{cue: "code/tile/1", build: $build[0], bench: $bench[0]}' \
		>recording/verdicts/code_tile_1.json
	rm a/kernel.so
	[ "$("$KM/km-bench" --replay recording build.json | jq -r .status)" = TIMEOUT ]
}

@test "a signal ends it with all that it started" {
	build a 'right(a, a->rows);'
	local before pid
	before=$(processes)
	"$KM/km-bench" -o bench.json a/build.json &
	pid=$!
	for _ in $(seq 200); do
		[ "$(processes)" = "$before" ] || break
		sleep 0.02
	done
	kill -TERM $pid
	wait $pid || status=$?
	[ "$status" -eq 143 ]
	[ ! -e bench.json ]
	[ -z "$(ps -o pid= --ppid $pid)" ]
	[ -z "$(ls "$TMPDIR")" ]
}

@test "without a sandbox the verdicts are the same, said aloud" {
	build a 'right(a, a->rows);'
	"$KM/km-bench" --no-sandbox a/build.json >bench.json 2>messages
	[ "$(jq -c '[.status, .sandbox]' bench.json)" = '["PASSED",false]' ]
	grep -q 'without a sandbox' messages
}

@test "20 trials: two copies are never ranked, 3 % is found" {
	[ -n "${KM_LONG:-}" ] || skip "KM_LONG=1 runs it: 5 minutes, on an otherwise idle machine"
	local found=0 kernel
	TASK=$ROOT/tasks/sgemm_cpu
	for kernel in a b slower; do
		mkdir -p $kernel
		cp "$TASK/baseline.c" $kernel/kernel.c
	done
	# 3 rows of 100 twice.
	sed -i 's/i < a->M; i++/n < a->M + a->M * 33 \/ 1000; n++/; s/int64_t i = 0; n/int64_t n = 0; n/; s/float \*restrict c/int64_t i = n % a->M; float *restrict c/' slower/kernel.c
	for kernel in a b slower; do
		"$KM/km-compile" -t "$TASK" -o $kernel/build.json $kernel/kernel.c
	done
	for _ in $(seq 20); do
		[ "$("$KM/km-bench" --versus a/build.json b/build.json | jq -r .versus.verdict)" = equal ]
		[ "$("$KM/km-bench" --versus slower/build.json a/build.json | jq -r .versus.verdict)" != better ] || found=$((found + 1))
	done
	echo "$found of 20 found"
	[ "$found" -ge 19 ]
}
