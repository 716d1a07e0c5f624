// The recurrence of a long short-term memory (internal/kernel/lstm.go has the formulas). One launch goes through all steps.
//
// The blocks of a column of the grid, gridDim.x, compute a group of G sequences. They share the units; a warp computes one unit at a time.
// After a step they wait for each other, since each needs the results of all units. So the blocks must be on the device at the same time: a
// cooperative launch guarantees that. Every step reads the whole recurrent weight. A block reads the same part each time, which stays in the
// first-level cache of its multiprocessor if it fits.
#include "types.cuh"

struct LSTM {
  int64_t batch, length, width, first;  // first: the first sequence of this launch
  const float *z, *r, *h, *c;           // r: (4·width, width) in the forward pass, its transpose in the backward pass; h, c: may be null
  const uint8_t *start;
  float *y, *nextH, *nextC;
  float *gates, *cells;  // the activated gates (batch, length, 4·width), null if not kept; c (batch, length, width), or (batch, width) if not kept
  uint32_t *arrived;     // for each group how many times its blocks have arrived, 0 at first; null if there is one step
  // The backward pass.
  const float *dy, *dnextH, *dnextC;
  float *dz, *dh, *dc, *dcells;  // dcells: (batch, width), the gradient of c of the step before
};

__device__ __forceinline__ float accurateSigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// meet waits until all blocks of the group have called it n times. What they have written is then visible to __ldcg.
__device__ __forceinline__ void meet(uint32_t *arrived, int64_t n) {
  __syncthreads();
  if (threadIdx.x == 0) {
    const uint32_t all = (uint32_t)(n * gridDim.x);
    __threadfence();
    atomicAdd(arrived, 1u);
    while ((int32_t)(*(volatile uint32_t *)arrived - all) < 0) __nanosleep(20);
    __threadfence();
  }
  __syncthreads();
}

// products returns in lane l the product of row l / G % N of a weight, at rows + l / G % N * rowStep, and vector l % G, at x + l % G * step, of n
// elements. All threads of a block call it with the same vectors. Vectors from count on are zero. If again is true and the vectors fit into shared
// memory, they are still there from the last call.
template <int N, int G>
__device__ __forceinline__ float products(const float *rows, int64_t rowStep, const float *x, int64_t step, int count, int64_t n, bool there, bool again) {
  constexpr int PART = 8192 / G;
  __shared__ float part[G][PART];
  const int lane = threadIdx.x % 32;
  float sum[N * G];
#pragma unroll
  for (int k = 0; k < N * G; k++) sum[k] = 0.f;
  for (int64_t from = 0; from < n; from += PART) {
    const int size = (int)min((int64_t)PART, n - from);
    if (!again || n > PART) {
      __syncthreads();
      for (int i = threadIdx.x; i < size; i += blockDim.x) {
#pragma unroll
        for (int g = 0; g < G; g++) part[g][i] = g < count ? __ldcg(x + g * step + from + i) : 0.f;
      }
      __syncthreads();
    }
    if (!there) continue;
#pragma unroll 4
    for (int i = lane; i < size; i += 32) {
#pragma unroll
      for (int q = 0; q < N; q++) {
        const float w = __ldg(rows + q * rowStep + from + i);
#pragma unroll
        for (int g = 0; g < G; g++) sum[q * G + g] = fmaf(w, part[g][i], sum[q * G + g]);
      }
    }
  }
  return warpTotal(sum);
}

// In lstmForward, lane q G + g computes gate q of sequence g, and lane g its state.
template <int G> __device__ __forceinline__ void lstmForward(const LSTM &l) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, g = lane % G, q = lane / G % 4;
  const int64_t w = l.width, b0 = l.first + (int64_t)blockIdx.y * G, b = b0 + g;
  const int count = (int)min((int64_t)G, l.batch - b0);
  for (int64_t t = 0; t < l.length; t++) {
    const int64_t row = b * l.length + t;
    const float *h = t > 0 ? l.y + (b0 * l.length + t - 1) * w : l.h + b0 * w;  // of the step before
    const bool any = t > 0 || l.h, starts = l.start && g < count && l.start[row], fresh = starts || (t == 0 && !l.c);  // fresh: c is zero
    for (int64_t unit = (int64_t)blockIdx.x * warps; unit < w; unit += gridDim.x * warps) {
      const int64_t j = unit + warp, cell = (l.gates ? row : b) * w + j, cellBefore = l.gates ? cell - w : cell;
      const bool there = j < w, mine = there && g < count;
      float v = mine ? l.z[row * 4 * w + q * w + j] : 0.f, past = 0.f;
      if (mine && !fresh) past = t > 0 ? l.cells[cellBefore] : l.c[b * w + j];
      if (any) {
        const float sum = products<4, G>(l.r + j * w, w * w, h, t > 0 ? l.length * w : w, count, w, there, unit > (int64_t)blockIdx.x * warps);
        if (!starts) v += sum;
      }
      v = q == 2 ? tanhf(v) : q == 1 && fresh ? 0.f : accurateSigmoid(v);  // a forget gate without effect is zero, also if it were NaN
      const float i = __shfl_sync(~0u, v, g), f = __shfl_sync(~0u, v, G + g), in = __shfl_sync(~0u, v, 2 * G + g), o = __shfl_sync(~0u, v, 3 * G + g);
      if (!mine || lane >= 4 * G) continue;
      if (l.gates) l.gates[row * 4 * w + q * w + j] = v;
      if (lane >= G) continue;
      const float c = fmaf(f, past, i * in), out = o * tanhf(c);
      l.cells[cell] = c;
      l.y[row * w + j] = out;
      if (l.nextH && t == l.length - 1) l.nextH[b * w + j] = out;
      if (l.nextC && t == l.length - 1) l.nextC[b * w + j] = c;
    }
    if (t + 1 < l.length) meet(l.arrived + blockIdx.y, t + 1);
  }
}

// lstmBackward computes dz, dh and dc. Step -1 is the initial state. Lane g computes sequence g.
template <int G> __device__ __forceinline__ void lstmBackward(const LSTM &l) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, g = lane % G;
  const int64_t w = l.width, b0 = l.first + (int64_t)blockIdx.y * G, b = b0 + g;
  const int count = (int)min((int64_t)G, l.batch - b0);
  const int64_t end = l.dh || l.dc ? -1 : 0;
  for (int64_t t = l.length - 1; t >= end; t--) {
    const bool last = t == l.length - 1;
    const int64_t row = b * l.length + t;
    const bool cut = !last && l.start && g < count && l.start[row + 1];  // the step after begins a sequence
    for (int64_t unit = (int64_t)blockIdx.x * warps; unit < w; unit += gridDim.x * warps) {
      const int64_t j = unit + warp;
      float dh = 0.f, dc = 0.f;
      if (!last)
        dh = products<1, G>(l.r + j * 4 * w, 0, l.dz + (b0 * l.length + t + 1) * 4 * w, l.length * 4 * w, count, 4 * w, j < w,
                            unit > (int64_t)blockIdx.x * warps);
      if (j >= w || g >= count || lane >= G) continue;
      if (cut)
        dh = 0.f;
      else if (!last)
        dc = l.dcells[b * w + j];
      else {
        if (l.dnextH) dh = l.dnextH[b * w + j];
        if (l.dnextC) dc = l.dnextC[b * w + j];
      }
      if (t < 0) {
        if (l.dh) l.dh[b * w + j] = dh;
        if (l.dc) l.dc[b * w + j] = dc;
        continue;
      }
      const bool fresh = (t == 0 && !l.c) || (l.start && l.start[row]);
      const float past = fresh ? 0.f : t > 0 ? l.cells[(row - 1) * w + j] : l.c[b * w + j], c = tanhf(l.cells[row * w + j]);
      const float *gate = l.gates + row * 4 * w + j;
      const float i = gate[0], f = gate[w], in = gate[2 * w], o = gate[3 * w];
      if (l.dy) dh += l.dy[row * w + j];
      dc += dh * o * (1.f - c * c);
      float *d = l.dz + row * 4 * w + j;
      d[0] = dc * in * i * (1.f - i);
      d[w] = fresh ? 0.f : dc * past * f * (1.f - f);
      d[2 * w] = dc * i * (1.f - in * in);
      d[3 * w] = dh * c * o * (1.f - o);
      l.dcells[b * w + j] = dc * f;
    }
    if (t > end) meet(l.arrived + blockIdx.y, l.length - t);
  }
}

extern "C" __global__ __launch_bounds__(256) void lstm_forward_1(const LSTM l) { lstmForward<1>(l); }
extern "C" __global__ __launch_bounds__(256) void lstm_forward_8(const LSTM l) { lstmForward<8>(l); }
extern "C" __global__ __launch_bounds__(256) void lstm_backward_1(const LSTM l) { lstmBackward<1>(l); }
extern "C" __global__ __launch_bounds__(256) void lstm_backward_8(const LSTM l) { lstmBackward<8>(l); }

// lstm_transpose writes to (width, rows), the transpose of from (rows, width).
extern "C" __global__ void lstm_transpose(const float *from, float *to, int64_t rows, int64_t width) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < rows * width) to[i] = from[i % rows * width + i / rows];
}

// lstm_before writes the h that each step reads, (batch, length, width), zero where it reads none.
extern "C" __global__ void lstm_before(const LSTM l, float *before) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, w = l.width, row = i / w, j = i % w, b = row / l.length, t = row % l.length;
  if (i >= l.batch * l.length * w) return;
  float h = 0.f;
  if (!(l.start && l.start[row])) {
    if (t > 0)
      h = l.gates[(row - 1) * 4 * w + 3 * w + j] * tanhf(l.cells[(row - 1) * w + j]);
    else if (l.h)
      h = l.h[b * w + j];
  }
  before[i] = h;
}
