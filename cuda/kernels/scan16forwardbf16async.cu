// 16 states and activations of bfloat16, for compute capability 8.0: B and C variable.
#include "scan_forward_async.cuh"

#include "entries.cuh"

FORWARD_ASYNC(bf16, bf16_, n, false)
