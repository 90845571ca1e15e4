#!/usr/bin/env bash
# corpus.sh - what the fuzzer starts from: the example of every kind of file, worlds, replies that were given.
#
# Writes   the folder $1
# Example  tests/fuzz/corpus.sh /tmp/corpus
set -eu -o pipefail
cd "$(dirname "$0")/../.."
to=$1
mkdir -p "$to"

# $1 which reader: 0 a document, 1 a reply about the tree, 2 a reply with code, 3 a stream; $2 a name; the text on stdin
seed() { { printf '%b' "\\$1"; cat; } >"$to/$2"; }

# shellcheck disable=SC2094 # what is read is elsewhere
for file in tests/golden/state/*.json; do
	seed 0 "document-$(basename "$file")" <"$file"
done
n=0
for file in tests/replies/*/calls/*.json; do
	n=$((n + 1))
	case $(jq -r .request.cue "$file") in
	code/*) jq -j .text "$file" | seed 2 "code-$n" ;;
	*) jq -j .text "$file" | seed 1 "tree-$n" ;;
	esac
done
# shellcheck disable=SC2094
for file in tests/replies/*.md; do
	seed 2 "reply-$(basename "$file")" <"$file"
done
jq -c '.strategy = "evolve"' tests/golden/state/run.json | seed 0 evolve-run
jq -c '.settings.strategy = "evolve" | .nodes |= map(select(.status != "active") | .islands = [0, 2])' tests/golden/state/world.json | seed 0 evolve-world
# shellcheck disable=SC2016
sed -n '/^```json/,/^```/p' prompts/parts/operations.md | seed 1 operations
# shellcheck disable=SC2016
printf '```diff\n--- a\n+++ b\n@@ -2,3 +2,3 @@\n int a;\n \n-int b;\n+int c;\n@@ -8 +8 @@\n-\treturn 0;\n+\treturn 1;\n```\n' | seed 2 diff
printf '<<<<<<< SEARCH\nint b;\n=======\nint c;\n>>>>>>> REPLACE\n' | seed 2 blocks
printf '{"summary": "x", // y\n "ops": [{"op": "prune_node", "node": "a", "reason": "/* no */",},],}' | seed 1 comments
printf ': hi\r\nevent: x\rdata: {"a": "\\u0000\\ud800\\ud83d\\ude00"}\n\ndata: 1\ndata: [2, /* 3 */ 4,]\n\ndata: [DONE]\n\n' | seed 3 stream
