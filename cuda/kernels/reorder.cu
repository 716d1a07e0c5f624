// The rows of (batch, cells, channels) in an order of the cells; see cuda/reorder.go.
#include "types.cuh"

// other returns the element of the cell that the order names where element i is.
__device__ inline int64_t other(const int32_t *order, int64_t i, int64_t cells, int64_t channels) {
  const int64_t row = i / channels, step = row % cells;
  return i + (order[step] - step) * channels;
}

extern "C" __global__ void gather(const int32_t *order, const float *x, float *y, int64_t size, int64_t cells, int64_t channels) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < size) y[i] = x[other(order, i, cells, channels)];
}

extern "C" __global__ void scatter(const int32_t *order, const float *x, float *y, int64_t size, int64_t cells, int64_t channels) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < size) y[other(order, i, cells, channels)] = x[i];
}
