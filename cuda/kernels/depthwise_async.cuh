// The kernels of depthwise.cuh for compute capability 8.0: rows are copied to shared memory some rows ahead, without waiting for them.
#pragma once
#include "depthwise.cuh"
#include "mma.cuh"

// RowRing copies rows of a tile of columns from and with V channels for each lane, with one column more at each side. A row of shared memory has
// (together + 2)·across vectors.
template <int V> struct RowRing {
  const float *from[2];  // of the row before the first, for the vectors that the thread copies
  bool has[2];
  int32_t slot[2], size;
  int64_t step;
  float *place0;
  int32_t height;

  __device__ __forceinline__ RowRing(const GridConv &g, const float *plane, float *shared, int32_t column, int32_t together, int32_t channel, int32_t across) {
    size = (together + 2) * across, place0 = shared, height = g.in[1], step = (int64_t)g.in[2] * g.channels;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int32_t i = threadIdx.x + j * blockDim.x, at = column - 1 + i / across, c = channel + i % across * V;
      slot[j] = i < size ? i : -1;
      has[j] = i < size && within(at, g.in[2]) && c < g.channels;
      from[j] = plane + (int64_t)(has[j] ? at : 0) * g.channels + (has[j] ? c : 0);
    }
  }
  // copy begins to copy row r to a place of the ring. A row outside of the plane is zeros.
  __device__ __forceinline__ void copy(int32_t r, int32_t place, bool wanted) {
    const bool inside = wanted && within(r, height);
#pragma unroll
    for (int j = 0; j < 2; j++)
      if (slot[j] >= 0) copyLater<4 * V>(place0 + ((int64_t)place * size + slot[j]) * V, from[j] + (inside && has[j] ? r * step : 0), inside && has[j]);
  }
};

// depthwiseForwardAsync is depthwiseForward. The ring has S rows. If E is SLOPE, the thread's own vectors of dy follow it.
template <int S, Epilogue E>
__device__ __forceinline__ void depthwiseForwardAsync(const GridConv &g, const float *x, const float *taps, const float *bias, const float *dy, float *y, int32_t rows,
                                                      int32_t across) {
  constexpr int V = 4;
  extern __shared__ __align__(16) float shared[];
  const int32_t height = g.in[1], width = g.in[2], together = blockDim.x / across, lane = threadIdx.x % across, own = threadIdx.x / across;
  const int32_t chunks = (g.channels / V + across - 1) / across, groups = (width + together - 1) / together;
  const int32_t channel = blockIdx.x % chunks * across * V, c = channel + lane * V, column = blockIdx.x / chunks % groups * together;
  const int32_t first = blockIdx.y * rows, end = min(first + rows, height);
  const int64_t plane = (int64_t)(blockIdx.x / chunks / groups) * height * width * g.channels;
  RowRing<V> in(g, x + plane, shared, column, together, channel, across);
  const bool has = c < g.channels && column + own < width;
  const int32_t safe = has ? c : 0;
  const int64_t at = plane + (int64_t)(column + own) * g.channels + c;
  float *slopes = shared + (S * in.size + threadIdx.x) * V;
  auto copy = [&](int32_t r, int32_t place) {
    in.copy(r, place, r <= end);
    if (E == SLOPE && has && r - 1 >= first && r - 1 < end) copyLater<4 * V>(slopes + place * blockDim.x * V, dy + at + (r - 1) * in.step, true);
    commitCopies();
  };
#pragma unroll
  for (int k = 0; k < S - 1; k++) copy(first - 1 + k, k);
  float w[9][V], b[V], sum[2][V];
#pragma unroll
  for (int t = 0; t < 9; t++) load<V>(taps + t * g.channels + safe, w[t]);
#pragma unroll
  for (int v = 0; v < V; v++) b[v] = 0.f;
  if (bias) load<V>(bias + safe, b);
#pragma unroll
  for (int v = 0; v < V; v++) sum[0][v] = sum[1][v] = b[v];
  int32_t place = 0;
  for (int32_t r = first - 1; r <= end; r++) {
    copiedBut<S - 2>();
    __syncthreads();
    copy(r + S - 1, place == 0 ? S - 1 : place - 1);
    const float *row = shared + ((int64_t)place * in.size + own * across + lane) * V;
    const int32_t o = r - 1;
    const bool write = has && o >= first && o < end;
    float l[V], m[V], rt[V], out[V], d[V];
    if (E == SLOPE && write) load<V>(slopes + place * blockDim.x * V, d);
    place = place == S - 1 ? 0 : place + 1;
    load<V>(row, l), load<V>(row + across * V, m), load<V>(row + 2 * across * V, rt);
#pragma unroll
    for (int v = 0; v < V; v++) {
      const float s = fmaf(w[8][v], rt[v], fmaf(w[7][v], m[v], fmaf(w[6][v], l[v], sum[0][v])));
      sum[0][v] = fmaf(w[5][v], rt[v], fmaf(w[4][v], m[v], fmaf(w[3][v], l[v], sum[1][v])));
      sum[1][v] = fmaf(w[2][v], rt[v], fmaf(w[1][v], m[v], fmaf(w[0][v], l[v], b[v])));
      if (E == NONE) {
        out[v] = s;
      } else {
        const float sig = sigmoid(s);
        out[v] = E == SILU ? s * sig : d[v] * sig * fmaf(s, 1.f - sig, 1.f);
      }
    }
    if (write) store<V>(y + at + o * in.step, out);
  }
}

// depthwiseBackwardAsync is depthwiseBackward.
template <int V, int S>
__device__ __forceinline__ void depthwiseBackwardAsync(const GridConv &g, const float *x, const float *taps, const float *dy, float *dx, float *parts, int32_t rows,
                                                       int32_t across) {
  extern __shared__ __align__(16) float shared[];
  const int32_t height = g.in[1], width = g.in[2], together = blockDim.x / across, lane = threadIdx.x % across, own = threadIdx.x / across;
  const int32_t channel = blockIdx.x * across * V, c = channel + lane * V, tiles = (height + rows - 1) / rows, groups = (width + together - 1) / together;
  const bool has = c < g.channels;
  float w[9][V], dw[10][V];
#pragma unroll
  for (int t = 0; t < 10; t++)
#pragma unroll
    for (int v = 0; v < V; v++) dw[t][v] = 0.f;
#pragma unroll
  for (int t = 0; t < 9; t++) load<V>(taps + t * g.channels + (has ? c : 0), w[t]);
  const int64_t step = (int64_t)width * g.channels, items = g.batch * g.in[0] * tiles * groups;
  for (int64_t item = blockIdx.y; item < items; item += gridDim.y) {
    const int32_t column = (int32_t)(item % groups) * together, first = (int32_t)(item / groups % tiles) * rows, end = min(first + rows, height);
    const int64_t plane = item / groups / tiles * height * step, at = plane + (int64_t)(column + own) * g.channels + c;
    const bool mine = has && column + own < width;
    RowRing<V> inX(g, x + plane, shared, column, together, channel, across);
    RowRing<V> inD(g, dy + plane, shared + S * inX.size * V, column, together, channel, across);
    copiedBut<0>();  // rows past the end of the item before are zeros on their way to the same places
    __syncthreads();  // the rows of the item before have been read
    auto copy = [&](int32_t r, int32_t place) {
      inD.copy(r, place, r <= end);
      inX.copy(r - 1, place, r >= first && r <= end + 1);
      commitCopies();
    };
#pragma unroll
    for (int k = 0; k < S - 1; k++) copy(first - 1 + k, k);
    float sum[2][V], before[2][V];
#pragma unroll
    for (int v = 0; v < V; v++) sum[0][v] = sum[1][v] = before[0][v] = before[1][v] = 0.f;
    int32_t place = 0;
    for (int32_t r = first - 1; r <= end + 1; r++) {
      copiedBut<S - 2>();
      __syncthreads();
      copy(r + S - 1, place == 0 ? S - 1 : place - 1);
      const float *rowX = shared + ((int64_t)place * inX.size + own * across + lane) * V, *rowD = rowX + S * inX.size * V;
      place = place == S - 1 ? 0 : place + 1;
      const bool ours = mine && r >= first && r < end;
      float al[V], am[V], ar[V], dl[V], dm[V], dr[V], out[V];
      load<V>(rowX, al), load<V>(rowX + across * V, am), load<V>(rowX + 2 * across * V, ar);
      load<V>(rowD, dl), load<V>(rowD + across * V, dm), load<V>(rowD + 2 * across * V, dr);
#pragma unroll
      for (int v = 0; v < V; v++) {
        out[v] = fmaf(w[2][v], dl[v], fmaf(w[1][v], dm[v], fmaf(w[0][v], dr[v], sum[0][v])));
        sum[0][v] = fmaf(w[5][v], dl[v], fmaf(w[4][v], dm[v], fmaf(w[3][v], dr[v], sum[1][v])));
        sum[1][v] = fmaf(w[8][v], dl[v], fmaf(w[7][v], dm[v], w[6][v] * dr[v]));
        const float d0 = ours ? dm[v] : 0.f;
        dw[0][v] = fmaf(d0, al[v], dw[0][v]), dw[1][v] = fmaf(d0, am[v], dw[1][v]), dw[2][v] = fmaf(d0, ar[v], dw[2][v]);
        dw[3][v] = fmaf(before[0][v], al[v], dw[3][v]), dw[4][v] = fmaf(before[0][v], am[v], dw[4][v]), dw[5][v] = fmaf(before[0][v], ar[v], dw[5][v]);
        dw[6][v] = fmaf(before[1][v], al[v], dw[6][v]), dw[7][v] = fmaf(before[1][v], am[v], dw[7][v]), dw[8][v] = fmaf(before[1][v], ar[v], dw[8][v]);
        dw[9][v] += d0;
        before[1][v] = before[0][v], before[0][v] = d0;
      }
      if (mine && r - 1 >= first && r - 1 < end) store<V>(dx + at + (r - 1) * step, out);
    }
  }
  copiedBut<0>();
  for (int t = 0; t < 10; t++) {
    __syncthreads();
#pragma unroll
    for (int v = 0; v < V; v++) shared[(own * across + lane) * V + v] = dw[t][v];
    __syncthreads();
    for (int i = threadIdx.x; i < across * V; i += blockDim.x) {
      if (channel + i >= g.channels) break;
      float sum = 0.f;
      for (int k = 0; k < together; k++) sum += shared[k * across * V + i];
      parts[((int64_t)blockIdx.y * 10 + t) * g.channels + channel + i] = sum;
    }
  }
}
