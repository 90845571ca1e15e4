#!/usr/bin/env bats
# km-llm: what is stored when, checks, limits, and the providers that need no network (those that do: service.bats).

load helpers

setup() {
	cd "$BATS_TEST_TMPDIR" || return
	unset KM_BASE_URL KM_API_KEY OPENAI_API_KEY ANTHROPIC_API_KEY KM_EXEC KM_PRICE http_proxy HTTP_PROXY all_proxy ALL_PROXY
	mkdir run
	request code/tile.0a1b/1 > request.json
}

# A request with cue $1; model $2.
request() {
	local body id
	body=$(jq -cn --arg cue "$1" --arg model "${2-test-model}" '{messages: [{role: "system", content: "Be brief."},
		{role: "user", content: "Say \"hi\"."}], parameters: {model: $model, max_tokens: 50}, cue: $cue}')
	id=$(printf %s "$body" | sha256sum | cut -d' ' -f1)
	jq -c --arg id "$id" '{id: $id, cue, messages, parameters}' <<<"$body"
}

id_of() { jq -r .id "$1"; }

llm() { "$KM/km-llm" --run run -o reply.json "$@" request.json; }

count() { grep -c "^$1" run/calls.tsv || true; }

@test "help, version and misuse" {
	run "$KM/km-llm" -h
	[ "$status" -eq 0 ]
	[[ $output == "Usage: km-llm "* ]]
	run "$KM/km-llm" -V
	[ "$status" -eq 0 ]
	run "$KM/km-llm" request.json
	[ "$status" -eq 2 ]
	run "$KM/km-llm" --provider oracle request.json
	[ "$status" -eq 2 ]
	[[ $output == *"unknown provider 'oracle'"* ]]
	run "$KM/km-llm" --provider exec
	[ "$status" -eq 2 ]
	run "$KM/km-llm" --provider exec request.json
	[ "$status" -eq 2 ]
	[[ $output == *--exec* ]]
}

@test "openai: no server, no key, no model" {
	export KM_BASE_URL=ftp://127.0.0.1/
	run llm --provider openai
	[ "$status" -eq 2 ]
	unset KM_BASE_URL
	run llm --provider openai
	[ "$status" -eq 1 ]
	[[ $output == *OPENAI_API_KEY* ]]
	run llm --provider anthropic
	[ "$status" -eq 1 ]
	[[ $output == *ANTHROPIC_API_KEY* ]]
	request code/tile.0a1b/1 "" > request.json
	run llm --provider openai
	[ "$status" -eq 2 ]
}

@test "exec: the prompt on stdin, an empty folder, no descriptors, no key of ours" {
	export KM_API_KEY=sk-secret-0123456789
	# shellcheck disable=SC2016
	llm --provider exec --exec 'cat; echo; ls -A | wc -l; echo "${KM_API_KEY-none}"; ls /proc/self/fd | wc -l' 5< request.json
	[ "$(jq -r .text reply.json)" = "$(printf 'Be brief.\n\nSay "hi".\n\n0\nnone\n4')" ]
	[ "$(jq -r .provider reply.json)" = exec ]
}

@test "exec: the request as a file too, and the reply as a file if there is one" {
	# shellcheck disable=SC2016
	llm --provider exec --exec 'cat > in; cmp in "$KM_REQUEST" && jq -r .id "$KM_REQUEST_JSON" > "$KM_REPLY"; echo "$KM_CUE" >> "$KM_REPLY"; echo chatter'
	[ "$(jq -r .text reply.json)" = "$(id_of request.json)"$'\n'code/tile.0a1b/1 ]
	request code/tile.0a1b/2 > request.json
	# shellcheck disable=SC2016
	llm --provider exec --exec ': > "$KM_REPLY"; echo printed; dirname "$KM_REPLY" > '"$PWD/where"
	[ "$(jq -r .text reply.json)" = printed ]
	[ ! -e "$(cat where)" ]
	request code/tile.0a1b/3 > request.json
	# shellcheck disable=SC2016
	run llm --provider exec --exec 'head -c 17000000 /dev/zero > "$KM_REPLY"'
	[ "$status" -eq 4 ]
	[[ $output == *"a reply that cannot be taken"* ]]
}

@test "where the reply cannot be written nobody is asked" {
	run "$KM/km-llm" --run run -o none/reply.json --provider exec --exec 'echo hi' request.json
	[ "$status" -eq 1 ]
	[[ $output == *"none/reply.json"*"No such file"* ]]
	[ ! -e run/calls.tsv ]
}

@test "exec: a command that fails is exit 4 with its words, and the run goes on" {
	run llm --provider exec --exec 'echo out; echo no luck >&2; exit 7'
	[ "$status" -eq 4 ]
	[[ $output == *"exit status 7"*"no luck"* ]]
	[ ! -e reply.json ]
	run llm --provider exec --exec 'sleep 20' --timeout 0.3
	[ "$status" -eq 4 ]
	KM_EXEC='echo yes' llm --provider exec
	[ "$(jq -r .text reply.json)" = yes ]
	[ "$(count start)" -eq 3 ]
	[ "$(count end)" -eq 1 ]
}

@test "exec: bytes that are no text become text" {
	llm --provider exec --exec "printf 'a\\377b\\000c\\r\\n'"
	[ "$(jq -r .text reply.json)" = $'a\xef\xbf\xbdbc' ]
}

@test "a reply that is there is only renewed; a stored call is used; the end line is added once" {
	llm --provider exec --exec 'echo first'
	inode=$(stat -c %i reply.json)
	touch -d '2001-01-01' reply.json
	llm --provider exec --exec 'exit 9'
	[ "$(stat -c %i reply.json)" = "$inode" ]
	[ reply.json -nt run/calls.tsv ]
	cp reply.json first.json
	rm reply.json
	llm --provider exec --exec 'exit 9'
	cmp first.json reply.json
	rm reply.json
	sed -i '/^end/d' run/calls.tsv
	printf 'end\ttorn' >> run/calls.tsv
	llm --provider exec --exec 'exit 9'
	llm --provider exec --exec 'exit 9'
	cmp first.json reply.json
	[ "$(count start)" -eq 1 ]
	[ "$(grep -c "^end.$(id_of request.json)" run/calls.tsv)" -eq 1 ]
}

@test "another question gets another answer" {
	llm --provider exec --exec 'echo first'
	request code/tile.0a1b/2 > request.json
	llm --provider exec --exec 'echo second'
	[ "$(jq -r .text reply.json)" = second ]
	[ "$(find run/calls -name '[!.]*.json' | wc -l)" -eq 2 ]
	jq '.messages[1].content = "Say something else."' request.json > edited.json
	mv edited.json request.json
	run llm --provider exec --exec 'echo third'
	[ "$status" -eq 0 ]
	[[ $output == *"was edited"* ]]
	[ "$(jq -r .text reply.json)" = third ]
}

# The processes of the file pids are gone, or will be in a moment; a zombie is one for want of an init that reaps.
gone() {
	local pid
	[ -s pids ] || return
	for pid in $(cat pids); do
		for _ in $(seq 200); do
			[[ $(ps -o stat= -p "$pid") == [!Z]* ]] || continue 2
			sleep 0.05
		done
		ps -f -p "$pid"
		return 1
	done
	rm pids
}

@test "exec: a signal that ends km-llm ends the command and all that it started, and removes its folder" {
	# shellcheck disable=SC2016
	command='sleep 1000 & echo $! $$ > FOLDER/pids; kill -s SIGNAL $PPID; wait; echo late'
	command=${command/FOLDER/$PWD}
	for signal in INT TERM HUP; do
		run env --default-signal="$signal" "$KM/km-llm" --provider exec --run run --exec "${command/SIGNAL/$signal}" -o reply.json request.json
		[ "$status" -eq $((128 + $(kill -l "$signal"))) ]
		gone
		[ -z "$(ls -A "$TMPDIR")" ]
		[ ! -e reply.json ]
	done
	# What is ignored, as SIGHUP under nohup, ends nothing.
	run env --ignore-signal=HUP "$KM/km-llm" --provider exec --run run --exec 'kill -s HUP $PPID; echo answer' -o reply.json request.json
	[ "$status" -eq 0 ]
	[ "$(jq -r .text reply.json)" = answer ]
	[ "$(count start)" -eq 4 ]
	[ "$(count end)" -eq 1 ]
}

@test "exec: an interrupt of make run ends the command, and the next make asks again" {
	export EXEC
	# shellcheck disable=SC2016
	EXEC='sleep 1000 & echo $! $$ > FOLDER/pids; kill -s INT -- "-$(ps -o pgid= -p $PPID | tr -d " ")"; wait; echo late'
	EXEC=${EXEC/FOLDER/$PWD}
	run env --default-signal=INT setsid -w make -C "$ROOT" --no-print-directory STATE="$STATE" run TASK=sgemm_cpu RUN=a PROVIDER=exec ROUNDS=1
	[ "$status" -ne 0 ]
	gone
	[ -z "$(ls -A "$TMPDIR")" ]
	[ "$(cut -f 1 "$STATE/a/calls.tsv")" = start ]
	EXEC=$ROOT/tests/peer/model.sh km_make run RUN=a
	[ "$(head -n 3 "$STATE/a/calls.tsv" | cut -f 1)" = $'start\nstart\nend' ]
}

@test "a kill in flight asks again, with a second start line" {
	# shellcheck disable=SC2016
	run setsid -w "$KM/km-llm" --provider exec --run run --exec "echo \$\$ > $PWD/pids; kill -9 \$PPID; sleep 1000; :" -o reply.json request.json
	[ "$status" -eq 137 ]
	[ ! -e reply.json ]
	gone
	[ "$(count start)" -eq 1 ]
	llm --provider exec --exec 'echo answer'
	[ "$(jq -r .text reply.json)" = answer ]
	[ "$(count start)" -eq 2 ]
	[ "$(count end)" -eq 1 ]
}

@test "a kill at any write loses no stored reply and pays none twice" {
	preload=$PEERS/kill.so
	[ -e "$preload" ] || { preload=$BATS_TEST_TMPDIR/kill.so && gcc -std=gnu11 -D_GNU_SOURCE -shared -fPIC -o "$preload" "$ROOT/tests/preload/kill.c" -ldl; }
	# shellcheck disable=SC2016
	command='n=$(cat COUNT 2>/dev/null || echo 0); echo $((n + 1)) > COUNT; echo "answer $n"'
	command=${command//COUNT/$BATS_TEST_TMPDIR/asked}
	for at in $(seq 1 40); do
		rm -rf run reply.json asked
		mkdir run
		head -c 8 /dev/zero > counter
		ASAN_OPTIONS=verify_asan_link_order=0 KILL_COUNTER=$PWD/counter KILL_AT=$at LD_PRELOAD=$preload setsid -w "$KM/km-llm" --provider exec --run run \
			--exec "unset LD_PRELOAD; $command" --check 'unset LD_PRELOAD; grep -q answer' -o reply.json request.json || true
		stored=$(find run/calls -name '[!.]*.json' 2>/dev/null | wc -l)
		before=$(cat asked 2>/dev/null || echo 0)
		[ ! -e reply.json ] || finished=$((${finished:-0} + 1))
		llm --provider exec --exec "$command" --check 'grep -q answer'
		asked=$(cat asked)
		[ "$stored" -eq 0 ] || [ "$asked" -eq "$before" ]
		[ "$asked" -le 2 ]
		[ "$(grep -c "^end.$(id_of request.json)" run/calls.tsv)" -eq 1 ]
		[ "$(grep -c "^start.$(id_of request.json)" run/calls.tsv)" -le 2 ]
		[ "$(jq -r .text "run/calls/$(id_of request.json).json")" = "$(jq -r .text reply.json)" ]
		[ -z "$(find . -name '.*.tmp')" ]
		[ "${finished:-0}" -lt 3 ] || break
	done
	[ "$at" -gt 5 ]
	[ "$finished" -eq 3 ]
}

@test "manual: waits with 75, takes the answer of this question only, leaves nothing over" {
	id=$(id_of request.json)
	run llm --provider manual
	[ "$status" -eq 75 ]
	[[ $output == *"answer-${id:0:8}.md"* ]]
	[ "$(cat "ask-${id:0:8}.md")" = "$(printf 'Be brief.\n\nSay "hi".')" ]
	[ ! -e run/calls.tsv ]
	echo other > answer-00000000.md
	: > "answer-${id:0:8}.md"
	run llm --provider manual
	[ "$status" -eq 75 ]
	printf 'by hand\n' > new && mv new "answer-${id:0:8}.md"
	llm --provider manual
	[ "$(jq -r .text reply.json)" = "by hand" ]
	[ "$(jq -r .text "run/calls/$id.json")" = "by hand" ]
	[ "$(count start)" -eq 1 ]
	[ "$(count end)" -eq 1 ]
	[ -e answer-00000000.md ]
	[ "$(ls -d ask-* answer-* 2>/dev/null)" = answer-00000000.md ]
}

@test "manual: files left by a kill after storing are cleared; another text is not thrown away" {
	id=$(id_of request.json)
	echo "by hand" > "answer-${id:0:8}.md"
	llm --provider manual
	echo "ask" > "ask-${id:0:8}.md"
	echo "by hand" > "answer-${id:0:8}.md"
	llm --provider manual
	[ -z "$(ls -d ask-* answer-* 2>/dev/null)" ]
	echo "a second thought" > "answer-${id:0:8}.md"
	llm --provider manual
	[ "$(jq -r .text reply.json)" = "by hand" ]
	[ "$(cat "answer-${id:0:8}.md")" = "a second thought" ]
}

@test "check: the complaint becomes the next message, and every try is kept" {
	cat > model.sh <<-'END'
		prompt=$(cat)
		case $prompt in
		*"you said two"*) echo three ;;
		*"you said one"*) echo two ;;
		*) echo one ;;
		esac
	END
	# shellcheck disable=SC2016
	llm --provider exec --exec "sh $PWD/model.sh" --check 'read x; [ $x = three ] || { echo "you said $x" >&2; exit 6; }'
	[ "$(jq -r .status reply.json)" = answered ]
	[ "$(jq -r .text reply.json)" = three ]
	[ "$(jq '.tries | length' reply.json)" -eq 3 ]
	[ "$(jq -r '.tries[0]' reply.json)" = "$(id_of request.json)" ]
	[ "$(jq -r .id reply.json)" = "$(id_of request.json)" ]
	third=run/calls/$(jq -r '.tries[2]' reply.json).json
	[ "$(jq -r .request.cue "$third")" = "code/tile.0a1b/1~2" ]
	[ "$(jq -c '[.request.messages[].role]' "$third")" = '["system","user","assistant","user","assistant","user"]' ]
	[ "$(jq -r '.request.messages[4].content' "$third")" = two ]
	[[ $(jq -r '.request.messages[5].content' "$third") == *"you said two"* ]]
	[ "$(jq .tokens_out reply.json)" -eq "$(jq -s 'map(.tokens_out) | add' run/calls/*.json)" ]
	[ "$(count end)" -eq 3 ]
	"$KM/km-validate" reply reply.json
}

@test "check: a conversation that was cut is taken up where it was" {
	run llm --provider exec --exec 'grep -q complaint && exit 9; echo one' --check 'echo complaint >&2; exit 6'
	[ "$status" -eq 4 ]
	[ ! -e reply.json ]
	run llm --provider exec --exec 'grep -q complaint || exit 9; echo again' --check 'echo complaint >&2; exit 6'
	[ "$status" -eq 0 ]
	[ "$(jq -r .status reply.json)" = unreadable ]
	[ "$(jq -r .reason reply.json)" = complaint ]
	[ "$(jq '.tries | length' reply.json)" -eq 3 ]
	[ "$(count end)" -eq 3 ]
	run llm --provider exec --exec 'exit 9' --check 'exit 9'
	[ "$status" -eq 0 ]
}

@test "check: a check that fails itself asks nobody, shows what it said, and is made again" {
	for check in 'echo no disk >&2; exit 1' 'exit 3' 'grep -q two' no-such-program-here 'kill -9 $$'; do
		run llm --provider exec --exec 'echo one' --check "$check"
		echo "$check: $status $output"
		[ "$status" -eq 1 ]
		[[ $output == *"cannot check the reply with '$check' ("* ]]
		[ ! -e reply.json ]
		[ "$(count start)" -eq 1 ]
	done
	run llm --provider exec --exec 'exit 9' --check 'echo no disk >&2; exit 1'
	[[ $output == *"(exit status 1): no disk" ]]
	llm --provider exec --exec 'exit 9' --check 'true'
	[ "$(jq -r .text reply.json)" = one ]
}

@test "check: changes to a kernel that is not there are no mistake of the model" {
	mkdir -p r00001/s0 r00002
	echo 'int km_run(void);' > r00001/s0/kernel.c
	jq '.slots = [{slot: 0, node: "x.0000", mode: "improve", attempt: 2, cycle: 1, cycle_attempt: 2, parent: null, why: "",
		base: {node: "x.0000", attempt: 1, kernel: "../r00001/s0/kernel.c", build: "../r00001/s0/build.json", bench: "../r00001/s0/bench.json"}}]' \
		"$ROOT/tests/golden/state/plan.json" > r00002/plan.json
	# shellcheck disable=SC2016
	model='printf "<<<<<<< SEARCH\nint x;\n=======\nint y;\n>>>>>>> REPLACE\n"; echo >> ASKED'
	model=${model/ASKED/$PWD/asked}
	mv r00001/s0/kernel.c r00001/s0/away.c
	run llm --provider exec --exec "$model" --check "'$KM/km-instantiate' check --plan r00002/plan.json --slot 0"
	[ "$status" -eq 1 ]
	[[ $output == *"cannot open '"*"kernel.c'"* ]]
	[ ! -e reply.json ]
	[ "$(wc -l < asked)" -eq 1 ]
	# With the kernel back the same reply is checked, and now it is the model that is told.
	mv r00001/s0/away.c r00001/s0/kernel.c
	llm --provider exec --exec "$model" --check "'$KM/km-instantiate' check --plan r00002/plan.json --slot 0" --again 1
	[ "$(jq -r .status reply.json)" = unreadable ]
	[[ $(jq -r .reason reply.json) == *"does not fit: the line 'int x;' is not in the kernel"* ]]
	[ "$(wc -l < asked)" -eq 2 ]
	run grep -F "$PWD" run/calls/*.json
	[ "$status" -eq 1 ]
}

@test "limits are looked at before each call, by what is spent and what is open" {
	export KM_PRICE=1000,1000
	llm --provider exec --exec 'echo one' --usd 1 --calls 1
	printf 'start\t%064d\tcode/x/1\texec\tm\t100\t900\t1.000000\t0\n' 5 >> run/calls.tsv
	request code/tile.0a1b/2 > request.json
	rm reply.json
	for limit in '--calls 2' '--usd 1.05' '--tokens 1060' '--seconds 0' '--call-usd 0.05' '--call-tokens 50'; do
		# shellcheck disable=SC2086
		run llm --provider exec --exec 'echo two' $limit
		echo "$limit: $status $output"
		[ "$status" -eq 5 ]
		[[ $output == "km-llm: ended: "* ]]
		[ ! -e reply.json ]
	done
	[ "$(count start)" -eq 2 ]
	run llm --provider exec --exec 'echo two' --usd 1.05
	[[ $output == 'km-llm: ended: $0.0'*' of $1.0500 spent; open calls may cost $1.0000, and the next one $0.0'* ]]
	# An answer on file needs no room, nor does a person's.
	cp request.json second.json
	request code/tile.0a1b/1 > request.json
	llm --provider exec --exec 'exit 9' --usd 0
	cp second.json request.json
	echo "by hand" > "answer-$(id_of request.json | head -c 8).md"
	rm reply.json
	llm --provider manual --usd 0 --calls 0
	[ "$(jq -r .text reply.json)" = "by hand" ]
}

@test "limits hold among calls at the same time" {
	local i
	# Each call ends only when two were refused.
	local command='for _ in $(seq 400); do [ "$(cat statuses | wc -l)" -lt 2 ] || break; sleep 0.05; done; echo hi'
	command=${command/statuses/"$PWD/statuses"}
	export KM_PRICE=1000,1000
	: > statuses
	for i in 1 2 3 4 5 6; do request "code/tile.0a1b/$i" > "request$i.json"; done
	# Each may cost $0.058: four of them fit.
	for i in 1 2 3 4 5 6; do
		"$KM/km-llm" --provider exec --exec "$command" --run run --usd 0.24 -o "reply$i.json" "request$i.json" 3>&- || echo "$?" >> statuses &
	done
	wait
	[ "$(sort -u statuses)" = 5 ]
	[ "$(wc -l < statuses)" -eq 2 ]
	[ "$(count start) $(count end)" = "4 4" ]
}

@test "prices: the exact name, the longest beginning, KM_PRICE before both, and no limit in dollars without one" {
	printf '# model\tin\tout\n\ntest-*\t1000\t1000\t500\ntest-model\t2000\t2000\nt*\t1\t1\n' > prices.tsv
	llm --provider exec --exec 'printf 12345678' --prices prices.tsv
	jq -e '((.tokens_in + .tokens_out) * 0.002 - .usd | fabs) < 1e-9' reply.json
	request code/tile.0a1b/2 test-other > request.json
	llm --provider exec --exec 'printf 12345678' --prices prices.tsv
	jq -e '((.tokens_in + .tokens_out) * 0.001 - .usd | fabs) < 1e-9' reply.json
	request code/tile.0a1b/3 > request.json
	KM_PRICE=3000,3000 llm --provider exec --exec 'printf 12345678' --prices prices.tsv
	jq -e '((.tokens_in + .tokens_out) * 0.003 - .usd | fabs) < 1e-9' reply.json
	request code/tile.0a1b/4 unheard-of > request.json
	run llm --provider openai --prices prices.tsv --usd 1
	[ "$status" -eq 2 ]
	[[ $output == *"no price is known for the model 'unheard-of'"*prices.tsv* ]]
	for bad in 'x 1 1' $'x\t1' $'x\t1\t-1' $'x\t1\t1\t1\t1'; do
		printf '%s\n' "$bad" > prices.tsv
		run llm --provider exec --exec 'echo x' --prices prices.tsv
		[ "$status" -eq 3 ]
		[[ $output == *"'prices.tsv': line 1"* ]]
	done
	"$KM/km-llm" --provider exec --exec 'echo x' --prices "$ROOT/tools/prices.tsv" request.json | jq -e '.usd == 0'
	run env KM_PRICE=1 "$KM/km-llm" --provider exec --exec 'echo x' request.json
	[ "$status" -eq 2 ]
}

@test "replay: by cue, the same id first, and nothing is paid" {
	request code/tile.0a1b/2 > other.json
	llm --provider exec --exec 'printf recorded'
	jq '.usd = 0.5 | .tokens_in = 70 | .seconds = 3' "run/calls/$(id_of request.json).json" > tmp && mv tmp "run/calls/$(id_of request.json).json"
	request code/tile.0a1b/1 another-model > asked.json
	mkdir again
	"$KM/km-llm" --provider replay --recording run --run again -o replayed.json asked.json
	[ "$(jq -c '[.status, .text, .provider, .model, .usd, .tokens_in, .seconds]' replayed.json)" = '["answered","recorded","replay","test-model",0.5,70,3]' ]
	[ "$(awk -F'\t' '$1 == "end" {print $8, $9}' again/calls.tsv)" = "0.000000 3.000" ]
	"$KM/km-llm" --provider replay --recording again -o replayed2.json asked.json
	[ "$(jq -r .text replayed2.json)" = recorded ]
	"$KM/km-llm" --provider replay --recording run --run again -o none.json other.json
	[ "$(jq -r .status none.json)" = unrecorded ]
	[ "$(jq -c .tries none.json)" = "[]" ]
	"$KM/km-validate" reply none.json
	[ "$(wc -l < again/calls.tsv)" -eq 2 ]
	run "$KM/km-llm" --provider replay --recording nowhere other.json
	[ "$status" -eq 3 ]
}

@test "a skipped request is a skipped reply" {
	echo '{"skip": "idle"}' > request.json
	llm --provider openai
	[ "$(jq -c . reply.json)" = '{"skip":"idle"}' ]
	[ ! -e run/calls.tsv ]
}

@test "malformed requests and stored calls are exit 3 with the file's name" {
	for bad in '' '{' '[]' '{"id": "x"}' '{"id": 1, "cue": "a/b", "messages": [], "parameters": {}}'; do
		printf %s "$bad" > bad.json
		run "$KM/km-llm" --provider exec --exec 'echo x' bad.json
		[ "$status" -eq 3 ]
		[[ $output == *bad.json* ]]
	done
	mkdir -p run/calls
	echo '{"text": "half' > "run/calls/$(id_of request.json).json"
	run llm --provider exec --exec 'echo x'
	[ "$status" -eq 3 ]
	[[ $output == *"calls/$(id_of request.json).json"* ]]
}

@test "in a pipeline the reply is on stdout and nothing is kept" {
	run bash -c '"$1/km-llm" --provider exec --exec "echo hi" - < request.json | jq -r .text' - "$KM"
	[ "${lines[-1]}" = hi ]
	[ -z "$(find run -mindepth 1)" ]
}
