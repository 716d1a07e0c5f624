// Activations of bfloat16: 16 states, for compute capability 8.0, any number of channels and steps.
#include "scan_backward_async.cuh"

#include "entries.cuh"

BACKWARD_ASYNC(bf16, bf16_, any, false, n, false)
