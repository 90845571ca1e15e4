#!/usr/bin/env bats
# km-plan: which nodes a round takes, from which code, and when a search has ended.

load helpers
load search

setup() {
	cd "$BATS_TEST_TMPDIR" || return
	new_run . 1 3
}

@test "a plan continues the world's round and names its bytes" {
	first_tree . "$(insert root A 0.5), $(insert root B 0.9)"
	mkdir r00001
	"$KM/km-plan" -o r00001/plan.json r00000/world.json
	"$KM/km-validate" plan r00001/plan.json
	[ "$(jq -r '.slots[0].node' r00001/plan.json | cut -d. -f1)" = b ]
	[ "$(jq -r .world.sha256 r00001/plan.json)" = "$(sha256sum r00000/world.json | cut -d' ' -f1)" ]
	[ "$(jq -r .world.path r00001/plan.json)" = ../r00000/world.json ]
	"$KM/km-plan" - <r00000/world.json | cmp - r00001/plan.json
}

@test "new, debug and improve start from the right code" {
	first_tree . "$(insert root A 0.5)"
	round . 1 "COMPILE_ERROR null"
	round . 2 "PASSED 150"
	round . 3 "TIMEOUT null"
	"$KM/km-plan" r00003/world.json >plan.json
	[ "$(jq -r '.slots[0].mode' r00001/plan.json)" = new ]
	[ "$(jq -r '.slots[0].mode' r00002/plan.json)" = debug ]
	[ "$(jq -r '.slots[0].base.kernel' r00002/plan.json)" = ../r00001/s0/kernel.c ]
	[ "$(jq -r '.slots[0].mode' plan.json)" = improve ]
	[ "$(jq -r '.slots[0].base.bench' plan.json)" = ../r00002/s0/bench.json ]
	[ "$(jq -r '.slots[0].last.build' plan.json)" = ../r00003/s0/build.json ]
	[ "$(jq -r '.best.build' plan.json)" = ../r00002/s0/build.json ]
}

@test "a child starts from its parent's solution" {
	first_tree . "$(insert root A 0.5)"
	round . 1 "PASSED 150"
	round . 2 "TIMEOUT null"
	round . 3 "TIMEOUT null"
	EDIT_0="edit/a/1 answered {\"ops\": [$(insert "$(jq -r .best.node r00003/world.json)" Child 0.9)]}" round . 4 "TIMEOUT null"
	"$KM/km-plan" r00004/world.json >plan.json
	[ "$(jq -r '.slots[0].node' plan.json | cut -d. -f1)" = child ]
	[ "$(jq -r '.slots[0].mode' plan.json)" = new ]
	[ "$(jq -r '.slots[0].parent.kernel' plan.json)" = ../r00001/s0/kernel.c ]
	[ "$(jq -c '.slots[0].base == .slots[0].parent' plan.json)" = true ]
}

# ended TEXT OPTION...: km-plan on the last world says so, exits 5 and writes nothing.
ended() {
	local text=$1
	shift
	run "$KM/km-plan" "$@" -o out.json r00001/world.json
	[ "$status" -eq 5 ] || { echo "status $status: $output"; return 1; }
	[ "$output" = "km-plan: $text" ] || { echo "$output"; return 1; }
	[ ! -e out.json ]
}

goes_on() {
	"$KM/km-plan" "$@" -o out.json r00001/world.json
	rm out.json
}

@test "each limit ends the search with exit 5 and says which" {
	first_tree . "$(insert root A 0.5)"
	round . 1 "PASSED 150"
	printf 'start\tx\tc\treplay\tm\t10\t20\t0.1\t0\nend\tx\tc\treplay\tm\t10\t20\t0.100000\t3.000\nend\ty\tc' >calls.tsv
	ended "ended: 1 of 1 evaluations" --evals 1
	goes_on --evals 2
	ended "ended: 1 of 1 rounds" --rounds 1
	goes_on --rounds 2
	ended "ended: target 1.5x reached, best 1.5x" --target 1.5
	goes_on --target 1.6
	ended "ended: \$0.10 of \$0.10 spent" --usd 0.1 --calls calls.tsv
	goes_on --usd 0.11 --calls calls.tsv
	ended "ended: 30 of 30 tokens" --tokens 30 --calls calls.tsv
	goes_on --tokens 31 --calls calls.tsv
	ended "ended: 5 of 5 seconds" --seconds 5 --calls calls.tsv
	goes_on --seconds 6 --calls calls.tsv
	goes_on --usd 0.1 --calls none.tsv
	ended "ended: 0 cycles without a new best (patience 0)" --patience 0
	goes_on --patience 1
}

@test "an empty frontier idles all slots, and three failed refills end the search" {
	first_tree . ""
	EDIT_0="refill/1 answered nothing" round . 1
	[ "$(jq -c '[.slots[].skip]' r00001/plan.json)" = '["no open node is left for this slot"]' ]
	EDIT_0="refill/2 unreadable -" round . 2
	EDIT_0='refill/3 answered {"ops": []}' round . 3
	run "$KM/km-plan" r00003/world.json
	[ "$status" -eq 5 ]
	[[ $output == "km-plan: ended: nothing left to try"* ]]
}

@test "1,000 random trees: the plan and the jq oracle choose alike, and no node is in two slots" {
	"$PEERS/random-tree" . 1000 40 3 10
	"$KM/km-validate" world w*.json
	for w in w*.json; do
		"$KM/km-plan" "$w"
	done | jq -c '{new: [.slots[] | select(.why // "" | startswith("number")) | .node], idle: ([.slots[] | select(.skip)] | length), all: [.slots[].node | values]}' >plans
	jq -c -f "$ROOT/tools/jq/select.jq" w*.json >orders
	[ "$(wc -l <plans)" -eq 1000 ]
	[ "$(wc -l <orders)" -eq 1000 ]
	run jq -n --slurpfile plans plans --slurpfile orders orders -c '[range(1000) | {plan: $plans[.], order: $orders[.], number: .}
		| select(.plan.new != .order[0:(.plan.new | length)] or (.plan.idle > 0 and (.plan.new | length) < (.order | length))
			or (.plan.all | length) != (.plan.all | unique | length) or (.plan.all | length) + .plan.idle != 3)] | .[]'
	[ "$output" = "" ]
	# The trees do put the rules to the test.
	[ "$(jq -s '[.[] | select(.new | length > 1)] | length > 300' plans)" = true ]
	[ "$(jq -s '[.[] | select((.all | length) > (.new | length))] | length > 300' plans)" = true ]
}

@test "1,000 random trees at WIDTH 1 under the paper's rule: an open cycle goes on, else the jq oracle's first" {
	"$PEERS/random-tree" . 1000 40 1 10 3
	sed -i 's/"policy": "default"/"policy": "paper"/' w*.json
	jq -c -f "$ROOT/tools/jq/select.jq" w*.json >orders
	jq -r '[.nodes[] | select(.status == "active") | .id][0] // "-"' w*.json >active
	for w in w*.json; do
		"$KM/km-plan" "$w"
	done | jq -r '.slots[0].node // "-"' >chosen
	paste active <(jq -r '.[0] // "-"' orders) | awk '{ print ($1 != "-" ? $1 : $2) }' >expected
	[ "$(wc -l <chosen)" -eq 1000 ]
	cmp expected chosen
	# Both kinds of choice occur.
	[ "$(grep -c '^-$' active)" -gt 200 ]
	[ "$(grep -vc '^-$' active)" -gt 100 ]
}

@test "500 random trees: the eager policy fills what the default leaves idle, from the parent's best so far" {
	"$PEERS/random-tree" . 500 60 8 10
	sed -i 's/"policy": "[a-z]*"/"policy": "default"/' w*.json
	for w in w*.json; do
		"$KM/km-plan" "$w"
	done | jq -c '[.slots[] | .node]' >default
	sed -i 's/"policy": "default"/"policy": "eager"/' w*.json
	for w in w*.json; do
		"$KM/km-plan" "$w"
	done >plans
	jq -c -f "$ROOT/tools/jq/select.jq" w*.json >orders
	jq -c '[.nodes[] | select(.status == "active" and .cycle.best) | {key: .id, value: (.cycle | .best as $b | .attempts[] | select(.attempt == $b)
		| {attempt, kernel: "../r0000\(.round)/s\(.slot)/kernel.c"})}] | from_entries' w*.json >working
	jq -c '[.nodes[] | {key: .id, value: .parent}] | from_entries' w*.json >parents
	run jq -n --slurpfile defaults default --slurpfile plans plans --slurpfile orders orders --slurpfile working working --slurpfile parents parents -c '
		[range(500) | . as $i | $plans[$i].slots as $slots | [$slots[].node] as $all | [$slots[] | select(.why // "" | startswith("number"))] as $new
		| $working[$i] as $w | $parents[$i] as $p | {number: $i, early: [$new[] | select($w[$p[.node]])],
			wrong: ([$new[].node] != $orders[$i][0:($new | length)] or (any($slots[]; .skip) and ($new | length) < ($orders[$i] | length))
				or any(range(8); $defaults[$i][.] != null and $defaults[$i][.] != $all[.])
				or ([$all[] | values] | length != (unique | length))
				or any($new[] | select($w[$p[.node]]); .mode != "new" or .parent != .base or .base.node != $p[.node]
					or (.base | {attempt, kernel}) != $w[$p[.node]]))}]
		| [.[] | select(.wrong) | .number], (map(.early | length) | add > 50)'
	echo "$output"
	[ "$output" = $'[]\ntrue' ]
}

@test "1,000 random trees at WIDTH 1: the eager policy plans what the default plans" {
	"$PEERS/random-tree" . 1000 40 1 10 3
	for policy in default eager; do
		sed -i 's/"policy": "[a-z]*"/"policy": "'$policy'"/' w*.json
		for w in w*.json; do
			"$KM/km-plan" "$w"
		done | jq -c 'del(.made_by, .world.sha256)' >$policy
	done
	[ "$(wc -l <eager)" -eq 1000 ]
	cmp default eager
}

@test "active nodes keep their slots" {
	"$PEERS/random-tree" . 200 40 3 10 7
	for w in w*.json; do
		"$KM/km-plan" "$w" | jq -c '[.slots[] | select(.node and (.why | startswith("attempt"))) | {slot, node}]'
	done >plans
	jq -c '[.nodes[] | select(.status == "active") | {slot: .cycle.slot, node: .id}] | sort_by(.slot)' w*.json >active
	cmp plans active
	grep -q slot active
}

@test "wrong use is exit 2" {
	for arguments in "" "a b" "--evals x a" "--evals -1 a" "--usd nan a" "--what a" "--target"; do
		# shellcheck disable=SC2086
		run "$KM/km-plan" $arguments
		[ "$status" -eq 2 ]
	done
}
