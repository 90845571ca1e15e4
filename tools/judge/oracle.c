#include "oracle.h"

#include "reference.h"
#include "util.h"

#include <dlfcn.h>
#include <inttypes.h>
#include <stdlib.h>

struct oracle {
	const struct task *task;
	void *handle;
	void (*inputs)(const struct km_args *, int, uint64_t);
	int64_t (*rows)(const struct km_args *);
	void (*row)(const struct km_args *, int64_t, double *const *);
	void (*counts)(const struct km_args *, double *, double *);
};

static int find(const struct oracle *o, const char *name, void *function, struct error *err)
{
	*(void **)function = dlsym(o->handle, name);
	if (!*(void **)function)
		return error_set(err, KM_EXIT_INPUT, "the reference of task '%s' does not define %s", o->task->name, name);
	return 0;
}

struct oracle *oracle_open(const char *library, const struct task *task, struct error *err)
{
	struct oracle *o = xcalloc(1, sizeof(*o));

	o->task = task;
	o->handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
	if (!o->handle) {
		error_set(err, KM_EXIT_INPUT, "cannot open the reference of task '%s': %s", task->name, dlerror());
	} else if (find(o, "ref_inputs", &o->inputs, err) == 0 && find(o, "ref_rows", &o->rows, err) == 0 &&
		   find(o, "ref_row", &o->row, err) == 0 && find(o, "ref_counts", &o->counts, err) == 0) {
		return o;
	}
	oracle_close(o);
	return NULL;
}

void oracle_close(struct oracle *o)
{
	if (o && o->handle)
		dlclose(o->handle);
	free(o);
}

void oracle_inputs(const struct oracle *o, const void *args, int set, uint64_t seed)
{
	o->inputs(args, set, seed);
}

int64_t oracle_rows(const struct oracle *o, const void *args, const int64_t *axes, struct error *err)
{
	int64_t rows = o->rows(args);

	if (rows < 1)
		return error_set(err, KM_EXIT_INPUT, "the reference of task '%s' says %" PRId64 " rows", o->task->name, rows);
	for (int i = 0; i < o->task->output_count; i++) {
		size_t elements = task_elements(&o->task->outputs[i], axes);

		if (elements % (size_t)rows != 0)
			return error_set(err, KM_EXIT_INPUT, "the reference of task '%s' says %" PRId64 " rows, which does not divide"
					 " the %zu elements of output '%s'", o->task->name, rows, elements, o->task->outputs[i].name);
	}
	return rows;
}

void oracle_row(const struct oracle *o, const void *args, int64_t row, double *const *expected)
{
	o->row(args, row, expected);
}

void oracle_counts(const struct oracle *o, const void *args, double *flops, double *bytes)
{
	o->counts(args, flops, bytes);
}
