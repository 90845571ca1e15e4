/* compare.h - is an output row right?
 *
 * A row of length n passes if every element has |got - ref| <= a |ref| + c rms(ref row) + absolute, and, where r is
 * asked, ||got - ref|| <= r ||ref|| + absolute sqrt(n) (Euclidean norms). The comparisons are written so that NaN fails.
 * Where the reference is infinite the output must be that infinity; such elements are left out of rms and norms. A
 * NaN in the reference is the reference's bug.
 */
#ifndef KM_COMPARE_H
#define KM_COMPARE_H

#include "task.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { COMPARE_SHOWN = 8 }; /* wrong elements kept for the report */

struct compare_element {
	int64_t row, index; /* index: within the row */
	double got, expected;
};

/* What was found in the rows of one output; zero it at first. */
struct compare_result {
	int64_t checked_rows, wrong_rows;
	double max_abs_error, max_rel_error; /* over finite elements; relative to max(|ref|, rms(ref row)) */
	struct compare_element wrong[COMPARE_SHOWN];
	int wrong_count; /* of wrong[], in the order found */
};

enum compare_verdict { COMPARE_RIGHT, COMPARE_WRONG, COMPARE_REFERENCE_NAN };

/* Compare one row and add what was found to *result. */
enum compare_verdict compare_row(const double *got, const double *expected, size_t n, int64_t row,
				 const struct task_tolerance *tolerance, struct compare_result *result);

#endif
