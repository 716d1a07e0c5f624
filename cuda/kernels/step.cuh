// A step of generation, one token for each sequence of a batch: matrix-vector products that read each weight once for up to G sequences. The
// operations between the products are part of their kernels. Activations are float, weights are float or bfloat16.
#pragma once
#include "vector.cuh"

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

// sumParts returns the sum of count rows of width numbers, a multiple of 4, in a fixed order. It is at the end of shared, which has
// (max(1, 1024 / width) + 1) · width numbers. A block of 256 threads calls it.
__device__ __forceinline__ const float *sumParts(const float *rows, int count, int width, float *shared) {
  const int groups = max(1, 4 * 256 / width);
  for (int i = threadIdx.x; i < width / 4 * groups; i += 256) {
    const int v = i % (width / 4), group = i / (width / 4);
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (int p = group; p < count; p += groups) {
      const float4 q = four(rows + (int64_t)p * width + 4 * v);
      sum.x += q.x, sum.y += q.y, sum.z += q.z, sum.w += q.w;
    }
    *(float4 *)(shared + group * width + 4 * v) = sum;
  }
  __syncthreads();
  float *total = shared + groups * width;
  for (int i = threadIdx.x; i < width; i += 256) {
    float sum = 0.f;
    for (int group = 0; group < groups; group++) sum += shared[group * width + i];
    total[i] = sum;
  }
  __syncthreads();
  return total;
}

// stepScanRows is stepScan for the sequences from each·blockIdx.y on, each of them, without the context. A thread computes four states of a channel at a
// time, and four threads a channel, so that a warp reads whole runs of states. The rows of z are stride elements apart. The block has shared memory for
// rbc of its sequences. If parts is not 0, rbc are that many rows of rank + 2 states numbers, rounded up to a multiple of 16, whose sum is that of a
// sequence; then each is 1, and the block has the shared memory of sumParts.
template <class W, class A>
__device__ __forceinline__ void stepScanRows(const A *z, const A *u, const A *rbc, const W *dtProj, const float *dtBias, const float *alog,
                                             const float *skip, const float *h, A *y, float *hNext, int64_t batch, int64_t channels, int stride,
                                             int states, int rank, int each, int parts) {
  constexpr int R = 4;  // a thread keeps 4 R numbers of a row of dt_proj
  letNextBegin();
  const int lane = threadIdx.x % 4, columns = rank + 2 * states;
  const int64_t d = (int64_t)blockIdx.x * (blockDim.x / 4) + threadIdx.x / 4;
  const bool here = d < channels, fours = rank % 4 == 0 && states % 4 == 0 && ((uint64_t)dtProj | (uint64_t)h | (uint64_t)hNext) % 16 == 0;
  float4 w[R];
  float a[4] = {0, 0, 0, 0}, skipped = 0.f, bias = 0.f;
  if (here) {
    skipped = skip[d], bias = dtBias[d];
#pragma unroll
    for (int j = 0; j < R; j++)
      if (fours && 4 * (lane + 4 * j) < rank) w[j] = four(dtProj + d * rank + 4 * (lane + 4 * j));
#pragma unroll
    for (int k = 0; k < 4; k++)
      if (4 * lane + k < states) a[k] = -expf(alog[d * states + 4 * lane + k]);
  }
  awaitLast();
  const int64_t from = (int64_t)blockIdx.y * each, to = min(from + each, batch);
  auto stateOf = [&](int64_t b) { return *(const float4 *)(h + (b * channels + d) * states + 4 * lane); };
  const bool reads = here && fours && 4 * lane < states;
  float4 coming = make_float4(0, 0, 0, 0);
  float nextX = 0.f, nextZ = 0.f;
  auto read = [&](int64_t b) {
    if (here && b < to) nextX = value(u[b * channels + d]), nextZ = value(z[b * stride + d]);
    if (reads && b < to) coming = stateOf(b);
  };
  read(from);
  extern __shared__ __align__(16) float shared[];
  const float *all = shared;
  if (parts > 0) {
    if constexpr (sizeof(A) == sizeof(float)) all = sumParts(rbc + from * parts * ((columns + 15) / 16 * 16), parts, (columns + 15) / 16 * 16, shared);
  } else {
    for (int i = threadIdx.x; i < (int)(to - from) * columns; i += blockDim.x) shared[i] = value(rbc[from * columns + i]);
    __syncthreads();
  }
  for (int64_t b = from; b < to; b++) {
    const float4 before = coming;
    const float x = nextX, gate = nextZ;
    read(b + 1);
    const float *r = all + (int)(b - from) * columns, *B = r + rank, *C = B + states;
    float dt = 0.f, sum = 0.f;
    auto dot = [&](float4 p, float4 q) { dt = fmaf(p.x, q.x, fmaf(p.y, q.y, fmaf(p.z, q.z, fmaf(p.w, q.w, dt)))); };
    if (here && fours) {
#pragma unroll
      for (int j = 0; j < R; j++)
        if (4 * (lane + 4 * j) < rank) dot(w[j], four(r + 4 * (lane + 4 * j)));
      for (int i = 4 * (lane + 4 * R); i < rank; i += 16) dot(four(dtProj + d * rank + i), four(r + i));
    } else if (here) {
      for (int i = lane; i < rank; i += 4) dt = fmaf(value(dtProj[d * rank + i]), r[i], dt);
    }
    dt += __shfl_xor_sync(~0u, dt, 2);
    dt += __shfl_xor_sync(~0u, dt, 1);
    dt += bias;
    dt = fmaxf(dt, 0.f) + log1pf(expf(-fabsf(dt)));
    auto one = [&](float decay, float old, float in, float out) {
      const float v = fmaf(expf(dt * decay), old, dt * x * in);
      sum = fmaf(v, out, sum);
      return v;
    };
    float *next = hNext + (b * channels + d) * states;
    if (reads) {
      const float4 in = four(B + 4 * lane), out = four(C + 4 * lane);
      *(float4 *)(next + 4 * lane) = make_float4(one(a[0], before.x, in.x, out.x), one(a[1], before.y, in.y, out.y), one(a[2], before.z, in.z, out.z),
                                                 one(a[3], before.w, in.w, out.w));
    }
    if (here) {
      const float *old = h + (b * channels + d) * states;
      for (int n = fours ? 16 + 4 * lane : 4 * lane; n < states; n += 16)
        for (int k = n; k < min(n + 4, states); k++) next[k] = one(k < 16 ? a[k % 4] : -expf(alog[d * states + k]), old[k], B[k], C[k]);
    }
    sum += __shfl_xor_sync(~0u, sum, 2);
    sum += __shfl_xor_sync(~0u, sum, 1);
    if (here && lane == 0) y[b * channels + d] = ::to<A>(fmaf(skipped, x, sum) * (gate * sigmoid(gate)));
  }
}

// addAcross adds four numbers of each of four lanes: lane l gets the sum of number l, in the order of two butterfly exchanges.
__device__ __forceinline__ float addAcross(const float (&v)[4], int lane) {
  const bool high = lane & 2, odd = lane & 1;
  const float a = (high ? v[2] : v[0]) + __shfl_xor_sync(~0u, high ? v[0] : v[2], 2);
  const float b = (high ? v[3] : v[1]) + __shfl_xor_sync(~0u, high ? v[1] : v[3], 2);
  return (odd ? b : a) + __shfl_xor_sync(~0u, odd ? a : b, 1);
}

// stepScanFour computes what stepScanRows does, bit for bit, four sequences at a time: each of the four threads of a channel computes Δ and y of one of
// them, and four states of all. So four times as many states are on their way from memory. rank is a multiple of four, states is 4, 8, 12 or 16, and
// dt_proj, h and hNext lie at multiples of 16 bytes.
template <class W, class A>
__device__ __forceinline__ void stepScanFour(const A *z, const A *u, const A *rbc, const W *dtProj, const float *dtBias, const float *alog,
                                             const float *skip, const float *h, A *y, float *hNext, int64_t batch, int64_t channels, int stride,
                                             int states, int rank, int each) {
  constexpr int R = 4, Q = 4;  // a thread keeps 4 R numbers of a row of dt_proj
  letNextBegin();
  const int lane = threadIdx.x % 4, columns = rank + 2 * states;
  const int64_t d = (int64_t)blockIdx.x * (blockDim.x / 4) + threadIdx.x / 4;
  const bool here = d < channels, reads = here && 4 * lane < states;
  float4 w[R];
  float a[4] = {0, 0, 0, 0}, skipped = 0.f, bias = 0.f;
#pragma unroll
  for (int j = 0; j < R; j++) w[j] = here && 4 * (lane + 4 * j) < rank ? four(dtProj + d * rank + 4 * (lane + 4 * j)) : make_float4(0, 0, 0, 0);
  if (here) skipped = skip[d], bias = dtBias[d];
#pragma unroll
  for (int k = 0; k < 4; k++)
    if (reads) a[k] = -expf(alog[d * states + 4 * lane + k]);
  awaitLast();
  const int64_t from = (int64_t)blockIdx.y * each, row = channels * states;
  const int count = (int)min((int64_t)each, batch - from);
  h += from * row + d * states + 4 * lane, hNext += from * row + d * states + 4 * lane;
  u += from * channels + d, z += from * stride + d, y += from * channels + d;
  float4 before[Q];
  float x, gate;
  auto read = [&](int s) {
    x = gate = 0.f;
    if (here && s + lane < count) x = value(u[(s + lane) * channels]), gate = value(z[(int64_t)(s + lane) * stride]);
#pragma unroll
    for (int q = 0; q < Q; q++) before[q] = reads && s + q < count ? *(const float4 *)(h + (s + q) * row) : make_float4(0, 0, 0, 0);
  };
  read(0);
  extern __shared__ __align__(16) float shared[];
  for (int i = threadIdx.x; i < count * columns; i += blockDim.x) shared[i] = value(rbc[from * columns + i]);
  __syncthreads();
  for (int s = 0; s < count; s += Q) {
    float sum[Q];
#pragma unroll
    for (int q = 0; q < Q; q++) {
      const float *r = shared + min(s + q, count - 1) * columns;
      float dt = 0.f;
      auto dot = [&](float4 p, float4 v) { dt = fmaf(p.x, v.x, fmaf(p.y, v.y, fmaf(p.z, v.z, fmaf(p.w, v.w, dt)))); };
#pragma unroll
      for (int j = 0; j < R; j++)
        if (4 * (lane + 4 * j) < rank) dot(w[j], four(r + 4 * (lane + 4 * j)));
      if (here)
        for (int i = 4 * (lane + 4 * R); i < rank; i += 16) dot(four(dtProj + d * rank + i), four(r + i));
      sum[q] = dt;
    }
    float dt = addAcross(sum, lane) + bias;
    dt = fmaxf(dt, 0.f) + log1pf(expf(-fabsf(dt)));
    const float dtx = dt * x;
#pragma unroll
    for (int q = 0; q < Q; q++) {
      const float *B = shared + min(s + q, count - 1) * columns + rank, *C = B + states;
      const int source = threadIdx.x % 32 - lane + q;
      const float t = __shfl_sync(~0u, dt, source), tx = __shfl_sync(~0u, dtx, source);
      sum[q] = 0.f;
      if (!reads || s + q >= count) continue;
      const float4 in = four(B + 4 * lane), out = four(C + 4 * lane);
      auto one = [&](float decay, float old, float in, float out) {
        const float v = fmaf(expf(t * decay), old, tx * in);
        sum[q] = fmaf(v, out, sum[q]);
        return v;
      };
      float4 next;
      next.x = one(a[0], before[q].x, in.x, out.x), next.y = one(a[1], before[q].y, in.y, out.y);
      next.z = one(a[2], before[q].z, in.z, out.z), next.w = one(a[3], before[q].w, in.w, out.w);
      *(float4 *)(hNext + (s + q) * row) = next;
    }
    const float all = addAcross(sum, lane);
    if (here && s + lane < count) y[(s + lane) * channels] = ::to<A>(fmaf(skipped, x, all) * (gate * sigmoid(gate)));
    read(s + Q);
  }
}

// stepConvolve computes u = SiLU(conv) and the next context of many sequences, V channels a thread. The rows of v are stride elements apart.
template <class A, int V>
__device__ __forceinline__ void stepConvolve(const A *v, const float *context, const float *taps, const float *bias, A *u, float *contextNext,
                                             int64_t batch, int64_t channels, int stride, int width) {
  letNextBegin();
  const int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V, b = i / channels, d = i % channels;
  float now[V], sum[V], old[V];
#pragma unroll
  for (int k = 0; k < V; k++) sum[k] = bias ? bias[d + k] : 0.f;
  awaitLast();
  if (b >= batch) return;
  load<V>(v + b * stride + d, now);
  const float *from = context + b * (width - 1) * channels + d;
  float *next = contextNext + b * (width - 1) * channels + d;
#pragma unroll 3
  for (int j = 0; j < width - 1; j++) {
    load<V>(from + j * channels, old);
#pragma unroll
    for (int k = 0; k < V; k++) sum[k] = fmaf(taps[(d + k) * width + j], old[k], sum[k]);
    if (j > 0) store<V>(next + (j - 1) * channels, old);
  }
  if (width > 1) store<V>(next + (int64_t)(width - 2) * channels, now);
#pragma unroll
  for (int k = 0; k < V; k++) sum[k] = fmaf(taps[(d + k) * width + width - 1], now[k], sum[k]), sum[k] *= sigmoid(sum[k]);
  store<V>(u + i, sum);
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
  }
