#include "attention_mma.cuh"

ATTENTION_MMA(tf32_64, float, 64, 2, 32, 2, 32, 2)
