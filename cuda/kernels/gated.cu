// Activation functions and the gates that multiply with them. x and dx may be null: the gate is then the activation alone. A thread processes four
// neighbouring elements.
#include "activation.cuh"
#include "vector.cuh"

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
