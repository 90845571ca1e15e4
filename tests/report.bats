#!/usr/bin/env bats
# make status at every stage of a run, and what it and the other reports say of files that are broken.

load helpers

setup() {
	PROGRAM_FOLDER=$BATS_TEST_TMPDIR/programs
	fake_judge "$PROGRAM_FOLDER"
	export EXEC=$ROOT/tests/peer/model.sh
}

last_world() {
	local world
	for world in "$STATE/$1"/r*/world.json; do :; done
	printf '%s\n' "$world"
}

@test "status of a run that waits for its first answer says what is known: settings, calls, the question" {
	run km_run a TASK=sgemm_cpu PROVIDER=manual WIDTH=2
	[ "$status" -eq 75 ]
	run km_make status RUN=a
	echo "$output"
	[ "$status" -eq 0 ]
	[[ ${lines[0]} == 'run '*' a: task sgemm_cpu (cpu), WIDTH=2 K=3 '* ]]
	[[ $output == *'waiting      1 question' ]]
	[[ $output != *nodes* && $output != *unjudged* ]]
}

@test "status counts the kernels that wait for a verdict and names the command that judges them" {
	km_run a TASK=sgemm_cpu PROVIDER=exec EVALS=2 WIDTH=2 FINAL=no
	[[ $(km_make status RUN=a) != *unjudged* ]]
	rm "$STATE"/a/r00001/s?/bench.json
	run km_make status RUN=a
	[ "$status" -eq 0 ]
	[[ $output == *"unjudged     2 kernels; 'make bench RUN=a' judges "* ]]
	km_make bench RUN=a
	[[ $(km_make status RUN=a) != *unjudged* ]]
}

@test "one is one evaluation, and a run without nodes has neither a line of nodes nor a table" {
	run km_run a TASK=sgemm_cpu PROVIDER=exec EVALS=1 FINAL=no
	[[ ${lines[-1]} == 'best: '*'1 evaluation)' ]]
	[[ $(km_make status RUN=a) == *' 1 evaluation in 0 cycles, '* ]]
	# A model that has no idea.
	EXEC='cat >/dev/null; echo nothing' run km_run b TASK=sgemm_cpu PROVIDER=exec FINAL=no
	echo "$output"
	[ "$status" -eq 0 ]
	[[ $output != *measured* && ${lines[-1]} == 'best: none yet (0 evaluations)' ]]
	run km_make status RUN=b
	[ "$status" -eq 0 ]
	[[ $output != *nodes* ]]
}

@test "an open node that nothing can reach, below one that was not recorded, is not counted as open" {
	km_run a TASK=sgemm_cpu PROVIDER=exec EVALS=12 K=1 FINAL=no
	local world
	world=$(last_world a)
	jq '.nodes = .nodes[:1] + [.nodes[-1] + {id: "lost.0001", parent: "root", status: "unrecorded", attempts: 0, solution: null} | del(.cycle)] +
		(.nodes[1:] | map(if .status == "open" then .parent = "lost.0001" else . end))' "$world" >"$BATS_TEST_TMPDIR/world"
	local open
	open=$(jq '[.nodes[] | select(.status == "open")] | length' "$world")
	[ "$open" -gt 0 ]
	cp "$BATS_TEST_TMPDIR/world" "$world"
	run km_make status RUN=a
	echo "$output"
	[ "$status" -eq 0 ]
	[[ $output == *", 1 unrecorded, $open out of reach below these"* ]]
	[[ $output != *' open, '*closed* ]]
}

@test "a broken run.json or world.json is named with what is wrong, exit 3" {
	km_run a TASK=sgemm_cpu PROVIDER=exec EVALS=2 FINAL=no
	local file command
	cd "$ROOT"
	for file in "$STATE/a/run.json" "$(last_world a)"; do
		cp "$file" "$BATS_TEST_TMPDIR/whole"
		head -c 40 "$BATS_TEST_TMPDIR/whole" >"$file"
		for command in status table best final; do
			run env KM_BIN="$PROGRAM_FOLDER" tools/report "$command" "$STATE/a"
			echo "$command: $output"
			[ "$status" -eq 3 ]
			[[ $output == "km-validate: error: '$file': "* ]]
			[ "${#lines[@]}" -eq 1 ]
		done
		cp "$BATS_TEST_TMPDIR/whole" "$file"
	done
}
