#!/usr/bin/env bash
# model.sh - a test peer: answers like a language model, but by arithmetic on the prompt. No search quality is claimed.
#
# Reads    the prompt on stdin
# Writes   the reply on stdout: operations on the tree, or a kernel; the same prompt always gets the same reply
# Example  make run TASK=sgemm_cpu PROVIDER=exec EXEC="$PWD/tests/peer/model.sh"
#
# MODEL_KERNEL=FILE is the kernel of a code reply (default: one that does nothing).
set -eu -o pipefail
export LC_ALL=C

prompt=$(cat)
sum=$(cksum <<<"$prompt")
sum=${sum%% *}

# $1 parent, $2 title, $3 priority
node() {
	printf '{"op": "insert_node", "parent": "%s", "decision": "what next", "choice": "%s", "action": {"title": "%s",
 "description": "Try %s.", "rationale": "It may pay.", "difficulty_1_to_5": %d, "score_0_to_1": 0.%d,
 "expected_vs_baseline_factor": %d}, "overall_rating_0_to_10": 5, "confidence_0_to_1": 0.5, "notes": ""}' \
		"$1" "$2" "$2" "$2" $((sum % 3 + 1)) "$3" $((sum % 9 + 1))
}

tree() {
	local known=''
	# The first node that an edit prompt names by its id.
	[[ $prompt != *"cycle that has ended"* ]] ||
		known=$(sed -n '/cycle that has ended/,$p' <<<"$prompt" | grep -oE '\b[a-z0-9-]+\.[0-9a-f]{4}\b' | head -n 1 || true)
	echo "Here is what I would do."
	echo '```json'
	printf '{"summary": "state %s", "ops": [\n%s' "$sum" "$(node root "family $sum" $((sum % 8 + 1)))"
	if [ -z "$known" ]; then
		printf ',\n%s,\n%s' "$(node root "second $sum" 7)" "$(node root "third $sum" 6)"
	else
		printf ',\n%s' "$(node "$known" "refine $sum" 8)"
		printf ',\n{"op": "update_node", "node": "%s", "set": {"notes": "seen %s"}}' "$known" "$sum"
	fi
	printf '\n], "no_child_because": "enough is open"}\n'
	echo '```'
}

code() {
	echo "This should be faster."
	echo '```c'
	# Machine code of its own, so that no kernel is a duplicate of another.
	printf '__attribute__((used)) static unsigned variant(void)\n{\n\treturn %su;\n}\n\n' "$sum"
	if [ -n "${MODEL_KERNEL:-}" ]; then
		cat "$MODEL_KERNEL"
	else
		printf '#include "task.h"\nint km_run(const struct km_args *a)\n{\n\t(void)a;\n\treturn 0;\n}\n'
	fi
	echo '```'
}

case $prompt in
*insert_node*) tree ;;
*) code ;;
esac
