// The products of splitmma.cu, and sums over many rows, by the instructions of compute capability 9.0 alone. A group of four warps has 64 rows of A in registers, and the matrix B in
// three parts of bfloat16 is in shared memory.
#include "split.cuh"
#include "vector.cuh"
#include "wgmma.cuh"

constexpr int GROUP = 128;  // threads of a group of warps

// partOf returns which parts of A and B product p multiplies; the last product is the smallest.
__device__ __forceinline__ constexpr int partOfA(int p) { return p == 5 ? 2 : p == 1 || p == 3 ? 1 : 0; }
__device__ __forceinline__ constexpr int partOfB(int p) { return p == 4 ? 2 : p == 2 || p == 3 ? 1 : 0; }

// Kind is PLAIN, or BEFORE to replace a by RMSNorm of its rows, or AFTER to replace c by the gradient of the rows x of an RMSNorm, of whose result a · b is the gradient, and to
// write the gradient of the weight to parts (gridDim.x, n), or STEP to compute from the first four columns of c the step sizes (m, k), c · weightᵀ for weight (k, 4),
// too. BEFORE, AFTER and STEP have one block of columns or of k. Sums over rows are in double, as in norm.cu.
enum Kind { PLAIN, BEFORE, AFTER, STEP };

struct Norm {
  const float *weight;
  float eps;
  float *scales;  // (m): what BEFORE multiplies the rows by, if it is not null
  const float *x;
  float *parts;
};
struct Steps {
  const float *weight;
  float *to;
};

// quad adds over the four lanes that have a row.
__device__ __forceinline__ double quad(double v) {
  v += __shfl_xor_sync(~0u, v, 1);
  return v + __shfl_xor_sync(~0u, v, 2);
}

// inverseRoot returns 1 / sqrt(v), to the last bits of a double, in a fifth of the time. norm.cu has sqrt and a division.
__device__ __forceinline__ double inverseRoot(double v) {
  if (!(v > 1e-30 && v < 1e30)) return 1 / sqrt(v);
  double y = rsqrtf((float)v);
#pragma unroll
  for (int i = 0; i < 2; i++) y *= 1.5 - 0.5 * v * y * y;
  return y;
}

constexpr int SOME = 64, MATRIX = SOME * 16 * 2;  // numbers of k, and columns, that are computed together; bytes of a part of 16 numbers of k
constexpr int STAGE = 64 * SOME * 4;               // bytes that a group of warps copies ahead: 64 rows of 64 numbers. A thread reads only what it has copied itself

// put writes the parts of b (k, n) to shared memory, as the instructions' operands: (block of columns, step of 16 numbers of k, part) of MATRIX bytes.
template <bool ALONG> __device__ __forceinline__ void put(char *bs, const float *b, int64_t bStep, int n, int k, int columns, int steps) {
#pragma unroll 8
  for (int i = threadIdx.x; i < columns * steps * 8 * 32; i += blockDim.x) {
    const int lane = i % 32, g = lane / 4, t = lane % 4, j = i / 32 % 8, step = i / 256 % steps, first = i / 256 / steps;
    const int column = first * SOME + j / 2 * 16 + g / 2 * 4 + j % 2 * 2 + g % 2, from = step * 16 + t * 4;
    float v[4] = {};
    if (column < n && from < k) {
      if (ALONG) {
        load<4>(b + column * bStep + from, v);
      } else {
#pragma unroll
        for (int q = 0; q < 4; q++) v[q] = b[(from + q) * bStep + column];
      }
    }
    uint32_t low[3], high[3];
    split(v[0], v[1], low), split(v[2], v[3], high);
#pragma unroll
    for (int p = 0; p < 3; p++) {
      uint32_t *to = (uint32_t *)(bs + ((first * steps + step) * 3 + p) * MATRIX + j * 256 + g * 16 + t * 4);
      to[0] = low[p], to[32] = high[p];
    }
  }
}

// sumOf returns element i of 32 that a lane has of 64 rows and 64 columns, for row h and column 16j + 4t + q.
__device__ __forceinline__ constexpr int sumOf(int h, int j, int q) { return (2 * j + q / 2) * 4 + h * 2 + q % 2; }

// rows computes c (m, n) = a (m, k) · b (k, n) + beta·added. With ALONG, b lies in memory as (n, k). With DEEP n is at most 64, else k is. A lane's four numbers of k, and of n,
// are neighbours in memory: the instructions' order does not matter for k, and for n it is undone when c is written. All sizes and strides are multiples of four. SUMS: sums of 64
// numbers of k that begin with zero; tensor cores cut sums off, and additions round. stages: blocks of a that are copied ahead, one or two. before: b is read before the
// kernel before has ended, which does not write it.
template <bool DEEP, bool ALONG, Kind KIND, int SUMS>
__device__ __forceinline__ void rows(const float *a, int64_t aStep, const float *b, int64_t bStep, float *c, int64_t cStep, const float *added, int64_t addedStep, float beta,
                                     int64_t m, int n, int k, Norm norm, Steps steps, int stages, bool before) {
  extern __shared__ __align__(16) float shared[];
  char *const bs = (char *)shared;
  const int blocks = DEEP ? (k + SOME - 1) / SOME : 1, columns = DEEP ? 1 : (n + SOME - 1) / SOME, more = KIND == STEP ? (k + 2 * SOME - 1) / (2 * SOME) * 2 : 0;
  const int held = KIND != AFTER && beta != 0.f ? columns : 0;  // blocks of what is added
  char *const ws = bs + columns * blocks * 4 * 3 * MATRIX, *const mine = ws + more * 3 * MATRIX + threadIdx.x / GROUP * (stages + held) * STAGE + threadIdx.x % GROUP * 16;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32 % 4, groups = blockDim.x / GROUP;
  const int64_t tiles = (m + 63) / 64, stride = (int64_t)gridDim.x * groups, begin = blockIdx.x + threadIdx.x / GROUP * (int64_t)gridDim.x;
  const double part = 1. / (KIND == AFTER ? n : k);
  float dw[4][4] = {};
  // mine is (stage, 4 steps, 2 rows) and then (block of columns, 4, 2 rows) of what is added, of 16 bytes in each thread.
  auto ahead = [&](int64_t tile, int block, int stage) {
    if (tile < tiles) {
      const int64_t r = tile * 64 + warp * 16 + g;
      const int left = k - block * SOME - t * 4;
      const float *const from = a + r * aStep + block * SOME + t * 4;
      const bool there[2] = {r < m, r + 8 < m};
#pragma unroll
      for (int h = 0; h < 2; h++)
#pragma unroll
        for (int s = 0; s < 4; s++) copyLater<16>(mine + stage * STAGE + (s * 2 + h) * GROUP * 16, from + h * 8 * aStep + s * 16, there[h] && s * 16 < left);
    }
    commitCopies();
  };
  // aheadOf copies what is added to the tile. Before the gradient of a norm, it brings that and the norm's x nearer.
  auto aheadOf = [&](int64_t tile, int block) {
    if (block == 0 && (KIND == AFTER || beta != 0.f)) {
      const int64_t r = tile * 64 + warp * 16 + g;
      const float *const from = added + r * addedStep + t * 4;
      const bool there[2] = {r < m, r + 8 < m};
      for (int first = 0; first < columns; first++) {
        const int left = n - first * SOME - t * 4;
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
          for (int j = 0; j < 4; j++)
            if (KIND != AFTER)
              copyLater<16>(mine + (stages + first) * STAGE + (j * 2 + h) * GROUP * 16, from + h * 8 * addedStep + first * SOME + j * 16, there[h] && j * 16 < left);
            else if (there[h] && j * 16 < left)
              fetchLater(from + h * 8 * addedStep + j * 16), fetchLater(norm.x + (r + h * 8) * n + t * 4 + j * 16);
      }
    }
    commitCopies();
  };
  int64_t nextTile = begin;  // the block that is copied next
  int nextBlock = 0, stage = 0;
  auto next = [&](int stage) {
    ahead(nextTile, nextBlock, stage);
    if (++nextBlock == blocks) nextBlock = 0, nextTile += stride;
  };
  auto start = [&] {
    takeOver();
    for (int i = 0; i < stages; i++) next(i);
  };
  if (!before) start();
  put<ALONG>(bs, b, bStep, n, k, columns, blocks * 4);
  if (KIND == STEP) put<true>(ws, steps.weight, 4, k, 4, more, 1);
  if (before) start();
  publish();
  __syncthreads();
  for (int64_t tile = begin; tile < tiles; tile += stride) {
    const int64_t row = tile * 64 + warp * 16 + g;
    float sum[32] = {};
    for (int block = 0; block < blocks; block++) {
      uint32_t o[4][3][4];  // step, part, pair
      if (stages > 1 && (block > 0 || tile > begin)) copiedBut<2>();
      else groupsCopied();
      {
        float x[4][2][4];
#pragma unroll
        for (int s = 0; s < 4; s++)
#pragma unroll
          for (int h = 0; h < 2; h++) load<4>((const float *)(mine + stage * STAGE + (s * 2 + h) * GROUP * 16), x[s][h]);
        if (KIND == BEFORE)
#pragma unroll
          for (int h = 0; h < 2; h++) {
            double square = 0;
#pragma unroll
            for (int s = 0; s < 4; s++)
#pragma unroll
              for (int q = 0; q < 4; q++) square += (double)x[s][h][q] * x[s][h][q];
            const float scale = (float)inverseRoot(quad(square) * part + norm.eps);
            if (norm.scales && t == 0 && row + h * 8 < m) norm.scales[row + h * 8] = scale;
#pragma unroll
            for (int s = 0; s < 4; s++) {
              float w[4] = {};
              if (s * 16 + t * 4 < k) load<4>(norm.weight + s * 16 + t * 4, w);
#pragma unroll
              for (int q = 0; q < 4; q++) x[s][h][q] = x[s][h][q] * scale * w[q];
            }
          }
#pragma unroll
        for (int s = 0; s < 4; s++)
#pragma unroll
          for (int i = 0; i < 4; i++) {
            uint32_t v[3];
            split(x[s][i % 2][i / 2 * 2], x[s][i % 2][i / 2 * 2 + 1], v);
#pragma unroll
            for (int p = 0; p < 3; p++) o[s][p][i] = v[p];
          }
      }
      aheadOf(tile, block);
      next(stage);
      stage = stage + 1 == stages ? 0 : stage + 1;
      for (int first = 0; first < columns; first++) {
        const Cores at = coresAt<false>(bs + (first * blocks + block) * 4 * 3 * MATRIX, 128, 256);
        float acc[SUMS][32];
#pragma unroll
        for (int i = 0; i < SUMS; i++) untouched(acc[i]);
        beginProducts();
#pragma unroll
        for (int i = 0; i < SUMS; i++)
#pragma unroll
          for (int p = 5; p >= 0; p--)
#pragma unroll
            for (int s = i * 4 / SUMS; s < (i + 1) * 4 / SUMS; s++)
              product<false>(acc[i], o[s][partOfA(p)], farther(at, (s * 3 + partOfB(p)) * MATRIX), p < 5 || s > i * 4 / SUMS);
        commitProducts();
        awaitProducts<0>();
#pragma unroll
        for (int i = 0; i < SUMS; i++) untouched(acc[i]);
#pragma unroll
        for (int i = 0; i < 32; i++) {
          const float v = SUMS == 2 ? acc[0][i] + acc[SUMS - 1][i] : acc[0][i];
          sum[i] = DEEP ? sum[i] + v : v;
        }
        if (DEEP && block + 1 < blocks) continue;
        float odd = 0.f;  // not a number if one of the sums is not finite: then the lane computes its results again without parts
#pragma unroll
        for (int i = 0; i < 32; i++) odd = fmaf(sum[i], 0.f, odd);
        if (odd != 0.f) {
          float again[32];
#pragma unroll 1
          for (int i = 0; i < 32; i++) {
            const int64_t r = row + i % 4 / 2 * 8;
            const int column = first * SOME + i / 8 * 16 + t * 4 + i / 4 % 2 * 2 + i % 2;
            again[i] = 0.f;
            if (r >= m || column >= n) continue;
            double square = 0;
#pragma unroll 1
            for (int l = 0; KIND == BEFORE && l < k; l++) square += (double)a[r * aStep + l] * a[r * aStep + l];
            const float scale = KIND == BEFORE ? (float)(1 / sqrt(square / k + norm.eps)) : 1.f;
#pragma unroll 1
            for (int l = 0; l < k; l++)
              again[i] = fmaf(KIND == BEFORE ? a[r * aStep + l] * scale * norm.weight[l] : a[r * aStep + l], ALONG ? b[column * bStep + l] : b[l * bStep + column], again[i]);
          }
#pragma unroll
          for (int i = 0; i < 32; i++) sum[i] = again[i];
        }
        __syncwarp();
        if constexpr (KIND != AFTER) {
          if (beta != 0.f) {
            copiedBut<1>();
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
              for (int h = 0; h < 2; h++) {
                float old[4];
                load<4>((const float *)(mine + (stages + first) * STAGE + (j * 2 + h) * GROUP * 16), old);
#pragma unroll
                for (int q = 0; q < 4; q++) sum[sumOf(h, j, q)] = fmaf(beta, old[q], sum[sumOf(h, j, q)]);
              }
          }
          const int left = n - first * SOME - t * 4;
          float *const to = c + row * cStep + first * SOME + t * 4;
          const bool there[2] = {row < m, row + 8 < m};
#pragma unroll
          for (int h = 0; h < 2; h++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
              const float v[4] = {sum[sumOf(h, j, 0)], sum[sumOf(h, j, 1)], sum[sumOf(h, j, 2)], sum[sumOf(h, j, 3)]};
              if (there[h] && j * 16 < left) store<4>(to + h * 8 * cStep + j * 16, v);
            }
        }
      }
#pragma unroll
      for (int s = 0; s < 4; s++) unchanged(o[s]);
    }
    if constexpr (KIND == STEP) {
      uint32_t o[3][4];  // lanes with t = 0 have the first four columns, and the others zeros
#pragma unroll
      for (int i = 0; i < 4; i++) {
        uint32_t v[3];
        split(sum[i * 2], sum[i * 2 + 1], v);
#pragma unroll
        for (int p = 0; p < 3; p++) o[p][i] = t == 0 ? v[p] : 0;
      }
      __syncwarp();  // for what the lanes have written to c
      for (int first = 0; first < more; first += 2) {
        float acc[2][32];
        untouched(acc[0]), untouched(acc[1]);
        beginProducts();
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
          for (int p = 5; p >= 0; p--) product<false>(acc[i], o[partOfA(p)], farther(coresAt<false>(ws + (first + i) * 3 * MATRIX, 128, 256), partOfB(p) * MATRIX), p < 5);
        commitProducts();
        awaitProducts<0>();
        untouched(acc[0]), untouched(acc[1]);
        float odd = 0.f;
#pragma unroll
        for (int i = 0; i < 64; i++) odd = fmaf(acc[i / 32][i % 32], 0.f, odd);
        if (odd != 0.f) {
          float again[64];
#pragma unroll 1
          for (int i = 0; i < 64; i++) {
            const int64_t r = row + i % 4 / 2 * 8;
            const int column = (first + i / 32) * SOME + i % 32 / 8 * 16 + t * 4 + i / 4 % 2 * 2 + i % 2;
            again[i] = 0.f;
            if (r >= m || column >= k) continue;
            for (int l = 0; l < 4; l++) again[i] = fmaf(c[r * cStep + l], steps.weight[column * 4 + l], again[i]);
          }
#pragma unroll
          for (int i = 0; i < 64; i++) acc[i / 32][i % 32] = again[i];
        }
        __syncwarp();
        const int left = k - first * SOME - t * 4;
        float *const to = steps.to + row * k + first * SOME + t * 4;
        const bool there[2] = {row < m, row + 8 < m};
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
          for (int j = 0; j < 8; j++) {
            const float(&from)[32] = acc[j / 4];
            const float v[4] = {from[sumOf(h, j % 4, 0)], from[sumOf(h, j % 4, 1)], from[sumOf(h, j % 4, 2)], from[sumOf(h, j % 4, 3)]};
            if (there[h] && j * 16 < left) store<4>(to + (int64_t)h * 8 * k + j * 16, v);
          }
      }
      unchanged(o);
    }
    if constexpr (KIND == AFTER) {
      const float *const from = norm.x + row * n + t * 4, *const residual = added + row * addedStep + t * 4;
      const bool there[2] = {row < m, row + 8 < m};
      float y[4][2][4] = {};
#pragma unroll
      for (int h = 0; h < 2; h++)
#pragma unroll
        for (int j = 0; j < 4; j++)
          if (there[h] && j * 16 + t * 4 < n) load<4>(from + h * 8 * n + j * 16, y[j][h]);
      double square[2] = {}, dot[2] = {};
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float w[4] = {};
        if (j * 16 + t * 4 < n) load<4>(norm.weight + j * 16 + t * 4, w);
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
          for (int q = 0; q < 4; q++) square[h] += (double)y[j][h][q] * y[j][h][q], dot[h] += (double)(sum[sumOf(h, j, q)] * w[q]) * y[j][h][q];
      }
      float scale[2], back[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const double s = inverseRoot(quad(square[h]) * part + norm.eps);
        scale[h] = (float)s, back[h] = (float)(quad(dot[h]) * part * s * s * s);
      }
#pragma unroll
      for (int j = 0; j < 4; j++) {
        if (j * 16 + t * 4 >= n) break;
        float w[4];
        load<4>(norm.weight + j * 16 + t * 4, w);
#pragma unroll
        for (int h = 0; h < 2; h++) {
          if (!there[h]) break;
          float to[4];
          load<4>(residual + h * 8 * addedStep + j * 16, to);
#pragma unroll
          for (int q = 0; q < 4; q++) {
            const float d = sum[sumOf(h, j, q)];
            dw[j][q] += d * y[j][h][q] * scale[h];
            to[q] += d * w[q] * scale[h] - y[j][h][q] * back[h];
          }
          store<4>(c + (row + h * 8) * cStep + j * 16 + t * 4, to);
        }
      }
    }
  }
  if (KIND == AFTER) {
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int q = 0; q < 4; q++) {
        float v = dw[j][q];
#pragma unroll
        for (int i = 4; i < 32; i *= 2) v += __shfl_xor_sync(~0u, v, i);
        if (g == 0 && j * 16 + t * 4 < n) shared[threadIdx.x / 32 * n + j * 16 + t * 4 + q] = v;
      }
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
      float v = 0.f;
      for (int w = 0; w < groups * 4; w++) v += shared[w * n + i];
      norm.parts[blockIdx.x * n + i] = v;
    }
  }
}

#ifndef SUMS_WIDE
#define SUMS_WIDE 2
#define SUMS_DEEP 2
#define SUMS_AFTER 1
#endif
#define NARROW_ROWS(NAME, DEEP, ALONG)                                                                                                         \
  extern "C" __global__ __launch_bounds__(3 * GROUP, 1) void narrow_rows_##NAME(                                                        \
      const float *a, int64_t aStep, const float *b, int64_t bStep, float *c, int64_t cStep, const float *added, int64_t addedStep,     \
      float beta, int64_t m, int64_t n, int64_t k, int64_t stages, int64_t before) {                                                                    \
    rows<DEEP, ALONG, PLAIN, DEEP ? SUMS_DEEP : SUMS_WIDE>(a, aStep, b, bStep, c, cStep, added, addedStep, beta, m, (int)n, (int)k, Norm(), Steps(), (int)stages, before); \
  }
NARROW_ROWS(wide_along, false, true)
NARROW_ROWS(wide_across, false, false)
NARROW_ROWS(deep_along, true, true)
NARROW_ROWS(deep_across, true, false)

extern "C" __global__ __launch_bounds__(3 * GROUP, 1) void narrow_norm(const float *a, const float *weight, float eps, const float *b, float *c, float *scales, int64_t m, int64_t n, int64_t k,
                                                                       int64_t stages, int64_t before) {
  rows<false, true, BEFORE, SUMS_WIDE>(a, k, b, k, c, n, nullptr, 0, 0.f, m, (int)n, (int)k, Norm{weight, eps, scales}, Steps(), (int)stages, before);
}
extern "C" __global__ __launch_bounds__(3 * GROUP, 1) void narrow_norm_backward(const float *a, int64_t aStep, const float *b, const float *x, const float *weight, float eps,
                                                                                const float *residual, float *dx, float *parts, int64_t m, int64_t n, int64_t k, int64_t stages, int64_t before) {
  rows<true, false, AFTER, SUMS_AFTER>(a, aStep, b, n, dx, n, residual, n, 1.f, m, (int)n, (int)k, Norm{weight, eps, nullptr, x, parts}, Steps(), (int)stages, before);
}
// narrow_steps computes c (m, n) = a (m, k) · bᵀ, and to (m, k) from the first four columns of c.
extern "C" __global__ __launch_bounds__(3 * GROUP, 1) void narrow_steps(const float *a, const float *b, float *c, const float *weight, float *to, int64_t m, int64_t n, int64_t k,
                                                                        int64_t stages, int64_t before) {
  rows<true, true, STEP, SUMS_DEEP>(a, k, b, k, c, n, nullptr, 0, 0.f, m, (int)n, (int)k, Norm(), Steps{weight, to}, (int)stages, before);
}

// columns computes sums over rows: part (m, n) of aᵀ · b, for a (rows, m) and b (rows, n), n up to 64, of each rows. blockIdx.y has 128 columns of a; the two groups of warps of a
// block have half of them each. With TURNED the part is (n, m). NORM multiplies the rows of b by scales and its columns by a weight, as RMSNorm does.
//
// The instructions' A are columns of a: a lane has two neighbouring columns, in the two halves of the rows of an instruction. A thread copies its numbers ahead and reads them itself.
// The parts of b go through shared memory.
constexpr int ROWS = 32, AHEAD = 3;                                     // of a step; steps that are copied ahead
constexpr int ACROSS = 256 + 16, PART = 8 * ACROSS, SLOT = 2 * 3 * PART;  // bytes of eight columns, with 16 against conflicts of banks; of a part of 16 rows; of a step of b
constexpr int COPIED = 256 * (8 * 8 + 2 * 16 + 2 * 4);                    // bytes that are copied for a step
template <bool TURNED, bool NORM>
__device__ __forceinline__ void columns(const float *a, int64_t aStep, const float *b, int64_t bStep, float *parts, int64_t rows, int m, int n, int64_t each, const float *scales, const float *weight) {
  takeOver();
  extern __shared__ __align__(16) float shared[];
  char *const slots = (char *)shared, *const mine = slots + 2 * SLOT;  // mine is (step, 8 · 256 pairs of a, 2 · 256 fours of b, 2 · 256 scales)
  const int tid = threadIdx.x, lane = tid % 32, g = lane / 4, t = lane % 4, channel = blockIdx.y * 128 + tid / 32 * 16 + g * 2, row = tid / 16, column = tid % 16 * 4;
  const int64_t first = blockIdx.x * each;
  const int all = (int)max((int64_t)0, min(each, rows - first));
  const float *fromA = a + (first + 2 * t) * aStep + channel, *fromB = b + (first + row) * bStep + column, *fromScales = scales + first + row;
  int left = all, copying = 0;  // rows that are not copied yet; where the next step goes
  float w[4] = {};
  if (NORM && column < n) load<4>(weight + column, w);
  auto copy = [&] {
    char *const to = mine + copying * COPIED;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int r = i % 2 + i / 2 * 8;
      copyLater<8>(to + (i * 256 + tid) * 8, fromA + r * aStep, 2 * t + r < left && channel < m);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) copyLater<16>(to + 8 * 256 * 8 + (i * 256 + tid) * 16, fromB + i * 16 * bStep, row + i * 16 < left && column < n);
    if (NORM)
#pragma unroll
      for (int i = 0; i < 2; i++) copyLater<4>(to + 256 * (8 * 8 + 2 * 16) + (i * 256 + tid) * 4, fromScales + i * 16, row + i * 16 < left);
    commitCopies();
    fromA += ROWS * aStep, fromB += ROWS * bStep, fromScales += NORM ? ROWS : 0, left -= ROWS;
    copying = copying == AHEAD - 1 ? 0 : copying + 1;
  };
  // write puts the parts of a step of b to a slot.
  auto write = [&](int step, int slot) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float y[4];
      load<4>((const float *)(mine + step * COPIED + 8 * 256 * 8 + (i * 256 + tid) * 16), y);
      if (NORM) {
        const float scale = *(const float *)(mine + step * COPIED + 256 * (8 * 8 + 2 * 16) + (i * 256 + tid) * 4);
#pragma unroll
        for (int q = 0; q < 4; q++) y[q] = y[q] * scale * w[q];
      }
      uint32_t low[3], high[3];
      split(y[0], y[1], low), split(y[2], y[3], high);
#pragma unroll
      for (int p = 0; p < 3; p++)
        *(uint2 *)(slots + slot * SLOT + (i * 3 + p) * PART + column / 8 * ACROSS + row / 8 * 128 + row % 8 * 16 + column % 8 * 2) = make_uint2(low[p], high[p]);
    }
  };
  float sum[32] = {};
  for (int i = 0; i < AHEAD; i++) copy();
  copiedBut<AHEAD - 1>();
  write(0, 0);
  int now = 0, slot = 0;
  for (int done = 0; done < all; done += ROWS) {
    publish();
    __syncthreads();
    uint32_t o[2][3][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float x[4][2];
#pragma unroll
      for (int q = 0; q < 4; q++) load<2>((const float *)(mine + now * COPIED + ((i * 4 + q) * 256 + tid) * 8), x[q]);
#pragma unroll
      for (int q = 0; q < 4; q++) {
        uint32_t v[3];
        split(x[q / 2 * 2][q % 2], x[q / 2 * 2 + 1][q % 2], v);
#pragma unroll
        for (int p = 0; p < 3; p++) o[i][p][q] = v[p];
      }
    }
    const Cores at = coresAt<true>(slots + slot * SLOT, 128, ACROSS);
    float acc[32];
    untouched(acc);
    beginProducts();
#pragma unroll
    for (int p = 5; p >= 0; p--)
#pragma unroll
      for (int i = 0; i < 2; i++) product<true>(acc, o[i][partOfA(p)], farther(at, (i * 3 + partOfB(p)) * PART), p < 5 || i > 0);
    commitProducts();
    copy();
    now = now == AHEAD - 1 ? 0 : now + 1, slot ^= 1;
    copiedBut<AHEAD - 1>();
    write(now, slot);
    awaitProducts<0>();
    untouched(acc);
    unchanged(o[0]), unchanged(o[1]);
#pragma unroll
    for (int q = 0; q < 32; q++) sum[q] += acc[q];
  }
  float odd = 0.f;
#pragma unroll
  for (int q = 0; q < 32; q++) odd = fmaf(sum[q], 0.f, odd);
  float *const to = parts + (int64_t)blockIdx.x * m * n;
  if (odd != 0.f) {
    float again[32] = {};
#pragma unroll 1
    for (int64_t r = first; r < first + all; r++) {
      const float scale = NORM ? scales[r] : 1.f;
#pragma unroll 1
      for (int i = 0; i < 32; i++) {
        const int across = i / 4 * 8 + 2 * t + i % 2, down = channel + i % 4 / 2;
        if (across < n && down < m) again[i] = fmaf(a[r * aStep + down], NORM ? b[r * bStep + across] * scale * weight[across] : b[r * bStep + across], again[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < 32; i++) sum[i] = again[i];
  }
  if (channel >= m) return;
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const int across = j * 8 + 2 * t;
    if (across >= n) break;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float v[2] = {TURNED ? sum[j * 4 + i] : sum[j * 4 + i * 2], TURNED ? sum[j * 4 + 2 + i] : sum[j * 4 + i * 2 + 1]};
      store<2>(TURNED ? to + (across + i) * m + channel : to + (channel + i) * n + across, v);
    }
  }
}

#define COLUMNS(NAME, TURNED)                                                                                                           \
  extern "C" __global__ __launch_bounds__(256, 2) void NAME(const float *a, int64_t aStep, const float *b, int64_t bStep, float *parts, int64_t rows, int64_t m, int64_t n, \
                                                            int64_t each) {                                                            \
    columns<TURNED, false>(a, aStep, b, bStep, parts, rows, (int)m, (int)n, each, nullptr, nullptr);                                              \
  }
COLUMNS(narrow_columns, false)
COLUMNS(narrow_columns_turned, true)
extern "C" __global__ __launch_bounds__(256, 2) void narrow_columns_norm(const float *a, const float *b, const float *scales, const float *weight, float *parts, int64_t rows, int64_t m,
                                                                         int64_t n, int64_t each) {
  columns<false, true>(a, m, b, n, parts, rows, (int)m, (int)n, each, scales, weight);
}
