#!/usr/bin/env bats
# The winner is measured again at the end, and that figure is reported; what fails there is no winner.

load helpers

setup() {
	cd "$BATS_TEST_TMPDIR" || return
	PROGRAM_FOLDER=$BATS_TEST_TMPDIR/programs
	fake_judge "$PROGRAM_FOLDER"
	# Judgements of the final workloads (--set all) go through the file `finally`, a jq filter; the Nth line for the Nth.
	mkdir "$PROGRAM_FOLDER/plain"
	mv "$PROGRAM_FOLDER/km-bench" "$PROGRAM_FOLDER/plain/"
	cat >"$PROGRAM_FOLDER/km-bench" <<-'END'
		#!/usr/bin/env bash
		set -eu
		folder=$(dirname "$0")
		case " $* " in *' --set all '*) ;; *) exec "$folder/plain/km-bench" "$@" ;; esac
		"$folder/plain/km-bench" "$@"
		while [ "$1" != -o ]; do shift; done
		echo x >>"$folder/count"
		filter=$(sed -n "$(wc -l <"$folder/count")p" "$folder/finally")
		[ "$filter" != waits ] || { rm "$2"; exit 75; }
		jq "$filter" "$2" >"$2.new"
		mv "$2.new" "$2"
	END
	chmod +x "$PROGRAM_FOLDER/km-bench"
	export EXEC=$ROOT/tests/peer/model.sh
}

@test "the last line has the figure of the final workloads, and a second call does not judge again" {
	echo '.workloads += [.workloads[0] | .set = "final" | .speedup = 3.25] | .score = 900' >"$PROGRAM_FOLDER/finally"
	run km_run a TASK=sgemm_cpu PROVIDER=exec EVALS=8
	echo "$output"
	[ "$status" -eq 0 ]
	[[ ${lines[-1]} == 'best: 3.3x (node '* || ${lines[-1]} == 'best: 3.2x (node '* ]]
	[[ ${lines[-2]} == 'The last line is the arithmetic mean over 1 final workload, which the search never saw.' ]]
	[[ ${lines[-3]} == *'again on the same workloads as 9.0x'* ]]
	[ -s "$STATE/a/best/kernel.c" ]
	run km_run a TASK=sgemm_cpu
	[ "$status" -eq 0 ]
	[[ ${lines[-1]} == 'best: 3.'* ]]
	[ "$(wc -l <"$PROGRAM_FOLDER/count")" -eq 1 ]
}

@test "a kernel that fails on the final workloads is no winner, the next fastest is" {
	printf '%s\n' '.status = "INCORRECT_NUMERICAL" | .score = null' '.score = 200' >"$PROGRAM_FOLDER/finally"
	run km_run a TASK=sgemm_cpu PROVIDER=exec EVALS=12 K=1
	echo "$output"
	[ "$status" -eq 0 ]
	[[ $output == *'passed in the search, and on the final workloads it is INCORRECT_NUMERICAL'* ]]
	[[ ${lines[-1]} == 'best: 2.0x (node '* ]]
	local world
	for world in "$STATE"/a/r*/world.json; do :; done
	[ "$(cut -f1 "$STATE/a/best/winner.tsv")" != "$(jq -r .best.node "$world")" ]
	run km_run a TASK=sgemm_cpu
	[[ ${lines[-1]} == 'best: 2.0x (node '* ]]
	[ "$(wc -l <"$PROGRAM_FOLDER/count")" -eq 2 ]
}

@test "where the device is missing the search ends all the same, with the figure that it has" {
	echo waits >"$PROGRAM_FOLDER/finally"
	run km_run a TASK=sgemm_cpu PROVIDER=exec EVALS=8
	[ "$status" -eq 0 ]
	[[ $output == *'was not measured again on the final workloads'* ]]
	[[ ${lines[-1]} == 'best: '*'x (node '* ]]
}

@test "status and the final table say how good the predictions were" {
	run km_run a TASK=sgemm_cpu PROVIDER=exec EVALS=9 K=1 FINAL=no
	[[ $output == *'Predictions, as factors over the baseline'* ]]
	run km_make status RUN=a
	[[ $output == *'- all: '*' predictions, confidence 0.50 on average; '* ]]
	local world file request
	for world in "$STATE"/a/r*/world.json; do :; done
	[ "$(jq '.ledger | length' "$world")" -eq "$(jq '.cycles' "$world")" ]
	for file in "$STATE"/a/r*/s0/edit-request.json; do
		jq -e 'has("skip")' "$file" >/dev/null || request=$file
	done
	jq -r '.messages[1].content' "$request" | grep -q '^- all: [0-9]* prediction'
}

@test "the table of a search that ended within cycles has the best kernel of each node, the fastest first, and cuts titles between words" {
	local world node
	km_run a TASK=sgemm_cpu PROVIDER=exec EVALS=7 WIDTH=2 FINAL=no
	for world in "$STATE"/a/r*/world.json; do :; done
	jq '.nodes[].action.title? = "Blocks of rows in registers, columns in vectors of sixty-four bytes"' "$world" >new.json
	cp new.json "$world"
	jq -e '[.nodes[] | select(.status == "active" and .solution == null)] | length == 2' "$world"
	run km_run a FINAL=no
	echo "$output"
	[ "$status" -eq 0 ]
	grep ' active ' <<<"$output" >rows
	[ "$(grep -c ' Blocks of rows in registers, columns in vectors of[.][.][.]$' rows)" -eq 2 ]
	# Both nodes have passed attempts, and what the table says of one is in its verdicts.
	while read -r node _ _ _ factor _; do
		cat "$STATE"/a/r*/s*/bench.json | jq -r --arg cue "code/$node/" 'select(.status == "PASSED" and (.cue | startswith($cue))) | .score / 10 | round / 10 | "\(.)x"' |
			grep -qxF "$factor"
	done <rows
	sort -c -k5,5gr rows
	[[ ${lines[-1]} == "best: $(awk 'NR == 1 { print $5 " (node " $1 "," }' rows) "* ]]
}

@test "the line before the last names the mean and the final workloads that are slower than the baseline" {
	printf '%s\n' '.workloads += [.workloads[0] as $w | [1, 4.5], [2, 0.26], [3, 0.97] | . as [$n, $f] | $w | .set = "final" | .axes = {n: $n, k: 8} | .speedup = $f]' >"$PROGRAM_FOLDER/finally"
	sed -i 's/^/.workloads[0].axes.k = 8 | /' "$PROGRAM_FOLDER/finally"
	run km_run a TASK=sgemm_cpu PROVIDER=exec EVALS=8
	echo "$output"
	[ "$status" -eq 0 ]
	[ "${lines[-2]}" = 'The last line is the arithmetic mean over 3 final workloads, which the search never saw; slower than the baseline on 1: n=2 (0.3x).' ]
	[[ ${lines[-1]} == 'best: 1.9x (node '* ]]
	# The other objective, the other mean.
	jq '.objective = "geomean_latency"' "$STATE/a/task/task.json" >task.json
	cp task.json "$STATE/a/task/task.json"
	run km_run a
	echo "$output"
	[[ ${lines[-2]} == 'The last line is the geometric mean over 3 final workloads, '* ]]
	[[ ${lines[-1]} == 'best: 1.0x (node '* ]]
}

@test "the best of a replay is said to be the recorded verdict, and help says so" {
	record_search "$BATS_TEST_TMPDIR/recording" EVALS=8
	unset PROGRAM_FOLDER
	run km_run b FROM="$BATS_TEST_TMPDIR/recording"
	[ "$status" -eq 0 ]
	local last=${lines[-1]}
	run km_make best RUN=b
	echo "$output"
	[ "$status" -eq 0 ]
	[ "${lines[-1]}" = "$last" ]
	[ "${lines[-2]}" = 'The last line is the arithmetic mean over 1 workload of the search.' ]
	[[ ${lines[-3]} == 'This is the recorded verdict'* ]]
	[[ $output != *'again on'* && $output != *'never saw'* ]]
	km_make help | grep '^  best .*of a replay, the recorded verdict'
}

@test "the table of the final workloads says where its factors come from" {
	echo . >"$PROGRAM_FOLDER/finally"
	km_run a TASK=sgemm_cpu PROVIDER=exec EVALS=8 FINAL=no
	run km_make best RUN=a
	echo "$output"
	[ "$status" -eq 0 ]
	[[ $output == workload*$'\n'*'1000.0'*$'\n'*'pairs of calls'*'ratio of the two medians'* ]]
}
