/* mend.h - JSON that servers and models get slightly wrong, where what was meant is beyond doubt. */
#ifndef KM_MEND_H
#define KM_MEND_H

#include <stddef.h>

/* A copy in which escapes that json_parse refuses, \u0000 and halves of surrogate pairs, are \ufffd. The caller frees. */
char *mend_escapes(const char *text, size_t len);

/* A copy without comments (double slash to the end of the line, slash-star to star-slash) and without commas before a
 * closing bracket, outside strings. Nothing else is mended: quotes, brackets and values stay as they are. The caller frees. */
char *mend_syntax(const char *text, size_t len);

/* Length of the object that begins at text[0] == '{', where brackets in strings and comments do not count; 0 if it does
 * not close. */
size_t mend_object_length(const char *text, size_t len);

#endif
