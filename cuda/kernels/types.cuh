// Activations are float or bfloat16, of which all arithmetic is done in float. Conversions are integer operations, since bfloat16
// instructions want compute capability 8.0.
#pragma once
#include <stdint.h>

struct bf16 {
  uint16_t bits;
};

__device__ __forceinline__ float value(float x) { return x; }
__device__ __forceinline__ float value(bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }

template <class T> __device__ __forceinline__ T to(float x);
template <> __device__ __forceinline__ float to<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 to<bf16>(float x) {  // to the nearest, halves to even
  const uint32_t u = __float_as_uint(x);
  const uint32_t rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
  return {(uint16_t)(x == x ? rounded : u >> 16 | 0x40)};
}

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + __expf(-x)); }

// warpSum adds over a warp, the same result in every lane.
template <class T> __device__ __forceinline__ T warpSum(T v) {
#pragma unroll
  for (int m = 16; m > 0; m /= 2) v += __shfl_xor_sync(~0u, v, m);
  return v;
}

