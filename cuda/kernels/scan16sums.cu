// The sums of parts of gradients.
#include "scan_backward.cuh"

// Sums describes up to twelve sums of parts for one launch. partSum in cuda/sums.go has the same fields.
struct Sums {
  struct {
    void *to;
    const float *parts;
    int64_t count, pitch, size, width, apart, step, half, first;  // half: to is bfloat16; first: the number of its first block
  } of[12];
};

// From this number of parts on, eight warps share the parts of MANY elements. sumParts in cuda/sums.go has the same numbers.
constexpr int64_t manyParts = 16;
constexpr int MANY = 128;

template <class X, class S> __device__ __forceinline__ void sumOf(const S &s) {
  const int64_t block = blockIdx.x - s.first;
  X *to = (X *)s.to;
  if (s.count < manyParts) {
    if (s.apart == 1 && s.pitch == s.size) {
      sumPartsOf(to, s.parts, s.count, s.size, s.width, s.step, block);
      return;
    }
    for (int64_t i = (block * blockDim.x + threadIdx.x) * 4, end = min(i + 4, s.size); i < end; i++) {
      float sum = 0.f;
      for (int64_t k = 0; k < s.count; k++) sum += s.parts[k * s.pitch + i];
      to[i / s.width * s.step + i % s.width * s.apart] = ::to<X>(sum);
    }
    return;
  }
  // Like columnSum, with four columns a thread.
  __shared__ double sums[8][MANY];
  const int part = threadIdx.x / 32, column = threadIdx.x % 32 * 4;
  const int64_t from = block * MANY + column, each = (s.count + 7) / 8, last = min((part + 1) * each, s.count);
  const bool together = (s.pitch | s.size) % 4 == 0 && (uintptr_t)s.parts % 16 == 0;
  double sum[4] = {};
#pragma unroll 4
  for (int64_t k = part * each; k < last; k++) {
    const float4 v = from < s.size ? fourOf(s.parts + k * s.pitch + from, (int)min(s.size - from, (int64_t)4), together) : make_float4(0.f, 0.f, 0.f, 0.f);
    sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
  }
#pragma unroll
  for (int j = 0; j < 4; j++) sums[part][column + j] = sum[j];
  __syncthreads();
  const int64_t i = block * MANY + threadIdx.x;
  if (threadIdx.x >= MANY || i >= s.size) return;
  double all = 0;
#pragma unroll
  for (int k = 0; k < 8; k++) all += sums[k][threadIdx.x];
  to[i / s.width * s.step + i % s.width * s.apart] = ::to<X>((float)all);
}

// The blocks of a sum follow those of the sum before.
extern "C" __global__ __launch_bounds__(256, 5) void sum_parts(const Sums sums) {
  awaitLast();
  int i = 0;
  while (i + 1 < 12 && blockIdx.x >= sums.of[i + 1].first) i++;
  const auto &s = sums.of[i];
  if (s.half)
    sumOf<bf16>(s);
  else
    sumOf<float>(s);
}
