// The first pass over chunks: 16 states, for compute capability 8.0.
#include "scan_carries_async.cuh"

#include "entries.cuh"

CARRIES_ASYNC(float, , n, false)
