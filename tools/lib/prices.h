/* prices.h - what a million tokens cost, from a table that users edit.
 *
 * The table is text of tab-separated lines: model, dollars for a million tokens in, out, and (optional) in from the
 * service's cache. A model that ends with '*' stands for all that begin so. Empty lines and those that begin with '#'
 * are passed over. The exact name goes before the longest beginning.
 */
#ifndef KM_PRICES_H
#define KM_PRICES_H

#include "error.h"

#include <stdbool.h>

struct price {
	double in, out, cached; /* dollars for a million tokens */
	bool known;
};

/* Sets *price, .known = false if the table has no such model. KM_EXIT_INPUT with the line for a malformed table. */
int prices_find(const char *path, const char *model, struct price *price, struct error *err);

/* "IN,OUT" or "IN,OUT,CACHED"; false if it is neither. */
bool price_parse(const char *text, struct price *price);

/* Dollars. tokens_cached are a part of tokens_in. */
double price_of(const struct price *price, long tokens_in, long tokens_cached, long tokens_out);

#endif
