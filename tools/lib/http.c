#include "http.h"

#include "util.h"

#include <curl/curl.h>
#include <stdio.h>
#include <string.h>

static size_t take(char *data, size_t size, size_t count, void *user)
{
	struct buf *body = user;

	/* Anything but the full length makes curl end the transfer. */
	return buf_add(body, data, size * count) ? size * count : 0;
}

static enum http_outcome classify(CURLcode code, bool overflow)
{
	switch (code) {
	case CURLE_OK:
		return HTTP_ANSWERED;
	case CURLE_WRITE_ERROR:
		return overflow ? HTTP_TOO_LARGE : HTTP_UNREACHABLE;
	case CURLE_OPERATION_TIMEDOUT:
		return HTTP_TIMED_OUT;
	case CURLE_COULDNT_RESOLVE_HOST:
	case CURLE_COULDNT_RESOLVE_PROXY:
	case CURLE_COULDNT_CONNECT:
	case CURLE_SEND_ERROR:
	case CURLE_RECV_ERROR:
	case CURLE_GOT_NOTHING:
	case CURLE_PARTIAL_FILE:
	case CURLE_SSL_CONNECT_ERROR:
	case CURLE_HTTP2:
	case CURLE_HTTP2_STREAM:
	case CURLE_WEIRD_SERVER_REPLY:
		return HTTP_UNREACHABLE;
	default:
		return HTTP_REFUSED;
	}
}

static void set_options(CURL *curl, const struct http_post *post, struct http_reply *reply, struct curl_slist *headers)
{
	curl_easy_setopt(curl, CURLOPT_URL, post->url);
	curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(curl, CURLOPT_POST, 1L);
	curl_easy_setopt(curl, CURLOPT_POSTFIELDS, post->body);
	curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)post->body_len);
	curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(curl, CURLOPT_ACCEPT_ENCODING, "");
	curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)(post->connect_seconds * 1e3));
	curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)(post->seconds * 1e3));
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, &reply->body);
}

static void read_facts(CURL *curl, struct http_reply *reply)
{
	curl_off_t after = 0;
	struct curl_header *header;
	char *location = NULL;

	curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &reply->status);
	if (curl_easy_getinfo(curl, CURLINFO_RETRY_AFTER, &after) == CURLE_OK && after > 0)
		reply->retry_after = (double)after;
	else if (curl_easy_header(curl, "Retry-After", 0, CURLH_HEADER, -1, &header) == CURLHE_OK)
		reply->retry_after = 0;
	if (curl_easy_getinfo(curl, CURLINFO_REDIRECT_URL, &location) == CURLE_OK && location)
		snprintf(reply->location, sizeof(reply->location), "%s", location);
}

void http_post(const struct http_post *post, struct http_reply *reply)
{
	struct curl_slist *headers = NULL;
	double start = monotonic_seconds();
	CURL *curl = curl_easy_init();
	CURLcode code;

	memset(reply, 0, sizeof(*reply));
	reply->retry_after = -1;
	buf_init(&reply->body, post->reply_ceiling);
	if (!curl) {
		reply->outcome = HTTP_REFUSED;
		snprintf(reply->reason, sizeof(reply->reason), "libcurl cannot start");
		return;
	}
	for (const char *const *h = post->headers; *h; h++)
		headers = curl_slist_append(headers, *h);
	set_options(curl, post, reply, headers);
	code = curl_easy_perform(curl);
	reply->outcome = classify(code, reply->body.overflow);
	reply->seconds = monotonic_seconds() - start;
	if (reply->outcome == HTTP_ANSWERED)
		read_facts(curl, reply);
	else
		snprintf(reply->reason, sizeof(reply->reason), "%s", curl_easy_strerror(code));
	curl_slist_free_all(headers);
	curl_easy_cleanup(curl);
}

void http_reply_release(struct http_reply *reply)
{
	buf_release(&reply->body);
}
