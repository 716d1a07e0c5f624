// The versions of a step of generation that taught something, for a block of the 130M model with weights of bfloat16 (docs/cuda.md, Decoding): ./bench step
#include "manyrows.cuh"

typedef std::vector<bf16> Halves;
static Halves halves(const Floats &v) {
  Halves h;
  for (float x : v) {
    uint32_t b;
    memcpy(&b, &x, 4), h.push_back({(uint16_t)(b >> 16)});
  }
  return h;
}

// StepBench has the operands of a block, and what its kernels exchange.
struct StepBench {
  static constexpr int model = 768, channels = 1536, states = 16, rank = 48, width = 4, columns = rank + 2 * states, tiles = channels / 16;
  int batch;
  float *x, *norm, *taps, *convBias, *dtBias, *alog, *skip, *context, *h, *y, *contextNext, *hNext, *vz, *u, *rbc, *parts, *gated;
  bf16 *inProj, *xProj, *dtProj, *outProj, *nHalf, *vzHalf, *uHalf, *rbcHalf, *gatedHalf;

  explicit StepBench(int batch) : batch(batch) {
    auto of = [](int64_t n, float scale) { return up(draw(n, -scale, scale)); };
    auto half = [](int64_t n, float scale) { const Halves v = halves(draw(n, -scale, scale)); return (bf16 *)up(v.data(), 2 * n); };
    const int64_t inner = (int64_t)batch * channels;
    x = of(batch * model, 1), norm = of(model, 1), taps = of(channels * width, .5f), convBias = of(channels, .5f), dtBias = of(channels, 1);
    alog = of(channels * states, 1), skip = of(channels, 1), context = of(inner * 3, 1), h = of(inner * states, 1);
    inProj = half(2 * channels * model, .05f), xProj = half(columns * channels, .05f), dtProj = half(channels * rank, .1f), outProj = half(model * channels, .05f);
    auto blank = [](int64_t n) { return up(nullptr, 4 * n); };
    y = blank(batch * model), contextNext = blank(inner * 3), hNext = blank(inner * states), vz = blank(2 * inner), u = blank(inner), rbc = blank(batch * columns);
    parts = blank((int64_t)batch * tiles * columns), gated = blank(inner);
    nHalf = (bf16 *)blank(batch * model), vzHalf = (bf16 *)blank(inner), uHalf = (bf16 *)blank(inner), rbcHalf = (bf16 *)blank(batch * columns), gatedHalf = (bf16 *)blank(inner);
  }
};

// queue launches a kernel, which with early can begin before the one before it has ended.
template <class... P, class... A> static void queue(bool early, void (*kernel)(P...), dim3 blocks, int threads, int shared, A... args) {
  cudaLaunchAttribute a{};
  a.id = cudaLaunchAttributeProgrammaticStreamSerialization, a.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t c{};
  c.gridDim = blocks, c.blockDim = dim3(threads), c.dynamicSmemBytes = shared, c.stream = cudaStreamPerThread, c.attrs = &a, c.numAttrs = early;
  CHECK(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  CHECK(cudaLaunchKernelEx(&c, kernel, static_cast<P>(args)...));
}

template <int G> __global__ void plainProduct(const float *x, const float *norm, const bf16 *w, const float *residual, float *y, int64_t batch, int64_t in, int64_t out, int64_t each) {
  stepProduct<bf16, G>(x, norm, w, nullptr, residual, y, batch, in, out, 1e-5f, each);
}
template <int G> __global__ void plainConv(StepBench s) { stepConv<bf16, G>(s.vz, s.context, s.taps, s.convBias, s.xProj, s.u, s.rbc, s.batch, s.channels, s.width, s.columns); }
__global__ void plainScan(StepBench s) {
  stepScan<bf16, float>(s.vz, s.u, s.rbc, s.dtProj, s.dtBias, s.alog, s.skip, s.h, s.context, s.gated, s.hNext, s.contextNext, s.channels, s.states, s.width, s.rank);
}
__global__ __launch_bounds__(256, 2) void few1(StepBench s) {
  fewIn(s.x, s.norm, s.inProj, nullptr, s.context, s.taps, s.convBias, s.xProj, s.u, s.vz, s.parts, s.contextNext, s.batch, s.model, s.channels, s.width, s.columns, 1e-5f);
}
__global__ __launch_bounds__(256, 3) void few2(StepBench s) {
  stepScanRows(s.vz, s.u, s.parts, s.dtProj, s.dtBias, s.alog, s.skip, s.h, s.gated, s.hNext, s.batch, s.channels, s.channels, s.states, s.rank, 1, s.tiles);
}
__global__ __launch_bounds__(256, 2) void few3(StepBench s) { fewProduct<8, 6, true>(s.gated, s.outProj, nullptr, s.x, s.y, s.batch, s.channels, s.model, 1); }
__global__ void many1(StepBench s) { manyNorm(s.x, s.norm, s.nHalf, s.batch, s.model, 1e-5f); }
__global__ __launch_bounds__(256) void many2(StepBench s) {
  manyIn<8>(s.nHalf, Half(s.inProj, 2 * s.channels, s.model), nullptr, s.context, s.taps, s.convBias, s.uHalf, s.vzHalf, s.contextNext, s.batch, s.model, s.channels, s.width);
}
__global__ __launch_bounds__(256) void many3(StepBench s) { manyProduct<1>(s.uHalf, Half(s.xProj, s.columns, s.channels), nullptr, (const bf16 *)nullptr, s.rbcHalf, s.batch, s.channels, s.columns); }
__global__ __launch_bounds__(256) void many5(StepBench s) { manyProduct<4>(s.gatedHalf, Half(s.outProj, s.model, s.channels), nullptr, s.x, s.y, s.batch, s.channels, s.model); }

template <int G> static void fourKernels(const StepBench &s) {
  const int groups = (s.batch + G - 1) / G;
  auto product = [&](const float *x, const float *norm, const bf16 *w, const float *residual, float *y, int in, int out) {
    const int each = std::max(1, out / (8 * 8 * 132));
    queue(false, plainProduct<G>, dim3((out + 8 * each - 1) / (8 * each), groups), 256, 4 * G * in, x, norm, w, residual, y, s.batch, in, out, each);
  };
  product(s.x, s.norm, s.inProj, nullptr, s.vz, s.model, 2 * s.channels);
  queue(false, plainConv<G>, dim3(s.columns / 8, groups), 256, 4 * G * s.channels, s);
  queue(false, plainScan, dim3(s.channels / 8, s.batch), 128, 0, s);
  product(s.gated, nullptr, s.outProj, s.x, s.y, s.channels, s.model);
}
static void threeKernels(const StepBench &s, bool early) {
  const int groups = (s.batch + 7) / 8;
  queue(early, few1, dim3(s.tiles, groups), 256, 0, s);
  queue(early, few2, dim3(s.channels / 64, s.batch), 256, 4 * s.columns * (1024 / s.columns + 1), s);
  queue(early, few3, dim3(s.model / 16, groups), 256, 0, s);
}
template <class K> static void fiveKernels(const StepBench &s, K scan, int each) {
  queue(true, many1, dim3((s.batch + 3) / 4), 128, 0, s);
  queue(true, many2, dim3(s.tiles, (s.batch + 63) / 64), 256, 0, s);
  queue(true, many3, dim3((s.columns + 15) / 16, (s.batch + 7) / 8), 256, 0, s);
  queue(true, scan, dim3(s.channels / 64, (s.batch + each - 1) / each), 256, 4 * each * s.columns, s, each);
  queue(true, many5, dim3(s.model / 16, (s.batch + 31) / 32), 256, 0, s);
}
__global__ __launch_bounds__(256) void scanOne(StepBench s, int each) {
  stepScanRows(s.vzHalf, s.uHalf, s.rbcHalf, s.dtProj, s.dtBias, s.alog, s.skip, s.h, s.gatedHalf, s.hNext, s.batch, s.channels, s.channels, s.states, s.rank, each, 0);
}

__global__ __launch_bounds__(256, 3) void scanFour(StepBench s, int each) {
  stepScanFour(s.vzHalf, s.uHalf, s.rbcHalf, s.dtProj, s.dtBias, s.alog, s.skip, s.h, s.gatedHalf, s.hNext, s.batch, s.channels, s.channels, s.states, s.rank, each);
}

static int benchStep() {
  struct Version {
    const char *what;
    int most;  // sequences
    std::function<void(const StepBench &)> run;
  };
  static const Version versions[] = {
      {"four kernels: a weight is read once for up to eight sequences", 8, [](const StepBench &s) { s.batch > 1 ? fourKernels<8>(s) : fourKernels<1>(s); }},
      {"three: products in tensor cores, x_proj's part in the kernel of in_proj", 64, [](const StepBench &s) { threeKernels(s, false); }},
      {"same, each begins before the one before it has ended", 64, [](const StepBench &s) { threeKernels(s, true); }},
      {"five: activations of bfloat16, a block of threads has 8 to 64 sequences", 256, [](const StepBench &s) { fiveKernels(s, scanOne, std::min(std::max(1, s.batch / 22), 8)); }},
      {"same, a thread has the states of four sequences at a time", 256, [](const StepBench &s) { fiveKernels(s, scanFour, (s.batch + 65) / 66 * 4); }},
  };
  for (int batch : {1, 8, 64, 256}) {
    StepBench s(batch);
    Floats want(batch * s.model), got(want.size());
    for (auto &v : versions) {
      if (batch > v.most) continue;
      cudaGraph_t graph;
      cudaGraphExec_t exec;
      CHECK(cudaStreamBeginCapture(cudaStreamPerThread, cudaStreamCaptureModeRelaxed));
      for (int layer = 0; layer < 24; layer++) v.run(s);
      CHECK(cudaStreamEndCapture(cudaStreamPerThread, &graph));
      CHECK(cudaGraphInstantiateWithFlags(&exec, graph, 0));
      const float ms = timed(15, [&] { cudaGraphLaunch(exec, 0); });
      CHECK(cudaDeviceSynchronize());
      CHECK(cudaMemcpy(got.data(), s.y, 4 * got.size(), cudaMemcpyDeviceToHost));
      if (&v == versions || batch > versions[0].most && &v == &versions[batch > 64 ? 3 : 1]) want = got;
      float far = 0, scale = 0;
      for (size_t i = 0; i < got.size(); i++) far = std::max(far, fabsf(got[i] - want[i])), scale = std::max(scale, fabsf(want[i]));
      printf("%3d sequences, %-72s %7.1f us for 24 blocks, %.0e from the first\n", batch, v.what, 1000 * ms, far / scale);
    }
  }
  return 0;
}
