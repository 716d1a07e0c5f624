// The sizes of a convolution over a grid.
#pragma once
#include "vector.cuh"

struct GridConv {
  int64_t batch;
  int32_t channels, filters, groups, width, ones;  // width: from one row of columns to the next; ones: columns of ones after those of the inputs
  int32_t in[3], out[3], kernel[3], stride[3], padding[3], dilation[3];
};

__device__ __forceinline__ bool within(int32_t i, int32_t n) { return (uint32_t)i < (uint32_t)n; }
