// One step of one token for each sequence of a batch, as generation makes them: matrix-vector products that read each weight once
// for up to G sequences, with what stands between them at their ends. Activations are float; weights float or bfloat16.
#include "types.cuh"

// Four numbers of a weight.
__device__ __forceinline__ float4 four(const float *p) { return *(const float4 *)p; }
__device__ __forceinline__ float4 four(const bf16 *p) {
  const uint2 v = *(const uint2 *)p;
  return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u));
}

// rowTimes adds a row of the weight times each of G vectors, which lie in shared memory, over a warp.
template <class W, int G> __device__ __forceinline__ void rowTimes(const W *row, const float *x, int64_t in, float (&sum)[G]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int g = 0; g < G; g++) sum[g] = 0.f;
  if (in % 4 == 0 && (uint64_t)row % (4 * sizeof(W)) == 0) {
#pragma unroll 4
    for (int64_t i = 4 * lane; i < in; i += 128) {
      const float4 w = four(row + i);
#pragma unroll
      for (int g = 0; g < G; g++) {
        const float4 v = *(const float4 *)(x + g * in + i);
        sum[g] = fmaf(w.x, v.x, fmaf(w.y, v.y, fmaf(w.z, v.z, fmaf(w.w, v.w, sum[g]))));
      }
    }
  } else {
    for (int64_t i = lane; i < in; i += 32) {
#pragma unroll
      for (int g = 0; g < G; g++) sum[g] = fmaf(value(row[i]), x[g * in + i], sum[g]);
    }
  }
#pragma unroll
  for (int g = 0; g < G; g++) sum[g] = warpSum(sum[g]);
}

// stepProduct: y (batch, out) = weight (out, in) · x (batch, in), x through RMSNorm if norm is there, plus bias and, if add, y.
template <class W, int G>
__device__ __forceinline__ void stepProduct(const float *x, const float *norm, const W *weight, const float *bias, float *y, int64_t batch,
                                            int64_t in, int64_t out, float eps, int32_t add, int64_t each) {
  extern __shared__ __align__(16) float shared[];
  __shared__ float scale[G];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int64_t first = (int64_t)blockIdx.y * G;
  for (int64_t i = threadIdx.x; i < G * in; i += blockDim.x) shared[i] = first + i / in < batch ? x[first * in + i] : 0.f;
  if (norm) {
    __syncthreads();
    for (int g = warp; g < G; g += warps) {
      double sum = 0;
      for (int64_t i = lane; i < in; i += 32) sum += (double)shared[g * in + i] * shared[g * in + i];
      sum = warpSum(sum);
      if (lane == 0) scale[g] = (float)(1 / sqrt(sum / in + eps));
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < G * in; i += blockDim.x) shared[i] *= scale[i / in] * norm[i % in];
  }
  __syncthreads();
  for (int64_t r = 0; r < each; r++) {
    const int64_t o = ((int64_t)blockIdx.x * each + r) * warps + warp;
    if (o >= out) return;
    float sum[G];
    rowTimes<W, G>(weight + o * in, shared, in, sum);
#pragma unroll
    for (int g = 0; g < G; g++) {
      if (lane == g && first + g < batch) {
        float *to = y + (first + g) * out + o;
        *to = sum[g] + (bias ? bias[o] : 0.f) + (add ? *to : 0.f);
      }
    }
  }
}

// stepConv: u = SiLU(conv), kept by the first block, and rbc (batch, columns) = x_proj · u.
template <class W, int G>
__device__ __forceinline__ void stepConv(const float *vz, const float *context, const float *taps, const float *bias, const W *weight, float *u,
                                         float *rbc, int64_t batch, int64_t channels, int64_t width, int64_t columns) {
  extern __shared__ __align__(16) float shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int64_t first = (int64_t)blockIdx.y * G;
  for (int64_t i = threadIdx.x; i < G * channels; i += blockDim.x) {
    const int64_t b = first + i / channels, d = i % channels;
    float sum = 0.f;
    if (b < batch) {
      sum = bias ? bias[d] : 0.f;
      for (int64_t k = 0; k < width - 1; k++) sum = fmaf(taps[d * width + k], context[(b * (width - 1) + k) * channels + d], sum);
      sum = fmaf(taps[d * width + width - 1], vz[b * 2 * channels + d], sum);
      sum *= sigmoid(sum);
      if (blockIdx.x == 0) u[b * channels + d] = sum;
    }
    shared[i] = sum;
  }
  __syncthreads();
  const int64_t o = (int64_t)blockIdx.x * warps + warp;
  if (o >= columns) return;
  float sum[G];
  rowTimes<W, G>(weight + o * channels, shared, channels, sum);
#pragma unroll
  for (int g = 0; g < G; g++)
    if (lane == g && first + g < batch) rbc[(first + g) * columns + o] = sum[g];
}

// stepScan: Δ, the state's step, the gate, and the context's step; 16 threads take a channel.
template <class W>
__device__ __forceinline__ void stepScan(const float *vz, const float *u, const float *rbc, const W *dtProj, const float *dtBias,
                                         const float *alog, const float *skip, float *h, float *context, float *y, int64_t channels,
                                         int64_t states, int64_t width, int64_t rank) {
  const int lane = threadIdx.x % 16;
  const int64_t d = (int64_t)blockIdx.x * (blockDim.x / 16) + threadIdx.x / 16, b = blockIdx.y, columns = rank + 2 * states;
  const bool here = d < channels;
  const float *r = rbc + b * columns, *B = r + rank, *C = B + states;
  float dt = 0.f, sum = 0.f;
  if (here)
    for (int64_t i = lane; i < rank; i += 16) dt = fmaf(value(dtProj[d * rank + i]), r[i], dt);
#pragma unroll
  for (int m = 8; m > 0; m /= 2) dt += __shfl_xor_sync(~0u, dt, m);
  if (here) {
    dt += dtBias[d];
    dt = fmaxf(dt, 0.f) + log1pf(expf(-fabsf(dt)));
    const float in = dt * u[b * channels + d];
    for (int64_t n = lane; n < states; n += 16) {
      float *at = h + (b * channels + d) * states + n;
      const float v = fmaf(expf(-dt * expf(alog[d * states + n])), *at, in * B[n]);
      *at = v, sum = fmaf(v, C[n], sum);
    }
  }
#pragma unroll
  for (int m = 8; m > 0; m /= 2) sum += __shfl_xor_sync(~0u, sum, m);
  if (here && lane == 0) {
    const float z = vz[b * 2 * channels + channels + d];
    y[b * channels + d] = fmaf(skip[d], u[b * channels + d], sum) * (z * sigmoid(z));
    for (int64_t k = 0; k + 1 < width; k++)
      context[(b * (width - 1) + k) * channels + d] = k + 2 < width ? context[(b * (width - 1) + k + 1) * channels + d] : vz[b * 2 * channels + d];
  }
}

#define STEP(NAME, W, G)                                                                                                                  \
  extern "C" __global__ void step_product_##NAME##_##G(const float *x, const float *norm, const W *weight, const float *bias, float *y,   \
                                                       int64_t batch, int64_t in, int64_t out, float eps, int32_t add, int64_t each) {    \
    stepProduct<W, G>(x, norm, weight, bias, y, batch, in, out, eps, add, each);                                                          \
  }                                                                                                                                       \
  extern "C" __global__ void step_conv_##NAME##_##G(const float *vz, const float *context, const float *taps, const float *bias,          \
                                                    const W *weight, float *u, float *rbc, int64_t batch, int64_t channels, int64_t width, \
                                                    int64_t columns) {                                                                    \
    stepConv<W, G>(vz, context, taps, bias, weight, u, rbc, batch, channels, width, columns);                                             \
  }
#define STEPS(NAME, W)                                                                                                                      \
  STEP(NAME, W, 1) STEP(NAME, W, 2) STEP(NAME, W, 4) STEP(NAME, W, 8)                                                                       \
  extern "C" __global__ void step_scan_##NAME(const float *vz, const float *u, const float *rbc, const W *dtProj, const float *dtBias,      \
                                              const float *alog, const float *skip, float *h, float *context, float *y, int64_t channels,   \
                                              int64_t states, int64_t width, int64_t rank) {                                                \
    stepScan<W>(vz, u, rbc, dtProj, dtBias, alog, skip, h, context, y, channels, states, width, rank);                                      \
  }
STEPS(float, float)
STEPS(bf16, bf16)
