# workloads.jq - bench.json to tab-separated lines, one a workload.
def us: if . == null then "-" else . * 10 | round / 10 | tostring end;
["workload", "set", "status", "median us", "baseline us", "factor"],
(.workloads[] | [(.axes | to_entries | map("\(.key)=\(.value)") | join(" ")), .set, .status, (.median_us | us), (.baseline_us | us),
	(.speedup | if . == null then "-" else "\(. * 10 | round / 10)x" end)])
| @tsv
