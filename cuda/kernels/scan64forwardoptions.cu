// Up to 64 states, the other options.
#include "scan_forward.cuh"

#include "entries.cuh"

FORWARD64(OPTIONS, float, )
