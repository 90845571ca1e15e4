#!/usr/bin/env bats
# km-validate: what a schema does not allow is refused, for every kind of file.

load helpers

setup() {
	cd "$BATS_TEST_TMPDIR" || return
}

@test "there is a valid example of every kind" {
	[ "$("$KM/km-validate" -l | wc -l)" -ge 13 ]
	for kind in $("$KM/km-validate" -l); do
		"$KM/km-validate" "$kind" "$ROOT/tests/golden/state/$kind.json"
	done
}

@test "every example holds every key that its schema knows" {
	for kind in $("$KM/km-validate" -l); do
		jq -r '[.. | objects | .properties // empty | keys[]] | unique[]' "$ROOT/tools/schema/$kind.json" >known
		jq -r '[.. | objects | keys[]] | unique[]' "$ROOT/tests/golden/state/$kind.json" >held
		run comm -23 known held
		[ -z "$output" ] || { echo "$kind: $output"; return 1; }
	done
}

@test "each required key dropped and each type changed is refused" {
	for kind in $("$KM/km-validate" -l); do
		rm -rf mutants
		mkdir mutants
		jq -c --slurpfile schema "$ROOT/tools/schema/$kind.json" -f "$ROOT/tests/mutants.jq" "$ROOT/tests/golden/state/$kind.json" >all
		split -a 4 -d -l 1 all mutants/m
		count=$(wc -l <all)
		required=$(jq '[.. | objects | .required // empty | length] | add' "$ROOT/tools/schema/$kind.json")
		[ "$count" -gt $((3 * required)) ] || { echo "$kind: only $count mutants"; return 1; }
		run "$KM/km-validate" "$kind" mutants/m*
		[ "$status" -eq 3 ]
		# One line for each, so each was refused.
		[ "${#lines[@]}" -eq "$count" ] || { echo "$kind: ${#lines[@]} of $count refused"; return 1; }
	done
}

@test "numbers outside their range are refused" {
	while read -r kind change; do
		jq "$change" "$ROOT/tests/golden/state/$kind.json" >x
		run "$KM/km-validate" "$kind" x
		[ "$status" -eq 3 ] || { echo "$kind $change"; return 1; }
	done <<-'END'
		run .width = 0
		run .width = 65
		run .k = 1.5
		run .seed = "-1"
		run .run = "../x"
		world .round = -1
		world .nodes[1].action.score_0_to_1 = 1.01
		world .nodes[1].action.difficulty_1_to_5 = 0
		world .best.kernel = "/etc/passwd"
		world .best.kernel = "../../x/kernel.c"
		world .seen = {"a": "elsewhere"}
		plan .slots[0].base.kernel = "../r00001/s0/../../kernel.c"
		plan .world.path = "world.json"
		bench .score = -1
		request .id = "abc"
		request .cue = "no cue"
		task .libraries = ["-Wl,x"]
	END
}

@test "malformed world.json: exit 3, the file and a reason, no crash" {
	good=$ROOT/tests/golden/state/world.json
	size=$(stat -c %s "$good")
	for at in 0 1 100 $((size / 2)) $((size - 3)); do
		head -c $at "$good" >cut-$at.json
	done
	sed 's/"round": 6/"round": NaN/' "$good" >nan.json
	sed 's/"round": 6/"round": 1e999/' "$good" >infinite.json
	sed 's/"score_0_to_1": 0.8/"score_0_to_1": -Infinity/' "$good" >minus.json
	sed 's/"summary": "/"summary": "\\u0000/' "$good" >nul.json
	sed 's/"summary": "/"summary": "\xff/' "$good" >utf8.json
	sed 's/"round": 6/"round": 6, "round": 6/' "$good" >twice.json
	jq '.nodes += [.nodes[1]]' "$good" >duplicate.json
	jq '.nodes[1].parent = "pack-b.1a2b"' "$good" >cycle.json
	jq '.nodes[1].parent = "block.4e37"' "$good" >self.json
	jq '.nodes[2].parent = "gone.0000"' "$good" >orphan.json
	jq '.nodes[2].parent = null' "$good" >roots.json
	jq '.nodes = []' "$good" >empty.json
	jq '.nodes |= reverse' "$good" >reversed.json
	jq '.nodes[2].cycle.slot = 2' "$good" >slot.json
	jq '.nodes[1].solution = null' "$good" >unsolved.json
	jq '.best.node = "gone.0000"' "$good" >best.json
	for depth in 65 100000; do
		{ printf '%*s' $depth '' | tr ' ' '['; printf '%*s' $depth '' | tr ' ' ']'; } >deep-$depth.json
	done
	printf '%*s' 3000000 '' | tr ' ' '{' >braces.json
	{ printf '{"summary": "'; head -c 70000000 /dev/zero | tr '\0' x; printf '"}'; } >huge.json
	for file in *.json; do
		for program in "km-validate world" km-plan; do
			# shellcheck disable=SC2086
			run "$KM/"$program $file
			[ "$status" -eq 3 ] || { echo "$program $file: $status"; return 1; }
			[[ $output == *"'$file'"*?????* ]] || { echo "$program $file: $output"; return 1; }
			[ "${#lines[@]}" -eq 1 ]
		done
	done
	rm huge.json
}

@test "an idle slot's document is valid where a slot may be idle" {
	echo '{"skip": "idle"}' >skip.json
	for kind in request reply candidate build bench; do
		"$KM/km-validate" $kind skip.json
	done
	for kind in world plan run task; do
		run "$KM/km-validate" $kind skip.json
		[ "$status" -eq 3 ]
	done
}

@test "every line of a jsonl file is checked" {
	jq -c . "$ROOT/tests/golden/state/workload.json" >w.jsonl
	cat w.jsonl >>w.jsonl.2 && cat w.jsonl.2 w.jsonl >two.jsonl
	"$KM/km-validate" workload two.jsonl
	echo '{}' >>two.jsonl
	run "$KM/km-validate" workload two.jsonl
	[ "$status" -eq 3 ]
	[[ $output == *"'two.jsonl' line 3"* ]]
}

@test "wrong use is exit 2, a missing file exit 3" {
	for arguments in "" world "nothing x" "--what"; do
		# shellcheck disable=SC2086
		run "$KM/km-validate" $arguments
		[ "$status" -eq 2 ]
	done
	run "$KM/km-validate" world gone.json
	[ "$status" -eq 3 ]
}
