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

# A line of km-update a round, with the time at which it came.
EXEC=$PEERS/instant km_run long TASK=sgemm_cpu PROVIDER=exec K=2 ROUNDS="$ROUNDS" EVALS=1000000 FINAL=no 2>&1 >/dev/null |
	while IFS= read -r line; do
		[[ $line != 'r'[0-9]* ]] || printf '%s %s\n' "${EPOCHREALTIME}" "$line"
	done >"$BATS_TEST_TMPDIR/log"
state=$STATE/long
last=$state/r$(printf %05d "$ROUNDS")
[ -s "$last/world.json" ] || { tail -n 3 "$BATS_TEST_TMPDIR/log" >&2; exit 1; }

# The middle time of the rounds in the second and in the last fifth: the first has the small tree.
fifth() {
	awk '{ if (NR > 1) print $1 - before; before = $1 }' "$BATS_TEST_TMPDIR/log" | sed -n "$(($1 * ROUNDS / 5 + 1)),$((($1 + 1) * ROUNDS / 5 - 1))p" |
		sort -n | awk '{ t[NR] = $1 } END { printf "%.1f", 1000 * t[int((NR + 1) / 2)] }'
}
# World.json and nodes of a round.
size() { stat -c %s "$state/r$(printf %05d "$1")/world.json"; }
nodes() { jq '.nodes | length' "$state/r$(printf %05d "$1")/world.json"; }

early=$(fifth 1) late=$(fifth 4)
printf '%d rounds, %d nodes, a round takes %s ms early and %s ms late\n' "$ROUNDS" "$(nodes "$ROUNDS")" "$early" "$late"
row "time of a round, late by early" "$(awk -v a="$late" -v b="$early" 'BEGIN { printf "%.2f", a / b }')" 1.2 ""
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
