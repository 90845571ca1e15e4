/* Plain C++, and no km_run. */
#include <cmath>
#include <cstddef>
#include <cstdint>

void normalise(const float *x, const float *w, float *y, size_t rows)
{
	for (size_t r = 0; r < rows; r++) {
		float sum = 0;

		for (size_t i = 0; i < 4096; i++)
			sum += x[r * 4096 + i] * x[r * 4096 + i];
		for (size_t i = 0; i < 4096; i++)
			y[r * 4096 + i] = x[r * 4096 + i] / std::sqrt(sum / 4096 + 1e-5f) * w[i];
	}
}
