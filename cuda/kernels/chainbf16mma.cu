// Steps of generation through a chain of blocks, with weights of bfloat16.
#include "chain.cuh"

CHAIN(bf16, bf16, 1)
CHAIN(bf16, bf16, 8)
