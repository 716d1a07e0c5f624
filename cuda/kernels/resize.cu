// Interpolation between the cells of a grid, and maxima and means over windows of them. internal/kernel/interpolate.go and window.go define them.
// A block of threads writes cells of a line, the last axis of a grid. channels counts groups of V.
#include "vector.cuh"

struct Resize {
  const float *from;
  float *to;
  int32_t cells[3], results[3], channels, mode, corners;  // the cells of the operand, and of the result
};

struct Line {
  int64_t batch;
  int d, h;
  __device__ __forceinline__ Line(const int32_t *grid) {
    const int64_t line = blockIdx.x;
    h = line % grid[1], d = line / grid[1] % grid[0], batch = line / grid[1] / grid[0];
  }
};

// onLine calls f(at, w, c, to) for each cell w and group of channels c of the line of the block, where to is their group of a grid.
template <class F> __device__ __forceinline__ void onLine(const int32_t *grid, unsigned channels, F f) {
  const Line at(grid);
  const unsigned size = grid[2] * channels;
  for (unsigned e = blockIdx.y * blockDim.x + threadIdx.x; e < size; e += gridDim.y * blockDim.x)
    f(at, (int)(e / channels), (int)(e % channels), blockIdx.x * (int64_t)size + e);
}

__device__ __forceinline__ int64_t cellOf(const int32_t *grid, int64_t batch, int d, int h, int w) { return ((batch * grid[0] + d) * grid[1] + h) * grid[2] + w; }

// Taps are the cells that cell j of a result reads along an axis: count ones from first on, cut off at the edges.
struct Taps {
  int first, count;
  float weight[4];
};

__device__ __forceinline__ Taps tapsOf(int mode, bool corners, int from, int to, int j) {
  Taps t;
  if (mode == 0) {
    t.first = (int64_t)j * from / to, t.count = 1, t.weight[0] = 1.f;
    return t;
  }
  double x = corners ? (double)j * (from - 1) / max(to - 1, 1) : (j + 0.5) * from / to - 0.5;
  if (mode == 1) x = max(x, 0.);
  const double cell = floor(x);
  const float f = (float)(x - cell);
  if (mode == 1) {
    t.first = (int)cell, t.count = 2, t.weight[0] = 1.f - f, t.weight[1] = f;
    return t;
  }
  const float a = -0.75f;
  auto near = [a](float x) { return ((a + 2.f) * x - (a + 3.f)) * x * x + 1.f; };
  auto far = [a](float x) { return ((a * x - 5.f * a) * x + 8.f * a) * x - 4.f * a; };
  t.first = (int)cell - 1, t.count = 4;
  t.weight[0] = far(1.f + f), t.weight[1] = near(f), t.weight[2] = near(1.f - f), t.weight[3] = far(2.f - f);
  return t;
}

// weightOf returns the weight of cell i in cell j of a result.
__device__ __forceinline__ float weightOf(const Resize &r, int axis, int j, int i) {
  const int from = r.cells[axis];
  const Taps t = tapsOf(r.mode, r.corners, from, r.results[axis], j);
  float sum = 0;
#pragma unroll
  for (int k = 0; k < 4; k++)
    if (k < t.count && min(max(t.first + k, 0), from - 1) == i) sum += t.weight[k];
  return sum;
}

// Range is the cells of a result that may read cell i.
struct Range {
  int first, last;
  __device__ __forceinline__ Range(const Resize &r, int axis, int i) {
    const int from = r.cells[axis], to = r.results[axis];
    first = 0, last = to - 1;
    if (from == 1 || to == 1) return;
    const double scale = r.corners ? (double)(from - 1) / (to - 1) : (double)from / to;  // above 0
    const int reach = r.mode == 2 ? 2 : 1;
    const double shift = r.mode == 0 || r.corners ? 0. : 0.5;
    if (i >= reach) first = max((int)floor((i - reach + shift) / scale - shift) - 1, 0);
    if (i < from - reach) last = min((int)ceil((i + reach + shift) / scale - shift) + 1, to - 1);
  }
};

template <int V> __device__ __forceinline__ void addTo(float (&sum)[V], const float *from, float weight) {
  float v[V];
  load<V>(from, v);
#pragma unroll
  for (int k = 0; k < V; k++) sum[k] = fmaf(v[k], weight, sum[k]);
}

// A weight of zero is left out, so that what has no effect does not spread a NaN.
template <int V> __device__ __forceinline__ void interpolate(const Resize &r) {
  onLine(r.results, r.channels, [&](const Line &at, int w, int c, int64_t to) {
    const Taps td = tapsOf(r.mode, r.corners, r.cells[0], r.results[0], at.d), th = tapsOf(r.mode, r.corners, r.cells[1], r.results[1], at.h),
               tw = tapsOf(r.mode, r.corners, r.cells[2], r.results[2], w);
    float sum[V] = {};
    for (int i = 0; i < td.count; i++)
      for (int j = 0; j < th.count; j++)
        for (int k = 0; k < tw.count; k++) {
          const float weight = td.weight[i] * th.weight[j] * tw.weight[k];
          const int x = min(max(td.first + i, 0), r.cells[0] - 1), y = min(max(th.first + j, 0), r.cells[1] - 1),
                    z = min(max(tw.first + k, 0), r.cells[2] - 1);
          if (weight != 0.f) addTo<V>(sum, r.from + V * (cellOf(r.cells, at.batch, x, y, z) * r.channels + c), weight);
        }
    store<V>(r.to + V * to, sum);
  });
}

template <int V> __device__ __forceinline__ void interpolateBackward(const Resize &r) {
  onLine(r.cells, r.channels, [&](const Line &at, int w, int c, int64_t to) {
    const Range rd(r, 0, at.d), rh(r, 1, at.h), rw(r, 2, w);
    float sum[V] = {};
    for (int i = rd.first; i <= rd.last; i++) {
      const float wd = weightOf(r, 0, i, at.d);
      if (wd == 0.f) continue;
      for (int j = rh.first; j <= rh.last; j++) {
        const float wh = wd * weightOf(r, 1, j, at.h);
        if (wh == 0.f) continue;
        for (int k = rw.first; k <= rw.last; k++) {
          const float weight = wh * weightOf(r, 2, k, w);
          if (weight != 0.f) addTo<V>(sum, r.from + V * (cellOf(r.results, at.batch, i, j, k) * r.channels + c), weight);
        }
      }
    }
    store<V>(r.to + V * to, sum);
  });
}

struct Window {
  const float *x, *dy;
  float *to;            // y, or dx
  int32_t *chosen;      // the cell of x that each element of y is, in its own batch; of a maximum
  int32_t cells[3], results[3], window[3], stride[3], padding[3], channels, largest, exclude;
  __device__ __forceinline__ int first(int axis, int o) const { return max(o * stride[axis] - padding[axis], 0); }
  __device__ __forceinline__ int end(int axis, int o) const { return min(o * stride[axis] - padding[axis] + window[axis], cells[axis]); }
  __device__ __forceinline__ int firstWindow(int axis, int i) const {
    const int before = i + padding[axis] - window[axis];
    return before < 0 ? 0 : before / stride[axis] + 1;
  }
  __device__ __forceinline__ int endWindow(int axis, int i) const { return min((i + padding[axis]) / stride[axis] + 1, results[axis]); }
  __device__ __forceinline__ float share(int d, int h, int w) const {
    const int o[3] = {d, h, w};
    float count = 1;
#pragma unroll
    for (int a = 0; a < 3; a++) count *= exclude ? end(a, o[a]) - first(a, o[a]) : window[a];
    return 1.f / count;
  }
};

// forward writes y, or chosen instead if it is not null.
template <int V> __device__ __forceinline__ void windowForward(const Window &p) {
  onLine(p.results, p.channels, [&](const Line &at, int w, int c, int64_t to) {
    float y[V];
    int32_t which[V];
#pragma unroll
    for (int v = 0; v < V; v++) y[v] = p.largest ? -INFINITY : 0.f, which[v] = -1;
    for (int i = p.first(0, at.d); i < p.end(0, at.d); i++)
      for (int j = p.first(1, at.h); j < p.end(1, at.h); j++)
        for (int k = p.first(2, w); k < p.end(2, w); k++) {
          float x[V];
          load<V>(p.x + V * (cellOf(p.cells, at.batch, i, j, k) * p.channels + c), x);
#pragma unroll
          for (int v = 0; v < V; v++) {
            if (!p.largest)
              y[v] += x[v];
            else if (x[v] > y[v] || x[v] != x[v] || which[v] < 0)
              y[v] = x[v], which[v] = cellOf(p.cells, 0, i, j, k);
          }
        }
    if (p.chosen) {
#pragma unroll
      for (int v = 0; v < V; v++) p.chosen[V * to + v] = which[v];
    } else {
      const float share = p.largest ? 1.f : p.share(at.d, at.h, w);
#pragma unroll
      for (int v = 0; v < V; v++) y[v] *= share;
      store<V>(p.to + V * to, y);
    }
  });
}

template <int V> __device__ __forceinline__ void windowBackward(const Window &p) {
  onLine(p.cells, p.channels, [&](const Line &at, int w, int c, int64_t to) {
    float sum[V] = {};
    const int32_t cell = cellOf(p.cells, 0, at.d, at.h, w);
    for (int i = p.firstWindow(0, at.d); i < p.endWindow(0, at.d); i++)
      for (int j = p.firstWindow(1, at.h); j < p.endWindow(1, at.h); j++)
        for (int k = p.firstWindow(2, w); k < p.endWindow(2, w); k++) {
          const int64_t o = V * (cellOf(p.results, at.batch, i, j, k) * p.channels + c);
          if (!p.largest) {
            addTo<V>(sum, p.dy + o, p.share(i, j, k));
            continue;
          }
          float dy[V];
          load<V>(p.dy + o, dy);
#pragma unroll
          for (int v = 0; v < V; v++)
            if (p.chosen[o + v] == cell) sum[v] += dy[v];
        }
    store<V>(p.to + V * to, sum);
  });
}

#define RESIZE(V)                                                                                                      \
  extern "C" __global__ void interpolate_##V(const Resize r) { interpolate<V>(r); }                                    \
  extern "C" __global__ void interpolate_backward_##V(const Resize r) { interpolateBackward<V>(r); }                   \
  extern "C" __global__ void window_forward_##V(const Window p) { windowForward<V>(p); }                               \
  extern "C" __global__ void window_backward_##V(const Window p) { windowBackward<V>(p); }
RESIZE(1)
RESIZE(4)
