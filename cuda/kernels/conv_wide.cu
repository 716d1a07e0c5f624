// Convolutions of any width, in float, for widths that do not fit into the registers of conv.cu. They read their inputs from memory once for
// each tap.
#include "conv.cuh"

#define EACH(N)                                                     \
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; \
  if (i >= (N)) return;

// conv_wide_live writes for each step how many taps have an input: as many steps as lie between it and the beginning of its sequence.
extern "C" __global__ void conv_wide_live(const Conv c, int32_t *live) {
  EACH(c.batch * c.length)
  const int64_t b = i / c.length, t = i % c.length, most = c.context ? c.width : min(c.width, t + 1);
  int64_t n = 1;
  while (n < most && !convBegins(c, b, t - n + 1)) n++;
  live[i] = (int32_t)n;
}

// wideSum returns the sum of a step before SiLU.
__device__ __forceinline__ float wideSum(const Conv &c, int64_t live, int64_t row, int64_t d) {
  const int64_t b = row / c.length, t = row % c.length;
  float sum = c.bias ? c.bias[d] : 0.f;
#pragma unroll 4
  for (int64_t j = 0; j < live; j++) sum = fmaf(c.weight[d * c.width + c.width - 1 - j], convInput<float>(c, c.width, b, t - j, d), sum);
  return sum;
}

extern "C" __global__ void conv_wide_forward(const Conv c, const int32_t *live) {
  EACH(c.batch * c.length * c.channels)
  const float sum = wideSum(c, live[i / c.channels], i / c.channels, i % c.channels);
  ((float *)c.y)[i] = c.silu ? sum * sigmoid(sum) : sum;
}

// conv_wide_sums writes dsum (batch, length, channels), the gradient of the sums.
extern "C" __global__ void conv_wide_sums(const Conv c, const int32_t *live, float *dsum) {
  EACH(c.batch * c.length * c.channels)
  float g = ((const float *)c.dy)[i];
  if (c.silu) {
    const float sum = wideSum(c, live[i / c.channels], i / c.channels, i % c.channels), s = sigmoid(sum);
    g *= s * fmaf(sum, 1.f - s, 1.f);
  }
  dsum[i] = g;
}

// conv_wide_inputs writes the gradients of the inputs, those of the context included: (batch, width-1 + length, channels) threads.
extern "C" __global__ void conv_wide_inputs(const Conv c, const int32_t *live, const float *dsum) {
  const int64_t steps = c.width - 1 + c.length;
  EACH(c.batch * steps * c.channels)
  const int64_t d = i % c.channels, b = i / c.channels / steps, t = i / c.channels % steps - (c.width - 1);
  float v = 0.f;
  for (int64_t j = max(-t, (int64_t)0); j < c.width && t + j < c.length; j++) {
    const int64_t row = b * c.length + t + j;
    if (j < live[row]) v = fmaf(c.weight[d * c.width + c.width - 1 - j], dsum[row * c.channels + d], v);
  }
  if (c.dnext && t >= c.length - (c.width - 1) && convReachesEnd(c, b, t))
    v += c.dnext[(b * (c.width - 1) + t - c.length + c.width - 1) * c.channels + d];
  if (t >= 0)
    ((float *)c.dx)[(b * c.length + t) * c.dstep + d] = v;
  else if (c.dcontext)
    c.dcontext[(b * (c.width - 1) + c.width - 1 + t) * c.channels + d] = v;
}

// conv_wide_weights writes parts (gridDim.y, width + 1, channels): the gradients of taps and bias, summed over each rows.
extern "C" __global__ void conv_wide_weights(const Conv c, const int32_t *live, const float *dsum, int64_t each) {
  EACH((c.width + 1) * c.channels)
  const int64_t j = c.width - 1 - i / c.channels, d = i % c.channels, first = blockIdx.y * each;  // j steps back; -1 is the bias
  float sum = 0.f;
  for (int64_t row = first; row < min(first + each, c.batch * c.length); row++) {
    const float g = dsum[row * c.channels + d];
    if (j < 0)
      sum += g;
    else if (j < live[row])
      sum = fmaf(g, convInput<float>(c, c.width, row / c.length, row % c.length - j, d), sum);
  }
  c.parts[blockIdx.y * (c.width + 1) * c.channels + i] = sum;
}
