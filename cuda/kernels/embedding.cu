// The rows of a table, and the gradient of the table: for each token, the sum of its rows of dx, in order. The host sorts the positions by
// token and cuts them into chunks. A token with several chunks is summed in two passes.
#include "types.cuh"

// An id of -1, of a token that could not be chosen, stands for 0.
extern "C" __global__ void embedding_forward(const float *w, const int32_t *ids, float *x, int64_t rows, int64_t width) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < rows * width) x[i] = w[max(ids[i / width], 0) * width + i % width];
}

// Chunk is the positions [from, to) of a token. Its sum is written to row slot of parts, or added to the table if slot is negative.
struct Chunk {
  int32_t token, from, to, slot;
};

extern "C" __global__ void embedding_backward(const float *dx, const int32_t *positions, const Chunk *chunks, float *parts, float *dw, int64_t width) {
  const Chunk c = chunks[blockIdx.x];
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    float sum = 0;
#pragma unroll 8
    for (int k = c.from; k < c.to; k++) sum += dx[positions[k] * width + i];
    if (c.slot < 0)
      dw[c.token * width + i] += sum;
    else
      parts[c.slot * width + i] = sum;
  }
}

// embedding_sums adds the partial sums of tokens with several chunks. from and to of a Chunk are slots here.
extern "C" __global__ void embedding_sums(const Chunk *sums, const float *parts, float *dw, int64_t width) {
  const Chunk c = sums[blockIdx.x];
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    float sum = 0;
#pragma unroll 8
    for (int k = c.from; k < c.to; k++) sum += parts[k * width + i];
    dw[c.token * width + i] += sum;
  }
}
