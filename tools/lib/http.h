/* http.h - one HTTP POST, with limits, over libcurl. Only provider_http.c includes this. */
#ifndef KM_HTTP_H
#define KM_HTTP_H

#include "buf.h"
#include "error.h"

#include <stdbool.h>
#include <stddef.h>

enum { HTTP_ERROR_BYTES = 64 << 10 }; /* what is read of a body whose status is not 200 */

struct http_post {
	const char *url;         /* http or https */
	const char *const *headers; /* "Name: value", ends with NULL */
	const char *body;
	size_t body_len;
	size_t reply_ceiling;    /* most bytes taken of the reply, after decompression */
	double connect_seconds, seconds;
	double stall_seconds;    /* without a byte, once the request is out; 0: no limit */
	/* Given each piece of a body with status 200; false ends the transfer (HTTP_STOPPED). NULL: collect it in
	 * reply->body. Other bodies are always collected there, up to HTTP_ERROR_BYTES. */
	bool (*take)(void *user, const char *data, size_t len);
	void (*tick)(void *user); /* now and then while waiting, at least every second; may be NULL */
	void *user;
};

enum http_outcome {
	HTTP_ANSWERED,    /* status and body are there, whatever the status */
	HTTP_UNREACHABLE, /* no connection, or it broke before the whole reply was there: may be tried again */
	HTTP_TIMED_OUT,
	HTTP_STALLED,
	HTTP_TOO_LARGE,
	HTTP_STOPPED,     /* .take said so */
	HTTP_REFUSED,     /* the URL or the server's certificate is not acceptable: trying again is no use */
};

struct http_reply {
	enum http_outcome outcome;
	long status;         /* of an answered request */
	double retry_after;  /* seconds, from a number or a date; -1 if the server named none that can be read */
	char location[300];  /* where a redirect points to, else "" */
	char reason[300];    /* of any outcome but HTTP_ANSWERED; holds neither URL nor headers */
	struct buf body;
};

/* Redirects are not followed. Always sets *reply, to be released. */
void http_post(const struct http_post *post, struct http_reply *reply);
void http_reply_release(struct http_reply *reply);

#endif
