# table.jq - world.json to tab-separated lines: every node that was tried, the fastest first.
def tenths: (. * 10 | round) as $n | "\($n / 10 | floor).\($n % 10)";
def factor: if . == null then "-" else "\(. / 100 | tenths)x" end;
["node", "status", "attempts", "expected", "measured", "title"],
(.nodes | map(select(.parent != null and .attempts > 0)) | sort_by(-(.solution.score // 0))[] |
	[.id, .status, .attempts, ((.action.expected_vs_baseline_factor // null) | if . == null then "-" else "\(.)x" end),
	 (.solution.score | factor), (.action.title | gsub("[\t\n]"; " ") | .[:60])])
| @tsv
