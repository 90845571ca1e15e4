#include "request.h"

#include "hash.h"
#include "json.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>

void messages_add(cJSON *messages, const char *role, const char *content)
{
	cJSON *message = cJSON_CreateObject();

	json_set_string(message, "role", role);
	json_set_string(message, "content", content);
	cJSON_AddItemToArray(messages, message);
}

cJSON *request_parameters(const char *model, int max_tokens, const double *temperature)
{
	cJSON *parameters = cJSON_CreateObject();

	json_set_string(parameters, "model", model ? model : "");
	json_set_number(parameters, "max_tokens", max_tokens);
	if (temperature)
		json_set_number(parameters, "temperature", *temperature);
	return parameters;
}

void request_id(const cJSON *request, char *hex)
{
	cJSON *hashed = cJSON_CreateObject();
	struct buf b;

	json_set(hashed, "messages", cJSON_Duplicate(json_get(request, "messages"), true));
	json_set(hashed, "parameters", cJSON_Duplicate(json_get(request, "parameters"), true));
	json_set_string(hashed, "cue", json_string(request, "cue"));
	buf_init(&b, JSON_MAX_BYTES);
	json_print_compact(hashed, &b);
	hash_hex(b.data, b.len, hex);
	buf_release(&b);
	cJSON_Delete(hashed);
}

cJSON *request_new(cJSON *messages, cJSON *parameters, const char *cue)
{
	cJSON *request = cJSON_CreateObject();
	char id[HASH_HEX + 1];

	json_set_string(request, "id", "");
	json_set_string(request, "cue", cue);
	json_set(request, "messages", messages);
	json_set(request, "parameters", parameters);
	request_id(request, id);
	json_set_string(request, "id", id);
	return request;
}

cJSON *request_again(const cJSON *request, const char *first_cue, int number, const char *answer, const char *complaint)
{
	cJSON *messages = cJSON_Duplicate(json_get(request, "messages"), true), *again;
	char *cue = xasprintf("%s~%d", first_cue, number);
	char *text = xasprintf("Your reply could not be used: %s\n\nGive the whole reply again, in the form that was asked for.", complaint);

	messages_add(messages, "assistant", *answer ? answer : "(empty)");
	messages_add(messages, "user", text);
	again = request_new(messages, cJSON_Duplicate(json_get(request, "parameters"), true), cue);
	free(text);
	free(cue);
	return again;
}

void request_text(const cJSON *request, struct buf *out)
{
	const cJSON *message;
	bool answered = false;

	cJSON_ArrayForEach(message, json_get(request, "messages")) {
		const char *role = json_string(message, "role"), *content = json_string(message, "content");
		size_t len = strlen(content);

		if (strcmp(role, "assistant") == 0)
			buf_puts(out, "\n---- your earlier reply ----\n\n");
		else if (answered)
			buf_puts(out, "\n---- what was said to it ----\n\n");
		else if (out->len)
			buf_putc(out, '\n');
		answered = strcmp(role, "assistant") == 0;
		buf_add(out, content, len);
		if (len && content[len - 1] != '\n')
			buf_putc(out, '\n');
	}
}

size_t request_bytes(const cJSON *request)
{
	const cJSON *message;
	size_t bytes = 0;

	cJSON_ArrayForEach(message, json_get(request, "messages"))
		bytes += strlen(json_string(message, "content"));
	return bytes;
}

long estimate_tokens(size_t bytes)
{
	return (long)((bytes + 3) / 4);
}
