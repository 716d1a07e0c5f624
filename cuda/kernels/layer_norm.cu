// LayerNorm: y = (x - mean) / sqrt(variance + eps) · weight + bias over rows; see cuda/layer_norm.go. Weight and bias may be null. Means and variances
// are in double: the variance is the mean of (x - mean)², so that a large mean costs no digits.
#include "rows.cuh"

// Few<GROUP, N> is Rows with the mean and the variance. All threads of a warp call sum.
template <int GROUP, int N> struct Few : Rows<GROUP, N> {
  using Rows<GROUP, N>::each;
  using Rows<GROUP, N>::sum;
  // centre subtracts the mean from the numbers of a row and returns 1/sqrt(variance + eps).
  static __device__ __forceinline__ float centre(float (&v)[N][4], int64_t width, float eps) {
    double total = 0, square = 0;
    each(width, [&](int, int j) {
#pragma unroll
      for (int k = 0; k < 4; k++) total += v[j][k];
    });
    const double mean = sum(total) / width;
    each(width, [&](int, int j) {
#pragma unroll
      for (int k = 0; k < 4; k++) v[j][k] = (float)(v[j][k] - mean), square += (double)v[j][k] * v[j][k];
    });
    return (float)(1 / sqrt(sum(square) / width + eps));
  }
};

template <int GROUP, int N>
__device__ __forceinline__ void forwardFew(const float *x, const float *w, const float *b, float *y, int64_t rows, int64_t width, float eps) {
  typedef Few<GROUP, N> R;
  const int64_t row = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / GROUP;
  const bool live = row < rows;  // the other threads take part in the sums
  float v[N][4] = {};
  if (live) R::each(width, [&](int i, int j) { load<4>(x + row * width + i, v[j]); });
  const float scale = R::centre(v, width, eps);
  if (!live) return;
  R::each(width, [&](int i, int j) {
    float weight[4] = {1.f, 1.f, 1.f, 1.f}, bias[4] = {};
    if (w) load<4>(w + i, weight);
    if (b) load<4>(b + i, bias);
#pragma unroll
    for (int k = 0; k < 4; k++) v[j][k] = fmaf(v[j][k] * scale, weight[k], bias[k]);
    store<4>(y + row * width + i, v[j]);
  });
}

// backwardFew writes dx, and parts (2, blocks, width): each block's sums for dw, then those for db. A block processes each rows, its groups in turn.
template <int GROUP, int N>
__device__ __forceinline__ void backwardFew(const float *x, const float *w, const float *dy, float *dx, float *parts, int64_t rows, int64_t width,
                                            float eps, int64_t each) {
  typedef Few<GROUP, N> R;
  extern __shared__ float sums[];  // (groups, 2, width)
  const int groups = blockDim.x / GROUP, group = threadIdx.x / GROUP;
  float dw[N][4] = {}, db[N][4] = {}, weight[N][4];
  R::each(width, [&](int i, int j) {
#pragma unroll
    for (int k = 0; k < 4; k++) weight[j][k] = 1.f;
    if (w) load<4>(w + i, weight[j]);
  });
  const int64_t first = (int64_t)blockIdx.x * each, last = min(first + each, rows);
  for (int64_t base = first; base < last; base += groups) {
    const int64_t row = base + group;
    const bool live = row < last;
    float v[N][4] = {}, g[N][4] = {};
    if (live) R::each(width, [&](int i, int j) { load<4>(x + row * width + i, v[j]), load<4>(dy + row * width + i, g[j]); });
    const float scale = R::centre(v, width, eps);
    double total = 0, dot = 0;
    R::each(width, [&](int, int j) {
#pragma unroll
      for (int k = 0; k < 4; k++) {
        v[j][k] *= scale;
        dw[j][k] = fmaf(g[j][k], v[j][k], dw[j][k]), db[j][k] += g[j][k];
        g[j][k] *= weight[j][k];
        total += g[j][k], dot += (double)g[j][k] * v[j][k];
      }
    });
    const float mean = (float)(R::sum(total) / width), slope = (float)(R::sum(dot) / width);
    if (!live) continue;
    R::each(width, [&](int i, int j) {
#pragma unroll
      for (int k = 0; k < 4; k++) g[j][k] = scale * (g[j][k] - mean - v[j][k] * slope);
      store<4>(dx + row * width + i, g[j]);
    });
  }
  const int64_t second = (int64_t)gridDim.x * width;  // the part of db
  if (GROUP > 32) {
    R::each(width, [&](int i, int j) { store<4>(parts + blockIdx.x * width + i, dw[j]), store<4>(parts + second + blockIdx.x * width + i, db[j]); });
    return;
  }
  R::each(width, [&](int i, int j) { store<4>(sums + 2 * group * width + i, dw[j]), store<4>(sums + (2 * group + 1) * width + i, db[j]); });
  __syncthreads();
  for (int64_t i = threadIdx.x; i < 2 * width; i += blockDim.x) {
    float sum = 0;
    for (int k = 0; k < groups; k++) sum += sums[2 * k * width + i];
    parts[i < width ? blockIdx.x * width + i : second + blockIdx.x * width + i - width] = sum;
  }
}

#define FEW(GROUP, N, BLOCKS)                                                                                                        \
  extern "C" __global__ __launch_bounds__(256) void layer_norm_forward_##GROUP##x##N(                                                \
      const float *x, const float *w, const float *b, float *y, int64_t rows, int64_t width, float eps) {                            \
    forwardFew<GROUP, N>(x, w, b, y, rows, width, eps);                                                                              \
  }                                                                                                                                  \
  extern "C" __global__ __launch_bounds__(256, BLOCKS) void layer_norm_backward_##GROUP##x##N(                                       \
      const float *x, const float *w, const float *dy, float *dx, float *parts, int64_t rows, int64_t width, float eps, int64_t each) { \
    backwardFew<GROUP, N>(x, w, dy, dx, parts, rows, width, eps, each);                                                              \
  }
// cuda/layer_norm.go has the same sizes.
FEW(8, 3, 3)
FEW(16, 3, 3)
FEW(32, 3, 3)
FEW(32, 6, 2)
FEW(256, 1, 3)
FEW(256, 3, 3)

// The kernels below are for rows of any width. A warp processes a row.
struct Row {
  float mean, low, scale;  // mean + low is the mean
  __device__ __forceinline__ float centred(float v) const { return v - mean - low; }
};

__device__ __forceinline__ Row rowOf(const float *x, int64_t width, float eps, int lane) {
  double total = 0, square = 0;
  for (int64_t i = lane; i < width; i += 32) total += x[i];
  const double mean = warpSum(total) / width;
  for (int64_t i = lane; i < width; i += 32) square += (x[i] - mean) * (x[i] - mean);
  const float high = (float)mean;
  return {high, isinf(high) ? 0.f : (float)(mean - high), (float)(1 / sqrt(warpSum(square) / width + eps))};
}

extern "C" __global__ void layer_norm_forward(const float *x, const float *w, const float *b, float *y, int64_t rows, int64_t width, float eps) {
  const int lane = threadIdx.x % 32;
  const int64_t row = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
  if (row >= rows) return;
  x += row * width, y += row * width;
  const Row r = rowOf(x, width, eps, lane);
  for (int64_t i = lane; i < width; i += 32) y[i] = fmaf(r.centred(x[i]) * r.scale, w ? w[i] : 1.f, b ? b[i] : 0.f);
}

// layer_norm_backward writes dx, and the mean and scale of each row.
extern "C" __global__ void layer_norm_backward(const float *x, const float *w, const float *dy, float *dx, Row *all, int64_t rows, int64_t width, float eps) {
  const int lane = threadIdx.x % 32;
  const int64_t row = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
  if (row >= rows) return;
  x += row * width, dy += row * width, dx += row * width;
  const Row r = rowOf(x, width, eps, lane);
  double total = 0, dot = 0;
  for (int64_t i = lane; i < width; i += 32) {
    const float g = dy[i] * (w ? w[i] : 1.f);
    total += g, dot += (double)g * (r.centred(x[i]) * r.scale);
  }
  const float mean = (float)(warpSum(total) / width), slope = (float)(warpSum(dot) / width);
  for (int64_t i = lane; i < width; i += 32) dx[i] = r.scale * (dy[i] * (w ? w[i] : 1.f) - mean - r.centred(x[i]) * r.scale * slope);
  if (lane == 0) all[row] = r;
}

// layer_norm_columns writes parts (2, gridDim.y, width): the sums for dw and db over each rows.
extern "C" __global__ void layer_norm_columns(const float *x, const float *dy, const Row *all, float *parts, int64_t rows, int64_t width, int64_t each) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * each;
  if (i >= width) return;
  float dw = 0, db = 0;
  for (int64_t row = first; row < min(first + each, rows); row++) {
    const float g = dy[row * width + i];
    dw += g * (all[row].centred(x[row * width + i]) * all[row].scale), db += g;
  }
  parts[blockIdx.y * width + i] = dw;
  parts[((int64_t)gridDim.y + blockIdx.y) * width + i] = db;
}

// layer_norm_sums adds up the parts. blockIdx.y is 0 for dw and 1 for db, which may be null.
extern "C" __global__ void layer_norm_sums(const float *parts, float *dw, float *db, int64_t count, int64_t width) {
  const int64_t i = (int64_t)blockIdx.x * 32 + threadIdx.x % 32;
  const double s = columnSum(parts + blockIdx.y * count * width, count, width, i);
  float *sum = blockIdx.y ? db : dw;
  if (sum && threadIdx.x < 32 && i < width) sum[i] = (float)s;
}
