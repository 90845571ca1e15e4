# shake.jq - a verdict with other times: $scale divides the score; below $share, $turn turns the verdict.
def scaled: if .score then .score /= $scale | .workloads |= map(
	.median_us *= $scale | .q1_us *= $scale | .q3_us *= $scale | (if .speedup then .speedup /= $scale else . end)) else . end;
def failed: .status = "INCORRECT_NUMERICAL" | .score = null | .noise = null | .versus = null | .message = "turned";
def passed: .status = "PASSED" | .score = 100 / $scale | .noise = 0.01 | .failure = null | .rule = null | .message = "turned";
def turned: if .status == "PASSED" then failed elif .status == "INCORRECT_NUMERICAL" then passed else . end;
.bench |= (scaled | if $turn < $share then turned else . end)
