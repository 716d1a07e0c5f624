// Up to 16 states, everything else.
#include "entries.cuh"

SCAN16(OPTIONS)
