// Up to 256 states, the other options.
#include "scan_backward.cuh"

#include "entries.cuh"

BACKWARD256(OPTIONS, float, )
