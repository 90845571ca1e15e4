/* protocol.h - what km-bench's keeper and a runner say to each other.
 *
 * One message is one packet of a SOCK_SEQPACKET socket pair, always sizeof(struct protocol_message) bytes. The keeper
 * asks, the runner answers, one at a time; an answer repeats the serial of what it answers. Nothing that a runner says
 * is believed but its own failure: its process holds code that may have taken it over. The keeper takes the time, looks
 * at the outputs itself, and only uses a runner's answer as "stop the clock now".
 *
 *   keeper                        runner
 *   SETUP limits, slab sizes      HELLO where[]: its addresses of the three slabs; value < 0: no seccomp
 *                                 (no candidate code has run yet)
 *   LOAD                          LOADED value: bit 0 has km_init, bit 1 has km_workspace; text: why not (value < 0)
 *   INIT args                     ANSWER value: what km_init returned
 *   WORKSPACE args                ANSWER value: what km_workspace returned
 *   POPULATE where[0], value      ANSWER           pages of the workspace are mapped, so that no call pays for that
 *   CALL args                     ANSWER value: what km_run returned
 *   any                           FAULT value: signal; where[0]: address; where[1]: system call (SIGSYS)
 *
 * The runner gets pointers in args that are already its own addresses, so it need not know the task.
 *
 * bin/km-runner-cpu inherits its slabs; bin/km-runner-cuda makes its context first, and gets them with SETUP as descriptors
 * (SCM_RIGHTS): input, output, scratch and page. It differs in CALL too: value is an enum protocol_mode, where[0] the serial for the page (keeper_protocol.h),
 * where[1] the number of calls, text holds where[2] struct keeper_patch for a batch. Its answer to CALL is ENQUEUED (value: the
 * first return value of km_run that is not 0, else 0; where[0]: CUDA's last error after it, where[1]: enum protocol_state
 * it left behind; text: the error's name) and comes before the work is done; the question TIMES then gets ANSWER value:
 * the CUDA error that synchronising brought, 0 if none; where[0]: the bits of a double, seconds between its two events;
 * text: the error's name. ANSWER to INIT has where[0], text: the error that km_init left. HELLO with value < 0 has in text
 * what did not work. It may be started without LOAD: then CALL runs an empty kernel of its own. Under a tool (PROTOCOL_TOOL)
 * it ends by itself when the socket does, so that the tool can say what it saw.
 */
#ifndef KM_PROTOCOL_H
#define KM_PROTOCOL_H

#include <stdint.h>

enum {
	PROTOCOL_MAGIC = 0x6b6d3161, /* "km1a" */
	PROTOCOL_ARGS_MAX = 1024,
	PROTOCOL_TEXT_MAX = 400,
	PROTOCOL_GAP = 1 << 20, /* unmapped bytes before and behind every slab of a runner */
};

enum protocol_kind {
	/* keeper to runner */
	PROTOCOL_SETUP = 1, PROTOCOL_LOAD, PROTOCOL_INIT, PROTOCOL_WORKSPACE, PROTOCOL_POPULATE, PROTOCOL_CALL, PROTOCOL_TIMES,
	/* runner to keeper */
	PROTOCOL_HELLO, PROTOCOL_LOADED, PROTOCOL_ANSWER, PROTOCOL_ENQUEUED, PROTOCOL_FAULT,
};

/* Whose code is going to run. */
enum protocol_trust {
	PROTOCOL_CANDIDATE, /* nobody's that we know: its system calls are filtered */
	PROTOCOL_TRUSTED,   /* a peer's of the task's author: no filter */
	PROTOCOL_TOOL,      /* a candidate's after its verdict, under a tool that watches it: no filter, and nothing is believed */
};

enum protocol_mode {
	PROTOCOL_QUEUED, /* behind a kernel that waits for the keeper's release */
	PROTOCOL_IDLE,   /* on an idle stream, at once: no release */
	PROTOCOL_BATCH,  /* queued, several calls in a row */
};

/* What km_run left the thread and the stream in. */
enum protocol_state {
	PROTOCOL_CLEAN,
	PROTOCOL_CAPTURING, /* the stream is being captured */
	PROTOCOL_ELSEWHERE, /* another context is current */
};

enum { PROTOCOL_INPUT, PROTOCOL_OUTPUT, PROTOCOL_SCRATCH, PROTOCOL_SLABS }; /* the slabs, in this order */

enum { PROTOCOL_HAS_INIT = 1, PROTOCOL_HAS_WORKSPACE = 2 };

struct protocol_message {
	uint32_t magic, kind;
	uint64_t serial;
	int64_t value;                   /* SETUP: enum protocol_trust */
	uint64_t where[PROTOCOL_SLABS];  /* SETUP: bytes of the slabs */
	uint64_t limit;                  /* SETUP: most bytes in one mmap */
	uint32_t args_bytes, stream;     /* args_bytes <= PROTOCOL_ARGS_MAX; stream: SETUP, where in args its stream belongs */
	unsigned char args[PROTOCOL_ARGS_MAX] __attribute__((aligned(16)));
	char text[PROTOCOL_TEXT_MAX];    /* ends with NUL */
};

#endif
