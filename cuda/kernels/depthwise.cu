// The kernels of depthwise.cuh, in float32.
#include "depthwise.cuh"

#define FORWARD(NAME, EPILOGUE)                                                                                                                          \
  extern "C" __global__ void depthwise_##NAME(const GridConv g, const float *x, const float *taps, const float *bias, const float *dy, float *y,          \
                                              int32_t rows) {                                                                                            \
    depthwiseForward<float, 4, 2, EPILOGUE>(g, x, taps, bias, dy, y, rows);                                                                              \
  }
FORWARD(forward, NONE)
FORWARD(silu, SILU)
FORWARD(slope, SLOPE)

extern "C" __global__ __launch_bounds__(256, 2) void depthwise_backward(const GridConv g, const float *x, const float *taps, const float *dy, float *dx,
                                                                        float *parts, int32_t rows, int32_t across) {
  depthwiseBackward<float, 2>(g, x, taps, dy, dx, parts, rows, across);
}
