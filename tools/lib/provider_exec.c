/* provider_exec.c - the prompt as plain text on the standard input of a command; its standard output is the reply.
 *
 * The command runs by sh -c in an empty temporary folder, which is removed afterwards, with descriptors 0, 1 and 2 only
 * and with the user's environment less KM_API_KEY: other keys are there if the user exported them for the command.
 */
#include "provider.h"

#include "json.h"
#include "process.h"
#include "request.h"
#include "text.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>

extern char **environ;

/* The environment for the command. The caller frees the array only. */
static const char **command_environment(void)
{
	size_t count = 0;
	const char **copy;

	for (char **e = environ; *e; e++)
		count++;
	copy = xreallocarray(NULL, count + 1, sizeof(*copy));
	count = 0;
	for (char **e = environ; *e; e++)
		if (!starts_with(*e, "KM_API_KEY="))
			copy[count++] = *e;
	copy[count] = NULL;
	return copy;
}

static int take_output(const struct process_result *result, const cJSON *request, const struct provider_options *options,
		       struct provider_answer *answer, struct error *err)
{
	if (result->exit_code != 0) {
		char *how = process_describe(result);
		struct buf excerpt;

		buf_init(&excerpt, 1024);
		text_line(&excerpt, result->diagnostics.data, 400);
		error_set(err, KM_EXIT_REMOTE, "the command of provider exec failed (%s)%s%s", how, excerpt.len ? ": " : "", excerpt.data);
		buf_release(&excerpt);
		free(how);
		return -1;
	}
	answer->recorded = true;
	answer->text = text_clean(result->output.data, result->output.len);
	answer->tokens_in = estimate_tokens(request_bytes(request));
	answer->tokens_out = estimate_tokens(strlen(answer->text));
	answer->usd = price_of(&options->price, answer->tokens_in, 0, answer->tokens_out);
	answer->tries = 1;
	answer->seconds = result->seconds;
	return 0;
}

static int ask(const cJSON *request, const struct provider_options *options, struct provider_answer *answer, struct error *err)
{
	const char *argv[] = { "/bin/sh", "-c", options->command, NULL };
	struct process_spec spec = { .argv = argv, .output_ceiling = REPLY_MAX_BYTES, .diagnostics_ceiling = 1 << 16, .seconds = options->timeout };
	struct process_result result;
	struct buf prompt;
	char *folder;
	int status;

	if (!options->command || !*options->command)
		return error_set(err, KM_EXIT_USAGE, "provider exec needs a command: --exec CMD or the environment's KM_EXEC");
	folder = process_scratch_make(err);
	if (!folder)
		return -1;
	buf_init(&prompt, JSON_MAX_BYTES);
	request_text(request, &prompt);
	spec.folder = folder;
	spec.input = prompt.data;
	spec.input_len = prompt.len;
	spec.envp = command_environment();
	status = process_run(&spec, &result, err);
	if (status == 0)
		status = take_output(&result, request, options, answer, err);
	process_result_release(&result);
	free((void *)spec.envp);
	buf_release(&prompt);
	process_scratch_remove(folder);
	free(folder);
	return status;
}

const struct provider provider_exec = { .name = "exec", .ask = ask };
