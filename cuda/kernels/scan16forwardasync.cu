// 16 states, for compute capability 8.0: B and C variable.
#include "scan_forward_async.cuh"

#include "entries.cuh"

FORWARD_ASYNC(float, , n, false)
