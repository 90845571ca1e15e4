/* Honest: eight sums side by side. */
#include "task.h"
#include <math.h>

int km_run(const struct km_args *a)
{
	for (int64_t row = 0; row < a->batch_size; row++) {
		const float *x = a->hidden_states + row * 4096;
		float sum[8] = { 0 }, scale;

		for (int i = 0; i < 4096; i += 8)
			for (int l = 0; l < 8; l++)
				sum[l] += x[i + l] * x[i + l];
		for (int l = 1; l < 8; l++)
			sum[0] += sum[l];
		scale = 1 / sqrtf(sum[0] / 4096 + a->eps);
		for (int i = 0; i < 4096; i++)
			a->output[row * 4096 + i] = x[i] * scale * a->weight[i];
	}
	return 0;
}
