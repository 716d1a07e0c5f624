// A step of generation for few sequences with weights of int8 or float16: the kernels of fewrows.cuh, which has what is not explained here. A product has
// the weights as they are. The 32 numbers of a run of a vector are divided by a scale, and split into two parts of the weights' type.
#pragma once
#include "manyrows.cuh"

#ifdef __CUDACC__
struct f16 {};
__device__ __forceinline__ void product(float (&c)[4], const uint32_t (&x)[4], uint32_t y0, uint32_t y1, f16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y0), "r"(y1));
}
__device__ __forceinline__ void product(int (&c)[4], const uint32_t (&x)[4], uint32_t y0, uint32_t y1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y0), "r"(y1));
}
// halves returns two numbers in float16, the first in the low bits.
__device__ __forceinline__ uint32_t halves(float low, float high) {
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
#endif

// largestBits returns the largest bits, without signs, of a run of a sequence, of which four lanes have eight numbers each, and at least those of 2^-100.
// The bits of a NaN are larger than those of infinity, and these larger than those of other numbers.
__device__ __forceinline__ uint32_t largestBits(const float (&v)[8]) {
  uint32_t largest = 0x0d800000;
#pragma unroll
  for (int i = 0; i < 8; i++) largest = max(largest, __float_as_uint(v[i]) & 0x7fffffffu);
  largest = max(largest, __shfl_xor_sync(~0u, largest, 1));
  return max(largest, __shfl_xor_sync(~0u, largest, 2));
}
// scaleOf returns the scale of sequence 2t + which. A lane has the scale of its own sequence.
__device__ __forceinline__ float scaleOf(float scale, int which) { return __shfl_sync(~0u, scale, threadIdx.x % 4 * 8 + 4 * which); }

// Int8 is a matrix (rows, k) of int8, k a multiple of 32, followed by a scale of float16 for each 32 numbers of a row.
struct Int8 {
  const uint8_t *data;
  const uint16_t *scales;
  struct Eight { // of a row, and the scale of its block
    uint2 number;
    uint32_t scale;
  };
  struct Four { uint32_t number, scale; };
  template <int WARPS, int AHEAD> struct Part; // of manyrows.cuh
  struct Vector { // 128 high + low, times the scale of the sequence of a column of the result
    uint32_t high[2], low[2];
    float scale[2];
  };
  __device__ __forceinline__ Int8(const void *weight, int64_t rows, int k) : data((const uint8_t *)weight), scales((const uint16_t *)(data + rows * k)) {}

  __device__ __forceinline__ Eight eight(int64_t row, int at, int k, bool there) const {
    Eight e = {make_uint2(0, 0), 0};
    if (there) e.number = *(const uint2 *)(data + row * k + at), e.scale = scales[row * (k / 32) + at / 32];
    return e;
  }
  __device__ __forceinline__ Four four(int64_t row, int at, int k, bool there) const {
    Four f = {0, 0};
    if (there) f.number = *(const uint32_t *)(data + row * k + at), f.scale = scales[row * (k / 32) + at / 32];
    return f;
  }
  // split rounds to 14 bits of the run's largest number and a sign.
  static __device__ __forceinline__ Vector split(const float (&v)[8]) {
    const float largest = __uint_as_float(largestBits(v)), inverse = 16256.f / largest, scale = largest / 16256.f;
    uint32_t q[8];
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] = __float_as_uint(fmaf(v[i], inverse, 0x1.8p23f)); // the integer is in the low bits
    Vector to;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t *p = q + 4 * i;
      to.high[i] = (p[0] >> 7 & 0xff) | (p[1] << 1 & 0xff00) | (p[2] << 9 & 0xff0000) | (p[3] << 17 & 0xff000000);
      to.low[i] = (p[0] & 127) | (p[1] & 127) << 8 | (p[2] & 127) << 16 | (p[3] & 127) << 24;
    }
    to.scale[0] = scaleOf(scale, 0), to.scale[1] = scaleOf(scale, 1);
    return to;
  }
  static __device__ __forceinline__ void add(float (&sum)[4], const uint32_t (&x)[4], uint32_t low, uint32_t high, const Vector &v) {
    int c[4] = {}, d[4] = {};
    product(c, x, v.high[0], v.high[1]), product(d, x, v.low[0], v.low[1]);
    const float scale[2] = {fromHalf(low), fromHalf(high)};
#pragma unroll
    for (int i = 0; i < 4; i++) sum[i] = fmaf(scale[i / 2] * v.scale[i % 2], (float)(128 * c[i] + d[i]), sum[i]);
  }
  // add adds the products of a run of rows low and high of a tile. addFour does so for 16 numbers of a row.
  static __device__ __forceinline__ void add(float (&sum)[4], const Eight &low, const Eight &high, const Vector &v) {
    const uint32_t x[4] = {low.number.x, high.number.x, low.number.y, high.number.y};
    add(sum, x, low.scale, high.scale, v);
  }
  static __device__ __forceinline__ void addFour(float (&sum)[4], const Four (&a)[2], const Vector &v) {
    const uint32_t x[4] = {a[0].number, a[1].number, 0, 0};
    add(sum, x, a[0].scale, a[1].scale, v);
  }
};

// F16 is a matrix (rows, k) of float16, k a multiple of eight.
struct F16 {
  const uint16_t *data;
  using Eight = uint4;
  using Four = uint2;
  struct Vector { // high + low / 2048, times the scale
    uint32_t high[4], low[4];
    float scale[2];
  };
  __device__ __forceinline__ F16(const void *weight, int64_t, int) : data((const uint16_t *)weight) {}

  __device__ __forceinline__ Eight eight(int64_t row, int at, int k, bool there) const {
    return there ? *(const uint4 *)(data + row * k + at) : make_uint4(0, 0, 0, 0);
  }
  __device__ __forceinline__ Four four(int64_t row, int at, int k, bool there) const {
    return there ? *(const uint2 *)(data + row * k + at) : make_uint2(0, 0);
  }
  // split keeps 22 bits of the run's largest number. The scale is a power of two.
  static __device__ __forceinline__ Vector split(const float (&v)[8]) {
    const float scale = __uint_as_float(largestBits(v) & 0x7f800000u), inverse = 1.f / scale;
    Vector to;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float a = v[2 * i] * inverse, b = v[2 * i + 1] * inverse;
      const float p = __uint_as_float(__float_as_uint(a) & 0xffffe000u), q = __uint_as_float(__float_as_uint(b) & 0xffffe000u);
      to.high[i] = halves(p, q), to.low[i] = halves(2048.f * (a - p), 2048.f * (b - q));
    }
    to.scale[0] = scaleOf(scale, 0), to.scale[1] = scaleOf(scale, 1);
    return to;
  }
  static __device__ __forceinline__ void add(float (&sum)[4], const float (&c)[4], const float (&d)[4], const Vector &v) {
#pragma unroll
    for (int i = 0; i < 4; i++) sum[i] = fmaf(v.scale[i % 2], fmaf(d[i], 1.f / 2048, c[i]), sum[i]);
  }
  static __device__ __forceinline__ void add(float (&sum)[4], const Eight &low, const Eight &high, const Vector &v) {
    float c[4] = {}, d[4] = {};
    const uint32_t x[4] = {low.x, high.x, low.y, high.y}, y[4] = {low.z, high.z, low.w, high.w};
    product(c, x, v.high[0], v.high[1], f16()), product(c, y, v.high[2], v.high[3], f16());
    product(d, x, v.low[0], v.low[1], f16()), product(d, y, v.low[2], v.low[3], f16());
    add(sum, c, d, v);
  }
  static __device__ __forceinline__ void addFour(float (&sum)[4], const Four (&a)[2], const Vector &v) {
    float c[4] = {}, d[4] = {};
    const uint32_t x[4] = {a[0].x, a[1].x, a[0].y, a[1].y};
    product(c, x, v.high[0], v.high[1], f16()), product(d, x, v.low[0], v.low[1], f16());
    add(sum, c, d, v);
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

// wideOf returns eight numbers of int8, times their scale, in bfloat16.
__device__ __forceinline__ uint4 wideOf(const Int8::Eight &e) {
  const float scale = fromHalf(e.scale);
  auto two = [&](uint32_t four, int at) {
    return pair(scale * (float)(int8_t)(four >> at), scale * (float)(int8_t)(four >> (at + 8)));
  };
  return make_uint4(two(e.number.x, 0), two(e.number.x, 16), two(e.number.y, 0), two(e.number.y, 16));
}
template <int WARPS, int AHEAD> struct Int8::Part : Rows<Int8, WARPS, AHEAD> {
  __device__ __forceinline__ uint4 wide(int n, int i) const { return wideOf(this->first[n][i]); }
  __device__ __forceinline__ uint4 wide(const Int8 &weight, int n, int i, int k) const {
    const int at = this->begin(n), row = this->row + 8 * i;
    return wideOf(weight.eight(row, at, k, row < this->rows && at < k));
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
  const int k = threadIdx.x % 4, rows = (columns + TILE - 1) / TILE * TILE;
  auto readColumns = [&](typename W::Four (&a)[2], int tile) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int column = tile * TILE + g + 8 * i, at = row + 4 * k;
      a[i] = xProj.four(column, at, channels, column < columns && at < channels);
    }
  };
  typename W::Four a[2];
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
    const typename W::Vector parts = W::split(v);
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
  const float v4[8] = {us[g][4 * k], us[g][4 * k + 1], us[g][4 * k + 2], us[g][4 * k + 3], 0, 0, 0, 0};
  const typename W::Vector parts4 = W::split(v4);
  for (int tile = warp; tile * TILE < rows; tile += WARPS) {
    if (tile != warp) readColumns(a, tile);
    float e[4] = {};
    W::addFour(e, a, parts4);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int64_t q = from + 2 * k + i % 2;
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
  typename W::Vector first[AHEAD];
  {
    float v[AHEAD][8];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) eight(v[i], x + In::begin(i), there && In::begin(i) < in);
#pragma unroll
    for (int i = 0; i < AHEAD; i++) first[i] = W::split(v[i]);
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
      W::add(c, more[0], more[1], W::split(v));
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
