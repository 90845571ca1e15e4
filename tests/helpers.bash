# helpers.bash - what every .bats file loads: where things are, and a search with a scripted model.
#
# $ROOT  the repository    $KM  the programs    $PEERS  what tests/peer/*.c and tests/preload/*.c were built into
# Each test works in its own $BATS_TEST_TMPDIR; runs go to $STATE inside it.

ROOT=$(cd "$BATS_TEST_DIRNAME/.." && pwd)
KM=${KM_BIN:-bin}
[[ $KM == /* ]] || KM=$ROOT/$KM
PEERS=${KM_PEERS:-$ROOT/bin/.build/plain/tests}
export ROOT KM PEERS
export LC_ALL=C
# Tests call make as a user would, not as a part of the make that runs them.
unset MAKEFLAGS MAKELEVEL MFLAGS MAKEOVERRIDES

# make in the repository, on runs in $STATE.
km_make() {
	make -C "$ROOT" --no-print-directory BIN="$KM" STATE="$STATE" "$@"
}

# The driver itself, so that its exit code is seen: km_run RUN NAME=VALUE... with goal rounds.
km_run() {
	local run=$1
	shift
	(cd "$ROOT" && KM_BIN="$KM" tools/run "$STATE/$run" "$@" -- make BIN="$KM" -k rounds)
}

# All files of a run with their sums, but calls.tsv, whose lines come in any order and hold seconds.
sums() {
	(cd "$1" && find . -type f ! -name calls.tsv -print0 | sort -z | xargs -0 sha256sum)
}
