// Up to 256 states, B and C variable, no starts.
#include "scan_forward.cuh"

#include "entries.cuh"

FORWARD256(USUAL, float, )
