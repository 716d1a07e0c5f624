// 16 states, for compute capability 8.0: B and C variable, whole blocks and tiles, with z, in two chunks.
#include "scan_backward_async.cuh"

#include "entries.cuh"

BACKWARD_TWO_ASYNC(float, , n, false)
