// Blocks of the cells of a grid to channels, and back; copies between rows of different strides. internal/kernel/blocks.go defines the blocks.
#include "vector.cuh"

struct Blocks {
  const float *from;
  float *to;
  int32_t wide[3], deep[3], block[3], channels, firstFastest;  // channels: of V elements
};

template <int V> __device__ __forceinline__ void move(const float *from, float *to) {
  float v[V];
  load<V>(from, v), store<V>(to, v);
}
template <int V> __device__ __forceinline__ void zero(float *to) {
#pragma unroll
  for (int v = 0; v < V; v++) to[v] = 0.f;
}

// A block of threads writes the cells of a line: (batch, d, h) of the deep grid.
template <int V> __device__ __forceinline__ void spaceToDepth(const Blocks &b) {
  const int64_t line = blockIdx.x;
  const int h = line % b.deep[1], d = line / b.deep[1] % b.deep[0];
  const int64_t batch = line / b.deep[1] / b.deep[0];
  const unsigned parts = b.block[0] * b.block[1] * b.block[2], deep = parts * b.channels, size = b.deep[2] * deep;
  for (unsigned e = blockIdx.y * blockDim.x + threadIdx.x; e < size; e += gridDim.y * blockDim.x) {
    const unsigned w = e / deep, part = e % deep / b.channels, c = e % b.channels;
    unsigned i, j, k;
    if (b.firstFastest)
      i = part % b.block[0], j = part / b.block[0] % b.block[1], k = part / b.block[0] / b.block[1];
    else
      k = part % b.block[2], j = part / b.block[2] % b.block[1], i = part / b.block[2] / b.block[1];
    const int x = d * b.block[0] + i, y = h * b.block[1] + j, z = w * b.block[2] + k;
    float *to = b.to + V * (line * size + e);
    if (x < b.wide[0] && y < b.wide[1] && z < b.wide[2])
      move<V>(b.from + V * ((((batch * b.wide[0] + x) * b.wide[1] + y) * b.wide[2] + z) * b.channels + c), to);
    else
      zero<V>(to);
  }
}

// A block of threads writes the cells of a line: (batch, d, h) of the wide grid.
template <int V> __device__ __forceinline__ void depthToSpace(const Blocks &b) {
  const int64_t line = blockIdx.x;
  const int h = line % b.wide[1], d = line / b.wide[1] % b.wide[0];
  const int64_t batch = line / b.wide[1] / b.wide[0];
  const unsigned size = b.wide[2] * b.channels;
  const int x = d / b.block[0], y = h / b.block[1];
  for (unsigned e = blockIdx.y * blockDim.x + threadIdx.x; e < size; e += gridDim.y * blockDim.x) {
    const unsigned w = e / b.channels, c = e % b.channels;
    const int z = w / b.block[2], i = d % b.block[0], j = h % b.block[1], k = w % b.block[2];
    const int64_t part = b.firstFastest ? (k * b.block[1] + j) * b.block[0] + i : (i * b.block[1] + j) * b.block[2] + k;
    float *to = b.to + V * (line * size + e);
    if (x < b.deep[0] && y < b.deep[1] && z < b.deep[2]) {
      const int64_t cell = ((batch * b.deep[0] + x) * b.deep[1] + y) * b.deep[2] + z;
      move<V>(b.from + V * ((cell * b.block[0] * b.block[1] * b.block[2] + part) * b.channels + c), to);
    } else {
      zero<V>(to);
    }
  }
}

// copyRows copies rows of width·V elements between arrays of other strides. A block of threads copies blockDim.x / columns rows, columns
// at a time.
template <int V>
__device__ __forceinline__ void copyRows(const float *from, float *to, int64_t rows, int32_t width, int64_t fromStride, int64_t toStride, int32_t columns) {
  const int64_t row = (int64_t)blockIdx.x * (blockDim.x / columns) + threadIdx.x / columns;
  if (row >= rows || (int)threadIdx.x >= blockDim.x / columns * columns) return;
  for (int i = threadIdx.x % columns; i < width; i += columns) move<V>(from + row * fromStride + V * i, to + row * toStride + V * i);
}

#define BLOCKS(V)                                                                                                          \
  extern "C" __global__ void space_to_depth_##V(const Blocks b) { spaceToDepth<V>(b); }                                   \
  extern "C" __global__ void depth_to_space_##V(const Blocks b) { depthToSpace<V>(b); }                                   \
  extern "C" __global__ void copy_rows_##V(const float *from, float *to, int64_t rows, int32_t width, int64_t fromStride, \
                                           int64_t toStride, int32_t columns) {                                           \
    copyRows<V>(from, to, rows, width, fromStride, toStride, columns);                                                    \
  }
BLOCKS(1)
BLOCKS(4)
