/* fuzz - throws bytes at what reads bytes from outside: the JSON loader, the schemas, the tree's rules, replies.
 *
 * The first byte says what the rest is. Whatever it is, nothing may crash, and what was accepted must hold: JSON that is
 * printed and read again is the same; a world that operations have changed is still a world, and can be planned from.
 *
 * With clang it is a libFuzzer target. With gcc it drives itself: fuzz [-max_total_time=S] [-seed=N] CORPUS-FOLDER
 * takes files of the corpus, changes bytes, cuts, repeats and joins them, and keeps nothing.
 */
#include "code.h"
#include "json.h"
#include "mend.h"
#include "ops.h"
#include "plan.h"
#include "schema.h"
#include "sse.h"
#include "strategy.h"
#include "util.h"
#include "world.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "fuzz: broken: %s\n", what);
	abort();
}

static void same_when_read_again(const cJSON *value)
{
	struct buf once, twice;
	struct error err;
	cJSON *again;

	buf_init(&once, 2 * JSON_MAX_BYTES);
	buf_init(&twice, 2 * JSON_MAX_BYTES);
	json_print_compact(value, &once);
	again = json_parse(once.data, once.len, &err);
	must(again != NULL, "what was printed can be read");
	json_print_compact(again, &twice);
	must(strcmp(once.data, twice.data) == 0, "what was read again prints the same");
	cJSON_Delete(again);
	buf_release(&once);
	buf_release(&twice);
}

static void plan_from(const struct world *w)
{
	struct limits limits = LIMITS_NONE;
	struct calls_sum spent = { 0 };
	struct error err;
	cJSON *plan = plan_make(w, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", &limits, &spent, &err);

	if (plan) {
		json_made_by(plan, "fuzz");
		/* Rounds have five digits. */
		must(world_number(w, "round") >= 99999 || schema_check("plan", plan, &err) == 0, "a plan keeps to its schema");
	}
	cJSON_Delete(plan);
}

/* A document of any kind; a world that is accepted is used. */
static void read_document(const char *text, size_t len)
{
	static const char *const kinds[] = { "run", "plan", "request", "reply", "call", "candidate", "build", "bench", "definition", "workload", "task", "verdict" };
	struct error err;
	struct world w;
	cJSON *value = json_parse(text, len, &err);

	if (!value)
		return;
	same_when_read_again(value);
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		schema_check(kinds[i], value, &err);
	if (schema_check("world", value, &err) < 0) {
		cJSON_Delete(value);
		return;
	}
	if (world_adopt(&w, value, &err) < 0)
		return;
	plan_from(&w);
	strategy_fill(&w);
	plan_from(&w);
	world_release(&w);
}

static void first_world(struct world *w)
{
	static const char run[] = "{\"task\": \"toy\", \"target\": \"cpu\", \"width\": 2, \"k\": 3, \"strategy\": \"world\", \"policy\": \"default\", \"seed\": \"1\"}";
	static const char tree[] = "{\"ops\": [{\"op\": \"insert_node\", \"parent\": \"root\", \"as\": \"a\", \"action\": {\"title\": \"A\", \"difficulty_1_to_5\": 1, \"score_0_to_1\": 0.5}},"
				   "{\"op\": \"insert_node\", \"parent\": \"$a\", \"action\": {\"title\": \"B\", \"difficulty_1_to_5\": 1, \"score_0_to_1\": 0.5}}]}";
	struct ops_result result;
	struct error err;
	cJSON *document = json_parse(run, strlen(run), &err), *reply = json_parse(tree, strlen(tree), &err);

	must(world_first(w, document, &err) == 0, "there is a first world");
	ops_apply(w, reply, 0, OPS_NEW_FIRST, -1, &result);
	must(result.applied == 2, "the first world has nodes");
	cJSON_Delete(document);
	cJSON_Delete(reply);
}

/* A reply about the tree. */
static void read_tree_reply(const char *text, size_t len)
{
	struct ops_result result;
	struct world w, copy;
	struct error err;
	cJSON *reply = ops_parse(text, len, &err);

	if (!reply)
		return;
	first_world(&w);
	ops_apply(&w, reply, 0, OPS_NEW_FIRST, 1, &result);
	must(world_adopt(&copy, cJSON_Duplicate(w.document, true), &err) == 0, "operations leave a world that keeps its rules");
	world_release(&copy);
	json_made_by(w.document, "fuzz");
	must(schema_check("world", w.document, &err) == 0, "operations leave a world that keeps to its schema");
	same_when_read_again(w.document);
	plan_from(&w);
	world_release(&w);
	cJSON_Delete(reply);
}

/* A reply with code, or with changes to a kernel. */
static void read_code_reply(const char *text)
{
	static const char base[] = "#include \"task.h\"\nint a;\n\nint b;\nint a;\nint km_run(const struct km_args *x)\n{\n\treturn 0;\n}\n";
	struct error err = { 0 };
	char *source = code_extract(text, base, &err);

	must(source || *err.text, "a reply without code has a reason");
	must(!source || code_is_patch(text) || strlen(source) <= strlen(text) + 1, "code that is found is a part of the reply");
	free(source);
}

static bool take_event(void *events, const char *data, size_t len)
{
	must(strlen(data) <= len, "an event ends with a NUL");
	++*(size_t *)events;
	return true;
}

/* A service's bytes: a stream gives the same events however it is cut; what is mended once needs no mending. */
static void read_stream(const char *text, size_t len)
{
	size_t whole = 0, bytes = 0;
	struct sse sse;
	char *once, *twice;

	sse_init(&sse, 1 << 20, take_event, &whole);
	sse_feed(&sse, text, len);
	sse_end(&sse);
	sse_release(&sse);
	sse_init(&sse, 1 << 20, take_event, &bytes);
	for (size_t i = 0; i < len; i++)
		sse_feed(&sse, text + i, 1);
	sse_end(&sse);
	sse_release(&sse);
	must(whole == bytes, "a stream gives the same events however it is cut");
	once = mend_escapes(text, len);
	twice = mend_escapes(once, strlen(once));
	must(strlen(once) < len || strcmp(once, twice) == 0, "escapes are mended once");
	free(twice);
	free(once);
	once = mend_syntax(text, len);
	must(strlen(once) <= len, "mending only takes away");
	mend_object_length(text, len);
	free(once);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text;

	if (size == 0)
		return 0;
	text = xmalloc(size);
	memcpy(text, data + 1, size - 1);
	text[size - 1] = 0;
	switch (data[0] % 4) {
	case 0: read_document(text, size - 1); break;
	case 1: read_tree_reply(text, size - 1); break;
	case 2: read_code_reply(text); break;
	default: read_stream(text, size - 1);
	}
	free(text);
	return 0;
}

#ifndef LIBFUZZER
/* ---- the driver, where there is no libFuzzer -------------------------------------------------------------------- */

#include <dirent.h>

enum { MOST_FILES = 4096, MOST_BYTES = 1 << 17 };

static struct {
	uint8_t *data;
	size_t size;
} files[MOST_FILES];
static size_t file_count;
static uint64_t state = 1;

static size_t dice(size_t sides)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return sides ? (size_t)(state >> 11) % sides : 0;
}

static void load_corpus(const char *folder)
{
	DIR *d = opendir(folder);
	struct dirent *entry;

	if (!d)
		exit(2);
	while ((entry = readdir(d)) && file_count < MOST_FILES) {
		char *path = xasprintf("%s/%s", folder, entry->d_name);
		FILE *f = entry->d_name[0] == '.' ? NULL : fopen(path, "r");

		if (f) {
			files[file_count].data = xmalloc(MOST_BYTES);
			files[file_count].size = fread(files[file_count].data, 1, MOST_BYTES, f);
			file_count++;
			fclose(f);
		}
		free(path);
	}
	closedir(d);
}

/* A piece of a file of the corpus over, or between, the bytes at a place. */
static size_t splice(uint8_t *data, size_t size)
{
	size_t other = dice(file_count), from = dice(files[other].size), len = dice(1 + dice(files[other].size - from)), at = dice(size);

	if (size + len > MOST_BYTES)
		len = MOST_BYTES - size;
	memmove(data + at + len, data + at, size - at);
	memcpy(data + at, files[other].data + from, len);
	return size + len;
}

static size_t mutate(uint8_t *data, size_t size)
{
	static const char *const words[] = { "{", "}", "[", "]", "\"", ",", ":", "null", "true", "-0", "1e999", "\\u0000", "\\ud800", "\xff", "```", "<think>", "$a", "root", "insert_node", "0.5", "9007199254740993" };
	const char *word = words[dice(sizeof(words) / sizeof(words[0]))];
	size_t at = dice(size), len = dice(1 + dice(size - at));

	switch (dice(5)) {
	case 0:
		data[at] ^= (uint8_t)(1u << dice(8));
		return size;
	case 1:
		memmove(data + at, data + at + len, size - at - len);
		return size - len;
	case 2:
		return splice(data, size);
	case 3:
		if (size + strlen(word) > MOST_BYTES)
			return size;
		memmove(data + at + strlen(word), data + at, size - at);
		memcpy(data + at, word, strlen(word));
		return size + strlen(word);
	default:
		data[at] = (uint8_t)dice(256);
		return size;
	}
}

int main(int argc, char **argv)
{
	static uint8_t data[MOST_BYTES];
	double seconds = 10, start = monotonic_seconds();
	unsigned long tries = 0;

	for (int i = 1; i < argc; i++) {
		if (starts_with(argv[i], "-max_total_time="))
			seconds = atof(strchr(argv[i], '=') + 1);
		else if (starts_with(argv[i], "-seed="))
			state = strtoull(strchr(argv[i], '=') + 1, NULL, 10) * 2 + 1;
		else if (argv[i][0] != '-')
			load_corpus(argv[i]);
	}
	if (file_count == 0) {
		fprintf(stderr, "usage: fuzz [-max_total_time=S] [-seed=N] CORPUS-FOLDER\n");
		return 2;
	}
	for (; monotonic_seconds() - start < seconds; tries++) {
		size_t n = dice(file_count), size = files[n].size;

		memcpy(data, files[n].data, size);
		for (size_t changes = tries < file_count ? 0 : 1 + dice(6); changes > 0 && size > 0; changes--)
			size = mutate(data, size);
		LLVMFuzzerTestOneInput(data, size);
	}
	printf("fuzz: %lu tries in %.0f s, none crashed\n", tries, monotonic_seconds() - start);
	return 0;
}
#endif
