// Steps of generation for few sequences, with weights of bfloat16.
#include "fewrows.cuh"

extern "C" __global__ __launch_bounds__(256, 2) void few_in(const float *x, const float *norm, const bf16 *weight, const float *bias, const float *context,
                                                         const float *taps, const float *convBias, const bf16 *xProj, float *u,
                                                         float *z, float *parts, float *contextNext, int batch, int model, int channels, int width,
                                                         int columns, float eps) {
  fewIn(x, norm, weight, bias, context, taps, convBias, xProj, u, z, parts, contextNext, batch, model, channels, width, columns, eps);
}

extern "C" __global__ __launch_bounds__(256, 3) void few_scan(const float *z, const float *u, const float *rbc, const bf16 *dtProj, const float *dtBias,
                                                           const float *alog, const float *skip, const float *h, float *y, float *hNext,
                                                           int64_t batch, int64_t channels, int stride, int states, int rank, int each,
                                                           int parts) {
  stepScanRows(z, u, rbc, dtProj, dtBias, alog, skip, h, y, hNext, batch, channels, stride, states, rank, each, parts);
}

#define FEW_PRODUCT(AHEAD)                                                                                                                     \
  extern "C" __global__ __launch_bounds__(256, 2) void few_product_##AHEAD(const float *x, const bf16 *weight, const float *bias,                \
                                                                           const float *residual, float *y, int batch, int in, int out,         \
                                                                           int each) {                                                          \
    fewProduct<8, AHEAD, (AHEAD > 3)>(x, weight, bias, residual, y, batch, in, out, each);                                                                  \
  }
FEW_PRODUCT(3)
FEW_PRODUCT(6)
