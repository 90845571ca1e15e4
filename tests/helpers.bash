# helpers.bash - what every .bats file loads: where things are, and searches without a language model.
#
# $ROOT  the repository    $KM  the programs    $PEERS  what tests/peer/*.c and tests/preload/*.c were built into
# Each test works in its own $BATS_TEST_TMPDIR; the runs of km_make and km_run are in $STATE, temporary files in $TMPDIR.

ROOT=$(cd "$BATS_TEST_DIRNAME/.." && pwd)
KM=${KM_BIN:-bin}
[[ $KM == /* ]] || KM=$ROOT/$KM
PEERS=${KM_PEERS:-$ROOT/bin/.build/plain/tests}
STATE=${BATS_TEST_TMPDIR:-}/state
export ROOT KM PEERS
export LC_ALL=C
# A program that is killed leaves its temporary folder: beside the test's folder, not in the user's.
if [ -n "${BATS_FILE_TMPDIR:-}" ]; then
	export TMPDIR=${BATS_TEST_TMPDIR:-$BATS_FILE_TMPDIR}.tmp
	mkdir -p "$TMPDIR"
fi
# Tests call make as a user would, not as a part of the make that runs them.
unset MAKEFLAGS MAKELEVEL MFLAGS MAKEOVERRIDES

# The programs with tests/peer/judge.sh in place of the judge, in folder $1.
fake_judge() {
	local program
	mkdir -p "$1"
	for program in "$KM"/km-*; do
		ln -s "$program" "$1/"
	done
	rm -f "$1/km-compile" "$1/km-bench"
	cp "$ROOT/tests/peer/judge.sh" "$1/km-compile"
	cp "$ROOT/tests/peer/judge.sh" "$1/km-bench"
}

# make in the repository, on runs in $STATE, with the programs of $PROGRAM_FOLDER if that is set.
km_make() {
	make -C "$ROOT" --no-print-directory STATE="$STATE" ${PROGRAM_FOLDER:+BIN="$PROGRAM_FOLDER"} "$@"
}

# The driver itself, so that its exit code is seen: km_run RUN NAME=VALUE...
km_run() {
	local run=$1
	shift
	(cd "$ROOT" && KM_BIN="${PROGRAM_FOLDER:-$KM}" tools/run "$STATE/$run" "$@" -- \
		make ${PROGRAM_FOLDER:+BIN="$PROGRAM_FOLDER"} -k rounds)
}

# A search by the scripted model and the scripted judge, recorded into folder $1: settings as for tools/run follow.
record_search() {
	local to=$1 STATE=$1.state PROGRAM_FOLDER=$1.bin
	shift
	fake_judge "$PROGRAM_FOLDER"
	EXEC=$ROOT/tests/peer/model.sh km_run recorded TASK=sgemm_cpu PROVIDER=exec "$@" || return
	km_make record RUN=recorded TO="$to" || return
	rm -rf "$STATE" "$PROGRAM_FOLDER"
}

# The sum of every file of a run, but of calls.tsv, whose lines come in any order and hold seconds.
sums() {
	(cd "$1" && find . -type f ! -name calls.tsv -print0 | sort -z | xargs -0 sha256sum)
}

# The modification time of every file of a run.
times() {
	(cd "$1" && find . -type f -printf '%p %T@ %i\n' | sort)
}
