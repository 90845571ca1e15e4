# table.jq - world.json to tab-separated lines: every node that was tried, the fastest first; nothing if none was.
include "parts";
(measured | map({key: .node, value: (.score / 100)}) | from_entries) as $factor |
[.nodes[] | select(.parent != null and .attempts > 0)] | sort_by(-($factor[.id] // 0)) | select(. != []) |
(["node", "status", "attempts", "expected", "measured", "title"],
 (.[] | [.id, .status, .attempts, (.action.expected_vs_baseline_factor | if . == null then "-" else "\(.)x" end),
	($factor[.id] | factor), (.action.title | shortened(60))]))
| @tsv
