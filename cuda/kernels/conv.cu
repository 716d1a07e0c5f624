// The causal depthwise convolution, followed by SiLU if c.silu is not 0. A thread processes one channel of a tile of steps. The taps, the last inputs and, in the
// backward pass, the gradients of the last inputs are in registers.
#include "conv.cuh"
#include "vector.cuh"

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

// Taps computes the usual convolution, four taps, for V neighbouring channels: x[j] holds the inputs j + 1 steps back, zeros before the
// sequence's first step. STARTS: as in Walk.
template <class T, int V, bool STARTS> struct Taps {
  float w[4][V], x[3][V], bias[V];

  __device__ __forceinline__ Taps(const Conv &c, int64_t b, int64_t from, int64_t d) {
#pragma unroll
    for (int v = 0; v < V; v++) {
      float taps[4];
      load<4>(c.weight + 4 * (d + v), taps);
#pragma unroll
      for (int j = 0; j < 4; j++) w[j][v] = taps[3 - j];
      bias[v] = c.bias ? c.bias[d + v] : 0.f;
    }
    bool live = true;
#pragma unroll
    for (int j = 0; j < 3; j++) {
      const int64_t t = from - 1 - j;
#pragma unroll
      for (int v = 0; v < V; v++) x[j][v] = 0.f;
      if (STARTS && !live) continue;
      live = !STARTS || !convBegins(c, b, t);
      if (t >= 0)
        load<V>((const T *)c.x + (b * c.length + t) * c.step + d, x[j]);
      else if (c.context)
        load<V>(c.context + (b * 3 + 3 + t) * c.channels + d, x[j]);
    }
  }
  // begin begins a sequence.
  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int j = 0; j < 3; j++)
#pragma unroll
      for (int v = 0; v < V; v++) x[j][v] = 0.f;
  }
  // sum returns a channel's sum at the step with the inputs next, and advance goes to the step after it.
  __device__ __forceinline__ float sum(int v, float next) const {
    return fmaf(w[3][v], x[2][v], fmaf(w[2][v], x[1][v], fmaf(w[1][v], x[0][v], fmaf(w[0][v], next, bias[v]))));
  }
  __device__ __forceinline__ void advance(int v, float next) { x[2][v] = x[1][v], x[1][v] = x[0][v], x[0][v] = next; }
};

// convStartsIn reports whether sequences start between the steps from and to. All lanes of a warp must call it.
__device__ __forceinline__ bool convStartsIn(const Conv &c, int64_t b, int64_t from, int64_t to) {
  bool starts = false;
  for (int64_t t = from + threadIdx.x % 32; t < to; t += 32) starts = starts || convBegins(c, b, t);
  return __ballot_sync(~0u, starts);
}

// convForwardTile computes V channels of steps from from on. It reads U steps at a time, while it computes the U before them.
template <class T, int V, int U, bool STARTS>
__device__ __forceinline__ void convForwardTile(const Conv &c, int64_t b, int64_t from, int64_t d) {
  const int steps = (int)min(c.steps, c.length - from);
  const T *x = (const T *)c.x + (b * c.length + from) * c.step + d;
  T *y = (T *)c.y + (b * c.length + from) * c.channels + d;
  const uint8_t *start = c.start + b * c.length + from;
  Pack<T, V> ahead[U];
  bool begins[U];
  auto read = [&](int i) {
#pragma unroll
    for (int u = 0; u < U; u++) {
      if (i + u < steps) ahead[u].read(x + (i + u) * c.step);
      if (STARTS) begins[u] = i + u < steps && start[i + u];
    }
  };
  read(0);
  Taps<T, V, STARTS> taps(c, b, from, d);
  for (int i = 0; i < steps; i += U, y += U * c.channels) {
    Pack<T, V> now[U];
    bool first[U];
#pragma unroll
    for (int u = 0; u < U; u++) now[u] = ahead[u], first[u] = STARTS && begins[u];
    read(i + U);
#pragma unroll
    for (int u = 0; u < U; u++) {
      if (i + u >= steps) break;
      if (first[u]) taps.begin();
      float out[V];
#pragma unroll
      for (int v = 0; v < V; v++) {
        const float next = now[u].at(v), sum = taps.sum(v, next);
        out[v] = c.silu ? sum * sigmoid(sum) : sum;
        taps.advance(v, next);
      }
      store<V>(y + u * c.channels, out);
    }
  }
}

// convForward4 computes V channels of a tile of c.steps steps. STARTS: as in Walk.
template <class T, int V, int U, bool STARTS> __device__ __forceinline__ void convForward4(const Conv &c) {
  const int64_t d = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V, b = blockIdx.z, from = blockIdx.y * c.steps;
  const bool starts = STARTS && convStartsIn(c, b, from - 2, from + c.steps);
  if (d >= c.channels) return;
  if (STARTS && starts)
    convForwardTile<T, V, U, true>(c, b, from, d);
  else
    convForwardTile<T, V, U, false>(c, b, from, d);
}

// convBackwardTile computes the gradients of the inputs of own steps from from on, and adds to dw those of taps and bias. A tile that is FULL has
// c.steps steps, a multiple of U, and three more after them.
template <class T, int V, int U, bool FULL, bool STARTS>
__device__ __forceinline__ void convBackwardTile(const Conv &c, int64_t b, int64_t from, int64_t d, float (&dw)[5][V]) {
  const int left = FULL ? (int)c.steps + 3 : (int)min(c.length - from, c.steps + 3), own = FULL ? (int)c.steps : min((int)c.steps, left);
  const T *x = (const T *)c.x + (b * c.length + from) * c.step + d, *dy = (const T *)c.dy + (b * c.length + from) * c.channels + d;
  T *dx = (T *)c.dx + (b * c.length + from - 3) * c.dstep + d;  // the gradient of an input is complete three steps later
  Pack<T, V> ax[U], ay[U];
  bool begins[U];
  auto read = [&](int i) {
#pragma unroll
    for (int u = 0; u < U; u++) {
      if (STARTS) begins[u] = convBegins(c, b, from + i + u);
      ax[u].clear(), ay[u].clear();
      if (i + u < left) ax[u].read(x + (i + u) * c.step), ay[u].read(dy + (i + u) * c.channels);
    }
  };
  read(0);
  Taps<T, V, STARTS> taps(c, b, from, d);
  float g[3][V];  // the gradients of the inputs of the last three steps, to which later steps add
  int live = 4;   // number of inputs of a step's sum, if it depends on starts; more than there are before the tile, for inputs that are not its own
#pragma unroll
  for (int j = 0; j < 3; j++)
#pragma unroll
    for (int v = 0; v < V; v++) g[j][v] = 0.f;
  // some computes the first n of the steps from i on, whose inputs were read.
  auto some = [&](int i, int n, bool ours, bool more) {
    Pack<T, V> nx[U], ny[U];
    bool first[U];
#pragma unroll
    for (int u = 0; u < U; u++) nx[u] = ax[u], ny[u] = ay[u], first[u] = STARTS && begins[u];
    if (more) read(i + U);
#pragma unroll
    for (int u = 0; u < U; u++) {
      if (u >= n) break;
      if (first[u]) taps.begin(), live = 0;
      if (STARTS) live++;
      float done[V];
#pragma unroll
      for (int v = 0; v < V; v++) {
        const float next = nx[u].at(v), sum = taps.sum(v, next), s = sigmoid(sum);
        float now = ny[u].at(v) * (c.silu ? s * fmaf(sum, 1.f - s, 1.f) : 1.f);
        if (!FULL && i + u >= left) now = 0.f;
        if (ours && (FULL || i + u < own)) {
          dw[0][v] = fmaf(now, next, dw[0][v]);
#pragma unroll
          for (int j = 0; j < 3; j++) dw[j + 1][v] = fmaf(now, taps.x[j][v], dw[j + 1][v]);
          dw[4][v] += now;
        }
        auto add = [&](int j) { return !STARTS || live > j ? fmaf(taps.w[j][v], now, g[j - 1][v]) : g[j - 1][v]; };
        done[v] = add(3), g[2][v] = add(2), g[1][v] = add(1), g[0][v] = taps.w[0][v] * now;
        taps.advance(v, next);
      }
      if (i + u >= 3 && (FULL || i + u < own + 3)) store<V>(dx + (i + u) * c.dstep, done);
    }
  };
  if (FULL) {
    for (int i = 0; i < own; i += U) some(i, U, true, true);
    some(own, 3, false, false);
  } else {
    for (int i = 0; i < own + 3; i += U) some(i, U, true, true);
  }
}

// convBackward4 is the backward pass of a scan from zero whose context has no gradient. A block has TILES tiles of steps of 32·V channels, one
// for each warp, and adds their parts of the gradients of taps and bias.
template <class T, int V, int U, int TILES, bool STARTS> __device__ __forceinline__ void convBackward4(const Conv &c) {
  __shared__ float sums[TILES][5 * V][32];
  const int lane = threadIdx.x % 32, tile = threadIdx.x / 32;
  const int64_t d = ((int64_t)blockIdx.x * 32 + lane) * V, b = blockIdx.z, from = ((int64_t)blockIdx.y * TILES + tile) * c.steps;
  float dw[5][V];  // of the taps, and of the bias
#pragma unroll
  for (int j = 0; j < 5; j++)
#pragma unroll
    for (int v = 0; v < V; v++) dw[j][v] = 0.f;
  const bool starts = STARTS && convStartsIn(c, b, from - 2, from + c.steps + 3);
  if (d < c.channels && from < c.length) {
    if (STARTS && starts)
      convBackwardTile<T, V, U, false, true>(c, b, from, d, dw);
    else if (from + c.steps + 3 <= c.length)
      convBackwardTile<T, V, U, true, false>(c, b, from, d, dw);
    else
      convBackwardTile<T, V, U, false, false>(c, b, from, d, dw);
  }
#pragma unroll
  for (int j = 0; j < 5; j++)
#pragma unroll
    for (int v = 0; v < V; v++) sums[tile][j * V + v][lane] = dw[j][v];
  __syncthreads();
  for (int i = threadIdx.x; i < 5 * V * 32; i += 32 * TILES) {
    const int j = i / 32 / V, v = i / 32 % V;
    const int64_t channel = ((int64_t)blockIdx.x * 32 + i % 32) * V + v;
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < TILES; k++) sum += sums[k][i / 32][i % 32];
    if (channel < c.channels) c.parts[((b * gridDim.y + blockIdx.y) * 5 + (j < 4 ? 3 - j : 4)) * c.channels + channel] = sum;
  }
}

// convNext writes the context of the steps that follow: the last width-1 inputs, zero where a sequence starts after the input.
template <class T, bool STARTS> __device__ __forceinline__ void convNext(const Conv &c) {
  Walk<T, 1, false, STARTS> walk(c);
  if (walk.d >= c.channels) return;
  const int64_t i = blockIdx.y, t = c.length - (walk.width - 1) + i;
  const bool reaches = (t >= 0 || c.context) && convReachesEnd(c, walk.b, t);
  c.next[(walk.b * (walk.width - 1) + i) * c.channels + walk.d] = reaches ? walk.input(t) : 0.f;
}

#define CONV(NAME, T)                                                                                                                   \
  extern "C" __global__ void conv_forward_##NAME##_4(const Conv c) { convForward<T, 4, true, false>(c); }                               \
  extern "C" __global__ void conv_forward_##NAME##_any(const Conv c) { convForward<T, 16, false, true>(c); }                            \
  extern "C" __global__ void conv_forward_##NAME##_4_starts(const Conv c) { convForward<T, 4, true, true>(c); }                         \
  extern "C" __global__ void conv_backward_##NAME##_4(const Conv c) { convBackward<T, 4, true, false>(c); }                             \
  extern "C" __global__ void conv_backward_##NAME##_any(const Conv c) { convBackward<T, 16, false, true>(c); }                          \
  extern "C" __global__ void conv_backward_##NAME##_4_starts(const Conv c) { convBackward<T, 4, true, true>(c); }                       \
  extern "C" __global__ void conv_forward_##NAME##_vectors(const Conv c) { convForward4<T, 4, 2, false>(c); }                             \
  extern "C" __global__ __launch_bounds__(64, 16) void conv_forward_##NAME##_vectors_starts(const Conv c) {                               \
    convForward4<T, 4, 2, true>(c);                                                                                                     \
  }                                                                                                                                     \
  extern "C" __global__ __launch_bounds__(256) void conv_backward_##NAME##_vectors(const Conv c) {                                      \
    convBackward4<T, 2, 4, 8, false>(c);                                                                                                \
  }                                                                                                                                     \
  extern "C" __global__ __launch_bounds__(256, sizeof(T) == 4 ? 2 : 3) void conv_backward_##NAME##_vectors_starts(const Conv c) {       \
    convBackward4<T, 2, 4, 8, true>(c);                                                                                                 \
  }                                                                                                                                     \
  extern "C" __global__ void conv_next_##NAME(const Conv c) { convNext<T, true>(c); }
CONV(float, float)
CONV(bf16, bf16)
