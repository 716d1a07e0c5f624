// Reads and writes of V neighbouring activations with one instruction: 1, 2 or 4 floats, 1, 2, 4 or 8 numbers of bfloat16. The address must be a
// multiple of their size.
#pragma once
#include "types.cuh"

template <int V> __device__ __forceinline__ void load(const float *p, float (&x)[V]) {
  static_assert(V == 1 || V == 2 || V == 4, "one, two or four");
  if constexpr (V == 1) {
    x[0] = *p;
  } else if constexpr (V == 2) {
    const float2 v = *(const float2 *)p;
    x[0] = v.x, x[1] = v.y;
  } else {
    const float4 v = *(const float4 *)p;
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  }
}

template <int V> __device__ __forceinline__ void store(float *p, const float (&x)[V]) {
  static_assert(V == 1 || V == 2 || V == 4, "one, two or four");
  if constexpr (V == 1)
    *p = x[0];
  else if constexpr (V == 2)
    *(float2 *)p = make_float2(x[0], x[1]);
  else
    *(float4 *)p = make_float4(x[0], x[1], x[2], x[3]);
}

__device__ __forceinline__ void widenTwo(uint32_t v, float &a, float &b) { a = __uint_as_float(v << 16), b = __uint_as_float(v & 0xffff0000u); }
// narrowTwo rounds as to<bf16> does, with the instruction of compute capability 8.0 where there is one: one instead of fourteen.
__device__ __forceinline__ uint32_t narrowTwo(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t v;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(b), "f"(a));
  return v;
#else
  return to<bf16>(a).bits | (uint32_t)to<bf16>(b).bits << 16;
#endif
}

template <int V> __device__ __forceinline__ void load(const bf16 *p, float (&x)[V]) {
  static_assert(V == 1 || V == 2 || V == 4 || V == 8, "one, two, four or eight");
  if constexpr (V == 1) {
    x[0] = value(*p);
  } else if constexpr (V == 2) {
    widenTwo(*(const uint32_t *)p, x[0], x[1]);
  } else if constexpr (V == 4) {
    const uint2 v = *(const uint2 *)p;
    widenTwo(v.x, x[0], x[1]), widenTwo(v.y, x[2], x[3]);
  } else {
    const uint4 v = *(const uint4 *)p;
    widenTwo(v.x, x[0], x[1]), widenTwo(v.y, x[2], x[3]), widenTwo(v.z, x[4], x[5]), widenTwo(v.w, x[6], x[7]);
  }
}

template <int V> __device__ __forceinline__ void store(bf16 *p, const float (&x)[V]) {
  static_assert(V == 1 || V == 2 || V == 4 || V == 8, "one, two, four or eight");
  if constexpr (V == 1)
    *p = to<bf16>(x[0]);
  else if constexpr (V == 2)
    *(uint32_t *)p = narrowTwo(x[0], x[1]);
  else if constexpr (V == 4)
    *(uint2 *)p = make_uint2(narrowTwo(x[0], x[1]), narrowTwo(x[2], x[3]));
  else
    *(uint4 *)p = make_uint4(narrowTwo(x[0], x[1]), narrowTwo(x[2], x[3]), narrowTwo(x[4], x[5]), narrowTwo(x[6], x[7]));
}

// Pack is V neighbouring activations as they are in memory. They are widened later, since widening waits for the load.
template <class T, int V> struct Pack {
  uint32_t word[V * sizeof(T) / 4];
  __device__ __forceinline__ void read(const T *p) {
    if constexpr (sizeof word == 4) {
      word[0] = *(const uint32_t *)p;
    } else if constexpr (sizeof word == 8) {
      const uint2 v = *(const uint2 *)p;
      word[0] = v.x, word[1] = v.y;
    } else {
      static_assert(sizeof word == 16, "four, eight or sixteen bytes");
      const uint4 v = *(const uint4 *)p;
      word[0] = v.x, word[1] = v.y, word[2] = v.z, word[3] = v.w;
    }
  }
  __device__ __forceinline__ float at(int i) const {
    if constexpr (sizeof(T) == 4)
      return __uint_as_float(word[i]);
    else
      return __uint_as_float(i % 2 ? word[i / 2] & 0xffff0000u : word[i / 2] << 16);
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < (int)(sizeof word / 4); i++) word[i] = 0;
  }
};
