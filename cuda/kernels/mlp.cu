// The activation between the two products of an MLP, f(h + bias). bias may be null. A thread has V neighbouring columns of a row, 16 bytes; rows that do
// not begin at multiples of 16 bytes have threads of one column.
#include "activation.cuh"
#include "vector.cuh"

template <int V> __device__ __forceinline__ void biases(const float *bias, int64_t column, float (&b)[V]) {
#pragma unroll
  for (int v = 0; v < V; v++) b[v] = bias ? bias[column + v] : 0.f;
}

template <class T, int V>
__device__ __forceinline__ void mlpForward(const T *h, const float *bias, T *y, int64_t rows, int64_t width, int f) {
  const int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (i >= rows * width) return;
  float x[V], b[V];
  load<V>(h + i, x), biases(bias, i % width, b);
#pragma unroll
  for (int v = 0; v < V; v++) x[v] = activation(f, x[v] + b[v]);
  store<V>(y + i, x);
}

// mlpBackward writes y again, replaces dy by the gradient of h, and writes parts (gridDim.y, width): its sums over each rows. A block of 256 threads has
// 32 V columns of eight rows at a time.
template <class T, int V>
__device__ __forceinline__ void mlpBackward(const T *h, const float *bias, T *dy, T *y, float *parts, int64_t rows, int64_t width, int64_t each, int f) {
  __shared__ float sums[8][32 * V];
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
  const int64_t column = ((int64_t)blockIdx.x * 32 + lane) * V, first = blockIdx.y * each, last = min(first + each, rows);
  float total[V] = {}, b[V];
  if (column < width) {
    biases(bias, column, b);
#pragma unroll 2
    for (int64_t row = first + part; row < last; row += 8) {
      float x[V], d[V];
      load<V>(h + row * width + column, x), load<V>(dy + row * width + column, d);
#pragma unroll
      for (int v = 0; v < V; v++) {
        const float s = x[v] + b[v];
        x[v] = activation(f, s), d[v] *= slope(f, s);
        total[v] += d[v];
      }
      store<V>(y + row * width + column, x), store<V>(dy + row * width + column, d);
    }
  }
#pragma unroll
  for (int v = 0; v < V; v++) sums[part][lane * V + v] = total[v];
  __syncthreads();
  for (int i = threadIdx.x; i < 32 * V; i += 256) {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < 8; k++) sum += sums[k][i];
    const int64_t at = (int64_t)blockIdx.x * 32 * V + i;
    if (at < width) parts[blockIdx.y * width + at] = sum;
  }
}

#define MLP(T, V, NAME)                                                                                                             \
  extern "C" __global__ __launch_bounds__(256) void mlp_forward_##NAME(const T *h, const float *bias, T *y, int64_t rows,           \
                                                                       int64_t width, int32_t f) {                                  \
    mlpForward<T, V>(h, bias, y, rows, width, f);                                                                                   \
  }                                                                                                                                 \
  extern "C" __global__ __launch_bounds__(256) void mlp_backward_##NAME(const T *h, const float *bias, T *dy, T *y, float *parts,   \
                                                                        int64_t rows, int64_t width, int64_t each, int32_t f) {     \
    mlpBackward<T, V>(h, bias, dy, y, parts, rows, width, each, f);                                                                 \
  }
MLP(float, 4, float_4)
MLP(float, 1, float_1)
MLP(bf16, 8, bf16_8)
MLP(bf16, 1, bf16_1)
