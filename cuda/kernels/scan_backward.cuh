// The backward pass (docs/selective_scan.md derives it). Tiles are taken from the last to the first: the states of a tile run
// forward again from its checkpoint and stay in registers with their decays, then the gradients are carried back through them.
//
// dB and dC are sums over channels: over those of a warp by a butterfly, over its warps in shared memory, over blocks by
// sumParts, always in the same order. So that the butterfly needs no selects, thread c of a channel's fellows in a warp holds
// its states in the order k ^ c: what it keeps and what it sends are then in the same registers as with the others.
#pragma once
#include "scan.cuh"

// Sum adds up without losing what is small beside the sum (Kahan).
struct Sum {
  float sum, lost;
  __device__ __forceinline__ void clear() { sum = lost = 0.f; }
  __device__ __forceinline__ void add(float v) {
    const float y = v - lost, t = sum + y;
    lost = (t - sum) - y;
    sum = t;
  }
};

template <class X, int S, int K, int T, int TH, int POLY, bool VB, bool VC, bool STARTS>
__device__ __forceinline__ void scanBackward(const Scan &s) {
  constexpr int CH = TH / S, NP = S * K, RS = TH / CH, E = (T + RS - 1) / RS;
  constexpr int W = 32 / S, P = K < W ? K : W, KP = K / P;  // channels of a warp; orders of the states; sums a thread ends with
  constexpr int NB = (T * NP + TH - 1) / TH, WARPS = TH / 32;
  static_assert(T % RS == 0 || T < RS, "tile");
  __shared__ __align__(16) float sB[VB ? T * P * NP : 4], sC[VC ? T * P * NP : 4];  // in each of the orders
  __shared__ __align__(16) float4 sv[T * CH];                                       // Δ, Δu, ȳ
  __shared__ float ssum[3][T * CH > TH ? T * CH : TH];  // Σ g B, Σ g A a h, Σ C h
  __shared__ __align__(16) float swarp[VB || VC ? WARPS : 1][VB || VC ? T * 2 * NP : 1];

  const int tid = threadIdx.x, c = tid / S, sub = tid % S, n0 = sub * K, cw = c % W, order = cw % P, warp = tid / 32;
  const Place p = placeOf(s, CH);
  const int64_t L = s.length, N = s.state, d = p.first + c, tiles = (L + T - 1) / T;
  const bool here = d < p.last;
  const int64_t own = (p.b * s.channels + d) * N;
  float a[K], carry[K], bConst[K], cConst[K], next[K];
  Sum dA[K], dBConst[K], dCConst[K];
#pragma unroll
  for (int k = 0; k < K; k++) {
    const int n = n0 + (k ^ order);
    const bool ok = here && n < N;
    a[k] = ok ? decayRate(s, d * N + n) * log2e : 0.f;
    bConst[k] = !VB && ok ? ((const float *)s.B)[d * N + n] : 0.f;
    cConst[k] = !VC && ok ? ((const float *)s.C)[d * N + n] : 0.f;
    carry[k] = ok && s.dfinal ? s.dfinal[own + n] : 0.f;
    dA[k].clear(), dBConst[k].clear(), dCConst[k].clear();
  }

  const int lc = tid % CH, lt = tid / CH;
  const int64_t ld = p.first + lc;
  const bool lhere = ld < p.last;
  const float bias = lhere && s.bias ? s.bias[ld] : 0.f, skip = lhere && s.D ? s.D[ld] : 0.f;
  const X *B = VB ? (const X *)s.B + p.first / s.bChannels * N : nullptr, *C = VC ? (const X *)s.C + p.first / s.cChannels * N : nullptr;
  float ru[E], rd[E], rz[E], ry[E], rb[NB], rc[NB];  // on their way
  float u[E], raw[E], z[E], dy[E];                   // of the tile at work
  Sum dD, dbias;
  dD.clear(), dbias.clear();

  auto load = [&](int64_t tile) {
    const int64_t from = tile * T;
#pragma unroll
    for (int e = 0; e < E; e++) {
      const int64_t i = from + lt + e * RS;
      ru[e] = rd[e] = rz[e] = ry[e] = 0.f;
      if (lhere && i < L && lt + e * RS < T) {
        const int64_t row = rowOf(s, p.b, i);
        ru[e] = readOnce((const X *)s.u + row * s.channels + ld);
        rd[e] = readOnce((const X *)s.delta + row * s.channels + ld);
        ry[e] = readOnce((const X *)s.dy + row * s.channels + ld);
        if (s.z) rz[e] = readOnce((const X *)s.z + row * s.zStep + ld);
      }
    }
#pragma unroll
    for (int j = 0; j < NB; j++) {
      const int at = tid + j * TH, n = at % NP;
      const int64_t i = from + at / NP;
      rb[j] = rc[j] = 0.f;
      if (at < T * NP && n < N && i < L) {
        const int64_t row = rowOf(s, p.b, i);
        if (VB) rb[j] = value(B[row * s.bStep + n]);
        if (VC) rc[j] = value(C[row * s.cStep + n]);
      }
    }
    const float *from0 = s.checkpoints + ((p.b * tiles + tile) * s.channels + d) * N;
#pragma unroll
    for (int k = 0; k < K; k++) {
      const int n = n0 + (k ^ order);
      next[k] = here && n < N ? __ldcs(from0 + n) : 0.f;
    }
  };
  auto prepare = [&](int64_t tile) {
#pragma unroll
    for (int e = 0; e < E; e++) {
      const int i = lt + e * RS;
      u[e] = ru[e], z[e] = rz[e], dy[e] = ry[e], raw[e] = rd[e] + bias;
      const float dt = tile * T + i >= L ? 0.f : s.softplus ? softplusOf(raw[e]) : raw[e];
      const float out = s.z ? dy[e] * z[e] * sigmoidOf(z[e]) : dy[e];
      if (i < T) sv[i * CH + lc] = make_float4(dt, dt * u[e], out, 0.f);
    }
#pragma unroll
    for (int j = 0; j < NB; j++) {
      const int at = tid + j * TH, i = at / NP, n = at % NP;
      if (at < T * NP) {
#pragma unroll
        for (int o = 0; o < P; o++) {
          if (VB) sB[(i * P + o) * NP + (n ^ o)] = rb[j];
          if (VC) sC[(i * P + o) * NP + (n ^ o)] = rc[j];
        }
      }
    }
  };
  auto states = [&](float (&v)[K], const float *tile, int i) { rowOfStates<K>(v, tile + (i * P + order) * NP + n0); };
  // overChannels adds v over the channels of the warp: register P·j ends with state P·j + order, over all but those that
  // differ in the bits of P and above.
  auto overChannels = [&](float (&v)[K]) {
#pragma unroll
    for (int m = P / 2; m > 0; m /= 2) {
#pragma unroll
      for (int k = 0; k < K; k++) {
        if ((k & m) == 0 && (k & (P - 1) & ~(2 * m - 1)) == 0)
          v[k] += __shfl_xor_sync(~0u, v[(k | m) % K], m * S);
      }
    }
  };

  load(tiles - 1);
  for (int64_t tile = tiles - 1; tile >= 0; tile--) {
    const uint64_t fresh = STARTS ? freshMask<T>(s, p.b, tile * T) : 0;
    prepare(tile);
    float h[T + 1][K], decay[T][K];
#pragma unroll
    for (int k = 0; k < K; k++) h[0][k] = next[k];
    __syncthreads();
    if (tile > 0) load(tile - 1);
#pragma unroll
    for (int i = 0; i < T; i++) {
      const float2 v = *(const float2 *)&sv[i * CH + c];
      float b[K];
      if (VB) states(b, sB, i);
#pragma unroll
      for (int k = 0; k < K; k++) {
        const float x = v.x * a[k], in = v.y * (VB ? b[k] : bConst[k]);
        decay[i][k] = POLY && (i * K + k) % (POLY ? POLY : 1) == POLY / 2 ? exp2Poly(x) : exp2Approx(x);
        h[i + 1][k] = STARTS && fresh >> i & 1 ? in : fmaf(h[i][k], decay[i][k], in);
      }
    }
    float tileA[K], tileB[K], tileC[K];
#pragma unroll
    for (int k = 0; k < K; k++) tileA[k] = tileB[k] = tileC[k] = 0.f;
#pragma unroll
    for (int i = T - 1; i >= 0; i--) {
      const float4 v = sv[i * CH + c];
      float b[K], cc[K], dB[K], dC[K], gB = 0.f, gA = 0.f, y = 0.f;
      if (VB) states(b, sB, i);
      if (VC) states(cc, sC, i);
      const bool cut = STARTS && fresh >> i & 1;
#pragma unroll
      for (int k = 0; k < K; k++) {
        const float bn = VB ? b[k] : bConst[k], cn = VC ? cc[k] : cConst[k];
        const float g = fmaf(cn, v.z, carry[k]);
        y = fmaf(cn, h[i + 1][k], y);
        gB = fmaf(g, bn, gB);
        dC[k] = v.z * h[i + 1][k];
        dB[k] = v.y * g;
        carry[k] = cut ? 0.f : decay[i][k] * g;
        const float x = cut ? 0.f : carry[k] * h[i][k];
        gA = fmaf(a[k], x, gA);
        tileA[k] = fmaf(v.x, x, tileA[k]);
        if (!VB) tileB[k] += dB[k];
        if (!VC) tileC[k] += dC[k];
      }
      // The sums over states: each thread ends with one of the three.
      if (S > 1) {
        float one = sub & 1 ? gB : gA, keep = sub & 1 ? gA : gB;
        keep += __shfl_xor_sync(~0u, one, 1);
        y += __shfl_xor_sync(~0u, y, 1);
        if (S > 2) {
          one = sub & 2 ? keep : y;
          keep = (sub & 2 ? y : keep) + __shfl_xor_sync(~0u, one, 2);
#pragma unroll
          for (int m = 4; m < S; m *= 2) keep += __shfl_xor_sync(~0u, keep, m);
          if (sub < 3) ssum[sub][i * CH + c] = keep;
        } else {
          ssum[sub][i * CH + c] = keep;
          if (sub == 0) ssum[2][i * CH + c] = y;
        }
      } else {
        ssum[0][i * CH + c] = gB, ssum[1][i * CH + c] = gA, ssum[2][i * CH + c] = y;
      }
      if (VB) overChannels(dB);
      if (VC) overChannels(dC);
      if (VB || VC) {
#pragma unroll
        for (int j = 0; j < KP; j++) {
          if (W > P && VB && VC) {  // half of the channels go on with dB, half with dC
            const bool second = cw & P;
            float v = (second ? dC[j * P] : dB[j * P]) + __shfl_xor_sync(~0u, second ? dB[j * P] : dC[j * P], P * S);
#pragma unroll
            for (int m = 2 * P; m < W; m *= 2) v += __shfl_xor_sync(~0u, v, m * S);
            if (cw < 2 * P) swarp[warp][(i * 2 + second) * NP + n0 + j * P + order] = v;
          } else {
#pragma unroll
            for (int m = P; m < W; m *= 2) {
              if (VB) dB[j * P] += __shfl_xor_sync(~0u, dB[j * P], m * S);
              if (VC) dC[j * P] += __shfl_xor_sync(~0u, dC[j * P], m * S);
            }
            if (cw < P) {
              if (VB) swarp[warp][i * 2 * NP + n0 + j * P + order] = dB[j * P];
              if (VC) swarp[warp][(i * 2 + 1) * NP + n0 + j * P + order] = dC[j * P];
            }
          }
        }
      }
    }
#pragma unroll
    for (int k = 0; k < K; k++) {
      dA[k].add(tileA[k]);
      if (!VB) dBConst[k].add(tileB[k]);
      if (!VC) dCConst[k].add(tileC[k]);
    }
    __syncthreads();

    float tileD = 0.f, tileBias = 0.f;
#pragma unroll
    for (int e = 0; e < E; e++) {
      if (lt + e * RS >= T) break;
      const int at = (lt + e * RS) * CH + lc;
      const int64_t i = tile * T + lt + e * RS;
      const float4 v = sv[at];
      const float gB = ssum[0][at], gA = ssum[1][at] * ln2, y = ssum[2][at];
      float slope = s.softplus && raw[e] <= 20.f ? sigmoidOf(raw[e]) : 1.f;
      const float ddelta = fmaf(gB, u[e], gA) * slope;
      if (lhere && i < L) {
        const int64_t row = rowOf(s, p.b, i);
        writeOnce((X *)s.du + row * s.channels + ld, fmaf(skip, v.z, v.x * gB));
        writeOnce((X *)s.ddelta + row * s.channels + ld, ddelta);
        if (s.z) {
          const float sig = sigmoidOf(z[e]);
          writeOnce((X *)s.dz + row * s.zStep + ld, dy[e] * fmaf(skip, u[e], y) * (sig * fmaf(z[e], 1.f - sig, 1.f)));
        }
        tileBias += ddelta;
        tileD = fmaf(v.z, u[e], tileD);
      }
    }
    dD.add(tileD), dbias.add(tileBias);
    if (VB || VC) {
#pragma unroll
      for (int j = 0; j < (T * 2 * NP + TH - 1) / TH; j++) {
        const int at = tid + j * TH, n = at % NP, which = at / NP % 2;
        const int64_t i = tile * T + at / (2 * NP);
        if (at < T * 2 * NP && n < N && i < L && (which ? VC : VB)) {
          float sum = 0.f;
#pragma unroll
          for (int w = 0; w < WARPS; w++) sum += swarp[w][at];
          float *to = which ? s.dC : s.dB;
          to[(p.block * s.batch * L + rowOf(s, p.b, i)) * N + n] = sum;
        }
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int k = 0; k < K; k++) {
    const int n = n0 + (k ^ order);
    if (here && n < N) {
      s.dA[own + n] = s.alog ? dA[k].sum * decayRate(s, d * N + n) : dA[k].sum;
      if (!VB) s.dB[own + n] = dBConst[k].sum;
      if (!VC) s.dC[own + n] = dCConst[k].sum;
      if (s.dinitial) s.dinitial[own + n] = carry[k];
    }
  }
  ssum[0][tid] = dD.sum, ssum[1][tid] = dbias.sum;
  __syncthreads();
  if (tid < CH && lhere) {
    float sumD = 0.f, sumBias = 0.f;
#pragma unroll
    for (int i = 0; i < RS; i++) sumD += ssum[0][tid + i * CH], sumBias += ssum[1][tid + i * CH];
    if (s.dD) s.dD[p.b * s.channels + ld] = sumD;
    if (s.dbias) s.dbias[p.b * s.channels + ld] = sumBias;
  }
}

// sumParts adds up parts of size numbers each, in their order, and spreads the rows of width numbers to step apart: parts of
// dB and dC from a section's blocks, or of a parameter from the batch.
template <class X> __device__ __forceinline__ void sumPartsOf(X *result, const float *parts, int64_t count, int64_t size, int64_t width, int64_t step) {
  const int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
  if (i >= size) return;
  float sum = 0.f;
  for (int64_t k = 0; k < count; k++) sum += __ldcs(parts + k * size + i);
  result[i / width * step + i % width] = to<X>(sum);
}
