// Activations of bfloat16: up to 16 states, B and C variable.
#include "scan_forward.cuh"

#include "entries.cuh"

FORWARD16(USUAL, bf16, bf16_)
FORWARD16(STARTED, bf16, bf16_)
FORWARD16FEW(USUAL, bf16, bf16_)
