// Up to 64 states, B and C variable, no starts.
#include "scan_forward.cuh"

#include "entries.cuh"

FORWARD64(USUAL, float, )
