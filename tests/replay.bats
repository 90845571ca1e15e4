#!/usr/bin/env bats
# Replays: with the recorded verdicts byte for byte; with other timings and turned verdicts always to an end.
#
# REPLAYS=n replays of the demo's recording (default 40, with KM_LONG=1 200, with sanitized programs 10).

load helpers

setup_file() {
	export RECORDING=$ROOT/tests/replies/sgemm_cpu_demo
	local replays=40
	[ -z "${SANITIZE:-}" ] || replays=10
	[ "${KM_LONG:-0}" != 1 ] || replays=200
	export REPLAYS=${REPLAYS:-$replays}
}

# Copy the recording to $1 with times scaled by lognormal(0.3) of seed $2, and a share $3 of the verdicts turned.
shake() {
	mkdir -p "$1"
	ln -s "$RECORDING"/{task,prompts,calls} "$1/"
	# The folder of the next search may be larger than the recording: other times, other ways.
	jq '.defaults.rounds *= 2 | .defaults.evals *= 2' "$RECORDING/run.json" >"$1/run.json"
	mkdir "$1/verdicts"
	local file seed=$2
	for file in "$RECORDING"/verdicts/*.json; do
		seed=$((seed * 7 + 1))
		awk -v seed=$seed 'BEGIN { srand(seed); printf "%.6f %.6f\n", exp(0.3 * sqrt(-2 * log(1 - rand())) * cos(6.283185307 * rand())), rand() }' |
			{
				read -r scale turn
				jq --argjson scale "$scale" --argjson turn "$turn" --argjson share "$3" -f "$BATS_TEST_DIRNAME/shake.jq" "$file"
			} >"$1/verdicts/${file##*/}"
	done
}

@test "with recorded verdicts every request, reply and verdict of a replay is the recorded one" {
	run km_run a FROM="$RECORDING"
	[ "$status" -eq 0 ]
	local file id count=0
	for file in "$STATE"/a/r00000/request.json "$STATE"/a/r*/s*/{request,edit-request}.json; do
		id=$(jq -r '.id // empty' "$file")
		[ -n "$id" ] || continue
		jq -S .request "$RECORDING/calls/$id.json" >"$BATS_TEST_TMPDIR/recorded"
		jq -S . "$file" | cmp - "$BATS_TEST_TMPDIR/recorded"
		count=$((count + 1))
	done
	[ "$count" -eq "$(find "$RECORDING/calls" -name '*.json' | wc -l)" ]
	[ "$(find "$STATE/a" -name bench.json -exec jq -r '.status // empty' {} + | grep -c UNRECORDED)" -eq 0 ]
}

@test "two replays are the same files" {
	km_run a FROM="$RECORDING"
	mv "$STATE" "$STATE.first"
	km_run a FROM="$RECORDING"
	diff <(sums "$STATE.first/a") <(sums "$STATE/a")
}

@test "searches kept with their tasks rebuild their trees and kernels from replies and verdicts" {
	local recording name count=0
	for recording in "$RECORDING" "$ROOT"/tasks/*/runs/*/; do
		[ -f "$recording/run.json" ] || continue
		name=kept-$count
		run km_run "$name" FROM="$recording"
		[ "$status" -eq 0 ] || { echo "$recording: $output"; return 1; }
		km_make record RUN="$name" TO="$BATS_TEST_TMPDIR/$name"
		diff -r "$recording/worlds" "$BATS_TEST_TMPDIR/$name/worlds"
		diff -r "$recording/kernels" "$BATS_TEST_TMPDIR/$name/kernels"
		diff <(ls "$recording/calls") <(ls "$BATS_TEST_TMPDIR/$name/calls")
		count=$((count + $(find "$recording/worlds" -name '*.json' | wc -l)))
	done
	[ "$count" -ge 9 ]
}

@test "a kernel kept as a task's best is that of its search, and passed on all workloads" {
	local kernel task recording cue count=0
	for kernel in "$ROOT"/tasks/*/best/kernel.*; do
		task=$(dirname "$(dirname "$kernel")") recording=''
		for recording in "$task"/runs/*/; do
			cue=$(cat "$recording"/worlds/*.json | jq -rs 'max_by(.round).best | "code_\(.node)_\(.attempt)"')
			! cmp -s "$kernel" "$recording/kernels/$cue.${kernel##*.}" || break
			recording=''
		done
		[ -n "$recording" ] || { echo "$kernel is the best of no search in $task/runs"; return 1; }
		jq -e --slurpfile workloads "$task/workloads.jsonl" '.status == "PASSED" and
			([.workloads[] | select(.status == "PASSED") | .uuid] | sort) == ([$workloads[] | .workload.uuid] | sort)' "$task/best/bench.json"
		count=$((count + 1))
	done
	[ "$count" -ge 1 ]
}

@test "a cue that was not recorded ends no replay" {
	shake "$BATS_TEST_TMPDIR/holes" 1 0
	rm "$BATS_TEST_TMPDIR/holes/calls"
	cp -r "$RECORDING/calls" "$BATS_TEST_TMPDIR/holes/calls"
	grep -l '"cue": "code/' "$BATS_TEST_TMPDIR/holes"/calls/*.json | head -n 2 | xargs rm
	run km_run a FROM="$BATS_TEST_TMPDIR/holes"
	echo "$output"
	[ "$status" -eq 0 ]
	[[ ${lines[-1]} == 'best: '* ]]
	grep -q '"status": "unrecorded"' "$STATE"/a/r*/world.json
}

@test "replays with other times and 10 % of the verdicts turned all end with a table" {
	local n
	for ((n = 1; n <= REPLAYS / 2; n++)); do
		shake "$BATS_TEST_TMPDIR/shaken" "$n" 0.1
		run km_run a FROM="$BATS_TEST_TMPDIR/shaken"
		[ "$status" -eq 0 ] || { echo "replay $n: $output"; return 1; }
		[[ ${lines[-1]} == 'best: '* ]]
		[[ $output == *node*status*measured* ]]
		rm -rf "$STATE" "$BATS_TEST_TMPDIR/shaken"
	done
}

# Other times end cycles sooner or later, but a cycle never before K attempts.
@test "replays with other times and no verdict turned all judge the recorded best's node, K attempts of it or up to the best" {
	local n node attempts cue
	km_run recorded FROM="$RECORDING"
	read -r node attempts < <(cat "$STATE"/recorded/r*/world.json |
		jq -rs 'max_by(.round) | "\(.best.node) \([.best.attempt, .settings.k] | min)"')
	rm -rf "$STATE"
	for ((n = 1; n <= REPLAYS / 2; n++)); do
		shake "$BATS_TEST_TMPDIR/shaken" "$((n + 1000))" 0
		run km_run a FROM="$BATS_TEST_TMPDIR/shaken"
		[ "$status" -eq 0 ] || { echo "replay $n: $output"; return 1; }
		for cue in $(seq -f "code/$node/%.0f" "$attempts"); do
			jq -r 'select(.status != "UNRECORDED") | .cue' "$STATE"/a/r*/s*/bench.json | grep -qxF "$cue" ||
				{ echo "replay $n did not judge $cue"; return 1; }
		done
		rm -rf "$STATE" "$BATS_TEST_TMPDIR/shaken"
	done
}
