#include "attention_mma.cuh"

ATTENTION_MMA(bf16_32, bf16, 32, 2, 64, 3, 64, 3)
