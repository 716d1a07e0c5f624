// Up to 16 states, B and C variable, no starts, and the kernel that joins chunks.
#include "scan_backward.cuh"

#include "entries.cuh"

BACKWARD16(USUAL, float, )
BACKWARD16FEW(USUAL, float, )

extern "C" __global__ void scan_carries_in(const Scan s) { scanCarriesIn(s); }
