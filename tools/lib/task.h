/* task.h - a task folder: definition.json, workloads.jsonl, task.json, and what follows from them.
 *
 * All three are checked against their schemas and against each other (task_load). From the definition follow struct
 * km_args, the C interface of a kernel (task_header), and its layout in memory (task_layout), so that a runner can
 * fill one without compiling anything: the header's _Static_asserts hold the compiler to the same offsets.
 *
 * Order: axes, inputs and outputs are in the order of definition.json. Members of struct km_args: every axis (const
 * ones too) as int64_t, every input (tensors as `const T *`, scalars by value), every output (`T *`), then
 * `void *workspace; size_t workspace_bytes;` and for the target cuda `void *stream;`.
 */
#ifndef KM_TASK_H
#define KM_TASK_H

#include "buf.h"
#include "error.h"
#include "hash.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	TASK_MAX_AXES = 32,
	TASK_MAX_TENSORS = 32, /* inputs and outputs, each */
	TASK_MAX_DIMS = 8,
};

enum task_target { TASK_CPU, TASK_CUDA };
enum task_objective { TASK_SPEEDUP, TASK_GEOMEAN_LATENCY };

enum task_dtype {
	DTYPE_FLOAT32, DTYPE_FLOAT16, DTYPE_BFLOAT16, DTYPE_FLOAT8_E4M3FN, DTYPE_FLOAT8_E5M2, DTYPE_FLOAT4_E2M1,
	DTYPE_INT64, DTYPE_INT32, DTYPE_INT16, DTYPE_INT8, DTYPE_BOOL,
};

const char *dtype_name(enum task_dtype dtype);   /* "float32" */
const char *dtype_c_type(enum task_dtype dtype); /* "float"; 16-bit floats uint16_t, smaller ones and bool uint8_t */
size_t dtype_bits(enum task_dtype dtype);        /* 32; 4 for float4_e2m1, two of which share a byte */

struct task_axis {
	char *name;
	bool is_const;
	int64_t value; /* of a const axis; else 0 */
};

struct task_tolerance {
	double a, c;     /* |err| <= a |ref| + c rms(ref row) + absolute */
	double r;        /* ||err row|| <= r ||ref row||; negative: not asked */
	double absolute; /* 0 if not given */
};

struct task_tensor {
	char *name;
	enum task_dtype dtype;
	bool scalar; /* shape null: no dims, passed by value; inputs only */
	int dims;    /* 0 also for a tensor of shape [], which is one element behind a pointer */
	int axis[TASK_MAX_DIMS]; /* indices into task.axes */
	struct task_tolerance tolerance; /* outputs only */
	double *vary; /* scalars: values for check calls, vary_count of them; NULL if none */
	size_t vary_count;
};

struct task_workload {
	char *uuid;
	int64_t *axes;   /* one a task axis, const ones filled in */
	double *scalars; /* one a task input: the value of a scalar, 0 for a tensor */
	bool feedback, final;
};

struct task_peer {
	char *name, *kernel; /* kernel: a file of the task folder */
	char **libraries;    /* ends with NULL */
};

struct task {
	char *folder;                 /* as given, without trailing '/' */
	char *name, *op_type, *description, *reference_text;
	char sha256[HASH_HEX + 1];    /* see task_sha256 */
	enum task_target target;
	enum task_objective objective;
	struct task_axis *axes;
	int axis_count;
	struct task_tensor *inputs, *outputs;
	int input_count, output_count;
	struct task_workload *workloads; /* in file order */
	int workload_count;
	char **libraries;             /* "openblas", ...; ends with NULL */
	double compile_seconds, call_seconds;
	size_t memory_bytes, workspace_bytes; /* limits */
	bool input_sets[5];           /* indexed by enum task_input_set; all true if task.json names none */
	struct task_peer *peers;
	int peer_count;
	cJSON *definition, *task_json; /* the documents themselves */
};

enum task_input_set { SET_NORMAL, SET_SHIFTED, SET_ROW_SCALED, SET_STUDENT_T3, SET_STRUCTURED, SET_COUNT };
const char *input_set_name(enum task_input_set set); /* "normal", "shifted", "row_scaled", ... */

/* Load a task folder. KM_EXIT_INPUT naming the file and the place if one is malformed or they do not agree: a workload
 * of another definition, a var axis missing or unknown, a uuid twice or unknown in feedback or final, an output without
 * tolerance, a shape with an unknown axis, names that are no C identifiers or are used twice, a scalar without value,
 * more elements than fit. At least one feedback workload. task_release is needed only after success. */
int task_load(const char *folder, struct task *task, struct error *err);
void task_release(struct task *task);

/* Index by name or uuid, or -1. */
int task_axis_find(const struct task *task, const char *name);
int task_input_find(const struct task *task, const char *name);
int task_output_find(const struct task *task, const char *name);
int task_workload_find(const struct task *task, const char *uuid);

/* Elements and bytes of a tensor for the axes of a workload (struct task_workload.axes). Loading has checked that they
 * fit into a size_t for every workload of the task; 1 and the size of the value for a scalar. */
size_t task_elements(const struct task_tensor *tensor, const int64_t *axes);
size_t task_bytes(const struct task_tensor *tensor, const int64_t *axes);

/* A file of the task folder: "tasks/x/reference.c". The caller frees. */
char *task_path(const struct task *task, const char *name);

/* "c" or "cu": what kernels, reference and baseline of this target end with. */
const char *task_suffix(const struct task *task);

/* Write the text of task.h, the header that a kernel includes. Needs no other header than <stdint.h> and <stddef.h>. */
void task_header(const struct task *task, struct buf *out);

/* Where each member of struct km_args is, by the C rules of x86-64 and aarch64. */
struct task_layout {
	size_t axis[TASK_MAX_AXES], input[TASK_MAX_TENSORS], output[TASK_MAX_TENSORS];
	size_t workspace, workspace_bytes, stream; /* stream: only for cuda */
	size_t size;
};

void task_layout(const struct task *task, struct task_layout *layout);

/* Store a scalar input's value into struct km_args at `member` (its place, layout.input[i]), converted to its dtype
 * (integers: rounded to nearest and clamped; bfloat16 and float16: rounded to nearest even). */
void task_store_scalar(const struct task_tensor *input, double value, void *member);

/* sha256 over name and bytes of definition.json, workloads.jsonl, task.json, reference.c|cu and baseline.c|cu, in this
 * order, absent ones left out: what a verdict depends on. */
int task_sha256(const struct task *task, char hex[HASH_HEX + 1], struct error *err);

#endif
