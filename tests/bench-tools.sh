#!/usr/bin/env bash
# bench-tools.sh - what the tools themselves take: the figures of the design that need no GPU, measured here.
#
# Reads    the programs; searches by tests/peer/model.sh and judge.sh in a temporary folder
# Writes   a table on stdout: what, measured, the figure to hold
# Exit     0 if every figure holds
# Example  make bench-tools
set -eu -o pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C BATS_TEST_DIRNAME=$PWD/tests
export BATS_TEST_TMPDIR
BATS_TEST_TMPDIR=$(mktemp -d)
trap 'rm -rf "$BATS_TEST_TMPDIR"' EXIT
# shellcheck source=tests/helpers.bash
. tests/helpers.bash

ROUNDS=${ROUNDS:-120}
recording=$BATS_TEST_TMPDIR/recording
bad=0

# WHAT MEASURED FIGURE UNIT: a line of the table; the figure is a ceiling.
row() {
	local verdict=holds
	awk -v a="$2" -v b="$3" 'BEGIN { exit !(a <= b) }' || { verdict='DOES NOT HOLD' bad=1; }
	printf '%-58s %10s   under %-6s %-4s %s\n' "$1" "$2" "$3" "$4" "$verdict"
}

# Milliseconds that a command takes.
milliseconds() {
	local start=$EPOCHREALTIME
	"$@" >/dev/null 2>"$BATS_TEST_TMPDIR/log" || { cat "$BATS_TEST_TMPDIR/log" >&2; exit 1; }
	awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.0f", (b - a) * 1000 }'
}

rounds() {
	local total nothing
	record_search "$recording" WIDTH=1 K=2 ROUNDS="$ROUNDS" EVALS=100000 >/dev/null 2>"$BATS_TEST_TMPDIR/log" ||
		{ tail -n 5 "$BATS_TEST_TMPDIR/log" >&2; exit 1; }
	total=$(milliseconds km_make replay RUN=bench FROM="$recording")
	nothing=$(milliseconds km_make run RUN=bench)
	nothing=$( (echo "$nothing"; milliseconds km_make run RUN=bench; echo; milliseconds km_make run RUN=bench) | sort -n | grep . | head -n 1)
	row "programs and make per round, $ROUNDS rounds, WIDTH=1" $((total / ROUNDS)) 150 ms
	row "make run when nothing is left to do, $ROUNDS rounds" "$nothing" 500 ms
}

prompts() {
	local size
	size=$(jq '[.messages[]?.content | utf8bytelength] | add // 0' "$STATE"/bench/r*/s0/{request,edit-request}.json | sort -n | tail -n 1)
	row "largest prompt of $ROUNDS rounds, $(jq '.nodes | length' "$STATE/bench/r$(printf %05d "$ROUNDS")/world.json") nodes" \
		"$size" 300000 B
}

# The same kernel against itself, three judgements: how far the factor between the two copies is from 1, in percent, the
# middle one. On the cpu target only times of one judgement are ever compared; how far the medians of two judgements are
# apart says how steady this machine is, and is shown without a figure to hold.
twice() {
	local folder=$BATS_TEST_TMPDIR/twice n
	mkdir -p "$folder"
	cp tasks/sgemm_cpu/baseline.c "$folder/kernel.c"
	"$KM/km-compile" --task tasks/sgemm_cpu -o "$folder/build.json" "$folder/kernel.c"
	for n in 1 2 3; do
		"$KM/km-bench" --versus "$folder/build.json" -o "$folder/$n.json" "$folder/build.json"
	done
	row "two copies of a kernel in one judgement: apart" \
		"$(jq -s 'map((.versus.factor - 1) * 10000 | fabs | round / 100) | sort | .[1]' "$folder"/?.json)" 2 '%'
	printf '%-58s %10s   %s\n' "the same kernel in two judgements: medians apart" \
		"$(jq -s '[range(2) as $n | [.[$n].workloads, .[$n + 1].workloads] | transpose |
			map((.[0].median_us / .[1].median_us - 1) * 10000 | fabs | round / 100) | max] | max' "$folder"/?.json)" \
		'%    (shown: never compared)'
}

rounds
prompts
[ ! -x tests/bench-world.sh ] || tests/bench-world.sh
twice
exit "$bad"
