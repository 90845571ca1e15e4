#!/usr/bin/env bats
# kill -9 at every moment of writing, then make run: nothing is lost, nothing is paid twice, nothing half is left.
#
# tests/preload/kill.c counts write, fsync, rename, utimensat and futimens of all programs of a search of 3 rounds at
# WIDTH 2 with replayed replies and verdicts, and kills the process group at one of them.
# KILL_STEP=n tries every n-th moment (default 5, with KM_LONG=1 every one).

load helpers

# One folder for all, since a run.json names its recording by a relative path.
setup() {
	STATE=$BATS_FILE_TMPDIR/state
	rm -rf "$STATE"
}

setup_file() {
	export RECORDING=$BATS_FILE_TMPDIR/recording
	export ASAN_OPTIONS=verify_asan_link_order=0:detect_leaks=0
	record_search "$RECORDING" WIDTH=2 K=2 ROUNDS=3 EVALS=100
	STATE=$BATS_FILE_TMPDIR/state
	km_run whole FROM="$RECORDING"
	sums "$STATE/whole" >"$BATS_FILE_TMPDIR/sums"
	rm -rf "$STATE"
}

# search RUN AT [IN_PLACE]: a search in a process group of its own, which dies at moment AT. Counts into RUN.count.
search() {
	local counter=$STATE/$1.count
	mkdir -p "$STATE"
	head -c 8 /dev/zero >"$counter"
	# shellcheck disable=SC2016
	setsid -w env KM_BIN="${PROGRAM_FOLDER:-$KM}" LD_PRELOAD="$PEERS/kill.so" KILL_COUNTER="$counter" KILL_AT="$2" KILL_IN_PLACE="${3:-0}" \
		bash -c 'cd "$ROOT" && exec tools/run "$@"' - "$STATE/$1" FROM="$RECORDING" -- \
		make ${PROGRAM_FOLDER:+BIN="$PROGRAM_FOLDER"} -k rounds >"$STATE/$1.log" 2>&1 3>&-
}

moments() { od -An -tu8 "$STATE/$1.count" | tr -d ' '; }

# The inode of every file that counts: temporary ones are used up by the next writer of their target.
inodes() { (cd "$1" && find . -type f ! -name '.*.tmp' ! -path './.copy.tmp/*' -printf '%p %i\n' | sort); }

# The calls that were cut off in flight: started, and no reply on file.
in_flight() {
	[ -e "$1/calls.tsv" ] || return 0
	awk -F '\t' 'NF == 9 && $1 == "start" { print $2 }' "$1/calls.tsv" | sort -u | while read -r id; do
		[ -e "$1/calls/$id.json" ] || echo "$id"
	done
}

# Calls in the ledger that were started more often than once, or not ended exactly once. A line without nine fields was cut off.
started_again() { awk -F '\t' 'NF == 9 && $1 == "start" { n[$2]++ } END { for (id in n) if (n[id] > 1) print id }' "$1/calls.tsv" | sort; }
badly_ended() {
	awk -F '\t' 'NF == 9 && $1 == "start" { s[$2] = 1 } NF == 9 && $1 == "end" { e[$2]++ }
		END { for (id in s) if (e[id] != 1) print id, e[id] + 0 }' "$1/calls.tsv"
}

# Kill run $1 at moment $2 (in place: $3), resume it, and say on stdout whatever is not as it must be.
kill_and_resume() {
	local folder=$STATE/$1 flying
	search "$1" "$2" "${3:-0}" && return 0
	mkdir -p "$folder"
	inodes "$folder" >"$STATE/$1.inodes"
	flying=$(in_flight "$folder")
	km_run "$1" FROM="$RECORDING" >"$STATE/$1.resumed" 2>&1 || { echo "resume failed"; cat "$STATE/$1.resumed"; }
	sums "$folder" | diff "$BATS_FILE_TMPDIR/sums" - | grep '^[<>]' || true
	comm -23 "$STATE/$1.inodes" <(inodes "$folder") | sed 's/^/new inode: /'
	find "$folder" -name '*.tmp' | sed 's/^/left over: /'
	comm -13 <(sort <<<"$flying") <(started_again "$folder") | sed 's/^/paid again: /'
	badly_ended "$folder" | sed 's/^/not ended once: /'
}

@test "killed at every moment of writing and resumed, a search is as if nothing had happened" {
	local step=${KILL_STEP:-$([ "${KM_LONG:-0}" = 1 ] && echo 1 || echo 5)} total at trouble
	search whole 0
	total=$(moments whole)
	[ "$total" -gt 200 ]
	for ((at = 1; at <= total; at += step)); do
		trouble=$(kill_and_resume "whole" "$at")
		[ -z "$trouble" ] || { echo "killed at $at of $total:"; echo "$trouble"; return 1; }
		rm -rf "$STATE/whole"
	done
	echo "# killed at $(((total + step - 1) / step)) of $total moments" >&3
}

@test "the same kills find a writer that does not rename" {
	local total at found=0
	search whole 0 1
	total=$(moments whole)
	rm -rf "$STATE/whole"
	for ((at = total / 4; at <= total && found == 0; at++)); do
		[ -z "$(kill_and_resume "whole" "$at" 1)" ] || found=$at
		rm -rf "$STATE/whole"
	done
	[ "$found" -ge 1 ]
}

@test "20 random kills of a real demo" {
	[ "${KM_LONG:-0}" = 1 ] || skip "takes minutes; KM_LONG=1 runs it"
	[ -d "$ROOT/tests/replies/sgemm_cpu_demo" ] || skip "no recorded demo"
	"$ROOT/tests/kill-demo.sh" 20 "$STATE"
}
