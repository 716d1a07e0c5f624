// The forward pass. While a tile is scanned, the operands of the next one are prepared, those of the one after it are on
// their way, and the output of the one before is written: one barrier a tile, and the three kinds of work hide each other's
// waiting.
#pragma once
#include "scan.cuh"

// statesOf reads a thread's K states of B or C for four steps from a tile. With one state a thread, four steps lie side by
// side; with more, the states do.
template <int K, int NP> __device__ __forceinline__ void statesOf(float (&v)[4][K], const float *tile, int i, int n) {
  if constexpr (K == 1) {
    const float4 x = *(const float4 *)(tile + (i / 4 * NP + n) * 4);
    v[0][0] = x.x, v[1][0] = x.y, v[2][0] = x.z, v[3][0] = x.w;
  } else {
#pragma unroll
    for (int j = 0; j < 4; j++) rowOfStates<K>(v[j], tile + (i + j) * NP + n);
  }
}

// S, K, T, TH: see scan.cuh. EVERY: steps between checkpoints. POLY: one exponential in so many goes to the multiply-add pipes; 0
// for none. VB, VC: B, C vary with time. STARTS: sequences may start inside.
template <class X, int S, int K, int T, int TH, int EVERY, int POLY, bool VB, bool VC, bool STARTS>
__device__ __forceinline__ void scanForward(const Scan &s) {
  constexpr int CH = TH / S, NP = S * K, RS = TH / CH, E = (T + RS - 1) / RS;  // a thread prepares E steps, RS apart, of one channel
  constexpr int G = NP > 128 ? 8 : S > 4 ? S : 4, GS = S < G ? S : G;  // the sums of G steps are made together
  constexpr int NG = T / G, EG = E / NG;
  constexpr int NB = (T * NP + TH - 1) / TH;
  constexpr bool ROWS = S >= 8;  // few channels a warp: the steps of a channel lie side by side
  constexpr int PITCH = ROWS ? T + 2 : CH;
  static_assert(T % G == 0 && E % NG == 0 && T % EVERY == 0, "tile");
  __shared__ __align__(16) float sB[2][VB ? T * NP : 4], sC[2][VC ? T * NP : 4];
  __shared__ __align__(16) float2 sd[2][ROWS ? CH * PITCH : T * CH];
  __shared__ float sy[2][T * CH];

  const int tid = threadIdx.x, c = tid / S, sub = tid % S, n0 = sub * K;
  const Place p = placeOf(s, CH);
  const int64_t L = s.length, N = s.state, d = p.first + c;
  const bool here = d < p.last;
  float a[K], h[K], bConst[K], cConst[K];
#pragma unroll
  for (int k = 0; k < K; k++) {
    const bool ok = here && n0 + k < N;
    const int64_t at = d * N + n0 + k;
    a[k] = ok ? decayRate(s, at) * log2e : 0.f;
    bConst[k] = !VB && ok ? ((const float *)s.B)[at] : 0.f;
    cConst[k] = !VC && ok ? ((const float *)s.C)[at] : 0.f;
    h[k] = ok && s.initial ? s.initial[p.b * s.channels * N + at] : 0.f;
  }

  const int lc = tid % CH, lt = tid / CH;
  const int64_t ld = p.first + lc;
  const bool lhere = ld < p.last;
  const float bias = lhere && s.bias ? s.bias[ld] : 0.f, skip = lhere && s.D ? s.D[ld] : 0.f;
  const X *B = VB ? (const X *)s.B + p.first / s.bChannels * N : nullptr, *C = VC ? (const X *)s.C + p.first / s.cChannels * N : nullptr;
  float ru[E], rd[E], rz[E], rb[NB], rc[NB];      // on their way
  float gate[E] = {}, add[E] = {}, lastGate[E] = {}, lastAdd[E] = {};  // of the tile that is scanned, and of the one before

  auto load = [&](int e, int64_t from) {
    const int64_t i = from + lt + e * RS;
    ru[e] = rd[e] = rz[e] = 0.f;
    if (lhere && i < L && lt + e * RS < T) {
      const int64_t row = rowOf(s, p.b, i);
      ru[e] = readOnce((const X *)s.u + row * s.channels + ld);
      rd[e] = readOnce((const X *)s.delta + row * s.channels + ld);
      if (s.z) rz[e] = readOnce((const X *)s.z + row * s.zStep + ld);
    }
  };
  auto loadBC = [&](int64_t from) {
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
  };
  auto putBC = [&](int q) {
#pragma unroll
    for (int j = 0; j < NB; j++) {
      const int at = tid + j * TH, i = at / NP, n = at % NP;
      const int to = K == 1 ? (i / 4 * NP + n) * 4 + i % 4 : at;
      if (at < T * NP) {
        if (VB) sB[q][to] = rb[j];
        if (VC) sC[q][to] = rc[j];
      }
    }
  };
  // prepare returns Δ and Δu of an element, and sets its gate; beyond the end both are 0, and the state stays.
  auto prepare = [&](int e, int64_t from) {
    const float raw = rd[e] + bias;
    float dt = s.softplus ? softplusOf(raw) : raw;
    if (from + lt + e * RS >= L) dt = 0.f;
    gate[e] = s.z ? rz[e] * sigmoidOf(rz[e]) : 1.f;
    add[e] = skip * ru[e] * gate[e];
    return make_float2(dt, dt * ru[e]);
  };
  auto put = [&](int q, int e, float2 v) {
    const int i = lt + e * RS;
    if (i < T) sd[q][ROWS ? lc * PITCH + i : i * CH + lc] = v;
  };
  auto finish = [&](int q, int e, int64_t from) {
    const int64_t i = from + lt + e * RS;
    if (lhere && i < L && lt + e * RS < T) {
      ((X *)s.y)[rowOf(s, p.b, i) * s.channels + ld] = to<X>(fmaf(sy[q][(lt + e * RS) * CH + lc], lastGate[e], lastAdd[e]));
    }
  };

  loadBC(0);
#pragma unroll
  for (int e = 0; e < E; e++) load(e, 0);
#pragma unroll
  for (int e = 0; e < E; e++) {
    put(0, e, prepare(e, 0));
    load(e, T);
  }
  putBC(0);
  loadBC(T);
  __syncthreads();

  int q = 0;
  for (int64_t from = 0; from < L; from += T, q ^= 1) {
    const uint64_t fresh = STARTS ? freshMask<T>(s, p.b, from) : 0;
    putBC(q ^ 1);
    loadBC(from + 2 * T);
    float2 ready[EG];
#pragma unroll
    for (int g = 0; g < NG; g++) {
      if (g > 0) {  // a group later, when the values are there
#pragma unroll
        for (int j = 0; j < EG; j++) put(q ^ 1, (g - 1) * EG + j, ready[j]);
      }
#pragma unroll
      for (int j = 0; j < EG; j++) {
        const int e = g * EG + j;
        if (from > 0) finish(q ^ 1, e, from - T);
        lastGate[e] = gate[e], lastAdd[e] = add[e];
        ready[j] = prepare(e, from + T);
        load(e, from + 2 * T);
      }
      float acc[G];
#pragma unroll
      for (int i = 0; i < G; i += 4) {
        float b[4][K], cc[4][K];
        float2 v[4];
        if (VB) statesOf<K, NP>(b, sB[q], g * G + i, n0);
        if (VC) statesOf<K, NP>(cc, sC[q], g * G + i, n0);
        if (ROWS) {
#pragma unroll
          for (int j = 0; j < 4; j += 2) {
            const float4 x = *(const float4 *)&sd[q][c * PITCH + g * G + i + j];
            v[j] = make_float2(x.x, x.y), v[j + 1] = make_float2(x.z, x.w);
          }
        } else {
#pragma unroll
          for (int j = 0; j < 4; j++) v[j] = sd[q][(g * G + i + j) * CH + c];
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const int step = g * G + i + j;
          if (step % EVERY == 0 && s.checkpoints && from + step < L && here) {
            float *to = s.checkpoints + ((p.b * ((L + EVERY - 1) / EVERY) + (from + step) / EVERY) * s.channels + d) * N + n0;
            if (K % 4 == 0 && N % 4 == 0) {
#pragma unroll
              for (int k = 0; k < K; k += 4) {
                if (n0 + k < N) *(float4 *)(to + k) = make_float4(h[k % K], h[(k + 1) % K], h[(k + 2) % K], h[(k + 3) % K]);
              }
            } else {
#pragma unroll
              for (int k = 0; k < K; k++) {
                if (n0 + k < N) to[k] = h[k];
              }
            }
          }
          float sum = 0.f;
#pragma unroll
          for (int k = 0; k < K; k++) {
            const float x = v[j].x * a[k], in = v[j].y * (VB ? b[j][k] : bConst[k]);
            const float decay = POLY && (step * K + k) % (POLY ? POLY : 1) == POLY / 2 ? exp2Poly(x) : exp2Approx(x);
            h[k] = STARTS && fresh >> step & 1 ? in : fmaf(h[k], decay, in);
            sum = fmaf(h[k], VC ? cc[j][k] : cConst[k], sum);
          }
          acc[i + j] = sum;
        }
      }
      if (S == 1) {
#pragma unroll
        for (int i = 0; i < G; i++) sy[q][(g * G + i) * CH + c] = acc[i];
      } else {
#pragma unroll
        for (int i = 0; i < G; i += GS) {
          float sum = sumOver<GS>(acc + i, sub);
#pragma unroll
          for (int m = GS; m < S; m *= 2) sum += __shfl_xor_sync(~0u, sum, m);
          if (sub < GS) sy[q][(g * G + i + sub) * CH + c] = sum;
        }
      }
    }
#pragma unroll
    for (int j = 0; j < EG; j++) put(q ^ 1, (NG - 1) * EG + j, ready[j]);
    __syncthreads();
  }
  const int64_t from = (L - 1) / T * T;
#pragma unroll
  for (int e = 0; e < E; e++) finish(q ^ 1, e, from);
  if (s.final && here) {
#pragma unroll
    for (int k = 0; k < K; k++) {
      if (n0 + k < N) s.final[(p.b * s.channels + d) * N + n0 + k] = h[k];
    }
  }
}
