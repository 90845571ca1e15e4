#!/usr/bin/env bats
# The driver and the rounds: endings, resuming, what is remade and what is not. The replies and verdicts are replayed.

load helpers

setup_file() {
	export RECORDING=$BATS_FILE_TMPDIR/recording
	record_search "$RECORDING" WIDTH=2 K=2 ROUNDS=8 EVALS=100
}

# ---- endings ----

@test "the end of the rounds is exit 0, the reason and a table with the best as last line" {
	run km_run a FROM="$RECORDING" ROUNDS=2
	[ "$status" -eq 0 ]
	[[ $output == *"ended: "*ROUNDS* ]]
	[[ ${lines[-1]} == 'best: '*x\ \(node\ * ]]
	[ -e "$STATE/a/r00002/world.json" ]
	[ ! -e "$STATE/a/r00003" ]
}

@test "raising ROUNDS goes on from there and redoes nothing" {
	km_run a FROM="$RECORDING" ROUNDS=1
	times "$STATE/a" | grep -v calls >"$BATS_TEST_TMPDIR/before"
	run km_run a ROUNDS=2
	[ "$status" -eq 0 ]
	[ -e "$STATE/a/r00002/world.json" ]
	run comm -23 "$BATS_TEST_TMPDIR/before" <(times "$STATE/a")
	[ "$output" = "" ]
}

@test "each limit ends the search with exit 0 and says which" {
	local limit name
	local -A says=([EVALS]='1 of 1 evaluations' [TOKENS]='of 1 tokens' [SECONDS]='of 1 seconds' [TARGET]='target 0.5x'
		[PATIENCE]='patience 1' [USD]='of \$0.00 spent')
	for limit in EVALS=1 TOKENS=1 SECONDS=1 TARGET=0.5 PATIENCE=1 USD=0; do
		name=${limit%=*}
		run km_run "limit-$name" FROM="$RECORDING" "$limit"
		echo "$limit: $status: $output"
		[ "$status" -eq 0 ]
		grep -q "run: ended: .*${says[$name]}" <<<"$output"
		[[ ${lines[-1]} == 'best: '* ]]
		[ ! -e "$STATE/limit-$name/r00008/world.json" ]
	done
}

@test "a raised limit of another kind goes on as well" {
	km_run a FROM="$RECORDING" EVALS=1
	[ ! -e "$STATE/a/r00002" ]
	run km_run a EVALS=100
	[ "$status" -eq 0 ]
	[ -e "$STATE/a/r00008/world.json" ]
}

@test "a search that runs out of recorded replies ends with exit 0 and says so" {
	run km_run a FROM="$RECORDING" ROUNDS=60 EVALS=100
	echo "$output"
	[ "$status" -eq 0 ]
	[[ $output == *"ended: "* ]]
	[[ $output != *"ROUNDS=60 reached"* ]]
	[ ! -e "$STATE/a/r00060" ]
}

@test "an unanswered question is exit 75 with a list; the answer goes on" {
	run km_run a TASK=sgemm_cpu PROVIDER=manual ROUNDS=1
	[ "$status" -eq 75 ]
	[[ $output == *waiting* ]]
	local ask
	ask=$(echo "$STATE"/a/r00000/ask-*.md)
	[[ $output == *"$ask"* ]]
	run km_make waiting RUN=a
	[[ $output == *"$ask"* ]]
	"$ROOT/tests/peer/model.sh" <"$ask" >"$BATS_TEST_TMPDIR/answer"
	mv "$BATS_TEST_TMPDIR/answer" "${ask/ask-/answer-}"
	run km_run a
	[ "$status" -eq 75 ]
	[ -e "$STATE/a/r00000/world.json" ]
	[ -e "$(echo "$STATE"/a/r00001/s0/ask-*.md)" ]
}

@test "a verdict that waits for a device names make bench and no questions" {
	local PROGRAM_FOLDER=$BATS_TEST_TMPDIR/bin
	fake_judge "$PROGRAM_FOLDER"
	printf '#!/bin/sh\necho waiting for a CUDA device >&2\nexit 75\n' >"$PROGRAM_FOLDER/km-bench"
	run km_run a FROM="$RECORDING" JUDGE=real ROUNDS=1
	echo "$output"
	[ "$status" -eq 75 ]
	[[ $output == *"waiting for 2: "*bench.json*"make bench RUN=a"* ]]
	[[ $output != *uestion* ]]
}

@test "all questions of a round are out at once" {
	run km_run a FROM="$RECORDING" PROVIDER=manual
	[ "$status" -eq 75 ]
	local ask
	ask=$(echo "$STATE"/a/r00000/ask-*.md)
	"$ROOT/tests/peer/model.sh" <"$ask" >"${ask/ask-/answer-}"
	run km_run a
	[ "$status" -eq 75 ]
	[ "$(find "$STATE/a" -name 'ask-*.md' | wc -l)" -eq 2 ]
	run km_make waiting RUN=a
	[ "$(grep -c 'ask-.*->.*(code/.*/1)$' <<<"$output")" -eq 2 ]
	printf 'start\t%064d\tcode/x/1\texec\t-\t1\t1\t0.0\t0\n' 7 >>"$STATE/a/calls.tsv"
	run km_make waiting RUN=a
	[[ $output == *"asked of exec, being answered or cut off: code/x/1"* ]]
}

@test "an answer without code is asked for once more, with the reason" {
	run km_run a FROM="$RECORDING" PROVIDER=manual
	local ask i
	ask=$(echo "$STATE"/a/r00000/ask-*.md)
	"$ROOT/tests/peer/model.sh" <"$ask" >"${ask/ask-/answer-}"
	run km_run a
	for i in 1 2; do
		ask=$(echo "$STATE"/a/r00001/s0/ask-*.md)
		[ "$i" = 1 ] || grep -q 'the reply holds no code block, and it is not code as a whole' "$ask"
		echo "I would rather not." >"${ask/ask-/answer-}"
		run km_run a
		[ "$i" = 2 ] || [[ $output == *"asked again"* ]]
	done
	[ "$(jq -r '.status, .reason' "$STATE/a/r00001/s0/candidate.json")" = $'NO_CODE\nthe reply holds no code block, and it is not code as a whole' ]
}

@test "a command for exec is the shell's to the letter, and gets request and reply as files" {
	export EXEC_LOG=$BATS_TEST_TMPDIR/log MODEL=$ROOT/tests/peer/model.sh
	# shellcheck disable=SC2016
	run km_make run RUN=a TASK=sgemm_cpu PROVIDER=exec JUDGE=replay FROM="$RECORDING" ROUNDS=1 WIDTH=2 \
		EXEC='"$MODEL" < "$KM_REQUEST" > "$KM_REPLY"; echo "$KM_CUE $$" >> "$EXEC_LOG"; echo thinking...'
	echo "$output"
	[ "$status" -eq 0 ]
	grep -q '^init/0 [0-9]*$' "$EXEC_LOG"
	[ "$(jq -r .status "$STATE/a/r00001/s0/candidate.json")" = CODE ]
}

@test "a tree in a folder with a space asks, checks and goes on" {
	local tree="$BATS_TEST_TMPDIR/sp ace"
	mkdir -p "$tree/bin"
	fake_judge "$tree/bin"
	# As in a bundle: nothing is built there.
	mkdir "$tree/bin/lib" && touch "$tree/bin/lib/bwrap.program"
	cp -r "$ROOT"/{Makefile,tools,prompts} "$tree"
	mkdir "$tree/tasks" && cp -r "$ROOT/tasks/sgemm_cpu" "$tree/tasks"
	cp "$ROOT/tests/peer/model.sh" "$tree/model.sh"
	run make -C "$tree" BIN=bin run TASK=sgemm_cpu PROVIDER=exec EXEC="'$tree/model.sh'" ROUNDS=1 FINAL=no
	echo "$output"
	[ "$status" -eq 0 ]
	[ -e "$tree/state/sgemm_cpu/r00001/world.json" ]
}

@test "a budget ends the search between two calls, and a larger one goes on" {
	export KM_PRICE=1,10 EXEC=$ROOT/tests/peer/model.sh
	run km_run a TASK=sgemm_cpu PROVIDER=exec ROUNDS=3 USD=0.1 JUDGE=replay FROM="$RECORDING"
	echo "$output"
	[ "$status" -eq 0 ]
	[[ $output == *"run: ended: \$0.0000 of \$0.1000 spent; open calls may cost \$0.0000, and the next one "* ]]
	[ ! -e "$STATE/a/r00000/reply.json" ]
	run km_run a USD=5
	[ "$status" -eq 0 ]
	[ -e "$STATE/a/r00001/world.json" ]
	run km_make status RUN=a
	[[ $output == *" answered of "*" usd, "* ]]
}

@test "a failure is its exit code and its file; the next make goes on" {
	EXEC='echo no >&2; exit 9' run km_run a TASK=sgemm_cpu PROVIDER=exec ROUNDS=1
	echo "$output"
	[ "$status" -eq 4 ]
	[[ $output == *"failed: "*r00000/reply.json* ]]
	[ ! -e "$STATE/a/r00000/reply.json" ]
	EXEC=$ROOT/tests/peer/model.sh run km_run a JUDGE=replay FROM="$RECORDING" PROVIDER=exec
	[ "$status" -eq 0 ]
	[ -e "$STATE/a/r00001/world.json" ]
}

@test "a failure beats waiting" {
	km_run a FROM="$RECORDING" ROUNDS=1
	rm "$STATE"/a/r00001/s?/reply.json
	echo '{' >"$STATE/a/r00001/s1/request.json"
	rm -r "$STATE/a/calls"
	run km_run a PROVIDER=manual
	echo "$output"
	[ "$status" -eq 3 ]
	[[ $output == *"failed: "*s1/reply.json* ]]
	[ -e "$(echo "$STATE"/a/r00001/s0/ask-*.md)" ]
}

@test "a file that cannot be read is exit 3 and nothing is written over it" {
	km_run a FROM="$RECORDING" ROUNDS=1
	echo '{"round":' >"$STATE/a/r00001/world.json"
	run km_run a ROUNDS=2
	[ "$status" -eq 3 ]
	[[ $output == *r00001/world.json* ]]
	[ "$(cat "$STATE/a/r00001/world.json")" = '{"round":' ]
}

@test "make run passes the driver's end on" {
	km_make replay FROM="$RECORDING" RUN=a ROUNDS=1
	run km_make run RUN=a ROUNDS=1
	[ "$status" -eq 0 ]
	[[ ${lines[-1]} == 'best: '* ]]
	run km_make run RUN=a ROUNDS=2 PROVIDER=exec EXEC=false
	[ "$status" -eq 2 ]
}

# ---- settings and the lock ----

@test "two makes on one run: the second is refused" {
	km_run a FROM="$RECORDING" ROUNDS=1
	exec {held}<"$STATE/a"
	flock "$held"
	run km_run a ROUNDS=2
	[ "$status" -eq 1 ]
	[[ $output == *"another make is working on"* ]]
	exec {held}<&-
	run km_run a ROUNDS=2
	[ "$status" -eq 0 ]
}

@test "the lock is held while make runs" {
	EXEC="until [ -e $BATS_TEST_TMPDIR/refused ]; do sleep 0.05; done; $ROOT/tests/peer/model.sh" km_run a TASK=sgemm_cpu PROVIDER=exec ROUNDS=1 JUDGE=replay FROM="$RECORDING" \
		2>"$BATS_TEST_TMPDIR/first" 3>&- &
	local first=$!
	for _ in $(seq 400); do
		[ ! -e "$STATE/a/run.json" ] || break
		sleep 0.05
	done
	run km_run a
	touch "$BATS_TEST_TMPDIR/refused"
	[ "$status" -eq 1 ]
	[[ $output == *"another make is working on"* ]]
	wait "$first"
}

@test "a frozen setting cannot change: exit 2 with both values" {
	km_run a FROM="$RECORDING" ROUNDS=1
	local pair
	for pair in WIDTH=3 K=9 POLICY=paper SEED=77 TASK=rmsnorm_h4096_cpu; do
		run km_run a "$pair"
		[ "$status" -eq 2 ]
		[[ $output == *"${pair%%=*}="*"$pair"* ]]
	done
	run km_run a WIDTH=2 K=2 TASK=sgemm_cpu ROUNDS=1
	[ "$status" -eq 0 ]
}

@test "settings that make no run are exit 2, name the setting and leave nothing behind" {
	local setting
	for setting in WIDTH=0 WIDTH=abc WIDTH=1.5 WIDTH=08 SAMPLES=x K=0 SEED=x EVALS=1e3 ROUNDS=-1 PROVIDER=bogus JUDGE=maybe POLICY=none STRATEGY=none \
		USD=x TARGET=x CODE_TEMPERATURE=hot MAX_TOKENS=0 PROBE=none.json; do
		run km_run a TASK=sgemm_cpu PROVIDER=manual "$setting"
		echo "$setting: $status: $output"
		[ "$status" -eq 2 ]
		[[ $output == *"error: $setting: "* ]]
		[[ $output != *.tmp* ]]
	done
	run km_run a TASK=sgemm_cpu PROVIDER=manual WIDTH=33 SAMPLES=2
	[ "$status" -eq 2 ]
	for setting in TASK=no-such-task FROM=/no-such-folder NOSUCH=1 WIDTH=2; do
		run km_run a "$setting"
		[ "$status" -eq 2 ]
	done
	run km_make compare TASK=no-such-task
	[ "$status" -eq 2 ]
	[ "$(grep -c no-such-task <<<"$output")" -eq 1 ]
	[ ! -e "$STATE" ]
	km_run a FROM="$RECORDING" ROUNDS=1
	sums "$STATE/a" >"$BATS_TEST_TMPDIR/before"
	run km_run a PATIENCE=some
	[ "$status" -eq 2 ]
	[[ $output == *"error: PATIENCE=some: "* ]]
	sums "$STATE/a" | diff "$BATS_TEST_TMPDIR/before" -
}

@test "a recording whose settings are none is refused, and nothing in it is calculated or run" {
	cp -r "$RECORDING" "$BATS_TEST_TMPDIR/other"
	# shellcheck disable=SC2016
	jq '.defaults.rounds = "a[$(touch made)]"' "$RECORDING/run.json" >"$BATS_TEST_TMPDIR/other/run.json"
	run km_run a FROM="$BATS_TEST_TMPDIR/other" JUDGE=real
	[ "$status" -eq 2 ]
	[[ $output == *"error: ROUNDS="* ]]
	[ ! -e "$ROOT/made" ]
	[ ! -e "$STATE/a" ]
}

@test "a provider that could ask nobody is refused before anything is made" {
	local settings
	for settings in "PROVIDER=openai" "PROVIDER=anthropic" "PROVIDER=openai PLAN_MODEL=m" "PROVIDER=openai CODE_MODEL=m" "PROVIDER=exec"; do
		# shellcheck disable=SC2086
		EXEC='' run km_run a TASK=sgemm_cpu $settings
		echo "$settings: $status: $output"
		[ "$status" -eq 2 ]
		[[ $output == *"needs a"*"${settings:+=}"* ]]
		[ ! -e "$STATE" ]
	done
	# Who makes no edits of a tree needs nobody to plan it; there is no server, so it fails later.
	OPENAI_API_KEY=x KM_BASE_URL=http://127.0.0.1:9/v1 run km_make run RUN=a TASK=sgemm_cpu PROVIDER=openai CODE_MODEL=m STRATEGY=greedy TRIES=1
	[[ $output == *"127.0.0.1"* ]]
	km_run b FROM="$RECORDING" ROUNDS=1
	run km_run b PROVIDER=exec ROUNDS=2
	[ "$status" -eq 2 ]
	[ "$(grep -c exec "$STATE/b/calls.tsv")" -eq 0 ]
}

@test "a run keeps the command of provider exec to the letter, another goes before it, and a recording is made without it" {
	# shellcheck disable=SC2089,SC2090 # to the letter
	local EXEC=$'"$PEER" # it\'s\n: $$ "100%"'
	# shellcheck disable=SC2090 # likewise
	export EXEC PEER=$ROOT/tests/peer/model.sh
	km_run a TASK=sgemm_cpu PROVIDER=exec JUDGE=replay FROM="$RECORDING" ROUNDS=1
	[ "$(jq -r .defaults.exec "$STATE/a/run.json")" = "$EXEC" ]
	unset EXEC
	run km_run a ROUNDS=2
	[ "$status" -eq 0 ]
	[ -e "$STATE/a/r00002/world.json" ]
	rm "$STATE/a/r00002/s0/reply.json" "$STATE/a/calls/$(jq -r .id "$STATE/a/r00002/s0/request.json").json"
	km_make RUN=a ROUNDS=2 "$STATE/a/r00002/s0/reply.json"
	[ "$(jq -r .provider "$STATE/a/r00002/s0/reply.json")" = exec ]
	EXEC='echo other >&2; exit 9' run km_run a ROUNDS=3
	[ "$status" -eq 4 ]
	[[ $output == *other* ]]
	km_make record RUN=a TO="$BATS_TEST_TMPDIR/kept"
	[ "$(jq '.defaults | has("exec")' "$BATS_TEST_TMPDIR/kept/run.json")" = false ]
	# A run of earlier times has no such key, and whoever replays runs no command of the recording.
	jq '.defaults.exec = "exit 9"' "$RECORDING/run.json" >"$BATS_TEST_TMPDIR/kept/run.json"
	run km_run b FROM="$BATS_TEST_TMPDIR/kept" PROVIDER=exec
	[ "$status" -eq 2 ]
	[ ! -e "$STATE/b" ]
	jq 'del(.defaults.exec)' "$STATE/a/run.json" >"$BATS_TEST_TMPDIR/old" && mv "$BATS_TEST_TMPDIR/old" "$STATE/a/run.json"
	EXEC='"$PEER"' run km_run a ROUNDS=3
	[ "$status" -eq 0 ]
}

@test "the name of a run is one part of a path" {
	local name goal
	for name in ../x a/b .. .hidden 'a b'; do
		for goal in run status rewind settle 'replay FROM=x' compare; do
			# shellcheck disable=SC2086
			run km_make $goal RUN="$name" TASK=sgemm_cpu PROVIDER=manual TO=0
			[ "$status" -eq 2 ]
			[[ $output == *"no name of a run"* ]]
		done
	done
	[ ! -e "$STATE" ]
}

@test "a variable of make that a search does not know is refused, with the one that was meant" {
	local goal
	for goal in run bench 'replay FROM=x' compare demo; do
		# shellcheck disable=SC2086
		run km_make $goal TASK=sgemm_cpu PROVIDER=manual EVAL=4
		[ "$status" -eq 2 ]
		[[ $output == *"unknown setting 'EVAL'; is it EVALS?"* ]]
	done
	[ ! -e "$STATE" ]
	run km_make help EVAL=4
	[ "$status" -eq 0 ]
	# All that the README, -h and the makefiles offer, and what programs find in their environment.
	run km_make -n run RUN=a TASK=sgemm_cpu WIDTH=1 K=3 SAMPLES=1 STRATEGY=world POLICY=default SEED=1 ROUNDS=1 EVALS=1 PROVIDER=manual MODEL=m JUDGE=real \
		TARGET=1 PATIENCE=1 USD=1 TOKENS=1 SECONDS=1 LIMIT_SECONDS=1 CALLS=1 EFFORT=low PLAN_TEMPERATURE=1 CODE_MAX_TOKENS=9 FINAL=no PACK=x TO=0 \
		EXEC=x TIMEOUT=9 STALL=9 TRIES=1 WHOLE=1 CALL_USD=1 CALL_TOKENS=1 PRICES=tools/prices.tsv MARCH=native PROFILE=1 CHECK_WITH=memcheck STRATEGIES=world \
		V=1 Q= CC=gcc CFLAGS='-O2 -g' WERROR= SANITIZE= T=x JOBS=1 PREFIX=/x DESTDIR=/x BUNDLE=x KM_BASE_URL=x OPENAI_API_KEY=x CUDA_VISIBLE_DEVICES=0
	echo "$output"
	[ "$status" -eq 0 ]
	[[ $output == *r00001/world.json* ]]
}

@test "replays of recordings with one name are runs of their own, and a run stays with its recording" {
	cd "$BATS_TEST_TMPDIR"
	mkdir one two
	cp -r "$RECORDING" one/kept
	cp -r "$RECORDING" two/kept
	jq '.task = "other"' "$RECORDING/run.json" >two/kept/run.json
	km_make replay FROM="$PWD/one/kept" ROUNDS=1
	km_make replay FROM="$PWD/two/kept/" ROUNDS=2
	[ ! -e "$STATE/sgemm_cpu-kept-replay/r00002" ]
	[ -e "$STATE/other-kept-replay/r00002/world.json" ]
	run km_run sgemm_cpu-kept-replay FROM="$PWD/two/kept" ROUNDS=2
	[ "$status" -eq 2 ]
	[[ $output == *one/kept*two/kept* ]]
	ln -s one again
	(cd "$ROOT" && mkdir -p "$STATE" && KM_BIN=$KM tools/run "$STATE/sgemm_cpu-kept-replay" FROM="$BATS_TEST_TMPDIR/again/kept" ROUNDS=1 -- make -k rounds)
	# What was moved is found again: all of it, or the recording alone.
	mkdir elsewhere
	mv state one elsewhere/
	STATE=$PWD/elsewhere/state run km_run sgemm_cpu-kept-replay FROM="$PWD/elsewhere/one/kept" ROUNDS=1
	[ "$status" -eq 0 ]
	mv elsewhere/one/kept moved
	STATE=$PWD/elsewhere/state run km_run sgemm_cpu-kept-replay FROM="$PWD/moved" ROUNDS=1
	[ "$status" -eq 0 ]
	# A search of one's own is not taken for a replay, which would go on with it for money.
	run km_run mine TASK=sgemm_cpu PROVIDER=manual
	run km_run mine FROM="$RECORDING"
	[ "$status" -eq 2 ]
	[[ $output == *"made without a recording"* ]]
}

@test "a run knows the device that judges it by PROBE, and takes no earlier searches of its task along" {
	cd "$BATS_TEST_TMPDIR"
	cp -r "$ROOT/tasks/rmsnorm_h4096" rmsnorm
	mkdir -p rmsnorm/runs/first/calls rmsnorm/best
	echo '{}' >rmsnorm/runs/first/run.json
	echo '{"name": "NVIDIA A100-SXM4-80GB", "major": 8, "minor": 0, "processors": 108, "empty_call_s": 4.4e-6}' >probe.json
	run km_run a TASK="$PWD/rmsnorm" PROVIDER=manual PROBE="$PWD/probe.json"
	[ "$status" -eq 75 ]
	diff -r -x runs -x best rmsnorm "$STATE/a/task"
	[ -e rmsnorm/runs/first/run.json ] && [ -d rmsnorm/best ]
	[ ! -e "$STATE/a/task/runs" ] && [ ! -e "$STATE/a/task/best" ]
	grep -q 'one empty kernel.*: 4.4 us' "$STATE"/a/r00000/ask-*.md
	run km_run b TASK="$PWD/rmsnorm" PROVIDER=manual PROBE="$PWD/none.json"
	[ "$status" -ne 0 ]
	[[ $output == *none.json* ]]
	[ ! -e "$STATE/b/run.json" ]
}

@test "a task that is a link, or holds links, is copied, and what it points to is left alone" {
	cd "$BATS_TEST_TMPDIR"
	cp -r "$ROOT/tasks/sgemm_cpu" real
	mkdir -p real/runs/first real/best
	mv real/README.md elsewhere.md
	ln -s ../elsewhere.md real/README.md
	ln -s real link
	run km_run a TASK="$PWD/link" PROVIDER=manual
	[ "$status" -eq 75 ]
	[ -d real/runs/first ] && [ -d real/best ]
	[ -z "$(find "$STATE/a/task" -type l)" ] && [ -d "$STATE/a/task" ]
	cmp elsewhere.md "$STATE/a/task/README.md"
	[ ! -e "$STATE/a/task/runs" ] && [ ! -e "$STATE/a/task/best" ]
}

@test "a value with quotes and spaces comes to the model as it was given, and nothing of it is run" {
	run km_make run RUN=a TASK=sgemm_cpu PROVIDER=manual MODEL="it's; touch $BATS_TEST_TMPDIR/made"
	[[ $output == *"waiting for 1"* ]]
	[ "$(jq -r .defaults.model "$STATE/a/run.json")" = "it's; touch $BATS_TEST_TMPDIR/made" ]
	[ "$(jq -r .parameters.model "$STATE/a/r00000/request.json")" = "it's; touch $BATS_TEST_TMPDIR/made" ]
	[ ! -e "$BATS_TEST_TMPDIR/made" ]
}

@test "make -n of the demo, a comparison and the tests runs none of them" {
	run km_make -n demo EVALS=7
	[ "$status" -eq 0 ]
	[[ $output == *tools/demo*EVALS=*7* ]]
	run km_make -n compare TASK=sgemm_cpu PROVIDER=manual
	[ "$status" -eq 0 ]
	[[ $output == *tools/compare* ]]
	run km_make -n test T=simulate
	[ "$status" -eq 0 ]
	[[ $output != *passed* ]]
	[ ! -e "$STATE" ]
}

@test "the demo refuses settings that it does not know, and its limit of evaluations holds" {
	cd "$ROOT"
	run tools/demo "$RECORDING" "$STATE" EVAL=3 -- make
	[ "$status" -eq 2 ]
	[[ $output == *"unknown setting 'EVAL=3'"* ]]
	run tools/demo "$RECORDING" "$STATE" EVALS=3
	[ "$status" -eq 2 ]
	[ ! -e "$STATE/demo" ]
	run tools/demo "$RECORDING" "$STATE" EVALS=1 -- make
	[ "$status" -eq 0 ]
	[[ $output == *"ended: 1 of 1 evaluations"* ]]
	[ "$(jq .evaluations "$STATE"/demo/r00001/world.json)" -eq 1 ]
}

@test "a run whose making was cut off starts afresh" {
	km_run a FROM="$RECORDING" ROUNDS=1
	sums "$STATE/a" >"$BATS_TEST_TMPDIR/whole"
	rm -rf "$STATE/a"
	mkdir -p "$STATE/a/task" "$STATE/a/.copy.tmp"
	echo half >"$STATE/a/task/task.json"
	run km_run a FROM="$RECORDING" ROUNDS=1
	[ "$status" -eq 0 ]
	sums "$STATE/a" | diff "$BATS_TEST_TMPDIR/whole" -
}

@test "make -n lists the steps and changes nothing, with and without a run" {
	run km_make -n run RUN=new TASK=sgemm_cpu ROUNDS=2
	[ "$status" -eq 0 ]
	[[ $output == *r00002/world.json* ]]
	[ ! -e "$STATE/new" ]
	km_run a FROM="$RECORDING" ROUNDS=1
	times "$STATE/a" >"$BATS_TEST_TMPDIR/before"
	run km_make -n run RUN=a ROUNDS=2
	[ "$status" -eq 0 ]
	[[ $output == *r00002/s1/reply.json* ]]
	[[ $output != *"-o $STATE/a/r00001/"* ]]
	times "$STATE/a" | diff "$BATS_TEST_TMPDIR/before" -
}

# ---- what is remade ----

# The targets that make -n names, one a line.
named() {
	km_make -n run RUN=a ROUNDS=3 | sed -n "s|.* -o \\($STATE/[^ ]*\\).*|\\1|p" | sort
}

# What follows from file $1 of slot $2 in round $3, itself included: the table of the design, by hand.
follows() {
	local round=$STATE/a/$3 file order slot
	order=(request.json reply.json candidate.json kernel.c build.json bench.json)
	case $1 in
	plan.json)
		echo "$round/plan.json"
		for slot in s0 s1; do printf '%s\n' "${order[@]/#/$round/$slot/}"; done
		;;
	world.json)
		echo "$round/world.json"
		return
		;;
	edit-request.json) printf '%s\n' "$round/$2/edit-request.json" "$round/$2/edit-reply.json" ;;
	edit-reply.json) echo "$round/$2/edit-reply.json" ;;
	*)
		for file in "${order[@]}"; do
			[ "$file" != "$1" ] || break
			order=("${order[@]:1}")
		done
		printf '%s\n' "${order[@]/#/$round/$2/}"
		;;
	esac
	case $1 in
	edit-*) ;;
	*) for slot in s0 s1; do printf '%s\n' "$round/$slot/edit-request.json" "$round/$slot/edit-reply.json"; done ;;
	esac
	echo "$round/world.json"
}

@test "every file of a round, removed in turn: make -n names it and what follows in the round, make restores it" {
	km_run a FROM="$RECORDING" ROUNDS=3
	[ "$(named)" = "" ]
	sums "$STATE/a" >"$BATS_TEST_TMPDIR/before"
	local path file slot
	for path in plan.json world.json s{0,1}/{request,reply,candidate,build,bench,edit-request,edit-reply}.json s{0,1}/kernel.c; do
		file=${path##*/}
		slot=${path%/*}
		rm "$STATE/a/r00002/$path"
		diff <(follows "$file" "$slot" r00002 | sort) <(named)
		km_run a >"$BATS_TEST_TMPDIR/log" 2>&1
		sums "$STATE/a" | diff "$BATS_TEST_TMPDIR/before" -
		[ "$(named)" = "" ]
	done
}

@test "the files of the first round are restored as well" {
	km_run a FROM="$RECORDING" ROUNDS=2
	sums "$STATE/a" >"$BATS_TEST_TMPDIR/before"
	local file
	for file in request reply world; do
		rm "$STATE/a/r00000/$file.json"
		run km_make -n run RUN=a ROUNDS=2
		[[ $output == *"r00000/$file.json"* ]]
		[[ $output != *"-o $STATE/a/r00001"* ]]
		km_run a
		sums "$STATE/a" | diff "$BATS_TEST_TMPDIR/before" -
	done
}

@test "a hand-edited kernel is judged, and only its round changes" {
	km_run a FROM="$RECORDING" ROUNDS=3
	times "$STATE/a" >"$BATS_TEST_TMPDIR/before"
	echo '/* by hand */' >>"$STATE/a/r00002/s1/kernel.c"
	run km_run a
	[ "$status" -eq 0 ]
	[ "$(tail -n 1 "$STATE/a/r00002/s1/kernel.c")" = '/* by hand */' ]
	[ "$(jq .edited "$STATE/a/r00002/s1/build.json")" = true ]
	comm -13 "$BATS_TEST_TMPDIR/before" <(times "$STATE/a") | sed 's/ .*//' | grep -v 'calls' >"$BATS_TEST_TMPDIR/changed"
	grep -q './r00002/s1/bench.json' "$BATS_TEST_TMPDIR/changed"
	run grep -v '^./r00002/' "$BATS_TEST_TMPDIR/changed"
	[ "$output" = "" ]
}

@test "removing every verdict judges the whole run anew and asks nothing" {
	km_run a FROM="$RECORDING" ROUNDS=3
	cp "$STATE/a/calls.tsv" "$BATS_TEST_TMPDIR/calls"
	sums "$STATE/a" >"$BATS_TEST_TMPDIR/before"
	rm "$STATE"/a/r*/s*/bench.json
	run km_run a
	[ "$status" -eq 0 ]
	cmp "$STATE/a/calls.tsv" "$BATS_TEST_TMPDIR/calls"
	sums "$STATE/a" | diff "$BATS_TEST_TMPDIR/before" -
}

@test "a lost library is compiled again where its verdict is missing, and only there" {
	km_run a FROM="$RECORDING" ROUNDS=2
	local slot=$STATE/a/r00001/s0
	sed -i 's/"library": null/"library": "kernel.so"/' "$slot/build.json"
	km_make settle RUN=a
	run km_make -n run RUN=a ROUNDS=2
	[[ $output != *build.json* ]]
	rm "$slot/bench.json"
	run km_make -n run RUN=a ROUNDS=2
	[[ $output == *"-o $slot/build.json"* ]]
	[[ $output == *"-o $slot/bench.json"* ]]
	[[ $output != *"/s1/build.json"* || $output != *"-o $STATE/a/r00001/s1/build.json"* ]]
	touch "$slot/kernel.so"
	run km_make -n run RUN=a ROUNDS=2
	[[ $output != *"-o $slot/build.json"* ]]
}

# ---- copies ----

# Run b, a copy of run a, is finished: nothing is made and nobody asked, even by a provider that would fail.
assert_finished() {
	cp "$STATE/b/calls.tsv" "$BATS_TEST_TMPDIR/calls"
	sums "$STATE/b" >"$BATS_TEST_TMPDIR/before"
	EXEC=false run km_run b PROVIDER=exec ROUNDS=2
	[ "$status" -eq 0 ]
	cmp "$STATE/b/calls.tsv" "$BATS_TEST_TMPDIR/calls"
	sums "$STATE/b" | diff "$BATS_TEST_TMPDIR/before" -
}

@test "a run copied by tar asks nothing" {
	km_run a FROM="$RECORDING" ROUNDS=2
	mkdir "$STATE/b"
	tar -C "$STATE/a" -cf - . | tar -C "$STATE/b" -xf -
	assert_finished
}

@test "a run copied by rsync -a asks nothing" {
	command -v rsync >/dev/null || skip "rsync is not installed"
	km_run a FROM="$RECORDING" ROUNDS=2
	rsync -a "$STATE/a/" "$STATE/b/"
	assert_finished
}

@test "a run copied by git clone and settled asks nothing" {
	command -v git >/dev/null || skip "git is not installed"
	km_run a FROM="$RECORDING" ROUNDS=2
	git -C "$STATE/a" init -q
	git -C "$STATE/a" add -A
	git -C "$STATE/a" -c user.name=t -c user.email=t@t commit -q -m run
	git clone -q "$STATE/a" "$STATE/b"
	rm -rf "$STATE/b/.git"
	# Any order of times must be healed.
	find "$STATE/b" -name 'plan.json' -exec touch {} +
	km_make settle RUN=b
	assert_finished
}

# ---- the other targets ----

@test "status counts calls and names rounds planned from an older world; rewind drops them and keeps replies" {
	km_run a FROM="$RECORDING" ROUNDS=3
	run km_make status RUN=a
	[ "$status" -eq 0 ]
	[[ $output == *calls* ]]
	[[ $output != *stale* ]]
	jq '.summary = "edited"' "$STATE/a/r00001/world.json" >"$BATS_TEST_TMPDIR/w"
	cp "$BATS_TEST_TMPDIR/w" "$STATE/a/r00001/world.json"
	run km_make status RUN=a
	[[ $output == *stale*r00002* ]]
	[[ $output == *TO=1* ]]
	local calls
	calls=$(ls "$STATE/a/calls")
	km_make rewind RUN=a TO=1
	[ ! -e "$STATE/a/r00002" ]
	[ -e "$STATE/a/r00001/world.json" ]
	[ "$(ls "$STATE/a/calls")" = "$calls" ]
}

@test "a rewind that is killed leaves a shorter run without a hole" {
	km_run a FROM="$RECORDING" ROUNDS=4
	mkdir "$BATS_TEST_TMPDIR/path"
	printf '#!/bin/sh\n/bin/rm "$@"\nkill -9 $PPID\n' >"$BATS_TEST_TMPDIR/path/rm"
	chmod +x "$BATS_TEST_TMPDIR/path/rm"
	PATH=$BATS_TEST_TMPDIR/path:$PATH run "$ROOT/tools/keep" rewind "$STATE/a" 1
	[ "$status" -ne 0 ]
	[ "$(cd "$STATE/a" && echo r?????)" = "r00000 r00001 r00002 r00003" ]
}

@test "make best waits for nobody: while another works on the run it is refused" {
	km_run a FROM="$RECORDING" ROUNDS=1 FINAL=no
	exec {lock}<"$STATE/a"
	flock -n "$lock"
	run km_make best RUN=a
	exec {lock}<&-
	[ "$status" -ne 0 ]
	[[ $output == *"another make is working on"* ]]
	[ ! -e "$STATE/a/best" ]
}

@test "bench judges what has no verdict and nothing else, and packs it" {
	km_run a FROM="$RECORDING" ROUNDS=2
	rm "$STATE"/a/r00002/s?/bench.json "$STATE/a/r00002/s1/reply.json"
	times "$STATE/a" >"$BATS_TEST_TMPDIR/before"
	km_make bench RUN=a PACK="$BATS_TEST_TMPDIR/new.tar"
	comm -13 "$BATS_TEST_TMPDIR/before" <(times "$STATE/a") | sed 's/ .*//' >"$BATS_TEST_TMPDIR/changed"
	printf './r00002/s%d/bench.json\n' 0 1 | diff - "$BATS_TEST_TMPDIR/changed"
	tar -tf "$BATS_TEST_TMPDIR/new.tar" | grep -q 'r00002/s0/bench.json'
	run tar -tf "$BATS_TEST_TMPDIR/new.tar"
	[[ $output != *r00001* ]]
	rm "$STATE/a/r00002/s0/bench.json" "$STATE/a/r00002/s0/build.json" "$BATS_TEST_TMPDIR/new.tar"
	local PROGRAM_FOLDER=$BATS_TEST_TMPDIR/bin
	fake_judge "$PROGRAM_FOLDER"
	printf '#!/bin/sh\necho no compiler here >&2\nexit 1\n' >"$PROGRAM_FOLDER/km-compile"
	run km_make bench RUN=a PACK="$BATS_TEST_TMPDIR/new.tar"
	echo "$output"
	[ "$status" -ne 0 ]
	[[ $output == *"no compiler here"*failed:*build.json* ]]
	[ ! -e "$BATS_TEST_TMPDIR/new.tar" ]
}

@test "make -j3 bench judges three at a time, more than a round is wide" {
	km_run a FROM="$RECORDING" ROUNDS=2
	rm "$STATE"/a/r0000[12]/s?/bench.json
	local PROGRAM_FOLDER=$BATS_TEST_TMPDIR/bin
	fake_judge "$PROGRAM_FOLDER"
	# Each judgement ends only when three have started.
	cat >"$PROGRAM_FOLDER/km-bench" <<-END
		#!/bin/bash
		touch "$BATS_TEST_TMPDIR/started.\$\$"
		for _ in \$(seq 200); do
			started=("$BATS_TEST_TMPDIR"/started.*)
			[ \${#started[@]} -lt 3 ] || exec "$KM/km-bench" "\$@"
			sleep 0.05
		done
		exit 1
	END
	run km_make -j3 bench RUN=a
	echo "$output"
	[ "$status" -eq 0 ]
	[ "$(ls "$STATE"/a/r0000[12]/s?/bench.json | wc -l)" -eq 4 ]
}

@test "a recording of a replay is the recording" {
	km_run a FROM="$RECORDING" ROUNDS=8
	km_make record RUN=a TO="$BATS_TEST_TMPDIR/again"
	diff <(cd "$RECORDING" && ls -R) <(cd "$BATS_TEST_TMPDIR/again" && ls -R)
	run km_make record RUN=a TO="$BATS_TEST_TMPDIR/again"
	[ "$status" -ne 0 ]
	# What is not ours to overwrite, and what a recording cannot do without.
	mkdir "$BATS_TEST_TMPDIR/new.tmp"
	touch "$BATS_TEST_TMPDIR/new.tmp/mine"
	run km_make record RUN=a TO="$BATS_TEST_TMPDIR/new"
	[ "$status" -ne 0 ]
	[ -e "$BATS_TEST_TMPDIR/new.tmp/mine" ]
	rm -r "$BATS_TEST_TMPDIR/new.tmp"
	rm "$STATE/a/calls/$(jq -r '.tries[0]' "$STATE/a/r00002/s0/reply.json").json"
	run km_make record RUN=a TO="$BATS_TEST_TMPDIR/new"
	[ "$status" -ne 0 ]
	[[ $output == *"reply is missing"*calls/* ]]
	! compgen -G "$BATS_TEST_TMPDIR/new" && ! compgen -G "$BATS_TEST_TMPDIR/new.tmp*"
}

@test "every file of a run passes the schema of its kind" {
	km_run a FROM="$RECORDING" ROUNDS=8
	cd "$STATE/a"
	"$KM/km-validate" run run.json
	"$KM/km-validate" world r*/world.json
	"$KM/km-validate" plan r*/plan.json
	"$KM/km-validate" request r*/request.json r*/s*/{request,edit-request}.json
	"$KM/km-validate" reply r*/reply.json r*/s*/{reply,edit-reply}.json
	"$KM/km-validate" candidate r*/s*/candidate.json
	"$KM/km-validate" build r*/s*/build.json
	"$KM/km-validate" bench r*/s*/bench.json
	"$KM/km-validate" call calls/*.json
	"$KM/km-validate" verdict "$RECORDING"/verdicts/*.json
}

@test "the model calls of a round run side by side" {
	km_run a FROM="$RECORDING" ROUNDS=1
	rm -r "$STATE/a/calls" "$STATE"/a/r00001/s?/reply.json
	: >"$STATE/a/calls.tsv"
	# Each call ends only when both have started.
	cat >"$BATS_TEST_TMPDIR/model" <<-END
		#!/bin/bash
		touch "$BATS_TEST_TMPDIR/started.\$\$"
		for _ in \$(seq 200); do
			set -- "$BATS_TEST_TMPDIR"/started.*
			[ \$# -lt 2 ] || exec "$ROOT/tests/peer/model.sh"
			sleep 0.05
		done
		exit 1
	END
	chmod +x "$BATS_TEST_TMPDIR/model"
	EXEC=$BATS_TEST_TMPDIR/model run km_run a PROVIDER=exec
	echo "$output"
	[ "$status" -eq 0 ]
	[ "$(head -n 2 "$STATE/a/calls.tsv" | grep -c '^start')" -eq 2 ]
}
