// Compares variants of the scan's kernels with a reference in double precision, for random problems with every option, and measures their
// times. Use it when you change a kernel. The tests of package cuda need no compiler.
//   nvcc -std=c++17 -O3 -arch=sm_90 -o bench bench.cu && ./bench
// With -DGROUP=n only the variants of one group are compiled, so that groups can be compiled in parallel.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "scan_backward_async.cuh"
#include "scan_carries_async.cuh"
#include "scan_forward.cuh"
#include "scan_forward_async.cuh"

#define CHECK(call)                                                                              \
  do {                                                                                           \
    cudaError_t e = (call);                                                                      \
    if (e != cudaSuccess) { printf("%s: %s\n", #call, cudaGetErrorString(e)); fflush(stdout); exit(1); } \
  } while (0)

typedef std::vector<float> Floats;
typedef std::vector<double> Doubles;

struct Problem {
  int64_t B, L, D, N, gB, gC;  // gB, gC: groups of B and C, 0 if constant
  bool d, z, bias, initial, final, start, softplus, reverse;
  Floats u, delta, A, Bv, Cv, Dv, zv, bv, h0, dy, dfin;
  std::vector<uint8_t> st;
  int64_t rows() const { return B * L; }
};

static uint64_t seed = 1;
static float uniform() {
  seed = seed * 6364136223846793005ull + 1442695040888963407ull;
  return (seed >> 40) / 16777216.f;
}
static Floats draw(int64_t n, float lo, float hi) {
  Floats v(n);
  for (auto &x : v) x = lo + (hi - lo) * uniform();
  return v;
}

static void fill(Problem &p) {
  const int64_t n = p.rows() * p.D;
  p.u = draw(n, -1, 1), p.delta = p.softplus ? draw(n, -4, 1) : draw(n, 0, 0.5f), p.A = draw(p.D * p.N, -1.1f, -0.1f);
  p.Bv = draw(p.gB ? p.rows() * p.gB * p.N : p.D * p.N, -1, 1), p.Cv = draw(p.gC ? p.rows() * p.gC * p.N : p.D * p.N, -1, 1);
  if (p.d) p.Dv = draw(p.D, -1, 1);
  if (p.z) p.zv = draw(n, -2, 2);
  if (p.bias) p.bv = draw(p.D, -.5f, .5f);
  if (p.initial) p.h0 = draw(p.B * p.D * p.N, -1, 1);
  if (p.start) {
    p.st.resize(p.rows());
    for (auto &x : p.st) x = uniform() < .2f;
  }
  p.dy = draw(n, -1, 1);
  if (p.final) p.dfin = draw(p.B * p.D * p.N, -1, 1);
}

// Result has the results of the kernels, or those of the reference for a selection of channels.
template <class V> struct Result { V y, fin, du, ddelta, dA, dB, dC, dD, dz, dbias, dh0; };

// reference computes the results for the channels d with d % every == 0. Results of other channels stay 0, and sums over channels include only
// the selected ones.
static void reference(const Problem &p, Result<Doubles> &r, int64_t every) {
  const int64_t n = p.rows() * p.D, DN = p.D * p.N;
  r.y.assign(n, 0), r.fin.assign(p.B * DN, 0), r.du.assign(n, 0), r.ddelta.assign(n, 0), r.dA.assign(DN, 0);
  r.dB.assign(p.Bv.size(), 0), r.dC.assign(p.Cv.size(), 0), r.dD.assign(p.D, 0), r.dz.assign(n, 0), r.dbias.assign(p.D, 0);
  r.dh0.assign(p.B * DN, 0);
  std::vector<double> hs((p.L + 1) * p.N);
  for (int64_t b = 0; b < p.B; b++)
    for (int64_t d = 0; d < p.D; d += every) {
      auto time = [&](int64_t i) { return p.reverse ? p.L - 1 - i : i; };
      auto cut = [&](int64_t i) { int64_t t = time(i) + p.reverse; return p.start && t < p.L && p.st[b * p.L + t]; };
      auto bAt = [&](int64_t t, int64_t k) { return p.gB ? ((b * p.L + t) * p.gB + d / (p.D / p.gB)) * p.N + k : d * p.N + k; };
      auto cAt = [&](int64_t t, int64_t k) { return p.gC ? ((b * p.L + t) * p.gC + d / (p.D / p.gC)) * p.N + k : d * p.N + k; };
      auto rawAt = [&](int64_t o) { return (double)p.delta[o] + (p.bias ? p.bv[d] : 0.f); };
      auto dtAt = [&](int64_t o) { double x = rawAt(o); return p.softplus ? (x > 20 ? x : log1p(exp(x))) : x; };
      for (int64_t k = 0; k < p.N; k++) hs[k] = p.initial ? p.h0[(b * p.D + d) * p.N + k] : 0;
      std::vector<double> outs(p.L);
      for (int64_t i = 0; i < p.L; i++) {
        int64_t t = time(i), o = (b * p.L + t) * p.D + d;
        double dt = dtAt(o), y = p.d ? (double)p.Dv[d] * p.u[o] : 0;
        for (int64_t k = 0; k < p.N; k++) {
          double before = cut(i) ? 0 : hs[i * p.N + k];
          double h = exp(dt * p.A[d * p.N + k]) * before + dt * p.u[o] * p.Bv[bAt(t, k)];
          hs[(i + 1) * p.N + k] = h, y += h * p.Cv[cAt(t, k)];
        }
        outs[i] = y;
        r.y[o] = p.z ? y * p.zv[o] / (1 + exp(-(double)p.zv[o])) : y;
      }
      std::vector<double> carry(p.N);
      for (int64_t k = 0; k < p.N; k++) {
        r.fin[(b * p.D + d) * p.N + k] = hs[p.L * p.N + k];
        carry[k] = p.final ? p.dfin[(b * p.D + d) * p.N + k] : 0;
      }
      for (int64_t i = p.L - 1; i >= 0; i--) {
        int64_t t = time(i), o = (b * p.L + t) * p.D + d;
        double dt = dtAt(o), g0 = p.dy[o], u = p.u[o], du = 0, dd = 0;
        if (p.z) {
          double sg = 1 / (1 + exp(-(double)p.zv[o]));
          r.dz[o] = g0 * outs[i] * sg * (1 + p.zv[o] * (1 - sg)), g0 *= p.zv[o] * sg;
        }
        if (p.d) du += g0 * p.Dv[d], r.dD[d] += g0 * u;
        for (int64_t k = 0; k < p.N; k++) {
          double a = p.A[d * p.N + k], dec = cut(i) ? 0 : exp(dt * a), h = hs[i * p.N + k], g = carry[k] + g0 * p.Cv[cAt(t, k)];
          r.dC[cAt(t, k)] += g0 * hs[(i + 1) * p.N + k], r.dB[bAt(t, k)] += g * dt * u;
          du += g * dt * p.Bv[bAt(t, k)], dd += g * (p.Bv[bAt(t, k)] * u + a * dec * h), r.dA[d * p.N + k] += g * dt * dec * h;
          carry[k] = dec * g;
        }
        if (p.softplus) { double x = rawAt(o); dd *= x > 20 ? 1 : 1 / (1 + exp(-x)); }
        r.du[o] = du, r.ddelta[o] = dd, r.dbias[d] += dd;
      }
      for (int64_t k = 0; k < p.N; k++) r.dh0[(b * p.D + d) * p.N + k] = carry[k];
    }
}

struct Variant {
  std::string name;
  int S, K, CH, TH, every, vb, vc, st;  // CH: channels per block
  const void *kernel;
  bool backward;
  int chunks;          // 1, or the number of chunks of the length; of the forward pass that is async without the first
  const void *first;   // the first pass over chunks
  int firstTH, firstCH;
  bool async, gated;   // a kernel for compute capability 8.0, which joins the chunks itself; with z
  bool whole;          // for whole blocks and tiles only
  int shared;          // bytes of dynamic shared memory per block
};
static std::vector<Variant> variants;

template <int S, int K, int W, int T, int TH, int M, int EV, int POLY, bool VB, bool VC, bool ST, bool ENDS> __global__ __launch_bounds__(TH, M) void fwd(Scan s) {
  scanForward<float, S, K, W, T, TH, EV, POLY, VB, VC, ST, ENDS>(s);
}
template <int S, int K, int T, int Q, int TH, int M, int POLY, bool AHEAD, bool VB, bool VC, bool ST> __global__ __launch_bounds__(TH, M) void bwd(Scan s) {
  scanBackward<float, S, K, T, Q, TH, POLY, AHEAD, VB, VC, ST>(s);
}
template <int CH, int M, bool WHOLE> __global__ __launch_bounds__(2 * CH, M) void bwdAsync(Scan s) { scanBackwardAsync<float, CH, WHOLE, false>(s); }
__global__ __launch_bounds__(128, 8) void carriesAsync(Scan s) { scanCarriesAsync<float, false>(s); }
template <int NP, bool VC, bool ST> __global__ void carries(Scan s) { scanCarries<float, NP, 256, VC, ST>(s); }
__global__ void beginnings(Scan s) { scanBeginnings(s); }
__global__ void carriesIn(Scan s) { scanCarriesIn(s); }
__global__ void sumParts(float *to, const float *parts, int64_t count, int64_t size, int64_t width, int64_t step) {
  sumPartsOf(to, parts, count, size, width, step, blockIdx.x);
}
template <int S, int K, int W, int T, int TH, int M, int EV, int POLY, bool VB = true, bool VC = true, bool ST = false> static void addF(std::vector<int> chunks = {1}) {
  for (int c : chunks) {
    char n[96];
    snprintf(n, 96, "F S%d K%d W%d T%d TH%d M%d EV%d P%d C%d%s", S, K, W, T, TH, M, EV, POLY, c, VB && VC && !ST ? "" : VB ? VC ? " st" : " c" : " b");
    variants.push_back({n, S, K, TH / S * W, TH, EV, VB, VC, ST, (const void *)fwd<S, K, W, T, TH, M, EV, POLY, VB, VC, ST, false>, false, c,
                        (const void *)fwd<S, K, W, T, TH, M, EV, POLY, VB, VC, ST, true>, TH, TH / S * W});
  }
}
template <int TH, int M, bool GATED, int AHEAD> __global__ __launch_bounds__(TH, M) void fwdAsync(Scan s) { scanForwardAsync<float, TH, 16, GATED, false, AHEAD>(s); }
template <int TH, int M, bool GATED, int AHEAD> __global__ __launch_bounds__(TH, M) void firstAsync(Scan s) { scanFirstAsync<float, TH, 16, GATED, false, AHEAD>(s); }
template <int TH, int M, int AHEAD, bool GATED = true> static void addA(std::vector<int> chunks = {1}) {
  for (int c : chunks) {
    char n[96];
    snprintf(n, 96, "F async TH%d M%d A%d C%d%s", TH, M, AHEAD, c, GATED ? "" : " no z");
    variants.push_back({n, 4, 4, TH / 2, TH, 16, true, true, false, (const void *)fwdAsync<TH, M, GATED, AHEAD>, false, c,
                        (const void *)firstAsync<TH, M, GATED, AHEAD>, TH, TH / 2, true, GATED});
  }
}
template <int S, int K, int T, int Q, int TH, int M, int POLY, bool AHEAD, bool VB = true, bool VC = true, bool ST = false> static void addB(std::vector<int> chunks = {1}) {
  for (int c : chunks) {
    char n[96];
    snprintf(n, 96, "B S%d K%d T%d Q%d TH%d M%d P%d%s C%d%s", S, K, T, Q, TH, M, POLY, AHEAD ? " ahead" : "", c, VB && VC && !ST ? "" : VB ? VC ? " st" : " c" : " b");
    constexpr int NP = S * K < 16 ? 16 : S * K;
    variants.push_back({n, S, K, TH / S, TH, T, VB, VC, ST, (const void *)bwd<S, K, T, Q, TH, M, POLY, AHEAD, VB, VC, ST>, true, c, (const void *)carries<NP, VC, ST>, 256, 256 / NP});
  }
}

template <int CH, int M, bool WHOLE> static void addBAsync(std::vector<int> chunks = {1}) {
  for (int c : chunks) {
    char n[96];
    snprintf(n, 96, "B async CH%d M%d C%d%s", CH, M, c, WHOLE ? " whole" : "");
    variants.push_back({n, 4, 4, CH, 2 * CH, 16, true, true, false, (const void *)bwdAsync<CH, M, WHOLE>, true, c, (const void *)carriesAsync, 128, 16,
                        true, true, WHOLE, (int)sizeof(BackwardTile<float, CH>)});
    CHECK(cudaFuncSetAttribute((const void *)bwdAsync<CH, M, WHOLE>, cudaFuncAttributeMaxDynamicSharedMemorySize, variants.back().shared));
  }
}

static float *up(const void *v, size_t bytes) {
  if (!bytes) return nullptr;
  float *p;
  CHECK(cudaMalloc(&p, bytes));
  if (v) CHECK(cudaMemcpy(p, v, bytes, cudaMemcpyHostToDevice));
  else CHECK(cudaMemset(p, 0xff, bytes));  // NaN: every element must be written
  return p;
}
static float *up(const Floats &v) { return up(v.data(), v.size() * 4); }
// Device has a problem's operands and results on the device.
struct Device {
  Scan s{};
  float *dA, *dB, *dC, *dD, *dbias;
  std::vector<void *> all;
  int64_t sections;
  const Problem &p;
  Device(const Problem &p, int minCH) : p(p) {
    const int64_t n = p.rows() * p.D, DN = p.D * p.N;
    s.batch = p.B, s.length = p.L, s.channels = p.D, s.state = p.N;
    s.zStep = p.D, s.bStep = p.gB * p.N, s.cStep = p.gC * p.N;
    s.bChannels = p.gB ? p.D / p.gB : p.D, s.cChannels = p.gC ? p.D / p.gC : p.D;
    int64_t a = s.bChannels, b = s.cChannels;
    while (b) { int64_t t = a % b; a = b, b = t; }
    s.vectors = p.D % 4 == 0 && a % 4 == 0, s.section = a, sections = p.D / a, s.softplus = p.softplus, s.reverse = p.reverse;
    auto keep = [&](float *q) { all.push_back(q); return q; };
    s.u = keep(up(p.u)), s.delta = keep(up(p.delta)), s.A = keep(up(p.A)), s.B = keep(up(p.Bv)), s.C = keep(up(p.Cv));
    s.D = keep(up(p.Dv)), s.z = keep(up(p.zv)), s.bias = keep(up(p.bv)), s.initial = keep(up(p.h0));
    s.start = (uint8_t *)keep(up(p.st.data(), p.st.size())), s.dy = keep(up(p.dy)), s.dfinal = keep(up(p.dfin));
    s.y = keep(up(0, n * 4)), s.final = p.final ? keep(up(0, p.B * DN * 4)) : 0;
    const int64_t every = n > 1 << 20 ? 8 : 4;  // the smallest of the variants that are compared
    s.checkpoints = keep(up(0, p.B * ((p.L + every - 1) / every) * DN * 4));
    s.du = keep(up(0, n * 4)), s.ddelta = keep(up(0, n * 4)), s.dz = p.z ? keep(up(0, n * 4)) : 0;
    s.dinitial = p.initial ? keep(up(0, p.B * DN * 4)) : 0;
    int64_t chunks = 1;
    for (auto &v : variants) chunks = std::max(chunks, (int64_t)v.chunks + 1);
    s.states = keep(up(0, p.B * chunks * DN * 4)), s.sums = keep(up(0, p.B * chunks * p.D * 4));
    s.dA = keep(up(0, p.B * chunks * DN * 4)), s.dD = p.d ? keep(up(0, p.B * chunks * p.D * 4)) : 0;
    s.dbias = p.bias ? keep(up(0, p.B * chunks * p.D * 4)) : 0;
    const int64_t most = sections * ((s.section + minCH - 1) / minCH);
    s.dB = keep(up(0, (p.gB ? most * p.rows() * p.N : p.B * chunks * DN) * 4)), s.dC = keep(up(0, (p.gC ? most * p.rows() * p.N : p.B * chunks * DN) * 4));
    dA = keep(up(0, DN * 4)), dB = keep(up(0, p.Bv.size() * 4)), dC = keep(up(0, p.Cv.size() * 4));
    dD = keep(up(0, p.D * 4)), dbias = keep(up(0, p.D * 4));
  }
  ~Device() { for (auto q : all) cudaFree(q); }
  int64_t perSection(const Variant &v) const { return (s.section + v.CH - 1) / v.CH; }
  // cut sets the chunks of a variant in the same way as package cuda.
  void cut(const Variant &v) {
    const int64_t least = 64, tiles = (p.L + 15) / 16, others = std::min((int64_t)v.chunks, tiles * 16 / least);
    if (v.async && !v.backward) {  // chunkSteps are those of the first chunk
      s.chunks = others > 1 ? others + 1 : 1, s.chunkSteps = others > 1 ? 17 * tiles / (19 * others + 17) * 16 : tiles * 16;
      return;
    }
    s.chunkSteps = std::max((p.L + v.chunks - 1) / v.chunks, least), s.chunkSteps = (s.chunkSteps + 63) / 64 * 64;
    s.chunks = (p.L + s.chunkSteps - 1) / s.chunkSteps;
  }
  cudaError_t launch(const Variant &v) {
    cut(v);
    void *args[] = {&s};
    if (s.chunks > 1) {
      const int64_t blocks = p.B * sections * ((s.section + v.firstCH - 1) / v.firstCH);
      CHECK(cudaLaunchKernel(v.first, dim3(blocks, s.chunks - 1), dim3(v.firstTH), args, 0, 0));
      const void *combine = v.backward ? (const void *)carriesIn : (const void *)beginnings;
      if (!v.async) CHECK(cudaLaunchKernel(combine, dim3((p.B * p.D * p.N + 127) / 128), dim3(128), args, 0, 0));
    }
    const int64_t passes = v.async && !v.backward && s.chunks > 1 ? s.chunks - 1 : s.chunks;  // the first pass has scanned the first chunk
    cudaError_t e = cudaLaunchKernel(v.kernel, dim3(p.B * sections * perSection(v), passes), dim3(v.TH), args, v.shared, 0);
    if (v.backward) {
      const int64_t parts = p.B * s.chunks;
      sum(dA, s.dA, parts, p.D * p.N, p.D * p.N, p.D * p.N);
      if (p.d) sum(dD, s.dD, parts, p.D, p.D, p.D);
      if (p.bias) sum(dbias, s.dbias, parts, p.D, p.D, p.D);
      spread(v, dB, s.dB, p.gB), spread(v, dC, s.dC, p.gC);
    }
    return e;
  }
  void sum(float *to, const float *from, int64_t count, int64_t size, int64_t width, int64_t step) {
    void *args[] = {&to, &from, &count, &size, &width, &step};
    CHECK(cudaLaunchKernel((const void *)sumParts, dim3((size + 1023) / 1024), dim3(256), args, 0, 0));
  }
  void spread(const Variant &v, float *to, const float *from, int64_t groups) {
    const int64_t size = p.rows() * p.N;
    if (!groups) return sum(to, from, p.B * s.chunks, p.D * p.N, p.D * p.N, p.D * p.N);
    const int64_t count = sections / groups * perSection(v);
    for (int64_t g = 0; g < groups; g++) sum(to + g * p.N, from + g * count * size, count, size, p.N, groups * p.N);
  }
};

static bool fits(const Variant &v, const Problem &p) {
  return v.vb == (p.gB > 0) && v.vc == (p.gC > 0) && v.st == p.start && p.N <= v.S * v.K && (!v.async || v.gated == p.z);
}

static double worst(const char *what, const float *q, const Doubles &want, int64_t D, int64_t N, int64_t every, std::string &where) {
  double scale = 0.1, far = 0;  // at least 0.1: in a small problem all results can be small differences of large terms
  const int64_t rows = want.size() / (D * N);
  for (int64_t d = 0; d < D; d += every) {  // the columns of one channel; if all channels are compared, all columns at once
    const int64_t width = every == 1 ? D * N : N;
    Floats got(rows * width);
    CHECK(cudaMemcpy2D(got.data(), width * 4, q + d * N, D * N * 4, width * 4, rows, cudaMemcpyDeviceToHost));
    for (int64_t i = 0; i < rows * width; i++) {
      const double w = want[i / width * D * N + d * N + i % width];
      scale = std::max(scale, fabs(w)), far = std::max(far, std::isfinite(got[i]) ? fabs(got[i] - w) : 1e30);
    }
    if (every == 1) break;
  }
  far /= scale;
  if (far > 2e-5) { char b[64]; snprintf(b, 64, " %s:%.1e", what, far); where += b; }
  return far;
}

// compare returns the largest error of a variant. Each error is divided by the largest magnitude of the same result.
static double compare(const Variant &v, Device &dev, const Result<Doubles> &r, int64_t every, std::string &where) {
  const Problem &p = dev.p;
  const Scan &s = dev.s;
  double e = 0;
  auto see = [&](const char *what, const void *q, const Doubles &want, int64_t N) {
    if (q) e = std::max(e, worst(what, (const float *)q, want, p.D, N, every, where));
  };
  // dB and dC are compared as if each element were a channel.
  auto seeAll = [&](const char *what, const float *q, const Doubles &want) {
    e = std::max(e, worst(what, q, want, want.size(), 1, 1, where));
  };
  if (!v.backward) {
    see("y", s.y, r.y, 1), see("final", s.final, r.fin, p.N);
    return e;
  }
  see("du", s.du, r.du, 1), see("ddelta", s.ddelta, r.ddelta, 1), see("dz", s.dz, r.dz, 1), see("dA", dev.dA, r.dA, p.N);
  if (p.d) see("dD", dev.dD, r.dD, 1);
  if (p.bias) see("dbias", dev.dbias, r.dbias, 1);
  see("dh0", s.dinitial, r.dh0, p.N);
  if (every == 1) seeAll("dB", dev.dB, r.dB), seeAll("dC", dev.dC, r.dC);
  return e;
}

// forwardFor returns a forward variant that writes the checkpoints that a backward variant needs.
static const Variant *forwardFor(const Variant &b, const Problem &p) {
  for (auto &v : variants)
    if (!v.backward && fits(v, p) && v.every == b.every && v.chunks == 1) return &v;
  return nullptr;
}

static float median(std::vector<float> v) { std::sort(v.begin(), v.end()); return v[v.size() / 2]; }
static float timed(int count, const std::function<void()> &f) {
  static cudaEvent_t e0, e1;
  if (!e0) cudaEventCreate(&e0), cudaEventCreate(&e1);
  std::vector<float> ts;
  for (int i = 0; i < count + 3; i++) {
    cudaEventRecord(e0), f(), cudaEventRecord(e1), cudaEventSynchronize(e1);
    float ms;
    cudaEventElapsedTime(&ms, e0, e1);
    if (i >= 3) ts.push_back(ms);
  }
  return median(ts);
}

#include "variants.h"
#include "bench_step.h"

int main(int argc, char **argv) {
  if (argc > 1 && !strcmp(argv[1], "step")) return benchStep();
  int trials = argc > 1 && !strcmp(argv[1], "check") ? 2 : 6;
  addVariants();
  for (auto &v : variants) {
    cudaFuncAttributes a;
    CHECK(cudaFuncGetAttributes(&a, v.kernel));
    int blocks;
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, v.kernel, v.TH, v.shared);
    printf("%-30s regs %3d local %4zu shared %6zu blocks/SM %d\n", v.name.c_str(), a.numRegs, a.localSizeBytes, a.sharedSizeBytes + v.shared, blocks);
  }
  if (argc > 1 && !strcmp(argv[1], "once")) trials = 0;
  // Check the results: for each variant some small problems with random options that it supports.
  std::vector<double> err(variants.size());
  std::vector<int> tried(variants.size());
  std::vector<std::string> where(variants.size());
  const int64_t lengths[] = {1, 7, 33, 64, 65, 131, 400};
  for (size_t i = 0; i < variants.size(); i++) {
    const Variant &v = variants[i];
    for (int trial = 0; trial < trials; trial++) {
      Problem p{};
      auto flip = [] { return uniform() < .5f; };
      const int64_t per = 1 + (int64_t)(uniform() * 80), groups = 1 + (int64_t)(uniform() * 3);
      p.B = 1 + (int64_t)(uniform() * 3), p.L = v.chunks > 1 ? 131 + 269 * flip() : lengths[(int)(uniform() * 7)], p.D = per * groups;
      p.N = trial < 2 ? std::min(16, v.S * v.K) : 1 + (int64_t)(uniform() * v.S * v.K * .999f);
      p.gB = v.vb ? flip() ? 1 : groups : 0, p.gC = v.vc ? flip() ? 1 : groups : 0;
      p.d = flip(), p.z = flip(), p.bias = flip(), p.initial = flip(), p.final = flip(), p.softplus = flip(), p.reverse = flip();
      p.start = v.st;
      if (v.async) p.D *= 4, p.N = 16, p.softplus = true, p.z = v.gated;
      if (v.whole) p.D = (1 + per % 2) * groups * v.CH, p.L = (p.L + 15) / 16 * 16;
      fill(p);
      Result<Doubles> r;
      reference(p, r, 1);
      Device dev(p, v.CH);
      if (v.backward) {
        const Variant *f = forwardFor(v, p);
        if (!f) continue;
        dev.launch(*f);
      }
      dev.launch(v);
      CHECK(cudaDeviceSynchronize());
      CHECK(cudaGetLastError());
      err[i] = std::max(err[i], compare(v, dev, r, 1, where[i])), tried[i]++;
    }
  }
  for (size_t i = 0; i < variants.size(); i++)
    if (err[i] > 2e-5 || (trials && !tried[i])) printf("%-30s WRONG %.1e in %d%.120s\n", variants[i].name.c_str(), err[i], tried[i], where[i].c_str());
  printf("checked %zu variants\n", variants.size());
  fflush(stdout);
  const std::string mode = argc > 1 ? argv[1] : "";  // check: no times; small: no large problems; once: one run each, for a profiler
  if (mode == "check") return 0;

  const int shapes[][3] = {{8, 2048, 512}, {8, 2048, 2048}, {8, 2048, 8192}, {1, 2048, 32768}, {1, 1536, 2048}, {64, 1536, 512}, {2, 64, 128}};
  for (auto &sh : shapes) {
    Problem p{};
    p.B = sh[0], p.D = sh[1], p.L = sh[2], p.N = 16, p.gB = p.gC = 1, p.d = p.z = p.bias = p.softplus = true;
    const int64_t n = p.rows() * p.D;
    if ((mode == "small" && n > 70000000) || (mode == "once" && n != 8 * 2048 * 512)) continue;
    fill(p);
    const int64_t every = p.D / 2 + 1;
    Result<Doubles> r;
    reference(p, r, every);
    int few = 1 << 20;
    for (auto &v : variants) few = std::min(few, v.CH);
    Device dev(p, few);
    printf("== B %d D %d L %d\n", sh[0], sh[1], sh[2]);
    for (auto &v : variants) {
      if (!fits(v, p) || v.S * v.K > 16) continue;
      if (v.chunks > 1 && p.B * p.D > 4096) continue;
      if (v.chunks == 1 && p.L >= 32768 && mode != "all") continue;
      if (v.backward) {
        const Variant *f = forwardFor(v, p);
        if (!f) continue;
        dev.launch(*f);
      }
      std::string where;
      dev.launch(v);
      cudaError_t e = cudaDeviceSynchronize();
      if (e != cudaSuccess) { printf("%s: %s\n", v.name.c_str(), cudaGetErrorString(e)); return 1; }
      const double far = compare(v, dev, r, every, where);
      if (mode == "once") continue;
      const int count = n > 60000000 ? 11 : 31;
      float ms = timed(count, [&] { dev.launch(v); }), other = 0;
      if (v.backward) {
        void *args[] = {&dev.s};
        other = timed(count, [&] { cudaLaunchKernel(v.kernel, dim3(p.B * dev.sections * dev.perSection(v), dev.s.chunks), dim3(v.TH), args, v.shared, 0); });
      } else {
        float *keep = dev.s.checkpoints;
        dev.s.checkpoints = nullptr, other = timed(count, [&] { dev.launch(v); }), dev.s.checkpoints = keep;
      }
      printf("  %-30s %.4f ms, %s %.4f, err %.0e%s\n", v.name.c_str(), ms, v.backward ? "scan alone" : "no checkpoints", other, far, where.c_str());
    }
    fflush(stdout);
  }
}
