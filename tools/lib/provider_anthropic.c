/* provider_anthropic.c - the messages API of Anthropic, at any base URL that speaks it. */
#include "provider_http.h"

#include "json.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>

/* System messages go into a member of their own, one after the other. */
static cJSON *compose(const cJSON *request, bool own, bool stream)
{
	const cJSON *parameters = json_get(request, "parameters"), *temperature = json_get(parameters, "temperature"), *message;
	const char *effort = json_string(parameters, "effort");
	cJSON *body = cJSON_CreateObject(), *messages = cJSON_CreateArray();
	struct buf system;

	(void)own;
	buf_init(&system, JSON_MAX_BYTES);
	cJSON_ArrayForEach(message, json_get(request, "messages")) {
		if (strcmp(json_string(message, "role"), "system") != 0) {
			cJSON_AddItemToArray(messages, cJSON_Duplicate(message, true));
			continue;
		}
		if (system.len)
			buf_puts(&system, "\n\n");
		buf_puts(&system, json_string(message, "content"));
	}
	json_set_string(body, "model", json_string(parameters, "model"));
	json_set_number(body, "max_tokens", json_number(parameters, "max_tokens", 0));
	if (system.len)
		json_set_string(body, "system", system.data);
	json_set(body, "messages", messages);
	if (temperature)
		json_set_number(body, "temperature", temperature->valuedouble);
	if (effort) {
		json_set(body, "output_config", cJSON_CreateObject());
		json_set_string(json_get_mutable(body, "output_config"), "effort", effort);
	}
	json_set_bool(body, "stream", stream);
	buf_release(&system);
	return body;
}

static void append(struct buf *text, const char *piece)
{
	if (piece)
		buf_puts(text, piece);
}

/* Counts come twice: those of the prompt first, those of the reply at the end. */
static void take_usage(cJSON *facts, const cJSON *usage)
{
	const cJSON *count;

	if (!json_get(facts, "usage"))
		json_set(facts, "usage", cJSON_CreateObject());
	cJSON_ArrayForEach(count, usage)
		if (cJSON_IsNumber(count))
			json_set_number(json_get_mutable(facts, "usage"), count->string, count->valuedouble);
}

static void take_event(struct stream_reply *reply, const cJSON *event)
{
	const cJSON *message = json_get(event, "message"), *delta = json_get(event, "delta");
	const char *type = json_string(event, "type"), *stop = json_string(delta, "stop_reason");

	if (!type)
		return;
	if (strcmp(type, "message_start") == 0) {
		json_set_string(reply->facts, "id", json_string(message, "id"));
		json_set_string(reply->facts, "model", json_string(message, "model"));
		take_usage(reply->facts, json_get(message, "usage"));
	} else if (strcmp(type, "content_block_start") == 0) {
		append(&reply->text, json_string(json_get(event, "content_block"), "text"));
	} else if (strcmp(type, "content_block_delta") == 0) {
		append(&reply->text, json_string(delta, "text"));
		append(&reply->thinking, json_string(delta, "thinking"));
	} else if (strcmp(type, "message_delta") == 0) {
		take_usage(reply->facts, json_get(event, "usage"));
		if (stop)
			json_set_string(reply->facts, "finish", stop);
	} else if (strcmp(type, "message_stop") == 0) {
		reply->complete = true;
	}
}

static void add_block(cJSON *content, const char *type, const struct buf *text)
{
	cJSON *block = cJSON_CreateObject();

	json_set_string(block, "type", type);
	json_set_string(block, type, text->data);
	cJSON_AddItemToArray(content, block);
}

static cJSON *assemble(const struct stream_reply *reply)
{
	cJSON *body = cJSON_CreateObject(), *content = cJSON_CreateArray();

	if (reply->thinking.len)
		add_block(content, "thinking", &reply->thinking);
	add_block(content, "text", &reply->text);
	json_set_string(body, "id", json_string(reply->facts, "id"));
	json_set_string(body, "model", json_string(reply->facts, "model"));
	json_set(body, "content", content);
	json_set_string(body, "stop_reason", json_string(reply->facts, "finish"));
	json_set(body, "usage", cJSON_Duplicate(json_get(reply->facts, "usage"), true));
	return body;
}

static const char *finish_of(const char *reason)
{
	if (!reason)
		return NULL;
	if (strcmp(reason, "max_tokens") == 0 || strcmp(reason, "model_context_window_exceeded") == 0)
		return "length";
	return strcmp(reason, "refusal") == 0 ? "refusal" : "stop";
}

static int read_body(const cJSON *body, struct provider_answer *answer, struct error *err)
{
	const cJSON *content = json_get(body, "content"), *usage = json_get(body, "usage"), *block;
	const char *model = json_string(body, "model"), *type;
	struct buf text;

	if (!cJSON_IsArray(content))
		return error_set(err, KM_EXIT_REMOTE, "the reply holds no content");
	buf_init(&text, REPLY_MAX_BYTES);
	cJSON_ArrayForEach(block, content)
		if ((type = json_string(block, "type")) && strcmp(type, "text") == 0)
			append(&text, json_string(block, "text"));
	answer->text = buf_take(&text);
	buf_release(&text);
	answer->finish = finish_of(json_string(body, "stop_reason"));
	answer->model = model ? xstrdup(model) : NULL;
	answer->tokens_cached = usage_count(usage, "cache_read_input_tokens");
	answer->tokens_in = usage_count(usage, "input_tokens") + usage_count(usage, "cache_creation_input_tokens") + answer->tokens_cached;
	answer->tokens_out = usage_count(usage, "output_tokens");
	return 0;
}

static const struct protocol protocol = {
	.name = "anthropic", .base_url = "https://api.anthropic.com/v1", .host = "api.anthropic.com", .key_variable = "ANTHROPIC_API_KEY",
	.path = "/messages", .key_header = "x-api-key: %s", .extra_header = "anthropic-version: 2023-06-01",
	.compose = compose, .take_event = take_event, .assemble = assemble, .read = read_body,
};

static int ask(const cJSON *request, const struct provider_options *options, struct provider_answer *answer, struct error *err)
{
	return provider_http_ask(&protocol, request, options, answer, err);
}

const struct provider provider_anthropic = { .name = "anthropic", .priced = true, .ask = ask };
