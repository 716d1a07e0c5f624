// Activation functions and the gates that multiply with them. x and dx may be null: the gate is then the activation alone. A thread processes four
// neighbouring elements. f is the number of the function: SiLU, GELU, ReLU, sigmoid, leaky ReLU.
#include "vector.cuh"

__device__ __forceinline__ float normalCDF(float x) { return erfcf(x * -0.70710678f) * 0.5f; }

__device__ __forceinline__ float activation(int f, float x) {
  if (f == 2) return x <= 0.f ? 0.f : x;  // NaN stays
  if (f == 3) return sigmoid(x);
  if (f == 4) return x <= 0.f ? 0.01f * x : x;
  return x * (f == 1 ? normalCDF(x) : sigmoid(x));
}

__device__ __forceinline__ float slope(int f, float x) {
  if (f == 2) return x <= 0.f ? 0.f : 1.f;
  if (f == 4) return x <= 0.f ? 0.01f : 1.f;
  const float s = sigmoid(x);
  if (f == 3) return s * (1.f - s);
  if (f == 0) return s * fmaf(x, 1.f - s, 1.f);
  if (isinf(x)) return normalCDF(x);  // x exp(-x²/2) would be NaN
  return fmaf(x * 0.39894228f, expf(-0.5f * x * x), normalCDF(x));
}

struct Gate {
  const float *gate, *x, *dy;
  float *y, *dgate, *dx;
  int64_t n;
  int f;

  template <int V> __device__ __forceinline__ void forward(int64_t i) const {
    float g[V], v[V];
    load<V>(gate + i, g);
    if (x) load<V>(x + i, v);
#pragma unroll
    for (int k = 0; k < V; k++) g[k] = x ? activation(f, g[k]) * v[k] : activation(f, g[k]);
    store<V>(y + i, g);
  }

  template <int V> __device__ __forceinline__ void backward(int64_t i) const {
    float g[V], d[V];
    load<V>(gate + i, g), load<V>(dy + i, d);
    if (!x) {
#pragma unroll
      for (int k = 0; k < V; k++) d[k] *= slope(f, g[k]);
    } else {
      float v[V];
      load<V>(x + i, v);
#pragma unroll
      for (int k = 0; k < V; k++) v[k] *= d[k], d[k] *= activation(f, g[k]), g[k] = slope(f, g[k]) * v[k];
      store<V>(dx + i, d);
#pragma unroll
      for (int k = 0; k < V; k++) d[k] = g[k];
    }
    store<V>(dgate + i, d);
  }

  // each calls one of the two for the four elements of the thread: together if the addresses allow it.
  template <class Four, class One> __device__ __forceinline__ void each(Four four, One one) const {
    const int64_t i = 4 * ((int64_t)blockIdx.x * blockDim.x + threadIdx.x);
    const uintptr_t all = (uintptr_t)gate | (uintptr_t)x | (uintptr_t)dy | (uintptr_t)y | (uintptr_t)dgate | (uintptr_t)dx;
    if (i + 4 <= n && all % 16 == 0)
      four(i);
    else
      for (int64_t j = i; j < min(i + 4, n); j++) one(j);
  }
};

extern "C" __global__ void gate_forward(const float *gate, const float *x, float *y, int64_t n, int32_t f) {
  const Gate g = {gate, x, nullptr, y, nullptr, nullptr, n, f};
  g.each([&](int64_t i) { g.forward<4>(i); }, [&](int64_t i) { g.forward<1>(i); });
}

extern "C" __global__ void gate_backward(const float *gate, const float *x, const float *dy, float *dgate, float *dx, int64_t n, int32_t f) {
  const Gate g = {gate, x, dy, nullptr, dgate, dx, n, f};
  g.each([&](int64_t i) { g.backward<4>(i); }, [&](int64_t i) { g.backward<1>(i); });
}
