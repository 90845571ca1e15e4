#include "http.h"

#include "util.h"

#include <ctype.h>
#include <curl/curl.h>
#include <stdio.h>
#include <string.h>

struct transfer {
	const struct http_post *post;
	struct http_reply *reply;
	CURL *curl;
	size_t taken;   /* bytes of the body */
	double last;    /* when the latest byte came, or the request went */
	curl_off_t up, down;
	bool stalled, stopped, too_large, cut; /* cut: enough of an error's body was read */
};

/* Anything but the full length makes curl end the transfer. */
static size_t take(char *data, size_t size, size_t count, void *user)
{
	struct transfer *t = user;
	size_t len = size * count;
	long status = 0;

	curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
	t->taken += len;
	if (status != 200) {
		t->cut = t->taken > HTTP_ERROR_BYTES || !buf_add(&t->reply->body, data, len);
		return t->cut ? 0 : len;
	}
	if (t->taken > t->post->reply_ceiling) {
		t->too_large = true;
		return 0;
	}
	if (t->post->take)
		t->stopped = !t->post->take(t->post->user, data, len);
	else
		t->too_large = !buf_add(&t->reply->body, data, len);
	return t->stopped || t->too_large ? 0 : len;
}

static int progress(void *user, curl_off_t total_down, curl_off_t down, curl_off_t total_up, curl_off_t up)
{
	struct transfer *t = user;
	double now = monotonic_seconds();

	(void)total_down;
	(void)total_up;
	if (down != t->down || up != t->up) {
		t->down = down;
		t->up = up;
		t->last = now;
	}
	if (t->post->tick)
		t->post->tick(t->post->user);
	t->stalled = t->post->stall_seconds > 0 && now - t->last > t->post->stall_seconds;
	return t->stalled;
}

static enum http_outcome classify(CURLcode code, const struct transfer *t)
{
	switch (code) {
	case CURLE_OK:
		return HTTP_ANSWERED;
	case CURLE_WRITE_ERROR:
		return t->cut ? HTTP_ANSWERED : t->stopped ? HTTP_STOPPED : t->too_large ? HTTP_TOO_LARGE : HTTP_UNREACHABLE;
	case CURLE_ABORTED_BY_CALLBACK:
		return HTTP_STALLED;
	case CURLE_OPERATION_TIMEDOUT:
		return HTTP_TIMED_OUT;
	case CURLE_COULDNT_RESOLVE_HOST:
	case CURLE_COULDNT_RESOLVE_PROXY:
	case CURLE_COULDNT_CONNECT:
	case CURLE_SEND_ERROR:
	case CURLE_RECV_ERROR:
	case CURLE_GOT_NOTHING:
	case CURLE_PARTIAL_FILE:
	case CURLE_BAD_CONTENT_ENCODING:
	case CURLE_SSL_CONNECT_ERROR:
	case CURLE_HTTP2:
	case CURLE_HTTP2_STREAM:
	case CURLE_WEIRD_SERVER_REPLY:
		return HTTP_UNREACHABLE;
	default:
		return HTTP_REFUSED;
	}
}

static void set_options(struct transfer *t, struct curl_slist *headers)
{
	const struct http_post *post = t->post;
	CURL *curl = t->curl;

	curl_easy_setopt(curl, CURLOPT_URL, post->url);
	curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(curl, CURLOPT_TCP_KEEPALIVE, 1L);
	curl_easy_setopt(curl, CURLOPT_POST, 1L);
	curl_easy_setopt(curl, CURLOPT_POSTFIELDS, post->body);
	curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)post->body_len);
	curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(curl, CURLOPT_ACCEPT_ENCODING, "");
	curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)(post->connect_seconds * 1e3));
	curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)(post->seconds * 1e3));
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, t);
	curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
	curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, progress);
	curl_easy_setopt(curl, CURLOPT_XFERINFODATA, t);
}

/* curl reads both forms of Retry-After, but does not say whether it could: a number, or a date such as "Mon, ...". */
static double retry_after(CURL *curl)
{
	struct curl_header *header;
	curl_off_t seconds = 0;
	const char *text;

	if (curl_easy_header(curl, "Retry-After", 0, CURLH_HEADER, -1, &header) != CURLHE_OK)
		return -1;
	text = header->value + strspn(header->value, " \t");
	if (!isdigit((unsigned char)*text) && curl_getdate(text, NULL) == -1)
		return -1;
	curl_easy_getinfo(curl, CURLINFO_RETRY_AFTER, &seconds);
	return seconds > 0 ? (double)seconds : 0;
}

static void read_facts(CURL *curl, struct http_reply *reply)
{
	char *location = NULL;

	curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &reply->status);
	reply->retry_after = retry_after(curl);
	if (curl_easy_getinfo(curl, CURLINFO_REDIRECT_URL, &location) == CURLE_OK && location)
		snprintf(reply->location, sizeof(reply->location), "%s", location);
}

void http_post(const struct http_post *post, struct http_reply *reply)
{
	struct transfer t = { .post = post, .reply = reply, .last = monotonic_seconds(), .curl = curl_easy_init() };
	struct curl_slist *headers = NULL;
	CURLcode code;

	memset(reply, 0, sizeof(*reply));
	reply->retry_after = -1;
	buf_init(&reply->body, post->reply_ceiling);
	if (!t.curl) {
		reply->outcome = HTTP_REFUSED;
		snprintf(reply->reason, sizeof(reply->reason), "libcurl cannot start");
		return;
	}
	for (const char *const *h = post->headers; *h; h++)
		headers = curl_slist_append(headers, *h);
	set_options(&t, headers);
	code = curl_easy_perform(t.curl);
	reply->outcome = classify(code, &t);
	if (reply->outcome == HTTP_ANSWERED)
		read_facts(t.curl, reply);
	else if (reply->outcome == HTTP_STALLED)
		snprintf(reply->reason, sizeof(reply->reason), "no byte came for %g s", post->stall_seconds);
	else
		snprintf(reply->reason, sizeof(reply->reason), "%s", curl_easy_strerror(code));
	curl_slist_free_all(headers);
	curl_easy_cleanup(t.curl);
}

void http_reply_release(struct http_reply *reply)
{
	buf_release(&reply->body);
}
