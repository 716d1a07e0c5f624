// The sums of parts of gradients.
#include "scan_backward.cuh"
#include "vector.cuh"

// Sums describes up to twelve sums of parts for one launch. partSum in cuda/sums.go has the same fields.
struct Sums {
  struct {
    void *to;
    const float *parts;
    int64_t count, pitch, size, width, apart, step, half, first;  // half: to is bfloat16; first: the number of its first block
  } of[12];
};

// From this number of parts on, groups of threads share the parts. partGroups in cuda/sums.go has the same numbers.
constexpr int64_t manyParts = 16;
constexpr int EACH = 8, FEWEST = 2, MOST = 64, SUMS = 4 * 256;

// addParts adds count parts of columns columns, step elements apart, in order. It reads V columns together, and EACH parts before it adds them.
template <int V> __device__ __forceinline__ void addParts(double (&sum)[4], const float *parts, int64_t step, int count, int columns) {
  for (int k = 0; k < count; k += EACH, parts += EACH * step) {
#pragma unroll
    for (int j = 0; j < 4; j += V) {
      float v[EACH][V] = {};
#pragma unroll
      for (int e = 0; e < EACH; e++)
        if (k + e < count && j < columns) load<V>(parts + e * step + j, v[e]);
#pragma unroll
      for (int e = 0; e < EACH; e++)
#pragma unroll
        for (int i = 0; i < V; i++) sum[j + i] += v[e][i];
    }
  }
}

template <class X, class S> __device__ __forceinline__ void sumOf(const S &s, double (&sums)[SUMS]) {
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
  // The number of groups, and with it the order of additions, follows from the number of parts. A thread has few parts to wait for.
  int groups = FEWEST;
  while (groups < MOST && s.count > EACH * groups) groups *= 2;
  const int columns = SUMS / groups, group = threadIdx.x * 4 / columns, column = threadIdx.x * 4 % columns;
  const int64_t from = block * columns + column;
  double sum[4] = {};
  if (from < s.size) {
    const float *parts = s.parts + group * s.pitch + from;
    const int64_t step = groups * s.pitch, left = (s.count - group + groups - 1) / groups;
    if ((s.pitch | s.size) % 4 == 0 && (uintptr_t)s.parts % 16 == 0)
      addParts<4>(sum, parts, step, (int)left, 4);
    else
      addParts<1>(sum, parts, step, (int)left, (int)min(s.size - from, (int64_t)4));
  }
#pragma unroll
  for (int j = 0; j < 4; j++) sums[4 * threadIdx.x + j] = sum[j];
  for (int half = SUMS / 2; half >= columns; half /= 2) {
    __syncthreads();
    for (int i = threadIdx.x; i < half; i += 256) sums[i] += sums[i + half];
  }
  for (int j = threadIdx.x; j < columns && block * columns + j < s.size; j += 256) {
    const int64_t i = block * columns + j;
    to[i / s.width * s.step + i % s.width * s.apart] = ::to<X>((float)sums[j]);
  }
}

// The blocks of a sum follow those of the sum before.
extern "C" __global__ __launch_bounds__(256, 4) void sum_parts(const Sums sums) {
  __shared__ __align__(16) double shared[SUMS];
  takeOver();
  int i = 0;
  while (i + 1 < 12 && blockIdx.x >= sums.of[i + 1].first) i++;
  const auto &s = sums.of[i];
  if (s.half)
    sumOf<bf16>(s, shared);
  else
    sumOf<float>(s, shared);
}
