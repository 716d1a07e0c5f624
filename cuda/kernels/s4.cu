// S4, a time-invariant state space for each channel, of diagonal complex modes. internal/kernel/s4.go defines it. All arithmetic is in double,
// as on the host.
//
// A thread processes one mode of a channel, step by step, with the state in registers. A block of 256 threads has 1, 2, 4, … or 32 channels. The
// block goes through time in tiles of 32 steps, with the inputs of a tile in shared memory. Several blocks share the length if the channels are
// too few for the device: the length is cut into chunks, a first pass computes the state at the end of each chunk from zero, and s4_carry joins
// the chunks. The order of axes is (batch, length, channels).
#include "s4.cuh"

constexpr int TILE = 32;

// s4_modes writes the table.
extern "C" __global__ void s4_modes(const S4 s) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, all = s.channels * s.modes;
  if (i >= all) return;
  const Mode m = modeOf(s, i / s.modes, i % s.modes);
  set(s.table, 2 * i, m.w), set(s.table, 2 * (all + i), m.b);
}

// gather calls step(at) for the G steps from AT on, in order, or from the last to the first if DOWN. step returns a thread's part of a sum.
// gather returns the sum over G threads for the step AT + lane % G. Each level adds the values of half of the steps between pairs of threads.
template <int G, int AT, bool DOWN, class F> __device__ __forceinline__ double gather(F &step) {
  if constexpr (G == 1) {
    return step(AT);
  } else {
    double low, high;
    if constexpr (DOWN) {
      high = gather<G / 2, AT + G / 2, DOWN>(step);
      low = gather<G / 2, AT, DOWN>(step);
    } else {
      low = gather<G / 2, AT, DOWN>(step);
      high = gather<G / 2, AT + G / 2, DOWN>(step);
    }
    const bool upper = threadIdx.x & (G / 2);
    return (upper ? high : low) + __shfl_xor_sync(~0u, upper ? low : high, G / 2);
  }
}

// gatherTile does so for the 32 steps of a tile and writes the sums to parts (step, thread group).
template <int G, int AT, bool DOWN, class F> __device__ __forceinline__ void gatherTile(F &step, double *parts) {
  constexpr int at = DOWN ? TILE - G - AT : AT;
  parts[(at + threadIdx.x % G) * (256 / G) + threadIdx.x / G] = gather<G, at, DOWN>(step);
  if constexpr (AT + G < TILE) gatherTile<G, AT + G, DOWN>(step, parts);
}

// Tile is a block's place in time.
struct Tile {
  int64_t from;     // the first step
  int32_t count;    // steps
  uint32_t starts;  // bit t: a sequence starts at step from + t
};
__device__ __forceinline__ Tile tileAt(const S4 &s, int64_t b, int64_t from, int64_t to) {
  const int lane = threadIdx.x % 32;
  return {from, (int32_t)min((int64_t)TILE, to - from), s.start ? __ballot_sync(~0u, from + lane < to && s.start[b * s.length + from + lane]) : 0};
}

// load reads a tile of v into shared memory (step, channel). A null v is zeros.
__device__ __forceinline__ void load(const S4 &s, double *to, const float *v, int64_t b, const Tile &tile) {
  const int shift = s.shift;
  for (int i = threadIdx.x; i < TILE << shift; i += 256) {
    const int t = i >> shift;
    const int64_t d = ((int64_t)blockIdx.x << shift) + (i & ((1 << shift) - 1));
    to[i] = v && t < tile.count && d < s.channels ? v[(b * s.length + tile.from + t) * s.channels + d] : 0.f;
  }
}

// carriedAt returns the index of a value in carried.
__device__ __forceinline__ int64_t carriedAt(const S4 &s, int64_t b, int64_t chunk, int64_t values, int64_t value, int64_t d, int64_t n) {
  return 2 * ((((b * s.chunks + chunk) * values + value) * s.channels + d) * s.modes + n);
}

// s4Forward writes y and final. With ENDS it only writes the state at the end of each chunk, which begins at zero, apart from the first.
template <int G, bool ENDS> __device__ __forceinline__ void s4Forward(const S4 &s) {
  __shared__ double us[TILE * 32], parts[TILE * 32];
  const int shift = s.shift, channels = 1 << shift, own = threadIdx.x >> (8 - shift);
  const int64_t d = (int64_t)blockIdx.x * channels + own, n = threadIdx.x & (255 >> shift), chunk = blockIdx.z;
  const bool here = d < s.channels && n < s.modes;
  const Mode m = tabled(s, d, n);
  const double scale = scaleOf(s);
  const int64_t begin = chunk * s.steps, end = min(begin + s.steps, s.length);
  for (int64_t b = blockIdx.y; b < s.batch; b += gridDim.y) {
    Complex h = {0, 0};
    if (here && chunk == 0 && s.initial) h = complexAt(s, s.initial, b * s.channels + d, n);
    if (here && chunk > 0 && !ENDS) h = get(s.carried, carriedAt(s, b, chunk, 1, 0, d, n));
    bool broken = false;
    for (int64_t from = begin; from < end; from += TILE) {
      const Tile tile = tileAt(s, b, from, end);
      broken |= tile.starts != 0;
      __syncthreads();  // all have read the previous tile
      load(s, us, s.u, b, tile);
      __syncthreads();
      auto step = [&](int t) {
        if (t < tile.count) {
          if (tile.starts >> t & 1) h = {0, 0};
          h = times(m.w, h, us[t * channels + own] * m.b);
        }
        return fma(m.c.re, h.re, -m.c.im * h.im);
      };
      if constexpr (ENDS) {
        for (int t = 0; t < TILE; t++) step(t);
      } else {
        gatherTile<G, 0, false>(step, parts);
        __syncthreads();
        for (int i = threadIdx.x; i < TILE * channels; i += 256) {
          const int t = i >> shift, groups = (256 / G) >> shift;
          const int64_t at = (int64_t)blockIdx.x * channels + (i & (channels - 1));
          if (t >= tile.count || at >= s.channels) continue;
          double sum = 0;
          for (int g = 0; g < groups; g++) sum += parts[i * groups + g];
          s.y[(b * s.length + from + t) * s.channels + at] = (float)(scale * sum + (s.skip ? s.skip[at] * us[i] : 0.));
        }
      }
    }
    if (ENDS && here) set(s.carried, carriedAt(s, b, chunk, 1, 0, d, n), h);
    if (ENDS && blockIdx.x == 0 && threadIdx.x == 0) s.broken[b * s.chunks + chunk] = broken;
    if (!ENDS && here && s.final && chunk == s.chunks - 1) setComplex(s, s.final, b * s.channels + d, n, h);
  }
}

// s4Backward goes through the steps from the last to the first. With x = conj(w) and s = scaleOf, what enters step t is
//
//	e: the sum over later steps i of x^(i-t) s dy_i, so that the gradient of the state is conj(c) e, apart from that of the final state
//	g: the gradient of the state, with that of the final state
//	r: the sum over later steps i of x^(i-1-t) g_i
//
// A step adds s dy_t to e and conj(c) s dy_t to g. Then u_t gives the gradient of c by conj(b) u_t e, that of b by u_t g, and that of w by
// conj(b) u_t r, since the state is a sum over all earlier u. So no state is computed again. FINAL is whether there is a gradient of the final
// state; without it g is conj(c) e, and the sums are multiplied by conj(c) once. With ENDS it only writes what leaves each chunk to the
// left if zero enters from the right, in multiples of conj(c).
template <int G, bool FINAL, bool ENDS> __device__ __forceinline__ void s4Backward(const S4 &s) {
  __shared__ double us[TILE * 32], dys[TILE * 32], parts[TILE * 32];
  const int shift = s.shift, channels = 1 << shift, own = threadIdx.x >> (8 - shift);
  const int64_t d = (int64_t)blockIdx.x * channels + own, n = threadIdx.x & (255 >> shift), chunk = blockIdx.z;
  const bool here = d < s.channels && n < s.modes;
  const Mode m = tabled(s, d, n);
  const double scale = scaleOf(s);
  const Complex x = conj(m.w), cb = FINAL ? conj(m.b) : conj(m.c * m.b), cc = conj(m.c);
  Complex gw = {0, 0}, gc = {0, 0}, ue = {0, 0}, ug = {0, 0}, ur = {0, 0};
  double dSkip = 0;
  const int64_t begin = chunk * s.steps, end = min(begin + s.steps, s.length);
  for (int64_t b = blockIdx.y; b < s.batch; b += gridDim.y) {
    Complex e = {0, 0}, g = {0, 0}, r = {0, 0};
    if (here && !ENDS) {
      if (chunk < s.chunks - 1) {
        e = get(s.carried, carriedAt(s, b, chunk, 3, 0, d, n)), r = get(s.carried, carriedAt(s, b, chunk, 3, 2, d, n));
        if (FINAL) g = get(s.carried, carriedAt(s, b, chunk, 3, 1, d, n));
      } else if (FINAL) {
        g = complexAt(s, s.dfinal, b * s.channels + d, n);
      }
    }
    bool broken = false;
    for (int64_t from = begin + (end - begin - 1) / TILE * TILE; from >= begin; from -= TILE) {
      const Tile tile = tileAt(s, b, from, end);
      broken |= tile.starts != 0;
      __syncthreads();  // all have read the previous tile
      if (!ENDS) load(s, us, s.u, b, tile);
      load(s, dys, s.dy, b, tile);
      __syncthreads();
      auto step = [&](int t) {
        if (t >= tile.count) return 0.;
        const double u = us[t * channels + own], dy = scale * dys[t * channels + own];
        e.re += dy;
        if (FINAL) g = g + dy * cc;
        const Complex now = FINAL ? g : e;
        double part = 0;
        if (!ENDS) {
          ue = ue + u * e, ur = ur + u * r;
          if (FINAL) ug = ug + u * g;
          part = fma(cb.re, now.re, -cb.im * now.im);
        }
        r = times(x, r, now), e = x * e;
        if (FINAL) g = x * g;
        if (tile.starts >> t & 1) e = g = r = {0, 0};
        return part;
      };
      if constexpr (ENDS) {
        for (int t = TILE - 1; t >= 0; t--) step(t);
      } else {
        gatherTile<G, 0, true>(step, parts);
        __syncthreads();
        for (int i = threadIdx.x; i < TILE * channels; i += 256) {
          const int t = i >> shift, groups = (256 / G) >> shift;
          const int64_t at = (int64_t)blockIdx.x * channels + (i & (channels - 1));
          if (t >= tile.count || at >= s.channels) continue;
          double sum = 0;
          for (int k = 0; k < groups; k++) sum += parts[i * groups + k];
          s.du[(b * s.length + from + t) * s.channels + at] = (float)(sum + (s.skip ? s.skip[at] * dys[i] : 0.));
          dSkip += us[i] * dys[i];
        }
      }
    }
    if (ENDS) {
      if (here) {
        set(s.carried, carriedAt(s, b, chunk, 3, 0, d, n), e);
        set(s.carried, carriedAt(s, b, chunk, 3, 2, d, n), r);
      }
      if (blockIdx.x == 0 && threadIdx.x == 0) s.broken[b * s.chunks + chunk] = broken;
    } else if (here && chunk == 0 && s.initial) {
      const Complex h = conj(complexAt(s, s.initial, b * s.channels + d, n));
      gc = gc + h * e, gw = gw + h * (FINAL ? r : cc * r);
      setComplex(s, s.dinitial, b * s.channels + d, n, FINAL ? g : cc * e);
    }
  }
  if (ENDS) return;
  if (here) {
    const int64_t part = chunk * gridDim.y + blockIdx.y, all = s.channels * s.modes, at = 2 * (3 * part * all + d * s.modes + n);
    set(s.sums, at, gw + cb * ur);
    set(s.sums, at + 2 * all, FINAL ? ug : cc * ue);
    set(s.sums, at + 4 * all, gc + conj(m.b) * ue);
  }
  if (!s.skip) return;
  __syncthreads();
  parts[threadIdx.x] = dSkip;
  __syncthreads();
  if (threadIdx.x >= channels || (int64_t)blockIdx.x * channels + threadIdx.x >= s.channels) return;
  double sum = 0;
  for (int i = threadIdx.x; i < 256; i += channels) sum += parts[i];
  s.skipSums[(chunk * gridDim.y + blockIdx.y) * s.channels + (int64_t)blockIdx.x * channels + threadIdx.x] = sum;
}

#define KERNELS(G)                                                                                     \
  extern "C" __global__ __launch_bounds__(256) void s4_forward_##G(const S4 s) { s4Forward<G, false>(s); } \
  extern "C" __global__ __launch_bounds__(256) void s4_backward_##G(const S4 s) { s4Backward<G, false, false>(s); } \
  extern "C" __global__ __launch_bounds__(256) void s4_backward_final_##G(const S4 s) { s4Backward<G, true, false>(s); }
KERNELS(8)
KERNELS(16)
KERNELS(32)
extern "C" __global__ __launch_bounds__(256) void s4_forward_ends(const S4 s) { s4Forward<32, true>(s); }
extern "C" __global__ __launch_bounds__(256) void s4_backward_ends(const S4 s) { s4Backward<32, false, true>(s); }

// s4_carry turns the states at the ends of the chunks into those that enter the chunks.
extern "C" __global__ void s4_carry(const S4 s) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, all = s.channels * s.modes, b = i / all, d = i % all / s.modes, n = i % s.modes;
  if (b >= s.batch) return;
  const Complex over = power(tabled(s, d, n).w, s.steps);
  Complex h = {0, 0};
  for (int64_t k = 0; k < s.chunks; k++) {
    const int64_t at = carriedAt(s, b, k, 1, 0, d, n);
    const Complex end = get(s.carried, at);
    set(s.carried, at, h);
    h = s.broken[b * s.chunks + k] ? end : times(over, h, end);
  }
}

// s4_carry_back turns what leaves the chunks to the left into what enters them from the right.
extern "C" __global__ void s4_carry_back(const S4 s) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, all = s.channels * s.modes, b = i / all, d = i % all / s.modes, n = i % s.modes;
  if (b >= s.batch) return;
  const Mode m = tabled(s, d, n);
  const Complex x = conj(m.w), factor = s.dfinal ? conj(m.c) : Complex{1, 0};
  Complex e = {0, 0}, g = {0, 0}, r = {0, 0};
  if (s.dfinal) g = complexAt(s, s.dfinal, b * s.channels + d, n);
  for (int64_t k = s.chunks - 1; k >= 0; k--) {
    const int64_t at = carriedAt(s, b, k, 3, 0, d, n), next = 2 * all;
    const int64_t steps = min(s.steps, s.length - k * s.steps);
    const Complex last = power(x, steps - 1), over = last * x;
    const Complex le = get(s.carried, at), lg = factor * le, lr = factor * get(s.carried, at + 2 * next), now = s.dfinal ? g : e;
    set(s.carried, at, e), set(s.carried, at + next, g), set(s.carried, at + 2 * next, r);
    if (s.broken[b * s.chunks + k]) {
      e = le, g = lg, r = lr;
    } else {
      r = times(over, r, times((double)steps * last, now, lr));
      e = times(over, e, le), g = times(over, g, lg);
    }
  }
}

// slope returns the derivative of (e^z - 1)/z: (z e^z - e^z + 1)/z² = Σ_k z^k (k+1)/(k+2)!.
__device__ __forceinline__ Complex slope(Complex z) {
  if (hypot(z.re, z.im) > 0.5) {
    const Complex e = exponential(z), one = {1, 0};
    return over(over(z * e - e + one, z), z);
  }
  Complex sum = {0, 0}, term = {.5, 0};  // z^k/(k+2)!
  for (int k = 0; k < 16; k++) sum = sum + (k + 1.) * term, term = 1. / (k + 3) * (term * z);
  return sum;
}

// s4_gradients adds the parts of the gradients of w, b and c, and writes the gradients of the parameters. A warp processes a channel.
extern "C" __global__ void s4_gradients(const S4 s) {
  const int64_t d = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, all = s.channels * s.modes;
  const int lane = threadIdx.x % 32;
  if (d >= s.channels) return;
  double dDelta = 0, delta = 0;
  for (int64_t n = lane; n < s.modes; n += 32) {
    Complex g[3] = {};
    for (int64_t p = 0; p < s.parts; p++)
      for (int k = 0; k < 3; k++) g[k] = g[k] + get(s.sums, 2 * ((3 * p + k) * all + d * s.modes + n));
    const Mode m = modeOf(s, d, n);
    const Complex dt = {m.delta, 0}, z = dt * m.a, one = {1, 0};
    Complex wa, wd, ba, bd;  // derivatives of w and b with respect to a and Δ
    if (s.bilinear) {
      const Complex down = one - .5 * z;
      wa = over(over(dt, down), down), wd = over(over(m.a, down), down);
      ba = .5 * (over(dt, down) * over(dt, down)), bd = over(over(one, down), down);
    } else {
      wa = dt * m.w, wd = m.a * m.w, ba = dt * dt * slope(z), bd = m.w;
    }
    const Complex da = conj(wa) * g[0] + conj(ba) * g[1];
    dDelta += (conj(wd) * g[0] + conj(bd) * g[1]).re;
    delta = m.delta;
    s.dlogDecay[d * s.modes + n] = (float)(da.re * m.a.re);  // a = -e^LogDecay + …
    if (s.frequency) s.dfrequency[d * s.modes + n] = (float)da.im;
    setComplex(s, s.dc, d, n, g[2]);
  }
  double dSkip = 0;
  if (s.skip)
    for (int64_t p = lane; p < s.parts; p += 32) dSkip += s.skipSums[p * s.channels + d];
  dDelta = warpSum(dDelta), dSkip = warpSum(dSkip);
  if (lane > 0) return;
  s.dlogDelta[d] = (float)(dDelta * delta);
  if (s.skip) s.dskip[d] = (float)dSkip;
}

// s4_step computes one step of each sequence. A warp processes a channel of a sequence. final may be initial.
extern "C" __global__ void s4_step(const S4 s) {
  const int64_t row = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, d = row % s.channels;
  const int lane = threadIdx.x % 32;
  if (row >= s.batch * s.channels) return;
  const bool fresh = !s.initial || (s.start && s.start[row / s.channels]);
  const double u = s.u[row];
  double sum = 0;
  for (int64_t n = lane; n < s.modes; n += 32) {
    const Mode m = modeOf(s, d, n);
    Complex h = {0, 0};
    if (!fresh) h = complexAt(s, s.initial, row, n);
    h = times(m.w, h, u * m.b);
    sum += fma(m.c.re, h.re, -m.c.im * h.im);
    if (s.final) setComplex(s, s.final, row, n, h);
  }
  sum = warpSum(sum);
  if (lane == 0) s.y[row] = (float)(scaleOf(s) * sum + (s.skip ? s.skip[d] * u : 0.));
}
