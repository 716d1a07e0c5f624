// 16 states, few channels, for compute capability 8.0: B and C variable, with starts.
#include "scan_forward_async.cuh"

#include "entries.cuh"

FEW_ASYNC(float, , s, true)
