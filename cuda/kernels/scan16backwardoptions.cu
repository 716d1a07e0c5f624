// Up to 16 states, the other options.
#include "scan_backward.cuh"

#include "entries.cuh"

BACKWARD16(OPTIONS, float, )
