// Losses of segmentation. internal/kernel/dice.go and binary_cross_entropy.go define them. All sums are in double, in a fixed order.
#include "types.cuh"

// blockSum returns the sum over a block of 256 threads in its first thread.
__device__ __forceinline__ double blockSum(double v) {
  __shared__ double warps[8];
  v = warpSum(v);
  __syncthreads();  // the sums of the call before have been read
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
  __syncthreads();
  v = 0;
  if (threadIdx.x == 0)
    for (int i = 0; i < 8; i++) v += warps[i];
  return v;
}

__device__ __forceinline__ float accurateSigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// nearest_targets writes to (batch, d, h, w): the targets (batch, D, H, W) of the nearest cells.
extern "C" __global__ void nearest_targets(const int32_t *targets, int32_t *to, int64_t batch, int64_t D, int64_t H, int64_t W, int64_t d, int64_t h,
                                           int64_t w) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= batch * d * h * w) return;
  const int64_t x = i % w * W / w, y = i / w % h * H / h, z = i / (w * h) % d * D / d;
  to[i] = targets[((i / (w * h * d) * D + z) * H + y) * W + x];
}

// bce_parts writes the sum and the count of the losses of 4096 logits.
extern "C" __global__ void bce_parts(const float *x, const int32_t *targets, double *parts, int64_t n, int32_t ignore) {
  double sum = 0, count = 0;
  for (int k = 0; k < 16; k++) {
    const int64_t i = (int64_t)blockIdx.x * 4096 + k * 256 + threadIdx.x;
    if (i >= n || targets[i] == ignore) continue;
    const float y = targets[i] == 1 ? -x[i] : x[i];
    sum += (y != y || y > 0.f ? y : 0.f) + log1pf(expf(-fabsf(y))), count++;
  }
  sum = blockSum(sum), count = blockSum(count);
  if (threadIdx.x == 0) parts[2 * (int64_t)blockIdx.x] = sum, parts[2 * (int64_t)blockIdx.x + 1] = count;
}

// bce_mean writes the mean to loss, and 1 / the count to share, or 0 to both.
extern "C" __global__ void bce_mean(const double *parts, double *share, float *loss, int64_t count) {
  double sum = 0, n = 0;
  for (int64_t i = threadIdx.x; i < count; i += 256) sum += parts[2 * i], n += parts[2 * i + 1];
  sum = blockSum(sum), n = blockSum(n);
  if (threadIdx.x == 0) share[0] = n > 0 ? 1 / n : 0, loss[0] = n > 0 ? (float)(sum / n) : 0.f;
}

extern "C" __global__ void bce_backward(const float *x, const int32_t *targets, const double *share, const float *dloss, float *dx, int64_t n, int32_t ignore) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float each = (float)(dloss[0] * share[0]);
  const int32_t target = targets[i];
  dx[i] = target == ignore ? 0.f : target == 1 ? -accurateSigmoid(-x[i]) * each : accurateSigmoid(x[i]) * each;
}

// softmaxTop writes the largest of the logits and 1 / Σ e^(x - top). NaN stays visible.
__device__ __forceinline__ void softmaxTop(const float *x, int64_t classes, float &top, float &share) {
  top = -INFINITY;
  for (int64_t c = 0; c < classes; c++) top = fmaxf(top, x[c]);
  float sum = 0;
  for (int64_t c = 0; c < classes; c++) sum += expf(x[c] - top);
  share = 1.f / sum;
}

// dice_parts writes for each class Σpt and Σp + Σt, or Σp² + Σt, of 1024 rows of a group. There are count parts in a group.
extern "C" __global__ void dice_parts(const float *x, const int32_t *targets, double *parts, int64_t rows, int64_t classes, int64_t count, int32_t ignore) {
  const int64_t group = blockIdx.x / count, first = blockIdx.x % count * 1024 + threadIdx.x;
  int64_t row[4];
  int32_t target[4];
  float top[4], share[4];
#pragma unroll
  for (int k = 0; k < 4; k++) {
    row[k] = group * rows + first + k * 256;
    target[k] = first + k * 256 < rows ? targets[row[k]] : ignore;
    if (target[k] != ignore && classes > 1) softmaxTop(x + row[k] * classes, classes, top[k], share[k]);
  }
  for (int64_t c = 0; c < classes; c++) {
    double both = 0, own = 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
      if (target[k] == ignore) continue;
      const float v = x[row[k] * classes + c], p = classes == 1 ? accurateSigmoid(v) : expf(v - top[k]) * share[k];
      own += classes == 1 ? (double)p : (double)p * p;
      if (target[k] == (classes == 1 ? 1 : c)) both += p, own += 1;
    }
    both = blockSum(both), own = blockSum(own);
    if (threadIdx.x == 0) parts[(blockIdx.x * classes + c) * 2] = both, parts[(blockIdx.x * classes + c) * 2 + 1] = own;
  }
}

// dice_overlaps writes (overlaps, 3): an overlap and its derivatives by twice the first sum and, negative, by the second. A block computes one.
extern "C" __global__ void dice_overlaps(const double *parts, double *overlaps, int64_t classes, int64_t count) {
  const int64_t group = blockIdx.x / classes, c = blockIdx.x % classes;
  double both = 0, own = 0;
  for (int64_t i = threadIdx.x; i < count; i += 256) {
    const double *p = parts + ((group * count + i) * classes + c) * 2;
    both += p[0], own += p[1];
  }
  both = blockSum(both), own = blockSum(own);
  if (threadIdx.x == 0) {
    const double smooth = classes == 1 ? 1 : 1e-5, below = own + smooth;
    double *o = overlaps + 3 * (int64_t)blockIdx.x;
    o[0] = (2 * both + smooth) / below, o[1] = 1 / below, o[2] = o[0] / below;
  }
}

// dice_loss writes 1 minus the mean of n overlaps.
extern "C" __global__ void dice_loss(const double *overlaps, float *loss, int64_t n) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += 256) sum += overlaps[3 * i];
  sum = blockSum(sum);
  if (threadIdx.x == 0) loss[0] = (float)(1 - sum / n);
}

// dice_backward writes the gradient of the logits of a row.
extern "C" __global__ void dice_backward(const float *x, const int32_t *targets, const double *overlaps, const float *dloss, float *dx, int64_t images,
                                         int64_t cells, int64_t classes, int32_t ignore) {
  const int64_t row = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= images * cells) return;
  const int32_t target = targets[row];
  x += row * classes, dx += row * classes;
  if (classes == 1) {
    const double *o = overlaps + row / cells * 3;
    const float g = (float)(dloss[0] / images * (o[2] - (target == 1 ? 2 * o[1] : 0)));
    dx[0] = target == ignore ? 0.f : g * accurateSigmoid(x[0]) * accurateSigmoid(-x[0]);
    return;
  }
  if (target == ignore) {
    for (int64_t c = 0; c < classes; c++) dx[c] = 0.f;
    return;
  }
  const double scale = 2. * dloss[0] / classes;
  float top, share;
  softmaxTop(x, classes, top, share);
  double dot = 0;
  for (int64_t c = 0; c < classes; c++) {
    const float p = expf(x[c] - top) * share;
    dot += p * (p * overlaps[3 * c + 2] - (c == target ? overlaps[3 * c + 1] : 0));
  }
  for (int64_t c = 0; c < classes; c++) {
    const float p = expf(x[c] - top) * share;
    dx[c] = (float)(scale * p * (p * overlaps[3 * c + 2] - (c == target ? overlaps[3 * c + 1] : 0) - dot));
  }
}
