// Steps of generation for many sequences, with weights of bfloat16.
#include "manyrows.cuh"

extern "C" __global__ void many_norm(const float *x, const float *norm, bf16 *n, int batch, int model, float eps) {
  manyNorm(x, norm, n, batch, model, eps);
}

#define MANY_IN(N)                                                                                                                            \
  extern "C" __global__ __launch_bounds__(256) void many_in_##N(const bf16 *x, const bf16 *weight, const float *bias, const float *context,   \
                                                                const float *taps, const float *convBias, bf16 *u, bf16 *z,                  \
                                                                float *contextNext, int batch, int model, int channels, int width) {         \
    manyIn<N>(x, weight, bias, context, taps, convBias, u, z, contextNext, batch, model, channels, width);                                   \
  }
MANY_IN(4)
MANY_IN(8)

#define MANY_PRODUCT(NAME, N, Y)                                                                                                             \
  extern "C" __global__ __launch_bounds__(256) void many_product_##NAME##_##N(const bf16 *x, const bf16 *weight, const float *bias,           \
                                                                              const Y *residual, Y *y, int batch, int in, int out) {         \
    manyProduct<N>(x, weight, bias, residual, y, batch, in, out);                                                                            \
  }
MANY_PRODUCT(bf16, 1, bf16)
MANY_PRODUCT(bf16, 2, bf16)
MANY_PRODUCT(float, 2, float)
MANY_PRODUCT(float, 4, float)
MANY_PRODUCT(float, 8, float)
