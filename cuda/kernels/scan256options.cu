// Up to 256 states, everything else.
#include "entries.cuh"

SCAN256(OPTIONS)
