/* evidence.h - what was measured, as text for a prompt: code, verdicts, times, failures, compiler errors.
 *
 * Reads the files of one attempt, rNNNNN/sK/{kernel.c,build.json,bench.json}. Everything in them is untrusted text
 * and goes into fences or single lines, within the stated ceilings.
 */
#ifndef KM_EVIDENCE_H
#define KM_EVIDENCE_H

#include "buf.h"
#include "error.h"

enum {
	EVIDENCE_MAX = 6000,         /* bytes of one verdict with its table or diagnostics */
	EVIDENCE_CODE_MAX = 64000,   /* bytes of one kernel */
	EVIDENCE_DIAGNOSTICS = 3000, /* bytes of compiler messages */
	EVIDENCE_WORKLOADS = 24,     /* rows of the table of times */
	EVIDENCE_KERNELS = 8,        /* lines about what a kernel needs of the device */
};

/* Append the kernel as a fenced block; a sentence instead if the file is empty. language: "c" or "cuda". */
int evidence_code(const char *kernel_path, const char *language, struct buf *out, struct error *err);

/* Append verdict, table of times or failure, at most EVIDENCE_MAX bytes. bench_path may name a skip document. */
int evidence_verdict(const char *build_path, const char *bench_path, struct buf *out, struct error *err);

/* Append the medians of the feedback workloads in us, in their order: "8.83 15.5 -". */
int evidence_times(const char *bench_path, struct buf *out, struct error *err);

#endif
