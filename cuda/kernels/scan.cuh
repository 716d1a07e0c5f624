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
  int64_t vectors;                // all rows of activations begin at a multiple of four elements
  const void *u, *delta;          // of activations, as are B, C, z, y and their gradients, but for the parts of those of B and C
  const float *A;
  const void *B, *C;
  const float *D;
  const void *z;
  const float *bias, *initial;
  const uint8_t *start;
  void *y;
  float *final, *checkpoints;  // checkpoints: (batch, ceil(length / every), channels, state)
  // A long scan of few channels is cut into chunks of the length, which run side by side: a first pass finds where each begins.
  int64_t chunks, chunkSteps;      // chunkSteps is a multiple of a tile
  float *states, *sums;            // (batch, chunk, channels, state): ends of chunks that begin at zero, then their beginnings;
                                   // (batch, chunk, channels): Σ Δ of the chunks, or no number where a sequence starts inside
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
// Within 1.5e-7 relative (fitted for the largest error to be smallest). Cut off to what a normal number holds; exact at 0, where
// steps beyond the end must not change a state.
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

__device__ __forceinline__ float expOf(float x) { return exp2Approx(x * 1.44269504088896341f); }
__device__ __forceinline__ float inverseOf(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// softplusOf is log(1 + e^x) = max(x, 0) + log1p(e^-|x|), with a polynomial for log1p(e)/e on [0, 1], within 2.6e-7 relative
// (fitted for the largest error to be smallest): the unit's logarithm loses what is small. e is e^-|x|.
__device__ __forceinline__ float softplusOf(float x, float e) {
  float p = -8.539299481e-03f;
  p = fmaf(p, e, 4.409020394e-02f);
  p = fmaf(p, e, -1.076829210e-01f);
  p = fmaf(p, e, 1.774536073e-01f);
  p = fmaf(p, e, -2.449552417e-01f);
  p = fmaf(p, e, 3.327549398e-01f);
  p = fmaf(p, e, -4.999740720e-01f);
  p = fmaf(p, e, 9.999998212e-01f);
  return fmaf(p, e, x <= 0.f ? 0.f : x);
}
__device__ __forceinline__ float softplusOf(float x) { return softplusOf(x, expOf(-fabsf(x))); }

__device__ __forceinline__ float sigmoidOf(float x) { return inverseOf(1.f + expOf(-x)); }

constexpr float log2e = 1.44269504088896341f, ln2 = 0.693147180559945309f;

__device__ __forceinline__ float decayRate(const Scan &s, int64_t at) { return s.alog ? -__expf(s.A[at]) : s.A[at]; }

// Place is where a block works: the channels [first, last) of the steps [from, to) of batch b. Places in the tile are 32 bits.
struct Place {
  int64_t b, first, last, block;  // block: its number among those of all channels
  int64_t chunk, from, to;
};

__device__ __forceinline__ Place placeOf(const Scan &s, int width) {
  const int64_t perSection = (s.section + width - 1) / width, blocks = s.channels / s.section * perSection;
  Place p;
  p.b = blockIdx.x / blocks;
  p.block = blockIdx.x % blocks;
  const int64_t section = p.block / perSection;
  p.first = section * s.section + p.block % perSection * width;
  p.last = min(p.first + width, (section + 1) * s.section);
  p.chunk = blockIdx.y, p.from = p.chunk * s.chunkSteps, p.to = min(p.from + s.chunkSteps, s.length);
  return p;
}

// least is how many of a tile's steps there are.
__device__ __forceinline__ int least(int64_t steps, int tile) { return steps < tile ? (int)steps : tile; }

__device__ __forceinline__ int64_t rowOf(const Scan &s, int64_t b, int64_t i) {
  return b * s.length + (s.reverse ? s.length - 1 - i : i);
}

// Activations are read and written once.
__device__ __forceinline__ float readOnce(const float *p) { return __ldcs(p); }
__device__ __forceinline__ float readOnce(const bf16 *p) { return value(bf16{__ldcs(&p->bits)}); }
__device__ __forceinline__ void writeOnce(float *p, float v) { __stcs(p, v); }
__device__ __forceinline__ void writeOnce(bf16 *p, float v) { __stcs(&p->bits, to<bf16>(v).bits); }

// Rows is where a matrix's rows of a tile are, steps in the order scanned. Where a tile begins is the same for all threads, and what
// is added to it has 32 bits; matrices of one stride share a Rows.
struct Rows {
  int64_t first, step;  // the lowest row, and from tile to tile
  int stride, last;
  __device__ __forceinline__ Rows(const Scan &s, int64_t b, int64_t from, int64_t stride, int64_t column, int tile) : stride((int)stride), last(s.reverse ? tile - 1 : 0) {
    first = (rowOf(s, b, from) - last) * stride + column;
    step = (s.reverse ? -1 : 1) * stride * tile;
  }
  template <class X> __device__ __forceinline__ X *operator()(X *p, int i, int column, int tiles = 0) const {
    return p + (first + tiles * step) + (uint32_t)((last ? last - i : i) * stride + column);
  }
};

// Four activations that lie side by side, where vectors says that they may be read as one.
__device__ __forceinline__ float4 readFour(const float *p) { return __ldcs((const float4 *)p); }
__device__ __forceinline__ float4 readFour(const bf16 *p) {
  const uint2 v = __ldcs((const uint2 *)p);
  return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u));
}
__device__ __forceinline__ void writeFour(float *p, float4 v) { *(float4 *)p = v; }
__device__ __forceinline__ void writeFour(bf16 *p, float4 v) {
  *(uint2 *)p = make_uint2(to<bf16>(v.x).bits | (uint32_t)to<bf16>(v.y).bits << 16, to<bf16>(v.z).bits | (uint32_t)to<bf16>(v.w).bits << 16);
}
__device__ __forceinline__ void writeTwo(float *p, float a, float b) { __stcs((float2 *)p, make_float2(a, b)); }
__device__ __forceinline__ void writeTwo(bf16 *p, float a, float b) { *(uint32_t *)p = to<bf16>(a).bits | (uint32_t)to<bf16>(b).bits << 16; }
// fourOf is readFour of as many as there are.
template <class X> __device__ __forceinline__ float4 fourOf(const X *p, int count, bool vectors) {
  if (vectors && count == 4) return readFour(p);
  return make_float4(count > 0 ? readOnce(p) : 0.f, count > 1 ? readOnce(p + 1) : 0.f, count > 2 ? readOnce(p + 2) : 0.f, count > 3 ? readOnce(p + 3) : 0.f);
}
// putMany writes V values, two or four at once where vectors says that they lie so.
template <int V, class X> __device__ __forceinline__ void putMany(X *p, const float (&v)[V], int count, bool vectors) {
  if constexpr (V == 4) {
    if (vectors && count == 4) return writeFour(p, make_float4(v[0], v[1], v[2], v[3]));
  }
  if constexpr (V == 2) {
    if (vectors && count == 2) return writeTwo(p, v[0], v[1]);
  }
#pragma unroll
  for (int j = 0; j < V; j++)
    if (j < count) writeOnce(p + j, v[j]);
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
