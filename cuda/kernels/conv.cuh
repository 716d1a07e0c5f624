// The causal depthwise convolution: the arguments of its kernels, and how they read the input.
#pragma once
#include "types.cuh"

struct Conv {
  int64_t batch, length, channels, width, silu, step, dstep, steps;  // step, dstep: elements between two steps of x and dx; steps: per tile
  const void *x;
  const float *weight, *bias, *context;
  const uint8_t *start;
  void *y;
  float *next;
  // The backward pass.
  const void *dy;
  const float *dnext;
  void *dx;
  float *parts, *dcontext;  // parts: (width + 1, channels) for each tile of each row of the batch, the bias in the last row
};

// convBegins reports whether a sequence begins at step t.
__device__ __forceinline__ bool convBegins(const Conv &c, int64_t b, int64_t t) {
  return c.start && t >= 0 && t < c.length && c.start[b * c.length + t];
}

// convReachesEnd reports whether step t belongs to the sequence of the last step.
__device__ __forceinline__ bool convReachesEnd(const Conv &c, int64_t b, int64_t t) {
  bool reaches = true;
  for (int64_t k = max(t + 1, (int64_t)0); k < c.length; k++) reaches = reaches && !convBegins(c, b, k);
  return reaches;
}

// convInput returns the input of step t, from the context if t is negative.
template <class T> __device__ __forceinline__ float convInput(const Conv &c, int64_t width, int64_t b, int64_t t, int64_t d) {
  if (t >= 0) return value(((const T *)c.x)[(b * c.length + t) * c.step + d]);
  return c.context[(b * (width - 1) + width - 1 + t) * c.channels + d];
}
