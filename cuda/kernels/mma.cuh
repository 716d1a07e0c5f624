// Instructions of compute capability 8.0: products of small matrices in tensor cores, and copies to shared memory that do not wait; and words
// that blocks exchange. The stand-in for a GPU has its own versions.
//
// A product adds A (16, k) · B (k, 8) to C (16, 8), with k = 16 for bfloat16 and 8 for float in tf32: 32 bytes. With g = lane / 4 and
// t = lane % 4, a lane has of C rows g and g + 8 in columns 2t and 2t + 1. Of A it has 4 bytes of rows g and g + 8 (x[0] and x[1]) at byte 4t,
// then of both (x[2] and x[3]) at byte 16 + 4t. Of B it has the same 4 bytes of column g.
#pragma once
#include "types.cuh"

#ifdef __CUDACC__
__device__ __forceinline__ uint32_t sharedAddress(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

// load4 reads four matrices of 8 rows of 16 bytes. Lane 8i + r has the address of row r of matrix i. A lane gets 4 bytes of row lane / 4 of
// each, or with TRANSPOSED the elements of 2 bytes of column lane / 4 in rows 2 (lane % 4) and the next.
template <bool TRANSPOSED> __device__ __forceinline__ void load4(uint32_t (&x)[4], const void *row) {
  if (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(sharedAddress(row)) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(sharedAddress(row)) : "memory");
}

__device__ __forceinline__ void product(float (&c)[4], const uint32_t (&x)[4], uint32_t y0, uint32_t y1, bf16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y0), "r"(y1));
}
__device__ __forceinline__ void product(float (&c)[4], const uint32_t (&x)[4], uint32_t y0, uint32_t y1, float) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y0), "r"(y1));
}

// pair returns two numbers in bfloat16, the first in the low bits. rounded returns a number in tf32.
__device__ __forceinline__ uint32_t pair(float low, float high) {
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
__device__ __forceinline__ uint32_t rounded(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

// copyLater copies BYTES bytes, 4, 8 or 16, to shared memory, or writes zeros. They are there after copied and a barrier.
template <int BYTES> __device__ __forceinline__ void copyLater(void *to, const void *from, bool there) {
  if (BYTES == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(sharedAddress(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(sharedAddress(to)), "l"(from), "r"(there ? BYTES : 0), "n"(BYTES) : "memory");
}
// commitCopies makes a group of the copies that were begun since the last call. groupsCopied waits for the groups, a little less than copied.
__device__ __forceinline__ void commitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void groupsCopied() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }
__device__ __forceinline__ void copied() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// copiedBut waits for all groups but the last N.
template <int N> __device__ __forceinline__ void copiedBut() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Box is two words of 64 bits, each a number and a tag, that blocks of one launch exchange. A word is written and read as a whole.
struct Box {
  float a;
  uint32_t tagA;
  float b;
  uint32_t tagB;
};
__device__ __forceinline__ Box readBox(const uint64_t *box) {
  Box v;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=f"(v.a), "=r"(v.tagA), "=f"(v.b), "=r"(v.tagB) : "l"(box) : "memory");
  return v;
}
__device__ __forceinline__ void writeBox(uint64_t *box, float v, uint32_t tag) {
  asm volatile("st.volatile.global.v2.u32 [%0], {%1, %2};" ::"l"(box), "f"(v), "r"(tag) : "memory");
}
// waitABit lets other threads run, where they do not by themselves.
__device__ __forceinline__ void waitABit() {}
#endif
