#include "attention.cuh"

ATTENTION(256, 256, 4, 16, 64, 3, 3)
