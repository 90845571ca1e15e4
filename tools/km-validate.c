/* km-validate - checks state files against the schema of their kind.
 *
 * Reads files of one kind; of a name that ends in .jsonl every line is one document. For kind "world" the rules of the
 * tree are checked too. Writes nothing.
 *   km-validate world state/x/r00007/world.json
 */
#include "cli.h"
#include "file.h"
#include "json.h"
#include "schema.h"
#include "util.h"
#include "world.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
	"Usage: km-validate [OPTION]... KIND FILE...\n"
	"Check state files against the schema of their kind; see km-state(5).\n"
	"\n"
	"  -l, --list            list the kinds\n"
	"  -h, --help            show this help\n"
	"  -V, --version         show the version\n"
	"\n"
	"Exit code 3: a file is not valid; every such file is named with a reason.\n";

static void list_kinds(void)
{
	for (const char *const *kind = schema_kinds(); *kind; kind++)
		puts(*kind);
}

static bool is_kind(const char *name)
{
	const char *const *kind = schema_kinds();

	while (*kind && strcmp(*kind, name) != 0)
		kind++;
	return *kind;
}

static int check_document(const char *kind, const char *path, struct error *err)
{
	struct world w;
	cJSON *document;

	if (strcmp(kind, "world") == 0) {
		int result = world_load(path, &w, err);

		world_release(&w);
		return result;
	}
	document = json_load(path, kind, err);
	cJSON_Delete(document);
	return document ? 0 : -1;
}

static int check_line(const char *kind, const char *line, size_t len, struct error *err)
{
	char *copy = xstrndup(line, len);
	cJSON *document = json_parse(copy, strlen(copy), err);
	int result = document ? schema_check(kind, document, err) : -1;

	cJSON_Delete(document);
	free(copy);
	return result;
}

static int check_lines(const char *kind, const char *path, struct error *err)
{
	struct buf b;
	int result, number = 0;

	buf_init(&b, JSON_MAX_BYTES);
	result = file_read(path, &b, err);
	if (result == 0 && strlen(b.data) != b.len)
		result = error_set(err, KM_EXIT_INPUT, "'%s': NUL at byte %zu", path, strlen(b.data));
	for (const char *line = b.data, *end; result == 0 && *line; line = *end ? end + 1 : end) {
		end = strchrnul(line, '\n');
		number++;
		if (end == line)
			continue;
		result = check_line(kind, line, (size_t)(end - line), err);
		if (result < 0)
			error_prefix(err, "'%s' line %d", path, number);
	}
	buf_release(&b);
	return result;
}

static int check_file(const char *kind, const char *path, struct error *err)
{
	return ends_with(path, ".jsonl") ? check_lines(kind, path, err) : check_document(kind, path, err);
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "list", no_argument, NULL, 'l' }, { "help", no_argument, NULL, 'h' }, { "version", no_argument, NULL, 'V' }, { NULL, 0, NULL, 0 },
	};
	int c, code = KM_OK;

	cli_init("km-validate");
	while ((c = getopt_long(argc, argv, "lhV", longs, NULL)) != -1) {
		if (c == 'h')
			cli_help(usage);
		if (c == 'V')
			cli_version();
		if (c != 'l')
			die_option();
		list_kinds();
		return cli_finish(KM_OK);
	}
	if (argc - optind < 2)
		die_usage("a kind and at least one file are needed");
	if (!is_kind(argv[optind]))
		die_usage("unknown kind '%s'; 'km-validate -l' lists them", argv[optind]);
	for (int i = optind + 1; i < argc; i++) {
		struct error err;

		if (check_file(argv[optind], argv[i], &err) == 0)
			continue;
		fprintf(stderr, "km-validate: error: %s\n", err.text);
		code = KM_EXIT_INPUT;
	}
	return cli_finish(code);
}
