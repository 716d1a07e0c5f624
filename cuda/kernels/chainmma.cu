// A step of generation through a chain of Mamba blocks in one launch: what the kernels of step.cuh compute one after another.
//
// All blocks of threads are on the device at the same time, one on a multiprocessor (a cooperative launch). Each owns some channels, some rows
// of x_proj and some rows of out_proj in every layer. It copies its rows of a weight to shared memory as soon as it has used those of the layer
// before, so that the memory works while the blocks wait for each other. A warp multiplies a row, or the two rows of a channel, at a time.
//
// Blocks exchange vectors through boxes: words of 64 bits, a number and a tag, the layer that it belongs to. A reader waits until the word has
// its tag, so it needs neither a barrier nor a flag. Nobody overwrites a box that another block still reads: who writes u of the next layer has
// read all x of this one, which their writers computed after they had read all y, and so on.
//
// A warp executes few instructions between two exchanges, since each of them waits for the one before.
#include "mma.cuh"

constexpr int CHAIN_LAYERS = 28, CHAIN_WARPS = 12, CHAIN_THREADS = 32 * CHAIN_WARPS, CHAIN_OWN = 8;

struct ChainLayer {
  const float *inProj, *xProj, *outProj;
  const float *inBias, *outBias, *norm;
  float *contextNext, *hNext;
  const void *own[CHAIN_OWN];  // conv, convBias, dtBias, skip, alog, dtProj, context, h: of these a block needs what belongs to its channels
};

struct Chain {
  int32_t layers, batch, model, channels, states, width, rank;
  int32_t channelsEach, columnsEach, modelEach;  // what a block owns
  float eps;
  const float *x;                                // (batch, model)
  float *y;                                      // (batch, model)
  uint64_t *boxes;                               // zeros: x (G, model), u (G, channels), rbc (G, columns), y (G, channels)
  ChainLayer layer[CHAIN_LAYERS];
};

// numbers reads 16 bytes of a weight.
__device__ __forceinline__ void numbers(float (&v)[4], const float *p) {
  const float4 q = *(const float4 *)p;
  v[0] = q.x, v[1] = q.y, v[2] = q.z, v[3] = q.w;
}

// dot adds the products of ROWS rows of n weights, step elements apart, with G vectors of n numbers to sums[row G + g]. With norm, the weights
// are first multiplied by norm, and the sums of the vectors' squares are added to sums[ROWS G + g]. All are in shared memory. n is a multiple
// of 8.
template <int ROWS, int G, bool NORM, int N>
__device__ __forceinline__ void dot(const float *row, int step, const float *x, const float *norm, int n, float (&sums)[N]) {
  constexpr int E = 4;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < N; j++) sums[j] = 0.f;
#pragma unroll(G > 1 ? 1 : ROWS > 1 ? 3 : 6)
  for (int i = lane * E; i < n; i += 32 * E) {
    float w[ROWS][E];
#pragma unroll
    for (int r = 0; r < ROWS; r++) numbers(w[r], row + r * step + i);
    if (NORM) {
#pragma unroll
      for (int e = 0; e < E; e += 4) {
        const float4 m = *(const float4 *)(norm + i + e);
#pragma unroll
        for (int r = 0; r < ROWS; r++) w[r][e] *= m.x, w[r][e + 1] *= m.y, w[r][e + 2] *= m.z, w[r][e + 3] *= m.w;
      }
    }
#pragma unroll
    for (int g = 0; g < G; g++) {
#pragma unroll
      for (int e = 0; e < E; e += 4) {
        const float4 v = *(const float4 *)(x + g * n + i + e);
#pragma unroll
        for (int r = 0; r < ROWS; r++)
          sums[r * G + g] = fmaf(w[r][e], v.x, fmaf(w[r][e + 1], v.y, fmaf(w[r][e + 2], v.z, fmaf(w[r][e + 3], v.w, sums[r * G + g]))));
        if (NORM) sums[ROWS * G + g] = fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, fmaf(v.w, v.w, sums[ROWS * G + g]))));
      }
    }
  }
}

// await copies the G vectors of n numbers of a box to shared memory as soon as they have the tag. n is even. All threads of a block call it. One
// thread waits for one word before all look at theirs, because words that many threads read come late.
template <int G> __device__ __forceinline__ void await(float *to, const uint64_t *box, int batch, int n, uint32_t tag) {
  constexpr int U = G == 1 ? 2 : 1;
  if (threadIdx.x == 0)
    while (readBox(box + n - 2).tagA != tag) waitABit();
  __syncthreads();
  for (int i = 2 * threadIdx.x; i < n; i += 2 * U * CHAIN_THREADS) {
    Box v[U][G];
    bool all;
    do {
      all = true;
#pragma unroll
      for (int u = 0; u < U; u++)
#pragma unroll
        for (int g = 0; g < G; g++)
          if ((u == 0 || i + 2 * u * CHAIN_THREADS < n) && g < batch) v[u][g] = readBox(box + g * n + i + 2 * u * CHAIN_THREADS);
#pragma unroll
      for (int u = 0; u < U; u++)
#pragma unroll
        for (int g = 0; g < G; g++)
          if ((u == 0 || i + 2 * u * CHAIN_THREADS < n) && g < batch) all = all && v[u][g].tagA == tag && v[u][g].tagB == tag;
      if (!all) waitABit();
    } while (!all);
#pragma unroll
    for (int u = 0; u < U; u++)
#pragma unroll
      for (int g = 0; g < G; g++)
        if ((u == 0 || i + 2 * u * CHAIN_THREADS < n) && g < batch) *(float2 *)(to + g * n + i + 2 * u * CHAIN_THREADS) = make_float2(v[u][g].a, v[u][g].b);
  }
}

// copyRun begins to copy bytes, a multiple of 16, with a part of the block's threads.
__device__ __forceinline__ void copyRun(void *to, const void *from, int bytes, int thread, int threads) {
#pragma unroll 4
  for (int i = thread * 16; i < bytes; i += threads * 16) copyLater<16>((char *)to + i, (const char *)from + i, true);
}

#ifndef STAMP
#define STAMP(I)
#endif

template <int G> __device__ __forceinline__ void chain(const Chain &c) {
  extern __shared__ __align__(16) float shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, p = blockIdx.x;
  const int model = c.model, channels = c.channels, states = c.states, past = c.width - 1, rank = c.rank, batch = c.batch;
  const int columns = (rank + 2 * states + 1) / 2 * 2;  // the last one may be empty
  const int each = c.channelsEach, channel = min(p * each, channels), mine = min(each, channels - channel);
  const int column = min(p * c.columnsEach, columns), columnsMine = min(c.columnsEach, columns - column);
  const int out = min(p * c.modelEach, model), outMine = min(c.modelEach, model - out);
  const int projected = max(0, min(columnsMine, rank + 2 * states - column));
  const float inverse = 1.f / (float)model;
  uint64_t *boxX = c.boxes, *boxU = boxX + G * model, *boxR = boxU + G * channels, *boxY = boxR + G * columns;

  // Shared memory: weights, vectors, and what belongs to the block's channels, of two layers by turns. cuda/chain.go computes the size.
  float *inProj = shared, *xProj = inProj + 2 * each * model, *outProj = xProj + c.columnsEach * channels;
  float *norms = outProj + c.modelEach * channels;
  float *xs = norms + 2 * model, *ys = xs + G * model, *rbc = ys + G * channels, *us = rbc + G * ((columns + 3) / 4 * 4);
  float *zs = us + G * each, *residual = zs + G * each, *own = residual + (G * c.modelEach + 3) / 4 * 4;
  const int at[CHAIN_OWN + 1] = {0, each * c.width, each * (c.width + 1), each * (c.width + 2), each * (c.width + 3), each * (c.width + 3 + states),
                                 each * (c.width + 3 + states + rank), each * (c.width + 3 + states + rank + G * past),
                                 each * (c.width + 3 + states + rank + G * (past + states))};
  // A warp copies one of these: runs of bytes.
  int ownAt = 0, ownBytes = 0, ownRuns = 1;
  int64_t ownFrom = 0;
#pragma unroll
  for (int i = 0; i < CHAIN_OWN; i++) {
    if (i != warp) continue;
    const int size = i == 0 ? 4 * c.width : i == 4 || i == 7 ? 4 * states : i == 5 ? 4 * rank : 4;  // bytes of a channel
    ownAt = at[i], ownBytes = mine * size, ownFrom = (int64_t)channel * size, ownRuns = i == 6 ? batch * past : i == 7 ? batch : 1;
  }
  // Copies are begun in four portions a layer: a wait takes as long as the copies that were begun before it.
  auto loadIn = [&](int l, int part) {  // a third of in_proj
    const int bytes = mine * model * 4, from = bytes / 48 * part * 16, to = part == 2 ? bytes : bytes / 48 * (part + 1) * 16;
#pragma unroll
    for (int half = 0; half < 2; half++)
      copyRun((char *)(inProj + half * each * model) + from, (const char *)(c.layer[l].inProj + (int64_t)(half * channels + channel) * model) + from,
              to - from, threadIdx.x, CHAIN_THREADS);
  };
  auto loadOwn = [&](int l) {  // what belongs to the channels
    if (warp >= CHAIN_OWN || !c.layer[l].own[warp]) return;
    const char *from = (const char *)c.layer[l].own[warp] + ownFrom;
    float *to = own + l % 2 * at[CHAIN_OWN] + ownAt;
    for (int run = 0; run < ownRuns; run++) {
      copyRun(to, from, ownBytes, lane, 32);
      to += warp == 7 ? each * states : each, from += (int64_t)channels * (warp == 7 ? 4 * states : 4);
    }
  };
  auto loadColumns = [&](int l) { copyRun(xProj, c.layer[l].xProj + (int64_t)column * channels, projected * channels * 4, threadIdx.x, CHAIN_THREADS); };
  auto loadOut = [&](int l) {  // out_proj, and the norm of the next layer
    copyRun(outProj, c.layer[l].outProj + (int64_t)out * channels, outMine * channels * 4, threadIdx.x, CHAIN_THREADS);
    if (l + 1 < c.layers) copyRun(norms + (l + 1) % 2 * model, c.layer[l + 1].norm, model * 4, threadIdx.x, CHAIN_THREADS);
  };

  copyRun(norms, c.layer[0].norm, model * 4, threadIdx.x, CHAIN_THREADS);
  loadIn(0, 0), loadIn(0, 1), loadIn(0, 2), loadOwn(0), loadColumns(0), commitCopies();
  loadOut(0), commitCopies();
  for (int i = threadIdx.x; i < G * model; i += CHAIN_THREADS) xs[i] = i < batch * model ? c.x[i] : 0.f;
  for (int i = threadIdx.x; i < G * channels; i += CHAIN_THREADS) ys[i] = 0.f;
  for (int i = threadIdx.x; i < outMine * G; i += CHAIN_THREADS) residual[i] = i % G < batch ? c.x[i % G * model + out + i / G] : 0.f;

  for (int l = 0; l < c.layers; l++) {
    const ChainLayer &w = c.layer[l];
    const float *o = own + l % 2 * at[CHAIN_OWN];
    const bool more = l + 1 < c.layers;
    const uint32_t tag = l + 1;

    // v and z = in_proj · norm(x), then u = SiLU(conv(v)).
    STAMP(0)
    if (l > 0 && mine > 0) await<G>(xs, boxX, batch, model, tag - 1);
    copiedBut<1>();
    STAMP(1)
    __syncthreads();
    for (int j = warp; j < mine; j += CHAIN_WARPS) {
      float sums[4 * G];
      dot<2, G, true>(inProj + j * model, each * model, xs, norms + l % 2 * model, model, sums);
      const float sum = warpTotal(sums);
      const int g = lane % G, d = channel + j;
      const float scale = rsqrtf(fmaf(__shfl_sync(~0u, sum, 2 * G + g), inverse, c.eps));
      float v = __shfl_sync(~0u, sum, g) * scale, z = __shfl_sync(~0u, sum, G + g) * scale;
      if (lane < batch) {
        if (w.inBias) v += w.inBias[d], z += w.inBias[channels + d];
        const float *conv = o + at[0] + j * c.width, *context = o + at[6] + g * past * each + j;
        float u = w.own[1] ? o[at[1] + j] : 0.f;
        for (int k = 0; k < past; k++) u = fmaf(conv[k], context[k * each], u);
        u = fmaf(conv[past], v, u);
        u *= sigmoid(u);
        writeBox(boxU + g * channels + d, u, tag);
        us[j * G + g] = u, zs[j * G + g] = z * sigmoid(z);
        for (int k = 0; k < past; k++) w.contextNext[((int64_t)g * past + k) * channels + d] = k + 1 < past ? context[(k + 1) * each] : v;
      }
    }
    STAMP(2)
    __syncthreads();
    if (more) loadIn(l + 1, 0), loadOwn(l + 1);
    commitCopies();
    STAMP(3)

    // r, B and C = x_proj · u.
    if (columnsMine > 0) await<G>(ys, boxU, batch, channels, tag);
    STAMP(4)
    __syncthreads();
    for (int j = warp; j < columnsMine; j += CHAIN_WARPS) {
      float sums[G];
      dot<1, G, false>(xProj + min(j, max(projected - 1, 0)) * channels, 0, ys, ys, channels, sums);
      const float sum = warpTotal(sums);
      if (lane < batch) writeBox(boxR + lane * columns + column + j, sum, tag);
    }
    __syncwarp();  // a warp whose lanes have parted could wait for what one of them has not written yet
    STAMP(5)
    if (more) loadIn(l + 1, 1);
    commitCopies();

    // Δ, the next state, and the gated output. 16 lanes compute a channel of a sequence.
    if (mine > 0) await<G>(rbc, boxR, batch, columns, tag);
    STAMP(6)
    __syncthreads();
    const int member = lane % 16;
    for (int job = threadIdx.x / 16; job < (mine * G + 1) / 2 * 2; job += CHAIN_THREADS / 16) {
      const int j = job / G, g = job % G, d = channel + j;
      const bool here = j < mine && g < batch;
      const float *r = rbc + g * columns, *B = r + rank, *C = B + states;
      float dt = 0.f, sum = 0.f, x = 0.f, a = 0.f;
      if (here) {
        const float *dtProj = o + at[5] + j * rank;
#pragma unroll 4
        for (int i = member; i < rank; i += 16) dt = fmaf(dtProj[i], r[i], dt);
        x = us[job];
        if (member < states) a = -expf(o[at[4] + j * states + member]);
      }
#pragma unroll
      for (int m = 8; m > 0; m /= 2) dt += __shfl_xor_sync(~0u, dt, m);
      if (here) {
        dt += o[at[2] + j];
        dt = fmaxf(dt, 0.f) + log1pf(expf(-fabsf(dt)));
        for (int n = member; n < states; n += 16) {
          if (n >= 16) a = -expf(o[at[4] + j * states + n]);
          const float v = fmaf(expf(dt * a), o[at[7] + (g * each + j) * states + n], dt * x * B[n]);
          w.hNext[((int64_t)g * channels + d) * states + n] = v, sum = fmaf(v, C[n], sum);
        }
      }
#pragma unroll
      for (int m = 8; m > 0; m /= 2) sum += __shfl_xor_sync(~0u, sum, m);
      if (here && member == 0) writeBox(boxY + g * channels + d, fmaf(o[at[3] + j], x, sum) * zs[job], tag);
    }
    __syncwarp();
    STAMP(7)
    if (more) loadIn(l + 1, 2), loadColumns(l + 1);
    commitCopies();

    // x = x + out_proj · y.
    if (outMine > 0) await<G>(ys, boxY, batch, channels, tag);
    STAMP(8)
    copiedBut<3>();
    __syncthreads();
    for (int j = warp; j < outMine; j += CHAIN_WARPS) {
      float sums[G];
      dot<1, G, false>(outProj + j * channels, 0, ys, ys, channels, sums);
      const float sum = warpTotal(sums);
      if (lane < batch) {
        const float v = sum + (w.outBias ? w.outBias[out + j] : 0.f) + residual[j * G + lane];
        residual[j * G + lane] = v;
        if (more)
          writeBox(boxX + lane * model + out + j, v, tag);
        else
          c.y[lane * model + out + j] = v;
      }
    }
    STAMP(9)
    __syncthreads();
    if (more) loadOut(l + 1);
    commitCopies();
  }
}

#define CHAIN(G) \
  extern "C" __global__ __launch_bounds__(CHAIN_THREADS, 1) void chain_##G(const Chain c) { chain<G>(c); }
CHAIN(1)
CHAIN(8)
