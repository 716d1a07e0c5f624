// Up to 256 states, the other options.
#include "scan_forward.cuh"

#include "entries.cuh"

FORWARD256(OPTIONS, float, )
