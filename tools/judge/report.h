/* report.h - from a judgement to bench.json, and to the table that `km-bench --table` prints. */
#ifndef KM_REPORT_H
#define KM_REPORT_H

#include "buf.h"
#include "judge.h"

#include <cjson/cJSON.h>

/* A bench document with every required key, for a kernel that was built as `build` (a build document) says: no
 * workloads, no score. */
cJSON *report_new(const cJSON *build, const char *status, const char *rule, const char *message);

/* Fill in what was judged. listing: seconds that it took to list the devices; building: that baseline, reference and rivals took to build; versus_sha256: code_sha256
 * of the first rival, or NULL. */
void report_fill(cJSON *document, const struct judge_options *options, const struct judge_result *result, double listing, double building,
		 const char *versus_sha256);

/* Tab-separated: a head line, then one line for the candidate, the baseline and each rival:
 *   name  status  factor over the baseline  median microseconds of each workload
 * with "-" for what is not known. */
void report_table(const struct judge_options *options, const struct judge_result *result, struct buf *out);

/* The processor's name. The caller frees. */
char *report_device(void);

#endif
