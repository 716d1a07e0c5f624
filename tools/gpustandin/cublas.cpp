// The functions of cuBLAS that package cuda calls.
#include <cstdint>
#include <cstring>

#include "driver.h"
#include "language.h"

namespace {
enum { success = 0, invalidValue = 7, notSupported = 15, typeFloat = 0, typeFP16 = 2, typeBF16 = 14, computeFloat = 68, computeTF32 = 77 };

struct Handle {
  Stream *stream = nullptr;
};

float fromBits(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
uint32_t toBits(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}

float load(const void *p, int type, int64_t i, bool tf32) {
  if (type == typeBF16) return fromBits((uint32_t)((const uint16_t *)p)[i] << 16);
  if (type == typeFP16) return fromHalf(((const uint16_t *)p)[i]);
  const float v = ((const float *)p)[i];
  return tf32 && v - v == 0 ? fromBits((toBits(v) + 0x1000) & ~0x1fffu) : v; // ten bits of fraction
}

void store(void *p, int type, int64_t i, float v) {
  if (type == typeFloat) {
    ((float *)p)[i] = v;
    return;
  }
  if (type == typeFP16) {
    ((uint16_t *)p)[i] = toHalf(v);
    return;
  }
  const uint32_t u = toBits(v);
  ((uint16_t *)p)[i] = v == v ? (u + 0x7fff + (u >> 16 & 1)) >> 16 : u >> 16 | 0x40;
}

// dot adds up in sixteen sums, which the compiler puts side by side.
float dot(const float *a, const float *b, int64_t k) {
  float sums[16] = {};
  int64_t p = 0;
  for (; p + 16 <= k; p += 16)
    for (int j = 0; j < 16; j++) sums[j] += a[p + j] * b[p + j];
  for (; p < k; p++) sums[p % 16] += a[p] * b[p];
  float sum = 0;
  for (float s : sums) sum += s;
  return sum;
}
}  // namespace

extern "C" {
int cublasCreate_v2(Handle **h) { return *h = make<Handle>("cuBLAS handle"), success; }
int cublasDestroy_v2(Handle *h) { return destroy("cuBLAS handle", h); }
int cublasSetStream_v2(Handle *h, Stream *s) { return h->stream = s, success; }
int cublasSetMathMode(Handle *, int) { return success; }
int cublasSetWorkspace_v2(Handle *, void *, size_t) { return success; }

// C (m, n) = alpha op(A) op(B) + beta C, by columns, for each of a batch of matrices stride elements apart.
int cublasGemmStridedBatchedEx(Handle *h, int transA, int transB, int m, int n, int k, const float *alphaAt, const void *A, int typeA, int lda,
                               int64_t strideA, const void *B, int typeB, int ldb, int64_t strideB, const float *betaAt, void *C, int typeC, int ldc,
                               int64_t strideC, int batch, int compute, int) {
  if (m < 0 || n < 0 || k < 0 || batch < 0 || lda < (transA ? k : m) || ldb < (transB ? n : k) || ldc < m) return invalidValue;
  const bool known = (typeA == typeFloat || typeA == typeFP16 || typeA == typeBF16) && typeB == typeA && (typeC == typeFloat || typeC == typeA) &&
                     (compute == computeFloat || (compute == computeTF32 && typeA == typeFloat));
  if (!known) return notSupported;
  const float alpha = *alphaAt, beta = *betaAt;
  return h->stream->queue([=] {
    const bool tf32 = compute == computeTF32;
    std::vector<float> a((size_t)m * k), b((size_t)n * k); // rows of k
    for (int64_t at = 0; at < batch; at++) {
      for (int64_t i = 0; i < m; i++)
        for (int64_t p = 0; p < k; p++) a[i * k + p] = load(A, typeA, at * strideA + (transA ? i * lda + p : p * lda + i), tf32);
      for (int64_t j = 0; j < n; j++)
        for (int64_t p = 0; p < k; p++) b[j * k + p] = load(B, typeB, at * strideB + (transB ? p * ldb + j : j * ldb + p), tf32);
      for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < m; i++) {
          const int64_t to = at * strideC + j * ldc + i;
          const float v = alpha * dot(&a[i * k], &b[j * k], k);
          store(C, typeC, to, beta == 0 ? v : v + beta * load(C, typeC, to, false));
        }
    }
    return success;
  });
}

int cublasGemmEx(Handle *h, int transA, int transB, int m, int n, int k, const float *alpha, const void *A, int typeA, int lda, const void *B,
                 int typeB, int ldb, const float *beta, void *C, int typeC, int ldc, int compute, int algo) {
  return cublasGemmStridedBatchedEx(h, transA, transB, m, n, k, alpha, A, typeA, lda, 0, B, typeB, ldb, 0, beta, C, typeC, ldc, 0, 1, compute, algo);
}
}
