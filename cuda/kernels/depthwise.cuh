// The depthwise convolution of planes with a kernel of 3 by 3, a stride of 1 and padding that keeps the size. in[0] counts as a part of the batch.
//
// A thread has V channels of a column and goes down some rows. It reads each row once, in three columns, of which the caches have two, and adds it to the sums of
// the three rows of the result that it belongs to.
#include "gridconv.cuh"

// Three is a row's V channels of three neighbouring columns.
template <class T, int V> struct Three {
  Pack<T, V> left, middle, right;
  __device__ __forceinline__ void read(const T *p, int32_t step, bool inside, bool hasLeft, bool hasRight) {
    left.clear(), middle.clear(), right.clear();
    if (inside) middle.read(p);
    if (inside && hasLeft) left.read(p - step);
    if (inside && hasRight) right.read(p + step);
  }
};

// loadFloats reads V floats, of which there may be eight.
template <int V> __device__ __forceinline__ void loadFloats(const float *p, float (&x)[V]) {
  if constexpr (V == 8) {
    float a[4], b[4];
    load<4>(p, a), load<4>(p + 4, b);
#pragma unroll
    for (int v = 0; v < 4; v++) x[v] = a[v], x[v + 4] = b[v];
  } else {
    load<V>(p, x);
  }
}

enum Epilogue { NONE, SILU, SLOPE };

// depthwiseForward writes y for rows rows of a plane: the sums, or silu of the sums, or dy times the slope of silu at the sums. U is how many rows it reads ahead.
template <class T, int V, int U, Epilogue E>
__device__ __forceinline__ void depthwiseForward(const GridConv &g, const T *x, const float *taps, const float *bias, const T *dy, T *y, int32_t rows) {
  const int32_t vectors = g.channels / V, height = g.in[1], line = g.in[2] * vectors, blocks = (line + blockDim.x - 1) / blockDim.x;
  const int32_t p = blockIdx.x % blocks * blockDim.x + threadIdx.x, first = blockIdx.y * rows, end = min(first + rows, height);
  if (p >= line) return;
  const int32_t column = p / vectors, c = p % vectors * V;
  const bool hasLeft = column > 0, hasRight = column + 1 < g.in[2];
  const int64_t plane = (int64_t)(blockIdx.x / blocks) * height * line, step = (int64_t)line * V;
  const T *from = x + (plane + p) * V + (first - 1) * step;  // of the next row to read
  float w[9][V], b[V], sum[3][V];
#pragma unroll
  for (int t = 0; t < 9; t++) loadFloats<V>(taps + t * g.channels + c, w[t]);
#pragma unroll
  for (int v = 0; v < V; v++) b[v] = 0.f;
  if (bias) loadFloats<V>(bias + c, b);
#pragma unroll
  for (int v = 0; v < V; v++) sum[0][v] = sum[1][v] = b[v];
  Three<T, V> ahead[U];
  Pack<T, V> slope[U];
  int32_t next = first - 1;
  const int64_t at = (plane + p) * V;
  auto read = [&](int u) {
    ahead[u].read(from, g.channels, next <= end && within(next, height), hasLeft, hasRight);
    if (E == SLOPE && next - 1 >= first && next - 1 < end) slope[u].read(dy + at + (next - 1) * step);
    next++, from += step;
  };
#pragma unroll
  for (int u = 0; u < U; u++) read(u);
  for (int32_t r = first - 1; r <= end; r += U) {
#pragma unroll
    for (int u = 0; u < U; u++) {
      if (r + u > end) break;
      const Three<T, V> now = ahead[u];
      const Pack<T, V> d = slope[u];
      read(u);
      float out[V];
#pragma unroll
      for (int v = 0; v < V; v++) {
        const float l = now.left.at(v), m = now.middle.at(v), rt = now.right.at(v);
        const float s = fmaf(w[8][v], rt, fmaf(w[7][v], m, fmaf(w[6][v], l, sum[0][v])));
        sum[0][v] = fmaf(w[5][v], rt, fmaf(w[4][v], m, fmaf(w[3][v], l, sum[1][v])));
        sum[1][v] = fmaf(w[2][v], rt, fmaf(w[1][v], m, fmaf(w[0][v], l, b[v])));
        if (E == NONE) {
          out[v] = s;
        } else {
          const float sig = sigmoid(s);
          out[v] = E == SILU ? s * sig : d.at(v) * sig * fmaf(s, 1.f - sig, 1.f);
        }
      }
      const int32_t row = r + u - 1;
      if (row >= first && row < end) store<V>(y + at + row * step, out);
    }
  }
}

// depthwiseBackward writes dx, and parts (gridDim.y, 10, channels): the block's sums for the gradients of the taps and, in the last row, of the bias. A block has
// across vectors of channels in each of blockDim.x / across columns. It goes through tiles of rows rows, every gridDim.y-th of all.
template <class T, int V>
__device__ __forceinline__ void depthwiseBackward(const GridConv &g, const T *x, const float *taps, const T *dy, T *dx, float *parts, int32_t rows, int32_t across) {
  extern __shared__ float sums[];
  const int32_t height = g.in[1], width = g.in[2], together = blockDim.x / across;
  const int32_t lane = threadIdx.x % across, own = threadIdx.x / across, c = (blockIdx.x * across + lane) * V;
  const int32_t tiles = (height + rows - 1) / rows, groups = (width + together - 1) / together;
  const bool has = c < g.channels && own < together;
  float w[9][V], dw[10][V];
#pragma unroll
  for (int t = 0; t < 10; t++)
#pragma unroll
    for (int v = 0; v < V; v++) dw[t][v] = 0.f;
#pragma unroll
  for (int t = 0; t < 9; t++)
    if (has) loadFloats<V>(taps + t * g.channels + c, w[t]);
  const int64_t step = (int64_t)width * g.channels, items = g.batch * g.in[0] * tiles * groups;
  for (int64_t item = blockIdx.y; item < items; item += gridDim.y) {
    const int32_t column = (int32_t)(item % groups) * together + own, first = (int32_t)(item / groups % tiles) * rows, end = min(first + rows, height);
    if (!has || column >= width) continue;
    const bool hasLeft = column > 0, hasRight = column + 1 < width;
    const int64_t at = (item / groups / tiles * height * width + column) * g.channels + c;
    float sum[2][V], before[2][V];  // of the next two rows of dx; dy of the last two rows of the tile
#pragma unroll
    for (int v = 0; v < V; v++) sum[0][v] = sum[1][v] = before[0][v] = before[1][v] = 0.f;
    Three<T, V> aheadX, aheadD;
    auto read = [&](int32_t r) {
      aheadD.read(dy + at + r * step, g.channels, r <= end && within(r, height), hasLeft, hasRight);
      aheadX.read(x + at + (r - 1) * step, g.channels, r >= first && r <= end + 1 && within(r - 1, height), hasLeft, hasRight);
    };
    read(first - 1);
    for (int32_t r = first - 1; r <= end + 1; r++) {
      const Three<T, V> a = aheadX, d = aheadD;
      read(r + 1);
      const bool ours = r >= first && r < end;
      float out[V];
#pragma unroll
      for (int v = 0; v < V; v++) {
        const float dl = d.left.at(v), dm = d.middle.at(v), dr = d.right.at(v), al = a.left.at(v), am = a.middle.at(v), ar = a.right.at(v);
        out[v] = fmaf(w[2][v], dl, fmaf(w[1][v], dm, fmaf(w[0][v], dr, sum[0][v])));
        sum[0][v] = fmaf(w[5][v], dl, fmaf(w[4][v], dm, fmaf(w[3][v], dr, sum[1][v])));
        sum[1][v] = fmaf(w[8][v], dl, fmaf(w[7][v], dm, w[6][v] * dr));
        const float d0 = ours ? dm : 0.f;
        dw[0][v] = fmaf(d0, al, dw[0][v]), dw[1][v] = fmaf(d0, am, dw[1][v]), dw[2][v] = fmaf(d0, ar, dw[2][v]);
        dw[3][v] = fmaf(before[0][v], al, dw[3][v]), dw[4][v] = fmaf(before[0][v], am, dw[4][v]), dw[5][v] = fmaf(before[0][v], ar, dw[5][v]);
        dw[6][v] = fmaf(before[1][v], al, dw[6][v]), dw[7][v] = fmaf(before[1][v], am, dw[7][v]), dw[8][v] = fmaf(before[1][v], ar, dw[8][v]);
        dw[9][v] += d0;
        before[1][v] = before[0][v], before[0][v] = d0;
      }
      if (r - 1 >= first && r - 1 < end) store<V>(dx + at + (r - 1) * step, out);
    }
  }
  // The columns' sums are added in order.
  for (int t = 0; t < 10; t++) {
    __syncthreads();
    if (own < together)
#pragma unroll
      for (int v = 0; v < V; v++) sums[(own * across + lane) * V + v] = dw[t][v];
    __syncthreads();
    for (int i = threadIdx.x; i < across * V; i += blockDim.x) {
      const int32_t channel = blockIdx.x * across * V + i;
      if (channel >= g.channels) break;
      float sum = 0.f;
      for (int k = 0; k < together; k++) sum += sums[k * across * V + i];
      parts[((int64_t)blockIdx.y * 10 + t) * g.channels + channel] = sum;
    }
  }
}
