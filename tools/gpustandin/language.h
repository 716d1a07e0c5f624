// CUDA C++ as far as the kernels use it, for a C++ compiler: a thread is a fiber, and what threads wait for one another at (barriers,
// shuffles) goes through the scheduler in fibers.cpp. Each source of cuda/kernels is compiled with this in front.
#pragma once
#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ thread_local // a block runs on one thread of the host

namespace standin {
struct Index { unsigned x, y, z; };

constexpr int maxThreads = 1024, slot = 32; // bytes that a lane can give
constexpr uintptr_t stackBytes = 128 << 10, regionBytes = 256 << 20;

struct Warp {
  alignas(64) char given[2][32][slot]; // by turns: a lane may give again before all have read
  int turn;
  unsigned lanes, arrived;          // those that there are, and those that have given; a bit for each, here and below
  unsigned ready, yielded, barrier; // those that can run, can run after the other warps, and wait for the block
};

// Block is the block that a thread of the host runs. It begins a region of memory, before the stacks of its threads: so they find it by
// their stack pointer, which takes less time than a thread_local of a shared library.
struct Block {
  Index thread[maxThreads], block, blockSize, gridSize;
  Warp warps[maxThreads / 32];
};

inline uintptr_t stackPointer() {
  uintptr_t p;
  __asm__("movq %%rsp, %0" : "=r"(p));
  return p;
}
inline Block &here() { return *(Block *)(stackPointer() & -regionBytes); }
inline int threadOf() { return stackPointer() % regionBytes / stackBytes - 1; }
inline int laneOf() { return threadOf() % 32; }

void barrier();       // of the block
int barrierOr(int v); // whether v was true anywhere
void yield();         // lets the other threads of the block run
bool arrive();        // waits until all lanes have arrived, and returns false; but true at once to the last one, which has to release the others
void release();

// give returns what all lanes give, a slot each, before they have.
template <class T> char (*give(unsigned mask, const T &v))[slot] {
  static_assert(sizeof v <= slot);
  if (mask != ~0u) abort(); // no kernel does
  Warp &w = here().warps[threadOf() / 32];
  char (*all)[slot] = w.given[w.turn];
  memcpy(all[laneOf()], &v, sizeof v);
  return all;
}
template <class T> char (*exchange(unsigned mask, const T &v))[slot] {
  char (*all)[slot] = give(mask, v);
  if (arrive()) release();
  return all;
}
template <class T> T shuffle(unsigned mask, T v, int lane) {
  memcpy(&v, exchange(mask, v)[lane], sizeof v);
  return v;
}

// The inline assembly is of functions of a number x whose result is y.
inline float approximately(const char *text, float x) {
  return strstr(text, "ex2.approx.ftz.f32") ? exp2f(x) : strstr(text, "rcp.approx.ftz.f32") ? 1.f / x : NAN;
}

// A kernel by its name.
struct Kernel {
  const char *name;
  bool flush; // denormal numbers are zero
  void (*function)();
  void (*call)(void (*function)(), void *const *arguments); // with the addresses of its arguments, as cuLaunchKernel has them
  std::initializer_list<unsigned> sizes;                    // of its arguments
  Kernel *next;
  unsigned shared = 48 << 10; // most bytes of dynamic shared memory
  static Kernel *first;

  template <class... A>
  Kernel(const char *name, bool flush, void (*f)(A...))
      : name(name), flush(flush), function((void (*)())f), call(caller<A...>(std::index_sequence_for<A...>())), next(first) {
    static constexpr std::initializer_list<unsigned> all = {sizeof(A)...};
    sizes = all, first = this;
  }
  template <class... A, size_t... I> static auto caller(std::index_sequence<I...>) {
    return [](void (*f)(), void *const *list) { ((void (*)(A...))f)(*(A *)list[I]...); };
  }
  std::function<void()> bind(void **arguments) const; // copies them
};
}  // namespace standin

#define threadIdx standin::here().thread[standin::threadOf()]
#define blockIdx standin::here().block
#define blockDim standin::here().blockSize
#define gridDim standin::here().gridSize
#define asm(...) y = standin::approximately(#__VA_ARGS__, x)

inline void __syncthreads() { standin::barrier(); }
inline int __syncthreads_or(int v) { return standin::barrierOr(v); }
inline void __syncwarp(unsigned mask = ~0u) { standin::exchange(mask, 0); }
template <class T> T __shfl_xor_sync(unsigned mask, T v, int other) { return standin::shuffle(mask, v, standin::laneOf() ^ other); }
template <class T> T __shfl_sync(unsigned mask, T v, int lane) { return standin::shuffle(mask, v, lane % 32); }
inline unsigned __ballot_sync(unsigned mask, int v) {
  char (*all)[standin::slot] = standin::exchange(mask, v);
  unsigned bits = 0;
  for (int i = 0; i < 32; i++) bits |= (unsigned)(*(const int *)all[i] != 0) << i;
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
  char (*all)[standin::slot] = standin::exchange(~0u, row);
  auto at = [&](int i) { return *(const char **)all[i]; };
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
// Part is what a lane gives to a product: its numbers of the operands, and where its sums are.
template <class C> struct Part {
  uint32_t x[4], y[2];
  C *c;
};
// multiply computes a product of the parts of all lanes, in the type that its name says.
void multiplyBF16(const Part<float> *), multiplyF16(const Part<float> *), multiplyTF32(const Part<float> *), multiplyInt8(const Part<int> *);

template <class C> void multiply(void (*f)(const Part<C> *), C (&c)[4], const uint32_t (&x)[4], uint32_t y0, uint32_t y1) {
  static_assert(sizeof(Part<C>) == slot);
  char (*all)[slot] = give(~0u, Part<C>{x[0], x[1], x[2], x[3], y0, y1, c});
  if (arrive()) f((Part<C> *)all), release();
}
}  // namespace standin

inline void product(float (&c)[4], const uint32_t (&x)[4], uint32_t y0, uint32_t y1, const bf16 &) { standin::multiply(standin::multiplyBF16, c, x, y0, y1); }
inline void product(float (&c)[4], const uint32_t (&x)[4], uint32_t y0, uint32_t y1, float) { standin::multiply(standin::multiplyTF32, c, x, y0, y1); }
inline void product(float (&c)[4], const uint32_t (&x)[4], uint32_t y0, uint32_t y1, f16) { standin::multiply(standin::multiplyF16, c, x, y0, y1); }
inline void product(int (&c)[4], const uint32_t (&x)[4], uint32_t y0, uint32_t y1) { standin::multiply(standin::multiplyInt8, c, x, y0, y1); }

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
  void numbers(float (&to)[16], int row) const {
    for (int half = 0; half < 2; half++) {
      const uintptr_t p = (uintptr_t)at + row * 64 + half * 16;
      const uint16_t *from = (const uint16_t *)(p ^ (p >> 7 & 3) << 4); // eight lie together
      for (int k = 0; k < 8; k++) to[8 * half + k] = __uint_as_float((uint32_t)from[k] << 16);
    }
  }
};
inline SharedTile tileAt(const void *p) { return {(const char *)p}; }
inline SharedTile farther(SharedTile t, int bytes) { return {t.at + bytes}; }
inline void beginProducts() {}
inline void commitProducts() {}
template <int N> void awaitProducts() {}
template <bool ADD, int COUNT> void product(float (&c)[COUNT], SharedTile a, SharedTile b) {
  const int lane = standin::laneOf(), warp = threadIdx.x / 32 % 4;
  float x[2][16], y[16];
  for (int h = 0; h < 2; h++) a.numbers(x[h], warp * 16 + lane / 4 + h * 8);
  for (int column = 0; column < COUNT / 2; column++) {
    b.numbers(y, column / 2 * 8 + lane % 4 * 2 + column % 2);
    for (int h = 0; h < 2; h++) {
      float &sum = c[column / 2 * 4 + h * 2 + column % 2];
      if (!ADD) sum = 0;
      for (int k = 0; k < 16; k++) sum = fmaf(x[h][k], y[k], sum);
    }
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
    standin::multiply(standin::multiplyBF16, sum, a, y[0], y[1]);
    for (int q = 0; q < 4; q++) c[4 * j + q] = sum[q];
  }
}
template <int N> void untouched(float (&)[N]) {}
inline void unchanged(const uint32_t (&)[3][4]) {}
inline void fetchLater(const float *) {}
