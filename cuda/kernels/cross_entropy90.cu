// The kernels of cross_entropy.cu for compute capability 9.0, where a kernel begins before the one before it has ended.
#include "cross_entropy.cu"
