// Attention in tiles on tensor cores, for operands in bfloat16 or, as floats, in tf32. The passes are those of attention.cuh, with two
// differences. The operands were rounded, padded to D elements and put in order by heads, (batch, heads, steps, D), by attention_pack, which
// also multiplied Q by log2(e)/√dim. And scores stay in registers: the layout of a product's result is that of the next product's first factor.
#pragma once
#include "attention.cuh"
#include "mma.cuh"

// Mma has the sizes of a kernel: padded head dimension D; tiles of 16 rows per warp MT; columns per tile N; warps. X is bf16 or float.
template <class X, int D, int MT, int N, int WARPS> struct Mma {
  static constexpr int rows = 16 * MT * WARPS, threads = 32 * WARPS, J = N / 8, E = D / 8;
  static constexpr int piece = 16 / sizeof(X), stride = D + piece;  // elements; rows are padded by 16 bytes against bank conflicts
  static constexpr int together = piece / 4;                        // groups of 8 columns of p that one product takes

  const Attention &a;
  const int head, warp, lane, g, t;
  const int64_t b;

  __device__ Mma(const Attention &a)
      : a(a), head(blockIdx.x % a.heads), warp(threadIdx.x / 32), lane(threadIdx.x % 32), g(lane / 4), t(lane % 4), b(blockIdx.x / a.heads) {}

  // row returns the row in the block of a thread's tile m, upper or lower half.
  __device__ __forceinline__ int row(int m, int half) const { return (warp * MT + m) * 16 + 8 * half + g; }

  __device__ __forceinline__ int low(int t) const {
    const int first = a.first ? a.first[b * a.length + t] : 0;
    return a.window ? max(first, (int)(a.before + t - a.window + 1)) : first;
  }

  // packed returns the index of a step in a packed operand, at in a result of the given number of steps, of in lse and inner.
  __device__ __forceinline__ int64_t packed(int64_t steps, int64_t step) const { return ((b * a.heads + head) * steps + step) * D; }
  __device__ __forceinline__ int64_t at(int64_t steps, int64_t step) const { return ((b * steps + step) * a.heads + head) * a.dim; }
  __device__ __forceinline__ int64_t of(int64_t step) const { return (b * a.heads + head) * a.length + step; }

  // load begins to copy count rows, and zeros after them.
  template <int ROWS> __device__ __forceinline__ void load(X *to, const float *operand, int64_t from, int count) const {
    constexpr int pieces = D / piece;
    static_assert(ROWS * pieces % threads == 0, "");
#pragma unroll
    for (int k = 0; k < ROWS * pieces / threads; k++) {
      const int i = threadIdx.x + k * threads, r = i / pieces, c = i % pieces * piece;
      copyLater<16>(to + r * stride + c, (const X *)operand + from + (r < count ? r : 0) * D + c, r < count);
    }
  }

  // dot computes the products of the warp's rows with all columns.
  __device__ __forceinline__ void dot(float (&s)[MT][J][4], const X *rows, const X *columns) const {
    rows += (warp * MT * 16 + lane % 16) * stride + lane / 16 * piece;
    columns += (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * piece;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int j = 0; j < J; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) s[m][j][i] = 0.f;
#pragma unroll
    for (int k = 0; k < D; k += 2 * piece) {
      uint32_t x[MT][4];
#pragma unroll
      for (int m = 0; m < MT; m++) load4<false>(x[m], rows + m * 16 * stride + k);
#pragma unroll
      for (int j = 0; j < J; j += 2) {
        uint32_t y[4];
        load4<false>(y, columns + j * 8 * stride + k);
#pragma unroll
        for (int m = 0; m < MT; m++) product(s[m][j], x[m], y[0], y[1], X()), product(s[m][j + 1], x[m], y[2], y[3], X());
      }
    }
  }

  // factor returns the first factor of a product: columns from 8j on of p, or with ONES a 1 for each that is not 0. In tf32, columns 2t and
  // 2t + 1 take the places of columns t and t + 4.
  template <bool ONES> __device__ __forceinline__ void factor(uint32_t (&x)[4], const float (&p)[J][4], int j) const {
    auto f = [](float v) { return ONES ? v != 0.f ? 1.f : 0.f : v; };
    if constexpr (sizeof(X) == 2) {
      x[0] = pair(f(p[j][0]), f(p[j][1])), x[1] = pair(f(p[j][2]), f(p[j][3]));
      x[2] = pair(f(p[j + 1][0]), f(p[j + 1][1])), x[3] = pair(f(p[j + 1][2]), f(p[j + 1][3]));
    } else {
      x[0] = rounded(f(p[j][0])), x[1] = rounded(f(p[j][2])), x[2] = rounded(f(p[j][1])), x[3] = rounded(f(p[j][3]));
    }
  }
  // rowsOf reads the second factors of two products: rows from 8j on of v, in dimensions from 8e on.
  __device__ __forceinline__ void rowsOf(uint32_t (&y)[4], const X *v, int j, int e) const {
    if constexpr (sizeof(X) == 2) {
      load4<true>(y, v + (j * 8 + lane % 16) * stride + e * 8 + lane / 16 * 8);
    } else {
      v += (j * 8 + 2 * t) * stride + e * 8 + g;
      y[0] = __float_as_uint(v[0]), y[1] = __float_as_uint(v[stride]), y[2] = __float_as_uint(v[8]), y[3] = __float_as_uint(v[stride + 8]);
    }
  }
  // finite replaces the numbers that are not finite by 0, or with ONES those by 1 and the others by 0.
  template <bool ONES> __device__ __forceinline__ void finite(uint32_t &y) const {
    uint32_t out = 0;
#pragma unroll
    for (int i = 0; i < (int)(4 / sizeof(X)); i++) {
      const uint32_t top = sizeof(X) == 2 ? 0x7f80u << 16 * i : 0x7f800000u, all = sizeof(X) == 2 ? 0xffffu << 16 * i : ~0u;
      const uint32_t one = sizeof(X) == 2 ? 0x3f80u << 16 * i : 0x3f800000u;
      const bool bad = (y & top) == top;
      out |= ONES ? bad ? one : 0 : bad ? 0 : y & all;
    }
    y = out;
  }

  template <bool GUARD> __device__ __forceinline__ void addTo(float (&sum)[MT][E][4], const float (&p)[MT][J][4], const X *v) const {
#pragma unroll
    for (int j = 0; j < J; j += together) {
      uint32_t x[MT][4];
#pragma unroll
      for (int m = 0; m < MT; m++) factor<false>(x[m], p[m], j);
#pragma unroll
      for (int e = 0; e < E; e += 2) {
        uint32_t y[4];
        rowsOf(y, v, j, e);
        if (GUARD) finite<false>(y[0]), finite<false>(y[1]), finite<false>(y[2]), finite<false>(y[3]);
#pragma unroll
        for (int m = 0; m < MT; m++) product(sum[m][e], x[m], y[0], y[1], X()), product(sum[m][e + 1], x[m], y[2], y[3], X());
      }
    }
  }

  // add computes sum += p v for the warp's rows and all dimensions. guard is for v that are not finite where p may be 0: these v are counted
  // by a product of their own, and a sum of which one has a factor that is not 0 becomes NaN. All other sums have the bits that they have
  // without them.
  __device__ __forceinline__ void add(float (&sum)[MT][E][4], const float (&p)[MT][J][4], const X *v, bool guard) const {
    if (!guard) return addTo<false>(sum, p, v);
    addTo<true>(sum, p, v);
#pragma unroll
    for (int e = 0; e < E; e += 2) {
      float n[MT][2][4];
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int i = 0; i < 8; i++) n[m][i / 4][i % 4] = 0.f;
#pragma unroll
      for (int j = 0; j < J; j += together) {
        uint32_t x[MT][4], y[4];
#pragma unroll
        for (int m = 0; m < MT; m++) factor<true>(x[m], p[m], j);
        rowsOf(y, v, j, e);
        finite<true>(y[0]), finite<true>(y[1]), finite<true>(y[2]), finite<true>(y[3]);
#pragma unroll
        for (int m = 0; m < MT; m++) product(n[m][0], x[m], y[0], y[1], X()), product(n[m][1], x[m], y[2], y[3], X());
      }
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int i = 0; i < 8; i++)
          if (n[m][i / 4][i % 4] != 0.f) sum[m][e + i / 4][i % 4] = NAN;
    }
  }

  // write stores the warp's part of a result, times factor.
  __device__ __forceinline__ void write(float *to, int64_t steps, int from, int count, const float (&sum)[MT][E][4], const float (&factor)[MT][2]) const {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        if (row(m, half) >= count) continue;
        float *y = to + at(steps, from + row(m, half));
#pragma unroll
        for (int e = 0; e < E; e++) {
          const int c = 8 * e + 2 * t;
          const float f0 = sum[m][e][2 * half] * factor[m][half], f1 = sum[m][e][2 * half + 1] * factor[m][half];
          if (a.vector) {
            if (c < a.dim) *(float2 *)(y + c) = make_float2(f0, f1);
          } else {
            if (c < a.dim) y[c] = f0;
            if (c + 1 < a.dim) y[c + 1] = f1;
          }
        }
      }
  }
};

template <int A, int B, int C> __device__ __forceinline__ void clear(float (&x)[A][B][C]) {
#pragma unroll
  for (int i = 0; i < A; i++) clear(x[i]);
}

template <class X, int D, int MT, int N, int WARPS> __device__ __forceinline__ void mmaForward(const Attention &a) {
  using T = Mma<X, D, MT, N, WARPS>;
  const T t(a);
  X *q = (X *)shared, *tiles = q + T::rows * T::stride;  // two of K and V: while one is used, the next is copied
  const int from = (gridDim.y - 1 - blockIdx.y) * T::rows, rows = min(T::rows, (int)a.length - from);
  const int before = a.before, steps = before + a.length, begin = t.low(from), end = before + from + rows, highest = t.low(from + rows - 1);
  const bool bad = a.bad[t.b * a.heads + t.head];
  auto load = [&](int at, int stage) {
    X *k = tiles + 2 * stage * N * T::stride;
    t.template load<N>(k, a.k, t.packed(steps, at), min(N, steps - at));
    t.template load<N>(k + N * T::stride, a.v, t.packed(steps, at), min(N, steps - at));
  };
  t.template load<T::rows>(q, a.q, t.packed(a.length, from), rows);
  load(begin, 0);
  int low[MT][2];
  float sum[MT][T::E][4], largest[MT][2], total[MT][2];
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      low[m][half] = t.low(from + min(t.row(m, half), rows - 1)), largest[m][half] = -INFINITY, total[m][half] = 0.f;
  clear(sum);
  int stage = 0;
  for (int at = begin; at < end; at += N, stage ^= 1) {
    copied();
    __syncthreads();
    if (at + N < end) load(at + N, stage ^ 1);
    const X *k = tiles + 2 * stage * N * T::stride, *v = k + N * T::stride;
    const bool partly = at < highest || at + N > before + from + 1, guard = partly && bad;
    float s[MT][T::J][4];
    t.dot(s, q, k);
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        if (partly) {
#pragma unroll
          for (int j = 0; j < T::J; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
              const int step = at + 8 * j + 2 * t.t + i;
              if (step < low[m][half] || step > before + from + t.row(m, half)) s[m][j][2 * half + i] = -INFINITY;
            }
        }
        float top = largest[m][half];
#pragma unroll
        for (int j = 0; j < T::J; j++) top = fmaxf(top, fmaxf(s[m][j][2 * half], s[m][j][2 * half + 1]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        const float base = top == -INFINITY ? 0.f : top, change = exp2Approx(largest[m][half] - base);
        largest[m][half] = top, total[m][half] *= change;
#pragma unroll
        for (int e = 0; e < T::E; e++) sum[m][e][2 * half] *= change, sum[m][e][2 * half + 1] *= change;
#pragma unroll
        for (int j = 0; j < T::J; j++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            float &f = s[m][j][2 * half + i];
            f = guard ? probability<true>(f, base) : probability<false>(f, base);
            total[m][half] += f;
          }
      }
    t.add(sum, s, v, guard);
  }
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float &f = total[m][half];
      f += __shfl_xor_sync(~0u, f, 1);
      f += __shfl_xor_sync(~0u, f, 2);
      if (a.lse && t.t == 0 && t.row(m, half) < rows) a.lse[t.of(from + t.row(m, half))] = largest[m][half] + log2f(f);
      f = 1.f / f;
    }
  t.write(a.y, a.length, from, rows, sum, total);
}

template <class X, int D, int N, int WARPS> __device__ __forceinline__ void mmaQueries(const Attention &a) {
  using T = Mma<X, D, 1, N, WARPS>;
  const T t(a);
  X *q = (X *)shared, *dy = q + T::rows * T::stride, *tiles = dy + T::rows * T::stride;
  const int from = (gridDim.y - 1 - blockIdx.y) * T::rows, rows = min(T::rows, (int)a.length - from);
  const int before = a.before, steps = before + a.length, begin = t.low(from), end = before + from + rows, highest = t.low(from + rows - 1);
  const bool bad = a.bad[t.b * a.heads + t.head];
  auto load = [&](int at, int stage) {
    X *k = tiles + 2 * stage * N * T::stride;
    t.template load<N>(k, a.k, t.packed(steps, at), min(N, steps - at));
    t.template load<N>(k + N * T::stride, a.v, t.packed(steps, at), min(N, steps - at));
  };
  t.template load<T::rows>(q, a.q, t.packed(a.length, from), rows);
  t.template load<T::rows>(dy, a.dy, t.packed(a.length, from), rows);
  load(begin, 0);
  int low[2];
  float sum[1][T::E][4], lse[2], inner[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int step = from + min(t.row(0, half), rows - 1);
    low[half] = t.low(step), lse[half] = a.lse[t.of(step)], inner[half] = a.inner[t.of(step)];
  }
  clear(sum);
  int stage = 0;
  for (int at = begin; at < end; at += N, stage ^= 1) {
    copied();
    __syncthreads();
    if (at + N < end) load(at + N, stage ^ 1);
    const X *k = tiles + 2 * stage * N * T::stride, *v = k + N * T::stride;
    const bool partly = at < highest || at + N > before + from + 1;
    float p[1][T::J][4], s[1][T::J][4];
    t.dot(p, q, k);
    t.dot(s, dy, v);
#pragma unroll
    for (int j = 0; j < T::J; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) p[0][j][i] = exp2Approx(p[0][j][i] - lse[i / 2]);
    if (partly) {
#pragma unroll
      for (int j = 0; j < T::J; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int step = at + 8 * j + 2 * t.t + i % 2;
          if (step < low[i / 2] || step > before + from + t.row(0, i / 2)) p[0][j][i] = 0.f;
        }
    }
#pragma unroll
    for (int j = 0; j < T::J; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) scoreGradient(s[0], p[0], j, i, inner[i / 2]);
    t.add(sum, s, k, partly && bad);
  }
  const float factor[1][2] = {{a.scale, a.scale}};
  t.write(a.dq, a.length, from, rows, sum, factor);
}

template <class X, int D, int N, int WARPS> __device__ __forceinline__ void mmaKeys(const Attention &a) {
  using T = Mma<X, D, 1, N, WARPS>;
  const T t(a);
  X *k = (X *)shared, *v = k + T::rows * T::stride, *tiles = v + T::rows * T::stride;
  float *values = (float *)(tiles + 4 * N * T::stride);  // lse and inner of the queries of two tiles
  const int from = blockIdx.y * T::rows, before = a.before, length = a.length, steps = before + length, rows = min(T::rows, steps - from);
  const bool bad = a.bad[t.b * a.heads + t.head];
  auto load = [&](int at, int stage) {
    X *q = tiles + 2 * stage * N * T::stride;
    const int count = min(N, length - at);
    t.template load<N>(q, a.q, t.packed(length, at), count);
    t.template load<N>(q + N * T::stride, a.dy, t.packed(length, at), count);
    for (int i = threadIdx.x; i < N; i += T::threads) {
      const int64_t of = t.of(at + min(i, count - 1));
      copyLater<4>(values + 2 * stage * N + i, a.lse + of, true);
      copyLater<4>(values + 2 * stage * N + N + i, a.inner + of, true);
    }
  };
  auto sees = [&](int at) { return at < length && t.low(at) < from + rows; };
  int at = max(0, from - before), stage = 0;
  t.template load<T::rows>(k, a.k, t.packed(steps, from), rows);
  t.template load<T::rows>(v, a.v, t.packed(steps, from), rows);
  bool more = sees(at);
  if (more) load(at, 0);
  float dk[1][T::E][4], dv[1][T::E][4];
  clear(dk);
  clear(dv);
  for (; more; at += N, stage ^= 1) {
    copied();
    __syncthreads();
    more = sees(at + N);
    if (more) load(at + N, stage ^ 1);
    const X *q = tiles + 2 * stage * N * T::stride, *dy = q + N * T::stride;
    const float *lse = values + 2 * stage * N, *inner = lse + N;
    const int count = min(N, length - at);
    const bool partly = count < N || before + at < from + rows - 1 || t.low(at + count - 1) > from, guard = partly && bad;
    float p[1][T::J][4], s[1][T::J][4];
    t.dot(p, k, q);
#pragma unroll
    for (int j = 0; j < T::J; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) p[0][j][i] = exp2Approx(p[0][j][i] - lse[8 * j + 2 * t.t + i % 2]);
    if (partly) {
#pragma unroll
      for (int j = 0; j < T::J; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const int column = 8 * j + 2 * t.t + i, low = t.low(at + min(column, count - 1)), last = column < count ? before + at + column : -1;
#pragma unroll
          for (int half = 0; half < 2; half++) {
            const int step = from + t.row(0, half);
            if (step < low || step > last) p[0][j][2 * half + i] = 0.f;
          }
        }
    }
    t.add(dv, p, dy, guard);
    t.dot(s, v, dy);
#pragma unroll
    for (int j = 0; j < T::J; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) scoreGradient(s[0], p[0], j, i, inner[8 * j + 2 * t.t + i % 2]);
    t.add(dk, s, q, guard);
  }
  copied();
  const float log2 = 0.693147180559945f;  // q was multiplied by log2(e)
  const float forK[1][2] = {{log2, log2}}, forV[1][2] = {{1.f, 1.f}};
  if (a.dk) t.write(a.dk, steps, from, rows, dk, forK);
  if (a.dv) t.write(a.dv, steps, from, rows, dv, forV);
}

// ATTENTION_MMA makes the kernels of a padded head dimension D: of the forward pass tiles of rows per warp, columns per tile and blocks per
// multiprocessor, and of the backward pass columns per tile and blocks per multiprocessor. A block has 4 warps.
#define ATTENTION_MMA(NAME, X, D, MT, FN, FB, BN, BB)                                                                                     \
  extern "C" __global__ __launch_bounds__(128, FB) void attention_forward_##NAME(const Attention a) { mmaForward<X, D, MT, FN, 4>(a); } \
  extern "C" __global__ __launch_bounds__(128, BB) void attention_queries_##NAME(const Attention a) { mmaQueries<X, D, BN, 4>(a); }     \
  extern "C" __global__ __launch_bounds__(128, BB) void attention_keys_##NAME(const Attention a) { mmaKeys<X, D, BN, 4>(a); }
