// Instructions of compute capability 9.0 alone: products of large matrices in tensor cores, by a group of four warps, and barriers in shared memory. nvcc 11.8
// does not know them, but it passes them on; generate.sh then names the right target. The stand-in for a GPU has its own versions.
//
// A product adds A (64, 16) · Bᵀ to C (64, N), for B (N, 16), in bfloat16 with sums in float, which are cut off. With g = lane / 4 and t = lane % 4, a lane of warp w of its
// group has of C, in c[4j] to c[4j + 3], rows 16w + g and 16w + g + 8 in columns 8j + 2t and 8j + 2t + 1: both columns of the first row, then those of the second.
//
// A and B are in shared memory as tiles: rows of 64 bytes, 32 numbers, whose pieces of 16 bytes are in another order in each pair of rows (pieceOf), so that neither writing nor
// reading a column of pieces has conflicts of banks. A tile begins at a multiple of 512 bytes.
#pragma once
#include "types.cuh"

// pieceOf returns the byte in a tile at which numbers 8·piece to 8·piece + 7 of a row begin.
__device__ __forceinline__ int pieceOf(int row, int piece) { return row * 64 + ((piece ^ (row >> 1 & 3)) << 4); }

#ifdef __CUDACC__
// SharedTile is a part of a tile that an instruction reads: from a row that is a multiple of eight on, and from number 0 or 16 of its rows on.
typedef uint64_t SharedTile;
__device__ __forceinline__ SharedTile tileAt(const void *p) {
  const uint64_t address = (uint32_t)__cvta_generic_to_shared(p);
  return (address & 0x3ffff) >> 4 | (uint64_t)1 << 16 | (uint64_t)(512 >> 4) << 32 | (uint64_t)2 << 62; // eight rows take 512 bytes; pieces are exchanged in 64 bytes
}
// farther returns the tile that begins so many bytes after t.
__device__ __forceinline__ SharedTile farther(SharedTile t, int bytes) { return t + (bytes >> 4); }

// beginProducts comes before the first product, and after other code has used c. commitProducts closes a group of products; awaitProducts waits for all groups but the last N,
// and c must not be used before.
__device__ __forceinline__ void beginProducts() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commitProducts() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ __forceinline__ void awaitProducts() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

#define EIGHT(M, i) M(c[i]), M(c[i + 1]), M(c[i + 2]), M(c[i + 3]), M(c[i + 4]), M(c[i + 5]), M(c[i + 6]), M(c[i + 7])
#define FRESH(x) "=f"(x)
#define ADDED(x) "+f"(x)
#define LIST32(M) EIGHT(M, 0), EIGHT(M, 8), EIGHT(M, 16), EIGHT(M, 24)
#define LIST48(M) LIST32(M), EIGHT(M, 32), EIGHT(M, 40)
#define LIST64(M) LIST48(M), EIGHT(M, 48), EIGHT(M, 56)
#define LIST96(M) LIST64(M), EIGHT(M, 64), EIGHT(M, 72), EIGHT(M, 80), EIGHT(M, 88)
#define NAMES32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES48 NAMES32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES64 NAMES48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES96 NAMES64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA(N, COUNT, A, B, ADD)                                                                                                                                 \
  asm volatile("{.reg .pred p; setp.ne.b32 p, " #ADD ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" NAMES##COUNT "}, %" #A ", %" #B ", p, 1, 1, 0, 0;}" \
               : LIST##COUNT(KIND##ADD) : "l"(a), "l"(b) : "memory")
#define KIND0 FRESH
#define KIND1 ADDED

// product adds A · Bᵀ to c, or with ADD false writes it to c.
template <bool ADD, int COUNT> __device__ __forceinline__ void product(float (&c)[COUNT], SharedTile a, SharedTile b) {
  static_assert(COUNT == 32 || COUNT == 48 || COUNT == 64 || COUNT == 96, "64, 96, 128 or 192 columns");
  if constexpr (COUNT == 32) {
    if constexpr (ADD) WGMMA(64, 32, 32, 33, 1);
    else WGMMA(64, 32, 32, 33, 0);
  } else if constexpr (COUNT == 48) {
    if constexpr (ADD) WGMMA(96, 48, 48, 49, 1);
    else WGMMA(96, 48, 48, 49, 0);
  } else if constexpr (COUNT == 64) {
    if constexpr (ADD) WGMMA(128, 64, 64, 65, 1);
    else WGMMA(128, 64, 64, 65, 0);
  } else {
    if constexpr (ADD) WGMMA(192, 96, 96, 97, 1);
    else WGMMA(192, 96, 96, 97, 0);
  }
}

// publish shows the products what this thread has written to shared memory.
__device__ __forceinline__ void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Barrier is a barrier in shared memory that count arrivals complete, again and again. prepare is called by one thread; then all meet. await waits until the barrier was completed
// an odd number of times if odd is 0, and an even number, counting from 2, if it is 1: so a first await of 1 returns at once.
struct Barrier {
  uint64_t state;
  __device__ __forceinline__ void prepare(int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"((uint32_t)__cvta_generic_to_shared(&state)), "r"(count) : "memory");
  }
  __device__ __forceinline__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"((uint32_t)__cvta_generic_to_shared(&state)) : "memory");
  }
  __device__ __forceinline__ void await(int odd) {
    asm volatile("{.reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @p bra there; bra again; there:}" ::"r"((uint32_t)__cvta_generic_to_shared(&state)), "r"(odd) : "memory");
  }
};

// copyLater of mma.cuh without its condition. copySome copies the first bytes of 16, and writes zeros for the others.
template <int BYTES> __device__ __forceinline__ void copyLater(void *to, const void *from) {
  if (BYTES == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from), "n"(BYTES) : "memory");
}
__device__ __forceinline__ void copySome(void *to, const void *from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from), "r"(bytes) : "memory");
}

// forget hides x from the compiler: what is computed from it is computed again, instead of staying in registers.
__device__ __forceinline__ void forget(int &x) { asm volatile("" : "+r"(x)); }

// fewerRegisters and moreRegisters give each thread of the group N registers. What all groups have together must fit.
template <int N> __device__ __forceinline__ void fewerRegisters() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> __device__ __forceinline__ void moreRegisters() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
// Cores is a matrix B (64, 16) for A in registers: cores of 8 by 8 numbers, each 128 bytes without gaps. A core has numbers of k as neighbours, or with ACROSS columns. along and
// across are the bytes from a core to the next one along k and across the columns.
typedef uint64_t Cores;
template <bool ACROSS> __device__ __forceinline__ Cores coresAt(const void *p, int along, int across) {
  return ((uint32_t)__cvta_generic_to_shared(p) & 0x3ffff) >> 4 | (uint64_t)(along >> 4) << 16 | (uint64_t)(across >> 4) << 32;
}

// product adds A · Bᵀ to c, or writes it to c if add is false. A lane has of A what an instruction for 16 rows takes (mma.cuh), of the 16 rows of its warp.
template <bool ACROSS> __device__ __forceinline__ void product(float (&c)[32], const uint32_t (&a)[4], Cores b, bool add) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;}"
               : LIST32(ADDED) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add), "n"((int)ACROSS) : "memory");
}

// untouched keeps the compiler from moving its use of c past this place, and unchanged keeps x in its registers until here.
template <int N> __device__ __forceinline__ void untouched(float (&c)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(c[i])::"memory");
}
__device__ __forceinline__ void unchanged(const uint32_t (&x)[3][4]) {
#pragma unroll
  for (int i = 0; i < 12; i++) asm volatile("" ::"r"(x[i / 4][i % 4]) : "memory");
}

// fetchLater brings a number into the second-level cache.
__device__ __forceinline__ void fetchLater(const float *p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
#endif
