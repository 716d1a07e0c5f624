// A constant factor, and a factor for each channel; see cuda/scale.go. weight may be null.
#include "types.cuh"

extern "C" __global__ void scale(const float *x, const float *weight, float *y, int64_t n, int64_t width, float by) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = weight ? by * weight[i % width] * x[i] : by * x[i];
}

extern "C" __global__ void products(const float *x, const float *dy, float *p, int64_t n, float by) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) p[i] = by * x[i] * dy[i];
}
