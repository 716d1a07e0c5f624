// Activations of bfloat16: up to 16 states, B and C variable.
#include "scan_backward.cuh"

#include "entries.cuh"

BACKWARD16(USUAL, bf16, bf16_)
BACKWARD16(STARTED, bf16, bf16_)
BACKWARD16FEW(USUAL, bf16, bf16_)
