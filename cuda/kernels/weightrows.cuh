// A step of generation for few sequences with weights of int8 or float16: the kernels of fewrows.cuh, which has what is not explained here. A run of
// 32 numbers of a row is a block of int8 with one scale. Its numbers are exact in bfloat16, and the sum of its products is multiplied by the scale.
// A number of float16 is the sum of two of bfloat16.
#pragma once
#include "fewrows.cuh"

__device__ __forceinline__ uint32_t exactPair(float a, float b) { return __float_as_uint(a) >> 16 | (__float_as_uint(b) & 0xffff0000u); }

// Int8 is a matrix (rows, k) of int8, k a multiple of 32, followed by a scale of float16 for each 32 numbers of a row.
struct Int8 {
  const uint8_t *data;
  const uint16_t *scales;
  struct Eight { // of a row, and the scale of its block
    uint2 number;
    uint32_t scale;
  };
  struct Two { uint32_t number, scale; };
  __device__ __forceinline__ Int8(const void *weight, int64_t rows, int k) : data((const uint8_t *)weight), scales((const uint16_t *)(data + rows * k)) {}

  __device__ __forceinline__ Eight eight(int64_t row, int at, int k, bool there) const {
    Eight e = {make_uint2(0, 0), 0};
    if (there) e.number = *(const uint2 *)(data + row * k + at), e.scale = scales[row * (k / 32) + at / 32];
    return e;
  }
  __device__ __forceinline__ Two two(int64_t row, int at, int k, bool there) const {
    Two t = {0, 0};
    if (there) t.number = *(const uint16_t *)(data + row * k + at), t.scale = scales[row * (k / 32) + at / 32];
    return t;
  }
  static __device__ __forceinline__ uint32_t wide(uint32_t two) { return exactPair((float)(int8_t)two, (float)(int8_t)(two >> 8)); }
  static __device__ __forceinline__ uint4 wide(uint2 v) { return make_uint4(wide(v.x), wide(v.x >> 16), wide(v.y), wide(v.y >> 16)); }
  static __device__ __forceinline__ void scaled(float (&sum)[4], const float (&c)[4], uint32_t low, uint32_t high) {
    const float a = fromHalf(low), b = fromHalf(high);
    sum[0] = fmaf(a, c[0], sum[0]), sum[1] = fmaf(a, c[1], sum[1]), sum[2] = fmaf(b, c[2], sum[2]), sum[3] = fmaf(b, c[3], sum[3]);
  }
  // add adds the products of a run of rows low and high of a tile.
  static __device__ __forceinline__ void add(float (&sum)[4], const Eight &low, const Eight &high, const Split &v) {
    float c[4] = {};
    multiply(c, wide(low.number), wide(high.number), v);
    scaled(sum, c, low.scale, high.scale);
  }
  // addTwo is add for 16 numbers of a block: a has two of rows low and high at 2t, then at 2t + 8.
  static __device__ __forceinline__ void addTwo(float (&sum)[4], const Two (&a)[4], const Split &v) {
    float c[4] = {};
    const uint32_t x[4] = {wide(a[0].number), wide(a[1].number), wide(a[2].number), wide(a[3].number)};
    product(c, x, v.high[0], v.high[1], bf16()), product(c, x, v.low[0], v.low[1], bf16());
    scaled(sum, c, a[0].scale, a[1].scale);
  }
};

// F16 is a matrix (rows, k) of float16, k a multiple of eight.
struct F16 {
  const uint16_t *data;
  using Eight = uint4;
  using Two = uint32_t;
  __device__ __forceinline__ F16(const void *weight, int64_t, int) : data((const uint16_t *)weight) {}

  __device__ __forceinline__ Eight eight(int64_t row, int at, int k, bool there) const {
    return there ? *(const uint4 *)(data + row * k + at) : make_uint4(0, 0, 0, 0);
  }
  __device__ __forceinline__ Two two(int64_t row, int at, int k, bool there) const { return there ? *(const uint32_t *)(data + row * k + at) : 0; }
  static __device__ __forceinline__ Split parts(const uint4 &v) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    float x[8];
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = fromHalf(words[i / 2] >> 16 * (i % 2));
    return split(x);
  }
  static __device__ __forceinline__ void add(float (&sum)[4], const Eight &low, const Eight &high, const Split &v) {
    const Split a = parts(low), b = parts(high);
    multiply(sum, make_uint4(a.high[0], a.high[1], a.high[2], a.high[3]), make_uint4(b.high[0], b.high[1], b.high[2], b.high[3]), v);
    multiply(sum, make_uint4(a.low[0], a.low[1], a.low[2], a.low[3]), make_uint4(b.low[0], b.low[1], b.low[2], b.low[3]), v);
  }
  static __device__ __forceinline__ void addTwo(float (&sum)[4], const Two (&a)[4], const Split &v) {
    const Split p = parts(make_uint4(a[0], a[1], a[2], a[3]));
    product(sum, p.high, v.high[0], v.high[1], bf16()), product(sum, p.high, v.low[0], v.low[1], bf16());
    product(sum, p.low, v.high[0], v.high[1], bf16()), product(sum, p.low, v.low[0], v.low[1], bf16());
  }
};

// Rows is Tile for these matrices.
template <class W, int WARPS, int AHEAD> struct Rows {
  typename W::Eight first[AHEAD][2];
  int row, rows, k;

  static __device__ __forceinline__ int begin(int i) { return Tile<WARPS, AHEAD>::begin(i); }
  __device__ __forceinline__ void load(typename W::Eight (&to)[2], const W &weight, int at) const {
    to[0] = weight.eight(row, at, k, row < rows && at < k), to[1] = weight.eight(row + 8, at, k, row + 8 < rows && at < k);
  }
  __device__ __forceinline__ void read(const W &weight, int from, int to, int columns) {
    row = from + threadIdx.x % 32 / 4, rows = to, k = columns;
#pragma unroll
    for (int i = 0; i < AHEAD; i++) load(first[i], weight, begin(i));
  }
};

// weightIn is fewIn.
template <class W>
__device__ __forceinline__ void weightIn(const float *x, const float *norm, W weight, const float *bias, const float *context, const float *taps,
                                         const float *convBias, W xProj, float *u, float *z, float *parts, float *contextNext, int batch, int model,
                                         int channels, int width, int columns, float eps) {
  constexpr int WARPS = 8, AHEAD = 3;
  using In = Rows<W, WARPS, AHEAD>;
  __shared__ float sums[WARPS][2][SEQUENCES * STRIDE], squares[WARPS][SEQUENCES], us[SEQUENCES][STRIDE];
  letNextBegin();
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, row = blockIdx.x * TILE, from = blockIdx.y * SEQUENCES;
  In tiles[2];
  tiles[0].read(weight, row, channels, model), tiles[1].read(weight, channels + row, 2 * channels, model);
  float norms[AHEAD][8];
#pragma unroll
  for (int i = 0; i < AHEAD; i++) eight(norms[i], norm + In::begin(i), In::begin(i) < model);
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
  const int k = threadIdx.x % 4 * 2, rows = (columns + TILE - 1) / TILE * TILE;
  auto readColumns = [&](typename W::Two (&a)[4], int tile) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int column = tile * TILE + g + 8 * (i % 2), at = row + k + 8 * (i / 2);
      a[i] = xProj.two(column, at, channels, column < columns && at < channels);
    }
  };
  typename W::Two a[4];
  readColumns(a, warp);
  awaitLast();
#pragma unroll
  for (int i = 0; i < 3; i++)
    if (here && half == 0 && past - 3 + i >= 0) before[i] = context[(b * past + past - 3 + i) * channels + d];

  float c[2][4] = {}, square = 0.f;
  const bool there = from + g < batch;
  x += (int64_t)(from + g) * model;
  auto add = [&](float (&v)[8], const float (&n)[8], const typename W::Eight (&first)[2], const typename W::Eight (&second)[2]) {
#pragma unroll
    for (int i = 0; i < 8; i++) square = fmaf(v[i], v[i], square), v[i] *= n[i];
    const Split parts = split(v);
    W::add(c[0], first[0], first[1], parts), W::add(c[1], second[0], second[1], parts);
  };
  float v[AHEAD][8];
#pragma unroll
  for (int i = 0; i < AHEAD; i++) eight(v[i], x + In::begin(i), there && In::begin(i) < model);
#pragma unroll
  for (int i = 0; i < AHEAD; i++) add(v[i], norms[i], tiles[0].first[i], tiles[1].first[i]);
  for (int i = AHEAD; 32 * (warp + WARPS * i) < model; i++) {
    const int at = In::begin(i);
    typename W::Eight first[2], second[2];
    tiles[0].load(first, weight, at), tiles[1].load(second, weight, at);
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
      for (int j = 0; j < past - 3; j++) start = fmaf(taps[d * width + j], old[(int64_t)j * channels], start);
#pragma unroll
      for (int i = 0; i < 3; i++) start = fmaf(tap[i], before[i], start);
      start = fmaf(tap[3], sum, start);
      start *= sigmoid(start);
      u[b * channels + d] = start;
      for (int j = 0; j < past - 3; j++) next[(int64_t)j * channels] = j + 1 < past - 3 ? old[(int64_t)(j + 1) * channels] : before[0];
#pragma unroll
      for (int i = 0; i < 3; i++)
        if (past - 3 + i >= 0) next[(int64_t)(past - 3 + i) * channels] = i < 2 ? before[i + 1] : sum;
    }
    us[s][threadIdx.x % TILE] = here ? start : 0.f;
  }
  __syncthreads();
  const float v8[8] = {us[g][k], us[g][k + 1], us[g][k + 8], us[g][k + 9], 0, 0, 0, 0};
  const Split parts8 = split(v8);
  for (int tile = warp; tile * TILE < rows; tile += WARPS) {
    if (tile != warp) readColumns(a, tile);
    float e[4] = {};
    W::addTwo(e, a, parts8);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int64_t q = from + k + i % 2;
      if (q < batch) parts[(q * gridDim.x + blockIdx.x) * rows + tile * TILE + g + 8 * (i / 2)] = e[i];
    }
  }
}

// weightProduct is fewProduct.
template <class W, int WARPS, int AHEAD, bool ONE>
__device__ __forceinline__ void weightProduct(const float *x, W weight, const float *bias, const float *residual, float *y, int batch, int in, int out,
                                              int each) {
  if (ONE) each = 1;
  using In = Rows<W, WARPS, AHEAD>;
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
    for (int i = 0; i < AHEAD; i++) W::add(c, tile.first[i][0], tile.first[i][1], first[i]);
    for (int i = AHEAD; 32 * (warp + WARPS * i) < in; i++) {
      const int j = In::begin(i);
      float v[8];
      eight(v, x + j, there && j < in);
      typename W::Eight more[2];
      tile.load(more, weight, j);
      W::add(c, more[0], more[1], split(v));
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
