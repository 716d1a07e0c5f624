// Products of float32 with many rows, of a few columns or as a sum over the rows, as a small model has them.
#include "mma.cuh"
#include "vector.cuh"

// rowsProduct computes c (m, n) = a (m, k) · b (k, n) + beta·c. With ALONG, b lies in memory as (n, k). A block computes BM rows and BN columns,
// and a thread TM rows and TN columns of them. k, n and all strides are multiples of four.
template <int BM, int BN, int TM, int TN, bool ALONG>
__device__ __forceinline__ void rowsProduct(const float *a, int64_t aStep, const float *b, int64_t bStep, float *c, int64_t cStep, int64_t m, int n, int k, float beta) {
  constexpr int ACROSS = BN / TN, DOWN = BM / TM, THREADS = ACROSS * DOWN, K = 64, STEP = K + 4;  // K: of a tile. 4: rows begin in different banks
  extern __shared__ __align__(16) float shared[];
  float *as = shared, *bs = shared + BM * STEP;
  const int tid = threadIdx.x, across = tid % ACROSS, down = tid / ACROSS, column = blockIdx.y * BN;
  const int64_t row = (int64_t)blockIdx.x * BM;
  takeOver();
  float sum[TM][TN] = {};
  for (int from = 0; from < k; from += K) {
    const int left = min(K, k - from);
    __syncthreads();
    for (int i = tid; i < BM * K / 4; i += THREADS) {
      const int r = i / (K / 4), at = i % (K / 4) * 4;
      copyLater<16>(as + r * STEP + at, a + (row + r) * aStep + from + at, at < left && row + r < m);
    }
    if (ALONG) {
      for (int i = tid; i < BN * K / 4; i += THREADS) {
        const int j = i % BN, at = i / BN * 4;
        float v[4] = {};
        if (at < left && column + j < n) load<4>(b + (column + j) * bStep + from + at, v);
#pragma unroll
        for (int q = 0; q < 4; q++) bs[(at + q) * BN + j] = v[q];
      }
    } else {
      for (int i = tid; i < K * BN / 4; i += THREADS) {
        const int at = i / (BN / 4), j = i % (BN / 4) * 4;
        copyLater<16>(bs + at * BN + j, b + (from + at) * bStep + column + j, at < left && column + j < n);
      }
    }
    copied();
    __syncthreads();
#pragma unroll 2
    for (int at = 0; at < left; at += 4) {
      float x[TM][4];
#pragma unroll
      for (int i = 0; i < TM; i++) load<4>(as + (down + i * DOWN) * STEP + at, x[i]);
#pragma unroll
      for (int q = 0; q < 4; q++) {
        float y[TN / 4][4];
#pragma unroll
        for (int j = 0; j < TN / 4; j++) load<4>(bs + (at + q) * BN + (across + j * ACROSS) * 4, y[j]);
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
          for (int j = 0; j < TN; j++) sum[i][j] = fmaf(x[i][q], y[j / 4][j % 4], sum[i][j]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < TM; i++) {
    const int64_t r = row + down + i * DOWN;
    if (r >= m) continue;
#pragma unroll
    for (int j = 0; j < TN / 4; j++) {
      const int at = column + (across + j * ACROSS) * 4;
      if (at >= n) continue;
      float v[4], old[4];
      if (beta != 0.f) load<4>(c + r * cStep + at, old);
#pragma unroll
      for (int q = 0; q < 4; q++) v[q] = beta != 0.f ? fmaf(beta, old[q], sum[i][4 * j + q]) : sum[i][4 * j + q];
      store<4>(c + r * cStep + at, v);
    }
  }
}

#define ROWS(BM, BN, TM, TN)                                                                                                            \
  extern "C" __global__ __launch_bounds__(BM / TM * (BN / TN)) void rows_product_##BN##_along(                                          \
      const float *a, int64_t aStep, const float *b, int64_t bStep, float *c, int64_t cStep, int64_t m, int64_t n, int64_t k, float beta) { \
    rowsProduct<BM, BN, TM, TN, true>(a, aStep, b, bStep, c, cStep, m, (int)n, (int)k, beta);                                          \
  }                                                                                                                                     \
  extern "C" __global__ __launch_bounds__(BM / TM * (BN / TN)) void rows_product_##BN##_across(                                         \
      const float *a, int64_t aStep, const float *b, int64_t bStep, float *c, int64_t cStep, int64_t m, int64_t n, int64_t k, float beta) { \
    rowsProduct<BM, BN, TM, TN, false>(a, aStep, b, bStep, c, cStep, m, (int)n, (int)k, beta);                                         \
  }
ROWS(128, 128, 8, 8)
ROWS(128, 64, 8, 8)
ROWS(128, 16, 8, 4)
ROWS(128, 4, 1, 4)

// columnsProduct computes a part of c (m, n) = aᵀ · b, for a (k, m) and b (k, n): the sum over each of the k rows, which a block adds. A block has
// groups of threads, each of which adds some rows; a thread of a group has TM by TN elements of c. m and n are multiples of TM and TN, and m/TM · n/TN
// is at most 256. parts is (gridDim.x, m, n).
template <int TM, int TN>
__device__ __forceinline__ void columnsProduct(const float *a, int64_t aStep, const float *b, int64_t bStep, float *parts, int m, int n, int64_t k, int64_t each) {
  constexpr int R = 32;  // rows of a tile
  extern __shared__ __align__(16) float shared[];
  const int down = m / TM, across = n / TN, threads = down * across, groups = blockDim.x / threads, row = m + n;
  const int tid = threadIdx.x, group = tid / threads, x = tid % threads % across, y = tid % threads / across;
  const int64_t first = blockIdx.x * each, last = min(first + each, k);
  float sum[TM][TN] = {};
  auto read = [&](int64_t from, float *to) {
    const int rows = (int)min((int64_t)R, last - from);
    for (int i = tid; i < rows * (row / 4); i += blockDim.x) {
      const int r = i / (row / 4), at = i % (row / 4) * 4;
      copyLater<16>(to + r * row + at, at < m ? a + (from + r) * aStep + at : b + (from + r) * bStep + at - m, true);
    }
    commitCopies();
  };
  takeOver();
  read(first, shared);
  int now = 0;
  for (int64_t from = first; from < last; from += R, now ^= 1) {
    if (from + R < last) {
      read(from + R, shared + (now ^ 1) * R * row);
      copiedBut<1>();
    } else {
      groupsCopied();
    }
    __syncthreads();
    const int rows = (int)min((int64_t)R, last - from);
    if (group < groups) {
#pragma unroll 4
      for (int r = group; r < rows; r += groups) {
        const float *at = shared + (now * R + r) * row;
        float u[TM / 4][4], v[TN / 4][4];
#pragma unroll
        for (int i = 0; i < TM / 4; i++) load<4>(at + (y + i * down) * 4, u[i]);
#pragma unroll
        for (int j = 0; j < TN / 4; j++) load<4>(at + m + (x + j * across) * 4, v[j]);
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
          for (int j = 0; j < TN; j++) sum[i][j] = fmaf(u[i / 4][i % 4], v[j / 4][j % 4], sum[i][j]);
      }
    }
    __syncthreads();
  }
  // The groups add up in their order, the last first.
  for (int g = groups - 1; g >= 0; g--) {
    float *to = g > 0 ? shared : parts + (int64_t)blockIdx.x * m * n;
    if (group == g) {
#pragma unroll
      for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN / 4; j++) {
          const int at = ((y + i / 4 * down) * 4 + i % 4) * n + (x + j * across) * 4;
          float v[4] = {sum[i][4 * j], sum[i][4 * j + 1], sum[i][4 * j + 2], sum[i][4 * j + 3]};
          if (g < groups - 1)
#pragma unroll
            for (int q = 0; q < 4; q++) v[q] += shared[at + q];
          store<4>(to + at, v);
        }
    }
    __syncthreads();
  }
}

#define COLUMNS(TM, TN)                                                                                                                \
  extern "C" __global__ __launch_bounds__(256) void columns_product_##TM##x##TN(const float *a, int64_t aStep, const float *b, int64_t bStep, \
                                                                                float *parts, int64_t m, int64_t n, int64_t k, int64_t each) { \
    columnsProduct<TM, TN>(a, aStep, b, bStep, parts, (int)m, (int)n, k, each);                                                        \
  }
COLUMNS(8, 8)
COLUMNS(4, 8)
COLUMNS(4, 4)

// step_gradients computes both gradients of step sizes r · wᵀ, for r (m, 4), a part of rows, and w (channels, 4), from their gradient d (m, channels): dr = d · w, and
// parts (gridDim.x, channels, 4) of dᵀ · r, each of each rows. So d is read once. A warp has a row, and a lane four channels: there are at most 128.
extern "C" __global__ __launch_bounds__(256) void step_gradients(const float *d, const float *w, const float *r, int64_t rStep, float *dr, int64_t drStep, float *parts, int64_t m,
                                                                 int64_t channels, int64_t each) {
  constexpr int AHEAD = 4, WARPS = 8;
  __shared__ __align__(16) float sums[WARPS][128 * 4];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool mine = lane * 4 < channels;
  takeOver();
  float u[4][4] = {}, dw[4][4] = {};
  if (mine)
#pragma unroll
    for (int i = 0; i < 4; i++) load<4>(w + (lane * 4 + i) * 4, u[i]);
  const int64_t last = min(m, (blockIdx.x + 1) * each);
  for (int64_t row = blockIdx.x * each + warp * AHEAD; row < last; row += WARPS * AHEAD) {
    float x[AHEAD][4] = {}, y[AHEAD][4] = {};
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
      if (mine && row + i < last) load<4>(d + (row + i) * channels + lane * 4, x[i]), load<4>(r + (row + i) * rStep, y[i]);
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      float s[4] = {};
#pragma unroll
      for (int q = 0; q < 4; q++)
#pragma unroll
        for (int j = 0; j < 4; j++) dw[q][j] = fmaf(x[i][q], y[i][j], dw[q][j]), s[j] = fmaf(x[i][q], u[q][j], s[j]);
      // Lanes exchange halves of the four sums, so that lane l has sum l % 4 of four lanes.
      const bool odd = lane & 1, high = lane & 2;
      const float even = (odd ? s[1] : s[0]) + __shfl_xor_sync(~0u, odd ? s[0] : s[1], 1), other = (odd ? s[3] : s[2]) + __shfl_xor_sync(~0u, odd ? s[2] : s[3], 1);
      float v = (high ? other : even) + __shfl_xor_sync(~0u, high ? even : other, 2);
#pragma unroll
      for (int l = 4; l < 32; l *= 2) v += __shfl_xor_sync(~0u, v, l);
      if (lane < 4 && row + i < last) dr[(row + i) * drStep + lane] = v;
    }
  }
  if (mine)
#pragma unroll
    for (int q = 0; q < 4; q++) store<4>(sums[warp] + (lane * 4 + q) * 4, dw[q]);
  __syncthreads();
  for (int i = threadIdx.x; i < channels * 4; i += blockDim.x) {
    float v = 0.f;
    for (int l = 0; l < WARPS; l++) v += sums[l][i];
    parts[blockIdx.x * channels * 4 + i] = v;
  }
}
