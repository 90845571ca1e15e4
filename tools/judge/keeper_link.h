/* keeper_link.h - bin/km-keeper-cuda as seen from km-bench: start it, ask it (keeper_protocol.h), end it.
 *
 * The program is beside the running one, or for tests named by $KM_KEEPER_CUDA. An answer FAILED becomes the error of the
 * caller; so does the keeper's end, with the last line that it wrote.
 */
#ifndef KM_KEEPER_LINK_H
#define KM_KEEPER_LINK_H

#include "error.h"
#include "keeper.h"
#include "keeper_protocol.h"

#include <sys/types.h>

enum { KEEPER_LINK_DESCRIPTORS = 4 };

struct keeper_link {
	pid_t pid; /* 0: none */
	int socket, said; /* said: what it writes on standard error */
	const volatile sig_atomic_t *interrupted;
};

/* Start it for these workloads and `participants` runners; it is not asked anything yet. */
int keeper_link_start(struct keeper_link *l, const struct keeper_options *options, size_t participants, struct error *err);

/* Ask, and do not wait: keeper_link_await is to follow, with the same message, before anything else is asked. */
int keeper_link_send(struct keeper_link *l, struct keeper_message *m, const char *what, struct error *err);

/* Wait for the answer for at most `seconds`; `what` names the question in messages. descriptors: of START, which are then the
 * caller's (close-on-exec); NULL for all other questions. */
int keeper_link_await(struct keeper_link *l, struct keeper_message *m, double seconds, const char *what, int *descriptors,
		      struct error *err);

/* Both. */
int keeper_link_ask(struct keeper_link *l, struct keeper_message *m, double seconds, const char *what, int *descriptors,
		    struct error *err);

/* Close the socket, on which it ends, and do not wait: keeper_link_end is to follow. */
void keeper_link_hang_up(struct keeper_link *l);
/* Close the socket and wait until it is gone. */
void keeper_link_end(struct keeper_link *l);

#endif
