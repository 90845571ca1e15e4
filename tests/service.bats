#!/usr/bin/env bats
# km-llm against a server that misbehaves: what is tried again, what fails at once, what is paid, what is never told.

load helpers

KEY=sk-secret-0123456789abcdef

setup() {
	cd "$BATS_TEST_TMPDIR" || return
	unset KM_BASE_URL KM_API_KEY OPENAI_API_KEY ANTHROPIC_API_KEY KM_EXEC http_proxy HTTP_PROXY all_proxy ALL_PROXY
	export KM_PRICE=2,10 KM_API_KEY=$KEY
	PEER="${PEERS:?}/faulty_server"
	[ -x "$PEER" ] || { PEER=$BATS_TEST_TMPDIR/faulty_server && gcc -std=gnu11 -D_GNU_SOURCE -o "$PEER" "$ROOT/tests/peer/faulty_server.c"; }
	mkdir run server
	"$PEER" server > server/port 3>&- &
	SERVER=$!
	while [ ! -s server/port ]; do sleep 0.01; done
	PORT=$(cat server/port)
	write_request code/tile.0a1b/1 > request.json
	FRESH=0
}

teardown() {
	kill "$SERVER" 2>/dev/null || true
}

# A request with cue $1.
write_request() {
	local body id
	body=$(jq -cn --arg cue "$1" '{messages: [{role: "system", content: "Be brief."}, {role: "user", content: "Say \"hi\"."}],
		parameters: {model: "test-model", max_tokens: 50}, cue: $cue}')
	id=$(printf %s "$body" | sha256sum | cut -d' ' -f1)
	jq -c --arg id "$id" '{id: $id, cue, messages, parameters}' <<<"$body"
}

# ask SCENARIO PROVIDER [OPTION...]: with pauses that take no time.
ask() {
	local scenario=$1 provider=$2
	shift 2
	KM_BASE_URL=http://127.0.0.1:$PORT/$scenario@$FRESH/v1 "$KM/km-llm" --provider "$provider" --run run -o reply.json --backoff 0.01 "$@" request.json
}

fresh() {
	rm -rf run reply.json server/log
	mkdir run
	FRESH=$((FRESH + 1))
}

requests() { wc -l < server/log; }
lines() { grep -c "^$1" run/calls.tsv || true; }

# Answered after $1 requests to the scenario $2, and paid once; $3 is in the text.
expect_answer() {
	local requests=$1 scenario=$2 text=$3
	shift 3
	for provider in openai anthropic; do
		for whole in '' --whole; do
			fresh
			echo "$scenario $provider $whole"
			ask "$scenario" "$provider" $whole "$@"
			[[ $(jq -r .text reply.json) == *"$text"* ]]
			[ "$(requests)" -eq "$requests" ]
			[ "$(jq -c '[.tokens_in, .tokens_out]' reply.json)" = '[100,10]' ]
			[ "$(awk -F'\t' '$1 == "end" {print $8}' run/calls.tsv)" = 0.000300 ]
			[ "$(lines start) $(lines end) $(lines fail)" = "1 1 0" ]
			"$KM/km-validate" reply reply.json
			no_key
		done
	done
}

# Exit 4 after $1 requests, $3 is in the message; nothing is paid, and the run goes on with the next call.
expect_failure() {
	local requests=$1 scenario=$2 message=$3
	shift 3
	for provider in openai anthropic; do
		for whole in '' --whole; do
			fresh
			echo "$scenario $provider $whole"
			run ask "$scenario" "$provider" $whole --tries 3 "$@"
			echo "$status: $output"
			[ "$status" -eq 4 ]
			[[ $output == *"km-llm: error: 127.0.0.1:$PORT: "*"$message"* ]]
			[[ $output != *"$KEY"* ]]
			[ "$(requests)" -eq "$requests" ]
			[ ! -e reply.json ]
			[ -z "$(find run/calls -type f)" ]
			[ "$(lines start) $(lines end) $(lines fail)" = "1 0 1" ]
			ask ok "$provider" $whole
			[ "$(lines start) $(lines end) $(lines fail)" = "2 1 1" ]
			[ "$(awk -F'\t' '{sum += $1 == "start" ? 0 : $8} END {print sum}' run/calls.tsv)" = 0.0003 ]
			no_key
		done
	done
}

no_key() {
	run grep -rl "$KEY" run reply.json
	[ "$status" -ne 0 ]
}

@test "both protocols, streamed and whole: the request as it should be, the text to the byte" {
	expect_answer 1 ok $'Hello, this is the reply to'
	expect_answer 1 whole $'.\nIt has "two" lines.'
	fresh
	ask ok openai
	head -1 server/request | grep -q '^POST /ok@[0-9]*/v1/chat/completions HTTP/1.1'
	grep -qi "^authorization: bearer $KEY" server/request
	sed '1,/^\r$/d' server/request > body.json
	[ "$(jq -c '[.model, .max_tokens, .stream, .stream_options.include_usage, (.messages | length)]' body.json)" = '["test-model",50,true,true,2]' ]
	[ "$(jq -r .model reply.json)" = test-model-2024 ]
	[ "$(jq -r .finish reply.json)" = stop ]
	jq -r .raw run/calls/*.json | jq -e '.id == "c1" and .choices[0].finish_reason == "stop" and .usage.prompt_tokens == 100'
	cp reply.json streamed.json
	fresh
	ask ok openai --whole
	[ "$(jq -r .text reply.json | sed 's/to .*//')" = "$(jq -r .text streamed.json | sed 's/to .*//')" ]
	fresh
	ask ok anthropic
	head -1 server/request | grep -q '^POST /ok@[0-9]*/v1/messages HTTP/1.1'
	grep -qi "^x-api-key: $KEY" server/request
	grep -qi '^anthropic-version: 2023-06-01' server/request
	sed '1,/^\r$/d' server/request > body.json
	[ "$(jq -c '[.model, .max_tokens, .stream, .system, .messages]' body.json)" = '["test-model",50,true,"Be brief.",[{"role":"user","content":"Say \"hi\"."}]]' ]
	jq -r .raw run/calls/*.json | jq -e '.id == "m1" and .stop_reason == "end_turn" and .usage.output_tokens == 10'
}

@test "statuses that pass are tried again" {
	expect_answer 2 408,ok Hello
	expect_answer 2 429,ok Hello
	expect_answer 2 429-odd,ok Hello
	expect_answer 4 500,502,529,ok Hello
	expect_failure 3 500 "HTTP status 500: it broke (3 tries)"
	expect_failure 3 502 "HTTP status 502: <html>bad gateway</html> (3 tries)"
	expect_failure 3 529 "HTTP status 529: overloaded (3 tries)"
	expect_failure 3 429 "HTTP status 429: slow down (3 tries)"
}

@test "statuses that stay are not" {
	expect_failure 1 401 "HTTP status 401: bad key (1 try)"
	expect_failure 1 404 "HTTP status 404: no such model (1 try)"
	expect_failure 1 429-quota "HTTP status 429: pay first (1 try)"
}

@test "Retry-After in seconds and as a date is waited for, but not for ever" {
	local start=$EPOCHSECONDS
	ask 429-1,ok openai
	[ $((EPOCHSECONDS - start)) -ge 1 ]
	fresh
	start=$EPOCHSECONDS
	ask 429-date,ok anthropic
	[ $((EPOCHSECONDS - start)) -ge 1 ]
	expect_failure 1 429-3600 "HTTP status 429: slow down (1 try; the server asks to wait 3600 s, more than 300)"
	expect_failure 1 429-1 "(1 try; the server asks to wait 1 s, more than 0.5)" --max-wait 0.5
	fresh
	run ask 429-3600 openai --max-wait 4000 --timeout 60
	[ "$status" -eq 4 ]
	[[ $output == *"(1 try; the 60 s of the call are over)" ]]
}

@test "connections that break are made again" {
	expect_answer 2 reset,ok Hello
	expect_answer 2 close,ok Hello
	expect_answer 2 reset-mid,ok Hello
	expect_answer 2 cut-chunks,ok Hello
	expect_answer 2 cut-stream,ok Hello
	expect_answer 2 gzip-cut,ok Hello
	expect_failure 3 reset "(3 tries)"
	expect_failure 3 reset-mid "(3 tries)"
	kill "$SERVER"
	fresh
	run ask ok openai --tries 2
	[ "$status" -eq 4 ]
	[[ $output == *"connect"*"(2 tries)"* ]]
}

@test "a stream that stalls is begun anew, one that trickles is waited for, one that only lives ends" {
	for provider in openai anthropic; do
		for scenario in stall,ok stall-mid,ok; do
			fresh
			ask "$scenario" "$provider" --stall 2
			[ "$(requests)" -eq 2 ]
			[ "$(lines end)" -eq 1 ]
		done
		fresh
		ask trickle "$provider" --stall 5
		[ "$(requests)" -eq 1 ]
		fresh
		run ask stall-mid "$provider" --stall 0.3 --tries 2
		[ "$status" -eq 4 ]
		[[ $output == *"no byte came for 0.3 s (2 tries)"* ]]
		fresh
		run ask endless "$provider" --stall 2 --timeout 5
		[ "$status" -eq 4 ]
		[[ $output == *imeout*"(1 try)"* ]]
		fresh
		run ask stall "$provider" --whole --timeout 0.5
		[ "$status" -eq 4 ]
		[[ $output == *imeout*"(1 try)"* ]]
	done
}

@test "bodies that are no reply are asked for again" {
	expect_answer 2 cut-json,ok Hello
	expect_answer 2 page,ok Hello
	expect_answer 2 empty,ok Hello
	expect_answer 2 nothing,ok Hello
	expect_answer 2 stream-error,ok Hello
	expect_answer 2 garbled,ok Hello
	expect_answer 2 gzip-bad,ok Hello
	expect_failure 3 cut-json "the reply is not JSON"
	expect_failure 3 page "the reply is not JSON"
	expect_failure 3 empty "the reply is empty (3 tries)"
	expect_failure 3 stream-error "an error in the stream: too much to do (3 tries)"
	expect_failure 3 garbled "an event of the stream is not JSON (3 tries)"
	expect_failure 3 cut-stream "(3 tries)"
}

@test "replies in odd forms are taken" {
	expect_answer 1 wrong-type Hello
	expect_answer 1 gzip Hello
	expect_answer 1 http10 Hello
	expect_answer 1 crlf Hello
	expect_answer 1 bad-utf8 $'\xef\xbf\xbd\xef\xbf\xbdello'
	expect_answer 1 nul Hello
	expect_answer 1 escapes $'\xef\xbf\xbd\xef\xbf\xbdH\xf0\x9f\x98\x80ello'
	expect_answer 1 empty-text ''
	fresh
	ask no-usage openai
	[ "$(jq -c '[.tokens_in > 0, .tokens_out > 0, .usd > 0]' reply.json)" = '[true,true,true]' ]
}

@test "a reply of 30 MB is refused, streamed or whole, and not asked for again" {
	expect_failure 1 huge "the reply is larger than 16 MB (1 try)"
}

@test "a key that the server repeats is in no file and no message" {
	expect_failure 1 echo-401 "HTTP status 401: wrong key [key removed] (1 try)"
	expect_failure 3 echo-500 "HTTP status 500: failed for [key removed] (3 tries)"
	expect_answer 1 echo-text "your key is [key removed]"
}

@test "a redirect is not followed with the key" {
	expect_failure 1 redirect "HTTP status 307, a redirect to '127.0.0.1:"
	[ ! -e server/leaked ]
}

@test "a refusal and a cut reply are answers that say so; with a check they are asked again" {
	for provider in openai anthropic; do
		for whole in '' --whole; do
			fresh
			ask refusal "$provider" $whole
			[ "$(jq -r '.finish, .text' reply.json)" = $'refusal\nI will not do that.' ]
			fresh
			ask length "$provider" $whole
			[ "$(jq -r .finish reply.json)" = length ]
			fresh
			ask length,ok "$provider" $whole --check true
			[ "$(jq -r '.finish, .status' reply.json)" = $'stop\nanswered' ]
			[ "$(requests)" -eq 2 ]
			[ "$(jq -r .usd reply.json)" = 0.0006 ]
			[[ $(cat run/calls/*.json) == *"it was cut off at the limit of 50 tokens"* ]]
			fresh
			ask refusal "$provider" $whole --check true --again 1
			[ "$(jq -r '.finish, .status' reply.json)" = $'refusal\nunreadable' ]
			[[ $(jq -r .reason reply.json) == "it is a refusal."* ]]
			[ "$(requests)" -eq 2 ]
			"$KM/km-validate" reply reply.json
		done
	done
}

@test "quiet but for a line at the end when nobody watches" {
	run ask 500,ok openai
	[ "${#lines[@]}" -eq 1 ]
	[[ $output == "km-llm: code/tile.0a1b/1: 100 tokens in, 10 out, "*" s, \$0.0003, 2 tries | run: \$0.0003, 110 tokens, 1 calls, 0 open" ]]
}

@test "a kill while a stream runs leaves a call that is made again" {
	KM_BASE_URL=http://127.0.0.1:$PORT/stall-mid/v1 "$KM/km-llm" --provider anthropic --run run -o reply.json request.json 3>&- &
	local pid=$!
	while [ ! -s server/log ]; do sleep 0.02; done
	kill -9 "$pid"
	wait "$pid" || true
	[ ! -e reply.json ]
	[ "$(lines start) $(lines end)" = "1 0" ]
	ask ok anthropic
	[ "$(lines start) $(lines end)" = "2 1" ]
	[ -z "$(find . -name '.*.tmp')" ]
}

# 100 calls by default, 1,000 with KM_LONG=1; eight at a time.
@test "calls with 20 % random faults end with every reply on file once and the right sum of money" {
	local n=100 i round
	[ -z "${KM_LONG:-}" ] || n=1000
	mkdir replies requests
	for ((i = 1; i <= n; i++)); do write_request "code/tile.0a1b/$i" > "requests/$i.json"; done
	one() {
		[ ! -e "replies/$1.json" ] || return 0
		KM_BASE_URL=http://127.0.0.1:$PORT/random-20/v1 "$KM/km-llm" --provider "$([ $(($1 % 2)) = 0 ] && echo openai || echo anthropic)" --run run \
			--backoff 0.01 --stall 1 -o "replies/$1.json" "requests/$1.json" 2>> errors || true
	}
	export -f one
	export PORT KM
	for ((round = 1; round <= 8; round++)); do
		seq $n | xargs -P 8 -I % bash -c 'one %'
		[ "$(find replies -name '[!.]*.json' | wc -l)" -lt "$n" ] || break
	done
	[ "$(find replies -name '[!.]*.json' | wc -l)" -eq "$n" ]
	[ "$(find run/calls -name '[!.]*.json' | wc -l)" -eq "$n" ]
	[ "$(awk -F'\t' '$1 == "end" {print $2}' run/calls.tsv | sort -u | wc -l)" -eq "$n" ]
	awk -F'\t' -v n=$n '$1 == "end" {ends++; usd += $8; tokens += $6 + $7} $1 == "start" {starts++} $1 == "fail" {fails++; bad += $8}
		END {print starts, ends, fails, usd, tokens; exit !(ends == n && tokens == 110 * n && usd > 0.000299999 * n && usd < 0.000300001 * n && starts == ends + fails && bad == 0)}' run/calls.tsv
	# Some were met by faults that end a call at once, and faults were met at all.
	[ "$(grep -c fail run/calls.tsv)" -gt 0 ]
	[ "$(grep -cv '	ok$' server/log)" -gt $((n / 10)) ]
	run grep -rl "$KEY" run replies errors
	[ "$status" -ne 0 ]
	[ ! -e server/leaked ]
}
