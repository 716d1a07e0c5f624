// The scan over the cells of a grid with one state, and the sum of its parts.
#include "grid.cuh"

GRID_FORWARD(float, float, 1, 1, 8, 4)
GRID_FORWARD(float, float, 1, 2, 8, 3)
GRID_FORWARD(bf16, bf16, 1, 1, 8, 4)
GRID_FORWARD(bf16, bf16, 1, 2, 8, 4)
GRID_BACKWARD(float, float, 1, 1, 8, 3)
GRID_BACKWARD(float, float, 1, 2, 8, 2)
GRID_BACKWARD(bf16, bf16, 1, 1, 8, 3)
GRID_BACKWARD(bf16, bf16, 1, 2, 8, 2)

// grid_carry turns the states that leave the chunks of a sequence into those that enter them, or backwards in time, if reverse is not 0, their gradients.
extern "C" __global__ void grid_carry(const Grid s, int64_t reverse) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, perChunk = s.directions * s.state * s.channels;
  if (i >= s.batch * perChunk) return;
  const int64_t b = i / perChunk, at = i % perChunk, d = at % s.channels, n = at / s.channels % s.state, k = at / s.channels / s.state;
  const float a = s.A[(k * s.channels + d) * s.state + n], rate = (s.alog ? -__expf(a) : a) * log2e;
  float v = 0.f;
  for (int64_t j = 0; j < s.chunks; j++) {
    const int64_t chunk = b * s.chunks + (reverse ? s.chunks - 1 - j : j);
    float *state = (reverse ? s.carries : s.states) + chunk * perChunk + at;
    const float own = *state;
    *state = v;
    v = throughChunk(rate, s.sums[(chunk * s.directions + k) * s.channels + d], v, own);
  }
}

// gridMerge writes y (rows, directions, channels), the sums in order of count parts (directions, count, rows, channels), and of more (rows,
// directions, channels) unless it is null. A thread has four elements of a direction.
template <class T, class Y>
__device__ __forceinline__ void gridMerge(const T *parts, const T *more, Y *y, int64_t count, int64_t rows, int64_t channels) {
  const int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 4, size = rows * channels, k = blockIdx.y;
  if (i >= size) return;
  parts += k * count * size + i;
  auto at = [&](int64_t j) { return ((i + j) / channels * gridDim.y + k) * channels + (i + j) % channels; };
  if (channels % 4 == 0) {
    float sum[4] = {};
    if (more) load<4>(more + at(0), sum);
#pragma unroll 4
    for (int64_t p = 0; p < count; p++) {
      float part[4];
      load<4>(parts + p * size, part);
#pragma unroll
      for (int j = 0; j < 4; j++) sum[j] += part[j];
    }
    store<4>(y + at(0), sum);
    return;
  }
  for (int j = 0; j < 4 && i + j < size; j++) {
    float sum = more ? value(more[at(j)]) : 0.f;
    for (int64_t p = 0; p < count; p++) sum += value(parts[p * size + j]);
    y[at(j)] = to<Y>(sum);
  }
}
#define GRID_MERGE(T, TMARK, Y, YMARK)                                                                                                       \
  extern "C" __global__ void grid_merge_##TMARK##_##YMARK(const T *parts, const T *more, Y *y, int64_t count, int64_t rows, int64_t channels) { \
    gridMerge(parts, more, y, count, rows, channels);                                                                                        \
  }
GRID_MERGE(float, float, float, float)
GRID_MERGE(bf16, bf16, float, float)
GRID_MERGE(bf16, bf16, bf16, bf16)
