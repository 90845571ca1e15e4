/* code.h - find the kernel's source in a model's reply.
 *
 * Thinking tags go first. Then, of the fenced blocks (``` or ~~~, any info string, the last one may be unclosed): the
 * last that defines km_run, else the last that names it, else the largest. Without a fence the text itself is taken if
 * it defines km_run and reads like code from its first line to its last.
 */
#ifndef KM_CODE_H
#define KM_CODE_H

/* The source, ending with a newline, LF line ends; the caller frees. NULL with *reason (static text) if there is none. */
char *code_extract(const char *reply, const char **reason);

#endif
