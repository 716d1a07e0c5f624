// The part of a block of threads that has a row in registers; norm.cu and layer_norm.cu use it.
#pragma once
#include "vector.cuh"

// Rows<GROUP, N> processes a row of at most 4·N·GROUP numbers, a multiple of four, with GROUP threads: a part of a warp, a warp, or a block of 256. A
// thread keeps its numbers in registers: N times four neighbouring ones. The groups of a warp always run together, also without a row.
template <int GROUP, int N> struct Rows {
  // each calls f(i, j) for the j-th group of four of the thread, at column i.
  template <class F> static __device__ __forceinline__ void each(int64_t width, F f) {
#pragma unroll
    for (int j = 0; j < N; j++) {
      const int i = 4 * (j * GROUP + threadIdx.x % GROUP);
      if (i < width) f(i, j);
    }
  }
  // sum adds over the group. Every thread gets the same result.
  static __device__ __forceinline__ double sum(double v) {
#pragma unroll
    for (int m = GROUP < 32 ? GROUP / 2 : 16; m > 0; m /= 2) v += __shfl_xor_sync(~0u, v, m);
    if constexpr (GROUP > 32) {
      __shared__ double warps[GROUP / 32];
      __syncthreads();
      if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
      __syncthreads();
      v = 0;
#pragma unroll
      for (int i = 0; i < GROUP / 32; i++) v += warps[i];
    }
    return v;
  }
};
