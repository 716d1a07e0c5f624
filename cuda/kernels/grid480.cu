// The kernels of grid4.cu, compiled for compute capability 8.0.
#include "grid4.cu"
