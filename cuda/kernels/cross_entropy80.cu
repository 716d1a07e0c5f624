// The kernels of cross_entropy.cu for compute capability 8.0, which rounds to bfloat16 in one instruction.
#include "cross_entropy.cu"
