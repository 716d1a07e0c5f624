#pragma once
// Products of float32 in the tensor cores of compute capability 9.0. Each number is the sum of three numbers of bfloat16 (split.cuh), and the six largest of the nine products are
// added up: the others are below 2^-26 of the first. A group of warps (the reader) reads blocks of both operands, splits them and writes the parts to shared memory; two groups
// multiply. Tensor cores cut sums off, so they add up DEEP numbers of k, the smallest products first; float additions, which round, add these sums.
#include "split.cuh"
#include "vector.cuh"
#include "wgmma.cuh"

// Product is c (m, n) = a (m, k) · b (k, n) + beta·c. Rows are step elements apart. k is divided into parts of each numbers, a multiple of DEEP. With more than one part, part p
// is written to c + p·apart, and beta is 0.
struct Product {
  const float *a, *b;
  float *c;
  int64_t aStep, bStep, cStep, apart;
  int m, n, k, each, parts;
  float beta;
};

constexpr int DOWN = 128, DEEP = 32;  // rows of a tile of c; numbers of k of a block
constexpr int LONG = 4096;            // most numbers of k that are added up in registers: c is the sum of such sums, since the error of a sum grows with its terms
constexpr int BAND = 16;              // rows of tiles that are computed before the next ones, so that they read the same rows of b
constexpr int GROUP = 128;            // threads of a group of warps

// Place is a tile of c of a part of k.
template <int N> struct Place {
  int row, column, part, from, to;  // from, to: of k
  __device__ __forceinline__ Place(const Product &p, int tile) {
    const int rows = (p.m + DOWN - 1) / DOWN, columns = (p.n + N - 1) / N, all = rows * columns, in = tile % all;
    const int first = in / (BAND * columns) * BAND, some = min(rows - first, BAND), left = in - first * columns;
    part = tile / all, row = (first + left % some) * DOWN, column = left / some * N, from = part * p.each, to = min(from + p.each, p.k);
  }
};
template <int N> __device__ __forceinline__ int tilesOf(const Product &p) { return (p.m + DOWN - 1) / DOWN * ((p.n + N - 1) / N) * p.parts; }

// Ring is where a group is in the stages: the tiles of one block of k each.
template <int STAGES> struct Ring {
  int stage = 0, odd = 0;
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) stage = 0, odd ^= 1;
  }
};

// Reader reads an operand in units: eight numbers of k of a row, those from 4·piece and from 16 + 4·piece on, which become a piece of a row of a tile. Their order does not matter,
// if it is the same in both operands. Unit u of a thread is of row 32u + row. Rows beyond the last one are other rows again. ALONG says that the numbers of a row are neighbours in
// memory, and not those of a k. What neighbours begins at multiples of 16 bytes, and is a multiple of four numbers or, of a row, followed by others.
template <int ROWS, bool ALONG> struct Reader {
  static constexpr int units = ROWS / 32;
  const float *at;  // what the thread copies of unit 0 of the block: without ALONG, four numbers of line / 8 of the warp's piece
  int64_t step;
  int thread, row, piece, last;  // last: rows from at to the last ones that can be read
  __device__ __forceinline__ Reader(int64_t step, int thread) : step(step), thread(thread), row(ALONG ? thread / 4 : thread % 32), piece(ALONG ? thread % 4 : thread / 32) {}
  // place begins a tile.
  __device__ __forceinline__ void place(const float *x, int first, int rows, int k) {
    const int from = first + (ALONG ? row : row % 8 * 4);
    last = rows - from - (ALONG ? 1 : 4);
    at = x + (ALONG ? from * step + k + 4 * piece : (k + 4 * piece + row / 8) * step + from);
  }
  __device__ __forceinline__ void next() { at += ALONG ? DEEP : DEEP * step; }
  // fetch begins to copy a unit to raw, memory of all units u. left is how many numbers of k there are.
  __device__ __forceinline__ void fetch(char *raw, int u, int left) const {
    const int rows = min(32 * u, last);
    const float *from = at + (ALONG ? rows * step : rows);
    if (left < DEEP) left -= 4 * piece + (ALONG ? 0 : row / 8);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      char *const to = raw + (ALONG ? h * GROUP + thread : thread / 32 * 64 + h * 32 + thread % 32) * 16;
      const float *const x = from + (ALONG ? 16 : 16 * step) * h;
      if (left >= DEEP) copyLater<16>(to, x);
      else if (ALONG) copySome(to, x, min(max(left - 16 * h, 0), 4) * 4);
      else copySome(to, x, left > 16 * h ? 16 : 0);
    }
  }
  // read returns the numbers of a unit; the threads of the warp have copied them. divide writes their parts to tiles.
  __device__ __forceinline__ void read(const char *raw, float (&v)[8]) const {
    if (ALONG) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float4 w = *(const float4 *)(raw + (h * GROUP + thread) * 16);
        v[4 * h] = w.x, v[4 * h + 1] = w.y, v[4 * h + 2] = w.z, v[4 * h + 3] = w.w;
      }
    } else {
#pragma unroll
      for (int j = 0; j < 8; j++) v[j] = *(const float *)(raw + thread / 32 * 1024 + j * 128 + thread % 32 * 4);
    }
  }
  __device__ __forceinline__ void divide(const float (&v)[8], int u, char *tiles) const {
    uint32_t x[4][3];
#pragma unroll
    for (int i = 0; i < 4; i++) split(v[2 * i], v[2 * i + 1], x[i]);
#pragma unroll
    for (int i = 0; i < 3; i++) *(uint4 *)(tiles + (i * ROWS + 32 * u) * 64 + pieceOf(row, piece)) = make_uint4(x[0][i], x[1][i], x[2][i], x[3][i]);
  }
};

// exactly computes an element of c in float32, for sums that are not finite.
template <bool ALONG_A, bool ALONG_B> __device__ __forceinline__ float exactly(const Product &p, int64_t row, int64_t column, int k, int to) {
  float sum = 0.f;
  for (; k < to && sum == sum; k++) sum = fmaf(p.a[ALONG_A ? row * p.aStep + k : k * p.aStep + row], p.b[ALONG_B ? column * p.bStep + k : k * p.bStep + column], sum);
  return sum;
}

// finish writes the sums of a thread: those of rows row and row + 8 in columns column and column + 1, then eight columns farther, and so on.
template <int N, bool ALONG_A, bool ALONG_B>
__device__ __forceinline__ void finish(const Product &p, float (&sum)[N / 2], int row, int column, int from, int to, float beta, float *c) {
  bool right = true;
#pragma unroll
  for (int i = 0; i < N / 2; i++) right = right && finite(sum[i]);
  if (!right) {
    float again[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) again[i] = sum[i];
#pragma unroll 1
    for (int i = 0; i < N / 2; i++) {
      const int r = row + i / 2 % 2 * 8, q = column + i / 4 * 8 + i % 2;
      if (!finite(again[i]) && r < p.m && q < p.n) again[i] = exactly<ALONG_A, ALONG_B>(p, r, q, from, to);
    }
#pragma unroll
    for (int i = 0; i < N / 2; i++) sum[i] = again[i];
  }
  const bool pairs = p.cStep % 2 == 0 && p.apart % 2 == 0 && (uintptr_t)p.c % 8 == 0;
  constexpr int SOME = 16;  // numbers of c that are read together, since each reading waits for memory
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int left = row + 8 * h < p.m ? p.n - column : 0;  // columns from column on
    float *const at = c + (row + 8 * h) * p.cStep + column;
#pragma unroll
    for (int first = 0; first < N / 8; first += SOME / 2) {
      float old[SOME];
      if (beta != 0.f)
#pragma unroll
        for (int i = 0; i < SOME / 2; i++) {
          const int j = (first + i) * 8;
          old[2 * i] = old[2 * i + 1] = 0.f;
          if (first + i >= N / 8) break;
          if (pairs && j + 1 < left) load<2>(at + j, *(float(*)[2])(old + 2 * i));
          else if (j < left) {
            old[2 * i] = at[j];
            if (j + 1 < left) old[2 * i + 1] = at[j + 1];
          }
        }
#pragma unroll
      for (int i = 0; i < SOME / 2; i++) {
        const int j = (first + i) * 8;
        if (first + i >= N / 8) break;
        float v[2] = {sum[(first + i) * 4 + 2 * h], sum[(first + i) * 4 + 2 * h + 1]};
        if (beta != 0.f) v[0] = fmaf(beta, old[2 * i], v[0]), v[1] = fmaf(beta, old[2 * i + 1], v[1]);
        if (pairs && j + 1 < left) store<2>(at + j, v);
        else if (j < left) {
          at[j] = v[0];
          if (j + 1 < left) at[j + 1] = v[1];
        }
      }
    }
  }
}

// Memory is the shared memory of a block of threads.
template <int N, int STAGES> struct Memory {
  static constexpr int A = DOWN / 32, UNITS = A + N / 32;  // units of a, and of a and b
  char stages[STAGES][3 * (DOWN + N) * 64];                // parts of a, then of b
  char raw[UNITS][GROUP * 32];
  Barrier full[STAGES], empty[STAGES];
};

// readBlocks is the reader.
template <int N, int STAGES, bool ALONG_A, bool ALONG_B> __device__ __forceinline__ void readBlocks(const Product &p, Memory<N, STAGES> &memory, int thread) {
  constexpr int A = Memory<N, STAGES>::A, UNITS = Memory<N, STAGES>::UNITS;
  Reader<DOWN, ALONG_A> a(p.aStep, thread);
  Reader<N, ALONG_B> b(p.bStep, thread);
  const int tiles = tilesOf<N>(p);
  int tile = (int)blockIdx.x - (int)gridDim.x, k = 0, to = 0;
  auto next = [&] {  // to the next block that is copied
    k += DEEP, a.next(), b.next();
    if (k < to) return;
    tile += gridDim.x;
    if (tile >= tiles) return;
    const Place<N> place(p, tile);
    k = place.from, to = place.to;
    a.place(p.a, place.row, p.m, k), b.place(p.b, place.column, p.n, k);
  };
  auto fetch = [&](int u) {
    if (tile < tiles) {
      if (u < A) a.fetch(memory.raw[u], u, to - k);
      else b.fetch(memory.raw[u], u - A, to - k);
    }
    commitCopies();
  };
  next();
#pragma unroll
  for (int u = 0; u < UNITS; u++) fetch(u);
  Ring<STAGES> ring;
  while (tile < tiles) {
    next();
    memory.empty[ring.stage].await(ring.odd ^ 1);
    char *const parts = memory.stages[ring.stage];
#pragma unroll
    for (int u = 0; u < UNITS; u += 2) {  // two units at once, so that one is computed while the other waits
      if (u + 2 > UNITS) copiedBut<UNITS - 1>();
      else copiedBut<UNITS - 2>();
      __syncwarp();
      float v[2][8];
#pragma unroll
      for (int i = u; i < min(u + 2, UNITS); i++) {
        if (i < A) a.read(memory.raw[i], v[i - u]);
        else b.read(memory.raw[i], v[i - u]);
      }
#pragma unroll
      for (int i = u; i < min(u + 2, UNITS); i++) {
        if (i < A) a.divide(v[i - u], i, parts);
        else b.divide(v[i - u], i - A, parts + 3 * DOWN * 64);
      }
      __syncwarp();
#pragma unroll
      for (int i = u; i < min(u + 2, UNITS); i++) fetch(i);
    }
    publish();
    __syncwarp();
    if (thread % 32 == 0) memory.full[ring.stage].arrive();
    ring.next();
  }
}

// multiply computes c in tiles of DOWN rows and N columns. ALONG_A says that a lies in memory as (m, k) and not as (k, m), ALONG_B that b lies as (n, k) and not as (k, n).
template <int N, int STAGES, bool ALONG_A, bool ALONG_B> __device__ __forceinline__ void multiply(const Product &p) {
  extern __shared__ __align__(1024) float shared[];
  Memory<N, STAGES> &memory = *(Memory<N, STAGES> *)shared;
  if (threadIdx.x == 0)
    for (int i = 0; i < STAGES; i++) memory.full[i].prepare(GROUP / 32), memory.empty[i].prepare(2 * GROUP / 32);
  __syncthreads();
  const int group = threadIdx.x / GROUP, thread = threadIdx.x % GROUP;
  if (group == 2) {
    fewerRegisters<72>();
    readBlocks<N, STAGES, ALONG_A, ALONG_B>(p, memory, thread);
    return;
  }
  moreRegisters<216>();
  Ring<STAGES> ring;
  for (int tile = blockIdx.x; tile < tilesOf<N>(p); tile += gridDim.x) {
    int to;
    for (int k = (to = Place<N>(p, tile).to, Place<N>(p, tile).from); k < to; k += LONG) {
      float sum[N / 2] = {};
      for (int blocks = (min(to - k, LONG) + DEEP - 1) / DEEP; blocks > 0; blocks--) {
        memory.full[ring.stage].await(ring.odd);
        const SharedTile a = tileAt(memory.stages[ring.stage] + group * 64 * 64), b = tileAt(memory.stages[ring.stage] + 3 * DOWN * 64);
        float d[N / 2];
        beginProducts();
#pragma unroll
        for (int i = 0; i < 12; i++) {  // parts of a and b (2, 0), (0, 2), (1, 1), (1, 0), (0, 1), (0, 0), each for both halves of the block
          const int q = i / 2, x = q == 0 ? 2 : q == 2 || q == 3 ? 1 : 0, y = q == 1 ? 2 : q == 2 || q == 4 ? 1 : 0;
          const SharedTile ta = farther(a, x * DOWN * 64 + i % 2 * 32), tb = farther(b, y * N * 64 + i % 2 * 32);
          if (i == 0) product<false>(d, ta, tb);
          else product<true>(d, ta, tb);
        }
        commitProducts();
        awaitProducts<0>();
        if (thread % 32 == 0) memory.empty[ring.stage].arrive();
        ring.next();
#pragma unroll
        for (int i = 0; i < N / 2; i++) sum[i] += d[i];
      }
      int again = tile;
      forget(again);
      const Place<N> place(p, again);
      finish<N, ALONG_A, ALONG_B>(p, sum, place.row + group * 64 + thread / 32 * 16 + thread % 32 / 4, place.column + thread % 4 * 2, k, min(k + LONG, place.to), k == place.from ? p.beta : 1.f,
                                  p.c + place.part * p.apart);
    }
  }
}

#define PRODUCT(NAME, N, STAGES, ALONG_A, ALONG_B) \
  extern "C" __global__ __launch_bounds__(3 * GROUP, 1) void product_##N##_##NAME(Product p) { multiply<N, STAGES, ALONG_A, ALONG_B>(p); }
#define WIDE(N, STAGES)                         \
  PRODUCT(along_along, N, STAGES, true, true)   \
  PRODUCT(along_across, N, STAGES, true, false) \
  PRODUCT(across_across, N, STAGES, false, false)
