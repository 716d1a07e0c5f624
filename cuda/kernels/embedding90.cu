// The kernels of embedding.cu for compute capability 9.0, where a kernel begins before the one before it has ended.
#include "embedding.cu"
