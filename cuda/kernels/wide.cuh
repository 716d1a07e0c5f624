#pragma once
// Products of float32 in the tensor cores of compute capability 9.0. Each number is the sum of three numbers of bfloat16 (split.cuh), and the six largest of the nine products are
// added up: the others are below 2^-26 of the first. A group of warps (the reader) reads blocks of both operands, splits them and writes the parts to shared memory; two groups
// multiply. Tensor cores cut sums off, so they add up DEEP numbers of k, the smallest products first; float additions, which round, add these sums.
#include "split.cuh"
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

constexpr int DOWN = 128, DEEP = 32, BAND = 16;  // rows of a tile of c; numbers of k of a block; rows of tiles that are computed before the next ones, so that they read the same rows of b
constexpr int GROUP = 128, GROUPS = 2;           // threads of a group of warps; groups that multiply

// Work goes through the tiles of c of a block of threads, and through the blocks of k of each.
template <int N> struct Work {
  int tile, row, column, part, k, to;
  __device__ __forceinline__ void begin(const Product &p) { tile = blockIdx.x, place(p); }
  __device__ __forceinline__ bool more() const { return tile >= 0; }
  __device__ __forceinline__ void place(const Product &p) {
    const int rows = (p.m + DOWN - 1) / DOWN, columns = (p.n + N - 1) / N, all = rows * columns;
    if (tile >= all * p.parts) {
      tile = -1;
      return;
    }
    const int in = tile % all, first = in / (BAND * columns) * BAND, some = min(rows - first, BAND), left = in - first * columns;
    part = tile / all, row = (first + left % some) * DOWN, column = left / some * N;
    k = part * p.each, to = min(k + p.each, p.k);
  }
  // next goes to the next block of k, and from the last one of a tile to the next tile. It reports whether the tile is another one.
  __device__ __forceinline__ bool next(const Product &p) {
    k += DEEP;
    if (k < to) return false;
    tile += gridDim.x;
    place(p);
    return true;
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

// multiply computes c in tiles of DOWN rows and N columns. ALONG_A says that a lies in memory as (m, k) and not as (k, m), ALONG_B that b lies as (n, k) and not as (k, n).
template <int N, int STAGES, bool ALONG_A, bool ALONG_B> __device__ __forceinline__ void multiply(const Product &p) {
  constexpr int UNIT = GROUP * 32, UNITS = (DOWN + N) / 32, STAGE = 3 * (DOWN + N) * 64;  // bytes of a unit of all threads, units of both operands, bytes of their parts
  extern __shared__ __align__(1024) float shared[];
  char *const stages = (char *)shared, *const raw = stages + STAGES * STAGE;
  Barrier *const full = (Barrier *)(raw + UNITS * UNIT), *const empty = full + STAGES;
  if (threadIdx.x == 0)
    for (int i = 0; i < STAGES; i++) full[i].prepare(GROUP / 32), empty[i].prepare(GROUPS * GROUP / 32);
  __syncthreads();
  Work<N> w;
  w.begin(p);
  int stage = 0, odd = 0;
  auto turn = [&] {
    if (++stage == STAGES) stage = 0, odd ^= 1;
  };
  if (threadIdx.x >= GROUPS * GROUP) {
    fewerRegisters<72>();
    const int thread = threadIdx.x - GROUPS * GROUP;
    Reader<DOWN, ALONG_A> a(p.aStep, thread);
    Reader<N, ALONG_B> b(p.bStep, thread);
    auto place = [&] {
      if (w.more()) a.place(p.a, w.row, p.m, w.k), b.place(p.b, w.column, p.n, w.k);
    };
    auto fetch = [&](int u) {
      if (w.more()) {
        if (u < a.units) a.fetch(raw + u * UNIT, u, w.to - w.k);
        else b.fetch(raw + u * UNIT, u - a.units, w.to - w.k);
      }
      commitCopies();
    };
    place();
    bool more = w.more();
#pragma unroll
    for (int u = 0; u < UNITS; u++) fetch(u);
    while (more) {
      if (w.next(p)) place();
      else a.next(), b.next();
      more = w.more();
      empty[stage].await(odd ^ 1);
      char *const tiles = stages + stage * STAGE;
#pragma unroll
      for (int u = 0; u < UNITS; u += 2) {  // two units at once, so that one is computed while the other waits
        constexpr int ODD = UNITS % 2;
        if (ODD && u == UNITS - 1) copiedBut<UNITS - 1>();
        else copiedBut<UNITS - 2>();
        __syncwarp();
        float v[2][8];
#pragma unroll
        for (int i = u; i < min(u + 2, UNITS); i++) {
          if (i < a.units) a.read(raw + i * UNIT, v[i - u]);
          else b.read(raw + i * UNIT, v[i - u]);
        }
#pragma unroll
        for (int i = u; i < min(u + 2, UNITS); i++) {
          if (i < a.units) a.divide(v[i - u], i, tiles);
          else b.divide(v[i - u], i - a.units, tiles + 3 * DOWN * 64);
        }
        __syncwarp();
#pragma unroll
        for (int i = u; i < min(u + 2, UNITS); i++) fetch(i);
      }
      publish();
      __syncwarp();
      if (thread % 32 == 0) full[stage].arrive();
      turn();
    }
    return;
  }
  moreRegisters<216>();
  const int group = threadIdx.x / GROUP, warp = threadIdx.x % GROUP / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  while (w.more()) {
    const int row = w.row + group * 64 + warp * 16 + g, column = w.column + 2 * t, from = w.k, to = w.to;
    float *c = p.c + w.part * p.apart;
    float sum[N / 2] = {};
    for (bool last = false; !last;) {
      full[stage].await(odd);
      const SharedTile a = tileAt(stages + stage * STAGE + group * 64 * 64), b = tileAt(stages + stage * STAGE + 3 * DOWN * 64);
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
      if (threadIdx.x % 32 == 0) empty[stage].arrive();
      turn();
      last = w.next(p);
#pragma unroll
      for (int i = 0; i < N / 2; i++) sum[i] += d[i];
    }
    auto rowOf = [&](int i) { return row + i / 2 % 2 * 8; };
    auto columnOf = [&](int i) { return column + i / 4 * 8 + i % 2; };
    bool right = true;
#pragma unroll
    for (int i = 0; i < N / 2; i++) right = right && finite(sum[i]);
    if (!right) {
      float again[N / 2];
#pragma unroll
      for (int i = 0; i < N / 2; i++) again[i] = sum[i];
#pragma unroll 1
      for (int i = 0; i < N / 2; i++)
        if (!finite(again[i]) && rowOf(i) < p.m && columnOf(i) < p.n) again[i] = exactly<ALONG_A, ALONG_B>(p, rowOf(i), columnOf(i), from, to);
#pragma unroll
      for (int i = 0; i < N / 2; i++) sum[i] = again[i];
    }
    const bool pairs = p.cStep % 2 == 0 && p.apart % 2 == 0 && (uintptr_t)p.c % 8 == 0;
#pragma unroll
    for (int i = 0; i < N / 2; i += 2) {
      if (rowOf(i) >= p.m || columnOf(i) >= p.n) continue;
      float *to = c + rowOf(i) * p.cStep + columnOf(i);
      if (pairs && columnOf(i) + 1 < p.n) {
        float2 v = make_float2(sum[i], sum[i + 1]);
        if (p.beta != 0.f) {
          const float2 old = *(const float2 *)to;
          v.x = fmaf(p.beta, old.x, v.x), v.y = fmaf(p.beta, old.y, v.y);
        }
        *(float2 *)to = v;
      } else {
#pragma unroll
        for (int j = 0; j < 2; j++)
          if (columnOf(i + j) < p.n) to[j] = p.beta != 0.f ? fmaf(p.beta, to[j], sum[i + j]) : sum[i + j];
      }
    }
  }
}

#define PRODUCT(NAME, N, STAGES, ALONG_A, ALONG_B) \
  extern "C" __global__ __launch_bounds__(GROUP *(GROUPS + 1), 1) void product_##N##_##NAME(Product p) { multiply<N, STAGES, ALONG_A, ALONG_B>(p); }
#define WIDE(N, STAGES)                         \
  PRODUCT(along_along, N, STAGES, true, true)   \
  PRODUCT(along_across, N, STAGES, true, false) \
  PRODUCT(across_across, N, STAGES, false, false)
