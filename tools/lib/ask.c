#include "ask.h"

#include "calls.h"
#include "file.h"
#include "json.h"
#include "process.h"
#include "request.h"
#include "text.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	COMPLAINT_MAX = 4000, /* bytes of the check's message that the model gets to read */
	CHECK_SECONDS = 60,
};

/* ---- one call and its storage ----------------------------------------------------------------------------------- */

static char *call_path(const struct ask *ask, const char *id)
{
	return xasprintf("%s/calls/%s.json", ask->run, id);
}

static char *ledger_path(const struct ask *ask)
{
	return xasprintf("%s/calls.tsv", ask->run);
}

static char *lock_path(const struct ask *ask)
{
	return xasprintf("%s/calls", ask->run);
}

/* The ledger's line of a request, with what it may take. */
static struct call_line start_line(const struct ask *ask, const cJSON *request)
{
	const cJSON *parameters = json_get(request, "parameters");
	long in = estimate_tokens(request_bytes(request)), out = (long)json_number(parameters, "max_tokens", 0);

	return (struct call_line){
		.id = json_string(request, "id"), .cue = json_string(request, "cue"), .provider = ask->provider->name,
		.model = json_string(parameters, "model"), .tokens_in = in, .tokens_out = out,
		.usd = ask->provider->unpaid ? 0 : price_of(&ask->options.price, in, 0, out),
	};
}

/* What is at hand already costs nothing more, whatever the limits. */
static int write_start(const struct ask *ask, const cJSON *request, struct error *err)
{
	static const struct calls_limits none = CALLS_LIMITS_NONE;
	struct call_line line = start_line(ask, request);
	char *ledger, *lock;
	int status;

	if (!ask->run)
		return ask->provider->at_hand ? 0 : calls_check_one(&ask->limits, &line, err);
	ledger = ledger_path(ask);
	lock = lock_path(ask);
	status = calls_append_start(ledger, lock, ask->provider->at_hand ? &none : &ask->limits, &line, err);
	free(lock);
	free(ledger);
	return status;
}

/* The call that was started came to nothing; the error that says so stays as it is. */
static void write_fail(const struct ask *ask, const cJSON *request, double seconds)
{
	struct call_line line = start_line(ask, request);
	char *ledger;

	if (!ask->run || ask->provider->at_hand)
		return;
	line.tokens_in = line.tokens_out = 0;
	line.usd = 0;
	line.seconds = seconds;
	ledger = ledger_path(ask);
	calls_append_fail(ledger, &line, NULL);
	free(ledger);
}

/* Add the end line of a stored call unless the ledger has it. */
static int write_end(const struct ask *ask, const cJSON *call, struct error *err)
{
	const cJSON *request = json_get(call, "request");
	const char *name = json_string(call, "provider");
	const struct provider *provider = provider_find(name);
	struct call_line line = {
		.id = json_string(request, "id"), .cue = json_string(request, "cue"), .provider = name,
		.model = json_string(json_get(request, "parameters"), "model"),
		.tokens_in = (long)json_number(call, "tokens_in", 0), .tokens_out = (long)json_number(call, "tokens_out", 0),
		.usd = provider && provider->unpaid ? 0 : json_number(call, "usd", 0), .seconds = json_number(call, "seconds", 0),
	};
	char *ledger = ledger_path(ask);
	bool ended;
	int status = calls_ended(ledger, line.id, &ended, err);

	if (status == 0 && !ended)
		status = calls_append_end(ledger, &line, err);
	free(ledger);
	return status;
}

static cJSON *call_document(const struct ask *ask, const cJSON *request, const struct provider_answer *answer)
{
	const char *model = json_string(json_get(request, "parameters"), "model");
	cJSON *call = cJSON_CreateObject();

	json_made_by(call, "km-llm");
	json_set(call, "request", cJSON_Duplicate(request, true));
	json_set_string(call, "text", answer->text);
	json_set_string(call, "provider", ask->provider->name);
	json_set_string(call, "model", answer->model ? answer->model : model);
	json_set_number(call, "tokens_in", (double)answer->tokens_in);
	json_set_number(call, "tokens_out", (double)answer->tokens_out);
	json_set_number(call, "usd", answer->usd);
	json_set_number(call, "seconds", answer->seconds);
	if (answer->finish)
		json_set_string(call, "finish", answer->finish);
	json_set_string(call, "raw", answer->raw);
	return call;
}

static int store(const struct ask *ask, const cJSON *call, struct error *err)
{
	char *path;
	int status;

	if (!ask->run)
		return 0;
	path = call_path(ask, json_string(json_get(call, "request"), "id"));
	status = json_save(path, call, err);
	free(path);
	return status == 0 ? write_end(ask, call, err) : -1;
}

/* Ask the provider and store what it says. *call is NULL if replay has no such reply. */
static int make_call(const struct ask *ask, const cJSON *request, cJSON **call, struct error *err)
{
	struct provider_answer answer = { 0 };
	double start = monotonic_seconds();
	int status = 0;

	*call = NULL;
	if (!ask->provider->at_hand)
		status = write_start(ask, request, err);
	if (status == 0) {
		status = ask->provider->ask(request, &ask->options, &answer, err);
		if (status < 0)
			write_fail(ask, request, monotonic_seconds() - start);
	}
	if (status == 0 && answer.recorded) {
		*call = call_document(ask, request, &answer);
		if (ask->provider->at_hand)
			status = write_start(ask, request, err);
		if (status == 0)
			status = store(ask, *call, err);
		if (status == 0 && ask->answered && !ask->provider->at_hand)
			ask->answered(ask, request, &answer);
	}
	provider_answer_release(&answer);
	if (status != 0) {
		cJSON_Delete(*call);
		*call = NULL;
	}
	return status;
}

/* The call of this request, from calls/ if it is there; *call is NULL if there is none. */
static int load_call(const struct ask *ask, const char *id, cJSON **call, struct error *err)
{
	char *path = ask->run ? call_path(ask, id) : NULL;
	int status = 0;

	*call = NULL;
	if (path && file_exists(path)) {
		*call = json_load(path, "call", err);
		status = *call ? 0 : -1;
	}
	if (*call) {
		const char *stored = json_string(json_get(*call, "request"), "id");

		if (!stored || strcmp(stored, id) != 0)
			status = error_set(err, KM_EXIT_INPUT, "'%s' holds the answer to another request", path);
		else
			status = write_end(ask, *call, err);
	}
	if (status != 0) {
		cJSON_Delete(*call);
		*call = NULL;
	}
	free(path);
	return status;
}

static int get_call(const struct ask *ask, const cJSON *request, cJSON **call, struct error *err)
{
	if (load_call(ask, json_string(request, "id"), call, err) < 0)
		return -1;
	return *call ? 0 : make_call(ask, request, call, err);
}

/* ---- checking and asking again ---------------------------------------------------------------------------------- */

/* The check did not judge the reply: what it said is for the user, never for the model. */
static int cannot_check(const struct ask *ask, const struct process_result *result, struct error *err)
{
	char *how = process_describe(result);
	struct buf excerpt;

	buf_init(&excerpt, 1024);
	text_line(&excerpt, result->diagnostics.data, 400);
	error_set(err, KM_EXIT_ENVIRONMENT, "cannot check the reply with '%s' (%s)%s%s", ask->check, how, excerpt.len ? ": " : "", excerpt.data);
	buf_release(&excerpt);
	free(how);
	return -1;
}

/* Sets *complaint to what is wrong with the text, or to NULL; the caller frees. */
static int run_check(const struct ask *ask, const char *text, char **complaint, struct error *err)
{
	const char *argv[] = { "/bin/sh", "-c", ask->check, NULL };
	struct process_spec spec = {
		.argv = argv, .input = text, .input_len = strlen(text),
		.output_ceiling = 1 << 20, .diagnostics_ceiling = COMPLAINT_MAX, .seconds = CHECK_SECONDS,
	};
	struct process_result result;
	int status = process_run(&spec, &result, err);

	*complaint = NULL;
	if (status == 0 && result.exit_code != 0 && result.exit_code != KM_EXIT_REFUSED)
		status = cannot_check(ask, &result, err);
	if (status == 0 && result.exit_code == KM_EXIT_REFUSED) {
		size_t len = result.diagnostics.len;

		while (len && strchr(" \t\r\n", result.diagnostics.data[len - 1]))
			len--;
		*complaint = len ? text_clean(result.diagnostics.data, len) : xstrdup("it does not have the form that was asked for.");
	}
	process_result_release(&result);
	return status;
}

static void add_number(cJSON *reply, const char *key, const cJSON *call)
{
	json_set_number(reply, key, json_number(reply, key, 0) + json_number(call, key, 0));
}

/* Let the reply say what the latest call said, and add up what all of them cost. */
static void take_call(cJSON *reply, const cJSON *call)
{
	cJSON_AddItemToArray(json_get_mutable(reply, "tries"), cJSON_CreateString(json_string(json_get(call, "request"), "id")));
	json_set_string(reply, "status", "answered");
	json_set_string(reply, "text", json_string(call, "text"));
	json_set_string(reply, "provider", json_string(call, "provider"));
	json_set_string(reply, "model", json_string(call, "model"));
	json_remove(reply, "finish");
	if (json_string(call, "finish"))
		json_set_string(reply, "finish", json_string(call, "finish"));
	add_number(reply, "tokens_in", call);
	add_number(reply, "tokens_out", call);
	add_number(reply, "usd", call);
	add_number(reply, "seconds", call);
}

static cJSON *new_reply(const struct ask *ask, const cJSON *request)
{
	cJSON *reply = cJSON_CreateObject();

	json_set_string(reply, "id", json_string(request, "id"));
	json_set_string(reply, "cue", json_string(request, "cue"));
	json_set_string(reply, "status", "unrecorded");
	json_set_string(reply, "text", "");
	json_set_string(reply, "provider", ask->provider->name);
	json_set_string(reply, "model", json_string(json_get(request, "parameters"), "model"));
	json_set_number(reply, "tokens_in", 0);
	json_set_number(reply, "tokens_out", 0);
	json_set_number(reply, "usd", 0);
	json_set_number(reply, "seconds", 0);
	json_set(reply, "tries", cJSON_CreateArray());
	return reply;
}

static void set_reason(cJSON *reply, const char *status, const char *reason)
{
	json_set_string(reply, "status", status);
	json_set_string(reply, "reason", reason);
}

/* What is wrong with how the reply ended, or NULL; the caller frees. */
static char *bad_end(const cJSON *request, const cJSON *call)
{
	const char *finish = json_string(call, "finish");

	if (finish && strcmp(finish, "length") == 0)
		return xasprintf("it was cut off at the limit of %.0f tokens. Be shorter, and leave out prose.",
				 json_number(json_get(request, "parameters"), "max_tokens", 0));
	if (finish && strcmp(finish, "refusal") == 0)
		return xstrdup("it is a refusal. What is asked for is ordinary work on the speed of a program.");
	return NULL;
}

/* One try: fills the reply. *complaint is NULL when the conversation is over. */
static int one_try(const struct ask *ask, const cJSON *request, cJSON *reply, char **complaint, struct error *err)
{
	cJSON *call;
	int status = get_call(ask, request, &call, err);

	*complaint = NULL;
	if (status == 0 && !call) {
		char *reason = xasprintf("no reply is recorded for %s", json_string(request, "cue"));

		/* A conversation of which only the end is missing has been held: it came to nothing that can be read. */
		set_reason(reply, cJSON_GetArraySize(json_get(reply, "tries")) ? "unreadable" : "unrecorded", reason);
		free(reason);
	} else if (status == 0) {
		take_call(reply, call);
		if (ask->check)
			*complaint = bad_end(request, call);
		if (ask->check && !*complaint)
			status = run_check(ask, json_string(call, "text"), complaint, err);
	}
	cJSON_Delete(call);
	return status;
}

cJSON *ask_reply(const struct ask *ask, const cJSON *request, struct error *err)
{
	cJSON *reply = new_reply(ask, request), *current = cJSON_Duplicate(request, true);
	char *complaint = NULL, *last = NULL;
	int status = 0, try;

	for (try = 1; try <= 1 + ask->again && status == 0; try++) {
		free(last);
		last = complaint;
		status = one_try(ask, current, reply, &complaint, err);
		if (status != 0 || !complaint)
			break;
		if (ask->run)
			ask_tidy(ask, reply);
		if (try < 1 + ask->again) {
			cJSON *next = request_again(current, json_string(request, "cue"), try, json_string(reply, "text"), complaint);

			cJSON_Delete(current);
			current = next;
		}
	}
	if (status == 0 && complaint)
		set_reason(reply, "unreadable", complaint);
	else if (status == 0 && last && strcmp(json_string(reply, "status"), "unreadable") == 0)
		set_reason(reply, "unreadable", last); /* the end of the conversation is not recorded */
	free(last);
	free(complaint);
	cJSON_Delete(current);
	if (status != 0) {
		cJSON_Delete(reply);
		return NULL;
	}
	return reply;
}

/* ---- what provider manual leaves -------------------------------------------------------------------------------- */

/* True if the file holds the answer that was stored for this id, or nothing says otherwise. */
static bool is_stored_answer(const struct ask *ask, const char *id, const char *path, const char *reply_text)
{
	cJSON *call = NULL;
	struct buf b;
	bool same = false;

	buf_init(&b, REPLY_MAX_BYTES);
	if (file_read(path, &b, NULL) == 0) {
		char *text = text_clean(b.data, b.len);

		load_call(ask, id, &call, NULL);
		same = strcmp(call ? json_string(call, "text") : reply_text, text) == 0;
		free(text);
	}
	cJSON_Delete(call);
	buf_release(&b);
	return same;
}

void ask_tidy(const struct ask *ask, const cJSON *reply)
{
	const cJSON *try, *last = json_get(reply, "tries");

	if (!ask->options.folder)
		return;
	last = cJSON_GetArrayItem(last, cJSON_GetArraySize(last) - 1);
	cJSON_ArrayForEach(try, json_get(reply, "tries")) {
		char *question = provider_manual_file(ask->options.folder, "ask", try->valuestring);
		char *answer = provider_manual_file(ask->options.folder, "answer", try->valuestring);

		if (file_exists(question))
			unlink(question);
		/* Without calls/ only the last try's text is on file; earlier ones were refused and go with it. */
		if (file_exists(answer) && ((!ask->run && try != last) || is_stored_answer(ask, try->valuestring, answer, json_string(reply, "text"))))
			unlink(answer);
		free(question);
		free(answer);
	}
}

