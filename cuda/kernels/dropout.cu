// Dropout and drop-path. internal/kernel/dropout.go defines them; the draws are the same.
#include "types.cuh"

struct Words {
  uint32_t word[4];
};

// philox is Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3").
__device__ __forceinline__ Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
#pragma unroll
  for (int i = 0; i < 10; i++) {
    const uint64_t a = (uint64_t)0xd2511f53u * c0, b = (uint64_t)0xcd9e8d57u * c2;
    c0 = (uint32_t)(b >> 32) ^ c1 ^ k0, c1 = (uint32_t)b;
    c2 = (uint32_t)(a >> 32) ^ c3 ^ k1, c3 = (uint32_t)a;
    k0 += 0x9e3779b9u, k1 += 0xbb67ae85u;
  }
  return {{c0, c1, c2, c3}};
}

// dropout writes y from x. A thread processes four elements. each elements share a draw. A negative step drops nothing.
extern "C" __global__ void dropout(const float *x, float *y, const int32_t *step, int64_t n, int64_t each, int64_t seed, int32_t layer, int32_t least,
                                   float scale) {
  const int64_t from = 4 * ((int64_t)blockIdx.x * blockDim.x + threadIdx.x), to = min(from + 4, n);
  const int32_t now = *step;
  int64_t block = -1;
  Words draw;
  for (int64_t i = from; i < to; i++) {
    if (now < 0 || least == 0) {
      y[i] = x[i];
      continue;
    }
    const int64_t at = each == 1 ? i : i / each;
    if (at / 4 != block) block = at / 4, draw = philox((uint32_t)block, (uint32_t)(block >> 32), layer, now, (uint32_t)seed, (uint32_t)(seed >> 32));
    y[i] = draw.word[at % 4] < (uint32_t)least ? 0.f : x[i] * scale;
  }
}
