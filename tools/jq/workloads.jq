# workloads.jq - bench.json to tab-separated lines, one a workload.
def tenths: (. * 10 | round) as $n | "\($n / 10 | floor).\($n % 10)";
def us: if . == null then "-" else tenths end;
["workload", "set", "status", "median us", "baseline us", "factor"],
(.workloads[] | [(.axes | to_entries | map("\(.key)=\(.value)") | join(" ")), .set, .status, (.median_us | us), (.baseline_us | us),
	(.speedup | if . == null then "-" else "\(tenths)x" end)])
| @tsv
