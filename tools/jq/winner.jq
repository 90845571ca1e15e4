# winner.jq - world.json to the last lines of `make best`; $bench its verdict, $winner winner.tsv, $task task.json, $replayed.
include "parts";
($winner | rtrimstr("\n") / "\t") as [$node, $attempt] | .evaluations as $n | $bench[0] as $b |
([.best] + measured | map(select(.node == $node and (.attempt | tostring) == $attempt)) | .[0].score / 100) as $was |
($b.workloads | map(select(.set == "final"))) as $final |
(if $final == [] then $b.workloads else $final end) as $workloads |
($task[0].objective == "speedup") as $arithmetic |
(if $final == [] then $b.score / 100
 elif $arithmetic then ($final | map(.speedup) | add / length)
 else ($final | map(.speedup | log) | add / length | exp) end) as $factor |
# Axes that tell workloads apart; slower is what the factor shows as less than 1.0x.
($b.workloads | map(.axes) | . as $all | .[0] | keys_unsorted | map(select(. as $key | ($all | length) == 1 or ($all | map(.[$key]) | unique | length) > 1))) as $axes |
($workloads | map(select((.speedup * 10 | round) < 10)) | sort_by(.speedup)) as $slower |
if $b.status != "PASSED" then "best: none that passes on the final workloads (\($n | count_of("evaluation")))" else
	(if $replayed then "This is the recorded verdict: nothing was measured again."
	 else "In the search it was measured as \($was | factor), and again on the same workloads as \($b.score / 100 | factor) (noise \($b.noise * 1000 | round / 10) %)." end),
	"The last line is the \(if $arithmetic then "arithmetic" else "geometric" end) mean over " +
		(if $final == [] then $workloads | length | count_of("workload") + " of the search" else $final | length | count_of("final workload") + ", which the search never saw" end) +
		(if $slower == [] then "." else "; slower than the baseline on \($slower | length): " + ($slower[:5] | map(. as $w |
			($axes | map("\(.)=\($w.axes[.])") | join(" ")) + " (\($w.speedup | factor))") | join(", ")) + (if $slower[5:] == [] then "." else ", ..." end) end),
	"best: \($factor | factor) (node \($node), attempt \($attempt), \($n | count_of("evaluation")))"
end
