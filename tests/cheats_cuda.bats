#!/usr/bin/env bats
# The kernels of tests/cheats/cuda: cheats of all kinds for the target cuda, and honest ones beside them. judge-all there compiles
# and judges each and compares with expected.tsv; these tests call it. What the compile step decides needs nvcc, and the rest a
# device too. Without KM_LONG=1 a selection is taken, which holds something of every kind.

load helpers

CHEATS=$ROOT/tests/cheats/cuda

# Of the compile step: about a second each, but for the bombs.
COMPILED='honest-(plain|cluster|tensor-map|cublas|constant-memory)|library-not-allowed|host-callback|synchronises|driver-entry-point|module-load'
COMPILED+='|pthread|helper-thread|dlopen|cuda-malloc|constructor|destructor|thread-local|exports-(event-record|assembler)|include-(passwd|reference|macro)'
COMPILED+='|incbin-macro|empty|comment-only|language-(python|cpp)|km-run-mangled|executable-stack'

# On the device: some seconds each.
JUDGED='honest-(plain|cluster|fork-join|wgmma)|zeros|half-accumulation|dropped-tokens|branch-on-poison|inputs-written|out-of-bounds-behind|trap'
JUDGED+='|other-stream|ahead-by-priority|events-re-recorded|forger-arrival|fork-raw|device-reset-found'

setup() {
	export KM_CACHE=$BATS_FILE_TMPDIR/cache KM_BIN=$KM
	mkdir "$BATS_TEST_TMPDIR/empty"
	cd "$BATS_TEST_TMPDIR/empty" || return
}

needs_nvcc() {
	[ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ] || command -v nvcc >/dev/null || skip "NOT TESTED: there is no nvcc"
}

needs_device() {
	[ -e /dev/nvidiactl ] || skip "NOT TESTED: there is no CUDA device"
	[ -x "$KM/km-keeper-cuda" ] || skip "NOT TESTED: km-keeper-cuda was not built"
}

# The pattern of names: everything if KM_LONG is set.
chosen() {
	if [ "${KM_LONG:-}" = 1 ]; then
		echo .
	else
		echo "^($1)\$"
	fi
}

left_nothing() {
	ls -A "$TMPDIR" .
	[ -z "$(ls -A "$TMPDIR")$(ls -A .)" ] && [ ! -e /tmp/result ]
}

@test "files and table name the same kernels" {
	(cd "$CHEATS" && printf '%s\n' *.cu) | sort >"$BATS_TEST_TMPDIR/files"
	grep -v '^#' "$CHEATS/expected.tsv" | cut -f 1 | sort >"$BATS_TEST_TMPDIR/table"
	diff "$BATS_TEST_TMPDIR/files" "$BATS_TEST_TMPDIR/table"
}

@test "every line of the table has a task, statuses, rules and a reason" {
	awk -F'\t' '!/^#/ && (NF < 5 || NF > 6 || $3 !~ /^[A-Z_|]+$/ || $4 !~ /^([a-z0-9|-]+|[*])$/ || $5 == "") { print; bad = 1 } END { exit bad }' \
		"$CHEATS/expected.tsv"
	while read -r task; do
		[ -f "$ROOT/tasks/$task/definition.json" ] || { echo "no task $task"; return 1; }
	done < <(grep -v '^#' "$CHEATS/expected.tsv" | cut -f 2 | sort -u)
	[ "$(grep -c '^honest-' "$CHEATS/expected.tsv")" -ge 14 ]
	[ -z "$(awk -F'\t' '/^honest-/ && $3 != "PASSED"' "$CHEATS/expected.tsv")" ]
}

@test "honest kernels say that they are, and no other does" {
	[ -z "$(grep -L '^/\* Honest: ' "$CHEATS"/honest-*.cu)" ]
	[ -z "$(grep -l '^/\* Honest: ' "$CHEATS"/*.cu | grep -v /honest-)" ]
}

# Members in their order, without types: "driver context stream begin ...".
members() {
	sed -n "/^struct $1 {/,/^}/{s,/\*.*,,;p}" "$2" | grep -o '[a-z_0-9]*\(\[[^]]*\]\)\?[,;]\|(\*[a-z_]*)' | tr -d '*(),;' | sed 's/\[.*//' | xargs
}

@test "the cheats that take over the runner know what it looks like" {
	local mine theirs
	theirs=$(members runner "$ROOT/tools/judge/runner_cuda.cu")
	mine=$(members runner "$CHEATS/forger-arrival.cu")
	echo "$theirs / $mine"
	[[ -n $mine && $theirs == "$mine"* ]]
	[ "$(sed -n '/^struct driver {/,/^}/p' "$ROOT/tools/judge/runner_cuda.cu" | grep -c '(\*')" -eq 8 ]
	theirs=$(sed -n '/^struct keeper_patch {/,/^}/p' "$ROOT/tools/judge/keeper_protocol.h" | sed 1d)
	mine=$(sed -n '/^struct patch {/,/^}/p' "$CHEATS/whole-batch-at-once.cu" | sed 1d)
	echo "$theirs / $mine"
	[[ -n $mine && $theirs == "$mine" ]]
	theirs=$(members protocol_message "$ROOT/tools/judge/protocol.h")
	mine=$(members message "$CHEATS/forger-arrival.cu")
	echo "$theirs / $mine"
	[[ -n $mine && $theirs == "$mine"* ]]
}

@test "50 MB of source for cuda" {
	{ cat "$CHEATS/honest-plain.cu"; yes 'extern int unused;' | head -c 50000000; } >"$BATS_TEST_TMPDIR/kernel.cu"
	"$KM/km-compile" -t "$ROOT/tasks/rmsnorm_h4096" "$BATS_TEST_TMPDIR/kernel.cu" >"$BATS_TEST_TMPDIR/build.json"
	[ "$(jq -r '"\(.status) \(.rule)"' "$BATS_TEST_TMPDIR/build.json")" = 'REJECTED source-size' ]
}

@test "what the compile step decides" {
	needs_nvcc
	"$CHEATS/judge-all" --build-only "$BATS_TEST_TMPDIR/built" "$(chosen "$COMPILED")"
	[ -z "$(grep -l root:x: "$BATS_TEST_TMPDIR"/built/*/*)" ]
	for document in "$BATS_TEST_TMPDIR"/built/*/build.json; do
		"$KM/km-validate" build "$document"
	done
	left_nothing
}

@test "what the judge decides on a device" {
	needs_nvcc
	needs_device
	"$CHEATS/judge-all" "$(chosen "$JUDGED")"
	left_nothing
}
