// The kernels of depthwise_async.cuh, in float32. forwardStages and backwardStages in cuda/grid_conv.go are the rows that they have in
// shared memory.
#include "depthwise_async.cuh"

#define FORWARD(NAME, EPILOGUE)                                                                                                                          \
  extern "C" __global__ __launch_bounds__(256, 3) void depthwise_async_##NAME(const GridConv g, const float *x, const float *taps, const float *bias,     \
                                                                              const float *dy, float *y, int32_t rows, int32_t across) {                 \
    depthwiseForwardAsync<6, EPILOGUE>(g, x, taps, bias, dy, y, rows, across);                                                                           \
  }
FORWARD(forward, NONE)
FORWARD(silu, SILU)
FORWARD(slope, SLOPE)

extern "C" __global__ __launch_bounds__(384, 1) void depthwise_async_backward(const GridConv g, const float *x, const float *taps, const float *dy, float *dx,
                                                                              float *parts, int32_t rows, int32_t across) {
  depthwiseBackwardAsync<4, 4>(g, x, taps, dy, dx, parts, rows, across);
}
