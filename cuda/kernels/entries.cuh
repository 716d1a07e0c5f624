// The kernels by name: scan_forward_SxK_BCs, where B and C are v (variable) or c (constant), and s is s with starts, n without.
#pragma once
#include "scan_backward.cuh"
#include "scan_forward.cuh"

#define FORWARD(S, K, T, TH, M, EVERY, POLY, NAME, VB, VC, STARTS)                                          \
  extern "C" __global__ __launch_bounds__(TH, M) void scan_forward_##S##x##K##_##NAME(const Scan s) {       \
    scanForward<float, S, K, T, TH, EVERY, POLY, VB, VC, STARTS>(s);                                               \
  }
#define BACKWARD(S, K, T, TH, M, POLY, NAME, VB, VC, STARTS)                                                \
  extern "C" __global__ __launch_bounds__(TH, M) void scan_backward_##S##x##K##_##NAME(const Scan s) {      \
    scanBackward<float, S, K, T, TH, POLY, VB, VC, STARTS>(s);                                                     \
  }

#define FORWARD_HALF(S, K, T, TH, M, EVERY, POLY, NAME, VB, VC, STARTS)                                     \
  extern "C" __global__ __launch_bounds__(TH, M) void scan_forward_bf16_##S##x##K##_##NAME(const Scan s) {  \
    scanForward<bf16, S, K, T, TH, EVERY, POLY, VB, VC, STARTS>(s);                                         \
  }
#define BACKWARD_HALF(S, K, T, TH, M, POLY, NAME, VB, VC, STARTS)                                           \
  extern "C" __global__ __launch_bounds__(TH, M) void scan_backward_bf16_##S##x##K##_##NAME(const Scan s) { \
    scanBackward<bf16, S, K, T, TH, POLY, VB, VC, STARTS>(s);                                               \
  }

// USUAL is what Mamba asks for, OPTIONS is the rest. EACH(kernel...) of the sizes goes with each of them.
#define USUAL(KERNEL, ...) KERNEL(__VA_ARGS__, vvn, true, true, false)
#define OPTIONS(KERNEL, ...)                    \
  KERNEL(__VA_ARGS__, vvs, true, true, true)    \
  KERNEL(__VA_ARGS__, vcn, true, false, false)  \
  KERNEL(__VA_ARGS__, vcs, true, false, true)   \
  KERNEL(__VA_ARGS__, cvn, false, true, false)  \
  KERNEL(__VA_ARGS__, cvs, false, true, true)   \
  KERNEL(__VA_ARGS__, ccn, false, false, false) \
  KERNEL(__VA_ARGS__, ccs, false, false, true)

// The sizes, by the states that fit: threads of a channel, states of a thread, steps of a tile, threads of a block, blocks of a
// multiprocessor, steps between checkpoints, one polynomial exponential in so many. cuda/scan_sizes.go has their twins.
#define SCAN16(EACH)                               \
  EACH(FORWARD, 4, 4, 16, 128, 4, 16, 8)           \
  EACH(BACKWARD, 4, 4, 16, 128, 2, 0)
#define SCAN64(EACH)                               \
  EACH(FORWARD, 16, 4, 16, 128, 2, 16, 0)          \
  EACH(BACKWARD, 16, 4, 16, 64, 4, 0)
#define SCAN256(EACH)                              \
  EACH(FORWARD, 32, 8, 8, 64, 2, 4, 0)             \
  EACH(BACKWARD, 32, 8, 4, 64, 2, 0)
