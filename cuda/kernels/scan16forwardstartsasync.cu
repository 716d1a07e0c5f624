// 16 states, for compute capability 8.0: B and C variable, with starts.
#include "scan_forward_async.cuh"

#include "entries.cuh"

FORWARD_ASYNC(float, , s, true)
