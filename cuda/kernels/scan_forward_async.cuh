// The forward pass for 16 states with the instructions of compute capability 8.0. S = 4 threads share W = 2 channels, and each holds 4 states
// of both. With few channels W is 1: twice as many threads, the same bits. For each tile of T steps, one stretch of code without branches
// scans the tile, prepares the next one and writes the outputs of the one before, so that each fills the waiting times of the others.
// Activations go to shared memory by copies that do not wait, two tiles ahead.
//
// Rows begin at multiples of four elements (Scan.vectors), B and C too, and Δ goes through softplus. Steps beyond the end are copies of the
// last one with Δ = 0. Channels beyond the last are copies of the last four, which write the same results to the same places. So a tile
// tests no element. A tile in which sequences start is code of its own, whose steps choose between the state and zero.
#pragma once
#include <type_traits>

#include "types.cuh"
#include "mma.cuh"
#include "scan.cuh"

__device__ __forceinline__ void streamFour(float *p, float4 v) { __stcs((float4 *)p, v); }
__device__ __forceinline__ void streamFour(bf16 *p, float4 v) { __stcs((uint2 *)p, make_uint2(pair(v.x, v.y), pair(v.z, v.w))); }

// Tiles has the sizes, and Shared the shared memory of a block: 40 KB for float, 20 KB with ENDS.
template <class X, int TH, int T, bool ENDS, int WIDTH> struct Tiles {
  static constexpr int S = 4, K = 4, W = WIDTH, N = S * K, CH = TH / S * W;
  static constexpr int ACROSS = CH / 4, RS = TH / ACROSS, E = T / RS;  // a thread prepares four channels of E steps that are RS apart
  static constexpr int NB = (T * S + TH - 1) / TH;                     // and four states of NB steps of B and C
  // Pitches in elements that put the rows which a warp reads or writes together into different banks.
  static constexpr int PAIR = ACROSS + 4, STEP = 2 * ACROSS + 4, PART = CH + 8, SUMS = S * PART + (ACROSS == 4 ? 16 : 0);
  static constexpr bool NARROW = sizeof(X) < 4;
  typedef typename FourOf<X>::type Four;
  struct Shared {
    Four u[E * TH], delta[E * TH], z[E * TH];                        // as they are in memory; each thread reads only what it copied
    Four narrowB[NARROW ? NB * TH : 1], narrowC[NARROW ? NB * TH : 1];
    float4 steps[2][T][STEP];                                        // Δ and Δu of two channels each
    float4 b[2][T * S], c[2][T * S];
    float sums[ENDS ? 1 : 2][ENDS ? CH * RS / SUMS + 1 : T][SUMS];   // Σ C h over a thread's states; at the end Σ Δ
  };
  static_assert(T % RS == 0 && (T * S % TH == 0 || TH % (T * S) == 0), "tile");
};

// scanPart scans the steps of a place. GATED: there is z. STARTS: sequences can start at any step. ENDS: only the state at the end and Σ Δ. If there are several chunks, the
// first begins in the given state, and writes the state at its end for the others. The others begin, with ENDS, at zero, and otherwise in the state that they compute from
// those at the ends of the chunks before. AHEAD: the decays of a step are computed so many steps before its states, and its operands read two steps before that.
template <class X, int TH, int T, bool GATED, bool ENDS, bool STARTS, int AHEAD, int WIDTH>
__device__ __forceinline__ void scanPart(const Scan &s, typename Tiles<X, TH, T, ENDS, WIDTH>::Shared &m, const Place &p) {
  typedef Tiles<X, TH, T, ENDS, WIDTH> L;
  typedef typename L::Four Four;
  constexpr int S = L::S, K = L::K, W = L::W, N = L::N, CH = L::CH, E = L::E, RS = L::RS, NB = L::NB;
  // Lanes that differ in bit 0 have different channels, in bits 1 and 2 different states. A read of 16 bytes takes two wavefronts if lanes i
  // and i^1, or i and i^2, read the same address, and four otherwise.
  const int tid = threadIdx.x, lane = tid % 32, sub = lane >> 1 & 3, n0 = sub * K;
  const int c = (tid / 32 * 8 + ((lane & 1) | lane >> 3 << 1)) * W;                   // the thread's channels when it scans
  const int across = tid % L::ACROSS, it = tid / L::ACROSS, steps4 = c / 4 + c % 4 / 2 * L::PAIR, steps2 = steps4 * 2 + c % 2;  // and when it prepares
  const int count = (int)(p.last - p.first), steps = (int)(p.to - p.from), tiles = (steps + T - 1) / T;
  const int64_t DN = s.channels * N, d = p.first + (c < count ? c : count - 4 + c % 4);

  const int column = min(across * 4, count - 4);
  // at returns the address of a row counted from the chunk's first. Its offset is one multiplication of 32 bits with a result of 64.
  const int64_t begin = rowOf(s, p.b, p.from);
  const int way = (s.reverse ? -1 : 1) * (int)sizeof(X);
  const int wide = way * (int)s.channels, zWide = way * (int)s.zStep, bWide = way * (int)s.bStep, cWide = way * (int)s.cStep;
  auto at = [](auto *from, int row, int step) { return (decltype(from))((const char *)from + (int64_t)row * step); };
  const X *u = (const X *)s.u + begin * s.channels + p.first + column, *delta = (const X *)s.delta + begin * s.channels + p.first + column;
  const X *z = (const X *)s.z + begin * s.zStep + p.first + column;
  X *y = (X *)s.y + begin * s.channels + p.first + column;
  const X *B = (const X *)s.B + begin * s.bStep + p.first / s.bChannels * N + tid % S * 4;
  const X *C = (const X *)s.C + begin * s.cStep + p.first / s.cChannels * N + tid % S * 4;
  float *checkpoint = s.checkpoints + ((p.b * ((s.length + T - 1) / T) + p.from / T) * s.channels + d) * N + n0;

  auto loadSteps = [&](int tile) {
#pragma unroll
    for (int e = 0; e < E; e++) {
      const int row = min(tile * T + e * RS + it, steps - 1), to = e * TH + tid;
      copyLater<sizeof(Four)>(&m.u[to], at(u, row, wide), true), copyLater<sizeof(Four)>(&m.delta[to], at(delta, row, wide), true);
      if (GATED && !ENDS) copyLater<sizeof(Four)>(&m.z[to], at(z, row, zWide), true);
    }
  };
  auto loadStates = [&](int tile, void *b, void *c) {
#pragma unroll
    for (int j = 0; j < NB; j++) {
      if (T * S < TH && tid >= T * S) break;
      const int row = min(tile * T + (tid + j * TH) / S, steps - 1), to = tid + j * TH;
      copyLater<sizeof(Four)>((Four *)b + to, at(B, row, bWide), true);
      if (!ENDS) copyLater<sizeof(Four)>((Four *)c + to, at(C, row, cWide), true);
    }
  };
  // load begins to copy what the iteration of a tile prepares the next tile from. Activations of bfloat16 must be widened: their B and C too.
  auto load = [&](int tile, int buf) {
    loadSteps(tile + 2);
    if (L::NARROW) loadStates(tile + 2, m.narrowB, m.narrowC);
    else loadStates(tile + 1, m.b[buf], m.c[buf]);
    commitCopies();
  };
  struct Raw { Four u, delta, z; } raw[E];
  Four rawB[NB], rawC[NB];
  auto fetch = [&] {
#pragma unroll
    for (int e = 0; e < E; e++) {
      raw[e].u = m.u[e * TH + tid], raw[e].delta = m.delta[e * TH + tid];
      if (GATED && !ENDS) raw[e].z = m.z[e * TH + tid];
    }
#pragma unroll
    for (int j = 0; L::NARROW && j < NB; j++) {
      rawB[j] = m.narrowB[tid + j * TH];
      if (!ENDS) rawC[j] = m.narrowC[tid + j * TH];
    }
  };
  // The first tile's operands go to registers, while the second's are copied and the block reads what it needs once.
#pragma unroll
  for (int e = 0; e < E; e++) {
    const int row = min(e * RS + it, steps - 1);
    raw[e].u = __ldcs((const Four *)at(u, row, wide)), raw[e].delta = __ldcs((const Four *)at(delta, row, wide));
    if (GATED && !ENDS) raw[e].z = __ldcs((const Four *)at(z, row, zWide));
  }
#pragma unroll
  for (int j = 0; L::NARROW && j < NB; j++) {
    const int row = min((tid + j * TH) / S, steps - 1);
    rawB[j] = *(const Four *)at(B, row, bWide);
    if (!ENDS) rawC[j] = *(const Four *)at(C, row, cWide);
  }
  load(-1, 0);
  float bias[4], skip[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    bias[j] = s.bias ? s.bias[p.first + column + j] : 0.f;
    skip[j] = s.D ? s.D[p.first + column + j] : 0.f;
  }
  float a[W][K], h[W][K];
#pragma unroll
  for (int w = 0; w < W; w++) {
#pragma unroll
    for (int k = 0; k < K; k++) {
      const int64_t state = (d + w) * N + n0 + k;
      a[w][k] = decayRate(s, state) * log2e;
      h[w][k] = !ENDS && s.initial && p.chunk == 0 ? s.initial[p.b * DN + state] : 0.f;
    }
  }
  if (!ENDS && p.chunk > 0) awaitLast();
#pragma unroll 4
  for (int64_t i = p.b * s.chunks; !ENDS && i < p.b * s.chunks + p.chunk; i++) {
#pragma unroll
    for (int w = 0; w < W; w++) {
      const float4 v = *(const float4 *)(s.states + i * DN + (d + w) * N + n0);
      const float sum = s.sums[i * s.channels + d + w], end[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int k = 0; k < K; k++) h[w][k] = throughChunk(a[w][k], sum, h[w][k], end[k]);
    }
  }
  float deltas[4] = {}, latest[4];  // Σ Δ of the tiles that were scanned, and of the one that is prepared
  struct Out { float4 gate, add; };
  auto prepare = [&](int buf, Out (&out)[E]) {
#pragma unroll
    for (int j = 0; L::NARROW && j < NB && (T * S >= TH || tid < T * S); j++) {
      m.b[buf][tid + j * TH] = widen(rawB[j]);
      if (!ENDS) m.c[buf][tid + j * TH] = widen(rawC[j]);
    }
#pragma unroll
    for (int j = 0; j < 4; j++) latest[j] = 0.f;
#pragma unroll
    for (int e = 0; e < E; e++) {
      const float4 u4 = widen(raw[e].u), d4 = widen(raw[e].delta), z4 = GATED && !ENDS ? widen(raw[e].z) : make_float4(0.f, 0.f, 0.f, 0.f);
      const float u[4] = {u4.x, u4.y, u4.z, u4.w}, z[4] = {z4.x, z4.y, z4.z, z4.w};
      float dt[4] = {d4.x, d4.y, d4.z, d4.w}, gate[4], add[4];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        dt[j] = softplusOf(dt[j] + bias[j]);
        gate[j] = GATED && !ENDS ? z[j] * sigmoidOf(z[j]) : 1.f, add[j] = skip[j] * u[j];
        if (ENDS) latest[j] += dt[j];
      }
      out[e] = {make_float4(gate[0], gate[1], gate[2], gate[3]), make_float4(add[0], add[1], add[2], add[3])};
      float4 *to = m.steps[buf][e * RS + it];
      auto both = [&](int j) {  // a thread that scans reads its channels with one load
        const float first = dt[j] * u[j], second = dt[j + 1] * u[j + 1];
        return W == 2 ? make_float4(dt[j], dt[j + 1], first, second) : make_float4(dt[j], first, dt[j + 1], second);
      };
      to[across] = both(0), to[L::PAIR + across] = both(2);
    }
  };
  // stop makes the steps of a tile from left on ones that keep the state.
  auto stop = [&](int buf, int left) {
    if (left >= T) return;
#pragma unroll
    for (int e = 0; e < E; e++)
      if (e * RS + it >= left) m.steps[buf][e * RS + it][across] = m.steps[buf][e * RS + it][L::PAIR + across] = make_float4(0.f, 0.f, 0.f, 0.f);
  };
  auto put = [&](int tile, int buf, const Out (&out)[E], int left) {
#pragma unroll
    for (int e = 0; e < E; e++) {
      float4 v = out[e].add;
#pragma unroll
      for (int i = 0; i < S; i++) {
        const float4 part = *(const float4 *)&m.sums[buf][e * RS + it][i * L::PART + across * 4];
        v.x += part.x, v.y += part.y, v.z += part.z, v.w += part.w;
      }
      const float4 g = out[e].gate;
      if (GATED) v = make_float4(v.x * g.x, v.y * g.y, v.z * g.z, v.w * g.w);
      if (left == T || e * RS + it < left) streamFour(at(y, tile * T + e * RS + it, wide), v);
    }
  };

  Out before[E], now[E], next[E];  // of the tile before, of the one that is scanned, and of the one that is prepared
  prepare(0, now);
  stop(0, steps);
  int buf = 0;
  struct Operands { float4 step, b, c; };
  bool cut = false;
  // scan is the iteration of a tile. fresh has a bit for each of its steps before which a sequence starts.
  auto scan = [&](int tile, uint32_t fresh, auto some) {
    constexpr bool SOME = decltype(some)::value;
    groupsCopied();
    __syncthreads();
    fetch();
    if (!ENDS && tile > 0) put(tile - 1, buf ^ 1, before, T);
    load(tile, buf ^ 1);
#pragma unroll
    for (int j = 0; j < 4; j++) deltas[j] += latest[j];
    auto read = [&](Operands &o, int t) {
      if (W == 2) {
        o.step = m.steps[buf][t][steps4];
      } else {
        const float2 v = ((const float2 *)m.steps[buf][t])[steps2];
        o.step = make_float4(v.x, v.x, v.y, v.y);
      }
      o.b = m.b[buf][t * S + sub];
      if (!ENDS) o.c = m.c[buf][t * S + sub];
    };
    auto decaysOf = [&](float (&v)[W][K], const Operands &o) {
#pragma unroll
      for (int k = 0; k < K; k++) {
#pragma unroll
        for (int w = 0; w < W; w++) v[w][k] = exp2Approx((w ? o.step.y : o.step.x) * a[w][k]);
      }
    };
    // The operands of a step are read before the sums of earlier steps are written, since the compiler moves no read over a write.
    constexpr int READ = AHEAD + 2, OPS = READ + 1, DECAYS = AHEAD + 1;
    Operands ops[OPS];
    float decays[DECAYS][W][K];
#pragma unroll
    for (int t = 0; t < READ; t++) {
      read(ops[t], t);
      if (t < AHEAD) decaysOf(decays[t], ops[t]);
    }
#pragma unroll
    for (int t = 0; t < T; t++) {
      if (!ENDS && t == 0 && s.checkpoints) {
#pragma unroll
        for (int w = 0; w < W; w++) __stcs((float4 *)(checkpoint + w * N), make_float4(h[w][0], h[w][1], h[w][2], h[w][3]));
      }
      if (t + READ < T) read(ops[(t + READ) % OPS], t + READ);
      if (t + AHEAD < T) decaysOf(decays[(t + AHEAD) % DECAYS], ops[(t + AHEAD) % OPS]);
      const Operands &o = ops[t % OPS];
      const float b[4] = {o.b.x, o.b.y, o.b.z, o.b.w}, cc[4] = {o.c.x, o.c.y, o.c.z, o.c.w};
      float sum[W];
#pragma unroll
      for (int k = 0; k < K; k++) {
#pragma unroll
        for (int w = 0; w < W; w++) {
          h[w][k] = fmaf(SOME && fresh >> t & 1 ? 0.f : h[w][k], decays[t % DECAYS][w][k], (w ? o.step.w : o.step.z) * b[k]);
          if (!ENDS) sum[w] = k ? fmaf(h[w][k], cc[k], sum[w]) : h[w][k] * cc[k];
        }
      }
      if (ENDS) continue;
      if (W == 2) *(float2 *)&m.sums[buf][t][sub * L::PART + c] = make_float2(sum[0], sum[W - 1]);
      else m.sums[buf][t][sub * L::PART + c] = sum[0];
    }
    prepare(buf ^ 1, next);
    stop(buf ^ 1, steps - (tile + 1) * T);
#pragma unroll
    for (int e = 0; e < E; e++) before[e] = now[e], now[e] = next[e];
    buf ^= 1, checkpoint += DN;
  };
#pragma unroll 1
  for (int tile = 0; tile < tiles;) {
    bool fresh = false;
    const int stop = STARTS ? freshTile<T>(s, p.b, p.from, tile, 1, tiles, fresh) : tiles;
#pragma unroll 1
    for (; tile < stop; tile++) scan(tile, 0, std::false_type());
    if (STARTS && fresh) scan(tile, (uint32_t)freshMask<T>(s, p.b, p.from + (int64_t)tile * T), std::true_type()), tile++, cut = true;
  }
  groupsCopied();  // no copy may arrive after the block has ended
  __syncthreads();
  if (!ENDS) put(tiles - 1, buf ^ 1, before, steps - (tiles - 1) * T);
  const bool forOthers = ENDS || (p.chunk == 0 && s.chunks > 1);
  float *end = forOthers ? s.states + (p.b * s.chunks + p.chunk) * DN : p.to == s.length && s.final ? s.final + p.b * DN : nullptr;
  if (end) {
#pragma unroll
    for (int w = 0; w < W; w++) {
#pragma unroll
      for (int k = 0; k < K; k++) end[(d + w) * N + n0 + k] = h[w][k];
    }
  }
  if (ENDS) {
    float *all = &m.sums[0][0][0];
#pragma unroll
    for (int j = 0; j < 4; j++) all[it * CH + across * 4 + j] = deltas[j];
    __syncthreads();
    if (tid < count) {
      float sum = 0.f;
#pragma unroll
      for (int i = 0; i < RS; i++) sum += all[i * CH + tid];
      s.sums[(p.b * s.chunks + p.chunk) * s.channels + p.first + tid] = cut ? NAN : sum;
    }
  }
}

// placeOfChunk returns the place of a block in a chunk. The first chunk has s.chunkSteps steps. The other chunks share the other tiles evenly.
template <int T> __device__ __forceinline__ Place placeOfChunk(const Scan &s, int width, int chunk) {
  Place p = placeOf(s, width);
  const int first = (int)s.chunkSteps / T, others = (int)s.chunks - 1, tiles = (int)((s.length + T - 1) / T) - first;
  const int each = tiles / others, more = tiles - each * others;  // the first of the others have one tile more
  auto begin = [&](int i) { return (int64_t)(first + i * each + min(i, more)) * T; };
  p.chunk = chunk, p.from = chunk ? begin(chunk - 1) : 0, p.to = min(begin(chunk), s.length);
  return p;
}

// scanForwardAsync is a scan, or that of all chunks but the first, which scanFirstAsync has scanned.
template <class X, int TH, int T, bool GATED, bool STARTS, int AHEAD = 1, int W = 2> __device__ __forceinline__ void scanForwardAsync(const Scan &s) {
  __shared__ typename Tiles<X, TH, T, false, W>::Shared m;
  scanPart<X, TH, T, GATED, false, STARTS, AHEAD, W>(s, m, s.chunks > 1 ? placeOfChunk<T>(s, TH / 4 * W, blockIdx.y + 1) : placeOf(s, TH / 4 * W));
}

// scanFirstAsync is the first pass over chunks: the scan of the first chunk, and the ends of the others but the last, which nobody needs.
//
// It lets scanForwardAsync begin at once: the blocks of that load their first tiles where blocks of this have ended, and then wait. They must not take more places on a
// multiprocessor than their share, or others of them that come later find places on few multiprocessors. So cuda/scan_kernels.go gives both kernels so much shared memory that
// four blocks fit.
template <class X, int TH, int T, bool GATED, bool STARTS, int AHEAD = 1> __device__ __forceinline__ void scanFirstAsync(const Scan &s) {
  __shared__ union {
    typename Tiles<X, TH, T, false, 2>::Shared scan;
    typename Tiles<X, TH, T, true, 2>::Shared ends;
  } m;
  letNextBegin();
  const Place p = placeOfChunk<T>(s, TH / 2, blockIdx.y);
  if (p.chunk > 0) scanPart<X, TH, T, false, true, STARTS, AHEAD, 2>(s, m.ends, p);
  else scanPart<X, TH, T, GATED, false, STARTS, AHEAD, 2>(s, m.scan, p);
}
