// S4: sizes, addresses and modes, for its recurrence (s4.cu) and its convolution (s4fft.cu).
#pragma once
#include "types.cuh"

// S4 has the sizes and addresses. s4Args in cuda/s4.go has the same fields. Absent operands are null.
struct S4 {
  int64_t batch, length, channels, modes;
  int64_t bilinear;
  int64_t shift;             // a block has 1 << shift channels
  int64_t chunks, steps;     // the length is cut into chunks of steps, a multiple of 32; the last one may be shorter
  int64_t parts;             // of a sum over batch and time in the backward pass: chunks · gridDim.y
  const float *u, *logDelta, *logDecay, *frequency, *c, *skip, *initial;
  const uint8_t *start;
  float *y, *final;
  double *table;             // (2, channels, modes, 2): w and b of each mode
  double *carried;           // (batch, chunk, value, channels, modes, 2): values of each chunk's walk from zero, then what enters each chunk;
                             // forward one value, backward three
  int32_t *broken;           // (batch, chunk): whether a sequence starts in the chunk
  // The backward pass.
  const float *dy, *dfinal;
  float *du, *dlogDelta, *dlogDecay, *dfrequency, *dc, *dskip, *dinitial;
  double *sums;              // (part, 3, channels, modes, 2): the gradients of w, b and c
  double *skipSums;          // (part, channels): the gradient of D
};

struct __align__(16) Complex {
  double re, im;
};
__device__ __forceinline__ Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
__device__ __forceinline__ Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
__device__ __forceinline__ Complex operator*(double a, Complex b) { return {a * b.re, a * b.im}; }
__device__ __forceinline__ Complex conj(Complex a) { return {a.re, -a.im}; }

// times returns a·b + c.
__device__ __forceinline__ Complex times(Complex a, Complex b, Complex c) {
  return {fma(a.re, b.re, fma(-a.im, b.im, c.re)), fma(a.re, b.im, fma(a.im, b.re, c.im))};
}
__device__ __forceinline__ Complex operator*(Complex a, Complex b) { return times(a, b, {0, 0}); }

// over returns a/b without overflow between (Smith, "Algorithm 116: Complex Division").
__device__ __forceinline__ Complex over(Complex a, Complex b) {
  if (fabs(b.re) >= fabs(b.im)) {
    const double r = b.im / b.re, d = b.re + b.im * r;
    return {(a.re + a.im * r) / d, (a.im - a.re * r) / d};
  }
  const double r = b.re / b.im, d = b.re * r + b.im;
  return {(a.re * r + a.im) / d, (a.im * r - a.re) / d};
}

__device__ __forceinline__ Complex exponential(Complex z) {
  double sin, cos;
  sincos(z.im, &sin, &cos);
  const double e = exp(z.re);
  return {e * cos, e * sin};
}

// Mode is a discretised mode: h_t = w h_{t-1} + b u_t.
struct Mode {
  Complex a, w, b, c;
  double delta;
};

// complexAt returns the value of mode n in row d of v (…, state): the real parts of all modes, then, for complex modes, the imaginary parts.
__device__ __forceinline__ Complex complexAt(const S4 &s, const float *v, int64_t d, int64_t n) {
  if (!s.frequency) return {v[d * s.modes + n], 0};
  v += 2 * d * s.modes;
  return {v[n], v[s.modes + n]};
}
__device__ __forceinline__ void setComplex(const S4 &s, float *v, int64_t d, int64_t n, Complex z) {
  if (!s.frequency) {
    v[d * s.modes + n] = (float)z.re;
    return;
  }
  v += 2 * d * s.modes;
  v[n] = (float)z.re, v[s.modes + n] = (float)z.im;
}

__device__ __forceinline__ Complex get(const double *v, int64_t at) { return {v[at], v[at + 1]}; }
__device__ __forceinline__ void set(double *v, int64_t at, Complex z) { v[at] = z.re, v[at + 1] = z.im; }

// modeOf returns mode n of channel d.
__device__ __forceinline__ Mode modeOf(const S4 &s, int64_t d, int64_t n) {
  Mode m;
  m.delta = exp((double)s.logDelta[d]);
  m.a = {-exp((double)s.logDecay[d * s.modes + n]), s.frequency ? s.frequency[d * s.modes + n] : 0.};
  m.c = complexAt(s, s.c, d, n);
  const Complex z = m.delta * m.a, one = {1, 0};
  if (s.bilinear) {
    const Complex down = one - .5 * z;
    m.w = over(one + .5 * z, down), m.b = over({m.delta, 0}, down);
    return m;
  }
  m.w = exponential(z);
  if (z.re == 0 && z.im == 0) {
    m.b = {m.delta, 0};
    return m;
  }
  // (e^z - 1)/z without cancellation for small z
  double sin, cos, half = ::sin(z.im / 2);
  sincos(z.im, &sin, &cos);
  m.b = m.delta * over({expm1(z.re) * cos - 2 * half * half, exp(z.re) * sin}, z);
  return m;
}

// tabled returns w, b and c of mode n of channel d, zeros if there is none.
__device__ __forceinline__ Mode tabled(const S4 &s, int64_t d, int64_t n) {
  Mode m = {};
  if (d >= s.channels || n >= s.modes) return m;
  const int64_t i = d * s.modes + n;
  m.w = get(s.table, 2 * i), m.b = get(s.table, 2 * (s.channels * s.modes + i)), m.c = complexAt(s, s.c, d, n);
  return m;
}

// scaleOf returns 2 for complex modes, each of which stands for its conjugate too.
__device__ __forceinline__ double scaleOf(const S4 &s) { return s.frequency ? 2 : 1; }

// power returns x^n.
__device__ __forceinline__ Complex power(Complex x, int64_t n) {
  Complex p = {1, 0};
  for (; n > 0; n /= 2) {
    if (n % 2) p = p * x;
    x = x * x;
  }
  return p;
}
