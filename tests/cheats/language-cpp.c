/* C++ in a C file. */
#include "task.h"
#include <vector>

template <typename T> T scale(T x, T a) { return x * a; }

extern "C" int km_run(const struct km_args *a)
{
	std::vector<float> v(a->rows);
	return 0;
}
