/* provider_manual.c - a person or an agent answers: the prompt is the file ask-<first 8 of id>.md beside the reply, the
 * answer the file answer-<same 8>.md, put there by rename. An empty answer file is not an answer yet.
 *
 * Both files are removed by km-llm (ask.c), once the answer is on file elsewhere.
 */
#include "provider.h"

#include "file.h"
#include "json.h"
#include "request.h"
#include "text.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>

char *provider_manual_file(const char *folder, const char *kind, const char *id)
{
	return strcmp(folder, ".") == 0 ? xasprintf("%s-%.8s.md", kind, id) : xasprintf("%s/%s-%.8s.md", folder, kind, id);
}

static int write_question(const cJSON *request, const char *path, struct error *err)
{
	struct buf prompt;
	int status;

	buf_init(&prompt, JSON_MAX_BYTES);
	request_text(request, &prompt);
	status = file_write(path, prompt.data, prompt.len, err);
	buf_release(&prompt);
	return status;
}

static int take_answer(const char *path, const cJSON *request, struct provider_answer *answer, struct error *err)
{
	struct buf b;
	int status;

	buf_init(&b, REPLY_MAX_BYTES);
	status = file_read(path, &b, err);
	if (status == 0 && b.len > 0) {
		answer->recorded = true;
		answer->text = text_clean(b.data, b.len);
		answer->tokens_in = estimate_tokens(request_bytes(request));
		answer->tokens_out = estimate_tokens(b.len);
	}
	buf_release(&b);
	return status;
}

static int ask(const cJSON *request, const struct provider_options *options, struct provider_answer *answer, struct error *err)
{
	const char *id = json_string(request, "id");
	char *question = provider_manual_file(options->folder, "ask", id);
	char *reply = provider_manual_file(options->folder, "answer", id);
	int status = 0;

	if (file_exists(reply))
		status = take_answer(reply, request, answer, err);
	if (status == 0 && !answer->recorded) {
		status = write_question(request, question, err);
		if (status == 0)
			status = error_set(err, KM_EXIT_WAITING, "waiting for '%s', the answer to '%s'", reply, question);
	}
	free(question);
	free(reply);
	return status;
}

const struct provider provider_manual = { .name = "manual", .at_hand = true, .ask = ask };
