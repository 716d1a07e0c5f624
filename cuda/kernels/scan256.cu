// Up to 256 states, B and C variable, no starts.
#include "entries.cuh"

SCAN256(USUAL)
