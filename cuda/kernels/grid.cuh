// The selective scan over the cells of a grid, in K directions at once. A direction reads the cells in an order of its own. All operands
// are in the order of the cells: (batch, cells, channels), so nothing is gathered.
//
// A warp goes along one direction of one sequence, for 32 V neighbouring channels and N states of them. A thread has V channels, with their
// states in registers. It processes T steps together and reads the operands of the next T ahead. A warp needs no other warp: the results of
// directions, the sums over channels and the sums over sequences are parts, which other kernels add in a fixed order.
#pragma once
#include <type_traits>

#include "scan.cuh"
#include "vector.cuh"

// Grid has the sizes and addresses of a scan. gridArgs in cuda/grid_scan.go has the same fields. Absent operands are null.
struct Grid {
  int64_t batch, cells, channels, state, directions;
  int64_t groups;               // of N states. A group of a direction computes its part of y, du and dΔ
  int64_t warps;                // that share the channels
  int64_t chunks, chunkSteps;   // long orders with few channels are cut into chunks that run at the same time
  int64_t uRow, uApart;         // elements between two cells and between two directions; 0 if the directions share u
  int64_t bStep, cStep;         // elements between two directions of B and C; cells are directions times as far apart
  int64_t yRow, yApart, dyRow, dyApart, duRow, duApart, ddeltaRow, ddeltaApart;  // apart: between groups of directions, of dy: between directions
  int64_t softplus, alog, vectors;  // vectors: N neighbouring numbers of B and C are aligned
  const int32_t *order;
  const void *u, *delta;
  const float *A;
  const void *B, *C;
  const float *D, *bias;
  void *y;
  float *checkpoints;           // (batch, tiles of T steps, directions, state, channels): the states before each tile
  float *states, *carries;      // (batch, chunks, directions, state, channels), of states and of their gradients: first what leaves a chunk, then what
                                // enters it. A gradient enters a chunk from the chunk after it. Null if there is one chunk
  float *sums;                  // (batch, chunks, directions, channels): Σ Δ of each chunk
  const void *dy;
  void *du, *ddelta;
  float *dB, *dC;               // (warps, batch, cells, directions, state)
  float *dA, *dD, *dbias;       // (batch, chunks, directions, channels, state), (batch, chunks, directions, channels)
};

// Raw is V neighbouring activations as they are in memory.
template <class T, int V> struct Raw : Pack<T, V> {};
template <class T> struct Raw<T, 1> {
  T v;
  __device__ __forceinline__ void read(const T *p) { v = *p; }
  __device__ __forceinline__ float at(int) const { return value(v); }
};

__device__ __forceinline__ void put(float *p, const float (&x)[1]) { *p = x[0]; }
__device__ __forceinline__ void put(bf16 *p, const float (&x)[1]) { p->bits = (uint16_t)narrowTwo(x[0], 0.f); }
template <class T, int V> __device__ __forceinline__ void put(T *p, const float (&x)[V]) { store<V>(p, x); }

// Ahead is what a thread reads ahead for a tile. With one state it includes B of step lane % TS or, in the second TS lanes, C of that step.
template <class T, int V, int TS> struct Ahead {
  Raw<T, V> u[TS], delta[TS], dy[TS];
  T bc;
};

// GridWarp is the part of the scan that a warp computes.
template <class T, int N, int V, int TS> struct GridWarp {
  const Grid &s;
  int64_t warp, b, chunk, from, to, row;  // row: of the first cell of the sequence
  int k, kg, n, d;                        // direction, group of it, first state, first channel
  bool exists, live;                      // live: the thread has channels. The others compute those of the last thread that has
  const int32_t *order;

  __device__ __forceinline__ GridWarp(const Grid &g) : s(g) {
    int64_t w = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    warp = w % s.warps, w /= s.warps;
    chunk = w % s.chunks, w /= s.chunks;
    kg = (int)(w % (s.directions * s.groups)), b = w / (s.directions * s.groups);
    exists = b < s.batch;
    k = kg / (int)s.groups, n = kg % (int)s.groups * N;
    const int64_t own = (warp * 32 + threadIdx.x % 32) * V;
    live = own < s.channels;
    d = (int)min(own, s.channels - V);
    from = chunk * s.chunkSteps, to = min(from + s.chunkSteps, s.cells);
    row = b * s.cells;
    order = s.order + k * s.cells;
  }
  __device__ __forceinline__ int64_t parameter(int v) const { return k * s.channels + d + v; }
  // has reports whether state i of the warp's N exists.
  __device__ __forceinline__ bool has(int i) const { return N == 1 || n + i < (int)s.state; }
  // rates reads A·log2(e). States beyond the last have the last one's, as paddedRate explains; their B and C are 0.
  __device__ __forceinline__ void rates(float (&rate)[N][V]) const {
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
      for (int v = 0; v < V; v++) rate[i][v] = decay(v, min(n + i, (int)s.state - 1)) * log2e;
  }
  __device__ __forceinline__ float decay(int v, int state) const {
    const float a = s.A[parameter(v) * s.state + state];
    return s.alog ? -__expf(a) : a;
  }
  // cells returns the cell of step lane % TS of the tile at step t, or of the nearest step of the part. at returns that of step i.
  __device__ __forceinline__ int cells(int64_t t) const { return order[max(from, min(t + threadIdx.x % TS, to - 1))]; }
  __device__ __forceinline__ int at(int cells, int i) const { return __shfl_sync(~0u, cells, i); }
  template <class X> __device__ __forceinline__ X *base(X *p, int64_t stride, int64_t apart) const { return p + row * stride + apart + d; }
  __device__ __forceinline__ const T *u() const { return base((const T *)s.u, s.uRow, k * s.uApart); }
  __device__ __forceinline__ const T *delta() const { return base((const T *)s.delta, s.directions * s.channels, k * s.channels); }
  __device__ __forceinline__ const T *projection(const void *p, int64_t step) const {
    return (const T *)p + (row * s.directions + k) * step + n;
  }
  __device__ __forceinline__ const T *projection(const T *p, int cell, int64_t step) const {
    return p + (int64_t)cell * (int)(s.directions * step);
  }
  // early reads what Ahead.bc has.
  __device__ __forceinline__ T early(const T *B, const T *C, int cells) const {
    return threadIdx.x / TS % 2 ? *projection(C, cells, s.cStep) : *projection(B, cells, s.bStep);
  }
  // coefficients returns the N numbers of B, or with index TS + i of C, of step i. With one state it takes them from what was read early.
  __device__ __forceinline__ void coefficients(T early, int index, const T *p, int cell, int64_t step, float (&x)[N]) const {
    if constexpr (N == 1) {
      x[0] = __shfl_sync(~0u, value(early), index);
      return;
    }
    const T *at = projection(p, cell, step);
    if constexpr (N >= 4) {
      if (s.vectors) {
        constexpr int W = N >= 8 && sizeof(T) == 2 ? 8 : 4;
#pragma unroll
        for (int i = 0; i < N; i += W) {
          float part[W];
          load<W>(at + i, part);
#pragma unroll
          for (int j = 0; j < W; j++) x[i + j] = part[j];
        }
        return;
      }
    }
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = has(i) ? value(at[i]) : 0.f;
  }
  // steps turns Δ before its softplus into Δ, of all steps of a tile at once: a branch for each step would leave no work to overlap.
  __device__ __forceinline__ void steps(const Raw<T, V> (&raw)[TS], const float (&bias)[V], float (&dt)[TS][V]) const {
#pragma unroll
    for (int i = 0; i < TS; i++)
#pragma unroll
      for (int v = 0; v < V; v++) dt[i][v] = raw[i].at(v) + bias[v];
    if (s.softplus) {
#pragma unroll
      for (int i = 0; i < TS; i++)
#pragma unroll
        for (int v = 0; v < V; v++) dt[i][v] = softplusOf(dt[i][v]);
    }
  }
  // of returns the address of the states of this warp's channels: before a tile, or of a chunk.
  __device__ __forceinline__ float *of(float *p, int64_t count, int64_t index) const {
    return p + (((b * count + index) * s.directions + k) * s.state + n) * s.channels + d;
  }
  __device__ __forceinline__ float *checkpoint(int64_t t) const { return of(s.checkpoints, (s.cells + TS - 1) / TS, t / TS); }
  __device__ __forceinline__ void read(const float *p, float (&h)[N][V]) const {
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
      for (int v = 0; v < V; v++) h[i][v] = p && has(i) ? p[i * s.channels + v] : 0.f;
  }
  __device__ __forceinline__ void write(float *p, const float (&h)[N][V]) const {
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
      for (int v = 0; v < V; v++)
        if (live && has(i)) p[i * s.channels + v] = h[i][v];
  }
  __device__ __forceinline__ float &sum(int v) const { return s.sums[((b * s.chunks + chunk) * s.directions + k) * s.channels + d + v]; }
};

// Pass is what a kernel computes as it goes along a chunk in its order. FORWARD: y and the checkpoints, unless they are null. ENDS: the states that leave
// the chunk, from zero, and Σ Δ. CARRIES: what the chunk passes to the chunk before it, and Σ Δ. With P_t the product of the decays from the chunk's first step
// to step t, that is the gradient Σ P_t·C_t·dy_t of the state that enters the chunk. AGAIN: CARRIES and the checkpoints.
enum Pass { FORWARD, ENDS, CARRIES, AGAIN };

template <class T, int N, int V, int TS, Pass PASS> __device__ __forceinline__ void gridForward(const Grid &s) {
  constexpr bool STATES = PASS != CARRIES, CARRY = PASS == CARRIES || PASS == AGAIN;
  const GridWarp<T, N, V, TS> w(s);
  if (!w.exists) return;
  float rate[N][V], h[N][V], P[N][V], carry[N][V], D[V], bias[V], total[V];
  w.rates(rate);
  w.read((PASS == FORWARD || PASS == AGAIN) && s.states ? w.of(s.states, s.chunks, w.chunk) : nullptr, h);
#pragma unroll
  for (int v = 0; v < V; v++) {
    D[v] = s.D && w.n == 0 ? s.D[w.parameter(v)] : 0.f;
    bias[v] = s.bias ? s.bias[w.parameter(v)] : 0.f;
    total[v] = 0.f;
#pragma unroll
    for (int m = 0; m < N; m++) P[m][v] = 1.f, carry[m][v] = 0.f;
  }
  const T *u = w.u(), *delta = w.delta(), *B = w.projection(s.B, s.bStep), *C = w.projection(s.C, s.cStep);
  const T *dy = w.base((const T *)s.dy, s.dyRow, w.k * s.dyApart);
  const int uRow = (int)s.uRow, deltaRow = (int)(s.directions * s.channels), yRow = (int)s.yRow, dyRow = (int)s.dyRow;
  T *y = w.base((T *)s.y, s.yRow, w.kg * s.yApart);
  Ahead<T, V, TS> ahead;
  auto read = [&](int cells) {
    if (N == 1) ahead.bc = w.early(B, C, cells);
#pragma unroll
    for (int i = 0; i < TS; i++) {
      const int64_t c = w.at(cells, i);
      if (STATES) ahead.u[i].read(u + c * uRow);
      ahead.delta[i].read(delta + c * deltaRow);
      if (CARRY) ahead.dy[i].read(dy + c * dyRow);
    }
  };
  int cells = w.cells(w.from), next = w.cells(w.from + TS);
  read(cells);
  auto tile = [&](int64_t t0, auto full) {
    const Ahead<T, V, TS> now = ahead;
    read(next);
    const int later = w.cells(t0 + 2 * TS);
    if ((PASS == FORWARD || PASS == AGAIN) && s.checkpoints) w.write(w.checkpoint(t0), h);
    float dt[TS][V], out[TS][V];
    w.steps(now.delta, bias, dt);
#pragma unroll
    for (int i = 0; i < TS; i++) {
      if (!decltype(full)::value && t0 + i >= w.to) break;
      float b[N], c[N];
      const int cell = w.at(cells, i);
      if (STATES) w.coefficients(now.bc, i, B, cell, s.bStep, b);
      if (PASS != ENDS) w.coefficients(now.bc, TS + i, C, cell, s.cStep, c);
#pragma unroll
      for (int v = 0; v < V; v++) {
        const float x = STATES ? now.u[i].at(v) : 0.f, dx = dt[i][v] * x;
        if (PASS != FORWARD) total[v] += dt[i][v];
        out[i][v] = D[v] * x;
#pragma unroll
        for (int m = 0; m < N; m++) {
          const float a = exp2Approx(dt[i][v] * rate[m][v]);
          if (STATES) h[m][v] = fmaf(a, h[m][v], dx * b[m]);
          if (PASS == FORWARD) out[i][v] = fmaf(c[m], h[m][v], out[i][v]);
          if (CARRY) P[m][v] *= a, carry[m][v] = fmaf(P[m][v], c[m] * now.dy[i].at(v), carry[m][v]);
        }
      }
    }
    if (PASS == FORWARD && s.y) {
#pragma unroll
      for (int i = 0; i < TS; i++) {
        if (!decltype(full)::value && t0 + i >= w.to) break;
        const int64_t cell = w.at(cells, i);
        if (w.live) put(y + cell * yRow, out[i]);
      }
    }
    cells = next, next = later;
  };
  int64_t t0 = w.from;
  for (; t0 + TS <= w.to; t0 += TS) tile(t0, std::true_type());
  if (t0 < w.to) tile(t0, std::false_type());
  if (PASS != FORWARD) {
    w.write(w.of(PASS == ENDS ? s.states : s.carries, s.chunks, w.chunk), PASS == ENDS ? h : carry);
#pragma unroll
    for (int v = 0; v < V; v++)
      if (w.live && w.n == 0) w.sum(v) = total[v];
  }
}

// gridBackward computes all gradients, those of parameters, B and C as parts.
template <class T, int N, int V, int TS> __device__ __forceinline__ void gridBackward(const Grid &s) {
  const GridWarp<T, N, V, TS> w(s);
  if (!w.exists) return;
  constexpr int SB = TS < 16 / N ? TS : 16 / N;  // steps whose sums over channels are made together
  constexpr bool KEEP = N * TS * V <= 16;        // decays stay in registers
  float rate[N][V], carry[N][V], dA[N][V], D[V], bias[V], dD[V], dbias[V];
  w.rates(rate);
  w.read(s.carries ? w.of(s.carries, s.chunks, w.chunk) : nullptr, carry);
#pragma unroll
  for (int v = 0; v < V; v++) {
    D[v] = s.D && w.n == 0 ? s.D[w.parameter(v)] : 0.f;
    bias[v] = s.bias ? s.bias[w.parameter(v)] : 0.f;
    dD[v] = dbias[v] = 0.f;
#pragma unroll
    for (int m = 0; m < N; m++) dA[m][v] = 0.f;
  }
  const T *u = w.u(), *delta = w.delta(), *B = w.projection(s.B, s.bStep), *C = w.projection(s.C, s.cStep);
  const T *dy = w.base((const T *)s.dy, s.dyRow, w.k * s.dyApart);
  T *du = w.base((T *)s.du, s.duRow, w.kg * s.duApart), *ddelta = w.base((T *)s.ddelta, s.ddeltaRow, w.kg * s.ddeltaApart);
  const int uRow = (int)s.uRow, deltaRow = (int)(s.directions * s.channels), dyRow = (int)s.dyRow, duRow = (int)s.duRow;
  const int ddeltaRow = (int)s.ddeltaRow, lane = threadIdx.x % 32;
  Ahead<T, V, TS> ahead;
  float start[N][V];
  auto read = [&](int64_t t0, int cells) {
    if (N == 1) ahead.bc = w.early(B, C, cells);
#pragma unroll
    for (int i = 0; i < TS; i++) {
      const int64_t c = w.at(cells, i);
      ahead.u[i].read(u + c * uRow), ahead.delta[i].read(delta + c * deltaRow), ahead.dy[i].read(dy + c * dyRow);
    }
    w.read(w.checkpoint(max(t0, w.from)), start);
  };
  int64_t t0 = (w.to - 1) / TS * TS;
  int cells = w.cells(t0), next = w.cells(t0 - TS);
  read(t0, cells);
  auto tile = [&](auto full) {
    auto inside = [&](int i) { return decltype(full)::value || t0 + i < w.to; };
    const Ahead<T, V, TS> now = ahead;
    float h0[N][V], hs[TS][N][V], decays[KEEP ? TS : 1][N][V], dt[TS][V], slope[TS][V];
#pragma unroll
    for (int m = 0; m < N; m++)
#pragma unroll
      for (int v = 0; v < V; v++) h0[m][v] = start[m][v];
    read(t0 - TS, next);
    const int later = w.cells(t0 - 2 * TS);
    // the states of the tile again
    w.steps(now.delta, bias, dt);
#pragma unroll
    for (int i = 0; i < TS; i++)
#pragma unroll
      for (int v = 0; v < V; v++) slope[i][v] = 1.f;
    if (s.softplus) {
#pragma unroll
      for (int i = 0; i < TS; i++)
#pragma unroll
        for (int v = 0; v < V; v++) slope[i][v] = sigmoidOf(now.delta[i].at(v) + bias[v]);
    }
#pragma unroll
    for (int i = 0; i < TS; i++) {
      float b[N];
      w.coefficients(now.bc, i, B, w.at(cells, i), s.bStep, b);
#pragma unroll
      for (int v = 0; v < V; v++) {
#pragma unroll
        for (int m = 0; m < N; m++) {
          const float a = exp2Approx(dt[i][v] * rate[m][v]);
          if (KEEP) decays[i][m][v] = a;
          hs[i][m][v] = fmaf(a, i ? hs[i - 1][m][v] : h0[m][v], dt[i][v] * now.u[i].at(v) * b[m]);
        }
      }
    }
#pragma unroll
    for (int part = TS / SB - 1; part >= 0; part--) {
      float sums[2 * N * SB];
#pragma unroll
      for (int j = SB - 1; j >= 0; j--) {
        const int i = part * SB + j;
        float b[N], c[N];
        const int cell = w.at(cells, i);
        w.coefficients(now.bc, i, B, cell, s.bStep, b), w.coefficients(now.bc, TS + i, C, cell, s.cStep, c);
#pragma unroll
        for (int m = 0; m < N; m++) sums[j * N + m] = sums[(SB + j) * N + m] = 0.f;
        if (!inside(i)) continue;
        float gu[V], gd[V];
#pragma unroll
        for (int v = 0; v < V; v++) {
          const float g = w.live ? now.dy[i].at(v) : 0.f, x = w.live ? now.u[i].at(v) : 0.f;
          float fromU = 0.f, fromA = 0.f;
#pragma unroll
          for (int m = 0; m < N; m++) {
            const float a = KEEP ? decays[i][m][v] : exp2Approx(dt[i][v] * rate[m][v]);
            const float lambda = fmaf(c[m], g, carry[m][v]), past = a * (i ? hs[i - 1][m][v] : h0[m][v]) * lambda;
            carry[m][v] = a * lambda;
            fromU = fmaf(lambda, b[m], fromU), fromA = fmaf(rate[m][v], past, fromA);
            dA[m][v] = fmaf(dt[i][v], past, dA[m][v]);
            sums[j * N + m] = fmaf(lambda * dt[i][v], x, sums[j * N + m]);
            sums[(SB + j) * N + m] = fmaf(g, hs[i][m][v], sums[(SB + j) * N + m]);
          }
          gu[v] = fmaf(fromU, dt[i][v], D[v] * g);
          gd[v] = fmaf(fromU, x, fromA * ln2) * slope[i][v];
          dD[v] = fmaf(g, x, dD[v]), dbias[v] += gd[v];
        }
        if (w.live) {
          put(du + (int64_t)cell * duRow, gu);
          put(ddelta + (int64_t)cell * ddeltaRow, gd);
        }
      }
      const float sum = warpTotal<2 * N * SB>(sums);
      const int j = lane % (N * SB) / N, m = lane % N;
      const int64_t t = t0 + part * SB + j;
      if (lane < 2 * N * SB && t < w.to && w.has(m)) {
        const int64_t at = (((w.warp * s.batch + w.b) * s.cells + w.order[t]) * s.directions + w.k) * s.state + w.n + m;
        (lane < N * SB ? s.dB : s.dC)[at] = sum;
      }
    }
    cells = next, next = later;
    t0 -= TS;
  };
  if (t0 + TS > w.to) tile(std::false_type());
  while (t0 >= w.from) tile(std::true_type());
  if (!w.live) return;
  const int64_t part = (w.b * s.chunks + w.chunk) * s.directions * s.channels;
#pragma unroll
  for (int v = 0; v < V; v++) {
    const int64_t at = part + w.parameter(v);
#pragma unroll
    for (int m = 0; m < N; m++)
      if (w.has(m)) s.dA[at * s.state + w.n + m] = s.alog ? dA[m][v] * w.decay(v, w.n + m) : dA[m][v];
    if (w.n == 0) {
      if (s.dD) s.dD[at] = dD[v];
    }
    if (s.dbias) s.dbias[at + w.n / N * s.batch * s.chunks * s.directions * s.channels] = dbias[v];
  }
}

// The names of the kernels: grid_KIND_TYPE_NxV.
#define GRID_KERNEL(KIND, FUNCTION, MARK, N, V, M)                                                             \
  extern "C" __global__ __launch_bounds__(128, M) void grid_##KIND##_##MARK##_##N##x##V(const Grid s) { FUNCTION(s); }
#define GRID_FORWARD(X, MARK, N, V, TS, M)                                                                     \
  GRID_KERNEL(forward, (gridForward<X, N, V, TS, FORWARD>), MARK, N, V, M)                                     \
  GRID_KERNEL(ends, (gridForward<X, N, V, TS, ENDS>), MARK, N, V, M)                                           \
  GRID_KERNEL(carries, (gridForward<X, N, V, TS, CARRIES>), MARK, N, V, M)                                     \
  GRID_KERNEL(again, (gridForward<X, N, V, TS, AGAIN>), MARK, N, V, M)
#define GRID_BACKWARD(X, MARK, N, V, TS, M)                                                                    \
  GRID_KERNEL(backward, (gridBackward<X, N, V, TS>), MARK, N, V, M)
