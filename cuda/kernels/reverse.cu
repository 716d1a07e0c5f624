// Each sequence in reverse order over time; see cuda/reverse.go. A block copies a row.
#include "types.cuh"

extern "C" __global__ void reverse(const float *x, const uint8_t *start, float *y, int64_t length, int64_t channels) {
  const int64_t row = blockIdx.x, b = row / length, t = row % length;
  __shared__ int64_t shared;
  if (threadIdx.x == 0) {
    int64_t first = start ? t : 0, end = start ? t + 1 : length;  // of the sequence of step t
    while (start && first > 0 && !start[b * length + first]) first--;
    while (start && end < length && !start[b * length + end]) end++;
    shared = b * length + first + end - 1 - t;
  }
  __syncthreads();
  const int64_t from = shared;
  for (int64_t i = threadIdx.x; i < channels; i += blockDim.x) y[row * channels + i] = x[from * channels + i];
}
