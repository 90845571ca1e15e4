# status.jq - world.json to lines of `make status`: what, a tab, text.
include "parts";
(.nodes | map({key: .id, value: .}) | from_entries) as $node |
# Below a node whose result was not recorded nothing can be tried.
def lost: .parent | if . == null then false else $node[.] | .status == "unrecorded" or lost end;
(.nodes | map(select(.parent != null) | if .status == "open" and lost then "out of reach below these" else .status end)) as $all |
"round\t\(.round), \(.evaluations | count_of("evaluation")) in \(.cycles | count_of("cycle")), \(.judge_seconds * 10 | round / 10) s of judging",
(["open", "active", "closed", "pruned", "unrecorded", "out of reach below these"] | map(. as $what | [$all[] | select(. == $what)] | length |
	select(. > 0) | "\(.) \($what)") | join(", ") | select(. != "") | "nodes\t\(.)"),
(.nodes[] | select(.status == "active") | "active\t\(.id): \(.action.title | gsub("[\t\n]"; " "))")
