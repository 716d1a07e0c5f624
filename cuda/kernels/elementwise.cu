// Elementwise operations, sums of columns, and the index of the largest number of a row.
#include "vector.cuh"

#define EACH(N)                                                                        \
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;                    \
  if (i >= (N)) return;

// Threads of the kernels of four elements read and write them together if the addresses allow it.
template <class T> __device__ __forceinline__ bool atFour(const T *p) { return (uintptr_t)p % (4 * sizeof(T)) == 0; }

extern "C" __global__ void add(const float *a, const float *b, float *sum, int64_t n) {
  const int64_t i = 4 * ((int64_t)blockIdx.x * blockDim.x + threadIdx.x);
  if (i + 4 <= n && atFour(a) && atFour(b) && atFour(sum)) {
    float x[4], y[4];
    load<4>(a + i, x), load<4>(b + i, y);
#pragma unroll
    for (int k = 0; k < 4; k++) x[k] += y[k];
    store<4>(sum + i, x);
  } else {
    for (int64_t j = i; j < min(i + 4, n); j++) sum[j] = a[j] + b[j];
  }
}

// add_rows adds b (width) to each row of a, which has n elements.
extern "C" __global__ void add_rows(const float *a, const float *b, float *sum, int64_t n, int64_t width) {
  const int64_t i = 4 * ((int64_t)blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  const int64_t column = n >> 31 ? i % width : (uint32_t)i % (uint32_t)width;
  if (width % 4 == 0 && atFour(a) && atFour(b) && atFour(sum)) {
    float x[4], y[4];
    load<4>(a + i, x), load<4>(b + column, y);
#pragma unroll
    for (int k = 0; k < 4; k++) x[k] += y[k];
    store<4>(sum + i, x);
  } else {
    for (int64_t j = i, k = column; j < min(i + 4, n); j++, k = k + 1 == width ? 0 : k + 1) sum[j] = a[j] + b[k];
  }
}

extern "C" __global__ void average(const float *x, float *average, int64_t n, float keep, float by) {
  EACH(n)
  average[i] = keep * average[i] + by * x[i];
}

extern "C" __global__ void set(float *x, int64_t n, float v) {
  takeOver();
  EACH(n)
  x[i] = v;
}

extern "C" __global__ void neg_exp(const float *x, float *y, int64_t n) {
  EACH(n)
  y[i] = -expf(x[i]);
}

extern "C" __global__ void neg_exp_backward(const float *x, const float *dy, float *dx, int64_t n) {
  EACH(n)
  dx[i] = -expf(x[i]) * dy[i];
}

// transpose writes y (width, rows), the transpose of x (rows, width), whose rows are stride elements apart. A block of 256 threads processes 32
// by 32 numbers.
extern "C" __global__ void transpose(const float *x, float *y, int64_t rows, int64_t width, int64_t stride) {
  __shared__ float tile[32][33];  // 33: the threads that read a column use different banks
  const int across = threadIdx.x % 32, down = threadIdx.x / 32;
  const int64_t row = (int64_t)blockIdx.x * 32, column = (int64_t)blockIdx.y * 32;
#pragma unroll
  for (int i = down; i < 32; i += 8)
    if (row + i < rows && column + across < width) tile[i][across] = x[(row + i) * stride + column + across];
  __syncthreads();
#pragma unroll
  for (int i = down; i < 32; i += 8)
    if (column + i < width && row + across < rows) y[(column + i) * rows + row + across] = tile[across][i];
}

// copy_columns copies the columns [from, from + width) of x (rows, stride) to y (rows, width).
extern "C" __global__ void copy_columns(const float *x, float *y, int64_t rows, int64_t stride, int64_t from, int64_t width) {
  EACH(rows * width)
  y[i] = x[i / width * stride + from + i % width];
}

// scatter_columns copies y (rows, width) to the columns [from, from + width) of x (rows, stride) and sets the others to zero.
extern "C" __global__ void scatter_columns(const float *y, float *x, int64_t rows, int64_t stride, int64_t from, int64_t width) {
  EACH(rows * stride)
  const int64_t column = i % stride - from;
  x[i] = column >= 0 && column < width ? y[i / stride * width + column] : 0.f;
}

template <class A, class B> __device__ __forceinline__ void convert(const A *from, B *result, int64_t n) {
  const int64_t i = 4 * ((int64_t)blockIdx.x * blockDim.x + threadIdx.x);
  if (i + 4 <= n && atFour(from) && atFour(result)) {
    float x[4];
    load<4>(from + i, x);
    store<4>(result + i, x);
  } else {
    for (int64_t j = i; j < min(i + 4, n); j++) result[j] = to<B>(value(from[j]));
  }
}
extern "C" __global__ void convert_float_bf16(const float *from, bf16 *result, int64_t n) { convert(from, result, n); }
extern "C" __global__ void convert_bf16_float(const bf16 *from, float *result, int64_t n) { convert(from, result, n); }

template <class T> __device__ __forceinline__ void addBias(T *x, const float *bias, int64_t rows, int64_t width, int64_t stride) {
  EACH(rows * width)
  T *at = x + i / width * stride + i % width;
  *at = to<T>(value(*at) + bias[i % width]);
}

// columnSums writes parts (gridDim.y, width): the sums of the columns over each rows, added in order.
template <class T> __device__ __forceinline__ void columnSums(const T *x, float *parts, int64_t rows, int64_t width, int64_t stride, int64_t each) {
  const int64_t column = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * each;
  if (column >= width) return;
  float sum = 0;
#pragma unroll 8
  for (int64_t row = first; row < min(first + each, rows); row++) sum += value(x[row * stride + column]);
  parts[blockIdx.y * width + column] = sum;
}

// copy_rows writes to y the first width numbers of each row of x, whose rows are stride numbers apart. The blocks are ((width + 1023) / 1024, rows) of 256
// threads.
extern "C" __global__ void copy_rows(const float *x, float *y, int64_t stride, int64_t width) {
  x += blockIdx.y * stride, y += blockIdx.y * width;
#pragma unroll
  for (int k = 0; k < 4; k++) {
    const int64_t i = 1024 * (int64_t)blockIdx.x + 256 * k + threadIdx.x;
    if (i < width) y[i] = x[i];
  }
}

// Best is the largest number of a part of a row, and its index. The index is -1 if the number is infinity or if any number is NaN.
struct Best {
  float top = -INFINITY;
  int32_t at = 0x7fffffff;
  __device__ __forceinline__ void take(float v, int32_t i) {
    if (v > top || (v == top && i < at)) top = v, at = i;
  }
  __device__ __forceinline__ void overWarp() {
#pragma unroll
    for (int m = 16; m > 0; m /= 2) {
      const float v = __shfl_xor_sync(~0u, top, m);
      take(v, __shfl_xor_sync(~0u, at, m));
    }
  }
};

// largest_parts finds the largest number of each part of a row, of each numbers. The blocks are (rows, parts) of 256 threads.
extern "C" __global__ void largest_parts(const float *x, Best *parts, int64_t width, int64_t each) {
  __shared__ float tops[8];
  __shared__ int32_t indices[8];
  letNextBegin();
  awaitLast();
  Best best;
  bool bad = false;
  const int64_t from = blockIdx.y * each, to = min(from + each, width);
  x += blockIdx.x * width;
#pragma unroll 8
  for (int64_t i = from + threadIdx.x; i < to; i += 256) {
    const float v = x[i];
    bad = bad || v != v;
    if (v > best.top) best.top = v, best.at = (int32_t)i;
  }
  best.overWarp();
  if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = best.top, indices[threadIdx.x / 32] = best.at;
  bad = __syncthreads_or(bad);
  if (threadIdx.x == 0) {
    for (int i = 1; i < 8; i++) best.take(tops[i], indices[i]);
    if (bad || best.top == INFINITY) best.at = -1;
    parts[blockIdx.x * gridDim.y + blockIdx.y] = best;
  }
}

// largest writes, for each row, the index of its largest number. Of several equal ones it takes the lowest index. The index is -1 if the
// largest number is infinite or if any number is NaN. A warp joins the parts of a row.
extern "C" __global__ void largest(const Best *parts, int32_t *index, int64_t count) {
  letNextBegin();
  awaitLast();
  Best best;
  bool bad = false;
  for (int64_t i = threadIdx.x; i < count; i += 32) {
    const Best part = parts[blockIdx.x * count + i];
    bad = bad || part.at < 0;
    best.take(part.top, part.at);
  }
  best.overWarp();
  bad = __syncthreads_or(bad);
  if (threadIdx.x == 0) index[blockIdx.x] = bad || isinf(best.top) ? -1 : best.at;
}

// send_bytes copies bytes, also to memory of the host.
extern "C" __global__ void send_bytes(const uint8_t *from, uint8_t *to, int64_t bytes) {
  letNextBegin();
  awaitLast();
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < bytes) to[i] = from[i];
}

#define TYPED(NAME, T)                                                                                                     \
  extern "C" __global__ void add_bias_##NAME(T *x, const float *bias, int64_t rows, int64_t width, int64_t stride) {       \
    addBias<T>(x, bias, rows, width, stride);                                                                              \
  }                                                                                                                        \
  extern "C" __global__ void column_sums_##NAME(const T *x, float *parts, int64_t rows, int64_t width, int64_t stride, int64_t each) { \
    columnSums<T>(x, parts, rows, width, stride, each);                                                                    \
  }
TYPED(float, float)
TYPED(bf16, bf16)
