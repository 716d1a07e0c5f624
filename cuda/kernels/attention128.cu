#include "attention.cuh"

ATTENTION(128, 128, 8, 32, 128, 2, 2)
