/* buf.h - a growing byte buffer that names its ceiling.
 *
 * A buffer never grows past its ceiling: the append that would is refused as a whole, `overflow` is set and stays
 * set, and later appends do nothing. So a writer appends freely and asks once, at the end, whether all of it fit.
 * The data is always followed by a NUL that len does not count.
 */
#ifndef KM_BUF_H
#define KM_BUF_H

#include <stdbool.h>
#include <stddef.h>

struct buf {
	char *data; /* never NULL after buf_init; data[len] == 0 */
	size_t len, size, ceiling;
	bool overflow;
};

void buf_init(struct buf *b, size_t ceiling);
void buf_release(struct buf *b);      /* frees the data; the buffer is unusable until buf_init */
void buf_clear(struct buf *b);        /* empty again, overflow forgotten, memory kept */
char *buf_take(struct buf *b);        /* the caller frees the string; the buffer is empty afterwards */

/* Each returns false if the buffer has overflowed. */
bool buf_add(struct buf *b, const void *data, size_t len);
bool buf_puts(struct buf *b, const char *s);
bool buf_putc(struct buf *b, char c);
bool buf_printf(struct buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
