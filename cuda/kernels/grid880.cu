// The kernels of grid8.cu, compiled for compute capability 8.0.
#include "grid8.cu"
