/* diagnostics.h - what a compiler says, fit for a prompt: the first errors whole, no path of this machine. */
#ifndef KM_DIAGNOSTICS_H
#define KM_DIAGNOSTICS_H

#include "buf.h"

#include <stddef.h>

/* Write into out at most `most` bytes of the compiler's text: its errors with their notes, each whole unless the very
 * first is too long, warnings left out, valid UTF-8. If more were there, a last line says how many. */
void diagnostics_trim(const char *text, size_t len, size_t most, struct buf *out);

/* The first line that names an error, or the first line; the caller frees. "" if there is none. */
char *diagnostics_headline(const char *trimmed);

#endif
