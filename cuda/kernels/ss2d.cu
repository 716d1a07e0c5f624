// The weights of the step sizes of several directions as one matrix (directions·channels, directions·part): row k·channels + d has the weights of
// direction k, channel d (rank numbers) in its columns from k·part on, and else zeros.
#include "types.cuh"

// ss2d_spread makes the matrix of weights (directions, channels, rank).
template <class T>
__device__ __forceinline__ void spread(const float *weight, T *y, int64_t directions, int64_t channels, int64_t rank, int64_t part) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, columns = directions * part;
  if (i >= directions * channels * columns) return;
  const int64_t row = i / columns, r = i % columns - row / channels * part;
  y[i] = to<T>(r >= 0 && r < rank ? weight[row * rank + r] : 0.f);
}
extern "C" __global__ void ss2d_spread_float(const float *weight, float *y, int64_t directions, int64_t channels, int64_t rank, int64_t part) {
  spread(weight, y, directions, channels, rank, part);
}
extern "C" __global__ void ss2d_spread_bf16(const float *weight, bf16 *y, int64_t directions, int64_t channels, int64_t rank, int64_t part) {
  spread(weight, y, directions, channels, rank, part);
}

// ss2d_gather writes the gradient of the weights from that of the matrix.
extern "C" __global__ void ss2d_gather(const float *from, float *weight, int64_t directions, int64_t channels, int64_t rank, int64_t part) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, row = i / rank;
  if (row < directions * channels) weight[i] = from[(row * directions + row / channels) * part + i % rank];
}
