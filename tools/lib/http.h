/* http.h - one HTTP POST, with limits, over libcurl. Only providers include this. */
#ifndef KM_HTTP_H
#define KM_HTTP_H

#include "buf.h"
#include "error.h"

#include <stdbool.h>
#include <stddef.h>

struct http_post {
	const char *url;         /* http or https */
	const char *const *headers; /* "Name: value", ends with NULL */
	const char *body;
	size_t body_len;
	size_t reply_ceiling;    /* most bytes taken of the reply */
	double connect_seconds, seconds;
};

enum http_outcome {
	HTTP_ANSWERED,    /* status and body are there, whatever the status */
	HTTP_UNREACHABLE, /* no connection, or it broke before the whole reply was there: may be tried again */
	HTTP_TIMED_OUT,
	HTTP_TOO_LARGE,
	HTTP_REFUSED,     /* the URL or the server's certificate is not acceptable: trying again is no use */
};

struct http_reply {
	enum http_outcome outcome;
	long status;         /* of an answered request */
	double retry_after;  /* seconds; -1 if the server named none */
	char location[300];  /* where a redirect points to, else "" */
	char reason[300];    /* of any outcome but HTTP_ANSWERED; holds neither URL nor headers */
	double seconds;
	struct buf body;
};

/* Redirects are not followed. Always sets *reply, to be released. */
void http_post(const struct http_post *post, struct http_reply *reply);
void http_reply_release(struct http_reply *reply);

#endif
