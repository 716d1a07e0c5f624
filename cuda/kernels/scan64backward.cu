// Up to 64 states, B and C variable, no starts.
#include "scan_backward.cuh"

#include "entries.cuh"

BACKWARD64(USUAL, float, )
