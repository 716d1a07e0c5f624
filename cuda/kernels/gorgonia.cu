// The kernels with which Gorgonia's own CUDA machine adds the gradients of a node with several users. Gorgonia's release does not include
// them. Names and arguments are those that Gorgonia expects. The grid has up to three axes.
#include "types.cuh"

template <class T> __device__ __forceinline__ void add(T *a, const T *b, int64_t n) {
  const int64_t block = ((int64_t)blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int64_t i = block * blockDim.x + threadIdx.x;
  if (i < n) a[i] += b[i];
}

extern "C" __global__ void add_vv_f32(float *a, const float *b, int64_t n) { add(a, b, n); }
extern "C" __global__ void add_vv_f64(double *a, const double *b, int64_t n) { add(a, b, n); }
