// The backward pass for 16 states, with the instructions of compute capability 8.0: see scan_backward.cuh for what it computes. It needs
// softplus, B and C that vary, and rows of activations that begin at multiples of four elements (of B and C too).
//
// A thread has two neighbouring channels and four states. So it reads B and C once for two channels, and adds the gradients of two channels
// without other threads. What threads add for each other, over the states of a channel and over the channels of a block, they write to shared
// memory, eight steps at a time; nobody waits for a shuffle. Each of these eight steps is then finished by the threads of one row.
//
// No element of a tile is tested. Channels and steps beyond the last are read as zeros, with Δ = 0, and rows of them are not written. A tile in
// which sequences start is code of its own, whose steps choose between the state before them and zero.
#pragma once
#include <type_traits>

#include "mma.cuh"
#include "scan_backward.cuh"

// neverOf returns four Δ whose softplus is 0.
template <class X> __device__ __forceinline__ typename FourOf<X>::type neverOf();
template <> __device__ __forceinline__ float4 neverOf<float>() { return make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY); }
template <> __device__ __forceinline__ uint2 neverOf<bf16>() { return make_uint2(0xff80ff80, 0xff80ff80); }

__device__ __forceinline__ void writeFourOnce(float *p, float4 v) { __stcs((float4 *)p, v); }
__device__ __forceinline__ void writeFourOnce(bf16 *p, float4 v) { __stcs((uint2 *)p, make_uint2(pair(v.x, v.y), pair(v.z, v.w))); }

// BackwardTile is the shared memory of a block of CH channels. Its pitches are such that the 16-byte accesses of a warp need few wavefronts.
template <class X, int CH> struct BackwardTile {
  static constexpr int TH = 2 * CH, PAIRS = CH / 2, FOURS = CH / 4, HALF = 8;  // threads; pairs and fours of channels; steps of half a tile
  typedef typename FourOf<X>::type Four;
  static constexpr bool WIDEN = sizeof(X) < 4;  // B and C are copied as they are, and widened with the other operands
  Four raw[2][4][TH];                           // u, Δ, z, dy as they are in memory
  Four rawBC[WIDEN ? 128 : 1];
  float4 sv[16][PAIRS + 4];                     // Δ and Δu of the first pair of each four, then of the second
  float2 sg[16][PAIRS];                         // ȳ
  float4 u[2][TH], slope[2][TH], gate[2][TH];   // what a thread that finishes a step needs
  float sB[WIDEN ? 1 : 2][16][16], sC[WIDEN ? 1 : 2][16][16];
  float4 before[2][TH];                         // the states before the tile
  float4 ySums[HALF][4 * (FOURS * 2 + 2)];      // for each four states: Σ C h and Σ g B
  float2 aSums[HALF][4 * (FOURS * 2 + 4)];      // for each four states: Σ g A a h
  float4 toB[HALF][TH], toC[HALF][TH];          // for each pair of channels
  float skip[CH], bias[CH];
  Sum dD[CH], dBias[CH];
  uint8_t starts[16];                           // whether a sequence starts before each step of the tile
  int64_t row;                                  // row of the batch, which only the starts need: registers are few
};

static_assert(sizeof(BackwardTile<float, 64>) == 111152, "as in cuda/scan_kernels.go");

// WHOLE: there is a z, and all blocks and tiles have all channels and steps. So no address is tested, and there is no branch in a tile.
// STARTS: sequences can start at any step. TWO: there are two chunks, and no first pass: the blocks of the first chunk carry the gradient of the state back through
// the second before they compute their own.
template <class X, int CH, bool WHOLE, bool STARTS, bool TWO = false> __device__ __forceinline__ void scanBackwardAsync(const Scan &s) {
  typedef BackwardTile<X, CH> Tile;
  constexpr int T = 16, N = 16, TH = Tile::TH, FOURS = Tile::FOURS, HALF = Tile::HALF, PER = 128 / TH;
  constexpr int BYTES = 4 * sizeof(X);
  extern __shared__ __align__(16) float shared[];
  Tile &m = *reinterpret_cast<Tile *>(shared);
  // Neighbouring lanes have a pair each of the same four channels, and then other states: a 16-byte access of a warp takes two wavefronts
  // less if the lanes i and i^1, or i and i^2, read the same address.
  const int tid = threadIdx.x, lane = tid % 32, sub = lane >> 1 & 3, n0 = sub * 4;
  const int pair = tid / 32 * 8 + ((lane & 1) | (lane >> 3) << 1);
  const int four = tid % FOURS, it = tid / FOURS;  // when it prepares and finishes steps: four channels of steps it and it + 8
  const int svAt = (pair & 1) * (FOURS + 4) + (pair >> 1), yAt = sub * (FOURS * 2 + 2) + (pair & 1) * (FOURS + 1) + (pair >> 1);
  const int aAt = sub * (FOURS * 2 + 4) + (pair & 1) * (FOURS + 2) + (pair >> 1);
  Place p = placeOf(s, CH);
  if (TWO) p.to = s.length;
  const int width = (int)(p.last - p.first);
  const bool mine = WHOLE || pair * 2 < width, here = WHOLE || four * 4 < width, gated = WHOLE || s.z;
  const int64_t d = p.first + pair * 2, part = (p.b * s.chunks + p.chunk) * s.channels, own = p.b * s.channels;

  // Offsets of the tile that is carried back, and from a step to the next eight and to the tile before.
  const int64_t tiles = (p.to - p.from + T - 1) / T, begin = p.from + (tiles - 1) * T, sign = s.reverse ? -1 : 1;
  const int64_t row = rowOf(s, p.b, begin);
  int64_t at = (row + sign * it) * s.channels + p.first + four * 4, zAt = (row + sign * it) * s.zStep + p.first + four * 4;
  const int64_t eight = sign * HALF * s.channels, zEight = sign * HALF * s.zStep;
  const float *checkpoint = s.checkpoints + ((p.b * ((s.length + T - 1) / T) + begin / T) * s.channels + d) * N + n0;
  const int64_t checkpointStep = s.channels * N;
  const X *rows[PER];  // four states of B or C
  int64_t rowStep[PER];
#pragma unroll
  for (int e = 0; e < PER; e++) {
    const int i = tid + e * TH, step = i % 64 / 4;
    const bool second = i >= 64;
    rowStep[e] = sign * (second ? s.cStep : s.bStep);
    rows[e] = (const X *)(second ? s.C : s.B) + row * (second ? s.cStep : s.bStep) + step * rowStep[e] + p.first / (second ? s.cChannels : s.bChannels) * N + i % 4 * 4;
  }
  // Which of dB and dC, and which four states, a thread adds. With 64 channels each half of them has its own thread.
  const bool addsC = tid % FOURS & FOURS / 2;
  float *sums = (addsC ? s.dC : s.dB) + ((p.block * s.batch * s.length + row + sign * it) * N + (tid & 3) * 4);
  int left = (int)(p.to - begin);

  // load begins the copies of the tile that is tilesOn tiles before, of which some steps are there.
  auto load = [&](int tilesOn, int buffer, int some) {
    const int64_t o = at - tilesOn * 2 * eight, oz = zAt - tilesOn * 2 * zEight;
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const bool there = WHOLE ? some : here && e * HALF + it < some;
      copyLater<BYTES>(&m.raw[e][0][tid], (const X *)s.u + (o + e * eight), there), copyLater<BYTES>(&m.raw[e][1][tid], (const X *)s.delta + (o + e * eight), there);
      if (gated) copyLater<BYTES>(&m.raw[e][2][tid], (const X *)s.z + (oz + e * zEight), there);
      copyLater<BYTES>(&m.raw[e][3][tid], (const X *)s.dy + (o + e * eight), there);
    }
    const float *c = checkpoint - tilesOn * checkpointStep;
    copyLater<16>(&m.before[0][tid], c, mine && some), copyLater<16>(&m.before[1][tid], c + N, mine && some);
#pragma unroll
    for (int e = 0; e < PER; e++) {
      const int i = tid + e * TH;
      void *to = Tile::WIDEN ? (void *)&m.rawBC[i] : (void *)((i < 64 ? &m.sB[buffer][0][0] : &m.sC[buffer][0][0]) + i % 64 * 4);
      copyLater<BYTES>(to, rows[e] - tilesOn * T * rowStep[e], WHOLE ? some : i % 64 / 4 < some);
    }
  };
  load(0, 0, left);

  float a[2][4], carry[2][4], tileA[2][4];
  Sum dA[2][4];
#pragma unroll
  for (int j = 0; j < 2; j++) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const int64_t n = (d + j) * N + n0 + k;
      a[j][k] = mine ? decayRate(s, n) * log2e : 0.f;
      carry[j][k] = mine && s.dfinal ? s.dfinal[own * N + n] : 0.f;
      tileA[j][k] = 0.f, dA[j][k].clear();
    }
  }
  if (!TWO && s.chunks > 1) awaitLast();
  if (mine && !TWO) {  // the gradient of the state after the chunk, from those that scanCarries computed for the later chunks
#pragma unroll 4
    for (int64_t c = s.chunks - 1; c > p.chunk; c--) {
      const int64_t other = (p.b * s.chunks + c) * s.channels + d;
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const float sum = s.sums[other + j];
        const float4 h = *(const float4 *)(s.states + (other + j) * N + n0);
        carry[j][0] = throughChunk(a[j][0], sum, carry[j][0], h.x), carry[j][1] = throughChunk(a[j][1], sum, carry[j][1], h.y);
        carry[j][2] = throughChunk(a[j][2], sum, carry[j][2], h.z), carry[j][3] = throughChunk(a[j][3], sum, carry[j][3], h.w);
      }
    }
  }
  if (tid < CH) {
    m.skip[tid] = s.D && tid < width ? s.D[p.first + tid] : 0.f;
    m.bias[tid] = s.bias && tid < width ? s.bias[p.first + tid] : 0.f;
    m.dD[tid].clear(), m.dBias[tid].clear();
  }
  if (tid == 0) m.row = p.b;
  float accD[4] = {}, accBias[4] = {};

  auto prepare = [&](auto gated) {
    constexpr bool GATED = decltype(gated)::value;
    const float4 bias4 = ((const float4 *)m.bias)[four];
    const float bias[4] = {bias4.x, bias4.y, bias4.z, bias4.w};
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const float4 u4 = widen(m.raw[e][0][tid]), raw4 = widen(m.raw[e][1][tid]), dy4 = widen(m.raw[e][3][tid]);
      float4 z4 = make_float4(0.f, 0.f, 0.f, 0.f);
      if (GATED) z4 = widen(m.raw[e][2][tid]);
      const float u[4] = {u4.x, u4.y, u4.z, u4.w}, raws[4] = {raw4.x, raw4.y, raw4.z, raw4.w};
      const float zs[4] = {z4.x, z4.y, z4.z, z4.w}, dys[4] = {dy4.x, dy4.y, dy4.z, dy4.w};
      float dt[4], out[4], slope[4], gate[4];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float raw = raws[j] + bias[j], x = expOf(-fabsf(raw)), r = inverseOf(1.f + x);
        dt[j] = softplusOf(raw, x), slope[j] = raw < 0.f ? x * r : r;
        out[j] = dys[j], gate[j] = 0.f;
        if (GATED) {
          const float sig = sigmoidOf(zs[j]), ds = dys[j] * sig;
          out[j] = ds * zs[j], gate[j] = ds * fmaf(zs[j], 1.f - sig, 1.f);
        }
      }
      const int t = e * HALF + it;
      m.sv[t][four] = make_float4(dt[0], dt[1], dt[0] * u[0], dt[1] * u[1]);
      m.sv[t][FOURS + 4 + four] = make_float4(dt[2], dt[3], dt[2] * u[2], dt[3] * u[3]);
      ((float4 *)m.sg[t])[four] = make_float4(out[0], out[1], out[2], out[3]);
      m.u[e][tid] = u4, m.slope[e][tid] = make_float4(slope[0], slope[1], slope[2], slope[3]);
      m.gate[e][tid] = make_float4(gate[0], gate[1], gate[2], gate[3]);
    }
    if constexpr (Tile::WIDEN) {
#pragma unroll
      for (int e = 0; e < PER; e++) {
        const int i = tid + e * TH;
        ((float4 *)(i < 64 ? m.sB : m.sC))[i % 64] = widen(m.rawBC[i]);
      }
    }
  };
  // advance computes the decays of step t and the states after it, from the states h before it, or zeros if a sequence starts between them.
  auto advance = [&](int buffer, int t, bool starts, const float (&h)[2][4], float (&decay)[2][4], float (&to)[2][4]) {
    const float4 v = m.sv[t][svAt], b4 = *(const float4 *)&m.sB[buffer][t][n0];
    const float b[4] = {b4.x, b4.y, b4.z, b4.w};
#pragma unroll
    for (int k = 0; k < 4; k++) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        decay[j][k] = exp2Approx((j ? v.y : v.x) * a[j][k]);
        to[j][k] = fmaf(starts ? 0.f : h[j][k], decay[j][k], (j ? v.w : v.z) * b[k]);
      }
    }
  };
  struct Operands { float4 v, b, c; float2 out; };
  // They are read a step before they are needed: the compiler never moves a read of shared memory before a write.
  auto operandsOf = [&](int buffer, int t) {
    return Operands{m.sv[t][svAt], *(const float4 *)&m.sB[buffer][t][n0], *(const float4 *)&m.sC[buffer][t][n0], m.sg[t][pair]};
  };
  // carryBack carries the gradients back through a step, the q-th of its half. starts: a sequence starts there.
  auto carryBack = [&](const Operands &o, const float (&before)[2][4], const float (&decay)[2][4], const float (&after)[2][4], int q, bool starts) {
    const float b[4] = {o.b.x, o.b.y, o.b.z, o.b.w}, c[4] = {o.c.x, o.c.y, o.c.z, o.c.w};
    float y[2], gB[2], gA[2], toB[4], toC[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const float dt = j ? o.v.y : o.v.x, dtu = j ? o.v.w : o.v.z, out = j ? o.out.y : o.out.x;
        const float g = fmaf(c[k], out, carry[j][k]);
        y[j] = k ? fmaf(c[k], after[j][k], y[j]) : c[k] * after[j][k];
        gB[j] = k ? fmaf(g, b[k], gB[j]) : g * b[k];
        toC[k] = j ? fmaf(out, after[j][k], toC[k]) : out * after[j][k];
        toB[k] = j ? fmaf(dtu, g, toB[k]) : dtu * g;
        carry[j][k] = decay[j][k] * g;
        float x = carry[j][k] * before[j][k];
        if (starts) carry[j][k] = x = 0.f;
        gA[j] = k ? fmaf(a[j][k], x, gA[j]) : a[j][k] * x;
        tileA[j][k] = fmaf(dt, x, tileA[j][k]);
      }
    }
    m.ySums[q][yAt] = make_float4(y[0], y[1], gB[0], gB[1]), m.aSums[q][aAt] = make_float2(gA[0], gA[1]);
    m.toB[q][tid] = make_float4(toB[0], toB[1], toB[2], toB[3]), m.toC[q][tid] = make_float4(toC[0], toC[1], toC[2], toC[3]);
  };
  // finish adds what threads have for each other, for step it of half e of the tile, and writes the gradients.
  auto finish = [&](int e) {
    float y[4], gB[4], gA[4];
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float4 v = m.ySums[it][i * (FOURS * 2 + 2) + j / 2 * (FOURS + 1) + four];
        const float2 w = m.aSums[it][i * (FOURS * 2 + 4) + j / 2 * (FOURS + 2) + four];
        if (i == 0) y[j] = v.x, y[j + 1] = v.y, gB[j] = v.z, gB[j + 1] = v.w, gA[j] = w.x, gA[j + 1] = w.y;
        else y[j] += v.x, y[j + 1] += v.y, gB[j] += v.z, gB[j + 1] += v.w, gA[j] += w.x, gA[j + 1] += w.y;
      }
    }
    const int t = e * HALF + it;
    const float4 u4 = m.u[e][tid], slope4 = m.slope[e][tid], gate4 = m.gate[e][tid], out4 = ((const float4 *)m.sg[t])[four];
    const float4 v = m.sv[t][four], w = m.sv[t][FOURS + 4 + four], skip4 = ((const float4 *)m.skip)[four];
    const float u[4] = {u4.x, u4.y, u4.z, u4.w}, slope[4] = {slope4.x, slope4.y, slope4.z, slope4.w};
    const float gate[4] = {gate4.x, gate4.y, gate4.z, gate4.w}, out[4] = {out4.x, out4.y, out4.z, out4.w};
    const float dt[4] = {v.x, v.y, w.x, w.y}, skip[4] = {skip4.x, skip4.y, skip4.z, skip4.w};
    float du[4], ddelta[4], dz[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      ddelta[j] = fmaf(gB[j], u[j], gA[j] * ln2) * slope[j];
      du[j] = fmaf(skip[j], out[j], dt[j] * gB[j]);
      dz[j] = gate[j] * fmaf(skip[j], u[j], y[j]);
      accBias[j] += ddelta[j];
      accD[j] = fmaf(out[j], u[j], accD[j]);
    }
    // The even pairs of channels, and the odd; with 32 channels all of them.
    const int odd = FOURS > 8 ? tid >> 2 & 1 : 0;
    const float4 *x = (addsC ? m.toC : m.toB)[it] + (tid & 3) * 2 + odd;
    float4 sum = x[0];
    auto add = [&](const float4 w) { sum.x += w.x, sum.y += w.y, sum.z += w.z, sum.w += w.w; };
    if (FOURS == 8) add(x[1]);
#pragma unroll
    for (int i = 1; i < TH / 8; i++) {
      add(x[8 * i]);
      if (FOURS == 8) add(x[8 * i + 1]);
    }
    if (FOURS > 8) {
      add(make_float4(__shfl_xor_sync(~0u, sum.x, 4), __shfl_xor_sync(~0u, sum.y, 4), __shfl_xor_sync(~0u, sum.z, 4), __shfl_xor_sync(~0u, sum.w, 4)));
    }
    if (WHOLE || t < left) {
      const int64_t o = at + e * eight;
      if (here) {
        writeFourOnce((X *)s.du + o, make_float4(du[0], du[1], du[2], du[3]));
        writeFourOnce((X *)s.ddelta + o, make_float4(ddelta[0], ddelta[1], ddelta[2], ddelta[3]));
        if (gated) writeFourOnce((X *)s.dz + (zAt + e * zEight), make_float4(dz[0], dz[1], dz[2], dz[3]));
      }
      if (!odd) *(float4 *)(sums + sign * e * HALF * N) = sum;
    }
  };

  // addUp adds what threads have of dD and dbias. It is called every eight tiles, since the compensated sums of all threads need too many registers.
  auto addUp = [&]() {
    float4 *all = m.toB[0];
    __syncthreads();
    all[tid] = make_float4(accD[0], accD[1], accD[2], accD[3]), all[TH + tid] = make_float4(accBias[0], accBias[1], accBias[2], accBias[3]);
#pragma unroll
    for (int j = 0; j < 4; j++) accD[j] = accBias[j] = 0.f;
    __syncthreads();
    if (tid < CH) {
      float sumD = 0.f, sumBias = 0.f;
#pragma unroll
      for (int i = 0; i < HALF; i++) sumD += ((float *)all)[i * CH + tid], sumBias += ((float *)all)[(HALF + i) * CH + tid];
      m.dD[tid].add(sumD), m.dBias[tid].add(sumBias);
    }
  };

  // passBack computes the states of a tile, and carries the gradients back through it, except for finish(0). Meanwhile the next tile is copied,
  // if there are more.
  auto passBack = [&](int buffer, int next, bool more) {
    float upper[HALF + 1][2][4], upperDecay[HALF][2][4], lower[HALF + 1][2][4], lowerDecay[HALF][2][4], none[2][4];
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const float4 h = m.before[j][tid];
      lower[0][j][0] = h.x, lower[0][j][1] = h.y, lower[0][j][2] = h.z, lower[0][j][3] = h.w;
    }
    advance(buffer, 0, false, lower[0], none, upper[0]);
#pragma unroll
    for (int q = 1; q < HALF; q++) advance(buffer, q, false, upper[0], none, upper[0]);
#pragma unroll
    for (int q = 0; q < HALF; q++) advance(buffer, HALF + q, false, upper[q], upperDecay[q], upper[q + 1]);
    load(1, next, more ? T : 0);
    Operands ahead = operandsOf(buffer, T - 1);
#pragma unroll
    for (int i = 0; i < HALF; i++) {  // the lower half's states, which wait for exponentials, among the steps back
      const Operands o = ahead;
      if (i < HALF - 1) ahead = operandsOf(buffer, T - 2 - i);
      advance(buffer, i, false, lower[i], lowerDecay[i], lower[i + 1]);
      carryBack(o, upper[HALF - 1 - i], upperDecay[HALF - 1 - i], upper[HALF - i], HALF - 1 - i, false);
    }
    __syncthreads();
    finish(1);
    ahead = operandsOf(buffer, HALF - 1);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < HALF; i++) {
      const Operands o = ahead;
      if (i < HALF - 1) ahead = operandsOf(buffer, HALF - 2 - i);
      carryBack(o, lower[HALF - 1 - i], lowerDecay[HALF - 1 - i], lower[HALF - i], HALF - 1 - i, false);
    }
  };

  // passBackStarts is passBack for a tile in which sequences start. One half is computed after the other, and the decays twice, so that it needs no more
  // registers than passBack.
  auto passBackStarts = [&](int buffer, int next, bool more) {
    const float4 first[2] = {m.before[0][tid], m.before[1][tid]};
    load(1, next, more ? T : 0);
#pragma unroll
    for (int half = 1; half >= 0; half--) {
      float h[HALF + 1][2][4], decay[2][4];
#pragma unroll
      for (int j = 0; j < 2; j++) h[0][j][0] = first[j].x, h[0][j][1] = first[j].y, h[0][j][2] = first[j].z, h[0][j][3] = first[j].w;
#pragma unroll
      for (int q = 0; q < half * HALF; q++) advance(buffer, q, m.starts[q], h[0], decay, h[0]);
#pragma unroll
      for (int q = 0; q < HALF; q++) advance(buffer, half * HALF + q, m.starts[half * HALF + q], h[q], decay, h[q + 1]);
#pragma unroll
      for (int q = HALF - 1; q >= 0; q--) {
        const Operands o = operandsOf(buffer, half * HALF + q);
#pragma unroll
        for (int k = 0; k < 4; k++) decay[0][k] = exp2Approx(o.v.x * a[0][k]), decay[1][k] = exp2Approx(o.v.y * a[1][k]);
        carryBack(o, h[q], decay, h[q + 1], q, m.starts[half * HALF + q]);
      }
      if (half == 0) break;
      __syncthreads();
      finish(1);
      __syncthreads();
    }
  };

  int buffer = 0;
  // back goes to the tile before.
  auto back = [&](int next) {
    buffer = next, left = T, at -= 2 * eight, zAt -= 2 * zEight, sums -= sign * T * N, checkpoint -= checkpointStep;
#pragma unroll
    for (int e = 0; e < PER; e++) rows[e] -= T * rowStep[e];
  };

  copied();
  if (!WHOLE && left < T) {  // Δ of steps beyond the end
#pragma unroll
    for (int e = 0; e < 2; e++) {
      if (e * HALF + it >= left) m.raw[e][1][tid] = neverOf<X>();
    }
  }
  __syncthreads();
  auto iterate = [&](int tile, auto starts) {
    if (decltype(starts)::value && tid < T) m.starts[tid] = freshAt(s, m.row, blockIdx.y * s.chunkSteps + (int64_t)tile * T + tid);
    if (gated) prepare(std::true_type());
    else prepare(std::false_type());
    __syncthreads();
    const int next = Tile::WIDEN ? 0 : buffer ^ 1;
    if constexpr (decltype(starts)::value) passBackStarts(buffer, next, tile > 0);
    else passBack(buffer, next, tile > 0);
    copied();
    __syncthreads();
    finish(0);
#pragma unroll
    for (int j = 0; j < 2; j++) {
#pragma unroll
      for (int k = 0; k < 4; k++) dA[j][k].add(tileA[j][k]), tileA[j][k] = 0.f;
    }
    back(next);
    if (tile % 8 == 0) addUp();
  };
  int tile = (int)tiles - 1;
#pragma unroll 1
  for (const int first = TWO && p.chunk == 0 ? (int)s.chunkSteps / T : tile + 1; TWO && tile >= first; tile--) {
    if (STARTS && tid < T) m.starts[tid] = freshAt(s, m.row, (int64_t)tile * T + tid);
    if (gated) prepare(std::true_type());
    else prepare(std::false_type());
    __syncthreads();
    const int next = Tile::WIDEN ? 0 : buffer ^ 1;
    load(1, next, T);
#pragma unroll 8
    for (int t = T - 1; t >= 0; t--) {
      const Operands o = operandsOf(buffer, t);
      const float c[4] = {o.c.x, o.c.y, o.c.z, o.c.w};
#pragma unroll
      for (int k = 0; k < 4; k++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const float g = exp2Approx((j ? o.v.y : o.v.x) * a[j][k]) * fmaf(c[k], j ? o.out.y : o.out.x, carry[j][k]);
          carry[j][k] = STARTS && m.starts[t] ? 0.f : g;
        }
      }
    }
    copied();
    __syncthreads();
    back(next);
  }
#pragma unroll 1
  while (tile >= 0) {
    bool fresh = false;
    const int stop = STARTS ? freshTile<T>(s, m.row, blockIdx.y * s.chunkSteps, tile, -1, -1, fresh) : -1;
#pragma unroll 1
    for (; tile > stop; tile--) iterate(tile, std::false_type());
    if (STARTS && fresh) iterate(tile--, std::true_type());
  }

#pragma unroll
  for (int j = 0; j < 2; j++) {
    if (mine) {
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const int64_t n = (d + j) * N + n0 + k;
        s.dA[part * N + n] = s.alog ? dA[j][k].sum * decayRate(s, n) : dA[j][k].sum;
        if (s.dinitial && p.chunk == 0) s.dinitial[own * N + n] = carry[j][k];
      }
    }
  }
  if (tid < width && tid < CH) {
    if (s.dD) s.dD[part + p.first + tid] = m.dD[tid].sum;
    if (s.dbias) s.dbias[part + p.first + tid] = m.dBias[tid].sum;
  }
}
