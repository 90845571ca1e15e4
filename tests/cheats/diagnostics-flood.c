/* A hundred thousand errors. */
#include "task.h"

#define E1 x y; x y; x y; x y; x y; x y; x y; x y; x y; x y;
#define E2 E1 E1 E1 E1 E1 E1 E1 E1 E1 E1
#define E3 E2 E2 E2 E2 E2 E2 E2 E2 E2 E2
#define E4 E3 E3 E3 E3 E3 E3 E3 E3 E3 E3

E4 E4 E4 E4 E4 E4 E4 E4 E4 E4
