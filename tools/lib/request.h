/* request.h - the request document {id, cue, messages, parameters} and its identity.
 *
 * The id is the sha256 of json_print_compact({"messages", "parameters", "cue"}), so a reply belongs to what was asked
 * and to nothing else.
 */
#ifndef KM_REQUEST_H
#define KM_REQUEST_H

#include "buf.h"
#include "error.h"

#include <cjson/cJSON.h>

/* Append {"role", "content"} to an array of messages. */
void messages_add(cJSON *messages, const char *role, const char *content);

/* parameters.model ("" for NULL), max_tokens, and temperature if it is not NULL. */
cJSON *request_parameters(const char *model, int max_tokens, const double *temperature);

/* Takes ownership of messages and parameters; computes the id. */
cJSON *request_new(cJSON *messages, cJSON *parameters, const char *cue);

/* Compute the id of what the document holds now. hex has room for HASH_HEX + 1. */
void request_id(const cJSON *request, char *hex);

/* The request that asks again after an answer that could not be read: the same messages, then the answer, then the
 * complaint; cue "CUE~number" from the cue of the first request. */
cJSON *request_again(const cJSON *request, const char *first_cue, int number, const char *answer, const char *complaint);

/* The messages as one plain text, for a command or a person: system and user text one after the other; what was
 * answered before is set off by a line. */
void request_text(const cJSON *request, struct buf *out);

/* Bytes of all messages, and a rough number of tokens in so many bytes (a quarter), for estimates. */
size_t request_bytes(const cJSON *request);
long estimate_tokens(size_t bytes);

#endif
