// A step of generation for many sequences, with products and activations of bfloat16: the products of fewrows.cuh with more sequences in a block of
// threads, which reads its rows of a weight once for up to 8 N of them. W is the type of a weight: Half, or one that it widens to bfloat16.
#pragma once
#include "fewrows.cuh"

// Half is a matrix of bfloat16. A Part of it is a Tile. wide returns the eight numbers of row low (i = 0) or high of a run, or of run number n.
struct Half {
  const bf16 *data;
  __device__ __forceinline__ Half(const void *weight, int64_t, int) : data((const bf16 *)weight) {}
  template <int WARPS, int AHEAD> struct Part : Tile<WARPS, AHEAD> {
    __device__ __forceinline__ void read(const Half &weight, int row, int rows, int k) { Tile<WARPS, AHEAD>::read(weight.data, row, rows, k); }
    __device__ __forceinline__ uint4 wide(int n, int i) const { return this->first[n][i]; }
    __device__ __forceinline__ uint4 wide(const Half &, int n, int i, int k) const { return this->load(i ? this->high : this->low, this->begin(n), k); }
  };
};

// Sums has the sums of the warps of a block for a tile and its 8 N sequences.
template <int WARPS, int N> struct Sums {
  float of[WARPS][8 * N * STRIDE];
  __device__ __forceinline__ void put(const float (&c)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) keep(of[threadIdx.x / 32] + 8 * n * STRIDE, c[n]);
  }
  __device__ __forceinline__ float get(int s, int row) const {
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += of[w][STRIDE * s + row];
    return sum;
  }
};

// vectors reads a run of each of 8 N sequences from row from on.
template <int N> __device__ __forceinline__ void vectors(uint4 (&v)[N], const bf16 *x, int from, int batch, int at, int k) {
#pragma unroll
  for (int n = 0; n < N; n++) {
    const int s = from + 8 * n + threadIdx.x % 32 / 4;
    v[n] = s < batch && at < k ? *(const uint4 *)(x + (int64_t)s * k + at) : make_uint4(0, 0, 0, 0);
  }
}
template <int N> __device__ __forceinline__ void multiplyAll(float (&c)[N][4], const uint4 &low, const uint4 &high, const uint4 (&v)[N]) {
  const uint32_t a[4] = {low.x, high.x, low.y, high.y}, b[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
  for (int n = 0; n < N; n++) product(c[n], a, v[n].x, v[n].y, bf16());
#pragma unroll
  for (int n = 0; n < N; n++) product(c[n], b, v[n].z, v[n].w, bf16());
}

// manyNorm computes n = norm(x), a row with each warp.
__device__ __forceinline__ void manyNorm(const float *x, const float *norm, bf16 *n, int batch, int model, float eps) {
  letNextBegin();
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  constexpr int AHEAD = 6;
  float w[AHEAD][4], v[AHEAD][4];
#pragma unroll
  for (int i = 0; i < AHEAD; i++)
    if (128 * i + 4 * lane < model) load<4>(norm + 128 * i + 4 * lane, w[i]);
  awaitLast();
  if (row >= batch) return;
  x += (int64_t)row * model, n += (int64_t)row * model;
  float square = 0.f;
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    if (128 * i + 4 * lane >= model) continue;
    load<4>(x + 128 * i + 4 * lane, v[i]);
  }
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    if (128 * i + 4 * lane >= model) continue;
#pragma unroll
    for (int k = 0; k < 4; k++) square = fmaf(v[i][k], v[i][k], square);
  }
  float more[4], weights[4];
  for (int at = 128 * AHEAD + 4 * lane; at < model; at += 128) {
    load<4>(x + at, more);
#pragma unroll
    for (int k = 0; k < 4; k++) square = fmaf(more[k], more[k], square);
  }
  const float scale = rsqrtf(warpSum(square) / (float)model + eps);
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    if (128 * i + 4 * lane >= model) continue;
#pragma unroll
    for (int k = 0; k < 4; k++) v[i][k] *= scale * w[i][k];
    store<4>(n + 128 * i + 4 * lane, v[i]);
  }
  for (int at = 128 * AHEAD + 4 * lane; at < model; at += 128) {
    load<4>(x + at, more), load<4>(norm + at, weights);
#pragma unroll
    for (int k = 0; k < 4; k++) more[k] *= scale * weights[k];
    store<4>(n + at, more);
  }
}

// manyIn computes v and z = in_proj · n, u = SiLU(conv(v)) and the next context. The blocks of threads are ((channels + 15) / 16, (batch + 8 N - 1) /
// (8 N)) of 256 threads.
template <int N, class W>
__device__ __forceinline__ void manyIn(const bf16 *x, W weight, const float *bias, const float *context, const float *taps,
                                       const float *convBias, bf16 *u, bf16 *z, float *contextNext, int batch, int model, int channels, int width) {
  constexpr int WARPS = 8, AHEAD = 3, EACH = N / 2;  // EACH: numbers that a thread finishes
  static_assert(N % 2 == 0, "the threads of a block finish 16 sequences at a time");
  using In = typename W::template Part<WARPS, AHEAD>;
  __shared__ Sums<WARPS, N> sums;
  letNextBegin();
  const int warp = threadIdx.x / 32, row = blockIdx.x * TILE, from = blockIdx.y * 8 * N;
  In tiles[2];
  tiles[0].read(weight, row, channels, model), tiles[1].read(weight, channels + row, 2 * channels, model);
  const int d = row + threadIdx.x % TILE, past = width - 1;
  float addedV = 0.f, addedZ = 0.f, start = 0.f, tap[4] = {0, 0, 0, 0};
  if (d < channels) {
    if (bias) addedV = bias[d], addedZ = bias[channels + d];
    if (convBias) start = convBias[d];
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (width - 4 + i >= 0) tap[i] = taps[d * width + width - 4 + i];
  }
  awaitLast();
  float before[EACH][3] = {};
  auto here = [&](int e) { return d < channels && from + 16 * e + threadIdx.x / TILE < batch; };
  auto at = [&](int e) { return (int64_t)(from + 16 * e + threadIdx.x / TILE); };  // a sequence
#pragma unroll
  for (int e = 0; e < EACH; e++)
#pragma unroll
    for (int i = 0; i < 3; i++)
      if (here(e) && past - 3 + i >= 0) before[e][i] = context[(at(e) * past + past - 3 + i) * channels + d];

  float c[2][N][4] = {};
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    uint4 v[N];
    vectors(v, x, from, batch, In::begin(i), model);
#pragma unroll
    for (int k = 0; k < 2; k++) multiplyAll(c[k], tiles[k].wide(i, 0), tiles[k].wide(i, 1), v);
  }
  for (int i = AHEAD; 32 * (warp + WARPS * i) < model; i++) {
    uint4 v[N];
    vectors(v, x, from, batch, In::begin(i), model);
#pragma unroll
    for (int k = 0; k < 2; k++) multiplyAll(c[k], tiles[k].wide(weight, i, 0, model), tiles[k].wide(weight, i, 1, model), v);
  }
  sums.put(c[0]);
  __syncthreads();
#pragma unroll
  for (int e = 0; e < EACH; e++) {
    const float v = sums.get(16 * e + threadIdx.x / TILE, threadIdx.x % TILE) + addedV;
    if (!here(e)) continue;
    const int64_t b = at(e);
    const float *old = context + b * past * channels + d;
    float *next = contextNext + b * past * channels + d, sum = start;
    for (int k = 0; k < past - 3; k++) sum = fmaf(taps[d * width + k], old[(int64_t)k * channels], sum);
#pragma unroll
    for (int i = 0; i < 3; i++) sum = fmaf(tap[i], before[e][i], sum);
    sum = fmaf(tap[3], v, sum);
    u[b * channels + d] = to<bf16>(sum * sigmoid(sum));
    for (int k = 0; k < past - 3; k++) next[(int64_t)k * channels] = k + 1 < past - 3 ? old[(int64_t)(k + 1) * channels] : before[e][0];
#pragma unroll
    for (int i = 0; i < 3; i++)
      if (past - 3 + i >= 0) next[(int64_t)(past - 3 + i) * channels] = i < 2 ? before[e][i + 1] : v;
  }
  __syncthreads();
  sums.put(c[1]);
  __syncthreads();
#pragma unroll
  for (int e = 0; e < EACH; e++) {
    const float v = sums.get(16 * e + threadIdx.x / TILE, threadIdx.x % TILE) + addedZ;
    if (here(e)) z[at(e) * channels + d] = to<bf16>(v);
  }
}

// manyProduct computes y (batch, out) = weight (out, in) · x (batch, in), plus bias and residual unless they are null. residual may be y. The blocks of
// threads are ((out + 15) / 16, (batch + 8 N - 1) / (8 N)) of 256 threads.
template <int N, class W, class Y>
__device__ __forceinline__ void manyProduct(const bf16 *x, W weight, const float *bias, const Y *residual, Y *y, int batch, int in, int out) {
  constexpr int WARPS = 8, AHEAD = 6, EACH = (N + 1) / 2;
  using In = typename W::template Part<WARPS, AHEAD>;
  __shared__ Sums<WARPS, N> sums;
  letNextBegin();
  const int warp = threadIdx.x / 32, row = blockIdx.x * TILE, from = blockIdx.y * 8 * N, o = row + threadIdx.x % TILE;
  In tile;
  tile.read(weight, row, out, in);
  const float added = bias && o < out ? bias[o] : 0.f;
  awaitLast();
  float c[N][4] = {}, before[EACH] = {};
  auto here = [&](int e) { return o < out && 16 * e + threadIdx.x / TILE < 8 * N && from + 16 * e + threadIdx.x / TILE < batch; };
  auto at = [&](int e) { return (int64_t)(from + 16 * e + threadIdx.x / TILE) * out + o; };
#pragma unroll
  for (int e = 0; e < EACH; e++)
    if (residual && here(e)) before[e] = value(residual[at(e)]);
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    uint4 v[N];
    vectors(v, x, from, batch, In::begin(i), in);
    multiplyAll(c, tile.wide(i, 0), tile.wide(i, 1), v);
  }
  for (int i = AHEAD; 32 * (warp + WARPS * i) < in; i++) {
    uint4 v[N];
    vectors(v, x, from, batch, In::begin(i), in);
    multiplyAll(c, tile.wide(weight, i, 0, in), tile.wide(weight, i, 1, in), v);
  }
  sums.put(c);
  __syncthreads();
#pragma unroll
  for (int e = 0; e < EACH; e++)
    if (here(e)) y[at(e)] = to<Y>(sums.get(16 * e + threadIdx.x / TILE, threadIdx.x % TILE) + added + before[e]);
}

#define MANY_IN(KERNEL, W, N)                                                                                                                 \
  extern "C" __global__ __launch_bounds__(256) void KERNEL##_##N(const bf16 *x, const void *weight, const float *bias, const float *context,   \
                                                                 const float *taps, const float *convBias, bf16 *u, bf16 *z,                  \
                                                                 float *contextNext, int batch, int model, int channels, int width) {         \
    manyIn<N>(x, W(weight, 2 * (int64_t)channels, model), bias, context, taps, convBias, u, z, contextNext, batch, model, channels, width);     \
  }
#define MANY_PRODUCT(KERNEL, W, N, Y)                                                                                                         \
  extern "C" __global__ __launch_bounds__(256) void KERNEL##_##N(const bf16 *x, const void *weight, const float *bias, const Y *residual,      \
                                                                 Y *y, int batch, int in, int out) {                                          \
    manyProduct<N>(x, W(weight, out, in), bias, residual, y, batch, in, out);                                                                 \
  }
