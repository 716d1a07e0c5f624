// What stands around the tiles of attention: visible steps, rotations, the context, and a single step.
#include "types.cuh"

// cuda/attention.go has the same fields. A row of a context is a key, a value, and 1, or 0 if there is no such step.
struct Around {
  int64_t batch, length, heads, dim, window, before;  // before: steps of the context
  double base;                                        // of the rotations; 0 for none
  const float *q, *k, *v;                             // (batch, length, width)
  const float *context;                               // (batch, before, 2·width + 1), or null
  const uint8_t *start;                               // (batch, length), or null
  int *first;                                         // (batch, length)
  float2 *angles;                                     // (before + length, dim/2): cosine and sine
  float *y, *lse, *next;                              // (batch, length, width), (batch, heads, length), (batch, window-1, 2·width + 1)
  const float *dy, *dnext, *dk, *dv;                  // dk and dv are (batch, before + length, width)
  float *inner, *gradK, *gradV, *gradContext;
  float *parts;                                       // of a step: (splits, batch, heads, dim + 2)
  int64_t splits;
  float scale2;                                       // log2(e)/√dim

  __device__ __forceinline__ int64_t width() const { return heads * dim; }
  // row returns a step of a context.
  template <class T> __device__ __forceinline__ T *row(T *of, int64_t b, int64_t step) const { return of + (b * (window - 1) + step) * (2 * width() + 1); }
  // began returns the first step of the sequence that the last step belongs to.
  __device__ __forceinline__ int64_t began(int64_t b) const { return first ? first[(b + 1) * length - 1] : 0; }
};

// blockMax returns the largest v of a block, in every thread.
__device__ __forceinline__ int blockMax(int v) {
  __shared__ int most[32];
#pragma unroll
  for (int m = 16; m > 0; m /= 2) v = max(v, __shfl_xor_sync(~0u, v, m));
  __syncthreads();
  if (threadIdx.x % 32 == 0) most[threadIdx.x / 32] = v;
  __syncthreads();
  for (int w = 0; w < (int)blockDim.x / 32; w++) v = max(v, most[w]);
  return v;
}

__device__ __forceinline__ void round(float x, bf16 &to) { to = ::to<bf16>(x); }
__device__ __forceinline__ void round(float x, float &to) {  // to tf32, ties away from zero
  to = x - x == 0.f ? __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u) : x;
}

// attention_prepare writes first, one block for each sequence, and the angles, in the other blocks.
extern "C" __global__ __launch_bounds__(1024) void attention_prepare(const Around a) {
  const int64_t begins = a.first ? a.batch : 0, b = blockIdx.x;
  if (b >= begins) {
    const int64_t half = a.dim / 2, i = (b - begins) * blockDim.x + threadIdx.x;
    if (i >= (a.before + a.length) * half) return;
    double sine, cosine;
    sincos((double)(i / half) * pow(a.base, -(double)(i % half) / half), &sine, &cosine);
    a.angles[i] = make_float2((float)cosine, (float)sine);
    return;
  }
  int first = 0;
  for (int64_t s = threadIdx.x; s < a.before; s += blockDim.x)
    if (a.row(a.context, b, s)[2 * a.width()] == 0.f) first = max(first, (int)s + 1);
  first = blockMax(first);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int64_t from = 0; from < a.length; from += blockDim.x) {  // a running maximum over the steps of a block
    __shared__ int last[32];
    const int64_t t = from + threadIdx.x;
    const unsigned started = __ballot_sync(~0u, a.start && t < a.length && a.start[b * a.length + t] != 0);
    const int begin = (int)(a.before + t) - lane;  // of the warp
    const unsigned until = started & ~0u >> (31 - lane);
    __syncthreads();
    if (lane == 0) last[warp] = started ? begin + 31 - __clz(started) : 0;
    __syncthreads();
    int mine = first;
    for (int w = 0; w < warps; w++) {
      if (w < warp) mine = max(mine, last[w]);
      first = max(first, last[w]);
    }
    if (until) mine = begin + 31 - __clz(until);
    if (t < a.length) a.first[b * a.length + t] = mine;
  }
}

// turned returns element e of a row of heads, rotated by the angle of a position. A negative sign rotates back.
__device__ __forceinline__ float turned(const Around &a, const float *row, int e, int64_t position, float sign) {
  if (!a.angles) return row[e];
  const int half = a.dim / 2, i = e % (int)a.dim;
  const bool upper = i >= half;
  const float2 f = a.angles[position * half + (upper ? i - half : i)];
  const float s = upper ? f.y : -f.y;
  return row[e] * f.x + row[upper ? e - half : e + half] * (sign * s);
}

// attention_gather writes to (batch, steps, width): the rows of x, rotated, after the rows of the context from element offset of a row on. A
// block writes a row. Without context, steps is length, and the positions begin after the context's.
extern "C" __global__ __launch_bounds__(256) void attention_gather(const Around a, const float *x, int64_t context, int64_t offset, int64_t turn, float *to) {
  const int64_t before = context ? a.before : 0, steps = before + a.length, b = blockIdx.x / steps, s = blockIdx.x % steps, width = a.width();
  const float *row = s < before ? a.row(a.context, b, s) + offset : x + (b * a.length + s - before) * width;
  to += (b * steps + s) * width;
  for (int e = threadIdx.x; e < width; e += blockDim.x) to[e] = turn ? turned(a, row, e, a.before - before + s, turn) : row[e];
}

// pack is attention_gather for the kernels of attention_mma.cuh. It writes (batch, heads, steps, padded), times factor, rounded and with zeros
// after each head. It sets bad (batch, heads) to 1 where a number is not finite.
template <class X> __device__ __forceinline__ void pack(const Around &a, const float *x, int64_t context, int64_t offset, int64_t turn, X *to,
                                                        int64_t padded, float factor, int *bad) {
  const int64_t before = context ? a.before : 0, steps = before + a.length, b = blockIdx.x / steps, s = blockIdx.x % steps;
  const float *row = s < before ? a.row(a.context, b, s) + offset : x + (b * a.length + s - before) * a.width();
  for (int i = threadIdx.x; i < a.heads * padded; i += blockDim.x) {
    const int head = i / (int)padded, c = i % (int)padded, e = head * (int)a.dim + c;
    float f = 0.f;
    if (c < a.dim) f = (turn ? turned(a, row, e, a.before - before + s, 1.f) : row[e]) * factor;
    if (f - f != 0.f) bad[b * a.heads + head] = 1;
    round(f, to[((b * a.heads + head) * steps + s) * padded + c]);
  }
}
#define PACK(NAME, X)                                                                                                                          \
  extern "C" __global__ __launch_bounds__(256) void attention_pack_##NAME(const Around a, const float *x, int64_t context, int64_t offset,     \
                                                                          int64_t turn, X *to, int64_t padded, float factor, int *bad) {      \
    pack(a, x, context, offset, turn, to, padded, factor, bad);                                                                                \
  }
PACK(bf16, bf16)
PACK(tf32, float)

// attention_next writes the context of the steps that follow. A block writes a row.
extern "C" __global__ __launch_bounds__(256) void attention_next(const Around a) {
  const int64_t b = blockIdx.x / (a.window - 1), i = blockIdx.x % (a.window - 1), s = a.before + a.length - (a.window - 1) + i, width = a.width();
  float *to = a.row(a.next, b, i);
  const bool none = s < a.began(b), kept = s < a.before;
  const float *row = none || !kept ? nullptr : a.row(a.context, b, s);
  const int64_t at = (b * a.length + s - a.before) * width;
  for (int64_t e = threadIdx.x; e < 2 * width + 1; e += blockDim.x)
    to[e] = none ? 0.f : kept ? row[e] : e < width ? a.k[at + e] : e < 2 * width ? a.v[at + e - width] : 1.f;
}

// attention_inner writes dy·y of each step and head, with dy rounded to bfloat16 or tf32 if it has as many bits. A warp computes one.
extern "C" __global__ __launch_bounds__(256) void attention_inner(const Around a, int64_t bits) {
  const int64_t i = (int64_t)blockIdx.x * 8 + threadIdx.x / 32;
  if (i >= a.batch * a.length * a.heads) return;
  const int64_t row = i / a.heads, head = i % a.heads;
  float sum = 0.f;
  for (int e = threadIdx.x % 32; e < a.dim; e += 32) {
    float dy = a.dy[i * a.dim + e];
    bf16 half;
    if (bits == 16) round(dy, half), dy = value(half);
    if (bits == 19) round(dy, dy);
    sum = fmaf(dy, a.y[i * a.dim + e], sum);
  }
  sum = warpSum(sum);
  if (threadIdx.x % 32 == 0) a.inner[(row / a.length * a.heads + head) * a.length + row % a.length] = sum;
}

// attention_finish writes the gradients of K, V and the context: dk rotated back, dv, and the gradient of the next context added to the rows
// that it was copied from. A block writes the row of a step. dv may be gradV, and dk may be gradK if nothing is rotated.
extern "C" __global__ __launch_bounds__(256) void attention_finish(const Around a) {
  const int64_t steps = a.before + a.length, b = blockIdx.x / steps, s = blockIdx.x % steps, width = a.width();
  const int64_t i = s - (steps - (a.window - 1));
  const float *more = a.dnext && i >= 0 && s >= a.began(b) ? a.row(a.dnext, b, i) : nullptr;
  const int64_t at = (b * a.length + s - a.before) * width;
  float *k = s < a.before ? a.gradContext ? a.row(a.gradContext, b, s) : nullptr : a.gradK ? a.gradK + at : nullptr;
  float *v = s < a.before ? k ? k + width : nullptr : a.gradV ? a.gradV + at : nullptr;
  const float *dk = a.dk + (b * steps + s) * width, *dv = a.dv + (b * steps + s) * width;
  for (int e = threadIdx.x; e < width; e += blockDim.x) {
    if (k) k[e] = turned(a, dk, e, s, -1.f) + (more ? more[e] : 0.f);
    if (v) v[e] = dv[e] + (more ? more[width + e] : 0.f);
  }
  if (k && s < a.before && threadIdx.x == 0) k[2 * width] = 0.f;
}

// A single query: blocks of 8 warps each process one part of the keys of a head, four keys of a warp at a time. The keys are not rotated. The
// query is rotated by its distance from each key instead.
constexpr int stepWarps = 8;

// E is the number of elements of the head per lane.
template <int E> __device__ __forceinline__ void attentionStep(const Around &a) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, dim = a.dim, half = dim / 2, before = a.before;
  const int64_t head = blockIdx.x, b = blockIdx.y, width = a.width();
  const int each = (before + (int)a.splits) / (int)a.splits;  // keys of a part, rounded up
  const int from = max(a.first ? a.first[b] : 0, (int)blockIdx.z * each), to = min(((int)blockIdx.z + 1) * each, before + 1);
  const float *query = a.q + b * width + head * dim;
  float q[E], pair[E], sum[E], largest = -INFINITY, total = 0.f;
  int turn[E];  // index of the pair's angle
#pragma unroll
  for (int i = 0; i < E; i++) {
    const int e = lane + 32 * i;
    q[i] = pair[i] = sum[i] = 0.f, turn[i] = 0;
    if (e >= dim) continue;
    q[i] = query[e] * a.scale2;
    if (a.angles) turn[i] = e < half ? e : e - half, pair[i] = (e < half ? -query[e + half] : query[e - half]) * a.scale2;
  }
  for (int s = from + 4 * warp; s < to; s += 4 * stepWarps) {
    float score[4], v[4][E];
#pragma unroll
    for (int n = 0; n < 4; n++) {
      const int step = min(s + n, to - 1);
      const float *key, *value;
      if (step < before) key = a.row(a.context, b, step) + head * dim, value = key + width;
      else key = a.k + b * width + head * dim, value = a.v + b * width + head * dim;
      score[n] = 0.f;
#pragma unroll
      for (int i = 0; i < E; i++) {
        const int e = lane + 32 * i;
        v[n][i] = 0.f;
        if (e >= dim) continue;
        float w = q[i];
        if (a.angles) {
          const float2 f = a.angles[(int64_t)(before - step) * half + turn[i]];
          w = q[i] * f.x + pair[i] * f.y;
        }
        score[n] = fmaf(w, key[e], score[n]);
        v[n][i] = value[e];
      }
    }
    float top = largest;
#pragma unroll
    for (int n = 0; n < 4; n++) {
      score[n] = warpSum(score[n]);
      if (s + n < to) top = fmaxf(top, score[n]);
    }
    const float base = top == -INFINITY ? 0.f : top, change = exp2Approx(largest - base);
    largest = top, total *= change;
#pragma unroll
    for (int i = 0; i < E; i++) sum[i] *= change;
#pragma unroll
    for (int n = 0; n < 4; n++) {
      if (s + n >= to) continue;
      const float p = exp2Approx(score[n] - base);
      total += p;
#pragma unroll
      for (int i = 0; i < E; i++) sum[i] = fmaf(p, v[n][i], sum[i]);
    }
  }
  __shared__ float sums[stepWarps][32 * E], tops[stepWarps], totals[stepWarps];
#pragma unroll
  for (int i = 0; i < E; i++) sums[warp][lane + 32 * i] = sum[i];
  if (lane == 0) tops[warp] = largest, totals[warp] = total;
  __syncthreads();
  const int e = threadIdx.x;
  if (e >= dim) return;
  float top = -INFINITY, all = 0.f, y = 0.f;
#pragma unroll
  for (int w = 0; w < stepWarps; w++) top = fmaxf(top, tops[w]);
#pragma unroll
  for (int w = 0; w < stepWarps; w++) {
    const float p = exp2Approx(tops[w] - (top == -INFINITY ? 0.f : top));
    all = fmaf(p, totals[w], all);
    y = fmaf(p, sums[w][e], y);
  }
  const int64_t i = b * a.heads + head;
  if (a.splits == 1) {
    a.y[i * dim + e] = y / all;
    if (a.lse && e == 0) a.lse[i] = top + log2f(all);
    return;
  }
  float *part = a.parts + (blockIdx.z * a.batch * a.heads + i) * (dim + 2);
  part[e] = y;
  if (e == 0) part[dim] = top, part[dim + 1] = all;
}
extern "C" __global__ __launch_bounds__(256) void attention_step_2(const Around a) { attentionStep<2>(a); }
extern "C" __global__ __launch_bounds__(256) void attention_step_4(const Around a) { attentionStep<4>(a); }
extern "C" __global__ __launch_bounds__(256) void attention_step_8(const Around a) { attentionStep<8>(a); }

// attention_join adds the parts of a step. A block adds those of a head.
extern "C" __global__ __launch_bounds__(256) void attention_join(const Around a) {
  const int64_t heads = a.batch * a.heads, i = blockIdx.x, row = a.dim + 2;
  const float *part = a.parts + i * row;
  float top = -INFINITY;
  for (int64_t k = 0; k < a.splits; k++) top = fmaxf(top, part[k * heads * row + a.dim]);
  const int e = threadIdx.x;
  if (e >= a.dim) return;
  float all = 0.f, y = 0.f;
  for (int64_t k = 0; k < a.splits; k++) {
    const float *of = part + k * heads * row;
    const float p = exp2Approx(of[a.dim] - (top == -INFINITY ? 0.f : top));
    all = fmaf(p, of[a.dim + 1], all);
    y = fmaf(p, of[e], y);
  }
  a.y[i * a.dim + e] = y / all;
  if (a.lse && e == 0) a.lse[i] = top + log2f(all);
}
