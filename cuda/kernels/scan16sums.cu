// The sums of parts of gradients.
#include "scan_backward.cuh"

// Sums describes up to eight sums of parts for one launch. partSum in cuda/scan_kernels.go has the same fields.
struct Sums {
  struct {
    void *to;
    const float *parts;
    int64_t count, size, width, step, half;  // half: to is bfloat16
  } of[8];
};

extern "C" __global__ void sum_parts(const Sums sums) {
  const auto &s = sums.of[blockIdx.y];
  if (s.half)
    sumPartsOf((bf16 *)s.to, s.parts, s.count, s.size, s.width, s.step);
  else
    sumPartsOf((float *)s.to, s.parts, s.count, s.size, s.width, s.step);
}
