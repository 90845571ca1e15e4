/* template.h - prompt templates: a file with {{name}} placeholders.
 *
 * A name is a letter followed by letters, digits and '_'; blanks inside the braces do not matter, and any other "{{" is
 * ordinary text, so C initialisers need no escaping. A value is inserted as it is and never looked at again: text from
 * models, kernels and servers may hold placeholders without effect.
 */
#ifndef KM_TEMPLATE_H
#define KM_TEMPLATE_H

#include "buf.h"
#include "error.h"

enum { TEMPLATE_MAX_BYTES = 32000 }; /* the largest template file */

struct template_value {
	const char *name;
	const char *text; /* NULL: this template has no such value, and asking for it is an error */
};

/* Append FOLDER/NAME with its placeholders replaced. values ends with a name of NULL. KM_EXIT_INPUT naming the template
 * and the placeholder if it has no value, or if the file is missing or too large. */
int template_fill(const char *folder, const char *name, const struct template_value *values, struct buf *out, struct error *err);

#endif
