// Up to 64 states, B and C variable, no starts.
#include "entries.cuh"

SCAN64(USUAL)
