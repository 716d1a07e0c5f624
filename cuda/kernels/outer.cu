// Products of vectors (size) and matrices (size, size). Each argument is a sequence of n / size vectors or matrices. With size 1 all are the
// elementwise product.
#include "types.cuh"

// outer_product writes s = k vᵀ.
extern "C" __global__ void outer_product(const float *k, const float *v, float *s, int64_t n, int64_t size) {
  const int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (at < n * size) s[at] = k[at / size] * v[at / (size * size) * size + at % size];
}

// vector_matrix writes y = qᵀ s. A thread computes an element. It adds the rows of s in order.
extern "C" __global__ void vector_matrix(const float *q, const float *s, float *y, int64_t n, int64_t size) {
  const int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= n) return;
  const int64_t first = at / size * size, j = at % size;
  float sum = 0.f;
#pragma unroll 4
  for (int64_t i = 0; i < size; i++) sum = fmaf(q[first + i], s[(first + i) * size + j], sum);
  y[at] = sum;
}

// matrix_vector writes y = s v. A number of neighbouring threads, lanes, share an element.
extern "C" __global__ void matrix_vector(const float *s, const float *v, float *y, int64_t n, int64_t size, int32_t lanes) {
  const int64_t at = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / lanes;
  const int lane = threadIdx.x % lanes;
  float sum = 0.f;
  if (at < n) {
#pragma unroll 4
    for (int64_t j = lane; j < size; j += lanes) sum = fmaf(s[at * size + j], v[at / size * size + j], sum);
  }
  for (int m = lanes / 2; m > 0; m /= 2) sum += __shfl_xor_sync(~0u, sum, m);
  if (at < n && lane == 0) y[at] = sum;
}
