// Up to 256 states, B and C variable, no starts.
#include "scan_backward.cuh"

#include "entries.cuh"

BACKWARD256(USUAL, float, )
