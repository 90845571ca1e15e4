# A world of $n nodes below the root, with long texts, for the ceilings of prompts: jq -n --argjson n 3000 -f big-world.jq
#
# Node 0 is closed and below the root; node i is below the closed node with the largest index of the form (i - 1) / 3,
# rounded down to a closed one. Every 12th node is pruned, of the rest every second is closed; the last one is active.

def hex4: . as $i | [4096, 256, 16, 1] | map(($i / . | floor) % 16 | "0123456789abcdef"[.:. + 1]) | join("");
def name($i): "node-\($i).\($i | hex4)";
def status($i): if $i == $n - 1 then "active" elif $i > 0 and $i % 12 == 5 then "pruned" elif $i % 2 == 0 then "closed" else "open" end;
def parent($i): if $i == 0 then "root" else (($i - 1) / 3 | floor) as $p | [$p - ($p % 2), 0] | max | . as $q |
	if status($q) == "closed" and $q < $i then name($q) else name(0) end end;
def solution($i): {node: name($i), attempt: 1, round: 1, slot: 0, score: (100 + $i), noise: 0.01, kernel: "../r00001/s0/kernel.c", bench: "../r00001/s0/bench.json"};
def text($i): "Text {{task}} of node \($i). " * 60;
def attempt($a; $mode; $status; $score): {attempt: $a, round: $a, slot: 0, mode: $mode, status: $status, score: $score};
def node($i):
	{id: name($i), parent: parent($i), status: status($i), created_round: 0, attempts: (if status($i) == "open" then 0 else 2 end),
	 failed_cycles: 0, cycles: (if status($i) == "closed" then 1 else 0 end),
	 solution: (if status($i) == "closed" then solution($i) else null end)}
	+ (if status($i) == "pruned" then {pruned_because: "It was measured to be slower than its parent."} else {} end)
	+ (if status($i) == "active" then {cycle: {number: 1, slot: 0, streak_best: 1, streak_parent: 1, best: 1,
		attempts: [attempt(1; "new"; "PASSED"; 1234), attempt(2; "improve"; "COMPILE_ERROR"; null)]}} else {cycle: null} end)
	+ {decision: "How?", choice: "So.", action: {title: "Node \($i) with a title of some length, as models like to give them",
		description: text($i), rationale: text($i), difficulty_1_to_5: 3, score_0_to_1: (($i % 100) / 100), expected_vs_baseline_factor: 12},
	 impacts: null, overall_rating_0_to_10: 5, confidence_0_to_1: 0.5, notes: text($i)};

{made_by: {}, round: 2,
 settings: {task: "sgemm_cpu", target: "cpu", width: 1, k: 4, strategy: "world", policy: "default", seed: "1"},
 summary: ("A summary that goes on. " * 160), open_questions: [range(20) | "Question \(.) " * 40],
 evaluations: 2, cycles: 1, cycles_since_best: 0, refills: 0, refills_failed: 0, judge_seconds: 1, best: solution(0), seen: {},
 refused: [range(40) | {round: 1, slot: 0, op: ("an operation " * 50), reason: ("a reason " * 50)}],
 nodes: ([{id: "root", parent: null, status: "closed", created_round: 0, attempts: 0, failed_cycles: 0, cycles: 0, solution: null,
	decision: "", choice: "", action: {title: "root", description: "", rationale: "", difficulty_1_to_5: 1, score_0_to_1: 0, expected_vs_baseline_factor: null},
	impacts: null, overall_rating_0_to_10: 0, confidence_0_to_1: 0, notes: "", cycle: null}] + [range($n) | node(.)])}
