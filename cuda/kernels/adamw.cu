// AdamW's step for all weights in one launch, and the norm of all gradients. A block processes a piece of one weight.
#include "types.cuh"

struct Weight {
  float *w, *g, *m, *v;
  bf16 *half;  // a copy of the weight, or null
  int64_t n, decay;
};

struct Piece {
  int32_t weight, number;
};

struct AdamW {
  float scale, beta1, rest1, beta2, rest2, rate, root, eps, keep;
};

constexpr int64_t piece = 8192;  // elements; adamPiece in cuda/adamw.go is the same number

extern "C" __global__ void adamw_step(const Weight *weights, const Piece *pieces, const AdamW a, int32_t clear) {
  const Piece p = pieces[blockIdx.x];
  const Weight w = weights[p.weight];
  const int64_t from = p.number * piece, to_ = min(from + piece, w.n);
  const float keep = w.decay ? a.keep : 1.f;
#pragma unroll 4
  for (int64_t i = from + threadIdx.x; i < to_; i += blockDim.x) {
    const float g = a.scale * w.g[i];
    const float m = a.beta1 * w.m[i] + a.rest1 * g;
    const float v = a.beta2 * w.v[i] + a.rest2 * g * g;
    const float x = keep * w.w[i] - a.rate * m / (sqrtf(v) * a.root + a.eps);
    w.w[i] = x, w.m[i] = m, w.v[i] = v;
    if (clear) w.g[i] = 0.f;
    if (w.half) w.half[i] = to<bf16>(x);
  }
}

extern "C" __global__ void gradient_squares(const Weight *weights, const Piece *pieces, double *parts) {
  __shared__ double warps[32];
  const Piece p = pieces[blockIdx.x];
  const Weight w = weights[p.weight];
  const int64_t from = p.number * piece, to_ = min(from + piece, w.n);
  double sum = 0;
#pragma unroll 8
  for (int64_t i = from + threadIdx.x; i < to_; i += blockDim.x) sum += (double)w.g[i] * w.g[i];
  sum = warpSum(sum);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < blockDim.x / 32; i++) sum += warps[i];
    parts[blockIdx.x] = sum;
  }
}

extern "C" __global__ void gradient_norm(const double *parts, int64_t count, double *norm) {
  __shared__ double sums[1024];
  const int tid = threadIdx.x;
  double sum = 0;
  for (int64_t i = tid; i < count; i += 1024) sum += parts[i];
  sums[tid] = sum;
  for (int m = 512; m > 0; m /= 2) {
    __syncthreads();
    if (tid < m) sums[tid] += sums[tid + m];
  }
  if (tid == 0) norm[0] = sqrt(sums[0]);
}
