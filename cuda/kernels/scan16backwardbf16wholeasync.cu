// Activations of bfloat16: 16 states, for compute capability 8.0, whole blocks and tiles, with z.
#include "scan_backward_async.cuh"

#include "entries.cuh"

BACKWARD_ASYNC(bf16, bf16_, whole, true, n, false)
