// RMSNorm: y = x / sqrt(mean(x²) + eps) · weight. A warp processes a row. The mean is in double, so that the squares of large floats do not
// overflow.
#include "types.cuh"

__device__ __forceinline__ float rowScale(const float *x, int64_t width, float eps, int lane) {
  double sum = 0;
#pragma unroll 8
  for (int64_t i = lane; i < width; i += 32) sum += (double)x[i] * x[i];
  return (float)(1 / sqrt(warpSum(sum) / width + eps));
}

template <class T> __device__ __forceinline__ void normForward(const float *x, const float *w, T *y, int64_t rows, int64_t width, float eps) {
  const int lane = threadIdx.x % 32;
  const int64_t row = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  x += row * width, y += row * width;
  const float scale = rowScale(x, width, eps, lane);
#pragma unroll 8
  for (int64_t i = lane; i < width; i += 32) y[i] = to<T>(x[i] * scale * w[i]);
}

// normBackward computes dx = residual + the gradient of x, and parts (block, width), each block's part of dw. A block processes each rows, its
// warps in turn. Each warp adds its part of dw in its own row of shared memory.
template <class T>
__device__ __forceinline__ void normBackward(const float *x, const float *w, const T *dy, const float *residual, float *dx, float *parts,
                                             int64_t rows, int64_t width, float eps, int64_t each) {
  extern __shared__ float sums[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  float *dw = sums + warp * width;
  for (int64_t i = lane; i < width; i += 32) dw[i] = 0.f;
  const int64_t first = (int64_t)blockIdx.x * each, last = min(first + each, rows);
  for (int64_t row = first + warp; row < last; row += warps) {
    const float *xr = x + row * width;
    const T *d = dy + row * width;
    double square = 0, dot = 0;
#pragma unroll 8
    for (int64_t i = lane; i < width; i += 32) {
      square += (double)xr[i] * xr[i];
      dot += (double)(value(d[i]) * w[i]) * xr[i];
    }
    const double scale = 1 / sqrt(warpSum(square) / width + eps);
    const float r = (float)scale, c = (float)(warpSum(dot) / width * scale * scale * scale);
#pragma unroll 8
    for (int64_t i = lane; i < width; i += 32) {
      const float g = value(d[i]);
      const float v = g * w[i] * r - xr[i] * c;
      dw[i] += g * xr[i] * r;
      dx[row * width + i] = residual ? residual[row * width + i] + v : v;
    }
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    float sum = 0;
    for (int k = 0; k < warps; k++) sum += sums[k * width + i];
    parts[blockIdx.x * width + i] = sum;
  }
}

#define NORM(NAME, T)                                                                                                        \
  extern "C" __global__ void norm_forward_##NAME(const float *x, const float *w, T *y, int64_t rows, int64_t width, float eps) { \
    normForward<T>(x, w, y, rows, width, eps);                                                                               \
  }                                                                                                                          \
  extern "C" __global__ void norm_backward_##NAME(const float *x, const float *w, const T *dy, const float *residual, float *dx, \
                                                  float *parts, int64_t rows, int64_t width, float eps, int64_t each) {      \
    normBackward<T>(x, w, dy, residual, dx, parts, rows, width, eps, each);                                                  \
  }
NORM(float, float)
NORM(bf16, bf16)
