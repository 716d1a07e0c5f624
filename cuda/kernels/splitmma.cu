// Products of float32 with many rows and few columns in tensor cores. Each number is the sum of three numbers of bfloat16 (to 2^-134 below 2^-110), and the six
// largest of the nine products are added up: the others are below 2^-26 of the first.
#include "split.cuh"
#include "vector.cuh"

// Operand is A of a product: the parts of four pairs of numbers.
struct Operand {
  uint32_t part[3][4];
  __device__ __forceinline__ void set(int i, float a, float b) {
    uint32_t x[3];
    split(a, b, x);
#pragma unroll
    for (int p = 0; p < 3; p++) part[p][i] = x[p];
  }
};

// multiply adds the products of x and N operands B to sum. The instructions add up 16 rows of B, the smallest products first.
template <int N> __device__ __forceinline__ void multiply(float (*sum)[4], const Operand &x, const uint32_t (&y)[N][3][2]) {
  float c[N][4] = {};
#pragma unroll
  for (int p = 5; p >= 0; p--) {
    const int i = p == 5 ? 2 : p == 1 || p == 3 ? 1 : 0, j = p == 4 ? 2 : p == 2 || p == 3 ? 1 : 0;
#pragma unroll
    for (int n = 0; n < N; n++) product(c[n], x.part[i], y[n][j][0], y[n][j][1], bf16());
  }
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int q = 0; q < 4; q++) sum[n][q] += c[n][q];
}

// Kind is PLAIN, or BEFORE to replace a by RMSNorm of its rows, or AFTER to replace c by the gradient of the rows x of an RMSNorm, of whose result a · b is the gradient, and to
// write the gradient of the weight to parts (gridDim.x, n). The rows have at most 64 numbers. Sums over them are in double, as in norm.cu.
enum Kind { PLAIN, BEFORE, AFTER };

struct Norm {
  const float *weight;
  float eps;
  const float *x;
  float *parts;
};

// quad adds over the four lanes that have a row.
__device__ __forceinline__ double quad(double v) {
  v += __shfl_xor_sync(~0u, v, 1);
  return v + __shfl_xor_sync(~0u, v, 2);
}

// rows computes c (m, n) = a (m, k) · b (k, n) + beta·added. With ALONG, b lies in memory as (n, k). A warp computes 16 rows. b is in shared memory, as the
// operands of the instructions. A lane's four numbers of k, and of n, are neighbours in memory: the instructions' order does not matter for k, and for n it
// is undone when c is written. k is a multiple of 16; n and all strides are multiples of four.
template <bool ALONG, Kind KIND>
__device__ __forceinline__ void rows(const float *a, int64_t aStep, const float *b, int64_t bStep, float *c, int64_t cStep, const float *added, int64_t addedStep, float beta,
                                     int64_t m, int n, int k, Norm norm) {
  constexpr int STEPS = 4, TILES = 8;  // of 16 numbers of k that are in registers; of 8 columns that are computed together
  extern __shared__ __align__(16) float shared[];
  uint2 *bs = (uint2 *)shared;  // (tile, step, part, lane)
  const int steps = k / 16, tiles = (n + 15) / 16 * 2;
#pragma unroll 4
  for (int i = threadIdx.x; i < tiles * steps * 32; i += blockDim.x) {
    const int lane = i % 32, step = i / 32 % steps, tile = i / 32 / steps, g = lane / 4;
    const int column = tile / 2 * 16 + g / 2 * 4 + tile % 2 * 2 + g % 2, from = step * 16 + lane % 4 * 4;
    float v[4] = {};
    if (column < n) {
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
    for (int p = 0; p < 3; p++) bs[((tile * steps + step) * 3 + p) * 32 + lane] = make_uint2(low[p], high[p]);
  }
  __syncthreads();
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warps = blockDim.x / 32;
  float dw[TILES / 2][4] = {};
  for (int64_t row = ((int64_t)blockIdx.x * warps + threadIdx.x / 32) * 16; row < m; row += (int64_t)gridDim.x * warps * 16) {
    float x[STEPS][2][4];
    for (int first = 0; first < tiles; first += TILES) {
      float sum[TILES][4] = {};
      for (int from = 0; from < steps; from += STEPS) {
        if (first == 0 || steps > STEPS) {
#pragma unroll
          for (int s = 0; s < STEPS; s++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
              const int at = (from + s) * 16 + t * 4;
              x[s][h][0] = x[s][h][1] = x[s][h][2] = x[s][h][3] = 0.f;
              if (at < k && row + g + h * 8 < m) load<4>(a + (row + g + h * 8) * aStep + at, x[s][h]);
            }
          if (KIND == BEFORE)
#pragma unroll
            for (int h = 0; h < 2; h++) {
              double square = 0;
#pragma unroll
              for (int s = 0; s < STEPS; s++)
#pragma unroll
                for (int q = 0; q < 4; q++) square += (double)x[s][h][q] * x[s][h][q];
              const float scale = (float)(1 / sqrt(quad(square) / k + norm.eps));
#pragma unroll
              for (int s = 0; s < STEPS; s++) {
                float w[4] = {};
                if (s < steps) load<4>(norm.weight + s * 16 + t * 4, w);
#pragma unroll
                for (int q = 0; q < 4; q++) x[s][h][q] = x[s][h][q] * scale * w[q];
              }
            }
        }
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
          if (from + s >= steps) break;
          Operand o;
          o.set(0, x[s][0][0], x[s][0][1]), o.set(1, x[s][1][0], x[s][1][1]), o.set(2, x[s][0][2], x[s][0][3]), o.set(3, x[s][1][2], x[s][1][3]);
#pragma unroll
          for (int j = 0; j < TILES; j += 2) {
            if (first + j >= tiles) break;
            uint32_t y[2][3][2];
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
              for (int p = 0; p < 3; p++) {
                const uint2 v = bs[(((first + j + i) * steps + from + s) * 3 + p) * 32 + lane];
                y[i][p][0] = v.x, y[i][p][1] = v.y;
              }
            multiply<2>(sum + j, o, y);
          }
        }
      }
      bool right = true;  // if not, the lane computes its results again without parts
#pragma unroll
      for (int i = 0; i < TILES * 4; i++) right = right && finite(sum[i / 4][i % 4]);
      if (!right) {
        float again[TILES * 4];
#pragma unroll 1
        for (int i = 0; i < TILES * 4; i++) {
          const int64_t r = row + g + i % 4 / 2 * 8;
          const int column = (first + i / 8 * 2) * 8 + t * 4 + i / 4 % 2 * 2 + i % 2;
          again[i] = 0.f;
          if (r >= m || column >= n) continue;
          double square = 0;
          for (int l = 0; KIND == BEFORE && l < k; l++) square += (double)a[r * aStep + l] * a[r * aStep + l];
          const float scale = KIND == BEFORE ? (float)(1 / sqrt(square / k + norm.eps)) : 1.f;
          for (int l = 0; l < k; l++)
            again[i] = fmaf(KIND == BEFORE ? a[r * aStep + l] * scale * norm.weight[l] : a[r * aStep + l], ALONG ? b[column * bStep + l] : b[l * bStep + column], again[i]);
        }
#pragma unroll
        for (int i = 0; i < TILES * 4; i++) sum[i / 4][i % 4] = again[i];
      }
      if constexpr (KIND == AFTER) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int64_t r = row + g + h * 8;
          float d[TILES / 2][4] = {}, y[TILES / 2][4] = {};
          double square = 0, dot = 0;
          auto each = [&](auto f) {
#pragma unroll
            for (int j = 0; j < TILES / 2; j++)
              if (j * 16 + t * 4 < n && r < m) {
                float w[4];
                load<4>(norm.weight + j * 16 + t * 4, w);
                f(j, j * 16 + t * 4, w);
              }
          };
          each([&](int j, int column, const float (&w)[4]) {
            load<4>(norm.x + r * n + column, y[j]);
#pragma unroll
            for (int q = 0; q < 4; q++) {
              d[j][q] = sum[2 * j + q / 2][h * 2 + q % 2];
              square += (double)y[j][q] * y[j][q], dot += (double)(d[j][q] * w[q]) * y[j][q];
            }
          });
          const double scale = 1 / sqrt(quad(square) / n + norm.eps);
          const float f = (float)scale, back = (float)(quad(dot) / n * scale * scale * scale);
          each([&](int j, int column, const float (&w)[4]) {
            float to[4];
            load<4>(added + r * addedStep + column, to);
#pragma unroll
            for (int q = 0; q < 4; q++) {
              dw[j][q] += d[j][q] * y[j][q] * f;
              to[q] += d[j][q] * w[q] * f - y[j][q] * back;
            }
            store<4>(c + r * cStep + column, to);
          });
        }
      } else {
#pragma unroll
        for (int j = 0; j < TILES; j += 2) {
          const int column = (first + j) * 8 + t * 4;
          if (column >= n) break;
#pragma unroll
          for (int h = 0; h < 2; h++) {
            const int64_t r = row + g + h * 8;
            if (r >= m) break;
            float v[4], old[4];
            if (beta != 0.f) load<4>(added + r * addedStep + column, old);
#pragma unroll
            for (int q = 0; q < 4; q++) {
              v[q] = sum[j + q / 2][h * 2 + q % 2];
              if (beta != 0.f) v[q] = fmaf(beta, old[q], v[q]);
            }
            store<4>(c + r * cStep + column, v);
          }
        }
      }
    }
  }
  if (KIND == AFTER) {
    __syncthreads();
#pragma unroll
    for (int j = 0; j < TILES / 2; j++)
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
      for (int w = 0; w < warps; w++) v += shared[w * n + i];
      norm.parts[blockIdx.x * n + i] = v;
    }
  }
}

#define ROWS(NAME, ALONG)                                                                                                               \
  extern "C" __global__ __launch_bounds__(256, 2) void split_rows_##NAME(                                                               \
      const float *a, int64_t aStep, const float *b, int64_t bStep, float *c, int64_t cStep, const float *added, int64_t addedStep,     \
      float beta, int64_t m, int64_t n, int64_t k) {                                                                                    \
    rows<ALONG, PLAIN>(a, aStep, b, bStep, c, cStep, added, addedStep, beta, m, (int)n, (int)k, Norm());                              \
  }
ROWS(along, true)
ROWS(across, false)

extern "C" __global__ __launch_bounds__(256, 2) void split_norm(const float *a, const float *weight, float eps, const float *b, float *c, int64_t m, int64_t n, int64_t k) {
  rows<true, BEFORE>(a, k, b, k, c, n, nullptr, 0, 0.f, m, (int)n, (int)k, Norm{weight, eps});
}
extern "C" __global__ __launch_bounds__(256, 2) void split_norm_backward(const float *a, int64_t aStep, const float *b, const float *x, const float *weight, float eps,
                                                                         const float *residual, float *dx, float *parts, int64_t m, int64_t n, int64_t k) {
  rows<false, AFTER>(a, aStep, b, n, dx, n, residual, n, 1.f, m, (int)n, (int)k, Norm{weight, eps, x, parts});
}
