// The rows of a table, and the gradient of the table: for each token, the sum of its rows of dx, in order. V is 4 if rows begin at multiples of
// four numbers, else 1.
#include "vector.cuh"

template <int V> __device__ __forceinline__ void addTo(float *p, const float (&x)[V]) {
  float sum[V];
  load<V>(p, sum);
#pragma unroll
  for (int v = 0; v < V; v++) sum[v] += x[v];
  store<V>(p, sum);
}

// embeddingForward writes zeros for an id outside the vocabulary, which the host finds later, and for -1, a token that could not be chosen.
template <int V>
__device__ __forceinline__ void embeddingForward(const float *w, const int32_t *ids, float *x, int64_t rows, int64_t width, int64_t vocabulary) {
  takeOver();
  const int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (i >= rows * width) return;
  const int64_t row = rows * width <= INT32_MAX ? (int64_t)((uint32_t)i / (uint32_t)width) : i / width;
  const int64_t id = ids[row];
  float v[V] = {};
  if (id >= 0 && id < vocabulary) load<V>(w + id * width + i - row * width, v);
  store<V>(x + i, v);
}

// Chunk is the positions [from, to) of a token. Its sum is written to row slot of parts, or added to the table if slot is negative. A chunk without positions does nothing.
struct Chunk {
  int32_t token, from, to, slot;
};

// embeddingBackward adds a chunk. The host sorts the positions by token and cuts them into chunks. A token with several is summed in two passes.
template <int V>
__device__ __forceinline__ void embeddingBackward(const float *dx, const int32_t *positions, const Chunk *chunks, float *parts, float *dw, int64_t width) {
  takeOver();
  const Chunk c = chunks[blockIdx.x];
  if (c.from == c.to) return;
  for (int64_t i = threadIdx.x * V; i < width; i += blockDim.x * V) {
    float sum[V] = {};
#pragma unroll 8
    for (int k = c.from; k < c.to; k++) {
      float v[V];
      load<V>(dx + positions[k] * width + i, v);
#pragma unroll
      for (int j = 0; j < V; j++) sum[j] += v[j];
    }
    if (c.slot < 0)
      addTo<V>(dw + c.token * width + i, sum);
    else
      store<V>(parts + c.slot * width + i, sum);
  }
}

#define EMBEDDING(V)                                                                                                                     \
  extern "C" __global__ void embedding_forward_##V(const float *w, const int32_t *ids, float *x, int64_t rows, int64_t width, int64_t vocabulary) { \
    embeddingForward<V>(w, ids, x, rows, width, vocabulary);                                                                             \
  }                                                                                                                                      \
  extern "C" __global__ void embedding_backward_##V(const float *dx, const int32_t *positions, const Chunk *chunks, float *parts, float *dw, \
                                                    int64_t width) {                                                                     \
    embeddingBackward<V>(dx, positions, chunks, parts, dw, width);                                                                       \
  }
EMBEDDING(1)
EMBEDDING(4)

// embedding_sums adds the partial sums of tokens with several chunks. from and to of a Chunk are slots here.
extern "C" __global__ void embedding_sums(const Chunk *sums, const float *parts, float *dw, int64_t width) {
  takeOver();
  const Chunk c = sums[blockIdx.x];
  if (c.from == c.to) return;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    float sum = 0;
#pragma unroll 8
    for (int k = c.from; k < c.to; k++) sum += parts[k * width + i];
    dw[c.token * width + i] += sum;
  }
}

// embedding_few is the first pass for a small vocabulary, without a plan of the host. A block adds 32 columns of each rows: every warp adds its
// share in its own table in shared memory, and then the tables are added in order. parts is (gridDim.y, vocabulary, width).
extern "C" __global__ void embedding_few(const float *dx, const int32_t *ids, float *parts, int64_t rows, int64_t width, int64_t vocabulary, int64_t each) {
  extern __shared__ __align__(16) float shared[];
  constexpr int U = 8;  // rows whose numbers are read together
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, size = (int)vocabulary * 32;
  const int64_t column = (int64_t)blockIdx.x * 32 + lane;
  float *table = shared + warp * size + lane;
  for (int i = 0; i < (int)vocabulary; i++) table[32 * i] = 0.f;
  takeOver();
  const int64_t share = (each + warps - 1) / warps, first = blockIdx.y * each + warp * share;
  const int64_t last = min(min(first + share, (blockIdx.y + 1) * each), rows);
  if (column < width) {
    for (int64_t row = first; row < last; row += U) {
      float v[U];
      int id[U];
#pragma unroll
      for (int u = 0; u < U; u++) {
        id[u] = -1, v[u] = 0.f;
        if (row + u < last) id[u] = ids[row + u], v[u] = dx[(row + u) * width + column];
      }
#pragma unroll
      for (int u = 0; u < U; u++)
        if (id[u] >= 0 && id[u] < vocabulary) table[32 * id[u]] += v[u];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    const int64_t to = (int64_t)blockIdx.x * 32 + i % 32;
    float sum = 0.f;
    for (int k = 0; k < warps; k++) sum += shared[k * size + i];
    if (to < width) parts[(blockIdx.y * vocabulary + i / 32) * width + to] = sum;
  }
}

// embedding_few_sums adds the parts to the table.
extern "C" __global__ void embedding_few_sums(const float *parts, float *dw, int64_t count, int64_t size) {
  takeOver();
  const int64_t i = (int64_t)blockIdx.x * 32 + threadIdx.x % 32;
  const double sum = columnSum(parts, count, size, i);
  if (threadIdx.x < 32 && i < size) dw[i] += (float)sum;
}
