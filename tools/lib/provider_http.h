/* provider_http.h - what providers that speak HTTP share: the endpoint and its key, the conversation with its retries,
 * streams, and what may be said and kept of a reply. A protocol says what differs.
 *
 * The key goes into one header and nowhere else: every body is cleaned of it before anything looks at it, and so is
 * every text that was put together from a stream, and every message.
 */
#ifndef KM_PROVIDER_HTTP_H
#define KM_PROVIDER_HTTP_H

#include "buf.h"
#include "provider.h"

/* A reply that comes in pieces: a protocol adds each event to it, and makes of it the body that the service would have
 * sent in one piece. */
struct stream_reply {
	struct buf text, thinking, refusal;
	cJSON *facts;     /* {"id", "model", "finish", "usage"}, as far as they came */
	bool complete;    /* the event that ends a reply has come */
};

struct protocol {
	const char *name;
	const char *base_url;     /* without KM_BASE_URL */
	const char *host;         /* of the service itself, which needs a key */
	const char *key_variable; /* beside KM_API_KEY */
	const char *path;         /* added to the base URL */
	const char *key_header;   /* "Name: %s" */
	const char *extra_header; /* or NULL */
	/* The body to send; `own` says that the host is the service itself. */
	cJSON *(*compose)(const cJSON *request, bool own, bool stream);
	void (*take_event)(struct stream_reply *reply, const cJSON *event);
	cJSON *(*assemble)(const struct stream_reply *reply);
	/* Fill text, finish, model, tokens_in, tokens_cached and tokens_out of the answer from a body (tokens stay 0 if
	 * the server counts none); -1 with what it lacks in *err. */
	int (*read)(const cJSON *body, struct provider_answer *answer, struct error *err);
};

int provider_http_ask(const struct protocol *protocol, const cJSON *request, const struct provider_options *options,
		      struct provider_answer *answer, struct error *err);

/* A count of tokens, 0 if it is none. */
long usage_count(const cJSON *usage, const char *key);

#endif
