// 16 states and activations of bfloat16, few channels, for compute capability 8.0: B and C variable, with starts.
#include "scan_forward_async.cuh"

#include "entries.cuh"

FEW_ASYNC(bf16, bf16_, s, true)
