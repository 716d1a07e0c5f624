// Steps of generation for few sequences, with weights of int8 and float16, and for many, with weights of int8.
#include "weightrows.cuh"

#define WEIGHT_PRODUCT(NAME, W, AHEAD)                                                                                                       \
  extern "C" __global__ __launch_bounds__(256, 2) void weight_product_##NAME##_##AHEAD(const float *x, const void *weight, const float *bias,  \
                                                                                       const float *residual, float *y, int batch, int in,    \
                                                                                       int out, int each) {                                  \
    weightProduct<W, 8, AHEAD, (AHEAD > 3)>(x, W(weight, out, in), bias, residual, y, batch, in, out, each);                                  \
  }
#define WEIGHTS(NAME, W)                                                                                                                     \
  extern "C" __global__ __launch_bounds__(256, 2) void weight_in_##NAME(                                                                      \
      const float *x, const float *norm, const void *weight, const float *bias, const float *context, const float *taps,                      \
      const float *convBias, const void *xProj, float *u, float *z, float *parts, float *contextNext, int batch, int model, int channels,      \
      int width, int columns, float eps) {                                                                                                    \
    weightIn(x, norm, W(weight, 2 * (int64_t)channels, model), bias, context, taps, convBias, W(xProj, columns, channels), u, z, parts,         \
             contextNext, batch, model, channels, width, columns, eps);                                                                       \
  }                                                                                                                                           \
  WEIGHT_PRODUCT(NAME, W, 3)                                                                                                                  \
  WEIGHT_PRODUCT(NAME, W, 6)
WEIGHTS(int8, Int8)
WEIGHTS(f16, F16)

extern "C" __global__ __launch_bounds__(256, 3) void weight_scan(const float *z, const float *u, const float *rbc, const float *dtProj,
                                                                 const float *dtBias, const float *alog, const float *skip, const float *h, float *y,
                                                                 float *hNext, int64_t batch, int64_t channels, int stride, int states, int rank,
                                                                 int each, int parts) {
  stepScanRows(z, u, rbc, dtProj, dtBias, alog, skip, h, y, hNext, batch, channels, stride, states, rank, each, parts);
}

MANY_IN(weight_many_in, Int8, 8)
MANY_PRODUCT(weight_many_product_bf16, Int8, 1, bf16)
MANY_PRODUCT(weight_many_product_float, Int8, 4, float)
MANY_PRODUCT(weight_many_product_float, Int8, 8, float)

#define SCAN(NAME, FUNCTION, ...)                                                                                                            \
  extern "C" __global__ __launch_bounds__(__VA_ARGS__) void NAME(                                                                             \
      const bf16 *z, const bf16 *u, const bf16 *rbc, const float *dtProj, const float *dtBias, const float *alog, const float *skip,           \
      const float *h, bf16 *y, float *hNext, int64_t batch, int64_t channels, int stride, int states, int rank, int each) {                    \
    FUNCTION;                                                                                                                                \
  }
SCAN(step_scan_rows_wide, stepScanRows(z, u, rbc, dtProj, dtBias, alog, skip, h, y, hNext, batch, channels, stride, states, rank, each, 0), 256)
SCAN(step_scan_four_wide, stepScanFour(z, u, rbc, dtProj, dtBias, alog, skip, h, y, hNext, batch, channels, stride, states, rank, each), 256, 3)
