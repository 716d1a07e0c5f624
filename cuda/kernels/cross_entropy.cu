// The mean of -log softmax(logits)_target over the targets that are not ignore. GROUP threads process a row.
#include "vector.cuh"

// counts reports whether a target is a token. The host finds one that is wrong later.
__device__ __forceinline__ bool counts(int32_t target, int64_t vocabulary, int32_t ignore) {
  return target != ignore && target >= 0 && target < vocabulary;
}

// Sum is a running Σ e^(x - most), where most is the largest x so far.
struct Sum {
  float most, sum;
  __device__ __forceinline__ void add(float m, float s) {
    const float top = fmaxf(most, m);
    if (top == -INFINITY) {
      sum += s;  // which may be NaN; other sums are multiplied by 0 when a larger x comes
      return;
    }
    sum = sum * __expf(most - top) + s * __expf(m - top), most = top;
  }
};

template <int GROUP> __device__ __forceinline__ Sum groupSum(Sum v) {
#pragma unroll
  for (int m = GROUP < 32 ? GROUP / 2 : 16; m > 0; m /= 2) {
    const Sum o = {__shfl_xor_sync(~0u, v.most, m), __shfl_xor_sync(~0u, v.sum, m)};
    // Both lanes add in the same order, so that they get the same result bit for bit.
    Sum low = threadIdx.x & m ? o : v;
    const Sum high = threadIdx.x & m ? v : o;
    low.add(high.most, high.sum);
    v = low;
  }
  if constexpr (GROUP > 32) {
    __shared__ Sum warps[GROUP / 32];
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    v = warps[0];
    for (int i = 1; i < GROUP / 32; i++) v.add(warps[i].most, warps[i].sum);
  }
  return v;
}

// rowSum returns the sum of a row, to all threads of its group.
template <class T, int GROUP> __device__ __forceinline__ Sum rowSum(const T *x, int64_t vocabulary) {
  const int lane = threadIdx.x % GROUP;
  Sum s = {-INFINITY, 0.f};
  int64_t i = lane;
  for (; i + 3 * GROUP < vocabulary; i += 4 * GROUP) {  // four logits for each rescaling of the sum
    const float a = value(x[i]), b = value(x[i + GROUP]), c = value(x[i + 2 * GROUP]), d = value(x[i + 3 * GROUP]);
    const float m = fmaxf(fmaxf(a, b), fmaxf(c, d));
    if (m != m || a != a || b != b || c != c || d != d)
      s = {NAN, NAN};
    else if (m > -INFINITY)
      s.add(m, __expf(a - m) + __expf(b - m) + __expf(c - m) + __expf(d - m));
  }
  for (; i < vocabulary; i += GROUP) {
    const float a = value(x[i]);
    if (a != a)
      s = {NAN, NAN};
    else
      s.add(a, 1.f);
  }
  return groupSum<GROUP>(s);
}

template <class T>
__device__ __forceinline__ void rowLoss(const Sum &s, const T *x, int32_t target, float *lse, float *loss, int64_t vocabulary, int32_t ignore) {
  *lse = s.most + logf(s.sum);
  *loss = counts(target, vocabulary, ignore) ? *lse - value(x[target]) : 0.f;
}

template <class T, int GROUP>
__device__ __forceinline__ void entropyForward(const T *logits, const int32_t *targets, float *lse, float *losses, int64_t rows, int64_t vocabulary, int64_t stride, int32_t ignore) {
  takeOver();
  const int64_t own = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / GROUP, row = min(own, rows - 1);  // all groups of a warp run together
  const T *x = logits + row * stride;
  const Sum s = rowSum<T, GROUP>(x, vocabulary);
  if (threadIdx.x % GROUP == 0 && own < rows) rowLoss(s, x, targets[row], lse + row, losses + row, vocabulary, ignore);
}

// RowGradient is the gradient of the loss of one row, softmax - onehot, or 0 if the row does not count. Of the threads that share the row, the one with the target's logit
// writes the loss.
struct RowGradient {
  float lse;
  int32_t target;
  bool learned;
  float *loss;
  __device__ __forceinline__ RowGradient(const Sum &s, int32_t target, float *loss, bool first, int64_t vocabulary, int32_t ignore)
      : lse(s.most + logf(s.sum)), target(target), learned(counts(target, vocabulary, ignore)), loss(loss) {
    if (first && !learned) *loss = 0.f;
  }
  __device__ __forceinline__ float operator()(float x, int64_t i) const {
    if (!learned) return 0.f;
    const float p = __expf(x - lse);
    if (i != target) return p;
    *loss = lse - x;
    return p - 1.f;
  }
};

// entropyGradient is entropyForward that replaces the logits by the gradient of the sum of the losses.
template <class T, int GROUP>
__device__ __forceinline__ void entropyGradient(T *logits, const int32_t *targets, float *losses, int64_t rows, int64_t vocabulary, int64_t stride, int32_t ignore) {
  takeOver();
  const int64_t own = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / GROUP, row = min(own, rows - 1);
  T *x = logits + row * stride;
  const Sum s = rowSum<T, GROUP>(x, vocabulary);
  if (own >= rows) return;
  const int lane = threadIdx.x % GROUP;
  const RowGradient gradient(s, targets[row], losses + row, lane == 0, vocabulary, ignore);
  for (int64_t i = lane; i < vocabulary; i += GROUP) x[i] = to<T>(gradient(value(x[i]), i));
}

// entropy_mean writes the mean to loss, added in double in a fixed order. It sets state[2·rows] to 1 / the number of targets that are not
// ignore, or to 0 if there are none.
extern "C" __global__ void entropy_mean(const int32_t *targets, float *state, float *loss, int64_t rows, int32_t ignore) {
  __shared__ double sums[1024];
  __shared__ int64_t counts[1024];
  takeOver();
  const int tid = threadIdx.x;
  double sum = 0;
  int64_t count = 0;
#pragma unroll 8
  for (int64_t i = tid; i < rows; i += 1024) sum += state[rows + i], count += targets[i] != ignore;
  sums[tid] = sum, counts[tid] = count;
  for (int m = 512; m > 0; m /= 2) {
    __syncthreads();
    if (tid < m) sums[tid] += sums[tid + m], counts[tid] += counts[tid + m];
  }
  if (tid == 0) {
    loss[0] = counts[0] ? (float)(sums[0] / counts[0]) : 0.f;
    state[2 * rows] = counts[0] ? (float)(1. / counts[0]) : 0.f;
  }
}

template <class T>
__device__ __forceinline__ void entropyBackward(T *logits, const int32_t *targets, const float *state, const float *dloss, int64_t rows, int64_t vocabulary, int64_t stride, int32_t ignore, int64_t blocks) {
  takeOver();
  const int64_t row = blockIdx.x / blocks;
  const int32_t target = targets[row];
  const float lse = state[row], scale = dloss[0] * state[2 * rows];
  T *x = logits + row * stride;
  const int64_t step = blocks * blockDim.x;
#pragma unroll 4
  for (int64_t i = blockIdx.x % blocks * blockDim.x + threadIdx.x; i < vocabulary; i += step)
    x[i] = to<T>(target == ignore ? 0.f : (__expf(value(x[i]) - lse) - (i == target ? 1.f : 0.f)) * scale);
}

// For a small vocabulary, a thread processes one logit and a block several rows.
template <class T>
__device__ __forceinline__ void entropyBackwardSmall(T *logits, const int32_t *targets, const float *state, const float *dloss, int64_t rows, int64_t vocabulary, int64_t stride, int32_t ignore) {
  takeOver();
  const int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= rows * vocabulary) return;
  const int64_t row = at / vocabulary, i = at % vocabulary;
  const int32_t target = targets[row];
  T *x = logits + row * stride + i;
  *x = to<T>(target == ignore ? 0.f : (__expf(value(*x) - state[row]) - (i == target ? 1.f : 0.f)) * dloss[0] * state[2 * rows]);
}

// headFew computes the losses of the logits x (rows, in) · wᵀ for a small vocabulary and few columns, and unless dx is null the gradients of their sum: dx (rows, in), and parts
// (gridDim.x, vocabulary, in) of that of w. A block has 64 rows at a time in shared memory, and a thread 4 by 4 results of each product. in is a multiple of four.
constexpr int FEW = 16, FEW_IN = 64, FEW_ROWS = 64;
template <class T>
__device__ __forceinline__ void headFew(const T *x, const T *w, const int32_t *targets, float *losses, float *dx, float *parts, int64_t rows, int vocabulary, int in, int32_t ignore) {
  constexpr int STEP = FEW_IN + 4;  // rows begin in different banks
  __shared__ __align__(16) float xs[FEW_ROWS][STEP], ws[FEW][STEP], gs[FEW_ROWS][FEW + 4];
  const int tid = threadIdx.x, down = tid / 16, column = tid % 16 * 4, own = tid / 4, lane = tid % 4, some = tid / 4 % 4 * 4, tokens = down % 4 * 4, share = tid / 64 * 16;
  takeOver();
  float v[4] = {};
  if (down < vocabulary && column < in) load<4>(w + down * in + column, v);
  store<4>(&ws[down][column], v);
  float dw[4][4] = {};
  for (int64_t from = (int64_t)blockIdx.x * FEW_ROWS; from < rows; from += (int64_t)gridDim.x * FEW_ROWS) {
    const int64_t row = from + own;
    const int32_t target = row < rows ? targets[row] : ignore;
    float v[4][4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (from + down + i * 16 < rows && column < in) load<4>(x + (from + down + i * 16) * in + column, v[i]);
#pragma unroll
    for (int i = 0; i < 4; i++) store<4>(&xs[down + i * 16][column], v[i]);
    __syncthreads();
    // Logits of four rows and the tokens from some on. Four lanes share the numbers of a row, and then each has one of the rows.
    float sum[4][4] = {};
#pragma unroll 1
    for (int at = lane * 4; at < FEW_IN; at += 16) {
      float a[4][4], b[4][4];
#pragma unroll
      for (int i = 0; i < 4; i++) load<4>(&xs[down * 4 + i][at], a[i]), load<4>(&ws[some + i][at], b[i]);
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
          for (int k = 0; k < 4; k++) sum[i][j] = fmaf(a[i][k], b[j][k], sum[i][j]);
    }
#pragma unroll
    for (int m = 2; m > 0; m /= 2)
#pragma unroll
      for (int i = 0; i < m; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const bool upper = lane & m;
          sum[i][j] = (upper ? sum[i + m][j] : sum[i][j]) + __shfl_xor_sync(~0u, upper ? sum[i][j] : sum[i + m][j], m);
        }
    store<4>(&gs[down * 4 + lane][some], sum[0]);
    __syncwarp();
    const Sum s = rowSum<float, 4>(gs[own], vocabulary);
    float none;
    const RowGradient gradient(s, target, row < rows ? losses + row : &none, lane == 0, vocabulary, ignore);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int i = lane + 4 * j;
      gs[own][i] = i < vocabulary ? gradient(gs[own][i], i) : 0.f;
    }
    __syncthreads();
    if (dx) {
      float d[4][4] = {};
#pragma unroll 1
      for (int t = 0; t < FEW; t += 4) {
        float a[4][4], b[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) load<4>(&gs[down * 4 + i][t], a[i]), load<4>(&ws[t + i][column], b[i]);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
          for (int k = 0; k < 4; k++)
#pragma unroll
            for (int j = 0; j < 4; j++) d[i][j] = fmaf(a[i][k], b[k][j], d[i][j]);
      }
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (from + down * 4 + i < rows && column < in) store<4>(dx + (from + down * 4 + i) * in + column, d[i]);
      float add[4][4] = {};
#pragma unroll 4
      for (int r = share; r < share + 16; r++) {
        float g[4], a[4];
        load<4>(&gs[r][tokens], g), load<4>(&xs[r][column], a);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
          for (int j = 0; j < 4; j++) add[i][j] = fmaf(g[i], a[j], add[i][j]);
      }
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) dw[i][j] += add[i][j];
    }
    __syncthreads();
  }
  if (!dx) return;
  // The quarters of the block add up in order.
#pragma unroll
  for (int i = 0; i < 4; i++) store<4>(&xs[share + tokens + i][column], dw[i]);
  __syncthreads();
  float all[4] = {};
#pragma unroll
  for (int q = 0; q < 4; q++) {
    float a[4];
    load<4>(&xs[q * 16 + down][column], a);
#pragma unroll
    for (int j = 0; j < 4; j++) all[j] += a[j];
  }
  if (down < vocabulary && column < in) store<4>(parts + ((int64_t)blockIdx.x * vocabulary + down) * in + column, all);
}

// rowSumVectors is rowSum for a block of GROUP threads, which reads V logits at a time. The row begins at a multiple of V logits.
template <class T, int V, int U, int GROUP> __device__ __forceinline__ Sum rowSumVectors(const T *x, int64_t vocabulary) {
  Sum s = {-INFINITY, 0.f};
  const int whole = (int)(vocabulary / V);
  auto add = [&](const float *v, int n) {  // n logits for each rescaling of the sum
    float m = v[0];
#pragma unroll
    for (int k = 1; k < n; k++) m = fmaxf(m, v[k]);
    if (m > -INFINITY) {
      float sum = 0.f;  // NaN if a logit is NaN
#pragma unroll
      for (int k = 0; k < n; k++) sum += __expf(v[k] - m);
      s.add(m, sum);
    } else {
#pragma unroll
      for (int k = 0; k < n; k++)
        if (v[k] != v[k]) s = {NAN, NAN};
    }
  };
  for (int i = threadIdx.x; i < whole; i += U * GROUP) {
    float v[U][V];
#pragma unroll
    for (int u = 0; u < U; u++)
      if (i + u * GROUP < whole) load<V>(x + (int64_t)(i + u * GROUP) * V, v[u]);
#pragma unroll
    for (int u = 0; u < U; u++)
      if (i + u * GROUP < whole) add(v[u], V);
  }
  if (threadIdx.x < vocabulary - (int64_t)whole * V) {
    const float v = value(x[(int64_t)whole * V + threadIdx.x]);
    add(&v, 1);
  }
  return groupSum<GROUP>(s);
}

// entropyForwardRow is entropyForward for a block of GROUP threads with rowSumVectors.
template <class T, int V, int U, int GROUP>
__device__ __forceinline__ void entropyForwardRow(const T *logits, const int32_t *targets, float *lse, float *losses, int64_t vocabulary, int64_t stride, int32_t ignore) {
  takeOver();
  const T *x = logits + blockIdx.x * stride;
  const Sum s = rowSumVectors<T, V, U, GROUP>(x, vocabulary);
  if (threadIdx.x == 0) rowLoss(s, x, targets[blockIdx.x], lse + blockIdx.x, losses + blockIdx.x, vocabulary, ignore);
}

// entropyGradientRow is entropyGradient for a block of GROUP threads with rowSumVectors. It reads the row a second time, from the cache of all multiprocessors: their rows fit
// there together if few blocks run on each, so GROUP is large.
template <class T, int V, int U, int GROUP>
__device__ __forceinline__ void entropyGradientRow(T *logits, const int32_t *targets, float *losses, int64_t vocabulary, int64_t stride, int32_t ignore) {
  takeOver();
  T *x = logits + blockIdx.x * stride;
  const RowGradient gradient(rowSumVectors<T, V, U, GROUP>(x, vocabulary), targets[blockIdx.x], losses + blockIdx.x, threadIdx.x == 0, vocabulary, ignore);
  const int whole = (int)(vocabulary / V);
  for (int i = threadIdx.x; i < whole; i += U * GROUP) {
    float v[U][V];
#pragma unroll
    for (int u = 0; u < U; u++)
      if (i + u * GROUP < whole) load<V>(x + (int64_t)(i + u * GROUP) * V, v[u]);
#pragma unroll
    for (int u = 0; u < U; u++) {
      const int at = i + u * GROUP;
      if (at < whole) {
#pragma unroll
        for (int k = 0; k < V; k++) v[u][k] = gradient(v[u][k], at * (int64_t)V + k);
        store<V>(x + (int64_t)at * V, v[u]);
      }
    }
  }
  const int64_t rest = (int64_t)whole * V + threadIdx.x;
  if (rest < vocabulary) x[rest] = to<T>(gradient(value(x[rest]), rest));
}

// entropy_scale writes the gradients a (n) and b (m) of the mean from those of the sum, which lie one after the other in x.
extern "C" __global__ void entropy_scale(const float *x, const float *state, const float *dloss, float *a, float *b, int64_t rows, int64_t n, int64_t m) {
  takeOver();
  const float scale = dloss[0] * state[2 * rows];
  const int64_t first = (int64_t)blockIdx.x * 4 * blockDim.x + threadIdx.x;
#pragma unroll
  for (int k = 0; k < 4; k++) {
    const int64_t i = first + k * blockDim.x;
    if (i < n + m) *(i < n ? a + i : b + (i - n)) = scale * x[i];
  }
}

// entropyBackwardRow is entropyBackward for rows that begin at multiples of V logits. A thread processes U times V logits.
template <class T, int V, int U>
__device__ __forceinline__ void entropyBackwardRow(T *logits, const int32_t *targets, const float *state, const float *dloss, int64_t rows, int64_t vocabulary, int64_t stride, int32_t ignore, int64_t blocks) {
  takeOver();
  const int64_t row = blockIdx.x / blocks;
  const int32_t target = targets[row];
  const float lse = state[row], scale = target == ignore ? 0.f : dloss[0] * state[2 * rows];
  T *x = logits + row * stride;
  const int first = (int)(blockIdx.x % blocks * blockDim.x) * U + threadIdx.x, whole = (int)(vocabulary / V);
  auto gradient = [&](float v, int64_t i) { return target == ignore ? 0.f : (__expf(v - lse) - (i == target ? 1.f : 0.f)) * scale; };
  float v[U][V];
#pragma unroll
  for (int u = 0; u < U; u++)
    if (first + u * (int)blockDim.x < whole) load<V>(x + (int64_t)(first + u * blockDim.x) * V, v[u]);
#pragma unroll
  for (int u = 0; u < U; u++) {
    const int at = first + u * blockDim.x;
    if (at < whole) {
#pragma unroll
      for (int k = 0; k < V; k++) v[u][k] = gradient(v[u][k], at * (int64_t)V + k);
      store<V>(x + (int64_t)at * V, v[u]);
    }
  }
  const int64_t rest = (int64_t)whole * V + threadIdx.x;
  if (blockIdx.x % blocks == 0 && rest < vocabulary) x[rest] = to<T>(gradient(value(x[rest]), rest));
}

#define HEAD_FEW(NAME, T)                                                                                                                                   \
  extern "C" __global__ __launch_bounds__(256) void head_few_##NAME(const T *x, const T *w, const int32_t *t, float *losses, float *dx, float *parts,       \
                                                                    int64_t rows, int64_t vocabulary, int64_t in, int32_t ignore) {                         \
    headFew<T>(x, w, t, losses, dx, parts, rows, (int)vocabulary, (int)in, ignore);                                                                         \
  }
HEAD_FEW(float, float)
HEAD_FEW(bf16, bf16)

#define ENTROPY(NAME, T, V)                                                                                                                                  \
  extern "C" __global__ void entropy_forward_##NAME##_4(const T *x, const int32_t *t, float *s, float *l, int64_t r, int64_t v, int64_t p, int32_t i) {      \
    entropyForward<T, 4>(x, t, s, l, r, v, p, i);                                                                                                            \
  }                                                                                                                                                          \
  extern "C" __global__ void entropy_forward_##NAME##_32(const T *x, const int32_t *t, float *s, float *l, int64_t r, int64_t v, int64_t p, int32_t i) {     \
    entropyForward<T, 32>(x, t, s, l, r, v, p, i);                                                                                                           \
  }                                                                                                                                                          \
  extern "C" __global__ void entropy_forward_##NAME##_512(const T *x, const int32_t *t, float *s, float *l, int64_t r, int64_t v, int64_t p, int32_t i) {    \
    entropyForward<T, 512>(x, t, s, l, r, v, p, i);                                                                                                          \
  }                                                                                                                                                          \
  extern "C" __global__ __launch_bounds__(512) void entropy_forward_##NAME##_vectors(const T *x, const int32_t *t, float *s, float *l, int64_t r, int64_t v, \
                                                                                     int64_t p, int32_t i) {                                                 \
    entropyForwardRow<T, V, 2, 512>(x, t, s, l, v, p, i);                                                                                                    \
  }                                                                                                                                                          \
  extern "C" __global__ void entropy_gradient_##NAME##_4(T *x, const int32_t *t, float *l, int64_t r, int64_t v, int64_t p, int32_t i) {                     \
    entropyGradient<T, 4>(x, t, l, r, v, p, i);                                                                                                              \
  }                                                                                                                                                          \
  extern "C" __global__ void entropy_gradient_##NAME##_32(T *x, const int32_t *t, float *l, int64_t r, int64_t v, int64_t p, int32_t i) {                    \
    entropyGradient<T, 32>(x, t, l, r, v, p, i);                                                                                                             \
  }                                                                                                                                                          \
  extern "C" __global__ __launch_bounds__(512) void entropy_gradient_##NAME##_vectors(T *x, const int32_t *t, float *l, int64_t r, int64_t v, int64_t p,     \
                                                                                      int32_t i) {                                                           \
    entropyGradientRow<T, V, 2, 512>(x, t, l, v, p, i);                                                                                                      \
  }                                                                                                                                                          \
  extern "C" __global__ void entropy_backward_##NAME(T *x, const int32_t *t, const float *s, const float *d, int64_t r, int64_t v, int64_t p, int32_t i,     \
                                                     int64_t blocks) {                                                                                       \
    entropyBackward<T>(x, t, s, d, r, v, p, i, blocks);                                                                                                      \
  }                                                                                                                                                          \
  extern "C" __global__ void entropy_backward_small_##NAME(T *x, const int32_t *t, const float *s, const float *d, int64_t r, int64_t v, int64_t p,          \
                                                           int32_t i) {                                                                                      \
    entropyBackwardSmall<T>(x, t, s, d, r, v, p, i);                                                                                                         \
  }                                                                                                                                                          \
  extern "C" __global__ void entropy_backward_##NAME##_vectors(T *x, const int32_t *t, const float *s, const float *d, int64_t r, int64_t v, int64_t p,      \
                                                               int32_t i, int64_t blocks) {                                                                  \
    entropyBackwardRow<T, V, 4>(x, t, s, d, r, v, p, i, blocks);                                                                                             \
  }
ENTROPY(float, float, 4)
ENTROPY(bf16, bf16, 8)
