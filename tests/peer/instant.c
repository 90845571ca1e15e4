/* instant - a test peer: model.sh and judge.sh in C, for searches of many rounds. What it does hangs on its name.
 *
 *   instant <prompt         a reply: operations on the tree, or a kernel; the same prompt always gets the same reply
 *   km-compile, km-bench    build.json or bench.json of the file named last, into -o FILE, by arithmetic on the kernel
 */
#include <ctype.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *slurp(FILE *f)
{
	size_t size = 1 << 16, len = 0;
	char *text = malloc(size);

	while (text) {
		size_t n = fread(text + len, 1, size - len - 1, f);

		len += n;
		text[len] = 0;
		if (n == 0)
			return text;
		if (len + 1 == size)
			text = realloc(text, size *= 2);
	}
	exit(1);
}

static char *slurp_file(const char *path)
{
	FILE *f = fopen(path, "r");
	char *text;

	if (!f)
		exit(1);
	text = slurp(f);
	fclose(f);
	return text;
}

static uint64_t sum_of(const char *text)
{
	uint64_t h = 1469598103934665603u;

	for (; *text; text++)
		h = (h ^ (unsigned char)*text) * 1099511628211u;
	return h ^ h >> 29;
}

/* ---- the model -------------------------------------------------------------------------------------------------- */

static void print_insert(const char *parent, const char *title, uint64_t sum, int score)
{
	printf("{\"op\": \"insert_node\", \"parent\": \"%s\", \"action\": {\"title\": \"%s %llu\", \"description\": \"Try it.\", \"rationale\": \"It may pay.\","
	       " \"difficulty_1_to_5\": %d, \"score_0_to_1\": 0.%02d, \"expected_vs_baseline_factor\": %d}}",
	       parent, title, (unsigned long long)sum % 100000000, 1 + (int)(sum % 3), score, 1 + (int)(sum % 9));
}

/* The first word of the form "words.1a2b" in the text, or NULL. */
static char *first_id(const char *text)
{
	for (const char *dot = text; (dot = strchr(dot, '.')); dot++) {
		const char *start = dot;

		while (start > text && (islower((unsigned char)start[-1]) || isdigit((unsigned char)start[-1]) || start[-1] == '-'))
			start--;
		if (dot - start > 2 && strspn(dot + 1, "0123456789abcdef") == 4 && !isalnum((unsigned char)dot[5]))
			return strndup(start, (size_t)(dot + 5 - start));
	}
	return NULL;
}

static int answer(void)
{
	char *prompt = slurp(stdin), *ended = strstr(prompt, "cycle that has ended"), *id = ended ? first_id(ended) : NULL;
	uint64_t sum = sum_of(prompt);

	if (!strstr(prompt, "insert_node")) {
		printf("```c\n__attribute__((used)) static unsigned long variant(void)\n{\n\treturn %llu;\n}\n\n#include \"task.h\"\nint km_run(const struct km_args *a)\n{\n\t(void)a;\n\treturn 0;\n}\n```\n",
		       (unsigned long long)sum);
	} else {
		printf("```json\n{\"summary\": \"state %llu\", \"ops\": [", (unsigned long long)sum);
		print_insert("root", "family", sum, (int)(sum % 80));
		printf(", ");
		print_insert(id ? id : "root", "refine", sum, 60 + (int)(sum % 39));
		printf("], \"no_child_because\": \"enough is open\"}\n```\n");
	}
	free(id);
	free(prompt);
	return 0;
}

/* ---- the judge -------------------------------------------------------------------------------------------------- */

/* The text of a member "key": "value" of a document, "" if there is none. */
static const char *member(const char *document, const char *key)
{
	static char value[4096];
	char pattern[64];
	const char *at;

	snprintf(pattern, sizeof(pattern), "\"%s\": \"", key);
	at = strstr(document, pattern);
	snprintf(value, sizeof(value), "%.*s", at ? (int)strcspn(at + strlen(pattern), "\"") : 0, at ? at + strlen(pattern) : "");
	return value;
}

static void compile(FILE *out, const char *candidate, const char *kernel)
{
	unsigned long long sum = sum_of(kernel);

	fprintf(out, "{\"made_by\": {\"program\": \"km-compile\", \"version\": \"test\", \"inputs\": {}}, \"cue\": \"%s\"", member(candidate, "cue"));
	fprintf(out, ", \"status\": \"%s\"", strcmp(member(candidate, "status"), "CODE") != 0 ? member(candidate, "status") : sum % 7 ? "BUILT" : "COMPILE_ERROR");
	fprintf(out, ", \"rule\": null, \"message\": \"\", \"task\": \"test\", \"target\": \"cpu\", \"kernel\": \"kernel.c\", \"library\": null, \"library_sha256\": null, \"edited\": false");
	for (int i = 0; i < 2; i++)
		fprintf(out, ", \"%s_sha256\": \"%016llx%048d\"", i ? "code" : "source", sum, 0);
	fprintf(out, ", \"compiler\": \"test\", \"flags\": \"\", \"diagnostics\": \"\", \"seconds\": 0.5}\n");
}

static void bench(FILE *out, const char *build)
{
	char key[65], start[17];
	unsigned long long sum;
	double score;

	snprintf(key, sizeof(key), "%.64s", member(build, "source_sha256"));
	snprintf(start, sizeof(start), "%.16s", key);
	sum = strtoull(start, NULL, 16);
	score = 100 + (double)(sum >> 8 & 0xfffff) / 300;
	fprintf(out, "{\"made_by\": {\"program\": \"km-bench\", \"version\": \"test\", \"inputs\": {}}, \"cue\": \"%s\"", member(build, "cue"));
	if (strcmp(member(build, "status"), "BUILT") != 0 || sum % 5 == 0)
		fprintf(out, ", \"status\": \"%s\", \"score\": null, \"noise\": null, \"workloads\": []", strcmp(member(build, "status"), "BUILT") != 0 ? member(build, "status") : "RUNTIME_ERROR");
	else
		fprintf(out, ", \"status\": \"PASSED\", \"score\": %.4f, \"noise\": 0.01, \"workloads\": [{\"uuid\": \"w\", \"axes\": {\"n\": 1}, \"set\": \"feedback\", \"status\": \"PASSED\","
			" \"median_us\": %.3f, \"q1_us\": %.3f, \"q3_us\": %.3f, \"idle_us\": null, \"baseline_us\": 1000, \"floor_us\": 1, \"speedup\": %.4f, \"max_abs_error\": 0, \"max_rel_error\": 0, \"calls\": 10}]",
			score, 1e5 / score, 0.99e5 / score, 1.01e5 / score, score / 100);
	fprintf(out, ", \"rule\": null, \"message\": \"\", \"task\": \"test\", \"source_sha256\": \"%s\", \"code_sha256\": \"%s\", \"device\": {\"name\": \"test\", \"target\": \"cpu\"},"
		" \"sandbox\": true, \"seconds\": 1.5, \"versus\": null, \"failure\": null}\n", key, key);
}

static int judge(const char *program, int argc, char **argv)
{
	const char *output = NULL, *candidate = NULL;
	char *input, *document, temporary[4096];
	FILE *out;

	for (int i = 1; i + 1 < argc; i += 2) {
		if (strcmp(argv[i], "-o") == 0)
			output = argv[i + 1];
		if (strcmp(argv[i], "--candidate") == 0)
			candidate = argv[i + 1];
	}
	if (!output)
		return 2;
	snprintf(temporary, sizeof(temporary), "%s.tmp", output);
	input = slurp_file(argv[argc - 1]);
	document = candidate ? slurp_file(candidate) : input;
	out = fopen(temporary, "w");
	if (!out)
		return 1;
	if (strstr(document, "\"skip\""))
		fputs(document, out);
	else if (strcmp(program, "km-compile") == 0)
		compile(out, document, input);
	else
		bench(out, input);
	return fclose(out) != 0 || rename(temporary, output) != 0;
}

int main(int argc, char **argv)
{
	const char *slash = strrchr(argv[0], '/'), *program = slash ? slash + 1 : argv[0];

	return strcmp(program, "instant") == 0 ? answer() : judge(program, argc, argv);
}
