// A step of generation, one token for each sequence of a batch: matrix-vector products that read each weight once for up to G sequences. The
// operations between the products are part of their kernels. Activations are float, weights are float or bfloat16.
#pragma once
#include "types.cuh"

// four reads four elements of a weight.
__device__ __forceinline__ float4 four(const float *p) { return *(const float4 *)p; }
__device__ __forceinline__ float4 four(const bf16 *p) {
  const uint2 v = *(const uint2 *)p;
  return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u));
}

// Row is a thread's part of a row of the weight. The constructor already loads the beginning of the row, while the vectors are still being
// computed, since a step mostly waits for memory.
template <class W> struct Row {
  static constexpr int AHEAD = 6;
  const W *row;
  int64_t in;
  bool vectors;
  float4 first[AHEAD];

  __device__ __forceinline__ Row(const W *row, int64_t in, bool there) : row(row), in(in) {
    vectors = in % 4 == 0 && (uint64_t)row % (4 * sizeof(W)) == 0;
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
      const int64_t i = 4 * (threadIdx.x % 32) + 128 * j;
      if (there && vectors && i < in) first[j] = four(row + i);
    }
  }
  // times computes the products of the row with G vectors in shared memory, summed over the warp.
  template <int G> __device__ __forceinline__ void times(const float *x, float (&sum)[G]) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int g = 0; g < G; g++) sum[g] = 0.f;
    auto add = [&](float4 w, int64_t i) {
#pragma unroll
      for (int g = 0; g < G; g++) {
        const float4 v = *(const float4 *)(x + g * in + i);
        sum[g] = fmaf(w.x, v.x, fmaf(w.y, v.y, fmaf(w.z, v.z, fmaf(w.w, v.w, sum[g]))));
      }
    };
    if (vectors) {
#pragma unroll
      for (int j = 0; j < AHEAD; j++)
        if (4 * lane + 128 * j < in) add(first[j], 4 * lane + 128 * j);
#pragma unroll 6
      for (int64_t i = 4 * lane + 128 * AHEAD; i < in; i += 128) add(four(row + i), i);
    } else {
      for (int64_t i = lane; i < in; i += 32) {
#pragma unroll
        for (int g = 0; g < G; g++) sum[g] = fmaf(value(row[i]), x[g * in + i], sum[g]);
      }
    }
#pragma unroll
    for (int g = 0; g < G; g++) sum[g] = warpSum(sum[g]);
  }
};

// stepProduct computes y (batch, out) = weight (out, in) · x (batch, in). If norm is not null, x first goes through RMSNorm. If bias is not
// null, it is added. So is residual (batch, out), which may be y.
template <class W, int G>
__device__ __forceinline__ void stepProduct(const float *x, const float *norm, const W *weight, const float *bias, const float *residual, float *y,
                                            int64_t batch, int64_t in, int64_t out, float eps, int64_t each) {
  extern __shared__ __align__(16) float shared[];
  __shared__ double squares[G][32];
  __shared__ float scale[G];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int64_t first = (int64_t)blockIdx.y * G, begin = (int64_t)blockIdx.x * each * warps + warp;
  Row<W> row(weight + begin * in, in, begin < out);
#pragma unroll
  for (int g = 0; g < G; g++) {
    double sum = 0;
#pragma unroll 3
    for (int64_t i = threadIdx.x; i < in; i += blockDim.x) {
      const float v = first + g < batch ? x[(first + g) * in + i] : 0.f;
      shared[g * in + i] = norm ? v * norm[i] : v;
      sum += (double)v * v;
    }
    if (norm) {
      sum = warpSum(sum);
      if (lane == 0) squares[g][warp] = sum;
    }
  }
  __syncthreads();
  if (norm) {
    if (threadIdx.x < G) {
      double sum = 0;
      for (int w = 0; w < warps; w++) sum += squares[threadIdx.x][w];
      scale[threadIdx.x] = (float)rsqrt(sum / in + eps);
    }
    __syncthreads();
  }
  for (int64_t r = 0; r < each; r++) {
    const int64_t o = begin + r * warps;
    if (o >= out) return;
    float sum[G];
    if (r == 0)
      row.times(shared, sum);
    else
      Row<W>(weight + o * in, in, true).times(shared, sum);
#pragma unroll
    for (int g = 0; g < G; g++) {
      if (lane == g && first + g < batch) {
        const int64_t at = (first + g) * out + o;
        y[at] = (norm ? sum[g] * scale[g] : sum[g]) + (bias ? bias[o] : 0.f) + (residual ? residual[at] : 0.f);
      }
    }
  }
}

// stepConv computes u = SiLU(conv) in every block and rbc (batch, columns) = x_proj · u. The first block writes u to memory.
template <class W, int G>
__device__ __forceinline__ void stepConv(const float *vz, const float *context, const float *taps, const float *bias, const W *weight, float *u,
                                         float *rbc, int64_t batch, int64_t channels, int64_t width, int64_t columns) {
  extern __shared__ __align__(16) float shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int64_t first = (int64_t)blockIdx.y * G, o = (int64_t)blockIdx.x * warps + warp;
  Row<W> row(weight + o * channels, channels, o < columns);
#pragma unroll
  for (int g = 0; g < G; g++) {
    const int64_t b = first + g;
    auto one = [&](int64_t d) {
      float sum = 0.f;
      if (b < batch) {
        sum = bias ? bias[d] : 0.f;
        if (width == 4) {
          const float *c = context + b * 3 * channels + d, *w = taps + 4 * d;
          sum = fmaf(w[0], c[0], fmaf(w[1], c[channels], fmaf(w[2], c[2 * channels], fmaf(w[3], vz[b * 2 * channels + d], sum))));
        } else {
          for (int64_t k = 0; k < width - 1; k++) sum = fmaf(taps[d * width + k], context[(b * (width - 1) + k) * channels + d], sum);
          sum = fmaf(taps[d * width + width - 1], vz[b * 2 * channels + d], sum);
        }
        sum *= sigmoid(sum);
        if (blockIdx.x == 0) u[b * channels + d] = sum;
      }
      shared[g * channels + d] = sum;
    };
#pragma unroll 6
    for (int64_t d = threadIdx.x; d < channels; d += blockDim.x) one(d);
  }
  __syncthreads();
  if (o >= columns) return;
  float sum[G];
  row.times(shared, sum);
#pragma unroll
  for (int g = 0; g < G; g++)
    if (lane == g && first + g < batch) rbc[(first + g) * columns + o] = sum[g];
}

// stepScan computes Δ, the gated output y, and the next state and context, which may be in the place of h and context. 16 threads process a
// channel. A is the type of activations.
template <class W, class A>
__device__ __forceinline__ void stepScan(const A *vz, const A *u, const A *rbc, const W *dtProj, const float *dtBias,
                                         const float *alog, const float *skip, const float *h, const float *context, A *y, float *hNext,
                                         float *contextNext, int64_t channels, int64_t states, int64_t width, int64_t rank) {
  const int lane = threadIdx.x % 16;
  const int64_t d = (int64_t)blockIdx.x * (blockDim.x / 16) + threadIdx.x / 16, b = blockIdx.y, columns = rank + 2 * states;
  const bool here = d < channels;
  const A *r = rbc + b * columns, *B = r + rank, *C = B + states;
  float dt = 0.f, sum = 0.f, a = 0.f, before = 0.f, in = 0.f, out = 0.f, x = 0.f, z = 0.f, skipped = 0.f, bias = 0.f;
  if (here) {  // issue all loads before the first use of one
    x = value(u[b * channels + d]), z = value(vz[b * 2 * channels + channels + d]), skipped = skip[d], bias = dtBias[d];
    if (lane < states) a = alog[d * states + lane], before = h[(b * channels + d) * states + lane], in = value(B[lane]), out = value(C[lane]);
#pragma unroll 4
    for (int64_t i = lane; i < rank; i += 16) dt = fmaf(value(dtProj[d * rank + i]), value(r[i]), dt);
  }
#pragma unroll
  for (int m = 8; m > 0; m /= 2) dt += __shfl_xor_sync(~0u, dt, m);
  dt += bias;
  dt = fmaxf(dt, 0.f) + log1pf(expf(-fabsf(dt)));
  if (here) {
    for (int64_t n = lane; n < states; n += 16) {
      const int64_t at = (b * channels + d) * states + n;
      if (n > lane) a = alog[d * states + n], before = h[at], in = value(B[n]), out = value(C[n]);
      const float v = fmaf(expf(-dt * expf(a)), before, dt * x * in);
      hNext[at] = v, sum = fmaf(v, out, sum);
    }
  }
#pragma unroll
  for (int m = 8; m > 0; m /= 2) sum += __shfl_xor_sync(~0u, sum, m);
  if (here && lane == 0) y[b * channels + d] = to<A>(fmaf(skipped, x, sum) * (z * sigmoid(z)));
  // Shift the context by one step. In place, each thread reads an element that another thread of the warp overwrites, so all read
  // first.
  const bool moves = here && lane < width - 1;  // 16 lanes suffice for a width of up to 17, which Step.Fits checks
  float next = 0.f;
  if (moves) next = lane + 2 < width ? context[(b * (width - 1) + lane + 1) * channels + d] : value(vz[b * 2 * channels + d]);
  __syncwarp();
  if (moves) contextNext[(b * (width - 1) + lane) * channels + d] = next;
}

// stepConvolve computes u = SiLU(conv) of many sequences.
template <class A>
__device__ __forceinline__ void stepConvolve(const A *vz, const float *context, const float *taps, const float *bias, A *u, int64_t batch,
                                             int64_t channels, int64_t width) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, b = i / channels, d = i % channels;
  if (b >= batch) return;
  float sum = bias ? bias[d] : 0.f;
#pragma unroll 3
  for (int64_t k = 0; k < width - 1; k++) sum = fmaf(taps[d * width + k], context[(b * (width - 1) + k) * channels + d], sum);
  sum = fmaf(taps[d * width + width - 1], value(vz[b * 2 * channels + d]), sum);
  u[i] = to<A>(sum * sigmoid(sum));
}

#define STEP(NAME, W, G)                                                                                                                  \
  extern "C" __global__ void step_product_##NAME##_##G(const float *x, const float *norm, const W *weight, const float *bias,             \
                                                       const float *residual, float *y, int64_t batch, int64_t in, int64_t out, float eps, \
                                                       int64_t each) {                                                                    \
    stepProduct<W, G>(x, norm, weight, bias, residual, y, batch, in, out, eps, each);                                                     \
  }                                                                                                                                       \
  extern "C" __global__ void step_conv_##NAME##_##G(const float *vz, const float *context, const float *taps, const float *bias,          \
                                                    const W *weight, float *u, float *rbc, int64_t batch, int64_t channels, int64_t width, \
                                                    int64_t columns) {                                                                    \
    stepConv<W, G>(vz, context, taps, bias, weight, u, rbc, batch, channels, width, columns);                                             \
  }
#define STEPS(NAME, W)                                                                                                                      \
  STEP(NAME, W, 1) STEP(NAME, W, 4) STEP(NAME, W, 8)                                                                            \
  extern "C" __global__ void step_scan_##NAME(const float *vz, const float *u, const float *rbc, const W *dtProj, const float *dtBias,      \
                                              const float *alog, const float *skip, const float *h, const float *context, float *y,         \
                                              float *hNext, float *contextNext, int64_t channels, int64_t states, int64_t width,            \
                                              int64_t rank) {                                                                               \
    stepScan(vz, u, rbc, dtProj, dtBias, alog, skip, h, context, y, hNext, contextNext, channels, states, width, rank);                     \
  }                                                                                                                                         \
  extern "C" __global__ void step_scan_many_##NAME(const W *vz, const W *u, const W *rbc, const W *dtProj, const float *dtBias,             \
                                                   const float *alog, const float *skip, const float *h, const float *context, W *y,        \
                                                   float *hNext, float *contextNext, int64_t channels, int64_t states, int64_t width,       \
                                                   int64_t rank) {                                                                          \
    stepScan(vz, u, rbc, dtProj, dtBias, alog, skip, h, context, y, hNext, contextNext, channels, states, width, rank);                     \
  }                                                                                                                                         \
  extern "C" __global__ void step_convolve_##NAME(const W *vz, const float *context, const float *taps, const float *bias, W *u,            \
                                                  int64_t batch, int64_t channels, int64_t width) {                                         \
    stepConvolve(vz, context, taps, bias, u, batch, channels, width);                                                                       \
  }
