#!/usr/bin/env bats
# km-instantiate: prompts within their ceiling and without surprises, code found in replies, sources written.

load helpers

setup() {
	cd "$BATS_TEST_TMPDIR" || return
}

reply() { # text file, cue
	jq -n --rawfile text "$1" --arg cue "${2-code/tile.0a1b/3}" '{made_by: {}, id: ("0" * 64), cue: $cue, status: "answered", text: $text,
		provider: "exec", model: "m", tokens_in: 1, tokens_out: 1, usd: 0, seconds: 0, tries: []}'
}

# A run with a world of $1 nodes whose last one is in its cycle, and the files of its two attempts.
make_run() {
	mkdir -p run/r00001/s0 run/r00002/s0 run/r00003/s0
	cp -r "$ROOT/tasks/sgemm_cpu" run/task
	cp -r "$ROOT/prompts" run/prompts
	echo "- Processor: one for tests" > run/prompts/hardware.md
	jq -n --argjson n "$1" -f "$ROOT/tests/big-world.jq" > run/r00002/world.json
	for r in 1 2; do
		printf '/* kernel of round %d */\n#include "task.h"\nint km_run(const struct km_args *a) { return !a; }\n' $r > run/r0000$r/s0/kernel.c
	done
	build BUILT "" > run/r00001/s0/build.json
	build COMPILE_ERROR $'kernel.c:3:1: warning: something\nkernel.c:7:9: error: unknown type name \'flaot\'\n' > run/r00002/s0/build.json
	bench PASSED 1234 > run/r00001/s0/bench.json
	bench COMPILE_ERROR null > run/r00002/s0/bench.json
	"$KM/km-plan" --rounds 9 -o run/r00003/plan.json run/r00002/world.json
}

build() {
	jq -n --arg status "$1" --arg diagnostics "$2" '{made_by: {}, cue: null, status: $status, rule: null, message: "", task: "sgemm_cpu", target: "cpu",
		kernel: "kernel.c", library: null, edited: false, source_sha256: null, code_sha256: null, compiler: "cc", flags: "", diagnostics: $diagnostics, seconds: 1}'
}

bench() {
	jq -n --arg status "$1" --argjson score "$2" '{made_by: {}, cue: null, status: $status, rule: null, message: "", task: "sgemm_cpu",
		score: $score, noise: 0.012, device: {name: "test", target: "cpu"}, seconds: 1, versus: null, failure: null,
		workloads: [{uuid: "u1", axes: {M: 600, N: 584, K: 632}, set: "feedback", status: $status, median_us: 5000, q1_us: 4900, q3_us: 5100, idle_us: null,
			baseline_us: 61700, floor_us: 1000, speedup: 12.34, noise: 0.02, flops: 4.4e8, bytes: 1e6, max_abs_error: 0, max_rel_error: 0, calls: 9}]}'
}

prompt() { jq -r '.messages[].content' "$1"; }
plan_mode() { jq "$1" run/r00003/plan.json > plan.new && mv plan.new run/r00003/plan.json; }
ask() { "$KM/km-instantiate" request --slot 0 --model m -o run/r00003/s0/request.json run/r00003/plan.json; }

@test "help, version and misuse" {
	run "$KM/km-instantiate" --help
	[ "$status" -eq 0 ]
	[[ $output == "Usage: km-instantiate "* ]]
	for bad in "" "juggle x.json" "candidate" "candidate a b" "request plan.json" "request --slot 99 plan.json" "hardware --target toaster"; do
		# shellcheck disable=SC2086
		run "$KM/km-instantiate" $bad
		[ "$status" -eq 2 ]
	done
}

@test "code is found in replies: golden cases" {
	for file in "$ROOT"/tests/replies/*.md; do
		reply "$file" > reply.json
		"$KM/km-instantiate" candidate -o candidate.json reply.json
		"$KM/km-instantiate" source -o kernel.c candidate.json
		"$KM/km-validate" candidate candidate.json
		echo "$file"
		if [ -e "${file%.md}.c" ]; then
			[ "$(jq -r .status candidate.json)" = CODE ]
			cmp "${file%.md}.c" kernel.c
		else
			[ "$(jq -r .status candidate.json)" = NO_CODE ]
			[ -n "$(jq -r .reason candidate.json)" ]
			[ ! -s kernel.c ]
		fi
		rm -f kernel.c kernel.c~
	done
}

# A round's plan whose slot 0 starts from the kernel on standard input.
plan_with_base() {
	mkdir -p r00001/s0 r00002/s0
	cat > r00001/s0/kernel.c
	jq '.slots = [{slot: 0, node: "x.0000", mode: "improve", attempt: 2, cycle: 1, cycle_attempt: 2, parent: null, why: "",
		base: {node: "x.0000", attempt: 1, kernel: "../r00001/s0/kernel.c", build: "../r00001/s0/build.json", bench: "../r00001/s0/bench.json"}}]' \
		"$ROOT/tests/golden/state/plan.json" > r00002/plan.json
}

# The text on standard input as a reply: the source that comes of it, or its reason.
source_of() {
	cat > text
	reply text | "$KM/km-instantiate" candidate --plan r00002/plan.json --slot 0 - > candidate.json
	"$KM/km-validate" candidate candidate.json
	if "$KM/km-instantiate" check --plan r00002/plan.json --slot 0 < text 2> complaint; then
		[ "$(jq -r .status candidate.json)" = CODE ]
	else
		[ $? -eq 6 ]
		[ "$(jq -r .status candidate.json)" = NO_CODE ]
		[ "$(jq -r .reason candidate.json)" = "$(cat complaint)" ]
	fi
	jq -j '.source + (.reason // "")' candidate.json
}

@test "changes are applied to the kernel that the slot started from" {
	printf '#include "task.h"\nint a;\nint b;\nint a;\nint km_run(const struct km_args *x)\n{\n\treturn 0;\n}\n' | plan_with_base
	# Blocks, in a fence and not.
	[ "$(printf 'Thus:\n```\n<<<<<<< SEARCH\nint b;\n=======\nint c;\nint d;\n>>>>>>> REPLACE\n```\n' | source_of | sed -n '2,5p' | tr '\n' ' ')" = 'int a; int c; int d; int a; ' ]
	[ "$(printf '<<<<<<< SEARCH\nint b;\nint a;\n=======\n>>>>>>> REPLACE\n\n<<<<<<< SEARCH\n\treturn 0;\n=======\n\treturn 1;\n>>>>>>> REPLACE\n' | source_of | tr '\n' ' ')" = '#include "task.h" int a; int km_run(const struct km_args *x) { 	return 1; } ' ]
	# A diff: by its lines, whatever its numbers say; by the number where the lines fit twice; a lost space on a blank line.
	[ "$(printf '```diff\n--- a/kernel.c\n+++ b/kernel.c\n@@ -70,3 +70,3 @@\n int a;\n-int b;\n+int c;\n\n```\n' | source_of | sed -n '3p')" = 'int c;' ]
	[ "$(printf '```diff\n@@ -4,1 +4,1 @@\n-int a;\n+int z;\n@@ -6 +6 @@ here\n {\n-\treturn 0;\n+\treturn 7;\n```\n' | source_of | sed -n '4,7p' | tr -d '\n\t')" = 'int z;int km_run(const struct km_args *x){return 7;' ]
	# The whole file goes before changes, which may only explain it.
	[[ $(printf '```diff\n@@ -1 +1 @@\n-int q;\n+int r;\n```\n```c\nint km_run(void)\n{\n}\n```\n' | source_of) == $'int km_run(void)\n{\n}' ]]
}

@test "changes that do not fit exactly are refused with a reason for the model" {
	printf 'int a;\n\nint b;\nint a;\nint  km_run(void)\n{\n}\n' | plan_with_base
	while IFS='|' read -r text reason; do
		[[ $(printf "$text" | source_of) == *"$reason"* ]] || { echo "$text: $(cat complaint)"; return 1; }
	done <<-'END'
		<<<<<<< SEARCH\nint c;\n=======\nint d;\n>>>>>>> REPLACE\n|SEARCH block 1 does not fit: the line 'int c;' is not in the kernel
		<<<<<<< SEARCH\nint a;\n=======\nint d;\n>>>>>>> REPLACE\n|SEARCH block 1 fits in 2 places
		<<<<<<< SEARCH\nint b;\nint  km_run(void)\n=======\nint d;\n>>>>>>> REPLACE\n|its lines are in the kernel, but not together
		<<<<<<< SEARCH\nnt b;\n=======\nint d;\n>>>>>>> REPLACE\n|the line 'nt b;' is not in
		<<<<<<< SEARCH\n=======\nint d;\n>>>>>>> REPLACE\n|has no line of the kernel
		<<<<<<< SEARCH\nint b;\n=======\nint d;\n|does not end with >>>>>>> REPLACE
		<<<<<<< SEARCH\nint b;\n=======\nint d;\n>>>>>>> REPLACE\n<<<<<<< SEARCH\nint b;\n=======\nint e;\n>>>>>>> REPLACE\n|SEARCH block 2 does not fit
		```diff\n@@ -9 +9 @@\n-int a;\n+int c;\n```\n|hunk 1 fits in 2 places
		```diff\n@@ -5 +5 @@\n-int km_run(void)\n+int km_run(int)\n```\n|the line 'int km_run(void)' is not in
		```diff\n@@ -1 +1 @@\n-int b;\nint c;\n```\n|hunk 1 has a line that begins with neither
		```diff\n@@ -0,0 +1 @@\n+int c;\n```\n|hunk 1 has no line of the kernel
		```diff\n--- a\n+++ b\n-int b;\n```\n|the diff has no hunk
	END
	jq '.slots[0].base = null' r00002/plan.json > plan && mv plan r00002/plan.json
	[[ $(printf '<<<<<<< SEARCH\nint b;\n=======\n>>>>>>> REPLACE\n' | source_of) == *"there is no kernel to change: the whole file is needed" ]]
	printf 'no code here' > text
	run "$KM/km-instantiate" check < text
	[ "$status" -eq 6 ]
	[ "$output" = "the reply holds no code block, and it is not code as a whole" ]
}

@test "hostile replies are read in time" {
	local what size=2000000
	# Every strstr of a sanitized program looks at the whole text.
	[ -z "${SANITIZE:-}" ] || size=50000
	: > base && plan_with_base < base
	for what in '<think></think>' 'km_run(' '</think>' '@@\n' '<<<<<<< SEARCH\n' '```\n' '/*' '{' '{"ops": [/*'; do
		awk -v what="$what" -v size="$size" 'BEGIN { for (i = 0; i < size / length(what); i++) printf "%s", what }' > text
		timeout 20 "$KM/km-instantiate" check --plan r00002/plan.json --slot 0 < text 2> complaint || [ $? -eq 6 ]
		timeout 20 "$KM/km-update" check < text 2> complaint || [ $? -eq 6 ]
	done
}

@test "the cue gives node and attempt" {
	echo x > text
	reply text code/tile.0a1b/12~2 | "$KM/km-instantiate" candidate --language cuda - > candidate.json
	[ "$(jq -c '[.node, .attempt, .cue, .language]' candidate.json)" = '["tile.0a1b",12,"code/tile.0a1b/12~2","cuda"]' ]
	for cue in edit/tile.0a1b/1 code/tile.0a1b code/tile.0a1b/x code/tile.0a1b/0 code//1; do
		reply text "$cue" > reply.json
		run "$KM/km-instantiate" candidate reply.json
		[ "$status" -eq 3 ]
	done
}

@test "an unrecorded reply and a skipped slot pass on" {
	echo x > text
	reply text | jq '.status = "unrecorded" | .text = "" | .reason = "no reply is recorded"' > reply.json
	"$KM/km-instantiate" candidate -o candidate.json reply.json
	[ "$(jq -c '[.status, .source, .reason]' candidate.json)" = '["UNRECORDED","","no reply is recorded"]' ]
	echo '{"skip": "idle"}' > reply.json
	"$KM/km-instantiate" candidate -o candidate.json reply.json
	[ "$(jq -c . candidate.json)" = '{"skip":"idle"}' ]
	"$KM/km-instantiate" source -o kernel.c candidate.json
	[ -e kernel.c ]
	[ ! -s kernel.c ]
}

@test "a differing source is kept beside the new one, the same one keeps its inode" {
	reply "$ROOT/tests/replies/plain.md" | "$KM/km-instantiate" candidate - > candidate.json
	"$KM/km-instantiate" source -o kernel.c candidate.json
	inode=$(stat -c %i kernel.c)
	"$KM/km-instantiate" source -o kernel.c candidate.json
	[ "$(stat -c %i kernel.c)" = "$inode" ]
	[ ! -e kernel.c~ ]
	echo "/* by hand */" > kernel.c
	"$KM/km-instantiate" source -o kernel.c candidate.json
	cmp kernel.c "$ROOT/tests/replies/plain.c"
	[ "$(cat kernel.c~)" = "/* by hand */" ]
}

@test "improve: intent, best and last kernel, times, errors, path and outline are in the prompt" {
	make_run 40
	ask
	"$KM/km-validate" request run/r00003/s0/request.json
	[ "$(jq -r .cue run/r00003/s0/request.json)" = code/node-39.0027/3 ]
	[ "$(jq -c .parameters run/r00003/s0/request.json)" = '{"model":"m","max_tokens":16000}' ]
	prompt run/r00003/s0/request.json > shown
	for want in "Title: Node 39 with a title" "kernel of round 1" "kernel of round 2" "| M=600 N=584 K=632 | 5000 | 61700 | 12.3x | 20 % |" \
		"error: unknown type name 'flaot'" "- node-39.0027 [active" "Processor: one for tests" "const float *A;" "M=904 N=376 K=648" \
		"attempt 2 (improve): COMPILE_ERROR" "12.3x the baseline's speed" "The baseline, factor 1"; do
		grep -qF -- "$want" shown || { echo "missing: $want"; false; }
	done
	run grep -c "something" shown
	[ "$output" = 0 ]
	jq -cj '{messages, parameters, cue}' run/r00003/s0/request.json > hashed
	[ "$(sha256sum < hashed | cut -d' ' -f1)" = "$(jq -r .id run/r00003/s0/request.json)" ]
}

@test "debug shows the failing code and the good parent; new starts from the parent or from nothing" {
	make_run 40
	plan_mode '.slots[0].mode = "debug"'
	ask
	prompt run/r00003/s0/request.json > shown
	grep -qF "# The last attempt, which failed" shown
	[ "$(grep -c 'kernel of round' shown)" -eq 2 ]
	[ "$(sed '/which failed/,$d' shown | grep -c 'kernel of round 1')" -eq 1 ]
	[ "$(sed '1,/which failed/d' shown | grep -c 'kernel of round 2')" -eq 1 ]
	plan_mode '.slots[0] |= (.mode = "new" | .last = null)'
	ask
	prompt run/r00003/s0/request.json > shown
	[ "$(grep -c 'kernel of round 1' shown)" -eq 1 ]
	plan_mode '.slots[0] |= (.parent = null | .base = null)'
	ask
	prompt run/r00003/s0/request.json > shown
	run grep -c 'kernel of round' shown
	[ "$output" = 0 ]
	grep -qF "There is none: the parent is the task itself" shown
}

@test "wrong results and broken rules are told with their elements" {
	make_run 40
	bench INCORRECT_NUMERICAL null | jq '.rule = null | .message = "a wrong element" | .failure = {uuid: "u1", axes: {M: 7, N: 3, K: 5}, input_set: "student_t3", output: "C",
		elements: [{row: 6, index: 2, got: "nan", expected: 1.5}], wrong_rows: 3, checked_rows: 7}' > run/r00002/s0/bench.json
	ask
	prompt run/r00003/s0/request.json > shown
	grep -qF "It failed at M=7 N=3 K=5, input set student_t3, output C; 3 of 7 checked rows are wrong." shown
	grep -qF "row 6, element 2: got nan, expected 1.5" shown
	bench REJECTED null | jq '.rule = "state" | .message = "writable static data: table"' > run/r00002/s0/bench.json
	ask
	prompt run/r00003/s0/request.json | grep -qF "Verdict: REJECTED, rule broken: state"
}

@test "the same inputs give the same bytes; no path, host or version is in them" {
	make_run 40
	ask
	cp run/r00003/s0/request.json first.json
	cp -r run elsewhere
	"$KM/km-instantiate" request --slot 0 --model m "$BATS_TEST_TMPDIR/elsewhere/r00003/plan.json" > second.json
	cmp first.json second.json
	run grep -cE "$BATS_TEST_TMPDIR|$(hostname)|$("$KM/km-instantiate" -V | cut -d' ' -f2)\"" first.json
	[ "$output" = 0 ]
	"$KM/km-instantiate" request --slot 0 --model other run/r00003/plan.json > other.json
	[ "$(jq .id other.json)" != "$(jq .id first.json)" ]
	"$KM/km-instantiate" request --slot 0 --model m --temperature 0.5 --max-tokens 99 run/r00003/plan.json > other.json
	[ "$(jq -c .parameters other.json)" = '{"model":"m","max_tokens":99,"temperature":0.5}' ]
}

@test "text of models is not expanded and cannot close a fence" {
	make_run 40
	# shellcheck disable=SC2016
	printf '/* ``` {{task}} {{nothing}} ````` */\n' > run/r00002/s0/kernel.c
	ask
	prompt run/r00003/s0/request.json > shown
	grep -qF '{{nothing}}' shown
	grep -qF 'Text {{task}} of node 39' shown
	grep -qxF '``````c' shown
}

@test "an idle slot passes its skip on" {
	make_run 40
	plan_mode '.slots[0] = {slot: 0, skip: "nothing to do"}'
	ask
	[ "$(jq -c . run/r00003/s0/request.json)" = '{"skip":"nothing to do"}' ]
	run "$KM/km-instantiate" request --slot 1 run/r00003/plan.json
	[ "$status" -eq 2 ]
}

@test "a prompt stays under its ceiling with 3,000 nodes and huge files, and keeps what matters" {
	make_run 3000
	{ cat run/r00001/s0/kernel.c; yes '/* a long kernel, line after line */' | head -c 900000; } > long.c
	cp long.c run/r00001/s0/kernel.c
	cp long.c run/r00002/s0/kernel.c
	build COMPILE_ERROR "$(yes "kernel.c:7:9: error: unknown type name 'flaot'" | head -c 100000)" > run/r00002/s0/build.json
	yes -- '- a sheet with much to say' | head -c 30000 > run/prompts/hardware.md
	for mode in improve debug new; do
		plan_mode ".slots[0].mode = \"$mode\""
		ask
		prompt run/r00003/s0/request.json > shown
		echo "$mode: $(wc -c < shown)"
		[ "$(wc -c < shown)" -le 300000 ]
		[ "$(wc -c < shown)" -ge 60000 ]
		grep -qF -- "- node-2999.0bb7 [active" shown
		grep -qF -- "- node-998.03e6 [closed" shown
		grep -qF -- "- node-0.0000 [closed" shown
		grep -qF "Title: Node 2999 with a title" shown
		grep -qE "^ *- \([0-9]+ more: [0-9]+ open, [0-9]+ closed, [0-9]+ pruned; fastest [0-9.]+x\)" shown
		grep -qF "bytes left out here" shown
	done
	# What is folded and what is shown is the whole tree.
	shown=$(sed -n '/^The tree of intents/,/^The path/p' shown | grep -cE '^ *- node-')
	folded=$(sed -n '/^The tree of intents/,/^The path/p' shown | sed -nE 's/^ *- \(([0-9]+) more:.*/\1/p' | paste -sd+ | bc)
	[ $((shown + folded)) -eq 3000 ]
}

@test "template errors name the template and the placeholder" {
	make_run 40
	sed -i 's/{{intent}}/{{intnet}}/' run/prompts/improve.md
	run ask
	[ "$status" -eq 3 ]
	[[ $output == *improve.md*intnet* ]]
	cp "$ROOT/prompts/improve.md" run/prompts/improve.md
	sed -i 's/{{task}}/{{ task }} int x[] = {{1, 2}, {3, 4}}; {{frontier}}/' run/prompts/improve.md
	run ask
	[ "$status" -eq 3 ]
	[[ $output == *improve.md*frontier* ]]
	sed -i 's/{{frontier}}//' run/prompts/improve.md
	ask
	prompt run/r00003/s0/request.json | grep -qF '{{1, 2}, {3, 4}}'
	rm run/prompts/parts/interface.md
	run ask
	[ "$status" -eq 3 ]
	[[ $output == *parts/interface.md* ]]
}

@test "malformed plans, worlds and benches are exit 3 with the file's name" {
	make_run 40
	cp -r run good
	for file in r00003/plan.json r00002/world.json r00002/s0/bench.json r00001/s0/build.json task/definition.json; do
		head -c 100 "good/$file" > "run/$file"
		run ask
		[ "$status" -eq 3 ]
		[[ $output == *"${file##*/}"* ]]
		cp "good/$file" "run/$file"
	done
	jq '.nodes[3].parent = .nodes[9].id' good/r00002/world.json > run/r00002/world.json
	run ask
	[ "$status" -eq 3 ]
	jq '.nodes |= .[:20]' good/r00002/world.json > run/r00002/world.json
	run ask
	[ "$status" -eq 3 ]
	for file in /dev/null "$ROOT/Makefile" "$BATS_TEST_TMPDIR"; do
		run "$KM/km-instantiate" candidate "$file"
		[ "$status" -eq 3 ]
		run "$KM/km-instantiate" source "$file"
		[ "$status" -eq 3 ]
	done
}

@test "hardware: a sheet of this processor from the template beside it" {
	mkdir -p prompts/parts
	cp "$ROOT/prompts/parts/hardware-cpu.md" prompts/parts/
	"$KM/km-instantiate" hardware --target cpu -o prompts/hardware.md
	grep -q '^- Processor: .' prompts/hardware.md
	run grep -c '{{' prompts/hardware.md
	[ "$output" = 0 ]
	"$KM/km-instantiate" hardware --prompts prompts | cmp - prompts/hardware.md
}

@test "hardware: a sheet of a device, by its datasheet or by what was measured" {
	local sheet
	"$KM/km-instantiate" hardware --target cuda --device h200 --prompts "$ROOT/prompts" >sheet
	grep -q '^- Architecture: sm_90a: wgmma' sheet
	run grep -c '{{' sheet
	[ "$output" = 0 ]
	run "$KM/km-instantiate" hardware --target cuda --device abacus --prompts "$ROOT/prompts"
	[ "$status" -eq 2 ]
	[[ $output == *H200* ]]
	mkdir -m 700 cache
	echo '{"name": "NVIDIA A100-SXM4-80GB", "major": 8, "minor": 0, "processors": 108, "bandwidth_bytes_per_s": 1.5e12, "read_bytes_per_s": 1.3814e12, "empty_call_s": 4.4e-6}' >cache/probe-GPU-1.json
	sheet=$(KM_CACHE=$PWD/cache "$KM/km-instantiate" hardware --target cuda --prompts "$ROOT/prompts")
	[[ $sheet == *'- Device: NVIDIA A100-SXM4-80GB'$'\n'*'sm_80'*'108 multiprocessors'*' at 1.5 TB/s'*'Measured on this device: reading device memory: 1.381 TB/s'*'one empty kernel'*': 4.4 us'* ]]
	# On another machine than the one that was probed.
	mkdir -m 700 empty
	sheet=$(KM_CACHE=$PWD/empty "$KM/km-instantiate" hardware --target cuda --probe cache/probe-GPU-1.json --prompts "$ROOT/prompts")
	[[ $sheet == *'- Device: NVIDIA A100-SXM4-80GB'$'\n'*'reading device memory: 1.381 TB/s'* ]]
	echo '{"workloads": []}' >none.json
	run "$KM/km-instantiate" hardware --target cuda --probe none.json --prompts "$ROOT/prompts"
	[ "$status" -eq 3 ]
	[[ $output == *none.json*'km-bench --probe'* ]]
	run "$KM/km-instantiate" hardware --target cuda --probe none.json --device H200 --prompts "$ROOT/prompts"
	[ "$status" -eq 2 ]
}

@test "first tree and edit through km-update" {
	make_run 40
	jq -n '{made_by: {}, run: "x", task: "sgemm_cpu", target: "cpu", width: 1, k: 4, strategy: "world", policy: "default", seed: "1", recording: null,
		defaults: {rounds: 3, evals: 10, provider: "exec", model: "m"}}' > run/run.json
	mkdir run/r00000
	"$KM/km-update" request --first --task run/task --prompts run/prompts --model m -o run/r00000/request.json run/run.json
	"$KM/km-validate" request run/r00000/request.json
	[ "$(jq -r .cue run/r00000/request.json)" = init/0 ]
	prompt run/r00000/request.json > shown
	grep -qF "4 to 8 nodes" shown
	# The example in the sheet of operations is one that can be read.
	sed '1,/^# The form of the reply/d' shown | "$KM/km-update" check
	cp run/r00002/s0/kernel.c run/r00003/s0/
	cp run/r00002/s0/build.json run/r00003/s0/
	jq '.cue = "code/node-39.0027/3"' run/r00002/s0/bench.json > run/r00003/s0/bench.json
	jq '.settings.k = 2' run/r00002/world.json > world.new && mv world.new run/r00002/world.json
	"$KM/km-plan" --rounds 9 -o run/r00003/plan.json run/r00002/world.json
	"$KM/km-update" request --slot 0 --task run/task --prompts run/prompts --model m -o run/r00003/s0/edit-request.json run/r00003/plan.json
	"$KM/km-validate" request run/r00003/s0/edit-request.json
	[ "$(jq -r .cue run/r00003/s0/edit-request.json)" = edit/node-39.0027/1 ]
	prompt run/r00003/s0/edit-request.json > shown
	for want in "Predicted 12.0x, measured 12.3x (1.03 of the prediction)" "### attempt 1 (new): PASSED, 12.3x" "### attempt 3" "kernel of round 1" \
		"an operation an operation" "Question 3" "insert_node" "us, 12.3x" "at most 3 new nodes" "no_child_because" "A summary that goes on."; do
		grep -qF -- "$want" shown || { echo "missing: $want"; false; }
	done
	sed '1,/^# The form of the reply/d' shown | "$KM/km-update" check
	[ "$(wc -c < shown)" -le 300000 ]
}

@test "an empty frontier is refilled: what is there, the best kernel, and the operations" {
	make_run 39
	jq '(.nodes[] | select(.status == "open" or .status == "active")) |= (.status = "pruned" | .cycle = null)' run/r00002/world.json > world.new && mv world.new run/r00002/world.json
	plan_mode '.slots[0] = {slot: 0, skip: "nothing to do"}'
	echo '{"skip": "nothing to do"}' > run/r00003/s0/bench.json
	"$KM/km-update" request --slot 0 --task run/task --prompts run/prompts --model m -o run/r00003/s0/edit-request.json run/r00003/plan.json
	[ "$(jq -r .cue run/r00003/s0/edit-request.json)" = refill/1 ]
	prompt run/r00003/s0/edit-request.json > shown
	for want in "The frontier is empty" "kernel of round 1" "at most 8 new nodes" "- node-0.0000 [closed" \
		"Verdict: PASSED" "| workload | time us | baseline us |"; do
		grep -qF -- "$want" shown || { echo "missing: $want"; false; }
	done
}

@test "a question for new ideas says which open nodes must wait for the cycle of their parent" {
	make_run 39
	jq '(.nodes[] | select(.status == "active")) as $active | $active.id as $a
		| .nodes = [.nodes[0], $active + {parent: "root"}] + [.nodes[1:][] | select(.id != $a)]
		| reduce (.nodes | to_entries[] | select(.value.status == "open").key) as $i ({world: ., n: 0};
			.n += 1 | if .n <= 2 then .world.nodes[$i].parent = $a else .world.nodes[$i].status = "pruned" end) | .world' \
		run/r00002/world.json >world.new && mv world.new run/r00002/world.json
	"$KM/km-validate" world run/r00002/world.json
	plan_mode '.slots[0] = {slot: 0, skip: "nothing to do"}'
	echo '{"skip": "nothing to do"}' >run/r00003/s0/bench.json
	"$KM/km-update" request --slot 0 --task run/task --prompts run/prompts --model m -o run/r00003/s0/edit-request.json run/r00003/plan.json
	prompt run/r00003/s0/edit-request.json >shown
	grep -q '^2 of the open nodes wait: ' shown
	# Under the eager policy they need not, once a kernel of the parent has passed.
	jq '.settings.policy = "eager"' run/r00002/world.json >world.new && mv world.new run/r00002/world.json
	"$KM/km-update" request --slot 0 --task run/task --prompts run/prompts --model m run/r00003/plan.json | grep -q '"skip"'
	jq '(.nodes[] | select(.status == "active").cycle) |= (.best = null | .attempts[0] += {status: "TIMEOUT", score: null})' run/r00002/world.json >world.new
	mv world.new run/r00002/world.json
	"$KM/km-update" request --slot 0 --task run/task --prompts run/prompts --model m -o run/r00003/s0/edit-request.json run/r00003/plan.json
	prompt run/r00003/s0/edit-request.json | grep -q '^2 of the open nodes stand below nodes that are being worked on: '
	jq '(.nodes[] | select(.status == "active").id) as $a | (.nodes[] | select(.parent == $a).parent) = "root"' run/r00002/world.json >world.new
	mv world.new run/r00002/world.json
	"$KM/km-update" request --slot 0 --task run/task --prompts run/prompts --model m -o run/r00003/s0/edit-request.json run/r00003/plan.json
	[ "$(prompt run/r00003/s0/edit-request.json | grep -c 'open nodes wait')" = 0 ]
}

@test "a parent that is still being worked on is shown as the best so far, with its speed" {
	local parent
	make_run 39
	jq '.settings += {policy: "eager", width: 2} | first(.nodes[] | select(.status == "active")) as $a | .best = null
		| (.nodes[] | select(.id == $a.parent)) |= (.status = "active" | .solution = null | .attempts = 1 | .cycles = 0 | .failed_cycles = 0 | .cycle = {number: 1,
			slot: 1, streak_best: 0, streak_parent: 0, best: 1,
			attempts: [{attempt: 1, round: 1, slot: 0, mode: "new", status: "PASSED", score: 1234, noise: 0.01}]})
		| (.nodes[] | select(.id == $a.id).cycle) |= (.best = null | .attempts[0] += {status: "TIMEOUT", score: null})' \
		run/r00002/world.json >world.new && mv world.new run/r00002/world.json
	"$KM/km-validate" world run/r00002/world.json
	"$KM/km-plan" -o run/r00003/plan.json run/r00002/world.json
	parent=$(jq -r '.slots[0].parent.node' run/r00003/plan.json)
	ask
	prompt run/r00003/s0/request.json >shown
	grep -qF "The best kernel so far of the parent, node $parent, which is still being worked on; it has passed." shown
	grep -q 'kernel of round 1' shown
	plan_mode '.slots[0] |= (.mode = "improve" | .base = .parent)'
	ask
	prompt run/r00003/s0/request.json >shown
	grep -qF "The parent's speed: 12.3x the baseline's so far, and it is still being worked on." shown
}

# The lines of the outline in the prompt `shown`.
outline() { sed -n '/^The tree of intents/,/^The path/p' shown | sed '1,2d; $d'; }

@test "the outline at 10, 300 and 10,000 nodes: all of a small tree; live nodes first; the oldest are folded" {
	local n live shown folded
	for n in 10 300 10000; do
		make_run $n
		# Each closed node is of a round of its own, so that they have an age.
		jq -c '.round = 20000 | .nodes |= [range(length) as $i | .[$i] | if .solution then .solution.round = $i else . end]
			| (.nodes[] | select(.id == "node-0.0000") | .solution.round) = 1' run/r00002/world.json > world.new
		sed -i 's/"round":20000/"round":99998/' world.new
		mkdir -p run/r99999/s0
		jq -c --argjson n $n '.round = 99999 | .slots[0].mode = "improve"' run/r00003/plan.json > run/r99999/plan.json
		mv world.new run/r00002/world.json
		"$KM/km-instantiate" request --slot 0 --task run/task --prompts run/prompts -o run/r99999/s0/request.json run/r99999/plan.json
		prompt run/r99999/s0/request.json > shown
		outline > outline.txt
		echo "$n nodes: $(wc -c < outline.txt) bytes, $(grep -cE '^ *- node-' outline.txt) lines"
		[ "$(wc -c < outline.txt)" -le 24000 ]
		shown=$(grep -cE '^ *- node-' outline.txt)
		folded=$(sed -nE 's/^ *- \(([0-9]+) more:.*/\1/p' outline.txt | paste -sd+ | bc)
		[ $((shown + ${folded:-0})) -eq $n ]
		case $n in
		10) [ "$shown" -eq 10 ] ;;
		300)
			live=$(jq '[.nodes[] | select(.status == "open" or .status == "active")] | length' run/r00002/world.json)
			[ "$(grep -cE '^ *- node-[^ ]* \[(open|active)' outline.txt)" -eq "$live" ] || [ "$(wc -c < outline.txt)" -gt 23000 ]
			# A closed leaf that is shown is not older than one that is folded.
			jq -r '([.nodes[].parent] | unique) as $parents | .nodes[] | select(.status == "closed" and (.id as $i | $parents | index($i) | not)) |
				"\(.id) \(.solution.round)"' run/r00002/world.json | while read -r id round; do
				grep -qF -- "- $id [" outline.txt && echo "shown $round" || echo "folded $round"
			done | awk '$1 == "shown" && (!low || $2 < low) { low = $2 } $1 == "folded" && $2 > high { high = $2 } END { exit !(!high || !low || low > high - 20) }'
			;;
		10000) [ "$(wc -c < outline.txt)" -gt 20000 ] && grep -q 'V=0.99' outline.txt ;;
		esac
	done
}

@test "evolve, climb and sample stay under the ceiling with huge kernels, and show what they are to show" {
	make_run 40
	{ cat run/r00001/s0/kernel.c; yes '/* a long kernel, line after line */' | head -c 900000; } > long.c
	cp long.c run/r00001/s0/kernel.c
	cp long.c run/r00002/s0/kernel.c
	yes -- '- a sheet with much to say' | head -c 30000 > run/prompts/hardware.md
	local mode
	for mode in evolve climb sample; do
		plan_mode ".slots[0] |= (.mode = \"$mode\" | .parent = .base | .others = [.base, .base])"
		ask
		prompt run/r00003/s0/request.json > shown
		echo "$mode: $(wc -c < shown)"
		[ "$(wc -c < shown)" -le 300000 ]
		[ "$(grep -c '^# The tree\|^The tree of intents' shown)" -eq 0 ]
		case $mode in
		evolve) [ "$(grep -c 'a long kernel' shown)" -gt 2000 ] && grep -q 'it has passed' shown && grep -q "unknown type name 'flaot'" shown ;;
		climb) grep -q 'The kernel of the parent' shown && grep -q "unknown type name 'flaot'" shown ;;
		sample) [ "$(grep -c 'a long kernel' shown)" -eq 0 ] ;;
		esac
	done
}
