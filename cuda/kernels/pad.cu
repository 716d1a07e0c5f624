// A grid of three axes with cells added or cut off at its sides; see cuda/pad.go. A thread writes one number.
#include <stdint.h>

extern "C" __global__ void pad(const float *x, float *y, int64_t n, int64_t from0, int64_t from1, int64_t from2, int64_t to0, int64_t to1, int64_t to2,
                               int64_t before0, int64_t before1, int64_t before2, int64_t channels) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int64_t cell = i / channels;
  const int64_t c = i % channels, k = cell % to2 - before2;
  cell /= to2;
  const int64_t j = cell % to1 - before1;
  cell /= to1;
  const int64_t h = cell % to0 - before0, b = cell / to0;
  const bool inside = h >= 0 && h < from0 && j >= 0 && j < from1 && k >= 0 && k < from2;
  y[i] = inside ? x[(((b * from0 + h) * from1 + j) * from2 + k) * channels + c] : 0.f;
}
