// float32 in three parts of bfloat16.
#pragma once
#include "mma.cuh"

// split divides two numbers into pairs of bfloat16, the largest parts first. Infinite numbers, and those above the largest of bfloat16, make a NaN of every
// sum that their parts are in.
__device__ __forceinline__ void split(float a, float b, uint32_t (&parts)[3]) {
#pragma unroll
  for (int p = 0; p < 2; p++) {
    parts[p] = pair(a, b);
    a -= __uint_as_float(parts[p] << 16), b -= __uint_as_float(parts[p] & 0xffff0000u);
  }
  parts[2] = pair(a, b);
}

__device__ __forceinline__ bool finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }
