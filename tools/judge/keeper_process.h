/* keeper_process.h - what bin/km-keeper-cuda does with a question of keeper_protocol.h, and its self test.
 *
 * keeper_process.c is the program and its message loop, keeper_process_answer.c answers, keeper_process_memory.c says
 * where tensors are and makes a call ready, keeper_process_check.c looks at outputs, keeper_process_export.c writes
 * inputs and expected outputs into files, keeper_process_selftest.c asks all questions in one process and looks at the
 * answers.
 */
#ifndef KM_KEEPER_PROCESS_H
#define KM_KEEPER_PROCESS_H

#include "device.h"
#include "error.h"
#include "keeper_protocol.h"
#include "task.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct km_args;

enum {
	KEEPER_PROCESS_DESCRIPTORS = 4,  /* of START */
	KEEPER_PROCESS_GUARD = 16384,    /* bytes of a guard zone, at least */
	KEEPER_PROCESS_COPIES = 1024,    /* most copies of the outputs in a batch; fits into a struct keeper_patch */
	KEEPER_PROCESS_ROWS = 32,        /* rows drawn after a call */
	KEEPER_PROCESS_WINDOW_ROWS = 16, /* most rows copied within the window, and bytes of these */
	KEEPER_PROCESS_WINDOW_BYTES = 256 << 10,
};

/* The task's reference, as reference_cuda.h has it. */
struct keeper_reference {
	void *handle;
	int (*inputs)(const struct km_args *, int, uint64_t, void *);
	int64_t (*rows)(const struct km_args *);
	int (*expected)(const struct km_args *, const int64_t *, int64_t, double *const *, void *);
	void (*counts)(const struct km_args *, double *, double *);
};

struct keeper_place {
	size_t offset, bytes;   /* of the first copy */
	size_t stride;          /* from copy to copy */
};

struct keeper_zone {
	int32_t kind, tensor;   /* enum keeper_broken */
};

struct keeper_participant {
	bool started, mapped, fresh;
	struct device_slab scratch;
	int page_fd;
	struct keeper_page *page;
	uint64_t where[PROTOCOL_SLABS];
	int workload;           /* selected; -1 none */
	size_t workspace;       /* bytes */
	struct keeper_place place;
	int half;               /* of the scratch slab that its workspace is in */
	int hold;               /* passes of the flush beyond the first: this runner needs as long to enqueue its work */
};

/* What only the axes of a workload decide. */
struct keeper_workload {
	int64_t rows;           /* 0 if this workload was not named at the start */
	double prepare;         /* seconds that making ready takes when nobody else uses the device, workspace left out */
};

/* Seconds a byte, measured while no runner is at work. */
struct keeper_rates {
	double poison, copy, zero;
	double flush; /* seconds of one flush */
};

struct keeper_process {
	struct task task;
	bool loaded, opened, measured;
	struct task_layout layout;
	struct keeper_reference reference;
	struct device *device;
	const int *named;                   /* workloads to make memory for */
	size_t named_count;
	struct keeper_workload *workloads;  /* one a workload of the task */
	struct keeper_rates rates;
	double least_behind;                /* seconds that a small kernel took right after a call, the least so far; 0 unknown */
	struct device_slab inputs, outputs;
	struct keeper_participant *participants;
	size_t participant_count;
	/* of the current inputs */
	int workload, set;                  /* workload -1: none */
	struct keeper_place input_places[TASK_MAX_TENSORS], output_places[TASK_MAX_TENSORS];
	double scalars[TASK_MAX_TENSORS];
	unsigned char args[PROTOCOL_ARGS_MAX] __attribute__((aligned(16))); /* with our addresses, for the reference */
	uint64_t hash_key[2], hashes[TASK_MAX_TENSORS];
	/* of the last call */
	int who;                            /* -1: none was made ready */
	uint32_t serial;
	size_t copies;
	double usual;
	struct device_zone *zones;
	struct keeper_zone *zone_owners;
	size_t zone_count;
	const struct keeper_participant *zoned; /* whose workspace is among the zones, NULL: nobody's */
	unsigned char *window;              /* pinned */
	int window_output, window_copy;     /* output -1: no rows were copied */
	int64_t window_first, window_step;
	size_t window_rows, window_row_bytes;
	/* an earlier right answer, on the device: of which workload, -1 none, and of which inputs */
	unsigned char *earlier[TASK_MAX_TENSORS];
	int earlier_workload;
	uint64_t earlier_inputs, inputs_count; /* inputs_count: how often inputs were made */
	uint64_t placed_inputs;                /* for which the outputs have their places */
	/* for comparisons */
	double *expected;
	size_t expected_count;
	unsigned char *wrong;
};

/* Load the task and open its reference. `named` stays the caller's. */
int keeper_process_load(struct keeper_process *k, const char *folder, const char *reference, size_t participants, const int *named,
			size_t named_count, struct error *err);
void keeper_process_release(struct keeper_process *k);

/* Answer a question in place. START sets descriptors, which stay the keeper's; all others set them to -1. */
void keeper_process_answer(struct keeper_process *k, int ordinal, struct keeper_message *m, int descriptors[KEEPER_PROCESS_DESCRIPTORS]);

/* ---- keeper_process_memory.c ------------------------------------------------------------------------------------ */

/* Slabs for all named workloads. */
int keeper_memory_open(struct keeper_process *k, struct error *err);
/* Rates and what is usual for them. The current inputs are none then. */
int keeper_memory_measure(struct keeper_process *k, struct error *err);
size_t keeper_memory_scratch(const struct keeper_process *k);

/* Draw places for the inputs and the outputs of the current workload. */
void keeper_memory_place_inputs(struct keeper_process *k);

/* Poison, guards, workspace and flush of a call of participant p (NULL: of nobody), between two marks of the stream;
 * sets copies (at most `count`) and usual. */
int keeper_memory_prepare(struct keeper_process *k, struct keeper_participant *p, size_t count, struct error *err);

size_t keeper_memory_bytes(const struct keeper_process *k, const struct task_tensor *t);
const int64_t *keeper_memory_axes(const struct keeper_process *k);

/* struct km_args with axes and scalars of a workload, and pointers to the current inputs at `base` (0: none). */
void keeper_memory_args(const struct keeper_process *k, int workload, uint64_t base, unsigned char *args);

/* ---- keeper_process_check.c ------------------------------------------------------------------------------------- */

/* Number of rows of a workload; -1 with KM_EXIT_INPUT if the reference says an impossible one. */
int64_t keeper_check_rows(struct keeper_process *k, int workload, struct error *err);
int keeper_check_open(struct keeper_process *k, struct error *err);
int keeper_check_hash_inputs(struct keeper_process *k, struct error *err);
/* Copy rows drawn at random into the window's memory. Waits. */
void keeper_check_draw_window(struct keeper_process *k);
int keeper_check_fetch_window(struct keeper_process *k, struct error *err);
int keeper_check(struct keeper_process *k, bool all, struct keeper_found *found, struct error *err);

/* All rows that the reference expects for the current inputs: to[i] has room for all elements of output i. Waits. */
int keeper_check_expected(struct keeper_process *k, double *const *to, struct error *err);

/* A reference's function returned `code`. */
int keeper_reference_failed(const struct keeper_process *k, const char *function, int code, struct error *err);

/* ---- keeper_process_export.c ------------------------------------------------------------------------------------ */

/* Write new inputs of a workload, and what is expected of them, into a folder that exists. */
int keeper_process_export(int ordinal, const char *task, const char *reference, int workload, int set, const char *folder,
			  struct error *err);

/* ---- keeper_process_selftest.c ---------------------------------------------------------------------------------- */

/* Print one line a property: ok or not ok. 0 if all are. */
int keeper_process_selftest(const char *folder, const char *reference);

#endif
