/* sse.h - a stream of server-sent events, cut into the data of its events.
 *
 * Lines end with LF, CR LF or CR. The `data` lines of an event are joined by LF; all other fields, comments and a byte
 * order mark are passed over. An event without data is none.
 */
#ifndef KM_SSE_H
#define KM_SSE_H

#include "buf.h"

#include <stdbool.h>
#include <stddef.h>

struct sse {
	struct buf line, data;
	bool after_cr, has_data;
	bool (*event)(void *user, const char *data, size_t len); /* false: enough */
	void *user;
};

/* No line and no event may be longer than `ceiling` bytes. */
void sse_init(struct sse *sse, size_t ceiling, bool (*event)(void *, const char *, size_t), void *user);
void sse_release(struct sse *sse);

/* Take some bytes. False if the ceiling was passed or .event said so. */
bool sse_feed(struct sse *sse, const char *bytes, size_t len);

/* The stream is at its end: an event that no blank line ended is one too. */
bool sse_end(struct sse *sse);

#endif
