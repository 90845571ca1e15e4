# status.jq - world.json to the first lines of `make status`; --arg run NAME.
def count($s): map(select(.parent != null and .status == $s)) | length;
["run", "\($run): task \(.settings.task) (\(.settings.target)), WIDTH=\(.settings.width) K=\(.settings.k) STRATEGY=\(.settings.strategy) POLICY=\(.settings.policy)"],
["round", "\(.round), \(.evaluations) evaluations in \(.cycles) cycles, \(.judge_seconds * 10 | round / 10) s of judging"],
["nodes", (.nodes as $n | ["open", "active", "closed", "pruned", "unrecorded"] | map(. as $s | ($n | count($s)) as $c |
	select($c > 0) | "\($c) \($s)") | join(", "))],
(.nodes[] | select(.status == "active") | ["active", "\(.id): \(.action.title | gsub("[\t\n]"; " "))"])
| @tsv
