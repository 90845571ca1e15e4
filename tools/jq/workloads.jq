# workloads.jq - bench.json to tab-separated lines, one a workload.
include "parts";
def us: if . == null then "-" else tenths end;
["workload", "set", "status", "median us", "baseline us", "factor"],
(.workloads[] | [(.axes | to_entries | map("\(.key)=\(.value)") | join(" ")), .set, .status, (.median_us | us), (.baseline_us | us),
	(.speedup | factor)])
| @tsv
