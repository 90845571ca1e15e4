/* examine.h - after the verdict PASSED: what NVIDIA's tools see in a call of the kernel, into bench.json.
 *
 * The runner is started once more, by the tool, in the same sandbox but without the filter of system calls, since tools talk
 * to the process that they watch. The verdict is there by then, and nothing of this changes it. Each start of a tool is
 * killed after EXAMINE_SECONDS. A tool that is missing or that fails is said in `message`, and is no error.
 */
#ifndef KM_EXAMINE_H
#define KM_EXAMINE_H

#include "error.h"
#include "judge.h"

#include <cjson/cJSON.h>
#include <stdbool.h>

#define EXAMINE_SECONDS 60.0
#define EXAMINE_TOTAL 150.0 /* after which no further workload is profiled */

/* The tools of compute-sanitizer that may be named. */
bool examine_knows(const char *check);

/* Add workloads[].profile, of the feedback workloads (all, if none of those was judged), the one of median time first; and
 * `sanitizer`, of one call on each of them. profile: ncu; check: a tool of compute-sanitizer, or NULL. The programs are
 * $KM_NCU and $KM_COMPUTE_SANITIZER, else looked for in $CUDA_HOME, /usr/local/cuda, PATH and /opt/nvidia. -1 only if
 * interrupted. */
int examine(cJSON *document, const struct judge_options *options, const struct judge_result *result, bool profile, const char *check,
	    struct error *err);

#endif
