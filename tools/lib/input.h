/* input.h - JSON inputs whose bytes are remembered by hash, for made_by (json.h). */
#ifndef KM_INPUT_H
#define KM_INPUT_H

#include "error.h"
#include "hash.h"

#include <cjson/cJSON.h>

/* As json_load; hex gets the sha256 of the file's bytes. */
cJSON *input_load(const char *path, const char *kind, char hex[HASH_HEX + 1], struct error *err);

/* Add an input to made_by of a document on which json_made_by was called. */
void input_note(cJSON *document, const char *name, const char *hex);

#endif
