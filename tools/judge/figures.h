/* figures.h - what NVIDIA's tools print about a kernel, as JSON.
 *
 * The text comes from a process in which untrusted code ran, so it may say anything: only numbers, names of ours and short
 * lines are taken from it.
 */
#ifndef KM_FIGURES_H
#define KM_FIGURES_H

#include <cjson/cJSON.h>

/* ncu's --metrics: what figures_of_profile looks for, with commas between. The caller frees. */
char *figures_metrics(void);

/* `ncu --csv --page raw --print-units base` with figures_metrics, for all kernels of one call: an object of the keys
 *   kernels, kernel (the name of the longest), duration_us, dram_read_bytes, dram_write_bytes (sums), dram_percent,
 *   sm_percent, tensor_percent, occupancy_percent, l2_hit_percent (means over the kernels' time), registers (the largest),
 *   stalls: [{"reason", "warps"}], the two largest of the longest kernel
 * with null for what ncu did not tell. NULL if there is no row of a kernel. */
cJSON *figures_of_profile(const char *text);

/* Of compute-sanitizer: the errors (and hazards) that its summary counts, -1 without a summary; *words, if it is not NULL:
 * its lines before that, without their mark, cut after 3000 bytes, which the caller frees. */
long figures_of_check(const char *text, char **words);

/* Why there are no figures, as far as the tool says; the caller frees. NULL: it does not say. */
char *figures_why(const char *text);

#endif
