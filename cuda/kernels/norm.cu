// RMSNorm: y = x / sqrt(mean(x²) + eps) · weight. A warp processes a row. The forward pass also copies x, unless copy is null. The mean is in double, so that the squares of large floats do not
// overflow.
#include "rows.cuh"

__device__ __forceinline__ float rowScale(const float *x, int64_t width, float eps, int lane) {
  double sum = 0;
#pragma unroll 8
  for (int64_t i = lane; i < width; i += 32) sum += (double)x[i] * x[i];
  return (float)(1 / sqrt(warpSum(sum) / width + eps));
}

template <class T> __device__ __forceinline__ void normForward(const float *x, const float *w, T *y, float *copy, int64_t rows, int64_t width, float eps) {
  const int lane = threadIdx.x % 32;
  const int64_t row = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  x += row * width, y += row * width;
  const float scale = rowScale(x, width, eps, lane);
#pragma unroll 8
  for (int64_t i = lane; i < width; i += 32) {
    const float v = x[i];
    y[i] = to<T>(v * scale * w[i]);
    if (copy) copy[row * width + i] = v;
  }
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
  takeOver();
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

template <class T, int GROUP, int N>
__device__ __forceinline__ void normForwardRows(const float *x, const float *w, T *y, float *copy, int64_t rows, int64_t width, float eps) {
  typedef Rows<GROUP, N> R;
  letNextBegin();
  const int64_t own = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / GROUP, row = min(own, rows - 1);
  float v[N][4], weight[N][4];
  R::each(width, [&](int i, int j) { load<4>(w + i, weight[j]); });
  awaitLast();
  if (GROUP >= 32 && own >= rows) return;
  R::each(width, [&](int i, int j) { load<4>(x + row * width + i, v[j]); });
  double square = 0;
  R::each(width, [&](int i, int j) {
#pragma unroll
    for (int k = 0; k < 4; k++) square += (double)v[j][k] * v[j][k];
  });
  const float scale = (float)(1 / sqrt(R::sum(square) / width + eps));
  if (own < rows) R::each(width, [&](int i, int j) {
    float to[4];
#pragma unroll
    for (int k = 0; k < 4; k++) to[k] = v[j][k] * scale * weight[j][k];
    store<4>(y + row * width + i, to);
    if (copy) store<4>(copy + row * width + i, v[j]);
  });
}

// normBackwardRows is normBackward with the rows in registers. blockDim.x / GROUP groups process the rows of a block in turn.
template <class T, int GROUP, int N>
__device__ __forceinline__ void normBackwardRows(const float *x, const float *w, const T *dy, const float *residual, float *dx, float *parts,
                                                 int64_t rows, int64_t width, float eps, int64_t each) {
  typedef Rows<GROUP, N> R;
  extern __shared__ float sums[];
  takeOver();
  const int groups = blockDim.x / GROUP, group = threadIdx.x / GROUP;
  float dw[N][4];
#pragma unroll
  for (int j = 0; j < N; j++)
#pragma unroll
    for (int k = 0; k < 4; k++) dw[j][k] = 0.f;
  const int64_t first = (int64_t)blockIdx.x * each, last = min(first + each, rows);
  for (int64_t from = first + (GROUP < 32 ? threadIdx.x / 32 * (32 / GROUP) : group); from < last; from += groups) {
    const int64_t own = GROUP < 32 ? from + group % (32 / GROUP) : from, row = min(own, last - 1);
    float v[N][4], g[N][4];
    R::each(width, [&](int i, int j) { load<4>(x + row * width + i, v[j]), load<4>(dy + row * width + i, g[j]); });
    double square = 0, dot = 0;
    R::each(width, [&](int i, int j) {
      float weight[4];
      load<4>(w + i, weight);
#pragma unroll
      for (int k = 0; k < 4; k++) square += (double)v[j][k] * v[j][k], dot += (double)(g[j][k] * weight[k]) * v[j][k];
    });
    const double scale = 1 / sqrt(R::sum(square) / width + eps);
    const float r = (float)scale, c = (float)(R::sum(dot) / width * scale * scale * scale);
    if (own < last) R::each(width, [&](int i, int j) {
      float weight[4], add[4] = {0.f, 0.f, 0.f, 0.f};
      load<4>(w + i, weight);
      if (residual) load<4>(residual + row * width + i, add);
#pragma unroll
      for (int k = 0; k < 4; k++) {
        dw[j][k] += g[j][k] * v[j][k] * r;
        add[k] += g[j][k] * weight[k] * r - v[j][k] * c;
      }
      store<4>(dx + row * width + i, add);
    });
  }
  R::each(width, [&](int i, int j) { store<4>(GROUP <= 32 ? sums + group * width + i : parts + blockIdx.x * width + i, dw[j]); });
  if (GROUP > 32) return;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    float sum = 0;
    for (int k = 0; k < groups; k++) sum += sums[k * width + i];
    parts[blockIdx.x * width + i] = sum;
  }
}

#define NORM_ROWS(NAME, T, GROUP, N, BLOCKS)                                                                                 \
  extern "C" __global__ __launch_bounds__(256) void norm_forward_##NAME##_##GROUP##x##N(                                 \
      const float *x, const float *w, T *y, float *copy, int64_t rows, int64_t width, float eps) {                                        \
    normForwardRows<T, GROUP, N>(x, w, y, copy, rows, width, eps);                                                                 \
  }                                                                                                                          \
  extern "C" __global__ __launch_bounds__(256, BLOCKS) void norm_backward_##NAME##_##GROUP##x##N(                                \
      const float *x, const float *w, const T *dy, const float *residual, float *dx, float *parts, int64_t rows,             \
      int64_t width, float eps, int64_t each) {                                                                              \
    normBackwardRows<T, GROUP, N>(x, w, dy, residual, dx, parts, rows, width, eps, each);                                    \
  }
#define NORM(NAME, T)                                                                                                        \
  extern "C" __global__ void norm_forward_##NAME(const float *x, const float *w, T *y, float *copy, int64_t rows, int64_t width, float eps) { \
    normForward<T>(x, w, y, copy, rows, width, eps);                                                                               \
  }                                                                                                                          \
  extern "C" __global__ void norm_backward_##NAME(const float *x, const float *w, const T *dy, const float *residual, float *dx, \
                                                  float *parts, int64_t rows, int64_t width, float eps, int64_t each) {      \
    normBackward<T>(x, w, dy, residual, dx, parts, rows, width, eps, each);                                                  \
  }                                                                                                                          \
  NORM_ROWS(NAME, T, 16, 1, 4)                                                                                               \
  NORM_ROWS(NAME, T, 32, 1, 4)                                                                                               \
  NORM_ROWS(NAME, T, 32, 2, 2)                                                                                               \
  NORM_ROWS(NAME, T, 32, 6, 2)                                                                                               \
  NORM_ROWS(NAME, T, 256, 1, 4)                                                                                              \
  NORM_ROWS(NAME, T, 256, 3, 4)                                                                                              \
  NORM_ROWS(NAME, T, 256, 4, 2)
NORM(float, float)
NORM(bf16, bf16)
