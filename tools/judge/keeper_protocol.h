/* keeper_protocol.h - what km-bench and bin/km-keeper-cuda say to each other.
 *
 * km-bench holds no context on the device, so no fault there can take it down. The keeper process holds one, and all
 * that is trusted on the device: the memory of all tensors, the generator and its seeds, the reference, the comparer,
 * and the clock. It is started as
 *
 *	km-keeper-cuda SOCKET DEVICE TASK-FOLDER REFERENCE.so PARTICIPANTS WORKLOAD...
 *
 * (a descriptor, the ordinal of a device or its uuid, counts and indices as decimal numbers). One message is one packet of a
 * SOCK_SEQPACKET socket pair, always sizeof(struct keeper_message) bytes. km-bench asks, the keeper answers with DONE
 * or FAILED (value: an exit code of error.h, text: why; nothing else of the answer counts), one question at a time.
 *
 *   question                       DONE
 *   DRIVER                         text: the real folder of the driver's library. CUDA has not begun
 *   OPEN                           device: what it is. The memory for the largest of the workloads is there
 *   START who                      descriptors (SCM_RIGHTS, in this order): input slab, output slab, scratch slab, page;
 *                                  bytes[]: of the three slabs. A slab is a CUDA allocation exported as a POSIX
 *                                  descriptor, the page a memfd of KEEPER_PAGE_BYTES
 *   MAPPED who, where[]            the addresses at which the runner has the three slabs
 *   MEASURE                        what making ready takes has been measured, with nobody at work on the device. Once
 *   SELECT who, workload, count    after MEASURE. count: bytes of workspace that this participant has from now on
 *   INPUTS workload, set, value    value 1: scalars vary
 *   PREPARE who, value, count      value: enum protocol_mode (protocol.h); count: calls of a batch (else 1). Poison,
 *                                  guards, workspace and flush are under way, for PROTOCOL_IDLE they are done:
 *                                  prepare, usual.
 *                                  args: for CALL; patch[]: of a batch
 *   RELEASE who, seconds           outcome; window, arrival, prepare, usual
 *   CHECK who, value               value 1: all rows. Only of the last call. check, broken
 *   COUNTS workload                flops, bytes_moved
 *   CONTROL                        seconds: what a known kernel took; FAILED if the device does not work
 *   MEMORY                         count: bytes of the device's memory that nobody has
 *   STOP who                       this participant's slab and page are gone
 *
 * The end of the socket is the end of the keeper.
 *
 * The clock. PREPARE leaves the flush of the caches running and answers; km-bench asks the runner to enqueue; the runner
 * enqueues a kernel of one block that writes the serial to page.arrived and spins until page.release holds it, an event,
 * the work of km_run, an event; says so, synchronises, and writes page.done. RELEASE waits for the flush, then for
 * page.arrived, writes page.release, waits for page.done, and copies some rows of the output by the copy engine. The
 * window is from the end of the flush to the end of the copy: whatever the runner does before it says that it has
 * arrived is in it. A flush that ended before RELEASE came (the runner was slow to enqueue) gives no window; it is drawn
 * out by more passes in later calls, up to 1.6 ms, below the 2 ms after which another context would have its turn. (On an
 * H200 the one switch of contexts, at the end of the flush, takes 140 us, an empty kernel's window is 159 us with 1 us between
 * its quartiles; the order go, wait, read had 305 to 329 us.)
 */
#ifndef KM_KEEPER_PROTOCOL_H
#define KM_KEEPER_PROTOCOL_H

#include "compare.h"
#include "protocol.h"
#include "task.h"

#include <assert.h>
#include <stdint.h>

enum { KEEPER_MAGIC = 0x6b6d3162, KEEPER_TEXT_MAX = 600, KEEPER_PAGE_BYTES = 65536, KEEPER_PATCHES = TASK_MAX_TENSORS };

/* The page that a runner shares with the keeper. Nobody believes what a runner writes there but "arrived" and "done",
 * as marks in time. */
struct keeper_page {
	volatile uint32_t arrived, pad0[31]; /* by the runner's first kernel */
	volatile uint32_t release, pad1[31]; /* by the keeper */
	volatile uint32_t done, pad2[31];    /* by the runner, when its stream is at its end */
};

enum keeper_kind {
	KEEPER_OPEN = 1, KEEPER_START, KEEPER_MAPPED, KEEPER_SELECT, KEEPER_INPUTS, KEEPER_PREPARE, KEEPER_RELEASE,
	KEEPER_CHECK, KEEPER_COUNTS, KEEPER_CONTROL, KEEPER_MEMORY, KEEPER_STOP, KEEPER_DRIVER, KEEPER_MEASURE,
	KEEPER_DONE, KEEPER_FAILED,
};

enum keeper_outcome {
	KEEPER_RAN,        /* done was seen in time */
	KEEPER_NO_ARRIVAL, /* the runner's first kernel did not start within a second of the flush's end */
	KEEPER_LATE,       /* not done within `seconds` */
};

enum keeper_broken { KEEPER_WHOLE, KEEPER_INPUT_CHANGED, KEEPER_INPUT_GUARD, KEEPER_OUTPUT_GUARD, KEEPER_WORKSPACE_GUARD };

struct keeper_device {
	char name[64], uuid[48]; /* uuid: "GPU-..." */
	int32_t major, minor, processors, clock_mhz, memory_mhz, bus_bits;
	int64_t l2_bytes, memory_bytes;
	double bandwidth;        /* bytes/s, of the datasheet: memory_mhz x 2 x bus_bits / 8 */
	double driver;           /* 13.0 */
};

/* Output pointers of a batch: call i has patch.step * (i % patch.copies) added to the 8 bytes at patch.member of args.
 * There are as many copies of the outputs as fit into their slab, and no more than calls; copies >= 1. One for each output that a task may have: all of them go into the text of a runner's CALL. */
struct keeper_patch {
	uint64_t member : 12, copies : 12, step : 40;
};

static_assert(KEEPER_PATCHES * sizeof(struct keeper_patch) <= PROTOCOL_TEXT_MAX, "a batch's patches do not fit into CALL");
static_assert(PROTOCOL_ARGS_MAX <= 1 << 12, "a member of the arguments does not fit into a patch");

struct keeper_found {
	int32_t output, broken, tensor;  /* output: the first that is wrong, -1 none; broken: enum keeper_broken, of which tensor */
	double max_abs_error, max_rel_error;
	struct compare_result wrong;     /* of that output */
};

struct keeper_message {
	uint32_t magic, kind;
	uint64_t serial;                    /* of PREPARE: the number that arrived, release and done will hold */
	int32_t who, workload, set, outcome;
	int64_t value, count;
	double seconds;
	/* Seconds. window: negative if there is none. arrival: its part before the runner has arrived. prepare: from the first launch to the end of the flush, and (but for
	 * PROTOCOL_IDLE) what a small kernel takes right after the window. usual: what that takes when nobody else uses the
	 * device, for these sizes. */
	double window, arrival, prepare, usual;
	double flops, bytes_moved;
	uint64_t where[PROTOCOL_SLABS], bytes[PROTOCOL_SLABS];
	uint32_t args_bytes, patch_count;
	struct keeper_patch patch[KEEPER_PATCHES];
	struct keeper_device device;
	struct keeper_found found;
	unsigned char args[PROTOCOL_ARGS_MAX] __attribute__((aligned(16)));
	char text[KEEPER_TEXT_MAX];
};

#endif
