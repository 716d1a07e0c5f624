// Up to 64 states, the other options.
#include "scan_backward.cuh"

#include "entries.cuh"

BACKWARD64(OPTIONS, float, )
