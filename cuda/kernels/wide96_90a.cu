#include "wide.cuh"
WIDE(96, 3)
