// Rows of narrow weights as float or bfloat16: all rows for products that take such operands, or the rows of tokens for an embedding. A thread
// computes V neighbouring numbers of a row, 8 if the width is a multiple of 8, else 1.
#include "vector.cuh"

// The types of numbers. read returns V numbers from element i on. int8 has a scale of float16 for 32 numbers, after all numbers.
struct Int8 {
  template <int V> static __device__ __forceinline__ void read(const void *data, const uint16_t *scales, int64_t i, float (&x)[V]) {
    const float scale = fromHalf(scales[i / 32]);
#pragma unroll
    for (int v = 0; v < V; v++) x[v] = scale * (float)((const int8_t *)data)[i + v];
  }
};
struct F16 {
  template <int V> static __device__ __forceinline__ void read(const void *data, const uint16_t *, int64_t i, float (&x)[V]) {
#pragma unroll
    for (int v = 0; v < V; v++) x[v] = fromHalf(((const uint16_t *)data)[i + v]);
  }
};
struct BF16 {
  template <int V> static __device__ __forceinline__ void read(const void *data, const uint16_t *, int64_t i, float (&x)[V]) {
#pragma unroll
    for (int v = 0; v < V; v++) x[v] = value(((const bf16 *)data)[i + v]);
  }
};

__device__ __forceinline__ void write(float *p, const float (&x)[1]) { *p = x[0]; }
__device__ __forceinline__ void write(bf16 *p, const float (&x)[1]) { *p = to<bf16>(x[0]); }
__device__ __forceinline__ void write(float *p, const float (&x)[8]) {
  *(float4 *)p = make_float4(x[0], x[1], x[2], x[3]), *(float4 *)(p + 4) = make_float4(x[4], x[5], x[6], x[7]);
}
__device__ __forceinline__ void write(bf16 *p, const float (&x)[8]) { store<8>(p, x); }

// widen writes row ids[r] of the weights, row r if ids is null, to row r of to (rows, width). For an id outside the vocabulary it writes zeros.
template <class W, class T, int V>
__device__ __forceinline__ void widen(const void *data, const int32_t *ids, T *to, int64_t rows, int64_t width, int64_t vocabulary) {
  const int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (i >= rows * width) return;
  int64_t from = i;
  bool there = true;
  if (ids) {
    const int64_t row = i / width, id = ids[row];
    there = id >= 0 && id < vocabulary, from = i + (id - row) * width;
  }
  float x[V] = {};
  if (there) W::template read<V>(data, (const uint16_t *)((const uint8_t *)data + vocabulary * width), from, x);
  write(to + i, x);
}

#define WIDEN(NAME, W, TYPE, T, V)                                                                                                        \
  extern "C" __global__ void widen_##NAME##_##TYPE##_##V(const void *data, const int32_t *ids, T *to, int64_t rows, int64_t width,        \
                                                       int64_t vocabulary) {                                                           \
    widen<W, T, V>(data, ids, to, rows, width, vocabulary);                                                                               \
  }
WIDEN(int8, Int8, float, float, 8)
WIDEN(int8, Int8, bf16, bf16, 8)
WIDEN(f16, F16, float, float, 8)
WIDEN(f16, F16, bf16, bf16, 8)
WIDEN(f16, F16, float, float, 1)
WIDEN(f16, F16, bf16, bf16, 1)
WIDEN(bf16, BF16, float, float, 8)
WIDEN(bf16, BF16, float, float, 1)
