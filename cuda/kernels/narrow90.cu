// The kernels of narrowasync.cu for compute capability 9.0, where a kernel begins before the one before it has ended.
#include "narrowasync.cu"
