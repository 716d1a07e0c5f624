// Activations of bfloat16: up to 16 states, B and C variable.
#include "entries.cuh"

#define WITH_STARTS(KERNEL, ...)           \
  KERNEL(__VA_ARGS__, vvn, true, true, false) \
  KERNEL(__VA_ARGS__, vvs, true, true, true)
WITH_STARTS(FORWARD_HALF, 4, 4, 16, 128, 4, 16, 8)
WITH_STARTS(BACKWARD_HALF, 4, 4, 16, 128, 2, 0)
USUAL(FORWARD_HALF, 8, 2, 32, 128, 4, 16, 8)
USUAL(BACKWARD_HALF, 8, 2, 16, 128, 4, 0)
USUAL(FORWARD_HALF, 16, 1, 32, 128, 4, 16, 8)
USUAL(BACKWARD_HALF, 16, 1, 16, 128, 4, 0)
