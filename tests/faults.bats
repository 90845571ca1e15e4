# faults.bats - every step of a round with its n-th read, write, fsync, rename, open, close or malloc failing.
#
# A step either fails, saying so on stderr and leaving its output as it was, or succeeds with the very bytes of a run
# without faults. It never crashes, and it leaves no temporary file.

load helpers

setup_file() {
	export FAULTS=$BATS_FILE_TMPDIR BATS_TEST_TMPDIR=$BATS_FILE_TMPDIR
	record_search "$FAULTS/recording" WIDTH=1 K=2 ROUNDS=3 EVALS=6
	STATE=$FAULTS/state km_run whole FROM="$FAULTS/recording"
}

setup() {
	[ -z "${SANITIZE:-}" ] || skip "the preload and the sanitizers both want malloc"
	RUN_DIR=$FAULTS/state/whole
	WORK=$BATS_TEST_TMPDIR/work
	mkdir -p "$WORK"
}

# check_step OUTPUT COMMAND... : without faults first, then with each fault in turn, upon an older output. Files beside OUTPUT
# are watched.
check_step() {
	local output=$1 call n count status good=$WORK/good
	shift
	"$@" 2>/dev/null
	cp "$output" "$good"
	for call in read write fsync rename open close malloc; do
		rm -f "$output"
		FAIL_CALL=$call FAIL_COUNT=$WORK/count LD_PRELOAD=$PEERS/fail.so "$@" 2>/dev/null
		count=$(cat "$WORK/count")
		rm -f "$WORK/count"
		# Allocations are many and alike: the first hundred and some of the others.
		for n in $(seq 1 "$count" | awk 'NR <= 100 || NR % 97 == 0'); do
			echo "an older output" >"$output"
			status=0
			FAIL_CALL=$call FAIL_AT=$n LD_PRELOAD=$PEERS/fail.so "$@" 2>"$WORK/said" || status=$?
			one_fault "$call $n of $count" "$status" "$output" "$good"
		done
		[ "$call" != write ] || [ "$count" -ge 1 ] || fault "no write was counted: the preload sees nothing"
	done
	cp "$good" "$output"
}

fault() {
	printf '%s\n' "$*" >&2
	cat "$WORK/said" >&2
	return 1
}

one_fault() {
	local what=$1 status=$2 output=$3 good=$4
	[ "$status" -lt 124 ] || fault "$what: crashed with $status"
	if [ "$status" -eq 0 ]; then
		diff "$good" "$output" || fault "$what: succeeded with other output"
	else
		[ -s "$WORK/said" ] || fault "$what: failed without a word"
		[ "$(cat "$output")" = "an older output" ] || cmp -s "$good" "$output" || fault "$what: failed and left half an output"
	fi
	if compgen -G "$(dirname "$output")/.*.tmp" >/dev/null; then
		ls -lA "$(dirname "$output")" >>"$WORK/said"
		fault "$what: left a temporary file"
	fi
}

@test "km-plan under faults" {
	cp -r "$RUN_DIR" "$WORK/run"
	check_step "$WORK/run/r00002/plan.json" "$KM/km-plan" --rounds 9 --evals 99 --calls "$WORK/run/calls.tsv" \
		-o "$WORK/run/r00002/plan.json" "$WORK/run/r00001/world.json"
}

@test "km-instantiate request, candidate and source under faults" {
	cp -r "$RUN_DIR" "$WORK/run"
	local slot=$WORK/run/r00002/s0
	check_step "$slot/request.json" "$KM/km-instantiate" request --slot 0 -o "$slot/request.json" "$WORK/run/r00002/plan.json"
	check_step "$slot/candidate.json" "$KM/km-instantiate" candidate -o "$slot/candidate.json" "$slot/reply.json"
	check_step "$slot/kernel.c" "$KM/km-instantiate" source -o "$slot/kernel.c" "$slot/candidate.json"
}

@test "km-llm replay under faults, with its reply on file and without" {
	cp -r "$RUN_DIR" "$WORK/run"
	local slot=$WORK/run/r00002/s0
	check_step "$slot/reply.json" "$KM/km-llm" --provider replay --recording "$FAULTS/recording" --run "$WORK/run" \
		-o "$slot/reply.json" "$slot/request.json"
	check_step "$slot/reply.json" "$KM/km-llm" --provider replay --recording "$FAULTS/recording" \
		-o "$slot/reply.json" "$slot/request.json"
	[ "$(cut -f 1,2 "$WORK/run/calls.tsv" | grep -c ^end)" -eq "$(cut -f 1,2 "$WORK/run/calls.tsv" | grep ^end | sort -u | wc -l)" ]
}

@test "km-compile and km-bench in replay under faults" {
	cp -r "$RUN_DIR" "$WORK/run"
	local slot=$WORK/run/r00002/s0
	check_step "$slot/build.json" "$KM/km-compile" --task "$WORK/run/task" --candidate "$slot/candidate.json" \
		--replay "$FAULTS/recording" -o "$slot/build.json" "$slot/kernel.c"
	check_step "$slot/bench.json" "$KM/km-bench" --replay "$FAULTS/recording" --plan "$WORK/run/r00002/plan.json" \
		-o "$slot/bench.json" "$slot/build.json"
}

@test "km-update request and world under faults" {
	cp -r "$RUN_DIR" "$WORK/run"
	local round=$WORK/run/r00002
	check_step "$round/s0/edit-request.json" "$KM/km-update" request --slot 0 -o "$round/s0/edit-request.json" "$round/plan.json"
	check_step "$round/world.json" "$KM/km-update" world --calls "$WORK/run/calls.tsv" -o "$round/world.json" "$round/plan.json"
}
