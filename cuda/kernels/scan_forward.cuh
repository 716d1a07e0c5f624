// The forward pass. Tile by tile, a block prepares what is per (step, channel) alone, scans, and writes the outputs, while the
// operands of the next tile are on their way; other blocks of the multiprocessor work while one waits.
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
// for none. VB, VC: B, C vary with time. STARTS: sequences may start inside. ENDS: the first pass over chunks, which finds their
// ends and nothing else.
template <class X, int S, int K, int T, int TH, int EVERY, int POLY, bool VB, bool VC, bool STARTS, bool ENDS = false>
__device__ __forceinline__ void scanForward(const Scan &s) {
  constexpr int CH = TH / S, NP = S * K, ACROSS = CH / 4, RS = TH / ACROSS, E = (T + RS - 1) / RS;  // a thread prepares E steps, RS
                                                                                                    // apart, of four channels
  constexpr int G = NP > 128 ? 8 : S > 4 ? S : 4, GS = S < G ? S : G;  // the sums of G steps are made together
  constexpr int NB = (T * NP + TH - 1) / TH, PER = NP > TH ? NP / TH : 1, RB = TH > NP ? TH / NP : 1;  // a thread's elements of B and C
  static_assert(T % G == 0 && (T % EVERY == 0 || EVERY % T == 0), "tile");
  __shared__ __align__(16) float sB[VB ? T * NP : 4], sC[VC && !ENDS ? T * NP : 4];
  __shared__ __align__(16) float2 sd[T * CH];
  __shared__ __align__(16) float sy[ENDS ? 4 * TH : T * CH];

  const int tid = threadIdx.x, c = tid / S, sub = tid % S, n0 = sub * K;
  const Place p = placeOf(s, CH);
  const int64_t N = s.state, d = p.first + c;
  const bool here = d < p.last;
  float a[K], h[K], bConst[K], cConst[K];
#pragma unroll
  for (int k = 0; k < K; k++) {
    const bool ok = here && n0 + k < N;
    const int64_t at = d * N + n0 + k;
    a[k] = ok ? decayRate(s, at) * log2e : 0.f;
    bConst[k] = !VB && ok ? ((const float *)s.B)[at] : 0.f;
    cConst[k] = !VC && ok ? ((const float *)s.C)[at] : 0.f;
    const float *begin = ENDS ? nullptr : p.chunk ? s.states + p.chunk * s.channels * N : s.initial;
    h[k] = ok && begin ? begin[p.b * (p.chunk ? s.chunks : 1) * s.channels * N + at] : 0.f;
  }

  const int lc = tid % ACROSS * 4, lt = tid / ACROSS, n = tid % NP, lb = tid / NP, count = min(max((int)(p.last - p.first) - lc, 0), 4);
  const bool gated = s.z && !ENDS;
  float bias[4], skip[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    bias[j] = j < count && s.bias ? s.bias[p.first + lc + j] : 0.f;
    skip[j] = j < count && s.D ? s.D[p.first + lc + j] : 0.f;
  }
  Rows wide(s, p.b, p.from, s.channels, p.first, T), z(s, p.b, p.from, s.zStep, p.first, T);
  Rows B(s, p.b, p.from, s.bStep, VB ? p.first / s.bChannels * N : 0, T), C(s, p.b, p.from, s.cStep, VC ? p.first / s.cChannels * N : 0, T);
  float *checkpoint = s.checkpoints + ((p.b * ((s.length + EVERY - 1) / EVERY) + p.from / EVERY) * s.channels + d) * N + n0;
  const int64_t checkpointStep = s.channels * N;

  float4 ru[E], rd[E], rz[E];  // on their way
  float rb[NB], rc[NB];
  float4 gate[E], add[E];      // of the tile that is scanned
  float deltas[4] = {};
  bool cut = false;

  auto load = [&](int left) {
#pragma unroll
    for (int e = 0; e < E; e++) {
      const int i = lt + e * RS, m = i < left ? count : 0;
      ru[e] = fourOf(wide((const X *)s.u, i, lc), m, s.vectors), rd[e] = fourOf(wide((const X *)s.delta, i, lc), m, s.vectors);
      if (gated) rz[e] = fourOf(z((const X *)s.z, i, lc), m, s.vectors);
    }
#pragma unroll
    for (int j = 0; j < NB; j++) {
      const int i = lb + j / PER * RB, m = n + j % PER * TH;
      rb[j] = rc[j] = 0.f;
      if (tid + j * TH < T * NP && m < N && i < left) {
        if (VB) rb[j] = value(*B((const X *)s.B, i, m));
        if (VC && !ENDS) rc[j] = value(*C((const X *)s.C, i, m));
      }
    }
    wide.first += wide.step, z.first += z.step, B.first += B.step, C.first += C.step;
  };
  auto stepsFrom = [&](int64_t from) { return from < p.to ? least(p.to - from, T) : 0; };

  load(stepsFrom(p.from));
  for (int64_t from = p.from; from < p.to; from += T) {
    const int left = stepsFrom(from);
    const uint64_t fresh = STARTS ? freshMask<T>(s, p.b, from) : 0;
    if (STARTS && ENDS) cut = cut || fresh << (64 - left);
#pragma unroll
    for (int e = 0; e < E; e++) {  // beyond the end Δ and Δu are 0, and the state stays
      const int i = lt + e * RS;
      float2 v[4];
      // prepare is what is per (step, channel) alone.
      auto prepare = [&](int j, float u, float raw, float zed, float &gate, float &add) {
        raw += bias[j];
        float dt = s.softplus ? softplusOf(raw) : raw;
        if (i >= left) dt = 0.f;
        if (!ENDS) gate = gated ? zed * sigmoidOf(zed) : 1.f, add = skip[j] * u * gate;
        if (ENDS) deltas[j] += dt;
        v[j] = make_float2(dt, dt * u);
      };
      prepare(0, ru[e].x, rd[e].x, rz[e].x, gate[e].x, add[e].x);
      prepare(1, ru[e].y, rd[e].y, rz[e].y, gate[e].y, add[e].y);
      prepare(2, ru[e].z, rd[e].z, rz[e].z, gate[e].z, add[e].z);
      prepare(3, ru[e].w, rd[e].w, rz[e].w, gate[e].w, add[e].w);
      if (i < T) {
        float4 *to = (float4 *)&sd[i * CH + lc];
        to[0] = make_float4(v[0].x, v[0].y, v[1].x, v[1].y), to[1] = make_float4(v[2].x, v[2].y, v[3].x, v[3].y);
      }
    }
#pragma unroll
    for (int j = 0; j < NB; j++) {
      const int at = tid + j * TH, i = at / NP, to = K == 1 ? (i / 4 * NP + at % NP) * 4 + i % 4 : at;
      if (at < T * NP) {
        if (VB) sB[to] = rb[j];
        if (VC && !ENDS) sC[to] = rc[j];
      }
    }
    __syncthreads();
    load(stepsFrom(from + T));
#pragma unroll
    for (int g = 0; g < T / G; g++) {
      float acc[G];
#pragma unroll
      for (int i = 0; i < G; i += 4) {
        float b[4][K], cc[4][K];
        float2 v[4];
        if (K == 1) {
          if (VB) statesOf<K, NP>(b, sB, g * G + i, n0);
          if (VC && !ENDS) statesOf<K, NP>(cc, sC, g * G + i, n0);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const int at = g * G + i + j;
          v[j] = sd[at * CH + c];
          if (K > 1) {
            if (VB) rowOfStates<K>(b[j], sB + at * NP + n0);
            if (VC && !ENDS) rowOfStates<K>(cc[j], sC + at * NP + n0);
          }
          if (!ENDS && at % EVERY == 0 && s.checkpoints && here && at < left && (EVERY <= T || from % EVERY == 0)) {
            float *to = checkpoint + at / EVERY * checkpointStep;
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
            const float decay = POLY && (at * K + k) % (POLY ? POLY : 1) == POLY / 2 ? exp2Poly(x) : exp2Approx(x);
            h[k] = STARTS && fresh >> at & 1 ? in : fmaf(h[k], decay, in);
            if (!ENDS) sum = fmaf(h[k], VC ? cc[j][k] : cConst[k], sum);
          }
          acc[i + j] = sum;
        }
      }
      if (ENDS) {
      } else if (S == 1) {
#pragma unroll
        for (int i = 0; i < G; i++) sy[(g * G + i) * CH + c] = acc[i];
      } else {
#pragma unroll
        for (int i = 0; i < G; i += GS) {
          float sum = sumOver<GS>(acc + i, sub);
#pragma unroll
          for (int m = GS; m < S; m *= 2) sum += __shfl_xor_sync(~0u, sum, m);
          if (sub < GS) sy[(g * G + i + sub) * CH + c] = sum;
        }
      }
    }
    if (EVERY <= T || (from + T) % EVERY == 0) checkpoint += (EVERY <= T ? T / EVERY : 1) * checkpointStep;
    __syncthreads();
    if (!ENDS) {
#pragma unroll
      for (int e = 0; e < E; e++) {
        const int i = lt + e * RS;
        if (i >= left) continue;
        const float4 v = *(const float4 *)&sy[i * CH + lc], g = gate[e], a = add[e];
        const float out[4] = {fmaf(v.x, g.x, a.x), fmaf(v.y, g.y, a.y), fmaf(v.z, g.z, a.z), fmaf(v.w, g.w, a.w)};
        putMany<4>(wide((X *)s.y, i, lc, -2), out, count, s.vectors);
      }
    }
  }
  float *end = ENDS ? s.states + (p.b * s.chunks + p.chunk) * s.channels * N : p.to == s.length && s.final ? s.final + p.b * s.channels * N : nullptr;
  if (end && here) {
#pragma unroll
    for (int k = 0; k < K; k++) {
      if (n0 + k < N) end[d * N + n0 + k] = h[k];
    }
  }
  if (ENDS) {
#pragma unroll
    for (int j = 0; j < 4; j++) sy[lt * CH + lc + j] = deltas[j];
    __syncthreads();
    if (tid < CH && p.first + tid < p.last) {
      float sum = 0.f;
#pragma unroll
      for (int i = 0; i < RS; i++) sum += sy[i * CH + tid];
      s.sums[(p.b * s.chunks + p.chunk) * s.channels + p.first + tid] = STARTS && cut ? NAN : sum;
    }
  }
}

// scanBeginnings turns the ends of chunks that began at zero into where they really begin, one thread for each state.
__device__ __forceinline__ void scanBeginnings(const Scan &s) {
  const int64_t size = s.channels * s.state, i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= s.batch * size) return;
  const int64_t b = i / size, at = i % size, d = at / s.state;
  const float a = decayRate(s, at) * log2e;
  float h = s.initial ? s.initial[i] : 0.f;
  for (int64_t c = 0; c < s.chunks; c++) {
    float *state = s.states + (b * s.chunks + c) * size + at;
    const float end = c + 1 < s.chunks ? *state : 0.f, sum = c + 1 < s.chunks ? s.sums[(b * s.chunks + c) * s.channels + d] : 0.f;
    *state = h;
    h = sum == sum ? fmaf(exp2f(a * sum), h, end) : end;
  }
}
