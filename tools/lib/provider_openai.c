/* provider_openai.c - chat completions at any base URL: OpenAI, vLLM, llama.cpp, Ollama, Gemini's compatible end. */
#include "provider_http.h"

#include "json.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>

static cJSON *compose(const cJSON *request, bool own, bool stream)
{
	const cJSON *parameters = json_get(request, "parameters"), *temperature = json_get(parameters, "temperature");
	const char *effort = json_string(parameters, "effort");
	cJSON *body = cJSON_CreateObject();

	json_set_string(body, "model", json_string(parameters, "model"));
	json_set(body, "messages", cJSON_Duplicate(json_get(request, "messages"), true));
	/* OpenAI has renamed the parameter; the servers that imitate it know the old name. */
	json_set_number(body, own ? "max_completion_tokens" : "max_tokens", json_number(parameters, "max_tokens", 0));
	if (temperature)
		json_set_number(body, "temperature", temperature->valuedouble);
	if (effort)
		json_set_string(body, "reasoning_effort", effort);
	json_set_bool(body, "stream", stream);
	if (stream) {
		json_set(body, "stream_options", cJSON_CreateObject());
		json_set_bool(json_get_mutable(body, "stream_options"), "include_usage", true);
	}
	return body;
}

static void append(struct buf *text, const char *piece)
{
	if (piece)
		buf_puts(text, piece);
}

static void take_event(struct stream_reply *reply, const cJSON *event)
{
	static const char *const facts[] = { "id", "model", "usage" };
	const cJSON *choice = cJSON_GetArrayItem(json_get(event, "choices"), 0), *delta = json_get(choice, "delta");
	const char *finish = json_string(choice, "finish_reason");

	append(&reply->text, json_string(delta, "content"));
	append(&reply->thinking, json_string(delta, "reasoning_content"));
	append(&reply->thinking, json_string(delta, "reasoning"));
	append(&reply->refusal, json_string(delta, "refusal"));
	for (size_t i = 0; i < sizeof(facts) / sizeof(*facts); i++) {
		const cJSON *fact = json_get(event, facts[i]);

		if (fact && !cJSON_IsNull(fact))
			json_set(reply->facts, facts[i], cJSON_Duplicate(fact, true));
	}
	if (finish) {
		json_set_string(reply->facts, "finish", finish);
		reply->complete = true;
	}
}

static cJSON *assemble(const struct stream_reply *reply)
{
	cJSON *body = cJSON_CreateObject(), *choices = cJSON_CreateArray(), *choice = cJSON_CreateObject(), *message = cJSON_CreateObject();
	const cJSON *usage = json_get(reply->facts, "usage");

	json_set_string(message, "role", "assistant");
	json_set_string(message, "content", reply->text.data);
	if (reply->thinking.len)
		json_set_string(message, "reasoning_content", reply->thinking.data);
	if (reply->refusal.len)
		json_set_string(message, "refusal", reply->refusal.data);
	json_set(choice, "message", message);
	json_set_string(choice, "finish_reason", json_string(reply->facts, "finish"));
	cJSON_AddItemToArray(choices, choice);
	json_set_string(body, "id", json_string(reply->facts, "id"));
	json_set_string(body, "model", json_string(reply->facts, "model"));
	json_set(body, "choices", choices);
	if (usage)
		json_set(body, "usage", cJSON_Duplicate(usage, true));
	return body;
}

/* The text of a message: its content, a string or an array of text parts. The caller frees. */
static char *message_text(const cJSON *message)
{
	const cJSON *content = json_get(message, "content"), *part;
	struct buf b;
	char *text;

	buf_init(&b, REPLY_MAX_BYTES);
	if (cJSON_IsString(content))
		buf_puts(&b, content->valuestring);
	cJSON_ArrayForEach(part, content)
		append(&b, json_string(part, "text"));
	text = buf_take(&b);
	buf_release(&b);
	return text;
}

static const char *finish_of(const char *reason)
{
	if (!reason)
		return NULL;
	if (strcmp(reason, "content_filter") == 0)
		return "refusal";
	return strcmp(reason, "length") == 0 ? "length" : "stop";
}

static int read_body(const cJSON *body, struct provider_answer *answer, struct error *err)
{
	const cJSON *choice = cJSON_GetArrayItem(json_get(body, "choices"), 0), *message = json_get(choice, "message"), *usage = json_get(body, "usage");
	const char *model = json_string(body, "model"), *refusal = json_string(message, "refusal");

	if (!cJSON_IsObject(message))
		return error_set(err, KM_EXIT_REMOTE, "the reply holds no choices[0].message");
	answer->text = message_text(message);
	answer->finish = finish_of(json_string(choice, "finish_reason"));
	if (refusal && *refusal) {
		answer->finish = "refusal";
		if (!*answer->text) {
			free(answer->text);
			answer->text = xstrdup(refusal);
		}
	}
	answer->model = model ? xstrdup(model) : NULL;
	answer->tokens_in = usage_count(usage, "prompt_tokens");
	answer->tokens_cached = usage_count(json_get(usage, "prompt_tokens_details"), "cached_tokens");
	answer->tokens_out = usage_count(usage, "completion_tokens");
	return 0;
}

static const struct protocol protocol = {
	.name = "openai", .base_url = "https://api.openai.com/v1", .host = "api.openai.com", .key_variable = "OPENAI_API_KEY",
	.path = "/chat/completions", .key_header = "Authorization: Bearer %s",
	.compose = compose, .take_event = take_event, .assemble = assemble, .read = read_body,
};

static int ask(const cJSON *request, const struct provider_options *options, struct provider_answer *answer, struct error *err)
{
	return provider_http_ask(&protocol, request, options, answer, err);
}

const struct provider provider_openai = { .name = "openai", .priced = true, .ask = ask };
