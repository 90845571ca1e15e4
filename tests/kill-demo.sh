#!/usr/bin/env bash
# kill-demo.sh - a real demo, compiled and timed here, killed at random moments until it ends.
#
# Reads    a recording
# Writes   a run in the folder given; exit 0 if it ended with a best, no call was lost and nothing is left over
# Example  tests/kill-demo.sh 20 /tmp/states tests/replies/sgemm_cpu_demo
set -eu -o pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C
kills=${1:-20} state=${2:-$(mktemp -d)}/demo from=${3:-tests/replies/sgemm_cpu_demo}
mkdir -p "${state%/*}"

for ((n = 1; n <= kills; n++)); do
	# In a process group of its own: the shell's child leads none, so setsid does not fork.
	setsid tools/run "$state" FROM="$from" JUDGE=real -- make -k rounds >"$state.log" 2>&1 &
	sleep "$((RANDOM % 9)).$((RANDOM % 1000))"
	kill -KILL -- "-$!" 2>/dev/null || true
	wait "$!" 2>/dev/null || true
	find "$state" -name '*.json' ! -name '.*' -exec jq -e type {} + >/dev/null
done
tools/run "$state" FROM="$from" JUDGE=real -- make -k rounds | tee "$state.log"
tail -n 1 "$state.log" | grep -q '^best: [0-9]'
[ -z "$(find "$state" -name '*.tmp')" ]
# Every reply that a round rests on is on file.
jq -r 'select(has("skip") | not) | select(.status == "answered") | .id' "$state"/r*/reply.json "$state"/r*/s*/*reply.json |
	while read -r id; do [ -e "$state/calls/$id.json" ]; done
echo "kill-demo: $kills kills, the search ended whole"
