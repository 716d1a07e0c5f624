// A step of generation for many sequences, between the products.
#include "step.cuh"

#define CONVOLVE(NAME, T, V)                                                                                                                 \
  extern "C" __global__ void step_convolve_##NAME##_##V(const T *v, const float *context, const float *taps, const float *bias, T *u,         \
                                                        float *contextNext, int64_t batch, int64_t channels, int stride, int width) {         \
    stepConvolve<T, V>(v, context, taps, bias, u, contextNext, batch, channels, stride, width);                                              \
  }
#define ROWS(NAME, T)                                                                                                                        \
  extern "C" __global__ __launch_bounds__(256) void step_scan_rows_##NAME(                                                                   \
      const T *z, const T *u, const T *rbc, const T *dtProj, const float *dtBias, const float *alog, const float *skip, const float *h, T *y, \
      float *hNext, int64_t batch, int64_t channels, int stride, int states, int rank, int each) {                                           \
    stepScanRows(z, u, rbc, dtProj, dtBias, alog, skip, h, y, hNext, batch, channels, stride, states, rank, each, 0);                          \
  }                                                                                                                                          \
  extern "C" __global__ __launch_bounds__(256, 3) void step_scan_four_##NAME(                                                                \
      const T *z, const T *u, const T *rbc, const T *dtProj, const float *dtBias, const float *alog, const float *skip, const float *h, T *y, \
      float *hNext, int64_t batch, int64_t channels, int stride, int states, int rank, int each) {                                           \
    stepScanFour(z, u, rbc, dtProj, dtBias, alog, skip, h, y, hNext, batch, channels, stride, states, rank, each);                             \
  }                                                                                                                                          \
  CONVOLVE(NAME, T, 1) CONVOLVE(NAME, T, 4)
ROWS(float, float)
ROWS(bf16, bf16)
