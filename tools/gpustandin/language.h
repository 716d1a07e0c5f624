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
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ thread_local // a block runs on one thread of the host

namespace standin {
struct Index { unsigned x, y, z; };

extern thread_local Index thread, block, blockSize, gridSize;

void barrier();                                          // of the block
int barrierOr(int v);                                    // whether v was true anywhere
void *exchange(unsigned mask, const void *v, int bytes); // what all lanes gave, 8 bytes each
int laneOf();

template <class T> T shuffle(unsigned mask, T v, int lane) {
  const char *all = (const char *)exchange(mask, &v, sizeof v);
  memcpy(&v, all + 8 * lane, sizeof v);
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
  const int64_t *all = (const int64_t *)standin::exchange(mask, &v, sizeof v);
  unsigned bits = 0;
  for (int i = 0; i < 32; i++) bits |= (unsigned)((int32_t)all[i] != 0) << i;
  return bits;
}

template <class T> T __ldcs(const T *p) { return *p; }
template <class T> T __ldcg(const T *p) { return *p; }
template <class T> T __ldg(const T *p) { return *p; }
template <class T> void __stcs(T *p, T v) { *p = v; }

// What blocks of a cooperative launch use to wait for each other.
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline unsigned atomicAdd(unsigned *p, unsigned v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
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

inline int __clz(unsigned v) { return v ? __builtin_clz(v) : 32; }

inline float __expf(float x) { return expf(x); }
inline float __fdividef(float a, float b) { return fabsf(b) > 0x1p126f && fabsf(b) <= 0x1p128 ? 0.f : a / b; } // as its manual says
inline double rsqrt(double x) { return 1 / sqrt(x); }
using std::isinf;
using std::max;
using std::min;

struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
struct __align__(8) uint2 { unsigned x, y; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
