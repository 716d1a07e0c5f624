// Up to 16 states, B and C variable, no starts; and what adds up the parts.
#include "entries.cuh"

SCAN16(USUAL)
USUAL(FORWARD, 2, 8, 16, 128, 2, 16, 8)
USUAL(FORWARD, 8, 2, 32, 128, 4, 16, 8)
USUAL(BACKWARD, 8, 2, 16, 128, 4, 0)
USUAL(FORWARD, 16, 1, 32, 128, 4, 16, 8)
USUAL(BACKWARD, 16, 1, 16, 128, 4, 0)

#define SUM_PARTS(NAME, X)                                                                                                             \
  extern "C" __global__ void sum_parts_##NAME(X *to, const float *parts, int64_t count, int64_t size, int64_t width, int64_t step) {    \
    sumPartsOf(to, parts, count, size, width, step);                                                                                    \
  }
SUM_PARTS(float, float)
SUM_PARTS(bf16, bf16)
