# parts.jq - what the other filters share; `jq -L tools/jq 'include "parts"; ...'`.
def tenths: (. * 10 | round) as $n | "\($n / 10 | floor).\($n % 10)";
def factor: if . == null then "-" else "\(tenths)x" end; # over the baseline
def count_of($what): "\(.) \($what)\(if . == 1 then "" else "s" end)";

# A text in one line of at most $most characters, cut between words.
def shortened($most): gsub("[\t\n]"; " ") | if length > $most then .[:$most - 3] | sub("[,:;]* [^ ]*$"; "") + "..." else . end;

# In a world: of each node that has a kernel that passed, its best so far, in the form of a solution; the fastest first.
def measured: (if .settings.target == "cuda" then "cu" else "c" end) as $suffix |
	[.nodes[] | .id as $node | .solution // (.cycle | values | .best as $best | .attempts[] | select(.attempt == $best) |
		{node: $node, attempt, score, kernel: "../r\(100000 + .round | tostring[1:])/s\(.slot)/kernel.\($suffix)"})] | sort_by(-.score);
