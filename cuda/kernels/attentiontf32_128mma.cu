#include "attention_mma.cuh"

ATTENTION_MMA(tf32_128, float, 128, 1, 32, 2, 16, 2)
