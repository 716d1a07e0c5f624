// What a product of float32 needs around three products in float16, which cuBLAS computes: c (m, n) = alpha a (m, k) b (k, n) + beta c.
//
// Rows of a and columns of b are multiplied by powers of two, so that the largest magnitude of each is in [2^14, 2^15). Each number is then
// high + low in float16, with 22 significant bits together: high is the number rounded, low the rest rounded. Numbers below 2^-29 of the
// largest have fewer bits, because float16 ends at 2^-24. A product of two numbers is low·high + high·low + high·high; low·low is left out.
//
// The split operands lie as the operands do, with low and high one after the other along k: low, high for a, and high, low for b. So the two
// mixed terms are one product of twice the length. Its sums, about 2^-11 of the result, are stored in float16. The sums of high·high are
// stored in float32 for several parts of k, because tensor cores cut sums off instead of rounding them, which matters when they are long.
#include "types.cuh"

// cuda/fp16x3.go has the fields of HalfSplit and HalfSums.
struct HalfSplit {
  const float *x;                // (rows, width), rows stride apart
  unsigned *largest;             // of each row or column that is not along k: the bits of its largest magnitude
  uint16_t *high, *low;          // the halves, rows to apart
  int64_t stride, rows, width;
  int64_t to, depth;             // depth: length along k with the padding, which is zeros
  int64_t along, vector;         // along: k is along the rows in memory; vector: rows of x begin at multiples of 16 bytes
  int64_t blocks;
};

struct HalfFour {
  float v[4];
};

// fourOf returns numbers of a row from column i on, or zeros where there are none.
__device__ __forceinline__ HalfFour fourOf(const HalfSplit &p, int64_t row, int64_t i) {
  HalfFour x = {};
  if (row >= p.rows) return x;
  const float *from = p.x + row * p.stride + i;
  if (p.vector && i + 4 <= p.width) {
    const float4 v = *(const float4 *)from;
    x = {v.x, v.y, v.z, v.w};
  } else {
    for (int j = 0; j < 4 && i + j < p.width; j++) x.v[j] = from[j];
  }
  return x;
}

__device__ __forceinline__ unsigned magnitude(float x) { return __float_as_uint(x) & 0x7fffffff; }  // NaN is larger than infinity

// halfExponent returns e for a row whose largest magnitude has these bits. Multiplied by 2^e it is in [2^14, 2^15), or less if e would exceed 126.
// twoTo returns 2^e, for -126 to 127.
__device__ __forceinline__ int halfExponent(unsigned largest) { return min(141 - (int)min(largest >> 23, 254u), 126); }
__device__ __forceinline__ float twoTo(int e) { return __uint_as_float((unsigned)(e + 127) << 23); }

// writeHalves splits four numbers.
__device__ __forceinline__ void writeHalves(const HalfSplit &p, int64_t row, int64_t i, const HalfFour &x, const float (&factor)[4]) {
  unsigned high[4], low[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float v = x.v[j] * factor[j], h = __uint_as_float((__float_as_uint(v) + 0x1000) & 0xffffe000);  // 11 significant bits
    high[j] = toHalf(h), low[j] = toHalf(v - h);  // if v is not finite, low is NaN, and so is the result
  }
  const int64_t at = row * p.to + i;
  *(uint2 *)(p.high + at) = make_uint2(high[0] | high[1] << 16, high[2] | high[3] << 16);
  *(uint2 *)(p.low + at) = make_uint2(low[0] | low[1] << 16, low[2] | low[3] << 16);
}

// HalfStrip is a block's part of an operand with k along the columns: 128 columns, four for each lane, and some rows, in turn for each warp.
struct HalfStrip {
  int64_t first, column, begin, end;
  __device__ HalfStrip(const HalfSplit &p, int64_t block, int64_t rows) {
    const int64_t strips = (p.width + 127) / 128, parts = p.blocks / strips, each = (rows + parts - 1) / parts;
    first = block % strips * 128, column = first + threadIdx.x % 32 * 4;
    begin = block / strips * each + threadIdx.x / 32, end = min(rows, (block / strips + 1) * each);
  }
};

// fp16x3_largest finds the largest magnitudes of the columns; largest must be zeros.
__device__ void halfLargest(const HalfSplit &p, int64_t block) {
  const HalfStrip s(p, block, p.rows);
  unsigned most[4] = {};
#pragma unroll 4
  for (int64_t r = s.begin; r < s.end; r += 8) {
    const HalfFour x = fourOf(p, r, s.column);
#pragma unroll
    for (int j = 0; j < 4; j++) most[j] = max(most[j], magnitude(x.v[j]));
  }
  __shared__ unsigned all[8][128];
#pragma unroll
  for (int j = 0; j < 4; j++) all[threadIdx.x / 32][threadIdx.x % 32 * 4 + j] = most[j];
  __syncthreads();
  const int64_t c = s.first + threadIdx.x;
  if (threadIdx.x >= 128 || c >= p.width) return;
  unsigned v = 0;
  for (int i = 0; i < 8; i++) v = max(v, all[i][threadIdx.x]);
  atomicMax(p.largest + c, v);
}

extern "C" __global__ __launch_bounds__(256) void fp16x3_largest(const HalfSplit a, const HalfSplit b) {
  if (blockIdx.x < a.blocks) halfLargest(a, blockIdx.x);
  else halfLargest(b, blockIdx.x - a.blocks);
}

// halfSplitRow splits a row along k. It is the work of a warp, or of a block of 256 threads with WIDE.
template <bool WIDE> __device__ void halfSplitRow(const HalfSplit &p, int64_t row) {
  const int threads = WIDE ? 256 : 32, lane = threadIdx.x % threads;
  unsigned most = 0;
#pragma unroll 4
  for (int64_t i = lane * 4; i < p.width; i += threads * 4) {
    const HalfFour x = fourOf(p, row, i);
    most = max(max(most, max(magnitude(x.v[0]), magnitude(x.v[1]))), max(magnitude(x.v[2]), magnitude(x.v[3])));
  }
#pragma unroll
  for (int m = 16; m > 0; m /= 2) most = max(most, __shfl_xor_sync(~0u, most, m));
  if (WIDE) {
    __shared__ unsigned all[8];
    if (lane % 32 == 0) all[lane / 32] = most;
    __syncthreads();
    for (int i = 0; i < 8; i++) most = max(most, all[i]);
  }
  if (lane == 0) p.largest[row] = most;
  const float f = twoTo(halfExponent(most)), factor[4] = {f, f, f, f};
#pragma unroll 4
  for (int64_t i = lane * 4; i < p.depth; i += threads * 4) writeHalves(p, row, i, fourOf(p, row, i), factor);
}

__device__ void halfSplit(const HalfSplit &p, int64_t block) {
  if (p.along && p.width > 2048) return halfSplitRow<true>(p, block);
  if (p.along) {
    const int64_t row = block * 8 + threadIdx.x / 32;
    if (row < p.rows) halfSplitRow<false>(p, row);
    return;
  }
  const HalfStrip s(p, block, p.depth);
  if (s.column >= p.width) return;
  float factor[4] = {1.f, 1.f, 1.f, 1.f};
  for (int j = 0; j < 4 && s.column + j < p.width; j++) factor[j] = twoTo(halfExponent(p.largest[s.column + j]));
#pragma unroll 4
  for (int64_t r = s.begin; r < s.end; r += 8) writeHalves(p, r, s.column, fourOf(p, r, s.column), factor);
}

extern "C" __global__ __launch_bounds__(256) void fp16x3_split(const HalfSplit a, const HalfSplit b) {
  if (blockIdx.x < a.blocks) halfSplit(a, blockIdx.x);
  else halfSplit(b, blockIdx.x - a.blocks);
}

struct HalfSums {
  const uint16_t *mixed;                // (m, stride): low·high + high·low, times 2^-mixedExponent
  const float *high;                    // (parts, m, stride): high·high
  float *c;                             // (m, n), rows strideC apart
  const unsigned *largestA, *largestB;  // (m), (n)
  int64_t m, n, stride, strideC, parts, mixedExponent;
  int64_t vector;                       // rows of c begin at multiples of 16 bytes
  float alpha, beta;
};

// fp16x3_add adds up the sums, the mixed terms first, then the parts in order, and writes c.
extern "C" __global__ __launch_bounds__(256) void fp16x3_add(const HalfSums p) {
  const int64_t across = (p.n + 3) / 4, i = blockIdx.x * (int64_t)256 + threadIdx.x, row = i / across, column = i % across * 4;
  if (row >= p.m) return;
  const int64_t at = row * p.stride + column;
  const uint2 mixed = *(const uint2 *)(p.mixed + at);
  const float f = twoTo((int)p.mixedExponent);
  float sum[4] = {fromHalf(mixed.x) * f, fromHalf(mixed.x >> 16) * f, fromHalf(mixed.y) * f, fromHalf(mixed.y >> 16) * f};
#pragma unroll 4
  for (int64_t part = 0; part < p.parts; part++) {
    const float4 v = *(const float4 *)(p.high + part * p.m * p.stride + at);
    sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
  }
  const int a = halfExponent(p.largestA[row]);
  float *c = p.c + row * p.strideC + column;
  const bool vector = p.vector && column + 4 <= p.n;
  float4 before = {};
  if (vector && p.beta != 0.f) before = *(const float4 *)c;
  const float old[4] = {before.x, before.y, before.z, before.w};
#pragma unroll
  for (int j = 0; j < 4; j++) {
    if (column + j >= p.n) break;
    const int e = -a - halfExponent(p.largestB[column + j]);
    sum[j] = sum[j] * twoTo(e / 2) * twoTo(e - e / 2) * p.alpha;  // the result can be finite when 2^e is not
    if (p.beta != 0.f) sum[j] += p.beta * (vector ? old[j] : c[j]);
    if (!vector) c[j] = sum[j];
  }
  if (vector) *(float4 *)c = make_float4(sum[0], sum[1], sum[2], sum[3]);
}
