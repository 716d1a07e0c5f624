// 16 states, for compute capability 8.0: B and C variable, any number of channels and steps, with starts.
#include "scan_backward_async.cuh"

#include "entries.cuh"

BACKWARD_ASYNC(float, , any, false, s, true)
