#!/usr/bin/env bats
# km-update: verdicts and edits change the tree; what a reply may not do; what malformed files do.

load helpers
load search

setup() {
	cd "$BATS_TEST_TMPDIR" || return
	new_run . 1 2
}

node() {
	jq -c --arg id "$2" ".nodes[] | select(.id | startswith(\$id)) | $3" "$1"
}

@test "the first tree comes from the reply, the root alone if there is none" {
	first_tree . "$(insert root A 0.5), $(insert root B 0.5), $(insert nobody C 0.5)"
	"$KM/km-validate" world r00000/world.json
	[ "$(jq -c '[.nodes[].status]' r00000/world.json)" = '["closed","open","open"]' ]
	[ "$(jq -r '.refused[0].reason' r00000/world.json)" = "there is no node 'nobody'" ]
	for status in unreadable unrecorded; do
		reply init/0 $status "" >r00000/reply.json
		"$KM/km-update" world --first --reply r00000/reply.json -o r00000/world.json run.json
		[ "$(jq -c '[.nodes[].id]' r00000/world.json)" = '["root"]' ]
		[ "$(jq -r '.refused[0].reason' r00000/world.json)" = $status ]
	done
}

@test "a cycle: new, improve, closed, and the edit that follows" {
	first_tree . "$(insert root A 0.5)"
	round . 1 "PASSED 150"
	[ "$(node r00001/world.json a. .status)" = '"active"' ]
	round . 2 "PASSED 140 worse"
	EDIT_0="edit/a/1 answered {\"summary\": \"so\", \"ops\": [$(insert root B 0.9)], \"no_child_because\": \"roofline\"}" round . 3 "INCORRECT_NUMERICAL null"
	for r in r0000[123]; do "$KM/km-validate" world "$r"/world.json; done
	[ "$(node r00003/world.json a. '[.status, .solution.score, .solution.attempt, .attempts, .cycles, .cycle]')" = '["closed",150,1,3,1,null]' ]
	[ "$(node r00003/world.json a. .no_child_because)" = '"roofline"' ]
	[ "$(jq -c '[.evaluations, .cycles, .cycles_since_best, .judge_seconds, .summary, .best.kernel]' r00003/world.json)" = '[3,1,0,6,"so","../r00001/s0/kernel.c"]' ]
	[ "$(node r00003/world.json b. .created_round)" = 3 ]
}

@test "a node that fails twice is pruned, and can be revived" {
	first_tree . "$(insert root A 0.8)"
	round . 1 "COMPILE_ERROR null"
	EDIT_0='edit/a/1 answered {"ops": []}' round . 2 "NO_CODE null"
	[ "$(node r00002/world.json a. '[.status, .failed_cycles, .action.score_0_to_1]')" = '["open",1,0.4]' ]
	round . 3 "REJECTED null"
	id=$(node r00003/world.json a. .id)
	EDIT_0="edit/a/2 answered {\"ops\": [{\"op\": \"revive_node\", \"node\": $id, \"reason\": \"the bug is known\"}]}" round . 4 "TIMEOUT null"
	[ "$(node r00004/world.json a. '[.status, .failed_cycles, .pruned_because]')" = '["open",2,null]' ]
	EDIT_0='edit/a/2 answered no tree' round . 4 "TIMEOUT null"
	[ "$(node r00004/world.json a. '[.status, .pruned_because]')" = '["pruned","two cycles failed"]' ]
	[ "$(jq -c '.refused[-1] | [.round, .slot, .op]' r00004/world.json)" = '[4,0,"edit/a/2"]' ]
}

@test "a duplicate is no evaluation, an unrecorded attempt nothing at all" {
	first_tree . "$(insert root A 0.8), $(insert root B 0.7)"
	round . 1 "DUPLICATE null"
	[ "$(jq -c '[.evaluations, .nodes[1].attempts, .nodes[1].cycle.streak_best]' r00001/world.json)" = '[0,1,1]' ]
	round . 2 "UNRECORDED null"
	[ "$(jq -c '[.evaluations, .nodes[1].attempts, .nodes[1].status]' r00002/world.json)" = '[0,1,"unrecorded"]' ]
}

@test "two slots with the same code: the later one is a duplicate" {
	new_run . 2 3
	first_tree . "$(insert root A 0.8), $(insert root B 0.7)"
	round . 1 "PASSED 100 - 7" "PASSED 300 - 7"
	[ "$(jq -c '[.evaluations, .best.slot, .best.score]' r00001/world.json)" = '[1,0,100]' ]
	[ "$(jq -c '.seen' r00001/world.json)" = '{"7777777777777777":"r00001/s0"}' ]
	[ "$(node r00001/world.json b. '.cycle.attempts[0].status')" = '"DUPLICATE"' ]
}

@test "edit replies are applied in slot order" {
	new_run . 2 1
	first_tree . "$(insert root A 0.8), $(insert root B 0.7)"
	round . 1 "PASSED 100" "PASSED 90"
	EDIT_0="edit/a/1 answered {\"ops\": [$(insert root New 0.9)]}" EDIT_1="edit/b/1 answered {\"ops\": [$(insert root New 0.1)]}" round . 2 "TIMEOUT null" "TIMEOUT null"
	[ "$(node r00002/world.json new. .action.score_0_to_1)" = 0.9 ]
	[ "$(jq -c '[.refused[] | select(.op | startswith("insert")) | .slot]' r00002/world.json)" = '[1]' ]
}

@test "a round says on one line what came of it" {
	first_tree . "$(insert root A 0.8)"
	printf 'end\tx\tc\treplay\tm\t10\t20\t0.100000\t3.000\n' >calls.tsv
	round . 1 "PASSED 3120"
	run "$KM/km-update" world --calls calls.tsv -o r00001/world.json r00001/plan.json
	[ "$status" -eq 0 ]
	[[ $output == "r00001 s0 a."????" attempt 1 new PASSED 31.2x, best | best 31.2x, 1 evaluation, 5 s, \$0.10" ]]
}

@test "the same inputs give the same bytes" {
	first_tree . "$(insert root A 0.8)"
	round . 1 "PASSED 100"
	cp r00001/world.json before.json
	rm r00001/world.json
	"$KM/km-update" world -o r00001/world.json r00001/plan.json
	cmp before.json r00001/world.json
	"$KM/km-update" world r00001/plan.json | cmp - before.json
	(cd r00001 && "$KM/km-update" world plan.json) | cmp - before.json
}

@test "a round can be judged anew although later rounds were planned from it" {
	first_tree . "$(insert root A 0.8), $(insert root B 0.7)"
	round . 1 "PASSED 100"
	round . 2 "PASSED 200 better"
	EDIT_0='edit/a/1 answered {"ops": []}' round . 3 "TIMEOUT null"
	EDIT_0='edit/a/1 answered {"ops": []}' round . 4 "TIMEOUT null"
	round . 5 "PASSED 300 better"
	# Now nothing passes in rounds 1 and 2, so that the cycle ends sooner; the later plans stay as they are.
	for r in 1 2; do verdict TIMEOUT null >r0000$r/s0/bench.json; done
	for r in 1 2 3 4 5; do
		"$KM/km-update" world -o r0000$r/world.json r0000$r/plan.json
		"$KM/km-validate" world r0000$r/world.json
	done
	[ "$(jq -c '[.round, .evaluations, .best.score]' r00005/world.json)" = '[5,5,300]' ]
}

@test "a slot without an ended cycle asks nothing" {
	first_tree . "$(insert root A 0.8)"
	round . 1 "PASSED 100"
	run "$KM/km-update" request --slot 0 r00001/plan.json
	[ "$status" -eq 0 ]
	[ "$output" = '{"skip": "no cycle has ended in this slot"}' ]
	run "$KM/km-update" request --slot 1 r00001/plan.json
	[ "$status" -eq 2 ]
}

@test "an ended cycle asks for its edit, an empty frontier for new families" {
	cp -r "$ROOT/prompts" prompts
	cp -r "$ROOT/tasks/sgemm_cpu" task
	first_tree . "$(insert root A 0.8)"
	round . 1 "UNRECORDED null"
	run "$KM/km-update" request --slot 0 r00001/plan.json
	[ "$output" = '{"skip": "no cycle has ended in this slot"}' ]
	EDIT_0='refill/1 answered {"ops": []}' round . 2
	"$KM/km-update" request --slot 0 r00002/plan.json >request.json
	"$KM/km-validate" request request.json
	[ "$(jq -r .cue request.json)" = refill/1 ]
	EDIT_0="refill/2 answered {\"ops\": [$(insert root B 0.8)]}" round . 3
	round . 4 "TIMEOUT null"
	round . 5 "TIMEOUT null"
	for r in 4 5; do
		echo '{"skip": "nothing was built"}' >r0000$r/s0/build.json
		echo 'int x;' >r0000$r/s0/kernel.c
	done
	"$KM/km-update" request --slot 0 --model m r00005/plan.json >request.json
	"$KM/km-validate" request request.json
	[ "$(jq -r .cue request.json)" = "edit/$(jq -r '.slots[0].node' r00005/plan.json)/1" ]
	[ "$(jq -r .parameters.model request.json)" = m ]
	"$KM/km-update" request --first run.json >request.json
	[ "$(jq -r .cue request.json)" = init/0 ]
}

@test "check says whether a reply can be read" {
	printf "Here:\n\x60\x60\x60json\n{\"ops\": []}\n\x60\x60\x60\n" | "$KM/km-update" check
	run "$KM/km-update" check <<<'{"ops": [}'
	[ "$status" -eq 6 ]
	[[ $output == *'"ops"'* ]]
	run "$KM/km-update" check <<<'I will not.'
	[ "$status" -eq 6 ]
}

# refused FILE: with this file, km-update and the reason it gives.
refused() {
	run "$KM/km-update" world -o out.json r00001/plan.json
	[ "$status" -eq 3 ] || { echo "$1: status $status: $output"; return 1; }
	[[ $output == *"$1"* ]] || { echo "$output"; return 1; }
	[ ! -e out.json ]
}

@test "malformed files of a round: exit 3, file and reason, nothing written" {
	first_tree . "$(insert root A 0.8)"
	round . 1 "PASSED 100"
	cp -r . "$BATS_TEST_TMPDIR.copy"
	for file in r00000/world.json r00001/plan.json r00001/s0/bench.json r00001/s0/edit-reply.json; do
		for damage in 'truncate -s -40' 'truncate -s 0' 'sed -i s/:/::/' 'rm' 'sed -i 1s/^/[/' "sed -i \$a\\]"; do
			$damage $file
			refused "$(basename $file)"
			cp "$BATS_TEST_TMPDIR.copy/$file" $file
		done
	done
	jq '.slots += .slots' r00001/plan.json >x && mv x r00001/plan.json
	refused plan.json
	cp "$BATS_TEST_TMPDIR.copy/r00001/plan.json" r00001/
	jq '.round = 4' r00001/plan.json >x && mv x r00001/plan.json
	refused plan.json
	cp "$BATS_TEST_TMPDIR.copy/r00001/plan.json" r00001/
	echo '{"skip": "idle"}' >r00001/s0/bench.json
	refused bench.json
	verdict PASSED null >r00001/s0/bench.json
	run "$KM/km-update" world r00001/plan.json
	[ "$status" -eq 3 ]
	rm -rf "$BATS_TEST_TMPDIR.copy"
}

@test "wrong use is exit 2" {
	for arguments in "" "frob x" "world" "world --first run.json" "request plan.json" "request --slot x plan.json" "request --slot 64 plan.json" "check x" "--what"; do
		# shellcheck disable=SC2086
		run "$KM/km-update" $arguments
		[ "$status" -eq 2 ]
	done
}

@test "a tree reply with a NUL inside is refused, not read past its end" {
	run bash -c 'printf "{\"ops\": [], \"x\": \"\\0%100s\"}" "" | "$1" check' _ "$KM/km-update"
	[ "$status" -eq 6 ]
	[[ $output == *NUL* ]]
}
