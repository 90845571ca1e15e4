#!/usr/bin/env bats
# STRATEGY: who fills the frontier. Each through make and the real programs, with a scripted model and judge.

load helpers

setup() {
	cd "$BATS_TEST_TMPDIR" || return
	PROGRAM_FOLDER=$BATS_TEST_TMPDIR/programs
	fake_judge "$PROGRAM_FOLDER"
	export EXEC=$ROOT/tests/peer/model.sh
}

# search STRATEGY [NAME=VALUE...]: a run of that name.
search() {
	local strategy=$1
	shift
	run km_run "$strategy" TASK=sgemm_cpu PROVIDER=exec STRATEGY="$strategy" "$@"
	[ "$status" -eq 0 ] || { echo "$strategy: $output"; return 1; }
}

last_world() {
	local file
	for file in "$STATE/$1"/r*/world.json; do :; done
	echo "$file"
}

@test "each strategy ends at its evaluations, and only world asks for edits" {
	local strategy
	for strategy in world evolve greedy best-of-n; do
		search "$strategy" WIDTH=2 EVALS=8 K=2
		[[ $output == *'ended: 8 of 8 evaluations'* ]]
		[ "$(jq .evaluations "$(last_world "$strategy")")" -eq 8 ]
		if [ "$strategy" = world ]; then
			grep -q '"cue": "edit/' "$STATE/$strategy"/calls/*.json
		else
			[ "$(cat "$STATE/$strategy"/calls/*.json | grep -cE '"cue": "(init|edit|refill)/')" -eq 0 ]
		fi
	done
}

@test "the part of the prompts about the task is word for word the same" {
	local strategy request
	for strategy in world evolve greedy best-of-n; do
		search "$strategy" EVALS=1
		request=$STATE/$strategy/r00001/s0/request.json
		jq -r '.messages[0].content' "$request" >"$strategy.system"
		# The sheet about the machine is the last part before what the strategy has to say.
		jq -r '.messages[1].content' "$request" | sed '/^# Where the search stands/,$d; /^# What to do/,$d; /^# The kernel to/,$d' >"$strategy.task"
		grep -q 'The interface of a kernel' "$strategy.task"
		cmp "$strategy.task" world.task
		cmp "$strategy.system" world.system
	done
}

@test "best-of-n starts from the beginning, greedy from the best of all, evolve from its island" {
	local world=
	search best-of-n EVALS=9
	jq -e '[.nodes[1:][] | .parent] | unique == ["root"]' "$(last_world best-of-n)"
	search greedy EVALS=12
	local plan before
	for plan in "$STATE"/greedy/r*/plan.json; do
		before=$(dirname "$plan")/$(jq -r .world.path "$plan")
		[ "$(jq -r '.slots[0].base.node' "$plan")" = "$(jq -r '.best.node' "$before")" ]
	done
	search evolve EVALS=30 ROUNDS=60
	world=$(last_world evolve)
	# Each changes a kernel that was on its island; all islands are used, and some kernel has moved by migration.
	jq -e '([.nodes[] | {key: .id, value: .}] | from_entries) as $node |
		[.nodes[1:][] | select(.parent != "root") | .islands[0] as $i | $node[.parent].islands | index($i) != null] | length > 5 and all' "$world"
	jq -e '[.nodes[1:][].islands[0]] | unique == [0, 1, 2]' "$world"
	jq -e '[.nodes[1:][] | select(.islands | length > 1)] | length > 0' "$world"
	jq -e '[.nodes[] | select(.inspirations | length == 2)] | length > 3' "$world"
}

@test "evolve shows kernel, inspirations and the last failure; a failure is pruned and kept" {
	search evolve EVALS=30 ROUNDS=60
	local plan slot shown=0 failed=0 other
	for plan in "$STATE"/evolve/r*/plan.json; do
		slot=${plan%/*}/s0
		[ "$(jq -r '.slots[0].skip' "$plan")" = null ] || continue
		for other in $(jq -r '.slots[0].others[]?.node' "$plan"); do
			jq -r '.messages[1].content' "$slot/request.json" | grep -qF "Node $other; it has passed."
			shown=$((shown + 1))
		done
		[ "$(jq -r '.slots[0].last' "$plan")" = null ] || failed=$((failed + 1))
	done
	[ "$shown" -gt 10 ]
	[ "$failed" -gt 0 ]
	jq -e '[.nodes[1:][] | select(.status == "pruned")] | length > 0 and all(.[]; .failure.status != "PASSED" and .solution == null)' "$(last_world evolve)"
}

@test "a replay of evolve with its verdicts is the same search; without more replies it ends" {
	search evolve EVALS=9
	km_make record RUN=evolve TO="$PWD/recording"
	run km_run again FROM="$PWD/recording"
	echo "$output"
	[ "$status" -eq 0 ]
	diff <(jq -S 'del(.made_by)' "$(last_world evolve)") <(jq -S 'del(.made_by)' "$(last_world again)")
	run km_run again FROM="$PWD/recording" EVALS=50 ROUNDS=50
	[ "$status" -eq 0 ]
	[[ $output == *'ended: nothing left to try'* ]]
}

@test "samples of an attempt are judged together: the best speaks, each is an evaluation" {
	# The same prompt, another reply each time.
	EXEC="{ cat; date +%N; } | $ROOT/tests/peer/model.sh"
	search world SAMPLES=3 WIDTH=2 EVALS=12 K=2
	jq -e '.slots | length == 6 and ([.[0:3][] | {node, attempt}] | unique | length == 1) and [.[].sample] == [1, 2, 3, 1, 2, 3]' "$STATE/world/r00001/plan.json"
	grep -lE '"cue": "code/[^"]*/1/3"' "$STATE"/world/calls/*.json
	local world best round=r00001
	world=$STATE/world/r00001/world.json
	[ "$(jq .evaluations "$world")" -eq 6 ]
	best=$(jq -s '[.[] | .score // 0] | max' "$STATE"/world/$round/s[012]/bench.json)
	jq -e --argjson best "$best" '[.nodes[] | select(.cycle) | .cycle.attempts[0].score // 0] | index($best) != null' "$world"
	jq -e '[.nodes[] | select(.cycle) | .cycle.attempts | length] == [1, 1]' "$world"
	run km_run world WIDTH=2 SAMPLES=2
	[ "$status" -eq 2 ]
}

@test "planning and code have a model and settings of their own, and a run keeps them" {
	local last
	search world EVALS=3 K=1 MODEL=both PLAN_MODEL=planner EFFORT=low PLAN_EFFORT=high CODE_TEMPERATURE=0.7 CODE_MAX_TOKENS=999
	[ "$(jq -c .parameters "$STATE/world/r00000/request.json")" = '{"model":"planner","max_tokens":16000,"effort":"high"}' ]
	[ "$(jq -c .parameters "$STATE/world/r00001/s0/edit-request.json")" = '{"model":"planner","max_tokens":16000,"effort":"high"}' ]
	[ "$(jq -c .parameters "$STATE/world/r00001/s0/request.json")" = '{"model":"both","max_tokens":999,"temperature":0.7,"effort":"low"}' ]
	search world EVALS=5 PLAN_MODEL=another
	for last in "$STATE"/world/r*/s0/request.json; do :; done
	[ "$(jq -c .parameters "$last")" = '{"model":"both","max_tokens":999,"temperature":0.7,"effort":"low"}' ]
	rm "$STATE/world/r00001/s0/request.json"
	km_make "$STATE/world/r00001/s0/request.json" RUN=world
	[ "$(jq -c .parameters "$STATE/world/r00001/s0/request.json")" = '{"model":"both","max_tokens":999,"temperature":0.7,"effort":"low"}' ]
}

# asked RUN SLOT: the model of its request in round 1.
asked() { jq -r .parameters.model "$STATE/$1/r00001/$2/request.json"; }

@test "what nobody has answered is asked anew when something else is to be asked, and no answer is paid twice" {
	search world WIDTH=2 EVALS=2 MODEL=a
	local last=$STATE/world/r00001 file
	# Round 1 again, with slot 0 answered and slot 1 not.
	km_make record RUN=world TO="$PWD/recording"
	rm "$last"/s0/reply.json "$last"/s1/reply.json "$STATE/world/calls/$(jq -r .id "$last/s1/request.json").json"
	sums "$STATE/world" >before
	EXEC='exit 9' run km_run world
	[ "$status" -eq 4 ]
	sums "$STATE/world" >now
	[ "$(diff before now | grep '^[<>]' | grep -v 's0/reply.json')" = "" ]
	rm "$last/s0/reply.json"
	run km_make -n run RUN=world MODEL=b
	[[ $output == *"-o $last/s1/request.json"* ]]
	[[ $output != *"-o $last/s0/request.json"* ]]
	[ "$(asked world s1)" = a ]
	for file in "$last"/s?/request.json; do cp "$file" "$(basename "$(dirname "$file")")"; done
	cp "$STATE/world/calls.tsv" calls
	search world MODEL=b EFFORT=low CODE_TEMPERATURE=0.50
	cmp s0 "$last/s0/request.json"
	[ "$(jq -c .parameters "$last/s1/request.json")" = '{"model":"b","max_tokens":16000,"temperature":0.5,"effort":"low"}' ]
	diff <(jq 'del(.id, .parameters)' s1) <(jq 'del(.id, .parameters)' "$last/s1/request.json")
	[ "$(comm -13 <(sort calls) <(sort "$STATE/world/calls.tsv") | awk '$1 == "start" { print $3, $5 }' | sort -u | grep -c ' a$')" -eq 0 ]
	[ "$(grep -c "^start	$(jq -r .id s0)" "$STATE/world/calls.tsv")" -eq 1 ]
	# All is answered now: what is to be asked is of no matter.
	sums "$STATE/world" >before
	search world MODEL=c MAX_TOKENS=5
	sums "$STATE/world" | diff before -
}

@test "a question that is out stays as it is; for another provider it is withdrawn, unless it was answered" {
	local folder=$STATE/a/r00000 ask
	run km_run a TASK=sgemm_cpu PROVIDER=manual MODEL=a
	[ "$status" -eq 75 ]
	ask=$(echo "$folder"/ask-*.md)
	times "$STATE/a" >before
	run km_run a MODEL=b
	[ "$status" -eq 75 ]
	[ "$(jq -r .parameters.model "$folder/request.json")" = a ]
	[ "$(echo "$folder"/ask-*.md)" = "$ask" ]
	# Given to the answerer, and not yet taken in.
	"$EXEC" <"$ask" >"${ask/ask-/answer-}"
	run km_run a MODEL=b PROVIDER=exec EVALS=1
	[ "$status" -eq 0 ]
	[ "$(jq -r .parameters.model "$folder/request.json")" = a ]
	run km_run b TASK=sgemm_cpu PROVIDER=manual
	run km_run b PROVIDER=exec MODEL=b EVALS=1
	[ "$status" -eq 0 ]
	[ "$(jq -r .parameters.model "$STATE/b/r00000/request.json")" = b ]
	run km_make waiting RUN=b
	[[ $output == *"No question waits"* ]]
}

@test "make compare: every strategy at equal budget, a table, curves and a plot; again from recordings" {
	command -v gnuplot >/dev/null || skip "no gnuplot here"
	run km_make compare TASK=sgemm_cpu PROVIDER=exec EVALS=6 K=2
	echo "$output"
	[ "$status" -eq 0 ]
	local strategy table=$STATE/sgemm_cpu-comparison/table.txt
	mkdir recordings
	for strategy in world evolve greedy best-of-n; do
		grep -q "^$strategy  *6 " "$table"
		grep -q "^$strategy	6	" "$STATE/sgemm_cpu-comparison/curves.tsv"
		grep -q "<title>$strategy</title>" "$STATE/sgemm_cpu-comparison/curves.svg"
		km_make record RUN="sgemm_cpu-$strategy" TO="$PWD/recordings/$strategy"
	done
	run km_make compare RUN=again FROM="$PWD/recordings" JUDGE=replay
	echo "$output"
	[ "$status" -eq 0 ]
	diff <(sed '/^$/,$d' "$table" | tr -s ' ' | cut -d' ' -f1-6) <(sed '/^$/,$d' "$STATE/again-comparison/table.txt" | tr -s ' ' | cut -d' ' -f1-6)
	run km_make compare TASK=sgemm_cpu RUN=asked PROVIDER=manual STRATEGIES='greedy evolve' EVALS=6
	[ "$status" -ne 0 ]
	[ "$(find "$STATE"/asked-greedy "$STATE"/asked-evolve -name 'ask-*.md' | wc -l)" -eq 2 ]
}

# Two families and a child of each; later it has no ideas.
thrifty_model() {
	cat >"$BATS_TEST_TMPDIR/thrifty" <<-'END'
		#!/usr/bin/env bash
		prompt=$(cat)
		node() {
			printf '{"op": "insert_node", "as": "%s", "parent": "%s", "action": {"title": "%s", "difficulty_1_to_5": 2, "score_0_to_1": %s}}' "$1" "$2" "$1" "$3"
		}
		case $prompt in
		*"the first tree"*) printf '{"ops": [%s, %s, %s, %s]}' "$(node A root 0.9)" "$(node B root 0.8)" "$(node C '$A' 0.7)" "$(node D '$B' 0.6)" ;;
		*insert_node*) echo '{"ops": [], "no_child_because": "no idea"}' ;;
		*) exec "$PEER_MODEL" <<<"$prompt" ;;
		esac
	END
	chmod +x "$BATS_TEST_TMPDIR/thrifty"
	export PEER_MODEL=$ROOT/tests/peer/model.sh EXEC=$BATS_TEST_TMPDIR/thrifty
}

@test "POLICY=eager: an idle slot takes a child of an active node, from the best kernel that this has so far" {
	local policy plan slot before node parent best idle early=0
	thrifty_model
	for policy in default eager; do
		search world WIDTH=3 K=3 EVALS=100 ROUNDS=50 POLICY=$policy
		[[ $output == *"ended: nothing left to try"* ]]
		[ "$(jq -c '[.nodes[] | select(.status == "open" or .status == "active")]' "$(last_world world)")" = '[]' ]
		"$KM/km-validate" plan "$STATE"/world/r*/plan.json
		"$KM/km-validate" world "$STATE"/world/r*/world.json
		mv "$STATE/world" "$STATE/$policy"
	done
	for plan in "$STATE"/eager/r*/plan.json; do
		before=$(dirname "$plan")/$(jq -r .world.path "$plan")
		while read -r slot node; do
			parent=$(jq -r --arg node "$node" '.nodes[] | select(.id == $node) | .parent' "$before")
			best=$(jq -r --arg parent "$parent" '.nodes[] | select(.id == $parent and .status == "active").cycle | .best as $b | .attempts[]
				| select(.attempt == $b) | "../r\("0000\(.round)"[-5:])/s\(.slot)/kernel.c"' "$before")
			[ -n "$best" ] || continue
			early=$((early + 1))
			[ "$(jq -r --argjson slot "$slot" '.slots[$slot].base.kernel' "$plan")" = "$best" ]
			jq -r '.messages[1].content' "$(dirname "$plan")/s$slot/request.json" >prompt
			grep -q "^The best kernel so far of the parent, node $parent, which is still being worked on; it has passed" prompt
			cmp <(sed -n '/^The best kernel so far/,/^# The intent/p' prompt | sed -n '/^```c/,/^```$/p' | sed '1d;$d') "$(dirname "$plan")/$best"
		done < <(jq -r '.slots[] | select(.mode == "new" and .attempt == 1) | "\(.slot) \(.node)"' "$plan")
	done
	[ "$early" -ge 1 ]
	# The default leaves a slot of round 2 idle.
	idle=$(jq -r '.slots[2].skip' "$STATE/default/r00002/plan.json")
	[ "$idle" = "no open node is left for this slot" ]
}
