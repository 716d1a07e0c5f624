// The first pass over chunks with activations of bfloat16: 16 states, for compute capability 8.0.
#include "scan_carries_async.cuh"

#include "entries.cuh"

CARRIES_ASYNC(bf16, bf16_, n, false)
