// S4 as a convolution, by cuFFT. docs/s4.md derives it. All arithmetic is in double, as in s4.cu.
//
// A row of N points has a sequence and zeros: u_t, t < N. Instead of 2N real numbers, N complex numbers u_t e^{-iπt/2N} are transformed. The
// product with the transform of K, made in the same way, is the transform of (y_t - i y_{N+t}) e^{-iπt/2N}, y the whole convolution. So y_t
// for t < N is a real part, and cuFFT's complex transforms are faster than its real ones.
//
// A piece is some channels of all sequences. Its rows are transformed in place. Their order is: for each sequence and channel a row of U, or of dy
// in the backward pass; for each channel a row of the impulse response K; in the backward pass, for each sequence and channel a row of U.
#include "s4.cuh"

// Piece has the memory and the channels of a piece. s4Piece in cuda/s4fft.go has the same fields.
struct Piece {
  Complex *rows;
  uint32_t *bad;          // a number for each row of U and dy: 0, or how many of its steps a number that is not finite reaches
  const Complex *turn;    // (points): e^{-iπt/2N}
  int64_t points;         // N
  int64_t from, channels; // channels from, from + 1, …

  __device__ Complex *row(int64_t r) const { return rows + r * points; }
  // at returns the real number at step t of a row of results.
  __device__ double at(const Complex *row, int64_t t) const { return fma(row[t].re, turn[t].re, row[t].im * turn[t].im); }
};

// s4_fft_turn writes turn.
extern "C" __global__ void s4_fft_turn(Complex *turn, int64_t points) {
  const int64_t t = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (t >= points) return;
  double sin, cos;
  sincospi(.5 * t / points, &sin, &cos);
  turn[t] = {cos, -sin};
}

// A tile has STEPS steps of 32 channels. A thread has EACH of its numbers.
constexpr int STEPS = 64, EACH = STEPS * 32 / 256;

// s4_fft_load writes the rows of v (batch, length, channels), from row first on. A number that is not finite would be in every step of the
// result. It is replaced by 0, and the row's number in bad becomes the number of steps that it reaches: those from it to the end, or, if back,
// those from the beginning to it.
extern "C" __global__ __launch_bounds__(256) void s4_fft_load(const S4 s, const Piece p, const float *v, int64_t first, uint32_t *bad, int64_t back) {
  __shared__ float tile[STEPS][33];
  const int64_t from = (int64_t)blockIdx.x * STEPS, at = (int64_t)blockIdx.y * 32;
  for (int64_t b = blockIdx.z; b < s.batch; b += gridDim.z) {
    float x[EACH];
#pragma unroll
    for (int k = 0; k < EACH; k++) {
      const int64_t t = from + threadIdx.x / 32 + 8 * k, c = at + threadIdx.x % 32;
      x[k] = v && t < s.length && c < p.channels ? v[(b * s.length + t) * s.channels + p.from + c] : 0.f;
    }
    __syncthreads();  // all have written the previous tile
#pragma unroll
    for (int k = 0; k < EACH; k++) {
      const int64_t t = from + threadIdx.x / 32 + 8 * k, c = at + threadIdx.x % 32;
      if (x[k] - x[k] != 0) {
        atomicMax(bad + b * p.channels + c, (uint32_t)(back ? t + 1 : s.length - t));
        x[k] = 0;
      }
      tile[threadIdx.x / 32 + 8 * k][threadIdx.x % 32] = x[k];
    }
    __syncthreads();
    const int64_t t = from + threadIdx.x % STEPS;
    if (t >= p.points) continue;
    const Complex turn = p.turn[t];
#pragma unroll
    for (int k = 0; k < EACH; k++) {
      const int64_t i = threadIdx.x / STEPS + 4 * k;
      if (at + i < p.channels) p.row(first + b * p.channels + at + i)[t] = (double)tile[threadIdx.x % STEPS][i] * turn;
    }
  }
}

// s4_fft_impulse writes the rows of K, with D added to K_0. A block computes 1024 steps of a channel, a thread every 256th of them. A thread
// multiplies powers of w from two tables for its first step, and goes on by x_{r+1} = 2 Re(W) x_r - |W|² x_{r-1} for the real part x_r of
// a W^r, W = w^256. With few steps, rounding errors stay small.
extern "C" __global__ __launch_bounds__(256) void s4_fft_impulse(const S4 s, const Piece p) {
  constexpr int GROUP = 8, EACH = 4;  // modes at a time; steps of a thread
  __shared__ Complex low[GROUP][16], high[GROUP][16], over[GROUP];
  const int64_t d = p.from + blockIdx.y, base = (int64_t)blockIdx.x * (256 * EACH);
  const int mode = threadIdx.x / 32, entry = threadIdx.x % 32;
  const int64_t rest = s.length - base;
  double k[EACH] = {};
  for (int64_t n = 0; n < s.modes && rest > 0; n += GROUP) {
    __syncthreads();  // all have read the previous tables
    const Mode m = tabled(s, d, n + mode);
    if (entry < 16) low[mode][entry] = power(m.w, entry);
    else high[mode][entry - 16] = scaleOf(s) * (m.c * m.b * power(m.w, base + 16 * (entry - 16)));
    if (entry == 0) over[mode] = power(m.w, 256);
    __syncthreads();
    for (int q = 0; q < GROUP && n + q < s.modes; q++) {
      const Complex w = over[q], a = high[q][threadIdx.x / 16] * low[q][threadIdx.x % 16];
      const double twice = 2 * w.re, square = fma(w.re, w.re, w.im * w.im);
      double now = a.re, next = fma(a.re, w.re, -a.im * w.im);
#pragma unroll
      for (int r = 0; r < EACH; r++) {
        if (256 * r >= rest) break;
        k[r] += now;
        const double then = fma(twice, next, -square * now);
        now = next, next = then;
      }
    }
  }
  Complex *row = p.row(s.batch * p.channels + blockIdx.y);
#pragma unroll
  for (int r = 0; r < EACH; r++) {
    const int64_t j = base + 256 * r + threadIdx.x;
    if (j < p.points) row[j] = (j < s.length ? k[r] + (j == 0 && s.skip ? s.skip[d] : 0.) : 0.) * p.turn[j];
  }
}

// s4_fft_multiply computes the transforms of the results: of y, or of dU and dK.
template <bool BACK> __device__ __forceinline__ void multiply(const S4 &s, const Piece &p) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, c = i / p.points, at = i % p.points;
  if (c >= p.channels) return;
  const int64_t rows = s.batch * p.channels;
  Complex &last = p.row(rows + c)[at];
  const double norm = 1. / p.points;
  const Complex k = norm * last, factor = BACK ? conj(k) : k;
  Complex dk = {0, 0};
#pragma unroll 4
  for (int64_t b = 0; b < s.batch; b++) {
    const int64_t r = b * p.channels + c;
    Complex &x = p.row(r)[at];
    if (BACK) {
      dk = times(conj(p.row(rows + p.channels + r)[at]), x, dk);
      if (p.bad[r] | p.bad[rows + r]) dk.re = NAN;  // a sum over all steps
    }
    x = x * factor;
  }
  if (BACK) last = norm * dk;
}
extern "C" __global__ __launch_bounds__(256) void s4_fft_multiply(const S4 s, const Piece p) { multiply<false>(s, p); }
extern "C" __global__ __launch_bounds__(256) void s4_fft_multiply_back(const S4 s, const Piece p) { multiply<true>(s, p); }

// s4_fft_store writes the first rows to v (batch, length, channels).
extern "C" __global__ __launch_bounds__(256) void s4_fft_store(const S4 s, const Piece p, float *v, int64_t back) {
  __shared__ float tile[STEPS][33];
  const int64_t from = (int64_t)blockIdx.x * STEPS, at = (int64_t)blockIdx.y * 32, t = from + threadIdx.x % STEPS;
  for (int64_t b = blockIdx.z; b < s.batch; b += gridDim.z) {
    __syncthreads();  // all have written the previous tile
#pragma unroll
    for (int k = 0; k < EACH; k++) {
      const int64_t i = threadIdx.x / STEPS + 4 * k, r = b * p.channels + at + i;
      if (t < s.length && at + i < p.channels)
        tile[threadIdx.x % STEPS][i] = (back ? t + 1 : s.length - t) <= p.bad[r] ? NAN : (float)p.at(p.row(r), t);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < EACH; k++) {
      const int i = threadIdx.x / 32 + 8 * k;
      const int64_t c = at + threadIdx.x % 32;
      if (from + i < s.length && c < p.channels) v[(b * s.length + from + i) * s.channels + p.from + c] = tile[i][threadIdx.x % 32];
    }
  }
}

// s4_fft_modes writes the gradients of w, b, c and D to sums and skipSums, from that of K. With x = conj(w), those of w and of c b are sums of
// dK_j j x^{j-1} and dK_j x^j over j. A warp computes them by Horner's scheme for steps steps and 32 modes; a block adds up eight warps.
extern "C" __global__ __launch_bounds__(256) void s4_fft_modes(const S4 s, const Piece p) {
  __shared__ Complex all[2][8][32];
  __shared__ double tile[8][32];
  const int64_t groups = (s.modes + 31) / 32, c = blockIdx.x / groups, d = p.from + c, part = blockIdx.y;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t n = blockIdx.x % groups * 32 + lane, begin = min((8 * part + warp) * s.steps, s.length), end = min(begin + s.steps, s.length);
  const Mode m = tabled(s, d, n);
  const Complex x = conj(m.w);
  const Complex *dk = p.row(s.batch * p.channels + c);
  Complex sum = {0, 0}, slope = {0, 0};
  for (int64_t top = end; top > begin; top -= 32) {
    const int64_t from = max(begin, top - 32);
    __syncwarp();  // all have read the previous steps
    if (from + lane < top) tile[warp][lane] = p.at(dk, from + lane);
    __syncwarp();
#pragma unroll 8
    for (int j = (int)(top - from) - 1; j >= 0; j--) slope = times(slope, x, sum), sum = times(sum, x, {tile[warp][j], 0});
  }
  const Complex before = begin > 0 ? power(x, begin - 1) : Complex{0, 0}, over = begin > 0 ? before * x : Complex{1, 0};
  all[0][warp][lane] = over * sum;
  all[1][warp][lane] = times(over, slope, (double)begin * (before * sum));
  __syncthreads();
  if (warp > 0) return;
  if (n == 0) s.skipSums[part * s.channels + d] = part == 0 ? p.at(dk, 0) : 0;
  if (n >= s.modes) return;
  sum = slope = {0, 0};
  for (int k = 0; k < 8; k++) sum = sum + all[0][k][lane], slope = slope + all[1][k][lane];
  const int64_t every = s.channels * s.modes, at = 2 * (3 * part * every + d * s.modes + n);
  const double scale = scaleOf(s);
  set(s.sums, at, scale * (conj(m.c * m.b) * slope));
  set(s.sums, at + 2 * every, scale * (conj(m.c) * sum));
  set(s.sums, at + 4 * every, scale * (conj(m.b) * sum));
}
