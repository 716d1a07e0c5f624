// AdamW's step for all weights in one launch, and the norm of all gradients. A block processes a piece of one weight, of piece elements.
#include "vector.cuh"

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

// adamw_step changes nothing if the norm of the gradients is not finite. It scales a longer gradient to clip, if that is above 0.
extern "C" __global__ void adamw_step(const Weight *weights, const Piece *pieces, const AdamW a, const double *norm, double clip, int64_t piece) {
  const double length = *norm;
  if (!(length < INFINITY)) return;
  const float scale = clip > 0 && length > clip ? (float)(a.scale * (clip / length)) : a.scale;
  const Piece p = pieces[blockIdx.x];
  const Weight w = weights[p.weight];
  const int64_t from = p.number * piece, to_ = min(from + piece, w.n);
  const float keep = w.decay ? a.keep : 1.f;
  auto update = [&](float &x, float g, float &m, float &v) {
    const float scaled = scale * g;
    m = a.beta1 * m + a.rest1 * scaled;
    v = a.beta2 * v + a.rest2 * scaled * scaled;
    x = keep * x - a.rate * m / (sqrtf(v) * a.root + a.eps);
  };
  int64_t done = from;  // the rest is updated one by one
  if ((((uintptr_t)w.w | (uintptr_t)w.g | (uintptr_t)w.m | (uintptr_t)w.v) % 16 | (uintptr_t)w.half % 8) == 0) {
    done = to_ / 4 * 4;
#pragma unroll 2
    for (int64_t i = from + 4 * threadIdx.x; i < done; i += 4 * blockDim.x) {
      float x[4], g[4], m[4], v[4];
      load<4>(w.w + i, x), load<4>(w.g + i, g), load<4>(w.m + i, m), load<4>(w.v + i, v);
#pragma unroll
      for (int k = 0; k < 4; k++) update(x[k], g[k], m[k], v[k]);
      store<4>(w.w + i, x), store<4>(w.m + i, m), store<4>(w.v + i, v);
      if (w.half) store<4>(w.half + i, x);
    }
  }
  for (int64_t i = done + threadIdx.x; i < to_; i += blockDim.x) {
    float x = w.w[i], m = w.m[i], v = w.v[i];
    update(x, w.g[i], m, v);
    w.w[i] = x, w.m[i] = m, w.v[i] = v;
    if (w.half) w.half[i] = to<bf16>(x);
  }
}

extern "C" __global__ void gradient_squares(const Weight *weights, const Piece *pieces, double *parts, int64_t piece) {
  __shared__ double warps[32];
  takeOver();
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

extern "C" __global__ void gradient_norm(const double *parts, int64_t count, double squares, double *norm) {
  __shared__ double sums[1024];
  takeOver();
  const int tid = threadIdx.x;
  double sum = 0;
  for (int64_t i = tid; i < count; i += 1024) sum += parts[i];
  sums[tid] = sum;
  for (int m = 512; m > 0; m /= 2) {
    __syncthreads();
    if (tid < m) sums[tid] += sums[tid + m];
  }
  if (tid == 0) norm[0] = sqrt(sums[0] + squares);
}
