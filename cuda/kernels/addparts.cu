#include "vector.cuh"

// add_parts computes c (m, n) = the sum of the parts (m, n), in order, + beta·c.
extern "C" __global__ __launch_bounds__(256) void add_parts(const float *part, int64_t parts, float *c, int64_t cStep, int64_t m, int64_t n, float beta) {
  const int64_t all = m * n, from = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
  if (from >= all) return;
  float v[4] = {};
  const int count = (int)min((int64_t)4, all - from);
  const bool whole = count == 4 && all % 4 == 0;
#pragma unroll 4
  for (int p = 0; p < parts; p++) {
    float x[4] = {};
    if (whole) {
      load<4>(part + p * all + from, x);
    } else {
      for (int i = 0; i < count; i++) x[i] = part[p * all + from + i];
    }
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] += x[i];
  }
  int64_t row = from / n, column = from % n;
  if (whole && n % 4 == 0 && cStep % 4 == 0 && (uintptr_t)c % 16 == 0) {
    float *to = c + row * cStep + column, old[4];
    if (beta != 0.f) {
      load<4>(to, old);
#pragma unroll
      for (int i = 0; i < 4; i++) v[i] = fmaf(beta, old[i], v[i]);
    }
    store<4>(to, v);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (i >= count) break;
    float *to = c + row * cStep + column;
    *to = beta != 0.f ? fmaf(beta, *to, v[i]) : v[i];
    if (++column == n) column = 0, row++;
  }
}
