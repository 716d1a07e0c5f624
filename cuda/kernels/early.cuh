// Kernels that begin before the kernel before them has ended, on compute capability 9.0 (grid.early in step.go). Elsewhere these functions do nothing.
#pragma once

// letNextBegin lets the next kernel begin, if it was launched so. awaitLast waits until the kernel before has ended and shows what it wrote.
__device__ __forceinline__ void letNextBegin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void awaitLast() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
