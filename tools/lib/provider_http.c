#include "provider_http.h"

#include "http.h"
#include "json.h"
#include "mend.h"
#include "request.h"
#include "sse.h"
#include "text.h"
#include "util.h"

#include <ctype.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

enum {
	SECRET_MIN = 12,          /* shorter keys are dummies ("none", "ollama") that ordinary text may hold */
	STREAM_OVERHEAD = 16,     /* a stream may take so many times the bytes of the largest reply */
	CONNECT_SECONDS = 30,
	REASON_MAX = 300,
};

struct endpoint {
	const struct protocol *protocol;
	char *url, *host, *key_header; /* key_header: NULL without a key */
	const char *key;               /* "" without one */
	bool own;                      /* the service itself */
};

/* What one try came to. */
enum verdict { FINE, AGAIN, FAILED };

/* One call: all that its tries share, and the state of the try that runs. */
struct call {
	const struct endpoint *endpoint;
	const struct provider_options *options;
	double start;
	int try;
	/* of this try: */
	struct stream_reply stream;
	struct sse sse;
	struct buf body;
	bool decided, streamed; /* whether the body is a stream shows with its first bytes */
	char trouble[REASON_MAX + 64]; /* what an event of the stream said went wrong */
	bool trouble_stays;            /* and that it will again */
};

/* ---- the endpoint ----------------------------------------------------------------------------------------------- */

static void endpoint_release(struct endpoint *e)
{
	free(e->url);
	free(e->host);
	free(e->key_header);
}

/* Host and port of a URL, without user, password, path or query: fit for a message. The caller frees. */
static char *url_host(const char *url)
{
	const char *start = strstr(url, "://"), *at;
	size_t len;

	start = start ? start + 3 : url;
	len = strcspn(start, "/?#");
	at = memrchr(start, '@', len);
	if (at) {
		len -= (size_t)(at + 1 - start);
		start = at + 1;
	}
	return xstrndup(start, len);
}

static int find_endpoint(const struct protocol *protocol, struct endpoint *e, struct error *err)
{
	const char *base = getenv("KM_BASE_URL"), *key = getenv("KM_API_KEY");
	size_t len;

	if (!base || !*base)
		base = protocol->base_url;
	if (!key || !*key)
		key = getenv(protocol->key_variable);
	e->protocol = protocol;
	e->key = key ? key : "";
	if (!starts_with(base, "http://") && !starts_with(base, "https://"))
		return error_set(err, KM_EXIT_USAGE, "KM_BASE_URL must start with http:// or https://");
	for (const char *p = e->key; *p; p++)
		if (*p <= ' ' || *p >= 0x7f)
			return error_set(err, KM_EXIT_ENVIRONMENT, "the API key holds a character that no key has");
	len = strlen(base);
	while (len && base[len - 1] == '/')
		len--;
	e->url = xasprintf("%.*s%s", (int)len, base, protocol->path);
	e->host = url_host(base);
	e->own = strcmp(e->host, protocol->host) == 0;
	if (*e->key)
		e->key_header = xasprintf(protocol->key_header, e->key);
	else if (e->own)
		return error_set(err, KM_EXIT_ENVIRONMENT, "no API key: set KM_API_KEY or %s in the environment, or KM_BASE_URL for another server",
				 protocol->key_variable);
	return 0;
}

/* ---- what may be looked at -------------------------------------------------------------------------------------- */

static void scrub(struct buf *text, const char *key)
{
	if (strlen(key) >= SECRET_MIN)
		text_scrub(text, key);
}

/* Bytes of the server as JSON text for json_parse: without the key, valid UTF-8, no escaped NULs. The caller frees. */
static char *clean_bytes(const char *bytes, size_t len, const char *key)
{
	struct buf b;
	char *text, *clean;

	buf_init(&b, len + 1);
	buf_add(&b, bytes, len);
	scrub(&b, key);
	text = text_clean(b.data, b.len);
	clean = mend_escapes(text, strlen(text));
	free(text);
	buf_release(&b);
	return clean;
}

/* A text without the key; `text` is freed. */
static char *scrubbed(char *text, const char *key)
{
	struct buf b;

	buf_init(&b, strlen(text) + 1);
	buf_puts(&b, text);
	free(text);
	scrub(&b, key);
	text = buf_take(&b);
	buf_release(&b);
	return text;
}

long usage_count(const cJSON *usage, const char *key)
{
	double n = json_number(usage, key, 0);

	return n >= 0 && n < 1e9 ? (long)n : 0;
}

/* ---- errors that a body names ----------------------------------------------------------------------------------- */

/* {"error": {"message", "type", "code"}} or {"error": "..."} or {"message": "..."}: the message, or NULL. */
static const char *error_message(const cJSON *body)
{
	const cJSON *error = json_get(body, "error");
	const char *message = cJSON_IsString(error) ? error->valuestring : json_string(error, "message");

	if (!message && cJSON_IsObject(error))
		message = "an error without a message";
	return message;
}

/* An error that the next try would meet again, whatever the status says. */
static bool error_stays(const cJSON *body)
{
	static const char *const kinds[] = { "insufficient_quota", "invalid_request_error", "authentication_error", "permission_error", "not_found_error",
					     "request_too_large", "billing_error" };
	const cJSON *error = json_get(body, "error");
	const char *type = json_string(error, "type"), *code = json_string(error, "code");

	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
		if ((type && strcmp(type, kinds[i]) == 0) || (code && strcmp(code, kinds[i]) == 0))
			return true;
	return false;
}

static void append_excerpt(struct buf *out, const cJSON *json, const char *body)
{
	const char *message = error_message(json);

	if (!message)
		message = json_string(json, "message");
	text_line(out, message ? message : body, REASON_MAX);
}

/* ---- the stream ------------------------------------------------------------------------------------------------- */

static void report(const struct call *call, double wait, const char *reason)
{
	struct provider_progress p = {
		.try = call->try, .seconds = monotonic_seconds() - call->start, .text = call->stream.text.len + (call->decided && !call->streamed ? call->body.len : 0),
		.thinking = call->stream.thinking.len, .wait = wait, .reason = reason,
	};

	if (call->options->progress)
		call->options->progress(call->options->progress_data, &p);
}

static void tick(void *user)
{
	report(user, 0, NULL);
}

static bool take_event(void *user, const char *data, size_t len)
{
	struct call *call = user;
	char *clean;
	cJSON *event;

	if (len == 6 && memcmp(data, "[DONE]", 6) == 0) {
		call->stream.complete = true;
		return false;
	}
	clean = clean_bytes(data, len, call->endpoint->key);
	event = json_parse(clean, strlen(clean), NULL);
	if (!event) {
		snprintf(call->trouble, sizeof(call->trouble), "an event of the stream is not JSON");
	} else if (error_message(event)) {
		struct buf excerpt;

		buf_init(&excerpt, 1024);
		append_excerpt(&excerpt, event, clean);
		snprintf(call->trouble, sizeof(call->trouble), "an error in the stream: %s", excerpt.data);
		call->trouble_stays = error_stays(event);
		buf_release(&excerpt);
	} else {
		call->endpoint->protocol->take_event(&call->stream, event);
	}
	cJSON_Delete(event);
	free(clean);
	return !*call->trouble && !call->stream.text.overflow && !call->stream.thinking.overflow;
}

/* Decide from its first bytes, whatever its Content-Type, whether a body is a stream: JSON begins with a brace, what a
 * proxy says in HTML with '<', and an event with the name of a field or a colon. */
static void decide(struct call *call)
{
	const char *p = call->body.data + strspn(call->body.data, " \t\r\n");

	if (strncmp(p, "\xef\xbb\xbf", 3) == 0)
		p += 3;
	if (!*p)
		return;
	call->streamed = *p == ':' || isalpha((unsigned char)*p);
	if (call->streamed && strcspn(p, ":\r\n") == strlen(p) && strlen(p) < 8)
		return; /* a field's name that is not all there */
	call->decided = true;
	if (call->streamed && *p != ':')
		call->streamed = starts_with(p, "data:") || starts_with(p, "event:") || starts_with(p, "id:") || starts_with(p, "retry:");
}

static bool take_piece(void *user, const char *bytes, size_t len)
{
	struct call *call = user;

	if (call->decided && call->streamed)
		return sse_feed(&call->sse, bytes, len);
	if (!buf_add(&call->body, bytes, len))
		return false;
	if (!call->decided) {
		decide(call);
		if (call->decided && call->streamed)
			return sse_feed(&call->sse, call->body.data, call->body.len);
	}
	return true;
}

static void try_init(struct call *call)
{
	memset(&call->stream, 0, sizeof(call->stream));
	buf_init(&call->stream.text, REPLY_MAX_BYTES);
	buf_init(&call->stream.thinking, REPLY_MAX_BYTES);
	buf_init(&call->stream.refusal, REPLY_MAX_BYTES);
	call->stream.facts = cJSON_CreateObject();
	buf_init(&call->body, REPLY_MAX_BYTES);
	sse_init(&call->sse, REPLY_MAX_BYTES, take_event, call);
	call->decided = call->streamed = call->trouble_stays = false;
	call->trouble[0] = 0;
}

static void try_release(struct call *call)
{
	buf_release(&call->stream.text);
	buf_release(&call->stream.thinking);
	buf_release(&call->stream.refusal);
	cJSON_Delete(call->stream.facts);
	buf_release(&call->body);
	sse_release(&call->sse);
}

/* ---- one try ---------------------------------------------------------------------------------------------------- */

/* Put the answer together from a body. Tokens that the server did not count are estimated. */
static int fill_answer(struct call *call, const cJSON *request, const cJSON *body, char *raw, struct provider_answer *answer, struct error *err)
{
	double cost = json_number(json_get(body, "usage"), "cost", -1);

	if (call->endpoint->protocol->read(body, answer, err) < 0) {
		provider_answer_release(answer);
		free(raw);
		return -1;
	}
	answer->text = scrubbed(answer->text, call->endpoint->key);
	answer->raw = scrubbed(raw, call->endpoint->key);
	if (answer->model)
		answer->model = scrubbed(answer->model, call->endpoint->key);
	if (answer->tokens_in == 0)
		answer->tokens_in = estimate_tokens(request_bytes(request));
	if (answer->tokens_out == 0)
		answer->tokens_out = estimate_tokens(strlen(answer->text));
	if (answer->tokens_cached > answer->tokens_in)
		answer->tokens_cached = answer->tokens_in;
	answer->usd = cost >= 0 ? cost : price_of(&call->options->price, answer->tokens_in, answer->tokens_cached, answer->tokens_out);
	answer->tries = call->try;
	answer->seconds = monotonic_seconds() - call->start;
	answer->recorded = true;
	return 0;
}

static enum verdict read_stream(struct call *call, const cJSON *request, struct provider_answer *answer, struct error *why)
{
	struct buf raw;
	cJSON *body;
	enum verdict verdict = FINE;

	body = call->endpoint->protocol->assemble(&call->stream);
	buf_init(&raw, JSON_MAX_BYTES);
	json_print_compact(body, &raw);
	if (fill_answer(call, request, body, buf_take(&raw), answer, why) < 0)
		verdict = AGAIN;
	buf_release(&raw);
	cJSON_Delete(body);
	return verdict;
}

static enum verdict read_body(struct call *call, const cJSON *request, struct provider_answer *answer, struct error *why)
{
	char *clean = clean_bytes(call->body.data, call->body.len, call->endpoint->key);
	enum verdict verdict = AGAIN;
	cJSON *body = json_parse(clean, strlen(clean), why);

	if (!body && call->body.len == 0) {
		error_set(why, KM_EXIT_REMOTE, "the reply is empty");
	} else if (!body) {
		error_prefix(why, "the reply is not JSON");
	} else if (error_message(body)) {
		struct buf excerpt;

		buf_init(&excerpt, 1024);
		append_excerpt(&excerpt, body, clean);
		error_set(why, KM_EXIT_REMOTE, "an error in the reply: %s", excerpt.data);
		verdict = error_stays(body) ? FAILED : AGAIN;
		buf_release(&excerpt);
	} else if (fill_answer(call, request, body, xstrdup(clean), answer, why) == 0) {
		verdict = FINE;
	}
	cJSON_Delete(body);
	free(clean);
	return verdict;
}

static enum verdict read_reply(struct call *call, const cJSON *request, struct provider_answer *answer, struct error *why)
{
	if (call->streamed)
		sse_end(&call->sse);
	if (call->streamed && *call->trouble) {
		error_set(why, KM_EXIT_REMOTE, "%s", call->trouble);
		return call->trouble_stays ? FAILED : AGAIN;
	}
	if (call->streamed && !call->stream.complete) {
		error_set(why, KM_EXIT_REMOTE, "the stream ended before the reply did");
		return AGAIN;
	}
	return call->streamed ? read_stream(call, request, answer, why) : read_body(call, request, answer, why);
}

static enum verdict read_status(const struct call *call, const struct http_reply *reply, struct error *why)
{
	char *clean = clean_bytes(reply->body.data, reply->body.len, call->endpoint->key), *host;
	cJSON *json = json_parse(clean, strlen(clean), NULL);
	bool again = reply->status == 408 || reply->status == 409 || reply->status == 425 || reply->status == 429 || reply->status >= 500;
	struct buf excerpt;

	buf_init(&excerpt, 1024);
	if (reply->status >= 300 && reply->status < 400) {
		host = url_host(reply->location);
		error_set(why, KM_EXIT_REMOTE, "HTTP status %ld, a redirect to '%s', which is not followed: set KM_BASE_URL", reply->status, host);
		free(host);
	} else {
		append_excerpt(&excerpt, json, clean);
		error_set(why, KM_EXIT_REMOTE, "HTTP status %ld%s%s", reply->status, excerpt.len ? ": " : "", excerpt.data);
	}
	again = again && !error_stays(json);
	buf_release(&excerpt);
	cJSON_Delete(json);
	free(clean);
	return again ? AGAIN : FAILED;
}

/* True if the body is too large in whatever form it came. */
static bool is_too_large(const struct call *call, const struct http_reply *reply)
{
	return reply->outcome == HTTP_TOO_LARGE || (reply->outcome == HTTP_STOPPED && !*call->trouble && !call->stream.complete);
}

static enum verdict one_try(struct call *call, const struct http_post *post, const cJSON *request, struct provider_answer *answer,
			    double *retry_after, struct error *why)
{
	struct http_reply reply;
	enum verdict verdict;

	http_post(post, &reply);
	*retry_after = reply.retry_after;
	if ((call->streamed && call->stream.complete) || reply.outcome == HTTP_STOPPED || (reply.outcome == HTTP_ANSWERED && reply.status == 200)) {
		/* A complete stream is one, however its connection ended. */
		if (is_too_large(call, &reply)) {
			error_set(why, KM_EXIT_REMOTE, "the reply is larger than %d MB", REPLY_MAX_BYTES >> 20);
			verdict = FAILED;
		} else {
			verdict = read_reply(call, request, answer, why);
		}
	} else if (reply.outcome == HTTP_ANSWERED) {
		verdict = read_status(call, &reply, why);
	} else if (reply.outcome == HTTP_TOO_LARGE) {
		error_set(why, KM_EXIT_REMOTE, "the reply is larger than %d MB", REPLY_MAX_BYTES >> 20);
		verdict = FAILED;
	} else {
		error_set(why, KM_EXIT_REMOTE, "%s", reply.reason);
		verdict = reply.outcome == HTTP_UNREACHABLE || reply.outcome == HTTP_STALLED ? AGAIN : FAILED;
	}
	http_reply_release(&reply);
	return verdict;
}

/* ---- all tries -------------------------------------------------------------------------------------------------- */

/* Between 0 and 1. */
static double chance(void)
{
	uint32_t r = 0;

	if (getentropy(&r, sizeof(r)) != 0)
		r = (uint32_t)(monotonic_seconds() * 1e9);
	return (double)r / 4294967296.0;
}

/* Seconds before the next try: what the server asked for and up to a tenth more, else twice as long from try to try,
 * of which half is left to chance, so that slots that failed together do not come back together. */
static double pause_seconds(const struct provider_options *options, int try, double retry_after)
{
	double most = options->backoff;

	if (retry_after >= 0)
		return retry_after * (1 + 0.1 * chance());
	for (int i = 1; i < try && most < options->max_wait; i++)
		most *= 2;
	if (most > options->max_wait)
		most = options->max_wait;
	return most * (0.5 + 0.5 * chance());
}

static void sleep_until(const struct call *call, double end, const char *reason)
{
	double left;

	while ((left = end - monotonic_seconds()) > 0) {
		double step = left < 0.5 ? left : 0.5;
		struct timespec t = { .tv_sec = 0, .tv_nsec = (long)(step * 1e9) };

		report(call, left, reason);
		nanosleep(&t, NULL);
	}
}

static int give_up(const struct call *call, const struct error *why, const char *besides, struct error *err)
{
	return error_set(err, KM_EXIT_REMOTE, "%s: %.600s (%d tr%s%s)", call->endpoint->host, why->text, call->try, call->try == 1 ? "y" : "ies", besides);
}

static int converse(struct call *call, struct http_post *post, const cJSON *request, struct provider_answer *answer, struct error *err)
{
	const struct provider_options *o = call->options;
	double end = call->start + o->timeout;

	for (call->try = 1;; call->try++) {
		struct error why = { 0 };
		double retry_after, pause;
		enum verdict verdict;
		char besides[80];

		try_init(call);
		post->seconds = end - monotonic_seconds();
		if (post->seconds < 0.001)
			post->seconds = 0.001;
		verdict = one_try(call, post, request, answer, &retry_after, &why);
		try_release(call);
		if (verdict == FINE)
			return 0;
		if (verdict == FAILED || call->try >= o->tries)
			return give_up(call, &why, "", err);
		pause = pause_seconds(o, call->try, retry_after);
		if (retry_after > o->max_wait) {
			snprintf(besides, sizeof(besides), "; the server asks to wait %.0f s, more than %g", retry_after, o->max_wait);
			return give_up(call, &why, besides, err);
		}
		if (monotonic_seconds() + pause >= end) {
			snprintf(besides, sizeof(besides), "; the %g s of the call are over", o->timeout);
			return give_up(call, &why, besides, err);
		}
		sleep_until(call, monotonic_seconds() + pause, why.text);
	}
}

static char *print_body(const struct endpoint *e, const cJSON *request, bool stream)
{
	cJSON *body = e->protocol->compose(request, e->own, stream);
	struct buf b;
	char *text;

	buf_init(&b, JSON_MAX_BYTES);
	json_print_compact(body, &b);
	cJSON_Delete(body);
	text = buf_take(&b);
	buf_release(&b);
	return text;
}

int provider_http_ask(const struct protocol *protocol, const cJSON *request, const struct provider_options *options,
		      struct provider_answer *answer, struct error *err)
{
	const char *model = json_string(json_get(request, "parameters"), "model");
	struct call call = { .options = options, .start = monotonic_seconds() };
	struct endpoint e = { 0 };
	int status = -1;

	if (!*model)
		return error_set(err, KM_EXIT_USAGE, "provider %s needs a model: the request names none", protocol->name);
	if (find_endpoint(protocol, &e, err) == 0) {
		const char *headers[6] = { "Content-Type: application/json", options->whole ? "Accept: application/json" : "Accept: text/event-stream, application/json", "Expect:" };
		char *body = print_body(&e, request, !options->whole);
		struct http_post post = {
			.url = e.url, .headers = headers, .body = body, .body_len = strlen(body), .connect_seconds = CONNECT_SECONDS,
			.reply_ceiling = (size_t)REPLY_MAX_BYTES * (options->whole ? 1 : STREAM_OVERHEAD), .stall_seconds = options->whole ? 0 : options->stall,
			.take = take_piece, .tick = tick, .user = &call,
		};
		int n = 3;

		if (e.key_header)
			headers[n++] = e.key_header;
		if (protocol->extra_header)
			headers[n++] = protocol->extra_header;
		call.endpoint = &e;
		status = converse(&call, &post, request, answer, err);
		free(body);
	}
	endpoint_release(&e);
	return status;
}
