// 16 states and activations of bfloat16, for compute capability 8.0: B and C variable, whole blocks and tiles, with z, in two chunks, with starts.
#include "scan_backward_async.cuh"

#include "entries.cuh"

BACKWARD_TWO_ASYNC(bf16, bf16_, s, true)
