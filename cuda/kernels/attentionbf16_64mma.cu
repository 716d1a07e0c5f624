#include "attention_mma.cuh"

ATTENTION_MMA(bf16_64, bf16, 64, 2, 64, 2, 64, 2)
