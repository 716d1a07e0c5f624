// Instance norm and batch norm: each channel of each group of rows has a mean and a variance. internal/kernel/channel_norm.go defines them.
//
// A block of 256 threads processes each rows of a group, and up to 256·V neighbouring channels: tile blockIdx.x % tiles of group blockIdx.x / tiles,
// part blockIdx.y. A thread has V channels and every (256 / columns)-th row.
#include "activation.cuh"
#include "vector.cuh"

// An operand of the sum of which an activation is taken: its norm, or the operand itself if it has no statistics.
struct Term {
  const float *x, *weight, *bias;  // weight and bias may be null
  const float *high, *low, *scale; // (groups, channels): the mean is high + low
};

struct Task {
  Term norm, other;                     // with an activation, the other term is added unless its x is null
  const float *dy;
  const float *constant, *slope;        // (groups, channels), or null for given statistics
  float *to;                            // y, or dx
  float *sum;                           // the gradient of the sum, unless it is null
  double *parts;                        // (2, groups, gridDim.y, channels)
  int64_t groups, rows, channels, each; // each: rows per block
  int32_t tiles, columns;               // tiles of columns·V channels
  int32_t activation;
};

template <int V> struct Place {
  int64_t group, channel, row, end, step;
  bool live;
  __device__ __forceinline__ Place(const Task &t) {
    group = blockIdx.x / t.tiles;
    const int down = 256 / t.columns;
    channel = V * ((int64_t)(blockIdx.x % t.tiles) * t.columns + threadIdx.x % t.columns);
    row = blockIdx.y * t.each + threadIdx.x / t.columns, end = min((blockIdx.y + 1) * t.each, t.rows), step = down;
    live = (int)threadIdx.x < down * t.columns && channel < t.channels;
  }
  __device__ __forceinline__ int64_t at(const Task &t, int64_t row) const { return (group * t.rows + row) * t.channels + channel; }
  __device__ __forceinline__ int64_t statistic(const Task &t) const { return group * t.channels + channel; }
};

// Map is what a term does to its operand: V channels of it.
template <int V> struct Map {
  float high[V], low[V], scale[V], bias[V];
  bool norm;
  __device__ __forceinline__ Map(const Term &t, const Place<V> &p, int64_t statistic) {
    norm = t.scale;
    if (!norm) return;
    load<V>(t.high + statistic, high), load<V>(t.low + statistic, low), load<V>(t.scale + statistic, scale);
#pragma unroll
    for (int v = 0; v < V; v++) bias[v] = 0.f;
    if (t.weight) {
      float weight[V];
      load<V>(t.weight + p.channel, weight);
#pragma unroll
      for (int v = 0; v < V; v++) scale[v] *= weight[v];
    }
    if (t.bias) load<V>(t.bias + p.channel, bias);
  }
  __device__ __forceinline__ float centred(float x, int v) const { return x - high[v] - low[v]; }
  __device__ __forceinline__ float of(float x, int v) const { return norm ? fmaf(centred(x, v), scale[v], bias[v]) : x; }
};

// total turns x into the norm of x plus the other term.
template <int V> __device__ __forceinline__ void total(const Task &t, const Map<V> &norm, const Map<V> &other, int64_t at, const float (&x)[V], float (&sum)[V]) {
#pragma unroll
  for (int v = 0; v < V; v++) sum[v] = norm.of(x[v], v);
  if (!t.other.x) return;
  float o[V];
  load<V>(t.other.x + at, o);
#pragma unroll
  for (int v = 0; v < V; v++) sum[v] += other.of(o[v], v);
}

// back turns dy into the gradient of the sum.
template <int V> __device__ __forceinline__ void back(const Task &t, const Map<V> &norm, const Map<V> &other, int64_t at, const float (&x)[V], float (&dy)[V]) {
  float sum[V];
  total<V>(t, norm, other, at, x, sum);
#pragma unroll
  for (int v = 0; v < V; v++) dy[v] *= slope(t.activation, sum[v]);
}

// reduce adds the sums a and b of the threads of each column, in order, and writes them to the parts.
template <int V> __device__ __forceinline__ void reduce(const Task &t, const Place<V> &p, const double (&a)[V], const double (&b)[V]) {
  __shared__ double all[2][V][256];
#pragma unroll
  for (int v = 0; v < V; v++) all[0][v][threadIdx.x] = a[v], all[1][v][threadIdx.x] = b[v];
  __syncthreads();
  if ((int)threadIdx.x >= t.columns || !p.live) return;
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int v = 0; v < V; v++) {
      double sum = 0;
      for (int k = 0; k < p.step; k++) sum += all[i][v][k * t.columns + threadIdx.x];
      t.parts[((i * t.groups + p.group) * gridDim.y + blockIdx.y) * t.channels + p.channel + v] = sum;
    }
}

// sums adds x - K and (x - K)², where K is the first row of the group. K is one of the numbers, so the difference of the two sums in finish loses
// at most as many digits as the count of rows has, of the digits of a double.
template <int V> __device__ __forceinline__ void statistics(const Task &t) {
  const Place<V> p(t);
  double sum[V] = {}, square[V] = {};
  if (p.live) {
    float first[V];
    load<V>(t.norm.x + p.at(t, 0), first);
#pragma unroll 4
    for (int64_t row = p.row; row < p.end; row += p.step) {
      float x[V];
      load<V>(t.norm.x + p.at(t, row), x);
#pragma unroll
      for (int v = 0; v < V; v++) {
        const double c = (double)x[v] - first[v];
        sum[v] += c, square[v] += c * c;
      }
    }
  }
  reduce<V>(t, p, sum, square);
}

// unrolled is the number of rows that a thread has on their way: the more, the more code.
__host__ __device__ constexpr int unrolled(int v, bool active) { return v == 1 ? 1 : active ? 2 : 4; }

// apply writes the norm or, with A, the activation of the sum.
template <int V, bool A> __device__ __forceinline__ void apply(const Task &t) {
  const Place<V> p(t);
  if (!p.live) return;
  const Map<V> norm(t.norm, p, p.statistic(t)), other(A ? t.other : Term{}, p, p.statistic(t));
#pragma unroll unrolled(V, A)
  for (int64_t row = p.row; row < p.end; row += p.step) {
    float x[V];
    load<V>(t.norm.x + p.at(t, row), x);
    if (A) total<V>(t, norm, other, p.at(t, row), x, x);
#pragma unroll
    for (int v = 0; v < V; v++) x[v] = A ? activation(t.activation, x[v]) : norm.of(x[v], v);
    store<V>(t.to + p.at(t, row), x);
  }
}

// backwardSums adds d and d·(x - mean), where d is the gradient of the norm.
template <int V, bool A> __device__ __forceinline__ void backwardSums(const Task &t) {
  const Place<V> p(t);
  double sum[V] = {}, dot[V] = {};
  if (p.live) {
    const Map<V> norm(t.norm, p, p.statistic(t)), other(A ? t.other : Term{}, p, p.statistic(t));
#pragma unroll unrolled(V, A)
    for (int64_t row = p.row; row < p.end; row += p.step) {
      float x[V], dy[V];
      load<V>(t.norm.x + p.at(t, row), x), load<V>(t.dy + p.at(t, row), dy);
      if (A) back<V>(t, norm, other, p.at(t, row), x, dy);
#pragma unroll
      for (int v = 0; v < V; v++) sum[v] += dy[v], dot[v] += (double)dy[v] * norm.centred(x[v], v);
    }
  }
  reduce<V>(t, p, sum, dot);
}

template <int V, bool A> __device__ __forceinline__ void backward(const Task &t) {
  const Place<V> p(t);
  if (!p.live) return;
  const Map<V> norm(t.norm, p, p.statistic(t)), other(A ? t.other : Term{}, p, p.statistic(t));
  float constant[V], slope[V];
  if (t.constant) load<V>(t.constant + p.statistic(t), constant), load<V>(t.slope + p.statistic(t), slope);
#pragma unroll unrolled(V, A)
  for (int64_t row = p.row; row < p.end; row += p.step) {
    float x[V], dy[V];
    load<V>(t.dy + p.at(t, row), dy);
    if (A || t.constant) load<V>(t.norm.x + p.at(t, row), x);
    if (A) {
      back<V>(t, norm, other, p.at(t, row), x, dy);
      if (t.sum) store<V>(t.sum + p.at(t, row), dy);
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
      dy[v] *= norm.scale[v];
      if (t.constant) dy[v] = fmaf(norm.centred(x[v], v), slope[v], dy[v] + constant[v]);
    }
    store<V>(t.to + p.at(t, row), dy);
  }
}

#define CHANNEL_NORM(V, NAME, A)                                                                                                            \
  extern "C" __global__ __launch_bounds__(256) void channel_norm_apply##NAME##_##V(const Task t) { apply<V, A>(t); }                       \
  extern "C" __global__ __launch_bounds__(256) void channel_norm_sums##NAME##_##V(const Task t) { backwardSums<V, A>(t); }                 \
  extern "C" __global__ __launch_bounds__(256) void channel_norm_backward##NAME##_##V(const Task t) { backward<V, A>(t); }
CHANNEL_NORM(1, , false)
CHANNEL_NORM(4, , false)
CHANNEL_NORM(1, _active, true)
CHANNEL_NORM(4, _active, true)
extern "C" __global__ __launch_bounds__(256) void channel_norm_statistics_1(const Task t) { statistics<1>(t); }
extern "C" __global__ __launch_bounds__(256) void channel_norm_statistics_4(const Task t) { statistics<4>(t); }

struct Totals {
  double a, b;
};

// totals returns the two sums of a group and channel. A warp adds the parts.
__device__ __forceinline__ Totals totals(const double *parts, int64_t groups, int64_t count, int64_t channels, int64_t i) {
  const int64_t group = i / channels, channel = i % channels;
  double sum[2] = {};
#pragma unroll
  for (int k = 0; k < 2; k++)
    for (int64_t part = threadIdx.x % 32; part < count; part += 32) sum[k] += parts[((k * groups + group) * count + part) * channels + channel];
  return {warpSum(sum[0]), warpSum(sum[1])};
}

// channel_norm_finish writes high, low and scale, and the mean and variance unless they are null. It takes the statistics from the parts, or from
// givenMean and givenVariance if there are no parts. A warp processes a group and channel.
extern "C" __global__ void channel_norm_finish(const float *x, const double *parts, const float *givenMean, const float *givenVariance, float *high, float *low,
                                               float *scale, float *means, float *variances, int64_t groups, int64_t count, int64_t rows, int64_t channels, float eps) {
  const int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
  if (i >= groups * channels) return;
  double mean, variance;
  if (parts) {
    const Totals t = totals(parts, groups, count, channels, i);
    const double part = t.a / rows;
    mean = x[i / channels * rows * channels + i % channels] + part;
    variance = t.b / rows - part * part;
    if (variance < 0) variance = 0;
  } else {
    mean = givenMean[i], variance = givenVariance[i];
  }
  if (threadIdx.x % 32) return;
  high[i] = (float)mean, low[i] = isinf((float)mean) ? 0.f : (float)(mean - (float)mean), scale[i] = (float)(1 / sqrt(variance + eps));
  if (means) means[i] = (float)mean, variances[i] = (float)variance;
}

// channel_norm_coefficients writes constant and slope, and terms (2, groups, channels): each group's part of the gradients of the weight and of the
// bias. dmean and dvariance may be null. A warp processes a group and channel.
extern "C" __global__ void channel_norm_coefficients(const double *parts, const float *scale, const float *weight, const float *dmean, const float *dvariance,
                                                     float *constant, float *slope, double *terms, int64_t groups, int64_t count, int64_t rows,
                                                     int64_t channels) {
  const int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
  if (i >= groups * channels) return;
  const Totals t = totals(parts, groups, count, channels, i);
  if (threadIdx.x % 32) return;
  const double s = scale[i], a = s * (weight ? weight[i % channels] : 1.f);
  constant[i] = (float)(((dmean ? dmean[i] : 0.f) - a * t.a) / rows);
  slope[i] = (float)((2. * (dvariance ? dvariance[i] : 0.f) - a * s * s * t.b) / rows);
  terms[i] = s * t.b, terms[groups * channels + i] = t.a;
}

// channel_norm_gradients adds the terms of the groups. For given statistics it also writes their gradients. All results may be null.
extern "C" __global__ void channel_norm_gradients(const double *terms, const float *scale, const float *weight, float *dweight, float *dbias, float *dmean,
                                                  float *dvariance, int64_t groups, int64_t channels) {
  const int64_t d = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (d >= channels) return;
  double w = 0, b = 0;
  for (int64_t g = 0; g < groups; g++) w += terms[g * channels + d], b += terms[(groups + g) * channels + d];
  if (dweight) dweight[d] = (float)w;
  if (dbias) dbias[d] = (float)b;
  const double s = scale[d], a = s * (weight ? weight[d] : 1.f);
  if (dmean) dmean[d] = (float)(-a * b);
  if (dvariance) dvariance[d] = (float)(-a * s * w / 2);
}
