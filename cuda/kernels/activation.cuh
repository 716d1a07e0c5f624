// Activation functions and their derivatives. f is the number of the function: SiLU, GELU, ReLU, sigmoid, leaky ReLU.
#pragma once
#include "types.cuh"

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
