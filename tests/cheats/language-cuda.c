/* CUDA in a C file. */
#include "task.h"
#include <cuda_runtime.h>

__global__ void scale(const float *x, float *y) { y[threadIdx.x] = x[threadIdx.x]; }

int km_run(const struct km_args *a)
{
	scale<<<1, 32>>>(a->x, a->y);
	return 0;
}
