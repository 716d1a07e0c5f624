// Convolutions over a grid. A convolution with several channels in a group is a product of a matrix: conv_columns gathers the rows of its operand, and
// conv_spread is the transpose of that. In a depthwise convolution each channel has a filter of its own.
#include "gridconv.cuh"

// divide divides i by n and returns the rest. Division of 64 bits takes five times as long as that of 32.
__device__ __forceinline__ int32_t divide(int64_t &i, int32_t n) {
  int32_t rest;
  if (i >> 32 == 0) {
    rest = (int32_t)((uint32_t)i % (uint32_t)n), i = (uint32_t)i / (uint32_t)n;
  } else {
    rest = (int32_t)(i % n), i /= n;
  }
  return rest;
}

// Cell is a cell of one of the two grids.
struct Cell {
  int64_t batch;
  int32_t z, y, x;
  __device__ __forceinline__ Cell(int64_t i, const int32_t (&n)[3]) {
    x = divide(i, n[2]), y = divide(i, n[1]), z = divide(i, n[0]), batch = i;
  }
  __device__ __forceinline__ void next(const int32_t (&n)[3]) {
    if (++x < n[2]) return;
    x = 0;
    if (++y < n[1]) return;
    y = 0;
    if (++z < n[0]) return;
    z = 0, batch++;
  }
};

__device__ __forceinline__ int64_t cellIndex(const int32_t (&n)[3], int64_t batch, int32_t z, int32_t y, int32_t x) {
  return ((batch * n[0] + z) * n[1] + y) * n[2] + x;
}

// columns writes col (n, width): for each of n cells of the result from first on, the inputs of one group in the order (kernel…, channels), then ones, then zeros.
// A thread writes four columns of some rows. TOGETHER: they are four channels of one cell.
template <class T, bool TOGETHER>
__device__ __forceinline__ void columns(const GridConv &g, const float *__restrict__ x, T *__restrict__ col, int64_t first, int64_t n, int32_t group, int32_t across, int32_t rows) {
  constexpr int PARTS = TOGETHER ? 1 : 4;
  const int32_t e = (blockIdx.y * across + threadIdx.x % across) * 4, size = g.channels / g.groups;
  const int64_t from = ((int64_t)blockIdx.x * (blockDim.x / across) + threadIdx.x / across) * rows;
  if (e >= g.width || from >= n) return;
  int32_t dz[PARTS], dy[PARTS], dx[PARTS], c[PARTS];
  float rest[4];  // the columns that are no inputs
#pragma unroll
  for (int p = 0; p < 4; p++) {
    const int32_t after = e + p - size * g.kernel[0] * g.kernel[1] * g.kernel[2];
    rest[p] = after >= 0 && after < g.ones ? 1.f : 0.f;
  }
#pragma unroll
  for (int p = 0; p < PARTS; p++) {
    int32_t tap = (e + p) / size;
    c[p] = group * size + (e + p) % size;
    dx[p] = tap % g.kernel[2] * g.dilation[2] - g.padding[2], tap /= g.kernel[2];
    dy[p] = tap % g.kernel[1] * g.dilation[1] - g.padding[1], tap /= g.kernel[1];
    dz[p] = tap < g.kernel[0] ? tap * g.dilation[0] - g.padding[0] : -(1 << 30);  // outside, for the zeros at the end of a row
  }
  Cell o(first + from, g.out);
  col += from * g.width + e;
#pragma unroll 4
  for (int64_t i = from; i < min(from + rows, n); i++, col += g.width, o.next(g.out)) {
    float v[4] = {rest[0], rest[1], rest[2], rest[3]};
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
      const int32_t z = o.z * g.stride[0] + dz[p], y = o.y * g.stride[1] + dy[p], at = o.x * g.stride[2] + dx[p];
      if (within(z, g.in[0]) && within(y, g.in[1]) && within(at, g.in[2])) {
        const float *from = x + cellIndex(g.in, o.batch, z, y, at) * g.channels + c[p];
        if (TOGETHER)
          load<4>(from, v);
        else
          v[p] = *from;
      }
    }
    store<4>(col, v);
  }
}

// reader sets o to the coordinate at which the result reads the coordinate i of the input with the cell k of the kernel, and reports whether there is one.
__device__ __forceinline__ bool reader(const GridConv &g, int axis, int32_t i, int32_t k, int32_t &o) {
  const int32_t at = i + g.padding[axis] - k * g.dilation[axis];
  o = at / g.stride[axis];
  return at >= 0 && o * g.stride[axis] == at && o < g.out[axis];
}

// Taps goes through the cells of the kernel along an axis that can read the coordinate i. Without dilation these are every stride-th.
struct Taps {
  int32_t first, step;
  __device__ __forceinline__ Taps(const GridConv &g, int axis, int32_t i) {
    const bool plain = g.dilation[axis] == 1 && g.stride[axis] > 1;
    first = plain ? (i + g.padding[axis]) % g.stride[axis] : 0, step = plain ? g.stride[axis] : 1;
  }
};

// eachReader calls f(tap, at) for each cell of the result that reads cell i, with the index of the cell of the kernel and of the cell of the result.
template <class F> __device__ __forceinline__ void eachReader(const GridConv &g, const Cell &i, F f) {
  const Taps tz(g, 0, i.z), ty(g, 1, i.y), tx(g, 2, i.x);
  int32_t z, y, x;
#pragma unroll 1
  for (int32_t kz = tz.first; kz < g.kernel[0]; kz += tz.step) {
    if (!reader(g, 0, i.z, kz, z)) continue;
#pragma unroll 1
    for (int32_t ky = ty.first; ky < g.kernel[1]; ky += ty.step) {
      if (!reader(g, 1, i.y, ky, y)) continue;
#pragma unroll 1
      for (int32_t kx = tx.first; kx < g.kernel[2]; kx += tx.step)
        if (reader(g, 2, i.x, kx, x)) f((kz * g.kernel[1] + ky) * g.kernel[2] + kx, cellIndex(g.out, i.batch, z, y, x));
    }
  }
}

// eachTap calls f(tap, at) for each cell that the result reads at cell o.
template <class F> __device__ __forceinline__ void eachTap(const GridConv &g, const Cell &o, F f) {
  int32_t tap = 0;
#pragma unroll 1
  for (int32_t kz = 0; kz < g.kernel[0]; kz++) {
    const int32_t z = o.z * g.stride[0] - g.padding[0] + kz * g.dilation[0];
  #pragma unroll 1
  for (int32_t ky = 0; ky < g.kernel[1]; ky++) {
      const int32_t y = o.y * g.stride[1] - g.padding[1] + ky * g.dilation[1];
    #pragma unroll 1
  for (int32_t kx = 0; kx < g.kernel[2]; kx++, tap++) {
        const int32_t x = o.x * g.stride[2] - g.padding[2] + kx * g.dilation[2];
        if (within(z, g.in[0]) && within(y, g.in[1]) && within(x, g.in[2])) f(tap, cellIndex(g.in, o.batch, z, y, x));
      }
    }
  }
}

// spread adds to cells cells of x, from begin on, the columns (n, width) of the cells of the result from first on. Unless ADD is set it begins with bias, or with
// zeros if bias is null.
template <class T, int V>
__device__ __forceinline__ void spread(const GridConv &g, const T *col, const float *bias, float *x, int64_t begin, int64_t cells, int64_t first, int64_t n,
                                       int32_t group, int32_t add) {
  const int32_t size = g.channels / g.groups, vectors = size / V;
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= cells * vectors) return;
  const int32_t c = divide(i, vectors) * V, channel = group * size + c;
  const int64_t cell = begin + i;
  float sum[V] = {};
  if (add)
    load<V>(x + cell * g.channels + channel, sum);
  else if (bias)
    load<V>(bias + channel, sum);
  eachReader(g, Cell(cell, g.in), [&](int32_t tap, int64_t at) {
    if (at < first || at >= first + n) return;
    float v[V];
    load<V>(col + (at - first) * g.width + tap * size + c, v);
#pragma unroll
    for (int k = 0; k < V; k++) sum[k] += v[k];
  });
  store<V>(x + cell * g.channels + channel, sum);
}

// depthwise writes V channels of a cell. Unless BACK is set, x is the input and y the result; else y is the gradient of the input or the result of the
// transposed convolution. The taps are (kernel…, channels).
template <int V, bool BACK>
__device__ __forceinline__ void depthwise(const GridConv &g, const float *x, const float *taps, const float *bias, float *y) {
  const int32_t vectors = g.channels / V;
  int64_t cell = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  const int32_t c = divide(cell, vectors) * V;
  const int32_t(&n)[3] = BACK ? g.in : g.out;
  if (cell >= g.batch * n[0] * n[1] * n[2]) return;
  float sum[V] = {};
  if (bias) load<V>(bias + c, sum);
  auto add = [&](int32_t tap, int64_t at) {
    float v[V], w[V];
    load<V>(x + at * g.channels + c, v);
    load<V>(taps + (int64_t)tap * g.channels + c, w);
#pragma unroll
    for (int k = 0; k < V; k++) sum[k] = fmaf(w[k], v[k], sum[k]);
  };
  if (BACK)
    eachReader(g, Cell(cell, g.in), add);
  else
    eachTap(g, Cell(cell, g.out), add);
  store<V>(y + cell * g.channels + c, sum);
}

// conv_depthwise_weight writes parts (gridDim.z, kernel + 1, channels): the sums over each cells of y·x for each cell of the kernel, and of y. A block has 32
// channels and eight parts of the cells.
extern "C" __global__ void conv_depthwise_weight(const GridConv g, const float *x, const float *y, float *parts, int64_t each) {
  __shared__ float sums[8][32];
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
  const int32_t c = blockIdx.x * 32 + lane, taps = gridDim.y - 1;
  int32_t tap = blockIdx.y;
  const int32_t dx = tap % g.kernel[2] * g.dilation[2] - g.padding[2], dy = tap / g.kernel[2] % g.kernel[1] * g.dilation[1] - g.padding[1];
  const int32_t dz = tap / g.kernel[2] / g.kernel[1] * g.dilation[0] - g.padding[0];
  const int64_t cells = g.batch * g.out[0] * g.out[1] * g.out[2], from = blockIdx.z * each;
  float sum = 0.f;
  if (c < g.channels)
    for (int64_t i = from + part; i < min(from + each, cells); i += 8) {
      const float v = y[i * g.channels + c];
      if (tap == taps) {
        sum += v;
        continue;
      }
      const Cell o(i, g.out);
      const int32_t iz = o.z * g.stride[0] + dz, iy = o.y * g.stride[1] + dy, ix = o.x * g.stride[2] + dx;
      if (within(iz, g.in[0]) && within(iy, g.in[1]) && within(ix, g.in[2])) sum = fmaf(v, x[cellIndex(g.in, o.batch, iz, iy, ix) * g.channels + c], sum);
    }
  sums[part][lane] = sum;
  __syncthreads();
  if (part > 0 || c >= g.channels) return;
  sum = 0.f;
#pragma unroll
  for (int k = 0; k < 8; k++) sum += sums[k][lane];
  parts[((int64_t)blockIdx.z * gridDim.y + tap) * g.channels + c] = sum;
}

// order writes y (count, ystride), the transposes (columns, rows) of the matrices (rows, columns) of x (count, xstride), and zeros after them. If bias is not null,
// its numbers come between: each in three parts, whose sum is the number also if the parts are bfloat16.
template <class T>
__device__ __forceinline__ void order(const float *x, const float *bias, T *y, int64_t count, int64_t rows, int64_t columns, int64_t xstride, int64_t ystride) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, m = i / ystride, e = i % ystride;
  if (m >= count) return;
  const int64_t after = e - rows * columns;
  float v = 0.f;
  if (after < 0) {
    v = x[m * xstride + e % rows * columns + e / rows];
  } else if (bias && after < 3) {
    v = bias[m];
    for (int64_t part = 0; part < after; part++) v -= value(to<bf16>(v));
    v = value(to<bf16>(v));
  }
  y[i] = to<T>(v);
}

#define TYPED(NAME, T)                                                                                                                                    \
  extern "C" __global__ void conv_columns_##NAME##_four(const GridConv g, const float *x, T *col, int64_t first, int64_t n, int32_t group, int32_t across, \
                                                        int32_t rows) {                                                                                   \
    columns<T, true>(g, x, col, first, n, group, across, rows);                                                                                           \
  }                                                                                                                                                       \
  extern "C" __global__ void conv_columns_##NAME##_any(const GridConv g, const float *x, T *col, int64_t first, int64_t n, int32_t group, int32_t across,  \
                                                       int32_t rows) {                                                                                    \
    columns<T, false>(g, x, col, first, n, group, across, rows);                                                                                          \
  }                                                                                                                                                       \
  extern "C" __global__ void conv_spread_##NAME##_four(const GridConv g, const T *col, const float *bias, float *x, int64_t begin, int64_t cells,          \
                                                       int64_t first, int64_t n, int32_t group, int32_t add) {                                            \
    spread<T, 4>(g, col, bias, x, begin, cells, first, n, group, add);                                                                                    \
  }                                                                                                                                                       \
  extern "C" __global__ void conv_spread_##NAME##_any(const GridConv g, const T *col, const float *bias, float *x, int64_t begin, int64_t cells,           \
                                                      int64_t first, int64_t n, int32_t group, int32_t add) {                                             \
    spread<T, 1>(g, col, bias, x, begin, cells, first, n, group, add);                                                                                    \
  }                                                                                                                                                       \
  extern "C" __global__ void conv_order_##NAME(const float *x, const float *bias, T *y, int64_t count, int64_t rows, int64_t columns, int64_t xstride, int64_t ystride) {     \
    order<T>(x, bias, y, count, rows, columns, xstride, ystride);                                                                                               \
  }
TYPED(float, float)
TYPED(bf16, bf16)

#define DEPTHWISE(NAME, V)                                                                                                                              \
  extern "C" __global__ void conv_depthwise_forward_##NAME(const GridConv g, const float *x, const float *taps, const float *bias, float *y) {           \
    depthwise<V, false>(g, x, taps, bias, y);                                                                                                           \
  }                                                                                                                                                     \
  extern "C" __global__ void conv_depthwise_backward_##NAME(const GridConv g, const float *x, const float *taps, const float *bias, float *y) {          \
    depthwise<V, true>(g, x, taps, bias, y);                                                                                                            \
  }
DEPTHWISE(four, 4)
DEPTHWISE(any, 1)
