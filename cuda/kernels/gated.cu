// Activation functions and the gates that multiply with them. x and dx may be null: the gate is then the activation alone.
#include "types.cuh"

__device__ __forceinline__ float normalCDF(float x) { return erfcf(x * -0.70710678f) * 0.5f; }

__device__ __forceinline__ float activation(bool gelu, float x) { return x * (gelu ? normalCDF(x) : sigmoid(x)); }

__device__ __forceinline__ float slope(bool gelu, float x) {
  if (!gelu) {
    const float s = sigmoid(x);
    return s * fmaf(x, 1.f - s, 1.f);
  }
  if (isinf(x)) return normalCDF(x);  // x exp(-x²/2) would be NaN
  return fmaf(x * 0.39894228f, expf(-0.5f * x * x), normalCDF(x));
}

extern "C" __global__ void gate_forward(const float *gate, const float *x, float *y, int64_t n, int32_t gelu) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float f = activation(gelu, gate[i]);
  y[i] = x ? f * x[i] : f;
}

extern "C" __global__ void gate_backward(const float *gate, const float *x, const float *dy, float *dgate, float *dx, int64_t n, int32_t gelu) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float g = gate[i], d = dy[i];
  if (x) dx[i] = activation(gelu, g) * d;
  dgate[i] = slope(gelu, g) * (x ? d * x[i] : d);
}
