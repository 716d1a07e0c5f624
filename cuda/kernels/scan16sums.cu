// The sums of parts of gradients.
#include "scan_backward.cuh"

// Sums describes up to twelve sums of parts for one launch. partSum in cuda/sums.go has the same fields.
struct Sums {
  struct {
    void *to;
    const float *parts;
    int64_t count, pitch, size, width, apart, step, half;  // half: to is bfloat16
  } of[12];
};

// From this number of parts on, eight warps share the parts of 32 elements. sumParts in cuda/sums.go has the same number.
constexpr int64_t manyParts = 16;

template <class X, class S> __device__ __forceinline__ void sumOf(const S &s) {
  X *to = (X *)s.to;
  if (s.count < manyParts) {
    if (s.apart == 1 && s.pitch == s.size) {
      sumPartsOf(to, s.parts, s.count, s.size, s.width, s.step);
      return;
    }
    for (int64_t i = (blockIdx.x * (int64_t)blockDim.x + threadIdx.x) * 4, end = min(i + 4, s.size); i < end; i++) {
      float sum = 0.f;
      for (int64_t k = 0; k < s.count; k++) sum += s.parts[k * s.pitch + i];
      to[i / s.width * s.step + i % s.width * s.apart] = ::to<X>(sum);
    }
    return;
  }
  const int64_t i = (int64_t)blockIdx.x * 32 + threadIdx.x % 32;
  if ((int64_t)blockIdx.x * 32 >= s.size) return;
  const double sum = columnSum(s.parts, s.count, s.pitch, min(i, s.size - 1));
  if (threadIdx.x < 32 && i < s.size) to[i / s.width * s.step + i % s.width * s.apart] = ::to<X>((float)sum);
}

extern "C" __global__ void sum_parts(const Sums sums) {
  const auto &s = sums.of[blockIdx.y];
  if (s.half)
    sumOf<bf16>(s);
  else
    sumOf<float>(s);
}
