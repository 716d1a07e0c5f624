// The first pass over chunks of the backward pass, for what scan_backward_async.cuh computes: like scanCarries in scan_backward.cuh.
//
// A block has 16 channels of a chunk. Each of its warps goes through a part of the chunk's steps on its own: a lane has two neighbouring
// channels and four states, and tiles of 8 steps are copied to shared memory while the tile before is scanned. At the end the block joins
// the parts.
#pragma once
#include <type_traits>

#include "mma.cuh"
#include "scan.cuh"

// CarryTile is the shared memory of a warp.
template <class X> struct CarryTile {
  typedef typename FourOf<X>::type Four;
  static constexpr bool WIDEN = sizeof(X) < 4;  // C is copied as it is, and widened with the other operands
  Four raw[3][32];                              // Δ, z, dy as they are in memory
  Four rawC[WIDEN ? 32 : 1];
  float4 sv[8][8];                              // Δ and ȳ of the first pair of each four channels, then of the second
  float sC[WIDEN ? 1 : 2][8][16];
};

// STARTS: sequences can start at any step.
template <class X, bool STARTS> __device__ __forceinline__ void scanCarriesAsync(const Scan &s) {
  typedef CarryTile<X> Tile;
  constexpr int CH = 16, T = 8, N = 16, WARPS = 4, BYTES = 4 * sizeof(X);
  __shared__ __align__(16) Tile tiles[WARPS];
  __shared__ float sums[WARPS][CH];
  letNextBegin();  // all blocks of this kernel have places, and those of the pass fit exactly
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, sub = lane >> 1 & 3, n0 = sub * 4;
  const int pair = (lane & 1) | (lane >> 3) << 1, four = lane % 4, it = lane / 4;  // as in scan_backward_async.cuh
  const int svAt = (pair & 1) * 4 + (pair >> 1);
  Tile &m = tiles[warp];
  Place p = placeOf(s, CH);
  p.chunk++, p.from = p.chunk * s.chunkSteps, p.to = min(p.from + s.chunkSteps, s.length);
  const int64_t steps = (s.chunkSteps / WARPS + T - 1) / T * T, from = min(p.from + warp * steps, p.to), to = min(from + steps, p.to);
  const int width = (int)(p.last - p.first);
  const bool mine = pair * 2 < width, here = four * 4 < width;

  const int64_t count = (to - from + T - 1) / T, begin = from + (count - 1) * T, sign = s.reverse ? -1 : 1;
  const int64_t row = rowOf(s, p.b, begin);
  int64_t at = (row + sign * it) * s.channels + p.first + four * 4, zAt = (row + sign * it) * s.zStep + p.first + four * 4;
  const int64_t step = sign * T * s.channels, zStep = sign * T * s.zStep, cStep = sign * T * s.cStep;  // from a tile to the next
  const X *C = (const X *)s.C + (row + sign * it) * s.cStep + p.first / s.cChannels * N + four * 4;
  int left = (int)(to - begin);

  auto load = [&](int tilesOn, int buffer, int some) {
    const bool in = it < some, there = here && in;
    copyLater<BYTES>(&m.raw[0][lane], (const X *)s.delta + (at - tilesOn * step), there);
    if (s.z) copyLater<BYTES>(&m.raw[1][lane], (const X *)s.z + (zAt - tilesOn * zStep), there);
    copyLater<BYTES>(&m.raw[2][lane], (const X *)s.dy + (at - tilesOn * step), there);
    copyLater<BYTES>(Tile::WIDEN ? (void *)&m.rawC[lane] : (void *)((float4 *)m.sC[buffer] + lane), C - tilesOn * cStep, in);
  };
  if (count > 0) load(0, 0, left);

  float a[2][4], carry[2][4], bias[4], deltas[4];
#pragma unroll
  for (int j = 0; j < 2; j++) {
#pragma unroll
    for (int k = 0; k < 4; k++) a[j][k] = mine ? decayRate(s, (p.first + pair * 2 + j) * N + n0 + k) * log2e : 0.f, carry[j][k] = 0.f;
  }
#pragma unroll
  for (int j = 0; j < 4; j++) bias[j] = here && s.bias ? s.bias[p.first + four * 4 + j] : 0.f, deltas[j] = 0.f;

  auto prepare = [&](auto gated) {
    const float4 raw4 = widen(m.raw[0][lane]), dy4 = widen(m.raw[2][lane]);
    float4 z4 = make_float4(0.f, 0.f, 0.f, 0.f);
    if (decltype(gated)::value) z4 = widen(m.raw[1][lane]);
    const float raws[4] = {raw4.x, raw4.y, raw4.z, raw4.w}, zs[4] = {z4.x, z4.y, z4.z, z4.w}, dys[4] = {dy4.x, dy4.y, dy4.z, dy4.w};
    float dt[4], out[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      dt[j] = softplusOf(raws[j] + bias[j]), out[j] = dys[j];
      if (decltype(gated)::value) out[j] *= zs[j] * sigmoidOf(zs[j]);
      if (it >= left) dt[j] = 0.f;
      deltas[j] += dt[j];
    }
    m.sv[it][four] = make_float4(dt[0], dt[1], out[0], out[1]), m.sv[it][4 + four] = make_float4(dt[2], dt[3], out[2], out[3]);
    if constexpr (Tile::WIDEN) ((float4 *)m.sC)[lane] = widen(m.rawC[lane]);
  };
  // back carries the gradients back through a tile. fresh has a bit for each step before which a sequence starts.
  auto back = [&](int buffer, uint32_t fresh, auto some) {
#pragma unroll
    for (int t = T - 1; t >= 0; t--) {
      const float4 v = m.sv[t][svAt], c4 = *(const float4 *)&m.sC[buffer][t][n0];
      const float c[4] = {c4.x, c4.y, c4.z, c4.w};
#pragma unroll
      for (int k = 0; k < 4; k++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const float g = exp2Approx((j ? v.y : v.x) * a[j][k]) * fmaf(c[k], j ? v.w : v.z, carry[j][k]);
          carry[j][k] = decltype(some)::value && fresh >> t & 1 ? 0.f : g;
        }
      }
    }
  };
  bool cut = false;
  int buffer = 0;
  auto iterate = [&](int tile, uint32_t fresh, auto some) {
    copied();
    __syncwarp();
    if (s.z) prepare(std::true_type());
    else prepare(std::false_type());
    __syncwarp();
    const int next = Tile::WIDEN ? 0 : buffer ^ 1;
    load(1, next, tile > 0 ? T : 0);
    back(buffer, fresh, some);
    buffer = next, left = T, at -= step, zAt -= zStep, C -= cStep;
    __syncwarp();
  };
#pragma unroll 1
  for (int tile = (int)count - 1; tile >= 0;) {
    bool fresh = false;
    const int stop = STARTS ? freshTile<T>(s, p.b, from, tile, -1, -1, fresh) : -1;
#pragma unroll 1
    for (; tile > stop; tile--) iterate(tile, 0, std::false_type());
    if (STARTS && fresh) iterate(tile, (uint32_t)freshMask<T>(s, p.b, from + (int64_t)tile * T), std::true_type()), tile--, cut = true;
  }
#pragma unroll
  for (int j = 0; j < 4; j++) {
#pragma unroll
    for (int i = 4; i < 32; i *= 2) deltas[j] += __shfl_xor_sync(~0u, deltas[j], i);
    if (it == 0) sums[warp][four * 4 + j] = cut ? NAN : deltas[j];
  }
  static_assert(sizeof(m.sv) >= CH * N * sizeof(float), "the carries of a warp replace its operands");
#pragma unroll
  for (int j = 0; j < 2; j++) ((float4 *)m.sv)[(pair * 2 + j) * 4 + sub] = make_float4(carry[j][0], carry[j][1], carry[j][2], carry[j][3]);
  __syncthreads();
  const int64_t part = (p.b * s.chunks + p.chunk) * s.channels + p.first;
#pragma unroll
  for (int i = threadIdx.x; i < CH * N; i += 32 * WARPS) {
    const int c = i / N, n = i % N;
    if (c >= width) continue;
    const float rate = decayRate(s, (p.first + c) * N + n) * log2e;
    float v = 0.f, sum = 0.f;
#pragma unroll
    for (int w = WARPS - 1; w >= 0; w--) v = throughChunk(rate, sums[w][c], v, ((float *)tiles[w].sv)[i]), sum += sums[w][c];
    s.states[(part + c) * N + n] = v;
    if (n == 0) s.sums[part + c] = sum;
  }
}
