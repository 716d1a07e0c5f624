#include "wide.cuh"
WIDE(192, 3)
