// The recurrence of a minimal gated recurrent unit (internal/kernel/min_gru.go has the formulas). A thread goes through the steps of one
// channel of one sequence. h0 is the state before the first step, hn that after the last. Both may be null, and so may start.
#include "types.cuh"

extern "C" __global__ void mingru_forward(const float *z, const float *candidate, const float *h0, const uint8_t *start, float *y, float *hn,
                                          int64_t batch, int64_t length, int64_t channels) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, b = i / channels, d = i % channels;
  if (b >= batch) return;
  float h = h0 ? h0[i] : 0.f;
#pragma unroll 4
  for (int64_t t = 0; t < length; t++) {
    const int64_t at = (b * length + t) * channels + d;
    if (start && start[b * length + t]) h = 0.f;
    const float u = sigmoid(z[at]);
    h = (1.f - u) * h + u * candidate[at];
    y[at] = h;
  }
  if (hn) hn[i] = h;
}

// mingru_backward reads y, which mingru_forward wrote. dy and dhn may be null, for zeros, and so may dh0.
extern "C" __global__ void mingru_backward(const float *z, const float *candidate, const float *h0, const uint8_t *start, const float *y,
                                           const float *dy, const float *dhn, float *dz, float *dcandidate, float *dh0, int64_t batch,
                                           int64_t length, int64_t channels) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, b = i / channels, d = i % channels;
  if (b >= batch) return;
  float dh = dhn ? dhn[i] : 0.f;
#pragma unroll 4
  for (int64_t t = length - 1; t >= 0; t--) {
    const int64_t at = (b * length + t) * channels + d;
    const bool begins = start && start[b * length + t];
    const float before = begins ? 0.f : t > 0 ? y[at - channels] : h0 ? h0[i] : 0.f;
    const float u = sigmoid(z[at]);
    if (dy) dh += dy[at];
    dz[at] = dh * (candidate[at] - before) * u * (1.f - u);
    dcandidate[at] = dh * u;
    dh = begins ? 0.f : dh * (1.f - u);
  }
  if (dh0) dh0[i] = dh;
}
