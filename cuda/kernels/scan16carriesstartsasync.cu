// The first pass over chunks: 16 states, for compute capability 8.0, with starts.
#include "scan_carries_async.cuh"

#include "entries.cuh"

CARRIES_ASYNC(float, , s, true)
