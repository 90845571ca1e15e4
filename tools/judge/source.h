/* source.h - what can be said about C or CUDA source without compiling it.
 *
 * A lexer that knows spliced lines, comments, string and character literals, raw strings and preprocessor directives.
 * It gives the text without comments and layout, whose hash is the same for two sources that differ in nothing else,
 * and finds the directives by which a source could reach for another file. It is the first line only: the sandbox
 * holds no file worth reaching for.
 */
#ifndef KM_SOURCE_H
#define KM_SOURCE_H

#include "buf.h"
#include "hash.h"

#include <stdbool.h>
#include <stddef.h>

struct source_facts {
	bool has_code;                /* anything but comments and white space */
	char sha256[HASH_HEX + 1];    /* of the normalised text */
	char rule[32], message[240];  /* the rule that it breaks, "include" or "incbin"; "" if none */
};

void source_scan(const char *text, size_t len, struct source_facts *facts);

/* The normalised text itself: tokens with one space between them; a directive on a line of its own, in which runs of
 * white space are one space. */
void source_normalise(const char *text, size_t len, struct buf *out);

#endif
