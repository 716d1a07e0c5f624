// The mean over time of the steps that a mask marks. internal/kernel/mean_pool.go defines it. The order of axes is (batch, length, channels).
#include "types.cuh"

// pool_share writes 1/n for each sequence with n marked steps, or 0 without one. A warp counts a sequence.
extern "C" __global__ void pool_share(const uint8_t *mask, double *share, int64_t batch, int64_t length) {
  const int64_t b = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (b >= batch) return;
  int count = 0;
  for (int64_t t = threadIdx.x % 32; t < length; t += 32) count += !mask || mask[b * length + t];
  count = warpSum(count);
  if (threadIdx.x % 32 == 0) share[b] = count ? 1. / count : 0.;
}

// pool_parts writes parts (batch, part, channels): the sums of the marked steps of each part of each sequence, in order.
extern "C" __global__ void pool_parts(const float *x, const uint8_t *mask, double *parts, int64_t batch, int64_t length, int64_t channels, int64_t each) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, part = blockIdx.y, to = min((part + 1) * each, length);
  if (i >= batch * channels) return;
  const int64_t b = i / channels, d = i % channels;
  double sum = 0;
#pragma unroll 8
  for (int64_t t = part * each; t < to; t++)
    if (!mask || mask[b * length + t]) sum += x[(b * length + t) * channels + d];
  parts[(b * gridDim.y + part) * channels + d] = sum;
}

// pool_mean writes y (batch, channels), the sums of the parts times the share.
extern "C" __global__ void pool_mean(const double *parts, const double *share, float *y, int64_t batch, int64_t count, int64_t channels) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= batch * channels) return;
  const int64_t b = i / channels;
  double sum = 0;
  for (int64_t p = 0; p < count; p++) sum += parts[(b * count + p) * channels + i % channels];
  y[i] = (float)(sum * share[b]);
}

// pool_backward writes dx, the gradient of x.
extern "C" __global__ void pool_backward(const float *dy, const double *share, const uint8_t *mask, float *dx, int64_t rows, int64_t length,
                                         int64_t channels) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, row = i / channels;
  if (row >= rows) return;
  const int64_t b = row / length;
  dx[i] = !mask || mask[row] ? (float)(dy[b * channels + i % channels] * share[b]) : 0.f;
}
