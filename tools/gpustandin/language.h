// CUDA C++ as far as the kernels use it, for a C++ compiler: a thread is a fiber, and what threads wait for one another at (barriers,
// shuffles) goes through the scheduler in fibers.cpp. Each source of cuda/kernels is compiled with this in front.
#pragma once
#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ thread_local // a block runs on one thread of the host

namespace standin {
struct Index { unsigned x, y, z; };

extern thread_local Index thread, block, blockSize, gridSize;

void barrier();                                          // of the block
int barrierOr(int v);                                    // whether v was true anywhere
constexpr int slot = 24;                                 // bytes that a lane can give
void *exchange(unsigned mask, const void *v, int bytes); // what all lanes gave, one slot each
int laneOf();
void yield();                                            // lets the other threads of the block run

template <class T> T shuffle(unsigned mask, T v, int lane) {
  const char *all = (const char *)exchange(mask, &v, sizeof v);
  memcpy(&v, all + slot * lane, sizeof v);
  return v;
}

// The inline assembly is of functions of a number x whose result is y.
inline float approximately(const char *text, float x) {
  return strstr(text, "ex2.approx.ftz.f32") ? exp2f(x) : strstr(text, "rcp.approx.ftz.f32") ? 1.f / x : NAN;
}

// A kernel by its name, called with the addresses of its arguments, as cuLaunchKernel has them.
struct Kernel {
  const char *name;
  bool flush; // denormal numbers are zero
  std::function<std::function<void()>(void **)> bind;
  Kernel *next;
  unsigned shared = 48 << 10; // most bytes of dynamic shared memory
  static Kernel *first;
  template <class... A>
  Kernel(const char *name, bool flush, void (*f)(A...)) : name(name), flush(flush), next(first) {
    first = this;
    bind = [f](void **list) { return bound(f, list, std::index_sequence_for<A...>()); };
  }
  template <class... A, size_t... I> static std::function<void()> bound(void (*f)(A...), void **list, std::index_sequence<I...>) {
    return [f, values = std::tuple<A...>(*(A *)list[I]...)] { std::apply(f, values); };
  }
};
}  // namespace standin

#define threadIdx standin::thread
#define blockIdx standin::block
#define blockDim standin::blockSize
#define gridDim standin::gridSize
#define asm(...) y = standin::approximately(#__VA_ARGS__, x)

inline void __syncthreads() { standin::barrier(); }
inline int __syncthreads_or(int v) { return standin::barrierOr(v); }
inline void __syncwarp(unsigned mask = ~0u) { standin::exchange(mask, "", 0); }
template <class T> T __shfl_xor_sync(unsigned mask, T v, int other) { return standin::shuffle(mask, v, standin::laneOf() ^ other); }
template <class T> T __shfl_sync(unsigned mask, T v, int lane) { return standin::shuffle(mask, v, lane % 32); }
inline unsigned __ballot_sync(unsigned mask, int v) {
  const char *all = (const char *)standin::exchange(mask, &v, sizeof v);
  unsigned bits = 0;
  for (int i = 0; i < 32; i++) bits |= (unsigned)(*(const int *)(all + standin::slot * i) != 0) << i;
  return bits;
}

template <class T> T __ldcs(const T *p) { return *p; }
template <class T> T __ldcg(const T *p) { return *p; }
template <class T> T __ldg(const T *p) { return *p; }
template <class T> void __stcs(T *p, T v) { *p = v; }

// What blocks of a cooperative launch use to wait for each other.
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline unsigned atomicAdd(unsigned *p, unsigned v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
inline unsigned atomicMax(unsigned *p, unsigned v) {
  unsigned old = *p;
  while (old < v && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}
  return old;
}
inline void __nanosleep(unsigned) { sched_yield(); }

template <class To, class From> To bitsOf(From v) {
  static_assert(sizeof(To) == sizeof v);
  To to;
  memcpy(&to, &v, sizeof v);
  return to;
}
inline int __float_as_int(float v) { return bitsOf<int>(v); }
inline unsigned __float_as_uint(float v) { return bitsOf<unsigned>(v); }
inline float __int_as_float(int v) { return bitsOf<float>(v); }
inline float __uint_as_float(unsigned v) { return bitsOf<float>(v); }

inline int __ffs(unsigned v) { return __builtin_ffs(v); }
inline int __clz(unsigned v) { return v ? __builtin_clz(v) : 32; }

inline float __expf(float x) { return expf(x); }
inline float __fdividef(float a, float b) { return fabsf(b) > 0x1p126f && fabsf(b) <= 0x1p128 ? 0.f : a / b; } // as its manual says
inline void sincospi(double x, double *sin, double *cos) { *sin = ::sin(M_PI * x), *cos = ::cos(M_PI * x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
using std::isinf;
using std::max;
using std::min;

struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// The conversions of types.cuh. 2^112 moves the exponents of one format to those of the other, and denormal numbers to denormal numbers.
inline float fromHalf(unsigned x) {
  if ((x & 0x7c00) == 0x7c00) return x & 0x3ff ? NAN : x & 0x8000 ? -INFINITY : INFINITY;
  return __uint_as_float((x & 0x8000) << 16 | (x & 0x7fff) << 13) * 0x1p112f;
}
inline unsigned toHalf(float x) {
  if (x != x) return 0x7fff;
  const unsigned sign = __float_as_uint(x) >> 16 & 0x8000;
  if (fabsf(x) >= 65520.f) return sign | 0x7c00;
  const float unit = x == 0 ? 1.f : ldexpf(1.f, std::max(ilogbf(x), -14) - 10); // of the last place
  return sign | __float_as_uint(fabsf(nearbyintf(x / unit) * unit) * 0x1p-112f) >> 13;
}

// The instructions of mma.cuh, which describes them.
struct bf16;
struct f16 {};

template <bool TRANSPOSED> void load4(uint32_t (&x)[4], const void *row) {
  const int lane = standin::laneOf();
  const char *all = (const char *)standin::exchange(~0u, &row, sizeof row);
  auto at = [&](int i) { return *(const char *const *)(all + standin::slot * i); };
  for (int i = 0; i < 4; i++) {
    if (!TRANSPOSED) {
      memcpy(&x[i], at(8 * i + lane / 4) + 4 * (lane % 4), 4);
      continue;
    }
    uint16_t v[2];
    for (int k = 0; k < 2; k++) memcpy(&v[k], at(8 * i + 2 * (lane % 4) + k) + 2 * (lane / 4), 2);
    x[i] = v[0] | (uint32_t)v[1] << 16;
  }
}

namespace standin {
inline float add(float c, float a, float b) { return fmaf(a, b, c); }
inline int add(int c, int a, int b) { return c + a * b; }

// multiply computes a product. A word of x or y has n numbers.
template <class C, class Number> void multiply(C (&c)[4], const uint32_t (&x)[4], uint32_t y0, uint32_t y1, int n, Number number) {
  const uint32_t mine[6] = {x[0], x[1], x[2], x[3], y0, y1};
  const uint32_t *all = (const uint32_t *)exchange(~0u, mine, sizeof mine);
  const int g = laneOf() / 4, t = laneOf() % 4;
  for (int i = 0; i < 4; i++)
    for (int part = 0; part < 2; part++)
      for (int k = 0; k < 4; k++)
        for (int w = 0; w < n; w++)
          c[i] = add(c[i], number(all[6 * (4 * g + k) + 2 * part + i / 2], w), number(all[6 * (4 * (2 * t + i % 2) + k) + 4 + part], w));
}
inline void multiplyBF16(float (&c)[4], const uint32_t (&x)[4], uint32_t y0, uint32_t y1) {
  multiply(c, x, y0, y1, 2, [](uint32_t v, int w) { return __uint_as_float(w ? v & 0xffff0000 : v << 16); });
}
}  // namespace standin

inline void product(float (&c)[4], const uint32_t (&x)[4], uint32_t y0, uint32_t y1, const bf16 &) { standin::multiplyBF16(c, x, y0, y1); }
inline void product(float (&c)[4], const uint32_t (&x)[4], uint32_t y0, uint32_t y1, float) {
  standin::multiply(c, x, y0, y1, 1, [](uint32_t v, int) { return __uint_as_float(v & 0xffffe000); });
}

inline void product(float (&c)[4], const uint32_t (&x)[4], uint32_t y0, uint32_t y1, f16) {
  standin::multiply(c, x, y0, y1, 2, [](uint32_t v, int w) { return fromHalf(v >> 16 * w); });
}
inline void product(int (&c)[4], const uint32_t (&x)[4], uint32_t y0, uint32_t y1) {
  standin::multiply(c, x, y0, y1, 4, [](uint32_t v, int w) { return (int)(int8_t)(v >> 8 * w); });
}

inline uint32_t rounded(float x) { return x == x ? (__float_as_uint(x) + 0x1000) & 0xffffe000 : 0x7fffe000; }
inline uint32_t pair(float low, float high) {
  auto half = [](float x) {
    const uint32_t u = __float_as_uint(x);
    return x == x ? (u + 0x7fff + (u >> 16 & 1)) >> 16 : 0x7fff;
  };
  return half(low) | half(high) << 16;
}
inline uint32_t halves(float low, float high) { return toHalf(low) | toHalf(high) << 16; }
template <int BYTES> void copyLater(void *to, const void *from, bool there) { there ? memcpy(to, from, BYTES) : memset(to, 0, BYTES); }
inline void copied() {}
inline void commitCopies() {}
inline void groupsCopied() {}
template <int N> void copiedBut() {}

struct Box {
  float a;
  uint32_t tagA;
  float b;
  uint32_t tagB;
};
inline Box readBox(const uint64_t *box) {
  Box v;
  for (int i = 0; i < 2; i++) {
    const uint64_t word = __atomic_load_n(box + i, __ATOMIC_SEQ_CST);
    memcpy((char *)&v + 8 * i, &word, 8);
  }
  return v;
}
inline void writeBox(uint64_t *box, float v, uint32_t tag) {
  __atomic_store_n(box, (uint64_t)tag << 32 | __float_as_uint(v), __ATOMIC_SEQ_CST);
}
inline void waitABit() { standin::yield(); }

// The instructions of wgmma.cuh, which describes them. A product is done at once.
struct SharedTile {
  const char *at;
  float number(int row, int k) const {
    const uintptr_t p = (uintptr_t)at + row * 64 + k * 2;
    return __uint_as_float((uint32_t)*(const uint16_t *)(p ^ (p >> 7 & 3) << 4) << 16);
  }
};
inline SharedTile tileAt(const void *p) { return {(const char *)p}; }
inline SharedTile farther(SharedTile t, int bytes) { return {t.at + bytes}; }
inline void beginProducts() {}
inline void commitProducts() {}
template <int N> void awaitProducts() {}
template <bool ADD, int COUNT> void product(float (&c)[COUNT], SharedTile a, SharedTile b) {
  const int lane = standin::laneOf(), warp = standin::thread.x / 32 % 4;
  for (int i = 0; i < COUNT; i++) {
    if (!ADD) c[i] = 0;
    for (int k = 0; k < 16; k++) c[i] = fmaf(a.number(warp * 16 + lane / 4 + i / 2 % 2 * 8, k), b.number(i / 4 * 8 + lane % 4 * 2 + i % 2, k), c[i]);
  }
}
inline void publish() {}
struct Barrier {
  uint16_t count, left;
  uint32_t completed;
  void prepare(int n) { count = left = n, completed = 0; }
  void arrive() {
    if (--left == 0) left = count, completed++;
  }
  void await(int odd) {
    while ((int)(completed & 1) == odd) standin::yield();
  }
};
template <int BYTES> void copyLater(void *to, const void *from) { memcpy(to, from, BYTES); }
inline void copySome(void *to, const void *from, int bytes) { memset(to, 0, 16), memcpy(to, from, bytes); }
inline void forget(int &) {}
template <int N> void fewerRegisters() {}
template <int N> void moreRegisters() {}

struct Cores {
  const char *at;
  int along, across;
};
template <bool ACROSS> Cores coresAt(const void *p, int along, int across) { return {(const char *)p, along, across}; }
inline Cores farther(Cores b, int bytes) { return {b.at + bytes, b.along, b.across}; }
template <bool ACROSS> void product(float (&c)[32], const uint32_t (&a)[4], const Cores &b, bool add) {
  const int g = standin::laneOf() / 4, t = standin::laneOf() % 4;
  for (int j = 0; j < 8; j++) {
    uint32_t y[2];
    for (int h = 0; h < 2; h++) {
      const char *core = b.at + j * b.across + h * b.along;
      uint16_t v[2];
      for (int q = 0; q < 2; q++) memcpy(&v[q], core + (ACROSS ? (2 * t + q) * 16 + g * 2 : g * 16 + (2 * t + q) * 2), 2);
      y[h] = v[0] | (uint32_t)v[1] << 16;
    }
    float sum[4];
    for (int q = 0; q < 4; q++) sum[q] = add ? c[4 * j + q] : 0.f;
    standin::multiplyBF16(sum, a, y[0], y[1]);
    for (int q = 0; q < 4; q++) c[4 * j + q] = sum[q];
  }
}
template <int N> void untouched(float (&)[N]) {}
inline void unchanged(const uint32_t (&)[3][4]) {}
inline void fetchLater(const float *) {}
