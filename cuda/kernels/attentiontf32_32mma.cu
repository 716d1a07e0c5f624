#include "attention_mma.cuh"

ATTENTION_MMA(tf32_32, float, 32, 2, 32, 3, 32, 3)
