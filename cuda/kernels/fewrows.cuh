// A step of generation for few sequences: what the kernels of step.cuh compute, with the products of bfloat16 weights in tensor cores. A block of
// threads multiplies tiles of 16 rows of a weight with eight sequences, and its warps divide the sum. A vector is split into two parts of
// bfloat16, which keep 16 of its 24 bits: its high part is truncated, so an infinite number becomes NaN. A sequence does not depend on the others.
//
// A step waits for one small kernel after the other. So each lets the next one begin (from compute capability 9.0 on), reads its weights into
// registers, and only then waits for the kernel before.
#pragma once
#include "mma.cuh"
#include "step.cuh"

constexpr int TILE = 16, SEQUENCES = 8, STRIDE = 20;  // 20: the lanes of a warp write a tile's sums to different banks

// Tile is a warp's part of 16 rows of a weight (rows, k): of each row every WARPS-th run of 32 numbers, of which a lane has eight of two rows.
// The numbers of a run take other places in the products than in memory, the same for weights and vectors. k is a multiple of eight.
template <int WARPS, int AHEAD> struct Tile {
  const bf16 *low, *high;  // null beyond the last row
  uint4 first[AHEAD][2];

  static __device__ __forceinline__ int begin(int i) { return 32 * (threadIdx.x / 32 + WARPS * i) + threadIdx.x % 4 * 8; }
  static __device__ __forceinline__ uint4 load(const bf16 *row, int at, int k) {
    return row && at < k ? *(const uint4 *)(row + at) : make_uint4(0, 0, 0, 0);
  }
  __device__ __forceinline__ void read(const bf16 *weight, int row, int rows, int k) {
    row += threadIdx.x % 32 / 4;
    low = row < rows ? weight + (int64_t)row * k : nullptr, high = row + 8 < rows ? weight + (int64_t)(row + 8) * k : nullptr;
#pragma unroll
    for (int i = 0; i < AHEAD; i++) first[i][0] = load(low, begin(i), k), first[i][1] = load(high, begin(i), k);
  }
};

// Split is the two parts of eight numbers of a vector.
struct Split {
  uint32_t high[4], low[4];
};
__device__ __forceinline__ Split split(const float (&v)[8]) {
  Split s;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint32_t a = __float_as_uint(v[2 * i]) & 0xffff0000u, b = __float_as_uint(v[2 * i + 1]) & 0xffff0000u;
    s.high[i] = a >> 16 | b;
    s.low[i] = pair(v[2 * i] - __uint_as_float(a), v[2 * i + 1] - __uint_as_float(b));
  }
  return s;
}

// multiply adds the products of a run.
__device__ __forceinline__ void multiply(float (&c)[4], const uint4 &low, const uint4 &high, const Split &v) {
  const uint32_t a[4] = {low.x, high.x, low.y, high.y}, b[4] = {low.z, high.z, low.w, high.w};
  product(c, a, v.high[0], v.high[1], bf16());
  product(c, b, v.high[2], v.high[3], bf16());
  product(c, a, v.low[0], v.low[1], bf16());
  product(c, b, v.low[2], v.low[3], bf16());
}

// eight reads eight numbers, or zeros.
__device__ __forceinline__ void eight(float (&v)[8], const float *p, bool there) {
  const float4 zero = make_float4(0, 0, 0, 0), a = there ? *(const float4 *)p : zero, b = there ? *(const float4 *)(p + 4) : zero;
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

// store writes a warp's sums of a tile: those of sequence s and row r to sums[STRIDE s + r].
__device__ __forceinline__ void keep(float *sums, const float (&c)[4]) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 4; i++) sums[STRIDE * (2 * t + i % 2) + g + 8 * (i / 2)] = c[i];
}

// fewIn computes v and z = in_proj · norm(x), u = SiLU(conv(v)), the next context, and what the block's channels add to x_proj · u: parts (batch,
// blocks, columns), with columns a multiple of 16. The blocks of threads are ((channels + 15) / 16, (batch + 7) / 8) of 256 threads.
__device__ __forceinline__ void fewIn(const float *x, const float *norm, const bf16 *weight, const float *bias, const float *context, const float *taps,
                                      const float *convBias, const bf16 *xProj, float *u, float *z, float *parts, float *contextNext, int batch,
                                      int model, int channels, int width, int columns, float eps) {
  constexpr int WARPS = 8, AHEAD = 3;
  using In = Tile<WARPS, AHEAD>;
  __shared__ float sums[WARPS][2][SEQUENCES * STRIDE], squares[WARPS][SEQUENCES], us[SEQUENCES][STRIDE];
  letNextBegin();
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, row = blockIdx.x * TILE, from = blockIdx.y * SEQUENCES;
  In tiles[2];
  tiles[0].read(weight, row, channels, model), tiles[1].read(weight + (int64_t)channels * model, row, channels, model);
  float norms[AHEAD][8];
#pragma unroll
  for (int i = 0; i < AHEAD; i++) eight(norms[i], norm + In::begin(i), In::begin(i) < model);
  // A thread of the first half finishes v and u of a channel of a sequence, one of the second half z.
  const int half = threadIdx.x / 128, s = threadIdx.x % 128 / TILE, d = row + threadIdx.x % TILE, past = width - 1;
  const bool here = d < channels && from + s < batch;
  const int64_t b = from + s;
  float tap[4] = {0, 0, 0, 0}, before[3] = {0, 0, 0}, added = 0.f, start = 0.f;
  if (d < channels) {
    if (bias) added = bias[half * channels + d];
    if (half == 0 && convBias) start = convBias[d];
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (half == 0 && width - 4 + i >= 0) tap[i] = taps[d * width + width - 4 + i];
  }
  // The columns of x_proj that a warp multiplies, 16 rows of columns by the block's 16 channels.
  const int t2 = row + threadIdx.x % 4 * 2;
  auto two = [&](int column, int k) { return column < columns && k < channels ? *(const uint32_t *)(xProj + (int64_t)column * channels + k) : 0; };
  const int rows = (columns + TILE - 1) / TILE * TILE;
  auto readColumns = [&](uint32_t (&a)[4], int tile) {
    const int column = tile * TILE + g;
    a[0] = two(column, t2), a[1] = two(column + 8, t2), a[2] = two(column, t2 + 8), a[3] = two(column + 8, t2 + 8);
  };
  uint32_t a[4];
  readColumns(a, warp);
  awaitLast();
#pragma unroll
  for (int i = 0; i < 3; i++)
    if (here && half == 0 && past - 3 + i >= 0) before[i] = context[(b * past + past - 3 + i) * channels + d];

  float c[2][4] = {}, square = 0.f;
  const bool there = from + g < batch;
  x += (int64_t)(from + g) * model;
  auto add = [&](float (&v)[8], const float (&n)[8], const uint4 (&first)[2], const uint4 (&second)[2]) {
#pragma unroll
    for (int k = 0; k < 8; k++) square = fmaf(v[k], v[k], square), v[k] *= n[k];
    const Split parts = split(v);
    multiply(c[0], first[0], first[1], parts), multiply(c[1], second[0], second[1], parts);
  };
  float v[AHEAD][8];
#pragma unroll
  for (int i = 0; i < AHEAD; i++) eight(v[i], x + In::begin(i), there && In::begin(i) < model);
#pragma unroll
  for (int i = 0; i < AHEAD; i++) add(v[i], norms[i], tiles[0].first[i], tiles[1].first[i]);
  for (int i = AHEAD; 32 * (warp + WARPS * i) < model; i++) {
    const int at = In::begin(i);
    const uint4 first[2] = {In::load(tiles[0].low, at, model), In::load(tiles[0].high, at, model)};
    const uint4 second[2] = {In::load(tiles[1].low, at, model), In::load(tiles[1].high, at, model)};
    float more[8], n[8];
    eight(more, x + at, there && at < model), eight(n, norm + at, at < model);
    add(more, n, first, second);
  }
  keep(sums[warp][0], c[0]), keep(sums[warp][1], c[1]);
#pragma unroll
  for (int m = 2; m > 0; m /= 2) square += __shfl_xor_sync(~0u, square, m);
  if (threadIdx.x % 4 == 0) squares[warp][g] = square;
  __syncthreads();
  float sum = 0.f, total = 0.f;
#pragma unroll
  for (int w = 0; w < WARPS; w++) sum += sums[w][half][STRIDE * s + threadIdx.x % TILE], total += squares[w][s];
  sum = fmaf(sum, rsqrtf(total / (float)model + eps), added);
  if (here && half == 1) z[b * channels + d] = sum;
  if (half == 0) {
    if (here) {
      const float *old = context + b * past * channels + d;
      float *next = contextNext + b * past * channels + d;
      for (int k = 0; k < past - 3; k++) start = fmaf(taps[d * width + k], old[(int64_t)k * channels], start);
#pragma unroll
      for (int i = 0; i < 3; i++) start = fmaf(tap[i], before[i], start);
      start = fmaf(tap[3], sum, start);
      start *= sigmoid(start);
      u[b * channels + d] = start;
      for (int k = 0; k < past - 3; k++) next[(int64_t)k * channels] = k + 1 < past - 3 ? old[(int64_t)(k + 1) * channels] : before[0];
#pragma unroll
      for (int i = 0; i < 3; i++)
        if (past - 3 + i >= 0) next[(int64_t)(past - 3 + i) * channels] = i < 2 ? before[i + 1] : sum;
    }
    us[s][threadIdx.x % TILE] = here ? start : 0.f;
  }
  __syncthreads();
  const int k = threadIdx.x % 4 * 2;
  const float v8[8] = {us[g][k], us[g][k + 1], us[g][k + 8], us[g][k + 9], 0, 0, 0, 0};
  const Split parts8 = split(v8);
  for (int tile = warp; tile * TILE < rows; tile += WARPS) {
    if (tile != warp) readColumns(a, tile);
    float e[4] = {};
    product(e, a, parts8.high[0], parts8.high[1], bf16());
    product(e, a, parts8.low[0], parts8.low[1], bf16());
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int64_t q = from + k + i % 2;
      if (q < batch) parts[(q * gridDim.x + blockIdx.x) * rows + tile * TILE + g + 8 * (i / 2)] = e[i];
    }
  }
}

// fewProduct computes y (batch, out) = weight (out, in) · x (batch, in), plus bias and residual unless they are null. residual may be y. A block
// of threads computes each tiles, with ONE one.
template <int WARPS, int AHEAD, bool ONE>
__device__ __forceinline__ void fewProduct(const float *x, const bf16 *weight, const float *bias, const float *residual, float *y, int batch, int in,
                                           int out, int each) {
  if (ONE) each = 1;
  using In = Tile<WARPS, AHEAD>;
  __shared__ float sums[2][WARPS][SEQUENCES * STRIDE];
  letNextBegin();
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, from = blockIdx.y * SEQUENCES, s = threadIdx.x / TILE;
  int row = blockIdx.x * each * TILE;
  In tile;
  tile.read(weight, row, out, in);
  awaitLast();
  const bool there = from + g < batch;
  x += (int64_t)(from + g) * in;
  Split first[AHEAD];
  {
    float v[AHEAD][8];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) eight(v[i], x + In::begin(i), there && In::begin(i) < in);
#pragma unroll
    for (int i = 0; i < AHEAD; i++) first[i] = split(v[i]);
  }
  for (int n = 0; n < each && row < out; n++, row += TILE) {
    const int o = row + threadIdx.x % TILE;
    const int64_t at = (int64_t)(from + s) * out + o;
    const bool here = s < SEQUENCES && from + s < batch && o < out;
    float added = 0.f;
    if (here && bias) added = bias[o];
    if (here && residual) added += residual[at];
    float c[4] = {};
#pragma unroll
    for (int i = 0; i < AHEAD; i++) multiply(c, tile.first[i][0], tile.first[i][1], first[i]);
    for (int i = AHEAD; 32 * (warp + WARPS * i) < in; i++) {
      const int k = In::begin(i);
      float v[8];
      eight(v, x + k, there && k < in);
      multiply(c, In::load(tile.low, k, in), In::load(tile.high, k, in), split(v));
    }
    if (n + 1 < each) tile.read(weight, row + TILE, out, in);
    keep(sums[n % 2][warp], c);
    __syncthreads();
    if (!here) continue;
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += sums[n % 2][w][STRIDE * s + threadIdx.x % TILE];
    y[at] = sum + added;
  }
}
