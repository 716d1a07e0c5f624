// Causal attention in tiles (Dao et al., "FlashAttention", algorithms 1 and 4; Dao, "FlashAttention-2", section 3.1). A block computes the rows
// of one tile and walks over the tiles of columns that the rows see or are seen by. Scores exist only as one tile in shared memory.
//
//   kernel    rows     columns  for each tile of columns
//   forward   queries  keys     S = Q Kᵀ, online softmax to P, y += P V
//   queries   queries  keys     S = Q Kᵀ, P, dP = dy Vᵀ, dS = P∘(dP - inner), dq += dS K
//   keys      keys     queries  S = K Qᵀ, P, dP = V dyᵀ, dS = P∘(dP - inner), dv += P dy, dk += dS Q
//
// Each result is summed by one thread in a fixed order, so there are no atomic operations, and two runs give the same bits.
//
// Scores are in units of log 2: Q is multiplied by log2(e)/√dim when it is loaded. lse is log2 of a row's sum of 2^score.
#pragma once
#include "types.cuh"

// cuda/attention.go has the same fields. Steps are counted from the beginning of the context.
struct Attention {
  int64_t batch, length, heads, dim;
  int64_t window;                       // 0 for all steps
  int64_t before;                       // steps of the context
  int64_t vector;                       // rows of all arrays begin at multiples of 16 bytes
  const float *q, *k, *v;               // q is (batch, length, width), k and v are (batch, before + length, width)
  const int *first;                     // (batch, length): the first step of the sequence that a step belongs to; null for 0
  float *y, *lse;                       // (batch, length, width), (batch, heads, length)
  const float *dy, *inner;              // (batch, length, width), (batch, heads, length): dy·y
  float *dq, *dk, *dv;                  // in the shapes of q, k, v
  float scale, scale2;                  // 1/√dim, log2(e)/√dim
  const int *bad;                       // (batch, heads): not 0 if an operand has a number that is not finite; only for attention_mma.cuh
};

// Tile has the sizes of a kernel: head dimension at most D; rows per thread R; columns per tile N; threads TH. 16 threads share R rows, each
// with every 16th column and D/16 dimensions. Rows in shared memory are padded by 4 floats, so that reads have no bank conflicts.
template <int D, int R, int N, int TH> struct Tile {
  static constexpr int rows = R * TH / 16, S = N / 16, E = D / 16, W = E < 4 ? E : 4, stride = D + 4, scores = N + 4;

  const Attention &a;
  const int head, lane, row;  // of the thread: its lane among 16, its first row; the next rows are two apart
  const int64_t b;

  __device__ Tile(const Attention &a)
      : a(a), head(blockIdx.x % a.heads), lane(threadIdx.x % 16), row(threadIdx.x / 32 * 2 * R + threadIdx.x / 16 % 2), b(blockIdx.x / a.heads) {}

  // at returns the index of the head's part of a step in an array of so many steps per sequence.
  __device__ __forceinline__ int64_t at(int64_t steps, int64_t step) const { return ((b * steps + step) * a.heads + head) * a.dim; }

  // low returns the first step that is visible to query t.
  __device__ __forceinline__ int low(int t) const {
    const int first = a.first ? a.first[b * a.length + t] : 0;
    return a.window ? max(first, (int)(a.before + t - a.window + 1)) : first;
  }

  // load copies count rows to shared memory, times factor, and fills up with zeros. It returns whether a number is not finite.
  template <int ROWS> __device__ __forceinline__ bool load(float *to, const float *from, int count, float factor) const {
    constexpr int quads = D / 4;
    static_assert(ROWS * quads % TH == 0, "");
    bool bad = false;
#pragma unroll
    for (int k = 0; k < ROWS * quads / TH; k++) {
      const int i = threadIdx.x + k * TH, r = i / quads, c = i % quads * 4;
      float4 x = make_float4(0.f, 0.f, 0.f, 0.f);
      if (r < count && c < a.dim) {
        const float *p = from + r * a.heads * a.dim + c;
        if (a.vector) {
          x = *(const float4 *)p;
        } else {
          x.x = p[0];
          if (c + 1 < a.dim) x.y = p[1];
          if (c + 2 < a.dim) x.z = p[2];
          if (c + 3 < a.dim) x.w = p[3];
        }
        x.x *= factor, x.y *= factor, x.z *= factor, x.w *= factor;
        const float none = (x.x - x.x) + (x.y - x.y) + (x.z - x.z) + (x.w - x.w);
        bad |= none != 0.f;
      }
      *(float4 *)(to + r * stride + c) = x;
    }
    return bad;
  }

  // dot computes the products of the thread's rows with its columns.
  __device__ __forceinline__ void dot(float (&s)[R][S], const float *rows, const float *columns) const {
    rows += row * stride, columns += lane * stride;
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int j = 0; j < S; j++) s[r][j] = 0.f;
#pragma unroll 4
    for (int c = 0; c < D; c += 4) {
      float4 y[S];
#pragma unroll
      for (int j = 0; j < S; j++) y[j] = *(const float4 *)(columns + 16 * j * stride + c);
#pragma unroll
      for (int r = 0; r < R; r++) {
        const float4 x = *(const float4 *)(rows + 2 * r * stride + c);
#pragma unroll
        for (int j = 0; j < S; j++) s[r][j] = fmaf(x.w, y[j].w, fmaf(x.z, y[j].z, fmaf(x.y, y[j].y, fmaf(x.x, y[j].x, s[r][j]))));
      }
    }
  }

  // put writes the thread's part of a tile of scores. Only the threads of a warp read its rows.
  __device__ __forceinline__ void put(float *p, const float (&s)[R][S]) const {
    __syncwarp();
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int j = 0; j < S; j++) p[(row + 2 * r) * scores + lane + 16 * j] = s[r][j];
    __syncwarp();
  }

  // addTo computes sum += p v for the thread's rows and dimensions. GUARD leaves out factors of p that are 0, for v that are not finite.
  template <bool GUARD> __device__ __forceinline__ void addTo(float (&sum)[R][E], const float *p, const float *v) const {
    p += row * scores, v += lane * W;
#pragma unroll 2
    for (int n = 0; n < N; n += 4) {
      float x[4][E];
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int e = 0; e < E; e += W) {
          const float *from = v + (n + i) * stride + 16 * e;
          if (W == 4) {
            const float4 f = *(const float4 *)from;
            x[i][e] = f.x, x[i][e + 1] = f.y, x[i][(e + 2) % E] = f.z, x[i][(e + 3) % E] = f.w;
          } else {
            const float2 f = *(const float2 *)from;
            x[i][e] = f.x, x[i][e + 1] = f.y;
          }
        }
#pragma unroll
      for (int r = 0; r < R; r++) {
        const float4 f = *(const float4 *)(p + 2 * r * scores + n);
        const float w[4] = {f.x, f.y, f.z, f.w};
#pragma unroll
        for (int i = 0; i < 4; i++)
          if (!GUARD || w[i] != 0.f)
#pragma unroll
            for (int e = 0; e < E; e++) sum[r][e] = fmaf(w[i], x[i][e], sum[r][e]);
      }
    }
  }
  __device__ __forceinline__ void add(float (&sum)[R][E], const float *p, const float *v, bool guard) const {
    if (guard) addTo<true>(sum, p, v);
    else addTo<false>(sum, p, v);
  }

  // write stores the thread's part of one row, times factor.
  __device__ __forceinline__ void write(float *to, const float (&sum)[E], float factor) const {
#pragma unroll
    for (int e = 0; e < E; e += W) {
      const int c = 16 * e + lane * W;
      if (W == 4 && a.vector) {
        if (c < a.dim) *(float4 *)(to + c) = make_float4(sum[e] * factor, sum[e + 1] * factor, sum[(e + 2) % E] * factor, sum[(e + 3) % E] * factor);
      } else {
#pragma unroll
        for (int i = 0; i < W; i++)
          if (c + i < a.dim) to[c + i] = sum[e + i] * factor;
      }
    }
  }
};

extern __shared__ __align__(16) float shared[];

template <int N, int M> __device__ __forceinline__ void clear(float (&x)[N][M]) {
#pragma unroll
  for (int i = 0; i < N; i++)
#pragma unroll
    for (int j = 0; j < M; j++) x[i][j] = 0.f;
}

// probability returns 2^(score - base). With GUARD it returns no 0 for a key that is visible, since a factor of 0 is left out.
template <bool GUARD> __device__ __forceinline__ float probability(float score, float base) {
  const float p = exp2Approx(score - base);
  return GUARD && p == 0.f && score != -INFINITY ? 1e-45f : p;
}

template <int D, int R, int N, int TH> __device__ __forceinline__ void attentionForward(const Attention &a) {
  using T = Tile<D, R, N, TH>;
  const T t(a);
  float *q = shared, *k = q + T::rows * T::stride, *v = k + N * T::stride, *p = v + N * T::stride;
  const int from = (gridDim.y - 1 - blockIdx.y) * T::rows, rows = min(T::rows, (int)a.length - from);  // the last tiles take longest
  const int before = a.before, steps = before + a.length;
  t.template load<T::rows>(q, a.q + t.at(a.length, from), rows, a.scale2);
  int low[R];
  float sum[R][T::E], largest[R], total[R];
#pragma unroll
  for (int r = 0; r < R; r++) {
    low[r] = t.low(from + min(t.row + 2 * r, rows - 1));
    largest[r] = -INFINITY, total[r] = 0.f;
  }
  clear(sum);
  const int begin = t.low(from), highest = t.low(from + rows - 1);
  for (int at = begin; at < before + from + rows; at += N) {
    const int count = min(N, steps - at);
    __syncthreads();
    t.template load<N>(k, a.k + t.at(steps, at), count, 1.f);
    const bool bad = t.template load<N>(v, a.v + t.at(steps, at), count, 1.f);
    const bool partly = at < highest || at + N > before + from + 1;  // some key is not visible to some query
    const bool guard = __syncthreads_or(partly && bad);
    float s[R][T::S];
    t.dot(s, q, k);
#pragma unroll
    for (int r = 0; r < R; r++) {
      if (partly) {
#pragma unroll
        for (int j = 0; j < T::S; j++) {
          const int step = at + t.lane + 16 * j;
          if (step < low[r] || step > before + from + t.row + 2 * r) s[r][j] = -INFINITY;
        }
      }
      float top = s[r][0];
#pragma unroll
      for (int j = 1; j < T::S; j++) top = fmaxf(top, s[r][j]);
#pragma unroll
      for (int m = 8; m > 0; m /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, m));
      top = fmaxf(top, largest[r]);
      const float base = top == -INFINITY ? 0.f : top;  // no key was visible so far
      const float change = exp2Approx(largest[r] - base);
      largest[r] = top, total[r] *= change;
#pragma unroll
      for (int e = 0; e < T::E; e++) sum[r][e] *= change;
#pragma unroll
      for (int j = 0; j < T::S; j++) {
        s[r][j] = guard ? probability<true>(s[r][j], base) : probability<false>(s[r][j], base);
        total[r] += s[r][j];
      }
    }
    t.put(p, s);
    t.add(sum, p, v, guard);
  }
#pragma unroll
  for (int r = 0; r < R; r++) {
#pragma unroll
    for (int m = 8; m > 0; m /= 2) total[r] += __shfl_xor_sync(~0u, total[r], m);
    const int i = t.row + 2 * r;
    if (i >= rows) continue;
    t.write(a.y + t.at(a.length, from + i), sum[r], 1.f / total[r]);
    if (a.lse && t.lane == 0) a.lse[(t.b * a.heads + t.head) * a.length + from + i] = largest[r] + log2f(total[r]);
  }
}

// scoreGradient computes dS = P∘(dP - inner), where P is not 0.
template <int R, int S> __device__ __forceinline__ void scoreGradient(float (&s)[R][S], const float (&p)[R][S], int r, int j, float inner) {
  s[r][j] = p[r][j] == 0.f ? 0.f : p[r][j] * (s[r][j] - inner);
}

template <int D, int R, int N, int TH> __device__ __forceinline__ void attentionQueries(const Attention &a) {
  using T = Tile<D, R, N, TH>;
  const T t(a);
  float *q = shared, *dy = q + T::rows * T::stride, *k = dy + T::rows * T::stride, *v = k + N * T::stride, *scores = v + N * T::stride;
  const int from = (gridDim.y - 1 - blockIdx.y) * T::rows, rows = min(T::rows, (int)a.length - from);
  const int before = a.before, steps = before + a.length;
  t.template load<T::rows>(q, a.q + t.at(a.length, from), rows, a.scale2);
  t.template load<T::rows>(dy, a.dy + t.at(a.length, from), rows, 1.f);
  int low[R];
  float sum[R][T::E], lse[R], inner[R];
#pragma unroll
  for (int r = 0; r < R; r++) {
    const int64_t i = from + min(t.row + 2 * r, rows - 1), of = (t.b * a.heads + t.head) * a.length + i;
    low[r] = t.low(i), lse[r] = a.lse[of], inner[r] = a.inner[of];
  }
  clear(sum);
  const int begin = t.low(from), highest = t.low(from + rows - 1);
  for (int at = begin; at < before + from + rows; at += N) {
    const int count = min(N, steps - at);
    __syncthreads();
    const bool bad = t.template load<N>(k, a.k + t.at(steps, at), count, 1.f);
    t.template load<N>(v, a.v + t.at(steps, at), count, 1.f);
    const bool partly = at < highest || at + N > before + from + 1;
    const bool guard = __syncthreads_or(partly && bad);
    float p[R][T::S], s[R][T::S];
    t.dot(p, q, k);
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int j = 0; j < T::S; j++) p[r][j] = exp2Approx(p[r][j] - lse[r]);
    if (partly) {
#pragma unroll
      for (int r = 0; r < R; r++)
#pragma unroll
        for (int j = 0; j < T::S; j++) {
          const int step = at + t.lane + 16 * j;
          if (step < low[r] || step > before + from + t.row + 2 * r) p[r][j] = 0.f;
        }
    }
    t.dot(s, dy, v);
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int j = 0; j < T::S; j++) scoreGradient(s, p, r, j, inner[r]);
    t.put(scores, s);
    t.add(sum, scores, k, guard);
  }
#pragma unroll
  for (int r = 0; r < R; r++)
    if (t.row + 2 * r < rows) t.write(a.dq + t.at(a.length, from + t.row + 2 * r), sum[r], a.scale);
}

template <int D, int R, int N, int TH> __device__ __forceinline__ void attentionKeys(const Attention &a) {
  using T = Tile<D, R, N, TH>;
  const T t(a);
  float *k = shared, *v = k + T::rows * T::stride, *q = v + T::rows * T::stride, *dy = q + N * T::stride, *scores = dy + N * T::stride;
  const int from = blockIdx.y * T::rows;  // the first tiles take longest
  const int before = a.before, length = a.length, steps = before + length, rows = min(T::rows, steps - from);
  const int64_t of = (t.b * a.heads + t.head) * a.length;
  t.template load<T::rows>(k, a.k + t.at(steps, from), rows, 1.f);
  t.template load<T::rows>(v, a.v + t.at(steps, from), rows, 1.f);
  float dk[R][T::E], dv[R][T::E];
  clear(dk);
  clear(dv);
  for (int at = max(0, from - before); at < length && t.low(at) < from + rows; at += N) {
    const int count = min(N, length - at);
    __syncthreads();
    bool bad = t.template load<N>(q, a.q + t.at(length, at), count, a.scale2);
    bad |= t.template load<N>(dy, a.dy + t.at(length, at), count, 1.f);
    const bool partly = count < N || before + at < from + rows - 1 || t.low(at + count - 1) > from;
    const bool guard = __syncthreads_or(partly && bad);
    float p[R][T::S], s[R][T::S], inner[T::S];
    t.dot(p, k, q);
#pragma unroll
    for (int j = 0; j < T::S; j++) {
      const int i = min(t.lane + 16 * j, count - 1);
      const float lse = a.lse[of + at + i];
      inner[j] = a.inner[of + at + i];
#pragma unroll
      for (int r = 0; r < R; r++) p[r][j] = exp2Approx(p[r][j] - lse);
      if (!partly) continue;
      const int low = t.low(at + i), last = t.lane + 16 * j < count ? before + at + i : -1;
#pragma unroll
      for (int r = 0; r < R; r++) {
        const int step = from + t.row + 2 * r;
        if (step < low || step > last) p[r][j] = 0.f;
      }
    }
    t.put(scores, p);
    t.add(dv, scores, dy, guard);
    t.dot(s, v, dy);
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int j = 0; j < T::S; j++) scoreGradient(s, p, r, j, inner[j]);
    t.put(scores, s);
    t.add(dk, scores, q, guard);
  }
#pragma unroll
  for (int r = 0; r < R; r++)
    if (t.row + 2 * r < rows) {
      const int64_t i = t.at(steps, from + t.row + 2 * r);
      if (a.dk) t.write(a.dk + i, dk[r], 0.693147180559945f);  // q was multiplied by log2(e)
      if (a.dv) t.write(a.dv + i, dv[r], 1.f);
    }
}

// ATTENTION makes the kernels of a head dimension of at most D: rows per thread, columns per tile, threads per block, and blocks per
// multiprocessor of the forward and of the backward pass.
#define ATTENTION(NAME, D, R, N, TH, FORWARD, BACKWARD)                                                                                        \
  extern "C" __global__ __launch_bounds__(TH, FORWARD) void attention_forward_##NAME(const Attention a) { attentionForward<D, R, N, TH>(a); }  \
  extern "C" __global__ __launch_bounds__(TH, BACKWARD) void attention_queries_##NAME(const Attention a) { attentionQueries<D, R, N, TH>(a); } \
  extern "C" __global__ __launch_bounds__(TH, BACKWARD) void attention_keys_##NAME(const Attention a) { attentionKeys<D, R, N, TH>(a); }
