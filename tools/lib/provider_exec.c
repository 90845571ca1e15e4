/* provider_exec.c - the prompt as plain text on the standard input of a command; its standard output is the reply.
 *
 * The command runs by sh -c in an empty temporary folder, with descriptors 0, 1 and 2 only and with the user's
 * environment less KM_API_KEY: other keys are there if the user exported them for the command. Afterwards, also when
 * a signal ends us meanwhile, the command is dead and the folder is gone.
 * Outside that folder KM_REQUEST names a file with the prompt, KM_REQUEST_JSON one with the request, and KM_REPLY one
 * that is not there: if the command writes it, that is the reply, whatever else it printed. KM_CUE says what is asked.
 */
#include "provider.h"

#include "file.h"
#include "json.h"
#include "process.h"
#include "request.h"
#include "text.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>

extern char **environ;

/* The files of one command, in a folder of their own. */
struct files {
	char *folder, *work, *request, *document, *reply;
	char *variables[5]; /* NAME=value; the last is NULL */
};

static void files_release(struct files *f)
{
	if (f->folder)
		process_scratch_remove(f->folder);
	for (int i = 0; i < 4; i++)
		free(f->variables[i]);
	free(f->folder);
	free(f->work);
	free(f->request);
	free(f->document);
	free(f->reply);
}

static int files_make(struct files *f, const cJSON *request, const struct buf *prompt, struct error *err)
{
	memset(f, 0, sizeof(*f));
	f->folder = process_scratch_make(err);
	if (!f->folder)
		return -1;
	f->work = xasprintf("%s/work", f->folder);
	f->request = xasprintf("%s/request.md", f->folder);
	f->document = xasprintf("%s/request.json", f->folder);
	f->reply = xasprintf("%s/reply.md", f->folder);
	f->variables[0] = xasprintf("KM_REQUEST=%s", f->request);
	f->variables[1] = xasprintf("KM_REQUEST_JSON=%s", f->document);
	f->variables[2] = xasprintf("KM_REPLY=%s", f->reply);
	f->variables[3] = xasprintf("KM_CUE=%s", json_string(request, "cue"));
	if (file_make_folder(f->work, err) < 0 || file_write(f->request, prompt->data, prompt->len, err) < 0)
		return -1;
	return json_save(f->document, request, err);
}

/* The environment for the command. The caller frees the array only. */
static const char **command_environment(const struct files *f)
{
	size_t count = 0;
	const char **copy;

	for (char **e = environ; *e; e++)
		count++;
	copy = xreallocarray(NULL, count + 5, sizeof(*copy));
	count = 0;
	for (char **e = environ; *e; e++)
		if (!starts_with(*e, "KM_API_KEY="))
			copy[count++] = *e;
	for (char *const *v = f->variables; *v; v++)
		copy[count++] = *v;
	copy[count] = NULL;
	return copy;
}

/* The reply's text: the file that the command wrote, else what it printed. NULL if that file cannot be read. */
static char *reply_text(const struct process_result *result, const char *path, struct error *err)
{
	struct buf b;
	char *text = NULL;

	buf_init(&b, REPLY_MAX_BYTES);
	if (!file_exists(path))
		text = text_clean(result->output.data, result->output.len);
	else if (file_read(path, &b, err) == 0)
		text = b.len ? text_clean(b.data, b.len) : text_clean(result->output.data, result->output.len);
	else
		err->code = KM_EXIT_REMOTE;
	buf_release(&b);
	return text;
}

static int take_output(const struct process_result *result, const char *path, const cJSON *request, const struct provider_options *options,
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
	answer->text = reply_text(result, path, err);
	if (!answer->text)
		return error_prefix(err, "the command of provider exec wrote a reply that cannot be taken");
	answer->recorded = true;
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
	struct files files;
	struct buf prompt;
	int status;

	if (!options->command || !*options->command)
		return error_set(err, KM_EXIT_USAGE, "provider exec needs a command: --exec CMD or the environment's KM_EXEC");
	buf_init(&prompt, JSON_MAX_BYTES);
	request_text(request, &prompt);
	process_hold_signals();
	status = files_make(&files, request, &prompt, err);
	if (status == 0) {
		spec.folder = files.work;
		spec.input = prompt.data;
		spec.input_len = prompt.len;
		spec.envp = command_environment(&files);
		status = process_run(&spec, &result, err);
		if (status == 0)
			status = take_output(&result, files.reply, request, options, answer, err);
		process_result_release(&result);
		free((void *)spec.envp);
	}
	files_release(&files);
	process_release_signals();
	buf_release(&prompt);
	return status;
}

const struct provider provider_exec = { .name = "exec", .ask = ask };
