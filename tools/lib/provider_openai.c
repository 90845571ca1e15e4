/* provider_openai.c - chat completions at any base URL: OpenAI, vLLM, llama.cpp, Ollama, Gemini's compatible end.
 *
 * Reads KM_BASE_URL (default https://api.openai.com/v1), the key from KM_API_KEY or else OPENAI_API_KEY. The key goes
 * into one header and nowhere else; a body that repeats it is cleaned before anything looks at it.
 * A try that meets 408, 409, 429, 5xx or a broken connection is made again, three tries in all; others fail at once.
 */
#include "provider.h"

#include "http.h"
#include "json.h"
#include "text.h"
#include "util.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEFAULT_BASE_URL "https://api.openai.com/v1"

enum {
	TRIES = 3,
	MAX_RETRY_AFTER = 60, /* seconds; a server that asks for longer is not waited for */
	SECRET_MIN = 12,      /* shorter keys are dummies ("none", "ollama") that ordinary text may hold */
};

struct endpoint {
	char *url, *host, *authorization; /* authorization: NULL without a key */
	const char *key;                  /* "" without one */
	bool openai;                      /* the service of OpenAI itself */
};

static void endpoint_release(struct endpoint *e)
{
	free(e->url);
	free(e->host);
	free(e->authorization);
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

static int find_endpoint(struct endpoint *e, struct error *err)
{
	const char *base = getenv("KM_BASE_URL"), *key = getenv("KM_API_KEY");
	size_t len;

	if (!base || !*base)
		base = DEFAULT_BASE_URL;
	if (!key || !*key)
		key = getenv("OPENAI_API_KEY");
	e->key = key ? key : "";
	if (!starts_with(base, "http://") && !starts_with(base, "https://"))
		return error_set(err, KM_EXIT_USAGE, "KM_BASE_URL must start with http:// or https://");
	for (const char *p = e->key; *p; p++)
		if (*p <= ' ' || *p >= 0x7f)
			return error_set(err, KM_EXIT_ENVIRONMENT, "the API key holds a character that no key has");
	len = strlen(base);
	while (len && base[len - 1] == '/')
		len--;
	e->url = xasprintf("%.*s/chat/completions", (int)len, base);
	e->host = url_host(base);
	e->openai = strcmp(e->host, "api.openai.com") == 0;
	if (*e->key)
		e->authorization = xasprintf("Authorization: Bearer %s", e->key);
	else if (e->openai)
		return error_set(err, KM_EXIT_ENVIRONMENT, "no API key: set KM_API_KEY or OPENAI_API_KEY in the environment, or KM_BASE_URL for another server");
	return 0;
}

/* The body to send. The caller frees. */
static char *compose(const cJSON *request, bool openai)
{
	const cJSON *parameters = json_get(request, "parameters"), *temperature = json_get(parameters, "temperature");
	cJSON *body = cJSON_CreateObject();
	struct buf b;
	char *text;

	json_set_string(body, "model", json_string(parameters, "model"));
	json_set(body, "messages", cJSON_Duplicate(json_get(request, "messages"), true));
	/* OpenAI has renamed the parameter; the servers that imitate it know the old name. */
	json_set_number(body, openai ? "max_completion_tokens" : "max_tokens", json_number(parameters, "max_tokens", 0));
	if (temperature)
		json_set_number(body, "temperature", temperature->valuedouble);
	json_set_bool(body, "stream", false);
	buf_init(&b, JSON_MAX_BYTES);
	json_print_compact(body, &b);
	cJSON_Delete(body);
	text = buf_take(&b);
	buf_release(&b);
	return text;
}

static bool worth_retrying(const struct http_reply *reply)
{
	if (reply->outcome == HTTP_UNREACHABLE)
		return true;
	return reply->outcome == HTTP_ANSWERED &&
	       (reply->status == 408 || reply->status == 409 || reply->status == 429 || reply->status >= 500) &&
	       reply->retry_after <= MAX_RETRY_AFTER;
}

static void pause_before(int try, double retry_after)
{
	double seconds = retry_after >= 0 ? retry_after : 1 << (try - 1);
	struct timespec t = { .tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9) };

	nanosleep(&t, NULL);
}

/* What an error body says: error.message if it is JSON of the usual form, else its first characters. */
static void append_excerpt(struct buf *out, const char *body)
{
	cJSON *json = json_parse(body, strlen(body), NULL);
	const cJSON *error = json_get(json, "error");
	const char *message = cJSON_IsString(error) ? error->valuestring : json_string(error, "message");

	if (!message)
		message = json_string(json, "message");
	text_line(out, message ? message : body, 300);
	cJSON_Delete(json);
}

static int failure(const struct endpoint *e, const struct http_reply *reply, const char *body, int tries, struct error *err)
{
	struct buf excerpt;

	buf_init(&excerpt, 1024);
	if (reply->outcome != HTTP_ANSWERED) {
		text_line(&excerpt, reply->reason, 300);
		error_set(err, KM_EXIT_REMOTE, "%s: %s (%d tr%s)", e->host, reply->outcome == HTTP_TOO_LARGE ? "the reply is larger than 16 MB" : excerpt.data,
			  tries, tries == 1 ? "y" : "ies");
	} else if (reply->status >= 300 && reply->status < 400) {
		char *host = url_host(reply->location);

		error_set(err, KM_EXIT_REMOTE, "%s: HTTP status %ld, a redirect to '%s', which is not followed: set KM_BASE_URL", e->host, reply->status, host);
		free(host);
	} else {
		append_excerpt(&excerpt, body);
		error_set(err, KM_EXIT_REMOTE, "%s: HTTP status %ld (%d tr%s)%s%s", e->host, reply->status, tries, tries == 1 ? "y" : "ies",
			  excerpt.len ? ": " : "", excerpt.data);
	}
	buf_release(&excerpt);
	return -1;
}

/* The text of choices[0].message: its content, a string or an array of text parts, or the refusal. NULL if there is no
 * such message. The caller frees. */
static char *message_text(const cJSON *body)
{
	const cJSON *message = json_get(cJSON_GetArrayItem(json_get(body, "choices"), 0), "message");
	const cJSON *content = json_get(message, "content"), *part;
	struct buf b;
	char *text;

	if (!cJSON_IsObject(message))
		return NULL;
	if (cJSON_IsString(content))
		return xstrdup(content->valuestring);
	buf_init(&b, REPLY_MAX_BYTES);
	cJSON_ArrayForEach(part, content)
		if (json_string(part, "text"))
			buf_puts(&b, json_string(part, "text"));
	if (b.len == 0 && json_string(message, "refusal"))
		buf_puts(&b, json_string(message, "refusal"));
	text = buf_take(&b);
	buf_release(&b);
	return text;
}

static long count_of(const cJSON *usage, const char *key)
{
	double n = json_number(usage, key, 0);

	return n >= 0 && n < 1e9 ? (long)n : 0;
}

static int take_reply(const struct endpoint *e, const struct http_reply *reply, const char *clean, const struct provider_options *options,
		      struct provider_answer *answer, struct error *err)
{
	cJSON *body = json_parse(clean, strlen(clean), err);
	const cJSON *usage = json_get(body, "usage");
	double cost = json_number(usage, "cost", -1);
	const char *model = json_string(body, "model");

	if (!body) {
		err->code = KM_EXIT_REMOTE;
		return error_prefix(err, "%s: the reply is not JSON", e->host);
	}
	answer->text = message_text(body);
	if (!answer->text) {
		cJSON_Delete(body);
		return error_set(err, KM_EXIT_REMOTE, "%s: the reply holds no choices[0].message", e->host);
	}
	answer->recorded = true;
	answer->raw = xstrdup(clean);
	answer->model = model ? xstrdup(model) : NULL;
	answer->tokens_in = count_of(usage, "prompt_tokens");
	answer->tokens_out = count_of(usage, "completion_tokens");
	answer->usd = cost >= 0 ? cost : ((double)answer->tokens_in * options->usd_in + (double)answer->tokens_out * options->usd_out) * 1e-6;
	answer->seconds = reply->seconds;
	cJSON_Delete(body);
	return 0;
}

/* The reply's body as text that may be looked at and kept: without the key, valid UTF-8. The caller frees. */
static char *clean_body(struct http_reply *reply, const char *key)
{
	if (strlen(key) >= SECRET_MIN)
		text_scrub(&reply->body, key);
	return text_clean(reply->body.data, reply->body.len);
}

static int converse(const struct endpoint *e, const struct http_post *post, const struct provider_options *options,
		    struct provider_answer *answer, struct error *err)
{
	for (int try = 1;; try++) {
		struct http_reply reply;
		bool again, fine;
		char *clean;
		int status;

		http_post(post, &reply);
		again = try < TRIES && worth_retrying(&reply);
		fine = reply.outcome == HTTP_ANSWERED && reply.status == 200;
		if (again) {
			pause_before(try, reply.retry_after);
			http_reply_release(&reply);
			continue;
		}
		clean = clean_body(&reply, e->key);
		status = fine ? take_reply(e, &reply, clean, options, answer, err) : failure(e, &reply, clean, try, err);
		free(clean);
		http_reply_release(&reply);
		return status;
	}
}

static int ask(const cJSON *request, const struct provider_options *options, struct provider_answer *answer, struct error *err)
{
	const char *model = json_string(json_get(request, "parameters"), "model");
	struct endpoint e = { 0 };
	int status = -1;

	if (!*model)
		return error_set(err, KM_EXIT_USAGE, "provider openai needs a model: the request names none");
	if (find_endpoint(&e, err) == 0) {
		const char *headers[] = { "Content-Type: application/json", "Accept: application/json", "Expect:", e.authorization, NULL };
		char *body = compose(request, e.openai);
		struct http_post post = {
			.url = e.url, .headers = headers, .body = body, .body_len = strlen(body),
			.reply_ceiling = REPLY_MAX_BYTES, .connect_seconds = 30, .seconds = options->timeout,
		};

		status = converse(&e, &post, options, answer, err);
		free(body);
	}
	endpoint_release(&e);
	return status;
}

const struct provider provider_openai = { .name = "openai", .ask = ask };
