/* oracle.h - the task's compiled reference.c: inputs, expected rows, counts.
 *
 * args are struct km_args as a block of bytes laid out by task_layout, with pointers of this process.
 */
#ifndef KM_ORACLE_H
#define KM_ORACLE_H

#include "error.h"
#include "task.h"

#include <stdint.h>

struct oracle;

/* Open the library that build_reference made. KM_EXIT_INPUT if it lacks a function of reference.h. */
struct oracle *oracle_open(const char *library, const struct task *task, struct error *err);
void oracle_close(struct oracle *o);

/* Complete the inputs in place. */
void oracle_inputs(const struct oracle *o, const void *args, int set, uint64_t seed);

/* Rows of these args; -1 with KM_EXIT_INPUT if the reference names none or a number that does not divide an output. */
int64_t oracle_rows(const struct oracle *o, const void *args, const int64_t *axes, struct error *err);

/* The expected row of every output: expected[i] has room for it. */
void oracle_row(const struct oracle *o, const void *args, int64_t row, double *const *expected);

void oracle_counts(const struct oracle *o, const void *args, double *flops, double *bytes);

#endif
