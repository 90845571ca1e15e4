#!/usr/bin/env bash
# judge.sh - a test peer: stands in for km-compile and km-bench under those names, and gives verdicts by arithmetic on
# the kernel's text, in the real file formats. So a search can be recorded in a second on any machine.
#
# Reads    as the program whose name it has: a kernel and --candidate, or a build.json
# Writes   build.json or bench.json, by rename
set -eu -o pipefail
export LC_ALL=C

output='' candidate=''
while [ $# -gt 1 ]; do
	case $1 in
	--table)
		printf "name\tstatus\n"
		exit
		;;
	-o) output=$2 ;;
	--candidate) candidate=$2 ;;
	esac
	shift 2
done
input=$1 folder=${output%/*}

# The document of a skipped slot, or of a candidate without code, goes on by itself.
write() {
	cat >"$folder/.${output##*/}.tmp"
	mv "$folder/.${output##*/}.tmp" "$output"
}

compile() {
	local sum source
	if jq -e 'has("skip")' "$candidate" >/dev/null; then
		write <"$candidate"
		return
	fi
	source=$(sha256sum "$input")
	source=${source%% *}
	sum=$(cksum <"$input")
	jq --arg source "$source" --argjson sum "${sum%% *}" '
		(if .status != "CODE" then .status elif $sum % 7 == 0 then "COMPILE_ERROR" else "BUILT" end) as $status |
		{made_by: {program: "km-compile", version: "test", inputs: {}}, cue, status: $status, rule: null,
		 message: (if $status == "COMPILE_ERROR" then "kernel.c:1: error: test" else "" end),
		 task: "test", target: "cpu", kernel: "kernel.c", library: null, library_sha256: null, edited: false,
		 source_sha256: $source, code_sha256: $source, compiler: "test", flags: "",
		 diagnostics: "", seconds: 0.5}' "$candidate" | write
}

bench() {
	if jq -e 'has("skip")' "$input" >/dev/null; then
		write <"$input"
		return
	fi
	jq '(.source_sha256 // "0" | explode | map(. % 16) | add) as $n |
		(if .status != "BUILT" then .status elif $n % 5 == 0 then "INCORRECT_NUMERICAL" else "PASSED" end) as $status |
		(if $status == "PASSED" then 100 + ($n * 37 % 3000) else null end) as $score |
		{made_by: {program: "km-bench", version: "test", inputs: {}}, cue, status: $status, rule: null, message: .message,
		 task: .task, source_sha256, code_sha256, score: $score, noise: (if $score then 0.01 else null end),
		 device: {name: "test", target: "cpu"}, sandbox: true, seconds: 1.5,
		 workloads: (if $score then [{uuid: "w", axes: {n: 1}, set: "feedback", status: "PASSED",
			median_us: (100000 / $score), q1_us: (99000 / $score), q3_us: (101000 / $score), idle_us: null,
			baseline_us: 1000, floor_us: 1, speedup: ($score / 100), max_abs_error: 0, max_rel_error: 0, calls: 10}] else [] end),
		 versus: null, failure: null}' "$input" | write
}

case ${0##*/} in
km-compile) compile ;;
km-bench) bench ;;
*) exit 2 ;;
esac
