// For devices with less shared memory.
#include "attention.cuh"

ATTENTION(128small, 128, 4, 16, 128, 3, 3)
