/* text.h - helpers for text that comes from models, servers, kernels and users, and goes into prompts and JSON. */
#ifndef KM_TEXT_H
#define KM_TEXT_H

#include "buf.h"

#include <stdbool.h>
#include <stddef.h>

/* A copy that json_parse would accept inside a string: every byte that is no valid UTF-8 becomes U+FFFD, NULs go, CR LF
 * becomes LF. The caller frees. */
char *text_clean(const char *text, size_t len);

/* A copy of at most `ceiling` bytes. A longer text keeps its head and its tail, cut at line ends where there are any,
 * with a line in the middle that says how many bytes were left out. The caller frees. */
char *text_excerpt(const char *text, size_t ceiling);

/* Append text as a fenced block ("```info"), the fence longer than any run of backticks in it. */
void text_fence(struct buf *out, const char *info, const char *text);

/* Append text as one line: runs of white space and control characters become a space; at most `ceiling` bytes, "..."
 * at the end if it was cut. */
void text_line(struct buf *out, const char *text, size_t ceiling);

/* Replace every occurrence of `secret` in the text by "[key removed]"; returns how many there were. */
size_t text_scrub(struct buf *text, const char *secret);

#endif
