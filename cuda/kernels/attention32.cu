#include "attention.cuh"

ATTENTION(32, 32, 8, 64, 128, 3, 3)
