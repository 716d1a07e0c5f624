// Integers and marks of the host, of 64 bits, as the kernels read them.
#include "types.cuh"

// integers_of writes the nearest numbers that 32 bits hold.
extern "C" __global__ void integers_of(const int64_t *from, int32_t *to, int64_t n) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) to[i] = (int32_t)max(min(from[i], (int64_t)INT32_MAX), (int64_t)INT32_MIN);
}

// marks_of writes 1 where a number is not 0.
extern "C" __global__ void marks_of(const int64_t *from, uint8_t *to, int64_t n) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) to[i] = from[i] != 0;
}
