/* provider_replay.c - replies recorded by an earlier run, found by the request's cue in RECORDING/calls/.
 *
 * A call of the same id is taken before others of that cue; then the first by file name. What a cue cost when it was
 * recorded is told in the answer; the ledger counts it as 0 (.unpaid).
 */
#include "provider.h"

#include "file.h"
#include "json.h"
#include "util.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int is_call(const struct dirent *entry)
{
	return ends_with(entry->d_name, ".json") && entry->d_name[0] != '.';
}

/* Parse a call file if it holds the cue's text at all: most files of a recording need no parsing. *call is NULL if it
 * is a call of another cue. */
static int load_if_named(const char *path, const char *cue, cJSON **call, struct error *err)
{
	char *quoted = xasprintf("\"%s\"", cue);
	const char *named = NULL;
	struct buf b;
	int status;

	*call = NULL;
	buf_init(&b, JSON_MAX_BYTES);
	status = file_read(path, &b, err);
	if (status == 0 && memmem(b.data, b.len, quoted, strlen(quoted))) {
		*call = json_load(path, "call", err);
		status = *call ? 0 : -1;
	}
	buf_release(&b);
	free(quoted);
	if (*call)
		named = json_string(json_get(*call, "request"), "cue");
	if (*call && (!named || strcmp(named, cue) != 0)) {
		cJSON_Delete(*call);
		*call = NULL;
	}
	return status;
}

/* The recorded call for the request; *found is NULL if there is none. */
static int find_call(const char *folder, const cJSON *request, cJSON **found, struct error *err)
{
	const char *cue = json_string(request, "cue"), *id = json_string(request, "id");
	struct dirent **entries;
	int count = scandir(folder, &entries, is_call, alphasort), status = 0;
	bool exact = false;

	*found = NULL;
	if (count < 0)
		return error_set(err, KM_EXIT_INPUT, "cannot read the recording '%s': %s", folder, strerror(errno));
	for (int i = 0; i < count && status == 0 && !exact; i++) {
		char *path = xasprintf("%s/%s", folder, entries[i]->d_name);
		cJSON *call;

		status = load_if_named(path, cue, &call, err);
		free(path);
		if (!call)
			continue;
		const char *recorded = json_string(json_get(call, "request"), "id");

		exact = recorded && strcmp(recorded, id) == 0;
		if (exact || !*found) {
			cJSON_Delete(*found);
			*found = call;
		} else {
			cJSON_Delete(call);
		}
	}
	for (int i = 0; i < count; i++)
		free(entries[i]);
	free(entries);
	return status;
}

static const char *finish_of(const char *recorded)
{
	static const char *const ways[] = { "stop", "length", "refusal" };

	for (size_t i = 0; recorded && i < sizeof(ways) / sizeof(*ways); i++)
		if (strcmp(recorded, ways[i]) == 0)
			return ways[i];
	return NULL;
}

static int ask(const cJSON *request, const struct provider_options *options, struct provider_answer *answer, struct error *err)
{
	const char *raw;
	char *folder;
	cJSON *call;
	int status;

	if (!options->recording)
		return error_set(err, KM_EXIT_USAGE, "provider replay needs --recording DIR");
	folder = xasprintf("%s/calls", options->recording);
	status = find_call(folder, request, &call, err);
	free(folder);
	if (status == 0 && call) {
		raw = json_string(call, "raw");
		answer->recorded = true;
		answer->text = xstrdup(json_string(call, "text"));
		answer->raw = raw ? xstrdup(raw) : NULL;
		answer->model = xstrdup(json_string(call, "model"));
		answer->finish = finish_of(json_string(call, "finish"));
		answer->tokens_in = (long)json_number(call, "tokens_in", 0);
		answer->tokens_out = (long)json_number(call, "tokens_out", 0);
		answer->usd = json_number(call, "usd", 0);
		answer->seconds = json_number(call, "seconds", 0);
	}
	cJSON_Delete(call);
	return status;
}

const struct provider provider_replay = { .name = "replay", .at_hand = true, .unpaid = true, .ask = ask };
