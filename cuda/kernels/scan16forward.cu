// Up to 16 states, B and C variable, no starts, and the kernel that joins chunks.
#include "scan_forward.cuh"

#include "entries.cuh"

FORWARD16(USUAL, float, )
FORWARD16FEW(USUAL, float, )

extern "C" __global__ void scan_beginnings(const Scan s) { scanBeginnings(s); }
