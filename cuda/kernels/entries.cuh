// The names of the kernels: scan_forward_SxK_BCs, where B and C are v (variable) or c (constant), and s is s (with starts) or n (without).
// scan_ends and scan_carries are the first passes over chunks. Each direction and size has its own file, since the driver compiles a whole
// file when it first needs one of its kernels.
#pragma once

// X is the type of activations, MARK its prefix in the names.
#define FORWARD(X, MARK, S, K, W, T, TH, M, EVERY, NAME, VB, VC, STARTS)                                            \
  extern "C" __global__ __launch_bounds__(TH, M) void scan_forward_##MARK##S##x##K##_##NAME(const Scan s) {      \
    scanForward<X, S, K, W, T, TH, EVERY, 0, VB, VC, STARTS, false>(s);                                             \
  }
#define CHUNKED_FORWARD(X, MARK, S, K, W, T, TH, M, EVERY, NAME, VB, VC, STARTS)                                    \
  FORWARD(X, MARK, S, K, W, T, TH, M, EVERY, NAME, VB, VC, STARTS)                                                  \
  extern "C" __global__ __launch_bounds__(TH, M) void scan_ends_##MARK##S##x##K##_##NAME(const Scan s) {         \
    scanForward<X, S, K, W, T, TH, EVERY, 0, VB, VC, STARTS, true>(s);                                              \
  }
// The kernels of scan_forward_async.cuh: with z and without, and the first pass over chunks. KIND is n, or s with starts.
#define FORWARD_ASYNC(X, MARK, KIND, STARTS)                                                                     \
  extern "C" __global__ __launch_bounds__(64, 5) void scan_forward_##MARK##async_z##KIND(const Scan s) {         \
    scanForwardAsync<X, 64, 16, true, STARTS>(s);                                                                \
  }                                                                                                              \
  extern "C" __global__ __launch_bounds__(64, 5) void scan_forward_##MARK##async_n##KIND(const Scan s) {         \
    scanForwardAsync<X, 64, 16, false, STARTS>(s);                                                               \
  }                                                                                                              \
  extern "C" __global__ __launch_bounds__(64, 5) void scan_first_##MARK##async_z##KIND(const Scan s) {           \
    scanFirstAsync<X, 64, 16, true, STARTS>(s);                                                                  \
  }                                                                                                              \
  extern "C" __global__ __launch_bounds__(64, 5) void scan_first_##MARK##async_n##KIND(const Scan s) {           \
    scanFirstAsync<X, 64, 16, false, STARTS>(s);                                                                 \
  }
// The same with one channel a thread.
#define FEW_ASYNC(X, MARK, KIND, STARTS)                                                                         \
  extern "C" __global__ __launch_bounds__(128, 3) void scan_few_##MARK##async_z##KIND(const Scan s) {            \
    scanForwardAsync<X, 128, 16, true, STARTS, 1, 1>(s);                                                         \
  }                                                                                                              \
  extern "C" __global__ __launch_bounds__(128, 3) void scan_few_##MARK##async_n##KIND(const Scan s) {            \
    scanForwardAsync<X, 128, 16, false, STARTS, 1, 1>(s);                                                        \
  }
// The kernel of scan_backward_async.cuh. whole: for scans of whole blocks and tiles with z; any: for all others.
#define BACKWARD_ASYNC(X, MARK, NAME, WHOLE, KIND, STARTS)                                                       \
  extern "C" __global__ __launch_bounds__(128, 2) void scan_backward_##MARK##async_##NAME##_##KIND(const Scan s) { \
    scanBackwardAsync<X, 64, WHOLE, STARTS>(s);                                                                  \
  }
// The same for whole blocks and tiles with z in two chunks.
#define BACKWARD_TWO_ASYNC(X, MARK, KIND, STARTS)                                                                \
  extern "C" __global__ __launch_bounds__(128, 2) void scan_backward_##MARK##async_two_##KIND(const Scan s) {    \
    scanBackwardAsync<X, 64, true, STARTS, true>(s);                                                             \
  }
#define CARRIES_ASYNC(X, MARK, KIND, STARTS)                                                                     \
  extern "C" __global__ __launch_bounds__(128, 8) void scan_carries_##MARK##async_##KIND(const Scan s) {         \
    scanCarriesAsync<X, STARTS>(s);                                                                              \
  }
#define BACKWARD(X, MARK, S, K, T, Q, TH, M, NAME, VB, VC, STARTS)                                               \
  extern "C" __global__ __launch_bounds__(TH, M) void scan_backward_##MARK##S##x##K##_##NAME(const Scan s) {     \
    scanBackward<X, S, K, T, Q, TH, 0, false, VB, VC, STARTS>(s);                                                \
  }
#define CHUNKED_BACKWARD(X, MARK, S, K, T, Q, TH, M, NAME, VB, VC, STARTS)                                       \
  BACKWARD(X, MARK, S, K, T, Q, TH, M, NAME, VB, VC, STARTS)                                                     \
  extern "C" __global__ __launch_bounds__(256) void scan_carries_##MARK##S##x##K##_##NAME(const Scan s) {        \
    scanCarries<X, S * K, 256, VC, STARTS>(s);                                                                   \
  }

// USUAL makes the kernel that a Mamba block uses, STARTED the same with starts, OPTIONS all but USUAL. The first arguments are the sizes.
#define USUAL(KERNEL, ...) KERNEL(__VA_ARGS__, vvn, true, true, false)
#define STARTED(KERNEL, ...) KERNEL(__VA_ARGS__, vvs, true, true, true)
#define OPTIONS(KERNEL, ...)                    \
  STARTED(KERNEL, __VA_ARGS__)                  \
  KERNEL(__VA_ARGS__, vcn, true, false, false)  \
  KERNEL(__VA_ARGS__, vcs, true, false, true)   \
  KERNEL(__VA_ARGS__, cvn, false, true, false)  \
  KERNEL(__VA_ARGS__, cvs, false, true, true)   \
  KERNEL(__VA_ARGS__, ccn, false, false, false) \
  KERNEL(__VA_ARGS__, ccs, false, false, true)

// The sizes of a forward kernel: threads per channel, states per thread, channels per thread, steps per tile, threads per block, blocks per
// multiprocessor, steps between checkpoints. Those of a backward kernel: threads per channel, states per thread, steps per tile, steps per
// part of a tile, threads per block, blocks per multiprocessor. cuda/scan_kernels.go has the same numbers.
#define FORWARD16(EACH, X, MARK) EACH(CHUNKED_FORWARD, X, MARK, 4, 4, 1, 16, 128, 4, 16)
#define FORWARD16FEW(EACH, X, MARK) EACH(FORWARD, X, MARK, 16, 1, 1, 32, 128, 4, 16)
#define FORWARD64(EACH, X, MARK) EACH(FORWARD, X, MARK, 16, 4, 1, 16, 128, 2, 16)
#define FORWARD256(EACH, X, MARK) EACH(FORWARD, X, MARK, 32, 8, 1, 8, 128, 2, 4)
#define BACKWARD16(EACH, X, MARK) EACH(CHUNKED_BACKWARD, X, MARK, 4, 4, 16, 8, 128, 4)
#define BACKWARD16FEW(EACH, X, MARK) EACH(BACKWARD, X, MARK, 16, 1, 16, 16, 128, 4)
#define BACKWARD64(EACH, X, MARK) EACH(BACKWARD, X, MARK, 16, 4, 16, 8, 64, 4)
#define BACKWARD256(EACH, X, MARK) EACH(BACKWARD, X, MARK, 32, 8, 4, 4, 128, 2)
