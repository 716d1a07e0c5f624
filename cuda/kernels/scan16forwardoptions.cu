// Up to 16 states, the other options.
#include "scan_forward.cuh"

#include "entries.cuh"

FORWARD16(OPTIONS, float, )
