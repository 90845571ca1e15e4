/* bfloat16 inside a matrix product whose sums are in single precision. */
#include "task.h"

static float cut(float x)
{
	union { float f; uint32_t u; } v = { x };

	v.u = (v.u + 0x7fff + (v.u >> 16 & 1)) & 0xffff0000;
	return v.f;
}

int km_run(const struct km_args *a)
{
	for (int64_t i = 0; i < a->M; i++) {
		float *restrict c = a->C + i * a->N;

		for (int64_t j = 0; j < a->N; j++)
			c[j] = 0;
		for (int64_t k = 0; k < a->K; k++) {
			float x = cut(a->A[i * a->K + k]);

			for (int64_t j = 0; j < a->N; j++)
				c[j] += x * cut(a->B[k * a->N + j]);
		}
	}
	return 0;
}
