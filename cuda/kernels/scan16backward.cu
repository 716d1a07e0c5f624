// Up to 16 states, B and C variable, no starts; and what puts chunks and parts together.
#include "scan_backward.cuh"

#include "entries.cuh"

BACKWARD16(USUAL, float, )
BACKWARD16FEW(USUAL, float, )

extern "C" __global__ void scan_carries_in(const Scan s) { scanCarriesIn(s); }

#define SUM_PARTS(NAME, X)                                                                                                           \
  extern "C" __global__ void sum_parts_##NAME(X *to, const float *parts, int64_t count, int64_t size, int64_t width, int64_t step) { \
    sumPartsOf(to, parts, count, size, width, step);                                                                                 \
  }
SUM_PARTS(float, float)
SUM_PARTS(bf16, bf16)
