// Up to 64 states, everything else.
#include "entries.cuh"

SCAN64(OPTIONS)
