#include "prices.h"

#include "buf.h"
#include "file.h"
#include "util.h"

#include <stdlib.h>
#include <string.h>

enum { TABLE_MAX_BYTES = 1 << 20, FIELDS = 4 };

#define MOST 1e6 /* dollars for a million tokens: more is a slip */

/* Cut a text at every `separator`; the number of fields, FIELDS + 1 for more. */
static int split(char *text, char separator, char *fields[FIELDS])
{
	const char separators[] = { separator, 0 };
	int count = 0;

	for (char *field; (field = strsep(&text, separators)); count++) {
		if (count == FIELDS)
			return FIELDS + 1;
		fields[count] = field;
	}
	return count;
}

static bool take(char *const fields[], int count, struct price *price)
{
	if (count < 2 || count > 3 || !parse_double(fields[0], 0, MOST, &price->in) || !parse_double(fields[1], 0, MOST, &price->out))
		return false;
	price->cached = price->in;
	if (count == 3 && !parse_double(fields[2], 0, MOST, &price->cached))
		return false;
	price->known = true;
	return true;
}

/* How well a pattern fits: 0 not at all, else more for a longer beginning, most for the name itself. */
static size_t fit(const char *pattern, const char *model)
{
	size_t len = strlen(pattern);

	if (strcmp(pattern, model) == 0)
		return TABLE_MAX_BYTES;
	if (len == 0 || pattern[len - 1] != '*' || strncmp(pattern, model, len - 1) != 0)
		return 0;
	return len;
}

int prices_find(const char *path, const char *model, struct price *price, struct error *err)
{
	struct buf b;
	char *rest, *line;
	size_t best = 0;
	int status, number = 0;

	memset(price, 0, sizeof(*price));
	buf_init(&b, TABLE_MAX_BYTES);
	status = file_read(path, &b, err);
	for (rest = b.data; status == 0 && (line = strsep(&rest, "\n")); ) {
		char *fields[FIELDS];
		struct price found;
		size_t how_well;
		int count;

		number++;
		line[strcspn(line, "\r")] = 0;
		if (!*line || *line == '#')
			continue;
		count = split(line, '\t', fields);
		if (count < 3 || count > FIELDS || !take(fields + 1, count - 1, &found))
			status = error_set(err, KM_EXIT_INPUT, "'%s': line %d is not a model and two or three prices, with tabs between them", path, number);
		else if ((how_well = fit(fields[0], model)) > best) {
			best = how_well;
			*price = found;
		}
	}
	buf_release(&b);
	return status;
}

bool price_parse(const char *text, struct price *price)
{
	char *copy = xstrdup(text), *fields[FIELDS];
	int count = split(copy, ',', fields);
	bool good = count <= 3 && take(fields, count, price);

	free(copy);
	return good;
}

double price_of(const struct price *price, long tokens_in, long tokens_cached, long tokens_out)
{
	return ((double)(tokens_in - tokens_cached) * price->in + (double)tokens_cached * price->cached + (double)tokens_out * price->out) * 1e-6;
}
