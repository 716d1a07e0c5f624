// The selective scan on the device: what its forward and backward passes share.
//
// S threads of a warp share a channel and hold K states each in registers; a block has TH/S channels and walks the length in
// tiles of T steps. What is per (step, channel) alone, the step size through softplus and the gate, is computed once by the
// whole block and handed on in shared memory. Order of axes: (batch, length, channels), as everywhere.
#pragma once
#include "types.cuh"

// Scan has the sizes and addresses of a scan; cuda/scan.go has its twin. Absent operands are null. Steps are counted in the
// order scanned.
struct Scan {
  int64_t batch, length, channels, state;
  int64_t zStep, bStep, cStep;    // elements between two steps of z, B and C
  int64_t section;                // channels that share a group of B and one of C, side by side: blocks do not cross sections
  int64_t bChannels, cChannels;   // channels of a group; not used where constant
  int64_t softplus, reverse;
  int64_t alog;                   // A holds log(-A)
  const void *u, *delta;          // of activations, as are B, C, z, y and their gradients, but for the parts of those of B and C
  const float *A;
  const void *B, *C;
  const float *D;
  const void *z;
  const float *bias, *initial;
  const uint8_t *start;
  void *y;
  float *final, *checkpoints;  // checkpoints: (batch, ceil(length / every), channels, state)
  // The backward pass.
  const void *dy;
  const float *dfinal;
  void *du, *ddelta, *dz;
  float *dinitial;
  float *dA, *dD, *dbias;  // a part for each batch: (batch, channels, state), (batch, channels)
  float *dB, *dC;          // where variable a part for each block of channels: (block, batch, length, state); else like dA
};

__device__ __forceinline__ float exp2Approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// exp2Poly is exp2 on the multiply-add pipes, since the unit for exp2 is the scan's narrowest: it takes an eighth of the work.
// Within 1.5e-7 relative (fitted for the largest
// error to be smallest). Cut off to what a normal number holds; exact at 0, where steps beyond the end must not change a state.
__device__ __forceinline__ float exp2Poly(float x) {
  x = fminf(fmaxf(x, -126.f), 127.f);
  const float shifted = x + 12582912.f;  // no room for a fraction: the low bits are the nearest integer
  const float f = x - (shifted - 12582912.f);
  float p = 1.326460042e-03f;
  p = fmaf(p, f, 9.671511129e-03f);
  p = fmaf(p, f, 5.550733954e-02f);
  p = fmaf(p, f, 2.402224243e-01f);
  p = fmaf(p, f, 6.931470037e-01f);
  p = fmaf(p, f, 1.f);
  return __int_as_float(__float_as_int(p) + (__float_as_int(shifted) << 23));
}

template <bool POLY> __device__ __forceinline__ float exp2Of(float x) { return POLY ? exp2Poly(x) : exp2Approx(x); }

// softplusOf is log(1 + e^x), and x itself above 20. The logarithm of the unit loses what is small, so below 1/2 it is the
// series of 2 artanh(e / (2 + e)).
__device__ __forceinline__ float softplusOf(float x) {
  const float e = __expf(x);
  const float r = __fdividef(e, 2.f + e), q = r * r;
  float p = fmaf(q, 1.f / 9, 1.f / 7);
  p = fmaf(p, q, 1.f / 5);
  p = fmaf(p, q, 1.f / 3);
  p = fmaf(p * q, 2 * r, 2 * r);
  const float l = e < 0.5f ? p : __logf(1.f + e);
  return x > 20.f ? x : l;
}

__device__ __forceinline__ float sigmoidOf(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }

constexpr float log2e = 1.44269504088896341f, ln2 = 0.693147180559945309f;

// Activations are read and written once.
__device__ __forceinline__ float readOnce(const float *p) { return __ldcs(p); }
__device__ __forceinline__ float readOnce(const bf16 *p) { return value(bf16{__ldcs(&p->bits)}); }
__device__ __forceinline__ void writeOnce(float *p, float v) { __stcs(p, v); }
__device__ __forceinline__ void writeOnce(bf16 *p, float v) { __stcs(&p->bits, to<bf16>(v).bits); }

__device__ __forceinline__ float decayRate(const Scan &s, int64_t at) { return s.alog ? -__expf(s.A[at]) : s.A[at]; }

// Place is where a block works.
struct Place {
  int64_t b, first, last, block;  // the channels [first, last), a block's number among those of all channels
};

__device__ __forceinline__ Place placeOf(const Scan &s, int width) {
  const int64_t perSection = (s.section + width - 1) / width, blocks = s.channels / s.section * perSection;
  Place p;
  p.b = blockIdx.x / blocks;
  p.block = blockIdx.x % blocks;
  const int64_t section = p.block / perSection;
  p.first = section * s.section + p.block % perSection * width;
  p.last = min(p.first + width, (section + 1) * s.section);
  return p;
}

__device__ __forceinline__ int64_t rowOf(const Scan &s, int64_t b, int64_t i) {
  return b * s.length + (s.reverse ? s.length - 1 - i : i);
}

// freshAt reports whether a start lies between step i and the step scanned before it.
__device__ __forceinline__ bool freshAt(const Scan &s, int64_t b, int64_t i) {
  if (i >= s.length) return false;
  const int64_t t = s.reverse ? s.length - i : i;
  return t < s.length && s.start[b * s.length + t];
}

// freshMask has a bit for each step of a tile; all lanes of a warp call it.
template <int T> __device__ __forceinline__ uint64_t freshMask(const Scan &s, int64_t b, int64_t from) {
  uint64_t mask = 0;
#pragma unroll
  for (int w = 0; w < T; w += 32) {
    const int i = w + (threadIdx.x & 31);
    mask |= (uint64_t)__ballot_sync(~0u, i < T && freshAt(s, b, from + i)) << w;
  }
  return mask;
}

// sumOver adds v[i] over the W threads that differ in the low bits of the lane, for W values at a time: thread s of them
// returns with the sum of v[s] in v[0]. W-1 shuffles instead of W log2 W.
template <int W> __device__ __forceinline__ float sumOver(float *v, int s) {
  if constexpr (W > 1) {
#pragma unroll
    for (int i = 0; i < W / 2; i++) {
      const float low = v[i], high = v[i + W / 2];  // a choice of values, not of addresses, which would put v into memory
      v[i] = (s & W / 2 ? high : low) + __shfl_xor_sync(~0u, s & W / 2 ? low : high, W / 2);
    }
    return sumOver<W / 2>(v, s);
  }
  return v[0];
}

// rowOfStates reads K states that lie side by side, as wide as can be.
template <int K> __device__ __forceinline__ void rowOfStates(float (&v)[K], const float *row) {
  if constexpr (K == 1) {
    v[0] = row[0];
  } else if constexpr (K == 2) {
    const float2 x = *(const float2 *)row;
    v[0] = x.x, v[1] = x.y;
  } else {
#pragma unroll
    for (int k = 0; k < K; k += 4) {
      const float4 x = *(const float4 *)(row + k);
      v[k] = x.x, v[k + 1] = x.y, v[k + 2] = x.z, v[k + 3] = x.w;
    }
  }
}
