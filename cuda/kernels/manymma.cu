// Steps of generation for many sequences, with weights of bfloat16.
#include "manyrows.cuh"

extern "C" __global__ void many_norm(const float *x, const float *norm, bf16 *n, int batch, int model, float eps) {
  manyNorm(x, norm, n, batch, model, eps);
}

MANY_IN(many_in, Half, 4)
MANY_IN(many_in, Half, 8)
MANY_PRODUCT(many_product_bf16, Half, 1, bf16)
MANY_PRODUCT(many_product_bf16, Half, 2, bf16)
MANY_PRODUCT(many_product_float, Half, 2, float)
MANY_PRODUCT(many_product_float, Half, 4, float)
MANY_PRODUCT(many_product_float, Half, 8, float)
