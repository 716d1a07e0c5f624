#include "attention.cuh"

ATTENTION(64, 64, 8, 64, 128, 3, 2)
