#!/usr/bin/env bash
# bench-rounds.sh - a search of 1,000 rounds with an instant model and judge, through the real programs and make: do time,
# memory and files per round stay what they were?
#
# Writes   a table on stdout: what, measured, the figure to hold
# Exit     0 if every figure holds
# Example  ROUNDS=200 tests/bench-rounds.sh
set -eu -o pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C BATS_TEST_DIRNAME=$PWD/tests
export BATS_TEST_TMPDIR
BATS_TEST_TMPDIR=$(mktemp -d)
trap 'rm -rf "$BATS_TEST_TMPDIR"' EXIT
# shellcheck source=tests/helpers.bash
. tests/helpers.bash

ROUNDS=${ROUNDS:-1000}
bad=0

# WHAT MEASURED FIGURE UNIT: a line of the table; the figure is a ceiling.
row() {
	local verdict=holds
	awk -v a="$2" -v b="$3" 'BEGIN { exit !(a <= b) }' || { verdict='DOES NOT HOLD' bad=1; }
	printf '%-62s %10s   under %-6s %-4s %s\n' "$1" "$2" "$3" "$4" "$verdict"
}

PROGRAM_FOLDER=$BATS_TEST_TMPDIR/programs
fake_judge "$PROGRAM_FOLDER"
cp "$PEERS/instant" "$PROGRAM_FOLDER/km-compile"
cp "$PEERS/instant" "$PROGRAM_FOLDER/km-bench"
# What km-plan and km-update take at most, a line a call: seconds of processor time and KB of memory.
for program in km-plan km-update; do
	rm "$PROGRAM_FOLDER/$program"
	cat >"$PROGRAM_FOLDER/$program" <<-END
		#!/bin/sh
		exec /usr/bin/time -a -o "$BATS_TEST_TMPDIR/$program" -f '%U %S %M' "$KM/$program" "\$@"
	END
	chmod +x "$PROGRAM_FOLDER/$program"
done
[ -x /usr/bin/time ] || { echo 'skipped: /usr/bin/time is not here (package time)'; exit 0; }

# $1 a run, $2 how many evaluations it is to have: goes on to there. Milliseconds of each round but the first, in which make reads
# its rules.
evaluations_to() {
	EXEC=$PEERS/instant km_run "$1" TASK=sgemm_cpu PROVIDER=exec K=2 ROUNDS="$ROUNDS" EVALS="$2" FINAL=no 2>&1 >/dev/null |
		while IFS= read -r line; do
			[[ $line != 'r'[0-9]* ]] || printf '%s\n' "$EPOCHREALTIME"
		done | awk 'NR > 1 { printf "%.1f\n", 1000 * ($1 - before) } { before = $1 }'
}

evaluations_to long 1000000 >"$BATS_TEST_TMPDIR/all"
state=$STATE/long
last=$state/r$(printf %05d "$ROUNDS")
[ -s "$last/world.json" ] || { echo "the search did not come to round $ROUNDS" >&2; exit 1; }

# The search is taken up again where 3 and where 9 tenths of it were done, a few rounds here, a few there: between the beginning and
# the end of a long run a shared machine changes more than the search does.
early=$((ROUNDS * 3 / 10)) late=$((ROUNDS * 9 / 10)) batches=10 batch=6
for from in $early $late; do
	cp -r "$state" "$STATE/from-$from"
	km_make rewind RUN="from-$from" TO="$from" >/dev/null
	rm -f "$STATE/from-$from"/calls/*
	head -n $(($(wc -l <"$state/calls.tsv") * from / ROUNDS)) "$state/calls.tsv" >"$STATE/from-$from/calls.tsv"
done
evaluations() { jq .evaluations "$state/r$(printf %05d "$1")/world.json"; }
for ((i = 1; i <= batches; i++)); do
	for from in $early $late; do
		evaluations_to "from-$from" $(($(evaluations "$from") + i * batch)) >>"$BATS_TEST_TMPDIR/from-$from"
	done
done
middle() {
	sort -n "$BATS_TEST_TMPDIR/from-$1" | awk '{ t[NR] = $1 } END { printf "%.1f", t[int((NR + 1) / 2)] }'
}
# World.json and nodes of a round.
size() { stat -c %s "$state/r$(printf %05d "$1")/world.json"; }
nodes() { jq '.nodes | length' "$state/r$(printf %05d "$1")/world.json"; }

printf '%d rounds, %d nodes; a round takes %s ms after %d rounds, %s ms after %d\n' "$ROUNDS" "$(nodes "$ROUNDS")" \
	"$(middle $early)" "$early" "$(middle $late)" "$late"
row "time of a round, late by early" "$(awk -v a="$(middle $late)" -v b="$(middle $early)" 'BEGIN { printf "%.2f", a / b }')" 1.2 ""
for program in km-plan km-update; do
	row "memory of $program at the end" "$(($(tail -n 1 "$BATS_TEST_TMPDIR/$program" | awk '{ print $3 }') / 1024))" 100 MB
done
largest=0
for folder in "$state"/r?????; do
	bytes=$(find "$folder" -type f ! -name world.json -printf '%s\n' | awk '{ s += $1 } END { print s + 0 }')
	[ "$bytes" -le "$largest" ] || largest=$bytes
done
row "largest round without its world.json" "$((largest / 1000))" 200 KB
half=$((ROUNDS / 2))
row "world.json by nodes, at the end by halfway" \
	"$(awk -v a="$(size "$ROUNDS")" -v b="$(nodes "$ROUNDS")" -v c="$(size $half)" -v d="$(nodes $half)" 'BEGIN { printf "%.2f", a / b / (c / d) }')" 1.1 ""
exit "$bad"
