/* ask.h - from a request to a reply document, keeping everything that was paid for.
 *
 * With a run folder: calls/<id>.json holds each answer, calls.tsv the ledger. The order is: start line, call,
 * calls/<id>.json, end line, reply.json; so after a kill at any instant a stored answer is never asked for again,
 * every stored answer gets exactly one end line, and a second start line means a call that was cut off in flight.
 */
#ifndef KM_ASK_H
#define KM_ASK_H

#include "calls.h"
#include "error.h"
#include "provider.h"

#include <cjson/cJSON.h>

struct ask {
	const struct provider *provider;
	struct provider_options options;
	const char *run;   /* folder that holds calls/ and calls.tsv; NULL: nothing is stored */
	const char *check; /* shell command that is given the reply's text and ends with 0 or KM_EXIT_REFUSED, NULL for none */
	long again;        /* how often a reply that the check refuses is asked for again */
	struct calls_limits limits; /* looked at before each call that somebody answers */
	/* Called with each answer that was just paid for, and the ledger's sums with it; may be NULL. */
	void (*answered)(const struct ask *ask, const cJSON *request, const struct provider_answer *answer);
};

/* The reply document (schema "reply", without made_by) to a request, asked again with the complaint of ask->check as
 * the next message, at most 1 + ask->again tries in all; a reply that was cut at the token limit, or refused, is asked for
 * again in the same way if there is a check. NULL with the reason on failure or while waiting. */
cJSON *ask_reply(const struct ask *ask, const cJSON *request, struct error *err);

/* Remove the files of provider manual, for all tries of a reply, that are not needed any more: called once the reply
 * is on file. An answer that is not the one on file is left alone. Without a folder it does nothing. */
void ask_tidy(const struct ask *ask, const cJSON *reply);

#endif
