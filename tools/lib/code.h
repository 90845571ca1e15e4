/* code.h - find the kernel's source in a model's reply.
 *
 * Thinking tags go first. Then, of the fenced blocks (``` or ~~~, any info string, the last one may be unclosed): the
 * last that defines km_run. If none does and there are changes (patch.h), in fences or as the reply as a whole, all of
 * them are applied to the kernel that the prompt started from. Else the last block that names km_run, else the largest.
 * Without a fence the text itself is taken if it defines km_run and reads like code from its first line to its last.
 */
#ifndef KM_CODE_H
#define KM_CODE_H

#include "error.h"

#include <stdbool.h>

/* The source, ending with a newline, LF line ends; the caller frees. NULL with KM_EXIT_INPUT and a reason for the model
 * if there is none. `base`: the kernel that changes are applied to; NULL if there is none. */
char *code_extract(const char *reply, const char *base, struct error *err);

/* True if code_extract would want the base. */
bool code_is_patch(const char *reply);

/* The reply with LF line ends and without <think>...</think> and <thinking>...</thinking>. What is before a closing tag
 * without an opening one goes too, and so does all that follows an opening one that is never closed. The caller frees. */
char *reply_without_thinking(const char *reply);

#endif
