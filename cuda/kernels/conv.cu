// The causal depthwise convolution, followed by SiLU if c.silu is not 0. A thread processes one channel of a tile of steps. The taps, the last inputs and, in the
// backward pass, the gradients of the last inputs are in registers.
#include "conv.cuh"

// MAX is the width if FIXED, else the largest width. STARTS: sequences can start at any step.
template <class T, int MAX, bool FIXED, bool STARTS> struct Walk {
  const Conv &c;
  int64_t b, d, from, to;
  int width;
  float w[MAX], x[MAX];  // x[j] is the input j steps back
  int live;              // number of elements of x that belong to the current sequence
  const T *ahead;        // the input of the next step

  __device__ __forceinline__ Walk(const Conv &conv) : c(conv) {
    width = FIXED ? MAX : (int)c.width;
    d = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, from = blockIdx.y * c.steps, b = blockIdx.z;
    to = min(from + c.steps, c.length);
    ahead = (const T *)c.x + (b * c.length + from) * c.step + d;
  }
  __device__ __forceinline__ bool begins(int64_t t) const { return STARTS && convBegins(c, b, t); }
  __device__ __forceinline__ float input(int64_t t) const { return convInput<T>(c, width, b, t, d); }
  // prepare reads the taps and the inputs before the tile.
  __device__ __forceinline__ void prepare() {
    int64_t back = c.context ? width - 1 : min((int64_t)width - 1, from);
    live = 0;
#pragma unroll
    for (int j = 0; j < MAX; j++) {
      w[j] = x[j] = 0.f;
      if (!FIXED && j >= width) continue;
      w[j] = c.weight[d * width + width - 1 - j];
      if (j < back && live == j) {
        x[j] = input(from - 1 - j);
        live = j + 1;
        if (begins(from - 1 - j)) back = 0;
      }
    }
  }
  // go advances to step t and returns its sum.
  __device__ __forceinline__ float go(int64_t t, float bias) {
#pragma unroll
    for (int j = MAX - 1; j > 0; j--) x[j] = x[j - 1];
    x[0] = value(*ahead);
    ahead += c.step;
    live = begins(t) ? 1 : min(live + 1, width);
    float sum = bias;
#pragma unroll
    for (int j = 0; j < MAX; j++)
      if (j < live) sum = fmaf(w[j], x[j], sum);
    return sum;
  }
};

template <class T, int MAX, bool FIXED, bool STARTS> __device__ __forceinline__ void convForward(const Conv &c) {
  Walk<T, MAX, FIXED, STARTS> walk(c);
  if (walk.d >= c.channels) return;
  walk.prepare();
  const float bias = c.bias ? c.bias[walk.d] : 0.f;
  T *y = (T *)c.y + (walk.b * c.length + walk.from) * c.channels + walk.d;
#pragma unroll 4
  for (int64_t t = walk.from; t < walk.to; t++, y += c.channels) {
    const float sum = walk.go(t, bias);
    *y = to<T>(c.silu ? sum * sigmoid(sum) : sum);
  }
}

template <class T, int MAX, bool FIXED, bool STARTS> __device__ __forceinline__ void convBackward(const Conv &c) {
  Walk<T, MAX, FIXED, STARTS> walk(c);
  if (walk.d >= c.channels) return;
  walk.prepare();
  const int64_t b = walk.b, d = walk.d;
  const int width = walk.width;
  const float bias = c.bias ? c.bias[d] : 0.f;
  float dw[MAX], dx[MAX], dbias = 0.f;
#pragma unroll
  for (int j = 0; j < MAX; j++) dw[j] = dx[j] = 0.f;
  const T *dy = (const T *)c.dy + (b * c.length + walk.from) * c.channels + d;
  T *out = (T *)c.dx + (b * c.length + walk.from - (width - 1)) * c.dstep + d;  // gradient of the input width-1 steps back, whose sum is complete
  const int steps = (int)(walk.to - walk.from), left = (int)min(c.length - walk.from, (int64_t)steps + MAX);
#pragma unroll 4
  for (int i = 0; i < steps + width - 1; i++, dy += c.channels, out += c.dstep) {
    const int64_t t = walk.from + i;
    float g = 0.f;
    int live = 0;
    if (i < left) {
      const float sum = walk.go(t, bias), s = sigmoid(sum);
      g = value(*dy) * (c.silu ? s * fmaf(sum, 1.f - s, 1.f) : 1.f);
      live = walk.live;
    }
#pragma unroll
    for (int j = MAX - 1; j > 0; j--) dx[j] = dx[j - 1];
    dx[0] = 0.f;
    const bool own = i < steps;
    if (own) dbias += g;
#pragma unroll
    for (int j = 0; j < MAX; j++) {
      if (j < live) {
        dx[j] = fmaf(walk.w[j], g, dx[j]);
        if (own) dw[j] = fmaf(g, walk.x[j], dw[j]);
      }
    }
    if (i >= width - 1 || walk.from == 0) {
      const int64_t done = t - (width - 1);
      float v = 0.f;
#pragma unroll
      for (int j = 0; j < MAX; j++)
        if (j == width - 1) v = dx[j];
      if (c.dnext && done >= c.length - (width - 1) && convReachesEnd(c, b, done))
        v += c.dnext[(b * (width - 1) + done - c.length + width - 1) * c.channels + d];
      if (done >= 0)
        *out = to<T>(v);
      else if (c.dcontext)
        c.dcontext[(b * (width - 1) + width - 1 + done) * c.channels + d] = v;
    }
  }
  float *part = c.parts + (b * gridDim.y + blockIdx.y) * (width + 1) * c.channels + d;
#pragma unroll
  for (int j = 0; j < MAX; j++)
    if (j < width) part[(width - 1 - j) * c.channels] = dw[j];
  part[width * c.channels] = dbias;
}

// convNext writes the context of the steps that follow: the last width-1 inputs, zero where a sequence starts after the input.
template <class T, bool STARTS> __device__ __forceinline__ void convNext(const Conv &c) {
  Walk<T, 1, false, STARTS> walk(c);
  if (walk.d >= c.channels) return;
  const int64_t i = blockIdx.y, t = c.length - (walk.width - 1) + i;
  const bool reaches = (t >= 0 || c.context) && convReachesEnd(c, walk.b, t);
  c.next[(walk.b * (walk.width - 1) + i) * c.channels + walk.d] = reaches ? walk.input(t) : 0.f;
}

// conv_weights adds the parts and transposes the gradient of the taps to (channels, width).
extern "C" __global__ void conv_weights(const float *parts, int64_t count, int64_t channels, int64_t width, float *dweight, float *dbias) {
  const int64_t i = (int64_t)blockIdx.x * 32 + threadIdx.x % 32, size = (width + 1) * channels;
  const double sum = columnSum(parts, count, size, i);
  if (threadIdx.x >= 32 || i >= size) return;
  const int64_t tap = i / channels, d = i % channels;
  if (tap < width)
    dweight[d * width + tap] = (float)sum;
  else if (dbias)
    dbias[d] = (float)sum;
}

#define CONV(NAME, T)                                                                                                                   \
  extern "C" __global__ void conv_forward_##NAME##_4(const Conv c) { convForward<T, 4, true, false>(c); }                               \
  extern "C" __global__ void conv_forward_##NAME##_any(const Conv c) { convForward<T, 16, false, true>(c); }                            \
  extern "C" __global__ void conv_forward_##NAME##_4_starts(const Conv c) { convForward<T, 4, true, true>(c); }                         \
  extern "C" __global__ void conv_backward_##NAME##_4(const Conv c) { convBackward<T, 4, true, false>(c); }                             \
  extern "C" __global__ void conv_backward_##NAME##_any(const Conv c) { convBackward<T, 16, false, true>(c); }                          \
  extern "C" __global__ void conv_backward_##NAME##_4_starts(const Conv c) { convBackward<T, 4, true, true>(c); }                       \
  extern "C" __global__ void conv_next_##NAME(const Conv c) { convNext<T, true>(c); }
CONV(float, float)
CONV(bf16, bf16)
