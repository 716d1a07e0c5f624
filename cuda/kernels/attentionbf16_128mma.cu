#include "attention_mma.cuh"

ATTENTION_MMA(bf16_128, bf16, 128, 2, 32, 2, 32, 2)
