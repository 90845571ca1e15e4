/* km_run is data, not code. */
#include "task.h"

#undef km_run
const int data[4] __asm__("km_run") = { 1, 2, 3, 4 };
