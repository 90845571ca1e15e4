#!/usr/bin/env bash
# kill-demo.sh - a real demo, compiled and timed here, killed at random moments until it ends.
#
# Reads    tests/replies/sgemm_cpu_demo
# Writes   a run in the folder given; exit 0 if it ended with a best, no call was lost and nothing is left over
# Example  tests/kill-demo.sh 20 /tmp/states
set -eu -o pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C
kills=${1:-20} state=${2:-$(mktemp -d)}/demo from=tests/replies/sgemm_cpu_demo
mkdir -p "${state%/*}"

for ((n = 1; n <= kills; n++)); do
	setsid -w tools/run "$state" FROM="$from" JUDGE=real -- make -k rounds >"$state.log" 2>&1 &
	sleep "$((RANDOM % 4)).$((RANDOM % 1000))"
	group=$(ps -o pgid= --ppid $! | tr -d ' ' | head -n 1)
	[ -z "$group" ] || kill -KILL -- "-$group" 2>/dev/null || true
	wait || true
	find "$state" -name '*.json' ! -name '.*' -exec jq -e type {} + >/dev/null
done
while fuser -s "$state" 2>/dev/null; do sleep 0.1; done
tools/run "$state" FROM="$from" JUDGE=real -- make -k rounds | tee "$state.log"
tail -n 1 "$state.log" | grep -q '^best: [0-9]'
[ -z "$(find "$state" -name '*.tmp')" ]
# Every reply that a round rests on is on file.
jq -r 'select(has("skip") | not) | select(.status == "answered") | .id' "$state"/r*/reply.json "$state"/r*/s*/*reply.json |
	while read -r id; do [ -e "$state/calls/$id.json" ]; done
echo "kill-demo: $kills kills, the search ended whole"
